"""Follows the shoulders: a shift, scale and roll of what is below the chin, against the first picture.

Good features are followed by pyramidal Lucas-Kanade; RANSAC finds the similarity that most of them agree on. When too
few agree, the last motion is held.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Image
from omokage.tracking.landmarks import Landmarks

Float = NDArray[np.float64]

WORK_SIDE_PX = 320
MAX_FEATURES = 120
MIN_FEATURES = 12
_CHIN, _CHEEKS = 152, (234, 454)


class TorsoTracker:
    """Call `step` for every picture in order. The result is relative to the first picture with a face."""

    def __init__(self) -> None:
        self._gray: NDArray[np.uint8] | None = None
        self._now = np.empty((0, 2), dtype=np.float32)  # features in the picture before
        self._origin = np.empty((0, 2), dtype=np.float32)  # where they were at the anchor
        self._base = np.eye(3)  # first picture -> anchor
        self._total = np.eye(3)  # first picture -> now
        self._center: Float | None = None
        self._head_width = 1.0

    def step(self, image: Image, face: Landmarks | None) -> NDArray[np.float32]:
        """(4,): shift x, y in head widths, log scale, roll in radians (clockwise > 0)."""
        scale = min(1.0, WORK_SIDE_PX / max(image.shape[:2]))
        size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        points = None if face is None else face.points[:, :2].astype(np.float64) * scale
        if self._gray is not None and len(self._now):
            self._follow(gray)
        if points is not None:
            if self._center is None:
                self._head_width = max(1.0, float(np.linalg.norm(points[_CHEEKS[1]] - points[_CHEEKS[0]])))
                self._center = points[_CHIN] + [0, 0.7 * self._head_width]
            if len(self._now) < MAX_FEATURES // 3:
                self._seed(gray, points)
        self._gray = gray
        return self._reading()

    def _follow(self, gray: NDArray[np.uint8]) -> None:
        assert self._gray is not None
        guess = self._now[:, None].copy()
        moved, found, _ = cv2.calcOpticalFlowPyrLK(
            self._gray, gray, self._now[:, None], guess, winSize=(13, 13), maxLevel=2
        )
        good = found[:, 0] == 1
        good &= ((moved[:, 0] >= 0) & (moved[:, 0] < gray.shape[::-1])).all(axis=1)
        self._now, self._origin = np.ascontiguousarray(moved[good, 0], dtype=np.float32), self._origin[good]
        if len(self._now) < MIN_FEATURES:
            return
        matrix, agrees = cv2.estimateAffinePartial2D(
            self._origin, self._now, method=cv2.RANSAC, ransacReprojThreshold=1.5, maxIters=100
        )
        if matrix is None or agrees.sum() < MIN_FEATURES:
            return
        self._total = np.vstack([matrix, [0, 0, 1]]) @ self._base
        near = agrees[:, 0] == 1
        self._now, self._origin = self._now[near], self._origin[near]

    def _seed(self, gray: NDArray[np.uint8], points: Float) -> None:
        """New features below the chin; what was followed so far becomes the new anchor."""
        chin, width = points[_CHIN], float(np.linalg.norm(points[_CHEEKS[1]] - points[_CHEEKS[0]]))
        top, left, right = (
            round(v) for v in (chin[1] + 0.3 * width, chin[0] - 0.9 * width, chin[0] + 0.9 * width)
        )
        region = np.zeros(gray.shape, dtype=np.uint8)
        region[max(top, 0) :, max(left, 0) : max(right, 0)] = 255
        found = cv2.goodFeaturesToTrack(gray, MAX_FEATURES, 0.01, 5, mask=region)
        self._base = self._total
        if found is None:
            self._now = self._origin = np.empty((0, 2), dtype=np.float32)
        else:
            self._now = self._origin = np.asarray(found[:, 0], dtype=np.float32)

    def _reading(self) -> NDArray[np.float32]:
        if self._center is None:
            return np.zeros(4, dtype=np.float32)
        moved = self._total[:2, :2] @ self._center + self._total[:2, 2]
        shift = (moved - self._center) / self._head_width
        cos, sin = self._total[0, 0], self._total[1, 0]
        return np.array([*shift, np.log(np.hypot(cos, sin)), np.arctan2(sin, cos)], dtype=np.float32)
