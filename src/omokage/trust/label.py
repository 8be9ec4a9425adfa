"""The visible label on generated pictures, such as 'AI-generated'."""

from __future__ import annotations

import importlib.util
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from omokage.errors import InputError

Corner = Literal["lower left", "lower right", "upper left", "upper right"]

TEXT_SHARE = 0.05  # height of a capital letter over the picture's short side (GB 45438-2025 asks for 5 %)
_MIN_TEXT_PX = 7
_BOX_OPACITY = 0.65  # white text keeps a contrast of 5:1 even before a white picture


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rendered label at `top`, `left` (px): `color` in 0..255 and `opacity` in 0..1, both float32 (h, w, 1)."""

    color: NDArray[np.float32]
    opacity: NDArray[np.float32]
    top: int
    left: int


def draw_label(image: NDArray[np.uint8], text: str, *, corner: Corner = "lower left") -> NDArray[np.uint8]:
    """Return a copy of uint8 (H, W, 3) or (H, W, 4) with `text` in a corner: white on a dark, see-through box.

    Capital letters are 5 % of the short side high, at least 7 px; long texts wrap. The label of a transparent
    picture is opaque where its box is. Raises InputError when the font lacks a letter or the text does not fit.
    """
    patch = _render(text, image.shape[1], image.shape[0], corner)
    height, width = patch.opacity.shape[:2]
    labeled = image.copy()
    area = labeled[patch.top : patch.top + height, patch.left : patch.left + width]
    under = area.astype(np.float32)
    share = under[..., 3:] / 255 if image.shape[2] == 4 else np.ones_like(patch.opacity)
    share = share * (1 - patch.opacity)  # weight of the picture below (Porter-Duff 'over', straight alpha)
    total = np.maximum(share + patch.opacity, 1e-6)
    area[..., :3] = np.rint((under[..., :3] * share + patch.color * patch.opacity) / total)
    if image.shape[2] == 4:
        area[..., 3:] = np.rint(255 * total)
    return labeled


def check_label(text: str | None, width: int, height: int) -> None:
    """Tell before long work that `draw_label` cannot draw this text on pictures of this size. Raises InputError."""
    if text is not None:
        _render(text, width, height, "lower left")


@lru_cache(maxsize=16)
def _render(text: str, width: int, height: int, corner: Corner) -> _Patch:
    capital = max(_MIN_TEXT_PX, TEXT_SHARE * min(width, height))
    font = _font_for(text, capital)
    margin = max(2, round(0.4 * capital))
    lines = _wrap(text, font, width - 4 * margin)
    spacing = round(0.5 * capital)
    canvas = PIL.ImageDraw.Draw(PIL.Image.new("L", (1, 1)))
    box = canvas.multiline_textbbox((0, 0), lines, font=font, spacing=spacing)
    text_width, text_height = int(np.ceil(box[2] - box[0])), int(np.ceil(box[3] - box[1]))
    box_width, box_height = text_width + 2 * margin, text_height + 2 * margin
    if box_width + 2 * margin > width or box_height + 2 * margin > height:
        raise InputError(
            f"the label '{text}' does not fit into {width}x{height} pixels; use a shorter label or a larger picture"
        )
    letters = PIL.Image.new("L", (box_width, box_height))
    PIL.ImageDraw.Draw(letters).multiline_text(
        (margin - box[0], margin - box[1]), lines, fill=255, font=font, spacing=spacing
    )
    ink = np.asarray(letters, dtype=np.float32)[..., None] / 255
    opacity = ink + _BOX_OPACITY * (1 - ink)
    return _Patch(
        color=np.asarray(255 * ink / opacity, dtype=np.float32),
        opacity=np.asarray(opacity, dtype=np.float32),
        top=height - box_height - margin if corner.startswith("lower") else margin,
        left=margin if corner.endswith("left") else width - box_width - margin,
    )


def _font_for(text: str, capital: float) -> PIL.ImageFont.FreeTypeFont:
    """Pillow's own font, which is small, or DejaVu Sans, which comes with a package that MediaPipe needs."""
    lacking = text
    for path in (None, _dejavu()):
        font = _font(capital, path)
        lacking = "".join(letter for letter in lacking if not _has(font, letter))
        if not lacking and text.strip():
            return font
    problem = f"has characters that cannot be drawn ('{lacking}')" if lacking else "is empty"
    raise InputError(
        f"the label '{text}' {problem}; write it in Latin, Greek or Cyrillic letters, for example 'AI-generated'"
    )


def _has(font: PIL.ImageFont.FreeTypeFont, letter: str) -> bool:
    """The font draws the same empty box for every letter that it lacks; from right to left nothing is drawn well."""
    if unicodedata.bidirectional(letter) in ("R", "AL"):
        return False
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def _dejavu() -> Path | None:
    found = importlib.util.find_spec("matplotlib")  # not imported: only its font file is wanted
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf" if places else None
    return path if path and path.is_file() else None


@lru_cache(maxsize=16)
def _font(capital: float, path: Path | None) -> PIL.ImageFont.FreeTypeFont:
    """The size of a font (None: Pillow's own) whose capital letters are at least `capital` px high."""
    size = capital
    while True:
        font = PIL.ImageFont.truetype(path, size) if path else PIL.ImageFont.load_default(size)
        assert isinstance(font, PIL.ImageFont.FreeTypeFont)
        top, bottom = font.getbbox("H")[1::2]
        if bottom - top >= capital:
            return font
        size *= 1.03


def _wrap(text: str, font: PIL.ImageFont.FreeTypeFont, width: float) -> str:
    """Break the text at blanks so that each line fits `width` px where its words allow."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines)
