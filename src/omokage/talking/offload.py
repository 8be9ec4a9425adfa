"""Layers that wait in the machine's memory and come to the device in their turn.

The weights of a group of layers lie in one piece of pinned memory, so that a group is one copy; while one group
computes, the next one travels on a stream of its own. The network is the same, layer for layer and bit for bit: only
its list of blocks is exchanged, from outside. Nothing of a pass is kept on a module, so several may run at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Where a tensor may begin within a piece: what copies and kernels like best.
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in a group's piece: layer within the group, key, first byte, and its form."""

    layer: int
    key: str
    begin: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, piece: Tensor) -> Tensor:
        return piece[self.begin : self.begin + self.size].view(self.dtype).view(self.shape)


class _Group:
    """Neighbouring layers: their structure without weights, and one piece of memory with all weights."""

    def __init__(self, blocks: Sequence[nn.Module], *, is_pinned: bool) -> None:
        self.places: list[_Place] = []
        begin = 0
        for layer, block in enumerate(blocks):
            for key, value in block.state_dict().items():
                place = _Place(layer, key, begin, value.shape, value.dtype)
                self.places.append(place)
                begin += -(-place.size // ALIGNMENT) * ALIGNMENT
        self.piece = torch.empty(begin, dtype=torch.uint8, pin_memory=is_pinned)
        loaded = [block.state_dict() for block in blocks]
        for place in self.places:
            place.view(self.piece).copy_(loaded[place.layer][place.key])
        # Emptied before the next group is read: all weights are never in memory twice.
        self.skeletons = [block.to("meta") for block in blocks]

    def filled(self, piece: Tensor) -> list[nn.Module]:
        """Layers of their own whose weights are a copy of the piece on some device."""
        blocks = [copy.deepcopy(skeleton) for skeleton in self.skeletons]
        weights: list[dict[str, Tensor]] = [{} for _ in blocks]
        for place in self.places:
            weights[place.layer][place.key] = place.view(piece)
        for block, values in zip(blocks, weights, strict=True):
            block.load_state_dict(values, assign=True)
        return blocks


class _Buffer:
    """Memory of the device for one group after the other, and the events that keep copies and computation apart."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._is_cuda = device, device.type == "cuda"
        self._filled = 0
        self._copied: Any = None
        self._free: Any = None

    def load(self, group: _Group, stream: Any) -> None:
        """Copy a group into this buffer, on a stream of its own or, for None, in turn with the computation."""
        self._filled = group.piece.nbytes
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            if stream is not None and self._free is not None:
                stream.wait_event(self._free)
            self._bytes[: self._filled].copy_(group.piece, non_blocking=self._is_cuda)
            self._copied = stream.record_event() if stream is not None else None

    def arrived(self) -> Tensor:
        """The group's bytes; what is computed with them waits until they have come."""
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._bytes[: self._filled]

    def release(self) -> None:
        """All computation with the bytes was asked for: the next copy may come when it is done."""
        self._free = torch.cuda.current_stream(self._device).record_event() if self._is_cuda else None


class WaitingBlocks(nn.Module):
    """A list of blocks that brings each to the device when an iteration comes to it.

    group: blocks that travel together.  ahead: the next group travels while one computes; needs memory for two.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device, *, group: int, ahead: bool) -> None:
        super().__init__()
        self._device, self._ahead, self._count = device, ahead, len(blocks)
        is_pinned = device.type == "cuda"
        # A plain list: these weights are no parameters, and stay where they are when the network is moved.
        self._groups: list[_Group] = []
        waiting = list(blocks)
        while waiting:
            self._groups.append(_Group(waiting[:group], is_pinned=is_pinned))
            del waiting[:group]
        self._stream: Any = torch.cuda.Stream(device) if is_pinned and ahead else None  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[nn.Module]:
        # A pass has its buffers for itself, two when it looks ahead: however far the host runs ahead of the device, no
        # more is taken.
        size = max(group.piece.nbytes for group in self._groups)
        buffers = [_Buffer(size, self._device) for _ in range(2 if self._ahead else 1)]
        if self._stream is not None:  # the buffers' memory may still be in use by what was asked before
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            if self._ahead:
                buffers[0].load(self._groups[0], self._stream)
            for number, group in enumerate(self._groups):
                buffer = buffers[number % len(buffers)]
                if not self._ahead:
                    buffer.load(group, None)
                elif number + 1 < len(self._groups):
                    buffers[(number + 1) % 2].load(self._groups[number + 1], self._stream)
                yield from group.filled(buffer.arrived())
                buffer.release()
        finally:
            if (
                self._stream is not None
            ):  # a pass may be left early: nothing must land in memory that others took
                torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @property
    def skeletons(self) -> Iterator[nn.Module]:
        """All layers without their weights; what is changed of one changes what comes to the device in its place."""
        for group in self._groups:
            yield from group.skeletons

    @property
    def host_bytes(self) -> int:
        """Of the machine's memory, pinned where the device is a graphics card."""
        return sum(group.piece.nbytes for group in self._groups)

    @property
    def device_bytes(self) -> int:
        """Of the device's memory at most."""
        return max(group.piece.nbytes for group in self._groups) * (2 if self._ahead else 1)
