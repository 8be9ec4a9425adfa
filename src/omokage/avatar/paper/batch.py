"""What a training step sees: samples drawn from prepared frames, as tensors.

What a sample is depends on the seed, the step and its place in the batch alone: neither a kill and a resumption nor the
number of processes changes what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.avatar.paper.frames import FrameRecord, FrameStore
from omokage.avatar.paper.time_code import FRAMES_PER_UNIT, REST_TIME
from omokage.avatar.paper.window import (
    CELL,
    Offset,
    centred,
    cut_drawing,
    face_cells,
    to_cells,
    to_pixels,
)
from omokage.workers import Workers

# Deviation of the window's place, and how far it may go, as shares of the cells of a picture (specification 1.3.1).
DEVIATION, REACH = 1 / 24, 22 / 128


@dataclass(frozen=True)
class Batch:
    """B samples with one window. image: uint8 (B, S, S, 3) of the window.  alpha: uint8 (B, G, G), person's opacity.
    render, uv: uint8 (B, S/4, S/4, 3) of the centred window.  times: (B, 1), whose code each is drawn with.
    videos: which recording each is of."""

    image: Tensor
    alpha: Tensor
    render: Tensor
    uv: Tensor
    times: Tensor
    videos: tuple[int, ...]
    offset: Offset

    def to(self, device: torch.device) -> Batch:
        """The same on a device; the copy may go on while the caller works."""
        if device.type == "cpu":
            return self
        image, alpha, render, uv, times = (
            value.pin_memory().to(device, non_blocking=True)
            for value in (self.image, self.alpha, self.render, self.uv, self.times)
        )
        return Batch(image, alpha, render, uv, times, self.videos, self.offset)

    @cached_property
    def truth(self) -> Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        return to_unit(self.image)

    @cached_property
    def background(self) -> Tensor:
        """(B, 1, G, G), share of every cell that shows the background: hair is partly clear."""
        return 1 - self.alpha[:, None].float() / 255

    @cached_property
    def mesh(self) -> Tensor:
        """The drawn face mesh (B, 3, S/4, S/4) in [-1, 1], not cut by the window."""
        return to_unit(self.render)

    @cached_property
    def cells(self) -> Tensor:
        """The window's uv picture on the cells (B, 3, G, G)."""
        return to_cells(cut_drawing(to_unit(self.uv), self.offset))

    @cached_property
    def face(self) -> Tensor:
        """Where the window shows the face, (B, 1, G, G) of 0 and 1."""
        return face_cells(self.cells)

    def beside(self, picture: Tensor) -> Tensor:
        """A picture of the window (B, 3, S, S) and the face mesh in it, (B, 6, S, S), for the discriminator."""
        return torch.cat([picture, to_pixels(cut_drawing(self.mesh, self.offset))], dim=1)


@dataclass(frozen=True)
class Draws:
    """How samples are drawn. code_dropout: share of them that take the code of `REST_TIME`."""

    seed: int
    batch: int
    micro_batch: int
    code_dropout: float


class Loader:
    """Draws the batches of a training over one or several recordings."""

    def __init__(self, stores: Sequence[FrameStore], draws: Draws) -> None:
        self.stores, self.draws = stores, draws
        self.rows = [(video, row) for video, store in enumerate(stores) for row in range(store.train)]
        self.grid = stores[0].size // CELL

    def steps(self, first: int, workers: Workers) -> Iterator[list[Batch]]:
        """The micro-batches of this process, of one step after the other."""
        for step in count(first):
            yield list(self.micro_batches(step, workers.part(self.draws.batch)))

    def micro_batches(self, step: int, places: range) -> Iterator[Batch]:
        """Those of these places of a step's batch."""
        offset, size = self.offset(step), self.draws.micro_batch
        for first in range(places.start, places.stop, size):
            yield self._stacked([self.drawn(step, place) for place in range(first, first + size)], offset)

    def offset(self, step: int) -> Offset:
        """The window of a step: in every other one centred, as released (specification 1.3.1)."""
        middle = centred(self.grid)
        if step % 2:
            return middle
        moved = np.random.default_rng((self.draws.seed, 0, step)).standard_normal(2) * self.grid * DEVIATION
        reach = int(self.grid * REACH)
        x, y = np.clip(np.floor(moved).astype(int), -reach, reach)
        return middle[0] + int(x), middle[1] + int(y)

    def drawn(self, step: int, place: int) -> tuple[int, int, bool]:
        """Recording and row of a sample, and whether it takes its own frame's code."""
        random = np.random.default_rng((self.draws.seed, 1, step, place))
        video, row = self.rows[int(random.integers(len(self.rows)))]
        return video, row, bool(random.random() >= self.draws.code_dropout)

    def videos(self, step: int) -> list[int]:
        """The recordings that a step's whole batch shows, in all processes."""
        return sorted({self.drawn(step, place)[0] for place in range(self.draws.batch)})

    def fixed(self, video: int, row: int) -> Batch:
        """One frame as it is drawn after training: window in the middle, code of `REST_TIME`."""
        return self._stacked([(video, row, False)], centred(self.grid))

    def _stacked(self, drawn: Sequence[tuple[int, int, bool]], offset: Offset) -> Batch:
        records = [self.stores[video].record(row) for video, row, _ in drawn]
        (left, top), grid, side = offset, self.grid, self.grid * CELL

        def stack(parts: Sequence[NDArray[np.uint8]]) -> Tensor:
            return torch.from_numpy(np.stack(parts))

        return Batch(
            image=stack([r.image[top * CELL :, left * CELL :][:side, :side] for r in records]),
            alpha=stack([r.alpha[top : top + grid, left : left + grid] for r in records]),
            render=stack([r.render for r in records]),
            uv=stack([r.uv for r in records]),
            times=torch.tensor([[_time(r, own)] for r, (_, _, own) in zip(records, drawn, strict=True)]),
            videos=tuple(video for video, _, _ in drawn),
            offset=offset,
        )


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def _time(record: FrameRecord, has_own_code: bool) -> float:
    return record.frame / FRAMES_PER_UNIT if has_own_code else REST_TIME
