"""What a video file holds: size, upright orientation, exact time stamps, frame rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import ClipInfo
from omokage.media.container import MAX_SIDE, open_container, video_stream

STANDARD_RATES = tuple(
    Fraction(*rate)
    for rate in (
        *(
            (5, 1),
            (10, 1),
            (12, 1),
            (25, 2),
            (15, 1),
            (20, 1),
            (24000, 1001),
            (24, 1),
            (25, 1),
            (30000, 1001),
        ),
        *((30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120, 1), (240, 1)),
    )
)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture becomes upright: first transpose, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """The clockwise turn in degrees, leaving a mirror aside."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0


@dataclass(frozen=True, slots=True)
class Scan:
    """A clip's `info` with what decoding needs.

    `zero`: the first picture's time stamp in units of `time_base` (s), which is time 0 of the clip.
    `last`: the time stamp of the last picture. `stored_size`: width, height before the turn, square pixels.
    """

    info: ClipInfo
    time_base: Fraction
    zero: int
    last: int
    stored_size: tuple[int, int]
    orientation: Orientation


def probe(path: Path, *, min_frames: int = 1) -> ClipInfo:
    """Describe a video file without decoding more than its first picture.

    Raises MediaError for anything that is no readable video, is cut off, has more than 8192 pixels a side, or
    holds fewer than `min_frames` frames.
    """
    info = scan(path).info
    if info.frame_count < min_frames:
        raise MediaError(
            f"{path} holds {info.frame_count} frames ({info.duration_s:.1f} s); at least {min_frames} are needed, "
            "so record longer"
        )
    return info


def scan(path: Path) -> Scan:
    """`probe` with the details that decoding needs; remembered until the file changes. Raises MediaError."""
    try:
        state = path.stat()
    except OSError:
        return _scan(path, 0, 0)  # which says what is wrong
    return _scan(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _scan(path: Path, _mtime_ns: int, _size: int) -> Scan:
    with open_container(path) as container:
        stream = require_video(container, path)
        first, stamps, end = _read_stamps(path, container, stream)
        time_base = stream.time_base or Fraction(1, 1000)
        duration_s = float((end - stamps[0]) * time_base)
        rate, is_variable = _frame_rate(stamps, time_base)
        orientation = _orientation(first)
        size = _square_size(path, first, stream.sample_aspect_ratio)
        width, height = size[::-1] if orientation.transpose else size
        info = ClipInfo(
            path=path,
            width=width,
            height=height,
            frame_rate=rate,
            frame_count=max(1, round(duration_s * rate)),
            duration_s=duration_s,
            rotation_deg=orientation.rotation_deg,
            is_variable_rate=is_variable,
            pixel_format=first.format.name,
            has_audio=bool(container.streams.audio),
        )
        return Scan(info, time_base, int(stamps[0]), int(stamps[-1]), size, orientation)


def require_video(container: InputContainer, path: Path) -> VideoStream:
    """The video stream, ready for decoding within our limits. Raises MediaError."""
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{path} holds no video, only sound or data; give a video file")
    _check_size(path, stream.width, stream.height)
    stream.codec_context.options = {"max_pixels": str(MAX_SIDE * MAX_SIDE)}
    stream.codec_context.thread_type = "AUTO"
    return stream


def decode_packets(packets: Iterator[Packet[Any]], stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode packet by packet. Raises av.FFmpegError, except for broken packets before the first picture."""
    decoder = _decoder(stream)
    has_picture = False
    for packet in packets:
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError:
            if has_picture:
                raise
            continue
        for frame in frames:
            has_picture = True
            yield frame


def _decoder(stream: VideoStream) -> av.VideoCodecContext:
    """FFmpeg's own VP8 and VP9 decoders drop the alpha channel, libvpx keeps it."""
    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ("vp8", "vp9"):
        library = "libvpx" if stream.codec_context.name == "vp8" else "libvpx-vp9"
        decoder = CodecContext.create(library, "r")
        assert isinstance(decoder, av.VideoCodecContext)
        return decoder
    return stream.codec_context


def _read_stamps(
    path: Path, container: InputContainer, stream: VideoStream
) -> tuple[VideoFrame, NDArray[np.int64], int]:
    """Demux the whole file -> first picture, sorted time stamps from it on, end of the last picture."""
    seen: list[tuple[int, int]] = []  # time stamp and duration of each packet of the stream
    first: VideoFrame | None = None
    end_s = 0.0

    def packets() -> Iterator[Packet[Any]]:
        nonlocal end_s
        for packet in container.demux():
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                end_s = max(end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                if stamp is not None and not packet.is_discard:
                    seen.append((stamp, packet.duration or 0))
                yield packet

    source = packets()
    try:
        first = next(decode_packets(source, stream), None)
        for _ in source:
            pass
    except av.FFmpegError as error:
        reached = max(seen, default=(0, 0))[0] * float(stream.time_base or 0)
        raise MediaError(
            f"{path} is damaged after {reached:.1f} s; copy or export the recording again"
        ) from error
    if first is None or not seen:
        raise MediaError(f"{path} holds no picture that can be decoded; copy or export the recording again")
    _check_complete(path, container, stream, len(seen), end_s)
    seen.sort()
    zero = first.pts if first.pts is not None else seen[0][0]
    stamps = np.array([stamp for stamp, _ in seen if stamp >= zero], dtype=np.int64)
    spacing = round(float(np.median(np.diff(stamps)))) if len(stamps) > 1 else 0
    last_duration = seen[-1][1] or spacing or round(1 / (25 * (stream.time_base or Fraction(1, 1000))))
    return first, stamps, int(stamps[-1]) + last_duration


def _check_complete(
    path: Path, container: InputContainer, stream: VideoStream, packet_count: int, end_s: float
) -> None:
    """Compare what was found with what the headers announce (edit lists may hide a few frames)."""
    announced_s = container.duration / av.time_base if container.duration else 0.0
    is_short = announced_s - end_s > max(1.0, 0.02 * announced_s)
    if is_short or packet_count < 0.9 * stream.frames - 2:
        raise MediaError(
            f"{path} is cut off: it announces {announced_s:.1f} s but its data ends after {end_s:.1f} s; "
            "copy or export the recording again"
        )


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise MediaError(
            f"{path} is {width}x{height} pixels; at most {MAX_SIDE} a side are read, "
            "so export it smaller (1080p is plenty)"
        )


def _square_size(path: Path, frame: VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Size with square pixels: the width is stretched, as players do. Nonsense ratios are ignored."""
    if not aspect or not Fraction(1, 4) <= aspect <= 4:
        aspect = Fraction(1)
    width = max(1, round(frame.width * aspect))
    _check_size(path, width, frame.height)
    return width, frame.height


def _orientation(frame: VideoFrame) -> Orientation:
    """Read the display matrix: x' = a x + c y, y' = b x + d y with y down (ISO/IEC 14496-12, 8.2.2)."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return Orientation()
    a, b, _, c, d = (float(value) for value in np.frombuffer(cast(bytes, side), dtype=np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)


def _frame_rate(stamps: NDArray[np.int64], time_base: Fraction) -> tuple[Fraction, bool]:
    """Time stamps -> the constant rate that fits them, and whether their own spacing varies.

    The median spacing decides; its near neighbors are averaged, because time stamps in whole milliseconds are too
    coarse to tell 30 from 29.97 one by one.
    """
    if len(stamps) < 2:
        return Fraction(25), False
    spacing = np.diff(stamps).astype(np.float64)
    spacing = spacing[spacing > 0]
    near = np.abs(spacing - np.median(spacing)) <= np.maximum(0.1 * np.median(spacing), 1.01)
    rate = 1 / (float(spacing[near].mean()) * float(time_base))
    is_variable = bool(near.mean() < 0.99)
    standard = min(STANDARD_RATES, key=lambda candidate: abs(math.log(rate / float(candidate))))
    if is_variable or abs(rate / float(standard) - 1) < 0.004:
        return standard, is_variable
    return Fraction(rate).limit_denominator(100), is_variable
