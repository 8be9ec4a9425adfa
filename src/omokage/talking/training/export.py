"""A trained couple becomes a model that can be animated with: the folder that training began with, with new weights.

Shards that hold nothing new, the autoencoder and the encoders are linked, not copied, where the disk can.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from omokage.errors import InputError
from omokage.files import file_digest, output_error, saving
from omokage.talking.convert import ShardIndex, read_index, save_index
from omokage.talking.folder import (
    DENOISER,
    REFERENCE,
    SPEECH_FOLDER,
    SPEECHLESS,
    TEXT_FOLDER,
    VAE,
    Architecture,
    load_architecture,
    save_architecture,
)
from omokage.talking.training.couple import Couple
from omokage.talking.training.sharding import whole
from omokage.workers import Workers


def save_model(source: Path, folder: Path, couple: Couple, workers: Workers) -> None:
    """Write the model that training from `source` made of it into `folder`, in the layout of `talking.folder`.

    All processes call it together; the first one writes. What the couple lacks, such as the speech branch in the first
    stage, stays as it was. Raises InputError for a damaged `source`, OutputError.
    """
    for name, network in ((DENOISER, couple.denoiser), (REFERENCE, couple.reference)):
        _save_network(source, folder, name, network, workers)
    if workers.is_first:
        link(source, folder, VAE + "-*.safetensors")
        link(source, folder, VAE + ".safetensors.index.json")
        for part in (TEXT_FOLDER, SPEECH_FOLDER):
            link(source, folder, f"{part}/*")
        link(source, folder, "*.onnx")
        save_architecture(folder, _sizes(source, couple))  # last: without it the folder is no model
    workers.wait()


def adapters_of(couple: Couple) -> dict[str, Tensor]:
    """What learned, by part and name, whole and on the CPU: the updates of a couple that has them.

    All processes call it together.
    """
    learned = {name: value for name, value in couple.named_parameters() if value.requires_grad}
    return {name: whole(value.detach()).cpu() for name, value in learned.items()}


def write_network(folder: Path, name: str, network: nn.Module) -> None:
    """Write a network that is not from a model's folder, as one shard and its index. Raises OutputError."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    file = f"{name}-00001-of-00001.safetensors"
    with saving(folder / file, SafetensorError) as part:
        save_file(tensors, part)
    index = ShardIndex(
        dict.fromkeys(tensors, file),
        {file: file_digest(folder / file)},
        sum(value.nbytes for value in tensors.values()),
    )
    save_index(folder, name, index)


def link(source: Path, folder: Path, pattern: str) -> None:
    """Give the files of `source` a second name in `folder`, or copy them. Raises OutputError."""
    for path in sorted(source.glob(pattern)):
        target = folder / path.relative_to(source)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:
                with saving(target) as part:
                    shutil.copy2(path, part)
        except OSError as error:
            raise output_error(target, error) from error


def _sizes(source: Path, couple: Couple) -> Architecture:
    """Of the model that training began with; one that could not speak has learned it when its speech branch learned."""
    sizes = load_architecture(source)
    speaks = any(value.requires_grad and "audio" in name for name, value in couple.named_parameters())
    return replace(sizes, caution="") if speaks and sizes.caution == SPEECHLESS else sizes


def _save_network(source: Path, folder: Path, name: str, network: nn.Module, workers: Workers) -> None:
    index = read_index(source, name)
    learned = {key: value for key, value in network.named_parameters() if value.requires_grad}
    digests = dict(index.digests)
    for file in sorted(set(index.shards.values())):
        keys = [key for key, place in index.shards.items() if place == file and key in learned]
        # Put together by all processes, shard by shard: never is a whole network in one memory.
        new = {key: whole(learned[key].detach()).cpu() for key in keys}
        if not workers.is_first:
            continue
        if new:
            digests[file] = _rewrite(source / file, folder / file, new)
        else:
            link(source, folder, file)
    if workers.is_first:
        save_index(folder, name, ShardIndex(index.shards, digests, index.total_bytes))


def _rewrite(source: Path, target: Path, new: Mapping[str, Tensor]) -> str:
    """A shard with other values of some tensors, in the precision of the old ones; gives its digest."""
    try:
        with safe_open(source, framework="pt") as shard:
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{source} is missing or damaged; install the weights again") from error
    tensors |= {key: value.to(tensors[key].dtype).contiguous() for key, value in new.items()}
    with saving(target, SafetensorError) as part:
        save_file(tensors, part)
    return file_digest(target)
