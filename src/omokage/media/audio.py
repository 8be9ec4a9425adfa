"""The sound of a clip, aligned to its first picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import Audio
from omokage.media.container import open_container, video_stream
from omokage.media.probe import scan

_MAX_HOURS = 12
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
            track = _Track(piece.audio.sample_rate, piece.audio.samples.shape[1], zero, piece.announced_s)
        if not track.put(piece.audio.samples, piece.start):
            raise _damaged(path, track.end / track.rate)
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


def stream_audio(path: Path, *, sample_rate: int | None = None) -> Iterator[AudioPiece]:
    """The first sound track piece by piece, in order; nothing when there is none. Memory does not grow with its length.

    More than two channels are mixed down to stereo; `sample_rate` (Hz) resamples. Raises MediaError when the file or
    its sound is damaged, naming the time reached.
    """
    with open_container(path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            return
        has_video = video_stream(container) is not None
        announced_s = (container.duration or 0) / av.time_base
        channels, done = min(2, stream.channels), 0
        rate = sample_rate or stream.rate
        converter = av.AudioResampler(format="flt", layout="mono" if channels == 1 else "stereo", rate=rate)
        for packet in container.demux(stream):
            try:
                pieces = [piece for frame in packet.decode() for piece in converter.resample(frame)]
            except (av.FFmpegError, ValueError) as error:
                if not done:
                    continue  # many files begin with a packet that cannot be decoded alone
                raise _damaged(path, done / rate) from error
            if packet.size == 0:  # the end: the converter still holds a few samples
                pieces += converter.resample(None)
            for piece in pieces:
                start = None if piece.pts is None else piece.pts * (piece.time_base or Fraction(1, rate))
                # Lossy codecs overshoot a little, which players clip as well.
                samples = np.clip(piece.to_ndarray().reshape(-1, channels), -1, 1).astype(
                    np.float32, copy=False
                )
                done += len(samples)
                yield AudioPiece(Audio(samples, rate), start, has_video, announced_s)


def _damaged(path: Path, reached_s: float) -> MediaError:
    return MediaError(
        f"the sound of {path} is damaged after {reached_s:.2f} s; copy or export the recording again"
    )


class _Track:
    """A growing (S, channels) buffer into which decoded pieces are laid by their time stamps."""

    def __init__(self, rate: int, channels: int, zero: Fraction | None, expected_s: float) -> None:
        self.rate = rate
        self.end = 0
        self._zero = zero
        capacity = int(min(expected_s + 1, _MAX_HOURS * 3600) * rate)
        self._buffer = np.zeros((capacity, channels), dtype=np.float32)

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
        if end > _MAX_HOURS * 3600 * self.rate:
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
