"""Landmarks of one frame -> what the capture check wants to know about the face in it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Image

# Landmark numbers of the 478-point mesh that is used throughout `tracking`.
FOREHEAD, SUBNASALE, CHIN, NOSE_BRIDGE = 10, 2, 152, 168
BROWS, CHEEKS, PUPILS = (105, 334), (234, 454), (468, 473)
MOUTH_CORNERS, INNER_LIPS = (61, 291), (13, 14)
# Per eye: the corner on the picture's left and on its right, then upper and lower lid.
EYES = ((33, 133, 159, 145), (362, 263, 386, 374))

# An eye's opening is about 30 mm wide and the eyeball's radius 12 mm: sin(gaze) = shift / width x 30 / 12.
EYE_WIDTH_OVER_RADIUS = 2.5

SHARPNESS_HEIGHT_PX = 256  # sharpness is compared at this height of the face's box
WHITE, BLACK = 250, 5


@dataclass(frozen=True, slots=True)
class FaceReading:
    """One face in one frame; see `FaceMeasurements` for the meaning of each number (here in pixels of the frame)."""

    time_s: float
    height_px: float
    width_px: float
    pupil_distance_px: float
    picture_share: float
    is_outside: bool
    sharpness: float
    luma: float
    contrast: float
    clipped_share: float
    unevenness: float
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    mouth_opening: float
    mouth_width: float
    eye_opening: float
    gaze_yaw_deg: float
    gaze_pitch_deg: float


def read_face(image: Image, landmarks: NDArray[np.float32], time_s: float) -> FaceReading:
    """`image` (H, W, 3) RGB and the landmarks (478, 3) in its pixels -> the numbers of this frame."""
    points = landmarks.astype(np.float64)
    axes = head_axes(points)
    yaw, pitch, roll = angles_deg(axes)
    gaze_yaw, gaze_pitch = _gaze_deg(points @ axes)
    eye_span = _distance(points, EYES[0][0], EYES[1][1])
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    left, top, right, bottom = head_box(points)
    sharpness, luma, contrast, clipped_share, unevenness = _read_light(image, points[:, :2])
    return FaceReading(
        time_s=time_s,
        height_px=float(np.linalg.norm(points[list(BROWS), :2].mean(axis=0) - points[CHIN, :2])),
        width_px=_distance(points[:, :2], *CHEEKS),
        pupil_distance_px=_distance(points[:, :2], *PUPILS),
        picture_share=float((high - low)[1] / image.shape[0]),
        is_outside=bool(left < 0 or top < 0 or right > image.shape[1] or bottom > image.shape[0]),
        sharpness=sharpness,
        luma=luma,
        contrast=contrast,
        clipped_share=clipped_share,
        unevenness=unevenness,
        yaw_deg=yaw,
        pitch_deg=pitch,
        roll_deg=roll,
        mouth_opening=_distance(points, *INNER_LIPS) / eye_span,
        mouth_width=_distance(points, *MOUTH_CORNERS) / eye_span,
        eye_opening=float(
            np.mean([_distance(points, e[2], e[3]) / _distance(points, e[0], e[1]) for e in EYES])
        ),
        gaze_yaw_deg=gaze_yaw,
        gaze_pitch_deg=gaze_pitch,
    )


def head_axes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Landmarks (P, 3) -> the head's axes right, down, back as columns (3, 3), in the picture's axes.

    An approximation that needs no face model and no camera: right is the line through the outer eye corners, down the
    line from the forehead to below the nose, both of bone and so untouched by expressions. Against a full fit it is
    off by a constant pitch of a few degrees per person; the capture check only looks at ranges.
    """
    right = points[EYES[1][1]] - points[EYES[0][0]]
    right = right / np.linalg.norm(right)
    down = points[SUBNASALE] - points[FOREHEAD]
    down = down - right * (right @ down)
    down = down / np.linalg.norm(down)
    return np.stack([right, down, np.cross(right, down)], axis=1)


def head_box(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Landmarks -> left, top, right, bottom of the head with its hair, which no landmark covers."""
    (left, top), (right, bottom) = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    width, height = right - left, bottom - top
    return left - 0.15 * width, top - 0.25 * height, right + 0.15 * width, bottom


def angles_deg(axes: NDArray[np.float64]) -> tuple[float, float, float]:
    """Head axes -> yaw, pitch, roll in degrees, with the signs of `geometry.camera.yaw_pitch_roll`."""
    right, forward = axes[:, 0], -axes[:, 2]
    yaw = np.arctan2(forward[0], -forward[2])
    pitch = np.arcsin(np.clip(-forward[1], -1, 1))
    roll = np.arctan2(right[1], np.hypot(right[0], right[2]))
    return float(np.degrees(yaw)), float(np.degrees(pitch)), float(np.degrees(roll))


def _gaze_deg(points: NDArray[np.float64]) -> tuple[float, float]:
    """Landmarks in head axes -> mean yaw and pitch of both eyes, degrees; iris centre against the eye's corners."""
    shifts = []
    for pupil, (first, second, _, _) in zip(PUPILS, EYES, strict=True):
        middle = (points[first] + points[second]) / 2
        shifts.append((points[pupil] - middle)[:2] / np.linalg.norm(points[first] - points[second]))
    x, y = np.clip(np.mean(shifts, axis=0) * EYE_WIDTH_OVER_RADIUS, -1, 1)
    return float(np.degrees(np.arcsin(x))), float(-np.degrees(np.arcsin(y)))


def _read_light(image: Image, points: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Image and landmarks (P, 2) -> sharpness, luma, contrast, clipped share, unevenness of the face."""
    corner = np.clip(np.floor(points.min(axis=0)), 0, None).astype(int)
    end = np.ceil(points.max(axis=0)).astype(int)
    box = image[corner[1] : end[1], corner[0] : end[0]]
    luma = np.asarray(cv2.cvtColor(box, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    hull = cv2.convexHull((points - corner).astype(np.int32))
    inside = cv2.fillConvexPoly(np.zeros_like(luma), hull, 1) > 0
    values = luma[inside].astype(np.float64)
    is_left = (np.nonzero(inside)[1] + corner[0]) < points[NOSE_BRIDGE, 0]
    mean = max(float(values.mean()), 1.0)
    # A face turned far away shows one half only: nothing to compare.
    halves = (values[is_left], values[~is_left])
    unevenness = (
        abs(halves[0].mean() - halves[1].mean()) / mean if min(map(len, halves)) > 0.2 * len(values) else 0.0
    )
    is_clipped = (values >= WHITE) | (values <= BLACK)
    return (
        _sharpness(luma),
        float(values.mean()),
        float(values.std()),
        float(is_clipped.mean()),
        float(unevenness),
    )


def _sharpness(luma: NDArray[np.uint8]) -> float:
    scale = SHARPNESS_HEIGHT_PX / luma.shape[0]
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(luma.astype(np.float32), None, fx=scale, fy=scale, interpolation=way)
    return float(1000 * cv2.Laplacian(scaled, cv2.CV_32F).var() / max(float(scaled.var()), 1.0))


def _distance(points: NDArray[np.float64], first: int, second: int) -> float:
    return float(np.linalg.norm(points[first] - points[second]))
