"""Official checkpoints -> sharded safetensors with a checksum each: read once in a restricted way, never again.

The official files are PyTorch pickles of a training framework: a dictionary with the state dict under "module" (the
transformers) or "state_dict" (the autoencoder). They are read without running anything that they hold; tensors stay on
disk, or unmade, until their shard is written. A shard is complete or not there, a stopped conversion goes on with the
next one.

Beside the shards `<part>-00001-of-00004.safetensors` lies `<part>.safetensors.index.json`, written last, in the format
that other libraries read too: where each tensor is, and under "metadata" the SHA-256 of every shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, OutputError
from omokage.files import file_digest, parse_json, result_folder, saving
from omokage.official import KeyMap, read_official, require_state_dict

SHARD_BYTES = 2 * 1024**3
# Where the official files keep their state dict; the first one that is there.
ENTRIES = ("module", "state_dict")


@dataclass(frozen=True, slots=True)
class Part:
    """One network of an official file: the `name` of its safetensors, and where each of its tensors is."""

    name: str
    keys: KeyMap


@dataclass(frozen=True, slots=True)
class Pending:
    """A tensor of this shape and precision that `make` gives when its shard is written."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def numel(self) -> int:
        return self.shape.numel()

    def to(self, dtype: torch.dtype) -> Tensor:
        return self.make().to(dtype)


Weights = Mapping[str, Tensor | Pending]  # our key -> the tensor, still on disk or to be made


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A converted network: key -> file of the shard, file -> SHA-256, and the bytes of all tensors."""

    shards: Mapping[str, str]
    digests: Mapping[str, str]
    total_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The layout of `*.safetensors.index.json`."""
        return {
            "metadata": {"total_size": self.total_bytes, "sha256": dict(self.digests)},
            "weight_map": dict(self.shards),
        }


@dataclass(frozen=True, slots=True)
class _Shard:
    file: str
    tensors: Weights


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of an official file, key -> tensor on the CPU; they stay on disk until they are used.

    Arrays of NumPy beside the weights are passed over. Raises InputError when the file cannot be read safely.
    """
    content = read_official(path)
    if isinstance(content, dict):
        content = next((content[entry] for entry in ENTRIES if isinstance(content.get(entry), dict)), content)
    return require_state_dict(path, content)


def convert_checkpoint(
    source: Path,
    parts: Sequence[Part],
    folder: Path,
    *,
    ignored: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ProgressCallback = ignore_progress,
) -> list[ShardIndex]:
    """Write the networks of an official file as sharded safetensors into `folder`, one after the other.

    ignored: prefixes of official keys that belong to none of the parts.  dtype: of the result, None as in the file.
    Called again after an interruption, it checks the finished shards by their digests and goes on with the next.
    Raises InputError when the file cannot be read safely, or when a key is missing, left over or wanted twice;
    OutputError when there is no room.
    """
    state = read_checkpoint(source)
    check_keys(source, state, [part.keys for part in parts], ignored)
    networks = {
        part.name: {ours: state[official] for official, ours in part.keys.names.items()} for part in parts
    }
    return write_networks(
        networks, folder, origins=[source], dtype=dtype, shard_bytes=shard_bytes, progress=progress
    )


def write_networks(
    networks: Mapping[str, Weights],
    folder: Path,
    *,
    origins: Sequence[Path],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: ProgressCallback = ignore_progress,
) -> list[ShardIndex]:
    """Write networks, by the names of their parts, as sharded safetensors into `folder`, one after the other.

    origins: the files that the tensors come from; other ones begin a conversion anew. Called again after an
    interruption, it checks the finished shards by their digests and goes on. Raises OutputError when there is no room.
    """
    plans = {name: _plan(name, tensors, dtype, shard_bytes) for name, tensors in networks.items()}
    origin: list[object] = [str(dtype)]
    for path in origins:
        stamp = path.stat()
        origin += [path.name, stamp.st_size, stamp.st_mtime_ns]
    total = float(sum(_bytes(plan, dtype) for plan in plans.values()))
    indices, done = [], 0.0
    with result_folder(folder):
        for name, plan in plans.items():
            digests = _finished(folder, name, plan, origin)
            unwritten = [shard for shard in plan if shard.file not in digests]
            _check_room(folder, unwritten, dtype)
            if unwritten:  # an index says that all shards are there
                index_path(folder, name).unlink(missing_ok=True)
            for shard in plan:
                progress(Progress("converting", done, total, shard.file))
                if shard.file not in digests:
                    digests[shard.file] = _write_shard(folder / shard.file, shard, dtype)
                    _write_json(_notes(folder, name), {"plan": _digest(plan, origin), "sha256": digests})
                done += _bytes([shard], dtype)
            where = {key: shard.file for shard in plan for key in shard.tensors}
            index = ShardIndex(where, digests, _bytes(plan, dtype))
            save_index(folder, name, index)
            indices.append(index)
    progress(Progress("converting", total, total))
    return indices


def index_path(folder: Path, name: str) -> Path:
    """The index of a converted network."""
    return folder / f"{name}.safetensors.index.json"


def save_index(folder: Path, name: str, index: ShardIndex) -> None:
    """Write the index of a network, when all of its shards are there. Raises OutputError."""
    _write_json(index_path(folder, name), index.to_json())


def read_index(folder: Path, name: str) -> ShardIndex:
    """The index of a converted network. Raises InputError when it is missing or damaged."""
    path = index_path(folder, name)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        described = content["metadata"]
        return ShardIndex(
            dict(content["weight_map"]), dict(described["sha256"]), int(described["total_size"])
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no weights of the {name}; run 'omokage weights pull hallo3', "
            "or 'omokage weights add hallo3' with the official folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; convert the official weights again") from error


def verify_shards(folder: Path, name: str) -> ShardIndex:
    """Compare every shard of a converted network with its digest. Raises InputError naming the first that differs."""
    index = read_index(folder, name)
    for file, expected in index.digests.items():
        path = folder / file
        if not path.is_file() or file_digest(path) != expected:
            raise InputError(
                f"{path} is missing or its checksum is wrong; convert the official weights again"
            )
    return index


def load_weights(
    network: nn.Module,
    folder: Path,
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Fill a network, which may be on the meta device, with converted weights, shard after shard.

    dtype: of the network, None as in the files. Raises InputError when a shard is missing or damaged, or when the
    weights are of another network or size.
    """
    index = read_index(folder, name)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    found: dict[str, torch.Size] = {}
    for file in sorted(set(index.shards.values())):
        try:
            with safe_open(folder / file, framework="pt", device=str(device)) as shard:
                values = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{folder / file} is missing or damaged; convert the official weights again"
            ) from error
        found |= {key: value.shape for key, value in values.items()}
        fitting = {
            key: value.to(dtype or value.dtype)
            for key, value in values.items()
            if wanted.get(key) == value.shape
        }
        network.load_state_dict(fitting, strict=False, assign=True)
    if found != wanted:
        strange = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise InputError(
            f"the weights of the {name} in {folder} are of another network or size ({len(strange)} tensors do not "
            f"fit, such as '{strange[0]}'); convert the official weights again"
        )


def check_keys(
    source: Path, found: Iterable[str], maps: Sequence[KeyMap], ignored: tuple[str, ...] = ()
) -> None:
    """Compare the official keys of `source` with those that its networks need. Raises InputError, naming one of each
    kind that is missing, left over or wanted twice."""
    there = dict.fromkeys(found)
    wanted = [key for keys in maps for key in keys.names]
    known = {*wanted, *(key for keys in maps for key in keys.dropped)}
    missing = [key for key in wanted if key not in there]
    unknown = [key for key in there if key not in known and not key.startswith(ignored or ("\0",))]
    if missing or unknown:
        said = [
            f"{len(keys)} {what}, such as '{keys[0]}'"
            for keys, what in ((missing, "are missing"), (unknown, "are unknown"))
            if keys
        ]
        raise InputError(
            f"{source} is not the expected model: of its tensors {' and '.join(said)}; "
            "use an unchanged file of the official release"
        )
    if len(set(wanted)) < len(wanted):
        raise InputError(f"two of the {len(maps)} networks want the same tensors of {source}")


def _plan(name: str, tensors: Weights, dtype: torch.dtype | None, limit: int) -> list[_Shard]:
    """Tensors in the given order, as many to a shard as fit, at least one."""
    groups: list[dict[str, Tensor | Pending]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        added = _tensor_bytes(tensor, dtype)
        if groups[-1] and size + added > limit:
            groups.append({})
            size = 0
        groups[-1][key] = tensor
        size += added
    count = len(groups)
    return [
        _Shard(f"{name}-{number:05d}-of-{count:05d}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]


def _tensor_bytes(tensor: Tensor | Pending, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _bytes(plan: Sequence[_Shard], dtype: torch.dtype | None) -> int:
    return sum(_tensor_bytes(tensor, dtype) for shard in plan for tensor in shard.tensors.values())


def _check_room(folder: Path, plan: Sequence[_Shard], dtype: torch.dtype | None) -> None:
    needed, free = _bytes(plan, dtype), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the converted weights need {math.ceil(needed / 1e9)} GB more in {folder}, and {free / 1e9:.0f} GB are "
            "free; free some space or choose another folder"
        )


def _digest(plan: Sequence[_Shard], origin: Sequence[object]) -> str:
    """Of all that decides what the shards hold but the values themselves."""
    tensors = [
        [shard.file, key, str(tensor.dtype), list(tensor.shape)]
        for shard in plan
        for key, tensor in shard.tensors.items()
    ]
    return hashlib.sha256(json.dumps([list(origin), tensors]).encode()).hexdigest()


def _notes(folder: Path, name: str) -> Path:
    """What is finished, while not all is; it stays, so that a finished conversion is recognized."""
    return folder / f"{name}.conversion.json"


def _finished(folder: Path, name: str, plan: Sequence[_Shard], origin: Sequence[object]) -> dict[str, str]:
    """File -> digest of the shards that an earlier run of the same plan wrote and that are still whole."""
    try:
        notes = parse_json(_notes(folder, name).read_text(encoding="utf-8"))
        if notes["plan"] != _digest(plan, origin):
            return {}
        recorded = dict(notes["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        file: digest
        for file, digest in recorded.items()
        if (folder / file).is_file() and file_digest(folder / file) == digest
    }


def _write_shard(path: Path, shard: _Shard, dtype: torch.dtype | None) -> str:
    with saving(path, SafetensorError) as unfinished:
        values = {key: tensor.to(dtype or tensor.dtype).contiguous() for key, tensor in shard.tensors.items()}
        save_file(values, unfinished)
    return file_digest(path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with saving(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
