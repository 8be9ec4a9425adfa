"""Records of media: a frame, what a clip is, a sound track, a picture with its part of the sound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture.

    `image`: uint8 (H, W, 3) RGB, upright, square pixels. `index` counts from 0 in the stream that was asked
    for; `time_s` is the presentation time in seconds from the start of the clip (its first picture), to which
    the sound is aligned as well.
    """

    index: int
    time_s: float
    image: Image


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What a video file holds, from its headers, its packet time stamps and its first picture.

    `width`, `height` are of the upright picture with square pixels (px). `frame_rate` is the constant rate to
    which `read_frames` brings the clip by default and `frame_count` the number of frames it then yields;
    `is_variable_rate` says that the file's own spacing varies. `rotation_deg` is the clockwise turn (0, 90, 180 or
    270) that made the picture upright. `pixel_format` is the name of the decoded format, such as 'yuv420p10le'.
    """

    path: Path
    width: int
    height: int
    frame_rate: Fraction
    frame_count: int
    duration_s: float
    rotation_deg: int
    is_variable_rate: bool
    pixel_format: str
    has_audio: bool


@dataclass(frozen=True, slots=True)
class Audio:
    """A sound track: `samples` float32 (S, channels) in [-1, 1] at `sample_rate` Hz; sample 0 plays at time 0."""

    samples: NDArray[np.float32]
    sample_rate: int


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """Of a sound that is still to come: `sample_rate` in Hz, and how many `channels`."""

    sample_rate: int
    channels: int

    def samples_until(self, frames: int, frame_rate: Fraction) -> int:
        """How many samples belong to so many frames; rounding never adds up."""
        return round(frames / frame_rate * self.sample_rate)


@dataclass(frozen=True, slots=True)
class SoundingFrame:
    """A picture, uint8 (H, W, 3) RGB or (H, W, 4), and the sound until the next one, float32 (S, channels), if any."""

    image: NDArray[np.uint8]
    samples: NDArray[np.float32] | None = None
