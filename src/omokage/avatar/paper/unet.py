"""The style U-Net: wavelet pictures are read on every level down and written on every level up (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from omokage.avatar.paper.config import BANDS, StyleUNetConfig, UNetConfig
from omokage.avatar.paper.layers import (
    GENERATOR_GAIN,
    Conv,
    DownBlock,
    FromBands,
    Mapping,
    StyledConv,
    ToBands,
)
from omokage.avatar.wavelets import haar, inverse_haar

# Noise of a decoder level: one map for each of its two convolutions, or none.
LevelNoise = tuple[Tensor | None, Tensor | None]
NO_NOISE: LevelNoise = (None, None)


class EncoderLevel(nn.Module):
    """bands (B, b, H, W), features (B, I, h, w) or None -> bands (B, b, h, w), features (B, O, h/2, w/2).

    h, w are H/2, W/2, or H, W when the level does not halve the picture that it reads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bands: int = BANDS,
        gain: float = GENERATOR_GAIN,
        is_halving: bool = True,
        released_border: bool = False,
    ) -> None:
        super().__init__()
        self.read = FromBands(bands, inputs, gain=gain, is_halving=is_halving)
        self.down = DownBlock(inputs, outputs, gain=gain, released_border=released_border)

    def forward(self, bands: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        bands, features = self.read(bands, features)
        return bands, self.down(features)


class DecoderLevel(nn.Module):
    """features (B, I, h, w), bands (B, 12, h, w) or None, style (B, D) -> both on 2h x 2w, features (B, O, 2h, 2w)."""

    def __init__(
        self, inputs: int, grown: int, outputs: int, style_size: int, *, is_activated: bool = True
    ) -> None:
        super().__init__()
        self.grow = StyledConv(inputs, grown, style_size, is_doubling=True)
        self.refine = StyledConv(grown, outputs, style_size, is_activated=is_activated)
        self.write = ToBands(outputs, BANDS, style_size)

    def forward(
        self, features: Tensor, bands: Tensor | None, style: Tensor, noise: LevelNoise = NO_NOISE
    ) -> tuple[Tensor, Tensor]:
        features = self.grow(features, style, noise[0])
        features = self.refine(features, style, noise[1])
        return features, self.write(features, style, bands)


class UNet(nn.Module):
    """bands (B, 12, H, W), style (B, D) -> features (B, C, h, w) and bands (B, 12, h, w) of the last level.

    The first levels up join what the encoder saw on their grid; the finest encoder levels need not be joined.
    """

    def __init__(self, config: UNetConfig, style_size: int, *, released_border: bool = False) -> None:
        super().__init__()
        encoder, decoder = (config.stem, *config.encoder), (config.encoder[-1], *config.decoder)
        self.joins = config.joins
        self.encoder = nn.ModuleList(
            EncoderLevel(above, below, released_border=released_border) for above, below in pairwise(encoder)
        )
        self.bottleneck = Conv(encoder[-1], encoder[-1], 3)
        self.join = nn.ModuleList(
            Conv(config.decoder[level] + config.encoder[-2 - level], config.decoder[level], 3)
            for level in range(config.joins)
        )
        self.decoder = nn.ModuleList(
            DecoderLevel(below, above, above, style_size) for below, above in pairwise(decoder)
        )

    def forward(
        self,
        bands: Tensor,
        style: Tensor,
        *,
        noise: Sequence[LevelNoise] | None = None,
        added: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """noise: of every decoder level.  added: features (B, stem, H/2, W/2), joined to what the first level reads."""
        features, skips = added, []
        for level in self.encoder:
            bands, features = level(bands, features)
            skips.append(features)
        features = self.bottleneck(skips.pop())
        written: Tensor | None = None
        for number, level in enumerate(self.decoder):
            features, written = level(features, written, style, NO_NOISE if noise is None else noise[number])
            if number < self.joins:
                features = self.join[number](torch.cat([features, skips.pop()], dim=1))
        assert features is not None and written is not None
        return features, written


class StyleUNet(nn.Module):
    """image (B, 3, I, I) in [-1, 1], code (B, D) -> image (B, 3, O, O), nominally in [-1, 1], not clamped.

    The paper's network by itself: it draws a portrait from a face mesh, or restores a picture.
    """

    def __init__(self, config: StyleUNetConfig, *, released_border: bool = False) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.style.size, config.style.layers)
        self.unet = UNet(config.unet, config.style.size, released_border=released_border)

    def forward(self, image: Tensor, code: Tensor, *, noise: Sequence[LevelNoise] | None = None) -> Tensor:
        """noise: of every decoder level, each map (B or 1, 1, h, w) on the grid of that level; None for none."""
        _, bands = self.unet(haar(image), self.mapping(code), noise=noise)
        return inverse_haar(bands)
