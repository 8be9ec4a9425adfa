"""Binomial filters around every change of resolution, taps [1, 3, 3, 1] each way (StyleGAN2, Karras et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.wavelets import haar, inverse_haar


class Filter(nn.Module):
    """Holds the 4x4 kernel, which is no weight and in no state dict; `gain` is its sum."""

    kernel: Tensor

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", taps.outer(taps) * (gain / 64), persistent=False)

    def for_channels(self, count: int) -> Tensor:
        """The kernel of a convolution that treats every channel alike, (C, 1, 4, 4)."""
        return self.kernel.expand(count, 1, 4, 4)


class Blur(Filter):
    """(B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3)."""

    def __init__(self, padding: int, gain: float = 1.0) -> None:
        super().__init__(gain)
        self.padding = padding

    def forward(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        return F.conv2d(image, self.for_channels(channels), padding=self.padding, groups=channels)


class Double(Filter):
    """Enlarge by zero insertion and filter, (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self) -> None:
        super().__init__(gain=4.0)

    def forward(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        return F.conv_transpose2d(image, self.for_channels(channels), stride=2, padding=1, groups=channels)


class Halve(Filter):
    """Filter and keep every second pixel, (B, C, H, W) -> (B, C, H/2, W/2)."""

    def forward(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        return F.conv2d(image, self.for_channels(channels), stride=2, padding=1, groups=channels)


class DoubleBands(Double):
    """`Double` of a picture that is given and returned as wavelet bands."""

    def forward(self, bands: Tensor) -> Tensor:
        return haar(super().forward(inverse_haar(bands)))


class HalveBands(Halve):
    """`Halve` of a picture that is given and returned as wavelet bands."""

    def forward(self, bands: Tensor) -> Tensor:
        return haar(super().forward(inverse_haar(bands)))
