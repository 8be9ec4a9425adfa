"""The orthonormal Haar pair: pictures as wavelet bands on a grid of half the side, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def haar(image: Tensor) -> Tensor:
    """One level of the orthonormal Haar transform, (B, C, H, W) -> (B, 4C, H/2, W/2), bands [LL, LH, HL, HH]."""
    a, b = image[..., 0::2, 0::2], image[..., 0::2, 1::2]
    c, d = image[..., 1::2, 0::2], image[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) * 0.5


def inverse_haar(bands: Tensor) -> Tensor:
    """The inverse of `haar`, (B, 4C, H, W) -> (B, C, 2H, 2W)."""
    batch, channels, height, width = bands.shape
    ll, lh, hl, hh = (bands * 0.5).reshape(batch, 4, channels // 4, height, width).unbind(dim=1)
    pixels = torch.stack([ll + lh + hl + hh, ll + lh - hl - hh, ll - lh + hl - hh, ll - lh - hl + hh], dim=2)
    return F.pixel_shuffle(pixels.reshape(batch, channels, height, width), 2)
