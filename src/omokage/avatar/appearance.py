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
        kept = np.setdiff1d(np.arange(len(self.poses)), left_out)
        if not len(kept):
            return np.zeros((len(CHARTS), self.strengths.shape[2]), dtype=np.float32)
        part = Appearance(self.poses[kept], self.expressions[kept], self.strengths[:, kept])
        nearness = part._kernels(pose[None], expression[None], scale=self._pose_scale)[:, 0]
        weights = _solve(part._kernels(part.poses, part.expressions, scale=self._pose_scale), part.strengths)
        return np.asarray(np.einsum("ct,ctk->ck", nearness, weights), dtype=np.float32)

    @cached_property
    def _pose_scale(self) -> Float:
        return np.asarray(np.maximum(self.poses.std(axis=0), LEAST_POSE_SCALE))

    @cached_property
    def _weights(self) -> Float:
        return _solve(self._kernels(self.poses, self.expressions), self.strengths)

    def _kernels(self, poses: Float, expressions: Float, *, scale: Float | None = None) -> Float:
        """Nearness in (0, 1] of N states to the keys, for both charts: (2, N, T)."""
        scale = self._pose_scale if scale is None else scale
        by_pose = np.square((poses[:, None] - self.poses) / scale).sum(axis=-1)
        by_expression = np.square((expressions[:, None] - self.expressions) / EXPRESSION_SCALE).sum(axis=-1)
        distances = np.stack([by_pose + by_expression, by_pose])
        return np.asarray(np.exp(-0.5 * distances / np.square(KERNEL_WIDTHS)[:, None, None]))


def _solve(kernels: Float, strengths: Float) -> Float:
    return np.asarray(np.linalg.solve(kernels + RIDGE * np.eye(kernels.shape[1]), strengths))


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
