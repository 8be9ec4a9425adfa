"""The one training loop of all avatars: a budget, checks with previews, checkpoints, exact resume. MAIN: `train`.

What is learned is a `TrainingRun`'s own: its step and its check pictures. Every step's draws must depend on the seed
and the step alone; then a run that is killed and resumed goes on exactly as it would have.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import DivergedError, InputError
from omokage.files import parse_json, saving
from omokage.workers import Workers

VERSION = 2
CHECKS = 8  # pictures, for previews and early stopping
PreviewCallback = Callable[[int, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class BudgetConfig(Config):
    """How long a training may go on, and what all trainings share.

    minutes: budget of wall time; the learning rate falls along it.
    passes: over the frames at most; more only learn a short recording by heart (docs/research/avatar-ablations.md).
    steps: stop after this many instead of both (exactly repeatable).
    batch: samples of a step.  ema: decay of the averaged weights.
    patience: share of the budget without a better check picture after which training stops early.
    """

    minutes: float = 10.0
    passes: float = 4.0
    steps: int | None = None
    batch: int = 4
    seed: int = 0
    ema: float = 0.998
    patience: float = 0.5
    checkpoint_seconds: float = 30.0


class TrainingRun(ABC):
    """All that changes during a training; `save` and `load` write and read it (no pickle).

    frames: how many the budget's passes go over.  critic_trust: weight of the critic in [0, 1], of the collapse guard.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.critic_trust = 1.0
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float, float]] = []

    @abstractmethod
    def named_state(self) -> Mapping[str, Tensor]:
        """Every tensor of the run but the optimisers' own, by a name without a place in it that changes."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """By names that no tensor's name begins with."""

    def share(self, config: BudgetConfig) -> float:
        """How much of the budget is spent, 0..1."""
        return self._share_at(self.step, self.seconds, config)

    def _share_at(self, step: int, seconds: float, config: BudgetConfig) -> float:
        if config.steps is not None:
            return step / max(1, config.steps)
        return max(seconds / (60 * config.minutes), step * config.batch / (config.passes * self.frames))

    def rate(self, share: float) -> float:
        """Factor of every learning rate: cosine from the full rate to a twentieth, after a short warm-up."""
        return (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))) * min(
            1.0, (self.step + 1) / 50
        )

    def average(self, mean: nn.Module, network: nn.Module, decay: float) -> None:
        """Exponential moving average of a network's weights; young averages forget faster."""
        with torch.no_grad():
            for old, new in zip(mean.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 1 - self.decay(decay))

    def decay(self, ema: float) -> float:
        """Of the averages in this step."""
        return min(ema, (self.step + 1) / (self.step + 10))

    def judge(self, *, has_critic_won: bool) -> None:
        """The collapse guard: a critic that always wins says nothing useful, so trust it less."""
        self.critic_trust = float(np.clip(self.critic_trust * (0.97 if has_critic_won else 1.01), 0.0, 1.0))

    def is_check_due(self, config: BudgetConfig) -> bool:
        """Twenty checks over the budget, and early ones at steps 20 and 60: the first useful picture."""
        if self.step in (20, 60):
            return True
        step, seconds, _ = self.curve[-1] if self.curve else (0, 0.0, 0.0)
        is_soon = config.steps is None and self.seconds - seconds < 2.0
        return not is_soon and self.share(config) - self._share_at(step, seconds, config) >= 0.05

    def is_stale(self, config: BudgetConfig) -> bool:
        """No better check picture for `patience` of the budget."""
        if len(self.curve) < CHECKS:
            return False
        step, seconds, _ = max(self.curve, key=lambda point: point[2])
        return self.share(config) - self._share_at(step, seconds, config) > config.patience

    def verdict(self) -> str:
        return f", {self.curve[-1][2]:.1f} dB" if self.curve else ""

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on exactly. Raises OutputError."""
        tensors = {name: _kept(tensor) for name, tensor in self.named_state().items()}
        for prefix, optimizer in self.optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{index}.{key}": _kept(value) for key, value in state.items()}
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
                for name, tensor in self.named_state().items():
                    tensor.copy_(tensors[name])
            for prefix, optimizer in self.optimizers().items():
                _load_optimizer(optimizer, prefix, tensors)
            progress = parse_json(metadata["progress"])
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


def train(
    run: TrainingRun,
    config: BudgetConfig,
    *,
    step: Callable[[float], float],
    check: Callable[[], tuple[NDArray[np.uint8], float]],
    workers: Workers | None = None,
    checkpoint: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    on_preview: PreviewCallback | None = None,
) -> None:
    """Train until the budget is spent. With `checkpoint`, resumes from that file and keeps it up to date.

    step: does a training step, given the share of the budget that is spent, and gives its loss.  check: a sheet of
    check pictures and their mean PSNR in dB.  workers: of several processes, which all hold the same run, the first
    one checks and writes. Raises InputError for a checkpoint of another run, OutputError, DivergedError as soon as
    loss, check pictures or what would be saved are not finite: a checkpoint is always one to go on from.
    """
    workers = workers or Workers.alone()
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    started, saved = time.monotonic() - run.seconds, time.monotonic()

    def look() -> None:
        picture, psnr = check() if workers.is_first else (None, 0.0)
        (psnr,) = workers.agree(psnr)
        _require_finite(run, psnr)
        run.curve.append((run.step, run.seconds, psnr))
        if on_preview is not None and picture is not None:
            on_preview(run.step, picture)

    if run.step == 0:
        look()
    while (share := run.share(config)) < 1 and not run.is_stale(config):
        loss = step(share)
        run.step += 1
        _require_finite(run, loss)
        run.seconds, since = workers.agree(time.monotonic() - started, time.monotonic() - saved)
        on_progress(Progress("training", run.share(config), 1.0, f"loss {loss:.3f}{run.verdict()}"))
        if run.is_check_due(config):
            look()
        if checkpoint is not None and since > config.checkpoint_seconds:
            _save(run, checkpoint, workers)
            saved = time.monotonic()
    if checkpoint is not None:
        _save(run, checkpoint, workers)
    else:
        _require_finite_state(run)


def check_rows(count: int) -> NDArray[np.int64]:
    """Which of so many samples are checked: eight over the recording.

    They are trained on too: in recordings of seconds every frame kept back costs more on the held-out tail (talk-b:
    0.3 dB for the last eight) than a stricter stopping rule gains.
    """
    return np.unique(np.linspace(0, count - 1, CHECKS).astype(np.int64))


def check_sheet(pairs: list[tuple[Tensor, Tensor]]) -> tuple[NDArray[np.uint8], float]:
    """Truth and prediction (3, S, S) in [0, 1] of every check -> a sheet, truth above, of up to four of them, uint8,
    and the mean PSNR of all (dB)."""
    errors = [float((made - true).square().mean()) for true, made in pairs]
    scores = [-10 * math.log10(max(error, 1e-10)) for error in errors]  # of NaN it is NaN, in this order
    shown = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(4, len(pairs))).astype(int)]
    sheet = torch.cat([torch.cat(pair, dim=1) for pair in shown], dim=2).permute(1, 2, 0).cpu().numpy()
    return (np.nan_to_num(sheet) * 255 + 0.5).astype(np.uint8), float(np.mean(scores))


def _require_finite(run: TrainingRun, value: float) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the training has diverged: its numbers are no longer finite at step {run.step}, and nothing of that was "
            "saved; train again with a lower learning rate, or the paper's networks with --precision fp32"
        )


def _require_finite_state(run: TrainingRun) -> None:
    """An update can overflow after a loss that was finite; all processes hold the same, so all see it."""
    is_finite = all(bool(torch.isfinite(value).all()) for value in run.named_state().values())
    _require_finite(run, 0.0 if is_finite else math.nan)


def _save(run: TrainingRun, path: Path, workers: Workers) -> None:
    _require_finite_state(run)
    if workers.is_first:
        run.save(path)
    workers.wait()


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _load_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    plain = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
