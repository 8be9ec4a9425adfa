"""What should stand still: cuts between neighbouring frames, the camera, and the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.capture.face_reading import CHIN, FOREHEAD
from omokage.capture.measurements import BackgroundMeasurements
from omokage.media.clip import Frame, Image

Points = NDArray[np.float32]  # landmarks (478, 3), pixels of the frame

NEIGHBORS = 3  # changes on either side that a cut must stand out from
# Change is 1 - correlation of two 64 x 64 pictures, so brightness and contrast (flashes, lamps) do not count.
# Measured on ten clips: 0.33 and 2.9 times its neighbours is the most that violent head shaking reaches.
SCENE_CHANGE, SCENE_SPIKE = 0.45, 5.0
JUMP_CHANGE, JUMP_SPIKE = 0.03, 4.0
# Landmark movement between neighbouring frames, in face heights. A smaller jump does no harm to an avatar.
SCENE_MOVE, JUMP_MOVE = 0.03, 0.06
REPEATED_DIFFERENCE = 0.02  # mean luma difference (0..255) of two decodings of the same picture


class CutDetector:
    """Finds cuts in a stream of frames: `add` every frame in order, then read the results.

    A cut is one sudden change of the picture that its neighbours do not share and at which the face jumps or vanishes
    too. A flash of up to three frames is none, since a second change takes it back; a longer blank is one.
    `landmarks_of` is only called on the few frames next to a suspected cut. The first and last three frames are not
    judged. Holds eight frames at any time.
    """

    def __init__(self, landmarks_of: Callable[[Image], Points | None]) -> None:
        self._landmarks_of = landmarks_of
        self._frames: deque[Frame] = deque(maxlen=2 * NEIGHBORS + 2)
        self._thumbs: deque[NDArray[np.float32]] = deque(maxlen=2 * NEIGHBORS + 2)
        self._changes: deque[float] = deque(maxlen=2 * NEIGHBORS + 1)
        self._last_luma: NDArray[np.float32] | None = None
        self._pairs = 0
        self._repeated = 0
        self._cut_times_s: list[float] = []

    @property
    def cut_times_s(self) -> tuple[float, ...]:
        """Time of the first frame after each cut."""
        return tuple(self._cut_times_s)

    @property
    def repeated_share(self) -> float:
        """Share of neighbouring frames that are the same picture."""
        return self._repeated / max(self._pairs, 1)

    def add(self, frame: Frame) -> None:
        small = cv2.resize(frame.image, (64, 64), interpolation=cv2.INTER_AREA)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        thumb = (luma - luma.mean()) / max(float(luma.std()), 1.0)
        if self._last_luma is not None:
            self._pairs += 1
            self._repeated += bool(np.abs(luma - self._last_luma).mean() < REPEATED_DIFFERENCE)
            self._changes.append(_change(self._thumbs[-1], thumb))
        self._last_luma = luma
        self._thumbs.append(thumb)
        self._frames.append(frame)
        if len(self._changes) == self._changes.maxlen and self._is_cut():
            self._cut_times_s.append(self._frames[NEIGHBORS + 1].time_s)

    def _is_cut(self) -> bool:
        """Judge the change in the middle of the buffer: between frames 3 and 4 of 8."""
        change = self._changes[NEIGHBORS]
        others = [c for i, c in enumerate(self._changes) if i != NEIGHBORS]
        spike = change / (max(others) + 1e-3)
        if change > SCENE_CHANGE and spike > SCENE_SPIKE:
            move = self._move()
            return move is None or move > SCENE_MOVE
        if change > JUMP_CHANGE and spike > JUMP_SPIKE:
            move = self._move()
            return move is not None and move > JUMP_MOVE
        return False

    def _move(self) -> float | None:
        """Mean landmark movement at the suspected cut, in face heights; None if there is no face on one side."""
        first = self._landmarks_of(self._frames[NEIGHBORS].image)
        second = self._landmarks_of(self._frames[NEIGHBORS + 1].image)
        if first is None or second is None:
            return None
        height = float(np.linalg.norm(first[FOREHEAD, :2] - first[CHIN, :2]))
        return float(np.linalg.norm(second[:, :2] - first[:, :2], axis=1).mean()) / max(height, 1.0)


def _change(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """1 - correlation of two pictures of variance 1; blank pictures (variance near 0) equal each other."""
    if max(float((first**2).mean()), float((second**2).mean())) < 0.5:
        return 0.0
    return float(1 - (first * second).mean())


WORK_WIDTH = 320  # px; the background is watched at this picture width
MIN_AREA = 0.03  # of the picture; with less visible background nothing is said
CORNER_BLOCK = 7  # px; wide enough for the soft shapes of a background out of focus
MIN_CORNER = 1e-4  # smaller eigenvalue of the structure tensor; plain walls reach 2e-5, soft shelves 3e-4
MIN_POINTS = 6  # trackable corners; a plainer wall tells nothing about the camera
AGREE_PX = 1.0
MARGIN = 0.03  # of the picture's width; loose hair and blurred edges around the person are not background
CHANGED_LUMA = 25.0  # luma steps (0..255) that count as a visible change


class BackgroundWatch:
    """Watches what is not the person: `add` sampled frames, then `measure`.

    Corners of the first background are found again in every frame (Lucas-Kanade with a check back); the shift that most
    of them share is the camera's. What differs after undoing that shift has moved by itself.
    """

    def __init__(self) -> None:
        self._reference: NDArray[np.uint8] | None = None
        self._reference_mask: NDArray[np.bool_] | None = None
        self._points: NDArray[np.float32] | None = None
        self._shifts: list[NDArray[np.float64]] = [np.zeros(2)]
        self._changed: list[float] = []

    def add(self, image: Image, alpha: NDArray[np.float32]) -> None:
        """`image` (H, W, 3) RGB; `alpha` (h, w) of the person in [0, 1], at any size."""
        size = (WORK_WIDTH, max(1, round(image.shape[0] * WORK_WIDTH / image.shape[1])))
        small = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        luma = np.asarray(cv2.GaussianBlur(small, (0, 0), 1.0), dtype=np.uint8)
        mask = _background_mask(alpha, size)
        if mask.mean() < MIN_AREA:
            return
        if self._reference is None or self._reference_mask is None:
            self._start(luma, mask)
            return
        if self._points is not None:
            self._follow(luma, mask)
        self._changed.append(self._changed_share(luma, mask))

    def measure(self) -> BackgroundMeasurements | None:
        """None when too little background was visible in nearly all frames."""
        if not self._changed:
            return None
        travel = None
        if self._points is not None:
            low, high = np.percentile(np.array(self._shifts), [2, 98], axis=0)
            travel = float((high - low).max() / WORK_WIDTH)
        return BackgroundMeasurements(
            camera_travel=travel, changed_share=float(np.percentile(self._changed, 95))
        )

    def _start(self, luma: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        is_corner = mask & (np.asarray(cv2.cornerMinEigenVal(luma, CORNER_BLOCK)) > MIN_CORNER)
        corners = cv2.goodFeaturesToTrack(
            luma, 80, 0.001, 6, mask=is_corner.astype(np.uint8), blockSize=CORNER_BLOCK
        )
        is_plain = corners is None or len(corners) < MIN_POINTS
        self._points = None if is_plain else np.asarray(corners, dtype=np.float32)
        self._reference, self._reference_mask = luma, mask

    def _follow(self, luma: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
        """Note the shift (x, y) in px of the reference's corners, unless too few of them agree."""
        assert self._points is not None and self._reference is not None
        guess = self._points + self._shifts[-1].astype(np.float32)
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        there, found, _ = cv2.calcOpticalFlowPyrLK(
            self._reference, luma, self._points, guess.copy(), flags=flags
        )
        back, returned, _ = cv2.calcOpticalFlowPyrLK(
            luma, self._reference, there, self._points.copy(), flags=flags
        )
        there, back = np.asarray(there)[:, 0], np.asarray(back)[:, 0]
        column, row = np.clip(there.round().astype(int), 0, np.array(luma.shape[::-1]) - 1).T
        is_found = (np.asarray(found)[:, 0] > 0) & (np.asarray(returned)[:, 0] > 0)
        is_good = is_found & mask[row, column] & (np.linalg.norm(back - self._points[:, 0], axis=1) < 0.5)
        if is_good.sum() < MIN_POINTS // 2:
            return
        moves = (there - self._points[:, 0])[is_good].astype(np.float64)
        shift = np.median(moves, axis=0)
        if np.mean(np.linalg.norm(moves - shift, axis=1) < AGREE_PX) > 0.5:
            self._shifts.append(shift)

    def _changed_share(self, luma: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
        assert self._reference is not None and self._reference_mask is not None
        move = np.array([[1, 0, self._shifts[-1][0]], [0, 1, self._shifts[-1][1]]])
        size = (luma.shape[1], luma.shape[0])
        reference = cv2.warpAffine(self._reference, move, size).astype(np.float32)
        both = (cv2.warpAffine(self._reference_mask.astype(np.uint8), move, size) > 0) & mask
        if both.mean() < MIN_AREA:
            return 0.0
        difference = (luma.astype(np.float32) - reference)[both]
        return float((np.abs(difference - np.median(difference)) > CHANGED_LUMA).mean())


def _background_mask(alpha: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """True where surely no part of the person is, at `size` (width, height)."""
    person = (cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR) > 0.1).astype(np.uint8)
    reach = 2 * round(MARGIN * size[0]) + 1
    return np.asarray(cv2.dilate(person, np.ones((reach, reach), np.uint8)) == 0)
