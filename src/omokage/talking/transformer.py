"""The video transformer of Hallo3: noisy latents and conditions in, predicted velocity out.

One class serves twice (Cui et al. 2024, section 3; backbone: CogVideoX, Yang et al. 2024):

    denoiser   text and video attend to each other and to the portrait's reference tokens; then video attends to the
               face and to the speech of its frame
    reference  the same network without face and speech; its normalised video tokens of the masked portrait, before
               the attention of every layer, are the reference tokens of the denoiser's same layer

No state is kept between calls: all conditions arrive as records of `caches`. "Spec" in these modules means the
project's specification of Hallo3, written from the released code and its paper.
Shape letters: B batch, T latent frames, C latent channels, h w latent grid, P tokens of a latent frame, N text tokens,
D width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from omokage.errors import InputError, InternalError
from omokage.talking.attention import Rotaries, rotaries
from omokage.talking.blocks import NORM_EPS, Block, Tokens
from omokage.talking.caches import ConditionCache, Conditions, Modulation, Source
from omokage.talking.config import TransformerConfig
from omokage.talking.parallel import TokenShare
from omokage.talking.projections import AudioProjection, FaceProjection, TimestepModulation

# The very last LayerNorm differs from all others of the width (spec 6.2.11).
HEAD_EPS = 1e-6


class TokenEmbedding(nn.Module):
    """Latents and text to tokens, with learned positions of both."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2 * config.latent_channels, config.width, config.patch, stride=config.patch)
        self.text = nn.Linear(config.text_width, config.width)
        length = config.text_tokens + config.latent_frames * config.tokens_per_frame
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, config.width))

    def forward(self, latents: Tensor, text: Tensor) -> Tokens:
        """Noisy and condition latents together (B, T, 2 C, h, w), text embeddings (B, N, text width) -> tokens.

        Fewer frames than a window take the first positions of the table (spec 6.2.10).
        """
        patches = self.patches(latents.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B*T, P, D)
        video = patches.unflatten(0, latents.shape[:2]).flatten(1, 2)
        words, count = self.text(text), text.shape[1]
        positions = self.positions[:, : count + video.shape[1]]
        return Tokens(words + positions[:, :count], video + positions[:, count:])


class Head(nn.Module):
    """Video tokens (B, T*P, D) to patches (B, T*P, C * patch * patch); channels are the slowest of the last axis."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.stack_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.norm = nn.LayerNorm(config.width, eps=HEAD_EPS)
        self.linear = nn.Linear(config.width, config.latent_channels * config.patch**2)

    def forward(self, video: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        patches: Tensor = self.linear(self.norm(self.stack_norm(video)) * (1 + scale) + shift)
        return patches


class Transformer(nn.Module):
    """Denoiser, or reference network when the configuration has neither face nor audio."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.modulation = TimestepModulation(config)
        self.embedding = TokenEmbedding(config)
        self.face_tokens = FaceProjection(config.face) if config.face is not None else None
        self.audio_tokens = AudioProjection(config.audio) if config.audio is not None else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)

    def forward(
        self,
        latents: Tensor,
        modulation: Modulation,
        conditions: Conditions,
        share: TokenShare | None = None,
    ) -> Tensor:
        """Noisy latents (B, T, C, h, w) -> predicted velocity, same shape, in the precision of the weights.

        share: of the tokens that this process computes, None for all; all processes come to the same result.
        Raises InputError for latents of another grid, InternalError for conditions that do not fit the network.
        """
        for tokens in self.passes(latents, modulation, conditions, share):
            last = tokens
        return self.finish(last.video, modulation, latents.shape, share)

    def finish(
        self, video: Tensor, modulation: Modulation, shape: torch.Size, share: TokenShare | None = None
    ) -> Tensor:
        """Video tokens (B, T*P, D) after the last layer, or a share of them -> velocity of `shape` (B, T, C, h, w)."""
        patches = self.head(video, modulation.head)
        if share is not None:
            patches = share.join(patches, self.config.tokens_per_frame)
        return self.unpatch(patches, shape)

    def passes(
        self,
        latents: Tensor,
        modulation: Modulation,
        conditions: Conditions,
        share: TokenShare | None = None,
    ) -> Generator[Tokens, None, None]:
        """The tokens, or a share of them, that enter the first layer, then those after each layer, each computed when
        it is asked for.

        Raises as `forward` does, before the first.
        """
        self._check(latents, conditions)
        tokens = self.embed(latents, conditions.latents, conditions.text)
        turns = self._rotaries(latents)
        if share is not None:
            tokens, turns = share.cut(tokens, turns)
        yield tokens
        for index, block in enumerate(self._layers):
            tokens = block(
                tokens,
                modulation.blocks[index],
                turns,
                reference=_of_layer(conditions.reference, index),
                face=_of_layer(conditions.face, index),
                audio=_of_layer(conditions.audio, index),
            )
            yield tokens

    def reference_tokens(self, latents: Tensor, text: Tensor | None = None) -> tuple[Tensor, ...]:
        """What a reference network sees: latents (B, 1, C, h, w) of the masked portrait -> of every layer (B, P, D).

        `text`: (B, N, text width), zeros when None. What would follow the last export is not computed (spec 1.5).
        Raises InputError for latents of another grid.
        """
        self._check_latents(latents)
        if text is None:
            text = latents.new_zeros(1, self.config.text_tokens, self.config.text_width)
        tokens, turns = self.embed(latents, latents, text), self._rotaries(latents)
        modulation = self.modulation(latents.new_zeros(1)).blocks
        exported = []
        for index, block in enumerate(self._layers):
            exported.append(block.export(tokens, modulation[index]))
            if index + 1 < len(self.blocks):
                tokens = block(tokens, modulation[index], turns)
        return tuple(exported)

    def cache_reference(self, tokens: tuple[Tensor, ...]) -> ConditionCache:
        """Keys and values of the reference network's tokens, of every layer (B, P, D); once a portrait."""
        layers = zip(self._layers, tokens, strict=True)
        return ConditionCache(
            tuple(block.attention.keys_values(of_layer, block.head_norms) for block, of_layer in layers)
        )

    def cache_face(self, embedding: Tensor) -> ConditionCache:
        """Keys and values of a face embedding (B, embedding), not normalised to unit length; once a portrait."""
        if self.face_tokens is None:
            raise InternalError("this transformer has no face branch; use one whose configuration has `face`")
        tokens = self.face_tokens(embedding)
        return ConditionCache(
            tuple(block.face.keys_values(tokens, block.head_norms) for block in self._layers)
        )

    def cache_audio(self, windows: Tensor) -> ConditionCache:
        """Keys and values of speech features (B, frames, window, layers, channels); once a window of video."""
        if self.audio_tokens is None:
            raise InternalError(
                "this transformer has no audio branch; use one whose configuration has `audio`"
            )
        return self.cache_audio_tokens(self.audio_tokens(windows))

    def cache_audio_tokens(self, tokens: Tensor) -> ConditionCache:
        """Keys and values of speech tokens (B, T, tokens, width), as `audio_tokens` made them."""
        return ConditionCache(
            tuple(block.audio.keys_values(tokens, block.head_norms) for block in self._layers)
        )

    def free_prepared(self) -> None:
        """Give back the weights that work once: modulation, face and speech projections, and the keys of the face.

        Afterwards only `forward` and `cache_audio_tokens` can be used, with modulation and caches made before. Of the
        published denoiser 6.6 of 8.9 billion weights stay.
        """
        del self.modulation
        self.face_tokens = self.audio_tokens = None
        # Of layers that wait elsewhere only copies would be changed.
        if self.config.face is not None and isinstance(self.blocks, nn.ModuleList):
            for block in self._layers:
                del block.face.key_value

    @property
    def _layers(self) -> Iterator[Block]:
        """One after the other: a list of blocks may bring each to the device when its turn comes (see `offload`)."""
        return cast("Iterator[Block]", iter(self.blocks))

    def in_all_layers(self, tokens: Tensor) -> tuple[Source, ...]:
        """Tokens of face or speech as a condition that every layer projects anew, as training does."""
        return (tokens,) * len(self.blocks)

    def embed(self, latents: Tensor, condition_latents: Tensor, text: Tensor) -> Tokens:
        """The tokens that enter the first layer; noise comes first in the channels, condition second (spec 6.1.6)."""
        batch, dtype = len(latents), self.embedding.positions.dtype
        channels = torch.cat([latents, condition_latents.expand(batch, -1, -1, -1, -1)], dim=2)
        tokens: Tokens = self.embedding(channels.to(dtype), text.expand(batch, -1, -1).to(dtype))
        return tokens

    def unpatch(self, patches: Tensor, shape: torch.Size) -> Tensor:
        """Patches (B, T*P, C * patch * patch) back to latents of `shape` (B, T, C, h, w)."""
        batch, frames, channels, height, width = shape
        side = self.config.patch
        grid = patches.reshape(batch, frames, height // side, width // side, channels, side, side)
        return grid.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)

    def _rotaries(self, latents: Tensor) -> Rotaries:
        config, (_, frames, _, height, width) = self.config, latents.shape
        rows, columns = height // config.patch, width // config.patch
        return rotaries(config.text_tokens, frames, rows, columns, config.head_width, latents.device)

    def _check_latents(self, latents: Tensor) -> None:
        config = self.config
        grid = (config.latent_channels, config.latent_height, config.latent_width)
        if latents.dim() != 5 or latents.shape[2:] != grid or latents.shape[1] > config.latent_frames:
            raise InputError(
                f"this transformer takes up to {config.latent_frames} latent frames of {grid}, "
                f"got {tuple(latents.shape)}; its learned positions fit no other size"
            )

    def _check(self, latents: Tensor, conditions: Conditions) -> None:
        config = self.config
        self._check_latents(latents)
        if conditions.text.shape[1:] != (config.text_tokens, config.text_width):
            raise InternalError(
                f"text embeddings must be {config.text_tokens} x {config.text_width}, "
                f"got {tuple(conditions.text.shape[1:])}"
            )
        given = (conditions.face is not None, conditions.audio is not None)
        if given != (config.face is not None, config.audio is not None):
            raise InternalError(
                f"conditions give face and audio as {given}, "
                f"the network needs {config.face is not None, config.audio is not None}"
            )
        if conditions.audio is not None and _frames(conditions.audio[0]) != latents.shape[1]:
            raise InternalError(
                f"speech for {_frames(conditions.audio[0])} latent frames was given to {latents.shape[1]} of video"
            )


def _of_layer(sources: tuple[Source, ...] | None, index: int) -> Source | None:
    return None if sources is None else sources[index]


def _frames(source: Source) -> int:
    """Latent frames that tokens or keys of face or speech are for."""
    return source.shape[1] if isinstance(source, Tensor) else source.keys.shape[1]
