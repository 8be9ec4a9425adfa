"""Video files -> upright RGB frames at a constant rate, streamed; the front door for reading any media."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from omokage.errors import MediaError
from omokage.media.audio import read_audio
from omokage.media.clip import Frame, Image
from omokage.media.color import tone_map
from omokage.media.image import is_still_image, over_black, read_image
from omokage.media.probe import Orientation, probe, scan
from omokage.media.records import PicturesTask, RawPicture
from omokage.media.sandbox import run

__all__ = ["is_still_image", "probe", "read_audio", "read_frames", "read_image"]

_CHANNELS: Final[dict[str, tuple[int, np.dtype[Any]]]] = {
    "rgb24": (3, np.dtype("u1")),
    "rgba": (4, np.dtype("u1")),
    "rgb48le": (3, np.dtype("<u2")),
}
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
    width, height = found.stored_size
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    task = PicturesTask(
        rate=rate,
        first=first,
        stop=stop,
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        zero=found.zero,
        last=found.last,
        time_base=found.time_base,
        duration_s=found.info.duration_s,
    )
    return _frames(path, found.orientation, task)


def _frames(path: Path, orientation: Orientation, task: PicturesTask) -> Iterator[Frame]:
    image: Image | None = None
    with contextlib.closing(run(path, task, RawPicture)) as pictures:
        for index, raw in zip(range(task.stop - task.first), pictures, strict=False):
            if not raw.is_repeated and (raw.width, raw.height) == (task.width, task.height):
                image = _picture(path, raw, orientation)
            elif image is not None and raw.is_repeated:
                image = image.copy()  # the consumer may have drawn on the one it got
            else:
                raise MediaError(
                    f"the decoder of {path} gave a picture that makes no sense; export the clip again"
                )
            yield Frame(index=index, time_s=float((task.first + index) / task.rate), image=image)


def _picture(path: Path, raw: RawPicture, orientation: Orientation) -> Image:
    """What came from the decoder -> upright RGB uint8."""
    channels, kind = _CHANNELS.get(raw.layout, (0, np.dtype("u1")))
    used = raw.width * channels * kind.itemsize
    if not 0 < used <= raw.row_bytes or len(raw.data) != raw.height * raw.row_bytes:
        raise MediaError(f"the decoder of {path} gave a picture that makes no sense; export the clip again")
    rows = np.frombuffer(raw.data, np.uint8).reshape(raw.height, raw.row_bytes)
    packed = np.ascontiguousarray(rows[:, :used]).view(kind).reshape(raw.height, raw.width, channels)
    if kind.itemsize == 2:
        image = tone_map(packed.astype(np.uint16, copy=False), raw.transfer)
    else:
        image = over_black(packed) if channels == 4 else packed.astype(np.uint8, copy=False)
    if raw.is_narrow_grey:
        image = np.asarray(cv2.LUT(image, _FROM_VIDEO_RANGE), dtype=np.uint8)
    return _upright(image, orientation)


def _upright(image: Image, orientation: Orientation) -> Image:
    if orientation.transpose:
        image = np.asarray(cv2.transpose(image), dtype=np.uint8)
    if orientation.mirror_x:
        image = image[:, ::-1]
    if orientation.mirror_y:
        image = image[::-1]
    return np.ascontiguousarray(image)
