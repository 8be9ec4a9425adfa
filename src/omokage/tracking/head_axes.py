"""Which way a face looks straight ahead: the axes of the head, from the shape of a solved face.

Pictures tell how far a head turns from one to the next, and landmarks how the face is shaped; which of its turns is
straight ahead they tell only through where the landmark network takes the nose to be. On faces with known axes most of
that error is a linear function of the solved face, the same for all skins and motions (scripts/learn_head_axes.py,
docs/research/tracking.md). Turning a face's axes changes no picture: poses turn the other way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import rotation_matrix
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import Subject
from omokage.tracking.morphable import MorphableModel

Float = NDArray[np.float64]

MAX_TURN_RAD = 0.15  # a third more than was ever found on the faces that were learned from


def with_head_axes(subject: Subject) -> Subject:
    """The same face in the axes of its head, turned about the middle of its skin; a face in its axes stays as it is.

    Irises stay where they are in the face: a gaze means something else afterwards (`identity` solves it last).
    """
    aligned, turn = aligned_shape(subject)
    learned = _learned()
    ahead = np.clip(learned["offset"] + aligned @ learned["weights"], -MAX_TURN_RAD, MAX_TURN_RAD)
    matrix = rotation_matrix(-ahead) @ turn
    middle = subject.neutral[: region.SKIN_COUNT].mean(axis=0, dtype=np.float64)
    return replace(
        subject,
        neutral=((subject.neutral - middle) @ matrix.T + middle).astype(np.float32),
        blendshapes=(subject.blendshapes @ matrix.T).astype(np.float32),
    )


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
