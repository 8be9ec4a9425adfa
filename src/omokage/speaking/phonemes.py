"""From timed phonemes to viseme weights, with coarticulation.

A mouth is always on its way from one sound to the next: every phoneme has a dominance that falls with the distance in
time, and the mouth is the mean of all targets by dominance (Cohen & Massaro 1993, "Modeling coarticulation in synthetic
visual speech"). Lips that must meet (m, b, p) dominate all others while they sound.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.tracking.visemes import NAMES

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phoneme:
    """One sound of a spoken text: an IPA symbol and its time in seconds; an empty symbol is a pause."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a viseme rules its neighbors: dominance at its middle, and the time (s) over which it falls e-fold."""

    strength: float
    reach_s: float


_MANNERS = {
    "rest": _Manner(1.2, 0.05),
    "closed": _Manner(9.0, 0.022),
    "lip": _Manner(4.0, 0.03),
    "s": _Manner(0.9, 0.035),
    "l": _Manner(0.5, 0.035),
    "u": _Manner(1.2, 0.07),
    "o": _Manner(1.1, 0.065),
}
_VOWEL = _Manner(1.0, 0.055)
EARLIER = 1.4  # a mouth prepares for longer than it lingers
EDGE_S = 0.05  # before its end a phoneme begins to give way, at the latest in the middle of each half
SHORTEST_PAUSE_S = 0.06
REACH_S = 0.6  # beyond this nothing of a phoneme is left
_BLOCK = 256  # frames at once: memory does not grow with the length of the text

# Base symbols of the IPA by viseme. Those that no lip shows (k, g, h, ...) are left out: the mouth passes over them.
_SYMBOLS = {
    "closed": "mbpɓʙ",
    "lip": "fvɱʋɸβ",
    "a": "aɑɐæʌɶ",
    "e": "eɛəɜɚɝɘɞøœɵ",
    "i": "iɪɨj",
    "o": "oɔɒɤ",
    "u": "uʊɯwʍyʏʉɥ",
    "s": "szʃʒɕʑʂʐtdnʈɖcɟɲ",
    "l": "lɹrɾɫʎθðɭɻʁʀɬɮɽ",
}
_VISEME = {symbol: name for name, symbols in _SYMBOLS.items() for symbol in symbols}


def visemes_of(symbol: str) -> tuple[str, ...]:
    """The visemes of an IPA symbol in order: one, two for a diphthong, none for a sound that lips do not show.

    Length, stress, tone and other marks are passed over. A pause ("") is at rest.
    """
    if not symbol:
        return ("rest",)
    # Composed letters (ä) are taken apart, so that their base is found.
    found = [_VISEME[c] for c in unicodedata.normalize("NFD", symbol) if c in _VISEME]
    consonants = [name for name in found if name in ("closed", "lip", "s", "l")]
    if consonants:  # an affricate (tɕ) is one sound
        return (consonants[0],)
    return tuple(name for i, name in enumerate(found) if i == 0 or name != found[i - 1])


def viseme_weights(phonemes: Sequence[Phoneme], time_s: Float) -> Float:
    """Weights (T, 10) of `visemes.NAMES` at times (T,), rising; each row adds up to 1.

    Gaps between phonemes of `SHORTEST_PAUSE_S` and more are pauses, and so is all before the first and after the last.
    """
    segments = _segments(phonemes, float(time_s[-1]) if len(time_s) else 0.0)
    middle, half, strength, reach, place = (np.array(column) for column in zip(*segments, strict=True))
    core = np.maximum(half - EDGE_S, 0.5 * half)
    weights = np.zeros((len(time_s), len(NAMES)))
    for first in range(0, len(time_s), _BLOCK):
        times = time_s[first : first + _BLOCK]
        near = (middle + half > times[0] - REACH_S) & (middle - half < times[-1] + REACH_S)
        away = times[:, None] - middle[near]
        falling = np.where(away < 0, EARLIER, 1.0) * reach[near]
        # Logarithms, so that a long pause does not end in 0 / 0.
        power = np.log(strength[near]) - np.maximum(np.abs(away) - core[near], 0) / falling
        dominance = np.exp(power - power.max(axis=1, keepdims=True))
        np.add.at(weights[first : first + _BLOCK].T, place[near].astype(int), dominance.T)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _segments(phonemes: Sequence[Phoneme], end_s: float) -> list[tuple[float, float, float, float, int]]:
    """Middle, half length (s), strength, reach (s) and place in `NAMES` of every target, pauses between included."""
    segments = []

    def add(name: str, start_s: float, stop_s: float) -> None:
        manner = _MANNERS.get(name, _VOWEL)
        half = max(0.5 * (stop_s - start_s), 1e-3)
        segments.append((start_s + half, half, manner.strength, manner.reach_s, NAMES.index(name)))

    done = -1.0  # the mouth has been at rest
    for phoneme in phonemes:
        if phoneme.start_s - done >= SHORTEST_PAUSE_S:
            add("rest", done, phoneme.start_s)
        names = visemes_of(phoneme.symbol)
        edges = np.linspace(phoneme.start_s, phoneme.end_s, len(names) + 1)
        for name, start_s, stop_s in zip(names, edges[:-1], edges[1:], strict=True):
            add(name, float(start_s), float(stop_s))
        done = phoneme.end_s
    add("rest", done, max(end_s, done) + 1.0)
    return segments
