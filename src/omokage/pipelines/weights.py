"""`omokage weights add`: official files become an installed model. MAIN: `add_weights`.

Nothing counts as installed before its manifest is written, which is the last act. Until then all that is finished
stays, and the same call goes on with the rest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import WeightsError
from omokage.files import file_digest, output_error, parse_json, saving
from omokage.talking.checkpoint import DENOISER_PREFIX, REFERENCE_PREFIX, transformer_keys
from omokage.talking.convert import Part, convert_checkpoint, index_path, read_checkpoint
from omokage.talking.folder import (
    DENOISER,
    REFERENCE,
    SPEECH_FOLDER,
    TEXT_FOLDER,
    VAE,
    Architecture,
    official_architecture,
    save_architecture,
)
from omokage.talking.model import FACE_FILE, skeletons
from omokage.talking.vae import VAE_PREFIX, vae_keys
from omokage.weights.registry import FACE, HALLO3, SPEECH, find_spec
from omokage.weights.store import (
    FileRecord,
    Manifest,
    check_room,
    folder_bytes,
    folder_of,
    refuse_installed,
    write_manifest,
)

MAIN_FILE = "mp_rank_00_model_states.pt"
# What else the official files may hold beside the networks that are wanted from them.
OTHERS_IN_MAIN = (VAE_PREFIX, "conditioner.")
OTHERS_IN_VAE = ("loss.",)
ENCODER_FILES = ("*.json", "*.safetensors", "*.model", "LICENSE*", "README.md")


@dataclass(frozen=True, slots=True)
class OfficialFiles:
    """Where the parts of Hallo3 lie. `vae` is None when the main file has to hold it."""

    main: Path
    vae: Path | None
    text: Path
    speech: Path


@dataclass(frozen=True, slots=True)
class AddConfig:
    """architecture: what the official files must hold.  precision: of the transformers' weights once installed; the
    released pipeline computes in bfloat16.  shard_bytes: of a file of converted weights at most."""

    architecture: Architecture
    precision: torch.dtype = torch.bfloat16
    shard_bytes: int = 2 * 1024**3


def add_weights(
    name: str, source: Path, *, config: AddConfig | None = None, progress: ProgressCallback = ignore_progress
) -> Path:
    """Install a model from official files on this machine, without any network; its folder.

    `source`: the official folder of Hallo3, the folder or the file of a smaller model. Raises WeightsError or
    InputError when files are missing or of another model, OutputError when there is no room or no permission.
    """
    spec, folder = find_spec(name), folder_of(name)
    refuse_installed(name)
    with _new_folder(folder):
        (folder / spec.manifest_name).unlink(missing_ok=True)
        if spec.name == HALLO3.name:
            records = _install_hallo3(source, folder, config or AddConfig(official_architecture()), progress)
        elif spec.name == SPEECH.name:
            records = _install_speech(source, folder, progress)
        else:
            records = _install_file(source, folder, FACE_FILE, progress)
        _write_text(folder / spec.notice_name, spec.notice)
        records[spec.notice_name] = _record(folder / spec.notice_name)
        write_manifest(
            folder / spec.manifest_name, Manifest(name, f"official files in '{source.name}'", records)
        )
    return folder


# Hallo3


def find_official_files(source: Path, architecture: Architecture) -> OfficialFiles:
    """The parts of Hallo3 in a folder of the official layout, or in one around or below it.

    Raises WeightsError that names everything that is missing.
    """
    if not source.is_dir():
        raise WeightsError(f"{source} is no folder; give the folder with the official files of Hallo3")
    mains = sorted(source.rglob(MAIN_FILE), key=lambda path: ("hallo3" not in path.parts, len(path.parts)))
    # The official folder holds CogVideoX's own transformer under the same file name, too.
    mains = [path for path in mains if "transformer" not in path.relative_to(source).parts]
    vaes = sorted(source.rglob("*vae*.pt"), key=lambda path: len(path.parts))
    encoders = {kind: _encoder_folder(source, kind) for kind in ("t5", "wav2vec2")}
    missing = [] if mains else [f"hallo3/1/{MAIN_FILE}"]
    missing += [
        what
        for kind, what in (
            ("t5", "the text encoder t5-v1_1-xxl with config.json and safetensors"),
            ("wav2vec2", "the speech encoder wav2vec2-base-960h with config.json and safetensors"),
        )
        if encoders[kind] is None
    ]
    if missing:
        raise WeightsError(
            f"{source} is not the complete official folder: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; fetch the whole release of Hallo3"
        )
    text, speech = encoders["t5"], encoders["wav2vec2"]
    assert text is not None and speech is not None
    audio = architecture.transformer.audio
    _check_encoder(text, {"d_model": architecture.transformer.text_width})
    if audio is not None:
        _check_encoder(speech, {"hidden_size": audio.channels, "num_hidden_layers": audio.layers})
    return OfficialFiles(mains[0], vaes[0] if vaes else None, text, speech)


def _install_hallo3(
    source: Path, folder: Path, config: AddConfig, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """Convert and copy everything; records of all files but the notice."""
    architecture = config.architecture
    files = find_official_files(source, architecture)
    jobs = _conversions(files, architecture, config.precision)
    check_room(folder, _planned_bytes(files, config), folder_bytes(folder))
    records: dict[str, FileRecord] = {}
    for path, parts, ignored, dtype in jobs:
        indices = convert_checkpoint(
            path,
            parts,
            folder,
            ignored=ignored,
            dtype=dtype,
            shard_bytes=config.shard_bytes,
            progress=progress,
        )
        for part, index in zip(parts, indices, strict=True):
            for file, digest in index.digests.items():
                records[file] = FileRecord((folder / file).stat().st_size, digest)
            described = index_path(folder, part.name)
            records[described.name] = _record(described)
    for encoder, name in ((files.text, TEXT_FOLDER), (files.speech, SPEECH_FOLDER)):
        records |= _copy_encoder(encoder, folder, name, progress)
    sizes = save_architecture(folder, architecture)
    records[sizes.name] = _record(sizes)
    return records


_Job = tuple[Path, list[Part], tuple[str, ...], torch.dtype | None]


def _conversions(files: OfficialFiles, architecture: Architecture, precision: torch.dtype) -> list[_Job]:
    """File, its networks, prefixes of what else it holds, precision to write."""
    transformers = [
        Part(DENOISER, transformer_keys(architecture.transformer, DENOISER_PREFIX)),
        Part(REFERENCE, transformer_keys(architecture.transformer.reference, REFERENCE_PREFIX)),
    ]
    jobs: list[_Job] = [(files.main, transformers, OTHERS_IN_MAIN, precision)]
    if files.vae is not None:
        jobs.append((files.vae, [Part(VAE, vae_keys(architecture.vae, prefix=""))], OTHERS_IN_VAE, None))
        return jobs
    if not any(key.startswith(VAE_PREFIX) for key in read_checkpoint(files.main)):
        raise WeightsError(
            f"neither {files.main} nor a file such as 3d-vae.pt beside it holds the video autoencoder; "
            "fetch the whole release of Hallo3"
        )
    inside = (DENOISER_PREFIX, REFERENCE_PREFIX, "conditioner.", f"{VAE_PREFIX}loss.")
    jobs.append((files.main, [Part(VAE, vae_keys(architecture.vae))], inside, None))
    return jobs


def _planned_bytes(files: OfficialFiles, config: AddConfig) -> int:
    """What an installation takes on the disk, a little too much rather than too little."""
    networks = skeletons(config.architecture)
    weights = sum(
        value.numel() for name in (DENOISER, REFERENCE) for value in networks[name].state_dict().values()
    )
    encoders = sum(path.stat().st_size for folder in (files.text, files.speech) for path in _wanted(folder))
    vae = files.vae.stat().st_size if files.vae is not None else 0
    size: int = weights * config.precision.itemsize + encoders + vae
    return size


# encoders and single files


def _encoder_folder(source: Path, kind: str) -> Path | None:
    """The folder of an encoder of this `model_type` whose weights are safetensors."""
    for path in sorted(source.rglob("config.json"), key=lambda path: len(path.parts)):
        if _read_json(path).get("model_type") == kind and any(path.parent.glob("*.safetensors")):
            return path.parent
    return None


def _check_encoder(folder: Path, sizes: Mapping[str, int]) -> None:
    config = _read_json(folder / "config.json")
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
    absent = sorted({str(file) for file in dict(_read_json(index).get("weight_map", {})).values()})
    absent = [file for file in absent if not (folder / file).is_file()]
    if absent:
        raise WeightsError(f"{folder} lacks {absent[0]}; fetch the whole encoder again")


def _wanted(folder: Path) -> list[Path]:
    return sorted(path for pattern in ENCODER_FILES for path in folder.glob(pattern) if path.is_file())


def _copy_encoder(source: Path, folder: Path, name: str, progress: ProgressCallback) -> dict[str, FileRecord]:
    (folder / name).mkdir(exist_ok=True)
    files = _wanted(source)
    total, done, records = float(sum(path.stat().st_size for path in files)), 0.0, {}
    for path in files:
        progress(Progress(f"copying {name}".strip(), done, total, path.name))
        records[f"{name}/{path.name}".lstrip("/")] = _copy(path, folder / name / path.name)
        done += path.stat().st_size
    progress(Progress(f"copying {name}".strip(), total, total))
    return records


def _install_speech(source: Path, folder: Path, progress: ProgressCallback) -> dict[str, FileRecord]:
    """An encoder by itself, of any size."""
    encoder = _encoder_folder(source, "wav2vec2") or _encoder_folder(source, "hubert")
    if encoder is None:
        raise WeightsError(
            f"there is no speech encoder in {source}; give a folder of wav2vec2 or hubert with config.json and "
            "safetensors"
        )
    _check_encoder(encoder, {})
    check_room(folder, sum(path.stat().st_size for path in _wanted(encoder)), folder_bytes(folder))
    return _copy_encoder(encoder, folder, "", progress)


def _copy(source: Path, target: Path) -> FileRecord:
    """Copy a file, or keep an equal one that is there."""
    size, digest = source.stat().st_size, file_digest(source)
    if not (target.is_file() and target.stat().st_size == size and file_digest(target) == digest):
        with saving(target) as part:
            shutil.copyfile(source, part)
        if file_digest(target) != digest:
            raise WeightsError(f"{target} differs from {source} after copying; check the disk and try again")
    return FileRecord(size, digest)


def _install_file(source: Path, folder: Path, name: str, progress: ProgressCallback) -> dict[str, FileRecord]:
    if source.is_dir():
        published = Path(FACE.files[0].path).name
        found = sorted(source.rglob(published))
        if not found:
            raise WeightsError(f"there is no {published} in {source}; give the file itself")
        source = found[0]
    if not source.is_file():
        raise WeightsError(f"there is no file {source}; give the model's ONNX file")
    import onnx

    try:
        onnx.checker.check_model(str(source))
    except Exception as error:  # a foreign file may fail in any way
        raise WeightsError(f"{source} is damaged or no ONNX model; give the model's ONNX file") from error
    check_room(folder, source.stat().st_size, 0)
    progress(Progress("copying", 0, 1, source.name))
    record = _copy(source, folder / name)
    progress(Progress("copying", 1, 1, source.name))
    return {name: record}


# disk


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder; when the work fails and nothing is in it, it goes away again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        yield
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _record(path: Path) -> FileRecord:
    return FileRecord(path.stat().st_size, file_digest(path))


def _write_text(path: Path, text: str) -> None:
    with saving(path) as part:
        part.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
