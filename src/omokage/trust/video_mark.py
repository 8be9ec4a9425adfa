"""The invisible mark: an additive pattern in the luma, constant over a whole render.

Spread-spectrum marking (Cox, Kilian, Leighton, Shamoon 1997) on a grid of chips: each chip is a soft dot, 1/96 of the
picture's short side wide, a little brighter or darker than the picture, as the keyed pattern of `mark_pattern` says.
The same value is added to red, green and blue, so that only the luma changes. Where the picture is busy the dots are
stronger, in flat, black and white parts weaker. The strength is measured on the first frame: as weak as coarse encoding
lets it be, and where that would take a mark that lies in the busy parts, laid over the picture more evenly.
docs/marks.md has more.

The mask of a pixel depends only on the picture within 20 pixels around it: where nothing moves, the mark is still.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from omokage.errors import InternalError
from omokage.media.image import over_black
from omokage.trust.mark_code import encode
from omokage.trust.mark_pattern import (
    PRIVATE_BITS,
    PUBLIC_BITS,
    PUBLIC_KEY,
    PUBLIC_PAYLOAD,
    TORUS,
    Chips,
    chips_of,
)
from omokage.trust.mark_signal import (
    SAMPLES,
    Spectrum,
    chip_px,
    evened,
    folded,
    luma,
    reduced,
    soft_bits,
    upsampled,
    whitened,
)

Profile = Literal["standard", "high assurance"]
LEAST_SIDE_PX: Final = 256  # of smaller ones, a third is lost when they are encoded again (docs/marks.md)
PUBLIC_SHARE: Final = 0.35  # of the energy; the private message is almost twice as long

_BUSY, _EVENER = 0.5, 0.2  # the power of a place's busyness that the strength follows
# Of each profile: peak to noise in dB, what the strength follows, and the score of the private message, in the first
# frame after a coarse JPEG, from which on it was read after what the profile is made for: CRF 28, or 33. The first way
# that survives is taken, else the last.
_WAYS: Final[dict[Profile, tuple[tuple[float, float, float], ...]]] = {
    "standard": ((46.5, _BUSY, 13.0), (46.0, _EVENER, 13.9), (45.0, _EVENER, 0.0)),
    "high assurance": ((42.0, _BUSY, 14.4), (42.0, _EVENER, 0.0)),
}
PROFILES: Final = tuple(_WAYS)
_FLAT_SURVIVES = 11.0  # the same score of a picture without busy parts to swallow the mark
_MASK_RANGE = (0.5, 1.9)
_COARSE_QUALITY = 40  # of a JPEG that takes about as much as H.264 at CRF 28
_CANCELLED = 0.5  # of what the picture says against the mark
_WEIGHT_RANGE = (0.1, 3.0)
_GAIN_RANGE = (0.6, 1.0)  # a flat first frame is not marked more than a busy one
_REFERENCE_ACTIVITY = 5.0  # levels of 255; there the mask is 1


@dataclass(frozen=True, slots=True)
class Mark:
    """What a mark says: the render's id (48 bits), under the private key of this installation."""

    render_id: int
    key: bytes
    profile: Profile = "standard"


def can_be_marked(width: int, height: int) -> bool:
    """Whether a picture is large enough for a mark."""
    return min(width, height) >= LEAST_SIDE_PX


class Marker:
    """Marks the frames of one render, which all have the size of the first."""

    def __init__(self, mark: Mark, first: NDArray[np.uint8]) -> None:
        """`first`: uint8 (H, W, 3), or (H, W, 4) with straight alpha."""
        start, layers = _start(mark), _layers(mark)
        hidden = _told(first, layers, start)
        is_flat = False
        for number, (db, following, enough) in enumerate(_WAYS[mark.profile]):
            level = 255 * 10 ** (-db / 20)
            # Laid more evenly, a picture that is flat all over would only be marked more.
            self._following = _BUSY if is_flat else following
            mask = _mask(luma(first), self._following)
            self._pattern = _pattern([layer.sent() for layer in layers], start, mask, level)
            informed = _informed(layers, hidden, _told(self.apply(first), layers, start))
            self._pattern = _pattern(informed, start, mask, level)
            if number == 0:
                is_flat = _rms(mask * self._pattern) < 0.99 * level
            least = min(enough, _FLAT_SURVIVES) if is_flat else enough
            if _score(_coarse(self.apply(first)), layers[0], start) >= least:
                break

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A marked copy of a frame; transparent parts stay as they are. Raises InternalError for another size."""
        if image.shape[:2] != self._pattern.shape:
            raise InternalError(f"a frame of {image.shape} came to a clip of {self._pattern.shape}")
        marked = np.empty_like(image)
        _add(image, _mask(luma(image), self._following), self._pattern, marked)
        return marked


@dataclass(frozen=True, eq=False)
class _Layer:
    """One message, the chips of its key, and its share of the energy."""

    chips: Chips
    payload: int
    share: float

    def sent(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """The chips, float32 (192, 192), of mean square `share`. `weights`: of each bit of the code word."""
        chips = self.chips.modulated(self.payload)
        if weights is not None:
            even = weights / np.sqrt(np.mean(weights**2))
            chips = chips * np.append(even, 1)[self.chips.carries]  # index -1: synchronisation
        return np.asarray(np.sqrt(self.share) * chips, np.float32)


def _layers(mark: Mark) -> tuple[_Layer, ...]:
    return (
        _Layer(chips_of(mark.key, PRIVATE_BITS), mark.render_id, 1 - PUBLIC_SHARE),
        _Layer(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_PAYLOAD, PUBLIC_SHARE),
    )


def _pattern(
    sent: Sequence[NDArray[np.float32]], start: tuple[int, int], mask: NDArray[np.float32], level: float
) -> NDArray[np.float32]:
    """All layers as dots, float32 (H, W); with the `mask` of the first frame their RMS is `level`."""
    height, width = mask.shape
    chip = chip_px(width, height)
    rows, columns = (
        (first + np.arange(int(np.ceil(side / chip)) + 1)) % TORUS
        for first, side in zip(start, (height, width), strict=True)
    )
    dots = upsampled(np.sum(sent, axis=0)[np.ix_(rows, columns)], chip, width, height)
    dots /= _rms(dots)
    rms = _rms(mask * dots)
    # A first frame that is black or all texture does not decide for the others.
    return np.asarray(dots * (level * np.clip(1 / max(rms, 1e-6), *_GAIN_RANGE)), np.float32)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _informed(
    layers: Sequence[_Layer], hidden: Sequence[NDArray[np.float64]], seen: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float32]]:
    """The chips again, stronger for bits against which the first frame speaks, weaker for those that it happens to say.

    Improved spread spectrum (Malvar and Florencio 2003): the embedder knows the picture that hides the mark, and what
    the detector sees of each bit in it, `hidden` before and `seen` after marking.
    """
    sent = []
    for layer, before, after in zip(layers, hidden, seen, strict=True):
        gained = max(float(np.mean(after - before)), 1e-9)
        sent.append(layer.sent(np.clip(1 - _CANCELLED * before / gained, *_WEIGHT_RANGE)))
    return sent


def _told(
    picture: NDArray[np.uint8], layers: Sequence[_Layer], start: tuple[int, int]
) -> list[NDArray[np.float64]]:
    """What a picture says of each bit of each layer's code word."""
    spectrum = _spectrum(_as_read(picture))
    return [_towards(spectrum, layer, start) for layer in layers]


def _score(picture: NDArray[np.uint8], layer: _Layer, start: tuple[int, int]) -> float:
    """Of a message in one picture, where it is known to be; as `mark_search` has it, 0 for noise."""
    towards = _towards(_spectrum(evened(_as_read(picture))), layer, start)
    return float(towards.sum() / max(float(np.linalg.norm(towards)), 1e-9))


def _spectrum(plane: NDArray[np.float32]) -> Spectrum:
    """Of a picture, as it is read, on the torus."""
    chip = chip_px(plane.shape[1], plane.shape[0])
    return whitened(folded(plane, chip, chip))


def _towards(spectrum: Spectrum, layer: _Layer, start: tuple[int, int]) -> NDArray[np.float64]:
    """What a picture's spectrum says of each bit of the code word (N,): above 0 for what was sent."""
    at = (-SAMPLES * start[0], -SAMPLES * start[1])
    word = encode(layer.payload, layer.chips.payload_bits)
    return soft_bits(spectrum, layer.chips, *at) * word


def _as_read(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture as readers show it, transparent parts over black, without its own structure."""
    return reduced(over_black(image) if image.shape[2] == 4 else image)


def _coarse(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture after coarse encoding, grey."""
    grey = luma(over_black(image) if image.shape[2] == 4 else image)
    data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, _COARSE_QUALITY])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _start(mark: Mark) -> tuple[int, int]:
    """The chip of the torus at the upper left.

    Each render begins elsewhere. So two marks of one key, when an avatar has learned one with its recording, lie apart,
    and an average over many renders shows no pattern.
    """
    seed = b"omokage mark start 1\0" + mark.render_id.to_bytes(8, "little") + mark.key
    row, column = np.frombuffer(hashlib.shake_256(seed).digest(8), "<u4") % TORUS
    return int(row), int(column)


def _mask(grey: NDArray[np.uint8], following: float) -> NDArray[np.float32]:
    """How much each pixel may change, float32 (H, W) around 1, computed at a quarter of the resolution.

    following: the power of a place's busyness by which it may.
    """
    height, width = grey.shape
    small = cv2.resize(grey, (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    mean = cv2.blur(small, (3, 3))
    spread = cv2.blur(small * small, (3, 3)) - mean * mean
    activity = np.sqrt(np.maximum(spread, 0))  # rounding makes flat parts slightly negative
    strength = np.clip(((activity + 0.5) / _REFERENCE_ACTIVITY) ** following, *_MASK_RANGE)
    # Eyes see more in the dark; black and white would be clipped, which leaves only half of the pattern.
    strength *= np.clip(0.25 + mean / 80, 0.25, 1) * np.clip((263 - mean) / 20, 0.4, 1)
    return np.asarray(cv2.resize(strength, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


@njit(cache=True, nogil=True)
def _add(image, mask, pattern, marked):  # type: ignore[no-untyped-def]
    """One pass: a live picture's turn at Python's lock comes once instead of ten times."""
    height, width, channels = image.shape
    delta, row = np.empty(width, np.float32), np.zeros(channels * width, np.int16)
    none, full, to_integer = np.int16(0), np.int16(255), np.float32(3 << 22)  # adding it leaves no fraction
    for y in range(height):
        before, after, one, other = image[y].reshape(-1), marked[y].reshape(-1), mask[y], pattern[y]
        for x in range(width):
            delta[x] = one[x] * other[x]
        if channels == 4:  # alpha itself stays as it is
            for x in range(width):
                delta[x] *= before[4 * x + 3] / np.float32(255)
        for x in range(width):
            change, first = np.int16((delta[x] + to_integer) - to_integer), channels * x
            row[first], row[first + 1], row[first + 2] = change, change, change
        for i in range(len(row)):
            after[i] = min(max(np.int16(before[i]) + row[i], none), full)
