"""How well movement is repeated: landmarks, pose, expression, jitter, flicker, identity.

Landmarks are MediaPipe's 478 points, float (T, 478, 2 or 3) in pixels; a frame where no face was found is NaN.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.geometry.camera import axis_angle, rotation_matrix
from omokage.metrics.image import Frames, Mask, PerFrame, luma, region_masks

Landmarks = NDArray[np.floating]

# Closed outlines in drawing order (MediaPipe face mesh). 'Left' and 'right' are the subject's, as in MediaPipe.
FACE_OVAL = (
    10, 109, 67, 103, 54, 21, 162, 127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148,
    152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356, 389, 251, 284, 332, 297, 338,
)  # fmt: skip
LIPS_OUTER = (0, 37, 39, 40, 185, 61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267)
LIPS_INNER = (13, 82, 81, 80, 191, 78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312)
LEFT_EYE = (249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 263)
RIGHT_EYE = (7, 33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163)
LEFT_IRIS = (474, 475, 476, 477)
RIGHT_IRIS = (469, 470, 471, 472)
MOUTH = LIPS_OUTER + LIPS_INNER
EYES = LEFT_EYE + RIGHT_EYE + LEFT_IRIS + RIGHT_IRIS
OUTER_EYE_CORNERS = (33, 263)
# Bone under thin skin: forehead, temples, eye corners, nose. Speech and lids leave these points in place.
RIGID = (
    10, 109, 338, 67, 297, 103, 332, 54, 284, 21, 251, 162, 389, 127, 356, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 2,
    98, 327, 33, 133, 362, 263,
)  # fmt: skip

STILL_DEVIATION = (
    3.0  # grey levels: standard deviation over time below which a pixel of the truth counts as still
)


class IdentityEmbedder(Protocol):
    """A face-recognition network of the user's: one picture in, one unit-free vector out (None: no face found).

    omokage ships none, because the usual weights are not free for commercial use; and a measure without weights (of
    colors or face shape) does not tell persons apart, so the report leaves identity out when there is no embedder.
    """

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.floating] | None: ...


def inter_ocular_px(landmarks: Landmarks) -> PerFrame:
    """Distance between the outer eye corners in px: float64 (T,)."""
    left, right = (landmarks[:, i, :2].astype(np.float64) for i in OUTER_EYE_CORNERS)
    return np.asarray(np.linalg.norm(left - right, axis=-1))


def landmark_distance_px(
    truth: Landmarks, predicted: Landmarks, points: tuple[int, ...] | None = None
) -> PerFrame:
    """Mean distance of the landmarks in the picture, px: float64 (T,); NaN where a face is missing.

    `points`: which of the 478 count (None: all).
    """
    _require_equal(truth, predicted)
    rows = list(range(truth.shape[1])) if points is None else list(points)
    error = truth[:, rows, :2].astype(np.float64) - predicted[:, rows, :2]
    return np.asarray(np.linalg.norm(error, axis=-1).mean(axis=-1))


def normalized_landmark_distance(
    truth: Landmarks, predicted: Landmarks, points: tuple[int, ...] | None = None
) -> PerFrame:
    """`landmark_distance_px` in per cent of the true frame's inter-ocular distance (outer corners): float64 (T,)."""
    return 100 * landmark_distance_px(truth, predicted, points) / inter_ocular_px(truth)


def expression_error(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> PerFrame:
    """AED: mean absolute difference of the blendshape weights (T, 52) in [0, 1]: float64 (T,)."""
    _require_equal(truth, predicted)
    return np.asarray(np.abs(truth.astype(np.float64) - predicted).mean(axis=-1))


def pose_error_deg(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> PerFrame:
    """APD: angle between two head rotations, axis-angle (T, 3) in radians -> degrees, float64 (T,)."""
    _require_equal(truth, predicted)
    one, other = (rotation_matrix(np.asarray(rotation, np.float64)) for rotation in (truth, predicted))
    between = np.swapaxes(one, -1, -2) @ other
    cosine = (np.trace(between, axis1=-2, axis2=-1) - 1) / 2
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def rotation_from_landmarks(landmarks: Landmarks, reference: Landmarks) -> NDArray[np.float64]:
    """Head rotation of each frame against a `reference` shape, from the points on bone (Kabsch 1976).

    landmarks (T, 478, 3), reference (478, 3), both x, y, z in px. Returns axis-angle (T, 3) in radians; NaN where a
    face is missing.
    """
    points = landmarks[:, RIGID, :].astype(np.float64)
    target = reference[list(RIGID)].astype(np.float64)
    points = points - points.mean(axis=1, keepdims=True)
    target = target - target.mean(axis=0)
    rotations = np.full((len(landmarks), 3), np.nan)
    found = np.isfinite(points).all(axis=(1, 2))
    u, _, vt = np.linalg.svd(np.swapaxes(points[found], 1, 2) @ target)
    handedness = np.linalg.det(u @ vt)
    u[:, :, 2] *= handedness[:, None]
    rotations[found] = axis_angle(u @ vt)
    return rotations


def jitter_px(landmarks: Landmarks) -> float:
    """Root mean square of the second difference over time of all landmarks, px; real movement is part of it.

    Compare with the jitter of the true frames. NaN when no three neighboring frames have a face.
    """
    second = np.diff(landmarks[..., :2].astype(np.float64), n=2, axis=0)
    squared = (second**2).sum(axis=-1)
    return float(np.sqrt(np.nanmean(squared))) if np.isfinite(squared).any() else float("nan")


def still_pixels(truth: Frames, *, limit: float = STILL_DEVIATION) -> Mask:
    """Pixels of the truth that do not move: luma deviates by less than `limit` grey levels over time; bool (H, W)."""
    return np.asarray(_deviation(np.stack([luma(frame) for frame in truth])) < limit)


def flicker(truth: Frames, predicted: Frames, region: Mask | None = None) -> float:
    """Standard deviation over time of (predicted - truth), grey levels, mean over the pixels where the truth is still.

    `region`: bool (H, W), an extra limit. NaN when nothing is still there.
    """
    region_masks(truth, predicted, None)
    still = still_pixels(truth) & (True if region is None else region)
    residual = np.stack([luma(p) - luma(t) for p, t in zip(predicted, truth, strict=True)])
    return float(_deviation(residual)[still].mean()) if still.any() else float("nan")


def background_variance(predicted: Frames, background: Mask) -> float:
    """Variance over time of the predicted luma, grey levels squared, mean over `background` (bool (H, W)).

    0 for a still background that does not breathe; NaN when the mask is empty.
    """
    pixels = np.stack([luma(frame) for frame in predicted])[:, background]
    return float(pixels.var(axis=0).mean()) if background.any() else float("nan")


def identity_similarity(truth: Frames, predicted: Frames, embedder: IdentityEmbedder) -> PerFrame:
    """CSIM: cosine of the embeddings of true and predicted frame in [-1, 1]: float64 (T,); NaN without a face."""
    region_masks(truth, predicted, None)
    values = np.full(len(truth), np.nan)
    for t, pair in enumerate(zip(truth, predicted, strict=True)):
        one, other = (embedder(image) for image in pair)
        if one is not None and other is not None:
            values[t] = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    return values


def _deviation(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(planes.std(axis=0))


def _require_equal(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> None:
    if truth.shape != predicted.shape:
        raise InputError(
            f"truth and prediction must have the same shape, got {truth.shape} and {predicted.shape}"
        )
