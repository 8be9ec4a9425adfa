"""What is measured of a generated video that talks: metrics, a video and what it is held against, `score_take`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.evaluate.scores import Measurement, MethodScores, Metric, per_frame_measurement
from omokage.metrics.image import Frames, PerFrame, luma, psnr, ssim
from omokage.metrics.motion import Landmarks, still_pixels
from omokage.metrics.talking import (
    ClipFeatures,
    SyncScorer,
    Track,
    color_drift,
    frechet_distance,
    lag_curve,
    mouth_opening,
    mouth_width,
    outside_faces,
    pearson,
    seam_ratio,
    still_flicker,
)
from omokage.talking.conditions.identity import aligned_crop

REACH_S = 1.0  # of the lag curve, to both sides

METRICS: tuple[Metric, ...] = (
    Metric("lip_sync", "lip sync", "r", "high", 3,
           "Pearson correlation over time of the mouth's opening (gap of the inner lips over the distance of the outer "
           "eye corners) with that of the true frames or, without them, with the loudness of the voice in dB"),
    Metric("lip_width", "lip width", "r", "high", 3, "the same of the distance of the lip corners"),
    Metric("lip_lag", "lip lag", "s", "zero", 2,
           "shift of the reference, up to a second, with the highest correlation; above 0: lips come early"),
    Metric("lip_range", "lip range", "x", "high", 2, "deviation of the opening over that of the true frames"),
    Metric("sync_confidence", "LSE-C", "", "high", 2, "confidence of SyncNet, network given by the user"),
    Metric("sync_distance", "LSE-D", "", "low", 2, "distance of SyncNet, network given by the user"),
    Metric("identity", "identity", "", "high", 3,
           "CSIM: cosine of the embeddings of portrait and frame, network given by the user"),
    Metric("likeness", "likeness", "", "high", 3,
           "correlation of the grey face, aligned by eyes, nose and mouth, with the portrait's; it does not tell "
           "persons apart"),
    Metric("color_drift", "color drift", "", "low", 3,
           "half the L1 distance of the last window's color histogram to the portrait's, minus the first window's"),
    Metric("seam", "seams", "x", "low", 2,
           "mean change of luma into the first frame of a window over that into all others; 1 is no seam"),
    Metric("still_flicker", "flicker", "levels", "low", 2,
           "mean change of luma from frame to frame where nothing ought to move: still in the true frames, else "
           "outside every face box"),
    Metric("face_found", "face found", "%", "high", 1, "share of frames in which the detector finds a face"),
    Metric("psnr", "PSNR", "dB", "high", 2, "against the true frames; heads are free to move otherwise"),
    Metric("ssim", "SSIM", "", "high", 4, "against the true frames"),
    Metric("fid", "FID", "", "low", 2, "Fréchet distance to the true frames, features of frames given by the user"),
    Metric("fvd", "FVD", "", "low", 2, "Fréchet distance to the true frames, features of clips given by the user"),
)  # fmt: skip
TABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Lips", ("lip_sync", "lip_width", "lip_lag", "lip_range", "sync_confidence", "sync_distance")),
    ("Person and picture over time", (
        "identity", "likeness", "color_drift", "seam", "still_flicker", "face_found", "psnr", "ssim", "fid", "fvd")),
)  # fmt: skip


@dataclass(frozen=True)
class Take:
    """One video: frames uint8 (T, H, W, 3), landmarks (T, 478, 3) in pixels with NaN where no face was found.

    joins: the first frame of every window but the first.
    """

    frames: Frames
    landmarks: Landmarks
    joins: tuple[int, ...] = ()


@dataclass(frozen=True)
class Question:
    """What a video is held against.

    voice: (S,) mono at 16 kHz.  loudness: of each frame, dB.  portrait: one frame, of the size of the video.
    truth: the real video of the same speech, as many frames; None when there is none.
    """

    frame_rate: float
    voice: NDArray[np.float32]
    loudness: Track
    portrait: Take
    truth: Take | None = None

    def reference(self) -> Track:
        """What the opening of the mouth is compared with."""
        return self.loudness if self.truth is None else mouth_opening(self.truth.landmarks)


class FaceEmbedder(Protocol):
    """A face-recognition network of the user's."""

    def __call__(self, image: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
        """One vector, of any length, of the face at `landmarks` (478, 3)."""
        ...


@dataclass(frozen=True)
class Experts:
    """Networks that the user added; each measure without one is left out, and the report says so."""

    face: FaceEmbedder | None = None
    sync: SyncScorer | None = None
    frame_features: ClipFeatures | None = None
    clip_features: ClipFeatures | None = None

    def missing(self) -> tuple[str, ...]:
        """A sentence for every measure that is left out."""
        measures = (
            (self.sync, "Lip sync by SyncNet (LSE-C, LSE-D)"),
            (self.face, "Identity (CSIM)"),
            (self.frame_features, "FID"),
            (self.clip_features, "FVD"),
        )
        return tuple(
            f"{name} is not measured: its weights are not part of omokage and none were given (docs/evaluation.md)."
            for expert, name in measures
            if expert is None
        )


def score_take(name: str, take: Take, question: Question, experts: Experts | None = None) -> MethodScores:
    """All measures of one video. Raises InputError when it has not as many frames as the question."""
    experts, truth = experts or Experts(), question.truth
    if len(take.frames) != len(question.loudness):
        raise InputError(
            f"a video of {len(take.frames)} frames cannot be compared with a speech of {len(question.loudness)}"
        )
    opening, reference = mouth_opening(take.landmarks), question.reference()
    found = np.isfinite(opening)
    drift = color_drift(take.frames, question.portrait.frames, take.joins)
    height, width = take.frames.shape[1:3]
    values: dict[str, float | PerFrame] = {
        "lip_sync": pearson(opening, reference),
        "lip_lag": lag_curve(opening, reference, question.frame_rate, REACH_S).peak_s,
        "likeness": _likeness(take, question.portrait),
        "color_drift": float(drift[-1] - drift[0]),
        "seam": seam_ratio(take.frames, take.joins),
        "face_found": 100 * found,
    }
    still = outside_faces(take.landmarks, height, width)
    if truth is not None:
        true_opening = mouth_opening(truth.landmarks)
        still = still_pixels(truth.frames)
        values |= {
            "lip_width": pearson(mouth_width(take.landmarks), mouth_width(truth.landmarks)),
            "lip_range": float(np.nanstd(opening)) / max(float(np.nanstd(true_opening)), 1e-9),
            "psnr": psnr(truth.frames, take.frames),
            "ssim": ssim(truth.frames, take.frames),
        }
        for key, features in (("fid", experts.frame_features), ("fvd", experts.clip_features)):
            if features is not None:
                values[key] = _frechet(features(truth.frames), features(take.frames))
    values["still_flicker"] = still_flicker(take.frames, still)
    if experts.face is not None:
        values["identity"] = _similarity(take, question.portrait, experts.face)
    if experts.sync is not None and found.any():
        said = experts.sync(take.frames, take.landmarks, question.voice)
        values |= {"sync_confidence": said.confidence, "sync_distance": said.distance}
    return MethodScores(name, tuple(_measurement(key, value) for key, value in values.items()))


def mean_scores(name: str, several: Sequence[MethodScores]) -> MethodScores:
    """The mean of every measure over videos of the same question, such as from several seeds."""
    keys = [measurement.metric for measurement in several[0].measurements]
    return MethodScores(
        name, tuple(Measurement(key, "whole", mean_known([one.mean(key) for one in several])) for key in keys)
    )


def likeness_by_window(take: Take, portrait: Take) -> PerFrame:
    """Mean likeness of every window to the portrait, float64 (windows,); NaN for one without a face."""
    windows = np.split(_likeness(take, portrait), take.joins)
    return np.array([mean_known(list(window)) for window in windows])


def _likeness(take: Take, portrait: Take) -> PerFrame:
    """Correlation of each frame's aligned grey face with the portrait's, float64 (T,); NaN without a face."""
    values = np.full(len(take.frames), np.nan)
    if not np.isfinite(portrait.landmarks[0]).all():
        return values
    face = luma(aligned_crop(portrait.frames[0], portrait.landmarks[0])).ravel().astype(np.float64)
    for t in np.flatnonzero(np.isfinite(take.landmarks).all(axis=(1, 2))):
        values[t] = pearson(
            face, luma(aligned_crop(take.frames[t], take.landmarks[t])).ravel().astype(np.float64)
        )
    return values


def _frechet(true: NDArray[np.floating], generated: NDArray[np.floating]) -> float:
    """NaN of a video that is too short for two vectors."""
    return frechet_distance(true, generated) if min(len(true), len(generated)) > 1 else float("nan")


def _similarity(take: Take, portrait: Take, embed: FaceEmbedder) -> PerFrame:
    """CSIM: cosine of the embeddings of the portrait and each frame in [-1, 1], float64 (T,); NaN without a face."""
    values = np.full(len(take.frames), np.nan)
    if not np.isfinite(portrait.landmarks[0]).all():
        return values
    one = embed(portrait.frames[0], portrait.landmarks[0])
    for t in np.flatnonzero(np.isfinite(take.landmarks).all(axis=(1, 2))):
        other = embed(take.frames[t], take.landmarks[t])
        values[t] = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    return values


def _measurement(key: str, value: float | PerFrame) -> Measurement:
    if isinstance(value, np.ndarray):
        return per_frame_measurement(key, "whole", value.astype(np.float64))
    return Measurement(key, "whole", float(value))


def mean_known(values: Sequence[float]) -> float:
    """The mean of the values that are numbers, NaN when none is."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
