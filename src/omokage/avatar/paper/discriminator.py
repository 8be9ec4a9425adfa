"""The wavelet discriminator and the losses that it takes part in (specification 2.4 and 3.1)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.paper.config import DiscriminatorConfig
from omokage.avatar.paper.layers import DISCRIMINATOR_GAIN, Conv, FromBands, Linear
from omokage.avatar.paper.unet import EncoderLevel
from omokage.avatar.wavelets import haar
from omokage.errors import InputError

GROUP = 4  # samples that are compared with each other


class Discriminator(nn.Module):
    """Pictures (B, C, S, S) in [-1, 1] -> logits (B, 1), high for real ones.

    With 6 channels, the last 3 are the face mesh that the picture was drawn from. B above 4 is a multiple of 4.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        bands, widths = 4 * config.channels, (config.stem, *config.widths)
        self.levels = nn.ModuleList(
            EncoderLevel(above, below, bands=bands, gain=DISCRIMINATOR_GAIN, is_halving=number > 0)
            for number, (above, below) in enumerate(pairwise(widths))
        )
        last = widths[-1]
        self.read = FromBands(bands, last, gain=DISCRIMINATOR_GAIN)
        self.conv = Conv(last + 1, last, 3, gain=DISCRIMINATOR_GAIN)
        self.hidden = Linear(last * 16, last, gain=DISCRIMINATOR_GAIN)
        self.verdict = Linear(last, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        bands, features = haar(pictures), None
        for level in self.levels:
            bands, features = level(bands, features)
        _, features = self.read(bands, features)
        features = self.conv(torch.cat([features, batch_deviation(features)], dim=1))
        logits: Tensor = self.verdict(self.hidden(features.flatten(start_dim=1)))
        return logits


def batch_deviation(features: Tensor) -> Tensor:
    """How much samples differ, (B, C, H, W) -> (B, 1, H, W): the mean deviation within groups of up to 4 samples.

    Samples i, i + B/4, i + B/2 and i + 3B/4 form a group. Raises InputError when B is above 4 and no multiple of 4.
    """
    batch, _, height, width = features.shape
    group = min(batch, GROUP)
    if batch % group:
        raise InputError(
            f"the discriminator compares samples in fours: a batch of {batch} is no multiple of 4"
        )
    deviation = (features.reshape(group, batch // group, -1).var(dim=0, unbiased=False) + 1e-8).sqrt()
    return deviation.mean(dim=1).repeat(group)[:, None, None, None].expand(-1, 1, height, width)


def generator_loss(fake: Tensor) -> Tensor:
    """Gmain, logits (B, 1) -> scalar: the non-saturating logistic loss."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Dmain, logits (B, 1) -> scalar: the logistic loss."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def gradient_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): mean over the batch of the squared gradient of the logits by `image` (B, 3, S, S)."""
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
