"""Layers of the style networks (specification 2.1; StyleGAN2, Karras et al. 2020; wavelet branches as in SWAGAN).

Weights are drawn with unit deviation and scaled by 1 / sqrt(fan in) when they are used, so that all learn at one rate.
Shape letters: B batch, C channels, H W cells, D length of the style code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.paper.filters import Blur, DoubleBands, HalveBands

SLOPE = 0.2  # of every leaky ReLU but those of the mapping
MAPPING_SLOPE = 0.1
# A generator's activations keep their scale, a discriminator's are raised to unit variance.
GENERATOR_GAIN = 1.0
DISCRIMINATOR_GAIN = math.sqrt(2)


class Linear(nn.Module):
    """Equalised linear layer, (B, I) -> (B, O); with `gain`, a leaky ReLU of that gain follows."""

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, gain: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.gain = 1 / math.sqrt(inputs), gain

    def forward(self, values: Tensor) -> Tensor:
        result = F.linear(values, self.weight * self.scale, self.bias)
        return result if self.gain is None else F.leaky_relu(result, SLOPE) * self.gain


class Conv(nn.Module):
    """Equalised convolution with bias, (B, I, H, W) -> (B, O, H, W), and a leaky ReLU of `gain` unless that is None."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, gain: float | None = GENERATOR_GAIN, stride: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.gain, self.stride = 1 / math.sqrt(inputs * kernel**2), gain, stride
        self.padding = kernel // 2

    def forward(self, features: Tensor) -> Tensor:
        result = F.conv2d(
            features, self.weight * self.scale, self.bias, stride=self.stride, padding=self.padding
        )
        return self.activate(result)

    def activate(self, features: Tensor) -> Tensor:
        if self.gain is None:
            return features
        features = F.leaky_relu(features, SLOPE)
        return features if self.gain == 1 else features * self.gain


class HalvingConv(Conv):
    """Blur and 3x3 convolution of stride 2, (B, I, H, W) -> (B, O, H/2, W/2).

    released_border: take the first row and column of the blurred map as zero. The test script that was released with
    the paper does so, the training does not (specification 6.5).
    """

    def __init__(
        self, inputs: int, outputs: int, *, gain: float = GENERATOR_GAIN, released_border: bool = False
    ) -> None:
        super().__init__(inputs, outputs, 3, gain=gain, stride=2)
        self.blur, self.released_border = Blur(inputs, padding=2), released_border

    def forward(self, features: Tensor) -> Tensor:
        blurred, padding = self.blur(features), 0
        if self.released_border:
            blurred, padding = blurred[..., 1:, 1:], 1
        result = F.conv2d(blurred, self.weight * self.scale, self.bias, stride=2, padding=padding)
        return self.activate(result)


class DownBlock(nn.Module):
    """Two convolutions, the second to half the side: (B, I, H, W) -> (B, O, H/2, W/2)."""

    def __init__(
        self, inputs: int, outputs: int, *, gain: float = GENERATOR_GAIN, released_border: bool = False
    ) -> None:
        super().__init__()
        self.keep = Conv(inputs, inputs, 3, gain=gain)
        self.halve = HalvingConv(inputs, outputs, gain=gain, released_border=released_border)

    def forward(self, features: Tensor) -> Tensor:
        halved: Tensor = self.halve(self.keep(features))
        return halved


class FromBands(nn.Module):
    """Read a wavelet picture: bands (B, b, H, W) -> the bands and features (B, C, ...).

    Both are on half the grid, or on the same when `is_halving` is False; `features` that are given are added.
    """

    def __init__(
        self, bands: int, outputs: int, *, gain: float = GENERATOR_GAIN, is_halving: bool = True
    ) -> None:
        super().__init__()
        self.halve = HalveBands(bands // 4) if is_halving else nn.Identity()
        self.read = Conv(bands, outputs, 1, gain=gain)

    def forward(self, bands: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bands = self.halve(bands)
        read: Tensor = self.read(bands)
        return bands, read if features is None else read + features


class ModulatedConv(nn.Module):
    """Convolution whose inputs are scaled by the style (StyleGAN2, section 2.2), (B, I, H, W), (B, D) -> (B, O, ...).

    Scaling the features before, and demodulating them after, gives the same numbers as one kernel a sample would, with
    one dense convolution for the batch. is_doubling: transposed with stride 2 and blurred, to twice the side.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_size: int,
        *,
        is_doubling: bool = False,
        is_demodulated: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.style = Linear(style_size, inputs, bias=1.0)
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel**2), kernel // 2
        self.blur = Blur(outputs, padding=1, gain=4.0) if is_doubling else None
        self.is_demodulated = is_demodulated

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        weight, scales = self.weight * self.scale, self.style(style)
        features = features * scales[:, :, None, None]
        if self.blur is None:
            result = F.conv2d(features, weight, padding=self.padding)
        else:
            result = self.blur(F.conv_transpose2d(features, weight.transpose(0, 1), stride=2))
        if not self.is_demodulated:
            return result
        energy = scales.square() @ weight.square().sum(dim=(2, 3)).T
        return result * torch.rsqrt(energy + 1e-8)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated convolution, bias, noise if any is given, and a leaky ReLU unless `is_activated` is False.

    noise: (B or 1, 1, H, W) on the grid of the result, one map for all channels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style_size: int,
        *,
        is_doubling: bool = False,
        is_activated: bool = True,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style_size, is_doubling=is_doubling)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.is_activated = is_activated

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        features = self.conv(features, style) + self.bias[:, None, None]
        if noise is not None:
            features = features + self.noise_strength * noise
        return F.leaky_relu(features, SLOPE) if self.is_activated else features


class ToBands(nn.Module):
    """Write a wavelet picture: features (B, C, H, W) -> bands (B, 12, H, W).

    Coarser bands (B, 12, H/2, W/2) that are given are enlarged and added.
    """

    def __init__(self, inputs: int, bands: int, style_size: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, bands, 1, style_size, is_demodulated=False)
        self.bias = nn.Parameter(torch.zeros(bands))
        self.enlarge = DoubleBands(bands // 4)

    def forward(self, features: Tensor, style: Tensor, coarser: Tensor | None = None) -> Tensor:
        written: Tensor = self.conv(features, style) + self.bias[:, None, None]
        return written if coarser is None else written + self.enlarge(coarser)


class Mapping(nn.Module):
    """A code (B, D) of any length in space -> the style (B, D) that all layers share (specification 2.1)."""

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))

    def forward(self, code: Tensor) -> Tensor:
        style = unit_power(code)
        for i, layer in enumerate(self.layers):
            style = layer(F.leaky_relu(style, MAPPING_SLOPE) if i else style)
        return style


def unit_power(values: Tensor) -> Tensor:
    """Values (B, D) scaled to a mean square of 1 a row."""
    return values * torch.rsqrt(values.square().mean(dim=1, keepdim=True) + 1e-8)
