"""Builds src/omokage/tracking/data/face_model.npz: mesh, mean face, mouth and eye patches, texture map, identity basis.

The mean face is a statistic of what the landmark network says about a hundred 25x25 thumbnails and one public-domain
portrait that scikit-image ships: detections and their mirror images are aligned, their median is taken, and the mouth
is closed by geometry. Run from the repository root: python tools/build_face_model.py
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import scipy.linalg
import skimage.data
from mediapipe.python.solutions import face_mesh, face_mesh_connections
from scipy.optimize import linear_sum_assignment
from skimage.transform import resize

from omokage.geometry.mesh import boundary_loops, laplacian
from omokage.tracking import face_regions as region
from omokage.tracking.blendshapes import _Face
from omokage.tracking.plate import PlateSolver

PUPIL_DISTANCE_CM = 6.3
IDENTITY_MODES = 16  # x 3 axes
EYE_RADIUS_CM = 1.2
IRIS_RADIUS_CM = 0.59


def detections() -> np.ndarray:
    """Landmarks (N, 468, 3) of the sample faces, in pixels."""
    thumbnails = np.clip(
        np.stack([resize(face, (250, 250), order=3) for face in skimage.data.lfw_subset()[:100]]), 0, 1
    )
    pictures = [skimage.data.astronaut()]
    for face in thumbnails:
        pictures.append(np.full((400, 400, 3), 128, dtype=np.uint8))
        pictures[-1][75:325, 75:325] = (face * 255).astype(np.uint8)[..., None]
    found = []
    with face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True) as network:
        for picture in pictures:
            for face in network.process(picture).multi_face_landmarks or []:
                size = np.array([picture.shape[1], picture.shape[0], picture.shape[1]])
                found.append(np.array([[p.x, p.y, p.z] for p in face.landmark[: region.SKIN_COUNT]]) * size)
    return np.array(found)


def skin_triangles() -> np.ndarray:
    """Triangles (852, 3) of the 468-point mesh; orientation is arbitrary."""
    edges = {(min(e), max(e)) for e in face_mesh_connections.FACEMESH_TESSELATION}
    neighbors = defaultdict(set)
    for a, b in edges:
        neighbors[a].add(b)
        neighbors[b].add(a)
    cycles = {tuple(sorted((a, b, c))) for a, b in edges for c in neighbors[a] & neighbors[b]}
    use = defaultdict(int)
    for a, b, c in cycles:
        for edge in ((a, b), (b, c), (a, c)):
            use[edge] += 1
    # Two 3-cycles run around a triangle fan without being a face: each of their edges has three cycles.
    return np.array(sorted(t for t in cycles if min(use[t[:2]], use[t[1:]], use[t[0], t[2]]) < 3))


def oriented(triangles: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """The same triangles, all wound alike, the majority facing -z."""
    faces = [list(t) for t in triangles]
    at_edge = defaultdict(list)
    for i, (a, b, c) in enumerate(faces):
        for edge in ((a, b), (b, c), (c, a)):
            at_edge[frozenset(edge)].append(i)
    seen, stack = {0}, [0]
    while stack:
        a, b, c = faces[stack.pop()]
        for edge in ((a, b), (b, c), (c, a)):
            for other in at_edge[frozenset(edge)]:
                if other in seen:
                    continue
                u = faces[other]
                if edge in ((u[0], u[1]), (u[1], u[2]), (u[2], u[0])):
                    u[1], u[2] = u[2], u[1]
                seen.add(other)
                stack.append(other)
    result = np.array(faces, dtype=np.int32)
    corner = vertices[result]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    return result if normal[:, 2].sum() < 0 else result[:, [0, 2, 1]]


def aligned(points: np.ndarray, onto: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
    """`points` moved, turned and scaled onto `onto` (least squares over rows, or over `pairs` (N, 2))."""
    a, b = (points, onto) if pairs is None else (points[pairs[:, 0]], onto[pairs[:, 1]])
    center_a, center_b = a.mean(0), b.mean(0)
    u, s, v = np.linalg.svd((b - center_b).T @ (a - center_a))
    flip = np.array([1, 1, np.sign(np.linalg.det(u @ v))])
    turn = (u * flip) @ v
    scale = (s * flip).sum() / ((a - center_a) ** 2).sum()
    return scale * (points - center_a) @ turn.T + center_b


def symmetric_mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median face (468, 3), symmetric about x = 0 and upright, and the mirror map (468,)."""
    mean = samples[0]
    for _ in range(6):
        mean = np.median([aligned(sample, mean) for sample in samples], axis=0)
    pairs = np.array(
        [[263, 33], [362, 133], [291, 61], [33, 263], [133, 362], [61, 291], [10, 10], [152, 152], [1, 1]]
    )
    mirror = np.arange(region.SKIN_COUNT)
    for _ in range(8):
        flipped = aligned(mean * [-1, 1, 1], mean, pairs)
        mirror = linear_sum_assignment(((mean[:, None] - flipped[None]) ** 2).sum(-1))[1]
        mean = (mean + flipped[mirror]) / 2
        pairs = np.stack([mirror, np.arange(region.SKIN_COUNT)], axis=1)
    across = mean[454] - mean[234]
    across /= np.linalg.norm(across)
    down = mean[152] - mean[10]
    down -= across * (down @ across)
    down /= np.linalg.norm(down)
    mean = (mean - mean.mean(0)) @ np.stack([across, down, np.cross(across, down)]).T
    pupils = mean[[33, 133]].mean(0) - mean[[263, 362]].mean(0)
    mean *= PUPIL_DISTANCE_CM / np.linalg.norm(pupils)
    mean = (mean + mean[mirror] * [-1, 1, 1]) / 2
    # Origin: between the eyes in x and y, at the depth of the temples: near the middle of the head.
    return mean - [0, mean[[33, 263]].mean(0)[1], mean[[234, 454]].mean(0)[2]], mirror.astype(np.int32)


def plate_stiffness(triangles: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Squared cotangent Laplacian (468, 468) of the skin."""
    count = len(vertices)
    weights = np.zeros((count, count))
    area = np.zeros(count)
    for k in range(3):
        i, j, o = triangles[:, k], triangles[:, (k + 1) % 3], triangles[:, (k + 2) % 3]
        u, w = vertices[i] - vertices[o], vertices[j] - vertices[o]
        double = np.linalg.norm(np.cross(u, w), axis=1)
        cotangent = np.clip((u * w).sum(1) / np.maximum(double, 1e-9), 0.05, 3.0)
        np.add.at(weights, (i, j), cotangent / 2)
        np.add.at(weights, (j, i), cotangent / 2)
        np.add.at(area, i, double / 6)
    operator = np.diag(weights.sum(1)) - weights
    return operator @ (operator / np.maximum(area, 0.01)[:, None]) + 0.02 * operator


def close_mouth(mean: np.ndarray, solver: PlateSolver) -> np.ndarray:
    """The lips brought together: a little by the jaw, the rest by the lips."""
    face = _Face(mean, solver)
    mean = mean - 0.06 * face.jaw_open()
    handles = dict.fromkeys((*region.NOSE_WING, 2, *region.CHIN[:3]), np.zeros(3))
    for column in range(6):
        gap = mean[region.LOWER_LIP[3][column]] - mean[region.UPPER_LIP[3][column]]
        for row, share in enumerate((0.35, 0.6, 0.85, 1.0)):
            handles[region.LOWER_LIP[row][column]] = -0.6 * share * gap
            handles[region.UPPER_LIP[row][column]] = (
                0.4 * share * gap if column < 5 else handles[region.LOWER_LIP[row][column]]
            )
    return mean + _Face(mean, solver).spread(handles, 2.5, both=True)


def both_sides(vertices: tuple[int, ...], mirror: np.ndarray, is_left: bool) -> list[int]:
    return [int(v if is_left else mirror[v]) for v in vertices]


class Patches:
    """Vertices behind the skin, linear in it: patch = weights @ skin + offset."""

    def __init__(self, skin: np.ndarray, mirror: np.ndarray) -> None:
        self.skin, self.mirror = skin, mirror
        self.weights: list[np.ndarray] = []
        self.offset: list[np.ndarray] = []
        self.jaw: list[float] = []
        self.gaze: list[float] = []
        self.uv: list[np.ndarray] = []
        self.triangles: list[tuple[int, int, int]] = []

    def add(
        self,
        weights: dict[int, float] | np.ndarray,
        offset: object,
        uv: object,
        jaw: float = 0.0,
        gaze: float = 0.0,
    ) -> int:
        """One vertex; returns its index in the whole mesh. Weights are per axis (3, 468) or a dict for all axes."""
        matrix = np.zeros((3, region.SKIN_COUNT))
        if isinstance(weights, dict):
            for vertex, weight in weights.items():
                matrix[:, vertex] += weight
        else:
            matrix = weights
        self.weights.append(matrix)
        self.offset.append(np.asarray(offset, dtype=float))
        self.uv.append(np.asarray(uv, dtype=float))
        self.jaw.append(jaw)
        self.gaze.append(gaze)
        return region.SKIN_COUNT + len(self.weights) - 1

    def irises(self) -> None:
        """Landmarks 468..477 of both eyes, in MediaPipe's order."""
        for is_left in (False, True):
            top, bottom = both_sides((386, 374), self.mirror, is_left)
            loop = self.loop(is_left)
            weights = np.zeros((3, region.SKIN_COUNT))
            weights[:2, loop] = 1 / len(loop)
            weights[2, [top, bottom]] = 0.5
            sink = EYE_RADIUS_CM - np.sqrt(EYE_RADIUS_CM**2 - IRIS_RADIUS_CM**2)
            self.add(weights, [0, 0, 0.12], self.eye_uv(is_left, 0, 0), gaze=1.0)
            for x, y in ((1, 0), (0, -1), (-1, 0), (0, 1)):  # the network's order, the same for both eyes
                offset = [x * IRIS_RADIUS_CM, y * IRIS_RADIUS_CM, 0.12 + sink]
                self.add(weights, offset, self.eye_uv(is_left, 0.36 * x, 0.36 * y), gaze=1.0)

    def loop(self, is_left: bool) -> list[int]:
        corners = region.EYE_CORNERS
        left = (corners[0], *region.UPPER_LID, corners[1], *region.LOWER_LID[::-1])
        return both_sides(left, self.mirror, is_left)

    def eye_uv(self, is_left: bool, x: float, y: float) -> np.ndarray:
        """A disk of radius 0.095 in the strip below the face."""
        return np.array([0.88 if is_left else 0.62, 0.895]) + np.array([0.115, 0.095]) * [x, y]

    def eye(self, is_left: bool, iris: int) -> None:
        """The sclera around an iris, fixed to the socket at its rim, out to 60 % of the first lid ring."""
        corners = region.EYE_RING_CORNERS
        ring = both_sides(
            (corners[0], *region.UPPER_LID_RING, corners[1], *region.LOWER_LID_RING[::-1]),
            self.mirror,
            is_left,
        )
        points = [self.skin[v] for v in self.loop(is_left)]
        center = np.mean(points, axis=0)
        rim, middle = [], []
        for loop_vertex, ring_vertex, point in zip(self.loop(is_left), ring, points, strict=True):
            weights = {loop_vertex: 0.4, ring_vertex: 0.6}
            direction = (point - center)[:2] * [1, 1.6]
            angle = np.arctan2(direction[1], direction[0])
            unit = np.array([np.cos(angle), np.sin(angle)])
            rim.append((angle, self.add(weights, [0, 0, 0.3], self.eye_uv(is_left, *unit))))
            both = np.zeros((3, region.SKIN_COUNT))
            both[:, loop_vertex], both[:, ring_vertex] = 0.2, 0.3
            both += 0.5 * self.weights[iris - region.SKIN_COUNT]
            offset = np.array([0.5 * IRIS_RADIUS_CM * unit[0], 0.5 * IRIS_RADIUS_CM * unit[1], 0.3])
            middle.append((angle, self.add(both, offset, self.eye_uv(is_left, *(0.68 * unit)), gaze=0.45)))
        inner = [(angle, iris + 1 + k) for k, angle in enumerate((0, -np.pi / 2, np.pi, np.pi / 2))]
        self.strip(middle, rim)
        self.strip(inner, middle)
        inner.sort()
        for k in range(4):
            self.triangles.append((iris, inner[k][1], inner[(k + 1) % 4][1]))

    def strip(self, inner: list[tuple[float, int]], outer: list[tuple[float, int]]) -> None:
        """Triangles between two rings of (angle, vertex)."""
        inner, outer = sorted(inner), sorted(outer)
        i = j = 0
        while i < len(inner) or j < len(outer):
            next_i = inner[(i + 1) % len(inner)][0] + 2 * np.pi * ((i + 1) // len(inner))
            next_j = outer[(j + 1) % len(outer)][0] + 2 * np.pi * ((j + 1) // len(outer))
            a, b = inner[i % len(inner)][1], outer[j % len(outer)][1]
            if j < len(outer) and (i >= len(inner) or next_j <= next_i):
                self.triangles.append((a, b, outer[(j + 1) % len(outer)][1]))
                j += 1
            else:
                self.triangles.append((a, b, inner[(i + 1) % len(inner)][1]))
                i += 1

    def mouth(self) -> None:
        """A sheet along the dental arch: upper teeth, the cavity, lower teeth."""
        # offset down from the lip line, back from the lips, share of the jaw, v on the texture
        rows = ((-1.3, 0.55, 0, 0.0), (-0.5, 0.5, 0, 0.14), (0.15, 0.55, 0, 0.28), (0.1, 1.5, 0, 0.38),
                (0.3, 2.8, 0.5, 0.52),
                (0.35, 1.7, 1, 0.66), (0.08, 0.75, 1, 0.74), (0.9, 0.65, 1, 0.87), (1.7, 0.65, 1, 1.0))  # fmt: skip
        columns = np.linspace(-1, 1, 13)
        grid = []
        for down, back, jaw, v in rows:
            line = []
            for u in columns:
                bend = (u / 0.625) ** 2
                weights = np.zeros((3, region.SKIN_COUNT))
                weights[:, [13, 14]] = 0.5
                corner = 308 if u > 0 else 78
                weights[0, [308, 78]] += 1.6 * u * np.array([0.5, -0.5])
                weights[1:, [13, 14]] -= 0.5 * bend
                weights[1:, corner] += bend
                offset = [0.0, down, back + (0.35 - 0.55) * bend]
                line.append(self.add(weights, offset, [0.02 + 0.46 * (u + 1) / 2, 0.8 + 0.19 * v], jaw=jaw))
            grid.append(line)
        for upper, lower in pairwise(grid):
            for k in range(len(columns) - 1):
                a, b, c, d = upper[k], upper[k + 1], lower[k], lower[k + 1]
                self.triangles += [(a, b, c), (b, d, c)] if k < len(columns) // 2 else [(a, b, d), (a, d, c)]


def unwrapped(skin: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """A texture map (468, 2) without overlaps: positive (mean-value) weights and a convex outline cannot fold."""
    loops = boundary_loops(triangles)
    outline, holes = loops[0], loops[1:]
    faces = [tuple(t) for t in triangles]
    points = list(skin)
    for hole in holes:
        points.append(skin[hole].mean(0))
        faces += [(int(b), int(a), len(points) - 1) for a, b in zip(hole, np.roll(hole, -1), strict=True)]
    vertices, faces_array = np.array(points), np.array(faces)
    weights = np.zeros((len(vertices), len(vertices)))
    for k in range(3):
        i, j, o = faces_array[:, k], faces_array[:, (k + 1) % 3], faces_array[:, (k + 2) % 3]
        u, w = vertices[j] - vertices[i], vertices[o] - vertices[i]
        lengths = np.linalg.norm(u, axis=1), np.linalg.norm(w, axis=1)
        cos = (u * w).sum(1) / np.maximum(lengths[0] * lengths[1], 1e-9)
        tangent = np.tan(np.arccos(np.clip(cos, -0.99, 0.999)) / 2)
        np.add.at(weights, (i, j), tangent / np.maximum(lengths[0], 0.05))
        np.add.at(weights, (i, o), tangent / np.maximum(lengths[1], 0.05))
    center = np.array([0, skin[[10, 152], 1].mean()])
    direction = skin[outline, :2] - center
    angle = np.arctan2(direction[:, 1] / 8.3, direction[:, 0] / 7.0)
    fixed = np.stack([0.5 + 0.485 * np.cos(angle), 0.39 + 0.378 * np.sin(angle)], axis=1)
    system = np.diag(weights.sum(1)) - weights
    target = np.zeros((len(vertices), 2))
    system[outline] = np.eye(len(vertices))[outline]
    target[outline] = fixed
    return np.linalg.solve(system, target)[: len(skin)]


def identity_modes(triangles: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth fields (M, 468) of unit variance, either even or odd in x, and their frequencies (M,)."""
    loops = boundary_loops(triangles)
    matrix = laplacian(triangles, region.SKIN_COUNT).toarray()
    for loop in loops[1:]:  # fill eyes and mouth so that opposite lids and lips change together
        share = 1.0 / len(loop)
        matrix[np.ix_(loop, loop)] += np.eye(len(loop)) - share
    permutation = np.eye(region.SKIN_COUNT)[mirror]
    matrix = (matrix + permutation @ matrix @ permutation.T) / 2
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=[1, IDENTITY_MODES])
    even = vectors + permutation @ vectors
    odd = vectors - permutation @ vectors
    fields = np.where(np.linalg.norm(even, axis=0) > np.linalg.norm(odd, axis=0), even, odd)
    return (fields / fields.std(axis=0)).T, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("src/omokage/tracking/data/face_model.npz"))
    output = parser.parse_args().output
    mean, mirror = symmetric_mean(detections())
    triangles = oriented(skin_triangles(), mean)
    stiffness = plate_stiffness(triangles, mean)
    solver = PlateSolver(stiffness, mirror, mean)
    skin = close_mouth(mean, solver)
    skin = (skin + skin[mirror] * [-1, 1, 1]) / 2
    patches = Patches(skin, mirror)
    patches.irises()
    for is_left, iris in zip((False, True), region.IRIS_CENTERS, strict=True):
        patches.eye(is_left, iris)
    first_mouth = region.SKIN_COUNT + len(patches.weights)
    patches.mouth()
    modes, frequency = identity_modes(triangles, mirror)
    weights, offset = np.array(patches.weights), np.array(patches.offset)
    everything = np.concatenate([skin, np.einsum("pav,va->pa", weights, skin) + offset])
    inside = np.array(patches.triangles, dtype=np.int32)
    corner = everything[inside]
    away = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])[:, 2] > 0
    inside[away] = inside[away][:, [0, 2, 1]]
    np.savez_compressed(
        output,
        skin=skin.astype(np.float32),
        skin_triangles=triangles,
        patch_triangles=inside,
        patch_weights=weights.astype(np.float32),
        patch_offset=offset.astype(np.float32),
        patch_jaw=np.array(patches.jaw, dtype=np.float32),
        patch_gaze=np.array(patches.gaze, dtype=np.float32),
        first_mouth=np.int32(first_mouth),
        uv=np.concatenate([unwrapped(skin, triangles), patches.uv]).astype(np.float32),
        mirror=mirror,
        modes=modes.astype(np.float32),
        mode_frequency=frequency.astype(np.float32),
        stiffness=stiffness.astype(np.float32),
    )


if __name__ == "__main__":
    main()
