"""A synthetic person who says synthetic syllables: a clip in which the truth about lips and voice is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Audio
from omokage.talking.conditions.speech import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.release import ReleaseConfig, release_clip

SYLLABLE_S = (0.14, 0.34)
PAUSE_SHARE = 0.2
# Center of the loud harmonics of three vowels, Hz, and how far each opens the jaw.
VOWELS = ((800.0, 0.65), (400.0, 0.3), (2200.0, 0.15))
PITCH_HZ, HARMONICS = 120.0, 40
JAW = BLENDSHAPES.index("jawOpen")
MOUTH = [row for row, name in enumerate(BLENDSHAPES) if name.startswith(("mouth", "jaw", "cheek"))]


@dataclass(frozen=True)
class Utterance:
    """voice: (S,) mono at 16 kHz.  jaw: (T,), how far the jaw is open in each frame, 0 to 1."""

    voice: NDArray[np.float32]
    jaw: NDArray[np.float32]


def utterance(frames: int, seed: int) -> Utterance:
    """Random syllables: each swells and fades, and opens the jaw as far as its vowel and its loudness say."""
    random = np.random.default_rng(seed)
    samples = frames * SAMPLES_PER_FRAME
    times = np.arange(samples) / SAMPLE_RATE
    voice, jaw, start = np.zeros(samples), np.zeros(samples), 0
    number = np.arange(1, HARMONICS + 1)[:, None]
    while start < samples:
        stop = min(start + round(random.uniform(*SYLLABLE_S) * SAMPLE_RATE), samples)
        part = slice(start, stop)
        if random.random() >= PAUSE_SHARE:
            center, opening = VOWELS[int(random.integers(len(VOWELS)))]
            level = random.uniform(0.5, 1.0)
            swell = level * np.sin(np.pi * np.arange(stop - start) / max(stop - start, 1))
            gains = np.exp(-((np.log(number * PITCH_HZ / center) / 0.5) ** 2))
            voice[part] = swell * (gains * np.sin(2 * np.pi * PITCH_HZ * number * times[part])).sum(axis=0)
            jaw[part] = swell * opening
        start = stop
    voice = 0.3 * voice / max(float(np.abs(voice).max()), 1e-9) + 1e-3 * random.standard_normal(samples)
    opened = jaw.reshape(frames, SAMPLES_PER_FRAME).mean(axis=1)
    return Utterance(voice.astype(np.float32), opened.astype(np.float32))


def write_talker(path: Path, frames: int, *, side: int = 256, seed: int = 0) -> Utterance:
    """Write a clip of `frames` at 25 a second, `side` pixels, and say what is in it. Raises OutputError."""
    said, person = utterance(frames, seed), SyntheticSubject(seed)
    track = person.performance(frames / FRAME_RATE, frame_rate=float(FRAME_RATE), size=side, motion=0.3)
    expression = track.expression.copy()
    expression[:, MOUTH] = 0
    expression[:, JAW] = said.jaw
    release_clip(
        (frame.image for frame in person.render_clip(replace(track, expression=expression))),
        path,
        frame_rate=Fraction(FRAME_RATE),
        audio=Audio(said.voice[:, None], SAMPLE_RATE),
        config=ReleaseConfig(title="synthetic person"),
    )
    return said
