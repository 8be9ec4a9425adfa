"""Which way a face looks straight ahead: the axes of the head, from the shape of a solved face.

Pictures tell how far a head turns from one to the next, and landmarks how the face is shaped; which of its turns is
straight ahead they tell only through where the landmark network takes the nose to be. On faces with known axes most of
that error is a linear function of the solved face, the same for all skins and motions (scripts/learn_head_axes.py,
docs/research/tracking.md).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import axis_angle, rotation_matrix
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import Subject
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]

MAX_TURN_RAD = 0.15  # a little more than was ever found on the faces that were learned from


def head_axes(subject: Subject) -> Float:
    """The turn (3,), axis-angle in radians, from the axes of a solved head to those of its mesh: `FaceTrack.axes`."""
    shape, turn = aligned_shape(subject)
    learned = _learned()
    ahead = np.clip(learned["offset"] + shape @ learned["weights"], -MAX_TURN_RAD, MAX_TURN_RAD)
    return axis_angle(turn.T @ rotation_matrix(ahead))


def aligned_shape(subject: Subject) -> tuple[Float, Float]:
    """How the neutral skin differs from the mean face, (1404,) cm, after the turn (3, 3) that lays it on that face best
    (Kabsch 1976)."""
    skin, mean = (
        vertices[: region.SKIN_COUNT].astype(np.float64)
        for vertices in (subject.neutral, MorphableModel.load().neutral)
    )
    skin, mean = skin - skin.mean(axis=0), mean - mean.mean(axis=0)
    left, _, right = np.linalg.svd(mean.T @ skin)
    turn = (left * [1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right
    return (skin @ turn.T - mean).ravel(), turn


@cache
def _learned() -> dict[str, Float]:
    with (files("omokage.tracking") / "data" / "head_axes.npz").open("rb") as file:
        return {name: values.astype(np.float64) for name, values in np.load(file).items()}
