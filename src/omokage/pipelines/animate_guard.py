"""The consent is asked for within a step of `animate` too, which takes minutes on a processor: a withdrawal counts
within a minute whatever takes how long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from omokage.talking.blocks import Block
from omokage.talking.offload import WaitingBlocks
from omokage.talking.rollout import Scene

Check = Callable[[], None]


@contextmanager
def asked_by_networks(check: Check) -> Iterator[None]:
    """`check` is called before every part of any network that this thread runs; what it raises ends the network's work.

    The longest that nobody is asked is then one convolution or one matrix product.
    """
    owner = threading.get_ident()

    def ask(*_: Any) -> None:
        if threading.get_ident() == owner:  # others work for other people
            check()

    handle = register_module_forward_pre_hook(ask)
    try:
        yield
    finally:
        handle.remove()


def asked_in(scene: Scene, check: Check, *, is_compiled: bool) -> AbstractContextManager[None]:
    """As `asked_by_networks`, of a denoiser whose layers may be compiled: then before each layer and each part of the
    autoencoder, since the compiler takes nothing that is asked within a layer."""
    if not is_compiled:
        return asked_by_networks(check)
    blocks: Any = scene.denoiser.blocks
    layers = tuple(blocks.skeletons if isinstance(blocks, WaitingBlocks) else blocks)
    parts: tuple[nn.Module, ...] = (*layers, *scene.vae.modules())
    assert all(isinstance(layer, Block) for layer in layers)
    for part in parts:
        part.register_forward_pre_hook(lambda *_: check())
    return nullcontext()
