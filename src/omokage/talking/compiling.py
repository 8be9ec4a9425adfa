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

from omokage.talking.blocks import Block, Tokens
from omokage.talking.offload import WaitingBlocks
from omokage.talking.transformer import Transformer

BACKEND = "inductor"


def compile_layers(
    network: Transformer, say: Callable[[str], None], backend: str | Callable[..., Any] = BACKEND
) -> None:
    """Let every layer of a network be compiled when it is first used, wherever it waits until then.

    Where the compiler does not work the layers run as they are, and `say` hears a sentence. `backend`: of
    `torch.compile`.
    """
    forward = _Forward(backend, say)
    blocks: Any = network.blocks
    layers: Iterable[Any] = blocks.skeletons if isinstance(blocks, WaitingBlocks) else blocks
    for layer in layers:
        # Bound like a method, so that a copy of the layer runs with its own weights.
        layer.forward = MethodType(forward, layer)


class _Forward:
    """`Block.forward`, compiled as long as that works."""

    def __init__(self, backend: str | Callable[..., Any], say: Callable[[str], None]) -> None:
        self._backend, self._say, self._works = backend, say, True

    def __call__(self, block: Block, *given: Any, **named: Any) -> Tokens:
        if self._works:
            # Seconds that only those wait for who compile.
            from torch._dynamo.exc import TorchDynamoException

            try:
                return _compiled(self._backend)(block, *given, **named)
            except TorchDynamoException as error:
                self._works = False
                # What the compiler itself says stands behind what PyTorch says of it.
                inner = getattr(error, "inner_exception", error)
                cause = f"{type(inner).__name__}: {inner}".splitlines()[0].rstrip(".:")
                self._say(
                    f"layers run as they are, since they cannot be compiled on this machine ({cause}); a C++ compiler, "
                    "and for a graphics card the package triton, are needed"
                )
        return Block.forward(block, *given, **named)


@cache
def _compiled(backend: str | Callable[..., Any]) -> Callable[..., Tokens]:
    """One for all networks of the process, so that a second run finds everything compiled."""
    return torch.compile(Block.forward, backend=backend, dynamic=False)
