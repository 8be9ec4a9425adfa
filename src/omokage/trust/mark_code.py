"""Bits of a mark as a code word that survives noise, and back.

A payload gets a CRC-16 (polynomial 0x1021 of CCITT, start 0xFFFF) and 6 zero bits, and is encoded by a convolutional
code of constraint length 7 and rate 1/4, whose generators 135, 135, 147, 163 (octal) give a free distance of 20
(Proakis, Digital Communications, table 8.2-3). It is decoded from soft values by the list Viterbi algorithm (Seshadri
and Sundberg 1994): of the eight most likely code words the first whose CRC fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

_GENERATORS = (0o135, 0o135, 0o147, 0o163)
_MEMORY = 6
_CRC_BITS = 16
RATE = len(_GENERATORS)
_LISTED = 8  # of noise, 8 in 65,536 then have a CRC that fits

Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The most likely payload whose CRC fits, or the most likely of all.

    is_intact: its CRC fits.  score: the cosine between the soft values and its code word, times the root of the code
    word's length: `zf` of the acceptance rule.
    """

    payload: int
    is_intact: bool
    score: float


def coded_length(payload_bits: int) -> int:
    """How many bits the code word of a payload has."""
    return RATE * (payload_bits + _CRC_BITS + _MEMORY)


def encode(payload: int, payload_bits: int) -> NDArray[np.float32]:
    """The code word of a payload as +1 (bit 0) and -1 (bit 1), float32 (`coded_length(payload_bits)`,)."""
    if not 0 <= payload < 1 << payload_bits:
        raise ValueError(f"a payload of {payload_bits} bits cannot hold {payload}")
    return _code_word(_with_crc(payload, payload_bits))


def decode(soft: NDArray[np.floating], payload_bits: int) -> Decoded:
    """The code word that is nearest to soft values (`coded_length(payload_bits)`,), positive for bit 0."""
    norm = float(np.linalg.norm(soft))
    if not norm:
        return Decoded(0, False, 0.0)
    found = [
        _decoded(bits, soft, norm, payload_bits) for bits in _viterbi(np.asarray(soft, np.float64) / norm)
    ]
    return next((one for one in found if one.is_intact), found[0])


def _decoded(bits: Bits, soft: NDArray[np.floating], norm: float, payload_bits: int) -> Decoded:
    payload = int("".join(map(str, bits[:payload_bits])), 2)
    score = float(soft @ _code_word(bits)) / norm
    return Decoded(payload, np.array_equal(bits, _with_crc(payload, payload_bits)), score)


def _with_crc(payload: int, payload_bits: int) -> Bits:
    """Payload and CRC, first bit first, without the tail."""
    crc = 0xFFFF
    for at in reversed(range(payload_bits)):
        crc = (crc << 1) ^ (0x1021 if (crc >> 15 ^ payload >> at) & 1 else 0)
        crc &= 0xFFFF
    text = f"{payload:0{payload_bits}b}{crc:0{_CRC_BITS}b}"
    return np.array(list(text), np.uint8)


def _code_word(bits: Bits) -> NDArray[np.float32]:
    padded = np.concatenate([np.zeros(_MEMORY, np.uint8), bits, np.zeros(_MEMORY, np.uint8)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, _MEMORY + 1)[:, ::-1]  # newest bit first
    taps = np.array([[g >> at & 1 for at in reversed(range(_MEMORY + 1))] for g in _GENERATORS], np.uint8)
    return (1 - 2 * ((windows @ taps.T) & 1).astype(np.float32)).reshape(-1)


@cache
def _trellis() -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each of 64 states (newest bit is the highest) and its two predecessors: which, and the symbols sent."""
    states = np.arange(64)
    previous = np.stack([(states << 1 & 63) | oldest for oldest in (0, 1)], axis=1)
    registers = (states[:, None] >> 5 << 6) | previous
    parity = np.array(
        [[[(r & g).bit_count() & 1 for g in _GENERATORS] for r in row] for row in registers.tolist()]
    )
    return previous, 1.0 - 2.0 * parity


def _viterbi(soft: NDArray[np.float64]) -> list[Bits]:
    """The bits before the tail of the code words with the largest inner products, best first (Viterbi 1967).

    Every state keeps its best paths, not one: the parallel list algorithm.
    """
    previous, symbols = _trellis()
    gains = np.einsum("spk,tk->tsp", symbols, soft.reshape(-1, RATE))
    metric = np.full((64, _LISTED), -np.inf)
    metric[0, 0] = 0
    choices = np.empty((len(gains), 64, _LISTED), np.intp)  # predecessor and its rank, as one number
    for time, gain in enumerate(gains):
        paths = (metric[previous] + gain[:, :, None]).reshape(64, -1)
        choices[time] = np.argsort(-paths, axis=1, kind="stable")[:, :_LISTED]
        metric = np.take_along_axis(paths, choices[time], axis=1)
    found = []
    for rank in range(_LISTED):
        at, state, bits = rank, 0, np.empty(len(gains), np.uint8)  # the tail leads back to state 0
        for time in reversed(range(len(gains))):
            bits[time] = state >> 5
            before, at = divmod(int(choices[time, state, at]), _LISTED)
            state = int(previous[state, before])
        found.append(bits[:-_MEMORY])
    return found
