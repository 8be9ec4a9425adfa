"""What the personal driver is told of a sound: one row of numbers a frame of 25 a second, whole or as it comes.

A row is the mean of the four hops about the frame's time: log-mel bands, logarithms of the general driver's viseme
weights, voicing.
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
    """Rows (T, `COLUMNS`) of a sound that comes in pieces, and the viseme weights (T, 10) at the same times."""

    def __init__(self) -> None:
        self._hops = np.tile(_silence(), (HOPS // 2, 1))  # before the first

    def push(self, articulation: Articulation, *, is_end: bool = False) -> tuple[Float, Float]:
        """The rows that are complete with these hops. is_end: silence follows, and all that is left comes out."""
        hops = np.concatenate([self._hops, _hops(articulation)])
        count = len(hops) // HOPS
        if is_end:
            count = -(-(len(hops) - HOPS // 2) // HOPS)
            hops = np.concatenate([hops, np.tile(_silence(), (HOPS, 1))])
        blocks = hops[: count * HOPS].reshape(count, HOPS, COLUMNS).mean(axis=1)
        self._hops = hops[count * HOPS :]
        rows, visemes = blocks.copy(), blocks[:, BANDS : BANDS + VISEMES]
        rows[:, BANDS : BANDS + VISEMES] = np.log(visemes + LEAST_WEIGHT)
        return rows, visemes


def sound_frames(articulation: Articulation) -> tuple[Float, Float]:
    """All rows (T, `COLUMNS`) and viseme weights (T, 10) of a sound."""
    return SoundFrames().push(articulation, is_end=True)


def silence() -> Float:
    """The row (`COLUMNS`,) of a frame in which nothing is heard."""
    row = _silence()
    row[BANDS : BANDS + VISEMES] = np.log(row[BANDS : BANDS + VISEMES] + LEAST_WEIGHT)
    return row


def _hops(articulation: Articulation) -> Float:
    return np.concatenate([articulation.bands, articulation.visemes, articulation.voicing[:, None]], axis=1)


def _silence() -> Float:
    hop = np.zeros(COLUMNS)
    hop[:BANDS] = -1
    hop[BANDS + REST] = 1
    return hop
