"""A synthetic person with known truth: our own textured, lit head, rendered with a given pose and expression.

Nobody is depicted. Tests and benchmarks track its clips and compare with the truth.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import Camera
from omokage.geometry.mesh import Triangles, vertex_normals
from omokage.geometry.rasterize import interpolate, rasterize
from omokage.media.clip import Frame, Image
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.fitting import with_eye_look
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.sway import ZONE_COUNT
from omokage.tracking.tracker import FaceState, concatenate

Float = NDArray[np.float64]
Color = tuple[float, float, float]

TEXTURE_PX = 512
SUPERSAMPLING = 2
_LIGHT = np.array([-0.35, -0.45, -0.82])
_SHELL_RINGS = 7


class SyntheticSubject:
    """A made-up person. `seed` chooses the face's shape, skin, hair and eyes. `subject` is the true face model.

    skin: (S, S, 3) levels in the model's texture map, in place of the painted skin; a photo's, for example.
    distance: from the camera, cm.
    """

    def __init__(
        self, seed: int, *, skin: NDArray[np.floating] | None = None, distance: float = 64.0
    ) -> None:
        self._rest = np.array([0.0, -1.0, distance])
        self.model = MorphableModel.load()
        rng = np.random.default_rng(seed)
        self.subject = self.model.subject(rng.normal(0, 0.25, len(self.model.id_basis)))
        self._skin = np.array([224, 178, 152]) * rng.uniform(0.78, 1.05) * rng.uniform(0.97, 1.03, 3)
        self._hair = np.array([52, 38, 30]) * rng.uniform(0.6, 1.4)
        self._clothes = rng.uniform(50, 170, 3)
        self._iris = np.array([[96, 66, 40], [70, 96, 120], [84, 92, 60]][int(rng.integers(3))])
        self._texture = self._paint(rng)
        if skin is not None:
            self._texture = np.asarray(cv2.resize(skin, (TEXTURE_PX, TEXTURE_PX)), dtype=np.float32)
            cheeks = np.round(self.model.uv[list(region.CHEEK)] * (TEXTURE_PX - 1)).astype(int)
            self._skin = np.median(self._texture[cheeks[:, 1], cheeks[:, 0]], axis=0)
        self._wall = _background(rng)
        self._oval = self.model.face_oval
        self._shell_faces = _tube_faces(len(self._oval), _SHELL_RINGS, self.model.vertex_count)

    def render(
        self,
        rotation: Float,
        translation: Float,
        expression: NDArray[np.floating],
        gaze: NDArray[np.floating],
        size: int,
        *,
        noise: float = 0.0,
        noise_seed: int = 0,
        supersampling: int = SUPERSAMPLING,
    ) -> Image:
        """A square picture of `size` pixels, camera `Camera.for_image(size, size)`; `noise` in levels (0..255).

        supersampling: drawn at so many times the size, for smooth edges.
        """
        fine = size * supersampling
        camera = Camera.for_image(fine, fine)
        face = self.model.pose_vertices(self.subject, expression, gaze)
        vertices, triangles, body_colors = self._placed(face, rotation, translation)
        face_count = len(self.model.triangles)
        colors = np.concatenate([np.zeros((len(face), 3)), self._shell_colors(face), body_colors])
        uv = np.concatenate([self.model.uv, np.zeros((len(vertices) - len(face), 2))])
        normals = self._normals(vertices, triangles, len(face))
        raster = rasterize(camera.project(vertices), triangles, fine, fine)
        drawn = interpolate(raster, triangles, np.concatenate([normals, colors, uv], axis=1))
        is_face = (raster.triangle_id >= 0) & (raster.triangle_id < face_count)
        at = drawn[..., 6:8] * TEXTURE_PX - 0.5
        painted = cv2.remap(self._texture, at[..., 0].copy(), at[..., 1].copy(), cv2.INTER_LINEAR)
        color = np.where(is_face[..., None], painted, drawn[..., 3:6]) * _shade(drawn[..., :3])[..., None]
        picture = np.where(raster.is_covered[..., None], color, cv2.resize(self._wall, (fine, fine)))
        picture = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        if noise:
            picture = picture + np.random.default_rng(noise_seed).normal(0, noise, picture.shape)
        return np.clip(np.round(picture), 0, 255).astype(np.uint8)

    def opacity(
        self,
        rotation: Float,
        translation: Float,
        expression: NDArray[np.floating],
        gaze: NDArray[np.floating],
        size: int,
    ) -> NDArray[np.uint8]:
        """Where `render` draws the person, 0 on the wall, 255 on them, uint8 (size, size)."""
        fine = size * SUPERSAMPLING
        face = self.model.pose_vertices(self.subject, expression, gaze)
        vertices, triangles, _ = self._placed(face, rotation, translation)
        covered = rasterize(Camera.for_image(fine, fine).project(vertices), triangles, fine, fine).is_covered
        return np.asarray(
            cv2.resize(covered.astype(np.uint8) * 255, (size, size), interpolation=cv2.INTER_AREA)
        )

    def _placed(self, face: Float, rotation: Float, translation: Float) -> tuple[Float, Triangles, Float]:
        """Face, head and body in camera space, with their triangles, and the body's colors."""
        placed = self.model.to_camera(np.concatenate([face, self._shell(face)]), rotation, translation)
        body, body_faces, body_colors = self._body(translation)
        triangles = np.concatenate([self.model.triangles, self._shell_faces, body_faces + len(placed)])
        return np.concatenate([placed, body]), triangles, body_colors

    def render_clip(self, truth: FaceTrack, *, noise: float = 0.0) -> Iterator[Frame]:
        """The frames of a known performance, with its numbers and times."""
        for row in range(len(truth)):
            image = self.render(
                truth.rotation[row],
                truth.translation[row],
                truth.expression[row],
                truth.gaze[row],
                truth.camera.width,
                noise=noise,
                noise_seed=row,
            )
            yield Frame(int(truth.frame_index[row]), float(truth.time_s[row]), image)

    def performance(
        self, seconds: float, *, frame_rate: float = 25.0, size: int = 320, motion: float = 1.0
    ) -> FaceTrack:
        """A known track: turning and nodding, speech-like jaw, blinks, smiles, brows, glances.

        motion: 0 keeps the head, the face and the eyes still.
        """
        states = []
        for index in range(round(seconds * frame_rate)):
            time_s = index / frame_rate
            gaze = motion * np.array([[0.25 * np.sin(1.1 * time_s), 0.12 * np.sin(1.7 * time_s + 1)]] * 2)
            expression = with_eye_look(motion * _acted(time_s), gaze)
            nod, turn, tilt = np.sin(2.6 * time_s), np.sin(1.7 * time_s), np.sin(1.1 * time_s + 0.6)
            angle = [0.18 * nod, -0.34 * turn, 0.12 * tilt]
            shift = [1.2 * np.sin(0.8 * time_s), 0.6 * np.sin(1.3 * time_s), 3.0 * np.sin(0.5 * time_s)]
            states.append(
                FaceState(
                    frame_index=index,
                    time_s=time_s,
                    is_tracked=True,
                    confidence=1.0,
                    rotation=motion * np.array(angle),
                    translation=self._rest + motion * np.array(shift),
                    expression=expression.astype(np.float32),
                    gaze=gaze.astype(np.float32),
                    sway=np.zeros((ZONE_COUNT, 2), dtype=np.float32),
                    landmarks=np.zeros((478, 3), dtype=np.float32),
                )
            )
        return concatenate(states, Camera.for_image(size, size), self.subject)

    def _paint(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """The texture (TEXTURE_PX, TEXTURE_PX, 3): skin with all that a landmark network looks for."""
        model, side = self.model, TEXTURE_PX
        grain = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 1.2) * 5
        blotch = cv2.GaussianBlur(rng.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 14) * 60
        picture = np.empty((side, side, 3), dtype=np.float32)
        picture[:] = self._skin + (grain + blotch)[..., None] * [1.0, 0.8, 0.7]
        at = model.uv.astype(np.float64) * side

        def brush(
            polygons: list[NDArray[np.integer]], color: NDArray[np.floating], blur: float, opacity: float
        ) -> None:
            mask = np.zeros((side, side), dtype=np.float32)
            for polygon in polygons:
                cv2.fillPoly(mask, [np.round(at[polygon] * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
            mask = cv2.GaussianBlur(mask, (0, 0), blur)[..., None] * opacity
            picture[:] = picture * (1 - mask) + np.asarray(color, dtype=np.float32) * mask

        def sides(left: tuple[int, ...]) -> list[NDArray[np.integer]]:
            return [np.array(left), model.mirror[list(left)]]

        upper, lower = list(region.UPPER_LID), list(region.LOWER_LID)
        ring, crease = region.UPPER_LID_RING, region.UPPER_LID_CREASE
        corners = region.EYE_CORNERS
        brush(sides((425, 411, 352, 280)), self._skin * [1.0, 0.78, 0.76], 10, 0.6)
        brush(sides((*crease, *ring[::-1])), self._skin * 0.72, 3.5, 0.7)
        brush(sides((*region.LOWER_LID_RING, *region.LOWER_LID_BAG[::-1])), self._skin * 0.82, 4, 0.6)
        brush(sides((358, 279, 331, 294, 327)), self._skin * 0.78, 3, 0.6)
        brush(sides((309, 459, 458, 250, 290, 328)), self._skin * 0.16, 1.2, 1.0)
        lips = self._skin * [0.80, 0.48, 0.50]
        for inner_edge, outer_edge in (
            (region.UPPER_LIP[3], region.UPPER_LIP[0]),
            (region.LOWER_LIP[3], region.LOWER_LIP[0]),
        ):
            brush(sides((*inner_edge, *outer_edge[::-1])), lips, 1.2, 1.0)
        for row in (region.UPPER_LIP, region.LOWER_LIP):
            brush(sides((*row[3], *row[2][::-1])), lips * 0.6, 1.0, 0.8)
        brush(sides((*region.BROW_UPPER, *region.BROW_LOWER[::-1])), self._hair * 1.1, 1.6, 0.95)
        brush(sides((corners[0], *upper, corners[1], *ring[::-1])), self._skin * 0.55, 1.5, 0.35)
        for edge, opacity in ((upper, 0.95), (lower, 0.5)):
            self._lash(picture, at, edge, opacity)
        self._paint_inside(picture, at)
        return picture

    def _lash(self, picture: NDArray[np.float32], at: Float, edge: list[int], opacity: float) -> None:
        mask = np.zeros(picture.shape[:2], dtype=np.float32)
        corners = region.EYE_CORNERS
        for line in ([corners[0], *edge, corners[1]],):
            for vertices in (line, self.model.mirror[line].tolist()):
                cv2.polylines(
                    mask, [np.round(at[vertices] * 16).astype(np.int32)], False, 1.0, 3, cv2.LINE_AA, 4
                )
        mask = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None] * opacity
        picture[:] = picture * (1 - mask) + (self._hair * 0.7).astype(np.float32) * mask

    def _paint_inside(self, picture: NDArray[np.float32], at: Float) -> None:
        """Eyes and mouth, in the strip below the face."""
        start = round(0.79 * TEXTURE_PX)
        picture[start:, TEXTURE_PX // 2 :] = (226, 222, 218)
        for first in region.IRIS_CENTERS:
            center = tuple(np.round(at[first] * 16).astype(int).tolist())
            radii = np.abs(at[first + 1 : first + 5] - at[first]).max(axis=0)
            for share, color in (
                (1.06, self._iris * 0.45),
                (0.92, self._iris),
                (0.42, np.array([12, 10, 10])),
            ):
                axes = tuple(np.round(radii * share * 16).astype(int).tolist())
                cv2.ellipse(picture, center, axes, 0, 0, 360, color.tolist(), -1, cv2.LINE_AA, 4)
            glint = tuple(np.round((at[first] + radii * [-0.25, -0.3]) * 16).astype(int).tolist())
            cv2.circle(picture, glint, 40, (250, 250, 250), -1, cv2.LINE_AA, 4)
        mouth = at[self.model.mouth_interior]
        v = (np.arange(TEXTURE_PX) + 0.5 - mouth[:, 1].min()) / np.ptp(mouth[:, 1])
        teeth = ((v > 0.06) & (v < 0.3)) | ((v > 0.7) & (v < 0.85))
        rows = np.where(teeth[:, None], [222, 214, 200], [92, 34, 34])
        rows = np.where(((v > 0.3) & (v < 0.66))[:, None], [44, 14, 14], rows)
        picture[start:, : TEXTURE_PX // 2] = rows[start:, None]
        columns = np.arange(0, TEXTURE_PX // 2, 17)
        for row in np.flatnonzero(teeth):
            if row >= start:
                picture[row, columns] *= 0.75

    def _shell(self, face: Float) -> Float:
        """Rings (36 * rings, 3) from the outline of the face over the skull to the back of the head."""
        edge = face[self._oval]
        middle = np.array([0.0, edge[:, 1].mean() - 0.5, 0.0])
        around = np.arctan2((edge[:, 1] - middle[1]) / 9.5, edge[:, 0] / 7.6)
        rings = []
        for ring in range(_SHELL_RINGS):
            share = ring / (_SHELL_RINGS - 1)
            lift = np.sin(np.pi * min(share * 1.5, 1.0)) * (0.9 + 2.6 * np.clip(-np.sin(around), 0, 1))
            lift = lift * (np.sin(around) < 0.25)
            bulge = np.cos(share * np.pi / 2)
            radii = (np.array([7.9, 10.2]) + lift[:, None]) * bulge**0.6
            skull = np.stack(
                [
                    np.cos(around) * radii[:, 0],
                    np.sin(around) * radii[:, 1] + middle[1] - 1.2 * share,
                    np.zeros(36),
                ],
                1,
            )
            skull[:, 2] = 2.0 + 11.0 * np.sin(share * np.pi / 2)
            mix = min(1.0, 2.2 * share)
            start = edge + np.array([0, 0, 0.15])
            rings.append((1 - mix) * start + mix * skull)
        return np.concatenate(rings)

    def _shell_colors(self, face: Float) -> Float:
        edge = face[self._oval]
        is_hair = np.tile(edge[:, 1] < 1.5, (_SHELL_RINGS, 1))
        is_hair[0] &= edge[:, 1] < -2.0
        is_hair[3:] = True
        colors = np.where(is_hair[..., None], self._hair, self._skin * 0.85)
        return colors.reshape(-1, 3)

    def _body(self, translation: Float) -> tuple[Float, Triangles, Float]:
        """Neck and shoulders in camera space: they move with the head, less, and do not turn."""
        rings, count = [], 24
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        profile = (
            (3.0, 5.6, 5.0),
            (9.0, 5.6, 5.2),
            (12.0, 6.4, 5.6),
            (14.0, 11.0, 6.5),
            (16.5, 17.5, 7.5),
            (40.0, 20.0, 9.0),
        )
        for y, x_radius, z_radius in profile:
            rings.append(
                np.stack([x_radius * np.cos(angle), np.full(count, y), 6.0 + z_radius * np.sin(angle)], 1)
            )
        vertices = np.concatenate(rings) + self._rest + 0.5 * (translation - self._rest)
        colors = np.where(
            np.repeat(np.arange(len(profile)) < 2, count)[:, None], self._skin * 0.8, self._clothes
        )
        return vertices, _tube_faces(count, len(profile), 0), colors

    def _normals(self, vertices: Float, triangles: Triangles, face_count: int) -> Float:
        normals = vertex_normals(vertices, triangles)
        flipped = normals[face_count:, 2] > 0  # tubes are drawn from both sides
        normals[face_count:][flipped] *= -1
        return normals


def _tube_faces(around: int, rings: int, first: int) -> Triangles:
    """Triangles between consecutive closed rings of `around` vertices."""
    ring, k = np.mgrid[0 : rings - 1, 0:around]
    a, b = first + ring * around + k, first + ring * around + (k + 1) % around
    c, d = a + around, b + around
    faces = np.concatenate([np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])
    return faces.astype(np.int32)


def _shade(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soft light from the picture's upper left and a weak one from the right."""
    key = np.clip(normals @ (_LIGHT / np.linalg.norm(_LIGHT)).astype(np.float32), 0, None)
    fill = np.clip(normals @ np.array([0.8, 0.0, -0.6], dtype=np.float32), 0, None)
    return np.asarray(0.30 + 0.68 * key + 0.18 * fill, dtype=np.float32)


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    base = rng.uniform(90, 200, 3)
    wall = cv2.GaussianBlur(rng.normal(0, 1, (128, 128, 3)).astype(np.float32), (0, 0), 9) * 300 + base
    return np.clip(wall, 20, 235).astype(np.float32)


def _acted(time_s: float) -> Float:
    """Weights (52,) of a made-up performance at a time."""

    def wave(rate: float, phase: float) -> float:
        return max(0.0, float(np.sin(rate * time_s + phase)))

    weights = np.zeros(len(BLENDSHAPES))
    blink = max(0.0, 1 - abs((time_s + 0.7) % 1.9 - 0.95) / 0.14)
    smile, lift = wave(2.9, 2.2), wave(3.7, 0.0)
    values = {
        "jawOpen": 0.6 * wave(5.3, 0.2) * (0.6 + 0.4 * np.sin(0.9 * time_s)),
        "mouthSmileLeft": 0.8 * smile, "mouthSmileRight": 0.8 * smile,
        "mouthPucker": 0.6 * wave(2.9, 2.2 + np.pi),
        "browInnerUp": 0.8 * wave(2.2, 1.0), "browOuterUpLeft": 0.8 * lift, "browOuterUpRight": 0.8 * lift,
        "browDownLeft": 0.6 * wave(2.2, 1.0 + np.pi), "browDownRight": 0.6 * wave(2.2, 1.0 + np.pi),
        "eyeBlinkLeft": blink, "eyeBlinkRight": blink,
    }  # fmt: skip
    for name, value in values.items():
        weights[BLENDSHAPES.index(name)] = value
    return weights
