"""The file of an avatar, of whatever kind: named arrays and a JSON header with a checksum (docs/avatar-format.md).

No pickle, nothing in it runs. The version is that of the layout: up to 4, and 7, of a compact avatar; from 5
on the header says which kind of avatar it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from omokage.errors import BundleError
from omokage.files import is_given_file, parse_json, refuse_device, saving

FORMAT = "omokage.avatar"
NEWEST_VERSION = 7
FIRST_WITH_KINDS = 5
COMPACT, STYLEAVATAR = "compact", "styleavatar"
MOST_BYTES = 8_000_000_000  # more than any network here; a file of zeros can be as long as it likes


@dataclass(frozen=True)
class Content:
    """What an avatar file holds: its version, kind, header and arrays."""

    version: int
    kind: str
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_content(path: Path, content: Content) -> None:
    """Write an avatar file, atomically. Raises OutputError when it cannot be written."""
    tensors = {name: tensor.contiguous() for name, tensor in content.tensors.items()}
    header = dict(content.header)
    if content.version >= FIRST_WITH_KINDS:
        header["kind"] = content.kind
    header["sha256"] = checksum(tensors, header)
    metadata = {"format": FORMAT, "version": str(content.version), "header": json.dumps(header)}
    with saving(path) as part:
        part.write_bytes(save(tensors, metadata))


def read_content(path: Path) -> Content:
    """Read an avatar file. Raises BundleError when it is missing, damaged, foreign or of a newer version."""
    refuse_device(path, BundleError, most_bytes=MOST_BYTES)
    if not is_given_file(path):
        raise BundleError(f"there is no avatar file {path}; make one with 'omokage create'")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BundleError(f"{path} is not an avatar file; make one with 'omokage create'")
            version = int(metadata["version"])
            if version > NEWEST_VERSION:
                raise BundleError(
                    f"{path} is an avatar of format {version}, this omokage reads up to {NEWEST_VERSION}; "
                    "update omokage"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = parse_json(metadata["header"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged or not an avatar file ({error}); use a copy") from error
    if not isinstance(header, dict) or header.get("sha256") != checksum(tensors, header):
        raise BundleError(f"{path} is damaged: its contents do not match its checksum; use a copy")
    kind = str(header.get("kind")) if version >= FIRST_WITH_KINDS else COMPACT
    return Content(version, kind, header, tensors)


def is_trained_here(path: Path) -> bool:
    """Whether a file says that it is an avatar at the paper's scale of 'omokage create'; its arrays are not read.

    False for what cannot be read: whoever reads it says what is wrong with it.
    """
    try:
        refuse_device(path, BundleError)
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("header", "{}"))
    except (SafetensorError, OSError, ValueError, BundleError):
        return False
    return isinstance(header, dict) and header.get("kind") == STYLEAVATAR and "provenance" in header


def checksum(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 over the header and over names, shapes and bytes of all tensors."""
    said = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
