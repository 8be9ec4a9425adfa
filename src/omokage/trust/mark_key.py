"""The secret key of this installation: it finds the private layer of its marks, and nobody without it does.

<home>/marks/private.key    64 hexadecimal digits, readable by its owner only; made when it is first needed

`OMOKAGE_MARK_KEY` names another file, such as a secret that an administrator mounts. The key never leaves in an output;
what is used is derived from it by HMAC-SHA256 (RFC 2104), for each purpose its own.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from omokage.errors import InputError, OutputError
from omokage.files import output_error
from omokage.home import HOME_VARIABLE, data_home
from omokage.vault.secret_file import make_secret

KEY_VARIABLE: Final = "OMOKAGE_MARK_KEY"
KEY_BYTES: Final = 32

log = logging.getLogger(__name__)


def marks_folder() -> Path:
    """Where the key and the register of renders lie; it may not exist yet."""
    return data_home() / "marks"


def key_path() -> Path:
    """The file of this installation's key, which may not exist yet."""
    chosen = os.environ.get(KEY_VARIABLE)
    return Path(chosen).expanduser() if chosen else marks_folder() / "private.key"


def installation_key() -> bytes:
    """The key, made now if there is none.

    Raises OutputError when it cannot be written and InputError when its file holds something else.
    """
    path = key_path()
    if not path.exists():
        _make(path)
    return read_key(path)


def check_key() -> None:
    """Tell before long work, and without making anything, what `installation_key` would raise."""
    path = key_path()
    if path.exists():
        read_key(path)
        return
    folder = next(place for place in path.absolute().parents if place.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _no_place(path, error) from error


def read_key(path: Path) -> bytes:
    """The key in a file, 32 bytes. Raises InputError."""
    try:
        if path.stat().st_mode & 0o077 and os.name == "posix":
            log.warning("%s can be read by others on this machine; 'chmod 600' keeps it secret", path)
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise InputError(f"the key of the marks {path} cannot be read: {error.strerror}") from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(
            f"{path} is no key of omokage's marks, which has {2 * KEY_BYTES} hexadecimal digits; put the right file "
            "there, or move it away for a new key (renders of the old one are then no longer recognised)"
        )
    return key


def derived(key: bytes, purpose: bytes, message: bytes = b"") -> bytes:
    """32 bytes that nobody without the key can tell."""
    return hmac.new(key, b"omokage " + purpose + b"\0" + message, hashlib.sha256).digest()


def _make(path: Path) -> None:
    try:
        make_secret(path, secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
    except OSError as error:
        raise _no_place(path, error) from error


def _no_place(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the key of the marks has no place: {output_error(path, error)} ({HOME_VARIABLE} names it)"
    )
