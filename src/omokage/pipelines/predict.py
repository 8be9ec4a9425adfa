"""What `omokage create` will cost on this machine: a few measurements, then arithmetic. MAIN: `predict_create`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from omokage.avatar.registration import MAX_FRAMES, build_explicit
from omokage.avatar.run import TrainingConfig
from omokage.avatar.samples import frame_cap
from omokage.avatar.train import train_avatar
from omokage.capture.measure import MAX_BACKGROUND_SAMPLES, MAX_SAMPLES
from omokage.errors import InternalError
from omokage.evaluate.baselines import DEFAULT_RULE, REHEARSALS, WARP_RULES, warp_by_landmarks
from omokage.evaluate.protocol import HeldOut, read_landmarks, score
from omokage.pipelines.evaluate import detector
from omokage.pipelines.recording import evaluated_frames
from omokage.pipelines.stand_in import StandIn, stand_in
from omokage.render.renderer import TorchRuntime
from omokage.tracking.matting import MediaPipeMatte
from omokage.tracking.tracker import OnlineTracker

HELD_OUT_SHARE = 0.2
MIN_FACES = 6
TRAINING_STEPS = 4
FEW = 3  # frames that the slow stages are measured on
METHODS = 5  # scored at the end: the avatar, three baselines, the recording itself
# Not measured, since it depends on the file: decoding a 512 x 512 H.264 picture.
DECODING_S = 0.003
# Training a recording after half a minute of other work takes so much of the time that the first steps of a new process
# say: 0.53 to 0.78 were measured; why is not known.
SETTLED = 0.68
# Not measured, since it hardly depends on anything: identity, skin, reports, files.
FIXED_S = 20.0
# Nor what learning speech takes: a fixed number of steps, and reading the voice
# (benchmarks/results/speaking-personal-lengths.json).
SPEECH_S, SPEECH_SHARE = 20.0, 0.25
# Memory while a clip is tracked: the program without training, GB, and the track, bytes a frame.
TRACKING_GB = 0.9
BYTES_PER_TRACKED_FRAME = 8_000
# Memory after that, GB: the program with its networks; training, and the explicit avatar's medians, by the pixel;
# copies of the frames (with their mattes, then those of the evaluation).
PROGRAM_GB = 0.97
TRAINING_GB_PER_PIXEL = 5.0e-6
EXPLICIT_GB_PER_PIXEL = 64 * 3 * 10 / 1e9
BYTES_PER_KEPT_PIXEL = 4 + 2 * 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """What `create` will take: wall time in minutes, of which `training_minutes`, and memory at its peak in GB.

    allowed_minutes: of training; a short recording takes less.
    """

    minutes: float
    training_minutes: float
    memory_gb: float
    allowed_minutes: float

    def to_text(self) -> str:
        text = (
            f"about {self.minutes:.1f} minutes in all, {self.training_minutes:.1f} of them training, "
            f"{self.memory_gb:.1f} GB of memory"
        )
        if self.training_minutes < 0.95 * self.allowed_minutes:
            text += f"; more training, {self.allowed_minutes:.0f} minutes are allowed, would only learn it by heart"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Seconds a frame: tracking it; finding a face afresh, matting, registering, drawing, warping and scoring it;
    training on it once."""

    track: float
    find: float
    matte: float
    register: float
    picture: float
    warp: float
    score: float
    train: float


def predict_create(
    clip_seconds: float,
    frame_rate: float,
    size: int,
    minutes: float,
    passes: float = TrainingConfig.passes,
    has_speech: bool = False,
) -> Prediction:
    """Time and memory of `create` for a clip of this length, evaluation included, with at most `minutes` of training
    and so many `passes` over its frames.  has_speech: how the person speaks is learned too.

    Measures this machine for a few seconds (once for each size). Raises InputError for an unknown size.
    """
    cost = unit_costs(size)
    frames = clip_seconds * frame_rate
    cap = frame_cap(size)
    train = (1 - HELD_OUT_SHARE) * frames / max(1, math.ceil(frames / cap))
    held_out = min(HELD_OUT_SHARE * frames, evaluated_frames(size))
    checked = frames / max(1, math.ceil(frames / MAX_SAMPLES))
    seconds = {
        "checking": checked * cost.track + min(checked, MAX_BACKGROUND_SAMPLES) * cost.matte,
        "tracking": frames * cost.track,
        "cutting out": (train + held_out) * cost.matte,
        "decoding": 3 * frames * DECODING_S,
        "registering": min(train, MAX_FRAMES) * cost.register,
        "evaluating": (train + held_out) * cost.find
        + held_out * (2 * (cost.picture + cost.find) + cost.warp + METHODS * cost.score)
        + REHEARSALS * len(WARP_RULES) * cost.warp,
        "speech": SPEECH_S + SPEECH_SHARE * clip_seconds if has_speech else 0.0,
        "other": FIXED_S,
    }
    pixels = size * size
    training_gb = PROGRAM_GB + pixels * (
        max(TRAINING_GB_PER_PIXEL, EXPLICIT_GB_PER_PIXEL) + (train + held_out) * BYTES_PER_KEPT_PIXEL / 1e9
    )
    training = min(minutes, passes * (1 - HELD_OUT_SHARE) * frames * cost.train / 60)
    return Prediction(
        minutes=training + sum(seconds.values()) / 60,
        training_minutes=training,
        allowed_minutes=minutes,
        memory_gb=round(max(tracking_gb(frames), training_gb), 2),
    )


def tracking_gb(frames: float) -> float:
    """Memory at the peak of tracking; afterwards only the frames that are used are kept."""
    return TRACKING_GB + frames * BYTES_PER_TRACKED_FRAME / 1e9


@cache
def unit_costs(size: int) -> UnitCosts:
    """Measure them with the real functions on a synthetic person."""
    person = stand_in(size)
    image, state = person.samples[0].image, person.samples[0].state
    matting, runtime = MediaPipeMatte(), TorchRuntime(person.avatar.generator)
    conditioner, find = person.avatar.conditioner, detector()
    track = tracking_cost(person)
    question = _question(person)
    source, target = question.train_landmarks[:2]
    radius = DEFAULT_RULE.still_radius
    return UnitCosts(
        track=track,
        find=seconds_of(lambda: find(image), 4),
        matte=seconds_of(lambda: matting.matte(image), 4),
        register=seconds_of(lambda: build_explicit(conditioner, person.samples[:FEW]), 1, warm_up=False)
        / FEW,
        picture=seconds_of(lambda: runtime.portrait(conditioner.draw(state)), 3),
        warp=seconds_of(lambda: warp_by_landmarks(image, source, target, still_radius=radius), 2),
        score=seconds_of(lambda: score("", question.test_frames, question, find), 1, warm_up=False)
        / len(question.test_frames),
        train=training_cost(person),
    )


def tracking_cost(person: StandIn) -> float:
    """Seconds that tracking takes for one frame."""
    # The longer part of these frames is tracked as a clip is, with the skin known.
    tracker = OnlineTracker(subject=person.track.subject, calibration_frames=len(person.frames) // 3)
    frames = iter(person.frames)
    with tracker.streaming():
        return seconds_of(lambda: tracker.step(next(frames)), len(person.frames) - 1)


def training_cost(person: StandIn) -> float:
    """Seconds that training takes for one picture."""
    stamps: list[float] = []
    config = TrainingConfig(steps=TRAINING_STEPS)
    train_avatar(
        person.explicit, person.samples, config, on_progress=lambda _: stamps.append(time.perf_counter())
    )
    # The first steps of a process are slower than later ones.
    return SETTLED * float(np.diff(stamps)[1:].min()) / config.batch


def _question(person: StandIn) -> HeldOut:
    """A few frames to predict, as evaluation has them."""
    images = np.stack([sample.image for sample in person.samples])
    points = read_landmarks(np.stack([frame.image for frame in person.frames]), detector())
    points *= images.shape[1] / person.frames[0].image.shape[0]
    rows = np.flatnonzero(np.isfinite(points).all(axis=(1, 2)))[:MIN_FACES]
    if len(rows) < MIN_FACES:
        raise InternalError(f"the tracker finds the synthetic face in {len(rows)} frames only")
    return HeldOut(
        train_frames=images[rows],
        train_landmarks=points[rows],
        test_frames=images[rows],
        test_landmarks=points[rows],
        frame_index=rows,
        time_s=person.track.time_s[rows],
        frame_rate=25.0,
    )


def seconds_of(call: Callable[[], Any], count: int, *, warm_up: bool = True) -> float:
    """Median seconds of `count` calls."""
    if warm_up:
        call()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
