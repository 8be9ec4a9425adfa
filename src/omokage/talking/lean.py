"""The decoder of the autoencoder in a third of its memory, with the same numbers.

What takes the memory of a wide layer is not its result but what is made on the way: copies for the conditioned norm, a
copy of the clip with the frames before it, and the tails of all convolutions for the next chunk. Here norms work on a
slice of their groups at a time, convolutions on one frame at a time, and tails wait in the machine's memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.talking.vae import CausalVae

NORM_SLICES = 8
_NORM, _CONVOLUTION = "CogVideoXSpatialNorm3D", "CogVideoXCausalConv3d"


class LeanSpatialNorm(nn.Module):
    """A group norm whose scale and shift are convolved from the latents (Zheng et al. 2022, MoVQ, equation 4).

    `norm`: the library's layer, whose parameters it shares.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm_layer: nn.GroupNorm = norm.norm_layer
        self.conv_y: Any = norm.conv_y
        self.conv_b: Any = norm.conv_b

    def forward(self, f: Tensor, zq: Tensor, conv_cache: Any = None) -> tuple[Tensor, None]:
        """Features (B, C, T, h, w) and latents (B, c, t, h', w') -> conditioned features, and nothing for later."""
        norm, latents = self.norm_layer, _to_grid(zq, f)
        slices = NORM_SLICES if norm.num_groups % NORM_SLICES == 0 else 1
        width, groups = f.shape[1] // slices, norm.num_groups // slices
        result = torch.empty_like(f)
        for start in range(0, f.shape[1], width):
            part = slice(start, start + width)
            scaled = F.group_norm(f[:, part], groups, norm.weight[part], norm.bias[part], norm.eps)
            scaled.mul_(_channels(self.conv_y, latents, part))
            result[:, part] = scaled.add_(_channels(self.conv_b, latents, part))
        return result, None


class LeanCausalConvolution(nn.Module):
    """A convolution over time that sees its own and earlier frames; `convolution`: the library's layer."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.conv: nn.Conv3d = convolution.conv

    def forward(self, inputs: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A chunk (B, C, T, h, w) and the frames before it -> its features, and the frames before the next chunk.

        Before the first frame of a clip there is that frame.
        """
        reach, count = self.conv.kernel_size[0] - 1, inputs.shape[2]
        past = (
            inputs[:, :, :1].expand(-1, -1, reach, -1, -1)
            if conv_cache is None
            else conv_cache.to(inputs.device)
        )
        result: Tensor | None = None
        for frame in range(count):
            seen = inputs[:, :, max(frame - reach, 0) : frame + 1]
            if frame < reach:
                seen = torch.cat([past[:, :, frame:], seen], dim=2)
            one = self.conv(seen)
            if result is None:
                result = one.new_empty(*one.shape[:2], count, *one.shape[3:])
            result[:, :, frame : frame + 1] = one
        assert result is not None
        tail = torch.cat([past, inputs[:, :, -reach:]], dim=2)[:, :, -reach:]
        return result, _parked(tail)


def make_lean(vae: CausalVae) -> None:
    """Exchange the layers of a decoder; what it decodes stays the same, but for the order of a few sums."""
    _exchange(vae.decoder)


def _exchange(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        kind = type(child).__name__
        if kind == _NORM:
            setattr(module, name, LeanSpatialNorm(child))
        elif kind == _CONVOLUTION and _is_plain(child):
            setattr(module, name, LeanCausalConvolution(child))
        else:
            _exchange(child)


def _is_plain(convolution: Any) -> bool:
    """Whether it sees one step of time after the other, and the first frame before the first."""
    conv: nn.Conv3d = convolution.conv
    is_dense = conv.stride[0] == 1 and conv.dilation[0] == 1 and conv.padding[0] == 0
    return conv.kernel_size[0] > 1 and is_dense and bool(convolution.pad_mode != "replicate")


def _parked(tail: Tensor) -> Tensor:
    """In the machine's memory; a plan without values (the meta device) sees the same sizes in the same places."""
    return torch.empty_like(tail, device="cpu") if tail.is_meta else tail.to("cpu", copy=True)


def _to_grid(latents: Tensor, features: Tensor) -> Tensor:
    """Latents at the size of features; where their number of frames is odd, the first one stands for itself."""
    if features.shape[2] > 1 and features.shape[2] % 2:
        grid = features.shape[-2:]
        first = F.interpolate(latents[:, :, :1], size=(1, *grid))
        rest = F.interpolate(latents[:, :, 1:], size=(features.shape[2] - 1, *grid))
        return torch.cat([first, rest], dim=2)
    return F.interpolate(latents, size=features.shape[-3:])


def _channels(convolution: Any, inputs: Tensor, part: slice) -> Tensor:
    """Some output channels of a convolution of single cells."""
    conv = convolution.conv
    return F.conv3d(inputs, conv.weight[part], conv.bias[part])
