"""The keyed chips of a mark: which sign each has, and which part of the message it carries.

Chips lie on a torus of 192 x 192. Each is drawn from a stream of SHAKE-256 (FIPS 202), so that a key means the same
pattern on every machine and with every version of every library: 4 bytes a chip, little-endian, row by row. The lowest
bit is the sign (1: minus); the other 31 as a share of 2**31 are below 0.2 for chips of the synchronisation, which are
sent as they are, and above it tell which bit of the code word, in equal shares, the chip is multiplied with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from omokage.trust.mark_code import coded_length, encode

TORUS: Final = 192
SYNC_SHARE: Final = 0.2
# Published on purpose: with it everybody can look for the public layer, and also imitate or remove it.
PUBLIC_KEY: Final = b"omokage public video mark, version 1"
PUBLIC_SOUND_KEY: Final = b"omokage public sound mark, version 1"
PUBLIC_BITS: Final = 16
PRIVATE_BITS: Final = 48
PRODUCT: Final = 0x6F  # the upper 8 bits of the public payload, 'o'; the lower 8 are the version of the mark
VERSION: Final = 1
PUBLIC_PAYLOAD: Final = PRODUCT << 8 | VERSION


@dataclass(frozen=True, eq=False)
class Chips:
    """The pattern of a key.

    sign: float32 (192, 192) of +1 and -1.  carries: intp (192, 192), the bit of the code word, or -1 for
    synchronisation.
    """

    payload_bits: int
    sign: NDArray[np.float32]
    carries: NDArray[np.intp]

    def modulated(self, payload: int) -> NDArray[np.float32]:
        """What is sent: float32 (192, 192) of +1 and -1."""
        word = np.append(encode(payload, self.payload_bits), np.float32(1))  # index -1: synchronisation
        return self.sign * word[self.carries]


@lru_cache(maxsize=8)
def chips_of(key: bytes, payload_bits: int) -> Chips:
    """The chips of a key for messages of so many bits."""
    stream = hashlib.shake_256(b"omokage mark chips 1\0" + key).digest(4 * TORUS * TORUS)
    words = np.frombuffer(stream, "<u4").reshape(TORUS, TORUS)
    sign = (1 - 2 * (words & 1).astype(np.float32)).astype(np.float32)
    share = (words >> 1) / 2.0**31
    length = coded_length(payload_bits)
    carries = np.floor((share - SYNC_SHARE) / (1 - SYNC_SHARE) * length).astype(np.intp)
    carries = np.minimum(carries, length - 1)
    carries[share < SYNC_SHARE] = -1
    return Chips(payload_bits, sign, carries)
