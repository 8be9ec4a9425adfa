"""Triangle meshes: normals, edges, boundary loops and Laplacians.

Legend: V vertices, F faces. `vertices` (V, 3), `triangles` int32 (F, 3). The normal of a triangle is
(b - a) x (c - a); our face meshes are wound so that it points out of the head, to the camera (negative z).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numba import njit
from numpy.typing import NDArray

Triangles = NDArray[np.int32]
Float = NDArray[np.float64]


def vertex_normals(vertices: NDArray[np.floating], triangles: Triangles) -> Float:
    """Unit normals (V, 3), weighted by triangle area; 0 for a vertex without triangles."""
    points = np.ascontiguousarray(vertices, dtype=np.float64)
    normals: Float = _vertex_normals(points, np.ascontiguousarray(triangles, dtype=np.int32))
    return normals


@njit(cache=True, nogil=True)
def _vertex_normals(points, triangles):  # type: ignore[no-untyped-def]
    normals = np.zeros_like(points)
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        wx, wy, wz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for k in range(3):
            v = triangles[f, k]
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(normals.shape[0]):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        if length > 0:
            normals[v] /= length
    return normals


def edges(triangles: Triangles) -> NDArray[np.int32]:
    """Undirected edges (E, 2), each once, the smaller index first."""
    directed = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(directed, axis=1), axis=0).astype(np.int32)


def adjacency(triangles: Triangles, vertex_count: int) -> sparse.csr_array:
    """Symmetric 0/1 matrix (V, V): 1 where two vertices share an edge."""
    pairs = edges(triangles)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    ones = np.ones(len(both))
    return sparse.csr_array((ones, (both[:, 0], both[:, 1])), shape=(vertex_count, vertex_count))


def laplacian(triangles: Triangles, vertex_count: int) -> sparse.csr_array:
    """Graph Laplacian (V, V): degree on the diagonal, -1 per edge; positive semi-definite."""
    neighbors = adjacency(triangles, vertex_count)
    degree = np.asarray(neighbors.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array(degree) - neighbors)


def boundary_loops(triangles: Triangles) -> list[NDArray[np.int32]]:
    """Closed loops of vertices along edges that only one triangle has, longest first.

    Each loop runs in the direction in which the triangles use its edges. Loops must not share a vertex.
    """
    directed = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    known = {(int(a), int(b)) for a, b in directed}
    following = {a: b for a, b in known if (b, a) not in known}
    loops: list[NDArray[np.int32]] = []
    while following:
        start, at = following.popitem()
        loop = [start]
        while at != start:
            loop.append(at)
            at = following.pop(at)
        loops.append(np.array(loop, dtype=np.int32))
    return sorted(loops, key=len, reverse=True)
