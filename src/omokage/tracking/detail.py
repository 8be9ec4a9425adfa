"""What the named expressions leave out: where the skin was seen against where the face model puts it.

Fifty-two weights explain a face to about a pixel. The rest, a lip corner a little higher, is what makes a mouth look
like this person's; it is kept per vertex, in head space, so that it can be posed like everything else. Only the mouth,
what is below it and the lids have such a rest: elsewhere the tracker aligns the skin itself, and the landmarks are less
exact.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import rotation_matrix
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.morphable import MorphableModel

SKIN_COUNT = 468
NOSE_BASE = 2
# Larger differences are the detector's mistakes (a hand, a profile), not the skin's.
MAX_DETAIL_CM = 0.4
MEAN_ROWS = 500  # of a track, evenly, for the mean of its detail


@cache
def _share() -> NDArray[np.float64]:
    """How much of the difference counts (468, 1): 1 from the base of the nose down, 0 from a centimeter above it up;
    1 up to 0.6 cm from the edges of the lids, 0 from a centimeter farther on."""
    model = MorphableModel.load()
    skin = model.neutral[:SKIN_COUNT].astype(np.float64)
    lids = skin[np.concatenate([model.left_eye, model.right_eye])]
    from_lids = np.linalg.norm(skin[:, None, :2] - lids[None, :, :2], axis=2).min(axis=1)
    is_mouth = np.clip(skin[:, 1] - skin[NOSE_BASE, 1] + 1.0, 0, 1)
    return np.asarray(np.maximum(is_mouth, np.clip(1.6 - from_lids, 0, 1))[:, None])


@cache
def lips_share() -> NDArray[np.float64]:
    """1 on the lips' outline, falling to 0 at 0.8 cm from it, (468, 1).

    Narrow, because what moves with the lips loses likeness: 1 up to 0.6 cm and 0 from a centimeter farther on costs
    0.0004 to 0.0007 of the mouth's SSIM (docs/research/avatar-ablations.md).
    """
    model = MorphableModel.load()
    skin = model.neutral[:SKIN_COUNT, :2].astype(np.float64)
    from_lips = np.linalg.norm(skin[:, None] - skin[None, list(model.lips_outer)], axis=2).min(axis=1)
    return np.asarray(np.clip(1 - from_lips / 0.8, 0, 1)[:, None])


def skin_detail(track: FaceTrack, row: int) -> NDArray[np.float64]:
    """Displacement of the skin vertices (468, 3) in head space, cm, that brings mouth and lids onto a row's landmarks.

    Only across the line of sight: depth stays the model's. Zeros where the row was not tracked or the track has no
    landmarks (a saved avatar's, a blendshape table's).
    """
    landmarks = track.landmarks[row]
    if not track.is_tracked[row] or len(landmarks) < SKIN_COUNT or not landmarks.any():
        return np.zeros((SKIN_COUNT, 3))
    model, turn = MorphableModel.load(), rotation_matrix(track.rotation[row])
    vertices = model.pose_vertices(track.subject, track.expression[row], track.gaze[row])[:SKIN_COUNT]
    in_camera = vertices @ turn.T + track.translation[row]
    difference = landmarks[:SKIN_COUNT, :2] - track.camera.project(in_camera)[:, :2]
    return displacement(difference * in_camera[:, 2:] / track.camera.focal_px, turn)


def displacement(across_cm: NDArray[np.floating], turn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences (468, 2) that the camera sees, cm at the skin's depth -> their detail (468, 3) in head space.

    turn: (3, 3), head to camera.
    """
    across = np.zeros((SKIN_COUNT, 3))
    across[:, :2] = across_cm
    length = np.linalg.norm(across, axis=1, keepdims=True)
    across *= MAX_DETAIL_CM * np.tanh(length / MAX_DETAIL_CM) / np.maximum(length, 1e-9)
    return np.asarray(_share() * (across @ turn))


def mean_detail(track: FaceTrack) -> NDArray[np.float64]:
    """The detail (468, 3) that a person's skin has at all times, over the rows with a face: the model's own error."""
    seen = np.flatnonzero(track.is_tracked)
    if not len(seen) or not track.landmarks.size:
        return np.zeros((SKIN_COUNT, 3))
    return np.asarray(
        np.mean([skin_detail(track, int(row)) for row in seen[:: -(-len(seen) // MEAN_ROWS)]], axis=0)
    )
