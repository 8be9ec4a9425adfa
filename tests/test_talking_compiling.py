"""Compiled layers: the same numbers, one compilation for all of them, and what happens without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from omokage.talking.compiling import compile_layers
from omokage.talking.placement import grouped, place
from test_talking_placement import CPU, relative, sampled
from test_talking_sampler import Run


def no_words(sentence: str) -> None:
    raise AssertionError(sentence)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return sampled(Run())


def counting() -> tuple[Callable[..., Any], list[Any]]:
    """A compiler that only counts what it was given, and what that was."""
    graphs: list[Any] = []

    def compiler(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return compiler, graphs


@pytest.mark.parametrize("waits", [False, True])
def test_one_compilation_serves_all_layers(waits: bool, plain: Tensor) -> None:
    """Two layers and three steps in one batch, wherever the layers wait: one graph, without a break."""
    run, (compiler, graphs) = Run(), counting()
    if waits:
        place(run.network, grouped(), CPU)
    compile_layers(run.network, no_words, compiler)
    assert torch.equal(sampled(run), plain)
    assert len(graphs) == 1
    # Another batch is another graph.
    apart = sampled(run, together=False)
    assert len(graphs) == 2
    assert relative(apart, plain) < 1e-5


def test_traced_layers_differ_by_rounding_only(plain: Tensor) -> None:
    """All of the compiler but its code generator, which takes a minute: `benchmarks/portrait_options.py` has it."""
    run = Run()
    compile_layers(run.network, no_words, "aot_eager")
    assert relative(sampled(run), plain) < 1e-5


def test_without_a_compiler_layers_run_as_they_are(plain: Tensor) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found.\nLook for one.")

    run, said = Run(), list[str]()
    compile_layers(run.network, said.append, broken)
    assert torch.equal(sampled(run), plain)
    (sentence,) = said
    assert sentence.startswith("layers run as they are, since they cannot be compiled on this machine (")
    assert "No working C++ compiler found" in sentence and "\n" not in sentence
