"""Checkpoints of the official layout, filled by the golden rule, at small sizes or at the released ones."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from golden_fill import draw, is_constant, weight
from omokage.avatar.paper.checkpoint import TEXTURES, key_maps, skeletons
from omokage.avatar.paper.config import (
    BANDS,
    DiscriminatorConfig,
    PortraitConfig,
    small_discriminator,
    small_portrait,
)
from omokage.official import KeyMap

# Entries of a style layer whose official shapes have ones that ours have not.
KERNEL = re.compile(r"^(convs|to_rgbs|tex_up)(_\d)?\.\d+\.conv\.weight$|^(weight)$")
BIAS = re.compile(r"^(convs|to_rgbs|tex_up)(_\d)?\.\d+\.bias$")


def official_shape(key: str, ours: torch.Size) -> tuple[int, ...]:
    """The shape under which the official code saves a tensor of ours."""
    if KERNEL.match(key):
        return (1, *ours)
    return (1, *ours, 1, 1) if BIAS.match(key) else tuple(ours)


def official_shapes(keys: KeyMap, network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Official key -> shape, of all that a saved network holds."""
    own = network.state_dict()
    filters = {key: (4, 4) if key.endswith("kernel") else (2, 2) for key in keys.dropped}
    return {theirs: official_shape(theirs, own[ours].shape) for theirs, ours in keys.names.items()} | filters


def official_state(entry: str, keys: KeyMap, network: nn.Module) -> OrderedDict[str, Tensor]:
    """A saved network, drawn from the names of its tensors."""
    state = OrderedDict()
    for key, shape in official_shapes(keys, network).items():
        if is_constant(key):
            state[key] = torch.zeros(shape, dtype=torch.long if key.endswith("tracked") else torch.float32)
        else:
            state[key] = torch.from_numpy(weight(f"{entry}.{key}", key, shape, equalised=True))
    return state


def official_texture(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(draw(f"input:{name}", {"shape": shape, "dist": "normal", "std": 0.5}))


def official_content(
    config: PortraitConfig | None = None, discriminator: DiscriminatorConfig | None = None
) -> dict[str, Any]:
    """What the official training saves: networks, optimizers, textures of a batch of 2, and the command's options."""
    config, discriminator = config or small_portrait(), discriminator or small_discriminator()
    maps, networks = key_maps(config, discriminator), skeletons(config, discriminator)
    content: dict[str, Any] = {
        entry: official_state(entry, keys, networks[entry]) for entry, keys in maps.items()
    }
    step = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}
    for name in ("i_g_optim", "f_g_optim", "b_g_optim", "d_optim"):
        content[name] = {"state": {0: step}, "param_groups": [{"lr": 2e-3, "betas": (0.0, 0.99)}]}
    for features, bands in TEXTURES.values():
        for name, channels in ((features, config.channels), (bands, BANDS)):
            content[name] = official_texture(name, (1, channels, config.grid, config.grid)).repeat(2, 1, 1, 1)
    return content | {"args": argparse.Namespace(iter=800000, path="data", distributed=False)}


def save_official(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(dict(content), path)
    return path
