"""Memory profiles, layers that wait outside the device, weights of 8 bits, and what the sampler may save."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from golden_fill import Golden
from omokage.errors import InputError, MemoryShortageError
from omokage.talking import offload
from omokage.talking.config import SamplerConfig, official_sampler
from omokage.talking.offload import WaitingBlocks
from omokage.talking.placement import (
    Choice,
    Needs,
    Profile,
    choose,
    expected,
    falling_back,
    grouped,
    grouped_8bit,
    is_shortage,
    layerwise,
    place,
    place_vae,
    profiles,
    resident,
    resident_lean,
    smaller,
)
from omokage.talking.quantize import EightBitLinear, WeightFormat, quantize_linears
from omokage.talking.reuse import pass_or_reuse
from test_talking_sampler import Run, sample

CPU = torch.device("cpu")
# The published model in bfloat16, in bytes, as `omokage animate --plan` counts them.
OFFICIAL = Needs(
    layers=42,
    layer=0.312e9,
    waiting=0.324e9,
    rest=0.37e9,
    preparing=4.6e9,
    caches=2.15e9,
    denoising=2.44e9,
    denoising_single=1.23e9,
    autoencoder=0.43e9,
    encoding=2.58e9,
    decoding=15.82e9,
    decoding_lean=4.78e9,
    encoders=6.7e9,
    text=9.52e9,
    loading=0,
)


@pytest.fixture(scope="module")
def plain() -> Run:
    return Run()


@pytest.fixture(scope="module")
def expected_clean(plain: Run) -> Tensor:
    return sampled(plain)


def sampled(run: Run, **options: object) -> Tensor:
    """Three steps, the halves of guidance in one batch."""
    config = replace(official_sampler(), steps=3, **options)  # type: ignore[arg-type]
    return sample(run.network, run.conditions, run.null, config, run.given("noise.init"), run.noise)


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


# layers that wait


@pytest.mark.parametrize(
    "profile", [grouped(), layerwise(), replace(grouped(), group=1), replace(layerwise(), group=5)]
)
def test_waiting_layers_give_the_same_bits(profile: Profile, plain: Run, expected_clean: Tensor) -> None:
    run = Run()
    place(run.network, profile, CPU)
    assert torch.equal(sampled(run), expected_clean)
    # What is made once goes through the same layers, one after the other.
    speech = run.given("audio")
    caches = zip(
        run.network.cache_audio(speech).layers, plain.network.cache_audio(speech).layers, strict=True
    )
    assert all(torch.equal(mine.keys, theirs.keys) for mine, theirs in caches)


def test_layers_are_on_the_device_only_in_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Run().network
    before = sum(p.nbytes for p in network.blocks.parameters())
    place(network, replace(grouped(), group=1), CPU)
    waiting = network.blocks
    assert isinstance(waiting, WaitingBlocks)
    assert len(waiting) == 2 and list(waiting.parameters()) == []
    assert before <= waiting.host_bytes < 1.2 * before
    assert waiting.device_bytes == waiting.host_bytes  # two of two: one computes, one travels
    sent: list[object] = []
    load = offload._Buffer.load
    monkeypatch.setattr(offload._Buffer, "load", lambda self, *to: (sent.append(to[0]), load(self, *to))[1])
    layers = iter(waiting)
    next(layers)
    assert len(sent) == 2
    sent.clear()
    monkeypatch.setattr(waiting, "_ahead", False)
    next(iter(waiting))
    assert len(sent) == 1
    assert waiting.device_bytes < waiting.host_bytes


def test_a_pass_changes_nothing_that_another_sees() -> None:
    run = Run()
    place(run.network, replace(grouped(), group=1), CPU)
    table = run.network.modulation(torch.tensor([500]))
    state = run.given("noise.init")

    def velocity(scale: float) -> Tensor:
        with torch.no_grad():
            return run.network(scale * state, table, run.conditions)

    alone = [velocity(scale) for scale in (1.0, 0.5)]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            together = list(threads.map(velocity, (1.0, 0.5)))
            assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_buffer_serves_every_second_group() -> None:
    """A layer is only whole until the one after the next is asked for."""
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    weights = [block.weight.detach().clone() for block in blocks]
    waiting = WaitingBlocks(blocks, CPU, group=1, ahead=True)
    places = []
    for layer, weight in zip(waiting, weights, strict=True):
        assert torch.equal(layer.weight, weight)  # type: ignore[arg-type]
        places.append(layer.weight.data_ptr())  # type: ignore[operator,union-attr]
    assert places[0] == places[2] == places[4] != places[1] == places[3]
    assert waiting.host_bytes == 5 * 2 * offload.ALIGNMENT
    assert waiting.device_bytes == 2 * 2 * offload.ALIGNMENT


def test_every_kind_of_tensor_travels() -> None:
    layer = nn.Linear(3, 5)
    mixed = nn.ModuleList(
        [nn.Sequential(EightBitLinear(layer, WeightFormat.INT8), nn.LayerNorm(5).bfloat16())]
    )
    inputs = torch.ones(2, 3)
    right = mixed[0][0](inputs)  # type: ignore[index]
    block = next(iter(WaitingBlocks(mixed, CPU, group=1, ahead=True)))
    assert torch.equal(block[0](inputs), right)  # type: ignore[index]
    assert block[1].weight.dtype is torch.bfloat16  # type: ignore[index]
    assert block[1].weight.data_ptr() % offload.ALIGNMENT == block[0].bits.data_ptr() % offload.ALIGNMENT  # type: ignore[index]


# weights of 8 bits


@pytest.mark.parametrize(("weight_format", "limit"), [(WeightFormat.INT8, 0.012), (WeightFormat.FP8, 0.04)])
def test_eight_bits_stay_close(weight_format: WeightFormat, limit: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 64).bfloat16()
    with torch.no_grad():
        linear.weight[3] *= 1000  # a scale for every row: one large row costs the others nothing
    stored = EightBitLinear(linear.requires_grad_(False), weight_format)
    errors = (stored.weight.float() - linear.weight.float()).norm(dim=1) / linear.weight.float().norm(dim=1)
    assert float(errors.max()) < limit
    assert stored.bits.nbytes == linear.weight.nbytes // 2
    inputs = torch.randn(7, 256).bfloat16()
    assert stored(inputs).dtype is torch.bfloat16
    assert relative(stored(inputs).float(), linear(inputs).float()) < limit
    kept = stored.bits.clone()
    assert torch.equal(stored.to(torch.float32).bits, kept)  # bits are no numbers
    zero = nn.Linear(4, 2)
    nn.init.zeros_(zero.weight)
    assert float(EightBitLinear(zero, weight_format).weight.abs().max()) == 0


@pytest.mark.parametrize(("weights", "limit"), [("int8", 0.02), ("fp8", 0.08)])
def test_the_difference_of_eight_bits_is_small(
    weights: str, limit: float, plain: Run, expected_clean: Tensor
) -> None:
    run = Run()
    place(run.network, replace(resident(), weights=weights), CPU)
    linears = [m for m in run.network.blocks.modules() if isinstance(m, nn.Linear)]
    assert linears == []
    assert isinstance(run.network.head.linear, nn.Linear)  # small and the last: exact
    assert 0 < relative(sampled(run), expected_clean) < limit


def test_eight_bits_and_waiting_go_together(expected_clean: Tensor) -> None:
    waiting, staying = Run(), Run()
    place(waiting.network, grouped_8bit(), CPU)
    place(staying.network, replace(resident(), weights="int8"), CPU)
    assert torch.equal(sampled(waiting), sampled(staying))


def test_formats_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="format 'int3'; choose one of exact, int8, fp8"):
        place(Run().network, replace(resident(), weights="int3"), CPU)
    monkeypatch.delattr(torch, "float8_e4m3fn")
    with pytest.raises(InputError, match="has no 8-bit floating point"):
        EightBitLinear(nn.Linear(2, 2), WeightFormat.FP8)
    network = nn.Sequential(nn.Linear(2, 2))
    quantize_linears(network, WeightFormat.EXACT)
    assert isinstance(network[0], nn.Linear)


# the choice


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        (80, resident()),
        (40, resident()),
        (24, resident_lean()),
        (16, grouped()),
        (12, grouped()),
        (10, grouped()),
    ],
)
def test_cards_get_their_profile(card: int, chosen: Profile) -> None:
    free = card * 1024**3 - 0.6e9  # a desktop takes its part
    choice = choose(OFFICIAL, free, 32e9)
    assert choice.profile == chosen
    assert choice.device_bytes <= free
    assert choice.profile.is_exact


def test_little_memory_of_the_machine_takes_eight_bits() -> None:
    choice = choose(OFFICIAL, 12e9, 16e9)
    assert choice.profile == grouped_8bit() and not choice.profile.is_exact
    assert choice.sentence == (
        "memory profile 'grouped-8bit' (nearly exact) is expected to take 8.8 GB on the device and 11.3 GB of the "
        "machine's memory"
    )


def test_what_waits_takes_pinned_memory_in_powers_of_two() -> None:
    """21 pieces of two layers with what works once, 0.65 GB each, in 1.07 GB each."""
    assert expected(grouped(), OFFICIAL).host_bytes == 21 * 2**30
    assert expected(layerwise(), OFFICIAL).host_bytes == 42 * 2**29
    assert expected(grouped_8bit(), OFFICIAL).host_bytes == 21 * 2**29


def test_loading_counts_in_the_memory_of_the_machine() -> None:
    # Files of another precision are converted as a whole before layers wait in 8 bits.
    converted = replace(OFFICIAL, loading=17.84e9)
    assert expected(grouped_8bit(), converted).host_bytes == 17.84e9 + 2**29
    with pytest.raises(MemoryShortageError, match="no memory profile fits"):
        choose(converted, 12e9, 16e9)
    # Everything on the device: the text encoder still comes through the machine's memory.
    assert expected(resident(), OFFICIAL).host_bytes == OFFICIAL.text
    with pytest.raises(MemoryShortageError, match="no memory profile fits"):
        choose(OFFICIAL, 80e9, 8e9)


def test_a_profile_that_only_takes_less_in_the_loop_is_a_fallback() -> None:
    """The counted peak may be that of an encoder; what runs out may be another."""
    long = replace(OFFICIAL, encoders=60e9)
    names = [option.profile.name for option in smaller(expected(resident(), long), long, 32e9)]
    assert names == ["resident", "resident-lean", "grouped", "layerwise", "grouped-8bit"]


def test_encoders_count_in_the_memory_of_the_device() -> None:
    long = replace(OFFICIAL, encoders=20e9)
    assert expected(layerwise(), long).device_bytes > 20e9 > expected(layerwise(), OFFICIAL).device_bytes


def test_too_little_memory_is_said() -> None:
    with pytest.raises(
        MemoryShortageError, match=r"'layerwise' takes 8\.\d GB of the device and 22\.5 GB of the"
    ):
        choose(OFFICIAL, 4e9, 100e9)


def test_smaller_profiles_need_less() -> None:
    sizes = [expected(profile, OFFICIAL).device_bytes for profile in profiles()]
    assert sizes[:4] == sorted(sizes, reverse=True)[:4]

    def fallbacks(free_host: float) -> list[str]:
        return [option.profile.name for option in smaller(expected(grouped(), OFFICIAL), OFFICIAL, free_host)]

    assert fallbacks(32e9) == ["grouped", "layerwise", "grouped-8bit"]
    assert fallbacks(12e9) == ["grouped", "grouped-8bit"]  # what the machine has no room for is not tried
    assert expected(replace(layerwise(), group=100), OFFICIAL).device_bytes > 12e9


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("unable to mmap 64 bytes from file: Cannot allocate memory (12)"),
    ],
)
def test_every_kind_of_shortage_is_known(error: Exception) -> None:
    assert is_shortage(error)


def test_other_failures_are_no_shortage() -> None:
    assert not is_shortage(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_shortage(ValueError("mat1 and mat2 shapes cannot be multiplied"))


def test_shortage_falls_back_and_says_so() -> None:
    options = smaller(expected(resident(), OFFICIAL), OFFICIAL, 32e9)
    said: list[str] = []
    shortages: Iterator[Exception | None] = iter(
        [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: x"), None]
    )

    def attempt(option: object) -> object:
        if error := next(shortages):
            raise error
        return option

    assert falling_back(attempt, options, said.append) == options[2]
    assert said == [
        "memory ran out with the profile 'resident'; going on with 'resident-lean'",
        "memory ran out with the profile 'resident-lean'; going on with 'grouped'",
    ]

    def broken(_: object) -> object:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        falling_back(broken, options, said.append)

    def always(_: object) -> object:
        raise MemoryError

    with pytest.raises(MemoryShortageError, match="'resident', the smallest; close other programs"):
        falling_back(always, options[:1], said.append)


def test_what_ran_short_is_let_go_before_the_next_attempt() -> None:
    """Also a network whose layers refer to themselves, as compiled ones do."""
    options = [expected(profile, OFFICIAL) for profile in (resident(), grouped())]
    networks = list[Any]()

    def attempt(choice: Choice) -> str:
        if networks:
            return "left" if networks[0]() else "let go"
        network = nn.Linear(2, 2)
        network.itself = [network]
        networks.append(weakref.ref(network))
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert falling_back(attempt, options, lambda _: None) == "let go"


def test_profiles_are_plain_values() -> None:
    assert [Profile.from_json(profile.to_json()) for profile in profiles()] == list(profiles())
    assert len({profile.name for profile in profiles()}) == len(profiles())


# what the sampler may save


def test_savings_that_are_off_change_nothing(plain: Run, expected_clean: Tensor) -> None:
    assert torch.equal(sampled(plain, guidance_interval=(0.0, 1.0), reuse_threshold=0.0), expected_clean)
    # So near to off that no step is alike enough.
    assert torch.equal(sampled(plain, reuse_threshold=1e-9), expected_clean)


def test_guidance_works_in_its_interval(plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    passes = plain.network.passes

    def counted(latents: Tensor, *rest: object) -> object:
        batches.append(len(latents))
        return passes(latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(plain.network, "passes", counted)
    sampled(plain, guidance_interval=(0.3, 0.6))
    batch = len(plain.given("noise.init"))
    assert batches == [batch, 2 * batch, batch]
    batches.clear()
    never = sampled(plain, guidance_interval=(0.0, 0.0))
    assert batches == [batch] * 3
    assert torch.equal(never, sampled(plain, guidance_scale=1.0))


@pytest.mark.parametrize("together", [True, False])
def test_alike_steps_reuse_the_later_layers(plain: Run, expected_clean: Tensor, together: bool) -> None:
    layers: list[int] = []
    for index, block in enumerate(plain.network.blocks):
        block.register_forward_hook(lambda *_, index=index: layers.append(index))
    try:
        reused = sampled(plain, reuse_threshold=0.99, together=together)
    finally:
        for block in plain.network.blocks:
            block._forward_hooks.clear()
    passes = 3 if together else 6
    assert layers.count(0) == passes
    assert layers.count(1) == passes // 3  # the first step computes all
    assert 0 < relative(reused, expected_clean) < 1  # three steps far apart


def test_a_reused_pass_adds_what_the_last_whole_one_did(plain: Run) -> None:
    table = plain.network.modulation(torch.tensor([500, 480]))
    state = plain.given("noise.init")
    with torch.no_grad():
        whole = pass_or_reuse(plain.network, state, table.row(0), plain.conditions, None, 0.5)
        again = pass_or_reuse(plain.network, state, table.row(0), plain.conditions, whole.residuals, 0.5)
        both = pass_or_reuse(
            plain.network,
            torch.cat([state, state]),
            table.row(1),
            plain.null.join(plain.conditions),
            whole.residuals,
            0.99,
        )
        right = plain.network(state, table.row(0), plain.conditions)
    assert torch.equal(whole.velocity, right)
    assert again.is_reused and again.residuals is whole.residuals
    np.testing.assert_allclose(again.velocity.numpy(), right.numpy(), atol=1e-5)
    assert not both.is_reused  # another batch


@pytest.mark.parametrize(
    "options", [{"guidance_interval": (0.5, 0.2)}, {"guidance_interval": (0, 2)}, {"reuse_threshold": 1.0}]
)
def test_savings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="guidance works between two shares of the steps"):
        SamplerConfig(10, 3.5, True, True, **options)  # type: ignore[arg-type]


# the lean decoder


@pytest.fixture(scope="module")
def clips() -> Golden:
    pytest.importorskip("diffusers", reason="the video autoencoder needs 'pip install omokage[portrait]'")
    return Golden("hallo3_vae")


def test_a_lean_decoder_gives_the_golden_numbers(clips: Golden) -> None:
    from omokage.talking.vae import tiny_vae
    from test_talking_vae import build, check, clip, joined

    lean = build(clips, tiny_vae())
    place_vae(lean, grouped(), CPU)
    latents = lean.config.scale * clip(clips, "latent_13")
    check(clips, "decode_13_chunked", joined(lean, latents))
    # Two clips in turn come out as they do alone; two chunks each.
    few = latents[:, :4, :, :4, :4]
    turns = zip(lean.decode(few), lean.decode(few.flip(-1)), strict=True)
    first, second = (torch.cat(chunks, dim=1) for chunks in zip(*turns, strict=True))
    alone = joined(lean, few)
    assert torch.equal(first, alone)
    assert float((second - alone).abs().max()) > 0.1


def test_a_lean_decoder_takes_less_than_half_of_the_memory(clips: Golden) -> None:
    """Counted, not computed, with one residual block a level instead of the published three, which saves more."""
    from collections import deque

    from omokage.pipelines.network_load import load_of
    from omokage.talking.vae import CausalVae, official_vae

    held = []
    for profile in (resident(), grouped()):
        with torch.device("meta"):
            vae = CausalVae(replace(official_vae(), blocks=1))
            latents = torch.empty(1, 2, 16, 60, 90)
        place_vae(vae, profile, torch.device("meta"))
        held.append(load_of(vae, lambda vae=vae, latents=latents: deque(vae.decode(latents), maxlen=0)).held)  # type: ignore[misc]
    assert held[1] < 0.47 * held[0]


def test_pinned_memory_is_given_back_before_another_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps it for the process; and what a copy still reads is not free yet."""
    done = list[str]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("card"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("waited"))
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: done.append("machine"), raising=False)
    options = [expected(profile, OFFICIAL) for profile in (grouped(), layerwise())]

    def attempt(choice: Choice) -> str:
        if choice is options[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return " ".join(done)

    assert falling_back(attempt, options, lambda _: None) == "card waited machine"
