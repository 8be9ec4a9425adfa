"""How the texture changes with the state: teeth, wrinkles, shading, hair that falls as the head turns.

One mean texture blurs whatever moves on the surface. So the texture gets modes of change, as in an active appearance
model (Cootes et al. 2001), and their strengths follow from pose and expression by kernel ridge regression on frames of
the recording (view-dependent texturing, Debevec et al. 1996). Far from all of them the strengths fall to 0: the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

Float = NDArray[np.float64]

# Charts of the atlas, in this order everywhere: the face follows pose and expression, the sheet (hair, shoulders) the
# pose alone. Widths of the kernels are in deviations of the recording. See docs/research/avatar-ablations.md.
CHARTS = ("face", "sheet")
KERNEL_WIDTHS = (6.0, 3.0)
RIDGE = 0.3
# A pose that hardly varied is not stretched further than this (half radians, head widths); all expressions alike.
LEAST_POSE_SCALE = 0.02
EXPRESSION_SCALE = 0.15


@dataclass(frozen=True)
class Appearance:
    """State -> strengths of the texture's modes. T key frames, P pose features, E expressions, K modes.

    poses: (T, P) and expressions: (T, E) of the key frames.  strengths: (2, T, K), of each chart's modes in them.
    """

    poses: Float
    expressions: Float
    strengths: Float

    def mixture(self, pose: Float, expression: Float) -> NDArray[np.float32]:
        """Strengths (2, K) for pose features (P,) and expression (E,)."""
        nearness = self._kernels(pose[None], expression[None])[:, 0]
        return np.asarray(np.einsum("ct,ctk->ck", nearness, self._weights), dtype=np.float32)

    def mixture_without(
        self, pose: Float, expression: Float, left_out: Sequence[int] | NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """The same as if the key frames `left_out` had not been recorded.

        What a network is trained on must be as hard as what it meets later: its own frame is never among the keys.
        """
        nearness = self._kernels(pose[None], expression[None])[:, 0]
        weights = self._weights.copy()
        out = np.asarray(left_out, dtype=np.int64)
        if len(out):
            # The inverse of a matrix without some rows and columns, from the inverse of the whole (block elimination).
            block = self._inverse[:, out[:, None], out]
            weights -= self._inverse[:, :, out] @ np.linalg.solve(block, weights[:, out])
            weights[:, out] = 0.0
        return np.asarray(np.einsum("ct,ctk->ck", nearness, weights), dtype=np.float32)

    @cached_property
    def _pose_scale(self) -> Float:
        return np.asarray(np.maximum(self.poses.std(axis=0), LEAST_POSE_SCALE))

    @cached_property
    def _inverse(self) -> Float:
        """Of the keys' kernels with the ridge, (2, T, T)."""
        kernels = self._kernels(self.poses, self.expressions)
        return np.asarray(np.linalg.inv(kernels + RIDGE * np.eye(len(self.poses))))

    @cached_property
    def _weights(self) -> Float:
        return np.asarray(self._inverse @ self.strengths)

    def _kernels(self, poses: Float, expressions: Float) -> Float:
        """Nearness in (0, 1] of N states to the keys, for both charts: (2, N, T)."""
        by_pose = cdist(poses / self._pose_scale, self.poses / self._pose_scale, "sqeuclidean")
        by_expression = cdist(expressions, self.expressions, "sqeuclidean") / EXPRESSION_SCALE**2
        distances = np.stack([by_pose + by_expression, by_pose])
        return np.asarray(np.exp(-0.5 * distances / np.square(KERNEL_WIDTHS)[:, None, None]))


def principal_modes(differences: Float, count: int) -> tuple[Float, Float]:
    """Differences from the mean (T, N) -> modes (K, N) and their strengths (T, K) of unit deviation, strongest first.

    Fewer frames than modes leave the last modes 0.
    """
    frames = len(differences)
    energy, directions = np.linalg.eigh(differences @ differences.T)
    strengths = np.zeros((frames, count))
    kept = min(count, frames)
    strengths[:, :kept] = directions[:, ::-1][:, :kept] * np.sqrt(frames)
    strengths[:, :kept][:, energy[::-1][:kept] < 1e-9] = 0.0
    return strengths.T @ differences / frames, strengths
