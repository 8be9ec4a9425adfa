"""Neural textures: what a place of the face, or of the background, looks like (paper, sections 3.1 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from omokage.avatar.paper.config import StyleConfig, TextureConfig
from omokage.avatar.paper.layers import Mapping
from omokage.avatar.paper.unet import DecoderLevel


@dataclass(frozen=True)
class Texture:
    """features (B, C, h, w) and the wavelet bands (B, 12, h, w) of a coarse picture on the same cells."""

    features: Tensor
    bands: Tensor


class TextureGenerator(nn.Module):
    """code (B, D) -> `Texture` on G x G cells.

    Its input is constant for one recording, so after training only the texture is kept. The features are normalised
    over the batch while it trains.
    """

    def __init__(self, config: TextureConfig, style: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(style.size, style.layers)
        self.constant = nn.Parameter(torch.randn(1, config.constant, config.base, config.base))
        self.levels = nn.ModuleList(
            DecoderLevel(below, above, above, style.size)
            for below, above in pairwise((config.constant, *config.widths))
        )
        self.norm = nn.BatchNorm2d(config.widths[-1])

    def forward(self, code: Tensor) -> Texture:
        style = self.mapping(code)
        features, bands = self.constant.expand(len(code), -1, -1, -1), None
        for level in self.levels:
            features, bands = level(features, bands, style)
        assert bands is not None
        return Texture(self.norm(features), bands)
