"""The avatar network: warp maps and motion in, premultiplied portrait and matte out.

StyleAvatar's composition (Wang et al. 2023, section 3) with compact parts:

    face        neural texture on the morphable face, pulled by the warp map          (3.1, "neural texture")
    foreground  the same on a sheet that carries hair, neck and shoulders, and a U-Net (3.2, "StyleUNet")
    background  a still plate outside the network, joined by the learned matte         (3.3)

Shape letters: B batch, C channels, S output side, G = S / 2**levels grid side.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.config import AvatarConfig
from omokage.avatar.wavelets import haar, inverse_haar

# What `conditioning` draws on the grid beside the warp map: normals (3), face, mouth inside, eyes, place (2).
DRAWING_CHANNELS = 8
# rotation (3), place (3), expression (52), gaze (4).
MOTION_SIZE = 62


class Film(nn.Module):
    """Feature-wise scale and shift from the style vector; starts as the identity."""

    def __init__(self, style_size: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(style_size, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.linear(style)[:, :, None, None].chunk(2, dim=1)
        modulated: Tensor = features * (1 + scale) + shift
        return modulated


class Stage(nn.Module):
    """Two convolutions with ReLU, modulated by the style between them, and a residual path; `kernel` of the first."""

    def __init__(
        self, channels_in: int, channels: int, style_size: int, *, stride: int = 1, kernel: int = 3
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2)
        self.film = Film(style_size, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        features = F.relu(self.film(self.first(features), style))
        return F.relu(features + self.second(features))


class Generator(nn.Module):
    """Warp (B, 2, S, S), drawing (B, 8, G, G), motion (B, 62), mixture (B, 2, K), code (B, N) -> color (B, 3, S, S),
    matte (B, 1, S, S).

    The warp map holds texture coordinates in [-1, 1] (`grid_sample`, align_corners=False) into the atlas: left half the
    face chart, right half the sheet chart. Color is in [0, 1] (not clamped) and straight; matte in [0, 1].
    """

    def __init__(self, config: AvatarConfig) -> None:
        super().__init__()
        self.config = config
        widths, style_size = config.widths, 64
        bands = 4**config.wavelet_levels
        atlas = (config.texture_size, 2 * config.texture_size)
        self.colors = nn.Parameter(torch.full((1, 4, *atlas), 0.5))
        half = (config.texture_modes, 4, atlas[0] // 2, atlas[1] // 2)
        self.modes = nn.Parameter(torch.zeros(half))
        self.features = nn.Parameter(torch.zeros(1, config.texture_channels, *(side // 2 for side in atlas)))
        self.style = nn.Sequential(
            nn.Linear(MOTION_SIZE + config.code_size, style_size),
            nn.ReLU(),
            nn.Linear(style_size, style_size),
        )
        inputs = 4 * bands + config.texture_channels + DRAWING_CHANNELS
        self.stem = Stage(inputs, widths[0], style_size, kernel=config.stem_kernel)
        self.down = nn.ModuleList(
            Stage(above, below, style_size, stride=2) for above, below in pairwise(widths)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in pairwise(widths))
        self.up = nn.ModuleList(Stage(above, above, style_size) for above in widths[:-1])
        kernel = config.head_kernel
        self.head = nn.Conv2d(widths[0], 4 * bands, kernel, padding=kernel // 2)
        self.offset = nn.Conv2d(widths[0], 2, kernel, padding=kernel // 2)
        for layer in (self.head, self.offset):
            # Before training the network adds nothing: the first picture is the explicit composition.
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def weights(self) -> list[nn.Parameter]:
        """What is learned besides the textures: the network proper."""
        textures = {id(texture) for texture in (self.colors, self.modes, self.features)}
        return [parameter for parameter in self.parameters() if id(parameter) not in textures]

    def atlas(self, mixture: Tensor) -> Tensor:
        """The texture of each sample: colours plus modes by strengths (B, 2, K) -> (B, 4, A, 2A)."""
        charts = zip(mixture.unbind(dim=1), self.modes.chunk(2, dim=-1), strict=True)
        change = torch.cat([torch.einsum("bk,kchw->bchw", of, modes) for of, modes in charts], dim=-1)
        return self.colors + F.interpolate(change, scale_factor=2.0, mode="bilinear", align_corners=False)

    @staticmethod
    def pull(atlas: Tensor, warp: Tensor) -> Tensor:
        """The composition before training: texture pulled by the warp map, (B, 4, S, S) colour and matte."""
        return F.grid_sample(atlas, warp.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)

    def forward(
        self, warp: Tensor, drawing: Tensor, motion: Tensor, mixture: Tensor, code: Tensor
    ) -> tuple[Tensor, Tensor]:
        levels, cell = self.config.wavelet_levels, 2**self.config.wavelet_levels
        style = self.style(torch.cat([motion, code], dim=1))

        # Pull the neural texture: colour as wavelet bands, features at the centers of the grid's cells.
        atlas = self.atlas(mixture)
        pulled = self.pull(atlas, warp)
        for _ in range(levels):
            pulled = haar(pulled)
        centers = warp[
            :, :, cell // 2 :: cell, cell // 2 :: cell
        ]  # never averaged: two charts may meet in a cell
        features = F.grid_sample(
            self.features.expand(len(warp), -1, -1, -1),
            centers.permute(0, 2, 3, 1),
            padding_mode="border",
            align_corners=False,
        )

        # Foreground U-Net on the grid.
        x = self.stem(torch.cat([pulled * 2.0**-levels, features, drawing], dim=1), style)
        skips = []
        for stage in self.down:
            skips.append(x)
            x = stage(x, style)
        for lateral, stage, skip in zip(
            reversed(self.lateral), reversed(self.up), reversed(skips), strict=True
        ):
            x = F.interpolate(lateral(x), scale_factor=2.0, mode="nearest")
            x = stage(x + skip, style)

        # Move the texture to where it belongs, then add what no texture holds.
        offset = F.interpolate(
            self.offset(x) * 0.1, scale_factor=float(cell), mode="bilinear", align_corners=False
        )
        bands = self.head(x)
        for _ in range(levels):
            bands = inverse_haar(bands)
        portrait = self.pull(atlas, warp + offset) + bands
        return portrait[:, :3], portrait[:, 3:].clamp(0, 1)


def composite(color: Tensor, matte: Tensor, plate: Tensor) -> Tensor:
    """Portrait over the still background: color (B, 3, S, S), matte (B, 1, S, S), plate (3, S, S) -> (B, 3, S, S)."""
    return color * matte + plate * (1 - matte)
