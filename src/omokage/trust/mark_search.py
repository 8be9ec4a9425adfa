"""Finding a mark without knowing how the picture was scaled, cropped, moved or mirrored.

Frames are reduced, averaged and evened out (`Evidence`); the result is warped to two samples a chip for each candidate
scale and correlated with the synchronisation chips of the key, over all places at once, by FFT on the torus. What is
found is refined, the coded chips are summed up per bit and decoded. docs/marks.md has the theory and the acceptance
rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from omokage.trust.mark_code import decode
from omokage.trust.mark_pattern import Chips
from omokage.trust.mark_signal import (
    CHIPS_PER_SIDE,
    GRID,
    LEAST_CHIP_PX,
    SAMPLES,
    Plane,
    Spectrum,
    chip_px,
    evened,
    folded,
    reduced,
    soft_bits,
    whitened,
)

SCALES: Final = (0.5, 1.7)  # of the chips, against those of a picture that was not changed
LEAST_PX: Final = 1.7  # smaller chips do not survive any encoding
STEP: Final = 1.008
# The least a random picture, or a wrong key, never reached in the study of docs/marks.md, with room above it.
LEAST_PUBLIC_SCORE: Final = 7.3
LEAST_PRIVATE_SCORE: Final = 9.6
LEAST_SEARCHED_PX: Final = 128  # smaller pictures are not looked at
PRESENT: Final = 8.0  # z of the synchronisation from which a mark is there
CANDIDATES: Final = 3  # of each key, and of each pair
REFINEMENT: Final = ((0.004, "xy"), (0.002, "xy"), (0.001, "x"), (0.001, "y"), (0.0005, "x"), (0.0005, "y"))


@dataclass(frozen=True, eq=False, slots=True)
class Key:
    """A pattern to look for. share: of the mark's energy.  least_score: from which on a payload is believed."""

    chips: Chips
    share: float
    least_score: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the torus lies in the picture: chips are `chip_x`, `chip_y` px wide, chip (0, 0) is at sample `row`,
    `column`.  z: of the synchronisation of `keys` there, in standard deviations of all places."""

    chip_x: float
    chip_y: float
    is_mirrored: bool
    keys: tuple[Key, ...]
    row: float = 0.0
    column: float = 0.0
    z: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """The best that was found of one key's mark.

    payload: None unless the acceptance rule holds.  is_present: by the synchronisation alone, or by the payload.
    z: of the `Place`.  score: see `mark_code.Decoded`.
    """

    payload: int | None
    is_present: bool
    z: float
    score: float
    place: Place | None


class Evidence:
    """What frames have in common of luma without its local mean, by its local standard deviation, evened out."""

    def __init__(self) -> None:
        self.frame_count = 0
        self._sum: Plane | None = None

    def add(self, image: NDArray[np.uint8]) -> None:
        """`image`: uint8 (H, W, 3), of the same size each time."""
        normal = reduced(image)
        self._sum = normal if self._sum is None else self._sum + normal
        self.frame_count += 1

    def plane(self) -> Plane:
        """float32 (h, w)."""
        if self._sum is None:
            raise ValueError("no frames were added")
        return evened(self._sum / np.float32(self.frame_count))


def find(plane: Plane, keys: Sequence[Key]) -> list[Found]:
    """Look for the marks of several keys: in the picture as it is first, then at every scale, then mirrored.

    The first key is that of the public layer. It lies in the same place as a private one of the same render, so each of
    the others is first looked for together with it, then all alone, as when somebody has taken the public layer away.
    Ends when the public layer and a private one are read.
    """
    pairs: list[tuple[Key, ...]] = [(keys[0], key) for key in keys[1:]] or [(keys[0],)]
    alone: list[tuple[Key, ...]] = [(key,) for key in keys] if len(keys) > 1 else []
    as_is, scales = [chip_px(*plane.shape)], candidate_chips(plane)
    found = [Found(None, False, 0.0, 0.0, None)] * len(keys)
    for widths, teams, turns in (
        (as_is, pairs + alone, (False, True)),
        (scales, pairs, (False,)),
        (scales, pairs, (True,)),
        (scales, alone, (False, True)),
    ):
        again = _read_all(plane, keys, search(plane, widths, teams, turns))
        found = [max(pair, key=_certainty) for pair in zip(found, again, strict=True)]
        is_read = [one.payload is not None for one in found]
        if is_read[0] and (len(keys) == 1 or any(is_read[1:])):
            break
    return found


def _certainty(found: Found) -> tuple[bool, float]:
    return found.payload is not None, found.z


def candidate_chips(plane: NDArray[np.generic]) -> list[float]:
    """The widths of chips to try (px)."""
    unchanged = min(plane.shape) / CHIPS_PER_SIDE
    low = max(LEAST_PX, SCALES[0] * unchanged)
    high = max(SCALES[1] * unchanged, 1.5 * LEAST_CHIP_PX)
    count = int(np.ceil(np.log(high / low) / np.log(STEP))) + 1
    return [float(width) for width in np.geomspace(low, high, count)]


def search(
    plane: Plane, widths: Sequence[float], teams: Sequence[tuple[Key, ...]], turns: Sequence[bool]
) -> list[Place]:
    """The best places of each team of keys over all widths of chips; `turns`: straight (False), mirrored, or both."""
    found: list[list[Place]] = [[] for _ in teams]
    for width in widths if teams else ():
        spectrum = whitened(folded(plane, width, width))
        for places, team in zip(found, teams, strict=True):
            places += [_peak(spectrum, Place(width, width, is_mirrored, team)) for is_mirrored in turns]
    return [place for places in found for place in sorted(places, key=lambda place: -place.z)[:CANDIDATES]]


@lru_cache(maxsize=16)
def _sync_spectrum(keys: tuple[Key, ...], is_mirrored: bool) -> Spectrum:
    impulses = np.zeros((GRID, GRID), np.float32)
    for key in keys:
        impulses[::SAMPLES, ::SAMPLES] += np.sqrt(key.share) * np.where(
            key.chips.carries < 0, key.chips.sign, 0
        )
    if is_mirrored:
        impulses = np.roll(impulses[:, ::-1], 1, axis=1)  # column 0 stays where it is
    return np.asarray(np.conj(scipy.fft.rfft2(impulses)), np.complex64)


def _peak(spectrum: Spectrum, place: Place) -> Place:
    """Where on the torus the synchronisation of the place's keys fits best."""
    correlation = scipy.fft.irfft2(spectrum * _sync_spectrum(place.keys, place.is_mirrored), s=(GRID, GRID))
    row, column = divmod(int(correlation.argmax()), GRID)
    deviation = float(np.sqrt(np.mean(correlation**2))) + 1e-12
    row_part, higher = _vertex(correlation[[row - 1, row, (row + 1) % GRID], column])
    column_part, wider = _vertex(correlation[row, [column - 1, column, (column + 1) % GRID]])
    z = (float(correlation[row, column]) + higher + wider) / deviation
    return replace(place, row=row + row_part, column=column + column_part, z=z)


def _vertex(values: NDArray[np.floating]) -> tuple[float, float]:
    """The vertex of the parabola through three values: where, from the middle one, and how much higher than that."""
    before, here, after = (float(value) for value in values)
    bend = 2 * here - before - after
    if bend <= 0:
        return 0.0, 0.0
    return 0.5 * (after - before) / bend, 0.125 * (after - before) ** 2 / bend


def _read_all(plane: Plane, keys: Sequence[Key], places: Sequence[Place]) -> list[Found]:
    """What each key's mark says at the best of the places of which it is one."""
    found = {key: Found(None, False, 0.0, 0.0, None) for key in keys}
    tried: list[Place] = []
    for place in sorted(places, key=lambda place: -place.z):
        waiting = [key for key in place.keys if found[key].payload is None]
        if not waiting or any(_is_near(place, other) for other in tried):
            continue
        tried.append(place)
        refined = _refined(plane, place)
        for key in waiting:
            found[key] = max(
                found[key], _read(plane, key, refined), key=lambda one: (one.payload is not None, one.z)
            )
    return list(found.values())


def _is_near(place: Place, other: Place) -> bool:
    """Whether refining both would find the same; `other` is of as many keys or more."""
    apart = [abs(place.row - other.row), abs(place.column - other.column)]
    return (
        place.is_mirrored == other.is_mirrored
        and set(place.keys) <= set(other.keys)
        and abs(place.chip_x / other.chip_x - 1) < 1.5 * (STEP - 1)
        and max(min(distance, GRID - distance) for distance in apart) < 4
    )


def _refined(plane: Plane, place: Place) -> Place:
    """The place with the widths of chips found to 0.05 %, each on its own."""
    for span, axes in REFINEMENT:
        for change in (-span, span):
            tried = replace(
                place,
                chip_x=place.chip_x * (1 + change * ("x" in axes)),
                chip_y=place.chip_y * (1 + change * ("y" in axes)),
            )
            tried = _peak(whitened(folded(plane, tried.chip_x, tried.chip_y)), tried)
            place = max(place, tried, key=lambda one: one.z)
    return place


def _read(plane: Plane, key: Key, place: Place) -> Found:
    spectrum = whitened(folded(plane, place.chip_x, place.chip_y))
    soft = soft_bits(spectrum, key.chips, place.row, place.column, is_mirrored=place.is_mirrored)
    decoded = decode(soft, key.chips.payload_bits)
    is_read = decoded.is_intact and decoded.score >= key.least_score
    return Found(
        decoded.payload if is_read else None, is_read or place.z >= PRESENT, place.z, decoded.score, place
    )
