"""Sound that comes byte by byte, raw or behind a WAV header, and its rate brought to another while it comes.

MAIN: `read_pcm`. The header is of RIFF WAVE: Microsoft's 'Multiple Channel Audio Data and WAVE Files' (2007).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import SoundFormat
from omokage.media.source import kind_of

Float32 = NDArray[np.float32]

HEAD_BYTES = 32
HOW_TO_CONVERT = (
    "give WAV or raw 16-bit samples, such as 'ffmpeg -i talk.flac -f s16le -ac 1 -ar 16000 -' writes"
)
_UNKNOWN_BYTES = 0x7F000000
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_TYPES: dict[tuple[int, int], np.dtype[Any]] = {
    (_PCM, 16): np.dtype("<i2"),
    (_PCM, 32): np.dtype("<i4"),
    (_FLOAT, 32): np.dtype("<f4"),
}


@dataclass(frozen=True, slots=True)
class PcmStream:
    """format: of the sound.  pieces: float32 (S, channels) in [-1, 1], as they come."""

    format: SoundFormat
    pieces: Iterator[Float32]


def read_pcm(read: Callable[[int], bytes], raw: SoundFormat, *, name: str) -> PcmStream:
    """The sound that `read` gives: at least one byte and at most as many as asked for, none at the end.

    A WAV header tells its own format; a length of nothing, or of hours, is what programs write that do not know it yet.
    What has no header is taken for 16-bit samples of the format `raw`. A sample that is cut off at the end is left out.
    Raises MediaError when there is nothing, or another kind of file.
    """
    head = _fill(read, b"", HEAD_BYTES)
    if not head:
        raise MediaError(f"{name} is empty (0 bytes); send a sound, raw or WAV")
    kind = kind_of(head, least_bytes=3)  # samples may begin with any two
    if kind == "wav":
        return _read_wav(read, head, name)
    if kind is not None or all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        what = "text" if kind is None else f"a file of the kind '{kind}'"
        raise MediaError(f"{name} holds {what} and no samples; {HOW_TO_CONVERT}")
    return PcmStream(raw, _pieces(read, head, np.dtype("<i2"), raw))


def _read_wav(read: Callable[[int], bytes], head: bytes, name: str) -> PcmStream:
    place, found = 12, None
    while True:
        head = _fill(read, head, place + 8)
        label, size = head[place : place + 4], int.from_bytes(head[place + 4 : place + 8], "little")
        if len(head) < place + 8 or (label != b"data" and size > 1 << 20):
            raise MediaError(f"the WAV header of {name} is damaged or cut off; {HOW_TO_CONVERT}")
        if label == b"data":
            break
        head = _fill(read, head, place + 8 + size)
        if label == b"fmt " and size >= 16:
            found = struct.unpack_from("<HHIIHH", head.ljust(place + 24, b"\0"), place + 8)
            if found[0] == _EXTENSIBLE and size >= 26:
                found = (int.from_bytes(head[place + 32 : place + 34], "little"), *found[1:])
        place += 8 + size + size % 2
    if found is None or (found[0], found[5]) not in _TYPES or not found[1] or not 4000 <= found[2] <= 192_000:
        raise MediaError(f"{name} is WAV of a kind that is not read as it comes; {HOW_TO_CONVERT}")
    sound, data = SoundFormat(sample_rate=found[2], channels=found[1]), head[place + 8 :]
    if 0 < size < _UNKNOWN_BYTES:  # after the samples there may be words
        data, read = data[:size], _first(size - len(data), read)
    return PcmStream(sound, _pieces(read, data, _TYPES[found[0], found[5]], sound))


def _first(count: int, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Reads no more than so many bytes in all."""
    left = max(0, count)

    def read_some(wanted: int) -> bytes:
        nonlocal left
        data = read(min(wanted, left)) if left else b""
        left -= len(data)
        return data

    return read_some


def _fill(read: Callable[[int], bytes], data: bytes, count: int) -> bytes:
    """`data` and what follows it, at least `count` bytes of it unless the stream ends."""
    while len(data) < count and (more := read(count - len(data))):
        data += more
    return data


def _pieces(
    read: Callable[[int], bytes], data: bytes, kind: np.dtype[Any], sound: SoundFormat
) -> Iterator[Float32]:
    scale = 1.0 if kind.kind == "f" else float(np.iinfo(kind).max) + 1
    width = kind.itemsize * sound.channels
    # Small reads, so that what has come is not kept waiting for what has not.
    size = width * max(1, sound.sample_rate // 50)
    while True:
        whole = len(data) // width * width
        if whole:
            samples = np.frombuffer(data[:whole], dtype=kind).astype(np.float32) / np.float32(scale)
            yield np.clip(np.nan_to_num(samples), -1, 1).reshape(-1, sound.channels)
        data = data[whole:]
        more = read(size - len(data))
        if not more:
            return
        data += more


class Resampler:
    """Samples (S,) of one rate (Hz) -> another, piece by piece; the result lies at the same times.

    What comes out is behind by the filter's half, at most `DELAY_S`.
    """

    DELAY_S = 0.0025

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._is_same, self._rate = source_rate == target_rate, source_rate
        self._converter = av.AudioResampler(format="flt", layout="mono", rate=target_rate)

    def step(self, samples: Float32) -> Float32:
        """The next samples that are known."""
        if self._is_same or not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="flt", layout="mono")
        frame.sample_rate = self._rate
        pieces = [piece.to_ndarray().ravel() for piece in self._converter.resample(frame)]
        return np.concatenate([np.zeros(0, np.float32), *pieces])
