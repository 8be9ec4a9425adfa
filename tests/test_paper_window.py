"""The moving window at the paper's size: all that a batch holds is cut at one place, told by pictures of indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.avatar.paper import batch as module
from omokage.avatar.paper.batch import Batch, Draws, Loader
from omokage.avatar.paper.frames import FrameRecord, FrameStore, FrameWriter
from omokage.workers import Workers

SIZE, CROP, GRID = 1024, 1536, 128
UInt8 = NDArray[np.uint8]


def indexed(side: int, seed: int) -> UInt8:
    """(side, side, 3): column and row of every pixel, modulo 256, and in blue how often that has passed; never 0 there,
    which would be no face."""
    y, x = np.mgrid[:side, :side]
    return np.stack([x % 256, y % 256, 1 + 8 * (x // 256) + y // 256 + 100 * seed], axis=-1).astype(np.uint8)


def record(seed: int) -> FrameRecord:
    y, x = np.mgrid[: CROP // 8, : CROP // 8]
    alpha = ((3 * x + 5 * y + 7 * seed) % 256).astype(np.uint8)
    drawings = indexed(256, seed), indexed(256, seed)[:, ::-1]
    return FrameRecord(seed, indexed(CROP, seed), alpha, drawings[0], np.ascontiguousarray(drawings[1]))


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    writer = FrameWriter(tmp_path_factory.mktemp("frames") / "store", SIZE)
    for seed in range(2):
        writer.add(record(seed))
    return Loader([FrameStore.open(writer.finish(2, 0).folder)], Draws(0, 2, 2, 0.5))


def in_window(drawing: UInt8, offset: tuple[int, int]) -> NDArray[np.float32]:
    """A drawing of the middle (256, 256, 3), as the window shows it, in [-1, 1]: black beyond its border."""
    (dx, dy), canvas = offset, np.zeros((384, 384, 3), np.uint8)
    canvas[64:320, 64:320] = drawing
    return canvas[2 * dy : 2 * dy + 256, 2 * dx : 2 * dx + 256].astype(np.float32) / np.float32(127.5) - 1


def channels_first(pictures: list[NDArray[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("offset", [(10, 54), (32, 32), (54, 10), (10, 32), (54, 54)])
def test_image_matte_places_and_drawing_are_cut_at_the_same_place(
    loader: Loader, offset: tuple[int, int]
) -> None:
    """Eight pixels of the picture are one cell of the matte and two pixels of a drawing (specification 1.3)."""
    batch: Batch = loader._stacked([(0, 0, True), (0, 1, True)], offset)
    (dx, dy), records = offset, [record(seed) for seed in range(2)]
    image = np.stack([r.image[8 * dy : 8 * dy + SIZE, 8 * dx : 8 * dx + SIZE] for r in records])
    assert np.array_equal(batch.image.numpy(), image)
    assert torch.equal(
        batch.truth, channels_first([i.astype(np.float32) / np.float32(127.5) - 1 for i in image])
    )
    alpha = np.stack([r.alpha[dy : dy + GRID, dx : dx + GRID] for r in records])
    assert np.array_equal(batch.alpha.numpy(), alpha)
    places = channels_first([in_window(r.uv, offset)[::2, ::2] for r in records])
    assert torch.equal(batch.cells, places)
    # The whole drawing is a face: all of it that the window shows, but for its outermost cell.
    x, y = np.meshgrid(2 * np.arange(GRID) + 2 * dx, 2 * np.arange(GRID) + 2 * dy)
    inside = (x >= 64) & (x < 320) & (y >= 64) & (y < 320)
    beyond = np.pad(inside, 1, constant_values=True)  # what the window does not show is no edge
    sides = beyond[:-2, 1:-1], beyond[2:, 1:-1], beyond[1:-1, :-2], beyond[1:-1, 2:]
    assert np.array_equal(batch.face[1, 0].numpy() > 0, np.logical_and.reduce([inside, *sides]))
    drawn = channels_first([in_window(r.render, offset).repeat(4, axis=0).repeat(4, axis=1) for r in records])
    assert torch.equal(batch.beside(batch.truth), torch.cat([batch.truth, drawn], dim=1))
    # What the foreground sees moves with its features, and is not cut.
    assert torch.equal(
        batch.mesh, channels_first([r.render.astype(np.float32) / np.float32(127.5) - 1 for r in records])
    )


def test_windows_go_22_cells_each_way_and_no_further(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVIATION", 1.0)  # as often at the ends as between them
    reached = {place for step in range(0, 200, 2) for place in loader.offset(step)}
    assert (min(reached), max(reached)) == (10, 54)
    batch = next(loader.micro_batches(0, Workers.alone().part(2)))
    assert batch.offset == loader.offset(0) and batch.image.shape == (2, SIZE, SIZE, 3)
    monkeypatch.undo()
    moved = np.array([loader.offset(step) for step in range(0, 2000, 2)]) - 32
    assert abs(moved.std() - GRID / 24) < 0.4 and abs(moved.mean() + 0.5) < 0.5  # rounded down
