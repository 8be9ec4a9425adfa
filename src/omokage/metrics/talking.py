"""How well a video talks: lips against truth or voice, seams between windows, drift, still parts that flicker.

Landmarks are MediaPipe's 478 points, float (T, 478, 2 or 3) in pixels, NaN where no face was found; frames are uint8
(T, H, W, 3). Measures that need weights which omokage does not ship are protocols: SyncNet (Chung & Zisserman 2016),
and features for Fréchet distances (FID: Heusel et al. 2017, FVD: Unterthiner et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.metrics.image import Frames, Mask, luma
from omokage.metrics.motion import Landmarks, inter_ocular_px

Track = NDArray[np.float64]

# Middle of the inner edge of upper and lower lip, and the inner corners.
INNER_LIPS = ((13, 14), (82, 87), (312, 317))
LIP_CORNERS = (61, 291)
HISTOGRAM_BINS = 16  # of every color channel
ENVELOPE_FLOOR = 1e-3  # of full scale: -60 dB is silence
FAR_S = 0.4  # shifts from here on are another stretch of speech: most syllables are over by then


@dataclass(frozen=True, slots=True)
class SyncScores:
    """Of SyncNet: `confidence` (LSE-C, higher is better) and `distance` (LSE-D, lower is better)."""

    confidence: float
    distance: float


class SyncScorer(Protocol):
    """A SyncNet of the user's; omokage ships none."""

    def __call__(self, frames: Frames, landmarks: Landmarks, voice: NDArray[np.float32]) -> SyncScores:
        """Of a clip at 25 frames a second, the landmarks in it, and its voice (S,) mono at 16 kHz."""
        ...


class ClipFeatures(Protocol):
    """A trained network of the user's that describes frames (for FID) or whole clips (for FVD) by vectors."""

    def __call__(self, frames: Frames) -> NDArray[np.floating]:
        """Features (N, D) of a clip."""
        ...


@dataclass(frozen=True, slots=True)
class LagCurve:
    """`r`: Pearson correlation float64 (lags,) when the second track is taken `lag_s` (lags,) seconds later."""

    lag_s: Track
    r: Track

    @property
    def peak_s(self) -> float:
        """The lag with the highest correlation, NaN when there is none."""
        return float(self.lag_s[np.nanargmax(self.r)]) if np.isfinite(self.r).any() else float("nan")

    @property
    def at_zero(self) -> float:
        """The correlation without a lag."""
        return float(self.r[np.argmin(np.abs(self.lag_s))])


def mouth_opening(landmarks: Landmarks) -> Track:
    """Mean gap between the inner lips over the distance of the outer eye corners: float64 (T,), NaN without a face."""
    gaps = [
        np.linalg.norm(landmarks[:, upper, :2] - landmarks[:, lower, :2].astype(np.float64), axis=-1)
        for upper, lower in INNER_LIPS
    ]
    return np.asarray(np.mean(gaps, axis=0) / inter_ocular_px(landmarks))


def mouth_width(landmarks: Landmarks) -> Track:
    """Distance of the lip corners over that of the outer eye corners: float64 (T,), NaN without a face."""
    left, right = (landmarks[:, point, :2].astype(np.float64) for point in LIP_CORNERS)
    return np.asarray(np.linalg.norm(left - right, axis=-1) / inter_ocular_px(landmarks))


def envelope_db(voice: NDArray[np.float32], samples_per_frame: int, frames: int) -> Track:
    """Loudness of a voice (S,) in each of `frames`, dB of full scale, at least -60: float64 (T,)."""
    needed = frames * samples_per_frame
    padded = np.pad(voice[:needed].astype(np.float64), (0, max(0, needed - len(voice))))
    power = (padded.reshape(frames, samples_per_frame) ** 2).mean(axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, ENVELOPE_FLOOR**2)))


def pearson(first: Track, second: Track) -> float:
    """Correlation of two tracks (T,) where both are known; NaN for fewer than three such frames or a constant track."""
    known = np.isfinite(first) & np.isfinite(second)
    one, other = first[known], second[known]
    if known.sum() < 3 or one.std() < 1e-9 or other.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def lag_curve(first: Track, second: Track, frame_rate: float, reach_s: float = 1.0) -> LagCurve:
    """Correlation of `first` at a time with `second` at a time later by each lag, of -`reach_s` to `reach_s`."""
    if len(first) != len(second):
        raise InputError(f"two tracks must be as long as each other, got {len(first)} and {len(second)}")
    reach: int = min(round(reach_s * frame_rate), len(first) - 3)
    lags = range(-reach, reach + 1)
    r = [
        pearson(
            first[max(-lag, 0) : len(first) - max(lag, 0)], second[max(lag, 0) : len(second) + min(lag, 0)]
        )
        for lag in lags
    ]
    return LagCurve(np.array(lags) / frame_rate, np.array(r))


def chance(first: Track, second: Track, frame_rate: float) -> float:
    """How often a correlation as high would come about without any sync: the share of all circular shifts of `second`
    by `FAR_S` or more that reach that of no shift. NaN when there are none."""
    far = round(FAR_S * frame_rate)
    r = pearson(first, second)
    shifted = [pearson(first, np.roll(second, shift)) for shift in range(far, len(first) - far + 1)]
    return float(np.mean([value >= r for value in shifted])) if shifted and np.isfinite(r) else float("nan")


def seam_ratio(frames: Frames, joins: tuple[int, ...]) -> float:
    """Mean change of luma into the first frame of each later window over that into all other frames; 1 is no seam.

    joins: indices of those first frames. NaN when nothing changes inside, or there are no joins.
    """
    planes = np.stack([luma(frame) for frame in frames])
    change = np.abs(np.diff(planes, axis=0)).mean(axis=(1, 2))
    is_join = np.zeros(len(change), dtype=bool)
    is_join[[join - 1 for join in joins]] = True
    inside = change[~is_join].mean() if (~is_join).any() else 0.0
    return float(change[is_join].mean() / inside) if is_join.any() and inside > 0 else float("nan")


def color_drift(frames: Frames, reference: Frames, joins: tuple[int, ...]) -> Track:
    """Of every window: how far its colors are from those of `reference` frames, float64 (windows,) in [0, 1].

    Half the L1 distance of color histograms, 16 bins a channel, mean of the channels: 0 is the same colors, 1 none in
    common.
    """
    target = _histogram(reference)
    windows = np.split(np.arange(len(frames)), list(joins))
    return np.array([np.abs(_histogram(frames[rows]) - target).sum() / 2 for rows in windows])


def still_flicker(frames: Frames, still: Mask) -> float:
    """Mean change of luma from frame to frame, grey levels, over pixels that ought to be still: bool (H, W).

    NaN when the mask is empty or there is one frame.
    """
    if len(frames) < 2 or not still.any():
        return float("nan")
    planes = np.stack([luma(frame) for frame in frames])[:, still]
    return float(np.abs(np.diff(planes, axis=0)).mean())


def outside_faces(landmarks: Landmarks, height: int, width: int, growth: float = 0.3) -> Mask:
    """Pixels that are in no frame's face box, grown on every side by `growth` of its size: bool (H, W)."""
    away = np.ones((height, width), dtype=bool)
    for points in landmarks[np.isfinite(landmarks).all(axis=(1, 2))]:
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        margin = growth * (high - low)
        (left, top), (right, bottom) = np.maximum(low - margin, 0).astype(int), (high + margin).astype(int)
        away[top : bottom + 1, left : right + 1] = False
    return away


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Between two sets of features (N, D) and (M, D), as Gaussians (Dowson & Landau 1982). At least two of each."""
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            "a Fréchet distance needs two sets of at least 2 vectors of one width, got "
            f"{first.shape} and {second.shape}"
        )
    means = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    one, other = (np.atleast_2d(np.cov(values.astype(np.float64).T)) for values in (first, second))
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are not negative.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(one @ other).real, 0))
    return float(means @ means + np.trace(one + other) - 2 * roots.sum())


def _histogram(frames: Frames) -> NDArray[np.float64]:
    """Shares (3, bins) over 3, so that all add up to 1."""
    counts = np.stack(
        [
            np.bincount(frames[..., c].ravel() // (256 // HISTOGRAM_BINS), minlength=HISTOGRAM_BINS)
            for c in range(3)
        ]
    )
    return np.asarray(counts / counts.sum())
