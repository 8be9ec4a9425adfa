"""What is laid into the folder of a talking model: networks, encoders, sizes; and a record of every file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from omokage.config import Progress, ProgressCallback
from omokage.errors import WeightsError
from omokage.files import file_digest, parse_json, saving
from omokage.talking.convert import ShardIndex, index_path
from omokage.talking.folder import SPEECH_FOLDER, TEXT_FOLDER, Architecture, save_architecture
from omokage.talking.model import skeletons
from omokage.weights.store import FileRecord

# Names of the official release that are looked for.
MAIN_FILE = "mp_rank_00_model_states.pt"
ENCODER_FILES = ("*.json", "*.safetensors", "*.model", "LICENSE*", "README.md")
TOKENIZER_FILES = ("spiece.model", "tokenizer.json")


@dataclass(frozen=True, slots=True)
class AddConfig:
    """architecture: what the official files must hold.  precision: of the transformers' weights once installed; the
    released pipeline computes in bfloat16.  shard_bytes: of a file of converted weights at most."""

    architecture: Architecture
    precision: torch.dtype = torch.bfloat16
    shard_bytes: int = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Encoders:
    """Folders of the text encoder, of its tokenizer, which may be the same, and of the speech encoder."""

    text: Path
    tokenizer: Path
    speech: Path

    @property
    def files(self) -> list[Path]:
        return [path for folder in {self.text, self.tokenizer, self.speech} for path in wanted(folder)]


def find_encoders(source: Path, speech: Path | None = None) -> tuple[Encoders | None, list[str]]:
    """The encoders below `source`; None, and what is missing.  speech: one to take where `source` has none."""
    text = encoder_folder(source, "t5")
    speech = encoder_folder(source, "wav2vec2") or speech
    tokenizer = None if text is None else _tokenizer_folder(source, text)
    missing = []
    if text is None:
        missing.append("the text encoder t5-v1_1-xxl with config.json and safetensors")
    elif tokenizer is None:
        missing.append(f"the tokenizer of {text} ({' or '.join(TOKENIZER_FILES)})")
    if speech is None:
        missing.append("the speech encoder wav2vec2-base-960h with config.json and safetensors")
    if text is None or tokenizer is None or speech is None:
        return None, missing
    return Encoders(text, tokenizer, speech), []


def check_encoders(encoders: Encoders, architecture: Architecture) -> None:
    """Raises WeightsError for encoders of another size, or damaged ones."""
    check_encoder(encoders.text, {"d_model": architecture.transformer.text_width})
    audio = architecture.transformer.audio
    if audio is not None:
        check_encoder(encoders.speech, {"hidden_size": audio.channels, "num_hidden_layers": audio.layers})


def lay_encoders(
    encoders: Encoders, folder: Path, architecture: Architecture, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """Copy the encoders into a model's folder and write the sizes of all networks; records of these files."""
    records = copy_encoder((encoders.tokenizer, encoders.text), folder, TEXT_FOLDER, progress)
    records |= copy_encoder((encoders.speech,), folder, SPEECH_FOLDER, progress)
    sizes = save_architecture(folder, architecture)
    return records | {sizes.name: record(sizes)}


def network_records(folder: Path, networks: Mapping[str, ShardIndex]) -> dict[str, FileRecord]:
    """Records of converted networks, by the name of their part."""
    records: dict[str, FileRecord] = {}
    for name, index in networks.items():
        for file, digest in index.digests.items():
            records[file] = FileRecord((folder / file).stat().st_size, digest)
        described = index_path(folder, name)
        records[described.name] = record(described)
    return records


def planned_bytes(config: AddConfig, names: Sequence[str], others: Iterable[Path]) -> int:
    """What an installation takes on the disk, a little too much rather than too little.

    names: of the networks that are written in the configured precision.  others: files that keep about their size.
    """
    networks = skeletons(config.architecture)
    weights = sum(value.numel() for name in names for value in networks[name].state_dict().values())
    size: int = weights * config.precision.itemsize + sum(path.stat().st_size for path in others)
    return size


def encoder_folder(source: Path, kind: str) -> Path | None:
    """The folder of an encoder of this `model_type` whose weights are safetensors."""
    for path in sorted(source.rglob("config.json"), key=lambda path: len(path.parts)):
        if read_json(path).get("model_type") == kind and any(path.parent.glob("*.safetensors")):
            return path.parent
    return None


def check_encoder(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raises WeightsError for an encoder of other sizes than these of its configuration, or a damaged one."""
    config = read_json(folder / "config.json")
    wrong = [
        f"{key} {config.get(key)} instead of {size}" for key, size in sizes.items() if config.get(key) != size
    ]
    if wrong:
        raise WeightsError(
            f"{folder} is another encoder than Hallo3 was trained with ({', '.join(wrong)}); "
            "fetch the one of the official release"
        )
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or incomplete; fetch it again") from error
    index = folder / "model.safetensors.index.json"
    absent = sorted({str(file) for file in dict(read_json(index).get("weight_map", {})).values()})
    absent = [file for file in absent if not (folder / file).is_file()]
    if absent:
        raise WeightsError(f"{folder} lacks {absent[0]}; fetch the whole encoder again")


def wanted(folder: Path) -> list[Path]:
    """The files of an encoder that are kept."""
    return sorted(path for pattern in ENCODER_FILES for path in folder.glob(pattern) if path.is_file())


def copy_encoder(
    sources: Sequence[Path], folder: Path, name: str, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """Copy the files of an encoder, those of a later source first, into the part `name` of a folder, '' for the folder
    itself; their records."""
    (folder / name).mkdir(exist_ok=True)
    files = {path.name: path for source in sources for path in wanted(source)}
    total, done, records = float(sum(path.stat().st_size for path in files.values())), 0.0, {}
    for path in files.values():
        progress(Progress(f"copying {name}".strip(), done, total, path.name))
        records[f"{name}/{path.name}".lstrip("/")] = copy_file(path, folder / name / path.name)
        done += path.stat().st_size
    progress(Progress(f"copying {name}".strip(), total, total))
    return records


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy a file, or keep an equal one that is there."""
    size, digest = source.stat().st_size, file_digest(source)
    if not (target.is_file() and target.stat().st_size == size and file_digest(target) == digest):
        with saving(target) as part:
            shutil.copyfile(source, part)
        if file_digest(target) != digest:
            raise WeightsError(f"{target} differs from {source} after copying; check the disk and try again")
    return FileRecord(size, digest)


def record(path: Path) -> FileRecord:
    """Size and checksum of a file."""
    return FileRecord(path.stat().st_size, file_digest(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tokenizer_folder(source: Path, text: Path) -> Path | None:
    """The text encoder's own folder, or one beside it, as diffusers lays it."""
    for folder in (text, text.parent / "tokenizer", source / "tokenizer"):
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            return folder
    return None
