"""What the video transformer is told besides the noisy latents, as immutable records.

A condition reaches a layer as tokens, or as the keys and values that this layer makes of them (`KeyValue`). Those
depend on no timestep, so they are made once: of the portrait's reference tokens and face once a portrait, of the speech
once a window. Modulation depends on the timestep alone and is made once for all steps.

Shape letters: B batch, T latent frames, N tokens, A heads, d head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omokage.errors import InternalError


@dataclass(frozen=True)
class KeyValue:
    """Keys, normalised within each head, and values; both (B, A, N, d), or (B, T, A, N, d) when frames differ.

    A batch of 1 serves a batch of any size, one frame serves all frames.
    """

    keys: Tensor
    values: Tensor

    def expand(self, batch: int) -> KeyValue:
        """The same for `batch` samples, without a copy."""
        rest = (-1,) * (self.keys.dim() - 1)
        return KeyValue(self.keys.expand(batch, *rest), self.values.expand(batch, *rest))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> KeyValue:
        """The same on another device, and in another precision when `dtype` is given."""
        return KeyValue(self.keys.to(device, dtype), self.values.to(device, dtype))


# Tokens (B, N, D) of the reference or (B, T, N, D) of face and speech, or what a layer made of them.
Source = Tensor | KeyValue


@dataclass(frozen=True)
class ConditionCache:
    """Keys and values of one condition in every layer (spec 3.3, savings 1 to 4)."""

    layers: tuple[KeyValue, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.nbytes for layer in self.layers for part in (layer.keys, layer.values))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ConditionCache:
        """The same on another device, and in another precision when `dtype` is given."""
        return ConditionCache(tuple(layer.to(device, dtype) for layer in self.layers))


@dataclass(frozen=True)
class Modulation:
    """Shifts, scales and gates of every layer, a row for a timestep (spec 3.3, saving 5).

    blocks: of each layer (rows, 12 D).  head: (rows, 2 D).
    """

    blocks: tuple[Tensor, ...]
    head: Tensor

    def row(self, index: int) -> Modulation:
        """One timestep of a table, for a batch of any size."""
        rows = slice(index, index + 1)
        return Modulation(tuple(block[rows] for block in self.blocks), self.head[rows])


@dataclass(frozen=True)
class Conditions:
    """Everything the transformer is told. Each batch is B or 1.

    text: embeddings (B, N, text width); zeros are the null condition.
    latents: condition latents (B, T, C, h, w), portrait and motion frames in the first latent frame, then zeros.
    reference: of every layer, the portrait as seen by the reference network, or None for no portrait.
    face, audio: of every layer, tokens of the face embedding and of the speech; None where the network has no branch.
    """

    text: Tensor
    latents: Tensor
    reference: tuple[Source, ...] | None = None
    face: tuple[Source, ...] | None = None
    audio: tuple[Source, ...] | None = None

    def join(self, other: Conditions) -> Conditions:
        """Both as one batch, first these, then `other`. What both share, as the same object, stays a batch of 1.

        Raises InternalError when one has a condition that the other lacks.
        """
        return Conditions(
            _join(self.text, other.text),
            _join(self.latents, other.latents),
            _join_layers(self.reference, other.reference),
            _join_layers(self.face, other.face),
            _join_layers(self.audio, other.audio),
        )


def _join(first: Tensor, second: Tensor) -> Tensor:
    if first is second and len(first) == 1:
        return first
    return torch.cat([first, second])


def _join_layers(
    first: tuple[Source, ...] | None, second: tuple[Source, ...] | None
) -> tuple[Source, ...] | None:
    if first is None or second is None:
        if first is not second:
            raise InternalError(
                "conditions can only be joined when both have a portrait, face and speech or lack them"
            )
        return None
    if first is second and _batch(first[0]) == 1:
        return first
    return tuple(_join_sources(a, b) for a, b in zip(first, second, strict=True))


def _join_sources(first: Source, second: Source) -> Source:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _join(first, second)
    assert isinstance(first, KeyValue) and isinstance(second, KeyValue)
    return KeyValue(_join(first.keys, second.keys), _join(first.values, second.values))


def _batch(source: Source) -> int:
    return len(source) if isinstance(source, Tensor) else len(source.keys)
