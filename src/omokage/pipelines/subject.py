"""One person's clip, read for the small model: the head at 25 frames a second, its landmarks, the voice. MAIN:
`read_subject`."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, NoFaceError
from omokage.evaluate.talking_scores import Take
from omokage.media.clip import Image
from omokage.media.decode import probe, read_frames
from omokage.metrics.image import Frames
from omokage.pipelines.speech_track import SILENT_PEAK, read_speech
from omokage.talking.conditions.speech import FRAME_RATE, SAMPLES_PER_FRAME
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks

CROP_GROWTH = 1.2  # of the box of all landmarks of all frames
MISSING_SHARE = 0.1  # of the frames, without a face; more is refused
DETECTION_PX = 256  # smaller pictures are enlarged for the landmark network, which looks at as many pixels


@dataclass(frozen=True)
class Recorded:
    """frames: uint8 (T, S, S, 3), the head, in one place of the picture.  landmarks: float32 (T, 478, 3) in pixels of
    these, read in the whole picture.  voice: (T * 640,) mono at 16 kHz."""

    frames: Frames
    landmarks: NDArray[np.float32]
    voice: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int) -> Recorded:
        """Frames `start` to `stop`, the last not included."""
        heard = slice(start * SAMPLES_PER_FRAME, stop * SAMPLES_PER_FRAME)
        return Recorded(self.frames[start:stop], self.landmarks[start:stop], self.voice[heard])

    def repeated(self, frames: int) -> Recorded:
        """Again and again until it has this many frames; all of it when it has more."""
        times = max(1, -(-frames // len(self)))
        parts = (np.concatenate([values] * times) for values in (self.frames, self.landmarks, self.voice))
        return Recorded(*parts).part(0, max(frames, len(self)))

    def take(self) -> Take:
        """As the truth that videos are compared with."""
        return Take(self.frames, self.landmarks)


def read_subject(
    clip: Path,
    side: int,
    *,
    backend: LandmarkBackend | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Recorded:
    """Read a clip of one talking person and cut the head out, `side` pixels.

    One square for all frames, so that the background stays still. Raises MediaError for a file that cannot be read or
    has no sound, InputError for a silent one, NoFaceError when too many frames have no face.
    """
    voice = read_speech(clip).voice
    if np.abs(voice).max(initial=0) < SILENT_PEAK:
        raise InputError(
            f"the sound of {clip} is silent, and lips are learned from speech; use a clip with sound"
        )
    detector = backend or MediaPipeLandmarks()
    frames, found = list[Image](), list[NDArray[np.float32] | None]()
    rate = Fraction(FRAME_RATE)
    total = round(probe(clip).duration_s * FRAME_RATE)
    for frame in read_frames(clip, frame_rate=rate, max_side=4 * DETECTION_PX):
        faces = detector.detect(frame.image)
        frames.append(frame.image)
        found.append(faces[0].points if faces else None)
        on_progress(Progress("reading", len(frames), max(total, len(frames))))
    landmarks = _without_gaps(clip, found)
    left, top, crop = _square(landmarks, *frames[0].shape[:2])
    heads = [
        cv2.resize(image[top : top + crop, left : left + crop], (side, side), interpolation=cv2.INTER_AREA)
        for image in frames
    ]
    moved = (landmarks - np.array([left, top, 0], dtype=np.float32)) * np.float32(side / crop)
    samples = len(frames) * SAMPLES_PER_FRAME
    heard = np.pad(voice[:samples], (0, max(0, samples - len(voice))))
    return Recorded(np.stack(heads).astype(np.uint8), moved, heard.astype(np.float32))


def read_take(frames: Frames, joins: tuple[int, ...], backend: LandmarkBackend | None = None) -> Take:
    """The landmarks of a small video, found in its enlarged frames, the face followed from one to the next."""
    detector = backend or MediaPipeLandmarks()
    scale = max(1, -(-DETECTION_PX // min(frames.shape[1:3])))
    points = np.full((len(frames), 478, 3), np.nan)
    for row, image in enumerate(frames):
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        faces = detector.detect(np.asarray(large, dtype=np.uint8))
        if faces:
            points[row] = faces[0].points / scale
    return Take(frames, points, joins)


def _without_gaps(clip: Path, found: list[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """Landmarks of every frame; where none were found, those of the nearest frame. Raises NoFaceError."""
    known = [row for row, points in enumerate(found) if points is not None]
    if len(known) < (1 - MISSING_SHARE) * len(found):
        raise NoFaceError(
            f"a face is found in only {len(known)} of the {len(found)} frames of {clip}, and at least "
            f"{100 * (1 - MISSING_SHARE):.0f} % are needed; use a clip of one person who looks toward the camera"
        )
    nearest = [min(known, key=lambda other: abs(other - row)) for row in range(len(found))]
    return np.stack([points for row in nearest if (points := found[row]) is not None])


def _square(landmarks: NDArray[np.float32], height: int, width: int) -> tuple[int, int, int]:
    """Left, top and side, in pixels, of the square around the face in all frames, inside the picture."""
    low, high = landmarks[..., :2].min(axis=(0, 1)), landmarks[..., :2].max(axis=(0, 1))
    side = min(int(CROP_GROWTH * float((high - low).max())), height, width)
    left, top = (
        int(np.clip(middle - side / 2, 0, limit - side))
        for middle, limit in zip((low + high) / 2, (width, height), strict=True)
    )
    return left, top, side
