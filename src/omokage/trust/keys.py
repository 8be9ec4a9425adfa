"""The key with which this installation signs, and the one form of JSON that is signed.

MAIN: `signing_key`, `canonical`. The key is made on first use, readable by its owner alone, and never leaves its
folder; what leaves is its public half. Ed25519 (RFC 8032).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from omokage.errors import InputError, OutputError
from omokage.files import output_error
from omokage.home import data_home
from omokage.vault.secret_file import make_secret

KEY_FILE = "signing-key.pem"


def signing_key() -> Ed25519PrivateKey:
    """The key of this installation. Raises OutputError when it cannot be kept, InputError for a file that is no key."""
    path = data_home() / "keys" / KEY_FILE
    try:
        kept = path.read_bytes()
    except FileNotFoundError:
        return _made(path)
    except OSError as error:
        raise OutputError(
            f"the signing key {path} cannot be read ({error.strerror}); only its owner may use it"
        ) from error
    try:
        key = load_pem_private_key(kept, None)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no signing key; put back the saved one, for what it signed needs it"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is a key of another kind; an Ed25519 key is needed")
    return key


def known_name() -> str | None:
    """The public half of the key of this installation; None when there is none yet. Raises as `signing_key` does."""
    return public_name(signing_key()) if (data_home() / "keys" / KEY_FILE).exists() else None


def public_name(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def is_signed(by: str, signature: str, message: bytes) -> bool:
    """Whether the owner of a public half (`public_name`) signed `message`. Never raises for foreign input."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(by)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def canonical(record: Any) -> bytes:
    """The bytes that are hashed and signed: UTF-8, keys sorted, no blanks, no numbers with a point (after RFC 8785)."""
    return json.dumps(
        record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_refuse
    ).encode()


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be signed")


def _made(path: Path) -> Ed25519PrivateKey:
    written = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        make_secret(path, written)
    except OSError as error:
        raise output_error(path, error) from error
    return signing_key()
