"""One person's own clip as training data: the autoencoder's footage, and windows for the denoiser in memory.

For the small networks that learn one person from scratch (specification 7.1). A window begins at every frame; each is
encoded once, together with several draws of its reference frame and of the disturbance of its motion frames.

Shapes: T frames, t latent frames, C latent channels, h w latent grid, S pixels a side, L layers and D bands of speech.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.metrics.motion import LIPS_OUTER
from omokage.talking.conditions.identity import ThumbnailIdentity
from omokage.talking.conditions.portrait import (
    MOTION_FRAMES,
    condition_clip,
    face_rectangle,
    mask_face,
    reference_latents,
)
from omokage.talking.conditions.speech import context_rows
from omokage.talking.config import FRAMES_PER_LATENT, TransformerConfig
from omokage.talking.training.autoencoder import Footage, to_video
from omokage.talking.training.batch import TrainingBatch
from omokage.talking.vae import CausalVae

MOUTH_GROWTH = 0.3  # of the lips' box, on every side


@dataclass(frozen=True)
class Subject:
    """A stretch of one person's clip at 25 frames a second.

    frames: uint8 (T, S, S, 3), the head.  landmarks: float32 (T, 478, 3) in their pixels, every frame with a face.
    speech: (T, L, D), features of each frame.
    """

    frames: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    speech: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def footage(self, mouth_weight: float) -> Footage:
        """For the autoencoder; errors of the mouth count `mouth_weight` times."""
        return Footage(
            self.frames, np.where(self.mouths(), np.float32(mouth_weight), np.float32(1)).astype(np.float32)
        )

    def mouths(self) -> NDArray[np.bool_]:
        """The pixels of the mouth, (T, S, S): the lips' box, grown."""
        lips = self.landmarks[:, list(LIPS_OUTER), :2]
        low, high = lips.min(axis=1), lips.max(axis=1)
        margin = MOUTH_GROWTH * (high - low)
        low, high = np.floor(low - margin)[:, None], np.ceil(high + margin)[:, None]  # (T, 1, 2)
        places = np.arange(self.frames.shape[1])[None, :, None]
        inside = (places >= low) & (places < high)  # (T, S, x and y)
        return np.asarray(inside[:, :, None, 1] & inside[:, None, :, 0])


@dataclass(frozen=True)
class SubjectConfig(Config):
    """What the windows of a clip are made to be.

    draws: of reference frame, noise and hidden pixels, for every window.
    decoded: share of the draws whose motion frames went through the autoencoder before, as in a rollout: as the end of
    the window that ends there.
    mouth_weight: of the error in latent cells of the mouth, against others.
    gain, tilt, noise: deviations of random changes of the speech features: loudness, loudness of high against low
    bands, every number.  shift: bands by which a voice is moved up or down at most.
    """

    draws: int
    decoded: float
    mouth_weight: float
    gain: float
    tilt: float
    noise: float
    shift: int


def small_subject() -> SubjectConfig:
    """For seconds to minutes of one voice."""
    return SubjectConfig(draws=6, decoded=0.5, mouth_weight=5.0, gain=0.2, tilt=0.2, noise=0.2, shift=2)


class SubjectSamples:
    """All windows of a clip as `Samples`. What does not change is encoded when it is built."""

    def __init__(
        self,
        subject: Subject,
        vae: CausalVae,
        sizes: TransformerConfig,
        config: SubjectConfig,
        *,
        seed: int,
        on_progress: ProgressCallback = ignore_progress,
    ) -> None:
        """Raises InputError for a clip shorter than two windows."""
        if len(subject) < 2 * sizes.frames:
            raise InputError(
                f"the clip has {len(subject)} frames to learn from and at least {2 * sizes.frames} are needed; use a "
                "longer recording"
            )
        self._config, self._frames = config, sizes.frames
        self._text = (sizes.text_tokens, sizes.text_width)
        self._speech, self._contexts = subject.speech, context_rows(len(subject))
        self._weights = _cell_weights(subject.mouths(), vae.config.spatial_factor, config.mouth_weight)
        video, count = to_video(subject.frames), len(subject) - sizes.frames + 1
        self._faces = _faces(subject)
        latents, conditions, chosen = list[Tensor](), list[Tensor](), list[NDArray[np.int64]]()
        with torch.no_grad():
            self._references = _references(subject, video, vae)
            ends = dict[int, Tensor]()  # frame -> it and the next one as the end of an animation's window
            for start in range(count):
                random = np.random.default_rng((seed, start))
                rows = random.integers(len(subject), size=config.draws)
                window = video[start : start + sizes.frames]
                clean = vae.encode(window[None])
                # At once, which for a small autoencoder is the same as in chunks.
                decoded = vae.decode_chunk(clean, None).video[0].clamp(-1, 1)
                ends[start + sizes.frames - MOTION_FRAMES] = decoded[-MOTION_FRAMES:]
                # No window ends where the first ones begin.
                motion = [window[:MOTION_FRAMES], ends.pop(start, decoded[:MOTION_FRAMES])]
                clips = [
                    _condition_clip(video[row], motion[int(draw < config.decoded * config.draws)], random)
                    for draw, row in enumerate(rows)
                ]
                conditions.append(vae.encode(torch.cat(clips)))
                latents.append(clean)
                chosen.append(rows)
                on_progress(Progress("encoding", start + 1, count))
        self._latents, self._conditions = torch.cat(latents), torch.stack(conditions)
        self._chosen = np.stack(chosen)

    def __len__(self) -> int:
        return len(self._latents)

    def sample(self, index: int, random: np.random.Generator) -> TrainingBatch:
        """See `Samples`: the window that begins with frame `index`, one of its draws; its speech is varied."""
        draw = int(random.integers(self._config.draws))
        row, rows = int(self._chosen[index, draw]), slice(index, index + self._frames)
        heard = vary_speech(self._speech[torch.from_numpy(self._contexts[rows])], self._config, random)
        return TrainingBatch(
            latents=self._latents[index : index + 1],
            reference=self._references[row : row + 1],
            condition=self._conditions[index, draw : draw + 1],
            text=torch.zeros(1, *self._text),
            face=self._faces[row : row + 1],
            audio=heard[None],
            weight=self._weight(index),
        )

    def _weight(self, index: int) -> Tensor:
        """(1, t, 1, h, w): of a latent frame the mean over its frames, of which the first has one."""
        first, *later = self._weights[index : index + self._frames]
        rest = torch.stack(later).reshape(-1, FRAMES_PER_LATENT, *first.shape).mean(dim=1)
        return torch.cat([first[None], rest])[None, :, None]


def vary_speech(windows: Tensor, config: SubjectConfig, random: np.random.Generator) -> Tensor:
    """Windows (F, X, L, D) of log-mel layers (see `LogMelEncoder`) as another recording of the same words might give.

    Loudness, tilt and pitch change for the whole window; the layer of changes over time knows of no loudness.
    """
    bands = windows.shape[-1]
    slope = torch.linspace(-1, 1, bands)
    offset = float(random.normal(0, config.gain)) + float(random.normal(0, config.tilt)) * slope
    level = torch.tensor([1.0, 0.0, 1.0])[:, None]
    moved = int(random.integers(-config.shift, config.shift + 1))
    places = (torch.arange(bands) + moved).clamp(0, bands - 1)
    noise = torch.from_numpy(random.standard_normal(tuple(windows.shape), dtype=np.float32))
    return windows[..., places] + level * offset + config.noise * noise


def disturb_motion(motion: Tensor, random: np.random.Generator) -> Tensor:
    """Motion frames (..., H, W) with Gaussian noise of a log-normal deviation, one for all (specification 4.2)."""
    deviation = float(np.exp(random.normal(-3.0, 0.5)))
    return motion + deviation * torch.from_numpy(
        random.standard_normal(tuple(motion.shape), dtype=np.float32)
    )


def _condition_clip(portrait: Tensor, motion: Tensor, random: np.random.Generator) -> Tensor:
    """Of a frame (3, S, S) and motion frames (2, 3, S, S): (1, 3, 3, S, S), noisy and with hidden pixels."""
    keep = torch.from_numpy(random.random(portrait.shape[-2:], dtype=np.float32))
    return condition_clip(portrait[None], disturb_motion(motion, random)[None], keep)


def _references(subject: Subject, video: Tensor, vae: CausalVae) -> Tensor:
    """Reference latents (T, 1, C, h, w) of every frame."""
    height, width = subject.frames.shape[1:3]
    masked = [
        mask_face((frame + 1) / 2, face_rectangle(points[:, :2], height, width)) * 2 - 1
        for frame, points in zip(video, subject.landmarks, strict=True)
    ]
    return torch.cat([reference_latents(vae, one[None]) for one in masked])


def _faces(subject: Subject) -> Tensor:
    """The face embedding of every frame (T, E)."""
    identity = ThumbnailIdentity()
    pairs = zip(subject.frames, subject.landmarks, strict=True)
    return torch.cat([identity.embed(frame, points) for frame, points in pairs])


def _cell_weights(mouths: NDArray[np.bool_], cell: int, mouth_weight: float) -> Tensor:
    """Weights (T, h, w) of latent cells of `cell` pixels: more where there is mouth in them, of mean 1."""
    share = F.max_pool2d(torch.from_numpy(mouths).float()[:, None], cell)[:, 0]
    weights = 1 + (mouth_weight - 1) * share
    return weights / weights.mean()
