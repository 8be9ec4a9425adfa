"""The rasteriser against its plain reference, its geometry, and mesh basics."""

from __future__ import annotations

import time

import numpy as np
import pytest

from omokage.geometry.camera import Camera
from omokage.geometry.mesh import adjacency, boundary_loops, edges, laplacian, vertex_normals
from omokage.geometry.rasterize import close_pinholes, interpolate, rasterize, rasterize_reference


def random_mesh(seed: int, faces: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vertices = rng.uniform([-10, -10, 5], [58, 58, 60], (faces, 3))
    return vertices, rng.integers(0, faces, (faces, 3)).astype(np.int32)


def grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:rows, 0:columns]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    triangles = np.concatenate(
        [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
    )
    vertices = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3).astype(float)
    return vertices, triangles.astype(np.int32)


@pytest.mark.parametrize("seed", [0, 1])
def test_fast_equals_reference(seed: int) -> None:
    vertices, triangles = random_mesh(seed, 40)
    fast = rasterize(vertices, triangles, 48, 40)
    plain = rasterize_reference(vertices, triangles, 48, 40)
    assert fast.is_covered.mean() > 0.5
    np.testing.assert_array_equal(fast.triangle_id, plain.triangle_id)
    np.testing.assert_allclose(fast.barycentric, plain.barycentric, atol=1e-5)


def test_interpolation_is_perspective_correct() -> None:
    """A tilted square: the camera position interpolated at a pixel projects back onto that pixel."""
    camera = Camera.for_image(64, 64)
    square = np.array([[-8, -8, 40], [8, -8, 60], [8, 8, 90], [-8, 8, 70]], dtype=float)
    triangles = np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)
    raster = rasterize(camera.project(square), triangles, 64, 64)
    seen = camera.project(interpolate(raster, triangles, square)[raster.is_covered].astype(float))
    rows, columns = np.nonzero(raster.is_covered)
    assert len(rows) > 100
    np.testing.assert_allclose(seen[:, :2], np.stack([columns + 0.5, rows + 0.5], -1), atol=1e-3)


def test_pinholes_close_and_edges_stay() -> None:
    """A gap of a pixel or two takes what is next to it; what lies outside, and a larger hole, stays empty."""
    seen = np.full((12, 12), -1, dtype=np.int32)
    seen[2:10, 2:10] = 7
    seen[4, 4], seen[6, 5:7], seen[4:8, 8] = -1, -1, -1  # a pixel, two in a row, a column
    seen[7:9, 3:5] = -1  # two rows are closed from above and below
    values = np.where(seen >= 0, np.arange(144).reshape(12, 12), -1).astype(np.float32)
    planes = np.stack([values, -values])
    close_pinholes(seen, planes)
    assert planes[0, 4, 4] == 4 * 12 + 3 and planes[1, 4, 4] == -51
    assert planes[0, 6, 5] == 6 * 12 + 4 and planes[0, 6, 6] == 6 * 12 + 7
    assert (planes[0, 2:10, 2:10] >= 0).all()
    outside = np.ones((12, 12), dtype=bool)
    outside[2:10, 2:10] = False
    assert (planes[0][outside] == -1).all()
    seen[3:9, 3:9] = -1
    hole = np.where(seen >= 0, 1, -1).astype(np.float32)[None]
    close_pinholes(seen, hole)
    assert (hole[0, 5:7, 5:7] == -1).all()


def test_nearer_wins_and_edges_leave_no_cracks() -> None:
    vertices, triangles = grid(9, 9)
    far = vertices * [4, 4, 0] + [0.3, 0.2, 20]
    near = np.array([[5, 5, 10], [25, 5, 10], [5, 25, 10]], dtype=float)
    everything = np.concatenate([far, near])
    faces = np.concatenate([triangles, [[81, 82, 83]]]).astype(np.int32)
    raster = rasterize(everything, faces, 32, 32)
    assert raster.is_covered[1:, 1:].all()
    assert raster.triangle_id[8, 8] == len(triangles)
    assert raster.triangle_id[30, 30] < len(triangles)
    np.testing.assert_allclose(raster.barycentric.sum(-1)[raster.is_covered], 1, atol=1e-6)


def test_behind_the_camera_and_empty_triangles_are_left_out() -> None:
    vertices = np.array([[0, 0, -1], [30, 0, 5], [0, 30, 5], [3, 3, 5]], dtype=float)
    triangles = np.array([[0, 1, 2], [1, 1, 2]], dtype=np.int32)
    raster = rasterize(vertices, triangles, 16, 16)
    assert not raster.is_covered.any()
    assert interpolate(raster, triangles, vertices).sum() == 0


def test_speed_of_a_face_sized_mesh() -> None:
    vertices, triangles = grid(28, 28)  # 1458 triangles
    vertices = vertices * [8, 8, 0] + [20, 20, 50]
    rasterize(vertices, triangles, 256, 256)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        rasterize(vertices, triangles, 256, 256)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.006  # typically 1 ms; the margin is for a busy machine


def test_mesh_basics() -> None:
    vertices, triangles = grid(3, 4)
    np.testing.assert_allclose(vertex_normals(vertices, triangles), np.tile([0, 0, -1], (12, 1)))
    assert len(edges(triangles)) == 12 + len(triangles) - 1  # Euler: V - E + F = 1 for a disk
    loops = boundary_loops(triangles)
    assert len(loops) == 1 and set(loops[0]) == set(range(12)) - {5, 6}
    assert adjacency(triangles, 12)[0].sum() == 2
    assert abs(laplacian(triangles, 12).sum()) < 1e-12
