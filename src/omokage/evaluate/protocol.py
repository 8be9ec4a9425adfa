"""What is measured on which frames and pixels: splits, regions, the held-out record, and `score`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.evaluate.scores import REGIONS, Measurement, MethodScores, Region, per_frame_measurement
from omokage.media.clip import Image
from omokage.metrics.image import Frames, Mask, ms_ssim, psnr, ssim
from omokage.metrics.motion import (
    FACE_OVAL,
    MOUTH,
    IdentityEmbedder,
    Landmarks,
    background_variance,
    expression_error,
    flicker,
    identity_similarity,
    jitter_px,
    landmark_distance_px,
    normalized_landmark_distance,
    pose_error_deg,
    rotation_from_landmarks,
    still_pixels,
)
from omokage.metrics.perceptual import Lpips, blur, gmsd

SplitKind = Literal["last-20%", "last-350", "last-1/11"]
SPLIT_KINDS: tuple[SplitKind, ...] = ("last-20%", "last-350", "last-1/11")
# Frames a clip must have, so that a test part says something and two thirds of the clip remain for training.
SPLIT_MIN_FRAMES: Mapping[SplitKind, int] = {"last-20%": 50, "last-350": 1050, "last-1/11": 275}

HEAD_GROWTH = (0.30, 0.35, 0.30, 0.10)  # of the face oval's box: left, top, right, bottom
MOUTH_GROWTH = 0.30  # of the lips' box, on every side
MOUTH_MIN_ASPECT = 0.6  # a closed mouth's box keeps at least this height over width before it is grown

LandmarkDetector = Callable[[Image], Landmarks | None]


@dataclass(frozen=True, slots=True)
class Split:
    """The first `train_count` frames are for training, the `test_count` after them are never trained on."""

    kind: SplitKind
    train_count: int
    test_count: int


def tail_split(frame_count: int, kind: SplitKind = "last-20%") -> Split:
    """Cut the end of a clip off. Raises InputError when the clip is too short for this kind.

    Never random frames: the neighbors of a random test frame would be in the training part.
    """
    if frame_count < SPLIT_MIN_FRAMES[kind]:
        raise InputError(
            f"the split '{kind}' needs at least {SPLIT_MIN_FRAMES[kind]} frames, got {frame_count}; "
            "use 'last-20%' or a longer recording"
        )
    test_count = {"last-20%": round(frame_count / 5), "last-350": 350, "last-1/11": round(frame_count / 11)}[
        kind
    ]
    return Split(kind=kind, train_count=frame_count - test_count, test_count=test_count)


@dataclass(frozen=True, slots=True)
class SplitScores:
    """The same methods on the test part of another split that lies within the evaluated frames, `frame_count` of them
    with a face. `methods` have means only. The avatar has seen less than the split would allow: the default's training
    part."""

    split: Split
    frame_count: int
    methods: tuple[MethodScores, ...]

    def to_json(self) -> dict[str, Any]:
        methods = [method.to_json() for method in self.methods]
        return {"split": asdict(self.split), "frame_count": self.frame_count, "methods": methods}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        methods = tuple(MethodScores.from_json(method) for method in values["methods"])
        return cls(Split(**values["split"]), values["frame_count"], methods)


@dataclass(frozen=True, slots=True)
class OtherSplits:
    """The splits that could be scored, and a sentence for each that could not."""

    scores: tuple[SplitScores, ...]
    reasons: tuple[str, ...]


def other_splits(
    methods: Sequence[MethodScores],
    frame_index: NDArray[np.int64],
    *,
    frame_count: int,
    evaluated_from: int,
) -> OtherSplits:
    """Score the literature's splits on the frames that were evaluated anyway, without training again.

    frame_index (T,): of the scored frames in the clip of `frame_count` frames; from `evaluated_from` to the end none
    was trained on, and all that show a face are scored.
    """
    scores, reasons = [], []
    for kind in SPLIT_KINDS[1:]:
        if frame_count < SPLIT_MIN_FRAMES[kind]:
            continue
        split = tail_split(frame_count, kind)
        rows = frame_index >= split.train_count
        if evaluated_from <= split.train_count and rows.any():
            parts = tuple(method.of_rows(rows) for method in methods)
            scores.append(SplitScores(split, int(rows.sum()), parts))
        else:
            reasons.append(
                f"The split '{kind}' is left out: its {split.test_count} frames begin before the "
                f"{frame_count - evaluated_from} frames that are evaluated here."
            )
    return OtherSplits(tuple(scores), tuple(reasons))


def available_splits(frame_count: int) -> tuple[Split, ...]:
    """Every split for which the clip is long enough."""
    return tuple(
        tail_split(frame_count, kind) for kind in SPLIT_KINDS if frame_count >= SPLIT_MIN_FRAMES[kind]
    )


@dataclass(frozen=True, slots=True)
class Motion:
    """What a tracker says of T frames: `rotation` axis-angle (T, 3) in radians, `expression` (T, 52) in [0, 1]."""

    rotation: NDArray[np.floating]
    expression: NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One clip cut in two at one picture size S, with a face in every frame.

    train_frames, test_frames: uint8 (N, S, S, 3) and (T, S, S, 3) RGB; a memory-mapped array will do.
    train_landmarks, test_landmarks: (N or T, 478, 2 or 3) px at size S, read from these frames by the detector that is
    later given to `score` (see `read_landmarks`).  train_motion, test_motion: of the tracker, if there is one.
    frame_index, time_s: (T,), which frames of the clip the test frames are, and when they play.
    """

    train_frames: Frames
    train_landmarks: Landmarks
    test_frames: Frames
    test_landmarks: Landmarks
    frame_index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    frame_rate: float
    train_motion: Motion | None = None
    test_motion: Motion | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            frames, landmarks = getattr(self, f"{part}_frames"), getattr(self, f"{part}_landmarks")
            if (
                len(frames) == 0
                or len(frames) != len(landmarks)
                or frames.shape[1:] != (self.size, self.size, 3)
            ):
                raise InputError(
                    f"the {part} part needs square pictures of {self.size} px, each with its landmarks, got "
                    f"{frames.shape} and {landmarks.shape}; cut the clip again"
                )
            if not np.isfinite(landmarks).all():
                raise InputError(
                    f"the {part} part has frames without a face; leave them out (HeldOut.from_clip does)"
                )
        if len(self.frame_index) != len(self.test_frames) or len(self.time_s) != len(self.test_frames):
            raise InputError("every test frame needs its number and its time; cut the clip again")

    @property
    def size(self) -> int:
        """Width and height of the pictures, px."""
        return int(self.test_frames.shape[1])

    @classmethod
    def from_clip(
        cls,
        frames: Frames,
        landmarks: Landmarks,
        *,
        time_s: NDArray[np.float64],
        frame_rate: float,
        split: Split,
    ) -> Self:
        """Cut `frames` (T, S, S, 3) by `split`; frames without a face (NaN landmarks) are left out of both parts."""
        has_face = np.isfinite(landmarks).all(axis=(1, 2))
        rows = np.arange(len(frames))
        train, test = (
            rows[has_face & (rows < split.train_count)],
            rows[has_face & (rows >= split.train_count)],
        )
        return cls(
            train_frames=frames[train],
            train_landmarks=landmarks[train],
            test_frames=frames[test],
            test_landmarks=landmarks[test],
            frame_index=test,
            time_s=time_s[test],
            frame_rate=frame_rate,
        )

    def without_truth(self) -> Self:
        """The same with black test pictures: all that a method may see when it predicts."""
        return replace(self, test_frames=np.zeros_like(self.test_frames))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Optional instruments. `read_motion` takes frames (T, S, S, 3) and their landmarks (NaN: no face)."""

    read_motion: Callable[[Frames, Landmarks], Motion] | None = None
    lpips: Lpips | None = None
    embed_identity: IdentityEmbedder | None = None


def region_box(region: Region, landmarks: Landmarks, size: int) -> tuple[slice, slice]:
    """Rows and columns of a region in a true frame, by fixed rules from its landmarks (478, 2 or 3).

    whole: everything. head: the face oval's box, grown by 30 % of its width left and right, 35 % of its height up
    (hair) and 10 % down. mouth: the lips' box, at least 0.6 times as high as wide, grown by 30 % on every side.
    """
    if region == "whole":
        return slice(0, size), slice(0, size)
    points = np.asarray(landmarks)[list(FACE_OVAL if region == "head" else MOUTH), :2]
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    width, height = right - left, bottom - top
    if region == "head":
        growth = HEAD_GROWTH
    else:
        growth = (MOUTH_GROWTH,) * 4
        missing = max(0.0, MOUTH_MIN_ASPECT * width - height) / 2
        top, bottom, height = top - missing, bottom + missing, height + 2 * missing
    rows = np.clip(np.rint([top - growth[1] * height, bottom + growth[3] * height]), 0, size).astype(int)
    columns = np.clip(np.rint([left - growth[0] * width, right + growth[2] * width]), 0, size).astype(int)
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def region_mask(region: Region, landmarks: Landmarks, size: int) -> Mask:
    """`region_box` of every frame, landmarks (T, 478, 2 or 3) -> bool (T, size, size)."""
    masks = np.zeros((len(landmarks), size, size), dtype=bool)
    for mask, points in zip(masks, landmarks, strict=True):
        mask[region_box(region, points, size)] = True
    return masks


def read_landmarks(frames: Frames, detector: LandmarkDetector) -> Landmarks:
    """Run the detector over frames in order: float (T, 478, 2 or 3) px, NaN where it finds no face."""
    found = [detector(frame) for frame in frames]
    shape = next((landmarks.shape for landmarks in found if landmarks is not None), (478, 2))
    missing = np.full(shape, np.nan)
    return np.stack(
        [missing if landmarks is None else np.asarray(landmarks, np.float64) for landmarks in found]
    )


def score(
    name: str,
    predicted: Frames,
    held_out: HeldOut,
    landmark_detector: LandmarkDetector,
    *,
    extras: Extras | None = None,
) -> MethodScores:
    """Measure the predicted test frames, uint8 (T, S, S, 3), in all regions.

    A frame in which no face is found has no landmark, pose or expression error (NaN, left out of the means); the metric
    'face_found' says how many there are.
    """
    extras = extras or Extras()
    landmarks = read_landmarks(predicted, landmark_detector)
    if landmarks.shape[-1] != held_out.test_landmarks.shape[-1]:
        landmarks = landmarks[..., :2]
    measurements = _score_pictures(predicted, held_out, extras)
    measurements += _score_motion(predicted, landmarks, held_out, extras)
    measurements += _score_steadiness(predicted, landmarks, held_out)
    return MethodScores(name=name, measurements=tuple(measurements))


def _score_pictures(predicted: Frames, held_out: HeldOut, extras: Extras) -> list[Measurement]:
    truth = held_out.test_frames
    measurements = []
    for region in REGIONS:
        mask = region_mask(region, held_out.test_landmarks, held_out.size)
        measures = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim, "gmsd": gmsd}
        if extras.lpips is not None:
            measures["lpips"] = extras.lpips
        values = {key: measure(truth, predicted, mask) for key, measure in measures.items()}
        values["blur_added"] = blur(predicted, mask) - blur(truth, mask)
        measurements += [per_frame_measurement(key, region, per_frame) for key, per_frame in values.items()]
    return measurements


def _score_motion(
    predicted: Frames, landmarks: Landmarks, held_out: HeldOut, extras: Extras
) -> list[Measurement]:
    truth = held_out.test_landmarks[..., : landmarks.shape[-1]]
    measurements = []
    parts: tuple[tuple[Region, tuple[int, ...] | None], ...] = (("whole", None), ("mouth", MOUTH))
    for region, points in parts:
        percent = normalized_landmark_distance(truth, landmarks, points)
        measurements.append(per_frame_measurement("landmark_percent", region, percent))
        measurements.append(
            per_frame_measurement("landmark_px", region, landmark_distance_px(truth, landmarks, points))
        )
    if extras.read_motion is not None and held_out.test_motion is not None:
        motion = extras.read_motion(predicted, landmarks)
        errors = pose_error_deg(held_out.test_motion.rotation, motion.rotation)
        aed = expression_error(held_out.test_motion.expression, motion.expression)
        measurements.append(per_frame_measurement("pose_deg", "whole", errors))
        measurements.append(per_frame_measurement("expression", "whole", aed))
    elif truth.shape[-1] == 3:
        reference = held_out.train_landmarks.mean(axis=0)
        rotations = [rotation_from_landmarks(points, reference) for points in (truth, landmarks)]
        measurements.append(per_frame_measurement("pose_deg", "whole", pose_error_deg(*rotations)))
    if extras.embed_identity is not None:
        similarity = identity_similarity(held_out.test_frames, predicted, extras.embed_identity)
        measurements.append(per_frame_measurement("identity", "whole", similarity))
    return measurements


def _score_steadiness(predicted: Frames, landmarks: Landmarks, held_out: HeldOut) -> list[Measurement]:
    truth = held_out.test_frames
    background = still_pixels(truth) & ~region_mask("head", held_out.test_landmarks, held_out.size).any(
        axis=0
    )
    has_face = np.isfinite(landmarks).all(axis=(1, 2))
    return [
        Measurement("jitter_px", "whole", jitter_px(landmarks)),
        Measurement("flicker", "whole", flicker(truth, predicted)),
        Measurement("background_variance", "whole", background_variance(predicted, background)),
        Measurement("face_found", "whole", 100.0 * float(has_face.mean())),
    ]
