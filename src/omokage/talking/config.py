"""Sizes of the talking-portrait networks. A preset is a function; every field is spelled out there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from omokage.config import Config
from omokage.errors import InputError

# A latent frame holds this many frames of speech, but for the first, which holds one: the autoencoder's compression.
FRAMES_PER_LATENT = 4


@dataclass(frozen=True)
class AudioTokensConfig(Config):
    """From speech features to the tokens of a latent frame.

    window: frames of speech features that one video frame sees, itself in the middle.
    layers, channels: hidden states of the speech encoder, and the width of each.
    hidden: width of the two inner layers.
    tokens, width: tokens of a latent frame, and the width of each.
    """

    window: int
    layers: int
    channels: int
    hidden: int
    tokens: int
    width: int


@dataclass(frozen=True)
class FaceTokensConfig(Config):
    """From a face embedding of `embedding` numbers to `tokens` tokens of `width`."""

    embedding: int
    tokens: int
    width: int


@dataclass(frozen=True)
class TransformerConfig(Config):
    """Architecture of one video transformer.

    layers, width, heads: depth, token width, attention heads.
    mlp_ratio: width of the feed-forward layer over `width`.
    timestep_width: width of the timestep embedding.
    latent_channels: channels of the noisy latents, of the condition latents, and of the output.
    latent_frames, latent_height, latent_width: the grid of one window, which the learned positions are made for.
    patch: side of the square of latent cells that is one token.
    text_tokens, text_width: the text embeddings.
    audio, face: their cross-attention branches; None where the network has none.
    """

    layers: int
    width: int
    heads: int
    mlp_ratio: int
    timestep_width: int
    latent_channels: int
    latent_frames: int
    latent_height: int
    latent_width: int
    patch: int
    text_tokens: int
    text_width: int
    audio: AudioTokensConfig | None
    face: FaceTokensConfig | None

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 16:
            raise InputError(
                f"the rotary embedding of three axes needs heads of a multiple of 16 channels, "
                f"got {self.width} channels in {self.heads} heads"
            )
        if self.latent_height % self.patch or self.latent_width % self.patch:
            raise InputError(
                f"latents of {self.latent_height} x {self.latent_width} cannot be cut into patches of {self.patch}"
            )

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def tokens_per_frame(self) -> int:
        """Video tokens of one latent frame."""
        return (self.latent_height // self.patch) * (self.latent_width // self.patch)

    @property
    def frames(self) -> int:
        """Video frames of one window."""
        return FRAMES_PER_LATENT * (self.latent_frames - 1) + 1

    @property
    def reference(self) -> TransformerConfig:
        """The identity reference network that goes with this denoiser: the same, without face and audio."""
        return replace(self, audio=None, face=None)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output. Unknown names raise TypeError."""
        audio, face = values["audio"], values["face"]
        nested = {
            "audio": None if audio is None else AudioTokensConfig.from_json(audio),
            "face": None if face is None else FaceTokensConfig.from_json(face),
        }
        return cls(**{**values, **nested})


def official() -> TransformerConfig:
    """The published denoiser: 8.9 billion weights, windows of 49 frames of 480 x 720 pixels."""
    return TransformerConfig(
        layers=42,
        width=3072,
        heads=48,
        mlp_ratio=4,
        timestep_width=512,
        latent_channels=16,
        latent_frames=13,
        latent_height=60,
        latent_width=90,
        patch=2,
        text_tokens=226,
        text_width=4096,
        audio=AudioTokensConfig(window=5, layers=12, channels=768, hidden=512, tokens=32, width=768),
        face=FaceTokensConfig(embedding=512, tokens=4, width=1024),
    )


def tiny() -> TransformerConfig:
    """The same network in 0.1 million weights, for tests."""
    return TransformerConfig(
        layers=2,
        width=32,
        heads=2,
        mlp_ratio=4,
        timestep_width=48,
        latent_channels=16,
        latent_frames=13,
        latent_height=8,
        latent_width=12,
        patch=2,
        text_tokens=6,
        text_width=28,
        audio=AudioTokensConfig(window=5, layers=12, channels=16, hidden=16, tokens=4, width=24),
        face=FaceTokensConfig(embedding=20, tokens=4, width=40),
    )


def small() -> TransformerConfig:
    """Learns one person at 96 x 96 pixels from scratch on a CPU: 4 million weights, windows of 17 frames.

    Goes with `small_vae`, `LogMelEncoder` and `ThumbnailIdentity`. No words are read: what the text tokens say is
    learned, as their positions.
    """
    return TransformerConfig(
        layers=6,
        width=192,
        heads=6,
        mlp_ratio=4,
        timestep_width=128,
        latent_channels=32,
        latent_frames=5,
        latent_height=6,
        latent_width=6,
        patch=1,
        text_tokens=4,
        text_width=8,
        audio=AudioTokensConfig(window=5, layers=3, channels=80, hidden=64, tokens=8, width=32),
        face=FaceTokensConfig(embedding=108, tokens=4, width=64),
    )


@dataclass(frozen=True)
class SamplerConfig(Config):
    """How noise becomes latents.

    steps: evaluations of the network.  guidance_scale: 1 is none.  stochastic: solve the SDE, else the ODE.
    together: evaluate both halves of guidance as one batch.

    Two savings that change the result, off as they stand:
    guidance_interval: shares of the steps between which guidance works (Kynkäänniemi et al. 2024); all by default.
    reuse_threshold: relative change of the first layer below which a step reuses the layers behind it, see `reuse`.
    """

    steps: int
    guidance_scale: float
    stochastic: bool
    together: bool
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse_threshold: float = 0.0

    def __post_init__(self) -> None:
        begin, end = self.guidance_interval
        if not 0 <= begin <= end <= 1 or not 0 <= self.reuse_threshold < 1:
            raise InputError(
                "guidance works between two shares of the steps, and reuse below a threshold, all from 0 to 1; "
                f"got {self.guidance_interval} and {self.reuse_threshold:g}"
            )

    def is_guided(self, index: int) -> bool:
        """Whether guidance works in a step, counted from 0."""
        begin, end = (share * self.steps for share in self.guidance_interval)
        return self.guidance_scale != 1 and begin <= index < end

    @property
    def guided_steps(self) -> int:
        """Steps that need both halves of guidance."""
        return sum(self.is_guided(index) for index in range(self.steps))


def official_sampler() -> SamplerConfig:
    """What the published videos are made with."""
    return SamplerConfig(steps=50, guidance_scale=3.5, stochastic=True, together=True)
