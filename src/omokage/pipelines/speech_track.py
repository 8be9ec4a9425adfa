"""A voice from any file: the sound that goes into the video, and what the lips follow. MAIN: `read_speech`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from math import gcd
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError, MissingDependencyError
from omokage.media.audio import read_audio
from omokage.media.clip import Audio
from omokage.media.image import is_still_image
from omokage.talking.conditions.speech import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME

# Peaks below a thousandth of full scale, -60 dB, are the noise of an empty track.
SILENT_PEAK = 1e-3
# From here on it is told beforehand that a speech is taken apart and how long all will take.
LONG_S = 5 * 60
# Entry points with which other packages bring vocal separators: a class, or a function that makes one of nothing.
SEPARATORS = "omokage.vocal_separators"


class VocalSeparator(Protocol):
    """Takes everything but voices out of a sound: music, noise. Omokage brings none."""

    def separate(self, sound: Audio) -> Audio:
        """The voices in a sound, of the same length and sample rate."""
        ...


def separator_named(name: str) -> VocalSeparator:
    """The separator that an installed package brings under this name, see `SEPARATORS`.

    Raises MissingDependencyError when there is none, or it cannot be made.
    """
    offered = {point.name: point for point in entry_points(group=SEPARATORS)}
    if name not in offered:
        known = f"there are {', '.join(sorted(offered))}" if offered else "none is installed"
        raise MissingDependencyError(
            f"no installed package brings a vocal separator '{name}' ({known}); install one that has an entry point in "
            f"the group {SEPARATORS}, or leave --separator out"
        )
    try:
        made: VocalSeparator = offered[name].load()()
    except Exception as error:  # foreign code may fail in any way
        raise MissingDependencyError(
            f"the vocal separator '{name}' cannot be made ({type(error).__name__}: {error}); see to its package, or "
            "leave --separator out"
        ) from error
    return made


@dataclass(frozen=True)
class SpeechTrack:
    """sound: as in the file.  voice: (S,) mono at 16 kHz, as long.  notes: sentences on what may spoil the video.

    name: of the file.
    """

    name: str
    sound: Audio
    voice: NDArray[np.float32]
    notes: tuple[str, ...]

    @property
    def is_silent(self) -> bool:
        return bool(np.abs(self.voice).max(initial=0) < SILENT_PEAK)

    @property
    def drift_notes(self) -> tuple[str, ...]:
        """What generated windows one after the other may suffer from a long speech."""
        if self.duration_s <= LONG_S:
            return ()
        return (
            f"{self.name} is {self.duration_s / 60:.0f} minutes long; the voice is read in overlapping pieces of "
            f"{LONG_S // 60} minutes, and color and likeness may drift from window to window",
        )

    @property
    def frame_count(self) -> int:
        """Frames of video: those that the sound has begun."""
        return -(-len(self.voice) // SAMPLES_PER_FRAME)

    @property
    def duration_s(self) -> float:
        return len(self.sound.samples) / self.sound.sample_rate


def read_speech(path: Path, separator: VocalSeparator | None = None) -> SpeechTrack:
    """Read the first sound track of a sound or video file.

    Raises MediaError when the file is damaged, holds samples that are no finite numbers, or has no sound, or when the
    separator fails.
    """
    if path.is_file() and is_still_image(path):
        raise MediaError(f"{path} is a picture, and a voice is needed here; give a sound or a video with one")
    sound = read_audio(path)
    if sound is None:
        raise MediaError(f"{path} has no sound; give a file with a voice in it, such as a WAV, MP3 or MP4")
    length = -(-len(sound.samples) * SAMPLE_RATE // sound.sample_rate)
    if separator is None:
        heard = read_audio(path, sample_rate=SAMPLE_RATE)
        voice = np.zeros((0, 1), np.float32) if heard is None else heard.samples
    else:
        voice = resampled(_separated(path, sound, separator), SAMPLE_RATE)
    mono = voice.mean(axis=1, dtype=np.float32)[:length]
    mono = np.pad(mono, (0, length - len(mono)))
    if not (_is_finite(sound.samples) and _is_finite(mono)):
        raise MediaError(
            f"{path} is damaged: its sound holds values that are no numbers; export it anew, such as WAV with 16 bits"
        )
    track = SpeechTrack(path.name, sound, mono, ())
    return replace(track, notes=tuple(_notes(track)))


def _separated(path: Path, sound: Audio, separator: VocalSeparator) -> Audio:
    """The voices in a sound. Raises MediaError when the separator fails, in whatever way."""
    try:
        return separator.separate(sound)
    except Exception as error:
        raise MediaError(
            f"the vocal separator failed with {path} ({type(error).__name__}: {error}); leave it out or give a sound "
            "that holds the voice alone"
        ) from error


def resampled(sound: Audio, sample_rate: int) -> NDArray[np.float32]:
    """The samples (S, channels) of a sound at another rate (Hz)."""
    from scipy.signal import resample_poly

    common = gcd(sound.sample_rate, sample_rate)
    samples = resample_poly(sound.samples, sample_rate // common, sound.sample_rate // common, axis=0)
    return np.asarray(samples, dtype=np.float32)


def _is_finite(samples: NDArray[np.float32]) -> bool:
    """Whether all are; the largest and the smallest tell, without a copy as long as the sound."""
    return bool(np.isfinite([samples.max(initial=0), samples.min(initial=0)]).all())


def _notes(track: SpeechTrack) -> list[str]:
    notes = []
    if track.is_silent:
        notes.append(f"{track.name} is silent, so the mouth has nothing to say")
    if track.duration_s < 1 / FRAME_RATE:
        notes.append(f"{track.name} is shorter than one frame of video")
    return notes
