"""What a file says about itself in words."""

from __future__ import annotations

from pathlib import Path

from omokage.media.records import MOST_LETTERS, CommentTask, RawComment
from omokage.media.sandbox import run_once

__all__ = ["MOST_LETTERS", "read_comment"]


def read_comment(path: Path) -> str:
    """The comment in a clip's or picture's metadata, on one line, cut after 400 letters; empty if there is none.

    Raises MediaError when the file cannot be read.
    """
    text = run_once(path, CommentTask(), RawComment).text[:MOST_LETTERS]
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
