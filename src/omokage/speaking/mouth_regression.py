"""The mouth that is to be expected for a sound: a Gaussian process from a window of sound to a person's mouth.

Of a recording of seconds it learns more than a network does, and it says how well it knows a sound (Rasmussen and
Williams 2006, "Gaussian Processes for Machine Learning", section 2.2, with the noise chosen by cross-validation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from omokage.speaking.hearing import BANDS
from omokage.speaking.sound_frames import COLUMNS, FUTURE, PAST, silence

Float = NDArray[np.float64]

BAND_MODES = 6  # principal components of the bands
GAMMA = 0.4  # of the kernel, over the mean square of standardised distances
MAX_ROWS = 1500
SMALLEST_SCALE = 1e-3
BLOCK = 1000  # frames at once: memory does not grow with the length


@dataclass(frozen=True)
class MouthRegression:
    """mean (B,), basis (B, M): of the bands.  center, scale (D,): of windows.  rows (N, D): known windows,
    standardised.  weights (N, K), bias (K,): of K modes of the mouth.  usual: how near a known sound is to others."""

    mean: Float
    basis: Float
    center: Float
    scale: Float
    rows: Float
    weights: Float
    bias: Float
    usual: Float

    @classmethod
    def fit(cls, frames: Float, known: NDArray[np.int64], modes: Float, noise: float) -> Self:
        """From sound frames (T, `COLUMNS` + M) and the mouth (T, K) in the frames `known`. noise: variance beside that
        of the kernel, 1."""
        known = known[:: -(-len(known) // MAX_ROWS)]
        mean = frames[known, :BANDS].mean(axis=0)
        _, _, axes = np.linalg.svd(frames[known, :BANDS] - mean, full_matrices=False)
        basis = axes[:BAND_MODES].T
        inputs = windows(frames, mean, basis)[known]
        center, scale = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), SMALLEST_SCALE)
        rows = (inputs - center) / scale
        similar = _kernel(rows, rows)
        bias = modes[known].mean(axis=0)
        weights = np.linalg.solve(similar + noise * np.eye(len(rows)), modes[known] - bias)
        # Neighbors in time are nearly the same window: what counts are other moments.
        near = np.abs(known[:, None] - known) > PAST + FUTURE + 1
        usual = np.median(np.max(similar * near, axis=1))
        return cls(mean, basis, center, scale, rows, weights, bias, np.array([usual]))

    def predict(self, frames: Float) -> tuple[Float, Float]:
        """The expected mouth (T - `PAST` - `FUTURE`, K) of sound frames (T, `COLUMNS` + M), without those at the ends,
        which are context; and how well each sound is known, in [0, 1]."""
        inputs = (
            windows(frames, self.mean, self.basis)[PAST : len(frames) - FUTURE] - self.center
        ) / self.scale
        found = np.zeros((len(inputs), len(self.bias)))
        trust = np.zeros(len(inputs))
        for first in range(0, len(inputs), BLOCK):
            rows = slice(first, first + BLOCK)
            similar = _kernel(inputs[rows], self.rows)
            found[rows] = similar @ self.weights + self.bias
            trust[rows] = np.clip(similar.max(axis=1, initial=0) / self.usual[0], 0, 1)
        return found, trust


def windows(frames: Float, mean: Float, basis: Float) -> Float:
    """Each frame with its neighbors, silence before and after: (T, D)."""
    nothing = silence(frames.shape[1] - COLUMNS)
    padded = np.concatenate([np.tile(nothing, (PAST, 1)), frames, np.tile(nothing, (FUTURE, 1))])
    # Visemes are left out: what they tell is of voices in general (docs/research/speaking.md).
    reduced = np.concatenate([(padded[:, :BANDS] - mean) @ basis, padded[:, COLUMNS - 1 :]], axis=1)
    view = np.lib.stride_tricks.sliding_window_view(reduced, PAST + 1 + FUTURE, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1)).reshape(len(frames), -1)


def _kernel(one: Float, other: Float) -> Float:
    square = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return np.asarray(np.exp(-GAMMA * np.maximum(square, 0) / one.shape[1]))
