"""What the training of Hallo3 begins with: CogVideoX-5B-I2V (Yang et al. 2024) in both transformers (spec 4.1).

Its reference network is that model; its denoiser is that model, and branches for face and speech that know nothing yet.
The model is published twice: in the layout of its own training, whose names are those of `checkpoint`, and in that of
`diffusers`, which splits the layers' projections otherwise (spec 2.5).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omokage.errors import InputError
from omokage.files import parse_json
from omokage.official import KeyMap
from omokage.talking.blocks import NORM_EPS, cross_attention
from omokage.talking.checkpoint import (
    DENOISER_PREFIX,
    OTHERS_IN_MAIN,
    OTHERS_IN_VAE,
    transformer_keys,
)
from omokage.talking.config import TransformerConfig
from omokage.talking.convert import Pending, Weights, check_keys, read_checkpoint
from omokage.talking.projections import AudioProjection, FaceProjection
from omokage.talking.vae import VaeConfig, vae_keys

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"

# Name in diffusers -> ours, without ".weight" and ".bias"; {} is the layer.
_PARTS = {
    "patch_embed.proj": "embedding.patches",
    "patch_embed.text_proj": "embedding.text",
    "time_embedding.linear_1": "modulation.first",
    "time_embedding.linear_2": "modulation.second",
    "norm_final": "head.stack_norm",
    "norm_out.norm": "head.norm",
    "norm_out.linear": "modulation.head",
    "proj_out": "head.linear",
}
_LAYER_PARTS = {
    "transformer_blocks.{}.norm1.norm": "blocks.{}.attention_norm",
    "transformer_blocks.{}.norm2.norm": "blocks.{}.mlp_norm",
    "transformer_blocks.{}.attn1.norm_q": "blocks.{}.head_norms.query",
    "transformer_blocks.{}.attn1.norm_k": "blocks.{}.head_norms.key",
    "transformer_blocks.{}.attn1.to_out.0": "blocks.{}.attention.output",
    "transformer_blocks.{}.ff.net.0.proj": "blocks.{}.mlp.0",
    "transformer_blocks.{}.ff.net.2": "blocks.{}.mlp.2",
}
# Ours -> what its rows are put together from: names in diffusers, and which half of their rows (None: all).
_JOINED = {
    "blocks.{}.attention.query_key_value": (
        ("transformer_blocks.{}.attn1.to_q", None),
        ("transformer_blocks.{}.attn1.to_k", None),
        ("transformer_blocks.{}.attn1.to_v", None),
    ),
    # Shift, scale and gate of video, before attention and before the feed-forward layer; then those of text.
    "modulation.blocks.{}": (
        ("transformer_blocks.{}.norm1.linear", 0),
        ("transformer_blocks.{}.norm2.linear", 0),
        ("transformer_blocks.{}.norm1.linear", 1),
        ("transformer_blocks.{}.norm2.linear", 1),
    ),
}
_POSITIONS = ("patch_embed.pos_embedding", "embedding.positions")

# Our branches that CogVideoX lacks.
_BRANCHES = ("face_tokens", "audio_tokens", "face_norm", "audio_norm", "face", "audio")
_PRECISIONS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

_Pieces = tuple[tuple[str, int | None], ...]


def read_transformer(source: Path, config: TransformerConfig) -> Weights:
    """The transformer of CogVideoX under our names; nothing is read yet.

    source: a file of its own layout, or a folder of diffusers.  config: of the reference network. Raises InputError for
    files that cannot be read safely, of another model, or of another size.
    """
    if source.is_file():
        return _read_own(source, transformer_keys(config, DENOISER_PREFIX), OTHERS_IN_MAIN)
    pieces = diffusers_pieces(config)
    wanted = {key: key for parts in pieces.values() for key, _ in parts}
    stored = read_folder(source)
    check_keys(source, stored, [KeyMap(wanted, frozenset())])
    return {ours: _joined([(stored[key], half) for key, half in parts]) for ours, parts in pieces.items()}


def read_vae(source: Path, config: VaeConfig) -> Weights:
    """The autoencoder of CogVideoX, which is that of Hallo3; as `read_transformer`."""
    keys = vae_keys(config, prefix="")
    if source.is_file():
        return _read_own(source, keys, OTHERS_IN_VAE)
    ours = {name: name for name in keys.names.values()}  # our names are those of diffusers
    stored = read_folder(source)
    check_keys(source, stored, [KeyMap(ours, frozenset())])
    return {name: stored[name] for name in ours}


def denoiser_to_train(base: Weights, network: nn.Module, config: TransformerConfig) -> Weights:
    """The denoiser that training begins with: `base`, and new weights for all that CogVideoX lacks.

    network: the denoiser on the meta device, whose order of tensors is kept. New weights are the same every time.
    """
    # A branch is built once for all its tensors, and only one is in memory.
    branch = lru_cache(maxsize=1)(partial(_new_branch, config))

    def make(owner: str, name: str) -> Tensor:
        return branch(owner)[name]

    weights: dict[str, Tensor | Pending] = {}
    for key, value in network.state_dict().items():
        if key in base:
            weights[key] = base[key]
        else:
            owner, name = _branch_of(key)
            weights[key] = Pending(value.shape, value.dtype, partial(make, owner, name))
    return weights


def fit(source: Path, found: Weights, wanted: Mapping[str, Tensor]) -> Weights:
    """`found` in the order of our network. Raises InputError when tensors have other shapes than there."""
    wrong = [key for key, value in found.items() if value.shape != wanted[key].shape]
    if wrong:
        sizes = tuple(found[wrong[0]].shape), tuple(wanted[wrong[0]].shape)
        raise InputError(
            f"{source} is of another size than CogVideoX-5B-I2V: {len(wrong)} of its tensors do not fit, such as "
            f"'{wrong[0]}' with {sizes[0]} instead of {sizes[1]}; fetch the image-to-video model of 5 billion weights, "
            "version 1.0"
        )
    return {key: found[key] for key in wanted}


def diffusers_pieces(config: TransformerConfig) -> dict[str, _Pieces]:
    """Every tensor of ours -> those of diffusers that its rows come from, in their order."""
    names: dict[str, _Pieces] = {ours: ((theirs, None),) for theirs, ours in _PARTS.items()}
    for layer in range(config.layers):
        names |= {
            ours.format(layer): ((theirs.format(layer), None),) for theirs, ours in _LAYER_PARTS.items()
        }
        names |= {
            ours.format(layer): tuple((theirs.format(layer), half) for theirs, half in parts)
            for ours, parts in _JOINED.items()
        }
    pieces: dict[str, _Pieces] = {
        f"{ours}.{kind}": tuple((f"{theirs}.{kind}", half) for theirs, half in parts)
        for ours, parts in names.items()
        for kind in ("weight", "bias")
    }
    theirs, ours = _POSITIONS
    return {ours: ((theirs, None),)} | pieces


def read_folder(folder: Path) -> dict[str, Pending]:
    """What the safetensors of a network in a folder of diffusers hold; nothing is read yet.

    Raises InputError when a file is missing or damaged.
    """
    stored: dict[str, Pending] = {}
    for path in files_of(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    part = file.get_slice(key)
                    precision = _precision(path, key, part.get_dtype())
                    stored[key] = Pending(torch.Size(part.get_shape()), precision, partial(_read, path, key))
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{path} is missing, damaged or incomplete; fetch it again") from error
    return stored


def files_of(source: Path) -> list[Path]:
    """The files that hold a network: itself, or the safetensors in a folder of diffusers, one or those of its index.

    Raises InputError for a damaged index.
    """
    if source.is_file():
        return [source]
    index = source / f"{DIFFUSERS_WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return [source / f"{DIFFUSERS_WEIGHTS}.safetensors"]
    try:
        names = {str(name) for name in parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged; fetch it again") from error
    if not names or not all(Path(name).name == name for name in names):
        raise InputError(f"{index} names files outside its folder; fetch it again")
    return [source / name for name in sorted(names)]


def _read_own(source: Path, keys: KeyMap, others: tuple[str, ...]) -> Weights:
    state = read_checkpoint(source)
    check_keys(source, state, [keys], others)
    return {ours: state[official] for official, ours in keys.names.items()}


def _precision(path: Path, key: str, name: str) -> torch.dtype:
    try:
        return _PRECISIONS[name]
    except KeyError:
        raise InputError(
            f"{path} holds '{key}' as {name}; fetch the weights in 16 or 32 bits of floating point"
        ) from None


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _joined(pieces: Sequence[tuple[Pending, int | None]]) -> Pending:
    """Rows of several tensors, one below the other: all of each, or one half of it."""
    first, half = pieces[0]
    if len(pieces) == 1 and half is None:
        return first
    rows = sum(piece.shape[0] // (1 if half is None else 2) for piece, half in pieces)

    def make() -> Tensor:
        whole = [(piece.make(), half) for piece, half in pieces]
        return torch.cat([value if half is None else value.chunk(2)[half] for value, half in whole])

    return Pending(torch.Size((rows, *first.shape[1:])), first.dtype, make)


def _branch_of(key: str) -> tuple[str, str]:
    """'blocks.3.face.query.weight' -> 'blocks.3.face', 'query.weight'."""
    parts = key.split(".")
    place = next(place for place, part in enumerate(parts) if part in _BRANCHES)
    return ".".join(parts[: place + 1]), ".".join(parts[place + 1 :])


def _new_branch(config: TransformerConfig, owner: str) -> dict[str, Tensor]:
    """What a branch begins with (spec 2.1), drawn from its name."""
    face, audio = config.face, config.audio
    assert face is not None and audio is not None
    builders: dict[str, Callable[[], nn.Module]] = {
        "face": lambda: cross_attention(config, face.width),
        "audio": lambda: cross_attention(config, audio.width),
        "face_norm": lambda: nn.LayerNorm(config.width, eps=NORM_EPS),
        "audio_norm": lambda: nn.LayerNorm(config.width, eps=NORM_EPS),
        "face_tokens": lambda: FaceProjection(face),
        "audio_tokens": lambda: AudioProjection(audio),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(owner.encode()))
        state: dict[str, Tensor] = builders[owner.split(".")[-1]]().state_dict()
    return state
