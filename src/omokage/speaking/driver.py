"""The general driver: from a voice or a text to the motion of any avatar, from the first minute.

MAIN: `driven_by_voice`, `driven_by_text`. Both give viseme weights; `motion` makes of them, and of how loud the voice
is, a face track that was seen in no picture, with `NEUTRAL` as its rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from omokage.config import Config
from omokage.errors import InputError
from omokage.geometry.camera import head_rotation
from omokage.speaking.cues import Course, Cue, course
from omokage.speaking.hearing import HOPS_PER_S
from omokage.speaking.liveliness import Life, Liveliness, Moment
from omokage.speaking.phonemes import Phoneme, viseme_weights
from omokage.speaking.reader import VoiceReader
from omokage.talking.conditions.speech import SAMPLE_RATE
from omokage.tracking.arkit import bare_track, looks_from_gaze
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.sway import similar_shoulders
from omokage.tracking.visemes import NAMES, Weights, both_sides, shapes

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

PIECE_SAMPLES = 10 * SAMPLE_RATE  # read at once: memory does not grow with the length
EYES_AGAINST_HEAD = 0.6  # of a turn: eyes that look at somebody stay behind
SMOOTHING_S = 0.025  # of what the reader finds, which trembles from hop to hop
QUIET_DB = -35.0  # below the loudest: no more part of a phrase
REST = NAMES.index("rest")
Mood = Literal["neutral", "friendly", "serious"]
_MOODS: dict[str, dict[str, float]] = {
    "neutral": {},
    "friendly": both_sides(mouthSmile_=0.28, cheekSquint_=0.15, browInnerUp=0.1, eyeSquint_=0.06),
    "serious": both_sides(browDown_=0.22, mouthPress_=0.08, eyeSquint_=0.08),
}
MOODS = tuple(_MOODS)
_BLINK = {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0}
_BROW = {"browInnerUp": 0.3, "browOuterUpLeft": 0.3, "browOuterUpRight": 0.3}


@dataclass(frozen=True)
class Style(Config):
    """How it is said. energy: how far the mouth opens (1: as heard).  mood: the face below the words."""

    energy: float = 1.0
    mood: Mood = "neutral"
    life: Life = field(default_factory=Life)

    def __post_init__(self) -> None:
        if not 0 <= self.energy <= 2:
            raise InputError(f"energy must lie between 0 and 2, got {self.energy}")
        if self.mood not in _MOODS:
            raise InputError(f"mood must be one of {', '.join(_MOODS)}, got '{self.mood}'")


@dataclass(frozen=True)
class Articulation:
    """visemes: (N, 10) weights for every hop of 10 ms.  level: (N,) loudness in [0, 1], 0 outside speech.
    bands (N, `hearing.BANDS`), voicing (N,): of the sound itself, as in `Heard`."""

    visemes: Float
    level: Float
    bands: Float
    voicing: Float

    def cut(self, start: int, stop: int) -> Articulation:
        """The hops from `start` to before `stop`."""
        return Articulation(*(getattr(self, f.name)[start:stop] for f in fields(self)))


def driven_by_voice(voice: Float32) -> Articulation:
    """What a voice (S,) mono at 16 kHz lets the mouth do, in any language."""
    reader, pieces = VoiceReader(), []
    for start in range(0, max(len(voice), 1), PIECE_SAMPLES):
        is_end = start + PIECE_SAMPLES >= len(voice)
        pieces.append(reader.read(voice[start : start + PIECE_SAMPLES], is_end=is_end))
    weights = np.concatenate([weights for weights, _ in pieces]).astype(np.float64)
    smooth = gaussian_filter1d(weights, SMOOTHING_S * HOPS_PER_S, axis=0) if len(weights) else weights
    level, bands, voicing = (
        np.concatenate([getattr(heard, name) for _, heard in pieces])
        for name in ("level_db", "bands", "voicing")
    )
    return Articulation(smooth, loudness(level) * (1 - smooth[:, REST]), bands, voicing)


def driven_by_text(phonemes: Sequence[Phoneme], voice: Float32) -> Articulation:
    """The same from phonemes that are known; `voice` (S,) is their sound."""
    heard = driven_by_voice(voice)
    middles = (np.arange(len(heard.level)) + 0.5) / HOPS_PER_S
    return replace(heard, visemes=viseme_weights(phonemes, middles))


def loudness(level_db: Float32) -> Float:
    """Levels (N,) of hops, dB -> loudness in [0, 1] against the loudest so far."""
    peak = np.maximum.accumulate(level_db.astype(np.float64)) if len(level_db) else level_db
    return np.clip(1 - (level_db - peak) / QUIET_DB, 0, 1)


def motion(
    articulation: Articulation,
    duration_s: float,
    frame_rate: float,
    style: Style | None = None,
    cues: Sequence[Cue] = (),
) -> FaceTrack:
    """Frames at a constant rate for all of a sound, at least one; `style` holds until cues change it."""
    style = style or Style()
    count = max(1, int(np.ceil(duration_s * frame_rate - 1e-6)))
    time_s = np.arange(count) / frame_rate
    visemes = _at(articulation.visemes, time_s, NAMES.index("rest"))
    level = _at(articulation.level[:, None], time_s, None)[:, 0]
    start = Cue(0.0, mood=style.mood, energy=style.energy, head=style.life.head, look=(0.0, 0.0))
    liveliness = Liveliness(replace(style.life, head=1.0), frame_rate)
    moments = [liveliness.step(value) for value in level]
    return posed(visemes, moments, time_s, course(cues, start, time_s, MOODS))


def posed(visemes: Float, moments: list[Moment], time_s: Float, course: Course) -> FaceTrack:
    """Viseme weights (T, 10), a head's life and what is asked at times (T,) -> the face."""
    expression = visemes @ shapes()
    expression[:, _openness()] *= course.energy[:, None]
    mood = course.mood @ np.array([_vector(weights) for weights in _MOODS.values()])
    # A closed or pressed mouth smiles less.
    expression += mood * (1 - 0.5 * visemes[:, [NAMES.index("closed")]])
    blink = np.array([moment.blink for moment in moments])[:, None]
    brow = np.array([moment.brow for moment in moments])[:, None]
    expression += blink * _vector(_BLINK) + brow * _vector(_BROW)
    breath = np.array([moment.breath for moment in moments])
    angles = course.head[:, None] * np.array([moment.angles for moment in moments])
    gaze = np.array([moment.glance for moment in moments]) - EYES_AGAINST_HEAD * angles[:, :2] + course.look
    gaze = np.repeat(gaze[:, None], 2, axis=1)
    expression += looks_from_gaze(gaze)  # they carry the lids
    zero = np.zeros(len(time_s))
    return bare_track(
        time_s,
        rotation=head_rotation(angles),
        expression=expression,
        gaze=gaze,
        shift=np.stack([zero, 0.1 * breath, zero], axis=1),
        sway=similar_shoulders(
            np.stack([zero, -0.01 * breath], axis=1), log_scale=0.0015 * breath, roll=zero
        ),
    )


@cache
def fullest() -> Float:
    """How far this driver moves every expression (52,) at most, at an energy of 1 and without a mood."""
    return np.asarray(np.max([*shapes(), _vector(_BLINK), _vector(_BROW)], axis=0))


def _at(values: Float, time_s: Float, beyond: int | None) -> Float:
    """Hops (N, C) at times (T,), linearly; beyond the last, silence (1 in column `beyond`)."""
    columns = values.shape[1]
    last = np.zeros((1, columns))
    if beyond is not None:
        last[0, beyond] = 1
    values = np.concatenate([values, last])
    hops = (np.arange(len(values)) + 0.5) / HOPS_PER_S
    return np.stack([np.interp(time_s, hops, values[:, c]) for c in range(columns)], axis=1)


@cache
def _openness() -> list[int]:
    """The expressions that open a mouth; energy does not press closed lips harder."""
    return [
        i for i, name in enumerate(BLENDSHAPES)
        if name.startswith(("jawOpen", "mouthLowerDown", "mouthUpperUp", "mouthFunnel", "mouthStretch", "mouthSmile"))
    ]  # fmt: skip


def _vector(weights: Weights) -> Float:
    return np.array([weights.get(name, 0.0) for name in BLENDSHAPES])
