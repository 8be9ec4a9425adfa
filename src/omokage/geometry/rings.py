"""Rings around a face: the outline made larger and larger, out over hair, neck and shoulders.

The avatar's sheet has a vertex at every place of every ring; the tracker follows fewer places of fewer rings (zones).
Legend: R rings, D places around, `outline` (D, 2 or 3) the face's closed outline.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# How far behind the outline's sides hair and ears are taken to lie, in face half-widths.
HAIR_DEPTH = 0.45


def smoothstep(low: float, high: float, x: Float) -> Float:
    """0 below `low`, 1 above `high`, cubic between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


def rings(outline: Float, scales: Sequence[float]) -> Float:
    """The outline (D, 2+) scaled about its middle in x and y: (R, D, 2). The middle is the mean of its points."""
    flat = np.asarray(outline, dtype=np.float64)[:, :2]
    middle = flat.mean(axis=0)
    return np.asarray(middle + (flat - middle) * np.asarray(scales)[:, None, None])


def head_share(places: Float, outline: Float, scales: Sequence[float]) -> Float:
    """How much each place (R, D, 2) moves with the head, (R, D): 1 = all, 0 = stays with the shoulders."""
    below_chin = (places[..., 1] - outline[:, 1].max()) / np.ptp(outline[:, 1])
    far = smoothstep(2.2, 5.0, np.asarray(scales)[:, None])
    return np.asarray((1 - smoothstep(0.0, 0.55, below_chin)) * (1 - far))


def surface(outline: Float, scales: Sequence[float]) -> Float:
    """The rings in space (R, D, 3): from the outline (D, 3) outwards the depth recedes to that of the hair."""
    recede = smoothstep(1.0, 1.5, np.asarray(scales)[:, None])
    hair = outline[:, 2].max() + HAIR_DEPTH * np.ptp(outline[:, 0]) / 2
    depth = outline[None, :, 2] * (1 - recede) + hair * recede
    return np.concatenate([rings(outline, scales), depth[..., None]], axis=-1)


@cache
def between_rings(
    scales: tuple[float, ...], around: int, to_scales: tuple[float, ...], to_around: int
) -> Float:
    """Interpolation from places on some rings to places on others: (to_rings x to_around, rings x around).

    Linear in the logarithm of the scale and in the way around; the innermost and outermost rings go on unchanged.
    """
    row = np.interp(np.log(to_scales), np.log(scales), np.arange(len(scales)))
    column = np.arange(to_around) * (around / to_around)
    across = np.maximum(0, 1 - np.abs(row[:, None] - np.arange(len(scales))))
    distance = np.abs(column[:, None] - np.arange(around))
    along = np.maximum(0, 1 - np.minimum(distance, around - distance))
    return np.asarray(np.einsum("ar,bd->abrd", across, along).reshape(len(row) * len(column), -1))
