"""What a network would multiply and hold, counted without computing it. MAIN: `load_of`, `loads_of`.

The real network runs on PyTorch's meta device, which knows shapes and no values: its operations are counted, and
the bytes of the results that exist at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Load:
    """What a call of a network costs: operations (a multiply-add is two), and bytes held at once besides weights."""

    flops: float
    held: float


def load_of(network: nn.Module, call: Callable[[], Any]) -> Load:
    """Count what a call on the meta device would compute and hold, the network's weights left out."""
    (load,) = loads_of(network, (call() for _ in range(1)))
    return load


def loads_of(network: nn.Module, parts: Iterable[Any]) -> list[Load]:
    """The same of a call that gives its result part by part: after each part, what all until then took."""
    attention, memory, loads = _Attention(), _LiveBytes(network), list[Load]()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, memory, attention:
        for _ in parts:
            loads.append(Load(float(counter.get_total_flops()) + attention.flops, float(memory.peak)))
    return loads


def kept_for_gradients(network: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that a call on the meta device keeps for its backward pass, the network's weights left out."""
    known = {value.untyped_storage()._cdata for value in network.parameters()}
    kept = dict[int, torch.UntypedStorage]()

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        call()
    return sum(storage.nbytes() for storage in kept.values())


class _Attention(TorchFunctionMode):
    """Stands in for attention, which on the meta device would hold the whole matrix as no real kernel does."""

    def __init__(self, *, keeps: bool = False) -> None:
        super().__init__()
        self.flops, self._keeps = 0.0, keeps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        queries, keys, values = args[:3]
        self.flops += 2.0 * queries.numel() * keys.shape[-2] + 2.0 * queries.numel() * values.shape[-2]
        if self._keeps:
            # Keeps all three and gives a result of the right shape, which is kept by what follows.
            return queries * values.sum(dim=-2, keepdim=True) * keys.sum(dim=-2, keepdim=True)
        return torch.empty_like(queries)


def stand_in_attention() -> TorchFunctionMode:
    """Where it is entered, attention keeps its inputs and its result for a gradient, as real kernels do."""
    return _Attention(keeps=True)


class CardAutocast(TorchFunctionMode):
    """The types that `torch.autocast` computes in on a graphics card, for the meta device, where it has no effect:
    products in 16 bits, normalisation and sums in float32 (PyTorch, "Automatic mixed precision", "CUDA op-specific
    behavior"), of the functions that our networks call; all others compute in what they are given."""

    SHORT = frozenset(
        {F.linear, F.scaled_dot_product_attention, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm}
    )
    LONG = frozenset(
        {
            F.layer_norm,
            F.group_norm,
            F.softmax,
            torch.softmax,
            Tensor.softmax,
            F.mse_loss,
            torch.sum,
            Tensor.sum,
        }
    )

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = self._dtype if func in self.SHORT else torch.float32 if func in self.LONG else None
        if dtype is not None:
            args, kwargs = tree_map_only(Tensor, partial(_as_type, dtype=dtype), (args, kwargs))
        return func(*args, **kwargs)


def _as_type(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that results of operations held at the same time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._known = {value.untyped_storage()._cdata for value in network.state_dict().values()}
        self._live: WeakValueDictionary[int, torch.UntypedStorage] = WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.is_meta:
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._live[storage._cdata] = storage
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self._live.values()))
        return result
