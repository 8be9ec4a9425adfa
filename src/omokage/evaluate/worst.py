"""The frames where a method is worst, why (from numbers of the training part), and how to repair each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.evaluate.protocol import HeldOut, Motion, region_mask
from omokage.evaluate.scores import MethodScores
from omokage.geometry.camera import yaw_pitch_roll
from omokage.metrics.image import Frames
from omokage.metrics.motion import FACE_OVAL, Landmarks, inter_ocular_px, rotation_from_landmarks
from omokage.metrics.perceptual import blur

WORST_COUNT = 10
WORST_SPACING_S = 0.3  # so that ten worst frames are not one moment
COVERED_PERCENTILES = (1.0, 99.0)  # of the training frames: what counts as seen
OUTSIDE_SHARE = 0.10  # of the seen range: how far outside it explains a bad frame
RARE_SHARE = 0.03  # of the training frames
SOFT_BLUR = 0.04  # above the training frames' median blur (0 to 1)
FAST_PERCENTILE = 95.0
BLUR_SAMPLES = 40


@dataclass(frozen=True, slots=True)
class WorstFrame:
    """One bad test frame: `row` counts test frames, `frame_index` frames of the clip; `cause` is the reason, short."""

    row: int
    frame_index: int
    time_s: float
    psnr_head: float
    cause: str
    reason: str
    repair: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Reading:
    """A number read from a face, and the words for values below and above what training saw.

    `narrowest`: a range of training values narrower than this is taken as this wide (it is measurement noise).
    """

    key: str
    unit: str
    narrowest: float
    below: str
    above: str
    repair: str


_POSE = "Record again with slow head turns this way, or lower the pose strength when driving."
_MOUTH = "Record again with wide mouth shapes (read the vowels loudly), or lower the expression strength."
_EYES = "Record again with slow blinks and with the eyes wide open a few times."
_PLACE = "Record again moving a little in the chair, or keep the driver where the recording was."
READINGS: tuple[Reading, ...] = (
    Reading(
        "yaw",
        "°",
        4,
        "Turned further to the picture's left than seen",
        "Turned further to the picture's right than seen",
        _POSE,
    ),
    Reading("pitch", "°", 4, "Looks further down than seen", "Looks further up than seen", _POSE),
    Reading(
        "roll",
        "°",
        4,
        "Tilted further counter-clockwise than seen",
        "Tilted further clockwise than seen",
        _POSE,
    ),
    Reading(
        "mouth_open",
        " % of the face's height",
        3,
        "Lips closed further",
        "Mouth open wider than seen",
        _MOUTH,
    ),
    Reading(
        "mouth_width",
        " % of the face's height",
        3,
        "Mouth narrower than seen",
        "Mouth broader than seen",
        _MOUTH,
    ),
    Reading(
        "eye_open", " % of the eye's width", 8, "Eyes closed further than seen", "Eyes wider than seen", _EYES
    ),
    Reading(
        "x",
        " % of the picture's width",
        2,
        "Face farther left than seen",
        "Face farther right than seen",
        _PLACE,
    ),
    Reading("y", " % of the picture's height", 2, "Face higher than seen", "Face lower than seen", _PLACE),
    Reading(
        "scale",
        " % of the picture's height",
        2,
        "Face farther away than seen",
        "Face nearer than seen",
        _PLACE,
    ),
)


def explain_worst_frames(
    held_out: HeldOut, scores: MethodScores, *, count: int = WORST_COUNT
) -> tuple[WorstFrame, ...]:
    """The `count` test frames of lowest head PSNR with their likely reasons, worst first, 0.3 s apart in long clips.

    Raises InputError when the scores are of other frames.
    """
    measurement = scores.find("psnr", "head")
    if (
        measurement is None
        or measurement.per_frame is None
        or len(measurement.per_frame) != len(held_out.test_frames)
    ):
        raise InputError(
            f"the scores of '{scores.name}' are not of these {len(held_out.test_frames)} test frames"
        )
    psnr = np.where(np.isfinite(measurement.per_frame), measurement.per_frame, np.inf)
    spacing_s = min(WORST_SPACING_S, float(np.ptp(held_out.time_s)) / (2 * count))
    chosen: list[int] = []
    for row in np.argsort(psnr, kind="stable"):
        is_apart = all(abs(held_out.time_s[row] - held_out.time_s[other]) >= spacing_s for other in chosen)
        if len(chosen) < count and is_apart and np.isfinite(psnr[row]):
            chosen.append(int(row))
    explanation = _Explanation(held_out)
    frames = []
    for row in chosen:
        cause, reason, repair = explanation.of(row)
        number, time_s = int(held_out.frame_index[row]), float(held_out.time_s[row])
        frames.append(WorstFrame(row, number, time_s, float(psnr[row]), cause, reason, repair))
    return tuple(frames)


def _face_readings(
    landmarks: Landmarks, motion: Motion | None, reference: Landmarks, size: int
) -> dict[str, NDArray[np.float64]]:
    """What a frame's face does, from landmarks (T, 478, 2 or 3) px: arrays (T,) by the keys of `READINGS`.

    Angles in degrees (from `motion`, else from 3-D landmarks against `reference`; left out for 2-D); mouth opening and
    width in per cent of the face's height, eye opening in per cent of the eye's width, place and height of the face in
    per cent of the picture.
    """
    points = landmarks.astype(np.float64)

    def length(one: int, other: int) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm(points[:, one] - points[:, other], axis=-1))

    height = length(10, 152)
    center = points[:, list(FACE_OVAL), :2].mean(axis=1)
    readings = {
        "mouth_open": 100 * length(13, 14) / height,
        "mouth_width": 100 * length(61, 291) / height,
        "eye_open": 50 * (length(159, 145) / length(33, 133) + length(386, 374) / length(362, 263)),
        "x": 100 * center[:, 0] / size,
        "y": 100 * center[:, 1] / size,
        "scale": 100 * height / size,
    }
    if motion is not None or points.shape[-1] == 3:
        rotation = rotation_from_landmarks(landmarks, reference) if motion is None else motion.rotation
        angles = np.degrees(yaw_pitch_roll(np.asarray(rotation, np.float64)))
        readings |= {"yaw": angles[:, 0], "pitch": angles[:, 1], "roll": angles[:, 2]}
    return readings


class _Explanation:
    """What the training part covered, against which single test frames are held."""

    def __init__(self, held_out: HeldOut) -> None:
        reference = held_out.train_landmarks.mean(axis=0)
        size = held_out.size
        has_both = held_out.train_motion is not None and held_out.test_motion is not None
        motions = (held_out.train_motion, held_out.test_motion) if has_both else (None, None)
        self.train = _face_readings(held_out.train_landmarks, motions[0], reference, size)
        self.test = _face_readings(held_out.test_landmarks, motions[1], reference, size)
        self.train_speed = _speed(held_out.train_landmarks)
        self.test_speed = _speed(held_out.test_landmarks)
        some = np.unique(np.linspace(0, len(held_out.train_frames) - 1, BLUR_SAMPLES).astype(int))
        self.usual_blur = float(
            np.nanmedian(_head_blur(held_out.train_frames[some], held_out.train_landmarks[some]))
        )
        self.held_out = held_out

    def of(self, row: int) -> tuple[str, str, str]:
        """Cause, reason and repair of the test frame `row`."""
        return self._outside(row) or self._rare(row) or self._soft(row) or _UNEXPLAINED

    def _outside(self, row: int) -> tuple[str, str, str] | None:
        """The reading that lies farthest outside what training saw, if any does."""
        found: list[tuple[float, str, str, str]] = []
        for reading in (reading for reading in READINGS if reading.key in self.train):
            low, high = np.percentile(self.train[reading.key], COVERED_PERCENTILES)
            value = float(self.test[reading.key][row])
            excess = max(low - value, value - high) / max(high - low, reading.narrowest)
            words = reading.above if value > high else reading.below
            digits = 1 if high - low < 10 else 0
            reason = f"{words}: {value:.{digits}f}{reading.unit}; training saw {low:.{digits}f} to {high:.{digits}f}."
            found.append((float(excess), f"outside coverage: {reading.key}", reason, reading.repair))
        excess, cause, reason, repair = max(found)
        return (cause, reason, repair) if excess > OUTSIDE_SHARE else None

    def _rare(self, row: int) -> tuple[str, str, str] | None:
        eyes = float((self.train["eye_open"] <= self.test["eye_open"][row]).mean())
        mouth = float((self.train["mouth_open"] >= self.test["mouth_open"][row]).mean())
        if eyes <= RARE_SHARE and eyes <= mouth:
            reason = f"Eyes closed as far as in only {100 * eyes:.1f} % of the training frames."
            return "rarely seen: eyes closed", reason, _EYES
        if mouth <= RARE_SHARE:
            reason = f"Mouth opened as wide as in only {100 * mouth:.1f} % of the training frames."
            return "rarely seen: mouth open", reason, _MOUTH
        return None

    def _soft(self, row: int) -> tuple[str, str, str] | None:
        frame = slice(row, row + 1)
        blurred = float(_head_blur(self.held_out.test_frames[frame], self.held_out.test_landmarks[frame])[0])
        speed, fast = self.test_speed[row], float(np.percentile(self.train_speed, FAST_PERCENTILE))
        if blurred > self.usual_blur + SOFT_BLUR:
            reason = f"The recording itself is soft here (blur {blurred:.2f}, usually {self.usual_blur:.2f})."
            return "soft recording", reason, "Use more light and a shorter exposure, and lock the focus."
        if speed > fast:
            reason = (
                f"Fast: {speed:.1f} % of the eye distance in one frame; training rarely passed {fast:.1f} %."
            )
            return "fast movement", reason, "Use more light and a shorter exposure; move more slowly."
        return None


_UNEXPLAINED = (
    "not explained by the face",
    "Pose, mouth, eyes and sharpness are all within what training saw: something that face landmarks do not describe "
    "(hair, shoulders, hands, light), or the network needs more time.",
    "Train longer; keep hair, hands and light still in the recording.",
)


def _speed(landmarks: Landmarks) -> NDArray[np.float64]:
    """Mean movement of the landmarks since the frame before, per cent of the eye distance: (T,)."""
    step = np.linalg.norm(np.diff(landmarks[..., :2].astype(np.float64), axis=0), axis=-1).mean(axis=-1)
    return 100 * np.concatenate([step[:1] if len(step) else [0.0], step]) / inter_ocular_px(landmarks)


def _head_blur(frames: Frames, landmarks: Landmarks) -> NDArray[np.float64]:
    return blur(frames, region_mask("head", landmarks, frames.shape[1]))
