"""`omokage create`: one recording in, an avatar out. MAIN: `create_avatar`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import omokage
from omokage.avatar.bundle import Avatar, Provenance
from omokage.avatar.config import preset_for
from omokage.avatar.registration import build_explicit
from omokage.avatar.run import TrainingConfig
from omokage.avatar.train import TrainingResult, train_avatar
from omokage.capture.check import check_recording
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, MediaError, MissingDependencyError, OutputError, WeightsError
from omokage.files import file_digest
from omokage.media.decode import probe
from omokage.pipelines.candidate import Candidate
from omokage.pipelines.carry import save_avatar
from omokage.pipelines.evaluate import evaluate_recording, summary_of
from omokage.pipelines.learn_speech import learned_speech
from omokage.pipelines.predict import predict_create
from omokage.pipelines.recording import Recording
from omokage.pipelines.speech_encoder import installed_encoder
from omokage.pipelines.work import SUFFIX, Work
from omokage.speaking.personal_training import LearningConfig
from omokage.threads import one_blas_thread
from omokage.tracking.detail import mean_detail
from omokage.tracking.face_track import FaceTrack
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.guard import Guard
from omokage.trust.release import check_label, check_writable


@dataclass(frozen=True)
class CreateConfig(Config):
    """What a user chooses when an avatar is made.

    minutes: training time at most.  passes: over all of the recording's frames at most.  size: pixels a side, 128, 256
    or 512.  force: train on a recording that the check refuses.
    evaluate: measure the held-out tail at the end.  resume: go on from a stopped run.  label: visible text on every
    picture made of this person.  photo_only: the clip was rehearsed from one picture.
    steps: exact number of training steps instead of minutes (for repeatable runs).  speech: also learn how the person
    speaks, where the recording has sound.
    """

    minutes: float = 10.0
    passes: float = TrainingConfig.passes
    size: int = 256
    seed: int = 0
    force: bool = False
    evaluate: bool = True
    resume: bool = True
    label: str | None = None
    photo_only: bool = False
    steps: int | None = None
    speech: bool = True

    def __post_init__(self) -> None:
        amounts = (self.minutes, self.passes, 1 if self.steps is None else self.steps)
        if min(amounts) <= 0 or self.seed < 0:
            raise InputError(
                f"minutes, passes and steps must be above 0 and seed at least 0, got {self.minutes}, {self.passes}, "
                f"{self.steps}, {self.seed}"
            )


@one_blas_thread()
def create_avatar(
    video: Path,
    *,
    output: Path,
    config: CreateConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Avatar:
    """Check, track, compose explicitly, train, learn to speak, evaluate, save.

    A stopped run leaves `<output>.work` beside the output and goes on from there. With `evaluate`, the report is put
    into `<output stem>-report`. Raises ConsentError when nobody agreed to it, CaptureRefusedError for a hopeless
    recording, MediaError, NoFaceError, OutputError.
    """
    config = config or CreateConfig()
    video, output = Path(video), Path(output)
    check_writable(output, (SUFFIX,), inputs=[video])
    check_label(config.label, config.size, config.size)
    network, info = preset_for(config.size), probe(video)
    report = output.with_name(f"{output.stem}-report")
    if config.evaluate and report.is_file():
        raise OutputError(
            f"{report} is a file, the report needs a folder of that name; move it or choose another -o"
        )

    # Who agreed to it, what will it cost, and is it good enough?
    digest = file_digest(video)
    guard = Guard(permit(Use(digest, act="create"), name=str(video)))
    on_progress = guard.progress(on_progress)
    prediction = predict_create(
        info.duration_s,
        float(info.frame_rate),
        config.size,
        config.minutes,
        config.passes,
        config.speech and info.has_audio,
    )
    on_progress(Progress("plan", 1, 1, prediction.to_text()))
    if not config.force:
        check_recording(video, on_progress=on_progress).raise_if_refused()

    data = {"recording": digest}
    with Work.open(output, data=data, settings=_settings(config), is_resumed=config.resume) as work:
        # Track: a 3DMM through the whole clip; then cut the samples out, the tail for evaluation only.
        recording = Recording.open(video, size=config.size, known_track=work.track, on_progress=on_progress)
        train, held_out = recording.samples(config.size, on_progress=on_progress)

        # Explicit first: plate, texture and matte by direct computation.
        explicit = build_explicit(recording.conditioner(network), train, on_progress=on_progress)

        # The network learns what is missing.
        on_progress(Progress("preview while training", 1, 1, str(work.preview)))
        result = train_avatar(
            explicit,
            train,
            TrainingConfig(
                minutes=config.minutes,
                passes=config.passes * recording.thinning,
                steps=config.steps,
                seed=config.seed,
            ),
            checkpoint=work.checkpoint,
            on_progress=on_progress,
            on_preview=lambda _, image: work.release_preview(image),
        )
        seen = recording.track.select(recording.split.train)
        avatar = Avatar(
            generator=result.generator,
            conditioner=explicit.conditioner,
            plate=explicit.plate,
            track=seen,
            skin=mean_detail(seen),
            provenance=_provenance(recording, digest, config, result),
        )
        guard.check_now()
        save_avatar(avatar, output)

        # How do they speak?
        if config.speech:
            avatar = _with_speech(avatar, video, LearningConfig(seed=config.seed), work, on_progress)
            guard.check_now()
            save_avatar(avatar, output)

        # How good is it, on frames it has never seen?
        if config.evaluate:
            evaluation = evaluate_recording(
                Candidate.of(avatar),
                recording,
                explicit,
                train,
                held_out,
                output=report,
                on_progress=on_progress,
            )
            avatar = avatar.with_evaluation(summary_of(evaluation))
            guard.check_now()
            save_avatar(avatar, output)
    return avatar


def _with_speech(
    avatar: Avatar, video: Path, config: LearningConfig, work: Work, on_progress: ProgressCallback
) -> Avatar:
    """The avatar with what the recording tells of the person's speech; a sound of no use is told, and no error."""
    try:
        track, encoder = FaceTrack.load(work.track), installed_encoder()
        learned = learned_speech(video, track, config, encoder, folder=work.folder, on_progress=on_progress)
    except (MediaError, MissingDependencyError, WeightsError) as error:
        on_progress(Progress("speech", 1, 1, f"{error}; the avatar speaks in the general way"))
        return avatar
    on_progress(Progress("speech", 1, 1, "; ".join(learned.sentences)))
    return replace(avatar, speech=learned.part)


def _provenance(
    recording: Recording, digest: str, config: CreateConfig, result: TrainingResult
) -> Provenance:
    return Provenance(
        recording_sha256=digest,
        recording_name=recording.path.name,
        recording_path=str(recording.path.resolve()),
        frame_rate=str(recording.info.frame_rate),
        photo_only=config.photo_only,
        label=config.label,
        minutes=result.seconds / 60,
        steps=result.steps,
        omokage=omokage.__version__,
    )


def _settings(config: CreateConfig) -> dict[str, Any]:
    """All that the training's numbers depend on; the rest may differ between two runs."""
    return replace(
        config, resume=True, force=True, evaluate=True, minutes=1.0, label=None, photo_only=False, speech=True
    ).to_json()
