"""The pictures of a clip on a steady grid of times, as the decoder's process gives them: scaled, not yet upright."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import TypeAlias

import av
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from omokage.errors import MediaError
from omokage.media.demux import Pulse, decode_packets, open_container, require_video
from omokage.media.limits import InputLimits
from omokage.media.records import HLG, PQ, Alive, PicturesTask, RawPicture
from omokage.media.source import Source

_UNTAGGED = 2  # color matrix 'unspecified' of ITU-T H.273
_END_TOLERANCE_S = 0.25

Timed: TypeAlias = tuple[Fraction, VideoFrame]


def pictures_of(source: Source, task: PicturesTask, limits: InputLimits) -> Iterator[RawPicture | Alive]:
    """One answer for each k in [first, stop), in order. Raises MediaError that names the time reached."""
    convert = _Converter(task)
    shown: VideoFrame | None = None
    for picture in _on_grid(_from_start(source, task, limits), task):
        if isinstance(picture, Alive):
            yield picture
        elif picture is shown:
            yield RawPicture(0, 0, 0, "rgb24", 0, False, True, b"")
        else:
            shown = picture
            yield convert(picture)


def _from_start(source: Source, task: PicturesTask, limits: InputLimits) -> Iterator[Timed | Alive]:
    """Decode from just before the first picture that is wanted -> exact clip time (s) and picture."""
    start = task.first / task.rate
    if start > 1:
        pictures = _decode_from(source, task, limits, task.zero + math.floor(start / task.time_base))
        head = next((each for each in pictures if not isinstance(each, Alive)), None)
        if head is not None and head[0] <= start:
            yield head
            yield from pictures
            return
        pictures.close()  # the container has no good index: read from the beginning
        source.file.seek(0)
    yield from _decode_from(source, task, limits, None)


def _decode_from(
    source: Source, task: PicturesTask, limits: InputLimits, target: int | None
) -> Generator[Timed | Alive, None, None]:
    reached, stamp = Fraction(0), task.zero
    pulse = Pulse()
    try:
        with open_container(source, limits) as container:
            stream = require_video(container, source.path, limits)
            if target is not None:
                container.seek(target, stream=stream)
            for picture in decode_packets(container.demux(stream), stream):
                if picture.is_corrupt:
                    raise _damaged(source, reached)
                stamp = picture.pts if picture.pts is not None else stamp + 1
                reached = (stamp - task.zero) * task.time_base
                yield reached, picture
                yield from pulse.beat()
    except av.FFmpegError as error:
        raise _damaged(source, reached) from error
    if (task.last - stamp) * task.time_base > _END_TOLERANCE_S:
        raise _damaged(source, reached)


def _damaged(source: Source, reached: Fraction) -> MediaError:
    return MediaError(
        f"{source.path} is damaged after {float(reached):.2f} s; copy or export the recording again, "
        "or cut it before that time"
    )


def _on_grid(pictures: Iterator[Timed | Alive], task: PicturesTask) -> Iterator[VideoFrame | Alive]:
    """For each k in [first, stop) give the picture whose time is nearest to k / rate (ties: the earlier)."""
    index, stop, rate = task.first, task.stop, task.rate
    current: VideoFrame | None = None
    current_time = Fraction(0)
    for each in pictures:
        if isinstance(each, Alive):
            yield each
            continue
        time, picture = each
        while current is not None and index < stop and 2 * index / rate <= current_time + time:
            yield current
            index += 1
        if index >= stop:
            return
        current, current_time = picture, time
    while current is not None and index < stop:
        yield current
        index += 1


class _Converter:
    """Decoded picture -> packed RGB of one fixed size, scaled in the same pass."""

    def __init__(self, task: PicturesTask) -> None:
        self._size = task.width, task.height
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> RawPicture:
        has_alpha = any(component.is_alpha for component in picture.format.components)
        width, height = self._size
        is_resized = (picture.width, picture.height) != self._size
        layout = "rgb48le" if picture.color_trc in (PQ, HLG) else "rgba" if has_alpha else "rgb24"
        packed = self._reformatter.reformat(
            picture,
            width=width,
            height=height,
            format=layout,
            src_colorspace=_color_matrix(picture),
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.BICUBIC if is_resized else Interpolation.BILINEAR,
            threads=1,
        )
        plane = packed.planes[0]
        return RawPicture(
            width=width,
            height=height,
            row_bytes=plane.line_size,
            layout=layout,
            transfer=int(picture.color_trc),
            is_narrow_grey=picture.format.name.startswith("gray") and picture.color_range == ColorRange.MPEG,
            is_repeated=False,
            data=memoryview(plane)[: height * plane.line_size],
        )


def _color_matrix(picture: VideoFrame) -> int | None:
    """Untagged pictures follow the custom of players: BT.709 from 720 lines on, BT.601 below."""
    if picture.colorspace != _UNTAGGED:
        return None
    return Colorspace.ITU709 if min(picture.width, picture.height) >= 720 else Colorspace.ITU601
