"""`omokage train-portrait --preset small`: one clip of one person becomes a small talking model, trained from scratch.

It proves that every part works together (specification 7.1), on two processor cores in under an hour, and says nothing
about other people: a single-subject toy. MAIN: `train_small_portrait`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from omokage.config import Config, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.evaluate.portrait_video import TalkingEvaluation
from omokage.files import file_digest, result_folder
from omokage.pipelines.small_portrait_report import Parts, measure_small_portrait, report_small_portrait
from omokage.pipelines.subject import Recorded, read_subject
from omokage.pipelines.train_portrait import CHECKPOINT, check_output, working
from omokage.talking.conditions.log_mel import LogMelEncoder
from omokage.talking.config import SamplerConfig
from omokage.talking.folder import (
    DENOISER,
    REFERENCE,
    VAE,
    Architecture,
    save_architecture,
    small_architecture,
)
from omokage.talking.model import video_size
from omokage.talking.training.autoencoder import (
    AutoencoderConfig,
    latent_scale,
    small_autoencoder,
    train_autoencoder,
)
from omokage.talking.training.config import StageConfig, from_scratch
from omokage.talking.training.couple import Couple
from omokage.talking.training.export import write_network
from omokage.talking.training.subject import Subject, SubjectConfig, SubjectSamples, small_subject
from omokage.talking.training.train import train
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae
from omokage.threads import one_blas_thread
from omokage.trust.consent import Use
from omokage.trust.consents import derive, permit
from omokage.trust.guard import Guard
from omokage.trust.release import ReleaseConfig, release_image
from omokage.workers import Workers

PORTRAIT_FILE = "portrait.png"


@dataclass(frozen=True)
class SmallPortraitConfig(Config):
    """How a small model is made.

    sizes: of the networks; the scale of the autoencoder is measured.  mouth_weight: of the autoencoder's error there.
    chained: windows of every video that is measured, at least.  seeds: of these videos.  seed: of training.
    """

    sizes: Architecture
    autoencoder: AutoencoderConfig
    mouth_weight: float
    windows: SubjectConfig
    stage: StageConfig
    sampler: SamplerConfig
    chained: int
    seeds: tuple[int, ...]
    seed: int


# Shares of the time that the two trainings take; reading, encoding and measuring take the rest.
AUTOENCODER_SHARE, DENOISER_SHARE = 0.3, 0.5


def small_portrait(minutes: float = 60, seed: int = 0) -> SmallPortraitConfig:
    """The whole in about `minutes` on two processor cores."""
    if minutes < 1:
        raise InputError(f"a small model needs at least a minute to learn, got {minutes:g}")
    return SmallPortraitConfig(
        sizes=small_architecture(scale=1.0),
        autoencoder=replace(small_autoencoder(), minutes=AUTOENCODER_SHARE * minutes, seed=seed),
        mouth_weight=4.0,
        windows=small_subject(),
        stage=replace(from_scratch(), minutes=DENOISER_SHARE * minutes, seed=seed),
        sampler=SamplerConfig(steps=20, guidance_scale=2.0, stochastic=True, together=True),
        chained=10,
        seeds=(1, 2, 3),
        seed=seed,
    )


@dataclass(frozen=True)
class SmallPortrait:
    """folder: can be animated from.  evaluation: on the held-out end.  timing: seconds of every stage, by name."""

    folder: Path
    evaluation: TalkingEvaluation
    timing: dict[str, float]


@one_blas_thread()
def train_small_portrait(
    clip: Path,
    *,
    output: Path,
    config: SmallPortraitConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> SmallPortrait:
    """Learn one person from one clip, save a folder to animate from, and measure it on speech that was never heard.

    A stopped run goes on from `<output>.work`. Raises MediaError, NoFaceError or InputError for a clip that cannot be
    used, OutputError.
    """
    config, clip, output = config or small_portrait(), Path(clip), Path(output)
    alone, timing, clock = Workers(0, 1, torch.device("cpu")), dict[str, float](), Clock()
    digest = file_digest(clip)
    key, permitted = f"{digest} {config.seed}", permit(Use(digest, act="create"), name=str(clip))
    check_output(output, clip)
    on_progress = Guard(permitted).progress(on_progress)
    with working(output, alone) as work:
        # The head at 25 frames a second; the end of the clip is held out.
        side = video_size(config.sizes)[0]
        recorded = read_subject(clip, side, on_progress=on_progress)
        parts = Parts.cut(recorded, config.sizes.transformer.frames, config.chained)
        subject = subject_of(parts.learned, config.sizes)
        timing["reading"] = clock.lap()

        # Pixels to latents and back.
        checkpoint = work / CHECKPOINT
        vae, timing["autoencoder"] = learn_autoencoder(
            subject, config, checkpoint / "autoencoder", key, on_progress
        )
        clock.lap()
        samples = SubjectSamples(
            subject,
            vae,
            config.sizes.transformer,
            config.windows,
            seed=config.seed,
            on_progress=on_progress,
        )
        timing["encoding"] = clock.lap()

        # Noise to latents, told of portrait, motion and speech.
        couple = untrained_couple(config)
        result = train(
            couple,
            samples,
            config.stage,
            checkpoint=checkpoint / "denoiser",
            run_key=f"{key} {digest_of(vae)}",
            on_progress=on_progress,
        )
        timing["denoiser"] = result.seconds
        clock.lap()
        with result_folder(output):
            save_small_model(output, replace(config.sizes, vae=vae.config), vae, couple)
            portrait = parts.learned.frames[parts.portrait]
            release_image(portrait, output / PORTRAIT_FILE, config=ReleaseConfig(origin="recorded"))
            derive(permitted, output / PORTRAIT_FILE)

            # Chained windows of held-out speech, and of other speech as controls.
            measured = measure_small_portrait(output, parts, config.sampler, config.seeds, on_progress)
            timing["measuring"] = clock.lap()
            evaluation = report_small_portrait(
                output, clip.name, parts, config.sizes.caution, measured, timing
            )
    return SmallPortrait(output, evaluation, timing)


def subject_of(recorded: Recorded, sizes: Architecture) -> Subject:
    """A stretch of the clip with its speech features; the loudness of this stretch alone is normalised."""
    audio = sizes.transformer.audio
    assert audio is not None
    heard = LogMelEncoder(audio.channels).features(recorded.voice, sizes.transformer.frames, exact=True)
    return Subject(recorded.frames, recorded.landmarks, heard.hidden[: len(recorded)])


def learn_autoencoder(
    subject: Subject,
    config: SmallPortraitConfig,
    checkpoint: Path,
    key: str,
    on_progress: ProgressCallback,
) -> tuple[CausalVae, float]:
    """Train it, measure the scale of its latents, and give it with that scale; and the seconds that it took."""
    footage = subject.footage(config.mouth_weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        learning = CausalVae(config.sizes.vae)
    seconds = train_autoencoder(
        learning,
        footage,
        config.autoencoder,
        checkpoint=checkpoint,
        run_key=key,
        on_progress=on_progress,
    )
    scale = latent_scale(learning, footage, config.autoencoder.frames)
    vae = CausalVae(replace(config.sizes.vae, scale=scale))
    vae.load_state_dict(learning.state_dict())
    return vae.eval().requires_grad_(False), seconds


def digest_of(network: nn.Module) -> str:
    """SHA-256 of all weights: latents of another autoencoder mean something else."""
    found = hashlib.sha256()
    for value in network.state_dict().values():
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def untrained_couple(config: SmallPortraitConfig) -> Couple:
    """Both networks with random weights, which depend on the seed alone."""
    sizes = config.sizes.transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return Couple(Transformer(sizes), Transformer(sizes.reference))


def save_small_model(folder: Path, sizes: Architecture, vae: CausalVae, couple: Couple) -> None:
    """Write a folder that can be animated from. Raises OutputError."""
    for name, network in ((DENOISER, couple.denoiser), (REFERENCE, couple.reference), (VAE, vae)):
        write_network(folder, name, network)
    save_architecture(folder, sizes)  # last: without it the folder is no model


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        """Since the last lap, or since it was built."""
        last, self._last = self._last, time.monotonic()
        return self._last - last
