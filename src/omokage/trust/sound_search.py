"""Finding a sound's mark without knowing where the sound was cut.

`levels` are laid on the torus at four phases of a slot and correlated with the synchronisation chips of the keys over
all 768 slots, by FFT; at the best places the coded chips are summed up per bit and decoded. The acceptance rule is that
of pictures (docs/marks.md): the code is the same, and so is what noise makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from omokage.trust.mark_code import decode
from omokage.trust.mark_search import PRESENT, Key
from omokage.trust.sound_signal import BANDS, PHASES, SLOTS, Float32, folded, levels

CANDIDATES: Final = 3  # of each key, and of each pair
LEAST_S: Final = 1.0  # in less nothing is looked for


@dataclass(frozen=True, slots=True)
class SoundFound:
    """The best that was found of one key's mark.

    payload: None unless the acceptance rule holds.  is_present: by the synchronisation alone, or by the payload.
    z: of the synchronisation, in standard deviations of all places.  score: see `mark_code.Decoded`.
    """

    payload: int | None = None
    is_present: bool = False
    z: float = 0.0
    score: float = 0.0


def find_in_sound(samples: Float32, rate: int, keys: Sequence[Key]) -> list[SoundFound]:
    """Look for the marks of several keys in float32 (S, channels) at `rate` Hz.

    The first key is that of the public layer, which lies where a private one of the same render lies: each of the
    others is looked for together with it, then every one alone.
    """
    if len(samples) <= LEAST_S * rate:
        return [SoundFound() for _ in keys]
    rows = levels(samples, rate)
    return find_in_planes([folded(rows, phase) for phase in range(PHASES)], keys)


def find_in_planes(planes: Sequence[Float32], keys: Sequence[Key]) -> list[SoundFound]:
    """The same of what `sound_signal.folded` gives for each phase."""
    found = [SoundFound() for _ in keys]
    seen = [_correlation(planes, key) for key in keys]
    for team in _teams(len(keys)):
        together = np.sum([np.sqrt(keys[index].share) * seen[index] for index in team], axis=0)
        for place, z in _peaks(together):
            for index in team:
                one = _read(planes[place % PHASES], keys[index], place // PHASES, z)
                found[index] = max(found[index], one, key=_certainty)
    return found


def _certainty(found: SoundFound) -> tuple[bool, float]:
    return found.payload is not None, found.z


def _teams(count: int) -> list[tuple[int, ...]]:
    pairs: list[tuple[int, ...]] = [(0, index) for index in range(1, count)]
    return pairs + [(index,) for index in range(count)]


def _correlation(planes: Sequence[Float32], key: Key) -> NDArray[np.float32]:
    """How well the synchronisation fits at each place, float32 (768 * 4,): slot by slot, and its phases."""
    sync = np.where(key.chips.carries < 0, key.chips.sign, 0).reshape(SLOTS, BANDS)
    pattern = np.conj(scipy.fft.rfft(sync, axis=0))
    fits = [
        scipy.fft.irfft((scipy.fft.rfft(plane, axis=0) * pattern).sum(axis=1), n=SLOTS) for plane in planes
    ]
    return np.asarray(np.stack(fits, axis=1).reshape(-1), np.float32)


def _peaks(fits: NDArray[np.float32]) -> Iterator[tuple[int, float]]:
    """The best places and their z; a place less than a slot from a better one is the same."""
    left, spread = fits.copy(), float(np.sqrt(np.mean(fits**2))) + 1e-12
    for _ in range(CANDIDATES):
        place = int(left.argmax())
        yield place, float(fits[place]) / spread
        left[np.arange(place - PHASES + 1, place + PHASES) % len(left)] = -np.inf


def _read(plane: Float32, key: Key, slot: int, z: float) -> SoundFound:
    chips = key.chips
    values = np.roll(plane, -slot, axis=0).reshape(-1) * chips.sign.reshape(-1)
    carries = chips.carries.reshape(-1)
    carried = carries >= 0
    soft = np.asarray(np.bincount(carries[carried], weights=values[carried]), np.float64)
    decoded = decode(soft, chips.payload_bits)
    is_read = decoded.is_intact and decoded.score >= key.least_score
    return SoundFound(decoded.payload if is_read else None, is_read or z >= PRESENT, z, decoded.score)
