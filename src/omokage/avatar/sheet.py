"""The portrait sheet: a smooth surface around the face that carries hair, neck and shoulders.

The morphable face ends at its oval. The sheet continues it outwards, ring by ring, to beyond the border of the picture.
Near the face it is bound to the head, below the chin and far out to the shoulders, so one mesh moves the whole
portrait and one warp map pulls the whole texture. What its flat hair and ears get wrong is the U-Net's work.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import Camera, rotation_matrix
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]

# Rings as multiples of the oval's radius: dense where hair and neck meet the face.
RING_SCALES = (1.0, 1.06, 1.14, 1.25, 1.4, 1.6, 1.85, 2.2, 2.7, 3.5, 5.0, 9.0)
# How far behind the oval's sides the hair is laid, in face half-widths.
HAIR_DEPTH = 0.45
POSE_FEATURES = 11
RESPONSE_FEATURES = POSE_FEATURES + len(BLENDSHAPES)


def smoothstep(low: float, high: float, x: Float) -> Float:
    """0 below `low`, 1 above `high`, cubic between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Crop:
    """The fixed square of the recording that the avatar shows: origin and side in the clip's pixels."""

    left: float
    top: float
    side: float

    def apply(self, points: Float, size: int) -> Float:
        """Pixels of the clip (..., 2+) -> pixels of a `size` picture; a third column (depth) is kept."""
        scaled = points.copy()
        scaled[..., :2] = (points[..., :2] - (self.left, self.top)) * (size / self.side)
        return scaled


@dataclass(frozen=True)
class Pose:
    """Where head and shoulders are in one frame.

    rotation (3,) axis-angle, translation (3,) cm, torso (4,): shift x, y in head widths, log scale, roll (radians).
    """

    rotation: Float
    translation: Float
    torso: Float


@dataclass(frozen=True)
class Sheet:
    """The sheet of one subject, in head space at rest. N points = rings x 36 around.

    points: (N, 3), cm.  head_weight: (N,), 1 = moves with the head, 0 = with the shoulders.
    oval_weight: (N,), 1 = follows the face's outline as the jaw moves it, 0 = does not.
    triangles: int32 (F, 3) into the sheet's own points.  uv: (N, 2) in [0, 1].
    response: (N, 63, 2), learned shift in head widths per unit of `features` (see `registration`).
    head_width: cm.  torso_weight: 1 when the shoulders follow the tracked torso, 0 when that tracking did not help.
    """

    points: Float
    head_weight: Float
    oval_weight: Float
    triangles: NDArray[np.int32]
    uv: Float
    response: Float
    rest: Pose
    camera: Camera
    head_width: float
    torso_weight: float = 1.0

    @classmethod
    def build(
        cls, model: MorphableModel, subject: Subject, *, rest: Pose, camera: Camera, crop: Crop
    ) -> Sheet:
        oval = subject.neutral[model.face_oval].astype(np.float64)  # (36, 3), ordered loop
        center = np.array([oval[:, 0].mean(), oval[:, 1].mean(), 0.0])
        half_width, height = np.ptp(oval[:, 0]) / 2, np.ptp(oval[:, 1])
        hair_z = oval[:, 2].max() + HAIR_DEPTH * half_width
        scales = np.array(RING_SCALES)[:, None]

        points = np.empty((len(RING_SCALES), len(oval), 3))
        points[..., :2] = center[:2] + (oval[None, :, :2] - center[:2]) * scales[..., None]
        recede = smoothstep(1.0, 1.5, scales)
        points[..., 2] = oval[None, :, 2] * (1 - recede) + hair_z * recede
        below_chin = (points[..., 1] - oval[:, 1].max()) / height
        head_weight = (1 - smoothstep(0.0, 0.55, below_chin)) * (1 - smoothstep(2.2, 5.0, scales))
        head_weight = np.broadcast_to(head_weight, points.shape[:2]).reshape(-1)
        flat = points.reshape(-1, 3)

        oval_weight = np.broadcast_to(
            1 - smoothstep(1.0, 1.6, scales), (len(RING_SCALES), len(oval))
        ).reshape(-1)
        at_rest = camera.project(flat @ rotation_matrix(rest.rotation).T + rest.translation)
        # A part of the chart lies outside the picture, for what only comes into view when the head moves.
        uv = np.clip((crop.apply(at_rest, 1)[:, :2] - 0.5) * 0.8 + 0.5, 0.0, 1.0)
        return cls(
            points=flat,
            head_weight=head_weight,
            oval_weight=oval_weight,
            triangles=_ring_triangles(len(RING_SCALES), len(oval)),
            uv=uv,
            response=np.zeros((len(flat), RESPONSE_FEATURES, 2)),
            rest=rest,
            camera=camera,
            head_width=float(2 * half_width),
        )

    def project(self, pose: Pose, expression: Float, oval: Float) -> Float:
        """The sheet in one frame: (N, 3), pixels of the clip and depth in cm.

        `oval`: (36, 3), where the face's outline is in that frame (pixels and depth), so that no seam opens.
        """
        head = self.camera.project(self.points @ rotation_matrix(pose.rotation).T + pose.translation)
        body = self._shoulders(pose)
        weight = self.head_weight[:, None]
        placed = weight * head + (1 - weight) * body
        placed[:, :2] += self.pixels_per_head(pose) * np.einsum(
            "nkc,k->nc", self.response, self.features(pose, expression)
        )
        away = np.tile(oval - placed[: len(oval)], (len(RING_SCALES), 1))
        return placed + self.oval_weight[:, None] * away

    def pixels_per_head(self, pose: Pose) -> float:
        """Width of the head in pixels of the clip at this distance."""
        return float(self.camera.focal_px * self.head_width / pose.translation[2])

    def features(self, pose: Pose, expression: Float) -> Float:
        """What hair and shoulders may respond to, (63,): `pose_features` and the expression.

        Brows and jaw move the scalp a little, and the tracked pose more: what a face does, its pose is mistaken by.
        """
        return np.concatenate([self.pose_features(pose), expression])

    def pose_features(self, pose: Pose) -> Float:
        """The pose, (11,): 1, turn (3), shift in head widths (3), torso (4)."""
        turn = 2 * (np.asarray(pose.rotation) - self.rest.rotation)
        shift = (np.asarray(pose.translation) - self.rest.translation) / self.head_width
        return np.concatenate([[1.0], turn, shift * (1, 1, 0.3), self._torso(pose)])

    def _torso(self, pose: Pose) -> Float:
        return self.torso_weight * (np.asarray(pose.torso, dtype=np.float64) - self.rest.torso)

    def _shoulders(self, pose: Pose) -> Float:
        body = self.camera.project(
            self.points @ rotation_matrix(self.rest.rotation).T + self.rest.translation
        )
        pivot = body[self.head_weight < 0.5, :2].mean(axis=0)
        dx, dy, log_scale, roll = self._torso(pose)
        turn = np.exp(log_scale) * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        body[:, :2] = (
            pivot + (body[:, :2] - pivot) @ turn.T + self.pixels_per_head(self.rest) * np.array([dx, dy])
        )
        return body


def _ring_triangles(rings: int, around: int) -> NDArray[np.int32]:
    ring, step = np.meshgrid(np.arange(rings - 1), np.arange(around), indexing="ij")
    following = (step + 1) % around
    a, b = ring * around + step, ring * around + following
    c, d = a + around, b + around
    quads = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], axis=2)
    return quads.reshape(-1, 3).astype(np.int32)
