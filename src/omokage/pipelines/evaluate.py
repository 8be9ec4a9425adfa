"""`omokage evaluate`: the held-out report of an avatar, beside its baselines."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.avatar.bundle import Provenance
from omokage.avatar.registration import ExplicitAvatar, build_explicit
from omokage.avatar.texture import Sample
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.evaluate.baselines import (
    PredictFn,
    nearest_training_frame,
    predict,
    warped_training_frame,
)
from omokage.evaluate.protocol import Extras, HeldOut, Motion, Split, other_splits, read_landmarks, score
from omokage.evaluate.report import Evaluation, render_report
from omokage.evaluate.unet_baseline import train_plain_unet, width_for
from omokage.evaluate.worst import explain_worst_frames
from omokage.files import file_digest, result_folder
from omokage.geometry.camera import Camera
from omokage.metrics.motion import Landmarks
from omokage.pipelines.candidate import Candidate
from omokage.pipelines.recording import Recording
from omokage.threads import one_blas_thread
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.fitting import FaceFitter
from omokage.tracking.landmarks import MediaPipeLandmarks
from omokage.tracking.morphable import MorphableModel
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.guard import Guard
from omokage.trust.release import ReleaseConfig, release_clip, release_text


@one_blas_thread()
def evaluate_avatar(
    avatar: Path,
    *,
    recording: Path | None = None,
    output: Path,
    unet_minutes: float | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Evaluation:
    """Measure a saved avatar, of any kind that can be driven, on the tail of its recording and write the report into
    the folder `output`.

    unet_minutes: training time of the plain U-Net baseline; None: as long as the avatar was trained, 0: leave it out.
    Raises InputError when the recording is not at hand or another one, BundleError for an avatar that needs another
    program's face meshes.
    """
    candidate = Candidate.load(Path(avatar))
    video = _recording_of(candidate.made, Path(avatar), recording)
    permitted = permit(Use(candidate.made.recording_sha256, act="create"), name=str(video))
    on_progress = Guard(permitted).progress(on_progress)
    with result_folder(output):
        opened = candidate.open(video, on_progress=on_progress)
        train, held_out = candidate.samples(opened, on_progress=on_progress)
        explicit = build_explicit(opened.conditioner(candidate.explicit), train, on_progress=on_progress)
        return evaluate_recording(
            candidate,
            opened,
            explicit,
            train,
            held_out,
            output=output,
            unet_minutes=candidate.made.minutes if unet_minutes is None else unet_minutes,
            on_progress=on_progress,
        )


def _recording_of(made: Provenance, path: Path, given: Path | None) -> Path:
    """The recording an avatar was made from: as given, where it was, or beside the avatar. Raises InputError."""
    if given is None:
        places = [Path(made.recording_path), path.with_name(made.recording_name)]
        given = next((place for place in places if place.is_file()), None)
    if given is None:
        raise InputError(
            f"the recording {made.recording_name} is no longer where it was; give it with --recording"
        )
    if not given.is_file():
        raise InputError(f"{given} does not exist; check the name and the folder")
    if file_digest(given) != made.recording_sha256:
        raise InputError(
            f"{given} is not the recording this avatar was made from; give the right one with --recording"
        )
    return given


def evaluate_recording(
    candidate: Candidate,
    recording: Recording,
    explicit: ExplicitAvatar,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    output: Path,
    unet_minutes: float = 0.0,
    on_progress: ProgressCallback = ignore_progress,
) -> Evaluation:
    """Predict the tail with the avatar and its baselines, score all, release report.html, report.json, held-out.mp4.

    train, held_out: what the avatar shows of the recording's split.
    """
    with result_folder(output):
        on_progress(Progress("evaluating", 0, 1, "landmarks"))
        question = _held_out(candidate, recording, train, held_out)
        shown = [held_out[i] for i in _rows_with_face(recording, held_out, question)]
        methods = _methods(candidate, explicit, shown, unet_minutes, on_progress)
        predictions = {}
        for done, (name, method) in enumerate(methods.items()):
            on_progress(Progress("evaluating", done, len(methods), name))
            predictions[name] = method(question)
        evaluation = _measure(candidate, recording, question, predictions, unet_minutes)
        page = render_report(evaluation, held_out=question, predictions=predictions)
        release_text(page, output / "report.html")
        release_text(json.dumps(evaluation.to_json(), indent=1), output / "report.json")
        _release_comparison(question, predictions, candidate, recording, output / "held-out.mp4")
        on_progress(Progress("evaluating", 1, 1))
    return evaluation


def _methods(
    candidate: Candidate,
    explicit: ExplicitAvatar,
    shown: Sequence[Sample],
    unet_minutes: float,
    on_progress: ProgressCallback,
) -> dict[str, PredictFn]:
    """The avatar and its baselines, by name; `shown` are the held-out samples with a face."""

    def plain_unet(question: HeldOut) -> NDArray[np.uint8]:
        network = train_plain_unet(
            question,
            seconds=60 * unet_minutes,
            base_channels=width_for(candidate.weights),
            seed=0,
            device=candidate.device,
            on_progress=on_progress,
        )
        return predict(network, question)

    methods: dict[str, PredictFn] = {
        "avatar": lambda _: candidate.draw([sample.state for sample in shown]),
        "nearest training frame": nearest_training_frame,
        "warped training frame": lambda q: warped_training_frame(q, on_progress=on_progress),
        "explicit composition, no network": lambda _: np.stack([explicit.portrait(s.state) for s in shown]),
    }
    return methods | ({"plain U-Net, equal size and time": plain_unet} if unet_minutes > 0 else {})


def _measure(
    candidate: Candidate,
    recording: Recording,
    question: HeldOut,
    predictions: Mapping[str, NDArray[np.uint8]],
    unet_minutes: float,
) -> Evaluation:
    extras = Extras(read_motion=motion_reader(candidate))
    scores = tuple(
        score(name, frames, question, detector(), extras=extras) for name, frames in predictions.items()
    )
    others = other_splits(
        scores,
        question.frame_index,
        frame_count=recording.frame_count,
        evaluated_from=int(recording.track.frame_index[recording.split.held_out[0]]),
    )
    return Evaluation(
        clip=candidate.made.recording_name,
        split=Split("last-20%", len(question.train_frames), len(question.test_frames)),
        size=candidate.size,
        frame_rate=question.frame_rate,
        frame_index=tuple(int(i) for i in question.frame_index),
        time_s=tuple(float(t) for t in question.time_s),
        methods=scores,
        controls=(score("the recording itself", question.test_frames, question, detector(), extras=extras),),
        worst=explain_worst_frames(question, scores[0]),
        notes=(*_notes(candidate, len(question.train_frames), unet_minutes), *others.reasons),
        other_splits=others.scores,
    )


def summary_of(evaluation: Evaluation) -> Mapping[str, Any]:
    """What the bundle keeps of a report: the means of the avatar, and the split they are of."""
    avatar = evaluation.methods[0]
    means = {f"{m.region}.{m.metric}": round(m.mean, 4) for m in avatar.measurements if np.isfinite(m.mean)}
    return {"split": evaluation.split.kind, "size": evaluation.size, "means": means}


def detector() -> Any:
    """A landmark detector for evaluation, a new one for each film: it follows the face from frame to frame.

    In single pictures the same points waver by 1.0 to 1.2 px at 256 against those of the full recording, followed by
    0.2 px (talk-a, talk-b): noise that would hide the methods' own errors, and blur what warps by these points.
    """
    backend = MediaPipeLandmarks(is_stream=True)

    def detect(image: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        faces = backend.detect(image)
        return faces[0].points if faces else None

    return detect


def motion_reader(candidate: Candidate) -> Callable[[NDArray[np.uint8], Landmarks], Motion]:
    """Head rotation and expression of pictures (T, S, S, 3) with landmarks (T, 478, 3), NaN where there is no face.

    Fitted with the avatar's own face model, every picture alone, the same for true and generated pictures.
    """
    subject, camera = candidate.subject, Camera.for_image(candidate.size, candidate.size)

    def read(frames: NDArray[np.uint8], landmarks: Landmarks) -> Motion:
        fitter = FaceFitter(MorphableModel.load(), subject, camera)
        rotation = np.full((len(frames), 3), np.nan)
        expression = np.full((len(frames), len(BLENDSHAPES)), np.nan)
        for row in np.flatnonzero(np.isfinite(landmarks).all(axis=(1, 2))):
            fit = fitter.fit(landmarks[row].astype(np.float32))
            rotation[row], expression[row] = fit.rotation, fit.expression
        return Motion(rotation=rotation, expression=expression)

    return read


def _held_out(
    candidate: Candidate, recording: Recording, train: Sequence[Sample], held_out: Sequence[Sample]
) -> HeldOut:
    read_motion = motion_reader(candidate)
    parts: dict[str, Any] = {}
    kept: dict[str, NDArray[np.bool_]] = {}
    for name, samples in (("train", train), ("test", held_out)):
        frames = np.stack([s.image for s in samples])
        landmarks = read_landmarks(frames, detector())
        has_face = np.asarray(np.isfinite(landmarks).all(axis=(1, 2)))
        kept[name] = has_face
        parts[f"{name}_frames"], parts[f"{name}_landmarks"] = frames[has_face], landmarks[has_face]
        parts[f"{name}_motion"] = read_motion(parts[f"{name}_frames"], parts[f"{name}_landmarks"])
    rows = recording.split.held_out[kept["test"]]
    return HeldOut(
        frame_index=recording.track.frame_index[rows],
        time_s=recording.track.time_s[rows],
        frame_rate=float(recording.info.frame_rate),
        **parts,
    )


def _rows_with_face(recording: Recording, held_out: Sequence[Sample], question: HeldOut) -> list[int]:
    wanted = set(question.frame_index.tolist())
    rows = recording.split.held_out
    return [i for i in range(len(held_out)) if int(recording.track.frame_index[rows[i]]) in wanted]


def _notes(candidate: Candidate, shown: int, unet_minutes: float) -> tuple[str, ...]:
    """shown: frames of the training part that the baselines have."""
    made = candidate.made
    notes = [
        f"Trained for {made.minutes:.1f} minutes ({made.steps} steps) at {candidate.size} pixels, omokage "
        f"{made.omokage}; the baselines choose and learn from {shown} frames of the same part.",
        f"Measured on {platform.machine()} with {torch.get_num_threads()} threads, torch {torch.__version__}.",
        f"The avatar is driven by what tracking reads in the held-out frames: {candidate.driven}.",
    ]
    if unet_minutes <= 0:
        notes.append(
            "The plain U-Net baseline was left out; 'omokage evaluate' trains it as long as the avatar."
        )
    if made.photo_only:
        notes.append("This avatar has only ever seen one picture: its clip was animated from a photo.")
    return tuple(notes)


def _release_comparison(
    question: HeldOut,
    predictions: Mapping[str, NDArray[np.uint8]],
    candidate: Candidate,
    recording: Recording,
    path: Path,
) -> None:
    """Recording beside avatar, as a clip."""

    def pairs() -> Iterator[NDArray[np.uint8]]:
        for truth, made in zip(question.test_frames, predictions["avatar"], strict=True):
            yield np.concatenate([truth, made], axis=1)

    label = candidate.made.label or "right: AI-generated"
    release_clip(
        pairs(), path, frame_rate=Fraction(recording.info.frame_rate), config=ReleaseConfig(label=label)
    )
