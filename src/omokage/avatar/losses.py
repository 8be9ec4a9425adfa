"""What the avatar is trained for. Every function returns a scalar; pictures are (B, C, S, S) in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.wavelets import haar


def reconstruction(predicted: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 with a squared part that keeps large errors rare; `weight` (B, 1, S, S)."""
    error = predicted - truth
    return (weight * (error.abs() + 4 * error.square())).mean()


def detail(predicted: Tensor, truth: Tensor, weight: Tensor, levels: int = 2) -> Tensor:
    """L1 over the high wavelet bands of the error, finest first: sharp edges without a feature network."""
    error, total = (predicted - truth) * weight, predicted.new_zeros(())
    for _ in range(levels):
        bands = haar(error)
        error = bands[:, : error.shape[1]]
        total = total + bands[:, error.shape[1] :].abs().mean()
    return total


class Critic(nn.Module):
    """Patch discriminator on wavelet bands and drawing, (B, 3 * 16 + 8, G, G) -> scores of patches (B, 1, g, g)."""

    def __init__(self, bands: int, drawing: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3 * bands + drawing, 48, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(48, 64, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(64, 96, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 3, padding=1),
        )

    def forward(self, image: Tensor, drawing: Tensor) -> Tensor:
        bands = image * 2 - 1
        while bands.shape[-1] > drawing.shape[-1]:
            bands = haar(bands)
        scores: Tensor = self.layers(torch.cat([bands * 0.5, drawing], dim=1))
        return scores


def critic_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
