"""The simple methods that an avatar must beat, each predicting the test frames from the training part.

1. `nearest_training_frame`: the training frame with the nearest landmarks.
2. `warped_training_frame`: the best training frame, warped by a smooth flow between its landmarks and the target's.
3. the avatar's explicit composition before training: a `PredictFn` that the avatar supplies.
4. `unet_baseline.train_plain_unet`: a plain U-Net of equal size and time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial.distance import cdist

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InternalError
from omokage.evaluate.protocol import HeldOut
from omokage.metrics.image import Frames
from omokage.metrics.motion import EYES, FACE_OVAL, MOUTH, Landmarks, inter_ocular_px

# Predicts all test frames, uint8 (T, S, S, 3), from `HeldOut.without_truth()`.
PredictFn = Callable[[HeldOut], Frames]

LIP_AND_EYE_WEIGHT = 4.0  # against 1 for other landmarks, when frames are compared by shape
ANCHOR_SPACING = 1 / 12  # of the picture, between the points held at 0
FLOW_STEP = 4  # px: the flow is computed on this grid and interpolated
REHEARSALS = 12  # training frames on which the rule of the warp is chosen


@dataclass(frozen=True, slots=True)
class WarpRule:
    """`position_weight`: how much the face's position counts against its shape when a frame is looked for.

    `still_radius`: in half axes of the face oval; the flow is held at 0 beyond it.
    """

    position_weight: float
    still_radius: float


WARP_RULES = tuple(WarpRule(weight, radius) for weight in (0.25, 0.5, 1.0) for radius in (1.25, 1.6))
DEFAULT_RULE = WarpRule(0.5, 1.6)


def predict(method: PredictFn, held_out: HeldOut) -> Frames:
    """Run a method without letting it see the true test frames. Raises InternalError on a wrong shape."""
    frames = method(held_out.without_truth())
    if frames.shape != held_out.test_frames.shape or frames.dtype != np.uint8:
        raise InternalError(
            f"a method must predict {held_out.test_frames.shape} uint8, got {frames.shape} {frames.dtype}"
        )
    return frames


def nearest_training_frame(held_out: HeldOut) -> Frames:
    """The training frame whose landmarks lie nearest in the picture, position included."""
    train, test = (points[..., :2].reshape(len(points), -1) for points in _both_landmarks(held_out))
    return np.asarray(held_out.train_frames[cdist(test, train).argmin(axis=1)])


def warped_training_frame(held_out: HeldOut, *, on_progress: ProgressCallback = ignore_progress) -> Frames:
    """The training frame of the most similar face shape, warped onto the target's landmarks.

    The flow interpolates the displacements of the 478 landmarks with a linear radial basis (scipy) and is 0 far from
    the face. How much position counts and how far the flow reaches is chosen on the end of the training part.
    """
    rule = choose_warp_rule(held_out.train_frames, held_out.train_landmarks)
    rows = most_similar_frames(*_both_landmarks(held_out), position_weight=rule.position_weight)
    predicted = np.empty_like(held_out.test_frames)
    for t, row in enumerate(rows):
        source, target = held_out.train_landmarks[row], held_out.test_landmarks[t]
        image = held_out.train_frames[row]
        predicted[t] = warp_by_landmarks(image, source, target, still_radius=rule.still_radius)
        on_progress(Progress("warping training frames", t + 1, len(rows)))
    return predicted


def choose_warp_rule(frames: Frames, landmarks: Landmarks) -> WarpRule:
    """The rule with the least squared error on frames of the last fifth, warped from the four fifths before."""
    start = len(frames) * 4 // 5
    if start < REHEARSALS:
        return DEFAULT_RULE
    targets = np.unique(np.linspace(start, len(frames) - 1, REHEARSALS).astype(int))

    def error(rule: WarpRule) -> float:
        rows = most_similar_frames(
            landmarks[:start], landmarks[targets], position_weight=rule.position_weight
        )
        squared = [
            (
                warp_by_landmarks(frames[s], landmarks[s], landmarks[t], still_radius=rule.still_radius)
                - 1.0 * frames[t]
            )
            ** 2
            for s, t in zip(rows, targets, strict=True)
        ]
        return float(np.mean(squared))

    return min(WARP_RULES, key=error)


def most_similar_frames(train: Landmarks, test: Landmarks, *, position_weight: float) -> NDArray[np.int64]:
    """Row of the training frame with the most similar shape, for landmarks (N, 478, 2+) and (T, 478, 2+): (T,).

    Shape is compared without its position (which counts by `position_weight`), lips and eyes four times.
    """
    scale = float(inter_ocular_px(train).mean())
    weights = np.ones(train.shape[1])
    weights[list(MOUTH + EYES)] = LIP_AND_EYE_WEIGHT
    spread = np.sqrt(weights / weights.sum())[None, :, None]
    (train_shape, train_center), (test_shape, test_center) = (
        _shape_and_center(points[..., :2] / scale) for points in (train, test)
    )
    shape = cdist(*((part * spread).reshape(len(part), -1) for part in (test_shape, train_shape)))
    position = cdist(test_center, train_center)
    return np.asarray(np.hypot(shape, position_weight * position).argmin(axis=1))


def warp_by_landmarks(
    image: NDArray[np.uint8], source: Landmarks, target: Landmarks, *, still_radius: float
) -> NDArray[np.uint8]:
    """Move `image` (S, S, 3) so that its landmarks `source` (478, 2+) come to lie on `target` (478, 2+), px."""
    size = image.shape[0]
    points = np.concatenate([target[:, :2], _still_anchors(target, size, still_radius)]).astype(np.float64)
    displacements = np.zeros_like(points)
    displacements[: len(target)] = source[:, :2] - target[:, :2]
    points, first = np.unique(points.round(2), axis=0, return_index=True)
    flow_at = RBFInterpolator(points, displacements[first], kernel="linear", smoothing=1.0, degree=1)
    centers = np.arange(FLOW_STEP / 2, size, FLOW_STEP)
    grid = np.stack(np.meshgrid(centers, centers), axis=-1)
    flow = flow_at(grid.reshape(-1, 2)).reshape(grid.shape).astype(np.float32)
    flow = cv2.resize(flow, (size, size), interpolation=cv2.INTER_CUBIC)
    columns, rows = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32))
    maps = (columns + flow[..., 0], rows + flow[..., 1])
    return np.asarray(cv2.remap(image, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def _still_anchors(target: Landmarks, size: int, still_radius: float) -> NDArray[np.float64]:
    """Grid points (A, 2) in px on the border and beyond `still_radius` of the face, where nothing should move."""
    steps = np.linspace(0, size, round(1 / ANCHOR_SPACING) + 1)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    oval = target[list(FACE_OVAL), :2]
    radius = np.linalg.norm((grid - oval.mean(axis=0)) / (np.ptp(oval, axis=0) / 2), axis=1)
    is_border = ((grid == 0) | (grid == size)).any(axis=1)
    # An anchor on the face itself, when the face touches the border, would tear the flow.
    return np.asarray(grid[(is_border & (radius > 1.1)) | (radius > still_radius)])


def _shape_and_center(points: Landmarks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    center = points.astype(np.float64).mean(axis=1)
    return points - center[:, None], center


def _both_landmarks(held_out: HeldOut) -> tuple[Landmarks, Landmarks]:
    return held_out.train_landmarks, held_out.test_landmarks
