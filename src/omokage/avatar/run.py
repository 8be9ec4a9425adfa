"""The state of a training run: what is kept in a checkpoint, so that a killed run goes on exactly (no pickle)."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omokage.avatar.generator import DRAWING_CHANNELS, Generator
from omokage.avatar.losses import Critic
from omokage.avatar.registration import ExplicitAvatar
from omokage.config import Config
from omokage.errors import InputError
from omokage.files import saving

VERSION = 2


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How an avatar is trained.

    minutes: budget of wall time; the learning rate falls along it.
    passes: over the frames at most; more only learn a short recording by heart (docs/research/avatar-ablations.md).
    steps: stop after this many instead of both (exactly repeatable).
    window: largest shift of the sliding window, pixels of a 256 picture.
    adversarial: weight of the critic, 0 = none; adversarial_from: share of the budget before it starts.
    patience: share of the budget without a better check picture after which training stops early.
    """

    minutes: float = 10.0
    passes: float = 4.0
    steps: int | None = None
    batch: int = 4
    seed: int = 0
    learning_rate: float = 1e-3
    texture_rate: float = 1e-3
    feature_rate: float = 1e-2
    mode_rate: float = 1e-4
    code_rate: float = 1e-2
    window: int = 16
    motion_noise: float = 0.05
    code_dropout: float = 0.5
    face_weight: float = 1.0
    feature_weight: float = 3.0
    matte_weight: float = 1.0
    detail_weight: float = 0.5
    adversarial: float = 0.0
    adversarial_from: float = 0.7
    ema: float = 0.998
    patience: float = 0.5
    checkpoint_seconds: float = 30.0
    threads: int | None = None


class Run:
    """All that changes during training; `checkpoint` writes and reads it."""

    def __init__(self, generator: Generator, codes: Tensor, config: TrainingConfig) -> None:
        self.generator, self.codes = generator, torch.nn.Parameter(codes)
        self.averaged = copy.deepcopy(generator).requires_grad_(False)
        self.network = generator.weights()
        self.rates = (
            config.learning_rate,
            config.texture_rate,
            config.feature_rate,
            config.mode_rate,
            config.code_rate,
        )
        groups: list[dict[str, Any]] = [
            {"params": self.network},
            {"params": [generator.colors]},
            {"params": [generator.features]},
            {"params": [generator.modes]},
            {"params": [self.codes]},
        ]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.critic = Critic(4**generator.config.wavelet_levels, DRAWING_CHANNELS)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=4e-4, betas=(0.0, 0.99))
        self.critic_trust = 1.0
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float, float]] = []

    @classmethod
    def start(cls, explicit: ExplicitAvatar, frames: int, config: TrainingConfig) -> Run:
        generator = explicit.generator()
        return cls(generator, torch.zeros(frames, generator.config.code_size), config)

    def share(self, config: TrainingConfig) -> float:
        """How much of the budget is spent, 0..1."""
        return self._share_at(self.step, self.seconds, config)

    def _share_at(self, step: int, seconds: float, config: TrainingConfig) -> float:
        if config.steps is not None:
            return step / max(1, config.steps)
        return max(seconds / (60 * config.minutes), step * config.batch / (config.passes * len(self.codes)))

    def set_rates(self, share: float, config: TrainingConfig) -> None:
        """Cosine from the full rate to a twentieth, after a short warm-up."""
        factor = (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))) * min(
            1.0, (self.step + 1) / 50
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def average(self, decay: float) -> None:
        """Exponential moving average of the generator; young averages forget faster."""
        decay = min(decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)

    def is_check_due(self, config: TrainingConfig) -> bool:
        """Twenty checks over the budget, and early ones at steps 20 and 60: the first useful picture."""
        if self.step in (20, 60):
            return True
        step, seconds, _ = self.curve[-1] if self.curve else (0, 0.0, 0.0)
        is_soon = config.steps is None and self.seconds - seconds < 2.0
        return not is_soon and self.share(config) - self._share_at(step, seconds, config) >= 0.05

    def is_stale(self, config: TrainingConfig) -> bool:
        """No better check picture for `patience` of the budget."""
        if len(self.curve) < 8:
            return False
        step, seconds, _ = max(self.curve, key=lambda point: point[2])
        return self.share(config) - self._share_at(step, seconds, config) > config.patience

    def verdict(self) -> str:
        return f", {self.curve[-1][2]:.1f} dB" if self.curve else ""

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on exactly."""
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self._named_state().items()}
        for prefix, optimizer in self._optimizers():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"{prefix}.{index}.{key}": value.contiguous().clone() for key, value in state.items()
                }
        progress = {
            "step": self.step, "seconds": self.seconds, "curve": self.curve, "critic_trust": self.critic_trust,
        }  # fmt: skip
        metadata = {"format": "omokage.checkpoint", "version": str(VERSION), "progress": json.dumps(progress)}
        with saving(path, SafetensorError) as part:
            save_file(tensors, part, metadata)

    def load(self, path: Path) -> None:
        """Go back to where it was. Raises InputError when the file is damaged or of another avatar."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != "omokage.checkpoint" or metadata.get("version") != str(VERSION):
                raise InputError(
                    f"{path} is not a training checkpoint of this version; remove it to start again"
                )
            with torch.no_grad():
                for name, tensor in self._named_state().items():
                    tensor.copy_(tensors[name])
            for prefix, optimizer in self._optimizers():
                _load_optimizer(optimizer, prefix, tensors)
            progress = json.loads(metadata["progress"])
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} does not fit this avatar ({error}); remove it to start again"
            ) from error
        self.step, self.seconds, self.critic_trust = (
            progress["step"],
            progress["seconds"],
            progress["critic_trust"],
        )
        self.curve = [(int(step), float(seconds), float(psnr)) for step, seconds, psnr in progress["curve"]]

    def _named_state(self) -> dict[str, Tensor]:
        state = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        state |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        state |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        return state | {"codes": self.codes.data}

    def _optimizers(self) -> tuple[tuple[str, torch.optim.Optimizer], ...]:
        return (("adam", self.optimizer), ("critic_adam", self.critic_optimizer))


def _load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    plain = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
