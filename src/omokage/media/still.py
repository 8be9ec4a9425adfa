"""A still picture, as the decoder's process reads it: upright, in one of the few modes that `image` knows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import PIL.Image

# Pillow brings these when it meets the first file of a kind, which would be too late: no file opens then.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageCms,
    ImageOps,
    ImagePalette,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from omokage.errors import MediaError
from omokage.media.limits import InputLimits
from omokage.media.records import RawComment, RawStill, comment_in
from omokage.media.source import Source

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
DEEP_MODES: Final = ("I", "F", "I;16", "I;16L", "I;16B")
_BROUGHT: Final = (
    *(AvifImagePlugin, BmpImagePlugin, GifImagePlugin, ImagePalette, JpegImagePlugin, MpoImagePlugin),
    *(PngImagePlugin, PpmImagePlugin, TiffImagePlugin, WebPImagePlugin),
)


def still_of(source: Source, limits: InputLimits) -> Iterator[RawStill]:
    """One answer. Raises MediaError when the picture is damaged, too large or of another kind."""
    with _opened(source, limits) as picture:
        width, height = picture.size
        if max(width, height) > limits.max_side:
            raise MediaError(
                f"{source.path} is {width}x{height} pixels; at most {limits.max_side} a side are read, "
                "so save it smaller"
            )
        picture.load()
        made = _plain(ImageOps.exif_transpose(picture))
    yield RawStill(made.width, made.height, made.mode, made.tobytes())


def still_comment(source: Source, limits: InputLimits) -> Iterator[RawComment]:
    """One answer, without decoding the picture. Raises MediaError."""
    with _opened(source, limits) as picture:
        comment = comment_in(picture.info)
    yield RawComment(comment)


@contextmanager
def _opened(source: Source, limits: InputLimits) -> Iterator[PIL.Image.Image]:
    """What Pillow and its libraries raise becomes MediaError."""
    path = source.path
    try:
        with PIL.Image.open(source.file, formats=_FORMATS) as picture:
            yield picture
    except PIL.Image.DecompressionBombError as error:
        raise MediaError(
            f"{path} claims far more pixels than the {limits.max_side} a side that are read, so save it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        # A permission is lacking when Pillow looks for more kinds of pictures than these.
        is_unknown = isinstance(error, PIL.UnidentifiedImageError | PermissionError)
        reason = "its first bytes make no sense" if is_unknown else error
        raise MediaError(
            f"{path} is a damaged picture or of a kind that is not read ({reason}); save it again as PNG or JPEG"
        ) from error


def _plain(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The same picture as RGB, as RGBA when parts are transparent, or one of `DEEP_MODES`."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return picture if picture.mode in DEEP_MODES else picture.convert("I")
    if picture.has_transparency_data:
        return picture.convert("RGBA")
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
    return picture.convert("RGB")
