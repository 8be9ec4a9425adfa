"""What the networks of a talking model cost, part by part. MAIN: `network_costs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import torch

from omokage.pipelines.network_load import Load, load_of, loads_of
from omokage.talking.caches import Conditions, KeyValue
from omokage.talking.config import TransformerConfig
from omokage.talking.folder import Architecture, official_architecture
from omokage.talking.lean import make_lean
from omokage.talking.model import video_size
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae, chunk_lengths

# What was counted of the published networks, by precision: it never changes, and counting takes many seconds. Made by
# `benchmarks/portrait_video_plan.py`.
TABLE = Path(__file__).with_name("published_costs.json")


@dataclass(frozen=True)
class Costs:
    """What the networks of a model cost in one precision, counted: loads of one call each, and bytes of weights.

    denoise, denoise_half: a pass with both halves of guidance, and with one.
    decode, decode_lean: of a window, chunk by chunk, with either decoder.
    whole, kept: the denoiser, and what is left of it for the loop, of which `layer` is in every layer; `waiting` was.
    """

    encode_one: Load
    encode_three: Load
    decode: Load
    decode_lean: Load
    reference: Load
    denoise: Load
    denoise_half: Load
    autoencoder: int
    reference_weights: int
    whole: int
    kept: int
    layer: int
    waiting: int

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Build from what `dataclasses.asdict` gave."""
        read: dict[str, Any] = {
            name: Load(**value) if isinstance(value, dict) else value for name, value in values.items()
        }
        return cls(**read)


@cache
def network_costs(sizes: Architecture, dtype: torch.dtype) -> Costs:
    """What they cost: of the published networks from `TABLE`, of any others counted."""
    published = official_architecture()
    if (sizes.transformer, sizes.vae) == (published.transformer, published.vae):
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        known = table.get(str(dtype).removeprefix("torch."))
        if known is not None:
            return Costs.from_json(known)
    return count_costs(sizes, dtype)


def count_costs(sizes: Architecture, dtype: torch.dtype) -> Costs:
    """Count them with the real networks; many seconds at the published size."""
    config = sizes.transformer
    with torch.device("meta"):
        vae = CausalVae(sizes.vae).to(dtype)
        portrait, three = (torch.empty(1, n, 3, *video_size(sizes), dtype=dtype) for n in (1, 3))
        denoiser, reference = Transformer(config).to(dtype), Transformer(config.reference).to(dtype)
        lean = CausalVae(sizes.vae).to(dtype)
    make_lean(lean)
    whole, waiting = _bytes(denoiser), _bytes(denoiser.blocks) // config.layers
    denoiser.free_prepared()
    return Costs(
        encode_one=load_of(vae, partial(vae.posterior, portrait)),
        encode_three=load_of(vae, partial(vae.posterior, three)),
        decode=_decoder_load(vae, config),
        decode_lean=_decoder_load(lean, config),
        reference=of_all(partial(_reference_load, config, dtype), config.layers),
        denoise=of_all(partial(denoiser_load, config, dtype, 2), config.layers),
        denoise_half=of_all(partial(denoiser_load, config, dtype, 1), config.layers),
        autoencoder=_bytes(vae),
        reference_weights=_bytes(reference),
        whole=whole,
        kept=_bytes(denoiser),
        layer=_bytes(denoiser.blocks) // config.layers,
        waiting=waiting,
    )


def _decoder_load(vae: CausalVae, config: TransformerConfig) -> Load:
    """A window's chunks after the first are alike: two of them tell what all cost."""
    first, *others = chunk_lengths(config.latent_frames)
    grid = (config.latent_channels, config.latent_height, config.latent_width)
    dtype = next(vae.parameters()).dtype
    latents = torch.empty(1, first + (others or [0])[0], *grid, dtype=dtype, device="meta")
    one, *two = loads_of(vae, vae.decode(latents))
    both = two[0] if two else one
    return Load(one.flops + len(others) * (both.flops - one.flops), both.held)


def _reference_load(config: TransformerConfig, dtype: torch.dtype, layers: int) -> Load:
    """A reference network of so many layers on one portrait."""
    with torch.device("meta"):
        network = Transformer(replace(config.reference, layers=layers)).to(dtype)
        grid = (config.latent_channels, config.latent_height, config.latent_width)
        latents = torch.empty(1, 1, *grid, dtype=dtype)
    return load_of(network, partial(network.reference_tokens, latents))


def denoiser_load(config: TransformerConfig, dtype: torch.dtype, batch: int, layers: int) -> Load:
    """One pass of a denoiser of so many layers, everything that it is told being cached."""
    with torch.device("meta"):
        network = Transformer(replace(config, layers=layers)).to(dtype)
        grid = (config.latent_channels, config.latent_height, config.latent_width)
        state = torch.empty(batch, config.latent_frames, *grid)
        face, audio = config.face, config.audio
        conditions = Conditions(
            text=torch.empty(batch, config.text_tokens, config.text_width, dtype=dtype),
            latents=state[:1].to(dtype),
            reference=(_key_value(config, dtype, 1, config.tokens_per_frame),) * layers,
            face=(_key_value(config, dtype, 1, 1, face.tokens),) * layers if face else None,
            audio=(_key_value(config, dtype, batch, config.latent_frames, audio.tokens),) * layers
            if audio
            else None,
        )
        row = network.modulation(torch.zeros(1))
    return load_of(network, lambda: network(state, row, conditions))


def _key_value(config: TransformerConfig, dtype: torch.dtype, *shape: int) -> KeyValue:
    *front, tokens = shape
    keys = torch.empty(*front, config.heads, tokens, config.head_width, dtype=dtype)
    return KeyValue(keys, torch.empty_like(keys))


def of_all(load: Callable[[int], Load], layers: int) -> Load:
    """All layers are alike: one and two of them tell what any number costs. What they hold, they hold in turn."""
    one, two = load(1), load(2)
    return Load(one.flops + (layers - 1) * (two.flops - one.flops), two.held)


def _bytes(network: torch.nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values())
