"""Speed, memory and exactness of the video transformer and the autoencoder, at the published size on one GPU.

    python benchmarks/gpu/portrait_video.py --output benchmarks/results/portrait-video.json

Weights are random: they cost what the published ones cost. What a row changes of the result is measured against the row
'resident', with the same weights and noise. The row 'official loop' computes again at every step what the released code
computes again: modulation, speech tokens, and keys and values of portrait, face and speech. Small sizes run anywhere:
--size tiny --device cpu.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omokage.pipelines.bench import machine
from omokage.talking.caches import Conditions
from omokage.talking.compiling import compile_layers
from omokage.talking.config import SamplerConfig, TransformerConfig, official, official_sampler, tiny
from omokage.talking.parallel import ALONE, Layout, Team
from omokage.talking.placement import (
    Profile,
    grouped,
    grouped_8bit,
    is_shortage,
    layerwise,
    place,
    place_vae,
    resident,
)
from omokage.talking.sampler import denoise, draw_noise, guided_velocity, null_conditions
from omokage.talking.scheduler import sampling_steps
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae, VaeConfig, official_vae, tiny_vae
from omokage.talking.workers import Workers

WINDOW_STEPS = 50
SIZES = {"official": (official, official_vae), "tiny": (tiny, tiny_vae)}
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One row of the table: where weights are, what the sampler saves, whether layers are compiled, which processes
    share the work, and whether everything is computed again at every step."""

    name: str
    profile: Profile
    sampler: dict[str, Any]
    is_compiled: bool = False
    is_official_loop: bool = False
    layout: Layout = ALONE


@dataclass(frozen=True)
class Timed:
    """Seconds of every step by the clock and of this process's work, the latents after the last, GB taken at most."""

    seconds: list[float]
    worked: list[float]
    latents: Tensor
    peak_gb: float | None


def settings(*, compiled: bool, processes: int = 1) -> list[Setting]:
    """All rows, the one that the others are compared with first."""
    rows = [
        Setting("resident", resident(), {}),
        Setting("official loop", resident(), {}, is_official_loop=True),
        Setting("one half at a time", resident(), {"together": False}),
        Setting("grouped", grouped(), {}),
        Setting("layerwise", layerwise(), {"together": False}),
        Setting("int8", replace(resident(), weights="int8"), {}),
        Setting("fp8", replace(resident(), weights="fp8"), {}),
        Setting("grouped-8bit", grouped_8bit(), {}),
        Setting("guidance from 20 to 80 % of the steps", resident(), {"guidance_interval": (0.2, 0.8)}),
        *(
            Setting(f"reuse below {value:g}", resident(), {"reuse_threshold": value})
            for value in (0.05, 0.1, 0.2)
        ),
    ]
    rows += [Setting("compiled", resident(), {}, is_compiled=True)] * compiled
    if processes > 1:
        layout = Layout(1, processes)
        rows.append(Setting(f"tokens in {processes} processes", resident(), {}, layout=layout))
    if processes % 2 == 0:
        layout = Layout(2, processes // 2)
        rows.append(Setting(f"guidance in {processes} processes", resident(), {}, layout=layout))
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--layers", type=int, help="fewer layers than this size has")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--steps", type=int, default=6, help="sampling steps of each row; the first is not timed"
    )
    parser.add_argument("--rows", nargs="+", help="names of the rows, default all")
    parser.add_argument("--compile", action="store_true", help="add a row with compiled layers")
    parser.add_argument("--processes", type=int, default=1, help="add rows in which so many share the work")
    parser.add_argument("--no-decoder", action="store_true", help="leave the autoencoder out")
    parser.add_argument("--matmul-side", type=int, default=8192)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)

    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    transformer, autoencoder = SIZES[given.size]
    config = transformer()
    config = replace(config, layers=given.layers or config.layers)
    rate = matmul_rate(device, dtype, given.matmul_side)
    rows: list[Row] = []
    plain: Tensor | None = None
    for setting in settings(compiled=given.compile, processes=given.processes):
        if given.rows and setting.name not in (*given.rows, "resident"):
            continue
        row, latents = measured(setting, config, given.steps, device, dtype, rate)
        if latents is not None:
            plain = latents if plain is None else plain
            row |= difference(latents, plain)
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    decoding = {} if given.no_decoder else decoders(autoencoder(), config, device, dtype)
    report = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/gpu/portrait_video.py "
        + " ".join(Path(word).name if word.startswith("/") else word for word in arguments),
        "machine": machine() | accelerator(device),
        "size": {"name": given.size, "layers": config.layers, "dtype": given.dtype, "steps": given.steps},
        "matmul_tflops": round(rate / 1e12, 3),
        "tflop_per_step": round(step_flops(config) / 1e12, 4),
        "rows": rows,
        "decoding": decoding,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def measured(
    setting: Setting,
    config: TransformerConfig,
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    rate: float,
) -> tuple[Row, Tensor | None]:
    """Time and memory of a row, and the latents it came to; without them when memory ran out."""
    row: Row = {"name": setting.name, "profile": setting.profile.to_json()}
    if device.type == "cuda" and setting.layout.world > torch.cuda.device_count():
        return row | {"failed": f"needs {setting.layout.world} cards"}, None
    try:
        timed = (run if setting.layout == ALONE else run_shared)(setting, config, count, device, dtype)
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        return row | {"failed": "out of memory"}, None
    times, worked = timed.seconds[1:] or timed.seconds, timed.worked[1:] or timed.worked
    mean = statistics.mean(times)
    row |= {
        "seconds_per_step": round(statistics.median(times), 5),
        "seconds_per_step_spread": [round(min(times), 5), round(max(timed.seconds), 5)],
        "peak_gb": timed.peak_gb,
    }
    if device.type == "cpu":
        # On a processor that others use, too, this says more than the clock.
        row["processor_seconds_per_step"] = round(statistics.mean(worked), 5)
    sampler = replace(official_sampler(), steps=count, **setting.sampler)
    # How much is reused depends on how far apart the steps are: these few coarse ones say nothing of a window's.
    if not sampler.reuse_threshold:
        row["seconds_per_window"] = round(WINDOW_STEPS * mean, 3)
    # Steps that do less than all of the work have no share that could be compared.
    if not sampler.reuse_threshold and sampler.guidance_interval == official_sampler().guidance_interval:
        row["share_of_matmul_rate"] = round(step_flops(config) / mean / rate, 4)
    return row, timed.latents.cpu()


def run(
    setting: Setting,
    config: TransformerConfig,
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    workers: Workers | None = None,
) -> Timed:
    """A row, or this process's part of it."""
    begin_memory(device)
    team = Team.gather(workers or Workers.alone(device), official_sampler(), config.heads, setting.layout)
    sampler = team.layout.sampler(replace(official_sampler(), steps=count, **setting.sampler))
    steps = sampling_steps(count)
    network = filled(Transformer, config, dtype, device if not setting.profile.group else torch.device("cpu"))
    place(network, setting.profile, device)
    if setting.is_compiled:
        compile_layers(network, lambda sentence: print(sentence, file=sys.stderr))
    given = Inputs.draw(config, device, dtype)
    shape = (1, config.latent_frames, config.latent_channels, config.latent_height, config.latent_width)
    noise = [draw_noise(shape, 1, step).to(device) for step in range(count)]
    with torch.no_grad():
        if setting.is_official_loop:
            velocity = official_loop(network, given, sampler, [step.timestep for step in steps], device)
        else:
            table = network.modulation(torch.tensor([step.timestep for step in steps], device=device))
            conditions, null = given.cached(network)
            network.free_prepared()
            velocity = guided_velocity(network, table, conditions, null, sampler, team)
        times, worked, latents = list[float](), list[float](), draw_noise(shape, 0).to(device)
        begin, work = now(device), time.process_time()
        for state in denoise(velocity, steps, latents, noise.__getitem__):
            latents = state.clean
            end = now(device)
            times.append(end - begin)
            worked.append(time.process_time() - work)
            begin, work = end, time.process_time()
    return Timed(times, worked, latents, peak_memory(device))


def run_shared(
    setting: Setting, config: TransformerConfig, count: int, device: torch.device, dtype: torch.dtype
) -> Timed:
    """A row that several processes share, as the first of them sees it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.safetensors"
        given = (address, result, setting, config, count, device, dtype)
        torch.multiprocessing.spawn(one_process, given, nprocs=setting.layout.world)
        values = load_file(result)
    peak = float(values["peak"]) or None
    return Timed(values["seconds"].tolist(), values["worked"].tolist(), values["latents"], peak)


def one_process(rank: int, address: dict[str, str], result: Path, setting: Setting, *given: Any) -> None:
    """One of them; the first one writes what it measured."""
    config, count, device, dtype = given
    world = setting.layout.world
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    workers = Workers.join(device)
    timed = run(setting, config, count, workers.device, dtype, workers)
    if workers.is_first:
        values = {"seconds": timed.seconds, "worked": timed.worked, "peak": timed.peak_gb or 0.0}
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        save_file(tensors | {"latents": timed.latents.cpu().contiguous()}, result)
    workers.wait()
    torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Inputs:
    """Random conditions of the right sizes, before any network made something of them."""

    text: Tensor
    latents: Tensor
    reference: tuple[Tensor, ...]
    face: Tensor
    speech: Tensor

    @classmethod
    def draw(cls, config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> Inputs:
        audio, face = config.audio, config.face
        assert audio is not None and face is not None
        key = iter(range(100, 10_000))

        def random(*shape: int) -> Tensor:
            return draw_noise(shape, next(key)).to(device, dtype)

        grid = (config.latent_channels, config.latent_height, config.latent_width)
        return cls(
            text=random(1, config.text_tokens, config.text_width),
            latents=random(1, config.latent_frames, *grid),
            reference=tuple(random(1, config.tokens_per_frame, config.width) for _ in range(config.layers)),
            face=random(1, face.embedding),
            speech=random(1, config.frames, audio.window, audio.layers, audio.channels),
        )

    def cached(self, network: Transformer) -> tuple[Conditions, Conditions]:
        """Conditions with keys and values, and those that guidance leads away from."""
        conditions = Conditions(
            text=self.text,
            latents=self.latents,
            reference=network.cache_reference(self.reference).layers,
            face=network.cache_face(self.face).layers,
            audio=network.cache_audio(self.speech).layers,
        )
        silence = network.cache_audio(torch.zeros_like(self.speech)).layers
        return conditions, null_conditions(conditions, silence)


def official_loop(
    network: Transformer, given: Inputs, sampler: SamplerConfig, timesteps: list[int], device: torch.device
) -> Callable[[Tensor, int], Tensor]:
    """As the released code goes about it, but for the queries of the reference tokens, which it throws away."""
    face_tokens, audio_tokens = network.face_tokens, network.audio_tokens
    assert face_tokens is not None and audio_tokens is not None

    def velocity(state: Tensor, index: int) -> Tensor:
        both = torch.cat([state, state])
        modulation = network.modulation(torch.tensor([timesteps[index]] * 2, device=device))
        speech = torch.cat([torch.zeros_like(given.speech), given.speech])
        conditions = Conditions(
            text=torch.cat([torch.zeros_like(given.text), given.text]),
            latents=given.latents.expand(2, -1, -1, -1, -1),
            reference=tuple(tokens.expand(2, -1, -1) for tokens in given.reference),
            face=network.in_all_layers(
                face_tokens(given.face.expand(2, -1)).expand(-1, given.latents.shape[1], -1, -1)
            ),
            audio=network.in_all_layers(audio_tokens(speech)),
        )
        away, toward = network(both, modulation, conditions).float().chunk(2)
        result: Tensor = away + sampler.guidance_scale * (toward - away)
        return result

    return velocity


def decoders(
    vae_config: VaeConfig, config: TransformerConfig, device: torch.device, dtype: torch.dtype
) -> Row:
    """Seconds and memory of decoding one window, plainly and lean, and how far the two are apart."""
    side = 2 ** (len(vae_config.widths) - 1) * vae_config.stem
    shape = (1, config.latent_frames, vae_config.latent_channels, config.latent_height, config.latent_width)
    latents = draw_noise(shape, 3).to(device, dtype)
    values: Row = {"pixels": [config.latent_height * side, config.latent_width * side]}
    plain: Tensor | None = None
    for profile in (resident(), grouped()):
        vae = filled(CausalVae, vae_config, dtype, device)
        place_vae(vae, profile, device)
        name = "lean" if profile.is_lean else "plain"
        begin_memory(device)
        try:
            values[name], video = decoded(vae, latents, device)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            values[name] = {"failed": "out of memory"}
            continue
        plain = video if plain is None else plain
        values[name] |= difference(video, plain)
    return values


def decoded(vae: CausalVae, latents: Tensor, device: torch.device) -> tuple[Row, Tensor]:
    """Seconds of decoding a window twice, the memory that it took, and the frames on the CPU."""
    row: Row = {}
    with torch.no_grad():
        for attempt in ("first", "second"):
            begin, work, frames = now(device), time.process_time(), []
            for chunk in vae.decode(latents):
                frames.append(chunk.cpu())
            row[f"seconds_{attempt}"] = round(now(device) - begin, 3)
            if device.type == "cpu":
                row[f"processor_seconds_{attempt}"] = round(time.process_time() - work, 3)
    return row | {"peak_gb": peak_memory(device)}, torch.cat(frames, dim=1)


def filled(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A network with random weights that keep activations near 1; made on the fastest device, tensor by tensor."""
    with torch.device("meta"):
        network: nn.Module = kind(config).to(dtype)
    maker = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    random = torch.Generator(maker).manual_seed(0)
    values = {}
    for name, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=random, device=maker)
        if value.dim() > 1:
            noise /= math.sqrt(math.prod(value.shape[1:]))
        else:
            noise = 0.1 * noise + (1 if name.endswith("weight") else 0)
        values[name] = noise.to(device, dtype)
    network.load_state_dict(values, assign=True)
    return network.eval().requires_grad_(False)


def step_flops(config: TransformerConfig) -> float:
    """Operations of one step, both halves of guidance, with everything cached; a multiply-add is two."""
    video = config.latent_frames * config.tokens_per_frame
    tokens, square = config.text_tokens + video, config.width**2
    layer = (8 + 4 * config.mlp_ratio) * tokens * square
    layer += 4 * tokens * (tokens + config.tokens_per_frame) * config.width
    for branch in (config.face, config.audio):
        if branch is not None:
            layer += 4 * video * square + 4 * video * branch.tokens * config.width
    return 2.0 * config.layers * layer


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a large product in this precision: the median of ten."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        begin = now(device)
        left @ right
        times.append(now(device) - begin)
    return 2.0 * side**3 / statistics.median(times[2:])


def difference(value: Tensor, plain: Tensor) -> Row:
    """How far a result is from the plain one, in units of that one's deviation."""
    apart, scale = (value.float() - plain.float()), plain.float().std()
    return {
        "is_identical": bool(torch.equal(value, plain)),
        "difference_rms": float(f"{apart.pow(2).mean().sqrt() / scale:.3g}"),
        "difference_max": float(f"{apart.abs().max() / scale:.3g}"),
    }


def now(device: torch.device) -> float:
    """Seconds; everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def begin_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """GB that tensors took at most since `begin_memory`; unknown on a processor."""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def accelerator(device: torch.device) -> Row:
    if device.type != "cuda":
        return {"accelerator": None}
    properties = torch.cuda.get_device_properties(device)
    memory = round(properties.total_memory / 1e9, 1)
    return {"accelerator": properties.name, "accelerator_gb": memory, "cuda": torch.version.cuda}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
