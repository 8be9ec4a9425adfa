"""A voice that comes while it is said -> frame after frame of sound and motion, on one time line. MAIN: `LiveVoice`.

There is one clock, the count of samples: frame k begins with sample k / frame rate. What came is said in the next
frame; where nothing came there is silence, and the face lives on. Nothing here knows the time of day, and nothing waits
but a voice that comes faster than it can be said.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.config import Config
from omokage.errors import InputError
from omokage.media.clip import SoundFormat
from omokage.media.pcm import Resampler
from omokage.speaking.cues import Cue
from omokage.speaking.driver import MotionStream, Style, VoiceDriver
from omokage.speaking.hearing import DECAY_DB_PER_S, HOPS_PER_S
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.tracking.face_track import FaceTrack

Float32 = NDArray[np.float32]

WAITS = 2  # frames after which a voice begins to be said, however little of it has come
SPARE_S = 2.0  # what was never needed for so long is too much
QUIET = 10 ** (-30 / 20)  # of the loudest lately: between two words
SILENT = 10 ** (-60 / 20)  # of full scale
FORGOTTEN_PER_S = 10 ** (-DECAY_DB_PER_S / 20)  # of the loudest


@dataclass(frozen=True)
class LiveConfig(Config):
    """How a voice comes. sample_rate: Hz.  channels: of its sound.

    cushion_s: what is awaited, beside one frame, before a silent avatar begins to say it, so that a voice that comes
    unevenly is not torn apart; as long as your pieces, if those are longer and come no sooner than they are said.
    room_s: what may wait to be said; more is not taken before there is room.  catches_up: for a voice that comes as it
    is spoken, as from a microphone: where a hiccup has let it fall behind, the pauses between its words are shortened
    until it is not.
    """

    sample_rate: int = SAMPLE_RATE
    channels: int = 1
    cushion_s: float = 0.02
    room_s: float = 0.5
    catches_up: bool = False

    def __post_init__(self) -> None:
        if not 4000 <= self.sample_rate <= 192_000:
            raise InputError(f"sample_rate must lie between 4000 and 192000 Hz, got {self.sample_rate}")
        if not 1 <= self.channels <= 8:
            raise InputError(f"channels must lie between 1 and 8, got {self.channels}")
        if not 0 <= self.cushion_s <= 1 or not self.cushion_s + 0.2 <= self.room_s <= 60:
            raise InputError(
                f"cushion_s must lie between 0 and 1, and room_s between 0.2 more than that and 60 seconds, "
                f"got {self.cushion_s} and {self.room_s}"
            )

    @property
    def sound(self) -> SoundFormat:
        return SoundFormat(self.sample_rate, self.channels)


def look_ahead_frames(frame_rate: int) -> int:
    """So many frames a mouth is behind the sound that comes; the sound waits for it."""
    ahead_s = VoiceDriver.LATENCY_SAMPLES / SAMPLE_RATE + 0.5 / HOPS_PER_S + Resampler.DELAY_S
    return int(np.ceil(ahead_s * frame_rate)) - 1


@dataclass(frozen=True, slots=True)
class LiveMoment:
    """One frame. index: from 0 on.  samples: float32 (S, channels), its sound, as it came.  motion: one row.

    heard_s: when the first of its sound was taken, on the clock of `put`; None when it is silent.
    """

    index: int
    samples: Float32
    motion: FaceTrack
    heard_s: float | None


@dataclass(frozen=True, slots=True)
class _Piece:
    """samples: (S, channels).  heard_s: when the first of them came; None when nobody said them."""

    samples: Float32
    heard_s: float | None = None

    def faded(self) -> _Piece:
        """Sound that stops at once clicks."""
        fade = np.linspace(1, 0, len(self.samples), dtype=np.float32)[:, None]
        return _Piece(self.samples * fade, self.heard_s)


class _Waiting:
    """What came and is not said yet: never more than `room` samples."""

    def __init__(self, room: int) -> None:
        self._room, self._pieces, self.count = room, deque[_Piece](), 0

    def put(self, samples: Float32, heard_s: float) -> int:
        """How many of them there was room for."""
        taken = samples[: self._room - self.count].copy()
        if len(taken):
            self._pieces.append(_Piece(taken, heard_s))
            self.count += len(taken)
        return len(taken)

    def take(self, count: int) -> list[_Piece]:
        """The first `count` samples, or all there are."""
        taken = []
        while count and self._pieces:
            first = self._pieces.popleft()
            part, rest = first.samples[:count], first.samples[count:]
            taken.append(_Piece(part, first.heard_s))
            if len(rest):
                self._pieces.appendleft(_Piece(rest, first.heard_s))
            count -= len(part)
            self.count -= len(part)
        return taken

    def loudness(self, count: int) -> float:
        """Root mean square of the first `count` samples, full scale 1."""
        power, left = 0.0, count
        for piece in self._pieces:
            power += float(np.square(piece.samples[:left]).mean(axis=1).sum())
            left -= len(piece.samples[:left])
            if not left:
                break
        return float(np.sqrt(power / max(1, count - left)))

    def clear(self) -> int:
        """Forget all; how many samples that were."""
        forgotten, self.count = self.count, 0
        self._pieces.clear()
        return forgotten


class LiveVoice:
    """Takes a voice as it comes and tells one frame after the other; every method may be called on any thread."""

    def __init__(
        self,
        config: LiveConfig | None = None,
        *,
        frame_rate: int = 25,
        style: Style | None = None,
        cues: Sequence[Cue] = (),
    ) -> None:
        self._config = config or LiveConfig()
        self._rate = Fraction(frame_rate)
        self._changed = threading.Condition()
        self._waiting = _Waiting(round(self._config.room_s * self._config.sample_rate))
        self._cushion = round(self._config.cushion_s * self._config.sample_rate)
        self._motion = MotionStream(float(frame_rate), style, cues)
        self._voice, self._resampler = self._afresh()
        self._ahead = look_ahead_frames(frame_rate)
        self._next = 0  # the frame to be filled with sound
        self._unsaid: deque[_Piece] = deque()  # of the frames before, those that are not told yet
        self._known: deque[FaceTrack] = deque()  # rows of motion of the first of them
        self._last: int | None = None  # how many frames there are in all, once that is known
        self._is_ended = self._is_closed = self._is_saying = False
        self._waits = 0  # frames for which a voice that has not begun has waited
        # What was left over lately after each frame, samples; and how loud the voice lately was.
        self._spare: deque[int] = deque(maxlen=max(1, round(SPARE_S * frame_rate)))
        self._loudest = 0.0
        self._skipped = 0

    def put(self, samples: NDArray[Any], now: Callable[[], float] = lambda: 0.0, *, wait: bool = True) -> int:
        """Take more of the voice, float32 in [-1, 1] or int16, (S,) or (S, channels); returns how many were taken.

        With `wait` that is all of them unless the voice is ended or closed meanwhile, else what there is room for.
        now: gives what comes out as `LiveMoment.heard_s`. Raises InputError for another shape and for what are no
        numbers.
        """
        left = self._checked(samples)
        count = 0
        with self._changed:
            while len(left) and not (self._is_ended or self._is_closed):
                taken = self._waiting.put(left, now())
                left, count = left[taken:], count + taken
                if not wait:
                    break
                if len(left):
                    self._changed.wait()
        return count

    def step(self) -> list[LiveMoment]:
        """Time goes on by one frame. What is told is `look_ahead_frames` behind: at first nothing, then one
        frame each time, and nothing once all was said."""
        with self._changed:
            if self._is_ended and not self._waiting.count and self._last is None:
                self._last = max(1, self._next)
            if self.is_over:
                return []
            piece = self._next_piece()
            self._next += 1
            self._unsaid.append(piece)
            self._hear(piece.samples)
            self._changed.notify_all()
            told = []
            while self._known and len(self._unsaid) > self._ahead and not self.is_over:
                told.append(self._told())
            return told

    def interrupt(self) -> float:
        """Nothing of what came so far is said any more, and the mouth closes; returns how many seconds were left."""
        with self._changed:
            left = self._waiting.clear()
            self._is_saying, self._waits = False, 0
            self._voice, self._resampler = self._afresh()
            self._motion.hush()
            # The frames that are not told yet are heard again, as silence.
            again = [self._unsaid.pop() for _ in range(len(self._unsaid) - len(self._known))][::-1]
            if again:
                left += sum(len(piece.samples) for piece in again if piece.heard_s is not None)
                silent = [_Piece(np.zeros_like(piece.samples)) for piece in again]
                self._hear(np.concatenate([piece.samples for piece in silent]))
                self._unsaid.extend([again[0].faded(), *silent[1:]])
            self._changed.notify_all()
        return left / self._config.sample_rate

    def change(self, cue: Cue) -> None:
        """What the cue names changes from the next frame on."""
        with self._changed:
            self._motion.change(cue)

    def end(self) -> None:
        """Nothing more will come; what came is said."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is taken any more, and nobody waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """All was said and told, after `end`."""
        return self._last is not None and self._next - len(self._unsaid) >= self._last

    @property
    def waiting_s(self) -> float:
        """What came and is not on its way yet, s; never more than `LiveConfig.room_s`."""
        return self._waiting.count / self._config.sample_rate

    @property
    def skipped_s(self) -> float:
        """How much of the pauses was left out to catch up, s."""
        return self._skipped / self._config.sample_rate

    def _next_piece(self) -> _Piece:
        """The sound of the next frame; silence where nothing came."""
        sound = self._config.sound
        count = sound.samples_until(self._next + 1, self._rate) - sound.samples_until(self._next, self._rate)
        if self._config.catches_up and self._is_saying:
            self._catch_up(count)
        held = self._waiting.count
        if held and not self._is_saying:
            is_enough = held >= count + self._cushion or self._is_ended
            self._is_saying = is_enough or self._waits >= WAITS
            self._waits += 1
        taken = self._waiting.take(count if self._is_saying else 0)
        missing = count - sum(len(piece.samples) for piece in taken)
        if missing:
            self._is_saying, self._waits = False, self._waits if held and not taken else 0
        silence = np.zeros((missing, sound.channels), np.float32)
        return _Piece(
            np.concatenate([*(piece.samples for piece in taken), silence]),
            taken[0].heard_s if taken else None,
        )

    def _catch_up(self, count: int) -> None:
        """Leave out the next frame's samples when so many were to spare for long, and nothing is said in them."""
        loudness = self._waiting.loudness(count)
        self._loudest = max(self._loudest * FORGOTTEN_PER_S ** float(1 / self._rate), loudness)
        self._spare.append(self._waiting.count - count - self._cushion)
        is_too_much = len(self._spare) == self._spare.maxlen and min(self._spare) >= count
        if is_too_much and loudness <= max(QUIET * self._loudest, SILENT):
            self._skipped += sum(len(piece.samples) for piece in self._waiting.take(count))
            self._spare.extend([spare - count for spare in self._spare])

    def _hear(self, samples: Float32) -> None:
        mono = self._resampler.step(samples.mean(axis=1, dtype=np.float32))
        track = self._motion.step(self._voice.step(mono))
        self._known.extend(track.select(np.array([row])) for row in range(len(track)))

    def _told(self) -> LiveMoment:
        index = self._next - len(self._unsaid)
        piece = self._unsaid.popleft()
        return LiveMoment(index, piece.samples, self._known.popleft(), piece.heard_s)

    def _afresh(self) -> tuple[VoiceDriver, Resampler]:
        return VoiceDriver(), Resampler(self._config.sample_rate, SAMPLE_RATE)

    def _checked(self, samples: NDArray[Any]) -> Float32:
        channels = self._config.channels
        given = np.asarray(samples)
        if given.ndim == 1 and channels == 1:
            given = given[:, None]
        if given.ndim != 2 or given.shape[1] != channels or given.dtype.kind not in "if":
            raise InputError(
                f"a voice of {given.dtype} {given.shape} came; give float32 or int16 of the shape (samples, {channels})"
            )
        if given.dtype.kind == "i":
            if given.dtype != np.int16:
                raise InputError(f"a voice of {given.dtype} came; give float32 in [-1, 1], or int16")
            return given.astype(np.float32) / np.float32(32768)
        if not np.isfinite(given).all():
            raise InputError("a voice came with values that are no numbers; give float32 in [-1, 1]")
        return np.asarray(np.clip(given, -1, 1), dtype=np.float32)
