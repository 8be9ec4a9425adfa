"""Low-rank updates of linear layers (LoRA; Hu et al. 2021): trained beside frozen weights, saved as a small file,
added to the weights when a model is loaded.

Own code, not `peft`: it is less than what fitting that library's names and its many kinds of adapters to our files
would take, and animation needs the sum of weights alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.errors import InternalError, WeightsError
from omokage.files import parse_json, refuse_device, saving

FORMAT, VERSION = "omokage.lora", 1
# Parameters of an adapted linear layer beside its weight (out, in): (rank, in) and (out, rank).
DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class Lora:
    """The updates of a model: tensors by the name of their part, as 'denoiser', and of the parameter there.

    scale: factor of every product up @ down.  base: digest of the weights that they were trained beside.
    """

    tensors: Mapping[str, Tensor]
    scale: float
    base: str

    @property
    def digest(self) -> str:
        """SHA-256 of all values."""
        found = hashlib.sha256(str(self.scale).encode())
        for name, value in sorted(self.tensors.items()):
            found.update(name.encode() + value.numpy().tobytes())
        return found.hexdigest()

    def of(self, part: str) -> Mapping[str, Tensor]:
        """Those of one network, by the names of its own parameters."""
        return {
            name.removeprefix(f"{part}."): value
            for name, value in self.tensors.items()
            if name.startswith(f"{part}.")
        }


def add_adapters(network: nn.Module, rank: int, scale: float, seed: int) -> None:
    """Give every linear layer whose weight is trained an update of this rank instead, and freeze all else.

    `down` begins as small noise and `up` as zero, so that nothing changes at first.
    """
    random = torch.Generator().manual_seed(seed)
    chosen = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    network.requires_grad_(False)
    for linear in chosen:
        device = linear.weight.device
        down = torch.randn(rank, linear.in_features, generator=random) / linear.in_features**0.5
        linear.register_parameter(DOWN, nn.Parameter(down.to(device)))
        linear.register_parameter(UP, nn.Parameter(torch.zeros(linear.out_features, rank, device=device)))

        def add_update(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # The parameters are float32, and without autocast the tokens of a bfloat16 network are not.
            down, up = (getattr(module, name).to(inputs[0].dtype) for name in (DOWN, UP))
            return output + scale * F.linear(F.linear(inputs[0], down), up).to(output.dtype)

        linear.register_forward_hook(add_update)


def merge(network: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add updates, by the names that `add_adapters` gives, to the weights of a plain network, layer by layer.

    The sum is made in float32 and rounded once. Raises WeightsError for updates of another network.
    """
    weights = dict(network.named_parameters())
    for target, down, up in _pairs(tensors):
        weight = weights.get(f"{target}.weight")
        if weight is None or weight.shape != (len(up), down.shape[1]) or up.shape[1] != len(down):
            raise WeightsError(
                f"the LoRA file holds an update of '{target}' that does not fit this model; give one that was trained "
                "with these weights"
            )
        with torch.no_grad():
            update = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
            weight.copy_(weight.float() + scale * update)


def save_lora(path: Path, lora: Lora) -> None:
    """Write the updates as safetensors. Raises OutputError."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "lora": json.dumps({"scale": lora.scale, "base": lora.base}),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in lora.tensors.items()}
    with saving(path, SafetensorError) as part:
        save_file(tensors, part, metadata)


def load_lora(path: Path) -> Lora:
    """Read a file of `save_lora`. Raises WeightsError for any other."""
    refuse_device(path, WeightsError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, str(VERSION)):
            raise KeyError("format")
        described: dict[str, Any] = parse_json(metadata["lora"])
        return Lora(tensors, float(described["scale"]), str(described["base"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is no LoRA file of this version; give a file that 'omokage train-portrait --lora' wrote"
        ) from error


def _pairs(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of the linear layer, down, up."""
    for name, down in tensors.items():
        target, _, kind = name.rpartition(".")
        if kind == DOWN:
            if f"{target}.{UP}" not in tensors:
                raise InternalError(f"the update of '{target}' has only one of its two parts")
            yield target, down, tensors[f"{target}.{UP}"]
