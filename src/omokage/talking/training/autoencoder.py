"""Training of the small video autoencoder on the frames of one clip. MAIN: `train_autoencoder`.

Loss (specification 7.1): L1, L1 of the differences between neighbouring pixels, and a little KL divergence, on random
windows of the clip. Every step's draws depend on the seed and the step alone, so a stopped run goes on exactly.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.media.clip import Image
from omokage.talking.config import FRAMES_PER_LATENT
from omokage.talking.small_vae import SmallDecoder, SmallEncoder, begin_with, stacked
from omokage.talking.training.config import OptimizerConfig
from omokage.talking.training.state import Run
from omokage.talking.vae import CausalVae, Posterior
from omokage.workers import Workers

CHECKPOINT_SECONDS = 60.0
WINDOWS = 20  # at most, in which the share of motion is measured
STACKS = 500  # of four frames, at most, for the principal components


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(OptimizerConfig):
    """How an autoencoder is trained.

    frames: of a window, a multiple of 4 plus 1.  shift: largest shift of a window in pixels, for a decoder to which
    every place is alike.  edges, divergence: weights of the two losses beside L1.
    """

    frames: int
    shift: int
    edges: float
    divergence: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames % FRAMES_PER_LATENT != 1:
            raise InputError(
                f"windows must have a multiple of {FRAMES_PER_LATENT} frames plus one, got {self.frames}"
            )


def small_autoencoder() -> AutoencoderConfig:
    """For one person at 96 x 96 pixels (specification 7.1)."""
    return AutoencoderConfig(
        steps=2000,
        minutes=0,
        learning_rate=4e-4,
        warmup=0.02,
        final_rate=0.02,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        clip=1.0,
        ema=0.99,
        seed=0,
        frames=17,
        shift=0,
        edges=1.0,
        divergence=1e-4,
    )


@dataclass(frozen=True)
class Footage:
    """frames: uint8 (T, H, W, 3).  weight: float32 (T, H, W), of the error of every pixel, such as more for a mouth."""

    frames: NDArray[np.uint8]
    weight: NDArray[np.float32]

    def window(self, config: AutoencoderConfig, step: int) -> tuple[Tensor, Tensor]:
        """The window of a step: video (1, F, 3, H, W) in [-1, 1] and weights (1, F, 1, H, W)."""
        random = np.random.default_rng((config.seed, step))
        start = int(random.integers(len(self.frames) - config.frames + 1))
        x, y = random.integers(-config.shift, config.shift + 1, size=2)
        rows = slice(start, start + config.frames)
        frames, weight = (shifted(values[rows], int(x), int(y)) for values in (self.frames, self.weight))
        return to_video(frames)[None], torch.from_numpy(weight)[None, :, None]


def train_autoencoder(
    vae: CausalVae,
    footage: Footage,
    config: AutoencoderConfig,
    *,
    checkpoint: Path | None = None,
    run_key: str = "",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_progress: ProgressCallback = ignore_progress,
) -> float:
    """Train in place, by time or by steps; gives the seconds spent in all runs together.

    `vae` must have the scale 1: `latent_scale` measures the right one afterwards. checkpoint, run_key: see `train`.
    Raises InputError when the clip is shorter than a window, OutputError.
    """
    if len(footage.frames) < config.frames:
        raise InputError(
            f"the clip has {len(footage.frames)} frames to learn from and at least {config.frames} are needed; use a "
            "longer recording"
        )
    begin_linear(vae, footage, config)
    alone = Workers(0, 1, next(vae.parameters()).device)
    run, key = Run.start(vae, config), _run_key(run_key, config, footage)
    vae.train()
    if checkpoint is not None:
        run.load(checkpoint, key, alone)
    started, saved = time.monotonic() - run.seconds, time.monotonic()
    while run.step < config.steps and (share := run.share(config)) <= 1:
        video, weight = footage.window(config, run.step)
        noise = torch.Generator().manual_seed(config.seed + run.step)
        loss = reconstruction_loss(vae, video, weight, config, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        run.update(config.rate(share), config)
        run.step += 1
        run.losses.append(float(loss.detach()))
        run.seconds = time.monotonic() - started
        note = f"step {run.step}, loss {run.losses[-1]:.4f}"
        on_progress(Progress("autoencoder", min(share, 1.0), 1.0, note))
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            run.save(checkpoint, key, alone)
            saved = time.monotonic()
    if checkpoint is not None:
        run.save(checkpoint, key, alone)
    run.finish()
    vae.eval()
    return run.seconds


def reconstruction_loss(
    vae: CausalVae, video: Tensor, weight: Tensor, config: AutoencoderConfig, noise: torch.Generator
) -> Tensor:
    """Of a video (B, T, 3, H, W) through a sampled posterior, with weights (B, T, 1, H, W): a scalar."""
    posterior = vae.posterior(video)
    drawn = posterior.sample(torch.randn(posterior.mean.shape, generator=noise))
    error = vae.decode_chunk(drawn, None).video - video
    pixels = (weight * error.abs()).mean()
    across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    return pixels + config.edges * (across + down) + config.divergence * _divergence(posterior)


def _divergence(posterior: Posterior) -> Tensor:
    """KL divergence from the unit Gaussian (Kingma & Welling 2014, appendix B), mean over the latents."""
    mean, logvar = posterior.mean, posterior.logvar
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def begin_linear(vae: CausalVae, footage: Footage, config: AutoencoderConfig) -> None:
    """Let a small autoencoder begin with the mean frame and the principal components of four frames in a latent cell.

    The latents keep the roots of the components' deviations: small details are not made as large as all else, nor lost.
    """
    encoder, decoder = vae.encoder, vae.decoder
    if not isinstance(encoder, SmallEncoder) or not isinstance(decoder, SmallDecoder):
        return
    random = np.random.default_rng(config.seed)
    video = to_video(footage.frames)
    mean = video.mean(dim=0, keepdim=True)
    starts = random.permutation(len(video) - FRAMES_PER_LATENT + 1)[:STACKS]
    clips = torch.stack([video[start : start + FRAMES_PER_LATENT] - mean for start in starts])
    cells = F.pixel_unshuffle(clips, vae.config.stem).transpose(1, 2)
    rows = stacked(cells, encoder.scale).movedim(1, -1).flatten(0, -2)  # (stacks and cells, values)
    count = vae.config.latent_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        _, lengths, components = torch.svd_lowrank(rows, q=min(2 * count, *rows.shape), niter=4)
    deviations = (lengths[:count] / len(rows) ** 0.5).clamp(min=1e-6)
    picture = F.pixel_unshuffle(mean, vae.config.stem)[0]
    begin_with(encoder, decoder, picture, components[:, :count].T * deviations[:, None].sqrt())
    with torch.no_grad():
        decoder.motion.fill_(_motion_share(vae, video, config.frames))


def _motion_share(vae: CausalVae, video: Tensor, frames: int) -> float:
    """The share of motion within four frames (see `in_motion`) with the smallest squared error, 0 to 1."""
    decoder = vae.decoder
    assert isinstance(decoder, SmallDecoder)
    gained = moved = 0.0
    with torch.no_grad():
        for start in range(0, len(video) - frames + 1, max(frames, len(video) // WINDOWS)):
            window = video[start : start + frames][None]
            latents = vae.encode(window)
            decoder.motion.zero_()
            still = vae.decode_chunk(latents, None).video
            decoder.motion.fill_(1)
            change = vae.decode_chunk(latents, None).video - still
            gained += float((change * (window - still)).sum())
            moved += float(change.square().sum())
    return min(max(gained / moved, 0.0), 1.0) if moved else 0.0


@torch.no_grad()
def latent_scale(vae: CausalVae, footage: Footage, frames: int) -> float:
    """What latents have to be multiplied by to have unit deviation, from windows of `frames` all over the clip."""
    starts = range(0, len(footage.frames) - frames + 1, frames - 1)
    latents = torch.cat(
        [vae.posterior(to_video(footage.frames[start : start + frames])[None]).mean for start in starts]
    )
    return float(1 / latents.std())


def to_video(frames: NDArray[np.uint8]) -> Tensor:
    """Frames uint8 (T, H, W, 3) as video (T, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(video: Tensor) -> Image:
    """Video (T, 3, H, W) in about [-1, 1] as frames uint8 (T, H, W, 3), rounded."""
    levels = ((video + 1) * 127.5).round().clamp(0, 255)
    return np.asarray(levels.to(torch.uint8).permute(0, 2, 3, 1).numpy())


def shifted(values: NDArray[Any], x: int, y: int) -> NDArray[Any]:
    """Frames (T, H, W, ...) moved by whole pixels; edges are repeated."""
    rows, columns = np.arange(values.shape[1]) - y, np.arange(values.shape[2]) - x
    moved = values[:, rows.clip(0, len(rows) - 1)]
    return moved[:, :, columns.clip(0, len(columns) - 1)]


def _run_key(key: str, config: AutoencoderConfig, footage: Footage) -> str:
    settings = {name: value for name, value in config.to_json().items() if name != "minutes"}
    digest = hashlib.sha256(footage.frames.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps([key, settings, digest]).encode()).hexdigest()
