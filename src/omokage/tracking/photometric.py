"""Photometric tracking: what a person's skin looks like, and the pose and expression that bring it onto a picture.

The landmark network is off by a millimeter or two, differently in every pose and expression; the skin itself moves
with the head exactly. So the skin's pattern is learned at a thousand points of the face model from many pictures of
the clip, and each picture is then aligned with it by Gauss-Newton, the landmarks keeping a small share. Pictures are
compared after a band-pass with local contrast taken out: shading and exposure do not count, brows, lips, nostrils and
pores do. Each point counts by how little it changed between pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Self

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from omokage.geometry.camera import rotation_matrix
from omokage.media.clip import Image
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import Subject
from omokage.tracking.fitting import FREE, FaceFit, FaceFitter, in_rows, quadratic
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

SIDE_PX = 208  # of the picture of a face that is compared
EYES_PX = 80.0  # distance of the outer corners of the eyes in it, about 9 pixels per cm
BAND_PX = (0.9, 2.7, 9.0)  # finest and coarsest blur of the band-pass, and the reach of local contrast
CONTRAST_FLOOR = 3.0  # grey levels: flatter skin is not amplified
JPEG_QUALITY = 92
POINTS = 1200
LANDMARK_SHARE = 0.05  # of the landmarks' own weight
LID_SHARE = 0.5  # of the gaps between the lids
PICTURE_WEIGHT = 0.6  # of one point whose pattern has the variance 1
OUTLIER = 2.5  # standard deviations
LEAST_VARIANCE = 0.03  # of the pattern: noise of the camera and of resampling
STEPS, LEARNING_STEPS = 2, 3
UNLIKE, ALIKE = 0.3, 0.8  # correlation of a part of the face with its pattern: covered, seen
ROUNDS = 5
SHAPE_COST = 2.0  # of one standard deviation of identity, for every picture
_OUTER_CORNERS = (33, 263)


@dataclass(frozen=True, slots=True)
class FaceCrop:
    """The grey picture of one face, small enough to keep for every frame of a long clip.

    jpeg: `SIDE_PX` square.  scale, offset (2,): place in the crop = scale * place in the clip's picture + offset.
    """

    jpeg: NDArray[np.uint8]
    scale: float
    offset: Float

    @classmethod
    def of(cls, image: Image, points: NDArray[np.floating]) -> Self:
        """Cut from a picture uint8 (H, W, 3) around landmarks (478, 3)."""
        eyes = np.asarray(points, dtype=np.float64)[list(_OUTER_CORNERS)]
        scale = EYES_PX / max(float(np.linalg.norm(eyes[1] - eyes[0])), 1.0)
        offset = SIDE_PX / 2 - scale * np.asarray(points[: region.SKIN_COUNT, :2], np.float64).mean(axis=0)
        # Only the part around the face is turned grey and blurred: the picture may be large.
        corner = np.floor(-offset / scale).astype(int) - 2
        end = corner + int(np.ceil(SIDE_PX / scale)) + 5
        low, high = np.clip(corner, 0, None), np.minimum(end, image.shape[1::-1])
        part = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
        grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY) if part.size else np.zeros((1, 1), np.uint8)
        if scale < 0.8:
            grey = cv2.GaussianBlur(grey, (0, 0), 0.45 / scale)
        shift = offset + scale * low + 0.5 * scale - 0.5  # whole numbers are centers of pixels for OpenCV
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        crop = cv2.warpAffine(grey, matrix, (SIDE_PX, SIDE_PX), borderMode=cv2.BORDER_REPLICATE)
        # A live picture takes this way too, so that it is tracked exactly as a recorded one.
        jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        return cls(np.asarray(jpeg, dtype=np.uint8), scale, offset)

    def view(self) -> FaceView:
        """The crop, ready to be compared."""
        grey = cv2.imdecode(self.jpeg, cv2.IMREAD_GRAYSCALE)
        pattern = _pattern(np.asarray(grey, dtype=np.float32))
        slopes = [cv2.Sobel(pattern, cv2.CV_32F, dx, 1 - dx, ksize=3, scale=0.125) for dx in (1, 0)]
        return FaceView(np.dstack([pattern, *slopes]), self.scale, self.offset)


@dataclass(frozen=True, slots=True)
class FaceView:
    """The pattern of a face: float32 (`SIDE_PX`, `SIDE_PX`, 3), its value and its slopes along x and y."""

    planes: Float32
    scale: float
    offset: Float

    def at(self, pixels: Float) -> Float:
        """Values (N,) at pixels (N, 2) of the clip's picture."""
        return np.asarray(_values(self.planes, self.scale, self.offset, pixels))


@dataclass(frozen=True)
class SkinPattern:
    """The pattern of a person's skin at the points of `skin_points`: mean and variance over pictures, (N,) each."""

    mean: Float
    variance: Float


@dataclass(frozen=True)
class SkinPoints:
    """Points spread over the skin, the outline left out: corners (N, 3) of their triangles, weights (N, 3) of those."""

    corners: NDArray[np.int32]
    weights: Float

    def spread(self, values: NDArray[np.floating]) -> Float:
        """Values of skin vertices (..., 468, 3) -> of the points (..., N, 3)."""
        return np.asarray(np.einsum("nk,...nkc->...nc", self.weights, values[..., self.corners, :]))


@cache
def skin_points() -> SkinPoints:
    """The same points for everybody."""
    model = MorphableModel.load()
    triangles = model.triangles[: model.skin_triangle_count]
    corners = model.neutral[triangles].astype(np.float64)
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    ) * ~np.isin(triangles, model.face_oval).any(axis=1)
    share = np.cumsum(area) / area.sum()
    chosen = np.searchsorted(share, (np.arange(POINTS) + 0.5) / POINTS)
    place = np.random.default_rng(0).uniform(size=(POINTS, 2))
    place = np.where(place.sum(axis=1, keepdims=True) > 1, 1 - place, place)
    weights = np.column_stack([1 - place.sum(axis=1), place])
    return SkinPoints(triangles[chosen], weights)


class SkinFitter:
    """Aligns the skin of the fitter's subject with pictures. `pattern`: None until it is learned."""

    def __init__(self, fitter: FaceFitter, pattern: SkinPattern | None = None) -> None:
        self.fitter, self.pattern = fitter, pattern
        points = skin_points()
        fields = fitter.subject.blendshapes[:, : region.SKIN_COUNT].astype(np.float64)
        self._neutral, self._normals = points.spread(fitter.neutral), points.spread(fitter.normals)
        # Those that are free first; small and read once, because what a live picture needs competes for the caches.
        self._order = np.concatenate([FREE, np.setdiff1d(np.arange(len(fields)), FREE)])
        self._fields = in_rows(points.spread(fields[self._order]))
        self.free_fields = self._fields[..., : len(FREE)]

    def refine(
        self, points: NDArray[np.floating], view: FaceView, state: FaceFit, steps: int = STEPS
    ) -> FaceFit:
        """A state near the truth -> the state that explains the picture best; landmarks (478, 3) hold it."""
        observed, start = np.asarray(points, dtype=np.float64), state
        for _ in range(steps):
            hessian, gradient = self._held(observed, state)
            seen, slope = self.equations(view, state, self.free_fields)
            state = self.fitter.advance(state, hessian + seen, gradient + slope)
            state = self.fitter.look(observed, state, lids=start)
        return state

    def _held(self, observed: Float, state: FaceFit) -> tuple[Float, Float]:
        """The quadratic of the landmarks: a small share of each, more of the gaps between the lids.

        What a closing lid hides is not skin, so pictures tell little of it; its landmarks do, whatever the pose.
        """
        jacobian, error = self.fitter.landmark_rows(observed, state)
        upper, lower = _lid_rows()
        hessian, gradient = quadratic(jacobian, error)
        lids, slope = quadratic(jacobian[lower] - jacobian[upper], error[lower] - error[upper])
        return LANDMARK_SHARE * hessian + LID_SHARE * lids, LANDMARK_SHARE * gradient + LID_SHARE * slope

    def equations(self, view: FaceView, state: FaceFit, fields: Float32) -> tuple[Float, Float]:
        """The quadratic (M + 6, M + 6), (M + 6,) of the picture's error; `fields` (N, 3, M); pose comes last."""
        assert self.pattern is not None
        turned, matrix = self._posed(state)
        rows, errors = _picture_errors(
            fields,
            turned,
            matrix,
            state.translation,
            self._normals,
            self.fitter.camera.intrinsics,
            view.planes,
            view.scale,
            view.offset,
            self.pattern.mean,
            self.pattern.variance,
        )
        return quadratic(rows, errors)

    def read(self, view: FaceView, state: FaceFit) -> tuple[Float, Float]:
        """The pattern (N,) that the picture shows at the skin's points, and how well each is seen (N,)."""
        turned, matrix = self._posed(state)
        value = view.at(self.fitter.camera.project(turned + state.translation)[:, :2])
        return value, self._facing(matrix)

    def visible_share(self, view: FaceView, state: FaceFit) -> float:
        """How much of the face is turned to the camera and looks as it was learned, 0 to 1.

        A region counts as far as it faces the camera and its pattern correlates: a hand on the mouth takes the mouth.
        """
        assert self.pattern is not None
        value, facing = self.read(view, state)
        parts, known = _parts(), self.pattern.mean
        weight = parts * (facing / (self.pattern.variance + LEAST_VARIANCE) + 1e-9)
        weight /= weight.sum(axis=1, keepdims=True)
        seen_mean, known_mean = weight @ value, weight @ known
        together = weight @ (value * known) - seen_mean * known_mean
        spread = (weight @ value**2 - seen_mean**2) * (weight @ known**2 - known_mean**2)
        alike = np.clip((together / np.sqrt(spread + 1e-12) - UNLIKE) / (ALIKE - UNLIKE), 0, 1)
        turned = np.minimum(1.0, parts @ facing / (0.8 * parts @ self._facing(np.eye(3)) + 1e-9))
        return float((turned * alike).mean())

    def _posed(self, state: FaceFit) -> tuple[Float, Float]:
        weights = state.expression[self._order].astype(np.float32)
        moved = (self._fields.reshape(-1, len(weights)) @ weights).reshape(-1, 3)
        matrix = rotation_matrix(state.rotation)
        return (self._neutral + moved) @ matrix.T, matrix

    def _facing(self, matrix: Float) -> Float:
        return np.asarray(np.clip(-(self._normals @ matrix[2]) / 0.3 - 0.3, 0, 1))


def learn_skin(
    fitter: FaceFitter, points: NDArray[np.floating], crops: Sequence[FaceCrop], *, with_shape: bool
) -> tuple[Subject, SkinPattern]:
    """What the skin looks like, from landmarks (N, 478, 3) and crops of many different pictures.

    Pictures are aligned with the mean of all, again and again, from the landmarks' state; the mean turn of the heads
    stays the landmarks'. with_shape: the person's neutral is corrected too, by what the turning skin tells.
    """
    model, camera, subject = fitter.model, fitter.camera, fitter.subject
    faces = np.asarray(points, dtype=np.float64)
    views = [crop.view() for crop in crops]
    fits: list[FaceFit] = []
    for face in faces:
        fits.append(fitter.fit(face))
    anchor = Rotation.from_rotvec([fit.rotation for fit in fits])
    identity = np.zeros(len(_depth_basis(model)))
    skin = SkinFitter(fitter)
    for number in range(ROUNDS):
        skin = SkinFitter(FaceFitter(model, subject, camera), mean_pattern(skin, views, fits))
        fits = [skin.refine(*each, LEARNING_STEPS) for each in zip(faces, views, fits, strict=True)]
        drift = (Rotation.from_rotvec([fit.rotation for fit in fits]).inv() * anchor).mean()
        fits = [
            replace(fit, rotation=(Rotation.from_rotvec(fit.rotation) * drift).as_rotvec()) for fit in fits
        ]
        if with_shape and 0 < number < ROUNDS - 1:
            change = _shape_change(skin, faces, views, fits, identity)
            identity = identity + change
            subject = _reshaped(model, subject, change)
    skin = SkinFitter(FaceFitter(model, subject, camera))
    return subject, mean_pattern(skin, views, fits)


def mean_pattern(skin: SkinFitter, views: Sequence[FaceView], fits: Sequence[FaceFit]) -> SkinPattern:
    """Mean and variance of the pattern over pictures in which each point is seen."""
    seen = [skin.read(view, fit) for view, fit in zip(views, fits, strict=True)]
    values, weights = (np.array(part) for part in zip(*seen, strict=True))
    weights = weights + 1e-6
    mean = (values * weights).sum(axis=0) / weights.sum(axis=0)
    return SkinPattern(mean, (weights * (values - mean) ** 2).sum(axis=0) / weights.sum(axis=0))


def _shape_change(
    skin: SkinFitter, faces: Float, views: Sequence[FaceView], fits: Sequence[FaceFit], identity: Float
) -> Float:
    """The change (K,) of the identity coefficients that explains pictures and landmarks best, all poses and
    expressions free."""
    fitter = skin.fitter
    basis = _depth_basis(fitter.model)
    count, free = len(basis), fitter.free_fields
    landmark_fields = np.concatenate([in_rows(basis), free], axis=2)
    point_fields = np.concatenate([in_rows(skin_points().spread(basis)), skin.free_fields], axis=2)
    hessian = SHAPE_COST * len(fits) * np.eye(count)
    gradient = -hessian @ identity
    for face, view, fit in zip(faces, views, fits, strict=True):
        curve, slope = fitter.joint_equations(face, fit, landmark_fields)
        seen, pull = skin.equations(view, fit, point_fields)
        curve, slope = LANDMARK_SHARE * curve + seen, LANDMARK_SHARE * slope + pull
        curve, slope = fitter.with_cost(fit, curve, slope, first=count)
        others = np.concatenate([fit.expression[FREE] > 1e-3, np.ones(6, dtype=bool)])
        rest = count + np.flatnonzero(others)
        across = curve[:count][:, rest]
        inner = curve[np.ix_(rest, rest)] + 1e-6 * np.eye(len(rest))
        solved = np.linalg.solve(inner, np.column_stack([across.T, slope[rest]]))
        hessian += curve[:count, :count] - across @ solved[:, :-1]
        gradient += slope[:count] - across @ solved[:, -1]
    return np.asarray(np.linalg.solve(hessian, gradient))


def _depth_basis(model: MorphableModel) -> Float:
    """Identity's changes of depth (K, 468, 3): where on the face a point is, the landmarks know better."""
    return np.asarray(model.id_basis[2::3, : region.SKIN_COUNT], dtype=np.float64)


def _reshaped(model: MorphableModel, subject: Subject, change: Float) -> Subject:
    old = subject.neutral[: region.SKIN_COUNT].astype(np.float64)
    moved = model.with_patches(old + np.tensordot(change, _depth_basis(model), 1)) - model.with_patches(old)
    return replace(subject, neutral=(subject.neutral + moved).astype(np.float32))


def _pattern(grey: Float32) -> Float32:
    fine, coarse, reach = BAND_PX
    band = cv2.GaussianBlur(grey, (0, 0), fine) - cv2.GaussianBlur(grey, (0, 0), coarse)
    # So wide a blur loses nothing at a quarter of the size, and takes a tenth of the time.
    power = cv2.resize(band * band, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    power = cv2.resize(cv2.GaussianBlur(power, (0, 0), reach / 4), grey.shape[::-1])
    return np.asarray(band / (np.sqrt(power) + CONTRAST_FLOOR), dtype=np.float32)


@cache
def _lid_rows() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `FaceFitter.landmark_rows` of the upper and of the lower lids, x and y."""
    mirror = MorphableModel.load().mirror
    upper, lower = (np.concatenate([lid, mirror[list(lid)]]) for lid in (region.UPPER_LID, region.LOWER_LID))
    return tuple(np.concatenate([2 * lid, 2 * lid + 1]) for lid in (upper, lower))  # type: ignore[return-value]


@cache
def _parts() -> NDArray[np.bool_]:
    """Which points (5, N) are about each eye with its brow, on each cheek and its half of the nose, on the mouth."""
    model = MorphableModel.load()
    x, y, _ = skin_points().spread(model.neutral[: region.SKIN_COUNT].astype(np.float64)).T
    is_mouth, is_upper, is_left = y > model.neutral[2, 1] + 0.3, y < 1.5, x < 0  # 2: the base of the nose
    is_middle = ~is_mouth & ~is_upper
    return np.stack(
        [is_upper & is_left, is_upper & ~is_left, is_middle & is_left, is_middle & ~is_left, is_mouth]
    )


@njit(inline="always")
def _corner(planes, scale, offset, x, y):  # type: ignore[no-untyped-def]
    """Where a pixel of the clip's picture lies in a view: upper left neighbor, shares of the right and lower ones."""
    height, width = planes.shape[0], planes.shape[1]
    across = min(max(scale * x + offset[0] - 0.5, 0.0), width - 1.0)
    down = min(max(scale * y + offset[1] - 0.5, 0.0), height - 1.0)
    column, row = min(int(across), width - 2), min(int(down), height - 2)
    return row, column, across - column, down - row


@njit(inline="always")
def _between(planes, row, column, right, below, k):  # type: ignore[no-untyped-def]
    top = planes[row, column, k] * (1 - right) + planes[row, column + 1, k] * right
    bottom = planes[row + 1, column, k] * (1 - right) + planes[row + 1, column + 1, k] * right
    return top * (1 - below) + bottom * below


@njit(cache=True, nogil=True)
def _values(planes, scale, offset, pixels):  # type: ignore[no-untyped-def]
    values = np.empty(len(pixels))
    for n in range(len(pixels)):
        row, column, right, below = _corner(planes, scale, offset, pixels[n, 0], pixels[n, 1])
        values[n] = _between(planes, row, column, right, below, 0)
    return values


@njit(cache=True, nogil=True, error_model="numpy")
def _picture_errors(  # type: ignore[no-untyped-def]
    fields, turned, matrix, translation, normals, camera, planes, scale, offset, mean, variance
):
    """Weighted errors (N,) of the pattern at each point, and their derivatives (N, M + 6) by the fields' weights, the
    head's turn and its shift."""
    count, shapes = fields.shape[0], fields.shape[2]
    rows, errors = np.empty((count, shapes + 6), np.float32), np.empty(count, np.float32)
    for n in range(count):
        px, py, pz = (
            turned[n, 0] + translation[0],
            turned[n, 1] + translation[1],
            turned[n, 2] + translation[2],
        )
        row, column, right, below = _corner(
            planes, scale, offset, camera[0] * px / pz + camera[1], camera[0] * py / pz + camera[2]
        )
        error = mean[n] - _between(planes, row, column, right, below, 0)
        spread = variance[n] + LEAST_VARIANCE
        ahead = normals[n, 0] * matrix[2, 0] + normals[n, 1] * matrix[2, 1] + normals[n, 2] * matrix[2, 2]
        facing = min(max(-ahead / 0.3 - 0.3, 0.0), 1.0)
        weight = np.sqrt(PICTURE_WEIGHT * facing / spread) / (1 + error**2 / spread / OUTLIER**2)
        slope = weight * scale * camera[0] / pz
        x = slope * _between(planes, row, column, right, below, 1)
        y = slope * _between(planes, row, column, right, below, 2)
        d = -(x * px + y * py) / pz
        a = np.float32(x * matrix[0, 0] + y * matrix[1, 0] + d * matrix[2, 0])
        b = np.float32(x * matrix[0, 1] + y * matrix[1, 1] + d * matrix[2, 1])
        c = np.float32(x * matrix[0, 2] + y * matrix[1, 2] + d * matrix[2, 2])
        result, along, down, away = rows[n], fields[n, 0], fields[n, 1], fields[n, 2]
        for k in range(shapes):
            result[k] = a * along[k] + b * down[k] + c * away[k]
        result[shapes] = turned[n, 1] * d - turned[n, 2] * y
        result[shapes + 1] = turned[n, 2] * x - turned[n, 0] * d
        result[shapes + 2] = turned[n, 0] * y - turned[n, 1] * x
        result[shapes + 3], result[shapes + 4], result[shapes + 5] = x, y, d
        errors[n] = weight * error
    return rows, errors
