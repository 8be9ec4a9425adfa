"""What a photo performs in a rehearsal: a smooth, fixed script of head, face and eyes.

The first 80 % of the time visit every pose and every expression that an avatar should learn; the last 20 %, which
training holds out, stay within what was visited, in other combinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.sway import similar_shoulders
from omokage.tracking.visemes import VISEMES, Weights, both_sides

Float = NDArray[np.float64]

FARTHEST = np.radians([20.0, 12.0, 8.0])  # yaw, pitch, roll of the head, both ways
LOOK = np.array([0.36, 0.20])  # yaw and pitch of the eyes, radians, both ways
HELD_OUT = 0.2
HELD_OUT_REACH = 0.85  # of the way to the extremes
MOVE_S = 0.55  # from one pose of the head to the next
HOLD_S = 0.12
SOUND_S = 0.12  # one mouth shape of speech
BLINK_S = 0.25
BLINK_EVERY_S = 1.5
GLANCE_S = 0.9

# Poses as shares of FARTHEST (yaw, pitch, roll): one at a time, then together.
_POSES = (
    (0, 0, 0), (1, 0, 0), (0, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0.2, 0, 1), (-0.2, 0, -1),
    (0.7, 0.7, 0.3), (-0.7, -0.7, -0.3), (-0.7, 0.7, 0.3), (0.7, -0.7, -0.3), (0, 0, 0),
)  # fmt: skip

_SENTENCES = (
    "rest closed a closed e l i rest u s o closed a lip e rest s i closed u l a rest closed o e closed rest",
    "rest l i closed o u closed a s e rest closed i lip a closed o rest e closed a l u s closed rest",
)
# Faces that are held for a moment.
_FACES: tuple[dict[str, float], ...] = (
    both_sides(
        mouthSmile_=0.75, cheekSquint_=0.5, eyeSquint_=0.25, mouthUpperUp_=0.2, mouthLowerDown_=0.3, jawOpen=0.08
    ),
    both_sides(jawOpen=0.85),
    both_sides(browInnerUp=0.8, browOuterUp_=0.7, eyeWide_=0.5, jawOpen=0.2),
    both_sides(browDown_=0.7, eyeSquint_=0.4, mouthPress_=0.4, noseSneer_=0.35, mouthUpperUp_=0.3),
    both_sides(mouthPucker=0.8),
    both_sides(mouthFunnel=0.75, jawOpen=0.25),
    both_sides(mouthFrown_=0.6, mouthShrugLower=0.5, mouthShrugUpper=0.35, jawForward=0.35),
    both_sides(jawOpen=0.35, mouthClose=0.35),
    {"mouthLeft": 0.5, "mouthSmileLeft": 0.45, "jawLeft": 0.3, "browOuterUpLeft": 0.5},
    {"mouthRight": 0.5, "mouthSmileRight": 0.45, "jawRight": 0.3, "browOuterUpRight": 0.5},
    both_sides(mouthDimple_=0.5, mouthRollUpper=0.35, mouthRollLower=0.5),
    both_sides(cheekPuff=0.6, mouthClose=0.03),
    both_sides(mouthSmile_=0.6),
)  # fmt: skip
_FACES_HELD_OUT = (0, 1, 2, 4)
_POSES_HELD_OUT = ((0.85, 0.2, 0), (-0.85, -0.2, 0), (0, 0.8, 0.3), (0, -0.8, -0.3))
FACE_S = 0.42


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Movement relative to the photo, frame by frame.

    time_s (T,).  angles (T, 3): yaw, pitch, roll in radians (see `geometry.camera`).  shift (T, 3): cm.
    expression (T, 52): weights to add, in [0, 1].  keep (T,): how much of the photo's own mouth shape stays, in [0, 1].
    gaze (T, 2): yaw and pitch of both eyes, radians.  sway (T, Z, 2): as in `FaceTrack`.
    """

    time_s: Float
    angles: Float
    shift: Float
    expression: Float
    keep: Float
    gaze: Float
    sway: Float

    def __len__(self) -> int:
        return len(self.time_s)


def performance(seconds: float, frame_rate: float, seed: int = 0) -> Performance:
    """The script for a clip of that length; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(max(1, round(seconds * frame_rate))) / frame_rate
    border = (1 - HELD_OUT) * seconds
    speech, keep = _mouth(time_s, border, seconds)
    expression = speech + _blinks(time_s, seconds, rng)
    breath = np.sin(2 * np.pi * time_s / 3.7)
    sway = np.sin(2 * np.pi * time_s / 5.3)
    shoulders = similar_shoulders(
        np.stack([0.012 * sway, -0.012 * breath], axis=1), log_scale=0.002 * breath, roll=0.006 * sway
    )
    return Performance(
        time_s=time_s,
        angles=_head(time_s, border, seconds, rng) * FARTHEST,
        shift=np.stack([0.35 * sway, 0.12 * breath, 0.5 * np.sin(2 * np.pi * time_s / 4.1)], axis=1),
        expression=np.clip(expression, 0.0, 1.0),
        keep=keep,
        gaze=_glances(time_s, border, seconds, rng) * LOOK,
        sway=shoulders,
    )


def _head(time_s: Float, border: float, seconds: float, rng: np.random.Generator) -> Float:
    """Poses (T, 3) as shares of the farthest: the listed ones, then others between them; the end is held out."""
    pace = min(1.0, border / (len(_POSES) * (MOVE_S + HOLD_S)))
    step = (MOVE_S + HOLD_S) * pace
    targets: list[Sequence[float]] = list(_POSES[: max(2, int(border / step))])
    while len(targets) * step < border:
        direction = rng.uniform(-1, 1, 3)
        targets.append((direction / max(1.0, float(np.linalg.norm(direction)))).tolist())
    count = len(targets)
    while len(targets) * step < seconds:
        targets.append(_POSES_HELD_OUT[(len(targets) - count) % len(_POSES_HELD_OUT)])
    times, poses = [], []
    for index, target in enumerate(targets):
        times += [index * step, index * step + HOLD_S * pace]
        poses += [target, target]
    return _through(times, np.array(poses, dtype=np.float64), time_s)


def _mouth(time_s: Float, border: float, seconds: float) -> tuple[Float, Float]:
    """Expressions (T, 52) of speech and faces in turns, and how much of the photo's mouth stays (T,)."""
    times, keep = [0.0, 0.3], [1.0, 1.0]
    shapes: list[Weights] = [{}, {}]

    def hold(shape: Weights, duration: float, kept: float) -> None:
        start = times[-1]
        for at in (start + 0.55 * duration, start + duration):
            times.append(at)
            shapes.append(shape)
            keep.append(kept)

    def speak(sentence: str) -> None:
        for sound in sentence.split():
            hold(VISEMES[sound], SOUND_S, 0.6 if sound == "rest" else 0.12 if sound != "closed" else 0.0)

    def round_of(faces: Sequence[int], sentence: str) -> None:
        for place, face in enumerate(faces):
            hold(_FACES[face], FACE_S, 0.1)
            if place % 3 == 2:
                hold({}, FACE_S / 2, 1.0)
        speak(sentence)
        hold({}, 0.3, 1.0)

    while times[-1] < border:
        round_of(range(len(_FACES)), _SENTENCES[0])
    stretch = border / times[-1] if times[-1] < 1.35 * border or seconds < 14 else 1.0
    times[:] = [t * stretch for t in times]
    while times[-1] < seconds:
        round_of(_FACES_HELD_OUT, _SENTENCES[1])
    weights = np.array([[shape.get(name, 0.0) for name in BLENDSHAPES] for shape in shapes])
    return _through(times, weights, time_s), _through(times, np.array(keep)[:, None], time_s)[:, 0]


def _blinks(time_s: Float, seconds: float, rng: np.random.Generator) -> Float:
    """Blink weights (T, 52): a quarter of a second each, shut for a moment, at uneven intervals."""
    weights = np.zeros((len(time_s), len(BLENDSHAPES)))
    both = [BLENDSHAPES.index("eyeBlinkLeft"), BLENDSHAPES.index("eyeBlinkRight")]
    at = 0.8
    while at < seconds:
        phase = np.clip((time_s - at) / BLINK_S, 0, 1)
        closed = np.interp(phase, [0.0, 0.3, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0])
        weights[:, both] = np.maximum(weights[:, both], (closed * closed * (3 - 2 * closed))[:, None])
        at += BLINK_EVERY_S * rng.uniform(0.7, 1.3)
    return weights


def _glances(time_s: Float, border: float, seconds: float, rng: np.random.Generator) -> Float:
    """Look (T, 2) as shares of the farthest: quick jumps with rests, every direction first."""
    targets = [(0, 0), (1, 0), (-1, 0), (0, 0), (0, 1), (0, -1), (0, 0), (0.7, 0.6), (-0.7, -0.6)]
    pace = min(1.0, border / (len(targets) * GLANCE_S))
    while len(targets) * GLANCE_S * pace < seconds:
        reach = HELD_OUT_REACH if len(targets) * GLANCE_S * pace >= border else 1.0
        targets.append(tuple(reach * rng.uniform(-0.75, 0.75, 2)) if len(targets) % 2 else (0, 0))
    times, looks = [], []
    for index, target in enumerate(targets):
        times += [index * GLANCE_S * pace + 0.06, (index + 1) * GLANCE_S * pace]
        looks += [target, target]
    return _through(times, np.array(looks, dtype=np.float64), time_s)


def _through(times: Sequence[float], values: Float, time_s: Float) -> Float:
    """Values (K, C) at rising times, passed smoothly and without overshoot -> (T, C)."""
    inside = np.clip(time_s, times[0], times[-1])
    return np.asarray(PchipInterpolator(times, values, axis=0)(inside))
