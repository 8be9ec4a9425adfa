"""Encoder and decoder of the small autoencoder: the causal design of the released one, light enough to learn on a CPU.

Halvings in space and time, the rule of the odd first frame, and causal convolutions with explicit caches are those of
`vae`. Two things differ (specification 7.1): a pixel stem in front, so that no layer sees the full grid, and norms over
the channels of one cell, without conditioning on the latents. So nothing but convolutions looks at other frames: the
encoder is causal to the bit, and a clip decoded in chunks is the clip decoded at once.

Shapes: B batch, T frames, C channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Halvings of time, between the first levels of either network.
TIME_HALVINGS = 2
NORM_EPS = 1e-6

# Name of a convolution -> its last inputs.
Tails = Mapping[str, Tensor]


class CellNorm(nn.Module):
    """Root mean square over the channels of every cell (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, 1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * torch.rsqrt(features.square().mean(dim=1, keepdim=True) + NORM_EPS) * self.gain


class CausalConvolution(nn.Module):
    """3 x 3 x 3 cells: this frame and the two before it. Before the first frame of a clip there is that frame."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, width, kernel_size=3, padding=(0, 1, 1))

    def forward(self, features: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, T, h, w) and the two frames before -> its features, and the two frames before the next chunk."""
        before = features[:, :, :1].expand(-1, -1, 2, -1, -1) if past is None else past
        seen = torch.cat([before, features], dim=2)
        return self.conv(seen), seen[:, :, -2:]


class FrameConvolution(nn.Module):
    """3 x 3 cells of every frame by itself; `stride` of 2 halves the grid."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        frames: Tensor = self.conv(features.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(features), -1)).transpose(1, 2)


class SmallBlock(nn.Module):
    """A residual block: one convolution over time and space, one over space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = CellNorm(width), CellNorm(width)
        self.first = CausalConvolution(width, width)
        self.second = FrameConvolution(width, width)

    def forward(self, features: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, tail = self.first(F.silu(self.first_norm(features)), past)
        return features + self.second(F.silu(self.second_norm(inner))), tail


class SmallEncoder(nn.Module):
    """Cells of a clip to the moments of its latents; takes and gives what the released encoder does."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.inlet = FrameConvolution(channels, widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(SmallBlock(width) for _ in range(blocks)) for width in widths
        )
        self.halvings = nn.ModuleList(
            FrameConvolution(width, wider, stride=2) for width, wider in pairwise(widths)
        )
        self.norm = CellNorm(widths[-1])
        self.outlet = nn.Conv3d(widths[-1], 2 * latent_channels, kernel_size=1)

    def forward(self, cells: Tensor) -> tuple[Tensor, None]:
        """(B, channels, T, h, w) in one pass -> mean and logvar (B, 2 latent channels, t, h', w'), and no cache."""
        features = self.inlet(cells)
        for index, level in enumerate(self.levels):
            if index:
                features = self.halvings[index - 1](features)
                if index <= TIME_HALVINGS:
                    features = halve_time(features)
            for block in level:
                features, _ = block(features, None)
        return self.outlet(F.silu(self.norm(features))), None


class SmallDecoder(nn.Module):
    """Latents to cells, chunk by chunk; takes and gives what the released decoder does."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, latent_channels: int) -> None:
        super().__init__()
        self.inlet = CausalConvolution(latent_channels, widths[-1])
        self.levels = nn.ModuleList(
            nn.ModuleList(SmallBlock(width) for _ in range(blocks)) for width in reversed(widths)
        )
        # Four cells from each, side by side in the channels: cheaper than a convolution on the larger grid.
        self.doublings = nn.ModuleList(
            FrameConvolution(wider, 4 * width) for wider, width in pairwise(reversed(widths))
        )
        self.norm = CellNorm(widths[0])
        self.outlet = FrameConvolution(widths[0], channels)

    def forward(self, values: Tensor, conv_cache: Tails | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """A chunk (B, latent channels, t, h', w') and what the one before left -> cells, and what the next needs."""
        past, tails = conv_cache or {}, dict[str, Tensor]()
        features, tails["inlet"] = self.inlet(values, past.get("inlet"))
        for index, level in enumerate(self.levels):
            if index:
                features = double_grid(self.doublings[index - 1](features))
                if index <= TIME_HALVINGS:
                    features = double_time(features)
            for number, block in enumerate(level):
                name = f"{index}.{number}"
                features, tails[name] = block(features, past.get(name))
        return self.outlet(F.silu(self.norm(features))), tails


def halve_time(features: Tensor) -> Tensor:
    """(B, C, T, h, w) -> pairs of frames averaged; the first of an odd number stays alone."""
    odd = features.shape[2] % 2
    pairs = features[:, :, odd:].unflatten(2, (-1, 2)).mean(dim=3)
    return torch.cat([features[:, :, :odd], pairs], dim=2)


def double_time(features: Tensor) -> Tensor:
    """(B, C, T, h, w) -> every frame twice; the first of an odd number of more than one once."""
    single = features.shape[2] % 2 if features.shape[2] > 1 else 1
    twice = features[:, :, single:].repeat_interleave(2, dim=2)
    return torch.cat([features[:, :, :single], twice], dim=2)


def double_grid(features: Tensor) -> Tensor:
    """(B, 4 C, T, h, w) -> (B, C, T, 2 h, 2 w)."""
    return F.pixel_shuffle(features.transpose(1, 2), 2).transpose(1, 2)
