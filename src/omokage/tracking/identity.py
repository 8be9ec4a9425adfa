"""Solves who it is: the neutral face and personal expressions that explain many pictures of one person at once.

No picture has to be neutral or frontal. First the identity coefficients of the morphable model, jointly with pose and
expression of the key frames; then what the model cannot say: small corrections of the neutral and of each expression,
held close to the sculpted ones (example-based rigging).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import Camera, rotation_matrix
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import BLENDSHAPES, Subject
from omokage.tracking.fitting import FREE, FaceFit, FaceFitter, in_rows
from omokage.tracking.morphable import EYE_RADIUS_CM, MorphableModel

Float = NDArray[np.float64]

IDENTITY_ROUNDS = 5
IDENTITY_COST = 6.0  # of one standard deviation, in landmarks at the expected error, for every key frame
REFINE_ROUNDS = 2
_NEUTRAL_RIDGE = 0.02  # share of the pictures' weight that holds the neutral
_EXPRESSION_RIDGE = 0.01


def key_frames(points: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Rows of the most different faces among (T, 478, 3) landmarks: farthest-point sampling of normalized shapes."""
    flat = np.asarray(points, dtype=np.float64)[..., :2]
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat = flat / np.sqrt((flat**2).mean(axis=(1, 2), keepdims=True))
    shapes = flat.reshape(len(flat), -1)
    chosen = [int(((shapes - np.median(shapes, axis=0)) ** 2).sum(axis=1).argmin())]
    distance = ((shapes - shapes[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(shapes)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((shapes - shapes[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(sorted(set(chosen)))


def solve_identity(model: MorphableModel, camera: Camera, points: NDArray[np.floating]) -> Subject:
    """Key frames' landmarks (N, 478, 3) -> the person, before personal corrections."""
    identity = np.zeros(len(model.id_basis))
    subject = model.subject(identity)
    fits: list[FaceFit | None] = [None] * len(points)
    basis = in_rows(model.id_basis[:, : region.SKIN_COUNT])
    for _ in range(IDENTITY_ROUNDS):
        fitter = FaceFitter(model, subject, camera)
        fits = [fitter.fit(face, start) for face, start in zip(points, fits, strict=True)]
        hessian = IDENTITY_COST * len(points) * np.eye(len(identity))
        gradient = -hessian @ identity
        for face, fit in zip(points, fits, strict=True):
            assert fit is not None
            curvature, slope = fitter.normal_equations(face, fit, basis)
            hessian += curvature
            gradient += slope
        identity = identity + np.linalg.solve(hessian, gradient)
        subject = model.subject(identity)
    return subject


def personalize(
    model: MorphableModel, camera: Camera, subject: Subject, points: NDArray[np.floating]
) -> Subject:
    """Corrects neutral and expressions from many frames' landmarks (N, 478, 3)."""
    fits: list[FaceFit] = []
    base = subject
    for _ in range(REFINE_ROUNDS):
        fits = fit_all(FaceFitter(model, subject, camera), points)
        subject = _corrected(model, camera, base, points, fits)
    return _with_straight_gaze(model, camera, subject, points, fits)


def fit_all(fitter: FaceFitter, points: NDArray[np.floating]) -> list[FaceFit]:
    """Fits in order, each from the one before."""
    fits: list[FaceFit] = []
    for face in points:
        fits.append(fitter.fit(face, fits[-1] if fits else None))
    return fits


def _corrected(
    model: MorphableModel, camera: Camera, base: Subject, points: NDArray[np.floating], fits: list[FaceFit]
) -> Subject:
    """`base` with the corrections that best explain the errors it leaves, one small ridge regression per vertex."""
    skin = slice(0, region.SKIN_COUNT)
    fitter = FaceFitter(model, base, camera)
    count = len(FREE) + 1
    normal = np.zeros((count, 3, count, 3))
    target = np.zeros((region.SKIN_COUNT, count, 3))
    for face, fit in zip(points, fits, strict=True):
        matrix = rotation_matrix(fit.rotation)
        turned = fitter.posed_skin(fit.expression) @ matrix.T + fit.translation
        pixels = camera.project(turned)
        error = (
            (np.asarray(face, dtype=np.float64)[skin, :2] - pixels[:, :2]) * turned[:, 2:] / camera.focal_px
        )
        factors = np.append(1.0, fit.expression[FREE])
        view = matrix[:2]
        normal += np.einsum("i,j,ab->iajb", factors, factors, view.T @ view)
        target += factors[None, :, None] * (error @ view)[:, None, :]
    fields = base.blendshapes[FREE][:, skin].astype(np.float64)
    reach = np.linalg.norm(fields, axis=2)
    reach = np.clip(reach / (0.3 * reach.max(axis=1, keepdims=True) + 1e-9), 0, 1)
    ridge = np.empty((region.SKIN_COUNT, count))
    ridge[:, 0] = _NEUTRAL_RIDGE * len(points)
    ridge[:, 1:] = _EXPRESSION_RIDGE * len(points) / (reach.T + 0.03)
    systems = np.broadcast_to(
        normal.reshape(3 * count, 3 * count), (region.SKIN_COUNT, 3 * count, 3 * count)
    ).copy()
    diagonal = np.arange(3 * count)
    systems[:, diagonal, diagonal] += np.repeat(ridge, 3, axis=1)
    change = np.linalg.solve(systems, target.reshape(region.SKIN_COUNT, -1, 1)).reshape(
        region.SKIN_COUNT, count, 3
    )
    neutral = base.neutral[skin] + change[:, 0]
    _close_lips(neutral, base)
    blendshapes = base.blendshapes.astype(np.float64)
    blendshapes[FREE, skin] = fields + change[:, 1:].transpose(1, 0, 2)
    _close_lids(neutral, blendshapes, model)
    return Subject(
        neutral=model.with_patches(neutral).astype(np.float32),
        blendshapes=blendshapes.astype(np.float32),
        identity=base.identity,
    )


def _close_lips(neutral: Float, base: Subject) -> None:
    """The neutral mouth stays closed: inner lips meet where `base` has them meet."""
    for upper, lower in _inner_lip_pairs():
        wanted = base.neutral[lower] - base.neutral[upper]
        excess = neutral[lower] - neutral[upper] - wanted
        neutral[upper] += 0.5 * excess
        neutral[lower] -= 0.5 * excess


def _inner_lip_pairs() -> list[tuple[int, int]]:
    left = list(zip(region.UPPER_LIP[3][:5], region.LOWER_LIP[3][:5], strict=True))
    mirror = MorphableModel.load().mirror
    return left + [(int(mirror[u]), int(mirror[v])) for u, v in left[1:]]


def _close_lids(neutral: Float, blendshapes: Float, model: MorphableModel) -> None:
    """Weight 1 of a blink keeps closing the eye exactly."""
    for name, loop in (("eyeBlinkLeft", model.left_eye), ("eyeBlinkRight", model.right_eye)):
        field = blendshapes[BLENDSHAPES.index(name)]
        upper, lower = loop[1:8], loop[9:][::-1]
        gap = (neutral + field[: region.SKIN_COUNT])[lower] - (neutral + field[: region.SKIN_COUNT])[upper]
        field[upper] += 0.8 * gap
        field[lower] -= 0.2 * gap


def _with_straight_gaze(
    model: MorphableModel, camera: Camera, subject: Subject, points: NDArray[np.floating], fits: list[FaceFit]
) -> Subject:
    """Moves the neutral irises so that, in the middle of the clip, the person looks into the camera."""
    fitter = FaceFitter(model, subject, camera)
    neutral = subject.neutral.copy()
    offsets = []
    for face, fit in zip(points, fits, strict=True):
        seen = fitter.look(np.asarray(face, dtype=np.float64), fit).gaze
        to_camera = -rotation_matrix(fit.rotation).T @ fit.translation
        yaw = np.arctan2(to_camera[0], -to_camera[2])
        pitch = np.arctan2(-to_camera[1], np.hypot(to_camera[0], to_camera[2]))
        offsets.append(seen - [yaw, pitch])
    middle = np.clip(np.median(offsets, axis=0), -0.2, 0.2)
    for eye, members in enumerate(model.eye_vertices):
        yaw, pitch = middle[eye]
        neutral[members] += model.gaze_weight[members, None] * (EYE_RADIUS_CM * np.array([yaw, -pitch, 0.0]))
    return Subject(neutral=neutral, blendshapes=subject.blendshapes, identity=subject.identity)
