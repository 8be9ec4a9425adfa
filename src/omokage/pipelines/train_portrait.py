"""`omokage train-portrait`: videos of talking people become a model to animate with. MAIN: `train_portrait`.

The two stages of Hallo3 (Cui et al. 2024; spec 4): first the identity, then the speech, each with its own frozen part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import omokage
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import ConsentError, InputError, MemoryShortageError, OutputError, WeightsError
from omokage.files import result_folder, saving
from omokage.pipelines.animate import AnimateConfig, face_file_of, identity_of
from omokage.pipelines.training_data import TrainingData, find_videos, prepare_training_data
from omokage.pipelines.training_plan import TrainingPlan, plan_training
from omokage.pipelines.untrained import make_untrained, tiny_architecture
from omokage.talking.folder import Architecture, load_architecture, official_architecture
from omokage.talking.lora import Lora, save_lora
from omokage.talking.model import FACE_FILE, Machine, TalkingModel
from omokage.talking.placement import resident
from omokage.talking.training.config import (
    StageConfig,
    stage_one,
    stage_two,
    tiny_stage_one,
    tiny_stage_two,
)
from omokage.talking.training.couple import Couple, without_speech
from omokage.talking.training.export import adapters_of, link, save_model
from omokage.talking.training.train import TrainingResult, check_batch, train
from omokage.threads import one_blas_thread
from omokage.weights import find, installed
from omokage.workers import Workers

STAGES: dict[str, tuple[Callable[[], StageConfig], Callable[[], StageConfig]]] = {
    "official": (stage_one, stage_two),
    "tiny": (tiny_stage_one, tiny_stage_two),
}
# Models that a training can begin with, by name; the first one is taken when none is asked for.
INSTALLED = ("hallo3", "cogvideox")
BLIND = (
    "no face embedding is installed, so the branch of the face learned from zeros; the published one is for research "
    "only and can be added with 'omokage weights add face'"
)
LORA_FILE, REPORT_FILE = "lora.safetensors", "training.json"
LORA_RATE = 1e-4  # as customary: ten times that of the weights themselves
MARKER, CHECKPOINT = "training-run", "checkpoint"


@dataclass(frozen=True)
class TrainConfig(Config):
    """What a user chooses when a talking model is trained.

    stage: 1, identity, or 2, speech.  preset: 'official', or 'tiny' to try out the way on any machine.
    weights: the model to begin with: a folder, or the name of an installed one, 'hallo3' or 'cogvideox'; None for the
    first of these that is installed, or for 'tiny' an untrained one.
    lora: rank of low-rank updates that are trained beside the weights, 0 for the weights themselves.
    steps, minutes, batch: None for those of the stage.  seed: of every draw.  device: 'auto', 'cpu' or 'cuda'.
    shards: folder of the prepared data, None for one beside the videos.
    """

    stage: int = 1
    preset: str = "official"
    weights: Path | None = None
    lora: int = 0
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    shards: Path | None = None

    def __post_init__(self) -> None:
        if self.stage not in (1, 2) or self.preset not in STAGES:
            raise InputError(
                f"there are the stages 1 and 2 and the presets {', '.join(STAGES)}, got {self.stage} and {self.preset}"
            )

    def settings(self) -> StageConfig:
        """The stage with these choices. With a LoRA the denoiser hears in the first stage, too: it is made for a model
        that can speak already."""
        stage = STAGES[self.preset][self.stage - 1]()
        if self.lora:
            stage = replace(stage, lora_rank=self.lora, hears=True, learning_rate=LORA_RATE)
        given = {"steps": self.steps, "minutes": self.minutes, "batch": self.batch, "seed": self.seed}
        return replace(stage, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Trained:
    """What was made: `path` is the folder, or the file of a LoRA; the plan, the data, the losses of all steps, and what
    else the user should know."""

    path: Path
    plan: TrainingPlan
    data: TrainingData
    result: TrainingResult
    notes: tuple[str, ...] = ()


@one_blas_thread()
def train_portrait(
    videos: Path,
    *,
    output: Path,
    config: TrainConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Trained:
    """Prepare the clips, train one stage on them, and save a model that can be animated with.

    videos: a folder with videos and `captions.txt`, or one video. Started by `torchrun`, the processes share the work.
    A stopped run leaves `<output>.work` beside the output and goes on from there. Raises InputError for clips that
    cannot be used, WeightsError without the model, MemoryShortageError when the machine is too small, OutputError.
    """
    config, videos, output = config or TrainConfig(), Path(videos), Path(output)
    stage, machine = config.settings(), Machine.choose(config.device)
    workers = Workers.join(machine.device)
    machine = replace(machine, device=workers.device)
    on_progress = on_progress if workers.is_first else ignore_progress
    check_batch(stage, workers)
    check_output(output, videos)
    clips, captions = find_videos(videos)

    # What will it cost?
    plan = plan_training(first_sizes(config), stage, machine, workers.world)
    on_progress(Progress("plan", 1, 1, plan.sentence()))
    if plan.shortage:
        raise MemoryShortageError(plan.shortage)

    with working(output, workers) as work:
        model = TalkingModel.open(_first_weights(config, work, workers), machine)

        # Encode every clip once: latents, speech, face and caption.
        face_file = _face_file(model.folder)
        identity = identity_of(model, face_file)
        shards = config.shards or videos.with_name(videos.name + ".shards")
        data = prepare_training_data(
            clips, captions, shards, model, identity, workers=workers, on_progress=on_progress
        )
        on_progress(Progress("data", 1, 1, data.sentence()))
        data.samples.verify(on_progress)

        # Denoiser and reference network learn what the stage leaves free.
        couple = load_couple(model, stage)
        result = train(
            couple,
            data.samples,
            stage,
            workers=workers,
            checkpoint=work / CHECKPOINT,
            run_key=f"{model.digest} {data.samples.key}",
            on_progress=on_progress,
        )
        path = save_result(model, couple, stage, output, workers)
        if workers.is_first:
            if face_file is not None and not stage.lora_rank:
                link(face_file.parent, output, face_file.name)
            _report(output, config, stage, model, data, result)
    return Trained(path, plan, data, result, (BLIND,) if identity.is_blind else ())


def load_couple(model: TalkingModel, stage: StageConfig) -> Couple:
    """Both networks with the weights to begin with, on the model's device."""
    couple = Couple(model.denoiser(resident()), model.reference(resident()))
    if not stage.hears:
        without_speech(couple.denoiser)
    return couple


def save_result(
    model: TalkingModel, couple: Couple, stage: StageConfig, output: Path, workers: Workers
) -> Path:
    """The folder that training began with and what was learned, or the file of low-rank updates."""
    with result_folder(output):
        if not stage.lora_rank:
            save_model(model.folder, output, couple, workers)
            return output
        tensors, path = adapters_of(couple), output / LORA_FILE
        if workers.is_first:
            save_lora(path, Lora(tensors, stage.lora_scale, model.digest))
        return path


def first_sizes(config: TrainConfig) -> Architecture:
    """Sizes of the networks that training begins with; the published ones while none are installed.

    Raises WeightsError for a folder that holds no model.
    """
    if config.weights is None and config.preset == "tiny":
        return tiny_architecture()
    folder = first_folder(config)
    return official_architecture() if folder is None else load_architecture(folder)


def first_folder(config: TrainConfig) -> Path | None:
    """The model that the user names, or the installed one; None when there is none.

    Raises WeightsError for one that is damaged, or named and not installed.
    """
    if config.weights is None:
        return next((folder for name in INSTALLED if (folder := find(name)) is not None), None)
    name, is_there = str(config.weights), config.weights.exists()
    if not is_there and name not in INSTALLED:
        raise WeightsError(
            f"there is no folder {name} to begin with; give that of a model, or one of {', '.join(INSTALLED)}"
        )
    return config.weights if is_there else installed(name)


def _first_weights(config: TrainConfig, work: Path, workers: Workers) -> Path:
    if config.weights is not None or config.preset != "tiny":
        return first_folder(config) or installed("hallo3")  # which says what to do
    folder = work / "untrained"
    if workers.is_first:
        make_untrained(folder, config.seed)
    workers.wait()
    return folder


def _face_file(folder: Path) -> Path | None:
    """The face embedding in a model's folder; that of an installed model may be in the folder of another."""
    own = folder / FACE_FILE
    if own.is_file():
        return own
    is_installed = any(folder == find(name) for name in INSTALLED)
    return face_file_of(AnimateConfig()) if is_installed else None


def check_output(output: Path, videos: Path) -> None:
    """Raises OutputError before any work for a folder that is not a result of training."""
    if output.exists() and videos.exists() and output.samefile(videos):
        raise OutputError(f"{output} holds the videos; give -o another folder")
    is_old = output.is_dir() and any(
        any(output.glob(pattern)) for pattern in (REPORT_FILE, "denoiser*", LORA_FILE)
    )
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not is_old):
        raise OutputError(f"{output} is in the way and no result of training; move it or choose another -o")


@contextmanager
def working(output: Path, workers: Workers) -> Iterator[Path]:
    """The folder of a run that is under way; it goes away when the run is done, or has nothing to go on from."""
    work = output.with_name(output.name + ".work")
    marker, is_done = work / MARKER, False
    if work.is_dir() and any(work.iterdir()) and not marker.is_file():
        raise OutputError(f"{work} is in the way and not of omokage; move it or choose another -o")
    workers.wait()
    try:
        with result_folder(work):
            marker.touch()
        yield work
        is_done = True
        workers.wait()
    except ConsentError:
        is_done = True  # withdrawn: nothing of the person stays
        raise
    finally:
        if workers.is_first and (is_done or not (work / CHECKPOINT).exists()):
            shutil.rmtree(work, ignore_errors=True)


def _report(
    output: Path,
    config: TrainConfig,
    stage: StageConfig,
    model: TalkingModel,
    data: TrainingData,
    result: TrainingResult,
) -> None:
    """What the folder is made of, beside it."""
    said = {
        "omokage": omokage.__version__,
        "torch": torch.__version__,
        "stage": config.stage,
        "preset": config.preset,
        "settings": stage.to_json(),
        "from": model.digest,
        "windows": len(data.samples),
        "clips": [record.to_json() for record in data.records],
        "steps": result.steps,
        "seconds": result.seconds,
        "losses": result.losses,
    }
    with saving(output / REPORT_FILE) as part:
        part.write_text(json.dumps(said, indent=1), encoding="utf-8")
