"""Several processes that share one animation: the same numbers as one, and who does what."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from omokage.errors import InputError
from omokage.talking.config import official_sampler
from omokage.talking.parallel import ALONE, Layout, TokenShare
from parallel_parts import sampled, sampler
from processes import Started, places


def shared(folder: Path, processes: int, **choices: object) -> list[Tensor]:
    """What each of so many processes comes to."""
    script = "import sys, parallel_parts; parallel_parts.main(*sys.argv[1:])"
    given = [folder / "clean.safetensors", json.dumps(choices)]
    for process in [Started(script, given, folder, **place) for place in places(processes)]:
        status, _, said = process.wait()
        assert status == 0, said[-2000:]
    return [load_file(folder / f"{rank}.clean.safetensors")["clean"] for rank in range(processes)]


@cache
def alone(**choices: object) -> Tensor:
    torch.set_num_threads(1)
    return sampled(sampler(**choices))


def difference(value: Tensor, plain: Tensor) -> float:
    return float((value - plain).norm() / plain.norm())


def test_two_processes_share_guidance_to_the_bit(tmp_path: Path) -> None:
    """Guidance in the later steps only: in the others one process has nothing to do, and both know the result."""
    interval = (0.3, 1.0)
    first, second = shared(tmp_path, 2, guidance_interval=interval)
    assert torch.equal(first, second)
    assert torch.equal(first, alone(together=False, guidance_interval=interval))
    assert not torch.equal(first, alone(together=False))


def test_two_processes_share_the_tokens(tmp_path: Path) -> None:
    """Without guidance; 7 text tokens are shared as 3 and 4, 15 of a frame as 7 and 8. Compiled layers exchange too."""
    first, second = shared(tmp_path, 2, guidance_scale=1.0, compiled=True)
    assert torch.equal(first, second)
    assert 0 < difference(first, alone(guidance_scale=1.0)) < 1e-5


def test_three_processes_decide_alike_what_they_reuse(tmp_path: Path) -> None:
    """Both halves of guidance in one batch; the later steps reuse, in all processes or in none."""
    results = shared(tmp_path, 3, reuse_threshold=0.9)
    assert all(torch.equal(result, results[0]) for result in results)
    assert difference(results[0], alone(reuse_threshold=0.9)) < 1e-5
    assert difference(results[0], alone()) > 1e-4


# who does what


@pytest.mark.parametrize(
    ("world", "scale", "halves", "parts"),
    [
        (1, 3.5, 1, 1),
        (2, 3.5, 2, 1),
        (3, 3.5, 1, 3),
        (4, 3.5, 2, 2),
        (8, 3.5, 2, 4),
        (2, 1.0, 1, 2),
        (8, 1.0, 1, 8),
    ],
)
def test_processes_take_their_places(world: int, scale: float, halves: int, parts: int) -> None:
    sampler = replace(official_sampler(), guidance_scale=scale)
    layout = Layout.of(world, sampler, 48)
    assert layout == Layout(halves, parts)
    assert layout.sampler(sampler).together == (halves == 1)
    assert Layout.largest(world, sampler, 48) == world


def test_processes_that_heads_cannot_be_shared_between_are_refused() -> None:
    with pytest.raises(
        InputError, match="5 processes cannot share this network's 6 attention heads; start one of 1, 2, 3"
    ):
        Layout.of(5, official_sampler(), 6)
    assert Layout.largest(5, official_sampler(), 6) == 4  # two halves of two parts
    assert Layout.of(4, official_sampler(), 6).sentence == (
        "4 processes share the two halves of guidance and 2 parts of the tokens"
    )
    assert Layout.of(1, official_sampler(), 6) == ALONE


@pytest.mark.parametrize(("total", "count"), [(1350, 4), (226, 4), (15, 2), (2, 3)])
def test_shares_are_as_equal_as_can_be(total: int, count: int) -> None:
    slices = TokenShare(0, count, None)._slices(total)
    assert [begin for begin, _ in slices] == [sum(length for _, length in slices[:i]) for i in range(count)]
    lengths = [length for _, length in slices]
    assert sum(lengths) == total and max(lengths) - min(lengths) <= 1
