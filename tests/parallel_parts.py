"""One process of several that share the sampling of a tiny network, in the environment that `torchrun` sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from omokage.talking.caches import Conditions
from omokage.talking.compiling import compile_layers
from omokage.talking.config import SamplerConfig, TransformerConfig, official_sampler, tiny
from omokage.talking.parallel import Team
from omokage.talking.sampler import denoise, draw_noise, guided_velocity, null_conditions
from omokage.talking.scheduler import sampling_steps
from omokage.talking.transformer import Transformer
from omokage.workers import Workers

STEPS = 3


def sizes() -> TransformerConfig:
    """Six heads, and 7 text tokens and 15 tokens of a latent frame, which two or four processes cannot halve."""
    return replace(
        tiny(), width=96, heads=6, text_tokens=7, latent_height=6, latent_width=10, latent_frames=5, layers=2
    )


def sampler(**changes: object) -> SamplerConfig:
    """A few steps."""
    return replace(official_sampler(), steps=STEPS, **changes)  # type: ignore[arg-type]


def sampled(config: SamplerConfig, team: Team | None = None, *, compiled: bool = False) -> Tensor:
    """Clean latents of a network and conditions that are always the same."""
    torch.manual_seed(0)
    given = sizes()
    assert given.audio is not None and given.face is not None
    network = Transformer(given).eval().requires_grad_(False)
    if compiled:
        compile_layers(network, print, "eager")
    grid = (given.latent_channels, given.latent_height, given.latent_width)
    steps = sampling_steps(config.steps)
    reference = tuple(
        draw_noise((1, given.tokens_per_frame, given.width), 1, layer) for layer in range(given.layers)
    )
    audio = given.audio
    speech = draw_noise((1, given.frames, audio.window, audio.layers, audio.channels), 2)
    with torch.no_grad():
        conditions = Conditions(
            text=draw_noise((1, given.text_tokens, given.text_width), 3),
            latents=draw_noise((1, given.latent_frames, *grid), 4),
            reference=network.cache_reference(reference).layers,
            face=network.cache_face(draw_noise((1, given.face.embedding), 5)).layers,
            audio=network.cache_audio(speech).layers,
        )
        null = null_conditions(conditions, network.cache_audio(torch.zeros_like(speech)).layers)
        table = network.modulation(torch.tensor([step.timestep for step in steps]))
        start = draw_noise((1, given.latent_frames, *grid), 6)
        velocity = guided_velocity(network, table, conditions, null, config, team)
        *_, last = denoise(velocity, steps, start, lambda step: draw_noise(tuple(start.shape), 7, step))
    return last.clean


def main(result: str, choices: str) -> None:
    """result: the name, but for the process's number, of the file for clean latents; choices: of the sampler, JSON."""
    torch.set_num_threads(1)
    values = json.loads(choices)
    compiled = values.pop("compiled", False)
    config = SamplerConfig.from_json(sampler().to_json() | values)
    workers = Workers.join(torch.device("cpu"))
    team = Team.gather(workers, config, sizes().heads)
    clean = sampled(team.layout.sampler(config), team, compiled=compiled)
    path = Path(result)
    save_file({"clean": clean.contiguous()}, path.with_name(f"{workers.rank}.{path.name}"))
    torch.distributed.destroy_process_group()
