"""Skin as a thin plate: where a few vertices go, the rest follows with the least bending energy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

Float = NDArray[np.float64]
# Vertex -> its displacement (3,), cm.
Handles = dict[int, Float]


class PlateSolver:
    """Spreads handle displacements over the skin by the least bending energy.

    stiffness: (468, 468), the squared Laplacian of the skin. mirror: (468,), the vertex on the other side.
    reference: (468, 3), the mean skin, on which distances are measured: so that what a handle does to the skin is
    the same for every person and is solved only once.
    """

    def __init__(self, stiffness: Float, mirror: NDArray[np.int32], reference: Float) -> None:
        self.mirror = mirror
        self._stiffness = stiffness
        self._reference = reference
        self._reach: dict[tuple[bytes, bytes, float], tuple[NDArray[np.int64], Float]] = {}

    def spread(self, handles: Handles, radius: float) -> Float:
        """Displacements (468, 3) that meet the handles and vanish beyond `radius` cm from all of them."""
        rows = np.fromiter(handles, dtype=np.int64)
        moved = np.stack([handles[int(r)] for r in rows])
        active = rows[np.linalg.norm(moved, axis=1) > 1e-6]
        key = (rows.tobytes(), active.tobytes(), radius)
        if key not in self._reach:
            self._reach[key] = self._solve(rows, active, radius)
        free, influence = self._reach[key]
        field = np.zeros((len(self._reference), 3))
        field[rows] = moved
        field[free] = influence @ moved
        return field

    def _solve(
        self, rows: NDArray[np.int64], active: NDArray[np.int64], radius: float
    ) -> tuple[NDArray[np.int64], Float]:
        distance = np.linalg.norm(self._reference[:, None] - self._reference[None, active], axis=2).min(
            axis=1
        )
        is_fixed = distance > radius
        is_fixed[rows] = True
        free = np.flatnonzero(~is_fixed)
        pull = self._stiffness[np.ix_(free, rows)]
        return free, -solve(self._stiffness[np.ix_(free, free)], pull, assume_a="pos")
