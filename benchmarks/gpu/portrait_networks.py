"""What stands in for weights and conditions in `portrait_video.py`, and the loop as the released code goes about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.talking.caches import Conditions
from omokage.talking.config import SamplerConfig, TransformerConfig
from omokage.talking.sampler import null_conditions
from omokage.talking.transformer import Transformer


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
        """The same in every row, drawn where the work is: the processor would take seconds for them."""
        audio, face = config.audio, config.face
        assert audio is not None and face is not None
        drawing = torch.Generator(device).manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=drawing, device=device).to(dtype)

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
    network: Transformer, given: Inputs, sampler: SamplerConfig, timesteps: list[int]
) -> Callable[[Tensor, int], Tensor]:
    """As the released code goes about it (spec 3.3, 1 to 5): nothing is kept from one step to the next."""
    face_tokens, audio_tokens = network.face_tokens, network.audio_tokens
    assert face_tokens is not None and audio_tokens is not None
    for block in network.blocks:
        block.attention.forward = partial(official_attention, block.attention)

    def velocity(state: Tensor, index: int) -> Tensor:
        both = torch.cat([state, state])
        modulation = network.modulation(torch.tensor([timesteps[index]] * 2, device=state.device))
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


def official_attention(attention: Any, tokens: Tensor, norms: Any, turns: Any, reference: Tensor) -> Tensor:
    """Joint attention in which the reference tokens ask, too; what they gather is thrown away (spec 2.1, step 2)."""
    count = tokens.shape[1]
    joint = attention.query_key_value(torch.cat([tokens, reference], dim=1))
    queries, keys, values = joint.unflatten(-1, (3, attention.heads, -1)).unbind(2)

    def turned(heads: Tensor) -> Tensor:
        return torch.cat([turns.joint.rotate(heads[:, :count]), heads[:, count:]], dim=1).transpose(1, 2)

    gathered = F.scaled_dot_product_attention(
        turned(norms.query(queries)), turned(norms.key(keys)), values.transpose(1, 2)
    )
    attended: Tensor = attention.output(gathered.transpose(1, 2).flatten(2))[:, :count]
    return attended


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
