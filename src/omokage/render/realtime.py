"""Live reenactment in bounded stages, each on its thread. MAIN: `LivePipeline.run`.

    frames -> [newest] -> track -> [newest] -> retarget, draw -> [newest] -> network, compose -> [newest] -> the caller

Between the stages lies one place that holds one item. Live, a new item replaces one that was not fetched yet: the
oldest frame is dropped and nothing queues, so latency stays bounded however slow a stage is. With `keep_all` the place
waits until it is free, for a recorded clip of which every frame counts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import AvatarState, Condition
from omokage.avatar.sheet import Pose
from omokage.media.clip import Frame, Image
from omokage.render.detail import DetailTransfer, rest_of
from omokage.render.renderer import Portrait, Renderer
from omokage.render.retarget import Controls, Coverage, Motion, Rest, retarget
from omokage.threads import one_blas_thread, quick_turns
from omokage.tracking.face_track import FaceTrack, Subject
from omokage.tracking.landmarks import MediaPipeLandmarks
from omokage.tracking.tracker import CALIBRATION_FRAMES, FaceState, OnlineTracker, concatenate

Item = TypeVar("Item")

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
    motion_ms: float
    picture_ms: float
    frames_in: int
    frames_out: int
    dropped: int


class Place(Generic[Item]):
    """A hand-over that holds one item. `put` replaces an item that was not taken, or waits if `keep_all`."""

    def __init__(self, *, keep_all: bool) -> None:
        self._keep_all = keep_all
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._is_closed = False
        self._error: BaseException | None = None
        self.dropped = 0

    def put(self, item: Item) -> bool:
        """False when nobody will take anything any more."""
        with self._changed:
            while self._keep_all and self._item is not None and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return False
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()
            return True

    def __iter__(self) -> Iterator[Item]:
        """Items until the place is closed. Raises what it was closed with."""
        while True:
            with self._changed:
                while self._item is None and not self._is_closed:
                    self._changed.wait()
                item, self._item = self._item, None
                self._changed.notify_all()
            if item is None:
                if self._error is not None:
                    raise self._error
                return
            yield item

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; what is held can still be taken."""
        with self._changed:
            self._is_closed, self._error = True, self._error or error
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tracking tells drawing. `driving`: the one row of a track; None until the camera is known."""

    frame: Frame
    arrived_s: float
    state: FaceState
    driving: FaceTrack | None


@dataclass(frozen=True, slots=True)
class _Told:
    """What drawing tells the network."""

    frame: Frame
    arrived_s: float
    is_tracked: bool
    condition: Condition


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class _Clock:
    """Times of a run, s."""

    motion: deque[float] = field(default_factory=_recent)
    picture: deque[float] = field(default_factory=_recent)
    latency: deque[float] = field(default_factory=_recent)
    ready: deque[float] = field(default_factory=_recent)
    frames_in: int = 0
    frames_out: int = 0


class LivePipeline:
    """Drives one avatar from a stream of frames.

    driving_rest: the driver's own rest (`Rest.of` their track, made with the same subject as `tracker`'s); without it
    the first `REST_FRAMES` frames with a face give it, and until then the avatar rests.
    tracker: of a known subject; by default every run gets to know its driver from the first second.
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
        captured: Place[tuple[Frame, float]] = Place(keep_all=keep_all)
        seen: Place[_Seen] = Place(keep_all=keep_all)
        told: Place[_Told] = Place(keep_all=keep_all)
        ready: Place[LiveFrame] = Place(keep_all=keep_all)
        places = (captured, seen, told, ready)
        self._dropped = lambda: sum(place.dropped for place in places)
        threads = [
            _start(lambda: self._capture(frames, captured), captured),
            _start(lambda: self._track(tracker, captured, seen), seen),
            _start(lambda: self._draw(director, seen, told), told),
            _start(lambda: self._picture(told, ready), ready),
        ]
        try:
            with one_blas_thread(), quick_turns():
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
            motion_ms=1000 * float(np.median(clock.motion or [0.0])),
            picture_ms=1000 * float(np.median(clock.picture or [0.0])),
            frames_in=clock.frames_in,
            frames_out=clock.frames_out,
            dropped=self._dropped(),
        )

    def _capture(self, frames: Iterable[Frame], captured: Place[tuple[Frame, float]]) -> None:
        for frame in frames:
            self._clock.frames_in += 1
            if not captured.put((frame, time.monotonic())):
                return

    def _track(
        self, tracker: OnlineTracker, captured: Place[tuple[Frame, float]], seen: Place[_Seen]
    ) -> None:
        """Stage A: the driver's state."""
        with tracker.streaming():
            for frame, arrived in captured:
                start = time.monotonic()
                state, driving = tracker.step(frame), None
                if tracker.camera is not None:
                    driving = concatenate([state], tracker.camera, tracker.subject)
                self._clock.motion.append(time.monotonic() - start)
                if not seen.put(_Seen(frame, arrived, state, driving)):
                    return

    def _draw(self, director: Director, seen: Place[_Seen], told: Place[_Told]) -> None:
        """Stage B: the avatar's state, drawn."""
        for item in seen:
            condition = self.renderer.avatar.conditioner.draw(director.step(item.state, item.driving))
            if not told.put(_Told(item.frame, item.arrived_s, item.state.is_tracked, condition)):
                return

    def _picture(self, told: Place[_Told], ready: Place[LiveFrame]) -> None:
        """Stage C: network and composition."""
        for item in told:
            start = time.monotonic()
            portrait = self.renderer.render_condition(item.condition)
            now = time.monotonic()
            self._clock.picture.append(now - start)
            self._clock.latency.append(now - item.arrived_s)
            self._clock.ready.append(now)
            self._clock.frames_out += 1
            picture = LiveFrame(
                index=item.frame.index,
                time_s=item.frame.time_s,
                is_tracked=item.is_tracked,
                portrait=portrait,
                arrived_s=item.arrived_s,
                latency_ms=1000 * (now - item.arrived_s),
            )
            if not ready.put(picture):
                return


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


def _start(work: Callable[[], None], output: Place[Any]) -> threading.Thread:
    """Run a stage on its own thread; its end or its error closes its output."""

    def run() -> None:
        try:
            work()
        except BaseException as error:
            output.close(error)
        else:
            output.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
