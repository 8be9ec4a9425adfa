"""Still pictures -> upright 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms, ImageOps

from omokage.errors import MediaError
from omokage.media.clip import Image
from omokage.media.container import MAX_SIDE, PICTURE, sniff

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")


def is_still_image(path: Path) -> bool:
    """Whether the first bytes are those of a still picture. Raises MediaError when the file cannot be read."""
    return sniff(path) == PICTURE


def read_image(path: Path) -> Image:
    """Read a picture as uint8 (H, W, 3) sRGB, turned upright by its EXIF tag.

    Grey, palette, CMYK and 16-bit pictures are converted, an embedded color profile is applied, transparent parts
    are laid over black. Raises MediaError for anything else, such as a video, and above 8192 pixels a side.
    """
    if not is_still_image(path):
        raise MediaError(f"{path} is a video or sound file; a picture (PNG, JPEG, WebP) is needed here")
    try:
        with PIL.Image.open(path, formats=FORMATS) as picture:
            if max(picture.size) > MAX_SIDE:
                width, height = picture.size
                raise MediaError(
                    f"{path} is {width}x{height} pixels; at most {MAX_SIDE} a side are read, so save it smaller"
                )
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise MediaError(
            f"{path} is a damaged picture or of a kind that is not read ({error}); save it again as PNG or JPEG"
        ) from error


def over_black(rgba: NDArray[np.generic]) -> Image:
    """Lay uint8 (H, W, 4) with straight alpha over black -> (H, W, 3)."""
    color = rgba[..., :3].astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return ((color + 127) // 255).astype(np.uint8)


def _to_rgb(picture: PIL.Image.Image) -> Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        grey = np.asarray(picture, dtype=np.float64)
        full = 65535 if picture.mode != "F" or grey.max() > 255 else 255 if grey.max() > 1 else 1
        level = np.rint(np.clip(grey / full, 0, 1) * 255).astype(np.uint8)
        return np.repeat(level[..., None], 3, axis=2)
    if picture.has_transparency_data:
        return over_black(np.asarray(picture.convert("RGBA")))
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            picture = converted or picture
        except (ImageCms.PyCMSError, OSError):
            picture = picture.convert("RGB")  # a broken profile is common and harmless
    return np.array(picture.convert("RGB"), dtype=np.uint8)
