"""Layers that PyTorch's compiler fuses for the machine before their first use; an option, off unless asked for.

Layer by layer: all are alike, so that one compilation of seconds to a minute serves all of them, and a second one
passes of another batch size. The network is not changed otherwise, and its numbers only by the order of a few sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from types import MethodType
from typing import Any

import torch

from omokage.compiling import BACKEND, Compiled
from omokage.talking.blocks import Block, Tokens
from omokage.talking.offload import WaitingBlocks
from omokage.talking.transformer import Transformer


def compile_layers(
    network: Transformer, say: Callable[[str], None], backend: str | Callable[..., Any] = BACKEND
) -> None:
    """Let every layer of a network be compiled when it is first used, wherever it waits until then.

    Where the compiler does not work the layers run as they are, and `say` hears a sentence. `backend`: of
    `torch.compile`.
    """
    forward = Compiled(_compiled(backend), Block.forward, say=say, what="layers run")
    blocks: Any = network.blocks
    layers: Iterable[Any] = blocks.skeletons if isinstance(blocks, WaitingBlocks) else blocks
    for layer in layers:
        # Bound like a method, so that a copy of the layer runs with its own weights.
        layer.forward = MethodType(forward, layer)


@cache
def _compiled(backend: str | Callable[..., Any]) -> Callable[..., Tokens]:
    """One for all networks of the process, so that a second run finds everything compiled."""
    return torch.compile(Block.forward, backend=backend, dynamic=False)
