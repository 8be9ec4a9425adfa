"""The processes that share one work, one for each device: who they are, and what they tell each other.

`torchrun` starts them. Everything here does nothing when there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
from torch import Tensor, distributed

# One process may prepare data, or write gigabytes, while the others wait for it.
PATIENCE = timedelta(days=2)


def world_size() -> int:
    """How many processes `torchrun` started with this one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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
        if world_size() == 1:
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

    def share(self, value: Tensor) -> Tensor:
        """What the first process has in the place of this tensor, which is as large everywhere."""
        if self.world == 1:
            return value
        shared = value.contiguous()
        distributed.broadcast(shared, 0)
        return shared

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the mean of all their gradients; each must have them of the same parameters.

        All of them travel as one tensor after the last backward pass: networks that are trained against each other go
        through several, partly of second order, which no hook of a single one could follow.
        """
        gradients = [value.grad for value in parameters if value.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
