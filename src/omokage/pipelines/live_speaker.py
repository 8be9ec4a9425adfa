"""An avatar that says what it hears while it hears it. MAIN: `LiveSpeaker`.

    hear -> [what is unsaid] -> LiveVoice, a frame at a time by the clock
         -> [newest] -> retarget, draw -> [newest] -> network -> [newest] -> compose -> Outlet -> the caller

Every place is bounded. Too much voice waits at `hear`; what is drawn too slowly is dropped and its frame shows the
picture before; a caller that takes no frames stops the clock. The sound is never dropped but by `interrupt`, and pauses
of a voice that is to catch up.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import AvatarState
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.media.clip import SoundFormat
from omokage.pipelines.reenact import Performer, performer_of
from omokage.pipelines.speak import SpeakConfig, speaker_rest, speaking_rest, within_reach
from omokage.render.detail import DetailTransfer
from omokage.render.outlet import Leaving, Outlet
from omokage.render.realtime import state_of
from omokage.render.renderer import Portrait
from omokage.render.retarget import Coverage, retarget
from omokage.render.stages import Place, Target, each, start
from omokage.speaking.cues import Cue, cue_of
from omokage.speaking.driver import MOODS, driven_by_voice, motion
from omokage.speaking.live import LiveConfig, LiveMoment, LiveVoice
from omokage.threads import one_blas_thread, quick_turns
from omokage.tracking.face_track import FaceTrack
from omokage.trust.guard import Guard

HELD_S = 1.0  # of frames that nobody takes: then the clock stands still
PATIENCE_S = 0.5  # a frame leaves without its picture when that takes longer
LATE_S = 0.06  # a clock that is farther behind begins no picture, but one every `PICTURE_EVERY_S`
PICTURE_EVERY_S = 0.4
STALL_S = 1.0  # a clock that is farther behind goes on from now instead of catching up
RECENT = 1500  # frames that the latencies are of

_Numbered = tuple[int, Any]  # a frame, and what was made for it so far


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds, and waiting for some."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class SpokenFrame:
    """One frame: what is seen from `time_s` on, and what is heard until the next one.

    index, time_s: of a constant rate, from 0 on, none left out.  samples: float32 (S, channels), as they were heard;
    silence between.  portrait: the picture.  picture_index: of the frame that it was drawn for, an earlier one when
    the machine is slow.  motion: one row, before it was carried over to this avatar.  latency_ms: since the first of
    its sound was heard; None in silence.
    """

    index: int
    time_s: float
    samples: NDArray[np.float32]
    portrait: Portrait
    picture_index: int
    motion: FaceTrack
    latency_ms: float | None

    @property
    def is_repeated(self) -> bool:
        """Its own picture was dropped, and one from before is shown."""
        return self.picture_index != self.index


@dataclass(frozen=True, kw_only=True)
class SpeakerStatistics:
    """frames: that left; repeated: those of them that show the picture of an earlier one; stalls: times at which the
    clock stood still for more than `STALL_S`, because nobody took frames or the machine slept; skipped_s: how much of
    the voice's pauses was left out to catch up (`LiveConfig.catches_up`).

    latency_p50_ms, latency_p95_ms: from hearing a sound to its frame, of the last `RECENT` frames that speak.
    """

    frames: int
    repeated: int
    stalls: int
    skipped_s: float
    latency_p50_ms: float
    latency_p95_ms: float


class Pacer:
    """Says when the time of one more frame is over."""

    def __init__(self, frame_rate: float, clock: Clock) -> None:
        self._step, self._clock = 1 / frame_rate, clock
        self._begin, self._count = clock.now(), 0
        self.stalls = 0

    def wait(self) -> float:
        """Until then. Returns by how many seconds it was past; a little is caught up with, much is not."""
        self._count += 1
        late = self._clock.now() - (self._begin + self._count * self._step)
        if late > STALL_S:
            self._begin += late
            self.stalls += 1
        elif late < 0:
            self._clock.sleep(-late)
        return max(0.0, late)


class LiveSpeaker:
    """Says what it hears, and lives on in silence.

        with LiveSpeaker(Path("me.avatar")) as speaker:
            for frame in speaker:              # 25 a second, from now until `end`
                show(frame.portrait.image, frame.samples)

    and on another thread `speaker.hear(samples)`, `speaker.interrupt()`, `speaker.end()`. Frames are made by the clock
    while they are taken. avatar: a performer is one that was opened with `is_live`.  config: as `speak` has it.
    live: how the voice comes.  cues: what changes at which second of the stream.  keep_all: no picture is dropped,
    whatever time that takes.
    Raises what `speak` raises for the avatar and the configurations.
    """

    def __init__(
        self,
        avatar: Path | Avatar | PaperAvatar | Performer,
        config: SpeakConfig | None = None,
        live: LiveConfig | None = None,
        *,
        cues: Sequence[Cue] = (),
        keep_all: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.config, self.live = config or SpeakConfig(), live or LiveConfig()
        self._clock, self._keep_all = clock or Clock(), keep_all
        rate = self.config.frame_rate
        self._voice = LiveVoice(self.live, frame_rate=rate, style=self.config.style(), cues=cues)
        performer = avatar
        if not isinstance(performer, Performer):
            performer = performer_of(performer, self.config.drawing(), is_live=True)
        self._guard = Guard(performer.permit)
        self.label, carry = performer.label, _carrier(performer, self.config)
        first, *others = performer.stages
        self._stages: list[Callable[[Any], Any]] = [lambda row: first(carry(row)), *others]
        self.stage_times = [deque[float](maxlen=RECENT) for _ in self._stages]  # s
        # Whatever is compiled or started by the first picture is so before the clock runs.
        picture: Any = motion(driven_by_voice(np.zeros(0, np.float32)), 0.0, rate)
        for work in self._stages:
            picture = work(picture)
        self._outlet: Outlet[LiveMoment, Portrait] = Outlet(picture, room=max(2, round(HELD_S * rate)))
        self._told: Place[_Numbered] = Place(keep_all=keep_all)
        self._pacer: Pacer | None = None
        self._frames = self._repeated = 0
        self._latencies: deque[float] = deque(maxlen=RECENT)

    @property
    def sound(self) -> SoundFormat:
        """Of the frames' samples: that of the voice."""
        return self.live.sound

    def hear(self, samples: NDArray[Any], *, wait: bool = True) -> int:
        """Take more of the voice: float32 in [-1, 1] or int16, (S,) or (S, channels), at the rate of `live`.

        Returns how many samples were taken. With `wait` that is all of them, and it takes until there is room: call it
        on another thread than the one that takes frames. Raises InputError for anything else than samples.
        """
        return self._voice.put(samples, self._clock.now, wait=wait)

    def interrupt(self) -> float:
        """Stop speaking: what is not said yet never will be, and the mouth closes. Returns how many seconds of it."""
        return self._voice.interrupt()

    def change(
        self,
        *,
        mood: str | None = None,
        energy: float | None = None,
        head: float | None = None,
        look: tuple[float, float] | None = None,
    ) -> None:
        """From now on, as a cue says it (`speaking.cues`). Raises InputError for what no cue may say."""
        asked = {"mood": mood, "energy": energy, "head": head, "look": list(look) if look else look}
        named = {name: value for name, value in asked.items() if value is not None}
        self._voice.change(cue_of({"at": 0, **named}, "the change", MOODS))

    def end(self) -> None:
        """No more voice will come; after what came was said, there are no more frames."""
        self._voice.end()

    def fail(self, error: BaseException) -> None:
        """The voice broke: whoever takes frames gets this error."""
        self._outlet.close(error)
        self.close()

    def close(self) -> None:
        """Stop at once; nobody waits any more."""
        self._voice.close()
        self._told.close()
        self._outlet.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[SpokenFrame]:
        """Frames as they become ready, once. Raises what a stage raises, and ConsentError when the person's consent is
        withdrawn or ends meanwhile."""
        with one_blas_thread(), quick_turns():
            places: list[Place[_Numbered]] = [
                self._told,
                *(Place[_Numbered](keep_all=self._keep_all) for _ in self._stages[1:]),
            ]
            targets: list[Target[_Numbered]] = [*places[1:], self._outlet]
            threads = [start(self._run_clock, self._told)]
            for stage in zip(places, targets, self.stage_times, self._stages, strict=True):
                threads.append(_run_stage(*stage))
            try:
                for leaving in self._guard.frames(self._outlet):
                    yield self._left(leaving)
            finally:
                self.close()
                for place in places:
                    place.close()
                for thread in threads:
                    thread.join()

    def statistics(self) -> SpeakerStatistics:
        """Since the beginning."""
        p50, p95 = np.percentile(self._latencies or [0.0], (50, 95))
        return SpeakerStatistics(
            frames=self._frames,
            repeated=self._repeated,
            stalls=self._pacer.stalls if self._pacer else 0,
            skipped_s=self._voice.skipped_s,
            latency_p50_ms=float(p50),
            latency_p95_ms=float(p95),
        )

    def _run_clock(self) -> None:
        self._pacer = Pacer(self.config.frame_rate, self._clock)
        begun_s = -PICTURE_EVERY_S
        while not self._voice.is_over:
            while not self._outlet.wait_for_room(PATIENCE_S):
                if self._outlet.is_closed:
                    return
                self._give_up()
            # The sound goes first: while it is late, hardly a picture is begun.
            is_in_time, now_s = self._pacer.wait() < LATE_S, self._clock.now()
            is_drawn = is_in_time or self._keep_all or now_s >= begun_s + PICTURE_EVERY_S
            for moment in self._voice.step():
                self._outlet.expect(moment.index, moment, self._clock.now(), is_drawn=is_drawn)
                if is_drawn:
                    begun_s = now_s
                    self._told.put((moment.index, moment.motion))
            self._give_up()

    def _give_up(self) -> None:
        if not self._keep_all:
            self._outlet.give_up(self._clock.now() - PATIENCE_S)

    def _left(self, leaving: Leaving[LiveMoment, Portrait]) -> SpokenFrame:
        moment = leaving.moment
        latency = None if moment.heard_s is None else 1000 * (self._clock.now() - moment.heard_s)
        if latency is not None:
            self._latencies.append(latency)
        self._frames += 1
        self._repeated += leaving.picture_index != leaving.index
        return SpokenFrame(
            index=leaving.index,
            time_s=leaving.index / self.config.frame_rate,
            samples=moment.samples,
            portrait=leaving.picture,
            picture_index=leaving.picture_index,
            motion=moment.motion,
            latency_ms=latency,
        )


def _run_stage(
    source: Place[_Numbered], target: Target[_Numbered], times: deque[float], work: Callable[[Any], Any]
) -> threading.Thread:
    return start(lambda: each(source, target, times, lambda item: (item[0], work(item[1]))), target)


def _carrier(performer: Performer, config: SpeakConfig) -> Callable[[FaceTrack], AvatarState]:
    """One row of motion -> the avatar's state; the same as `speak` has it for the whole film."""
    rest = speaking_rest(performer.rest, performer.track)
    controls, coverage, driver = config.drawing().controls(), Coverage.of(performer.track), speaker_rest()
    detail = DetailTransfer.between(rest, driver, controls)

    def carry(row: FaceTrack) -> AvatarState:
        track = within_reach(row, rest)
        moved = retarget(track, source_rest=rest, coverage=coverage, controls=controls, driving_rest=driver)
        return state_of(moved.motion, 0, detail.apply(track, 0))

    return carry
