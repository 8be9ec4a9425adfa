"""Official checkpoints are read here, in a restricted way: the one place where a pickle is opened.

They are PyTorch pickles of training programs. Nothing that such a file holds is run: only tensors and plain containers
are built, and stand-ins for the few kinds of objects that training programs save beside their weights.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omokage.errors import InputError

# What a saved state of NumPy's random numbers is made of (NumPy renamed its core), and parsed options of a command.
STAND_INS = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
)
# The first byte of a checkpoint that is no archive, as they were once written.
PROTOCOL = b"\x80"
# What reading a file that ends too early, or holds something else, stumbles over; what the restricted reader itself
# refuses is none of these.
STUMBLES = (EOFError, LookupError, OSError, RuntimeError, ValueError, struct.error)


@dataclass(frozen=True)
class KeyMap:
    """names: official key -> key of our state dict.  dropped: official keys that hold no weights of ours."""

    names: Mapping[str, str]
    dropped: frozenset[str]


class _Skipped:
    """Stands for objects of other libraries in a checkpoint, so that nothing of them is built: none is a weight."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_official(path: Path) -> Any:
    """What an official file holds; tensors are on the CPU, and stay on disk until they are used.

    Raises InputError when it is missing, damaged, or holds what cannot be read without running it.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give the file that the official release calls so")
    try:
        # Old files are no archives and cannot be mapped: they are read whole.
        with torch.serialization.safe_globals([(_Skipped, name) for name in STAND_INS]):
            return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # a foreign file may fail in any way
        raise InputError(_refusal(path, error)) from error


def _refusal(path: Path, error: Exception) -> str:
    """The sentence for a file that could not be read."""
    with path.open("rb") as file:
        is_checkpoint = zipfile.is_zipfile(path) or file.read(1) == PROTOCOL
    if is_checkpoint and not isinstance(error, STUMBLES):
        return (
            f"{path} holds more than tensors and cannot be read safely; "
            "use an unchanged file of the official release"
        )
    return f"{path} is damaged or no whole checkpoint; fetch the file of the official release again"


def require_state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """`content` of the file if it is a state dict, key -> tensor. Raises InputError otherwise."""
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds no state dict; use an unchanged file of the official release")
    foreign = [
        key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if foreign:
        raise InputError(
            f"{path} holds '{foreign[0]}', which is no tensor, among its weights; "
            "use an unchanged file of the official release"
        )
    return content
