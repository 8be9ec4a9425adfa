"""What a mark looks like in a picture: chips as soft dots, and pictures reduced to what tells of chips.

`upsampled` draws chips. The way back: `reduced` takes a picture's own structure away, `evened` what an average of many
still has of it in one place, `folded` lays it on the torus at two samples a chip, `whitened` flattens its spectrum and
matches it with a dot, `soft_bits` sums up each bit's chips.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from omokage.trust.mark_pattern import TORUS, Chips

CHIPS_PER_SIDE: Final = 96
LEAST_CHIP_PX: Final = 3.0
SIDE_PX: Final = 512  # larger frames are made smaller: a chip keeps 5.3 px
SAMPLES: Final = 2  # a chip
GRID: Final = TORUS * SAMPLES
BLOCK_PX: Final = 32  # in which a picture's own structure is evened out
_POWER_FLOOR: Final = 2.0  # in mean powers of a component: weaker ones are noise, and stay as weak
_SPREAD_FLOOR: Final = 0.15  # of the usual

Plane = NDArray[np.float32]
Spectrum = NDArray[np.complex64]


def chip_px(width: int, height: int) -> float:
    """The width of a chip in a picture that is marked (px)."""
    return max(LEAST_CHIP_PX, min(width, height) / CHIPS_PER_SIDE)


def upsampled(chips: Plane, chip: float, width: int, height: int) -> Plane:
    """Chips as soft dots without their local mean, float32 (height, width): chip (0, 0) lies in the first `chip` px."""
    to_chip = np.array(
        [[1 / chip, 0, 0.5 / chip + 1.5], [0, 1 / chip, 0.5 / chip + 1.5]]
    )  # 2 chips of padding
    dots = cv2.warpAffine(
        np.pad(chips, 2, mode="wrap"), to_chip, (width, height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    return np.asarray(dots - cv2.GaussianBlur(dots, (0, 0), 1.25 * chip), np.float32)


def luma(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3 or 4) -> (H, W)."""
    code = cv2.COLOR_RGBA2GRAY if image.shape[2] == 4 else cv2.COLOR_RGB2GRAY
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def reduced(image: NDArray[np.uint8]) -> Plane:
    """Luma without its local mean, by its local deviation, at most `SIDE_PX` on its short side; within -1.5..1.5."""
    grey = luma(image)
    height, width = grey.shape
    shrink = SIDE_PX / min(height, width)
    if shrink < 1:
        size = round(width * shrink), round(height * shrink)
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    chip = chip_px(*grey.shape)
    values = grey.astype(np.float32)
    rest = values - cv2.GaussianBlur(values, (0, 0), chip)
    window = round(2 * chip)
    power = cv2.blur(rest * rest, (window, window))
    spread = np.sqrt(np.maximum(power, 0)) + 0.2  # rounding makes flat parts slightly negative
    return np.asarray(np.clip(rest / spread, -1.5, 1.5), np.float32)


def evened(plane: Plane) -> Plane:
    """An average of reduced pictures with every place and direction equally strong, float32 (h, w).

    Edges, hair and cloth are strong in few components of a small piece of the picture, a mark is weak in all of them.
    So the components of each windowed piece are divided by their magnitude above a floor, and the sum of the pieces by
    its local deviation. docs/research/marks.md has what it gains.
    """
    height, width = plane.shape
    half = BLOCK_PX // 2
    padded = np.pad(plane, ((half, 2 * BLOCK_PX), (half, 2 * BLOCK_PX)), mode="reflect")
    ramp = np.sin(np.pi / BLOCK_PX * np.arange(BLOCK_PX, dtype=np.float32))
    window = np.outer(ramp, ramp).astype(np.float32)  # its squares, half a block apart, add up to 1
    rows, columns = (-(-side // BLOCK_PX) + 1 for side in (height, width))
    places = [
        (slice(top, top + rows * BLOCK_PX), slice(left, left + columns * BLOCK_PX))
        for top in (0, half)
        for left in (0, half)
    ]
    spectra = [
        scipy.fft.rfft2(padded[place].reshape(rows, BLOCK_PX, columns, BLOCK_PX).swapaxes(1, 2) * window)
        for place in places
    ]
    powers = [spectrum.real**2 + spectrum.imag**2 for spectrum in spectra]
    floor = _POWER_FLOOR * float(np.mean(powers)) + 1e-12
    total = np.zeros_like(padded)
    for place, spectrum, power in zip(places, spectra, powers, strict=True):
        pieces = (
            scipy.fft.irfft2(spectrum * np.sqrt(floor / (power + floor)), s=(BLOCK_PX, BLOCK_PX)) * window
        )
        total[place] += pieces.swapaxes(1, 2).reshape(rows * BLOCK_PX, columns * BLOCK_PX)
    even = total[half : half + height, half : half + width]
    around = round(4 * chip_px(height, width))
    spread = np.sqrt(np.maximum(cv2.blur(even * even, (around, around)), 0))
    return np.asarray(even / (spread + _SPREAD_FLOOR * even.std() + 1e-12), np.float32)


def folded(plane: Plane, chip_x: float, chip_y: float) -> Plane:
    """A reduced picture at two samples a chip, laid on the torus: float32 (384, 384)."""
    height, width = plane.shape
    rows, columns = (
        int(np.ceil(side * SAMPLES / chip)) for side, chip in ((height, chip_y), (width, chip_x))
    )
    step_x, step_y = chip_x / SAMPLES, chip_y / SAMPLES
    # Sample 2 i lies at the center of chip i of an unmoved picture.
    to_plane = np.array([[step_x, 0, step_x - 0.5], [0, step_y, step_y - 0.5]])
    sampled = cv2.warpAffine(
        plane,
        to_plane,
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
    torus = np.zeros((-(-rows // GRID) * GRID, -(-columns // GRID) * GRID), np.float32)
    torus[:rows, :columns] = sampled
    return np.asarray(torus.reshape(-1, GRID, torus.shape[1] // GRID, GRID).sum(axis=(0, 2)), np.float32)


def whitened(torus: Plane) -> Spectrum:
    """The spectrum by its own smoothed magnitude, times that of a dot: what a picture's structure hides least."""
    spectrum = scipy.fft.rfft2(torus)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return np.asarray(spectrum * (_dot_spectrum() / np.sqrt(cv2.blur(power, (9, 9)) + 1e-9)), np.complex64)


@lru_cache(maxsize=1)
def _dot_spectrum() -> Plane:
    one = np.zeros((32, 32), np.float32)
    one[16, 16] = 1
    placed = np.zeros((GRID, GRID), np.float32)
    placed[:64, :64] = upsampled(one, float(SAMPLES), 64, 64)
    return np.asarray(np.abs(scipy.fft.rfft2(placed)), np.float32)


def soft_bits(
    spectrum: Spectrum, chips: Chips, row: float, column: float, *, is_mirrored: bool = False
) -> NDArray[np.float64]:
    """The sums of the chips of each bit of the code word, with chip (0, 0) of the torus at that sample."""
    turns = np.exp(2j * np.pi * row * scipy.fft.fftfreq(GRID))[:, None]
    moved = spectrum * (turns * np.exp(2j * np.pi * column * scipy.fft.rfftfreq(GRID))).astype(np.complex64)
    plane = scipy.fft.irfft2(moved, s=(GRID, GRID))
    if is_mirrored:
        plane = np.roll(plane[:, ::-1], 1, axis=1)  # column 0 stays where it is
    values = plane[::SAMPLES, ::SAMPLES] * chips.sign
    carried = chips.carries >= 0
    return np.asarray(np.bincount(chips.carries[carried], weights=values[carried]), np.float64)
