"""Live reenactment in bounded stages, each on its thread. MAIN: `LivePipeline.run`.

    frames -> [newest] -> track -> [newest] -> retarget, draw, look up -> [newest] -> network
           -> [newest] -> look up, compose -> [newest] -> the caller

Between the stages lies one place that holds one item. Live, a new item replaces one that was not fetched yet: the
oldest frame is dropped and nothing queues, so latency stays bounded however slow a stage is. With `keep_all` the place
waits until it is free, for a recorded clip of which every frame counts.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import AvatarState
from omokage.avatar.sheet import Pose
from omokage.media.clip import Frame, Image
from omokage.render.detail import DetailTransfer, rest_of
from omokage.render.renderer import Portrait, Renderer
from omokage.render.retarget import Controls, Coverage, Motion, Rest, retarget
from omokage.render.stages import Place, each, start
from omokage.threads import one_blas_thread, quick_turns
from omokage.tracking.face_track import FaceTrack, Subject
from omokage.tracking.landmarks import MediaPipeLandmarks
from omokage.tracking.tracker import CALIBRATION_FRAMES, FaceState, OnlineTracker, concatenate

Item = TypeVar("Item")
Made = TypeVar("Made")

# With a face; from so many an unknown driver's rest and skin at rest are taken, once the tracker knows the person.
REST_FRAMES = CALIBRATION_FRAMES + 10
RECENT = 1500  # frames that the statistics are of: a minute at 25 a second


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """One picture of the avatar.

    index, time_s: of the driver's frame.  is_tracked: a face was found in it (else the last state is held).
    arrived_s: `time.monotonic()` when the driver's frame came in; latency_ms: from then until the picture was ready.
    """

    index: int
    time_s: float
    is_tracked: bool
    portrait: Portrait
    arrived_s: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class LiveStatistics:
    """Of a run: pictures a second, latency (ms) and median time of each stage (ms) over the last `RECENT` pictures;
    frames in, out and dropped since its start."""

    fps: float
    latency_p50_ms: float
    latency_p95_ms: float
    track_ms: float
    draw_ms: float
    network_ms: float
    compose_ms: float
    frames_in: int
    frames_out: int
    dropped: int


@dataclass(frozen=True, slots=True)
class _Passing(Generic[Item]):
    """A driver's frame on its way, and what the last stage made of it."""

    frame: Frame
    arrived_s: float
    is_tracked: bool
    value: Item

    def to(self, value: Made) -> _Passing[Made]:
        return _Passing(self.frame, self.arrived_s, self.is_tracked, value)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tracking tells drawing. `driving`: the one row of a track; None until the camera is known."""

    state: FaceState
    driving: FaceTrack | None


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class _Clock:
    """Times of a run, s."""

    track: deque[float] = field(default_factory=_recent)
    draw: deque[float] = field(default_factory=_recent)
    network: deque[float] = field(default_factory=_recent)
    compose: deque[float] = field(default_factory=_recent)
    latency: deque[float] = field(default_factory=_recent)
    ready: deque[float] = field(default_factory=_recent)
    frames_in: int = 0
    frames_out: int = 0


class LivePipeline:
    """Drives one avatar from a stream of frames.

    driving_rest: the driver's own rest (`Rest.of` their track, made with the same subject as `tracker`'s); without it
    the first `REST_FRAMES` frames with a face give it, and until then the avatar rests.
    tracker: of a known subject; by default every run gets to know its driver from the first second.
    threads: of the network, by default `network_threads`.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        driving_rest: Rest | None = None,
        controls: Controls | None = None,
        runtime: str = "auto",
        tracker: OnlineTracker | None = None,
        background: Image | None = None,
        threads: int | None = None,
    ) -> None:
        threads = threads or network_threads(avatar.size)
        self.renderer = Renderer(avatar, runtime=runtime, background=background, threads=threads)
        self._known_tracker, self._backend = tracker, None if tracker else MediaPipeLandmarks()
        self._driving_rest, self._controls = driving_rest, controls or Controls()
        self._clock = _Clock()
        self._dropped: Callable[[], int] = lambda: 0

    def run(self, frames: Iterable[Frame], *, keep_all: bool = False) -> Iterator[LiveFrame]:
        """Pictures as they become ready, in order; `keep_all` drops none. Raises what `frames` or a stage raises.

        A live source must give frames when they are captured; they are fetched on a thread of their own, so that a
        source never waits for the avatar. Nothing of an earlier run is remembered.
        """
        self._clock = _Clock()
        tracker = self._known_tracker or OnlineTracker(backend=self._backend)
        director = Director(self.renderer.avatar, driving_rest=self._driving_rest, controls=self._controls)
        captured: Place[_Passing[None]] = Place(keep_all=keep_all)
        seen: Place[_Passing[_Seen]] = Place(keep_all=keep_all)
        drawn: Place[_Passing[Any]] = Place(keep_all=keep_all)
        inferred: Place[_Passing[Any]] = Place(keep_all=keep_all)
        ready: Place[LiveFrame] = Place(keep_all=keep_all)
        places: tuple[Place[Any], ...] = (captured, seen, drawn, inferred, ready)
        self._dropped = lambda: sum(place.dropped for place in places)
        clock = self._clock
        prepare, infer, finish = self.renderer.stages
        # Networks have started before the first frame is asked for: nothing waits behind them.
        with tracker.streaming(), one_blas_thread(), quick_turns():
            threads = [
                start(lambda: self._capture(frames, captured), captured),
                start(
                    lambda: each(captured, seen, clock.track, lambda item: self._seen(tracker, item)), seen
                ),
                start(
                    lambda: each(
                        seen, drawn, clock.draw, lambda item: item.to(prepare(_directed(director, item)))
                    ),
                    drawn,
                ),
                start(
                    lambda: each(drawn, inferred, clock.network, lambda item: item.to(infer(item.value))),
                    inferred,
                ),
                start(
                    lambda: each(
                        inferred, ready, clock.compose, lambda item: self._shown(item.to(finish(item.value)))
                    ),
                    ready,
                ),
            ]
            try:
                yield from ready
            finally:
                for place in places:
                    place.close()
                for thread in threads[1:]:
                    thread.join()

    def statistics(self) -> LiveStatistics:
        """Of the last run."""
        clock = self._clock
        latency, ready = np.array(clock.latency or [0.0]) * 1000, tuple(clock.ready)
        seconds = ready[-1] - ready[0] if len(ready) > 1 else 0.0
        return LiveStatistics(
            fps=(len(ready) - 1) / seconds if seconds else 0.0,
            latency_p50_ms=float(np.percentile(latency, 50)),
            latency_p95_ms=float(np.percentile(latency, 95)),
            track_ms=1000 * float(np.median(clock.track or [0.0])),
            draw_ms=1000 * float(np.median(clock.draw or [0.0])),
            network_ms=1000 * float(np.median(clock.network or [0.0])),
            compose_ms=1000 * float(np.median(clock.compose or [0.0])),
            frames_in=clock.frames_in,
            frames_out=clock.frames_out,
            dropped=self._dropped(),
        )

    def _capture(self, frames: Iterable[Frame], captured: Place[_Passing[None]]) -> None:
        for frame in frames:
            self._clock.frames_in += 1
            if not captured.put(_Passing(frame, time.monotonic(), False, None)):
                return

    def _seen(self, tracker: OnlineTracker, item: _Passing[None]) -> _Passing[_Seen]:
        """The driver's state."""
        state, driving = tracker.step(item.frame), None
        if tracker.camera is not None:
            driving = concatenate([state], tracker.camera, tracker.subject)
        return replace(item, is_tracked=state.is_tracked).to(_Seen(state, driving))

    def _shown(self, item: _Passing[Portrait]) -> LiveFrame:
        now, clock = time.monotonic(), self._clock
        clock.latency.append(now - item.arrived_s)
        clock.ready.append(now)
        clock.frames_out += 1
        return LiveFrame(
            index=item.frame.index,
            time_s=item.frame.time_s,
            is_tracked=item.is_tracked,
            portrait=item.value,
            arrived_s=item.arrived_s,
            latency_ms=1000 * (now - item.arrived_s),
        )


def _directed(director: Director, item: _Passing[_Seen]) -> AvatarState:
    return director.step(item.value.state, item.value.driving)


def network_threads(size: int) -> int:
    """Up to 256 pixels all cores, so that a picture is ready soon; above, half of them: there the stages keep all cores
    busy, and a network on one of two cores never waits for its other half (side by side, 22 instead of 20 fps)."""
    cores = os.cpu_count() or 1
    return cores if size <= 256 else max(1, cores // 2)


class Director:
    """Turns a driver's states into the avatar's, one frame at a time; the same as `retarget` over the whole clip.

    A driver whose rest is not given is waited for: it is taken from the first `REST_FRAMES` frames with a face.
    """

    def __init__(self, avatar: Avatar, *, driving_rest: Rest | None, controls: Controls) -> None:
        self._source_rest, self._coverage = rest_of(avatar), Coverage.of(avatar.track)
        self._driving_rest, self._controls = driving_rest, controls
        self._detail: DetailTransfer | None = None
        if driving_rest is not None:
            self._detail = DetailTransfer.between(self._source_rest, driving_rest, controls)
        self._seen: list[FaceState] = []
        self._subject: Subject | None = None
        self._last = self.resting()

    def resting(self) -> AvatarState:
        """The avatar at its own rest."""
        rest = self._source_rest
        pose = Pose(rest.rotation, rest.translation, rest.sway.astype(np.float64))
        return AvatarState(pose, rest.expression.astype(np.float64), rest.gaze.astype(np.float64), rest.skin)

    def step(self, state: FaceState, track: FaceTrack | None) -> AvatarState:
        """The avatar's state for one state and the track of that one row; the last one where no face was found."""
        if not state.is_tracked or track is None:
            return self._last
        if self._driving_rest is None:
            self._get_to_know(state, track)
        if self._driving_rest is None or self._detail is None:
            return self._last
        moved = retarget(
            track,
            source_rest=self._source_rest,
            coverage=self._coverage,
            controls=self._controls,
            driving_rest=self._driving_rest,
        )
        self._last = state_of(moved.motion, 0, self._detail.apply(track, 0))
        return self._last

    def _get_to_know(self, state: FaceState, now: FaceTrack) -> None:
        """Collect states until the driver is known. Those from before the tracker knew the person do not count."""
        if now.subject is not self._subject:
            self._subject, self._seen = now.subject, []
        self._seen.append(state)
        if len(self._seen) >= REST_FRAMES:
            self._driving_rest = Rest.of(concatenate(self._seen, now.camera, now.subject))
            self._detail = DetailTransfer.between(self._source_rest, self._driving_rest, self._controls)
            self._seen = []


def state_of(motion: Motion, row: int, detail: NDArray[np.float64] | None = None) -> AvatarState:
    """One frame of a motion, with its skin detail (468, 3) in cm, as the conditioner takes it."""
    pose = Pose(motion.rotation[row], motion.translation[row], motion.sway[row].astype(np.float64))
    expression, gaze = motion.expression[row].astype(np.float64), motion.gaze[row].astype(np.float64)
    return AvatarState(pose, expression, gaze, detail)
