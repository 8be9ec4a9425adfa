"""Official checkpoints of StyleAvatar -> weights under our names, every tensor accounted for (specification 2.6).

A checkpoint of the full trainer holds the averaged image generator "g_ema" and the four texture maps of the saving
step. Unless it is a small release, it also holds what training goes on from: the generators and the discriminator as
they were, the state of their optimizers and the command's options. The last two are of no use to another program and
are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omokage.avatar.paper.config import BANDS, DiscriminatorConfig, PortraitConfig
from omokage.avatar.paper.discriminator import Discriminator
from omokage.avatar.paper.keys import discriminator_keys, portrait_keys, texture_keys
from omokage.avatar.paper.portrait import PortraitGenerator
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.errors import InputError
from omokage.official import KeyMap, read_official, require_state_dict

AVERAGED = "g_ema"
# Our name of each network that only training uses, and its official entry.
TRAINING_NETWORKS = {"generator": "i_g", "face": "f_g", "background": "b_g", "discriminator": "d"}
TEXTURES = {"face": ("feature_face", "skip_face"), "background": ("feature_back", "skip_back")}
_OPTIMIZERS = ("i_g_optim", "f_g_optim", "b_g_optim", "g_optim", "d_optim")
_PASSED_OVER = (*_OPTIMIZERS, "args")
# Keys that tell the full network and the single one apart.
_FULL, _SINGLE = "from_rgbs_0.0.conv.0.weight", "from_rgbs.0.conv.0.weight"

State = dict[str, Tensor]


@dataclass(frozen=True)
class OfficialAvatar:
    """What is kept of a checkpoint. generator: weights of the averaged `PortraitGenerator`, float32, our names.
    face, background: the stored textures, batch of 1.  training: weights by the names of `TRAINING_NETWORKS`."""

    generator: State
    face: Texture
    background: Texture
    training: Mapping[str, State]


def skeletons(config: PortraitConfig, discriminator: DiscriminatorConfig) -> dict[str, nn.Module]:
    """Official entry -> network of that entry on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return {
            AVERAGED: PortraitGenerator(config),
            "i_g": PortraitGenerator(config),
            "f_g": TextureGenerator(config.texture, config.style),
            "b_g": TextureGenerator(config.texture, config.style),
            "d": Discriminator(discriminator),
        }


def key_maps(config: PortraitConfig, discriminator: DiscriminatorConfig) -> dict[str, KeyMap]:
    """Official entry -> where each of its tensors goes."""
    portrait, texture = portrait_keys(config), texture_keys(config.texture, config.style)
    return {
        AVERAGED: portrait,
        "i_g": portrait,
        "f_g": texture,
        "b_g": texture,
        "d": discriminator_keys(discriminator),
    }


def read_styleavatar(
    path: Path, config: PortraitConfig, discriminator: DiscriminatorConfig
) -> OfficialAvatar:
    """Read an official checkpoint of the full StyleAvatar, in the restricted way.

    Raises InputError when it is missing, damaged, unsafe, of another mode or of other sizes, or when a tensor is
    missing or left over.
    """
    content = read_official(path)
    _check_entries(path, content)
    maps, networks = key_maps(config, discriminator), skeletons(config, discriminator)
    states = {
        entry: _translate(path, entry, content[entry], keys, networks[entry].state_dict())
        for entry, keys in maps.items()
        if entry in content
    }
    textures = {part: _texture(path, content, names, config) for part, names in TEXTURES.items()}
    training = {ours: states[theirs] for ours, theirs in TRAINING_NETWORKS.items() if theirs in states}
    return OfficialAvatar(states[AVERAGED], textures["face"], textures["background"], training)


def _check_entries(path: Path, content: Any) -> None:
    """Is this a checkpoint of the full trainer, and nothing else?"""
    averaged = content.get(AVERAGED) if isinstance(content, dict) else None
    if not isinstance(averaged, dict):
        raise InputError(
            f"{path} holds no averaged generator '{AVERAGED}', so it is no checkpoint of StyleAvatar; "
            "give the .pt file that its training saved"
        )
    if _SINGLE in averaged and _FULL not in averaged:
        raise InputError(
            f"{path} is a checkpoint of StyleUNet, the single network, which has no face and background textures; "
            "give one of the full StyleAvatar"
        )
    wanted = [name for names in TEXTURES.values() for name in names]
    missing = [name for name in wanted if not isinstance(content.get(name), Tensor)]
    if missing:
        raise InputError(
            f"{path} holds no texture '{missing[0]}', which a checkpoint of the full StyleAvatar has beside its "
            "networks; give the .pt file that its training saved"
        )
    known = {AVERAGED, *TRAINING_NETWORKS.values(), *wanted, *_PASSED_OVER}
    unknown = [str(name) for name in content if name not in known]
    if unknown:
        raise InputError(
            f"{path} holds '{unknown[0]}', which no checkpoint of StyleAvatar has; "
            "give an unchanged .pt file that its training saved"
        )


def _translate(path: Path, entry: str, content: Any, keys: KeyMap, own: Mapping[str, Tensor]) -> State:
    """One network's state dict under our names, as float32 in our shapes."""
    state = require_state_dict(path, content)
    for found, what in (
        ([key for key in keys.names if key not in state], "lacks"),
        ([key for key in state if key not in keys.names and key not in keys.dropped], "has"),
    ):
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            raise InputError(
                f"{path} is of another network than the released one: its '{entry}' {what} '{found[0]}'{more}; "
                "give an unchanged .pt file of the official training"
            )
    translated = {}
    for theirs, ours in keys.names.items():
        value, shape = state[theirs], own[ours].shape
        if [side for side in value.shape if side != 1] != [side for side in shape if side != 1]:
            raise InputError(
                f"{path} is a network of other sizes than the released one: its '{entry}.{theirs}' is "
                f"{_shape(value)}, and {'x'.join(map(str, shape)) or 'one number'} is needed; "
                "only avatars of 1024 pixels and the released widths can be imported"
            )
        translated[ours] = value.reshape(shape).to(own[ours].dtype).contiguous()
    return translated


def _texture(
    path: Path, content: Mapping[str, Tensor], names: tuple[str, str], config: PortraitConfig
) -> Texture:
    """The stored maps; all rows of the batch that was trained on hold the same, and the first is kept."""
    kept = []
    for name, channels in zip(names, (config.channels, BANDS), strict=True):
        value, wanted = content[name], (channels, config.grid, config.grid)
        if value.ndim != 4 or not len(value) or tuple(value.shape[1:]) != wanted:
            raise InputError(
                f"{path} is a network of other sizes than the released one: its texture '{name}' is {_shape(value)}, "
                f"and 1x{'x'.join(map(str, wanted))} is needed; "
                "only avatars of 1024 pixels and the released widths can be imported"
            )
        kept.append(value[:1].detach().float().clone())
    return Texture(*kept)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"
