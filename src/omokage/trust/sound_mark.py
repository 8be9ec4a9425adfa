"""The inaudible mark of a sound: keyed changes of loudness, in cells of 20 ms and 100 Hz, of what is there.

Spread spectrum (Cox, Kilian, Leighton, Shamoon 1997) on the magnitudes of a short-time spectrum, a patchwork (Bender,
Gruhl, Morimoto, Lu 1996): every cell is made a little louder or softer, as the keyed chips of `mark_pattern` say. How
much is the least of what masking hides (`_hidden`) and of what keeps the change below a level against the sound.

Nothing of the mark sounds without the sound that hides it: samples of silence stay zero. What leaves is behind by at
most 20 ms, holds as many samples as came, and depends on no later ones. docs/marks.md has more.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final

import numpy as np
import scipy.fft

from omokage.errors import InternalError
from omokage.trust.mark_key import derived
from omokage.trust.mark_pattern import (
    PRIVATE_BITS,
    PUBLIC_BITS,
    PUBLIC_PAYLOAD,
    PUBLIC_SOUND_KEY,
    chips_of,
)
from omokage.trust.sound_signal import (
    BANDS,
    SLOTS,
    SLOTS_A_SECOND,
    WINDOW_S,
    Float32,
    bands_of_bins,
    edges_hz,
)
from omokage.trust.video_mark import PUBLIC_SHARE, Mark, Profile

# Of the sound against the change, in each window; between windows some of the change cancels itself.
SIGNAL_TO_MARK_DB: Final[dict[Profile, float]] = {"standard": 27.0, "high assurance": 23.5}

_MASK_BELOW_DB = (
    14.0  # a change this far below a band is not heard: between tone and noise (Painter, Spanias 2000)
)
_SPREAD_DB = (
    27.0,
    15.0,
)  # a Bark, towards lower and towards higher bands (Schroeder, Atal, Hall 1979, simplified)
_LARGEST = 0.35  # of an amplitude, even where more would be hidden: 2.6 dB
_EVENNESS = 0.4  # 0: every band changes by the same share; 0.5: by the same power
_MEMORY_S = 1.0  # a soft sound after a loud one may change a little more
_HALVINGS = 14


def sound_key(pattern_key: bytes) -> bytes:
    """The key of a sound's chips, from that of the pictures' (`marking.pattern_key`)."""
    return derived(pattern_key, b"sound mark 1")


class SoundMarker:
    """Marks the sound of one render while it comes."""

    def __init__(self, mark: Mark, sample_rate: int) -> None:
        self._rate = sample_rate
        self._hop = max(1, round(WINDOW_S * sample_rate / 2))
        self._window = np.sqrt(np.hanning(2 * self._hop + 1)[:-1])[:, None].astype(np.float32)
        self._bands = bands_of_bins(2 * self._hop, sample_rate)
        self._chips = _sent(mark)
        self._ratio = 10 ** (-SIGNAL_TO_MARK_DB[mark.profile] / 10)
        self._keep = float(np.exp(-self._hop / sample_rate / _MEMORY_S))
        self._loudness = 0.0
        self._frames = 0
        self._held: Float32 | None = None  # the samples that the next window begins with
        self._begun: Float32 | None = None  # what windows so far have said of the first half of it
        self._ahead = self._hop  # of what comes out first: the half window before the first sample
        self._waiting = 0

    def step(self, samples: Float32) -> Float32:
        """The next samples, float32 (S, channels) in [-1, 1] -> those that are finished, of the same kind."""
        if self._held is None or self._begun is None:
            self._held = np.zeros((self._hop, samples.shape[1]), np.float32)
            self._begun = np.zeros_like(self._held)
        if samples.shape[1] != self._held.shape[1]:
            raise InternalError(f"{samples.shape[1]} channels came to a sound of {self._held.shape[1]}")
        held = np.concatenate([self._held, samples])
        count = len(held) // self._hop - 1
        self._held, finished = held[count * self._hop :], held[: count * self._hop]
        self._waiting += len(samples)
        if not count:
            return finished
        changed = self._changed(held[: (count + 1) * self._hop])
        changed[0] += self._begun
        self._begun = changed[-1]
        # Windows reach into silence beside a sound; it stays what it is.
        ready = np.where(finished == 0, 0, np.clip(changed[:-1].reshape(finished.shape), -1, 1))[
            self._ahead :
        ]
        self._ahead = 0
        self._waiting -= len(ready)
        return np.asarray(ready, np.float32)

    def rest(self) -> Float32:
        """What has not left yet when no more comes."""
        if self._held is None:
            return np.zeros((0, 1), np.float32)
        waiting = self._waiting
        return self.step(np.zeros((2 * self._hop, self._held.shape[1]), np.float32))[:waiting]

    def _changed(self, samples: Float32) -> Float32:
        """Windows that overlap by half, each with its change, added up: (frames + 1, hop, channels)."""
        halves = samples.reshape(-1, self._hop, samples.shape[1])
        windows = np.concatenate([halves[:-1], halves[1:]], axis=1)
        spectrum = scipy.fft.rfft(windows * self._window, axis=1)
        power = np.asarray((spectrum.real**2 + spectrum.imag**2).sum(axis=2), np.float32)
        change = self._slots(len(windows)) * self._allowed(power @ self._bands, power.sum(axis=1))
        spectrum *= (1 + change @ self._bands.T)[:, :, None]
        made = scipy.fft.irfft(spectrum, n=2 * self._hop, axis=1) * self._window
        total = np.zeros((len(windows) + 1, *halves.shape[1:]), np.float32)
        total[:-1] += made[:, : self._hop]
        total[1:] += made[:, self._hop :]
        return total

    def _slots(self, count: int) -> Float32:
        """The chips of the next windows, (count, 48). Counted in whole numbers, so that no clock drifts."""
        centers = np.arange(self._frames, self._frames + count) * self._hop
        self._frames += count
        return self._chips[centers * SLOTS_A_SECOND // self._rate % SLOTS]

    def _allowed(self, power: Float32, whole: Float32) -> Float32:
        """How much each band of each window may change, as a share of its amplitude: (frames, 48).

        Weak bands change more than strong ones, up to what is hidden, so that most is seen of the mark for its power:
        the detector sees each change against the band itself.
        """
        most = np.minimum(_hidden(power), _LARGEST)
        budget = self._ratio * self._loud(whole)
        shape = (np.maximum(power, 1e-12) / np.maximum(whole, 1e-12)[:, None]) ** (-_EVENNESS)
        low, high = np.full(len(power), 1e-5, np.float32), np.ones(len(power), np.float32)
        for _ in range(_HALVINGS):
            level = np.sqrt(low * high)
            is_over = (np.minimum(most, level[:, None] * shape) ** 2 * power).sum(axis=1) > budget
            low, high = np.where(is_over, low, level), np.where(is_over, level, high)
        return np.asarray(np.minimum(most, low[:, None] * shape), np.float32)

    def _loud(self, whole: Float32) -> Float32:
        """The power of each window, or of the last second where that was more."""
        loud = np.empty_like(whole)
        for at, value in enumerate(whole.tolist()):
            self._loudness = self._keep * self._loudness + (1 - self._keep) * value
            loud[at] = max(value, self._loudness)
        return loud


def _sent(mark: Mark) -> Float32:
    """Both layers, float32 (768, 48) of mean square 1, from the slot on at which this render begins.

    Each render begins elsewhere, so that an average over many shows no pattern.
    """
    key = sound_key(mark.key)
    private = chips_of(key, PRIVATE_BITS).modulated(mark.render_id)
    public = chips_of(PUBLIC_SOUND_KEY, PUBLIC_BITS).modulated(PUBLIC_PAYLOAD)
    both = np.sqrt(1 - PUBLIC_SHARE) * private + np.sqrt(PUBLIC_SHARE) * public
    seed = b"omokage sound mark start 1\0" + mark.render_id.to_bytes(8, "little") + key
    start = int.from_bytes(hashlib.shake_256(seed).digest(4), "little") % SLOTS
    return np.asarray(np.roll(both.reshape(SLOTS, BANDS), -start, axis=0), np.float32)


def _hidden(power: Float32) -> Float32:
    """The change that its own band and those beside it mask, as a share of each band's amplitude."""
    masked = power @ _spreading()
    return np.asarray(np.sqrt(masked / np.maximum(power, 1e-12)), np.float32)


@cache
def _spreading() -> Float32:
    """What a band hides in every other one, as a share of its power: (48 of the masker, 48)."""
    edges = edges_hz()
    center = (edges[1:] + edges[:-1]) / 2
    bark = 13 * np.arctan(0.00076 * center) + 3.5 * np.arctan((center / 7500) ** 2)  # Zwicker, Terhardt 1980
    higher = bark[None, :] - bark[:, None]
    lower_db, higher_db = _SPREAD_DB
    loss_db = np.where(higher > 0, higher * higher_db, -higher * lower_db) + _MASK_BELOW_DB
    return np.asarray(10 ** (-loss_db / 10), np.float32)
