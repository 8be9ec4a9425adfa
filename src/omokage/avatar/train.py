"""Train the avatar network on one recording, by a time budget. MAIN: `train_avatar`.

Phases, in the words of the paper: Greg (reconstruction and matte) from the first step, Gadv (adversarial) in the last
part and only while the critic stays honest. Every step's draws depend on (seed, step) alone, so a run that is killed
and resumed goes on exactly as it would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.avatar.generator import Generator, composite
from omokage.avatar.loop import PreviewCallback, check_rows, check_sheet, train
from omokage.avatar.losses import critic_hinge, detail, reconstruction
from omokage.avatar.registration import ExplicitAvatar, left_out_mixtures
from omokage.avatar.run import Run, TrainingConfig
from omokage.avatar.texture import Sample
from omokage.config import ProgressCallback, ignore_progress


@dataclass(frozen=True)
class TrainingResult:
    """The averaged network, and how it got there: (step, seconds, PSNR of the check frames in dB)."""

    generator: Generator
    steps: int
    seconds: float
    curve: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Batch:
    """B samples: image (B, 3, S, S), matte (B, 1, S, S) and plate (B, 3, S, S) in [0, 1], conditions, and `valid`
    (B, 1, S, S), 0 where the sliding window left the picture."""

    image: Tensor
    matte: Tensor
    plate: Tensor
    valid: Tensor
    warp: Tensor
    drawing: Tensor
    motion: Tensor
    mixture: Tensor


def train_avatar(
    explicit: ExplicitAvatar,
    samples: Sequence[Sample],
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    on_preview: PreviewCallback | None = None,
) -> TrainingResult:
    """Explicit avatar + its frames -> network. With `checkpoint`, resumes from that file and keeps it up to date."""
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    run = Run.start(explicit, len(samples), config)
    loader = Loader(explicit, samples, config)
    checks = [loader.fixed(samples[row]) for row in check_rows(len(samples))]

    def step(share: float) -> float:
        run.set_rates(share)
        rows, batch = loader.batch(run.step)
        return _train_step(run, rows, batch, share, config)

    train(
        run,
        config,
        step=step,
        check=lambda: _validate(run.averaged, checks),
        checkpoint=checkpoint,
        on_progress=on_progress,
        on_preview=on_preview,
    )
    run.averaged.eval()
    return TrainingResult(run.averaged, run.step, run.seconds, tuple(run.curve))


class Loader:
    """Draws batches; what it draws for a step depends on (seed, step) alone."""

    def __init__(self, explicit: ExplicitAvatar, samples: Sequence[Sample], config: TrainingConfig) -> None:
        self.explicit, self.samples, self.config = explicit, samples, config
        self.plate = explicit.plate
        self.cell = 2**explicit.conditioner.config.wavelet_levels
        self.reach = config.window * explicit.conditioner.config.size // 256 // self.cell
        self.mixtures = left_out_mixtures(explicit.conditioner, samples)

    def batch(self, step: int) -> tuple[Tensor, Batch]:
        """Rows (B,) and their samples, each with its own window shift."""
        rng = np.random.default_rng((self.config.seed, step))
        rows = rng.integers(len(self.samples), size=self.config.batch)
        shifts = rng.integers(-self.reach, self.reach + 1, size=(len(rows), 2)) * self.cell
        shifts[rng.random(len(rows)) < 0.5] = 0  # as in the paper, half of the training is centered
        batch = _stack(
            [
                self._cut(self.samples[r], (int(x), int(y)), self.mixtures[r])
                for r, (x, y) in zip(rows, shifts, strict=True)
            ]
        )
        noise = rng.standard_normal(tuple(batch.motion.shape)).astype(np.float32) * self.config.motion_noise
        batch.motion.add_(torch.from_numpy(noise))
        keep = torch.from_numpy(rng.random(len(rows)) >= self.config.code_dropout)
        return torch.where(keep, torch.from_numpy(rows), -1), batch

    def fixed(self, sample: Sample) -> Batch:
        """One sample without shift or noise."""
        return _stack([self._cut(sample, (0, 0), self.explicit.conditioner.mixture(sample.state))])

    def _cut(
        self, sample: Sample, shift: tuple[int, int], mixture: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        condition = self.explicit.conditioner.draw(sample.state, shift)
        image, matte = _shifted(sample.image, shift), _shifted(sample.matte[..., None], shift)
        valid = _shifted(np.full_like(sample.matte[..., None], 255), shift)
        planes = [
            np.float32(1 / 255) * p.transpose(2, 0, 1)
            for p in (image, matte, _shifted(self.plate, shift), valid)
        ]
        return [*planes, condition.warp, condition.drawing, condition.motion, mixture]


def _train_step(run: Run, rows: Tensor, batch: Batch, share: float, config: TrainingConfig) -> float:
    code = run.codes[rows.clamp(min=0)] * (rows >= 0)[:, None]
    color, matte = run.generator(batch.warp, batch.drawing, batch.motion, batch.mixture, code)
    portrait = composite(color, matte, batch.plate)
    scale = portrait.shape[-1] // batch.drawing.shape[-1]
    # Eyes and the mouth's inside, grown by a cell: lids and lips are what people look at.
    face, inside = batch.drawing[:, 3:4], batch.drawing[:, 4:6].amax(dim=1, keepdim=True)
    features = F.max_pool2d(inside, kernel_size=3, stride=1, padding=1)
    important = F.interpolate(
        config.face_weight * face + config.feature_weight * features, scale_factor=float(scale)
    )
    weight = (1 + important) * batch.valid

    # Greg: reconstruct the frame, its detail and its matte.
    loss = reconstruction(portrait, batch.image, weight)
    loss = loss + config.detail_weight * detail(portrait, batch.image, batch.valid)
    loss = loss + config.matte_weight * (batch.valid * (matte - batch.matte).abs()).mean()
    loss = loss + 1e-3 * code.square().mean()

    # Gadv: once the picture is right on average, make its texture plausible.
    if config.adversarial > 0 and share >= config.adversarial_from:
        ramp = min(1.0, (share - config.adversarial_from) / 0.1)
        fooled = -run.critic(portrait, batch.drawing).mean()
        loss = loss + config.adversarial * ramp * run.critic_trust * fooled

    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network, 1.0)
    run.optimizer.step()
    run.average(run.averaged, run.generator, config.ema)
    if config.adversarial > 0 and share >= config.adversarial_from:
        _critic_step(run, portrait.detach(), batch)
    return float(loss.detach())


def _critic_step(run: Run, portrait: Tensor, batch: Batch) -> None:
    """Dreal and Dfake, and the collapse guard."""
    loss = critic_hinge(run.critic(batch.image, batch.drawing), run.critic(portrait, batch.drawing))
    run.critic_optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    run.critic_optimizer.step()
    run.judge(has_critic_won=float(loss.detach()) < 0.2)


@torch.no_grad()
def _validate(generator: Generator, checks: Sequence[Batch]) -> tuple[NDArray[np.uint8], float]:
    """The sheet of the checks, and their mean PSNR (dB)."""
    pairs = []
    for batch in checks:
        code = batch.motion.new_zeros(1, generator.config.code_size)
        color, matte = generator(batch.warp, batch.drawing, batch.motion, batch.mixture, code)
        pairs.append((batch.image[0], composite(color, matte, batch.plate).clamp(0, 1)[0]))
    return check_sheet(pairs)


def _shifted(image: NDArray[np.uint8], shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Move a picture (H, W, C) by whole pixels; what comes in from outside is 0."""
    x, y = shift
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    moved[max(0, y) : height + min(0, y), max(0, x) : width + min(0, x)] = image[
        max(0, -y) : height + min(0, -y), max(0, -x) : width + min(0, -x)
    ]
    return moved


def _stack(cut: Sequence[list[NDArray[np.float32]]]) -> Batch:
    image, matte, plate, valid, warp, drawing, motion, mixture = (
        torch.from_numpy(np.stack(planes)) for planes in zip(*cut, strict=True)
    )
    return Batch(image, matte, plate, valid, warp, drawing, motion, mixture)
