"""Recording -> `CaptureMeasurements` and the frames worth showing, in one streamed pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.capture.face_reading import FaceReading, read_face
from omokage.capture.measurements import (
    CaptureMeasurements,
    CaptureSample,
    FaceMeasurements,
    SoundMeasurements,
    Span,
)
from omokage.capture.stability import BackgroundWatch, CutDetector, Points
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.media.audio import stream_audio
from omokage.media.clip import Audio, ClipInfo, Image
from omokage.media.decode import probe, read_frames
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.matting import MatteBackend, MediaPipeMatte

MAX_SIDE = 960  # px; decoding size: faces are found and judged as well as at full size, in half the time
MAX_SAMPLES = 600  # frames in which the face is measured; cuts are looked for between all frames
MAX_BACKGROUND_SAMPLES = 150  # frames in which the background is compared; mattes are slow
MATTE_WIDTH = 160  # px; the network sees 256 x 256 anyway, and its refinement costs by the pixel
SAMPLE_SIDE = 320  # px, longer side of a frame kept for the contact sheet

# Opening and width of the mouth in 5 x 5 cells: opening in eye spans, width over the person's median width.
OPENING_EDGES = (0.03, 0.10, 0.18, 0.28)
WIDTH_EDGES = (0.90, 0.97, 1.03, 1.10)
# Eye opening over its 90th percentile: below the first closed, above the second open again.
EYE_CLOSED, EYE_OPEN = 0.5, 0.7
NEUTRAL_ANGLE_DEG, NEUTRAL_OPENING = 10.0, 0.05

SOUND_BLOCK_S = 0.1
SILENCE_DBFS = -60.0
FULL_SCALE = 0.999


@dataclass(frozen=True, slots=True)
class MeasuredRecording:
    """What `measure_recording` gives: the numbers, and the frames chosen for the contact sheet."""

    measurements: CaptureMeasurements
    samples: tuple[CaptureSample, ...]


def measure_recording(
    path: Path,
    *,
    landmark_backend: LandmarkBackend | None = None,
    matte_backend: MatteBackend | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> MeasuredRecording:
    """Measure a recording. Memory does not grow with its length.

    The backends default to MediaPipe's. Raises MediaError when the file cannot be read.
    """
    clip = probe(path)
    total = clip.frame_count
    stride = math.ceil(total / MAX_SAMPLES)
    background_stride = stride * math.ceil(total / stride / MAX_BACKGROUND_SAMPLES)
    # Between samples far apart, following a face from the last one finds it less often than looking afresh.
    faces_of = landmark_backend or MediaPipeLandmarks(max_faces=2, is_stream=stride <= 2)
    single = landmark_backend or MediaPipeLandmarks(is_stream=False)
    mattes = matte_backend or MediaPipeMatte()
    cuts = CutDetector(lambda image: _largest(_faces_in(image, single)))
    background = BackgroundWatch()
    chosen = _ChosenFrames()
    readings: list[FaceReading] = []
    face_counts: list[int] = []
    for frame in read_frames(path, max_side=MAX_SIDE):
        cuts.add(frame)
        if frame.index % background_stride == 0:
            background.add(frame.image, mattes.matte(_shrink(frame.image, MATTE_WIDTH)))
        if frame.index % stride:
            continue
        on_progress(Progress("checking", frame.index, total))
        faces = _faces_in(frame.image, faces_of)
        face_counts.append(len(faces))
        points = _largest(faces)
        if points is None:
            chosen.offer_empty(frame.image, frame.time_s)
            continue
        readings.append(read_face(frame.image, points, frame.time_s))
        chosen.offer(frame.image, readings[-1], len(faces))
    on_progress(Progress("checking", total, total))
    scale = clip.width / frame.image.shape[1]
    counts = np.array(face_counts)
    measurements = CaptureMeasurements(
        clip=clip,
        face_share=float((counts > 0).mean()),
        second_face_share=float((counts > 1).mean()),
        usable_s=float((counts == 1).mean()) * clip.duration_s,
        cut_times_s=cuts.cut_times_s,
        repeated_share=cuts.repeated_share,
        face=summarize_faces(readings, scale, clip.duration_s / len(counts)) if readings else None,
        background=background.measure(),
        sound=_read_sound(clip),
    )
    return MeasuredRecording(measurements, chosen.samples())


def summarize_faces(readings: Sequence[FaceReading], scale: float, spacing_s: float) -> FaceMeasurements:
    """Readings of frames `spacing_s` apart -> numbers of the recording, whose pixels are `scale` per pixel read."""
    eyes = column(readings, "eye_opening")
    eyes = eyes / max(float(np.percentile(eyes, 90)), 1e-3)
    opening, width = column(readings, "mouth_opening"), column(readings, "mouth_width")
    yaw, pitch, roll = (column(readings, f"{name}_deg") for name in ("yaw", "pitch", "roll"))
    off_axis = np.max(np.abs([yaw, pitch - np.median(pitch), roll]), axis=0)
    is_neutral = (off_axis < NEUTRAL_ANGLE_DEG) & (opening < NEUTRAL_OPENING) & (eyes > EYE_OPEN)
    has_open_eyes = eyes > EYE_CLOSED  # a lowered lid drags the gaze down

    def median(name: str) -> float:
        return float(np.median(column(readings, name)))

    return FaceMeasurements(
        height_px=median("height_px") * scale,
        width_px=median("width_px") * scale,
        pupil_distance_px=median("pupil_distance_px") * scale,
        picture_share=median("picture_share"),
        outside_share=float(column(readings, "is_outside").mean()),
        sharpness=median("sharpness"),
        luma=median("luma"),
        contrast=median("contrast"),
        clipped_share=median("clipped_share"),
        unevenness=median("unevenness"),
        yaw_deg=span(yaw),
        pitch_deg=span(pitch),
        roll_deg=span(roll),
        mouth_opening=span(opening, tail=0.5),  # one long 'ah' in a minute is enough
        mouth_width=span(width),
        mouth_shapes=count_mouth_shapes(opening, width),
        blinks=count_blinks(eyes),
        gaze_yaw_deg=span(column(readings, "gaze_yaw_deg")[has_open_eyes]),
        gaze_pitch_deg=span(column(readings, "gaze_pitch_deg")[has_open_eyes]),
        neutral_s=float(is_neutral.sum()) * spacing_s,
    )


def column(readings: Sequence[FaceReading], name: str) -> NDArray[np.float64]:
    return np.array([getattr(reading, name) for reading in readings], dtype=np.float64)


def span(values: NDArray[np.float64], tail: float = 2.0) -> Span:
    """Usual reach: without `tail` percent of the values on either side."""
    low, high = np.percentile(values, [tail, 100 - tail])
    return Span(float(low), float(high))


def count_mouth_shapes(opening: NDArray[np.float64], width: NDArray[np.float64]) -> int:
    """Cells of the 5 x 5 histogram that hold at least two frames and 0.5 % of all."""
    row = np.digitize(opening, OPENING_EDGES)
    cell = row * 5 + np.digitize(width / np.median(width), WIDTH_EDGES)
    return int((np.bincount(cell, minlength=25) >= max(2.0, 0.005 * len(cell))).sum())


def count_blinks(eyes: NDArray[np.float64]) -> int:
    """Relative eye openings in order of time -> number of closings, each after the eyes were open."""
    blinks, is_open = 0, True
    for value in eyes:
        if is_open and value < EYE_CLOSED:
            blinks, is_open = blinks + 1, False
        elif value > EYE_OPEN:
            is_open = True
    return blinks


def _faces_in(image: Image, backend: LandmarkBackend) -> list[Points]:
    """Landmarks of the faces whose middle lies in the picture; a face just leaving it may be guessed outside."""
    size = np.array(image.shape[1::-1])
    middles = [(face.points, face.points[:, :2].mean(axis=0)) for face in backend.detect(image)]
    return [points for points, middle in middles if (middle >= 0).all() and (middle < size).all()]


def _largest(faces: Sequence[Points]) -> Points | None:
    return max(faces, key=lambda points: float(np.ptp(points[:, 1])), default=None)


def _shrink(image: Image, side: int) -> Image:
    """The picture with its longer side at most `side` px."""
    scale = min(1.0, side / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def _read_sound(clip: ClipInfo) -> SoundMeasurements | None:
    return measure_sound(piece.audio for piece in stream_audio(clip.path)) if clip.has_audio else None


def measure_sound(pieces: Iterable[Audio]) -> SoundMeasurements | None:
    """Levels from blocks of 0.1 s: speech is what lies within 20 dB of the loudest tenth, noise the quietest tenth.

    `pieces` of one track in order; None when they hold nothing.
    """
    powers: list[float] = []
    rate, count, clipped = 0, 0, 0
    for block in _blocks(pieces):
        rate, count = block.sample_rate, count + block.samples.size
        powers.append(float(np.mean(np.square(block.samples, dtype=np.float64))))
        clipped += int((np.abs(block.samples) >= FULL_SCALE).sum())
    if not count:
        return None
    levels = 10 * np.log10(np.maximum(powers, 1e-12))
    quiet, loud = np.percentile(levels, [10, 90])
    level = -math.inf
    if loud > SILENCE_DBFS:
        level = float(10 * np.log10(np.mean(np.array(powers)[levels > loud - 20])))
    return SoundMeasurements(
        level_dbfs=level,
        above_noise_db=float(loud - quiet),
        clipped_share=clipped / count,
        sample_rate=rate,
    )


def _blocks(pieces: Iterable[Audio]) -> Iterator[Audio]:
    """The same sound in blocks of 0.1 s; the last may be shorter."""
    rest: NDArray[np.float32] | None = None
    rate = 0
    for piece in pieces:
        rate, size = piece.sample_rate, max(1, round(SOUND_BLOCK_S * piece.sample_rate))
        rest = piece.samples if rest is None else np.concatenate([rest, piece.samples])
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield Audio(rest[start : start + size], rate)
        rest = rest[whole:]
    if rest is not None and len(rest):
        yield Audio(rest, rate)


class _ChosenFrames:
    """Keeps the best frame so far for each caption of the contact sheet."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, CaptureSample]] = {}

    def offer(self, image: Image, face: FaceReading, face_count: int) -> None:
        off_rest = np.array([face.yaw_deg / 10, face.roll_deg / 10, face.mouth_opening / 0.05])
        has_open_eyes = 1.0 if face.eye_opening > 0.2 else 0.1
        scores = {
            "sharpest neutral": face.sharpness * has_open_eyes / (1 + float(off_rest @ off_rest)),
            "turned left": -face.yaw_deg,
            "turned right": face.yaw_deg,
            "looking up": face.pitch_deg,
            "looking down": -face.pitch_deg,
            "widest mouth": face.mouth_opening,
            "blink": -face.eye_opening,
            "worst exposure": abs(face.luma - 130) + 500 * face.clipped_share,
        }
        if face_count > 1:
            scores["second person"] = 0.0
        for caption, score in scores.items():
            self._keep(caption, score, image, face.time_s)

    def offer_empty(self, image: Image, time_s: float) -> None:
        self._keep("no face found", 0.0, image, time_s)

    def samples(self) -> tuple[CaptureSample, ...]:
        return tuple(sample for _, sample in self._best.values())

    def _keep(self, caption: str, score: float, image: Image, time_s: float) -> None:
        if caption in self._best and score <= self._best[caption][0]:
            return
        self._best[caption] = (score, CaptureSample(caption, time_s, _shrink(image, SAMPLE_SIDE)))
