"""Comparing a copy with fingerprints that were kept, also when it was cropped or mirrored.

Bits cannot be cropped, but pictures can be put back: for each crop that may have been made, the copy's thumbnails are
placed where they were and their border is continued, and its components are computed anew. The crop that fits the
picture part best is taken for the motion part, in which the copy is moved along the kept clip; its components are not
reduced to signs, so that weak ones count little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from omokage.trust.fingerprint import (
    MOTION_BITS,
    PICTURE_BITS,
    SIDE,
    STEPS_PER_S,
    Fingerprint,
    Plane,
    Sketch,
    changes,
    components,
    picture_components,
    signs,
    thumbnail,
)

ALIKE_BITS: Final = 70  # of 256 that may differ: specification of the trust layer, after ISCC
SAME_MOTION: Final = 0.68  # least agreement, from -1 to 1; docs/marks.md has the measurement
LEAST_STEPS: Final = 12  # a second and a half: of less, motion tells nothing
_OVERHANG: Final = STEPS_PER_S // 2  # how much of a copy may lie outside of what was kept
STILL: Final = 0.6  # grey levels of change, by component, below which nothing moves
_LATE_S: Final = (0.0, 0.5 / STEPS_PER_S)  # two ways to lay the steps, since a copy may begin between two
_KEPT: Final = (1.0, 0.95, 0.9, 0.8, 0.7)  # share of each side that a crop leaves
_KEPT_OF_ONE: Final = (0.9, 0.75, 0.5625)  # of one side only: from 16:9 or 1:1 to another shape


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike a copy is to something that was kept.

    bits: of the picture part that differ, of 256.  motion: agreement of the motion part, -1 to 1, or None where one of
    the two does not move or is too short.
    """

    bits: int
    motion: float | None

    @property
    def is_alike(self) -> bool:
        """Same scene, framing and person."""
        return self.bits <= ALIKE_BITS

    @property
    def is_same(self) -> bool:
        """Moves alike too: the same clip, or a part of it."""
        return self.is_alike and self.motion is not None and self.motion >= SAME_MOTION


@dataclass(frozen=True, slots=True)
class _Crop:
    """Where a copy lay in the whole, in shares of it."""

    left: float
    top: float
    width: float
    height: float
    is_mirrored: bool

    def undone(self, small: Plane) -> Plane:
        """A thumbnail of the copy, placed where it was, with its border continued."""
        small = np.ascontiguousarray(small[:, ::-1]) if self.is_mirrored else small
        if self.width == self.height == 1:
            return small
        scale = np.array([1 / self.width, 1 / self.height])
        # Pixel centers: x of the whole (in pixels) was at (x + 0.5 - 32 left) / width - 0.5 of the copy.
        shift = (0.5 - SIDE * np.array([self.left, self.top])) * scale - 0.5
        to_copy = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        placed = cv2.warpAffine(
            small, to_copy, (SIDE, SIDE),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return np.asarray(placed, np.float32)


class Copy:
    """What is compared: pictures are added as they are read, then it is asked for its likeness."""

    def __init__(self) -> None:
        self._sketches = [Sketch(late) for late in _LATE_S]
        self._steps: list[Plane] | None = None
        self._crops: list[_Crop] = []
        self._signs = np.zeros((0, PICTURE_BITS), np.int8)
        self._motions: dict[_Crop, list[Plane]] = {}

    def add(self, image: NDArray[np.uint8], time_s: float) -> None:
        """`image`: uint8 (H, W, 3); `time_s`: since the first one."""
        self.add_thumbnail(thumbnail(image), time_s)

    def add_thumbnail(self, small: Plane, time_s: float) -> None:
        """As `add`, of what `thumbnail` gave."""
        for sketch in self._sketches:
            sketch.add(small, time_s)

    @property
    def is_empty(self) -> bool:
        """No picture was added, as of a sound."""
        return not any(len(sketch.steps()) for sketch in self._sketches)

    def likeness(self, kept: Fingerprint) -> Likeness:
        """Raises ValueError when no picture was added."""
        if self._steps is None:
            self._prepare()
        differing = (self._signs != signs(kept.picture)).sum(axis=1)
        best = int(np.argmin(differing))
        motion = None
        if differing[best] <= ALIKE_BITS and kept.motion:
            motion = self._agreement(self._crops[best], signs(kept.motion).reshape(-1, MOTION_BITS))
        return Likeness(int(differing[best]), motion)

    def _prepare(self) -> None:
        self._steps = [steps for sketch in self._sketches if len(steps := sketch.steps())]
        if not self._steps:
            raise ValueError("no pictures were added")
        mean = self._steps[0].mean(axis=0)
        self._crops = list(_crops())
        values = np.stack([picture_components(crop.undone(mean)) for crop in self._crops])
        self._signs = np.where(values > 0, 1, -1).astype(np.int8)

    def _agreement(self, crop: _Crop, kept: NDArray[np.int8]) -> float | None:
        """The best over all places in time of the mean product of signs, weighted by how much the copy changes."""
        if crop not in self._motions:
            assert self._steps is not None
            self._motions[crop] = [_moving(steps, crop) for steps in self._steps]
        found = [
            _over_time(own, kept)
            for own in self._motions[crop]
            if len(own) >= LEAST_STEPS and np.abs(own).mean() >= STILL
        ]
        return max(found, default=None)


def best_of(copy: Copy, kept: Sequence[Fingerprint]) -> list[tuple[int, Likeness]]:
    """Index and likeness of those that are alike: those that move alike first, then by how much differs."""
    found = [(index, copy.likeness(one)) for index, one in enumerate(kept)]
    alike = [pair for pair in found if pair[1].is_alike]
    return sorted(alike, key=lambda pair: (not pair[1].is_same, -(pair[1].motion or 0.0), pair[1].bits))


def _moving(steps: Plane, crop: _Crop) -> Plane:
    return changes(components(np.stack([crop.undone(step) for step in steps])))


def _over_time(own: Plane, kept: NDArray[np.int8]) -> float:
    """The best agreement over all places in time where the shorter one lies in the other but for half a second."""
    strength = np.minimum(np.abs(own) / (np.abs(own).mean(axis=0) + 1e-6), 2.0)
    length = scipy.fft.next_fast_len(len(own) + len(kept), real=True)
    moving = scipy.fft.rfft(np.sign(own) * strength, length, axis=0)
    resting = scipy.fft.rfft(kept.astype(np.float32), length, axis=0)
    products = scipy.fft.irfft((moving.conj() * resting).sum(axis=1), length)
    late = np.arange(1 - len(own), len(kept))  # where the copy begins in the kept clip
    begins, ends = np.maximum(0, -late), np.minimum(len(own), len(kept) - late)
    weights = np.concatenate([[0.0], np.cumsum(strength.sum(axis=1))])
    is_long = ends - begins >= max(LEAST_STEPS, min(len(own), len(kept)) - _OVERHANG)
    agreements = products[late % length] / (weights[ends] - weights[begins] + 1e-9)
    return float(agreements[is_long].max(initial=-1.0))


def _crops() -> Iterator[_Crop]:
    for is_mirrored in (False, True):
        for kept in _KEPT:
            starts = dict.fromkeys((0.0, (1 - kept) / 2, 1 - kept))
            yield from (_Crop(left, top, kept, kept, is_mirrored) for left in starts for top in starts)
        for kept in _KEPT_OF_ONE:
            yield _Crop((1 - kept) / 2, 0.0, kept, 1.0, is_mirrored)
            yield _Crop(0.0, (1 - kept) / 2, 1.0, kept, is_mirrored)
