"""How fast the paper's networks learn on this device: seconds a step, and pictures of frames that were never trained on
over the minutes, beside the nearest training frame."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import OUT_OF_TIME, Row, begin_memory, now, peak_memory
from style_networks import Sizes
from torch.nn import functional as F

from omokage.avatar.loop import BudgetConfig, check_sheet
from omokage.avatar.paper.batch import Draws, Loader
from omokage.avatar.paper.frames import FrameRecord, FrameStore, FrameWriter, alpha_of_cells, crop_side
from omokage.avatar.paper.precision import fastest_kernels, matrix_precision
from omokage.avatar.paper.run import PaperRun, PaperTrainingConfig
from omokage.avatar.paper.train import Learner, compile_networks, drawn_after, train_paper
from omokage.config import Progress
from omokage.media.clip import Image
from omokage.workers import Workers

SEED = 3
DISTANCE = 110.0  # cm, where the face is as large in the crop as that of a recording
FRAME_RATE = 12.0  # of the synthetic performance: more movement in few frames
HELD_OUT_SHARE, CHECKED = 0.2, 8
CHECKPOINT_S = 120.0


# frames


@dataclass(frozen=True)
class SyntheticFrames:
    """A drawn person's performance of `count` frames for pictures of `size` pixels, made by `jobs` processes."""

    size: int
    count: int
    jobs: int

    def store(self, folder: Path) -> FrameStore:
        """Draw what is not there yet; the last fifth is held out."""
        if FrameStore.is_finished(folder):
            return FrameStore.open(folder)
        writer = FrameWriter(folder, self.size)
        for record in self._records(range(writer.done, self.count)):
            writer.add(record)
        held_out = max(1, round(self.count * HELD_OUT_SHARE))
        return writer.finish(self.count - held_out, held_out)

    def _records(self, numbers: range) -> Iterator[FrameRecord]:
        jobs = [(self.size, self.count, number) for number in numbers]
        if self.jobs == 1:
            yield from map(synthetic_record, jobs)
            return
        # Not forked: the parent has threads, and may hold a card.
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            yield from pool.map(synthetic_record, jobs, chunksize=4)


@cache
def _performance(size: int, count: int) -> tuple[Any, Any]:
    # Whoever only times networks needs nothing of what draws people.
    from omokage.tracking.synthetic import SyntheticSubject

    subject = SyntheticSubject(SEED, distance=DISTANCE)
    return subject, subject.performance(
        count / FRAME_RATE, frame_rate=FRAME_RATE, size=crop_side(size), motion=0.7
    )


def synthetic_record(job: tuple[int, int, int]) -> FrameRecord:
    """One frame of the performance: the whole picture is the crop."""
    from omokage.avatar.conditioning import AvatarState
    from omokage.avatar.paper.drawing import MeshDrawing
    from omokage.avatar.sheet import Crop, Pose

    size, count, number = job
    subject, track = _performance(size, count)
    side = crop_side(size)
    pose = (track.rotation[number], track.translation[number], track.expression[number], track.gaze[number])
    # Drawn at its own size: four times the pixels for smooth edges would take most of a lease.
    image = subject.render(*pose, side, supersampling=1)
    alpha = alpha_of_cells(subject.opacity(*pose, side // 4), size)
    drawing = MeshDrawing(track.subject, track.camera, Crop(0.0, 0.0, float(side)), size)
    place = Pose(track.rotation[number], track.translation[number], track.sway[number].astype(np.float64))
    drawn = drawing.draw(AvatarState(place, track.expression[number], track.gaze[number]))
    return FrameRecord(number, image, alpha, drawn.render, drawn.uv)


def clip_store(clip: Path, size: int, folder: Path) -> FrameStore:
    """A recording, tracked and prepared as `omokage create` does it. Raises OmokageError."""
    from omokage.pipelines.create_paper import MAX_FRAMES
    from omokage.pipelines.paper_frames import mesh_drawing, prepare_recording
    from omokage.pipelines.recording import Recording

    folder.parent.mkdir(parents=True, exist_ok=True)
    track = folder.with_name(f"{folder.name}.track")
    recording = Recording.open(clip, size=size, cap=MAX_FRAMES, known_track=track)
    return prepare_recording(recording, mesh_drawing(recording, size), folder)


# training


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    precision: str
    channels_last: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        return self.precision + ", channels last" * self.channels_last + ", compiled" * self.compiled

    def config(self, base: PaperTrainingConfig) -> PaperTrainingConfig:
        return replace(
            base, precision=self.precision, channels_last=self.channels_last, compiled=self.compiled
        )


def ways(*, compiled: bool, card: bool) -> list[Way]:
    """The most valuable first."""
    found = (
        [Way("tf32"), Way("bf16", channels_last=True), Way("fp32")] if card else [Way("fp32"), Way("bf16")]
    )
    if compiled:
        found.insert(2, Way("bf16", channels_last=True, compiled=True))
        found.append(Way("tf32", compiled=True))
    return found


def step_row(
    way: Way, sizes: Sizes, base: PaperTrainingConfig, store: FrameStore, device: torch.device, steps: int
) -> Row:
    """Milliseconds of whole training steps, generator, discriminator and in one of them the gradient penalty."""
    begin_memory(device)
    torch.compiler.reset()
    config = way.config(base)
    run = PaperRun(sizes.portrait, sizes.critic, config, frames=store.train, workers=Workers.alone(device))
    loader = Loader([store], Draws(config.seed, config.batch, config.micro_batch, config.code_dropout))
    learner, batches = (
        Learner(run, config, Workers.alone(device), None),
        loader.steps(0, Workers.alone(device)),
    )
    compile_networks(run, config)
    times, begun = list[float](), now(device)
    with matrix_precision(config.precision), fastest_kernels():
        for number in range(3 + steps):
            coming, begin = next(batches), now(device)
            # The penalty comes with the first step, which is not timed, and every so often.
            learner.step(coming, [0], share=0.3)
            times.append(1000 * (now(device) - begin))
            run.step += 1
            if number == 2:
                setup = now(device) - begun
    low, median, high = np.percentile(times[3:], (25, 50, 75))
    return {
        "ms_a_step": round(float(median), 2),
        "ms_quartiles": [round(float(low), 2), round(float(high), 2)],
        "batch": config.batch,
        "steps": steps,
        "first_three_steps_seconds": round(setup, 1),
        "samples_a_second": round(1000 * config.batch / float(median), 2),
        "peak_gb": peak_memory(device),
    }


@dataclass
class Curve:
    """Quality of held-out frames while it learns.

    points: step, seconds, PSNR of whole pictures and of faces in dB.  say: hears of them whenever there is a new one.
    file: where they are kept beside the checkpoint of a training that goes on later, None of one that does not.
    """

    run: PaperRun
    store: FrameStore
    config: BudgetConfig
    points: list[Row]
    say: Callable[[list[Row]], None]
    file: Path | None = None
    sheet: Image = field(default_factory=lambda: np.zeros((1, 1, 3), np.uint8))

    def add(self, step: int, _: Image) -> None:
        """Called after every check."""
        pairs, faces = [], []
        for batch in held_out_batches(self.store, self.config.seed):
            truth, made = drawn_after(self.run, batch)
            pairs.append((truth, made))
            faces.append(face_psnr(truth, made, batch.face.to(truth.device)))
        self.sheet, whole = check_sheet(pairs)
        seconds, face = round(self.run.seconds, 1), round(float(np.mean(faces)), 3)
        self.points.append(
            {"step": step, "seconds": seconds, "psnr_db": round(whole, 3), "face_psnr_db": face}
        )
        self.say(self.points)
        if self.file is not None:
            self.file.write_text(json.dumps(self.points), encoding="utf-8")


def held_out_batches(store: FrameStore, seed: int) -> Iterator[Any]:
    """Frames spread over those that are never trained on."""
    loader = Loader([store], Draws(seed, 1, 1, 1.0))
    for row in np.unique(np.linspace(store.train, len(store) - 1, CHECKED).astype(int)):
        yield loader.fixed(0, int(row))


def face_psnr(truth: torch.Tensor, made: torch.Tensor, face: torch.Tensor) -> float:
    """Within the drawn face, dB; pictures (3, S, S) in [0, 1], face (1, 1, G, G)."""
    mask = F.interpolate(face, size=truth.shape[-2:], mode="nearest")[0]
    error = ((truth - made).square() * mask).sum() / (3 * mask.sum()).clamp(min=1)
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def nearest_frames(store: FrameStore, seed: int) -> Row:
    """What a training frame with the most similar face mesh is worth: an avatar must beat that."""
    train = np.stack([store.record(row).render[::4, ::4].ravel() for row in range(store.train)]).astype(
        np.float32
    )
    loader, whole, faces = Loader([store], Draws(seed, 1, 1, 1.0)), list[float](), list[float]()
    for batch in held_out_batches(store, seed):
        drawn = batch.render[0].numpy()[::4, ::4].ravel().astype(np.float32)
        nearest = int(np.square(train - drawn).sum(axis=1).argmin())
        truth, made = (of.truth[0] / 2 + 0.5 for of in (batch, loader.fixed(0, nearest)))
        whole.append(check_sheet([(truth, made)])[1])
        faces.append(face_psnr(truth, made, batch.face))
    return {"psnr_db": round(float(np.mean(whole)), 3), "face_psnr_db": round(float(np.mean(faces)), 3)}


@dataclass(frozen=True)
class Part:
    """What one call does of a training. minutes: of the whole, along which the rates fall.

    until: of `time.monotonic`, when it stops before its end.  checkpoint: what another call goes on from, None where
    none will.  say: hears the curve as far as it goes.
    """

    minutes: float
    until: float
    checkpoint: Path | None
    say: Callable[[list[Row]], None]


class Stopped(Exception):
    """The time of this call is over."""


def training_row(
    way: Way, sizes: Sizes, base: PaperTrainingConfig, store: FrameStore, device: torch.device, part: Part
) -> tuple[Row, Image]:
    """Train, or a part of it; a row with the curve, and the last sheet of truth above pictures.

    Raises DivergedError.
    """
    begin_memory(device)
    config = replace(way.config(base), minutes=part.minutes, checkpoint_seconds=CHECKPOINT_S)
    run = PaperRun(sizes.portrait, sizes.critic, config, frames=store.train, workers=Workers.alone(device))
    curve, begin, stopped = Curve(run, store, config, [], part.say), time.monotonic(), False
    if part.checkpoint is not None:
        part.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        curve.file = part.checkpoint.with_suffix(".curve.json")
        if part.checkpoint.is_file() and curve.file.is_file():
            curve.points = json.loads(curve.file.read_text(encoding="utf-8"))

    def said(progress: Progress) -> None:
        if run.step % 100 == 0:
            print(f"step {run.step}, {100 * progress.done:.0f} %{progress.note}", flush=True)
        if time.monotonic() > part.until:
            raise Stopped

    try:
        train_paper(run, [store], config, checkpoint=part.checkpoint, on_progress=said, on_preview=curve.add)
    except Stopped:
        stopped = True
        if part.checkpoint is not None:
            run.save(part.checkpoint)
    curve.add(run.step, np.zeros(0, np.uint8))
    row: Row = {
        "way": way.name,
        "minutes": round(part.minutes, 2),
        "steps": run.step,
        "seconds": round(time.monotonic() - begin, 1),
        "seconds_of_training": round(run.seconds, 1),
        "frames": store.train,
        "nearest_training_frame": nearest_frames(store, config.seed),
        "critic_trust": round(run.critic_trust, 3),
        "peak_gb": peak_memory(device),
        "curve": curve.points,
    }
    return row | ({"failed": OUT_OF_TIME} if stopped else {}), curve.sheet


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fastest(found: Sequence[tuple[Way, Row]]) -> list[Way]:
    """The ways that worked, the fastest first."""
    done = [(row["ms_a_step"], way) for way, row in found if "ms_a_step" in row]
    return [way for _, way in sorted(done, key=lambda item: item[0])]
