"""Sound as cells of 20 ms and 100 Hz: where each chip of a sound's mark lies, and what is seen of it.

The torus of 192 x 192 chips of `mark_pattern`, row by row, is 768 slots of 20 ms by 48 bands between 275 and 5075 Hz: a
period of 15.36 s, in which every chip occurs once. The band is what telephones, narrow encodings and voices share, and
its borders lie between the bins of a window of 20 ms.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

BANDS: Final = 48
SLOTS: Final = 768
SLOTS_A_SECOND: Final = 50
WINDOW_S: Final = 0.02
PHASES: Final = 4  # of a slot: the detector looks every 5 ms

_LOWEST_HZ = 275.0
_BAND_HZ = 100.0
_FLOOR = 1e-8  # of the mean power; what lies below is silence
_LIMIT = 2.0  # in standard deviations; a chip moves a cell by much less
_ROWS_AT_ONCE = 4096
_SMOOTH = (3, 1 / 20)  # of the spectrum that is made flat: bins over bands, a share of those over time

Float32 = NDArray[np.float32]


def edges_hz() -> NDArray[np.float64]:
    """The borders of the bands, (49,)."""
    return np.asarray(_LOWEST_HZ + _BAND_HZ * np.arange(BANDS + 1), np.float64)


@lru_cache(maxsize=8)
def bands_of_bins(window: int, rate: int) -> Float32:
    """How much of each bin of a spectrum belongs to each band, float32 (window // 2 + 1, 48)."""
    width = rate / window
    lower = (np.arange(window // 2 + 1)[:, None] - 0.5) * width
    edges = edges_hz()
    shared = np.minimum(lower + width, edges[1:]) - np.maximum(lower, edges[:-1])
    return np.asarray(np.clip(shared / width, 0, 1), np.float32)


def levels(samples: Float32, rate: int) -> Float32:
    """The level of each band every 5 ms (dB), float32 (rows, 48); (0, 48) for less than a window.

    samples: float32 (S, channels), of which the powers are added, so that no phase between them hides the mark.
    """
    window = round(WINDOW_S * rate)
    step = rate / (SLOTS_A_SECOND * PHASES)
    starts = np.round(np.arange(max(0, int((len(samples) - window) / step) + 1)) * step).astype(np.intp)
    bands, hann = bands_of_bins(window, rate), np.hanning(window + 1)[:-1].astype(np.float32)
    power = np.zeros((len(starts), BANDS), np.float32)
    for channel in np.ascontiguousarray(samples.T):
        views = np.lib.stride_tricks.sliding_window_view(channel, window) if len(starts) else None
        for first in range(0, len(starts), _ROWS_AT_ONCE):
            assert views is not None
            spectrum = scipy.fft.rfft(views[starts[first : first + _ROWS_AT_ONCE]] * hann, axis=1)
            power[first : first + _ROWS_AT_ONCE] += (spectrum.real**2 + spectrum.imag**2) @ bands
    floor = _FLOOR * float(power.sum(axis=1).mean()) if len(power) else 0.0
    return np.asarray(10 * np.log10(power + floor + 1e-20), np.float32)


def folded(rows: Float32, phase: int) -> Float32:
    """What the rows of `levels` tell of chips when slots begin at row `phase`: float32 (768, 48), period on period.

    A cell's level without that of its neighbours, limited, with a flat spectrum over time and bands: the mark's own is
    flat, and what voices and noises repeat is not.
    """
    count = (len(rows) - phase) // PHASES
    if count < 2 * PHASES:
        return np.zeros((SLOTS, BANDS), np.float32)
    cells = rows[phase : phase + count * PHASES].reshape(count, PHASES, BANDS).mean(axis=1)
    lowest = float(rows.min())
    heard = (cells > lowest + 0.5).astype(np.float32)
    cells = (cells - lowest) * heard
    around = cv2.blur(cells, (3, 3)) / np.maximum(cv2.blur(heard, (3, 3)), 1e-3)
    rest = _limited((cells - around) * heard)
    spectrum = scipy.fft.rfft2(rest)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    over_bands, over_time = _SMOOTH
    smooth = cv2.blur(power, (over_bands, max(3, round(over_time * count))))
    flat = _limited(scipy.fft.irfft2(spectrum / np.sqrt(smooth + 1e-9), s=rest.shape))
    whole = np.zeros((-(-count // SLOTS) * SLOTS, BANDS), np.float32)
    whole[:count] = flat
    return np.asarray(whole.reshape(-1, SLOTS, BANDS).sum(axis=0), np.float32)


def _limited(values: NDArray[np.floating]) -> Float32:
    spread = float(np.sqrt(np.mean(values**2)))
    return np.asarray(np.clip(values / (spread + 1e-12), -_LIMIT, _LIMIT), np.float32)
