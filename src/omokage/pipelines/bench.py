"""`omokage bench`: what this machine can do, measured with a synthetic person. MAIN: `bench`.

Nobody is depicted and no file is needed: the subject is our own rendered head, the avatar an untrained network of the
real size, which costs the same as a trained one.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.avatar.samples import avatar_state
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.home import passing_home
from omokage.media.clip import Frame, SoundingFrame
from omokage.pipelines.predict import Prediction, predict_create, training_cost
from omokage.pipelines.stand_in import stand_in
from omokage.pipelines.this_machine import machine
from omokage.render.lookup import compose
from omokage.render.realtime import LiveFrame, LivePipeline
from omokage.render.renderer import Renderer
from omokage.render.retarget import Rest
from omokage.threads import one_blas_thread
from omokage.tracking.tracker import OnlineTracker
from omokage.trust.audit import AUDIT_VARIABLE
from omokage.trust.release import release_clip, release_live

__all__ = ["BenchReport", "bench", "live_speed", "machine", "predict_create", "tracking_speed"]

CLIP_SIDE_PX = 512
LIVE_RATE = 25.0
LIVE_FRAMES = 100
LIVE_RUNTIME = "auto"
RUNTIMES = ("torch", "onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8")


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a call: median, and the quartiles around it, of `count` calls."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        low, median, high = np.percentile(1000 * np.asarray(seconds), (25, 50, 75))
        return cls(round(float(median), 2), (round(float(low), 2), round(float(high), 2)), len(seconds))

    @property
    def per_second(self) -> float:
        return 1000 / self.median_ms if self.median_ms else 0.0


@dataclass(frozen=True, slots=True)
class LiveSpeed:
    """The whole path, camera frame in to encoded picture out.

    fps: when every frame is used, as fast as it goes.  p50_ms, p95_ms: latency from the start of decoding to the end of
    encoding, with frames arriving at `rate`; dropped_percent: of those.  runtime: what drew.
    """

    runtime: str
    fps: float
    rate: float
    p50_ms: float
    p95_ms: float
    dropped_percent: float


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Everything `omokage bench` found out, for pictures of `size` pixels."""

    size: int
    machine: dict[str, Any]
    tracking: Timing
    draw: Timing
    pictures: dict[str, Timing]
    compose: Timing
    encode: Timing
    live: LiveSpeed
    training_images_per_second: float
    create_example: Prediction

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        live = self.live
        rows = [
            ("tracking, 512 x 512", f"{self.tracking.per_second:.0f} fps", self.tracking),
            (f"drawing at {self.size}", "", self.draw),
            *((f"network, {name}", "", timing) for name, timing in self.pictures.items()),
            ("composition", "", self.compose),
            ("encoding", "", self.encode),
        ]
        lines = [f"{name:<28}{t.median_ms:8.1f} ms  {note}".rstrip() for name, note, t in rows]
        lines += [
            f"{'live, ' + live.runtime:<28}{live.fps:8.1f} fps",
            f"{f'latency at {live.rate:.0f} fps':<28}{live.p50_ms:8.1f} ms  95 %: {live.p95_ms:.1f} ms, "
            f"dropped: {live.dropped_percent:.0f} %",
            f"{'training':<28}{self.training_images_per_second:8.1f} pictures a second",
            f"a minute of recording, 10 minutes of training: {self.create_example.to_text()}",
        ]
        return "\n".join(lines)


@one_blas_thread()
def bench(*, size: int = 256, on_progress: ProgressCallback = ignore_progress) -> BenchReport:
    """Measure this machine for avatars of `size` pixels; takes about a minute. Raises InputError for another size."""
    steps = ("subject", "tracking", "drawing", "runtimes", "encoding", "live", "training", "prediction")
    stage = iter(range(len(steps)))

    def say() -> None:
        done = next(stage)
        on_progress(Progress("measuring", done, len(steps), steps[done]))

    say()
    person = stand_in(size)
    frames = list(itertools.islice(endless(person.frames), LIVE_FRAMES))
    avatar, conditioner = person.avatar, person.avatar.conditioner
    state = avatar_state(avatar.track, len(avatar.track) // 2)
    condition = conditioner.draw(state)
    say()
    tracking = tracking_speed(frames, OnlineTracker(subject=person.track.subject))
    say()
    draw = timed(lambda: conditioner.draw(state), 30)
    say()
    renderers = [Renderer(avatar, runtime=name) for name in RUNTIMES if is_installed(name)]
    pictures = {r.name: timed(lambda r=r: r.runtime.portrait(condition), 12) for r in renderers}  # type: ignore[misc]
    portrait = renderers[0].runtime.portrait(condition)
    say()
    images = [renderers[0].composed(portrait).image] * 50
    encode = encoding_speed(images)
    say()
    live = live_speed(person.avatar, lambda: iter(frames), rest=Rest.of(person.track), runtime=LIVE_RUNTIME)
    say()
    images_per_second = 1 / training_cost(person)
    say()
    return BenchReport(
        size=size,
        machine=machine(),
        tracking=tracking,
        draw=draw,
        pictures=pictures,
        compose=timed(lambda: compose(portrait, avatar.plate), 30),
        encode=encode,
        live=live,
        training_images_per_second=round(images_per_second, 2),
        create_example=predict_create(60.0, 25.0, size, 10.0),
    )


def tracking_speed(frames: Iterable[Frame], tracker: OnlineTracker) -> Timing:
    """From picture to parameters, for each frame after the first few."""
    times = []
    with tracker.streaming():
        for frame in frames:
            start = time.perf_counter()
            tracker.step(frame)
            times.append(time.perf_counter() - start)
    return Timing.of(times[5:] or times)


def live_speed(
    avatar: Avatar,
    source: Callable[[], Iterator[Frame]],
    *,
    rest: Rest,
    rate: float = LIVE_RATE,
    runtime: str = "auto",
    tracker: OnlineTracker | None = None,
) -> LiveSpeed:
    """Decode (by `source`), track, retarget, draw, network, compose, and all that is done to what leaves live, to the
    encoded picture: flat out, then with frames at `rate`."""
    tracker = tracker or OnlineTracker(subject=avatar.track.subject)
    pipeline = LivePipeline(avatar, driving_rest=rest, runtime=runtime, tracker=tracker)
    deque(pipeline.run(itertools.islice(source(), 8), keep_all=True), maxlen=0)  # warm up
    finished: list[float] = []
    _stream(_stamped(pipeline.run(source(), keep_all=True), lambda _: finished.append(time.monotonic())))

    paced, latency = Paced(source(), rate), list[float]()
    _stream(
        _stamped(
            pipeline.run(paced),
            lambda picture: latency.append(time.monotonic() - paced.started[picture.index]),
        )
    )
    p50, p95 = np.percentile(latency, (50, 95)) * 1000
    return LiveSpeed(
        runtime=pipeline.renderer.name,
        fps=round((len(finished) - 1) / (finished[-1] - finished[0]), 1),
        rate=rate,
        p50_ms=round(float(p50), 1),
        p95_ms=round(float(p95), 1),
        dropped_percent=round(100 * (1 - len(latency) / len(paced.started)), 1),
    )


class Paced:
    """Frames at a constant rate, as a camera gives them; `started` says when the decoding of a frame began.

    The clock starts with the first frame. A file's decoder, a process that takes a fifth of a second to start, has
    started by then, as a camera has.
    """

    def __init__(self, frames: Iterator[Frame], rate: float) -> None:
        self._frames, self._rate = frames, rate
        self.started: dict[int, float] = {}

    def __iter__(self) -> Iterator[Frame]:
        frame = next(self._frames, None)
        begin = start = time.monotonic()
        for count in itertools.count(1):
            if frame is None:
                return
            self.started[frame.index] = start
            yield frame
            time.sleep(max(0.0, begin + count / self._rate - time.monotonic()))
            start = time.monotonic()
            frame = next(self._frames, None)


def encoding_speed(images: Sequence[NDArray[np.uint8]]) -> Timing:
    """H.264 through the one door, for each picture."""
    stamps: list[float] = []

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for image in images:
            stamps.append(time.perf_counter())
            yield image

    _encode(pictures())
    return Timing.of(np.diff(stamps)[1:].tolist())


def timed(call: Callable[[], Any], count: int) -> Timing:
    """Time `count` calls, after two to warm up."""
    call(), call()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return Timing.of(times)


def endless(frames: Sequence[Frame], rate: float = LIVE_RATE) -> Iterator[Frame]:
    """Forwards, backwards, forwards, ... with new numbers and times."""
    back_and_forth = itertools.cycle((*frames, *frames[::-1]))
    return (Frame(i, i / rate, frame.image) for i, frame in enumerate(back_and_forth))


def is_installed(runtime: str) -> bool:
    """Whether a name of `RUNTIMES` can run here."""
    return find_spec(runtime.partition("-")[0]) is not None


def _stamped(
    pictures: Iterator[LiveFrame], stamp: Callable[[LiveFrame], None]
) -> Iterator[NDArray[np.uint8]]:
    """Pass pictures to the encoder, which asks for the next one when it is done with one."""
    for picture in pictures:
        yield picture.portrait.image
        stamp(picture)


def _encode(pictures: Iterator[NDArray[np.uint8]]) -> None:
    """Into a clip."""
    with passing_home(AUDIT_VARIABLE) as folder:  # a measurement is no render that anybody will ask for
        release_clip(pictures, folder / "measured.mp4", frame_rate=Fraction(25))


def _stream(pictures: Iterator[NDArray[np.uint8]]) -> None:
    """As a live stream: each picture has left when the next one is asked for."""
    with passing_home(AUDIT_VARIABLE):
        release_live(map(SoundingFrame, pictures), len, frame_rate=Fraction(25), sound=None)
