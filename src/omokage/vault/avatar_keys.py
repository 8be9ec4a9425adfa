"""The key of every avatar, wrapped by a key of this installation; without it nobody reads the avatar's file.

    <home>/keys/avatars.key         64 hexadecimal digits, wraps the others; made when it is first needed
    <home>/keys/avatars/<id>.json   one avatar's key, encrypted with AES-256-GCM, bound to what the avatar was made of

MAIN: `new_key`, `find_record`, `destroy`. To destroy a key is to erase the avatar and every copy of its file
(cryptographic erase, NIST SP 800-88); what stays of its record says when and why.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from omokage.errors import InputError, OutputError
from omokage.files import output_error, parse_json
from omokage.home import data_home
from omokage.vault.secret_file import erase_secret, make_secret

FORMAT: Final = 1
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_WRAPPING_FILE, _FOLDER = "avatars.key", "avatars"


@dataclass(frozen=True, slots=True)
class AvatarKey:
    """id: 32 hexadecimal digits.  secret: 32 bytes.  media: SHA-256 of all that the avatar was made of, sorted."""

    id: str
    secret: bytes
    media: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Erasure:
    """Why a key is gone. consent: number of the withdrawn record.  withdrawn: day.  at: when the key went, UTC."""

    consent: str
    withdrawn: str
    at: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key. wrapped: nonce and encrypted key, hexadecimal, or '' when it was destroyed."""

    id: str
    media: tuple[str, ...]
    made: str
    wrapped: str
    erasure: Erasure | None = None

    def unwrapped(self) -> AvatarKey:
        """Raises InputError when the record was altered or the key that wraps it is another one."""
        path, wrapped = _wrapping_path(), bytes.fromhex(self.wrapped)
        if not path.exists():
            raise InputError(f"{path} is gone, and no avatar opens without it; put back the saved one")
        try:
            secret = AESGCM(_wrapping_key()).decrypt(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], _bound(self.id, self.media)
            )
        except InvalidTag as error:
            raise InputError(
                f"{_path(self.id)} was altered, or {path.name} is not the one that it was made with; put back the "
                "saved ones"
            ) from error
        return AvatarKey(self.id, secret, self.media)


def new_key(media: Iterable[str]) -> AvatarKey:
    """A random key for an avatar that was made of media with these SHA-256. Raises OutputError, InputError."""
    key = AvatarKey(secrets.token_hex(16), secrets.token_bytes(KEY_BYTES), tuple(sorted(set(media))))
    if not _wrapping_path().exists() and any(record.wrapped for record in key_records()):
        raise InputError(
            f"{_wrapping_path()} is gone, and the avatars here do not open without it; put back the saved one, or move "
            f"{_folder()} away to begin anew"
        )
    nonce = secrets.token_bytes(NONCE_BYTES)
    try:
        wrapped = nonce + AESGCM(_wrapping_key()).encrypt(nonce, key.secret, _bound(key.id, key.media))
        record = KeyRecord(key.id, key.media, _now(), wrapped.hex())
        make_secret(_path(key.id), _json(record))
    except OSError as error:
        raise output_error(_path(key.id), error) from error
    return key


def find_record(number: str) -> KeyRecord | None:
    """The record of a key, None for one that was never here. Raises InputError for a damaged one."""
    if not re.fullmatch(r"[0-9a-f]{32}", number):
        return None
    path = _path(number)
    try:
        found = parse_json(path.read_text(encoding="ascii"))
        if found["format"] != FORMAT:
            raise InputError(
                f"{path} is of format {found['format']}, this omokage knows {FORMAT}; update omokage"
            )
        erasure = Erasure(**found["erasure"]) if found["erasure"] else None
        wrapped, media = str(found["wrapped"]), tuple(map(str, found["media"]))
        bytes.fromhex(wrapped)
        return KeyRecord(number, media, str(found["made"]), wrapped, erasure)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); put back the saved one") from error


def key_records() -> list[KeyRecord]:
    """All records that can be read."""
    found = list[KeyRecord]()
    for path in sorted(_folder().glob("*.json")):
        try:
            record = find_record(path.stem)
        except InputError:
            continue
        if record is not None:
            found.append(record)
    return found


def destroy(record: KeyRecord, *, consent: str, withdrawn: str) -> None:
    """Destroy a key for good, and keep why: a consent's number and the day of its withdrawal. Raises OutputError."""
    gone = KeyRecord(record.id, record.media, record.made, "", Erasure(consent, withdrawn, _now()))
    try:
        erase_secret(_path(record.id), _json(gone))
    except OSError as error:
        raise output_error(_path(record.id), error) from error


def check_keys() -> None:
    """Tell before long work, and without making anything, that no key could be made. Raises OutputError, InputError."""
    if _wrapping_path().exists():
        _wrapping_key()
    folder = next(place for place in (_folder(), *_folder().absolute().parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(f"the keys of avatars have no place: {output_error(_folder(), error)}") from error


def _wrapping_key() -> bytes:
    """The key that wraps the others, made if there is none. Raises OSError, InputError."""
    path = _wrapping_path()
    if not path.exists():
        make_secret(path, secrets.token_hex(KEY_BYTES).encode() + b"\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(
            f"{path} is no key, which has {2 * KEY_BYTES} hexadecimal digits; put back the saved one"
        )
    return key


def _bound(number: str, media: tuple[str, ...]) -> bytes:
    """What cannot be changed without the wrapping key."""
    return json.dumps(["omokage avatar key", FORMAT, number, media]).encode()


def _json(record: KeyRecord) -> bytes:
    gone = record.erasure
    values: dict[str, Any] = {
        "format": FORMAT,
        "made": record.made,
        "media": record.media,
        "wrapped": record.wrapped,
        "erasure": {"consent": gone.consent, "withdrawn": gone.withdrawn, "at": gone.at} if gone else None,
    }
    return json.dumps(values, indent=1).encode() + b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _wrapping_path() -> Path:
    return data_home() / "keys" / _WRAPPING_FILE


def _folder() -> Path:
    return data_home() / "keys" / _FOLDER


def _path(number: str) -> Path:
    return _folder() / f"{number}.json"
