"""The portrait sheet: a smooth surface around the face that carries hair, neck and shoulders.

The morphable face ends at its oval. The sheet continues it outwards, ring by ring, to beyond the border of the picture.
Near the face it is bound to the head, below the chin and far out to the shoulders, so one mesh moves the whole
portrait and one warp map pulls the whole texture. What its flat hair and ears get wrong is the U-Net's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import Camera, rotation_matrix
from omokage.geometry.rings import between_rings, head_share, smoothstep, surface
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.sway import ZONE_RINGS, ZONES_AROUND

Float = NDArray[np.float64]

AROUND = 36  # vertices of the face's oval
# Rings as multiples of the oval's radius: dense where hair and neck meet the face.
RING_SCALES = (1.0, 1.06, 1.14, 1.25, 1.4, 1.6, 1.85, 2.2, 2.7, 3.5, 5.0, 9.0)
POSE_FEATURES = 7
RESPONSE_FEATURES = POSE_FEATURES + len(BLENDSHAPES)


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

    rotation (3,) axis-angle, translation (3,) cm, sway (Z, 2): shift of hair and shoulders in head widths beyond
    following the head (see `tracking.sway`).
    """

    rotation: Float
    translation: Float
    sway: Float


@dataclass(frozen=True)
class Sheet:
    """The sheet of one subject, in head space at rest. N points = rings x 36 around.

    points: (N, 3), cm.  head_weight: (N,), 1 = moves with the head, 0 = with the shoulders.
    oval_weight: (N,), 1 = follows the face's outline as the jaw moves it, 0 = does not.
    triangles: int32 (F, 3) into the sheet's own points.  uv: (N, 2) in [0, 1].
    response: (N, 59, 2), learned shift in head widths per unit of `features` (see `registration`).
    head_width: cm.
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

    @classmethod
    def build(
        cls, model: MorphableModel, subject: Subject, *, rest: Pose, camera: Camera, crop: Crop
    ) -> Sheet:
        oval = subject.neutral[model.face_oval].astype(np.float64)  # (36, 3), ordered loop
        points = surface(oval, RING_SCALES)
        head_weight = head_share(points, oval, RING_SCALES).reshape(-1)
        flat = points.reshape(-1, 3)

        oval_weight = np.repeat(1 - smoothstep(1.0, 1.6, np.array(RING_SCALES)), len(oval))
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
            head_width=float(np.ptp(oval[:, 0])),
        )

    def project(self, pose: Pose, expression: Float, oval: Float) -> Float:
        """The sheet in one frame: (N, 3), pixels of the clip and depth in cm.

        `oval`: (36, 3), where the face's outline is in that frame (pixels and depth), so that no seam opens.
        """
        head = self.camera.project(self.points @ rotation_matrix(pose.rotation).T + pose.translation)
        weight = self.head_weight[:, None]
        placed = weight * head + (1 - weight) * self._resting
        moved = np.einsum("nkc,k->nc", self.response, self.features(pose, expression))
        moved += _zones_to_points() @ (pose.sway - self.rest.sway)
        placed[:, :2] += self.pixels_per_head(pose) * moved
        away = np.tile(oval - placed[: len(oval)], (len(RING_SCALES), 1))
        return placed + self.oval_weight[:, None] * away

    def pixels_per_head(self, pose: Pose) -> float:
        """Width of the head in pixels of the clip at this distance."""
        return float(self.camera.focal_px * self.head_width / pose.translation[2])

    def features(self, pose: Pose, expression: Float) -> Float:
        """What hair and shoulders may respond to, (59,): `pose_features` and the expression.

        Brows and jaw move the scalp a little, and the tracked pose more: what a face does, its pose is mistaken by.
        """
        return np.concatenate([self.pose_features(pose), expression])

    def pose_features(self, pose: Pose) -> Float:
        """The pose of the head, (7,): 1, turn (3), shift in head widths (3)."""
        turn = 2 * (np.asarray(pose.rotation) - self.rest.rotation)
        shift = (np.asarray(pose.translation) - self.rest.translation) / self.head_width
        return np.concatenate([[1.0], turn, shift * (1, 1, 0.3)])

    @cached_property
    def _resting(self) -> Float:
        """All of it in the pose at rest, (N, 3): where the shoulders stay."""
        posed = self.points @ rotation_matrix(self.rest.rotation).T + self.rest.translation
        return self.camera.project(posed)


def _zones_to_points() -> Float:
    """Interpolation (N, Z) of sway from the tracked zones to the sheet's points."""
    return between_rings(ZONE_RINGS, ZONES_AROUND, RING_SCALES, AROUND)


def _ring_triangles(rings: int, around: int) -> NDArray[np.int32]:
    ring, step = np.meshgrid(np.arange(rings - 1), np.arange(around), indexing="ij")
    following = (step + 1) % around
    a, b = ring * around + step, ring * around + following
    c, d = a + around, b + around
    quads = np.stack([np.stack([a, c, b], -1), np.stack([b, c, d], -1)], axis=2)
    return quads.reshape(-1, 3).astype(np.int32)
