"""The state of a compact avatar's training run, and how it is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omokage.avatar.generator import DRAWING_CHANNELS, Generator
from omokage.avatar.loop import BudgetConfig, TrainingRun
from omokage.avatar.losses import Critic
from omokage.avatar.registration import ExplicitAvatar


@dataclass(frozen=True)
class TrainingConfig(BudgetConfig):
    """How a compact avatar is trained.

    window: largest shift of the sliding window, pixels of a 256 picture.
    adversarial: weight of the critic, 0 = none; adversarial_from: share of the budget before it starts.
    """

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
    threads: int | None = None


class Run(TrainingRun):
    """Generator, its average, appearance codes of the frames, critic, and their optimisers."""

    def __init__(self, generator: Generator, codes: Tensor, config: TrainingConfig) -> None:
        super().__init__(len(codes))
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

    @classmethod
    def start(cls, explicit: ExplicitAvatar, frames: int, config: TrainingConfig) -> Run:
        generator = explicit.generator()
        return cls(generator, torch.zeros(frames, generator.config.code_size), config)

    def set_rates(self, share: float) -> None:
        """As the budget is spent, see `rate`."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate(share)

    def named_state(self) -> Mapping[str, Tensor]:
        state = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        state |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        state |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        return state | {"codes": self.codes.data}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"adam": self.optimizer, "critic_adam": self.critic_optimizer}
