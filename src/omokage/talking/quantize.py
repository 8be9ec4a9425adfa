"""Weights of 8 bits: half the memory of bfloat16 for a small, measured difference.

Every row of a weight has its own scale (symmetric, per output channel; Jacob et al. 2018, section 2). Only the
storage is of 8 bits: products are computed in the precision of the activations, from weights that are scaled back for
the moment of the product.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.errors import InputError


class WeightFormat(Enum):
    """How weights are stored: as they are, as whole numbers, or as floating-point numbers of 8 bits (e4m3)."""

    EXACT = "exact"
    INT8 = "int8"
    FP8 = "fp8"


_LARGEST = {WeightFormat.INT8: 127.0, WeightFormat.FP8: 448.0}


class EightBitLinear(nn.Module):
    """A linear layer whose weight is stored in 8 bits; its bias stays as it is.

    Raises InputError for a format of 8 bits that this version of PyTorch lacks.
    """

    def __init__(self, linear: nn.Linear, weight_format: WeightFormat) -> None:
        super().__init__()
        if weight_format is WeightFormat.FP8 and not hasattr(torch, "float8_e4m3fn"):
            raise InputError(
                "this version of PyTorch has no 8-bit floating point; use int8, or a newer version"
            )
        self.weight_format = weight_format
        values = linear.weight.detach().float()
        largest = values.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        # In the activations' precision from the start, so that scaling back rounds nothing.
        scale = (largest / _LARGEST[weight_format]).to(linear.weight.dtype)
        scaled = values / scale.float()
        # Bits, not numbers: a change of the module's precision must not touch them.
        if weight_format is WeightFormat.INT8:
            bits = scaled.round().clamp(-127, 127).to(torch.int8)
        else:
            bits = scaled.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.int8)
        self.bits: Tensor
        self.scale: Tensor
        self.register_buffer("bits", bits)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """What the stored weight stands for, in the precision of its scale."""
        values = self.bits if self.weight_format is WeightFormat.INT8 else self.bits.view(torch.float8_e4m3fn)
        return values.to(self.scale.dtype) * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)


def quantize_linears(network: nn.Module, weight_format: WeightFormat) -> None:
    """Replace every linear layer within a network, one after the other; nothing happens for `EXACT`."""
    if weight_format is WeightFormat.EXACT:
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, EightBitLinear(child, weight_format))
