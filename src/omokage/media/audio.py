"""The sound of a clip, aligned to its first picture."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import Audio
from omokage.media.limits import InputLimits, input_limits
from omokage.media.probe import scan
from omokage.media.records import RawSound, SoundTask
from omokage.media.sandbox import run
from omokage.media.sound import damaged_sound

_ROOM_S = 600  # of memory that a track gets at first, whatever its headers announce
_GAP_S = 0.04  # smaller jumps of time stamps are rounding, larger ones are real gaps


def read_audio(path: Path, *, sample_rate: int | None = None) -> Audio | None:
    """Read the first sound track, or None when there is none or it is empty.

    Sample 0 plays together with the first picture (of a pure sound file: it is the first sample); gaps in the
    track become silence. More than two channels are mixed down to stereo. `sample_rate` (Hz) resamples.
    Raises MediaError when the file or its sound is damaged, naming the time reached.
    """
    track: _Track | None = None
    for piece in stream_audio(path, sample_rate=sample_rate):
        if track is None:
            zero = None
            if piece.has_video:
                found = scan(path)
                zero = found.zero * found.time_base
            track = _Track(piece.audio, zero, piece.announced_s, input_limits())
        if not track.put(piece.audio.samples, piece.start):
            raise MediaError(damaged_sound(path, track.end / track.rate))
    return Audio(track.samples(), track.rate) if track is not None and track.end else None


@dataclass(frozen=True, slots=True)
class AudioPiece:
    """A part of a sound track as it comes from the decoder: `start` in seconds on the file's clock, None if unknown.

    has_video, announced_s: of the whole file.
    """

    audio: Audio
    start: Fraction | None
    has_video: bool
    announced_s: float


def stream_audio(path: Path, *, sample_rate: int | None = None) -> Generator[AudioPiece]:
    """The first sound track piece by piece, in order; nothing when there is none. Memory does not grow with its length.

    More than two channels are mixed down to stereo; `sample_rate` (Hz) resamples. Raises MediaError when the file or
    its sound is damaged, naming the time reached.
    """
    with contextlib.closing(run(path, SoundTask(sample_rate), RawSound)) as pieces:
        for raw in pieces:
            if not 1 <= raw.channels <= 2 or raw.rate < 1 or len(raw.data) % (4 * raw.channels):
                raise MediaError(damaged_sound(path, 0.0))
            samples = np.frombuffer(raw.data, np.float32).reshape(-1, raw.channels)
            # Lossy codecs overshoot a little, which players clip as well. What is no number stays so, to be refused.
            np.clip(samples, -1, 1, out=samples)
            yield AudioPiece(Audio(samples, raw.rate), raw.start, raw.has_video, raw.announced_s)


class _Track:
    """A growing (S, channels) buffer into which decoded pieces are laid by their time stamps."""

    def __init__(self, first: Audio, zero: Fraction | None, expected_s: float, limits: InputLimits) -> None:
        self.rate = first.sample_rate
        self.end = 0
        self._zero = zero
        self._most = int(limits.max_hours * 3600 * self.rate)
        self._gaps_left = int(limits.max_gap_s * self.rate)
        capacity = int(min(max(0.0, expected_s) + 1, _ROOM_S) * self.rate)
        self._buffer = np.zeros((capacity, first.samples.shape[1]), dtype=np.float32)

    def put(self, piece: NDArray[np.generic], start: Fraction | None) -> bool:
        """Lay down a piece that starts at `start` (s, the file's clock). False: absurdly far away."""
        position = self.end
        if start is not None:
            self._zero = start if self._zero is None else self._zero
            stamped = round((start - self._zero) * self.rate)
            if self.end == 0 or abs(stamped - self.end) > _GAP_S * self.rate:
                position = stamped
        if position < 0:
            piece, position = piece[-position:], 0
        end = position + len(piece)
        self._gaps_left -= max(0, position - self.end)
        if end > self._most or self._gaps_left < 0:
            return False
        if end > len(self._buffer):
            more = np.zeros(
                (max(end - len(self._buffer), len(self._buffer) // 2), piece.shape[1]), dtype=np.float32
            )
            self._buffer = np.concatenate([self._buffer, more])
        self._buffer[position:end] = piece
        self.end = max(self.end, end)
        return True

    def samples(self) -> NDArray[np.float32]:
        """What was laid down."""
        return self._buffer[: self.end]
