"""`omokage weights add`: official files become an installed model. MAIN: `add_weights`.

Nothing counts as installed before its manifest is written, which is the last act. Until then all that is finished
stays, and the same call goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import WeightsError
from omokage.files import output_error, saving
from omokage.pipelines.cogvideox_files import install_cogvideox
from omokage.pipelines.hallo3_files import install_hallo3
from omokage.pipelines.model_files import (
    AddConfig,
    check_encoder,
    copy_encoder,
    copy_file,
    encoder_folder,
    record,
    wanted,
)
from omokage.talking.folder import official_architecture
from omokage.weights.registry import COGVIDEOX_I2V, HALLO3, SPEECH, WeightsSpec, find_spec
from omokage.weights.store import (
    FileRecord,
    Manifest,
    check_room,
    folder_bytes,
    folder_of,
    refuse_installed,
    write_manifest,
)

NETWORKS = {HALLO3.name: install_hallo3, COGVIDEOX_I2V.name: install_cogvideox}


def add_weights(
    name: str, source: Path, *, config: AddConfig | None = None, progress: ProgressCallback = ignore_progress
) -> Path:
    """Install a model from official files on this machine, without any network; its folder.

    `source`: the official folder of Hallo3 or CogVideoX, the folder or the file of a smaller model. Raises InputError,
    or its kind WeightsError, for files that are missing or of another model, OutputError without room or permission.
    """
    spec, folder = find_spec(name), folder_of(name)
    refuse_installed(name)
    with _new_folder(folder):
        (folder / spec.manifest_name).unlink(missing_ok=True)
        if spec.name in NETWORKS:
            config = config or AddConfig(official_architecture())
            records = NETWORKS[spec.name](source, folder, config, progress)
        elif spec.name == SPEECH.name:
            records = _install_speech(source, folder, progress)
        else:
            records = _install_file(spec, source, folder, progress)
        _write_text(folder / spec.notice_name, spec.notice)
        records[spec.notice_name] = record(folder / spec.notice_name)
        write_manifest(
            folder / spec.manifest_name, Manifest(name, f"official files in '{source.name}'", records)
        )
    return folder


def _install_speech(source: Path, folder: Path, progress: ProgressCallback) -> dict[str, FileRecord]:
    """An encoder by itself, of any size."""
    encoder = encoder_folder(source, "wav2vec2") or encoder_folder(source, "hubert")
    if encoder is None:
        raise WeightsError(
            f"there is no speech encoder in {source}; give a folder of wav2vec2 or hubert with config.json and "
            "safetensors"
        )
    check_encoder(encoder, {})
    check_room(folder, sum(path.stat().st_size for path in wanted(encoder)), folder_bytes(folder))
    return copy_encoder((encoder,), folder, "", progress)


def _install_file(
    spec: WeightsSpec, source: Path, folder: Path, progress: ProgressCallback
) -> dict[str, FileRecord]:
    """A model that is one ONNX file, whatever it is called."""
    if source.is_dir():
        published = Path(spec.files[0].path).name
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
    copied = copy_file(source, folder / spec.file_name)
    progress(Progress("copying", 1, 1, source.name))
    return {spec.file_name: copied}


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


def _write_text(path: Path, text: str) -> None:
    with saving(path) as part:
        part.write_text(text, encoding="utf-8")
