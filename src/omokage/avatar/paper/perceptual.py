"""The perceptual loss on VGG19's features (Johnson et al. 2016), with weights of the user: none come along.

The released training computes this loss and never learns from it (specification 6.6); here it is in the sum.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.errors import InputError
from omokage.files import refuse_device
from omokage.official import read_official, require_state_dict

# Convolutions of torchvision's `features` up to the last compared one, by stage; a stage begins with pooling.
STAGES = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,))
# Compared is what each stage's first convolution says (specification 3.1: up to layers 2, 7, 12, 21 and 30), the finer
# the less.
WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, colours in [0, 1]
SHRINK = 2  # 1024 pixels are compared at 512


class PerceptualLoss(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] -> scalar: weighted L1 between their features at half the size."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for index in (number for stage in STAGES for number in stage):
            self.register_buffer(f"weight_{index}", weights[f"features.{index}.weight"].float())
            self.register_buffer(f"bias_{index}", weights[f"features.{index}.bias"].float())
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None])

    @classmethod
    def load(cls, path: Path) -> PerceptualLoss:
        """Read torchvision's VGG19 (`features.N.weight`, `.bias`) from safetensors or its own `.pth`.

        Raises InputError when the file is unreadable or lacks a tensor.
        """
        refuse_device(path)
        if path.suffix == ".safetensors":
            try:
                weights = load_file(path)
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} is not a readable safetensors file ({error}); use a copy"
                ) from error
        else:
            weights = require_state_dict(path, read_official(path))
        for name in (
            f"features.{n}.{part}" for stage in STAGES for n in stage for part in ("weight", "bias")
        ):
            if name not in weights:
                raise InputError(
                    f"{path} lacks the tensor '{name}' of VGG19; give torchvision's weights of that network"
                )
        return cls(weights)

    def forward(self, drawn: Tensor, truth: Tensor) -> Tensor:
        pair = F.avg_pool2d(torch.cat([drawn, truth.detach()]), SHRINK)
        features, loss = ((pair + 1) / 2 - self.mean) / self.deviation, drawn.new_zeros(())
        for stage, share in zip(STAGES, WEIGHTS, strict=True):
            features = features if stage[0] == 0 else F.max_pool2d(features, 2)
            for index in stage:
                weight, bias = self.get_buffer(f"weight_{index}"), self.get_buffer(f"bias_{index}")
                features = F.relu(F.conv2d(features, weight, bias, padding=1))
                if index == stage[0]:
                    mine, true = features.chunk(2)
                    loss = loss + share * F.l1_loss(mine, true)
        return loss
