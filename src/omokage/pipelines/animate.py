"""`omokage animate`: a portrait, a voice and a prompt become a video. MAIN: `animate`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import torch

import omokage
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, WeightsError
from omokage.files import file_digest
from omokage.pipelines.animate_guard import asked_by_networks, asked_in
from omokage.pipelines.animate_plan import AUTOMATIC, AnimationPlan, idle_cards, plan_animation
from omokage.pipelines.portrait_gate import PortraitReading, read_portrait
from omokage.pipelines.shortage import Start, agreed_start, shortage_told
from omokage.pipelines.speech_track import SpeechTrack, VocalSeparator, read_speech, separator_named
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
from omokage.talking.parallel import Layout, Team
from omokage.talking.placement import Choice, falling_back, let_go, profile_named
from omokage.talking.prepare import prepare_likeness, prepare_prompt, prepare_speech
from omokage.talking.rollout import Scene, StepCallback, assist, rollout
from omokage.threads import one_blas_thread
from omokage.trust.consent import Use
from omokage.trust.consents import Permit, permit
from omokage.trust.guard import Guard
from omokage.trust.release import (
    CLIP_SUFFIXES,
    ReleaseConfig,
    Released,
    check_label,
    check_writable,
    release_clip,
)
from omokage.weights import find, installed
from omokage.workers import Workers, world_size

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
    separator: name of a vocal separator that an installed package brings, None for none; see `speech_track`.
    """

    prompt: str = "a person talks to the camera"
    seed: int = 0
    steps: int = 50
    guidance: float = 3.5
    any_face: bool = False
    label: str | None = None
    purpose: str | None = None
    device: str = "auto"
    resume: bool = True
    weights: Path | None = None
    lora: Path | None = None
    memory: str = AUTOMATIC
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: float = 0.0
    compile: bool = False
    separator: str | None = None

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

    def separation(self) -> VocalSeparator | None:
        """What takes music and noise away before the voice is read. Raises MissingDependencyError."""
        return None if self.separator is None else separator_named(self.separator)


@dataclass(frozen=True)
class Animation:
    """What was made, what it was planned to cost, and sentences on what may have spoiled it.

    released: None in a process that only helps the first one.
    """

    released: Released | None
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

    `speech`: a sound file, or a video whose sound is taken; it goes into the result as it is. `separator`, instead of
    the configuration's, takes music and noise away from what the lips follow. A stopped run leaves `<output>.work`
    beside the output and goes on after its last finished window. Started by `torchrun`, the processes share the work;
    the first one writes and reports.
    Raises MediaError, NoFaceError or InputError for bad input, WeightsError without the model, OutputError when the
    result cannot be written, MemoryShortageError when the machine is too small.
    """
    config = config or AnimateConfig()
    portrait, speech, output = Path(portrait), Path(speech), Path(output)
    check_writable(output, CLIP_SUFFIXES, inputs=[portrait, speech])
    said = list[str]()
    files = WindowFiles.beside(output, said.append)
    request = _Request.read(portrait, speech, config, separator, files, on_progress)
    plan, team = request.start.plan, request.team
    if not team.workers.is_first:
        with shortage_told(plan, team.workers, files):
            assist(request.prepare(said.append, ignore_progress)(plan.options[0]))
        return Animation(None, plan, ())

    with (
        WindowFiles.open(output, request.fingerprint, said.append, resume=config.resume) as folder,
        shortage_told(plan, team.workers, files),
    ):
        on_progress = (guard := Guard(request.permitted)).progress(on_progress)
        with asked_by_networks(guard.check):
            scene_in = request.prepare(said.append, on_progress)

        def with_memory_of(choice: Choice) -> Released:
            finished = folder.made_with(choice.profile.weights)
            if not choice.profile.is_exact:
                said.append(INEXACT.format(choice.profile.name))
            with asked_by_networks(guard.check):
                scene = scene_in(choice)
            # Window after window from noise to latents to frames, straight into the file.
            with asked_in(scene, guard.check, is_compiled=config.compile):
                return release_clip(
                    rollout(scene, finished, _meter(on_progress, plan, finished.count)),
                    output,
                    frame_rate=Fraction(FRAME_RATE),
                    audio=request.track.sound,
                    config=request.release(),
                )

        released = (
            falling_back(with_memory_of, plan.options, said.append)
            if team.workers.world == 1
            else with_memory_of(plan.options[0])
        )
    blind = (NO_IDENTITY,) if request.identity.is_blind else ()
    return Animation(released, plan, (*request.notes, *request.start.notes, *said, *blind))


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
    track = read_speech(Path(speech), separator or config.separation())
    machine = Machine.choose(config.device)
    layout = Layout.of(world_size(), config.sampler(), sizes.transformer.heads)
    planned = plan_animation(
        sizes,
        track.frame_count,
        config.sampler(),
        machine,
        folder,
        layout=layout,
        memory=config.memory,
        is_compiled=config.compile,
    )
    if folder is not None:
        notes += _identity_notes(config)
    notes += idle_cards(machine, config.sampler(), sizes.transformer.heads)
    shown = face.shown_width(height, width)
    return replace(planned, width=shown, notes=face.notes + track.notes + track.drift_notes + notes)


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


@dataclass(frozen=True)
class _Request:
    """What was read before any work, and what the work will cost.

    team: the processes that share it.  identity: what sees the face; `face_file`, if it is one that was added.
    """

    config: AnimateConfig
    portrait: Path
    permitted: Permit
    model: TalkingModel
    face: PortraitReading
    track: SpeechTrack
    face_file: Path | None
    identity: IdentityEncoder
    team: Team
    start: Start

    @classmethod
    def read(
        cls,
        portrait: Path,
        speech: Path,
        config: AnimateConfig,
        separator: VocalSeparator | None,
        files: WindowFiles,
        on_progress: ProgressCallback,
    ) -> Self:
        """Raises what `animate` raises for bad input, and MemoryShortageError."""
        machine = Machine.choose(config.device)
        workers = Workers.join(machine.device)
        on_progress = on_progress if workers.is_first else ignore_progress
        machine = replace(machine, device=workers.device)
        model = TalkingModel.open(config.weights or installed("hallo3"), machine, config.lora)
        face = read_portrait(portrait, model.height, model.width, any_face=config.any_face)
        permitted = permit(Use(file_digest(portrait), config.purpose), name=str(portrait))
        shown = face.shown_width(model.height, model.width)
        check_label(config.label, shown, model.height)
        track, face_file = read_speech(speech, separator or config.separation()), face_file_of(config)
        identity = identity_of(model, face_file)
        team = Team.gather(workers, config.sampler(), model.sizes.transformer.heads)

        on_progress(Progress("plan", 0, 1, "counting work and memory"))
        plan = plan_animation(
            model.sizes,
            track.frame_count,
            config.sampler(),
            machine,
            model.folder,
            layout=team.layout,
            memory=config.memory,
            is_compiled=config.compile,
        )
        start = agreed_start(replace(plan, width=shown), workers, files)
        on_progress(Progress("plan", 1, 1, start.plan.sentence()))
        return cls(config, portrait, permitted, model, face, track, face_file, identity, team, start)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that the latents depend on, but for the format of weights (see `WindowFiles.made_with`) and the
        rounding of shared work."""
        config, machine = self.config, self.model.machine
        return {
            "portrait": file_digest(self.portrait),
            "voice": hashlib.sha256(self.track.voice.tobytes()).hexdigest(),
            "prompt": config.prompt,
            "any_face": config.any_face,
            "sampler": config.sampler().to_json(),
            "compile": config.compile,
            "seed": config.seed,
            "weights": self.model.digest,
            "face": file_digest(self.face_file) if self.face_file else None,
            "machine": [machine.device.type, str(machine.dtype), torch.__version__],
            "version": omokage.__version__,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the fingerprint."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()

    def prepare(self, say: Callable[[str], None], on_progress: ProgressCallback) -> Callable[[Choice], Scene]:
        """Compute what no window and no memory profile changes; gives what makes the rest in a memory profile.

        The networks that do it are let go.
        """
        model, config = self.model, self.config
        on_progress(Progress("preparing", 0, 4, "prompt"))
        text = prepare_prompt(model, config.prompt, say)
        on_progress(Progress("preparing", 1, 4, "speech"))
        voice = prepare_speech(model, self.track.voice, say)

        def scene_in(choice: Choice) -> Scene:
            profile, sampler = choice.profile, self.team.layout.sampler(config.sampler())
            on_progress(Progress("preparing", 2, 4, "portrait"))
            likeness = prepare_likeness(model, self.face.portrait, self.identity, config.seed, profile)
            on_progress(Progress("preparing", 3, 4, "denoiser"))
            let_go()
            scene = Scene.set_up(model, likeness, text, voice, sampler, config.seed, profile, team=self.team)
            if config.compile:
                compile_layers(scene.denoiser, say)
            return scene

        return scene_in

    def release(self) -> ReleaseConfig:
        """What the video says of itself."""
        return ReleaseConfig(
            label=self.config.label,
            title=self.model.sizes.caution,
            avatar=self.permitted.use.media,
            consent=self.permitted.consent.id,
            purpose=self.permitted.purpose,
            made_from=self.digest,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """On the model and the files."""
        caution = (self.model.sizes.caution,) if self.model.sizes.caution else ()
        return (*caution, *self.face.notes, *self.track.notes, *self.track.drift_notes)
