"""A row of the audit log, one line of JSON: chained by SHA-256 to the row before it and signed with Ed25519.

    {"row":7,"at":"...","event":"release","facts":{...},"personal":"<hash>","previous":"<hash>","hash":"<hash>",
     "signature":"<base64>"}

`hash` is that of the bytes before `,"hash"`, and the signature is over it, so each row vouches for all before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from omokage.files import parse_json

Value = str | int | float | bool | None
NOTHING_BEFORE: Final = "0" * 64
LONGEST_ROW: Final = 1 << 16
_MEANING: Final = b"omokage audit row 1\0"  # so that a signature of this key means nothing elsewhere
_HASH, _SIGNATURE = b',"hash":"', b'","signature":"'
_HEX = 64
_KEPT = re.compile(rb'\{"row":(\d{1,15}),"salt":"([0-9a-f]{32})","hash":"([0-9a-f]{64})","values":(\{.*\})\}')


@dataclass(frozen=True)
class Row:
    """number: from 0.  at: UTC.  facts: nothing personal.  personal: salted hash of what is, or None.

    signature: in base64.
    """

    number: int
    at: datetime
    event: str
    facts: Mapping[str, Any]
    personal: str | None
    previous: str
    hash: str
    signature: bytes
    line: bytes

    def to_json(self) -> dict[str, Any]:
        """The values of its line."""
        values: dict[str, Any] = json.loads(self.line)
        return values


class Parts(NamedTuple):  # a tuple, because a hundred thousand are made in a second
    """A line taken apart without being understood. signature: in base64."""

    body: bytes
    hash: str
    signature: bytes


def make_row(
    number: int,
    event: str,
    facts: Mapping[str, Any],
    personal: str | None,
    previous: str,
    key: Ed25519PrivateKey,
) -> Row:
    """A row with the time of now."""
    at = datetime.now(UTC)
    values = {
        "row": number,
        "at": at.isoformat(timespec="milliseconds"),
        "event": event,
        "facts": dict(facts),
        "personal": personal,
        "previous": previous,
    }
    body = json.dumps(values, separators=(",", ":"))[:-1].encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    signature = base64.b64encode(key.sign(_MEANING + bytes.fromhex(digest)))
    line = b'%s%s%s%s%s"}' % (body, _HASH, digest.encode(), _SIGNATURE, signature)
    return Row(number, at, event, facts, personal, previous, digest, signature, line)


def split_line(line: bytes) -> Parts | None:
    """Body, stated hash and signature of a line without its end; None when it has not the form of a row."""
    at = line.rfind(_HASH)
    stated = at + len(_HASH)
    mark = stated + _HEX
    if at < 0 or line[mark : mark + len(_SIGNATURE)] != _SIGNATURE or not line.endswith(b'"}'):
        return None
    return Parts(line[:at], line[stated:mark].decode("ascii", "replace"), line[mark + len(_SIGNATURE) : -2])


def parse_row(line: bytes) -> Row | None:
    """The row of a line without its end, its hash checked; None when it is none."""
    parts = split_line(line)
    if parts is None or hashlib.sha256(parts.body).hexdigest() != parts.hash:
        return None
    try:
        said = parse_json(line.decode("ascii"))
        return Row(
            number=int(said["row"]),
            at=datetime.fromisoformat(said["at"]),
            event=str(said["event"]),
            facts=dict(said["facts"]),
            personal=said["personal"],
            previous=str(said["previous"]),
            hash=parts.hash,
            signature=parts.signature,
            line=line,
        )
    except (ValueError, KeyError, TypeError):
        return None


def is_signed(digest: str, signature: bytes, key: Ed25519PublicKey) -> bool:
    """Whether the signature, in base64, of a row's hash is this key's."""
    try:
        key.verify(base64.b64decode(signature, validate=True), _MEANING + bytes.fromhex(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


class Kept(NamedTuple):
    """What is personal of a row, kept beside the log: the JSON `text` of its values, and the salted hash in the row.

    number: of the row, unless its write broke off after this one's.
    """

    number: int
    salt: str
    hash: str
    text: bytes

    @property
    def line(self) -> bytes:
        """Without its end."""
        return b'{"row":%d,"salt":"%s","hash":"%s","values":%s}' % (
            self.number, self.salt.encode(), self.hash.encode(), self.text,
        )  # fmt: skip

    @property
    def is_true(self) -> bool:
        """Whether the values have this hash: without the salt nobody can try out what they were."""
        return hashlib.sha256(self.salt.encode() + self.text).hexdigest() == self.hash

    def values(self) -> dict[str, Value]:
        """Raises ValueError when it holds something else."""
        said = parse_json(self.text.decode("ascii"))
        return dict(said)


def keep(number: int, values: Mapping[str, Value]) -> Kept:
    """Values with a salt of their own and the hash of both."""
    salt, text = os.urandom(16).hex(), json.dumps(dict(values), separators=(",", ":")).encode("ascii")
    return Kept(number, salt, hashlib.sha256(salt.encode() + text).hexdigest(), text)


def parse_kept(line: bytes) -> Kept | None:
    """From `Kept.line`; None when it is none."""
    found = _KEPT.fullmatch(line)
    return Kept(int(found[1]), found[2].decode(), found[3].decode(), found[4]) if found else None


def make_key(path: Path) -> Ed25519PrivateKey:
    """A new key in a file that only its owner reads. Raises OSError, also when there is one."""
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """The key of `make_key`. Raises OSError and ValueError."""
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is no Ed25519 key")
    return key


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half, hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def public_key(text: str) -> Ed25519PublicKey:
    """From `public_text`. Raises ValueError."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
