"""Puts a time stamp into a signed file: over the signature, into the room that the signature kept (C2PA 2.2, 10.3.2.5).

The C2PA library asks an authority over HTTP only. An authority on this machine needs neither a server nor a connection:
the stamp goes into the unprotected header `sigTst2`, which no hash covers, in place of as much padding, so nothing else
of the file moves. The library's reader is asked afterwards whether it holds (`origin`).
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from pathlib import Path
from typing import Final

from omokage.errors import InternalError
from omokage.trust.time_stamp import StampAuthority

_COSE_SIGN1: Final = (
    b"\xd2\x84"  # tag 18, an array of four: protected and unprotected header, payload, signature
)
_ONLY_PADDING: Final = b"\xa1\x63pad"
_NO_PAYLOAD: Final = b"\xf6"
_BYTES: Final = 2  # CBOR's major type (RFC 8949, 3.1)


def add_stamp(path: Path, media_type: str, manifest: bytes, authority: StampAuthority) -> None:
    """Stamp the signature of a file in place, whose manifest store has these bytes. Raises InternalError, OSError."""
    stamped = stamped_manifest(manifest, authority)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.find(manifest)
        if start < 0:
            raise InternalError(f"the manifest of {path} does not lie in it in one piece")
        end = start + len(manifest)
        content[start:end] = stamped
        if media_type == "image/png":  # the chunk's check sum, over its type and its content
            content[end : end + 4] = zlib.crc32(content[start - 4 : end]).to_bytes(4, "big")


def stamped_manifest(manifest: bytes, authority: StampAuthority) -> bytes:
    """A manifest store of the same length whose signature is stamped. Raises InternalError without room for that."""
    header = manifest.rfind(_ONLY_PADDING)
    protected = _protected(manifest, header)
    padding, end = _byte_string(manifest, header + len(_ONLY_PADDING))
    signature, _ = _byte_string(manifest, end + len(_NO_PAYLOAD))
    if any(padding) or manifest[end : end + 1] != _NO_PAYLOAD:
        raise InternalError("the manifest's signature is not as expected: something else in place of padding")
    # Sig_structure (RFC 9052, 4.4) of context CounterSignature, whose payload is the signature as CBOR.
    context = b"CounterSignature"
    message = (
        b"\x84"
        + bytes([0x60 + len(context)])
        + context
        + _cbor(protected)
        + _cbor(b"")
        + _cbor(_cbor(signature))
    )
    token = authority.stamp(hashlib.sha256(message).digest())
    stamp = b"\xa2\x67sigTst2\xa1\x69tstTokens\x81\xa1\x63val" + _cbor(token) + b"\x63pad"
    left = end - header - len(stamp) - 3  # 3: head of a byte string of 256 bytes to 65 kB
    if left < 256:
        raise InternalError("the manifest's signature has no room for a time stamp")
    return manifest[:header] + stamp + _cbor(bytes(left)) + manifest[end:]


def _protected(data: bytes, header: int) -> bytes:
    """The protected header, which ends where the other one begins. Raises InternalError."""
    at = data.rfind(_COSE_SIGN1, 0, max(header, 0))
    while at >= 0:  # the two bytes may also stand somewhere in a certificate
        start = at + len(_COSE_SIGN1)
        if data[start] >> 5 == _BYTES and (found := _byte_string(data, start))[1] == header:
            return found[0]
        at = data.rfind(_COSE_SIGN1, 0, at)
    raise InternalError("the manifest's signature is not as expected: no header of padding alone")


def _byte_string(data: bytes, at: int) -> tuple[bytes, int]:
    """The CBOR byte string there, and where it ends. Raises InternalError for anything else."""
    first = data[at] if at < len(data) else 0
    short = first & 31
    if first >> 5 != _BYTES or short > 25:
        raise InternalError("the manifest's signature is not as expected: no byte string")
    wide = max(0, short - 23)  # 24: one byte of length follows, 25: two
    start = at + 1 + wide
    size = int.from_bytes(data[at + 1 : start], "big") if wide else short
    return data[start : start + size], start + size


def _cbor(value: bytes) -> bytes:
    """A byte string of at most 65 kB."""
    size = len(value)
    if size < 24:
        return bytes([0x40 + size]) + value
    return (bytes([0x58, size]) if size < 256 else b"\x59" + size.to_bytes(2, "big")) + value
