"""The processes of one training, one for each device: who they are, and how they share the weights.

Weights, gradients and the optimiser's state are cut over the processes (FSDP; Zhao et al. 2023), which `torchrun`
starts. Everything here does nothing when there is one process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_dataclass

from omokage.talking.blocks import Block, Tokens
from omokage.talking.caches import Modulation
from omokage.talking.projections import AudioProjection, TimestepModulation
from omokage.talking.training.couple import Couple

# One process may prepare data, or write gigabytes, while the others wait for it.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Workers:
    """rank: of this process, 0 to `world` - 1.  device: where it computes."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device | None = None) -> Self:
        """The only process; on the processor unless told otherwise."""
        return cls(0, 1, device or torch.device("cpu"))

    @classmethod
    def join(cls, device: torch.device) -> Self:
        """Meet the other processes that `torchrun` started; alone without it. Each takes its own card."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls.alone(device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks for all."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """This process's share of `count` things, which all processes have as many of."""
        share = count // self.world
        return range(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: float) -> float:
        """The mean of what all processes have."""
        if self.world == 1:
            return value
        values = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(values)
        return float(values) / self.world

    def agree(self, *values: float) -> tuple[float, ...]:
        """What the first process says."""
        if self.world == 1:
            return values
        said = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(said, 0)
        return tuple(said.tolist())

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            distributed.barrier()

    def shard(self, couple: Couple) -> None:
        """Cut all weights over the processes; layer by layer they come together for the moment of their use."""
        if self.world == 1:
            return
        for record in (Tokens, Modulation):  # so that gradients are noticed inside of them
            register_dataclass(record)
        mesh = init_device_mesh(self.device.type, (self.world,))
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.device.type == "cuda" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        units = [m for m in couple.modules() if isinstance(m, Block | AudioProjection | TimestepModulation)]
        for unit in units:
            fully_shard(unit, mesh=mesh, mp_policy=precision)
            if isinstance(unit, Block):
                register_fsdp_forward_method(unit, "export")
        fully_shard(couple, mesh=mesh, mp_policy=precision)


def whole(value: Tensor) -> Tensor:
    """A tensor put together from what all processes hold; all of them call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor; a change of it changes the tensor."""
    return value.to_local() if isinstance(value, DTensor) else value
