"""High dynamic range to ordinary pictures: PQ and HLG in BT.2020 colors -> sRGB.

Transfer functions and constants are those of ITU-R BT.2100-2; reference white (203 cd/m2) is that of BT.2408.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Image
from omokage.media.records import HLG, PQ

__all__ = ["HLG", "PQ", "tone_map"]

_WHITE_NITS = 203.0
_PEAK_NITS = 1000.0
_KNEE = 0.75  # below this share of reference white the picture is left as it is
# Linear BT.2020 -> linear BT.709 (ITU-R BT.2087).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_STEPS = 4096


def tone_map(rgb: NDArray[np.uint16], transfer: int) -> Image:
    """Map uint16 (H, W, 3) PQ or HLG values in BT.2020 colors to uint8 sRGB of the same shape.

    Light up to 0.75 of reference white stays as it is; brighter light is rolled off smoothly, so that 1000 cd/m2
    becomes white. Hue is kept: the curve works on the largest channel and scales the other two along.
    """
    linear = cv2.transform(_to_linear(transfer)[rgb], _TO_BT709)
    peak = linear.max(axis=2, keepdims=True)
    linear *= _roll_off(peak) / np.maximum(peak, 1e-6)
    np.clip(linear, 0, 1, out=linear)
    # The table is spaced by the square root, because sRGB is steep near black.
    image: Image = _to_srgb()[np.rint(np.sqrt(linear) * (_STEPS - 1)).astype(np.uint16)]
    return image


def _roll_off(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear up to the knee, then a hyperbola of slope 1 at the knee that reaches 1 at the peak."""
    span = 1 - _KNEE
    reach = (_PEAK_NITS / _WHITE_NITS - _KNEE) / span
    over = np.maximum(light - _KNEE, 0) / span
    curved = over * (1 + over / reach**2) / (1 + over)
    return np.asarray(np.minimum(light, _KNEE) + span * curved, dtype=np.float32)


@cache
def _to_linear(transfer: int) -> NDArray[np.float32]:
    """Table of 65536 signal values -> light as a share of reference white."""
    signal = np.linspace(0, 1, 65536)
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        nits = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        nits = _PEAK_NITS * scene**1.2  # system gamma per channel, close enough for skin and far cheaper
    return (nits / _WHITE_NITS).astype(np.float32)


@cache
def _to_srgb() -> Image:
    linear = np.linspace(0, 1, _STEPS) ** 2
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), dtype=np.uint8)
