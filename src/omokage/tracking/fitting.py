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

from omokage.geometry.camera import Camera, axis_angle, rotation_matrix
from omokage.geometry.mesh import vertex_normals
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.morphable import EYE_RADIUS_CM, MAX_GAZE_RAD, MorphableModel

Float = NDArray[np.float64]

NOISE_CM = 0.15  # what a landmark is expected to be off, on the face; errors of neighbors are alike
DEPTH_SHARE = 0.0
WARM_ITERATIONS = 2
COLD_ITERATIONS = 12
EYE_LOOK = tuple(i for i, name in enumerate(BLENDSHAPES) if name.startswith("eyeLook"))
FOREHEAD_ROW = (151, *region.FOREHEAD, 9)
FREE = np.array([i for i, name in enumerate(BLENDSHAPES) if i not in EYE_LOOK and name != "tongueOut"])
BLINK = tuple(
    BLENDSHAPES.index(name) for name in ("eyeBlinkRight", "eyeBlinkLeft")
)  # picture's left eye first

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
        self._neutral = subject.neutral[skin].astype(np.float64)
        fields = subject.blendshapes[:, skin].astype(np.float64)
        self._fixed_fields = fields[list(EYE_LOOK)]
        self._fields = np.ascontiguousarray(fields[FREE].transpose(1, 0, 2))
        self._flat_fields = fields[FREE].reshape(len(FREE), -1)
        self._normals = vertex_normals(subject.neutral, model.triangles[: model.skin_triangle_count])[skin]
        self._weights = landmark_weights(model)
        self._cost = np.array([_COST.get(BLENDSHAPES[i], _DEFAULT_COST) for i in FREE])

    def fit(self, points: NDArray[np.floating], start: FaceFit | None = None) -> FaceFit:
        """Landmarks (478, 3) of one picture -> state. `start`: the state of the picture before, if it is close."""
        observed = np.asarray(points, dtype=np.float64)
        state = self.rigid(observed) if start is None else start
        for iteration in range(COLD_ITERATIONS if start is None else WARM_ITERATIONS):
            state = self._step(observed, state)
            if iteration < 2 or start is None:
                state = self.look(observed, state)
        return replace(state, residual_px=float(self.residuals(observed, state).mean()))

    def rigid(self, observed: Float) -> FaceFit:
        """Pose alone, from the network's own depth: a start for anything."""
        points, neutral = observed[: region.SKIN_COUNT], self._neutral
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
        self, observed: NDArray[np.floating], state: FaceFit, fields: Float
    ) -> tuple[Float, Float, Float, Float]:
        """The quadratic around `state`, with pose eliminated, in units of the expected error.

        fields: (468, M, 3), displacement fields in head space. Returns hessian (M, M) and gradient (M,) of the fields'
        weights, and the pose change (6: turn in camera axes, then shift) as `turn - follow @ change of weights`:
        turn (6,), follow (6, M).
        """
        matrix = rotation_matrix(state.rotation)
        facing = np.clip(-(self._normals @ matrix.T)[:, 2] / 0.3, 0.08, 1.0)
        hessian, gradient = _accumulate(
            fields,
            self.posed_skin(state.expression) @ matrix.T,
            matrix,
            state.translation,
            np.asarray(observed[: region.SKIN_COUNT], dtype=np.float64),
            np.sqrt(self._weights * facing) / NOISE_CM,
            np.array([self.camera.focal_px, self.camera.width / 2, self.camera.height / 2]),
        )
        count = fields.shape[1]
        pose = hessian[count:, count:] + 1e-6 * np.eye(6)
        shared = np.linalg.solve(pose, np.column_stack([hessian[count:, :count], gradient[count:]]))
        follow, turn = shared[:, :-1], shared[:, -1]
        across = hessian[:count, count:]
        return hessian[:count, :count] - across @ follow, gradient[:count] - across @ turn, turn, follow

    def posed_skin(self, expression: Float) -> Float:
        """Skin (468, 3) in head space."""
        moved = expression[FREE] @ self._flat_fields
        moved = moved.reshape(region.SKIN_COUNT, 3)
        look = expression[list(EYE_LOOK)]
        if look.any():
            moved = moved + np.tensordot(look, self._fixed_fields, 1)
        return np.asarray(self._neutral + moved)

    def _step(self, observed: Float, state: FaceFit) -> FaceFit:
        hessian, gradient, turn, follow = self.normal_equations(observed, state, self._fields)
        weights = state.expression[FREE]
        gradient = gradient - self._cost * weights - _SPARSITY
        change = _descend(hessian + np.diag(self._cost), gradient, weights)
        turn = turn - follow @ change
        expression = state.expression.copy()
        expression[FREE] = weights + change
        rotation = axis_angle(rotation_matrix(turn[:3]) @ rotation_matrix(state.rotation))
        return replace(
            state, rotation=rotation, translation=state.translation + turn[3:], expression=expression
        )

    def look(self, observed: Float, state: FaceFit) -> FaceFit:
        """Gaze from the irises; the lids' share of it goes into the eyeLook expressions."""
        matrix = rotation_matrix(state.rotation)
        gaze = state.gaze.copy()
        for eye, first in enumerate(region.IRIS_CENTERS):
            if state.expression[BLINK[eye]] > 0.65:
                continue  # the iris of a closed eye is a guess: keep looking where it looked
            ahead = self.subject.neutral[first].astype(np.float64)
            center = ahead + np.array([0, 0, EYE_RADIUS_CM])
            pixel = observed[first : first + 5, :2].mean(axis=0)
            direction = np.append(
                (pixel - [self.camera.width / 2, self.camera.height / 2]) / self.camera.focal_px, 1
            )
            ray = matrix.T @ direction
            origin = -matrix.T @ state.translation - center  # the camera, seen from the eyeball
            along = origin @ ray
            discriminant = along**2 - (ray @ ray) * (origin @ origin - EYE_RADIUS_CM**2)
            distance = (-along - np.sqrt(max(discriminant, 0.0))) / (ray @ ray)
            x, y, z = origin + distance * ray
            gaze[eye] = np.arctan2(x, -z), np.arctan2(-y, np.hypot(x, z))
        gaze = np.clip(gaze, -MAX_GAZE_RAD, MAX_GAZE_RAD)
        return replace(state, gaze=gaze, expression=with_eye_look(state.expression, gaze))


def with_eye_look(expression: Float, gaze: Float) -> Float:
    """The expression with its eight eyeLook weights set from gaze (2, 2)."""
    result = np.array(expression, dtype=np.float64)
    share = np.clip(np.asarray(gaze) / MAX_GAZE_RAD, -1, 1)
    for side, eye, outwards in (("Right", 0, -1.0), ("Left", 1, 1.0)):
        yaw, pitch = share[eye]
        for name, value in (
            ("Out", outwards * yaw),
            ("In", -outwards * yaw),
            ("Up", pitch),
            ("Down", -pitch),
        ):
            result[BLENDSHAPES.index(f"eyeLook{name}{side}")] = max(value, 0.0)
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


@njit(cache=True, nogil=True)
def _accumulate(fields, turned, matrix, translation, observed, weights, camera):  # type: ignore[no-untyped-def]
    """Hessian (M + 6, M + 6) and gradient of the squared, weighted error of x, y and (less) depth; pose comes last."""
    count, shapes = fields.shape[0], fields.shape[1]
    size = shapes + 6
    hessian = np.zeros((size, size))
    gradient = np.zeros(size)
    rows = np.zeros((3, size))
    cm_per_px = translation[2] / camera[0]
    middle = (observed[:, 2] * cm_per_px - turned[:, 2]).mean()
    for v in range(count):
        z = turned[v, 2] + translation[2]
        ray_x, ray_y = (turned[v, 0] + translation[0]) / z, (turned[v, 1] + translation[1]) / z
        w = weights[v]
        flat, deep = w * translation[2] / z, w * DEPTH_SHARE
        for k in range(shapes):
            a, b, c = fields[v, k, 0], fields[v, k, 1], fields[v, k, 2]
            depth = matrix[2, 0] * a + matrix[2, 1] * b + matrix[2, 2] * c
            rows[0, k] = flat * (matrix[0, 0] * a + matrix[0, 1] * b + matrix[0, 2] * c - ray_x * depth)
            rows[1, k] = flat * (matrix[1, 0] * a + matrix[1, 1] * b + matrix[1, 2] * c - ray_y * depth)
            rows[2, k] = deep * depth
        x, y, h = turned[v, 0], turned[v, 1], turned[v, 2]
        # Derivatives of the turned point by a small turn: the axes' cross products with it; then by a shift.
        for k in range(3):
            dx = (0.0, h, -y)[k]
            dy = (-h, 0.0, x)[k]
            dz = (y, -x, 0.0)[k]
            rows[0, shapes + k] = flat * (dx - ray_x * dz)
            rows[1, shapes + k] = flat * (dy - ray_y * dz)
            rows[2, shapes + k] = deep * dz
        rows[0, shapes + 3], rows[1, shapes + 4] = flat, flat
        rows[0, shapes + 5], rows[1, shapes + 5] = -flat * ray_x, -flat * ray_y
        error_x = w * ((observed[v, 0] - camera[1]) / camera[0] - ray_x) * translation[2]
        error_y = w * ((observed[v, 1] - camera[2]) / camera[0] - ray_y) * translation[2]
        error_z = deep * (observed[v, 2] * cm_per_px - h - middle)
        for i in range(size):
            ax, ay, az = rows[0, i], rows[1, i], rows[2, i]
            gradient[i] += ax * error_x + ay * error_y + az * error_z
            for j in range(i, size):
                hessian[i, j] += ax * rows[0, j] + ay * rows[1, j] + az * rows[2, j]
    for i in range(size):
        for j in range(i):
            hessian[i, j] = hessian[j, i]
    return hessian, gradient


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
