"""Packets and pictures out of an open file, in the limits: what the decoder's process does. No NumPy, for its start.

The demuxer is forced to what the first bytes say, so that a playlist named `clip.mp4` cannot make it read other files;
it reads through the file that was opened, and decodes with the allowed codecs alone. PyAV brings its `subtitles` when
it meets the first, which would be too late: no file opens then.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
import av.subtitles.codeccontext
import av.subtitles.stream
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from omokage.errors import MediaError
from omokage.media.limits import InputLimits, check_size
from omokage.media.records import Alive, RawComment, RawScan, comment_in
from omokage.media.source import PICTURE, VIDEO_DEMUXERS, Source

ALIVE_S: Final = 1.0
_READ_BYTES: Final = 1 << 18
_LARGE_PX: Final = 4096


class Pulse:
    """Says now and then that work is going on."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> Iterator[Alive]:
        """`Alive`, once a second at most."""
        if time.monotonic() - self._last > ALIVE_S:
            self._last = time.monotonic()
            yield Alive()


def open_container(source: Source, limits: InputLimits) -> InputContainer:
    """Open a video or sound file with the demuxer that its first bytes ask for. Raises MediaError."""
    path = source.path
    if source.kind == PICTURE:
        raise MediaError(
            f"{path} is a still picture, and a video is needed here; 'omokage rehearse' makes one of a portrait"
        )
    options = {
        "protocol_whitelist": "file",  # nothing is opened by name; if it were, not over a network
        "codec_whitelist": ",".join(limits.codecs),
        "max_streams": str(limits.max_streams),
    }
    try:
        return av.open(
            source.file,
            mode="r",
            format=source.kind,
            options=options,
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
        )
    except (av.FFmpegError, ValueError) as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        raise MediaError(
            f"{path} is damaged or cut off: its {VIDEO_DEMUXERS.get(source.kind, source.kind)} headers cannot be read; "
            "copy or export the recording again"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    return getattr(error, "errno", None) == errno.ENOMEM


def video_stream(container: InputContainer) -> VideoStream | None:
    """The stream of moving pictures, or None. Cover pictures of sound files do not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return max(streams, key=_area, default=None)


def _area(stream: VideoStream) -> int:
    # Without a decoder there is no context, whatever PyAV's types say, and no size.
    return stream.width * stream.height if getattr(stream, "codec_context", None) is not None else 0


def require_video(container: InputContainer, path: Path, limits: InputLimits) -> VideoStream:
    """The video stream, ready for decoding within the limits. Raises MediaError."""
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{path} holds no video, only sound or data; give a video file")
    check_codec(stream, path, limits)
    check_size(path, stream.width, stream.height, limits)
    stream.codec_context.options = {"max_pixels": str(limits.max_side**2)}
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = min((os.cpu_count() or 1) + 1, _most_threads(stream))
    return stream


def _most_threads(stream: VideoStream) -> int:
    """Each thread holds pictures of its own: sixteen of 8192x8192 took 4.2 GB, which is more than `memory_gb`."""
    return 8 if max(stream.width, stream.height) <= _LARGE_PX else 3


def check_codec(stream: Stream, path: Path, limits: InputLimits) -> None:
    """Raise MediaError unless the stream's codec is allowed."""
    context = getattr(stream, "codec_context", None)
    name = context.name if context is not None else "unknown"
    if name not in limits.codecs:
        raise MediaError(
            f"the {stream.type} of {path} is in the codec '{name}', which is not read; export it again, "
            f"as {'H.264 in an MP4' if stream.type == 'video' else 'AAC or WAV'}"
        )


def decode_packets(packets: Iterator[Packet[Any]], stream: VideoStream) -> Iterator[VideoFrame]:
    """Decode packet by packet. Raises av.FFmpegError, except for broken packets before the first picture."""
    decoder = _decoder(stream)
    has_picture = False
    for packet in packets:
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError as error:
            if is_out_of_memory(error):
                raise MemoryError from error
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


def scan_source(source: Source, limits: InputLimits) -> Iterator[RawScan | Alive]:
    """Demux the whole file and decode its first picture. Raises MediaError."""
    path, pulse = source.path, Pulse()
    stamps, lengths = array("q"), array("q")  # time stamp and duration of each packet of the stream
    most = int(limits.max_hours * 3600 * limits.max_rate)
    first: VideoFrame | None = None
    end_s = 0.0
    with open_container(source, limits) as container:
        stream = require_video(container, path, limits)

        def packets() -> Iterator[Packet[Any]]:
            nonlocal end_s
            for packet in container.demux():
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None:
                    end_s = max(end_s, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index:
                    if stamp is not None and not packet.is_discard:
                        stamps.append(stamp)
                        lengths.append(packet.duration or 0)
                    yield packet

        incoming = packets()
        try:
            first = next(decode_packets(incoming, stream), None)
            for _ in incoming:
                yield from pulse.beat()
                if len(stamps) > most:
                    raise MediaError(
                        f"{path} holds more than {most} pictures, which is more than {limits.max_hours:g} hours; "
                        "cut it into parts"
                    )
        except av.FFmpegError as error:
            reached = max(stamps, default=0) * float(stream.time_base or 0)
            raise MediaError(
                f"{path} is damaged after {reached:.1f} s; copy or export the recording again"
            ) from error
        if first is None or not stamps:
            raise MediaError(
                f"{path} holds no picture that can be decoded; copy or export the recording again"
            )
        _check_complete(path, container, stream, len(stamps), end_s)
        last_duration = lengths[max(range(len(stamps)), key=stamps.__getitem__)]
        ordered = array("q", sorted(stamps))
        matrix = first.side_data.get("DISPLAYMATRIX")
        yield RawScan(
            width=first.width,
            height=first.height,
            pixel_format=first.format.name,
            aspect=stream.sample_aspect_ratio,
            matrix=struct.unpack("=9i", bytes(cast(bytes, matrix))) if matrix is not None else (),
            time_base=stream.time_base or Fraction(1, 1000),
            zero=first.pts if first.pts is not None else ordered[0],
            last_duration=last_duration,
            has_audio=bool(container.streams.audio),
            data=ordered.tobytes(),
        )


def clip_comment(source: Source, limits: InputLimits) -> Iterator[RawComment]:
    """One answer. Raises MediaError."""
    with open_container(source, limits) as container:
        yield RawComment(comment_in(container.metadata))


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
