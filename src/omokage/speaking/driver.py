"""The general driver: from a voice or a text to the motion of any avatar, from the first minute.

MAIN: `driven_by_voice`, `driven_by_text`. Both give viseme weights; `motion` makes of them, and of how loud the voice
is, a face track that was seen in no picture, with `NEUTRAL` as its rest. `VoiceDriver` and `MotionStream` are what both
are made of; they take a live voice in pieces, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omokage.config import Config
from omokage.errors import InputError
from omokage.geometry.camera import head_rotation
from omokage.speaking.cues import CHANGE_S, Course, Cue, course
from omokage.speaking.hearing import BANDS, HOPS_PER_S, SPEECH_SAMPLES, Heard
from omokage.speaking.liveliness import Life, Liveliness, Moment
from omokage.speaking.phonemes import Phoneme, viseme_weights
from omokage.speaking.reader import VoiceReader
from omokage.talking.conditions.log_mel import HOP_SAMPLES, WINDOW_SAMPLES
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
SMOOTHING_REACH = 5  # hops to either side: two deviations
HUSH_S = 0.08  # in which a mouth closes when the voice breaks off
QUIET_DB = -35.0  # below the voice's level: no more part of a phrase
REST, CLOSED = NAMES.index("rest"), NAMES.index("closed")
# The weight of rest from which on a moment is less of speech, and at which it is none.
REST_FROM, REST_FULL = 0.8, 0.95
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
    bands (N, `hearing.BANDS`), voicing (N,): of the sound itself, as in `Heard`.  encoded (N, M): what a speech encoder
    hears, see `encoded`; M is 0 where none listened."""

    visemes: Float
    level: Float
    bands: Float
    voicing: Float
    encoded: Float = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if not self.encoded.size:
            object.__setattr__(self, "encoded", np.zeros((len(self.level), self.encoded.shape[1])))

    def cut(self, start: int, stop: int) -> Articulation:
        """The hops from `start` to before `stop`."""
        return Articulation(*(getattr(self, f.name)[start:stop] for f in fields(self)))


class VoiceDriver:
    """What a voice lets the mouth do, in any language; it comes in pieces, and how it was cut does not matter.

    A hop comes out when `LATENCY_SAMPLES` after its start have been heard.
    """

    LATENCY_SAMPLES = (VoiceReader.LATENCY + SMOOTHING_REACH) * HOP_SAMPLES + max(
        WINDOW_SAMPLES, HOP_SAMPLES + SPEECH_SAMPLES - 1
    )

    def __init__(self) -> None:
        self._reader = VoiceReader()
        # A smooth hop looks as far ahead as back; before the voice there was rest.
        self._weights = _resting(SMOOTHING_REACH)
        # What is not smoothed waits for what is: loudness, bands, voicing.
        self._loudness, self._bands, self._voicing = np.zeros(0), np.zeros((0, BANDS)), np.zeros(0)

    def step(self, samples: Float32, *, is_end: bool = False) -> Articulation:
        """The next hops, of samples (S,) mono at 16 kHz and those before. is_end: silence follows, all comes out."""
        weights, heard = self._reader.read(samples, is_end=is_end)
        ahead = _resting(SMOOTHING_REACH if is_end else 0)
        self._weights = np.concatenate([self._weights, weights.astype(np.float64), ahead])
        self._loudness = np.concatenate([self._loudness, loudness(heard)])
        self._bands = np.concatenate([self._bands, heard.bands])
        self._voicing = np.concatenate([self._voicing, heard.voicing])
        count = max(0, len(self._weights) - 2 * SMOOTHING_REACH)
        around = np.lib.stride_tricks.sliding_window_view(
            np.concatenate([self._weights, _resting(max(0, 2 * SMOOTHING_REACH + 1 - len(self._weights)))]),
            2 * SMOOTHING_REACH + 1,
            axis=0,
        )
        smooth = around[:count] @ _smoothing()
        level = self._loudness[:count] * (1 - smooth[:, REST])
        out = Articulation(smooth, level, self._bands[:count], self._voicing[:count])
        self._weights, self._loudness = self._weights[count:], self._loudness[count:]
        self._bands, self._voicing = self._bands[count:], self._voicing[count:]
        return out


def driven_by_voice(voice: Float32) -> Articulation:
    """What a voice (S,) mono at 16 kHz lets the mouth do."""
    driver = VoiceDriver()
    pieces = [
        driver.step(voice[start : start + PIECE_SAMPLES], is_end=start + PIECE_SAMPLES >= len(voice))
        for start in range(0, max(len(voice), 1), PIECE_SAMPLES)
    ]
    return joined(pieces)


def driven_by_text(phonemes: Sequence[Phoneme], voice: Float32) -> Articulation:
    """The same from phonemes that are known; `voice` (S,) is their sound."""
    heard = driven_by_voice(voice)
    middles = (np.arange(len(heard.level)) + 0.5) / HOPS_PER_S
    return replace(heard, visemes=viseme_weights(phonemes, middles))


def joined(pieces: Sequence[Articulation]) -> Articulation:
    """Pieces, one after the other."""
    nothing = Articulation(_resting(0), np.zeros(0), np.zeros((0, BANDS)), np.zeros(0))
    return Articulation(
        *(np.concatenate([getattr(piece, f.name) for piece in (nothing, *pieces)]) for f in fields(nothing))
    )


def speaking(visemes: Float) -> Float:
    """How much (T,) viseme weights (T, 10) are of speech, in [0, 1]; 0 is silence."""
    return np.asarray(1 - np.clip((visemes[:, REST] - REST_FROM) / (REST_FULL - REST_FROM), 0, 1))


def loudness(heard: Heard) -> Float:
    """Hops (N,) -> loudness in [0, 1] against the voice's level."""
    below = heard.level_db.astype(np.float64) - heard.peak_db
    return np.asarray(np.clip(1 - below / QUIET_DB, 0, 1), dtype=np.float64)


def motion(
    articulation: Articulation,
    duration_s: float,
    frame_rate: float,
    style: Style | None = None,
    cues: Sequence[Cue] = (),
) -> FaceTrack:
    """Frames at a constant rate for all of a sound, at least one; `style` holds until cues change it."""
    count = max(1, int(np.ceil(duration_s * frame_rate - 1e-6)))
    return MotionStream(frame_rate, style, cues).step(articulation, end=count)


class MotionStream:
    """Frames at a constant rate from hops that come in pieces; how they were cut does not matter.

    A frame comes out when the hop after its time has come. `style` holds until cues change it.
    """

    def __init__(self, frame_rate: float, style: Style | None = None, cues: Sequence[Cue] = ()) -> None:
        style = style or Style()
        self._rate = frame_rate
        self._begin = Cue(0.0, mood=style.mood, energy=style.energy, head=style.life.head, look=(0.0, 0.0))
        self._cues = sorted(cues, key=lambda cue: cue.at)
        self._liveliness = Liveliness(replace(style.life, head=1.0), frame_rate)
        self._next = 0  # frame
        # The hops that are still needed; the first is hop number `_first` since `_since_s`.
        self._hops, self._first, self._since_s = joined([]), 0, 0.0
        self._last = _resting(1)[0]  # weights of the last frame
        self._hushed = (
            -(10**9),
            self._last,
        )  # the first frame after the voice broke off, and the weights before it

    def step(self, articulation: Articulation, *, end: int | None = None) -> FaceTrack:
        """The next frames (T rows, perhaps none). end: frames since the beginning; silence follows the last hop."""
        self._hops = joined([self._hops, articulation, _silence(int(end is not None))])
        known_s = self._since_s + (self._first + len(self._hops.level) - 0.5) / HOPS_PER_S
        stop = int(np.floor(known_s * self._rate + 1e-9)) + 1 if end is None else end
        frames = np.arange(self._next, max(stop, self._next))
        time_s = frames / self._rate
        visemes, level = self._at(time_s)
        visemes = self._hush(visemes, frames)
        moments = [self._liveliness.step(value) for value in level]
        track = posed(visemes, moments, time_s, self._course(time_s))
        if len(frames):
            self._last, self._next = visemes[-1], int(frames[-1]) + 1
            self._forget()
        return track

    def hush(self) -> None:
        """The voice breaks off: from the next frame on the mouth closes within `HUSH_S`. The next hops begin there."""
        self._hushed = (self._next, self._last)
        self._hops, self._first, self._since_s = joined([]), 0, self._next / self._rate

    def change(self, cue: Cue) -> None:
        """What the cue names changes from the next frame on, whatever its time."""
        self._cues = sorted([*self._cues, replace(cue, at=self._next / self._rate)], key=lambda cue: cue.at)

    def _at(self, time_s: Float) -> tuple[Float, Float]:
        """Visemes (T, 10) and level (T,) between hops, linearly."""
        if not len(self._hops.level):
            return _resting(len(time_s)), np.zeros(len(time_s))
        hops = self._since_s + (self._first + np.arange(len(self._hops.level)) + 0.5) / HOPS_PER_S
        visemes = [np.interp(time_s, hops, weights) for weights in self._hops.visemes.T]
        return np.stack(visemes, axis=1), np.interp(time_s, hops, self._hops.level)

    def _hush(self, visemes: Float, frames: NDArray[np.int_]) -> Float:
        """Lips on their way from where the voice broke off to what comes now."""
        first, before = self._hushed
        share = np.clip((frames - first + 1) / (HUSH_S * self._rate), 0, 1)
        kept = np.cos(0.5 * np.pi * share)[:, None] ** 2
        return np.asarray(kept * before + (1 - kept) * visemes)

    def _course(self, time_s: Float) -> Course:
        made = course(self._cues, self._begin, time_s, MOODS)
        # What is over becomes what holds, so that a long stream keeps no list.
        while self._cues and len(time_s) and self._cues[0].at + CHANGE_S <= time_s[-1]:
            self._begin = self._begin.followed_by(self._cues.pop(0))
        return made

    def _forget(self) -> None:
        """Drop the hops before the one that precedes the next frame."""
        before = int(np.floor((self._next / self._rate - self._since_s) * HOPS_PER_S - 0.5)) - 1 - self._first
        count = min(max(0, before), max(0, len(self._hops.level) - 1))
        self._hops = self._hops.cut(count, len(self._hops.level))
        self._first += count


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
    angles = course.head[:, None] * np.array([moment.angles for moment in moments]).reshape(-1, 3)
    glance = np.array([moment.glance for moment in moments]).reshape(-1, 2)
    gaze = glance - EYES_AGAINST_HEAD * angles[:, :2] + course.look
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


def _resting(count: int) -> Float:
    """Weights (N, 10) of a mouth at rest."""
    return np.tile(np.eye(len(NAMES))[REST], (count, 1))


def _silence(count: int) -> Articulation:
    return Articulation(_resting(count), np.zeros(count), np.full((count, BANDS), -1.0), np.zeros(count))


@cache
def _smoothing() -> Float:
    """Weights of the hops around one: a Gaussian, cut off at `SMOOTHING_REACH`."""
    away = np.arange(-SMOOTHING_REACH, SMOOTHING_REACH + 1) / HOPS_PER_S
    weights = np.exp(-0.5 * (away / SMOOTHING_S) ** 2)
    return np.asarray(weights / weights.sum())


@cache
def _openness() -> list[int]:
    """The expressions that open a mouth; energy does not press closed lips harder."""
    return [
        i for i, name in enumerate(BLENDSHAPES)
        if name.startswith(("jawOpen", "mouthLowerDown", "mouthUpperUp", "mouthFunnel", "mouthStretch", "mouthSmile"))
    ]  # fmt: skip


def _vector(weights: Weights) -> Float:
    return np.array([weights.get(name, 0.0) for name in BLENDSHAPES])
