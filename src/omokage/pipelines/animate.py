"""`omokage animate`: a portrait, a voice and a prompt become a video. MAIN: `animate`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import omokage
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, MemoryShortageError, WeightsError
from omokage.files import file_digest
from omokage.pipelines.animate_plan import AUTOMATIC, AnimationPlan, plan_animation
from omokage.pipelines.portrait_gate import read_portrait
from omokage.pipelines.speech_track import SpeechTrack, VocalSeparator, read_speech
from omokage.pipelines.window_files import WindowFiles
from omokage.talking.compiling import compile_layers
from omokage.talking.conditions.identity import (
    IdentityEncoder,
    OnnxIdentity,
    ThumbnailIdentity,
    ZeroIdentity,
)
from omokage.talking.conditions.speech import FRAME_RATE
from omokage.talking.config import SamplerConfig, official_sampler
from omokage.talking.folder import load_architecture, official_architecture
from omokage.talking.model import FACE_FILE, Machine, TalkingModel, video_size
from omokage.talking.placement import Choice, falling_back, is_shortage, profile_named
from omokage.talking.prepare import prepare_likeness, prepare_prompt, prepare_speech
from omokage.talking.rollout import Scene, StepCallback, rollout
from omokage.threads import one_blas_thread
from omokage.trust.release import (
    CLIP_SUFFIXES,
    ReleaseConfig,
    Released,
    check_label,
    check_writable,
    release_clip,
)
from omokage.weights import find, installed

NO_IDENTITY = (
    "no face embedding is installed, so the likeness comes from the picture alone; the published one is for research "
    "only and can be added with 'omokage weights add face'"
)
INEXACT = "the memory profile '{}' keeps weights in 8 bits, so the video differs a little from that of exact weights"


@dataclass(frozen=True)
class AnimateConfig(Config):
    """What a user chooses when a portrait is animated.

    prompt: what the video shows, in English.  seed: of every random choice.  steps, guidance: of the sampler.
    any_face: take painted faces, and other pictures that would be refused.  label: visible text on every picture.
    device: 'auto', 'cpu' or 'cuda'.  resume: go on from a stopped run.  weights: folder of the model, None for the
    installed one.  lora: file of updates that are added to these weights.
    memory: name of a memory profile (see `talking.placement`), 'auto' for the first that fits.

    Two savings that change the result, see `SamplerConfig`:
    guidance_interval: shares of the steps between which guidance works.
    reuse: relative change of the first layer below which a step reuses the others, 0 for never.

    compile: fuse the layers for this machine before they are used, see `talking.compiling`.
    """

    prompt: str = "a person talks to the camera"
    seed: int = 0
    steps: int = 50
    guidance: float = 3.5
    any_face: bool = False
    label: str | None = None
    device: str = "auto"
    resume: bool = True
    weights: Path | None = None
    lora: Path | None = None
    memory: str = AUTOMATIC
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0 or not 2 <= self.steps <= 1000 or not 1 <= self.guidance <= 20:
            raise InputError(
                f"the seed must be at least 0, steps 2 to 1000 and guidance 1 to 20, got {self.seed}, {self.steps} "
                f"and {self.guidance:g}"
            )
        if self.memory != AUTOMATIC:
            profile_named(self.memory)
        self.sampler()  # refuses savings that make no sense

    def sampler(self) -> SamplerConfig:
        """The published sampler with these steps, this guidance and these savings."""
        return replace(
            official_sampler(),
            steps=self.steps,
            guidance_scale=self.guidance,
            guidance_interval=self.guidance_interval,
            reuse_threshold=self.reuse,
        )


@dataclass(frozen=True)
class Animation:
    """What was made, what it was planned to cost, and sentences on what may have spoiled it."""

    released: Released
    plan: AnimationPlan
    notes: tuple[str, ...]


@one_blas_thread()
def animate(
    portrait: Path,
    speech: Path,
    *,
    output: Path,
    config: AnimateConfig | None = None,
    separator: VocalSeparator | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Animation:
    """Prepare portrait, prompt and speech once, denoise window after window, release frame after frame.

    `speech`: a sound file, or a video whose sound is taken; it goes into the result as it is. `separator` takes music
    and noise away from what the lips follow. A stopped run leaves `<output>.work` beside the output and goes on after
    its last finished window. Raises MediaError, NoFaceError or InputError for bad input, WeightsError without the
    model, OutputError when the result cannot be written, MemoryShortageError when the machine is too small.
    """
    config = config or AnimateConfig()
    portrait, speech, output = Path(portrait), Path(speech), Path(output)
    check_writable(output, CLIP_SUFFIXES, inputs=[portrait, speech])
    model = TalkingModel.open(
        config.weights or installed("hallo3"), Machine.choose(config.device), config.lora
    )
    face = read_portrait(portrait, model.height, model.width, any_face=config.any_face)
    check_label(config.label, face.shown_width(model.height, model.width), model.height)
    track, face_file = read_speech(speech, separator), face_file_of(config)
    identity = identity_of(model, face_file)

    # What will it cost?
    on_progress(Progress("plan", 0, 1, "counting work and memory"))
    plan = plan_animation(
        model.sizes,
        track.frame_count,
        config.sampler(),
        model.machine,
        model.folder,
        memory=config.memory,
        is_compiled=config.compile,
    )
    plan = replace(plan, width=face.shown_width(model.height, model.width))
    on_progress(Progress("plan", 1, 1, plan.sentence()))

    if not plan.options:
        raise MemoryShortageError(plan.shortage)
    sampler, said = config.sampler(), list[str]()
    fingerprint = _fingerprint(model, config, portrait, track, face_file)
    with (
        WindowFiles.open(output, fingerprint, said.append, resume=config.resume) as folder,
        shortage_told(plan),
    ):
        # What no window changes is computed once, and the networks that did it are let go.
        on_progress(Progress("preparing", 0, 4, "prompt"))
        text = prepare_prompt(model, config.prompt, said.append)
        on_progress(Progress("preparing", 1, 4, "speech"))
        voice = prepare_speech(model, track.voice, said.append)

        def with_memory_of(choice: Choice) -> Released:
            profile = choice.profile
            finished = folder.made_with(profile.weights)
            if not profile.is_exact:
                said.append(INEXACT.format(profile.name))
            on_progress(Progress("preparing", 2, 4, "portrait"))
            likeness = prepare_likeness(model, face.portrait, identity, config.seed, profile)
            on_progress(Progress("preparing", 3, 4, "denoiser"))
            # Window after window from noise to latents to frames, straight into the file.
            scene = Scene.set_up(model, likeness, text, voice, sampler, config.seed, profile)
            if config.compile:
                compile_layers(scene.denoiser, said.append)
            return release_clip(
                rollout(scene, finished, _meter(on_progress, plan, finished.count)),
                output,
                frame_rate=Fraction(FRAME_RATE),
                audio=track.sound,
                config=ReleaseConfig(label=config.label, title=model.sizes.caution),
            )

        released = falling_back(with_memory_of, plan.options, said.append)
    blind = (NO_IDENTITY,) if identity.is_blind else ()
    caution = (model.sizes.caution,) if model.sizes.caution else ()
    return Animation(released, plan, (*caution, *face.notes, *track.notes, *said, *blind))


def plan(
    portrait: Path,
    speech: Path,
    *,
    config: AnimateConfig | None = None,
    separator: VocalSeparator | None = None,
) -> AnimationPlan:
    """What `animate` would do with these files and cost on this machine; no work is done, no weights are needed.

    Raises what `animate` raises for bad input.
    """
    config = config or AnimateConfig()
    folder, notes = _weights_or_none(config)
    sizes = official_architecture() if folder is None else load_architecture(folder)
    height, width = video_size(sizes)
    face = read_portrait(Path(portrait), height, width, any_face=config.any_face)
    track = read_speech(Path(speech), separator)
    machine = Machine.choose(config.device)
    planned = plan_animation(
        sizes,
        track.frame_count,
        config.sampler(),
        machine,
        folder,
        memory=config.memory,
        is_compiled=config.compile,
    )
    if folder is not None:
        notes += _identity_notes(config)
    shown = face.shown_width(height, width)
    return replace(planned, width=shown, notes=face.notes + track.notes + notes)


def face_file_of(config: AnimateConfig) -> Path | None:
    """The face embedding that was added to the installed model, or lies in the folder that the user gives.

    None when there is none, or its installation was never finished. Raises WeightsError when it is damaged.
    """
    folder = config.weights or find("face")
    path = None if folder is None else folder / FACE_FILE
    return path if path is not None and path.is_file() else None


def identity_of(model: TalkingModel, face_file: Path | None) -> IdentityEncoder:
    """The face embedding of this file, or that of nobody."""
    if model.sizes.is_small:
        return ThumbnailIdentity()
    face = model.sizes.transformer.face
    width = face.embedding if face is not None else 0
    return OnnxIdentity(face_file, width) if face_file is not None else ZeroIdentity(width)


@contextmanager
def shortage_told(plan: AnimationPlan) -> Iterator[None]:
    """Say in one sentence that memory ran out before the first window, whoever noticed it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise MemoryShortageError(
            f"memory ran out on {plan.device} while the inputs were prepared; {plan.options[0].sentence}: close other "
            "programs, or use a larger machine"
        ) from error


def _weights_or_none(config: AnimateConfig) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of the weights; None, and why, when they are not installed."""
    try:
        return config.weights or installed("hallo3"), ()
    except WeightsError as error:
        return None, (str(error),)


def _identity_notes(config: AnimateConfig) -> tuple[str, ...]:
    """What a plan says of the face embedding."""
    try:
        return () if face_file_of(config) else (NO_IDENTITY,)
    except WeightsError as error:
        return (str(error),)


def _meter(on_progress: ProgressCallback, plan: AnimationPlan, finished: int) -> StepCallback:
    """Steps of this run, so that the time left is told right after a resumption."""
    steps, total = plan.steps, (plan.windows - finished) * plan.steps

    def on_step(index: int, done: int) -> None:
        note = f"window {index + 1} of {plan.windows}"
        on_progress(Progress("animating", (index - finished) * steps + done, total, note))

    return on_step


def _fingerprint(
    model: TalkingModel, config: AnimateConfig, portrait: Path, track: SpeechTrack, face_file: Path | None
) -> dict[str, Any]:
    """Everything that the latents depend on, but for the format of weights (see `WindowFiles.made_with`)."""
    machine = model.machine
    return {
        "portrait": file_digest(portrait),
        "voice": hashlib.sha256(track.voice.tobytes()).hexdigest(),
        "prompt": config.prompt,
        "any_face": config.any_face,
        "sampler": config.sampler().to_json(),
        "compile": config.compile,
        "seed": config.seed,
        "weights": model.digest,
        "face": file_digest(face_file) if face_file else None,
        "machine": [machine.device.type, str(machine.dtype), torch.__version__],
        "version": omokage.__version__,
    }
