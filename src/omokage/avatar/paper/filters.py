"""Binomial filters around every change of resolution, taps [1, 3, 3, 1] each way (StyleGAN2, Karras et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.wavelets import haar, inverse_haar


class Filter(nn.Module):
    """Holds the kernel (C, 1, 4, 4), which is no weight and in no state dict; `gain` is its sum for each channel."""

    kernel: Tensor

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (taps.outer(taps) * (gain / 64)).repeat(channels, 1, 1, 1)
        self.register_buffer("kernel", kernel, persistent=False)
        self.channels = channels


class Blur(Filter):
    """(B, C, H, W) -> (B, C, H + 2 padding - 3, W + 2 padding - 3)."""

    def __init__(self, channels: int, padding: int, gain: float = 1.0) -> None:
        super().__init__(channels, gain)
        self.padding = padding

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(image, self.kernel, padding=self.padding, groups=self.channels)


class Double(Filter):
    """Enlarge by zero insertion and filter, (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, gain=4.0)

    def forward(self, image: Tensor) -> Tensor:
        return F.conv_transpose2d(image, self.kernel, stride=2, padding=1, groups=self.channels)


class Halve(Filter):
    """Filter and keep every second pixel, (B, C, H, W) -> (B, C, H/2, W/2)."""

    def forward(self, image: Tensor) -> Tensor:
        return F.conv2d(image, self.kernel, stride=2, padding=1, groups=self.channels)


class DoubleBands(Double):
    """`Double` of a picture of C channels that is given and returned as its 4C wavelet bands."""

    def forward(self, bands: Tensor) -> Tensor:
        return haar(super().forward(inverse_haar(bands)))


class HalveBands(Halve):
    """`Halve` of a picture of C channels that is given and returned as its 4C wavelet bands."""

    def forward(self, bands: Tensor) -> Tensor:
        return haar(super().forward(inverse_haar(bands)))
