"""What a clip or picture looks like, in a few bytes that a new encoding hardly changes.

Nothing is put into the pictures: the fingerprint of what leaves is kept in the register of renders, and that of a copy
is compared with it (`fingerprint_search`), also when every mark and every metadata is gone. Two parts, after the image
code of ISO 24138 (signs of a discrete cosine transform of 32 x 32 grey values) and the video hash of Oostveen, Kalker
and Haitsma (2002: signs of changes over time):

picture   256 bits: the signs of the lowest components of the mean over all frames. Tells scene, framing and person.
motion    64 bits for each eighth of a second: the signs of the lowest components of what the second around it does not
          share. Tells the clips of one person in one place apart.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE: Final = 32  # grey values of a thumbnail
PICTURE_BITS: Final = 256
MOTION_BITS: Final = 64
STEPS_PER_S: Final = 8
LONGEST_S: Final = 300  # of a clip: 26 kB in the register
_AROUND: Final = STEPS_PER_S // 2  # steps on either side from which a step's change is told
_FORMAT: Final = "1"
_LEAST_SHORT_SIDE: Final = 256  # larger pictures are thinned out first

Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """picture: 32 bytes.  motion: 8 bytes a step of 1/8 s, empty for a picture."""

    picture: bytes
    motion: bytes

    def text(self) -> str:
        """In ASCII: version, hexadecimal, Base64."""
        return f"{_FORMAT}:{self.picture.hex()}:{base64.b64encode(self.motion).decode()}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """What `text` gave; None for anything else, such as that of a later version."""
        version, _, rest = text.partition(":")
        picture, _, motion = rest.partition(":")
        try:
            found = cls(bytes.fromhex(picture), base64.b64decode(motion, validate=True))
        except (ValueError, binascii.Error):
            return None
        is_whole = len(found.picture) * 8 == PICTURE_BITS and len(found.motion) * 8 % MOTION_BITS == 0
        return found if version == _FORMAT and is_whole else None


class Sketch:
    """Frames as they come, to a fingerprint at the end: one thumbnail for each eighth of a second is kept."""

    def __init__(self, late_s: float = 0.0) -> None:
        """`late_s`: how much later than the first frame the steps begin; what is before it is left out."""
        self._late_s = late_s
        self._sums: list[Plane] = []
        self._counts: list[int] = []

    def add(self, small: Plane, time_s: float) -> None:
        """`small`: a `thumbnail`; `time_s`: since the first frame, never less than before."""
        step = int((time_s - self._late_s) * STEPS_PER_S + 1e-6) if time_s >= self._late_s - 1e-6 else -1
        if not 0 <= step < LONGEST_S * STEPS_PER_S:
            return
        while len(self._sums) < step:  # a slower clip repeats what it showed
            self._sums.append(self._sums[-1] if self._sums else small)
            self._counts.append(self._counts[-1] if self._counts else 1)
        if len(self._sums) == step:
            self._sums.append(small)
            self._counts.append(1)
        else:
            self._sums[-1] = self._sums[-1] + small
            self._counts[-1] += 1

    def steps(self) -> Plane:
        """float32 (T, 32, 32), T >= 0."""
        if not self._sums:
            return np.zeros((0, SIDE, SIDE), np.float32)
        return np.stack(self._sums) / np.asarray(self._counts, np.float32)[:, None, None]

    def fingerprint(self) -> Fingerprint | None:
        """None when no frame came."""
        steps = self.steps()
        if not len(steps):
            return None
        motion = packed(changes(components(steps))) if len(steps) > 1 else b""
        return Fingerprint(packed(picture_components(steps.mean(axis=0))), motion)


def thumbnail(image: NDArray[np.uint8]) -> Plane:
    """uint8 (H, W, 3), or (H, W, 4) over black -> grey values, float32 (32, 32) in 0..255, whatever the sides."""
    thin = max(1, min(image.shape[:2]) // _LEAST_SHORT_SIDE)
    image = np.ascontiguousarray(image[::thin, ::thin])
    grey = cv2.cvtColor(image, cv2.COLOR_RGBA2GRAY if image.shape[2] == 4 else cv2.COLOR_RGB2GRAY)
    if image.shape[2] == 4:
        grey = cv2.multiply(grey, np.ascontiguousarray(image[..., 3]), scale=1 / 255)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)


def picture_components(small: Plane) -> Plane:
    """The 256 lowest components of a thumbnail but its mean, float32 (256,)."""
    rows, columns = _lowest(PICTURE_BITS)
    return np.asarray(cv2.dct(np.ascontiguousarray(small))[rows, columns], np.float32)


def components(steps: Plane) -> Plane:
    """The 64 lowest components of each thumbnail but its mean: (T, 32, 32) -> float32 (T, 64)."""
    rows, columns = _lowest(MOTION_BITS)
    basis = _cosines()
    lowest = int(max(rows.max(), columns.max())) + 1
    low = np.einsum("ur,trc,vc->tuv", basis[:lowest], steps, basis[:lowest], optimize=True)
    return np.asarray(low[:, rows, columns], np.float32)


def changes(values: Plane) -> Plane:
    """Of each component what the second around a step does not share: (T, K) -> float32 (T, K)."""
    sums = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0, dtype=np.float64)
    ends = np.minimum(np.arange(len(values)) + _AROUND + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - _AROUND, 0)
    return np.asarray(values - (sums[ends] - sums[starts]) / (ends - starts)[:, None], np.float32)


def packed(values: Plane) -> bytes:
    """One bit for each value: whether it is above 0."""
    return np.packbits(values > 0).tobytes()


def signs(bits: bytes) -> NDArray[np.int8]:
    """+1 and -1 for each bit, int8 (8 len(bits),)."""
    return (2 * np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.int8) - 1).astype(np.int8)


@lru_cache(maxsize=1)
def _cosines() -> Plane:
    """The orthonormal DCT-II as a matrix, float32 (32, 32)."""
    return np.asarray(cv2.dct(np.eye(SIDE, dtype=np.float32), flags=cv2.DCT_ROWS).T, np.float32)


@lru_cache(maxsize=2)
def _lowest(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the components of the lowest frequencies, without the mean, from low to high."""
    rows, columns = np.divmod(np.arange(1, SIDE * SIDE), SIDE)
    order = np.lexsort((columns, rows, rows**2 + columns**2))[:count]
    return rows[order], columns[order]
