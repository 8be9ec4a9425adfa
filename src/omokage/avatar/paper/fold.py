"""A generator whose style never changes: modulated convolutions become ordinary ones with fixed kernels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.paper.layers import ModulatedConv
from omokage.avatar.paper.portrait import PortraitGenerator


class FixedConv(nn.Module):
    """A `ModulatedConv` for one style; takes a style as that does, and ignores it."""

    weight: Tensor

    def __init__(self, conv: ModulatedConv, style: Tensor) -> None:
        super().__init__()
        scales = conv.style(style)[0]
        weight = conv.weight * conv.scale * scales[:, None, None]
        if conv.is_demodulated:
            weight = weight * torch.rsqrt(weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
        self.blur, self.padding = conv.blur, conv.padding
        # A transposed convolution wants its inputs first.
        self.register_buffer("weight", (weight if conv.blur is None else weight.transpose(0, 1)).contiguous())

    def forward(self, features: Tensor, _style: Tensor) -> Tensor:
        if self.blur is None:
            return F.conv2d(features, self.weight, padding=self.padding)
        blurred: Tensor = self.blur(F.conv_transpose2d(features, self.weight, stride=2))
        return blurred


class FixedStyle(nn.Module):
    """A mapping that has one style (1, D), whatever code it is given."""

    style: Tensor

    def __init__(self, style: Tensor) -> None:
        super().__init__()
        self.register_buffer("style", style)

    def forward(self, _code: Tensor) -> Tensor:
        return self.style


@torch.no_grad()
def fold_style(generator: PortraitGenerator, code: Tensor) -> PortraitGenerator:
    """A copy of the generator that draws every picture with the style of one code (1, D), whatever code it is given.

    The result computes in the precision that it is brought to by `to`, of which the places in the face's texture are
    left out (`portrait.pull`).
    """
    folded = copy.deepcopy(generator).requires_grad_(False)
    style = folded.mapping(code)
    setattr(folded, "mapping", FixedStyle(style))  # noqa: B010 - not the kind of module that it was
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ModulatedConv):
                setattr(parent, name, FixedConv(child, style))
    return folded
