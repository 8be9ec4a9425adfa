"""Files that hold a secret: whole or not there, readable by their owner alone. All keys of omokage are kept so."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def make_secret(path: Path, content: bytes) -> None:
    """Write a secret that is not there yet; of two processes at once one wins, and the other's is dropped.

    So read it afterwards. Raises OSError.
    """
    part = _written_beside(path, content)
    try:
        with suppress(FileExistsError):
            os.link(part, path)  # unlike a rename, never in the place of another
    finally:
        part.unlink(missing_ok=True)


def replace_secret(path: Path, content: bytes) -> None:
    """Write a secret in the place of another. Raises OSError."""
    _written_beside(path, content).replace(path)


def erase_secret(path: Path, content: bytes) -> None:
    """Put `content` in the place of a secret, then overwrite the old bytes, as far as disks do that in place.

    Raises OSError.
    """
    old = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.old")
    os.link(path, old)
    try:
        replace_secret(path, content)
        with old.open("rb+", buffering=0) as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            os.fsync(file.fileno())
    finally:
        old.unlink(missing_ok=True)


def _written_beside(path: Path, content: bytes) -> Path:
    """A neighbor with this content, on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
