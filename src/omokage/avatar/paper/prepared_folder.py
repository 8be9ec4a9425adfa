"""A dataset folder of the official preprocessing: image/, render/, uv/ and back/ with one PNG a frame (spec 1.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from omokage.avatar.paper.frames import FrameRecord, alpha_of_cells, crop_side
from omokage.errors import InputError
from omokage.media.image import read_images

FOLDERS = ("image", "render", "uv", "back")
_AGAIN = "prepare it again with the official preprocessing"
_NUMBER = re.compile(r"[0-9]{6,}")
# Pictures under which someone may have kept frames; what else lies in a folder is passed over.
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class PreparedFolder:
    """A folder of `count` frames, numbered from 000001, for pictures of `size` pixels."""

    folder: Path
    size: int
    count: int

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether it looks like one: some of the four folders are there."""
        return any((folder / name).is_dir() for name in FOLDERS)

    @classmethod
    def open(cls, folder: Path, size: int) -> PreparedFolder:
        """Check that every frame has its four files. Raises InputError where one is missing or misnumbered."""
        missing = [name for name in FOLDERS if not (folder / name).is_dir()]
        if missing:
            raise InputError(
                f"{folder} lacks the folder '{missing[0]}'; a prepared dataset has {', '.join(FOLDERS)}, so {_AGAIN}"
            )
        numbers = {name: _numbers(folder / name) for name in FOLDERS}
        everything = sorted(set().union(*numbers.values()))
        if not everything:
            raise InputError(f"{folder} holds no frames; {_AGAIN}")
        for number in everything:
            lacking = [name for name in FOLDERS if number not in numbers[name]]
            if lacking:
                raise InputError(
                    f"{folder / lacking[0]} lacks {number:06d}.png, which other folders beside it have; {_AGAIN}"
                )
        if everything[0] == 0:
            raise InputError(
                f"{folder} counts its frames from 000000, and they must be numbered from 000001; "
                f"give the files of {', '.join(FOLDERS)} the next number each, or {_AGAIN}"
            )
        if everything != list(range(1, len(everything) + 1)):
            gap = next(i for i, number in enumerate(everything, 1) if i != number)
            raise InputError(
                f"{folder} has no frame {gap:06d}, though it goes up to {everything[-1]:06d}; frames must be numbered "
                f"from 000001 without a gap, so {_AGAIN}"
            )
        return cls(folder, size, len(everything))

    def records(self, numbers: Iterable[int] | None = None) -> Iterator[FrameRecord]:
        """The frames of these numbers, by default all. Raises InputError for a picture of another size."""
        crop, drawing = crop_side(self.size), self.size // 4
        wanted = range(1, self.count + 1) if numbers is None else list(numbers)
        pictures = read_images(self._path(kind, number) for number in wanted for kind in FOLDERS)
        for number in wanted:
            image, render, uv, back = (
                self._checked(self._path(kind, number), next(pictures), side)
                for kind, side in zip(FOLDERS, (crop, drawing, drawing, crop), strict=True)
            )
            # The folder "back" holds the opacity of the person, grey.
            alpha = alpha_of_cells(back[..., 0], self.size)
            yield FrameRecord(frame=number, image=image, alpha=alpha, render=render, uv=uv)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:06d}.png"

    def _checked(self, path: Path, picture: NDArray[Any], side: int) -> NDArray[Any]:
        if picture.shape[:2] != (side, side):
            height, width = picture.shape[:2]
            raise InputError(
                f"{path} is {width}x{height} pixels, and {side}x{side} are needed for pictures of {self.size}; "
                f"prepare it with a crop of {crop_side(self.size)} pixels"
            )
        return picture


def _numbers(folder: Path) -> set[int]:
    """Numbers of the PNG files. Raises InputError for pictures that look like frames and would be passed over."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    names = [path.stem for path in pictures if path.suffix == ".png"]
    others = [path for path in pictures if path.suffix != ".png" and path.stem not in names]
    strange = [name for name in names if not _is_number(name)]
    if strange:
        raise InputError(
            f"{folder} holds '{strange[0]}.png', whose name is not a frame's number such as 000001, of six digits; "
            "rename or remove it"
        )
    foreign = [path.name for path in others if not names or _NUMBER.fullmatch(path.stem)]
    if foreign:
        raise InputError(
            f"{folder} holds '{foreign[0]}', and frames are read from files such as 000001.png; rename it if it is a "
            f"PNG picture, and if it is of another format, which may lose places of the face, {_AGAIN}"
        )
    return {int(name) for name in names}


def _is_number(name: str) -> bool:
    """Whether it is how the official preprocessing would write that number: six digits, and more from a million on."""
    return bool(_NUMBER.fullmatch(name)) and f"{int(name):06d}" == name
