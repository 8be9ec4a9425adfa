"""A training step of the paper's networks through PyTorch's own compiler is the step that is computed as it is.

`python tests/test_paper_compiled.py` does it with a C++ compiler behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from omokage.avatar.paper import train as module
from omokage.avatar.paper.batch import Batch
from omokage.avatar.paper.config import STYLE, DiscriminatorConfig, PortraitConfig, TextureConfig, UNetConfig
from omokage.avatar.paper.run import PaperRun
from omokage.avatar.paper.train import Learner, compile_networks
from omokage.avatar.paper.window import centred
from omokage.workers import Workers
from paper_parts import TINY

# As few levels as there can be: every one is a kernel to be compiled.
NETWORK = PortraitConfig(
    size=32,
    style=STYLE,
    foreground=UNetConfig(stem=4, encoder=(8,), decoder=(8,), joins=0),
    lift=4,
    image=UNetConfig(stem=4, encoder=(8,), decoder=(8, 8, 4, 4), joins=0),
    texture=TextureConfig(base=2, constant=8, widths=(8,)),
    rounded_window=False,
    released_border=False,
)
CRITIC = DiscriminatorConfig(size=32, channels=6, stem=4, widths=(4, 4))
CONFIG = replace(TINY, batch=2, r1_every=1, clip=1e9)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled is not for other tests."""
    yield
    torch._dynamo.reset()


def noise_batch() -> Batch:
    random = torch.Generator().manual_seed(0)
    grid = NETWORK.grid

    def levels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)

    pictures = levels(2, 32, 32, 3), levels(2, grid, grid), levels(2, 8, 8, 3), levels(2, 8, 8, 3)
    return Batch(*pictures, torch.tensor([[-1.0], [0.01]]), (0, 0), centred(grid))


def step(*, is_compiled: bool) -> tuple[float, dict[str, Tensor]]:
    """A step's loss, and the gradients of all networks: of the discriminator with its penalty."""
    config = replace(CONFIG, compiled=is_compiled)
    run, kept = PaperRun(NETWORK, CRITIC, config, frames=2), dict[str, Tensor]()
    compile_networks(run, config)
    for name, optimizer in run.optimizers().items():

        def keep(name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> None:
            values = [value.grad for group in optimizer.param_groups for value in group["params"]]
            kept[name] = torch.cat([value.flatten() for value in values if value is not None])

        optimizer.step = keep  # type: ignore[method-assign, assignment]
    loss = Learner(run, config, Workers.alone(), None).step([noise_batch()], [0], 0.5)
    return loss, kept


def difference(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest of all, as a share of the largest number of its optimiser."""
    assert found.keys() == exact.keys() == {"adam", "texture_adam", "critic_adam"}
    assert all(gradient.norm() > 1e-5 for gradient in exact.values())
    return max(float((found[name] - exact[name]).abs().max() / exact[name].abs().max()) for name in exact)


def test_every_part_is_compiled_for_the_one_shape_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the compiler but its code generator, which fails at networks that share their code if it is asked to
    compile the second one for any shape."""
    numbers: list[int] = []

    def compiler(graph: Any, inputs: list[Any]) -> Any:
        numbers.append(sum(not isinstance(value, Tensor) for value in inputs))
        return graph.forward

    expected, exact = step(is_compiled=False)
    monkeypatch.setattr(module, "BACKEND", compiler)
    loss, found = step(is_compiled=True)
    # Five parts of the generator and the textures; the discriminator when it judges and when it learns.
    assert numbers == [0] * 7
    assert loss == pytest.approx(expected, rel=1e-6) and difference(found, exact) < 1e-5


def main() -> None:
    """With the code generator, too, which takes minutes of a core: graphs, and differences of loss and gradients."""
    torch.set_num_threads(1)
    (expected, exact), (loss, found) = step(is_compiled=False), step(is_compiled=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(json.dumps([graphs, loss / expected - 1, difference(found, exact)]))


if __name__ == "__main__":
    main()
