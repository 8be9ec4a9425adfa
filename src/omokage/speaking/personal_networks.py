"""How the personal driver's networks are trained: windows of one recording, augmented. MAIN: `train_network`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.avatar.loop import BudgetConfig, TrainingRun, train
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.speaking.hearing import BANDS
from omokage.speaking.motion_transformer import (
    MotionConditions,
    MotionTransformer,
    TransformerConfig,
    flow_loss,
)
from omokage.speaking.sound_frames import FUTURE, PAST

Float = NDArray[np.float64]

BATCH = 32
RATE, DECAY = 1e-3, 0.1
NOISE_LEVELS = 4  # at which a window is judged
TEMPI = (0.9, 1.0, 1.12)
GAIN, NOISE = 0.4, 0.25  # of standardised sound
LEFT_OUT = 0.15  # how often either condition is
EXPECTED_NOISE = 0.15


@dataclass(frozen=True)
class NetworkTrainingConfig(BudgetConfig):
    """steps at most; training stops early, and the best network by windows that it never saw is kept."""

    steps: int | None = 300
    batch: int = BATCH
    patience: float = 0.4


@dataclass(frozen=True)
class Motions:
    """sound (T, C): standardised.  expected, motion (T, K): by the regression, and what is left over it, in deviations.

    starts (N,): first frames of the windows that may be used; there are `previous` + `PAST` frames before and enough
    behind.
    """

    sound: Float
    expected: Float
    motion: Float
    starts: NDArray[np.int64]


class NetworkRun(TrainingRun):
    """A network, the best one so far, and its optimiser."""

    def __init__(self, config: TransformerConfig, frames: int, seed: int) -> None:
        super().__init__(frames)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = MotionTransformer(config)
        self.best = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=RATE, weight_decay=DECAY)

    def named_state(self) -> Mapping[str, Tensor]:
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        return state | {f"best.{name}": value for name, value in self.best.state_dict().items()}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"adam": self.optimizer}

    def verdict(self) -> str:
        return ""


def train_network(
    learned: Motions,
    judged: Motions,
    transformer: TransformerConfig,
    config: NetworkTrainingConfig,
    *,
    checkpoint: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> MotionTransformer:
    """Learn from the windows `learned`; of all networks on the way the one that knows `judged` best.

    With `checkpoint` a stopped run goes on from there. Raises DivergedError, InputError, OutputError.
    """
    run = NetworkRun(transformer, len(learned.starts), config.seed)
    tempi = [at_tempo(learned, tempo, transformer) for tempo in TEMPI]

    def step(share: float) -> float:
        for group in run.optimizer.param_groups:
            group["lr"] = RATE * run.rate(share)
        # Every draw depends on seed and step alone, so that a resumed run goes on as it would have.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 * config.seed + run.step)
            run.network.train()
            loss = _loss(run.network, tempi[run.step % len(tempi)], config.batch)
            run.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
            run.optimizer.step()
        return float(loss.detach())

    def check() -> tuple[NDArray[np.uint8], float]:
        score = -10 * math.log10(max(judge(run.network, judged), 1e-10))
        if all(score > before for _, _, before in run.curve):
            run.best.load_state_dict(run.network.state_dict())
        return np.zeros((1, 1, 3), np.uint8), score

    def counted(progress: Progress) -> None:
        on_progress(Progress("learning speech", progress.done, progress.total, progress.note))

    train(run, config, step=step, check=check, checkpoint=checkpoint, on_progress=counted)
    return run.best.eval().requires_grad_(False)


@torch.no_grad()
def judge(network: MotionTransformer, judged: Motions) -> float:
    """Mean loss over windows that overlap by half, with noise that is always the same."""
    network.eval()
    starts = judged.starts[:: max(1, network.config.window // 2)]
    motion, given = _windows(judged, starts, network.config)
    random = torch.Generator().manual_seed(0)
    losses = []
    for share in (torch.arange(NOISE_LEVELS) / NOISE_LEVELS).tolist():
        noise = torch.randn(motion.shape, generator=random)
        losses.append(float(flow_loss(network, motion, given, noise, torch.full((len(motion),), share))))
    return sum(losses) / len(losses)


def at_tempo(motions: Motions, tempo: float, config: TransformerConfig) -> Motions:
    """The same said faster (above 1) or slower."""
    if tempo == 1.0:
        return motions
    times = np.arange(0, len(motions.sound) - 1, tempo)

    def stretched(values: Float) -> Float:
        places = np.arange(len(values))
        return np.stack([np.interp(times, places, column) for column in values.T], axis=1)

    # A window is as long as before, so it covers more or less of the recording: it must stay where it may be.
    before, behind = config.previous + PAST, config.window + FUTURE
    allowed = np.zeros(len(motions.sound), dtype=bool)
    for start in motions.starts:
        allowed[start - before : start + behind] = True
    inside = allowed[np.round(times).astype(int)]
    total = before + behind
    fits = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(inside, total).all(axis=1)) + before
    if not len(fits):
        return motions
    return Motions(
        stretched(motions.sound), stretched(motions.expected), stretched(motions.motion), starts=fits
    )


def _loss(network: MotionTransformer, motions: Motions, batch: int) -> Tensor:
    starts = motions.starts[torch.randint(len(motions.starts), (batch,)).numpy()]
    motion, given = _windows(motions, starts, network.config)
    gain = GAIN * torch.randn(batch, 1, 1)
    louder = torch.zeros(given.sound.shape[-1])
    louder[:BANDS] = 1
    sound = given.sound + gain * louder + NOISE * torch.randn(given.sound.shape)
    noisy = MotionConditions(
        sound,
        given.expected + EXPECTED_NOISE * torch.randn(given.expected.shape),
        given.previous + EXPECTED_NOISE * torch.randn(given.previous.shape),
        (torch.rand(batch) >= LEFT_OUT).float(),
        (torch.rand(batch) >= LEFT_OUT).float(),
    )
    return flow_loss(network, motion, noisy, torch.randn(motion.shape), torch.rand(batch))


def _windows(
    motions: Motions, starts: NDArray[np.int64], config: TransformerConfig
) -> tuple[Tensor, MotionConditions]:
    """The motion (B, W, K) of windows that begin at `starts`, and what is known of them."""

    def cut(values: Float, before: int, behind: int) -> Tensor:
        rows = starts[:, None] + np.arange(-before, behind)
        return torch.from_numpy(values[rows]).float()

    given = MotionConditions(
        cut(motions.sound, config.previous + PAST, config.window + FUTURE),
        cut(motions.expected, config.previous, config.window),
        cut(motions.motion, config.previous, 0),
        torch.ones(len(starts)),
        torch.ones(len(starts)),
    )
    return cut(motions.motion, 0, config.window), given
