"""The visible label on generated pictures, such as 'AI-generated': any text, or a profile of a place's rules.

MAIN: `draw_label`. A label is written as one string: the name of a profile of `data/labels.json` ('eu'), with a
language if wanted ('eu:de'), or else the very text.
"""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, cast

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
_DATA = files("omokage.trust") / "data"
# By file name, from the folders of the system: what Linux, macOS and Windows bring for East Asian letters.
_SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "YuGothM.ttc",
    "msyh.ttc",
    "malgun.ttf",
)


@dataclass(frozen=True, slots=True)
class LabelProfile:
    """What the rules of a place ask of a visible label; see docs/labels.md. No legal advice.

    texts: by language code, the default first.  corner: where it stands, inside of what square and upright crops of
    the picture leave.  why: in a sentence.  sources: the rules, with their dates.
    """

    name: str
    texts: Mapping[str, str]
    corner: Corner
    why: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Label:
    """A text and where it stands.  profile: that it comes from, or None.  language: '' when not known."""

    text: str
    corner: Corner
    profile: str | None = None
    language: str = ""


@cache
def label_profiles() -> Mapping[str, LabelProfile]:
    """All profiles by name."""
    listed = json.loads((_DATA / "labels.json").read_text(encoding="utf-8"))
    return {
        name: LabelProfile(name, one["texts"], cast(Corner, one["corner"]), one["why"], tuple(one["sources"]))
        for name, one in listed.items()
    }


def read_label(label: str, *, corner: Corner = "lower left") -> Label:
    """A profile's name ('jp', 'jp:en') -> its label; any other text -> itself, in `corner`.

    Raises InputError when a profile does not speak the language.
    """
    name, colon, language = label.partition(":")
    profile = label_profiles().get(name)
    if profile is None or (colon and not (language.isalpha() and language.islower() and len(language) == 2)):
        return Label(label, corner)
    language = language or next(iter(profile.texts))
    if language not in profile.texts:
        known = ", ".join(f"{name}:{code}" for code in profile.texts)
        raise InputError(
            f"the label profile '{name}' has no text in '{language}'; use {known}, or write the text itself"
        )
    return Label(profile.texts[language], profile.corner, name, language)


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rendered label at `top`, `left` (px): `color` in 0..255 and `opacity` in 0..1, both float32 (h, w, 1)."""

    color: NDArray[np.float32]
    opacity: NDArray[np.float32]
    top: int
    left: int


def labels_report() -> str:
    """What `--label` knows: each profile with its texts, place and sources."""
    lines = []
    for profile in label_profiles().values():
        texts = ", ".join(f"{code} '{text}'" for code, text in profile.texts.items())
        lines += [f"{profile.name}: {texts}", f"  {profile.corner}; {profile.why}"]
        lines += [f"  - {source}" for source in profile.sources]
    lines.append("Any other --label is written as it is. A profile is no legal advice.")
    return "\n".join(lines)


def draw_label(image: NDArray[np.uint8], label: str, *, corner: Corner = "lower left") -> NDArray[np.uint8]:
    """Return a copy of uint8 (H, W, 3) or (H, W, 4) with a label (`read_label`): white on a dark, see-through box.

    Capital letters are 5 % of the short side high, at least 7 px; long texts wrap. The label of a transparent
    picture is opaque where its box is. A profile's label stays whole when the picture is cropped about its middle to
    1:1 or 9:16. Raises InputError when no font has a letter or the text does not fit.
    """
    patch = _render(read_label(label, corner=corner), image.shape[1], image.shape[0])
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


def check_label(label: str | None, width: int, height: int) -> None:
    """Tell before long work that `draw_label` cannot draw this label on pictures of this size. Raises InputError."""
    if label is not None:
        _render(read_label(label), width, height)


@lru_cache(maxsize=16)
def _render(label: Label, width: int, height: int) -> _Patch:
    capital = max(_MIN_TEXT_PX, TEXT_SHARE * min(width, height))
    font = _font_for(label, capital)
    left, top, inner_width, inner_height = (
        _inside_of_crops(width, height) if label.profile else (0, 0, width, height)
    )
    margin = max(2, round(0.4 * capital))
    lines = _wrap(label.text, font, inner_width - 4 * margin)
    spacing = round(0.5 * capital)
    canvas = PIL.ImageDraw.Draw(PIL.Image.new("L", (1, 1)))
    box = canvas.multiline_textbbox((0, 0), lines, font=font, spacing=spacing)
    text_width, text_height = int(np.ceil(box[2] - box[0])), int(np.ceil(box[3] - box[1]))
    box_width, box_height = text_width + 2 * margin, text_height + 2 * margin
    if box_width + 2 * margin > inner_width or box_height + 2 * margin > inner_height:
        raise InputError(
            f"the label '{label.text}' does not fit into {inner_width}x{inner_height} pixels; use a shorter label or a "
            "larger picture"
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
        top=top + (inner_height - box_height - margin if label.corner.startswith("lower") else margin),
        left=left + (margin if label.corner.endswith("left") else inner_width - box_width - margin),
    )


def _inside_of_crops(width: int, height: int) -> tuple[int, int, int, int]:
    """What both the square and the upright (9:16) crop about the middle leave: left, top, width, height."""
    inner_width, inner_height = min(width, height * 9 // 16), min(width, height)
    return (width - inner_width) // 2, (height - inner_height) // 2, inner_width, inner_height


def _font_for(label: Label, capital: float) -> PIL.ImageFont.FreeTypeFont:
    """The first font that has every letter.

    Pillow's own, which is small; DejaVu Sans, which comes with a package that MediaPipe needs; our cuts of Noto Sans
    CJK for labels in Japanese and Chinese; what the system has.
    """
    own = ("label_zh.otf", "label_ja.otf") if label.language == "zh" else ("label_ja.otf", "label_zh.otf")
    candidates = (None, _dejavu(), *(str(_DATA / name) for name in own), *_SYSTEM_FONTS)
    lacking = label.text
    for path in candidates:
        font = _font(capital, path)
        if font is None:
            continue
        still = "".join(letter for letter in label.text if not _has(font, letter))
        if not still and label.text.strip():
            return font
        lacking = min(lacking, still, key=len)
    problem = f"has characters that cannot be drawn ('{lacking}')" if lacking else "is empty"
    raise InputError(
        f"the label '{label.text}' {problem}; write it in Latin, Greek or Cyrillic letters, for example "
        "'AI-generated', or take a profile: " + ", ".join(label_profiles())
    )


def _has(font: PIL.ImageFont.FreeTypeFont, letter: str) -> bool:
    """The font draws the same empty box for every letter that it lacks; from right to left nothing is drawn well."""
    if unicodedata.bidirectional(letter) in ("R", "AL"):
        return False
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def _dejavu() -> str | None:
    found = importlib.util.find_spec("matplotlib")  # not imported: only its font file is wanted
    places = found.submodule_search_locations if found else None
    path = Path(places[0]) / "mpl-data/fonts/ttf/DejaVuSans.ttf" if places else None
    return str(path) if path and path.is_file() else None


@lru_cache(maxsize=16)
def _font(capital: float, path: str | None) -> PIL.ImageFont.FreeTypeFont | None:
    """The size of a font (None: Pillow's own) whose capital letters are at least `capital` px high; None without it."""
    size = capital
    while True:
        try:
            font = PIL.ImageFont.truetype(path, size) if path else PIL.ImageFont.load_default(size)
        except OSError:
            return None
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
