"""The official files of Hallo3 become a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from omokage.config import ProgressCallback
from omokage.errors import WeightsError
from omokage.pipelines.model_files import (
    MAIN_FILE,
    AddConfig,
    Encoders,
    check_encoders,
    find_encoders,
    lay_encoders,
    network_records,
    planned_bytes,
)
from omokage.talking.checkpoint import (
    DENOISER_PREFIX,
    OTHERS_IN_MAIN,
    OTHERS_IN_VAE,
    REFERENCE_PREFIX,
    transformer_keys,
)
from omokage.talking.convert import Part, convert_checkpoint, read_checkpoint
from omokage.talking.folder import DENOISER, REFERENCE, VAE, Architecture
from omokage.talking.vae import VAE_PREFIX, vae_keys
from omokage.weights.store import FileRecord, check_room, folder_bytes


@dataclass(frozen=True, slots=True)
class OfficialFiles:
    """Where the parts of Hallo3 lie. `vae` is None when the main file has to hold it."""

    main: Path
    vae: Path | None
    encoders: Encoders


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
    encoders, missing = find_encoders(source)
    missing = [*([] if mains else [f"hallo3/1/{MAIN_FILE}"]), *missing]
    if encoders is None or missing:
        raise WeightsError(
            f"{source} is not the complete official folder: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; fetch the whole release of Hallo3"
        )
    check_encoders(encoders, architecture)
    return OfficialFiles(mains[0], vaes[0] if vaes else None, encoders)


def install_hallo3(
    source: Path, folder: Path, config: AddConfig, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """Convert and copy everything; records of all files but the notice."""
    architecture = config.architecture
    files = find_official_files(source, architecture)
    jobs = _conversions(files, architecture, config.precision)
    others = [*files.encoders.files, *([] if files.vae is None else [files.vae])]
    check_room(folder, planned_bytes(config, (DENOISER, REFERENCE), others), folder_bytes(folder))
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
        records |= network_records(
            folder, {part.name: index for part, index in zip(parts, indices, strict=True)}
        )
    return records | lay_encoders(files.encoders, folder, architecture, progress)


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
