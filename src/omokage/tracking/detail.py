"""What the named expressions leave out: where the skin was seen against where the face model puts it.

Fifty-two weights explain a face to about a pixel. The rest, a lip corner a little higher, a crease, is what makes a
mouth look like this person's; it is kept per vertex, in head space, so that it can be posed like everything else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import rotation_matrix
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.morphable import MorphableModel

SKIN_COUNT = 468
# Larger differences are the detector's mistakes (a hand, a profile), not the skin's.
MAX_DETAIL_CM = 0.4


def skin_detail(track: FaceTrack, row: int) -> NDArray[np.float64]:
    """Displacement of the skin vertices (468, 3) in head space, cm, that brings the model onto the landmarks of a row.

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
    across = np.zeros((SKIN_COUNT, 3))
    across[:, :2] = difference * in_camera[:, 2:] / track.camera.focal_px
    length = np.linalg.norm(across, axis=1, keepdims=True)
    across *= MAX_DETAIL_CM * np.tanh(length / MAX_DETAIL_CM) / np.maximum(length, 1e-9)
    return np.asarray(across @ turn)
