"""What draws an avatar in the paper's networks: on a processor as it is, on a card that is not there a recorded graph.

The card computes on the processor here: what is replaced is the recording alone (`record`), by one that computes the
function again when it is played, as a graph does, from and into the tensors that it was recorded with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from omokage.avatar.bundle import Provenance
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.portrait import PortraitGenerator, draw_noise
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.time_code import REST_TIME
from omokage.compiling import Compiled
from omokage.errors import InputError
from omokage.render import paper_runtime
from omokage.render.paper_export import PaperGraph
from omokage.render.paper_runtime import EagerRuntime, MeshPair, Recorded, graph_function, likeness, start
from paper_parts import NETWORK

CARD = torch.device("meta")


@pytest.fixture(scope="module")
def avatar() -> PaperAvatar:
    torch.manual_seed(0)
    generator, grid = PortraitGenerator(NETWORK).eval().requires_grad_(False), NETWORK.grid
    with torch.no_grad():  # as loud as a trained one: its pictures are not grey
        for name, value in generator.named_parameters():
            if name.endswith("noise_strength"):
                value.fill_(0.3)
    face, background = (
        Texture(torch.randn(1, NETWORK.channels, grid, grid), torch.randn(1, 12, grid, grid))
        for _ in range(2)
    )
    made = Provenance("0", "me", "me", "", False, None, 1.0, 6, "0")
    return PaperAvatar(generator, face, background, draw_noise(NETWORK, 0), REST_TIME, made)


@pytest.fixture(scope="module")
def states() -> list[MeshPair]:
    def pair(seed: int) -> MeshPair:
        random = torch.Generator().manual_seed(seed)
        render = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
        uv = (torch.randint(0, 8, (1, 3, 16, 16), generator=random) * 2 + 1) / 8 - 1
        return render, uv

    return [pair(seed) for seed in range(3)]


class Card:
    """Counts what is recorded, and how often that is played."""

    def __init__(self) -> None:
        self.recorded = self.played = 0

    def record(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Any]:
        outputs, self.recorded = function(), self.recorded + 1

        def play() -> None:
            self.played += 1
            with torch.no_grad():
                for held, value in zip(outputs, function(), strict=True):
                    held.copy_(value)

        return outputs, play


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(paper_runtime, "record", card.record)
    monkeypatch.setattr(paper_runtime, "_is_card", lambda _: True)
    return card


def refuse(sentence: str) -> None:
    raise AssertionError(sentence)


def started(avatar: PaperAvatar, wish: str, states: list[MeshPair], **options: Any) -> Any:
    return start(avatar, wish, states=lambda: states, say=options.get("say", refuse))


# which one


@pytest.mark.parametrize("wish", ["auto", "torch", "cuda-graph", "compiled"])
def test_a_processor_draws_with_the_networks_as_they_are(
    wish: str, avatar: PaperAvatar, states: list[MeshPair]
) -> None:
    said: list[str] = []
    runtime = start(avatar, wish, states=lambda: pytest.fail("nothing is judged"), say=said.append)
    assert (runtime.name, runtime.precision) == ("torch", "fp32")
    assert torch.equal(runtime.draw(*states[0])[0], avatar.draw(*states[0]).image)
    assert len(said) == (wish in ("cuda-graph", "compiled"))
    assert all(
        f"'{wish}' needs a graphics card" in sentence and "'torch' instead" in sentence for sentence in said
    )


def test_an_unknown_one_is_refused(avatar: PaperAvatar, states: list[MeshPair]) -> None:
    with pytest.raises(
        InputError, match="by PyTorch and not by 'openvino'; use --runtime auto, torch, cuda-graph or"
    ):
        started(avatar, "openvino", states)


@pytest.mark.parametrize("wish", ["auto", "cuda-graph"])
def test_a_card_plays_one_recorded_graph_in_16_bits(
    wish: str, avatar: PaperAvatar, states: list[MeshPair], card: Card
) -> None:
    runtime = started(avatar, wish, states)
    assert (runtime.name, runtime.precision, card.recorded) == ("cuda-graph", "fp16", 1)
    before = card.played
    for render, uv in states:
        image, mask = runtime.draw(render, uv)
        expected = avatar.draw(render, uv)
        assert image.dtype == mask.dtype == torch.float32
        assert float((image - expected.image).abs().max() / expected.image.std()) < 0.05
        assert float((mask - expected.mask).abs().max()) < 0.02
    assert card.played == before + len(states)
    assert started(avatar, "torch", states).name == "torch"


def test_16_bits_that_are_too_far_are_not_taken(
    avatar: PaperAvatar, states: list[MeshPair], card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(paper_runtime, "MIN_HALF_PSNR", 200.0)
    runtime = started(avatar, "auto", states, say=said.append)
    assert (runtime.name, runtime.precision, card.recorded) == ("cuda-graph", "tf32", 2)
    assert len(said) == 1 and "in 32 bits" in said[0]
    expected = avatar.draw(*states[1])
    torch.testing.assert_close(runtime.draw(*states[1])[0], expected.image, rtol=1e-4, atol=1e-4)


def test_pictures_that_overflow_in_16_bits_are_not_taken(
    avatar: PaperAvatar, states: list[MeshPair], card: Card
) -> None:
    loud = replace(avatar, face=Texture(avatar.face.features * 1e6, avatar.face.bands))
    runtime = started(loud, "auto", states, say=lambda _: None)
    assert runtime.precision == "tf32" and bool(torch.isfinite(runtime.draw(*states[0])[0]).all())


def test_likeness_is_the_psnr_of_pictures(avatar: PaperAvatar, states: list[MeshPair]) -> None:
    class Shifted(EagerRuntime):
        def draw(self, render: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
            image, mask = super().draw(render, uv)
            return image.clamp(-0.5, 0.5) + 0.02, mask

    class Clamped(EagerRuntime):
        def draw(self, render: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
            image, mask = super().draw(render, uv)
            return image.clamp(-0.5, 0.5), mask

    assert likeness(Shifted(avatar), Clamped(avatar), states) == pytest.approx(40.0, abs=0.01)
    assert likeness(Clamped(avatar), Clamped(avatar), states) > 100


# the recording


def test_a_recording_reads_and_writes_the_tensors_it_was_made_with(card: Card) -> None:
    example = torch.tensor([1.0, 2.0])
    doubled = Recorded(lambda value: (2 * value,), [example])
    (first,) = doubled(torch.tensor([5.0, 6.0]))
    assert first.tolist() == [10.0, 12.0] and example.tolist() == [1.0, 2.0]
    (second,) = doubled(torch.tensor([7.0, 8.0]))
    assert second is first and first.tolist() == [14.0, 16.0]


def test_what_is_recorded_never_looks_at_a_value(
    avatar: PaperAvatar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording of something that waits for the card fails; and every tensor of it must be there already."""
    graph = PaperGraph(avatar)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = {name: value.to(CARD, torch.float16) for name, value in graph.state_dict().items()}
        graph.load_state_dict(held, assign=True)
        for module in graph.modules():
            for name, value in module.named_buffers(recurse=False):
                if value.device != CARD:  # filters are in no state dict
                    setattr(module, name, value.to(CARD, torch.float16))
        given = [torch.zeros(1, 3, 16, 16, device=CARD) for _ in range(2)]

        def refused(tensor: Tensor, *_: Any, **__: Any) -> Any:
            raise AssertionError(f"{tuple(tensor.shape)} is brought to the host")

        with monkeypatch.context() as patch:
            for name in ("cpu", "item", "tolist", "numpy", "__float__", "__bool__", "__int__"):
                patch.setattr(Tensor, name, refused)
            image, mask = graph(*given)
        assert image.device == mask.device == CARD and image.dtype == torch.float32
        with pytest.raises(RuntimeError, match="devices"):
            graph(given[0], torch.zeros(1, 3, 16, 16))


# the compiler


def test_a_compiled_graph_is_one_and_gives_the_same_numbers(
    avatar: PaperAvatar, states: list[MeshPair]
) -> None:
    graphs: list[Any] = []

    def compiler(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    draw = graph_function(avatar, "fp32", is_compiled=True, say=refuse, backend=compiler)
    for state in states:
        torch.testing.assert_close(draw(*state)[0], avatar.draw(*state).image, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1  # no break in it, and none for another picture


def test_what_cannot_be_compiled_runs_as_it_is() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found.\nLook for one.")

    def double(value: Tensor) -> Tensor:
        return 2 * value

    said: list[str] = []
    function = Compiled(
        torch.compile(double, backend=broken), double, say=said.append, what="the networks run"
    )
    assert [float(function(torch.tensor(value))) for value in (1.0, 2.0)] == [2.0, 4.0]
    (sentence,) = said
    assert sentence.startswith(
        "the networks run as they are, since they cannot be compiled on this machine ("
    )
    assert "No working C++ compiler found" in sentence and "\n" not in sentence


def test_places_in_the_texture_stay_exact_in_16_bits(avatar: PaperAvatar, states: list[MeshPair]) -> None:
    """With places of 16 bits whole cells would show another part of the face."""
    exact, half = (PaperGraph(avatar).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    render, _ = states[0]
    # Just on this side of the border between two texels, which bfloat16 cannot tell from the other.
    places = torch.full((1, 3, 16, 16), 0.25 - 1e-4)
    beside = torch.full((1, 3, 16, 16), 0.25 + 1e-4)
    with torch.no_grad():
        pictures = {name: graph(render, uv)[0] for name, graph, uv in (
            ("exact", exact, places), ("half", half, places), ("other", exact, beside))}  # fmt: skip
    apart = {name: float((value - pictures["exact"]).square().mean()) for name, value in pictures.items()}
    assert apart["half"] < 0.1 * apart["other"]


def test_the_renderer_takes_the_runtime_that_is_asked_for(tmp_path: Path) -> None:
    """`reenact` says what it draws with instead; see also test_paper_create."""
    from omokage.cli.options import drawing_options
    from omokage.render import renderer

    def command() -> None:
        pass

    drawing_options(command)
    (option,) = [o for o in command.__click_params__ if o.name == "runtime"]  # type: ignore[attr-defined]
    assert set(option.type.choices) == set(renderer.RUNTIMES) | set(paper_runtime.RUNTIMES)


def test_a_recording_is_warmed_up_beside_and_made_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that PyTorch asks for: a side stream waits for the current one, works, and is waited for."""
    steps: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            steps.append(f"{self.name} waits for {other.name}")

    class Within:
        def __init__(self, what: Any) -> None:
            self.name = what.name

        def __enter__(self) -> None:
            steps.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None:
            steps.append(f"off {self.name}")

    class Graph:
        name = "graph"

        def replay(self) -> None:
            steps.append("replayed")

    for name, value in {
        "Stream": Stream,
        "current_stream": lambda: Stream("main"),
        "stream": Within,
        "synchronize": lambda: steps.append("synchronized"),
        "CUDAGraph": Graph,
        "graph": Within,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    doubled = Recorded(lambda value: (steps.append("computed"), 2 * value)[1:], [torch.ones(2)])
    assert steps == [
        "side waits for main", "on side", *["computed"] * paper_runtime.WARM_UP_RUNS, "off side",
        "main waits for side", "synchronized", "on graph", "computed", "off graph",
    ]  # fmt: skip
    steps.clear()
    assert doubled(torch.full((2,), 5.0))[0].tolist() == [2.0, 2.0]  # this graph computes nothing again
    assert steps == ["replayed"]
