"""Still pictures -> upright 8-bit RGB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import Image
from omokage.media.records import RawStill, StillTask
from omokage.media.sandbox import run_once, run_stills
from omokage.media.source import PICTURE, sniff

# Pillow's modes that a decoder gives -> their numbers and how many a pixel has.
_MODES: Final = {
    "RGB": ("u1", 3),
    "RGBA": ("u1", 4),
    "I;16": ("<u2", 1),
    "I;16L": ("<u2", 1),
    "I;16B": (">u2", 1),
    "I": ("=i4", 1),
    "F": ("=f4", 1),
}


def is_still_image(path: Path) -> bool:
    """Whether the first bytes are those of a still picture. Raises MediaError when the file cannot be read."""
    return sniff(path) == PICTURE


def read_image(path: Path) -> Image:
    """Read a picture as uint8 (H, W, 3) sRGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and 16-bit pictures are converted, an embedded color profile is applied, transparent parts
    are laid over black. Raises MediaError for anything else, such as a video, and beyond the `InputLimits`.
    """
    if not is_still_image(path):
        raise MediaError(f"{path} is a video or sound file; a picture (PNG, JPEG, WebP) is needed here")
    return _to_rgb(path, run_once(path, StillTask(), RawStill))


def read_images(paths: Iterable[Path]) -> Iterator[Image]:
    """`read_image` for many pictures of one origin, such as the frames of a dataset, in a tenth of the time."""
    named = list(paths)
    with contextlib.closing(run_stills(named)) as stills:
        for path, raw in zip(named, stills, strict=True):
            yield _to_rgb(path, raw)


def over_black(rgba: NDArray[np.generic]) -> Image:
    """Lay uint8 (H, W, 4) with straight alpha over black -> (H, W, 3)."""
    color = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return ((color + 127) // 255).astype(np.uint8)


def _to_rgb(path: Path, raw: RawStill) -> Image:
    if raw.mode not in _MODES or min(raw.width, raw.height) < 1:
        raise MediaError(f"the decoder of {path} gave a picture that makes no sense; save it again as PNG")
    kind, channels = _MODES[raw.mode]
    if len(raw.data) != raw.width * raw.height * channels * np.dtype(kind).itemsize:
        raise MediaError(f"the decoder of {path} gave a picture that makes no sense; save it again as PNG")
    pixels = np.frombuffer(raw.data, kind).reshape(raw.height, raw.width, channels)
    if channels == 1:
        return _from_deep(pixels, raw.mode)
    return over_black(pixels) if channels == 4 else np.asarray(pixels, dtype=np.uint8)


def _from_deep(pixels: NDArray[np.generic], mode: str) -> Image:
    """16-bit, 32-bit or floating-point grey (H, W, 1) -> (H, W, 3)."""
    grey = np.asarray(pixels, dtype=np.float64)
    full = 65535 if mode != "F" or grey.max() > 255 else 255 if grey.max() > 1 else 1
    level = np.rint(np.clip(np.nan_to_num(grey) / full, 0, 1) * 255).astype(np.uint8)
    return np.repeat(level, 3, axis=2)
