"""A row of the audit log, one line of JSON: chained by SHA-256 to the row before it and signed with Ed25519.

    {"at":"...","event":"release","facts":{...},"personal":"<hash>","previous":"<hash>","row":7,"hash":"<hash>",
     "signature":"<hex>"}

`hash` is that of the bytes before `,"hash"`, and the signature is over it, so each row vouches for all before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from omokage.files import parse_json
from omokage.trust.keys import canonical, is_signed

Value = str | int | float | bool | None
NOTHING_BEFORE: Final = "0" * 64
LONGEST_ROW: Final = 1 << 16
_MEANING: Final = b"omokage audit row 1\0"  # so that a signature of this key means nothing elsewhere
_HASH, _SIGNATURE = b',"hash":"', b'","signature":"'
_HEX = 64
_KEPT = re.compile(rb'\{"row":(\d{1,15}),"salt":"([0-9a-f]{32})","hash":"([0-9a-f]{64})","values":(\{.*\})\}')


@dataclass(frozen=True)
class Row:
    """number: from 0.  at: UTC.  facts: nothing personal.  personal: salted hash of what is, or None."""

    number: int
    at: datetime
    event: str
    facts: Mapping[str, Any]
    personal: str | None
    previous: str
    hash: str
    signature: str
    line: bytes

    def to_json(self) -> dict[str, Any]:
        """The values of its line."""
        values: dict[str, Any] = json.loads(self.line)
        return values


class Parts(NamedTuple):  # a tuple, because a hundred thousand are made in a second
    """A line taken apart without being understood."""

    body: bytes
    hash: str
    signature: str


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
        "at": at.isoformat(timespec="milliseconds"),
        "event": event,
        "facts": dict(facts),
        "personal": personal,
        "previous": previous,
        "row": number,
    }
    body = canonical(values)[:-1]
    digest = hashlib.sha256(body).hexdigest()
    signature = key.sign(_MEANING + digest.encode("ascii")).hex()
    line = b'%s%s%s%s%s"}' % (body, _HASH, digest.encode(), _SIGNATURE, signature.encode())
    return Row(number, at, event, facts, personal, previous, digest, signature, line)


def split_line(line: bytes) -> Parts | None:
    """Body, stated hash and signature of a line without its end; None when it has not the form of a row."""
    at = line.rfind(_HASH)
    stated = at + len(_HASH)
    mark = stated + _HEX
    if at < 0 or line[mark : mark + len(_SIGNATURE)] != _SIGNATURE or not line.endswith(b'"}'):
        return None
    signature = line[mark + len(_SIGNATURE) : -2]
    return Parts(
        line[:at], line[stated:mark].decode("ascii", "replace"), signature.decode("ascii", "replace")
    )


def parse_row(line: bytes) -> Row | None:
    """The row of a line without its end, its hash checked; None when it is none."""
    parts = split_line(line)
    if parts is None or hashlib.sha256(parts.body).hexdigest() != parts.hash:
        return None
    try:
        said = parse_json(line.decode())
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


def is_row_signed(digest: str, signature: str, key: str) -> bool:
    """Whether the signature of a row's hash is by the owner of this public key, both hexadecimal."""
    return is_signed(key, signature, _MEANING + digest.encode("ascii", "replace"))


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
        said = parse_json(self.text.decode())
        return dict(said)


def keep(number: int, values: Mapping[str, Value]) -> Kept:
    """Values with a salt of their own and the hash of both."""
    salt, text = os.urandom(16).hex(), canonical(dict(values))
    return Kept(number, salt, hashlib.sha256(salt.encode() + text).hexdigest(), text)


def parse_kept(line: bytes) -> Kept | None:
    """From `Kept.line`; None when it is none."""
    found = _KEPT.fullmatch(line)
    return Kept(int(found[1]), found[2].decode(), found[3].decode(), found[4]) if found else None
