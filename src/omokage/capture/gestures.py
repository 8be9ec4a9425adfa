"""Gestures that a person is asked for, found in the track of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from omokage.geometry.camera import yaw_pitch_roll
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack

# A front camera may mirror its picture, so no side is asked for.
GESTURES: Final[Mapping[str, str]] = {
    "side": "turn your head to one side",
    "up": "look up with your head",
    "down": "look down with your head",
    "mouth": "open your mouth wide",
    "eyes": "close both eyes for a second",
}
TURNED_DEG, NODDED_DEG, OPENED, CLOSED = 15.0, 9.0, 0.4, 0.55
LEAST_S: Final[Mapping[str, float]] = {"side": 0.2, "up": 0.2, "down": 0.2, "mouth": 0.2, "eyes": 0.5}
GAP_S = 0.1  # a frame that misses it does not end a gesture


@dataclass(frozen=True, slots=True)
class Gesture:
    """One of `GESTURES`, from `start_s` to `end_s`."""

    name: str
    start_s: float
    end_s: float


def found_gestures(track: FaceTrack) -> tuple[Gesture, ...]:
    """All gestures in a track, by their start. Angles count from the median of the clip, where people look ahead."""
    seen = track.is_tracked
    if not seen.any():
        return ()
    yaw, pitch, _ = np.degrees(yaw_pitch_roll(track.head_rotation)).T
    yaw, pitch = yaw - np.median(yaw[seen]), pitch - np.median(pitch[seen])

    def weight(name: str) -> NDArray[np.floating]:
        values: NDArray[np.floating] = track.expression[:, BLENDSHAPES.index(name)]
        return values

    eyes = np.minimum(weight("eyeBlinkLeft"), weight("eyeBlinkRight"))
    holds = {
        "side": np.abs(yaw) > TURNED_DEG,
        "up": pitch > NODDED_DEG,
        "down": pitch < -NODDED_DEG,
        "mouth": weight("jawOpen") > OPENED,
        # Who looks down shows lids, and a turned head one eye.
        "eyes": (eyes > CLOSED) & (np.abs(yaw) < TURNED_DEG) & (np.abs(pitch) < NODDED_DEG),
    }
    found = [
        Gesture(name, start, end)
        for name, is_held in holds.items()
        for start, end in _spans(track.time_s, is_held & seen)
        if end - start >= LEAST_S[name]
    ]
    return tuple(sorted(found, key=lambda gesture: gesture.start_s))


def first_missing(found: Sequence[Gesture], asked: Sequence[str]) -> str | None:
    """The first gesture that was not made in the asked order, or None. Others may come between them."""
    after = -np.inf
    for name in asked:
        starts = [gesture.start_s for gesture in found if gesture.name == name and gesture.start_s > after]
        if not starts:
            return name
        after = min(starts)
    return None


def _spans(time_s: NDArray[np.floating], holds: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Start and end of each time that something holds, with gaps closed."""
    spans: list[tuple[float, float]] = []
    for moment in np.asarray(time_s)[holds]:
        step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.0
        if spans and moment - spans[-1][1] <= step + GAP_S:
            spans[-1] = (spans[-1][0], float(moment))
        else:
            spans.append((float(moment), float(moment)))
    return spans
