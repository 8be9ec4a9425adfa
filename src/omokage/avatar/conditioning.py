"""From the state of a face to what the generator is told: the warp map, the drawing and the motion vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.appearance import CHARTS, Appearance
from omokage.avatar.config import AvatarConfig
from omokage.avatar.sheet import Crop, Pose, Sheet
from omokage.geometry.camera import rotation_matrix
from omokage.geometry.mesh import vertex_normals
from omokage.geometry.rasterize import close_pinholes, interpolate_planes, visible_triangles
from omokage.tracking.face_track import Subject
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]

# Each chart keeps this margin free, so that bilinear look-ups never reach into the other chart.
CHART_MARGIN = 0.02


@dataclass(frozen=True)
class AvatarState:
    """One frame of motion: `pose` and expression (52,) in [0, 1], gaze (2, 2) yaw and pitch of both eyes (radians).

    detail: (468, 3) cm in head space, added to the skin (see `tracking.detail`); None for none.
    """

    pose: Pose
    expression: Float
    gaze: Float
    detail: Float | None = None


@dataclass(frozen=True)
class Condition:
    """What the generator is told of one frame.

    warp: float32 (2, S, S), texture coordinates in [-1, 1].
    drawing: float32 (8, G, G): normals (3), face, mouth, eyes, and the cell's own place x, y in [-1, 1].
    motion: float32 (62,).
    mixture: float32 (2, K), strengths of the texture's modes, of face and sheet (see `appearance`).
    """

    warp: NDArray[np.float32]
    drawing: NDArray[np.float32]
    motion: NDArray[np.float32]
    mixture: NDArray[np.float32]


class Conditioner:
    """Draws one subject's conditions; the same object serves training and every runtime."""

    def __init__(
        self,
        model: MorphableModel,
        subject: Subject,
        sheet: Sheet,
        crop: Crop,
        config: AvatarConfig,
        appearance: Appearance | None = None,
    ) -> None:
        self.model, self.subject, self.sheet, self.crop, self.config = model, subject, sheet, crop, config
        self.appearance = appearance
        face_vertices = len(model.neutral)
        self.triangles = np.concatenate([model.triangles, sheet.triangles + face_vertices]).astype(np.int32)
        face, around = _into_chart(model.uv, 0), _into_chart(sheet.uv, 1)
        self.atlas_uv = np.concatenate([face, around]).astype(np.float32)
        self.regions = np.zeros((face_vertices + len(sheet.points), 3), dtype=np.float32)
        self.regions[:face_vertices, 0] = 1.0
        self.regions[model.mouth_interior, 1] = 1.0
        self.regions[np.concatenate(model.eye_vertices), 2] = 1.0
        cells = (np.arange(config.grid, dtype=np.float32) + 0.5) * (2 / config.grid) - 1
        self._places = np.stack(np.meshgrid(cells, cells))  # x, then y

    def with_sheet(self, sheet: Sheet) -> Conditioner:
        """The same conditioner on a refined sheet."""
        return Conditioner(self.model, self.subject, sheet, self.crop, self.config, self.appearance)

    def with_appearance(self, appearance: Appearance) -> Conditioner:
        """The same conditioner with a texture that changes."""
        return Conditioner(self.model, self.subject, self.sheet, self.crop, self.config, appearance)

    def project(self, state: AvatarState) -> tuple[Float, Float]:
        """All vertices of a frame: (V + N, 3) in pixels of the crop at output size and depth; face normals (V, 3)."""
        vertices = self.model.pose_vertices(self.subject, state.expression, state.gaze)
        if state.detail is not None:
            vertices[: len(state.detail)] += state.detail
        in_camera = vertices @ rotation_matrix(state.pose.rotation).T + state.pose.translation
        face = self.sheet.camera.project(in_camera)
        around = self.sheet.project(state.pose, state.expression, face[self.model.face_oval])
        points = np.concatenate([face, around])
        return self.crop.apply(points, self.config.size), vertex_normals(in_camera, self.model.triangles)

    def draw(self, state: AvatarState, shift: tuple[int, int] = (0, 0)) -> Condition:
        """The condition of one frame, its picture moved by `shift` = (x, y) whole pixels (the sliding window)."""
        points, normals = self.project(state)
        points[:, :2] += shift
        size = self.config.size
        seen = visible_triangles(points, self.triangles, size, size)
        warp = interpolate_planes(points, self.triangles, seen, self.atlas_uv, background=self.atlas_uv[-1])
        close_pinholes(seen, warp)
        attributes = np.zeros((len(points), 6), dtype=np.float32)
        attributes[: len(normals), :3] = normals
        attributes[:, 3:] = self.regions
        drawing = interpolate_planes(points, self.triangles, seen, attributes, cell=size // self.config.grid)
        moved = self._places - np.array(shift, dtype=np.float32)[:, None, None] * (2 / size)
        return Condition(
            warp, np.concatenate([drawing, moved]), self.motion_vector(state), self.mixture(state)
        )

    def mixture(self, state: AvatarState) -> NDArray[np.float32]:
        """Strengths of the texture's modes, (2, K); zeros for a texture that does not change."""
        if self.appearance is None:
            return np.zeros((len(CHARTS), self.config.texture_modes), dtype=np.float32)
        return self.appearance.mixture(self.pose_features(state), state.expression)

    def pose_features(self, state: AvatarState) -> Float:
        """The pose as the appearance sees it, (6,)."""
        return self.sheet.pose_features(state.pose)[1:]

    def motion_vector(self, state: AvatarState) -> NDArray[np.float32]:
        """Rotation, place, expression and gaze as the generator's style input (62,), each of about unit range."""
        place = (state.pose.translation - self.sheet.rest.translation) / self.sheet.head_width
        parts = [state.pose.rotation * 2, place * (2, 2, 0.5), state.expression, state.gaze.reshape(-1) * 2]
        return np.concatenate(parts).astype(np.float32)


def _into_chart(uv: NDArray[np.floating], chart: int) -> NDArray[np.float64]:
    """uv in [0, 1] of one chart -> `grid_sample` coordinates in the two-chart atlas."""
    inside = uv * (1 - 2 * CHART_MARGIN) + CHART_MARGIN
    return np.stack([(inside[:, 0] + chart) - 1.0, inside[:, 1] * 2 - 1.0], axis=-1)
