"""The morphable face model: mean head, identity basis, named expressions, gaze, texture map.

The mesh has the landmark network's 478 points first (vertex i is landmark i), then the whites of the eyes and the
inside of the mouth, which lie behind the skin and show through its openings.
Legend: V vertices, F faces, K identity coefficients. Head space: cm, x to the subject's left, y down, z backwards;
the origin is between the eyes, at the depth of the temples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import rotation_matrix
from omokage.geometry.mesh import Triangles, boundary_loops
from omokage.tracking import face_regions as region
from omokage.tracking.blendshapes import jaw_motion, sculpt
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.plate import PlateSolver

Float = NDArray[np.float64]
Index = NDArray[np.int64]

EYE_RADIUS_CM = 1.2
MAX_GAZE_RAD = 0.6
ASYMMETRY = 0.35  # of the variation of symmetric shape


@dataclass(frozen=True)
class MorphableModel:
    """Shapes of all heads that omokage knows.

    neutral: float32 (V, 3).  triangles: int32 (F, 3), wound outwards.  uv: float32 (V, 2) in [0, 1], v downwards;
    face above v = 0.78, mouth and eyes in the strip below.  blendshapes: float32 (52, V, 3) of the mean head.
    id_basis: float32 (K, V, 3), displacement per standard deviation.  landmark_vertices: (478,).
    mirror: (468,) skin vertex on the other side.  gaze_weight: float32 (V,), how much a vertex turns with the eye.
    skin_triangles: the first triangles are skin, this many.
    """

    neutral: NDArray[np.float32]
    triangles: Triangles
    uv: NDArray[np.float32]
    blendshapes: NDArray[np.float32]
    id_basis: NDArray[np.float32]
    landmark_vertices: Index
    mirror: NDArray[np.int32]
    gaze_weight: NDArray[np.float32]
    skin_triangle_count: int
    mouth_interior: Index
    _patch_weights: Float
    _patch_offset: Float
    _patch_jaw: Float
    _solver: PlateSolver

    @classmethod
    def load(cls) -> MorphableModel:
        """The model that comes with omokage (kept in memory after the first call)."""
        return _load()

    @property
    def vertex_count(self) -> int:
        return len(self.neutral)

    def subject(
        self, identity: NDArray[np.floating], corrective: NDArray[np.floating] | None = None
    ) -> Subject:
        """A person's own model. `identity` (K,); `corrective`: (468, 3) cm added to the neutral skin."""
        identity = np.asarray(identity, dtype=np.float64)
        skin: Float = self.neutral[: region.SKIN_COUNT].astype(np.float64) + np.tensordot(
            identity, self.id_basis[:, : region.SKIN_COUNT].astype(np.float64), 1
        )
        if corrective is not None:
            skin = skin + corrective
        return self.subject_from_skin(skin, identity)

    def subject_from_skin(self, skin: Float, identity: NDArray[np.floating]) -> Subject:
        """A subject whose neutral skin is given, (468, 3) cm: eyes, mouth and expressions follow from it."""
        return Subject(
            neutral=self.with_patches(skin).astype(np.float32),
            blendshapes=self._expressions(skin).astype(np.float32),
            identity=np.asarray(identity, dtype=np.float32),
        )

    def with_patches(self, skin: Float) -> Float:
        """Neutral skin (468, 3) -> all vertices (V, 3)."""
        patches = np.einsum("pav,va->pa", self._patch_weights, skin) + self._patch_offset
        return np.concatenate([skin, patches])

    def _expressions(self, skin: Float) -> Float:
        fields = np.zeros((len(BLENDSHAPES), self.vertex_count, 3))
        fields[:, : region.SKIN_COUNT] = sculpt(skin, self._solver)
        inside = self.with_patches(skin)[region.SKIN_COUNT :]
        for name, move in jaw_motion(skin, inside).items():
            fields[BLENDSHAPES.index(name), region.SKIN_COUNT :] = self._patch_jaw[:, None] * move
        return fields

    def pose_vertices(
        self, subject: Subject, expression: NDArray[np.floating], gaze: NDArray[np.floating]
    ) -> Float:
        """Vertices (V, 3) in head space, cm. `expression` (52,); `gaze` (2, 2) as in `FaceTrack`."""
        vertices = subject.vertices(expression)
        for eye, (yaw, pitch) in enumerate(np.clip(gaze, -MAX_GAZE_RAD, MAX_GAZE_RAD)):
            members = self.eye_vertices[eye]
            center = subject.neutral[region.IRIS_CENTERS[eye]] + [0, 0, EYE_RADIUS_CM]
            turned = (vertices[members] - center) @ gaze_rotation(yaw, pitch).T + center
            share = self.gaze_weight[members, None]
            vertices[members] += share * (turned - vertices[members])
        return vertices

    @staticmethod
    def to_camera(
        vertices: NDArray[np.floating], rotation: NDArray[np.floating], translation: NDArray[np.floating]
    ) -> Float:
        """Head space (..., 3) -> camera space, cm. `rotation`: axis-angle (3,); `translation`: (3,)."""
        turned: Float = vertices @ rotation_matrix(np.asarray(rotation, dtype=np.float64)).T + translation
        return turned

    @cached_property
    def eye_vertices(self) -> tuple[Index, Index]:
        """Vertices of the eyeball of the picture's left and right eye (iris and white)."""
        patch = np.arange(region.SKIN_COUNT, self.mouth_interior[0])
        is_left_of_picture = self.neutral[patch, 0] < 0
        return patch[is_left_of_picture], patch[~is_left_of_picture]

    @cached_property
    def face_oval(self) -> Index:
        """The outline of the face (36,), a closed loop."""
        return boundary_loops(self.triangles[: self.skin_triangle_count])[0].astype(np.int64)

    @cached_property
    def lips_outer(self) -> Index:
        """Outer edge of the lips (20,), a closed loop from the corner on the picture's right over the upper lip."""
        return self._closed(region.UPPER_LIP[0], region.LOWER_LIP[0])

    @cached_property
    def lips_inner(self) -> Index:
        """Inner edge of the lips (20,), a closed loop."""
        return self._closed(region.UPPER_LIP[3], region.LOWER_LIP[3])

    @cached_property
    def lips(self) -> Index:
        """All vertices of both lips."""
        left = np.unique(np.array([*region.UPPER_LIP, *region.LOWER_LIP]))
        return np.unique(np.concatenate([left, self.mirror[left]])).astype(np.int64)

    @cached_property
    def left_eye(self) -> Index:
        """Lid edge of the subject's left eye (16,), a closed loop from its inner corner over the upper lid."""
        inner, outer = region.EYE_CORNERS
        return np.array([inner, *region.UPPER_LID, outer, *region.LOWER_LID[::-1]])

    @cached_property
    def right_eye(self) -> Index:
        """Lid edge of the subject's right eye (16,)."""
        return self.mirror[self.left_eye].astype(np.int64)

    @cached_property
    def brows(self) -> Index:
        """Both eyebrows."""
        left = np.array([*region.BROW_UPPER, *region.BROW_LOWER])
        return np.concatenate([left, self.mirror[left]]).astype(np.int64)

    def _closed(self, upper: tuple[int, ...], lower: tuple[int, ...]) -> Index:
        left = [*upper[::-1]]
        right = [int(self.mirror[v]) for v in upper[1:]]
        back = [int(self.mirror[v]) for v in lower[-2:0:-1]]
        return np.array([*left, *right, *back, *lower[:-1]])


def gaze_rotation(yaw: float, pitch: float) -> Float:
    """Rotation (3, 3) that turns the straight look (-z) by yaw (to x > 0) and pitch (up)."""
    sin_y, cos_y, sin_p, cos_p = np.sin(yaw), np.cos(yaw), np.sin(pitch), np.cos(pitch)
    about_y = np.array([[cos_y, 0, -sin_y], [0, 1, 0], [sin_y, 0, cos_y]])
    about_x = np.array([[1, 0, 0], [0, cos_p, sin_p], [0, -sin_p, cos_p]])
    rotation: Float = about_y @ about_x
    return rotation


@cache
def _load() -> MorphableModel:
    with (files("omokage.tracking") / "data" / "face_model.npz").open("rb") as file:
        data = dict(np.load(file))
    weights, offset = data["patch_weights"].astype(np.float64), data["patch_offset"].astype(np.float64)
    skin = data["skin"].astype(np.float64)
    basis = _identity_basis(data["modes"], data["mode_frequency"], skin, data["mirror"])
    follow = np.einsum("pav,kva->kpa", weights, basis, optimize=True)
    solver = PlateSolver(data["stiffness"].astype(np.float64), data["mirror"], skin)
    neutral = np.concatenate([skin, np.einsum("pav,va->pa", weights, skin) + offset])
    shell = MorphableModel(
        neutral=neutral.astype(np.float32),
        triangles=np.concatenate([data["skin_triangles"], data["patch_triangles"]]).astype(np.int32),
        uv=data["uv"],
        blendshapes=np.zeros((len(BLENDSHAPES), len(neutral), 3), dtype=np.float32),
        id_basis=np.concatenate([basis, follow], axis=1).astype(np.float32),
        landmark_vertices=np.arange(region.LANDMARK_COUNT),
        mirror=data["mirror"],
        gaze_weight=np.concatenate([np.zeros(region.SKIN_COUNT), data["patch_gaze"]]).astype(np.float32),
        skin_triangle_count=len(data["skin_triangles"]),
        mouth_interior=np.arange(int(data["first_mouth"]), len(neutral)),
        _patch_weights=weights,
        _patch_offset=offset,
        _patch_jaw=data["patch_jaw"].astype(np.float64),
        _solver=solver,
    )
    shell.blendshapes[:] = shell._expressions(skin)
    return shell


def _identity_basis(
    modes: NDArray[np.float32], frequency: NDArray[np.float32], skin: Float, mirror: NDArray[np.int32]
) -> Float:
    """Smooth fields along x, y, z: (K, 468, 3) cm per standard deviation, less for higher frequency and for those that
    make the face asymmetric.

    What only shifts, turns or scales the head is taken out: that is pose, not identity.
    """
    amplitude = 0.55 * (frequency[0] / frequency) ** 0.6
    fields = modes.astype(np.float64) * amplitude[:, None]
    basis = np.zeros((3 * len(fields), fields.shape[1], 3))
    for axis in range(3):
        basis[axis::3, :, axis] = fields
    is_symmetric = (basis * basis[:, mirror] * [-1, 1, 1]).sum(axis=(1, 2)) > 0
    basis *= np.where(is_symmetric, 1.0, ASYMMETRY)[:, None, None]
    centered = skin - skin.mean(axis=0)
    shifts = [np.broadcast_to(axis, skin.shape) for axis in np.eye(3)]
    turns = [np.cross(axis, centered) for axis in np.eye(3)]
    rigid = np.linalg.qr(np.stack([*shifts, *turns, centered]).reshape(7, -1).T)[0]
    flat = basis.reshape(len(basis), -1)
    clean: Float = (flat - (flat @ rigid) @ rigid.T).reshape(basis.shape)
    return clean
