"""A z-buffer rasteriser for small meshes on one CPU core.

`rasterize` finds which triangle each pixel sees and where on it (perspective-correct); `interpolate` spreads
vertex attributes with that. `rasterize_reference` is the readable version of the same, in plain numpy.

Legend: V vertices, F faces, C channels, H W pixels. The centre of pixel (row, column) is
(column + 0.5, row + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from omokage.geometry.mesh import Triangles


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
    points = np.ascontiguousarray(vertices_px, dtype=np.float64)
    triangle_id = np.full((height, width), -1, dtype=np.int32)
    barycentric = np.zeros((height, width, 3), dtype=np.float32)
    _rasterize(points, np.ascontiguousarray(triangles, dtype=np.int32), triangle_id, barycentric)
    return Raster(triangle_id, barycentric)


@njit(cache=True, nogil=True)
def _rasterize(points, triangles, triangle_id, barycentric):  # type: ignore[no-untyped-def]
    height, width = triangle_id.shape
    nearness = np.zeros((height, width))  # 1 / z: linear in the picture, 0 = nothing yet
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        if points[a, 2] <= 0 or points[b, 2] <= 0 or points[c, 2] <= 0:
            continue
        ax, ay, bx, by, cx, cy = (
            points[a, 0],
            points[a, 1],
            points[b, 0],
            points[b, 1],
            points[c, 0],
            points[c, 1],
        )
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0 or not np.isfinite(area):
            continue
        left = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        right = min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        top = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        bottom = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        ia, ib, ic = 1 / points[a, 2], 1 / points[b, 2], 1 / points[c, 2]
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1 - wa - wb
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                wa, wb, wc = wa * ia, wb * ib, wc * ic
                near = wa + wb + wc
                if near > nearness[row, column]:
                    nearness[row, column] = near
                    triangle_id[row, column] = f
                    barycentric[row, column, 0] = wa / near
                    barycentric[row, column, 1] = wb / near
                    barycentric[row, column, 2] = wc / near


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
        seen = (linear >= 0).all(axis=-1) & (near > nearness)
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


@njit(cache=True, nogil=True)
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
