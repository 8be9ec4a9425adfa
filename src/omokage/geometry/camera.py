"""The one camera of omokage, and rotations of the head in front of it.

Axes (OpenCV): x to the right of the picture, y down, z away from the camera. Units: centimetres in space, pixels in
the picture, radians for angles. A head at rest (rotation 0) looks straight into the camera, that is along -z; its
own x axis points to the right of the picture (the subject's left).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole without distortion; the principal point is the centre of the picture.

    `focal_px`: focal length in pixels; `width`, `height`: picture in pixels. The x of pixel centres is 0.5, 1.5, ...
    """

    focal_px: float
    width: int
    height: int

    @classmethod
    def for_image(cls, width: int, height: int) -> Camera:
        """The stated default: focal length 2 x the longer side (28 degrees), typical of a portrait."""
        return cls(focal_px=2.0 * max(width, height), width=width, height=height)

    @property
    def intrinsics(self) -> Float:
        """(3,): focal length and principal point x, y, in pixels."""
        return np.array([self.focal_px, self.width / 2, self.height / 2])

    def project(self, points: Float) -> Float:
        """Points (..., 3) in cm -> (..., 3): x, y in pixels and the depth z in cm."""
        z = points[..., 2]
        x = self.focal_px * points[..., 0] / z + self.width / 2
        y = self.focal_px * points[..., 1] / z + self.height / 2
        return np.stack([x, y, z], axis=-1)


def rotation_matrix(axis_angle: Float) -> Float:
    """Axis-angle (..., 3) in radians -> rotation matrices (..., 3, 3) (Rodrigues)."""
    axis_angle = np.asarray(axis_angle, dtype=np.float64)
    if axis_angle.ndim == 1:
        return np.asarray(_turn_matrix(axis_angle))
    angle = np.linalg.norm(axis_angle, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(axis_angle, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    # sinc keeps both factors smooth at angle 0.
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    rotation: Float = np.eye(3) + first * cross + second * (cross @ cross)
    return rotation


def axis_angle(rotation: Float) -> Float:
    """Rotation matrices (..., 3, 3) -> axis-angle (..., 3) in radians, angle in [0, pi]."""
    from scipy.spatial.transform import Rotation

    flat = Rotation.from_matrix(np.asarray(rotation).reshape(-1, 3, 3)).as_rotvec()
    return np.asarray(flat.reshape(*np.shape(rotation)[:-2], 3), dtype=np.float64)


def yaw_pitch_roll(rotation: Float) -> Float:
    """Axis-angle (..., 3) -> yaw, pitch, roll (..., 3) in radians.

    Yaw > 0: the face turns to the right of the picture; pitch > 0: it looks up; roll > 0: the head tilts clockwise
    as seen in the picture.
    """
    matrix = rotation_matrix(rotation)
    forward = -matrix[..., :, 2]
    right = matrix[..., :, 0]
    yaw = np.arctan2(forward[..., 0], -forward[..., 2])
    pitch = np.arcsin(np.clip(-forward[..., 1], -1, 1))
    roll = np.arctan2(right[..., 1], np.hypot(right[..., 0], right[..., 2]))
    return np.stack([yaw, pitch, roll], axis=-1)


def head_angles(rotation: Float) -> Float:
    """Axis-angle (T, 3) -> yaw, pitch, roll (T, 3) in radians; the inverse of `head_rotation`.

    The signs are those of `yaw_pitch_roll`; roll is about the head's own line of sight.
    """
    from scipy.spatial.transform import Rotation

    angles = Rotation.from_rotvec(rotation).as_euler("YXZ")
    return np.asarray(angles * (-1.0, -1.0, 1.0), dtype=np.float64)


def head_rotation(angles: Float) -> Float:
    """Yaw, pitch, roll (T, 3) in radians -> axis-angle (T, 3)."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("YXZ", angles * (-1.0, -1.0, 1.0)).as_rotvec(), dtype=np.float64)


@njit(cache=True, nogil=True)
def _turn_matrix(turn):  # type: ignore[no-untyped-def]
    """Of one axis-angle (3,), as tracking needs dozens for a picture."""
    angle = np.sqrt(turn[0] ** 2 + turn[1] ** 2 + turn[2] ** 2)
    first = np.sin(angle) / angle if angle > 1e-8 else 1.0
    second = (1 - np.cos(angle)) / angle**2 if angle > 1e-8 else 0.5
    x, y, z = turn
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + first * cross + second * (cross @ cross)


@njit(cache=True, nogil=True)
def turned_further(turn, rotation):  # type: ignore[no-untyped-def]
    """The axis-angle (3,) of `rotation` (3,) followed by `turn` (3,), by their quaternions."""
    first, second = _quaternion(turn), _quaternion(rotation)
    real = first[0] * second[0] - first[1:] @ second[1:]
    rest = first[0] * second[1:] + second[0] * first[1:] + np.cross(first[1:], second[1:])
    if real < 0.0:
        real, rest = -real, -rest
    sine = np.sqrt(rest @ rest)
    return rest * (2 * np.arctan2(sine, real) / sine if sine > 1e-12 else 2.0)


@njit(cache=True, nogil=True)
def _quaternion(turn):  # type: ignore[no-untyped-def]
    half = 0.5 * np.sqrt(turn @ turn)
    result = np.empty(4)
    result[0] = np.cos(half)
    result[1:] = turn * (0.5 * (np.sin(half) / half if half > 1e-9 else 1.0))
    return result
