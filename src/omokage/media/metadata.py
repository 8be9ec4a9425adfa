"""What a file says about itself in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omokage.media.demux import open_container
from omokage.media.limits import InputLimits
from omokage.media.records import CommentTask, RawComment
from omokage.media.sandbox import run_once
from omokage.media.source import PICTURE, Source
from omokage.media.still import tags_of

MOST_LETTERS = 400


def read_comment(path: Path) -> str:
    """The comment in a clip's or picture's metadata, on one line, cut after 400 letters; empty if there is none.

    Raises MediaError when the file cannot be read.
    """
    text = run_once(path, CommentTask(), RawComment).text
    return "".join(letter if letter.isprintable() else " " for letter in text)[:MOST_LETTERS].strip()


def comment_of(source: Source, limits: InputLimits) -> Iterator[RawComment]:
    """The same as the decoder's process reads it: one answer. Raises MediaError."""
    tags = tags_of(source) if source.kind == PICTURE else _clip_tags(source, limits)
    found = next((value for name, value in tags.items() if name.lower() == "comment"), "")
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    yield RawComment(text[:MOST_LETTERS])


def _clip_tags(source: Source, limits: InputLimits) -> dict[str, object]:
    with open_container(source, limits) as container:
        return dict(container.metadata)
