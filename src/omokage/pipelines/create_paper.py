"""`omokage create --preset paper`: recordings in, an avatar in the paper's own networks out. MAIN:
`create_paper_avatar`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import omokage
from omokage.avatar.bundle import Provenance
from omokage.avatar.paper.bundle import PaperAvatar, Person
from omokage.avatar.paper.config import (
    DiscriminatorConfig,
    PortraitConfig,
    paper_portrait,
    released_discriminator,
)
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.perceptual import PerceptualLoss
from omokage.avatar.paper.run import PaperRun, PaperTrainingConfig, check_start
from omokage.avatar.paper.time_code import REST_TIME
from omokage.avatar.paper.train import PaperResult, held_out_psnr, train_paper
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.files import file_digest, material_digest
from omokage.pipelines.carry import save_avatar
from omokage.pipelines.paper_frames import mesh_drawing, prepare_folder, prepare_recording
from omokage.pipelines.paper_plan import frame_costs, plan_paper
from omokage.pipelines.paper_sources import Sources
from omokage.pipelines.recording import Recording
from omokage.pipelines.work import SUFFIX, Work
from omokage.talking.model import Machine
from omokage.threads import one_blas_thread
from omokage.tracking.detail import mean_detail
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.guard import Guard
from omokage.trust.release import check_label, check_writable
from omokage.workers import Workers

MAX_FRAMES = 2500  # of a recording: 19 GB, a hundred seconds
NOT_DRIVABLE = (
    "no command will drive this avatar, since another program drew the face meshes of its first dataset folder: "
    "draw it from Python, or start others from it"
)


@dataclass(frozen=True)
class PaperCreateConfig(Config):
    """What a user chooses when an avatar is made in the paper's networks.

    start: an avatar to begin with, such as one that was trained on several recordings or imported with its training
    networks.  perceptual: file with VGG19's weights.  keep_training: keep what further training starts from.
    frames: of a recording at most.  force: also train on a recording that the check refuses, or a machine that is too
    slow.  evaluate: measure the held-out frames at the end.  The others are as of the compact avatar.
    """

    training: PaperTrainingConfig = field(default_factory=PaperTrainingConfig)
    network: PortraitConfig = field(default_factory=paper_portrait)
    critic: DiscriminatorConfig = field(default_factory=released_discriminator)
    start: Path | None = None
    perceptual: Path | None = None
    keep_training: bool = False
    frames: int = MAX_FRAMES
    force: bool = False
    evaluate: bool = True
    resume: bool = True
    label: str | None = None
    device: str = "auto"


@one_blas_thread()
def create_paper_avatar(
    source: Path,
    *,
    output: Path,
    config: PaperCreateConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> PaperAvatar:
    """Say what it costs, prepare the frames, train, measure, save. `torchrun` shares it between cards.

    source: a recording, a dataset folder of the official preprocessing, or a folder of several of either: then the
    networks learn all of them, to start others from. A stopped run leaves `<output>.work` beside the output and goes on
    from there. Raises CaptureRefusedError, ConsentError, InputError, MediaError, NoFaceError, MemoryShortageError,
    OutputError.
    """
    config = config or PaperCreateConfig()
    source, output = Path(source), Path(output)
    check_writable(output, (SUFFIX,), inputs=[path for path in (source, config.start) if path is not None])
    check_label(config.label, config.network.size, config.network.size)
    workers = Workers.join(Machine.choose(config.device).device)
    config.training.check(workers)
    sources = Sources.find(source, config.network.size)
    sources.check()
    start = None if config.start is None else PaperAvatar.load(config.start)
    if start is not None:
        check_start(start, config.network, config.critic)
    perceptual = None if config.perceptual is None else PerceptualLoss.load(config.perceptual)
    guard = Guard()
    if workers.is_first:
        uses = [(Use(material_digest(path), act="create"), str(path)) for path in sources.paths]
        guard = Guard(*(permit(use, name=name) for use, name in uses))
        on_progress = guard.progress(on_progress)
    _plan(sources, output, config, workers, on_progress)

    shown = material_digest(sources.paths[0]) if workers.is_first else ""
    work = Work.beside(output)
    if workers.is_first:
        # Frames are as large as the pictures, and as many as are asked for; nothing else changes them.
        data = {"recording": sources.digest(), "size": config.network.size, "frames": config.frames}
        work = Work.open(output, data=data, settings=_settings(config), is_resumed=config.resume)
    with work if workers.is_first else nullcontext():
        person = _prepare(sources, work, config, on_progress) if workers.is_first else None
        workers.wait()
        stores = [FrameStore.open(_frames_of(work, number)) for number in range(len(sources.paths))]
        run = PaperRun(
            config.network,
            config.critic,
            config.training,
            frames=sum(store.train for store in stores),
            videos=len(stores),
            start=start,
            workers=workers,
        )
        on_progress(Progress("preview while training", 1, 1, str(work.preview)))
        result = train_paper(
            run,
            stores,
            config.training,
            perceptual=perceptual,
            workers=workers,
            checkpoint=work.checkpoint,
            on_progress=on_progress,
            on_preview=lambda _, image: work.release_preview(image),
        )
        made = _provenance(sources, shown, config, result)
        avatar = paper_avatar(run, made, person, keeps_training=config.keep_training or len(stores) > 1)
        if workers.is_first:
            if config.evaluate:
                avatar = replace(avatar, evaluation=_measured(run, stores[0], config, on_progress))
            guard.check_now()
            save_avatar(avatar, output)
        workers.wait()
    return avatar


def paper_avatar(
    run: PaperRun, provenance: Provenance, person: Person | None, *, keeps_training: bool
) -> PaperAvatar:
    """What a training has made, of its first recording: drawn with the code, noise, averages and look-ups of it."""
    textures = run.averages(0)
    networks = run.modules().items() if keeps_training else ()
    return PaperAvatar(
        generator=run.averaged,
        face=textures.face,
        background=textures.background,
        noise=run.noise,
        time=REST_TIME,
        origin=provenance,
        training={name: dict(network.state_dict()) for name, network in networks},
        person=person,
    )


def _plan(
    sources: Sources, output: Path, config: PaperCreateConfig, workers: Workers, on_progress: ProgressCallback
) -> None:
    """Say what it takes, and refuse what would never end unless it is forced or counted in steps."""
    frames, costs = sources.frames(config.frames), frame_costs(config.network.size)
    plan = plan_paper(
        config.network,
        config.critic,
        config.training,
        frames=frames,
        preparing_s=sources.tracked() * costs.track + frames * costs.prepare,
        device=workers.device,
        world=workers.world,
    )
    notes = "" if sources.is_drivable else f"; {NOT_DRIVABLE}"
    on_progress(Progress("plan", 1, 1, plan.to_text() + notes))
    if not config.force and config.training.steps is None:
        blocks = Work.beside(output).folder.glob("frames-*/block-*")
        plan.require(output.absolute().parent, prepared=sum(block.stat().st_size for block in blocks))


def _prepare(
    sources: Sources, work: Work, config: PaperCreateConfig, on_progress: ProgressCallback
) -> Person | None:
    """Prepare the frames of every source, for all processes; who the first one shows, if our tracker read it."""
    tracks = {path: work.track.with_stem(f"recording-{number}") for number, path in enumerate(sources.paths)}
    if not config.force:  # what has a track was judged, or forced, before a stopped run made it
        sources.judge([path for path in sources.clips if not tracks[path].exists()], on_progress)
    persons: list[Person | None] = []
    for number, path in enumerate(sources.paths):
        folder, size = _frames_of(work, number), config.network.size
        if path in sources.folders:
            prepare_folder(sources.folders[path], folder, cap=config.frames, on_progress=on_progress)
            persons.append(None)
            continue
        recording = Recording.open(
            path,
            size=size,
            cap=config.frames,
            known_track=tracks[path],
            on_progress=on_progress,
        )
        drawing = mesh_drawing(recording, size)
        prepare_recording(recording, drawing, folder, on_progress=on_progress)
        seen = recording.track.select(recording.split.train)
        persons.append(Person(drawing, seen, mean_detail(seen)))
    return persons[0]


def _measured(
    run: PaperRun, store: FrameStore, config: PaperCreateConfig, on_progress: ProgressCallback
) -> dict[str, Any]:
    """The held-out frames, drawn as the saved avatar draws them."""
    on_progress(Progress("held-out frames", 0, 1))
    scores = held_out_psnr(run, store, config.training)
    on_progress(Progress("held-out frames", 1, 1, f"{scores.mean():.2f} dB"))
    return {"held_out_frames": len(scores), "psnr": float(scores.mean())}


def _provenance(sources: Sources, digest: str, config: PaperCreateConfig, result: PaperResult) -> Provenance:
    """Of what the avatar shows: the first recording, of that digest."""
    first = sources.paths[0]
    return Provenance(
        recording_sha256=digest,
        recording_name=first.name,
        recording_path=str(first.resolve()),
        frame_rate="" if first in sources.folders else str(sources.clips[first].frame_rate),
        photo_only=False,
        label=config.label,
        minutes=result.seconds / 60,
        steps=result.steps,
        omokage=omokage.__version__,
    )


def _settings(config: PaperCreateConfig) -> dict[str, Any]:
    """All that the training's numbers depend on; the rest may differ between two runs."""
    training = replace(
        config.training, minutes=1.0, compiled=False, channels_last=False, checkpoint_seconds=0.0
    )
    settings = replace(
        config, training=training, resume=True, force=True, evaluate=True, label=None, device=""
    )
    files = {
        name: None if path is None else file_digest(path)
        for name, path in (("start", config.start), ("perceptual", config.perceptual))
    }
    return settings.to_json() | files | {"keep_training": True}


def _frames_of(work: Work, number: int) -> Path:
    return work.folder / f"frames-{number}"
