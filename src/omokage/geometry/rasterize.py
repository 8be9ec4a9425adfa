"""A z-buffer rasteriser for small meshes on one CPU core.

`rasterize` finds which triangle each pixel sees and where on it (perspective-correct); `interpolate` spreads
vertex attributes with that. `rasterize_reference` is the readable version of the same, in plain numpy.
`visible_triangles` and `interpolate_planes` do both for live use: no weights are stored, planes come out as networks
take them.

Legend: V vertices, F faces, C channels, H W pixels. The centre of pixel (row, column) is
(column + 0.5, row + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from omokage.geometry.mesh import Triangles

_NEARER = 1 + 1e-12  # what differs by less is rounding: equally near


@dataclass(frozen=True, slots=True)
class Raster:
    """What every pixel sees.

    triangle_id: int32 (H, W), index of the nearest triangle, -1 where there is none.
    barycentric: float32 (H, W, 3), perspective-correct weights of its corners (sum 1; 0 where there is none).
    """

    triangle_id: NDArray[np.int32]
    barycentric: NDArray[np.float32]

    @property
    def is_covered(self) -> NDArray[np.bool_]:
        """bool (H, W): some triangle is seen."""
        return self.triangle_id >= 0


def rasterize(vertices_px: NDArray[np.floating], triangles: Triangles, height: int, width: int) -> Raster:
    """Draw a mesh, both sides of its triangles, nearest first.

    vertices_px: (V, 3), x and y in pixels and the depth z > 0, as `Camera.project` gives it. Triangles with a
    corner at z <= 0 are left out. Where two are equally near, the one with the lower index wins.
    """
    triangle_id = visible_triangles(vertices_px, triangles, height, width)
    barycentric = interpolate_planes(vertices_px, triangles, triangle_id, None)
    return Raster(triangle_id, np.ascontiguousarray(barycentric.transpose(1, 2, 0)))


def visible_triangles(
    vertices_px: NDArray[np.floating], triangles: Triangles, height: int, width: int
) -> NDArray[np.int32]:
    """The first half of `rasterize`: int32 (H, W), index of the nearest triangle, -1 where there is none."""
    triangle_id = np.full((height, width), -1, dtype=np.int32)
    _visible(*_prepared(vertices_px, triangles), triangle_id)
    return triangle_id


def close_pinholes(triangle_id: NDArray[np.int32], planes: NDArray[np.float32], reach: int = 2) -> None:
    """Planes (C, H, W), in place: a pixel that sees nothing, with something at most `reach` pixels away on two opposite
    sides, takes the values of the nearer.

    Where surfaces meet without sharing vertices (an eyeball and its lids) a gap opens now and then.
    """
    _close(triangle_id, reach, planes)


def interpolate_planes(
    vertices_px: NDArray[np.floating],
    triangles: Triangles,
    triangle_id: NDArray[np.int32],
    attributes: NDArray[np.floating] | None,
    *,
    background: NDArray[np.floating] | None = None,
    cell: int = 1,
) -> NDArray[np.float32]:
    """The second half of `rasterize`: attributes of vertices (V, C) -> float32 planes (C, H / cell, W / cell).

    They are taken at one pixel of each square cell: `cell // 2` from its corner. `background`: (C,), what stands where
    no triangle is seen, 0 by default. `attributes` None: the barycentric weights of the triangle's corners (C = 3).
    """
    points, triangles = _prepared(vertices_px, triangles)
    if attributes is None:
        corners = np.broadcast_to(np.eye(3), (len(triangles), 3, 3))
    else:
        corners = np.asarray(attributes, dtype=np.float64)[triangles]
    channels, (height, width) = corners.shape[2], triangle_id.shape
    planes = np.empty((channels, height // cell, width // cell), dtype=np.float32)
    empty = np.zeros(channels) if background is None else np.asarray(background, dtype=np.float64)
    _fill(_linear(points, triangles, corners), triangle_id, empty, cell, planes)
    return planes


def _prepared(
    vertices_px: NDArray[np.floating], triangles: Triangles
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    return np.ascontiguousarray(vertices_px, np.float64), np.ascontiguousarray(triangles, np.int32)


@njit(cache=True, nogil=True, error_model="numpy")
def _visible(points, triangles, triangle_id):  # type: ignore[no-untyped-def]
    height, width = triangle_id.shape
    nearness = np.zeros((height, width))  # 1 / z: linear in the picture, 0 = nothing yet
    x = np.arange(width) + 0.5
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        if points[a, 2] <= 0 or points[b, 2] <= 0 or points[c, 2] <= 0:
            continue
        ax, ay, bx, by = points[a, 0], points[a, 1], points[b, 0], points[b, 1]
        cx, cy = points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or not np.isfinite(area):
            continue
        top = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        bottom = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        ia, ib, ic = 1 / points[a, 2], 1 / points[b, 2], 1 / points[c, 2]
        slope = ((cy - ay) * (ib - ia) - (by - ay) * (ic - ia)) / area
        slope_y = ((bx - ax) * (ic - ia) - (cx - ax) * (ib - ia)) / area
        for row in range(top, bottom + 1):
            y = row + 0.5
            # The span between the edges that cross this row, with a pixel of slack; then its ends exactly.
            left, right = np.inf, -np.inf
            for px, py, qx, qy in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay)):
                if (py - y) * (qy - y) <= 0 and py != qy:
                    at = px + (qx - px) * ((y - py) / (qy - py))
                    left, right = min(left, at), max(right, at)
            first, last = int(max(0.0, left - 1.5)), int(min(width - 1.0, right + 0.5))
            while first <= last and not _is_inside(x[first], y, ax, ay, bx, by, cx, cy, area):
                first += 1
            while last >= first and not _is_inside(x[last], y, ax, ay, bx, by, cx, cy, area):
                last -= 1
            at = ia + slope_y * (y - ay)
            for column in range(first, last + 1):
                near = at + slope * (x[column] - ax)
                is_nearer = near > nearness[row, column] * _NEARER
                nearness[row, column] = near if is_nearer else nearness[row, column]
                triangle_id[row, column] = f if is_nearer else triangle_id[row, column]


@njit(inline="always", error_model="numpy")
def _is_inside(x, y, ax, ay, bx, by, cx, cy, area):  # type: ignore[no-untyped-def]
    wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
    wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
    return wa >= 0 and wb >= 0 and 1 - wa - wb >= 0


@njit(cache=True, nogil=True)
def _close(triangle_id, reach, planes):  # type: ignore[no-untyped-def]
    height, width = triangle_id.shape
    for y in range(height):
        for x in range(width):
            if triangle_id[y, x] >= 0:
                continue
            for dy, dx in ((0, 1), (1, 0)):
                before, after = 0, 0
                for step in range(reach, 0, -1):  # the nearest stays
                    above, left, below, right = y - dy * step, x - dx * step, y + dy * step, x + dx * step
                    if above >= 0 and left >= 0 and triangle_id[above, left] >= 0:
                        before = step
                    if below < height and right < width and triangle_id[below, right] >= 0:
                        after = step
                if before > 0 and after > 0:
                    step = -before if before <= after else after
                    planes[:, y, x] = planes[:, y + dy * step, x + dx * step]
                    break


@njit(cache=True, nogil=True, error_model="numpy")
def _linear(points, triangles, corners):  # type: ignore[no-untyped-def]
    """(F, C + 2, 3): the attributes / z and, second to last, 1 / z are linear over a triangle: slopes in x and y, and
    the value at its first corner, whose place is in the last row."""
    faces, channels = corners.shape[0], corners.shape[2]
    linear = np.empty((faces, channels + 2, 3))
    for f in range(faces):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ax, ay = points[a, 0], points[a, 1]
        bx, by, cx, cy = points[b, 0] - ax, points[b, 1] - ay, points[c, 0] - ax, points[c, 1] - ay
        scale = 1 / (bx * cy - by * cx)
        ia, ib, ic = 1 / points[a, 2], 1 / points[b, 2], 1 / points[c, 2]
        for k in range(channels + 1):
            va, vb, vc = ia, ib, ic
            if k < channels:
                va, vb, vc = ia * corners[f, 0, k], ib * corners[f, 1, k], ic * corners[f, 2, k]
            linear[f, k, 0] = (cy * (vb - va) - by * (vc - va)) * scale
            linear[f, k, 1] = (bx * (vc - va) - cx * (vb - va)) * scale
            linear[f, k, 2] = va
        linear[f, channels + 1, 0], linear[f, channels + 1, 1] = ax, ay
    return linear


@njit(cache=True, nogil=True, error_model="numpy")
def _fill(linear, triangle_id, empty, cell, planes):  # type: ignore[no-untyped-def]
    channels, rows, columns = planes.shape
    center = cell // 2
    depth = np.zeros(columns)
    x = np.arange(columns) * cell + (center + 0.5)
    for i in range(rows):
        seen = triangle_id[i * cell + center, center::cell]
        start = 0
        while start < columns:
            # A run of pixels that see the same triangle is filled at once.
            f, end = seen[start], start + 1
            while end < columns and seen[end] == f:
                end += 1
            if f < 0:
                for k in range(channels):
                    planes[k, i, start:end] = empty[k]
            else:
                ax, y = linear[f, channels + 1, 0], i * cell + center + 0.5 - linear[f, channels + 1, 1]
                slope, at = linear[f, channels, 0], linear[f, channels, 1] * y + linear[f, channels, 2]
                for j in range(start, end):
                    depth[j] = 1 / (at + slope * (x[j] - ax))
                for k in range(channels):
                    slope, at = linear[f, k, 0], linear[f, k, 1] * y + linear[f, k, 2]
                    for j in range(start, end):
                        planes[k, i, j] = depth[j] * (at + slope * (x[j] - ax))
            start = end


def rasterize_reference(
    vertices_px: NDArray[np.floating], triangles: Triangles, height: int, width: int
) -> Raster:
    """`rasterize` in plain numpy, every triangle against every pixel: for tests and for reading."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    triangle_id = np.full((height, width), -1, dtype=np.int32)
    barycentric = np.zeros((height, width, 3), dtype=np.float32)
    nearness = np.zeros((height, width))
    for index, corners in enumerate(np.asarray(vertices_px, dtype=np.float64)[triangles]):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or min(az, bz, cz) <= 0:
            continue
        wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
        wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
        linear = np.stack([wa, wb, 1 - wa - wb], axis=-1)
        weights = linear / np.array([az, bz, cz])
        near = weights.sum(axis=-1)
        seen = (linear >= 0).all(axis=-1) & (near > nearness * _NEARER)
        nearness[seen] = near[seen]
        triangle_id[seen] = index
        barycentric[seen] = weights[seen] / near[seen, None]
    return Raster(triangle_id, barycentric)


def interpolate(
    raster: Raster, triangles: Triangles, attributes: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Attributes of vertices (V, C) -> float32 picture (H, W, C), 0 where nothing is seen."""
    height, width = raster.triangle_id.shape
    picture = np.zeros((height, width, attributes.shape[1]), dtype=np.float32)
    values = np.ascontiguousarray(attributes, dtype=np.float32)
    _interpolate(
        raster.triangle_id,
        raster.barycentric,
        np.ascontiguousarray(triangles, dtype=np.int32),
        values,
        picture,
    )
    return picture


@njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(triangle_id, barycentric, triangles, values, picture):  # type: ignore[no-untyped-def]
    height, width, channels = picture.shape
    for row in range(height):
        for column in range(width):
            f = triangle_id[row, column]
            if f < 0:
                continue
            a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            wa, wb, wc = barycentric[row, column, 0], barycentric[row, column, 1], barycentric[row, column, 2]
            for k in range(channels):
                picture[row, column, k] = wa * values[a, k] + wb * values[b, k] + wc * values[c, k]
