"""The published files of CogVideoX-5B-I2V become the model that training begins with (see `talking.cogvideox`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

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
    read_json,
)
from omokage.talking.cogvideox import (
    denoiser_to_train,
    files_of,
    fit,
    read_transformer,
    read_vae,
)
from omokage.talking.convert import write_networks
from omokage.talking.folder import DENOISER, REFERENCE, SPEECH_FOLDER, SPEECHLESS, VAE, Architecture
from omokage.talking.model import skeletons
from omokage.weights.registry import HALLO3, SPEECH
from omokage.weights.store import FileRecord, check_room, find, folder_bytes


@dataclass(frozen=True, slots=True)
class StartFiles:
    """Where the parts of CogVideoX lie: files of its own layout, or folders of diffusers."""

    transformer: Path
    vae: Path
    encoders: Encoders


def find_start_files(source: Path, architecture: Architecture) -> StartFiles:
    """The parts of CogVideoX-5B-I2V in a folder of either layout; a speech encoder may be installed already.

    Raises WeightsError that names everything that is missing.
    """
    if not source.is_dir():
        raise WeightsError(f"{source} is no folder; give the folder with the files of CogVideoX-5B-I2V")
    mains = sorted(source.rglob(MAIN_FILE), key=lambda path: len(path.parts))
    # Beside it, Hallo3's own networks have the same file name.
    mains = [path for path in mains if "hallo3" not in path.relative_to(source).parts]
    transformer = _diffusers_folder(source, "CogVideoXTransformer3DModel") or next(iter(mains), None)
    vaes = sorted(source.rglob("*vae*.pt"), key=lambda path: len(path.parts))
    vae = _diffusers_folder(source, "AutoencoderKLCogVideoX") or next(iter(vaes), None)
    encoders, missing = find_encoders(source, _installed_speech())
    missing = [
        *([] if transformer else [f"the transformer (transformer/ of diffusers, or {MAIN_FILE})"]),
        *([] if vae else ["the video autoencoder (vae/ of diffusers, or 3d-vae.pt)"]),
        *missing,
    ]
    if transformer is None or vae is None or encoders is None:
        raise WeightsError(
            f"{source} is no complete folder of CogVideoX-5B-I2V: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; fetch the whole release, and the speech encoder with "
            "'omokage weights add speech'"
        )
    check_encoders(encoders, architecture)
    return StartFiles(transformer, vae, encoders)


def install_cogvideox(
    source: Path, folder: Path, config: AddConfig, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """Convert and copy everything, and make the branches that are to be trained.

    Gives records of all files but the notice.
    """
    architecture = config.architecture
    files, networks = find_start_files(source, architecture), skeletons(architecture)
    sizes = {name: network.state_dict() for name, network in networks.items()}
    base = read_transformer(files.transformer, architecture.transformer.reference)
    base = fit(files.transformer, base, sizes[REFERENCE])
    vae = fit(files.vae, read_vae(files.vae, architecture.vae), sizes[VAE])
    others = [*files.encoders.files, *files_of(files.vae)]
    check_room(folder, planned_bytes(config, (DENOISER, REFERENCE), others), folder_bytes(folder))
    begun = denoiser_to_train(base, networks[DENOISER], architecture.transformer)
    records: dict[str, FileRecord] = {}
    for origin, parts, dtype in (
        (files.transformer, {DENOISER: begun, REFERENCE: base}, config.precision),
        (files.vae, {VAE: vae}, None),
    ):
        indices = write_networks(
            parts,
            folder,
            origins=files_of(origin),
            dtype=dtype,
            shard_bytes=config.shard_bytes,
            progress=progress,
        )
        records |= network_records(folder, dict(zip(parts, indices, strict=True)))
    return records | lay_encoders(files.encoders, folder, replace(architecture, caution=SPEECHLESS), progress)


def _diffusers_folder(source: Path, kind: str) -> Path | None:
    """The folder of a network that diffusers calls so."""
    for path in sorted(source.rglob("config.json"), key=lambda path: len(path.parts)):
        if read_json(path).get("_class_name") == kind:
            return path.parent
    return None


def _installed_speech() -> Path | None:
    if speech := find(SPEECH.name):
        return speech
    hallo3 = find(HALLO3.name)
    return None if hallo3 is None else hallo3 / SPEECH_FOLDER
