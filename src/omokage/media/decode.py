"""Video files -> upright RGB frames at a constant rate, streamed; the front door for reading any media."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from omokage.errors import MediaError
from omokage.media.audio import read_audio
from omokage.media.clip import Frame, Image
from omokage.media.color import HLG, PQ, tone_map
from omokage.media.container import open_container
from omokage.media.image import is_still_image, over_black, read_image
from omokage.media.probe import Orientation, Scan, decode_packets, probe, require_video, scan

__all__ = ["is_still_image", "probe", "read_audio", "read_frames", "read_image"]

_UNTAGGED = 2  # color matrix 'unspecified' of ITU-T H.273
_END_TOLERANCE_S = 0.25
# 16..235 -> 0..255, which FFmpeg's scaler omits for grey formats.
_FROM_VIDEO_RANGE = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


def read_frames(
    path: Path,
    *,
    frame_rate: Fraction | None = None,
    max_side: int | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[Frame]:
    """Stream the frames of a clip at a constant rate; memory does not grow with its length.

    At each time k / `frame_rate` (default: the clip's own rate, see `ClipInfo`) the picture nearest in time is
    given, so sound stays in sync when the source rate varies. Pictures are upright with square pixels; transparent
    parts are laid over black; PQ and HLG are mapped to sRGB. `max_side` shrinks the longer side to at most that
    many pixels while decoding. `start_s` (included) and `end_s` (excluded) select a part by clip time.

    Raises MediaError at once when the file is unusable, and while reading when decoding fails, naming the time
    reached.
    """
    found = scan(path)
    rate = frame_rate or found.info.frame_rate
    total = max(1, round(found.info.duration_s * rate))
    first = max(0, math.ceil(start_s * float(rate) - 1e-6))
    stop = total if end_s is None else min(total, math.ceil(end_s * float(rate) - 1e-6))
    if first >= stop:
        asked = f"from {start_s:g} s" + ("" if end_s is None else f" to {end_s:g} s")
        raise MediaError(
            f"{path} lasts {found.info.duration_s:.2f} s and has no frame {asked}; ask for another part"
        )
    return _frames(path, found, rate, first, stop, max_side)


def _frames(
    path: Path, found: Scan, rate: Fraction, first: int, stop: int, max_side: int | None
) -> Iterator[Frame]:
    convert = _Converter(found, max_side)
    shown: VideoFrame | None = None
    image: Image | None = None
    for index, picture in enumerate(_on_grid(_pictures(path, found, first / rate), rate, first, stop)):
        if image is None or picture is not shown:
            shown, image = picture, convert(picture)
        else:
            image = image.copy()  # the consumer may have drawn on the one it got
        yield Frame(index=index, time_s=float((first + index) / rate), image=image)


def _pictures(path: Path, found: Scan, start: Fraction) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Decode from just before `start` (s) to the end -> exact clip time (s) and picture."""
    target = found.zero + math.floor(start / found.time_base)
    if start > 1:
        pictures = _decode_from(path, found, target)
        head = next(pictures, None)
        if head is not None and head[0] <= start:
            yield head
            yield from pictures
            return
        pictures.close()  # the container has no good index: read from the beginning
    yield from _decode_from(path, found, None)


def _decode_from(
    path: Path, found: Scan, target: int | None
) -> Generator[tuple[Fraction, VideoFrame], None, None]:
    reached = Fraction(0)
    stamp = found.zero
    try:
        with open_container(path) as container:
            stream = require_video(container, path)
            if target is not None:
                container.seek(target, stream=stream)
            for picture in decode_packets(container.demux(stream), stream):
                if picture.is_corrupt:
                    raise _damaged(path, reached)
                stamp = picture.pts if picture.pts is not None else stamp + 1
                reached = (stamp - found.zero) * found.time_base
                yield reached, picture
    except av.FFmpegError as error:
        raise _damaged(path, reached) from error
    if (found.last - stamp) * found.time_base > _END_TOLERANCE_S:
        raise _damaged(path, reached)


def _damaged(path: Path, reached: Fraction) -> MediaError:
    return MediaError(
        f"{path} is damaged after {float(reached):.2f} s; copy or export the recording again, "
        "or cut it before that time"
    )


def _on_grid(
    pictures: Iterator[tuple[Fraction, VideoFrame]], rate: Fraction, first: int, stop: int
) -> Iterator[VideoFrame]:
    """For each k in [first, stop) give the picture whose time is nearest to k / rate (ties: the earlier)."""
    index = first
    current: VideoFrame | None = None
    current_time = Fraction(0)
    for time, picture in pictures:
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
    """Decoded picture -> upright RGB uint8 of one fixed size, scaled in the same pass."""

    def __init__(self, found: Scan, max_side: int | None) -> None:
        width, height = found.stored_size
        scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
        self._size = max(1, round(width * scale)), max(1, round(height * scale))
        self._orientation = found.orientation
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> Image:
        is_hdr = picture.color_trc in (PQ, HLG)
        has_alpha = any(component.is_alpha for component in picture.format.components)
        width, height = self._size
        is_resized = (picture.width, picture.height) != self._size
        rgb = self._reformatter.reformat(
            picture,
            width=width,
            height=height,
            format="rgb48le" if is_hdr else "rgba" if has_alpha else "rgb24",
            src_colorspace=_color_matrix(picture),
            dst_color_range=ColorRange.JPEG,
            interpolation=Interpolation.BICUBIC if is_resized else Interpolation.BILINEAR,
            threads=1,
        ).to_ndarray()
        if is_hdr:
            image = tone_map(rgb.astype(np.uint16, copy=False), picture.color_trc)
        else:
            image = over_black(rgb) if has_alpha else rgb.astype(np.uint8, copy=False)
        if picture.format.name.startswith("gray") and picture.color_range == ColorRange.MPEG:
            image = np.asarray(cv2.LUT(image, _FROM_VIDEO_RANGE), dtype=np.uint8)
        return _upright(image, self._orientation)


def _color_matrix(picture: VideoFrame) -> int | None:
    """Untagged pictures follow the custom of players: BT.709 from 720 lines on, BT.601 below."""
    if picture.colorspace != _UNTAGGED:
        return None
    return Colorspace.ITU709 if min(picture.width, picture.height) >= 720 else Colorspace.ITU601


def _upright(image: Image, orientation: Orientation) -> Image:
    if orientation.transpose:
        image = np.asarray(cv2.transpose(image), dtype=np.uint8)
    if orientation.mirror_x:
        image = image[:, ::-1]
    if orientation.mirror_y:
        image = image[::-1]
    return np.ascontiguousarray(image)
