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
FIRST_LOGVAR = -6.0

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
        return frames.reshape(len(features), -1, *frames.shape[1:]).transpose(1, 2)


class SmallBlock(nn.Module):
    """A residual block: one convolution over time and space, one over space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = CellNorm(width), CellNorm(width)
        self.first = CausalConvolution(width, width)
        self.second = FrameConvolution(width, width)
        _silence(self.second.conv)

    def forward(self, features: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, tail = self.first(F.silu(self.first_norm(features)), past)
        return features + self.second(F.silu(self.second_norm(inner))), tail


class SmallEncoder(nn.Module):
    """Cells of a clip to the moments of its latents; takes and gives what the released encoder does.

    The mean is that of a linear map of four frames, `projection`, and of the convolutions, which begin with nothing. So
    training may begin with principal components (see `begin_with`). grid: see `SmallDecoder`.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        latent_channels: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.scale = 2 ** (len(widths) - 1)
        self.picture = _picture(channels, grid, self.scale)
        self.projection = nn.Conv3d(4 * channels * self.scale**2, latent_channels, kernel_size=1, bias=False)
        self.inlet = FrameConvolution(channels, widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList(SmallBlock(width) for _ in range(blocks)) for width in widths
        )
        self.halvings = nn.ModuleList(
            FrameConvolution(width, wider, stride=2) for width, wider in pairwise(widths)
        )
        self.norm = CellNorm(widths[-1])
        self.outlet = nn.Conv3d(widths[-1], 2 * latent_channels, kernel_size=1)
        _silence(self.outlet)
        # Noise as large as the latents would teach nothing at first.
        nn.init.constant_(self.outlet.bias[latent_channels:], FIRST_LOGVAR)  # type: ignore[index]

    def forward(self, cells: Tensor) -> tuple[Tensor, None]:
        """(B, channels, T, h, w) in one pass -> mean and logvar (B, 2 latent channels, t, h', w'), and no cache."""
        cells = cells - self.picture
        features = self.inlet(cells)
        for index, level in enumerate(self.levels):
            if index:
                halved = self.halvings[index - 1](features)
                features = halved + _regrouped(_coarser(features, 2), halved.shape[1])
                if index <= TIME_HALVINGS:
                    features = halve_time(features)
            for block in _blocks(level):
                features, _ = block(features, None)
        mean, logvar = self.outlet(F.silu(self.norm(features))).chunk(2, dim=1)
        return torch.cat([mean + self.projection(stacked(cells, self.scale)), logvar], dim=1), None


class SmallDecoder(nn.Module):
    """Latents to cells, chunk by chunk; takes and gives what the released decoder does.

    Like the encoder, a linear map, `expansion`, and convolutions that begin with nothing.
    grid: rows and columns of latents whose places the two networks learn, features of every level and the picture that
    frames are compared with; None for networks to which every place is alike.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        latent_channels: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.scale = 2 ** (len(widths) - 1)
        self.picture = _picture(channels, grid, self.scale)
        self.expansion = nn.Conv3d(latent_channels, 4 * channels * self.scale**2, kernel_size=1, bias=False)
        self.places = nn.ParameterList(
            _picture(width, grid, 2**level) for level, width in enumerate(reversed(widths))
        )
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
        _silence(self.outlet.conv)
        self.motion = nn.Parameter(torch.zeros(()))

    def forward(self, values: Tensor, conv_cache: Tails | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """A chunk (B, latent channels, t, h', w') and what the one before left -> cells, and what the next needs."""
        past, tails = conv_cache or {}, dict[str, Tensor]()
        features, tails["inlet"] = self.inlet(values, past.get("inlet"))
        for index, level in enumerate(self.levels):
            if index:
                wide = self.doublings[index - 1](features)
                features = _finer(wide + _regrouped(features, wide.shape[1]), 2)
                if index <= TIME_HALVINGS:
                    features = double_time(features)
            features = features + self.places[index]
            for number, block in enumerate(_blocks(level)):
                name = f"{index}.{number}"
                features, tails[name] = block(features, past.get(name))
        cells = self.outlet(F.silu(self.norm(features)))
        still = self.picture + unstacked(self.expansion(values), self.scale) + cells
        moving, last = in_motion(still, past, self.motion)
        return moving, tails | last


def begin_with(encoder: SmallEncoder, decoder: SmallDecoder, frames: Tensor, components: Tensor) -> None:
    """Let both begin as a linear autoencoder, such as of principal components.

    frames: cells (channels, h, w) of the mean picture.  components: (latent channels, 4 * channels * scale^2), of any
    length, orthogonal to each other: cells of four frames as `stacked` gives them.
    """
    lengths = components.norm(dim=1, keepdim=True)
    with torch.no_grad():
        for network in (encoder, decoder):
            if network.picture.numel() > 1:
                network.picture.copy_(frames[:, None])
        encoder.projection.weight.copy_((components / lengths**2)[..., None, None, None])
        decoder.expansion.weight.copy_(components.T[..., None, None, None])


def stacked(cells: Tensor, scale: int) -> Tensor:
    """(B, C, T, h, w) -> (B, 4 C scale^2, t, h / scale, w / scale): all that a latent cell stands for, side by side.

    Four frames; a first frame that stays alone is there twice or four times.
    """
    features = _coarser(cells, scale)
    for _ in range(TIME_HALVINGS):
        odd = features.shape[2] % 2
        both = torch.cat([features[:, :, :odd], features], dim=2)
        features = torch.cat([both[:, :, 0::2], both[:, :, 1::2]], dim=1)
    return features


def unstacked(features: Tensor, scale: int) -> Tensor:
    """The inverse of `stacked`; a first frame that stays alone is the mean of its copies."""
    for _ in range(TIME_HALVINGS):
        first, second = features.chunk(2, dim=1)
        single = features.shape[2] % 2
        alone = (first[:, :, :single] + second[:, :, :single]) / 2
        pairs = torch.stack([first[:, :, single:], second[:, :, single:]], dim=3).flatten(2, 3)
        features = torch.cat([alone, pairs], dim=2)
    return _finer(features, scale)


def in_motion(cells: Tensor, past: Tails, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Let the four frames of a latent frame go on as they came from the ones before: (B, C, T, h, w), and the tail.

    Few latents tell little of what moves within four frames, and frames that stand still and then jump are seen as
    flicker. This share of the difference of the means is spread over the frames, in a straight line through the middle
    of the four.
    """
    single = cells.shape[2] % 2
    groups = torch.unflatten(cells[:, :, single:], 2, (-1, 2**TIME_HALVINGS))
    alone = cells[:, :, :1] if single else past.get("alone")
    if not groups.shape[2]:
        return cells, {"alone": cells}
    means = groups.mean(dim=3)
    first = means[:, :, :1]
    # From a frame alone to the middle of the next four it is less far than from one middle to another.
    near = 0 if alone is None else (first - alone) / 2.5
    far = 0 if "mean" not in past else (first - past["mean"]) / 4
    steps = torch.cat([torch.zeros_like(first) + near + far, means.diff(dim=2) / 4], dim=2)
    places = torch.arange(groups.shape[3], device=cells.device, dtype=cells.dtype) - (groups.shape[3] - 1) / 2
    moving = (groups + share * steps[:, :, :, None] * places[:, None, None]).flatten(2, 3)
    return torch.cat([cells[:, :, :single], moving], dim=2), {"mean": means[:, :, -1:]}


def _silence(layer: nn.Conv2d | nn.Conv3d) -> None:
    """Let a layer add nothing before it has learned."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _picture(channels: int, grid: tuple[int, int] | None, scale: int) -> nn.Parameter:
    """Something that is learned of every place, zero at first; without a grid of none."""
    if grid is None:
        return nn.Parameter(torch.zeros(()), requires_grad=False)
    return nn.Parameter(torch.zeros(channels, 1, scale * grid[0], scale * grid[1]))


def _blocks(level: nn.Module) -> list[SmallBlock]:
    return [block for block in level.children() if isinstance(block, SmallBlock)]


def halve_time(features: Tensor) -> Tensor:
    """(B, C, T, h, w) -> pairs of frames averaged; the first of an odd number stays alone."""
    odd = features.shape[2] % 2
    batch, channels, frames, *grid = features.shape
    pairs = features[:, :, odd:].reshape(batch, channels, frames // 2, 2, *grid).mean(dim=3)
    return torch.cat([features[:, :, :odd], pairs], dim=2)


def double_time(features: Tensor) -> Tensor:
    """(B, C, T, h, w) -> every frame twice; the first of an odd number once."""
    single = features.shape[2] % 2
    twice = features[:, :, single:].repeat_interleave(2, dim=2)
    return torch.cat([features[:, :, :single], twice], dim=2)


def _coarser(features: Tensor, scale: int) -> Tensor:
    """(B, C, T, h, w) -> (B, C scale^2, T, h / scale, w / scale)."""
    return F.pixel_unshuffle(features.transpose(1, 2), scale).transpose(1, 2)


def _finer(features: Tensor, scale: int) -> Tensor:
    """(B, C scale^2, T, h, w) -> (B, C, T, h scale, w scale)."""
    return F.pixel_shuffle(features.transpose(1, 2), scale).transpose(1, 2)


def _regrouped(features: Tensor, width: int) -> Tensor:
    """(B, C, T, h, w) as `width` channels without weights: means of neighbours, or each several times.

    The shortcut around a change of the grid (Chen et al. 2024, "Deep Compression Autoencoder", section 3.2).
    """
    channels = features.shape[1]
    if channels > width:
        batch, _, *rest = features.shape
        return features.reshape(batch, width, channels // width, *rest).mean(dim=2)
    return features.repeat_interleave(width // channels, dim=1)
