"""Training of the denoiser and its reference network on prepared windows. MAIN: `train`.

All that is drawn for a sample depends on the seed, the step and the sample's place in the batch: neither a kill and a
resumption nor the number of processes changes what is learned.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.talking.sampler import draw_noise
from omokage.talking.scheduler import training_timesteps
from omokage.talking.training.batch import Samples, TrainingBatch, collate
from omokage.talking.training.config import StageConfig
from omokage.talking.training.couple import Couple, make_ready
from omokage.talking.training.sharding import shard
from omokage.talking.training.state import Run
from omokage.workers import Workers

CHECKPOINT_SECONDS = 300.0


class Draw(IntEnum):
    """What a draw is for: part of its key."""

    ORDER = 0  # of the samples, in every pass over them
    SAMPLE = 1  # what a sample draws for itself
    TIMESTEP = 2
    DROPOUT = 3
    NOISE = 4


@dataclass(frozen=True)
class TrainingResult:
    """steps, seconds: spent in all runs together.  losses: of every step, mean over its samples."""

    steps: int
    seconds: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Drawn:
    """A micro-batch with all that was drawn for it: `noise` of its latents' shape, `timesteps` (B,) int64."""

    batch: TrainingBatch
    noise: Tensor
    timesteps: Tensor


def train(
    couple: Couple,
    samples: Samples,
    config: StageConfig,
    *,
    workers: Workers | None = None,
    checkpoint: Path | None = None,
    run_key: str = "",
    checkpoint_seconds: float | None = None,
    on_progress: ProgressCallback = ignore_progress,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train in place, on the device of `workers`; afterwards the couple holds the result (the average, where the stage
    keeps one).

    checkpoint: a folder; a stopped run goes on from it exactly, and only with the same `run_key`, which stands for data
    and first weights.  on_step: hears the number of finished steps after each, such as for previews; it must change
    nothing. Raises InputError for a batch that cannot be shared out, or a checkpoint of another run; OutputError.
    """
    workers = workers or Workers.alone(next(couple.parameters()).device)
    check_batch(config, workers)
    make_ready(couple, config)
    couple.to(workers.device).train()
    shard(couple, workers)
    run, key = Run.start(couple, config), _run_key(run_key, config, len(samples))
    if checkpoint is not None:
        run.load(checkpoint, key, workers)
    every = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
    started, saved = time.monotonic() - run.seconds, time.monotonic()
    while run.step < config.steps and (share := run.share(config)) <= 1:
        loss = workers.mean(_gradients(couple, samples, config, workers, run.step))
        run.update(config.rate(share), config)
        run.step += 1
        run.losses.append(loss)
        run.seconds, since = workers.agree(time.monotonic() - started, time.monotonic() - saved)
        note = f"step {run.step} of {config.steps}, loss {loss:.4f}"
        on_progress(Progress("training", min(share, 1.0), 1.0, note))
        if on_step is not None:
            on_step(run.step)
        if checkpoint is not None and since >= every:
            run.save(checkpoint, key, workers)
            saved = time.monotonic()
    if checkpoint is not None:
        run.save(checkpoint, key, workers)
    run.finish()
    couple.eval()
    return TrainingResult(run.step, run.seconds, tuple(run.losses))


def check_batch(config: StageConfig, workers: Workers) -> None:
    """Raises InputError unless every process gets as many whole micro-batches of a step."""
    share = workers.world * config.micro_batch
    if config.batch % share:
        raise InputError(
            f"a batch of {config.batch} cannot be shared out to {workers.world} processes in micro-batches of "
            f"{config.micro_batch}; use a batch that is a multiple of {share}"
        )


def draw_step(samples: Samples, config: StageConfig, step: int, places: range) -> Iterator[Drawn]:
    """The micro-batches of these places of a step's batch, one after the other."""
    for first in range(places.start, places.stop, config.micro_batch):
        drawn = [
            draw_sample(samples, config, step, place) for place in range(first, first + config.micro_batch)
        ]
        yield Drawn(
            collate([one.batch for one in drawn]),
            torch.cat([one.noise for one in drawn]),
            torch.cat([one.timesteps for one in drawn]),
        )


def draw_sample(samples: Samples, config: StageConfig, step: int, place: int) -> Drawn:
    """The sample at one place of a step's batch, with its noise, timestep and dropouts.

    Timesteps are uniform, and each place draws from its own slice of them: what the published training does with a
    sample for every process (spec 4.1).
    """
    turn, row = divmod(step * config.batch + place, len(samples))
    index = int(_order(config.seed, turn, len(samples))[row])
    batch = samples.sample(index, _random(config, Draw.SAMPLE, step, place))
    drawing = torch.Generator().manual_seed(int(_random(config, Draw.TIMESTEP, step, place).integers(2**62)))
    timesteps = training_timesteps(1, rank=place, world=config.batch, generator=drawing)
    noise = draw_noise(tuple(batch.latents.shape), config.seed, Draw.NOISE, step, place)
    return Drawn(drop_conditions(batch, config, _random(config, Draw.DROPOUT, step, place)), noise, timesteps)


def drop_conditions(batch: TrainingBatch, config: StageConfig, random: np.random.Generator) -> TrainingBatch:
    """Leave out conditions of one sample, each by its own chance (spec 4.2); the face embedding never.

    The published training draws once for all samples of a process, of which it has one.
    """
    text, condition, reference, audio = (
        float(draw >= share)
        for draw, share in zip(
            random.random(4),
            (config.text_dropout, config.condition_dropout, config.reference_dropout, config.audio_dropout),
            strict=True,
        )
    )
    heard = None if batch.audio is None or not config.hears else audio * batch.audio
    return replace(
        batch,
        text=text * batch.text,
        condition=condition * batch.condition,
        reference=reference * batch.reference,
        audio=heard,
    )


def _gradients(couple: Couple, samples: Samples, config: StageConfig, workers: Workers, step: int) -> float:
    """Add up the gradients of this process's part of a batch; its mean loss. Processes average their gradients."""
    places, total = workers.part(config.batch), 0.0
    is_card = workers.device.type == "cuda"
    for drawn in draw_step(samples, config, step, places):
        batch, noise = drawn.batch.to(workers.device), drawn.noise.to(workers.device)
        with torch.autocast(workers.device.type, torch.bfloat16, enabled=is_card):
            losses = couple(batch, noise, drawn.timesteps.to(workers.device))
        loss = losses.sum() / len(places)
        loss.backward()
        total += float(loss.detach())
    return total


@cache
def _order(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    """The order of the samples in one pass over them."""
    return np.random.default_rng((seed, int(Draw.ORDER), turn)).permutation(count)


def _random(config: StageConfig, kind: Draw, step: int, place: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, int(kind), step, place))


def _run_key(key: str, config: StageConfig, count: int) -> str:
    """Of everything that what is learned depends on; how long to train may differ, and memory against time."""
    settings = replace(config, recompute=False, minutes=0.0).to_json()
    return hashlib.sha256(json.dumps([key, settings, count]).encode()).hexdigest()
