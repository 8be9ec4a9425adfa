"""The causal video autoencoder: pixels <-> latents, 8 times smaller in space and 4 times in time.

The two networks are those of CogVideoX (Yang et al. 2024, section 2.1) as `diffusers` builds them; ours is how they
are driven: video (B, T, C, H, W), one pass for encoding, causal chunks with explicit caches for decoding. Nothing is
kept on a module between two calls, so any number of requests may share one.

Shapes: B batch, T frames, t latent frames, C channels, H W pixels, h w latent grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.config import Config
from omokage.errors import InputError, MissingDependencyError
from omokage.official import KeyMap
from omokage.talking.config import FRAMES_PER_LATENT
from omokage.talking.small_vae import SmallDecoder, SmallEncoder

NORM_EPS = 1e-6
VAE_PREFIX = "first_stage_model."
# Of the Gaussian that the encoder predicts; only absurd weights reach them.
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VaeConfig(Config):
    """Architecture of the autoencoder.

    widths: channels of the levels from the finest down; the grid halves between two of them, time between the first
    three.  blocks: residual blocks of a level in the encoder; the decoder has one more.
    latent_channels: of the latent video.  norm_groups: of every group norm.
    stem: side of the pixel squares that become channels before the first convolution; 1 is the released network.
    scale: what latents are multiplied by, so that they have about unit deviation.
    is_small: encoder and decoder are those of `small_vae` instead of the released ones.
    grid: rows and columns of the latents that small networks are for, see `SmallDecoder`; None for any.
    """

    widths: tuple[int, ...]
    blocks: int
    latent_channels: int
    norm_groups: int
    stem: int
    scale: float
    is_small: bool = False
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.widths) < 3:
            raise InputError(
                f"the video autoencoder halves time twice and so needs at least 3 widths, got {len(self.widths)}"
            )
        if self.is_small and any(
            4 * width % wider or wider % width for width, wider in pairwise(self.widths)
        ):
            raise InputError(
                "between two levels of the small video autoencoder the width must grow 1, 2 or 4 times, got "
                f"{self.widths}"
            )
        if any(width % self.norm_groups for width in self.widths):
            raise InputError(
                f"the widths of the video autoencoder must be multiples of its {self.norm_groups} norm groups, "
                f"got {self.widths}"
            )

    @property
    def spatial_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.stem << (len(self.widths) - 1)


def official_vae() -> VaeConfig:
    """The released network: 215.6 million parameters."""
    return VaeConfig(
        widths=(128, 256, 256, 512), blocks=3, latent_channels=16, norm_groups=32, stem=1, scale=0.7
    )


def small_vae() -> VaeConfig:
    """Learns one person at 96 x 96 pixels from scratch: 6 x 6 cells of 32 channels, 5 million parameters.

    Its scale is measured when it has learned.
    """
    return VaeConfig(
        widths=(48, 96, 192),
        blocks=1,
        latent_channels=32,
        norm_groups=1,
        stem=4,
        scale=1.0,
        is_small=True,
        grid=(6, 6),
    )


def tiny_vae() -> VaeConfig:
    """For tests: every kind of layer, 4 million parameters."""
    return VaeConfig(widths=(32, 64, 64, 128), blocks=1, latent_channels=4, norm_groups=32, stem=1, scale=0.7)


@dataclass(frozen=True, slots=True)
class Posterior:
    """The Gaussian of one clip's latents, before scaling: `mean` and `logvar`, both (B, t, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise; `noise` is unit Gaussian of the same shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True, slots=True)
class DecoderCache:
    """What a decoder has to remember of one chunk for the next: the last two inputs of every causal convolution.

    Layer name -> tensor or another such mapping. Belongs to one clip; never changed in place.
    """

    tails: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """`video` (B, T, 3, H, W) in about [-1, 1] of one chunk, and the `cache` that the next chunk needs."""

    video: Tensor
    cache: DecoderCache


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of `frames`: each of the two halvings leaves an odd first frame alone (3 -> 2 -> 1)."""
    for _ in range(2):
        frames = (frames + 1) // 2
    return frames


def chunk_lengths(count: int) -> tuple[int, ...]:
    """How `count` latent frames are decoded: two at a time, an odd one with the first two. 13 -> 3, 2, 2, 2, 2, 2.

    Group norms span a chunk's frames, so another cut gives slightly other pictures (specification of the released
    pipeline, 2.3): this one is what the released pipeline does.
    """
    if count < 1:
        raise InputError(f"at least one latent frame is needed to decode a video, got {count}")
    if count < 4:
        return (count,)
    return (2 + count % 2,) + (2,) * (count // 2 - 1)


class CausalVae(nn.Module):
    """Video <-> scaled latents. Raises MissingDependencyError when `diffusers`, which has the released networks, is not
    installed."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        colors = 3 * config.stem**2
        self.encoder: nn.Module
        self.decoder: nn.Module
        if config.is_small:
            sizes = (colors, config.widths, config.blocks, config.latent_channels, config.grid)
            self.encoder, self.decoder = SmallEncoder(*sizes), SmallDecoder(*sizes)
            return
        network = _autoencoder_class()(
            in_channels=colors,
            out_channels=colors,
            down_block_types=("CogVideoXDownBlock3D",) * len(config.widths),
            up_block_types=("CogVideoXUpBlock3D",) * len(config.widths),
            block_out_channels=config.widths,
            latent_channels=config.latent_channels,
            layers_per_block=config.blocks,
            norm_eps=NORM_EPS,
            norm_num_groups=config.norm_groups,
            temporal_compression_ratio=float(FRAMES_PER_LATENT),
        )
        # Its own encode() and decode() cut clips in another way than the released pipeline does.
        self.encoder, self.decoder = network.encoder, network.decoder

    def posterior(self, video: Tensor) -> Posterior:
        """Encode (B, T, 3, H, W) in [-1, 1] in one pass; t is `latent_frames(T)`, unscaled.

        Raises InputError when a side is not a multiple of `config.spatial_factor`.
        """
        cell = self.config.spatial_factor
        height, width = video.shape[-2:]
        if height % cell or width % cell:
            raise InputError(
                f"the video autoencoder takes sides that are multiples of {cell} pixels, got {width}x{height}"
            )
        cells = F.pixel_unshuffle(video, self.config.stem).transpose(1, 2)
        moments, _ = self.encoder(cells)
        mean, logvar = moments.transpose(1, 2).chunk(2, dim=2)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, t, C, h, w) of a video (B, T, 3, H, W) in [-1, 1].

        With unit Gaussian `noise` of the latents' shape the posterior is sampled, as the released pipeline always does
        (even for the portrait); without, its mean is taken and the result is the same every time.
        """
        posterior = self.posterior(video)
        return self.config.scale * (posterior.mean if noise is None else posterior.sample(noise))

    def decode_chunk(self, latents: Tensor, cache: DecoderCache | None) -> DecodedChunk:
        """Decode scaled latents (B, t, C, h, w) that follow what `cache` comes from; None: they begin the clip.

        A chunk of odd t gives 4t - 3 frames (the first latent frame of a clip holds one), an even one 4t.
        """
        values = (latents / self.config.scale).transpose(1, 2)
        cells, tails = self.decoder(values, conv_cache=None if cache is None else dict(cache.tails))
        video = F.pixel_shuffle(cells.transpose(1, 2), self.config.stem)
        return DecodedChunk(video, DecoderCache(tails))

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode scaled latents (B, t, C, h, w) chunk by chunk, see `chunk_lengths`: yields (B, T, 3, H, W) in about
        [-1, 1], the first chunk of an odd t with one frame for its first latent frame. Only one chunk is in memory.
        """
        cache: DecoderCache | None = None
        for part in torch.split(latents, list(chunk_lengths(latents.shape[1])), dim=1):
            chunk = self.decode_chunk(part, cache)
            cache = chunk.cache
            yield chunk.video


# Our name -> the official one, in this order. The decoder's levels are counted from the other end.
_RENAMES = (
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bup\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"\bdown_blocks\.(\d+)\.", r"down.\1."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bresnets\.(\d+)\.", r"block.\1."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
)


def official_vae_key(key: str, config: VaeConfig) -> str:
    """The official name, behind its prefix, of one of our parameters."""
    last = len(config.widths) - 1
    key = re.sub(r"\bup_blocks\.(\d+)\.", lambda found: f"up.{last - int(found[1])}.", key)
    for ours, official in _RENAMES:
        key = re.sub(ours, official, key)
    return key


def vae_keys(config: VaeConfig, prefix: str = VAE_PREFIX) -> KeyMap:
    """Every key that the official autoencoder of this architecture has under `prefix`; its own file has none.

    That file also holds the training's `loss.*`, which is no part of the network.
    """
    with torch.device("meta"):
        ours = CausalVae(config).state_dict()
    return KeyMap({prefix + official_vae_key(key, config): key for key in ours}, frozenset())


def _autoencoder_class() -> Any:
    # Imported when first used: it takes seconds, and only this command of the product needs it.
    try:
        from diffusers import AutoencoderKLCogVideoX
    except ImportError as error:
        raise MissingDependencyError(
            "the video autoencoder needs the package diffusers, which is not installed; "
            "run: pip install 'omokage[portrait]'"
        ) from error
    return AutoencoderKLCogVideoX
