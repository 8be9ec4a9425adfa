"""One training shared by several processes: weights, gradients and the optimiser's state are cut over them.

Fully sharded data parallelism (Zhao et al. 2023). Everything here does nothing when there is one process.
"""

from __future__ import annotations

import torch
from torch import Tensor
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
from omokage.workers import Workers


def shard(couple: Couple, workers: Workers) -> None:
    """Cut all weights over the processes; layer by layer they come together for the moment of their use."""
    if workers.world == 1:
        return
    for record in (Tokens, Modulation):  # so that gradients are noticed inside of them
        register_dataclass(record)
    mesh = init_device_mesh(workers.device.type, (workers.world,))
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if workers.device.type == "cuda" else None,
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
