"""The sealed file: any bytes, encrypted in chunks of which each is known to be whole and in its place.

    magic (16 bytes) | length of the header (4, little-endian) | header, JSON | SHA-256 of all before | chunks

The header can be read by everybody: version, cipher, size of chunks, salt, and either the id of a key that the
installation keeps or, of a file that travels, that key wrapped by a passphrase. Chunks are encrypted with AES-256-GCM
under HKDF-SHA256 of key, salt and header (RFC 5869); their nonce counts them and marks the last, so that none is
changed, moved, left out or added: STREAM of Hoang, Reyhanitabar, Rogaway and Vizar, "Online authenticated-encryption
and its nonce-reuse misuse-resistance", 2015.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from omokage.files import parse_json

MAGIC: Final = b"omokage sealed\r\n"  # the line end tells of a file that was sent as a text
VERSION: Final = 1
CIPHER: Final = "AES-256-GCM"
CHUNK_BYTES: Final = 1 << 20
SALT_BYTES: Final = 32
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SCRYPT_COST: Final = 1 << 17  # with r = 8: 128 MiB and half a second for every guess
_LARGEST_COST, _LARGEST_CHUNK, _LARGEST_HEADER = 1 << 18, 1 << 24, 1 << 16


class SealBroken(ValueError):
    """The file is not as it was written."""


class WrongPassphrase(ValueError):
    """The key does not come out."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The header. key: id of the one that opens it, '' of a file that travels.  wrapped: its key under a passphrase."""

    key: str = ""
    wrapped: Mapping[str, Any] | None = None
    version: int = VERSION
    chunk: int = CHUNK_BYTES
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(SALT_BYTES))

    @property
    def prefix(self) -> bytes:
        """All that stands before the chunks."""
        said = {
            "version": self.version,
            "cipher": CIPHER,
            "chunk": self.chunk,
            "salt": self.salt.hex(),
            "key": self.key,
            "wrapped": None if self.wrapped is None else dict(self.wrapped),
        }
        header = json.dumps(said).encode()
        start = MAGIC + len(header).to_bytes(4, "little") + header
        return start + hashlib.sha256(start).digest()

    @classmethod
    def read(cls, file: BinaryIO) -> Self | None:
        """That of a file, which is then at its first chunk; None, at its start, when it is not sealed.

        Of a newer version only `version` is true. Raises SealBroken, OSError.
        """
        start = file.read(len(MAGIC) + 4)
        if not start.startswith(MAGIC):
            file.seek(0)
            return None
        header = file.read(min(int.from_bytes(start[len(MAGIC) :], "little"), _LARGEST_HEADER))
        if file.read(32) != hashlib.sha256(start + header).digest():
            raise SealBroken("its header is damaged")
        try:
            said = parse_json(header.decode())
            if (version := int(said["version"])) > VERSION:
                return cls(version=version)
            salt, chunk = bytes.fromhex(said["salt"]), int(said["chunk"])
            seal = cls(str(said["key"]), said["wrapped"], version, chunk, salt)
            is_ours = 0 < chunk <= _LARGEST_CHUNK and seal.prefix.startswith(start + header)
        except (KeyError, TypeError, ValueError) as error:
            raise SealBroken("its header is damaged") from error
        if not is_ours:
            raise SealBroken("its header is of another program")
        return seal


def is_travelling(path: Path) -> bool:
    """Whether a file is sealed by a passphrase. False for what cannot be read."""
    try:
        with path.open("rb") as file:
            seal = Seal.read(file)
    except (OSError, ValueError):
        return False
    return seal is not None and seal.wrapped is not None


def sealed(data: bytes, seal: Seal, secret: bytes) -> Iterator[bytes]:
    """The pieces of a sealed file. secret: the 32 bytes of the key that the seal names, or wraps."""
    cipher, view = _cipher(seal, secret), memoryview(data)
    yield seal.prefix
    for start in range(0, max(len(data), 1), seal.chunk):
        is_last = start + seal.chunk >= len(data)
        yield cipher.encrypt(
            _nonce(start // seal.chunk, is_last=is_last), view[start : start + seal.chunk], None
        )


def opened(file: BinaryIO, seal: Seal, secret: bytes) -> Iterator[bytes]:
    """The bytes of a sealed file, chunk by chunk; `file` is at its first. Each that comes is as it was written.

    Raises SealBroken, also at the end of a file that was cut off; OSError.
    """
    cipher, number = _cipher(seal, secret), 0
    piece = file.read(seal.chunk + TAG_BYTES)
    while True:
        after = file.read(seal.chunk + TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(number, is_last=not after), piece, None)
        except InvalidTag as error:
            raise SealBroken("its contents do not match its checksum") from error
        if not after:
            return
        piece, number = after, number + 1


def wrapped_by(passphrase: str, secret: bytes) -> dict[str, Any]:
    """A key under a passphrase, for the header of a file that travels (scrypt, RFC 7914)."""
    salt = secrets.token_bytes(SALT_BYTES)
    key = _stretched(passphrase, salt, SCRYPT_COST)
    # The wrapping key is used once, so its nonce may be constant.
    return {
        "by": "scrypt",
        "cost": SCRYPT_COST,
        "salt": salt.hex(),
        "key": AESGCM(key).encrypt(_nonce(0, is_last=True), secret, None).hex(),
    }


def unwrapped_by(passphrase: str, wrapped: Mapping[str, Any]) -> bytes:
    """The key under a passphrase. Raises WrongPassphrase, SealBroken."""
    try:
        cost, salt, held = int(wrapped["cost"]), bytes.fromhex(wrapped["salt"]), bytes.fromhex(wrapped["key"])
        if wrapped["by"] != "scrypt" or not 2 <= cost <= _LARGEST_COST or cost & (cost - 1):
            raise ValueError("of another kind")
    except (KeyError, TypeError, ValueError) as error:
        raise SealBroken("its header is damaged") from error
    try:
        return AESGCM(_stretched(passphrase, salt, cost)).decrypt(_nonce(0, is_last=True), held, None)
    except InvalidTag as error:
        raise WrongPassphrase from error


def _stretched(passphrase: str, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost, r=8, p=1).derive(passphrase.encode())


def _cipher(seal: Seal, secret: bytes) -> AESGCM:
    """Of this very file: the header goes into its key."""
    info = b"omokage sealed file\0" + seal.prefix
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=seal.salt, info=info).derive(secret))


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])
