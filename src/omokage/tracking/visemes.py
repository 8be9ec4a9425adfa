"""Visemes: the mouth shapes of speech, in the 52 named expressions. Ten tell most sounds apart that lips can show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from omokage.tracking.face_track import BLENDSHAPES

Weights = Mapping[str, float]


def both_sides(**weights: float) -> dict[str, float]:
    """Names ending in '_' stand for their left and right."""
    result: dict[str, float] = {}
    for name, value in weights.items():
        for full in (name[:-1] + "Left", name[:-1] + "Right") if name.endswith("_") else (name,):
            result[full] = value
    return result


# By the sounds that they stand for; "rest" is silence, "lip" is f and v, "s" all sounds behind nearly closed teeth.
VISEMES: dict[str, dict[str, float]] = {
    "rest": {},
    "closed": both_sides(
        mouthClose=0.02, mouthPress_=0.35, mouthRollLower=0.12, mouthRollUpper=0.08
    ),  # m b p
    "lip": both_sides(jawOpen=0.06, mouthRollLower=0.45, mouthUpperUp_=0.15),  # f v
    "a": both_sides(jawOpen=0.62, mouthLowerDown_=0.2),
    "e": both_sides(jawOpen=0.26, mouthStretch_=0.3, mouthLowerDown_=0.3, mouthUpperUp_=0.15),
    "i": both_sides(
        jawOpen=0.12, mouthSmile_=0.3, mouthStretch_=0.25, mouthLowerDown_=0.35, mouthUpperUp_=0.2
    ),
    "o": both_sides(jawOpen=0.4, mouthFunnel=0.5, mouthPucker=0.15),
    "u": both_sides(jawOpen=0.12, mouthPucker=0.65, mouthFunnel=0.25),
    "s": both_sides(jawOpen=0.08, mouthLowerDown_=0.4, mouthUpperUp_=0.2, mouthStretch_=0.15),
    "l": both_sides(jawOpen=0.22, mouthLowerDown_=0.25, mouthUpperUp_=0.1),
}
NAMES = tuple(VISEMES)


def shapes() -> NDArray[np.float64]:
    """Expression weights (10, 52) of every viseme at its full."""
    return np.array([[shape.get(name, 0.0) for name in BLENDSHAPES] for shape in VISEMES.values()])
