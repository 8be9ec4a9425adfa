"""An imported StyleAvatar as a static graph: the same pictures as its networks, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from official_styleavatar import official_content, save_official
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.config import small_discriminator, small_portrait
from omokage.avatar.paper.fold import fold_style
from omokage.avatar.paper.portrait import Portrait, PortraitGenerator
from omokage.avatar.paper.time_code import time_code
from omokage.errors import OutputError
from omokage.pipelines.import_styleavatar import ImportConfig, import_styleavatar
from omokage.render.paper_export import PaperGraph, export_paper_onnx, paper_to_onnx


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> PaperAvatar:
    folder = tmp_path_factory.mktemp("paper")
    source = save_official(folder / "person.pt", official_content())
    config = ImportConfig(network=small_portrait(), discriminator=small_discriminator())
    return PaperAvatar.load(import_styleavatar(source, output=folder / "me.avatar", config=config).path)


@pytest.fixture(scope="module")
def drawing() -> tuple[torch.Tensor, torch.Tensor]:
    """A face mesh and its uv picture, whose places are centers of the texture's cells."""
    random = torch.Generator().manual_seed(3)
    render = torch.rand(1, 3, 32, 32, generator=random) * 2 - 1
    uv = (torch.randint(0, 16, (1, 3, 32, 32), generator=random) * 2 + 1) / 16 - 1
    uv[:, 2, :8] = -1
    return render, uv


def error(mine: torch.Tensor, expected: torch.Tensor) -> float:
    return float((mine - expected).abs().max() / expected.std())


def test_a_folded_style_is_the_style(avatar: PaperAvatar, drawing: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = avatar.draw(*drawing)
    image, mask = PaperGraph(avatar)(*drawing)
    assert error(image, expected.image) < 5e-5 and error(mask, expected.mask) < 5e-5
    other = fold_style(avatar.generator, time_code(torch.tensor([[0.1]])))
    changed: Portrait = replace(avatar, generator=other).draw(*drawing)
    assert error(changed.image, expected.image) > 1e-2


def test_the_exported_graph_is_the_training_graph(
    avatar: PaperAvatar, drawing: tuple[torch.Tensor, torch.Tensor]
) -> None:
    session = onnxruntime.InferenceSession(paper_to_onnx(avatar), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(("render", "uv"), drawing, strict=True)}
    image, mask = (torch.from_numpy(value) for value in session.run(["image", "mask"], feeds))
    expected = avatar.draw(*drawing)
    assert error(image, expected.image) < 1e-4 and error(mask, expected.mask) < 1e-4
    # The released export computes borders otherwise: told apart by the same comparison.
    released = PortraitGenerator(replace(avatar.config, released_border=True)).eval().requires_grad_(False)
    released.load_state_dict(avatar.generator.state_dict())
    assert error(replace(avatar, generator=released).draw(*drawing).image, expected.image) > 1e-3


def test_the_exported_graph_reads_places_of_8_bits(avatar: PaperAvatar) -> None:
    """As every drawing has them, between the centers of cells: with the last one, which falls on the edge."""
    random = torch.Generator().manual_seed(4)
    render, levels = (torch.randint(0, 256, (1, 3, 32, 32), generator=random) for _ in range(2))
    steps = torch.arange(256).reshape(16, 16)
    levels[0, 0, ::2, ::2], levels[0, 1, ::2, ::2], levels[0, 2] = steps, steps.flip(0, 1), 255
    drawing = render / 127.5 - 1, levels / 127.5 - 1
    session = onnxruntime.InferenceSession(paper_to_onnx(avatar), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(("render", "uv"), drawing, strict=True)}
    image, mask = (torch.from_numpy(value) for value in session.run(["image", "mask"], feeds))
    expected, graph = avatar.draw(*drawing), PaperGraph(avatar)(*drawing)
    for mine, of_graph, exact in ((image, graph[0], expected.image), (mask, graph[1], expected.mask)):
        assert error(mine, exact) < 1e-4 and error(of_graph, exact) < 5e-5
    # Places that are off by half a cell are told by the same comparison.
    moved = drawing[1] + torch.tensor([1 / 16, 0, 0])[:, None, None]
    assert error(avatar.draw(drawing[0], moved).image, expected.image) > 1e-2


def test_a_graph_is_written_whole_or_not(avatar: PaperAvatar, tmp_path: Path) -> None:
    export_paper_onnx(avatar, tmp_path / "me.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["me.onnx"]
    with pytest.raises(OutputError, match="its folder does not exist"):
        export_paper_onnx(avatar, tmp_path / "none" / "me.onnx")
