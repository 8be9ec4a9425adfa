"""The file of an avatar, of whatever kind: named arrays and a JSON header with a checksum (docs/avatar-format.md).

No pickle, nothing in it runs. The version is that of the layout: up to 4, 7 and 8 of a compact avatar; from 5
on the header says which kind of avatar it is. On the disk all that is sealed (`vault.sealed`) with a key that only this
installation has; files that are not, of earlier versions or exported so, are read too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from omokage.errors import BundleError, ConsentError, InputError
from omokage.files import is_given_file, parse_json, refuse_device, saving
from omokage.vault.avatar_keys import AvatarKey, find_record, new_key
from omokage.vault.sealed import (
    VERSION,
    Seal,
    SealBroken,
    WrongPassphrase,
    opened,
    sealed,
    unwrapped_by,
    wrapped_by,
)

FORMAT = "omokage.avatar"
NEWEST_VERSION = 8
FIRST_WITH_KINDS = 5
COMPACT, STYLEAVATAR = "compact", "styleavatar"
MOST_BYTES = 8_000_000_000  # more than any network here; a file of zeros can be as long as it likes


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """What an avatar file holds: its version, kind, header and arrays."""

    version: int
    kind: str
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def media(self) -> tuple[str, ...]:
        """SHA-256 of the recordings that it was made of, as the header tells them, sorted; none of an imported one."""
        places = (("provenance", "recording_sha256"), ("speech", "report", "recording_sha256"))
        found = {str(value) for place in places if (value := _at(self.header, *place))}
        return tuple(sorted(found))

    def serialized(self) -> bytes:
        """As it is when nothing is sealed: safetensors."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        header = dict(self.header)
        if self.version >= FIRST_WITH_KINDS:
            header["kind"] = self.kind
        header["sha256"] = checksum(tensors, header)
        metadata = {"format": FORMAT, "version": str(self.version), "header": json.dumps(header)}
        data: bytes = save(tensors, metadata)
        return data

    def under_passphrase(self, passphrase: str) -> Iterator[bytes]:
        """The pieces of a sealed file that opens on any machine with a passphrase."""
        secret = secrets.token_bytes(32)
        return sealed(self.serialized(), Seal(wrapped=wrapped_by(passphrase, secret)), secret)


def write_content(path: Path, content: Content, *, in_place_of: Path | None = None) -> None:
    """Write an avatar file, sealed and atomically. Raises OutputError when it cannot be written, or no key be kept.

    in_place_of: the file whose name and key it will get; by default that at `path`.
    """
    key = _key_for(in_place_of or path, content.media)
    with saving(path) as part, part.open("wb") as file:
        file.writelines(sealed(content.serialized(), Seal(key.id), key.secret))


def read_content(path: Path, *, passphrase: str | None = None) -> Content:
    """Read an avatar file, sealed or not. passphrase: of one that travels.

    Raises BundleError when it is missing, damaged, foreign, of a newer version or sealed with a key that is not here,
    ConsentError when its key was destroyed or it tells of another recording than its key, InputError for a wrong
    passphrase or a key that is damaged.
    """
    refuse_device(path, BundleError, most_bytes=MOST_BYTES)
    if not is_given_file(path):
        raise BundleError(f"there is no avatar file {path}; make one with 'omokage create'")
    try:
        with path.open("rb") as file:
            seal = Seal.read(file)
            if seal is None:
                content = _plain_content(path)
                log.warning(
                    "%s is not encrypted; 'omokage import avatar' makes an encrypted copy of it", path
                )
                return content
            key = _key_of(path, seal, passphrase)
            content = _content_of(path, b"".join(opened(file, seal, key.secret)))
    except (SealBroken, OSError) as error:
        raise BundleError(f"{path} is damaged or not an avatar file ({error}); use a copy") from error
    if seal.key and content.media != key.media:
        raise ConsentError(
            f"{path} says that it was made of recording {_short(content.media)}, but its key was made for "
            f"{_short(key.media)}: it was altered, and nobody's consent is known for it; use a copy"
        )
    return content


def is_trained_here(path: Path) -> bool:
    """Whether a file says that it is an avatar at the paper's scale of 'omokage create'; its arrays are not read.

    False for what cannot be read: whoever reads it says what is wrong with it.
    """
    try:
        refuse_device(path, BundleError)
        with path.open("rb") as file:
            seal = Seal.read(file)
            if seal is None:
                with safe_open(path, framework="pt") as plain:
                    said = plain.metadata() or {}
            else:
                said = _leading_metadata(opened(file, seal, _key_of(path, seal, None).secret))
        header = parse_json(said.get("header", "{}"))
    except (SafetensorError, OSError, ValueError, InputError):
        return False
    return isinstance(header, dict) and header.get("kind") == STYLEAVATAR and "provenance" in header


def plain_media(path: Path) -> tuple[str, ...] | None:
    """`Content.media` of an avatar file that is not sealed, as the file says; its arrays are not read.

    None for a file that is none, or cannot be read.
    """
    try:
        refuse_device(path, BundleError)
        with safe_open(path, framework="pt") as plain:
            said = plain.metadata() or {}
        if said.get("format") != FORMAT:
            return None
        return Content(0, "", parse_json(said.get("header", "{}")), {}).media
    except (SafetensorError, OSError, ValueError, InputError):
        return None


def _key_for(path: Path, media: tuple[str, ...]) -> AvatarKey:
    """The key of the avatar that is written anew, or one of its own for another."""
    try:
        with path.open("rb") as file:
            seal = Seal.read(file)
        record = find_record(seal.key) if seal else None
        if record is not None and record.wrapped and record.media == media:
            return record.unwrapped()
    except (OSError, SealBroken, InputError):
        pass  # what cannot be read is replaced
    return new_key(media)


def _key_of(path: Path, seal: Seal, passphrase: str | None) -> AvatarKey:
    if seal.version > VERSION:
        raise BundleError(
            f"{path} is sealed in format {seal.version}, this omokage reads up to {VERSION}; update omokage"
        )
    if seal.wrapped is not None:
        if passphrase is None:
            raise BundleError(
                f"{path} is under a passphrase, as it travels; take it in with 'omokage import avatar {path.name} -o "
                "NEW.avatar'"
            )
        try:
            return AvatarKey("", unwrapped_by(passphrase, seal.wrapped), ())
        except WrongPassphrase as error:
            raise InputError(
                f"that is not the passphrase that {path} was exported with; try again"
            ) from error
    record = find_record(seal.key)
    if record is None:
        raise BundleError(
            f"{path} is encrypted, and its key {seal.key[:12]} is not here; bring the avatar over with 'omokage "
            "export' where it was made, or set OMOKAGE_HOME to the folder that was in use there"
        )
    if record.erasure is not None:
        raise ConsentError(
            f"{path} cannot be opened any more: the consent {record.erasure.consent[:12]} was withdrawn on "
            f"{record.erasure.withdrawn}, and the avatar's key was destroyed with it"
        )
    return record.unwrapped()


def _plain_content(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt") as file:
            version = _version(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        return _checked(path, version, metadata, tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged or not an avatar file ({error}); use a copy") from error


def _content_of(path: Path, data: bytes) -> Content:
    try:
        metadata = _leading_metadata(iter([data]))
        version = _version(path, metadata)
        return _checked(path, version, metadata, load(data))
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged or not an avatar file ({error}); use a copy") from error


def _version(path: Path, metadata: Mapping[str, str]) -> int:
    if metadata.get("format") != FORMAT:
        raise BundleError(f"{path} is not an avatar file; make one with 'omokage create'")
    version = int(metadata["version"])
    if version > NEWEST_VERSION:
        raise BundleError(
            f"{path} is an avatar of format {version}, this omokage reads up to {NEWEST_VERSION}; "
            "update omokage"
        )
    return version


def _checked(
    path: Path, version: int, metadata: Mapping[str, str], tensors: dict[str, torch.Tensor]
) -> Content:
    header = parse_json(metadata["header"])
    if not isinstance(header, dict) or header.get("sha256") != checksum(tensors, header):
        raise BundleError(f"{path} is damaged: its contents do not match its checksum; use a copy")
    kind = str(header.get("kind")) if version >= FIRST_WITH_KINDS else COMPACT
    return Content(version, kind, header, tensors)


def _leading_metadata(pieces: Iterator[bytes]) -> dict[str, str]:
    """The metadata of safetensors, of which no more is taken than is needed. Raises ValueError."""
    data = b""
    for piece in pieces:
        data += piece
        end = 8 + int.from_bytes(data[:8], "little")
        if len(data) >= max(end, 9):
            said = parse_json(data[8:end].decode())
            return dict(said.get("__metadata__", {})) if isinstance(said, dict) else {}
    raise ValueError("it ends in its header")


def _at(values: Any, *names: str) -> Any:
    """What lies at a place in nested JSON objects; None where there is no such place."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _short(media: tuple[str, ...]) -> str:
    return ", ".join(digest[:12] for digest in media) or "nobody"


def checksum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 over the header and over names, shapes and bytes of all tensors."""
    said = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
