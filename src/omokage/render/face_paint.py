"""Completes the texture of a face that one photo shows: what the mouth, the lids and the eyeballs hide is painted.

Colors come from the photo. What it shows stays as it is; the rest is drawn in the chart of the face, in which the
inside of the mouth and the eyeballs have their own fields (see `tracking.morphable`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import CHART_MARGIN, Conditioner
from omokage.avatar.texture import Sample, UInt8, fill_holes, unproject_texture
from omokage.geometry.camera import Camera
from omokage.geometry.rasterize import interpolate, rasterize
from omokage.geometry.rings import smoothstep
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import Subject
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

STANDARD_SKIN = np.array([205.0, 160.0, 135.0])
ENAMEL = np.array([228.0, 220.0, 204.0])  # in the light in which skin looks like STANDARD_SKIN
# Heights of the mouth's field (0 top .. 1 bottom): rim of the upper gum, edge of the upper teeth, edge of the lower
# teeth, rim of the lower gum.
UPPER_GUM, UPPER_EDGE, LOWER_EDGE, LOWER_GUM = 0.13, 0.28, 0.735, 0.86
# Outer edges of the teeth from the middle outwards, as shares of the field's half-width.
UPPER_TEETH = (0.0, 0.21, 0.37, 0.55, 0.71, 0.86, 1.0)
LOWER_TEETH = (0.0, 0.13, 0.27, 0.43, 0.6, 0.77, 1.0)
FACING = 0.28  # skin that faces the camera less than this (cosine) is too stretched in the photo to be used
SEEN_CM = 0.12  # a texel so little behind the nearest surface is seen
OPEN_MOUTH = 60  # pixels of a 512 picture between the lips
LASH_PX = (2.5, 4.5)  # of a 512 picture: nearer to the edge of the lid than this there are lashes, not skin


@dataclass(frozen=True)
class Lid:
    """The part of the atlas that changes when one eye closes: its place and its colors open and closed (h, w, 3)."""

    rows: slice
    columns: slice
    opened: NDArray[np.float32]
    closed: NDArray[np.float32]


@dataclass(frozen=True)
class PaintedFace:
    """Atlas uint8 (A, 2A, 4) of a photo with open eyes; `lids` of the picture's left and right eye."""

    atlas: UInt8
    lids: tuple[Lid, Lid]


class FaceChart:
    """Where each texel of the face's chart is in the photo, and whether the photo shows it.

    uv: (A, A, 2), the model's texture map.  points: (V, 3), the face in the photo's pixels.
    is_sure: (A, A), the photo has the person there, beyond doubt.  is_seen: (A, A), and from the front enough.
    """

    def __init__(self, conditioner: Conditioner, sample: Sample, is_sure: Mask) -> None:
        model, side, size = conditioner.model, conditioner.config.texture_size, conditioner.config.size
        self.model, self.side = model, side
        corners = (model.uv.astype(np.float64) * (1 - 2 * CHART_MARGIN) + CHART_MARGIN) * side
        self.raster = rasterize(
            np.concatenate([corners, np.ones((len(corners), 1))], axis=1), model.triangles, side, side
        )
        texel = (np.mgrid[0:side, 0:side][::-1].transpose(1, 2, 0) + 0.5) / side
        self.uv = (texel - CHART_MARGIN) / (1 - 2 * CHART_MARGIN)
        points, normals = conditioner.project(sample.state)
        self.points = points[: len(model.neutral)]
        place = self.spread(np.concatenate([self.points, -normals[:, 2:]], axis=1))
        pixel = place[..., :2] - np.float32(0.5)
        picture = rasterize(points, conditioner.triangles, size, size)
        corners_seen = conditioner.triangles[picture.triangle_id]
        depth = np.asarray((points[corners_seen, 2] * picture.barycentric).sum(axis=-1))
        column, row = (np.rint(pixel).astype(int).clip(0, size - 1)).transpose(2, 0, 1)
        is_nearest = np.asarray(place[..., 2] <= depth[row, column] + SEEN_CM)
        is_patch = self.field(np.arange(region.SKIN_COUNT, len(model.neutral)))
        self.is_sure: Mask = np.asarray(self.raster.is_covered & is_sure[row, column])
        self.is_seen: Mask = self.is_sure & is_nearest & ((place[..., 3] > FACING) | is_patch)

    def spread(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values of the model's vertices (V, C) -> (A, A, C), 0 outside the mesh."""
        return interpolate(self.raster, self.model.triangles, values)

    def field(self, *vertices: NDArray[np.integer] | tuple[int, ...]) -> Mask:
        """Texels (A, A) of the triangles that lie wholly among the vertices."""
        member = np.zeros(len(self.model.neutral), dtype=bool)
        for group in vertices:
            member[np.asarray(group)] = True
        inside: Mask = np.all(member[self.model.triangles], axis=1)
        return np.asarray(self.raster.is_covered & inside[self.raster.triangle_id])


def paint_face(conditioner: Conditioner, sample: Sample, is_sure: Mask) -> PaintedFace:
    """The atlas of one photo, completed. is_sure: (S, S), where the photo shows the person beyond doubt."""
    atlas = unproject_texture(conditioner, [sample])
    chart = FaceChart(conditioner, sample, is_sure)
    side = chart.side
    color = atlas[:, :side, :3]
    skin = chart.field(np.arange(region.SKIN_COUNT))
    # Flanks that the photo hardly shows go over smoothly into what it shows at the outline of the face.
    outline = skin & (cv2.erode(skin.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0)
    filled = fill_holes(color, skin & (chart.is_seen | (outline & chart.is_sure)))
    color[skin & ~chart.is_seen] = filled[skin & ~chart.is_seen]
    _paint_mouth(chart, color)
    for eye in chart.model.eye_vertices:
        _complete_eye(chart, color, eye)
    atlas[:, :side, 3] = 255
    scale = conditioner.config.size / 512
    lids = tuple(_closed_lid(chart, color, is_left, scale) for is_left in (False, True))
    return PaintedFace(atlas, (lids[0], lids[1]))


def with_teeth_of(model: MorphableModel, subject: Subject, sample: Sample, camera: Camera) -> Subject:
    """The subject with its upper teeth as far down as the photo shows them, if its mouth is open."""
    state, pose = sample.state, sample.state.pose
    vertices = model.pose_vertices(subject, state.expression, state.gaze)
    points = camera.project(model.to_camera(vertices, pose.rotation, pose.translation))
    cm_per_px = float(pose.translation[2] / camera.focal_px)
    opening = np.zeros(sample.image.shape[:2], dtype=np.uint8)
    cv2.fillPoly(opening, [np.round(points[model.lips_inner, :2]).astype(np.int32)], 1)
    opening = np.asarray(cv2.erode(opening, np.ones((3, 3), np.uint8)), dtype=np.uint8)
    luma = cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    cheeks = points[list(region.CHEEK) + model.mirror[list(region.CHEEK)].tolist(), :2]
    column, row = np.round(cheeks).astype(int).clip(0, len(luma) - 1).T
    height = _mouth_heights(model)
    edge = points[model.mouth_interior[np.isclose(height, UPPER_EDGE, atol=0.01)], 1].mean()
    upper = lower = 0.2
    if opening.sum() > OPEN_MOUTH * (luma.size / 512**2):
        is_tooth = (opening > 0) & (luma > 0.7 * np.median(luma[row, column]))
        opened = np.nonzero(opening)[0]
        shows_teeth = is_tooth.sum() > 0.3 * opening.sum()
        lowest = np.percentile(np.nonzero(is_tooth)[0], 97) + 1.5 if shows_teeth else opened.min()
        upper = float(np.clip((lowest - edge) * cm_per_px, -0.4, 1.2))
        lower = float(np.clip((opened.max() + 1.5 - edge) * cm_per_px, 0.2, 0.8))
    down = np.interp(
        height, [0.0, 0.14, UPPER_EDGE, 0.38, 0.66, 1.0], [0, 0.3 * upper, upper, upper, lower, lower]
    )
    neutral = subject.neutral.copy()
    neutral[model.mouth_interior, 1] += down.astype(np.float32)
    return replace(subject, neutral=neutral)


def _mouth_heights(model: MorphableModel) -> Float:
    """Height of each vertex of the mouth in its field of the chart, 0 top .. 1 bottom."""
    v = model.uv[model.mouth_interior, 1].astype(np.float64)
    return np.asarray((v - v.min()) / np.ptp(v))


def _paint_mouth(chart: FaceChart, color: UInt8) -> None:
    """Teeth, gums, tongue and the dark between; the photo's own upper teeth where it shows them."""
    mouth = chart.model.mouth_interior
    where = chart.field(mouth)
    low, high = chart.model.uv[mouth].min(axis=0), chart.model.uv[mouth].max(axis=0)
    u = (chart.uv[where, 0] - low[0]) / (high[0] - low[0]) * 2 - 1
    v = (chart.uv[where, 1] - low[1]) / (high[1] - low[1])
    shown = color[where].astype(np.float64)
    skin, lips = _skin_and_lips(chart, color)
    is_row = (v > UPPER_GUM) & (v < UPPER_EDGE)
    is_teeth_seen = chart.is_seen[where] & (v < UPPER_EDGE + 0.02)
    teeth = shown[is_teeth_seen & (shown.mean(axis=1) > 0.7 * skin.mean())]
    shows_teeth = len(teeth) > 0.1 * is_row.sum()
    painted = mouth_colors(u, v, *_mouth_palette(skin, lips, teeth if shows_teeth else None))
    seen = np.zeros(where.shape, dtype=np.float32)
    seen[where] = is_teeth_seen & shows_teeth
    step = max(1, chart.side // 256)
    certain = cv2.GaussianBlur(cv2.erode(seen, np.ones((2 * step + 1,) * 2, np.uint8)), (0, 0), step)
    share = certain[where][:, None]
    color[where] = np.clip(shown * share + painted * (1 - share) + 0.5, 0, 255).astype(np.uint8)
    # The gap between the fields is reached by bilinear look-ups at the rim.
    around = cv2.dilate(where.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~where
    color[around] = fill_holes(color, where)[around]


def _skin_and_lips(chart: FaceChart, color: UInt8) -> tuple[Float, Float]:
    """Median colors (3,) of the cheeks and of the lips."""
    cheeks = chart.field(np.array(region.CHEEK), chart.model.mirror[list(region.CHEEK)]) & chart.is_seen
    skin = np.median(color[cheeks], axis=0) if cheeks.any() else STANDARD_SKIN
    seen_lips = chart.field(chart.model.lips) & chart.is_seen
    lips = np.median(color[seen_lips], axis=0) if seen_lips.any() else skin * [0.8, 0.5, 0.5]
    return np.asarray(skin, dtype=np.float64), np.asarray(lips, dtype=np.float64)


def _mouth_palette(skin: Float, lips: Float, teeth: Float | None) -> tuple[Float, Float]:
    """Colors (3,) of enamel and of wet flesh in the photo's light. teeth: (N, 3), colors of teeth that it shows."""
    light = np.clip(skin / STANDARD_SKIN, 0.15, 1.15)
    enamel = ENAMEL * (0.4 * light.mean() + 0.6 * light) ** 0.8
    if teeth is not None:
        luma = teeth.mean(axis=1)
        enamel = teeth[luma >= np.median(luma)].mean(axis=0)
    return enamel, 0.6 * lips + 0.4 * np.array([176.0, 84.0, 80.0]) * light.mean()


def mouth_colors(u: Float, v: Float, enamel: Float, flesh: Float) -> Float:
    """The painted inside of a mouth (N, 3) at u in [-1, 1] across and v in [0, 1] down its field."""
    tongue_back = 0.52 + 0.10 * (u / 0.5) ** 2
    tongue = smoothstep(0.0, 0.05, v - tongue_back)[:, None]
    depth = np.interp(v, [UPPER_EDGE, 0.36, 0.46, 0.62, LOWER_EDGE], [0.40, 0.27, 0.19, 0.25, 0.40])
    cavity = flesh * depth[:, None] * [1.0, 0.85, 0.85]
    groove = 1 - 0.25 * np.exp(-((u / 0.035) ** 2))
    lit = np.interp(v, [0.55, 0.62, LOWER_EDGE], [0.36, 0.72, 0.55]) * groove * (1 - 0.6 * np.abs(u))
    result = cavity * (1 - tongue) + flesh * [1.0, 0.95, 0.98] * lit[:, None] * tongue
    for edge, gum, teeth, brightness in (
        (UPPER_EDGE, UPPER_GUM, UPPER_TEETH, 1.0),
        (LOWER_EDGE, LOWER_GUM, LOWER_TEETH, 0.82),
    ):
        result = _tooth_row(result, u, v, edge, gum, teeth, enamel * brightness, flesh)
    return result


def _tooth_row(
    under: Float,
    u: Float,
    v: Float,
    edge: float,
    gum: float,
    borders: tuple[float, ...],
    enamel: Float,
    flesh: Float,
) -> Float:
    """One row of teeth and its gum over what is there (N, 3). `edge`, `gum`: heights of the field."""
    distance = np.abs(u)
    tooth = np.clip(np.searchsorted(borders, distance, side="right") - 1, 0, len(borders) - 2)
    left, right = np.asarray(borders)[tooth], np.asarray(borders)[tooth + 1]
    across = (distance - left) / (right - left) * 2 - 1  # -1 .. 1 over one tooth
    along = (v - gum) / (edge - gum)  # 0 at the gum, 1 at the edge
    length = 1.0 - np.asarray((0.0, 0.1, 0.03, 0.12, 0.16, 0.2))[tooth] - 0.10 * np.abs(across) ** 4
    collar = 0.16 * across**2
    is_tooth = smoothstep(collar - 0.05, collar + 0.05, along) * (
        1 - smoothstep(length - 0.02, length, along)
    )
    gap = 1 - 0.30 * smoothstep(0.80, 1.0, np.abs(across))
    shade = np.interp(along, [0.0, 0.5, 1.0], [0.72, 0.97, 1.0]) * (1 - 0.68 * smoothstep(0.3, 0.8, distance))
    # Light that comes back from deep inside is red.
    white = enamel * (gap * shade * (1 - 0.07 * across**2))[:, None] ** [0.85, 1.0, 1.1]
    pink = (
        flesh
        * (np.interp(along, [-1.0, 0.2], [0.45, 0.8]) * (1 - 0.6 * smoothstep(0.3, 0.8, distance)))[:, None]
    )
    is_gum = (along < 0.3).astype(np.float64)[:, None]
    base = under * (1 - is_gum) + pink * is_gum
    return np.asarray(base * (1 - is_tooth[:, None]) + white * is_tooth[:, None])


def _complete_eye(chart: FaceChart, color: UInt8, eye: NDArray[np.int64]) -> None:
    """The parts of an eyeball under the lids: its iris is round, its white goes on."""
    uv = chart.model.uv.astype(np.float64)
    first = min(region.IRIS_CENTERS, key=lambda v: abs(uv[v, 0] - uv[eye, 0].mean()))
    radii = np.abs(uv[first + 1 : first + 5] - uv[first]).max(axis=0)
    where = chart.field(eye)
    radius = np.linalg.norm((chart.uv[where] - uv[first]) / radii, axis=1)
    rim = max(1, chart.side // 128)
    seen = cv2.erode((chart.is_seen & where).astype(np.uint8), np.ones((2 * rim + 1,) * 2, np.uint8))
    is_seen = seen[where] > 0
    shown = color[where].astype(np.float64)
    if is_seen.sum() < 30:
        return
    bins = np.linspace(0, 1.2, 13)
    profile: list[Float] = []
    for low, high in pairwise(bins):
        ring = shown[is_seen & (radius >= low) & (radius < high)]
        profile.append(
            np.median(ring, axis=0) if len(ring) else (profile[-1] if profile else shown[is_seen].min(axis=0))
        )
    white = shown[is_seen & (radius > 1.15)]
    if len(white) < 10:
        white = shown[is_seen]
    luma = white.mean(axis=1)
    sclera = white[luma >= np.percentile(luma, 50)].mean(axis=0)
    middle = (bins[:-1] + bins[1:]) / 2
    profile_array = np.array(profile)
    iris = np.stack([np.interp(radius, middle, profile_array[:, k]) for k in range(3)], axis=1)
    outside = smoothstep(1.0, 1.25, radius)[:, None]
    shade = 1 - 0.35 * smoothstep(1.6, 2.7, radius)[:, None]
    model = iris * (1 - outside) + sclera * shade * outside
    weight = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), rim)[where][:, None]
    color[where] = np.clip(shown * weight + model * (1 - weight) + 0.5, 0, 255).astype(np.uint8)


def _closed_lid(chart: FaceChart, color: UInt8, is_left: bool, scale: float) -> Lid:
    """What an upper lid looks like when it is closed: skin from its crease and from below the eye, and lashes."""

    def side(*vertices: int) -> NDArray[np.int64]:
        left = np.array(vertices)
        return left if is_left else chart.model.mirror[left].astype(np.int64)

    corners, ring_corners = side(*region.EYE_CORNERS), side(*region.EYE_RING_CORNERS)
    edge, ring = side(*region.UPPER_LID), side(*region.UPPER_LID_RING)
    band = chart.field(edge, ring, corners, ring_corners)
    # How far each texel is from the edge of the lid: as a share of the lid, and in pixels of the photo.
    height = np.zeros((len(chart.model.neutral), 2), dtype=np.float32)
    height[ring, 0], height[ring_corners, 0] = 1.0, 1.0
    height[ring, 1] = np.linalg.norm(chart.points[ring, :2] - chart.points[edge, :2], axis=1)
    height[ring_corners, 1] = np.linalg.norm(
        chart.points[ring_corners, :2] - chart.points[corners, :2], axis=1
    )
    share, distance = chart.spread(height).transpose(2, 0, 1)
    opening = np.zeros(band.shape, dtype=np.uint8)
    loop = chart.model.left_eye if is_left else chart.model.right_eye
    outline = (chart.model.uv[loop] * (1 - 2 * CHART_MARGIN) + CHART_MARGIN) * chart.side
    cv2.fillPoly(opening, [np.round(outline).astype(np.int32)], 1)
    is_changed = cv2.dilate(opening | band.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0

    rows, columns = (slice(int(a.min()), int(a.max()) + 1) for a in np.nonzero(is_changed))
    wide = (
        slice(max(0, rows.start - 24), rows.stop + 24),
        slice(max(0, columns.start - 24), columns.stop + 24),
    )
    keep = np.where(band, smoothstep(LASH_PX[0] * scale, LASH_PX[1] * scale, distance), ~is_changed)
    skin = fill_holes(color[wide], (keep[wide] > 0.95) & (opening[wide] == 0)).astype(np.float32)
    opened = color[wide].astype(np.float32)
    closed = opened * keep[wide][..., None] + skin * (1 - keep[wide][..., None])
    dark = opened[band[wide] & (keep[wide] < 0.5)]
    lash = np.percentile(dark, 15, axis=0) * 0.8 if len(dark) else skin.mean(axis=(0, 1)) * 0.3
    line = np.where(band, 1 - smoothstep(0.03, 0.16, share), opening)[wide][..., None] * 0.75
    closed = closed * (1 - line) + lash * line
    inside = (slice(rows.start - wide[0].start, None), slice(columns.start - wide[1].start, None))
    height_px, width_px = rows.stop - rows.start, columns.stop - columns.start
    return Lid(
        rows,
        columns,
        opened[inside][:height_px, :width_px],
        closed[inside][:height_px, :width_px].astype(np.float32),
    )
