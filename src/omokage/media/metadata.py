"""What a file says about itself: in words, and in a signed manifest."""

from __future__ import annotations

from pathlib import Path

from omokage.errors import InternalError, MediaError
from omokage.files import open_given
from omokage.media.manifest import Manifest, media_type_of
from omokage.media.records import MOST_LETTERS, CommentTask, ManifestTask, RawComment, RawManifest
from omokage.media.sandbox import run_once

__all__ = ["MOST_LETTERS", "read_comment", "read_manifest"]


def read_comment(path: Path) -> str:
    """The comment in a clip's or picture's metadata, on one line, cut after 400 letters; empty if there is none.

    Raises MediaError when the file cannot be read.
    """
    text = run_once(path, CommentTask(), RawComment).text[:MOST_LETTERS]
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def read_manifest(path: Path, roots: str) -> Manifest | None:
    """The C2PA manifest of a file; None for a kind that has no place for one. roots: what is trusted, PEM.

    When the library breaks down over it, or hangs, that is told in `Manifest.unread`. Raises MediaError for what is no
    ordinary file.
    """
    with open_given(path, MediaError) as file:
        if media_type_of(file.read(12)) is None:
            return None
    try:
        return Manifest.parsed(bytes(run_once(path, ManifestTask(roots), RawManifest).data))
    except (MediaError, InternalError, ValueError) as error:
        return Manifest(unread=str(error))
