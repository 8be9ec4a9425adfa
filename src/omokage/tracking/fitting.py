"""Fits one person's face model to the landmarks of one picture: head pose, 52 expressions, gaze.

Gauss-Newton on reprojected landmarks. Pose is eliminated from each step (Schur complement); the expressions, which
must stay in [0, 1], are then solved by coordinate descent. Offline and online tracking both use `FaceFitter.fit`.
Errors are measured in cm on the face, so that the result does not depend on the size of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from omokage.geometry.camera import Camera, axis_angle, rotation_matrix, turned_further
from omokage.geometry.mesh import vertex_normals
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.morphable import EYE_RADIUS_CM, MAX_GAZE_RAD, MorphableModel

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

NOISE_CM = 0.15  # what a landmark is expected to be off, on the face; errors of neighbors are alike
WARM_ITERATIONS = 2
COLD_ITERATIONS = 12
EYE_LOOK = tuple(i for i, name in enumerate(BLENDSHAPES) if name.startswith("eyeLook"))
FOREHEAD_ROW = (151, *region.FOREHEAD, 9)
FREE = np.array([i for i, name in enumerate(BLENDSHAPES) if i not in EYE_LOOK and name != "tongueOut"])
BLINK = tuple(
    BLENDSHAPES.index(name) for name in ("eyeBlinkRight", "eyeBlinkLeft")
)  # picture's left eye first

# For the picture's left eye, then the right: looking out, in, up, down, and the sign of yaw or pitch that this is.
_EYE_LOOK_ROWS = np.array(
    [
        [BLENDSHAPES.index(f"eyeLook{name}{side}") for name in ("Out", "In", "Up", "Down")]
        for side in ("Right", "Left")
    ]
)
_EYE_LOOK_SIGNS = np.array([[-1.0, 1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])

# Cost of weight 1, in landmarks at the expected error: high for what pictures hardly show, and for expressions that
# others can imitate.
_COST = {
    "jawOpen": 3.0, "eyeBlinkLeft": 3.0, "eyeBlinkRight": 3.0, "browDownLeft": 3.0, "browDownRight": 3.0,
    "browInnerUp": 3.0, "browOuterUpLeft": 3.0, "browOuterUpRight": 3.0, "mouthSmileLeft": 6.0,
    "mouthSmileRight": 6.0, "mouthPucker": 8.0, "mouthFunnel": 20.0, "jawForward": 150.0, "jawLeft": 60.0,
    "jawRight": 60.0, "cheekPuff": 100.0, "mouthDimpleLeft": 30.0, "mouthDimpleRight": 30.0,
    "mouthStretchLeft": 30.0, "mouthStretchRight": 30.0, "mouthPressLeft": 30.0, "mouthPressRight": 30.0,
    "cheekSquintLeft": 30.0, "cheekSquintRight": 30.0, "noseSneerLeft": 30.0, "noseSneerRight": 30.0,
}  # fmt: skip
_DEFAULT_COST = 14.0
_SPARSITY = 1.5  # linear cost of every weight: keeps small unrelated ones at exactly 0


@dataclass(frozen=True, slots=True)
class FaceFit:
    """The state of a face in one picture; fields as the rows of `FaceTrack`. residual_px: mean over 478 points."""

    rotation: Float
    translation: Float
    expression: Float
    gaze: Float
    residual_px: float


class FaceFitter:
    """Fits `subject` seen by `camera`. It keeps no state between pictures: what it knows comes in through `start`."""

    def __init__(self, model: MorphableModel, subject: Subject, camera: Camera) -> None:
        self.model = model
        self.camera = camera
        self.subject = subject
        skin = slice(0, region.SKIN_COUNT)
        self.neutral = subject.neutral[skin].astype(np.float64)
        fields = subject.blendshapes[:, skin].astype(np.float64)
        self.free_fields = in_rows(fields[FREE])
        self._flat_fields = fields.reshape(len(fields), -1)
        self.normals = vertex_normals(subject.neutral, model.triangles[: model.skin_triangle_count])[skin]
        self._weights = landmark_weights(model)
        self._ahead = subject.neutral[list(region.IRIS_CENTERS)].astype(np.float64)
        self._cost = np.array([_COST.get(BLENDSHAPES[i], _DEFAULT_COST) for i in FREE])

    def fit(self, points: NDArray[np.floating], start: FaceFit | None = None) -> FaceFit:
        """Landmarks (478, 3) of one picture -> state. `start`: the state of the picture before, if it is close."""
        observed = np.asarray(points, dtype=np.float64)
        state = self.rigid(observed) if start is None else start
        for iteration in range(COLD_ITERATIONS if start is None else WARM_ITERATIONS):
            state = self.advance(state, *self.joint_equations(observed, state))
            if iteration < 2 or start is None:
                state = self.look(observed, state)
        return replace(state, residual_px=float(self.residuals(observed, state).mean()))

    def rigid(self, observed: Float) -> FaceFit:
        """Pose alone, from the network's own depth: a start for anything."""
        points, neutral = observed[: region.SKIN_COUNT], self.neutral
        center, origin = points.mean(axis=0), neutral.mean(axis=0)
        left, values, right = np.linalg.svd((points - center).T @ (neutral - origin))
        sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
        matrix = (left * sign) @ right
        scale = float((values * sign).sum() / ((neutral - origin) ** 2).sum())
        depth = self.camera.focal_px / scale
        middle = np.array([self.camera.width / 2, self.camera.height / 2])
        translation = np.append((center[:2] - middle) / scale, depth) - matrix @ origin
        nothing = np.zeros(len(BLENDSHAPES))
        return FaceFit(axis_angle(matrix), translation, nothing, np.zeros((2, 2)), np.inf)

    def residuals(self, observed: Float, state: FaceFit) -> Float:
        """Distance in pixels of each of the 478 landmarks from where the model puts it."""
        vertices = self.model.pose_vertices(self.subject, state.expression, state.gaze)[
            : region.LANDMARK_COUNT
        ]
        pixels = self.camera.project(self.model.to_camera(vertices, state.rotation, state.translation))
        return np.asarray(np.linalg.norm(pixels[:, :2] - observed[:, :2], axis=1))

    def normal_equations(
        self, observed: NDArray[np.floating], state: FaceFit, fields: Float32
    ) -> tuple[Float, Float]:
        """The quadratic around `state`, with pose eliminated, in units of the expected error.

        fields: (468, 3, M), displacement fields in head space. Returns hessian (M, M) and gradient (M,) of the fields'
        weights.
        """
        hessian, gradient, _, _ = _without_pose(*self.joint_equations(observed, state, fields))
        return hessian, gradient

    def joint_equations(
        self, observed: NDArray[np.floating], state: FaceFit, fields: Float32 | None = None
    ) -> tuple[Float, Float]:
        """The same with pose: hessian (M + 6, M + 6) and gradient (M + 6,), the turn in camera axes and the shift last.

        fields: by default those of the expressions `FREE`.
        """
        jacobian, error = self.landmark_rows(observed, state, fields)
        return quadratic(jacobian, error)

    def landmark_rows(
        self, observed: NDArray[np.floating], state: FaceFit, fields: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """Derivatives (936, M + 6) of the weighted errors of x and y of each landmark, and the errors (936,)."""
        matrix = rotation_matrix(state.rotation)
        jacobian, error = _landmark_errors(
            self.free_fields if fields is None else fields,
            self.posed_skin(state.expression) @ matrix.T,
            matrix,
            state.translation,
            np.asarray(observed[: region.SKIN_COUNT], dtype=np.float64),
            self._weights,
            self.normals,
            self.camera.intrinsics,
        )
        return jacobian, error

    def with_cost(
        self, state: FaceFit, hessian: Float, gradient: Float, first: int = 0
    ) -> tuple[Float, Float]:
        """A quadratic with the cost of the expressions `FREE` added, whose weights start at index `first`."""
        rows = first + np.arange(len(FREE))
        hessian, gradient = hessian.copy(), gradient.copy()
        hessian[rows, rows] += self._cost
        gradient[rows] -= self._cost * state.expression[FREE] + _SPARSITY
        return hessian, gradient

    def posed_skin(self, expression: Float) -> Float:
        """Skin (468, 3) in head space."""
        return np.asarray(self.neutral + (expression @ self._flat_fields).reshape(region.SKIN_COUNT, 3))

    def advance(self, state: FaceFit, hessian: Float, gradient: Float) -> FaceFit:
        """One Gauss-Newton step on a joint quadratic: expressions stay in [0, 1]."""
        weights = state.expression[FREE]
        change, turn = _step(*self.with_cost(state, hessian, gradient), weights)
        expression = state.expression.copy()
        expression[FREE] = weights + change
        rotation = turned_further(turn[:3], state.rotation)
        return replace(
            state, rotation=rotation, translation=state.translation + turn[3:], expression=expression
        )

    def look(self, observed: Float, state: FaceFit, lids: FaceFit | None = None) -> FaceFit:
        """Gaze from the irises; the lids' share of it goes into the eyeLook expressions.

        lids: the state that says which eyes are closed; by default `state`.
        """
        gaze = _gaze(
            observed,
            rotation_matrix(state.rotation),
            state.translation,
            state.gaze,
            (lids or state).expression[list(BLINK)],
            self._ahead,
            self.camera.intrinsics,
        )
        return replace(state, gaze=gaze, expression=with_eye_look(state.expression, gaze))


def with_eye_look(expression: Float, gaze: Float) -> Float:
    """The expression with its eight eyeLook weights set from gaze (2, 2)."""
    result = np.array(expression, dtype=np.float64)
    share = np.clip(np.asarray(gaze, dtype=np.float64) / MAX_GAZE_RAD, -1, 1)
    result[_EYE_LOOK_ROWS] = np.maximum(_EYE_LOOK_SIGNS * share[:, [0, 0, 1, 1]], 0)
    return result


def landmark_weights(model: MorphableModel) -> Float:
    """How much each of the 468 skin landmarks counts: lids and lips much, the outline little."""
    weights = np.full(region.SKIN_COUNT, 0.7)
    weights[model.lips] = 1.6
    weights[np.concatenate([model.lips_inner, model.lips_outer])] = 2.2
    weights[model.brows] = 1.5
    weights[np.concatenate([model.left_eye, model.right_eye])] = 2.5
    weights[[*FOREHEAD_ROW, *model.mirror[list(FOREHEAD_ROW)]]] = 0.3
    weights[model.face_oval] = 0.1
    return weights


def in_rows(fields: NDArray[np.floating]) -> Float32:
    """Displacement fields (M, N, 3) of N points -> (N, 3, M)."""
    return np.ascontiguousarray(fields.transpose(1, 2, 0), dtype=np.float32)


def quadratic(jacobian: Float32, error: Float32) -> tuple[Float, Float]:
    """Least squares: hessian (M, M) and gradient (M,) of rows (N, M) with errors (N,).

    The products, half of a fit's time, are made in 32 bits, the few numbers that come out go on in 64.
    """
    return (jacobian.T @ jacobian).astype(np.float64), (jacobian.T @ error).astype(np.float64)


@njit(cache=True, nogil=True)
def _without_pose(hessian, gradient):  # type: ignore[no-untyped-def]
    """A joint quadratic (M + 6) -> hessian (M, M), gradient (M,), and pose as `turn - follow @ change of weights`."""
    count = len(gradient) - 6
    pose = hessian[count:, count:] + 1e-6 * np.eye(6)
    known = np.empty((6, count + 1))
    known[:, :count], known[:, count] = hessian[count:, :count], gradient[count:]
    shared = np.linalg.solve(pose, known)
    follow, turn = np.ascontiguousarray(shared[:, :count]), np.ascontiguousarray(shared[:, count])
    across = np.ascontiguousarray(hessian[:count, count:])
    return hessian[:count, :count] - across @ follow, gradient[:count] - across @ turn, turn, follow


@njit(cache=True, nogil=True)
def _step(hessian, gradient, weights):  # type: ignore[no-untyped-def]
    """Change (M,) of expressions that stay in [0, 1], and of the pose (6,), at the least of a joint quadratic."""
    inner, slope, turn, follow = _without_pose(hessian, gradient)
    change = _descend(inner, slope, weights)
    return change, turn - follow @ change


@njit(cache=True, nogil=True)
def _landmark_errors(  # type: ignore[no-untyped-def]
    fields, turned, matrix, translation, observed, weights, normals, camera
):
    """Weighted errors (2 N,) of x and y in cm on the face, and their derivatives (2 N, M + 6); pose comes last."""
    count, shapes = fields.shape[0], fields.shape[2]
    rows = np.zeros((2 * count, shapes + 6), dtype=np.float32)
    errors = np.empty(2 * count, dtype=np.float32)
    for v in range(count):
        x, y, h = turned[v, 0], turned[v, 1], turned[v, 2]
        z = h + translation[2]
        ray_x, ray_y = (x + translation[0]) / z, (y + translation[1]) / z
        ahead = normals[v, 0] * matrix[2, 0] + normals[v, 1] * matrix[2, 1] + normals[v, 2] * matrix[2, 2]
        weight = np.sqrt(weights[v] * min(max(-ahead / 0.3, 0.08), 1.0)) / NOISE_CM
        flat = weight * translation[2] / z
        for axis in range(2):
            row, ray = rows[2 * v + axis], (ray_x, ray_y)[axis]
            a = np.float32(flat * (matrix[axis, 0] - ray * matrix[2, 0]))
            b = np.float32(flat * (matrix[axis, 1] - ray * matrix[2, 1]))
            c = np.float32(flat * (matrix[axis, 2] - ray * matrix[2, 2]))
            for k in range(shapes):
                row[k] = a * fields[v, 0, k] + b * fields[v, 1, k] + c * fields[v, 2, k]
            row[shapes + 3 + axis], row[shapes + 5] = flat, -flat * ray
            error = (observed[v, axis] - camera[1 + axis]) / camera[0] - ray
            errors[2 * v + axis] = weight * error * translation[2]
        # The point turned a little about x, y and z moves by the axes' cross products with it.
        first, second = rows[2 * v], rows[2 * v + 1]
        first[shapes], second[shapes] = -flat * ray_x * y, -flat * (h + ray_y * y)
        first[shapes + 1], second[shapes + 1] = flat * (h + ray_x * x), flat * ray_y * x
        first[shapes + 2], second[shapes + 2] = -flat * y, flat * x
    return rows, errors


@njit(cache=True, nogil=True)
def _descend(hessian, gradient, weights):  # type: ignore[no-untyped-def]
    """Minimizes d H d / 2 - g d with 0 <= weights + d <= 1, one coordinate after the other."""
    count = len(weights)
    change = np.zeros(count)
    slope = gradient.copy()
    for _ in range(40):
        largest = 0.0
        for i in range(count):
            goal = min(1.0, max(0.0, weights[i] + change[i] + slope[i] / hessian[i, i])) - weights[i]
            step = goal - change[i]
            if step != 0.0:
                change[i] = goal
                largest = max(largest, abs(step))
                for j in range(count):
                    slope[j] -= hessian[j, i] * step
        if largest < 1e-4:
            break
    return change


@njit(cache=True, nogil=True)
def _gaze(observed, matrix, translation, before, blinks, ahead, camera):  # type: ignore[no-untyped-def]
    """Yaw and pitch (2, 2) of the eyes whose irises are seen at landmarks (478, 3); `ahead` (2, 3), irises at rest."""
    gaze = before.copy()
    for eye, first in enumerate(region.IRIS_CENTERS):
        if blinks[eye] > 0.65:
            continue  # the iris of a closed eye is a guess: keep looking where it looked
        pixel = np.zeros(2)
        for row in range(first, first + 5):
            pixel += observed[row, :2] / 5
        seen = np.array([(pixel[0] - camera[1]) / camera[0], (pixel[1] - camera[2]) / camera[0], 1.0])
        ray = matrix.T @ seen
        # The camera, seen from the eyeball.
        origin = -(matrix.T @ translation) - ahead[eye]
        origin[2] -= EYE_RADIUS_CM
        along, length = origin @ ray, ray @ ray
        discriminant = along**2 - length * (origin @ origin - EYE_RADIUS_CM**2)
        distance = (-along - np.sqrt(max(discriminant, 0.0))) / length
        x, y, z = origin + distance * ray
        gaze[eye, 0] = np.arctan2(x, -z)
        gaze[eye, 1] = np.arctan2(-y, np.hypot(x, z))
    return np.minimum(np.maximum(gaze, -MAX_GAZE_RAD), MAX_GAZE_RAD)
