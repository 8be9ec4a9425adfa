"""What the personal driver is told of a sound: one row of numbers a frame of 25 a second, whole or as it comes.

A row is the mean of the four hops about the frame's time: log-mel bands, logarithms of the general driver's viseme
weights, voicing; behind these `COLUMNS` what a speech encoder hears, where one listened.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omokage.speaking.driver import REST, Articulation
from omokage.speaking.hearing import BANDS, HOPS_PER_S
from omokage.tracking.visemes import NAMES

Float = NDArray[np.float64]

FRAME_RATE = 25
HOPS = HOPS_PER_S // FRAME_RATE
VISEMES = len(NAMES)
COLUMNS = BANDS + VISEMES + 1
PAST, FUTURE = 3, 1  # frames that are heard beside those of a motion: the mouth moves ahead of its sound
LEAST_WEIGHT = 0.02  # of a viseme, before its logarithm


class SoundFrames:
    """Rows (T, `COLUMNS` + M) of a sound that comes in pieces, and the viseme weights (T, 10) at the same times.

    encoded: M, the columns of a speech encoder.
    """

    def __init__(self, encoded: int = 0) -> None:
        self._silence = _silence(encoded)
        self._hops = np.tile(self._silence, (HOPS // 2, 1))  # before the first

    def push(self, articulation: Articulation, *, is_end: bool = False) -> tuple[Float, Float]:
        """The rows that are complete with these hops. is_end: silence follows, and all that is left comes out."""
        hops = np.concatenate([self._hops, _hops(articulation)])
        count = len(hops) // HOPS
        if is_end:
            count = -(-(len(hops) - HOPS // 2) // HOPS)
            hops = np.concatenate([hops, np.tile(self._silence, (HOPS, 1))])
        blocks = hops[: count * HOPS].reshape(count, HOPS, hops.shape[1]).mean(axis=1)
        self._hops = hops[count * HOPS :]
        rows, visemes = blocks.copy(), blocks[:, BANDS : BANDS + VISEMES]
        rows[:, BANDS : BANDS + VISEMES] = np.log(visemes + LEAST_WEIGHT)
        return rows, visemes


def sound_frames(articulation: Articulation) -> tuple[Float, Float]:
    """All rows (T, `COLUMNS` + M) and viseme weights (T, 10) of a sound."""
    return SoundFrames(articulation.encoded.shape[1]).push(articulation, is_end=True)


def silence(encoded: int = 0) -> Float:
    """The row (`COLUMNS` + M,) of a frame in which nothing is heard."""
    row = _silence(encoded)
    row[BANDS : BANDS + VISEMES] = np.log(row[BANDS : BANDS + VISEMES] + LEAST_WEIGHT)
    return row


def _hops(articulation: Articulation) -> Float:
    one = articulation
    return np.concatenate([one.bands, one.visemes, one.voicing[:, None], one.encoded], axis=1)


def _silence(encoded: int) -> Float:
    hop = np.zeros(COLUMNS + encoded)
    hop[:BANDS] = -1
    hop[BANDS + REST] = 1
    return hop
