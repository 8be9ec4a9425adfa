"""The face mesh as the paper's networks see it: a shaded picture of it, and its places in the texture.

Both are drawn for the central S pixels of the crop, on S/4 (specification 1.1.7). The official mesh is a bald head with
the mean skin of its model; ours is the face of our tracker, and its colour is the direction of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.sheet import Crop
from omokage.errors import NoFaceError
from omokage.geometry.camera import Camera, rotation_matrix
from omokage.geometry.mesh import vertex_normals
from omokage.geometry.rasterize import close_pinholes, interpolate_planes, visible_triangles
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import FaceTrack, Subject
from omokage.tracking.morphable import MorphableModel

UInt8 = NDArray[np.uint8]

# The crop is as wide as so many distances from the bridge of the nose to the mouth (specification 1.1.2).
CROP_IN_NOSE_TO_MOUTH = 2 * 2.1 * 1.25 * 1.5
NOSE_BRIDGE, LIPS = 197, (13, 14)
# How bright the inside of the mouth and the iris are drawn beside the skin, so that they are told apart.
MOUTH_SHADE, IRIS_SHADE = 0.45, 0.3


@dataclass(frozen=True)
class Drawing:
    """render, uv: uint8 (S/4, S/4, 3), black where there is no face. Red and green of `uv` are the place in the face's
    texture, its blue is 255 on the face."""

    render: UInt8
    uv: UInt8


@dataclass(frozen=True)
class MeshDrawing:
    """Draws one person's face mesh. crop: what the crop shows of the picture, `camera` that of the recording.
    size: of the portrait, pixels."""

    subject: Subject
    camera: Camera
    crop: Crop
    size: int

    def draw(self, state: AvatarState) -> Drawing:
        """The drawings of one frame."""
        model, side = MorphableModel.load(), self.size // 4
        vertices = model.pose_vertices(self.subject, state.expression, state.gaze)
        if state.detail is not None:
            vertices[: len(state.detail)] += state.detail
        in_camera = vertices @ rotation_matrix(state.pose.rotation).T + state.pose.translation
        points = self.crop.apply(self.camera.project(in_camera), side * 3 // 2)
        points[:, :2] -= side / 4  # the window in the middle of the crop
        normals = vertex_normals(in_camera, model.triangles)
        color = (normals * (0.5, 0.5, -0.5) + 0.5) * _shade(model)[:, None]
        attributes = np.concatenate([color, model.uv, np.ones((len(points), 1))], axis=1)
        seen = visible_triangles(points, model.triangles, side, side)
        planes = interpolate_planes(points, model.triangles, seen, attributes)
        close_pinholes(seen, planes)
        planes[5] = planes[5] > 0.5
        drawn = np.rint(np.clip(planes, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        return Drawing(np.ascontiguousarray(drawn[..., :3]), np.ascontiguousarray(drawn[..., 3:]))


def paper_crop(track: FaceTrack) -> Crop:
    """The still square that training sees, around the bridge of the nose; it may reach beyond the picture.

    From the median of all frames with a face, where the official preprocessing takes the first one.
    """
    seen = track.landmarks[track.is_tracked]
    if seen.shape[1] <= NOSE_BRIDGE or not seen.any():
        raise NoFaceError("the track has no landmarks to place the crop by; track the recording again")
    mouth = seen[:, list(LIPS), :2].mean(axis=1)
    x, y = np.median(seen[:, NOSE_BRIDGE, :2], axis=0)
    side = float(np.median(np.linalg.norm(seen[:, NOSE_BRIDGE, :2] - mouth, axis=1))) * CROP_IN_NOSE_TO_MOUTH
    return Crop(float(x) - side / 2, float(y) - side / 2, side)


def _shade(model: MorphableModel) -> NDArray[np.float64]:
    """Brightness of every vertex (V,)."""
    shade = np.ones(len(model.neutral))
    shade[model.mouth_interior] = MOUTH_SHADE
    shade[region.SKIN_COUNT : region.LANDMARK_COUNT] = IRIS_SHADE
    return shade
