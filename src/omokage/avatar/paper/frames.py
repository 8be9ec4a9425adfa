"""Prepared frames of a recording on disk, as training reads them: blocks of plain arrays, mapped into memory.

A folder holds `block-00000.npy`, ... of `BLOCK` records each, every one written whole or not at all, and at last
`frames.json`. A record (see `record_type`) is what the networks are taught from: crop, matte and drawings of one frame,
uint8. Nothing is decoded while training; what is not looked at is not read.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.paper.window import CELL
from omokage.errors import InputError, OmokageError
from omokage.files import parse_json, result_folder, saving

UInt8 = NDArray[np.uint8]

FORMAT, VERSION = "omokage.frames", 1
BLOCK = 16  # records; 120 MB at 1024 pixels
INDEX = "frames.json"
# Of a store; each takes one of the files that a process may have open, often no more than 1024.
MAPPED_BLOCKS = 8


def crop_side(size: int) -> int:
    """Pixels of the crop over which a window of `size` pixels moves."""
    return size * 3 // 2


def record_type(size: int) -> np.dtype[np.void]:
    """One frame for pictures of S pixels.

    frame: its number in the recording.  image: (3S/2, 3S/2, 3).  alpha: (3S/16, 3S/16), mean opacity of the person in
    every cell of the crop.  render, uv: (S/4, S/4, 3), the drawn face mesh and its places in the texture, of the
    central S pixels.
    """
    crop, cells, drawing = crop_side(size), crop_side(size) // CELL, size // 4
    return np.dtype(
        [
            ("frame", "<i8"),
            ("image", "u1", (crop, crop, 3)),
            ("alpha", "u1", (cells, cells)),
            ("render", "u1", (drawing, drawing, 3)),
            ("uv", "u1", (drawing, drawing, 3)),
        ]
    )


def stored_bytes(size: int, frames: int) -> int:
    """How much room so many frames take on disk."""
    return record_type(size).itemsize * frames


def alpha_of_cells(alpha: NDArray[Any], size: int) -> UInt8:
    """Opacity of a crop, uint8 or [0, 1], of any resolution -> the mean of every cell, uint8 (3S/16, 3S/16)."""
    cells = crop_side(size) // CELL
    scale = 1.0 if alpha.dtype == np.uint8 else 255.0
    small = cv2.resize(np.asarray(alpha, np.float32) * scale, (cells, cells), interpolation=cv2.INTER_AREA)
    return np.asarray(np.rint(np.clip(small, 0, 255)), dtype=np.uint8)


@dataclass(frozen=True)
class FrameRecord:
    """The fields of one frame, see `record_type`."""

    frame: int
    image: UInt8
    alpha: UInt8
    render: UInt8
    uv: UInt8


class FrameWriter:
    """Appends records to a folder; one that was stopped goes on after its last whole block."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._block = np.empty(BLOCK, record_type(size))
        self._filled = 0
        with result_folder(folder):
            self._number = 0
            while _block_path(folder, self._number).is_file():
                self._number += 1

    @property
    def done(self) -> int:
        """How many records need not be made again."""
        return self._number * BLOCK

    def add(self, record: FrameRecord) -> None:
        """Append one. Raises OutputError when a block cannot be written."""
        place = self._block[self._filled : self._filled + 1]
        for name in self._block.dtype.names or ():
            place[name] = getattr(record, name)
        self._filled += 1
        if self._filled == BLOCK:
            self._flush()

    def finish(self, train: int, held_out: int) -> FrameStore:
        """Write what is left, and the index: the first `train` records are trained on, the last are held out."""
        if self._filled:
            self._flush()
        index = {
            "format": FORMAT,
            "version": VERSION,
            "size": self.size,
            "train": train,
            "held_out": held_out,
        }
        with saving(self.folder / INDEX) as part:
            part.write_text(json.dumps(index), encoding="utf-8")
        return FrameStore.open(self.folder)

    def _flush(self) -> None:
        with saving(_block_path(self.folder, self._number)) as part, part.open("wb") as file:
            np.lib.format.write_array(file, self._block[: self._filled], allow_pickle=False)
        self._number, self._filled = self._number + 1, 0


@dataclass(frozen=True)
class FrameStore:
    """Prepared frames for pictures of `size` pixels; rows below `train` are for training, the others are held out."""

    folder: Path
    size: int
    train: int
    held_out: int

    @classmethod
    def open(cls, folder: Path) -> FrameStore:
        """Open a finished folder. Raises InputError when it is none, damaged or of another version, OmokageError when
        this process may open no more files."""
        try:
            index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
            if (index["format"], index["version"]) != (FORMAT, VERSION):
                raise ValueError(f"it is of {index['format']} {index['version']}")
            store = cls(folder, int(index["size"]), int(index["train"]), int(index["held_out"]))
            numbers = range(-(-len(store) // BLOCK))
            if sum(len(_mapped(folder, store.size, number)) for number in numbers) < len(store):
                raise ValueError("frames are missing")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder} holds no prepared frames of this version ({error}); remove it to prepare them again"
            ) from error
        return store

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Whether all frames of the folder are there."""
        return (folder / INDEX).is_file()

    def __len__(self) -> int:
        return self.train + self.held_out

    def record(self, row: int) -> FrameRecord:
        """One frame; its arrays are views of the file."""
        block, place = self._block(row // BLOCK), row % BLOCK
        pictures = (block[name][place] for name in ("image", "alpha", "render", "uv"))
        return FrameRecord(int(block["frame"][place]), *pictures)

    @cached_property
    def _block(self) -> Callable[[int], NDArray[np.void]]:
        """A block by its number; the last few stay mapped."""
        return lru_cache(MAPPED_BLOCKS)(partial(_mapped, self.folder, self.size))


def _mapped(folder: Path, size: int, number: int) -> NDArray[np.void]:
    try:
        block: NDArray[np.void] = np.load(_block_path(folder, number), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise OmokageError(
            f"no more files can be opened, so {folder} cannot be read ({error.strerror}); allow more with 'ulimit -n' "
            "or close other programs"
        ) from error
    if block.dtype != record_type(size):
        raise ValueError(f"block {number} is of another size")
    return block


def _block_path(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.npy"
