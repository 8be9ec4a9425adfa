"""What a file says about itself in words."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from omokage.errors import MediaError
from omokage.media.container import PICTURE, open_container, sniff
from omokage.media.image import FORMATS

MOST_LETTERS = 400


def read_comment(path: Path) -> str:
    """The comment in a clip's or picture's metadata, on one line, cut after 400 letters; empty if there is none.

    Raises MediaError when the file cannot be read.
    """
    tags = _picture_tags(path) if sniff(path) == PICTURE else _clip_tags(path)
    found = next((value for name, value in tags.items() if name.lower() == "comment"), "")
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MOST_LETTERS].strip()


def _clip_tags(path: Path) -> dict[str, object]:
    with open_container(path) as container:
        return dict(container.metadata)


def _picture_tags(path: Path) -> dict[str, object]:
    try:
        with PIL.Image.open(path, formats=FORMATS) as picture:
            return {str(name): value for name, value in picture.info.items()}
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise MediaError(f"{path} is a damaged picture ({error}); save it again as PNG or JPEG") from error
