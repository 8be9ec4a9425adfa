"""What `portrait_video.py` measures: the rows of the table, and one row's run."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Row, attempt, begin_memory, difference, indexed, now, peak_memory
from portrait_networks import Inputs, filled, official_loop
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from omokage.talking import sampler as sampling
from omokage.talking.compiling import compile_layers
from omokage.talking.config import SamplerConfig, TransformerConfig, official_sampler
from omokage.talking.parallel import ALONE, Layout, Team
from omokage.talking.placement import (
    RESERVED_BYTES,
    Profile,
    grouped,
    grouped_8bit,
    layerwise,
    place,
    place_vae,
    resident,
    resident_lean,
)
from omokage.talking.sampler import denoise, draw_noise, guided_velocity
from omokage.talking.scheduler import sampling_steps
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae, VaeConfig
from omokage.workers import Workers

WINDOW_STEPS = 50
INTERVAL, REUSE = (0.2, 0.8), 0.1
CUDNN = "CUDNN_ATTENTION"
# So many steps are worth more than none when the time of a row is over; the first is not timed.
LEAST_STEPS = 3
# Of a window that is left early: after these steps it can be compared with the exact one, and at its end.
MARKS = (6, 25)
EXACT, OFFICIAL, NEAR, LIMITED = "resident", "official loop", "near-lossless", "24 GB"


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    profile, sampler: where weights are, and what the sampler saves.  is_compiled: whether layers are.
    attention: the kernel of attention by PyTorch's name, None for the one that it chooses.
    is_official_loop: everything is computed again at every step.  layout: which processes share the work.
    limit_gb: memory of the card that is simulated; then a window is decoded, too, with all weights where they were.
    steps: of this row's schedule, None for those of all; such a row may be left before its end.
    """

    name: str
    profile: Profile
    sampler: dict[str, Any]
    is_compiled: bool = False
    attention: str | None = None
    is_official_loop: bool = False
    layout: Layout = ALONE
    limit_gb: float | None = None
    steps: int | None = None

    @property
    def is_exact(self) -> bool:
        """Whether this is what others are compared with: everything computed, by PyTorch's own choice of kernels."""
        return self.name in (EXACT, f"{EXACT}, {WINDOW_STEPS} steps")

    @property
    def is_whole(self) -> bool:
        """Whether every step does all of the work."""
        plain = official_sampler()
        changed = replace(plain, **self.sampler)
        return not changed.reuse_threshold and changed.guidance_interval == plain.guidance_interval


@dataclass(frozen=True)
class Timed:
    """What a row measured.

    seconds, worked: of every step, by the clock and of this process's work.  marks: the latents after some steps, the
    last one among them.  peak_gb: taken at most.  kernels: of attention, by PyTorch's names.  reused: evaluations that
    ended behind the first layer, None where none may.  not_compiled: why layers ran as they are, "" when they did not.
    decoding: seconds of a window's decoding, or why there are none; None where it was not asked for.
    """

    seconds: list[float]
    worked: list[float]
    marks: dict[int, Tensor]
    peak_gb: float | None
    kernels: list[str]
    reused: int | None = None
    not_compiled: str = ""
    decoding: Row | None = None

    @property
    def latents(self) -> Tensor:
        return self.marks[len(self.seconds)]


def settings(*, compiled: bool, processes: int = 1, card: bool = False) -> list[Setting]:
    """All rows, the most valuable first: a lease may end at any of them. The others are compared with the first.

    card: with the rows that only a graphics card can have.
    """
    rows = [
        Setting(EXACT, resident(), {}),
        Setting(OFFICIAL, resident(), {}, is_official_loop=True),
    ]
    if card:
        rows.append(Setting(LIMITED, resident_lean(), {}, limit_gb=24))
        if compiled:
            rows.append(
                Setting("compiled, attention of cuDNN", resident(), {}, is_compiled=True, attention=CUDNN)
            )
        # Each of its options alone was measured to change little (portrait-options.json); guidance in a part of the
        # steps, which changes much, is no part of it.
        near = Setting(NEAR, resident(), {"reuse_threshold": REUSE}, is_compiled=compiled, attention=CUDNN)
        interval = {"guidance_interval": INTERVAL, "reuse_threshold": REUSE}
        rows += [
            Setting(f"{EXACT}, {WINDOW_STEPS} steps", resident(), {}, steps=WINDOW_STEPS),
            replace(near, steps=WINDOW_STEPS),
            Setting("12 GB", grouped(), {}, limit_gb=12),
            Setting("attention of cuDNN", resident(), {}, attention=CUDNN),
        ]
    rows += [Setting("compiled", resident(), {}, is_compiled=True)] * compiled
    if card:
        name = f"guidance from 20 to 80 % of {WINDOW_STEPS} steps, reuse, compiled"
        rows.append(replace(near, name=name, sampler=interval, steps=WINDOW_STEPS))
    rows += [
        Setting("grouped", grouped(), {}),
        Setting("layerwise", layerwise(), {"together": False}),
        Setting("int8", replace(resident(), weights="int8"), {}),
        Setting("fp8", replace(resident(), weights="fp8"), {}),
        Setting("grouped-8bit", grouped_8bit(), {}),
        Setting("one half at a time", resident(), {"together": False}),
        Setting("guidance from 20 to 80 % of the steps", resident(), {"guidance_interval": INTERVAL}),
        *(
            Setting(f"reuse below {value:g}", resident(), {"reuse_threshold": value})
            for value in (0.05, REUSE, 0.2)
        ),
    ]
    if processes > 1:
        layout = Layout(1, processes)
        rows.append(Setting(f"tokens in {processes} processes", resident(), {}, layout=layout))
    if processes % 2 == 0:
        layout = Layout(2, processes // 2)
        rows.append(Setting(f"guidance in {processes} processes", resident(), {}, layout=layout))
    return rows


@dataclass(frozen=True)
class Bench:
    """Sizes, device and precision of a benchmark; `count`: sampling steps of a row.

    deadline: of `time.monotonic`.  row_end: the same, after which a row with steps of its own is left early.
    """

    config: TransformerConfig
    vae: VaeConfig
    count: int
    device: torch.device
    dtype: torch.dtype
    deadline: float = math.inf
    row_end: float = math.inf

    def steps(self, setting: Setting) -> int:
        return setting.steps or self.count


def run(setting: Setting, bench: Bench, workers: Workers | None = None) -> Timed:
    """A row, or this process's part of it. Raises TimeoutError when the time is over before `LEAST_STEPS`."""
    device, config, count = bench.device, bench.config, bench.steps(setting)
    if workers is not None:
        device = workers.device
    begin_memory(device)
    team = Team.gather(workers or Workers.alone(device), official_sampler(), config.heads, setting.layout)
    sampler = team.layout.sampler(replace(official_sampler(), steps=count, **setting.sampler))
    with (
        torch.no_grad(),
        memory_limit(device, setting.limit_gb),
        attention_kernel(setting.attention),
        counted_reuse() as reuses,
        compiling(setting.is_compiled) as complaints,
    ):
        is_direct = not setting.profile.group and setting.profile.is_exact
        network = filled(Transformer, config, bench.dtype, device if is_direct else torch.device("cpu"))
        place(network, setting.profile, device)
        if setting.is_compiled:
            compile_layers(network, complaints.append)
        velocity = row_velocity(setting, network, sampler, team, Inputs.draw(config, device, bench.dtype))
        shape = (1, config.latent_frames, config.latent_channels, config.latent_height, config.latent_width)
        noise = [draw_noise(shape, 1, step).to(device) for step in range(count)]
        times, worked, latents = list[float](), list[float](), draw_noise(shape, 0).to(device)
        marks = dict[int, Tensor]()
        begin, work = now(device), time.process_time()
        for state in denoise(velocity, sampling_steps(count), latents, noise.__getitem__):
            latents = state.clean
            end = now(device)
            times.append(end - begin)
            worked.append(time.process_time() - work)
            done = len(times)
            is_over = done < count and is_time_over(setting, bench, done, is_shared=workers is not None)
            if is_over or done == count or done in MARKS:
                marks[done] = latents
            if is_over:
                break
            begin, work = end, time.process_time()
        peak, reused = peak_memory(device), len(reuses)
        may_reuse = bool(setting.sampler.get("reuse_threshold"))
        kernels = list[str]()
        if workers is None and time.monotonic() < bench.deadline:
            kernels = attention_kernels(partial(velocity, latents, done - 1))
        not_compiled = "; ".join(complaints) or compiler_idleness() if setting.is_compiled else ""
        decoding = None if setting.limit_gb is None else decoding_of(setting.profile, bench)
        return Timed(
            times, worked, marks, peak, kernels, reused if may_reuse else None, not_compiled, decoding
        )


def is_time_over(setting: Setting, bench: Bench, done: int, *, is_shared: bool) -> bool:
    """Whether a row is left with the steps that it has. Raises TimeoutError when those are too few.

    Processes that share a row would not leave it together: with them it is whole or nothing.
    """
    if time.monotonic() > bench.deadline:
        if is_shared or done < LEAST_STEPS:
            raise TimeoutError
        return True
    is_long = setting.steps is not None and done >= max(LEAST_STEPS, MARKS[0])
    return not is_shared and is_long and time.monotonic() > bench.row_end


def row_velocity(
    setting: Setting, network: Transformer, sampler: SamplerConfig, team: Team, given: Inputs
) -> Callable[[Tensor, int], Tensor]:
    """What the solver asks for, with everything cached that the row may cache."""
    timesteps = [step.timestep for step in sampling_steps(sampler.steps)]
    device = given.latents.device
    if setting.is_official_loop:
        return official_loop(network, given, sampler, timesteps)
    table = network.modulation(torch.tensor(timesteps, device=device))
    conditions, null = given.cached(network)
    network.free_prepared()
    return guided_velocity(network, table, conditions, null, sampler, team)


def run_shared(setting: Setting, bench: Bench) -> Timed:
    """A row that several processes share, as the first of them sees it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.safetensors"
        torch.multiprocessing.spawn(
            one_process, (address, result, setting, bench), nprocs=setting.layout.world
        )
        values = load_file(result)
    seconds, peak = values["seconds"].tolist(), float(values["peak"]) or None
    return Timed(seconds, values["worked"].tolist(), {len(seconds): values["latents"]}, peak, [])


def one_process(rank: int, address: dict[str, str], result: Path, setting: Setting, bench: Bench) -> None:
    """One of them; the first one writes what it measured."""
    world = setting.layout.world
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    workers = Workers.join(bench.device)
    timed = run(setting, bench, workers)
    if workers.is_first:
        values = {"seconds": timed.seconds, "worked": timed.worked, "peak": timed.peak_gb or 0.0}
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        save_file(tensors | {"latents": timed.latents.cpu().contiguous()}, result)
    workers.wait()
    torch.distributed.destroy_process_group()


def decoding_of(profile: Profile, bench: Bench) -> Row:
    """Seconds of one window with the profile's decoder, the denoiser's weights and caches still being where they were;
    or why it could not be decoded, which costs the row nothing else."""

    def decode() -> Row:
        vae = filled(CausalVae, bench.vae, bench.dtype, bench.device)
        place_vae(vae, profile, bench.device)
        begin = now(bench.device)
        for chunk in vae.decode(window_latents(bench)):
            chunk.cpu()
        seconds = round(now(bench.device) - begin, 3)
        return {"seconds": seconds, "peak_gb": peak_memory(bench.device)}

    row: Row = {}
    return attempt(row, bench.deadline, decode) or row


def decoders(bench: Bench) -> Row:
    """Seconds and memory of decoding one window, plainly and lean, and how far the two are apart; of encoding three
    frames."""
    latents, config = window_latents(bench), bench.config
    pixels = [side * bench.vae.spatial_factor for side in (config.latent_height, config.latent_width)]
    values: Row = {"pixels": pixels}
    plain: Tensor | None = None
    with torch.no_grad():
        for name, profile in (("plain", resident()), ("lean", grouped())):
            vae = filled(CausalVae, bench.vae, bench.dtype, bench.device)
            place_vae(vae, profile, bench.device)
            begin_memory(bench.device)
            values[name], video = decoded(vae, latents, bench.device)
            plain = video if plain is None else plain
            values[name] |= difference(video, plain)
        clip = torch.zeros(1, 3, 3, *pixels, dtype=bench.dtype, device=bench.device)
        for _ in range(2):
            begin = now(bench.device)
            vae.encode(clip)
            values["encoding_three_seconds"] = round(now(bench.device) - begin, 3)
    return values


def window_latents(bench: Bench) -> Tensor:
    config, channels = bench.config, bench.vae.latent_channels
    shape = (1, config.latent_frames, channels, config.latent_height, config.latent_width)
    return draw_noise(shape, 3).to(bench.device, bench.dtype)


def decoded(vae: CausalVae, latents: Tensor, device: torch.device) -> tuple[Row, Tensor]:
    """Seconds of decoding a window twice, the memory that it took, and the frames on the CPU."""
    row: Row = {}
    for turn in ("first", "second"):
        begin, work, frames = now(device), time.process_time(), []
        for chunk in vae.decode(latents):
            frames.append(chunk.cpu())
        row[f"seconds_{turn}"] = round(now(device) - begin, 3)
        if device.type == "cpu":
            row[f"processor_seconds_{turn}"] = round(time.process_time() - work, 3)
    return row | {"peak_gb": peak_memory(device)}, torch.cat(frames, dim=1)


@contextmanager
def memory_limit(device: torch.device, gigabytes: float | None) -> Iterator[None]:
    """As if the card had no more, of which the driver takes its part."""
    if gigabytes is None or device.type != "cuda":
        yield
        return
    device = indexed(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((1e9 * gigabytes - RESERVED_BYTES) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def attention_kernel(name: str | None) -> Iterator[None]:
    """This kernel before all others, which stay for what it cannot do."""
    if name is None:
        yield
        return
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([getattr(SDPBackend, name), *others], set_priority=True):
        yield


@contextmanager
def counted_reuse() -> Iterator[list[bool]]:
    """An entry for every evaluation that reused what the layers behind the first did before."""
    found, genuine = list[bool](), sampling.pass_or_reuse

    def counting(*given: Any, **named: Any) -> Any:
        done = genuine(*given, **named)
        found.extend([True] * done.is_reused)
        return done

    sampling.pass_or_reuse = counting
    try:
        yield found
    finally:
        sampling.pass_or_reuse = genuine


@contextmanager
def compiling(is_compiled: bool) -> Iterator[list[str]]:
    """What a row compiles is compiled for it, and nothing is taken from another one's or from the disk: that keeps the
    kernel of attention that was chosen then. Gives the list of what goes wrong."""
    if not is_compiled:
        yield []
        return
    import torch._dynamo.utils
    import torch._inductor.config as inductor

    before = inductor.force_disable_caches
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    inductor.force_disable_caches = True
    try:
        yield []
    finally:
        inductor.force_disable_caches = before


def compiler_idleness() -> str:
    """Why nothing was compiled though nothing failed; "" when something was."""
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return "" if graphs else "the compiler was given nothing"


def attention_kernels(call: Callable[[], object]) -> list[str]:
    """The kernels that attention takes in a call, by PyTorch's names; none where they could not be seen."""
    begun = "_scaled_dot_product_"
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            call()
        names = {event.key.removeprefix("aten::") for event in profiler.key_averages()}
    except RuntimeError:
        return []
    return sorted(name.removeprefix(begun) for name in names if name.startswith(begun))
