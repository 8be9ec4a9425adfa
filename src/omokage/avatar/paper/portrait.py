"""StyleAvatar's image generator: face mesh, textures and a time code in, the portrait out (paper, section 3).

    foreground  a style U-Net draws hair, neck and shoulders over a canvas twice as wide as the picture
    face        a neural texture, pulled by the drawn uv coordinates
    background  a neural texture that stays; a mask, learned from the matte alone, says where it is seen
    image       a style U-Net turns the composed features into the picture

Shape letters: B batch, C channels, S pixels of the picture, G = S/8 cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.paper.config import BANDS, NOISE_CHANNELS, PortraitConfig
from omokage.avatar.paper.layers import Conv, DownBlock, Mapping
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.unet import NO_NOISE, DecoderLevel, LevelNoise, UNet
from omokage.avatar.paper.window import OUTSIDE, Offset, centred, cut_features
from omokage.avatar.wavelets import haar, inverse_haar


@dataclass(frozen=True)
class NoiseMaps:
    """Noise that sticks to face, background and canvas: (1, 21, G, G) each, of the foreground (1, 21, 2G, 2G)."""

    face: Tensor
    background: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class Portrait:
    """image: (B, 3, S, S), nominally in [-1, 1], not clamped.  mask: (B, 1, G, G) in [-1, 1], 1 = background."""

    image: Tensor
    mask: Tensor


class PortraitGenerator(nn.Module):
    """See `forward`; sizes are in `PortraitConfig`."""

    def __init__(self, config: PortraitConfig) -> None:
        super().__init__()
        self.config = config
        style, border = config.style.size, config.released_border
        self.mapping = Mapping(style, config.style.layers)
        self.foreground = UNet(config.foreground, style, released_border=border)
        self.widen = DecoderLevel(
            config.foreground.decoder[-1], config.lift, config.channels, style, is_activated=False
        )
        self.mask = Conv(2 * config.channels, 1, 3, gain=None)
        self.condition = DownBlock(config.channels, config.image.stem, released_border=border)
        self.image = UNet(config.image, style, released_border=border)

    def forward(
        self,
        render: Tensor,
        uv: Tensor,
        face_mask: Tensor,
        face: Texture,
        background: Texture,
        code: Tensor,
        *,
        offset: Offset | None = None,
        noise: NoiseMaps | None = None,
    ) -> Portrait:
        """Draw one window.

        render: (B, 3, S/4, S/4) in [-1, 1], the face mesh, not cut by the window.  uv: (B, 2, G, G) in [-1, 1], which
        place of the face's texture each cell of the window shows.  face_mask: (B, 1, G, G), 1 where it shows one.
        face, background: textures of G x G cells, the background's cut by the window.  code: (B, D).
        offset: of the window in cells, None for the middle.  noise: None for none.
        """
        style = self.mapping(code)
        offset = centred(self.config.grid) if offset is None else offset
        wide = self.draw_foreground(render, style)
        layers = [
            _stack(wide, None if noise is None else noise.foreground),
            _stack(background, None if noise is None else noise.background),
            _stack(face, None if noise is None else noise.face),
        ]
        drawn = cut_features(layers[0], offset, rounded=self.config.rounded_window)
        behind = layers[1].expand(len(render), -1, -1, -1)
        mask = self.draw_mask(drawn, behind)
        composed = compose(drawn, behind, pull(layers[2], uv) * face_mask, mask)
        channels = self.config.channels
        features, bands = composed[:, :channels], composed[:, channels : channels + BANDS]
        levels = [NO_NOISE] * (len(self.image.decoder) - 3)
        levels += [NO_NOISE] * 3 if noise is None else level_noise(composed[:, channels + BANDS :])
        _, drawn_bands = self.image(bands, style, noise=levels, added=self.condition(features))
        return Portrait(inverse_haar(drawn_bands), mask)

    def draw_foreground(self, render: Tensor, style: Tensor) -> Texture:
        """The face mesh (B, 3, S/4, S/4) on a canvas of S/2 -> features and bands of the canvas on 2G cells."""
        canvas = F.pad(render, [render.shape[-1] // 2] * 4, value=OUTSIDE)
        features, bands = self.foreground(haar(canvas), style)
        return Texture(*self.widen(features, bands, style))

    def draw_mask(self, foreground: Tensor, background: Tensor) -> Tensor:
        """Where the background is seen, (B, 1, G, G) in [-1, 1]; it teaches the foreground, not the background."""
        seen = [foreground[:, : self.config.channels], background[:, : self.config.channels].detach()]
        return torch.tanh(self.mask(torch.cat(seen, dim=1)))


def compose(foreground: Tensor, background: Tensor, face: Tensor, mask: Tensor) -> Tensor:
    """Join the parts (B, C, G, G): the mask in [-1, 1] is stretched a little, so that it can be exactly 0 and 1.

    No gradient goes through the mask: it is learned from the matte alone (specification 1.3.8).
    """
    share = ((1.1 * mask).clamp(-1, 1) / 2 + 0.5).detach()
    return foreground * (1 - share) + background * share + face


def pull(texture: Tensor, uv: Tensor) -> Tensor:
    """Texture (1 or B, C, h, w) at the cells that `uv` (B, 2, G, G) in [-1, 1] addresses, (B, C, G, G).

    A place is as exact as `uv` is: with the 8 bits of bfloat16 every eighth would be the wrong one of 128.
    """
    batch = len(uv)
    pulled = F.grid_sample(
        texture.to(uv.dtype).expand(batch, -1, -1, -1),
        uv.permute(0, 2, 3, 1),
        mode="nearest",
        align_corners=False,
    )
    return pulled.to(texture.dtype)


def level_noise(maps: Tensor) -> list[LevelNoise]:
    """Composed noise (B, 21, G, G) -> maps of the three finest levels on G, 2G and 4G, one for both convolutions."""
    found = (maps[:, :1], inverse_haar(maps[:, 1:5]), inverse_haar(inverse_haar(maps[:, 5:])))
    return [(level, level) for level in found]


def draw_noise(config: PortraitConfig, seed: int) -> NoiseMaps:
    """Noise of unit deviation, the same for the same seed."""
    generator, grid = torch.Generator().manual_seed(seed), config.grid

    def draw(side: int) -> Tensor:
        return torch.randn(1, NOISE_CHANNELS, side, side, generator=generator)

    return NoiseMaps(face=draw(grid), background=draw(grid), foreground=draw(2 * grid))


def _stack(texture: Texture, noise: Tensor | None) -> Tensor:
    """Features, bands and noise of one part as channels, so that they are cut, pulled and joined alike."""
    parts = [texture.features, texture.bands]
    if noise is not None:
        parts.append(noise.expand(len(texture.features), -1, -1, -1))
    return torch.cat(parts, dim=1)
