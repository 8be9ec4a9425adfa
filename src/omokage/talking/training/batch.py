"""What one training step is told: windows of video with everything that belongs to them.

Shape letters: B batch, T latent frames, F video frames, C latent channels, h w latent grid, N text tokens, X frames of
a context of speech, L hidden states of the speech encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from omokage.errors import InternalError


@dataclass(frozen=True)
class TrainingBatch:
    """B windows, float32 or the precision of the weights; latents are scaled as the autoencoder gives them.

    latents: (B, T, C, h, w), clean: a window's frames, encoded in one pass.
    reference: (B, 1, C, h, w), another frame of the same clip with all but the face black.
    condition: (B, 1, C, h, w), the first condition latent: that frame whole, then the window's two motion frames,
    noisy and with hidden pixels, encoded together as one latent frame. The loop appends the zeros of the others.
    text: (B, N, width), embeddings of the caption.  face: (B, width), the face embedding, zeros for nobody's.
    audio: (B, F, X, L, width), the speech features of every video frame in its context, F = 4 (T - 1) + 1; None where
    nothing is heard.
    weight: (B, 1 or T, 1 or C, h, w), of the squared error in every latent cell; None is the published loss, 1
    everywhere.
    """

    latents: Tensor
    reference: Tensor
    condition: Tensor
    text: Tensor
    face: Tensor
    audio: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TrainingBatch:
        """The same on another device, and in another precision when `dtype` is given."""
        moved: dict[str, Any] = {
            field.name: None if (value := getattr(self, field.name)) is None else value.to(device, dtype)
            for field in fields(self)
        }
        return replace(self, **moved)


class Samples(Protocol):
    """The windows that training draws from, all prepared."""

    def __len__(self) -> int: ...

    def sample(self, index: int, random: np.random.Generator) -> TrainingBatch:
        """Window `index` as a batch of one, on the CPU. Whatever is drawn for it comes from `random` alone, so that a
        resumed run, and any number of processes, see the same."""
        ...


def collate(samples: Sequence[TrainingBatch]) -> TrainingBatch:
    """Batches joined to one, in their order. Raises InternalError when one has what another lacks."""
    joined: dict[str, Any] = {}
    for field in fields(TrainingBatch):
        values = [getattr(sample, field.name) for sample in samples]
        if any(value is None for value in values) and not all(value is None for value in values):
            raise InternalError(f"some samples of a batch have '{field.name}' and some have not")
        joined[field.name] = None if values[0] is None else torch.cat(values)
    return replace(samples[0], **joined)
