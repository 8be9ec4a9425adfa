"""The folder of installed models: what is there, whether it is whole, and its removal.

    <home>/weights/hallo3/          one folder a model
        weights.json                written last: size and SHA-256 of every file; without it nothing is installed
        NOTICE.txt                  whose weights these are, and under which licences
        ...                         the files of the model
        face.*                      those of an addition, in the same way: face.weights.json, face.onnx, ...
    <home>/weights/.pulled-hallo3/  what a pull brought, until it is installed
    <home>/weights/hallo3.digests.json  SHA-256 of files that were pulled and installed, where none is published

<home> is `OMOKAGE_HOME`, or the folder that the platform keeps for a user's data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, Self

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import OutputError, WeightsError
from omokage.files import file_digest, output_error, saving
from omokage.home import data_home
from omokage.weights.registry import REGISTRY, WeightsSpec, find_spec, size_text

FORMAT = 1
ROOM_TO_SPARE = 200_000_000


@dataclass(frozen=True, slots=True)
class FileRecord:
    """size in bytes and sha256 of an installed file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What belongs to an installed model.

    name: of the model.  source: what it was made from, for people.  files: path within the folder, with '/' -> record.
    """

    name: str
    source: str
    files: Mapping[str, FileRecord]

    @property
    def total_bytes(self) -> int:
        return sum(record.size for record in self.files.values())

    def to_json(self) -> dict[str, Any]:
        files = {path: asdict(record) for path, record in sorted(self.files.items())}
        return {"format": FORMAT, "name": self.name, "source": self.source, "files": files}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """From `to_json`'s values.

        Raises ValueError for anything else, for paths that lead out of the folder and for files of another model.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            files = {
                str(path): FileRecord(int(record["size"]), str(record["sha256"]))
                for path, record in content["files"].items()
            }
            manifest = cls(str(content["name"]), str(content["source"]), files)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no manifest of weights: {error}") from error
        if not files or not all(is_within(path) for path in files):
            raise ValueError("no manifest of weights: no files, or files outside its folder")
        if any(record.size < 0 for record in files.values()):
            raise ValueError("no manifest of weights: a file of less than no bytes")
        spec = REGISTRY.get(manifest.name)
        if spec is not None and (foreign := [path for path in files if not _is_of(path, spec)]):
            raise ValueError(f"no manifest of {spec.name}: '{foreign[0]}' is no file of it")
        return manifest


class Condition(Enum):
    """What is the matter with an installed model."""

    ABSENT = "not installed"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
    INSTALLED = "installed"
    VERIFIED = "verified"


@dataclass(frozen=True, slots=True)
class Installation:
    """A model of the registry as it is on this machine; `detail` says what is missing or wrong."""

    spec: WeightsSpec
    folder: Path
    condition: Condition
    bytes_used: int
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For scripts: flat, sizes in bytes."""
        return {
            "name": self.spec.name,
            "title": self.spec.title,
            "licence": self.spec.licences,
            "commercial_use": self.spec.commercial.value,
            "download_bytes": self.spec.download_bytes,
            "installed_bytes": self.bytes_used or self.spec.installed_bytes,
            "condition": self.condition.value,
            "detail": self.detail,
            "folder": str(self.folder),
        }


def weights_home() -> Path:
    """The folder of all models, which may not exist yet."""
    return data_home() / "weights"


def folder_of(name: str) -> Path:
    """Where a model of the registry lies, or would lie."""
    spec = find_spec(name)
    return weights_home() / (spec.within or spec.name)


def pull_folder(name: str) -> Path:
    """Where a pull lays what it brings, until it is installed."""
    return weights_home() / f".pulled-{find_spec(name).name}"


def digests_file(name: str) -> Path:
    """Digests of pulled files that nobody published, path -> SHA-256, written once they were installed."""
    return weights_home() / f"{find_spec(name).name}.digests.json"


def installed(name: str) -> Path:
    """The folder of an installed model, checked quickly: every file is there and has its size.

    Raises WeightsError that says how to get it when it is missing, and what is wrong when it is damaged.
    """
    state = inspect(name)
    match state.condition:
        case Condition.INSTALLED | Condition.VERIFIED:
            return state.folder
        case Condition.DAMAGED:
            raise WeightsError(
                f"the weights of {name} are damaged: {state.detail}; {_how_to_get(state.spec)}"
            )
        case _:
            spec = state.spec
            raise WeightsError(
                f"the weights of {name} are not installed ({size_text(spec.download_bytes)}; licence: {spec.licences}; "
                f"commercial use: {spec.commercial.value}); {_how_to_get(spec)}"
            )


def find(name: str) -> Path | None:
    """The folder of a model that is optional, or None when it is not installed. Raises WeightsError when damaged."""
    return None if inspect(name).condition in (Condition.ABSENT, Condition.UNFINISHED) else installed(name)


def inspect(name: str, *, full: bool = False, progress: ProgressCallback = ignore_progress) -> Installation:
    """What is there of a model: quickly by sizes, or `full`: every file is read and compared with its digest."""
    spec, folder = find_spec(name), folder_of(name)
    used = sum(path.stat().st_size for path in own_files(spec)) + folder_bytes(pull_folder(name))
    try:
        manifest = read_manifest(folder / spec.manifest_name)
    except FileNotFoundError:
        absent = Installation(spec, folder, Condition.ABSENT, 0)
        begun = Installation(
            spec, folder, Condition.UNFINISHED, used, "the same 'omokage weights' command goes on"
        )
        return begun if used else absent
    except (OSError, ValueError) as error:
        return Installation(
            spec, folder, Condition.DAMAGED, used, f"{folder / spec.manifest_name} cannot be used ({error})"
        )
    if manifest.name != name:
        detail = f"{folder} holds the weights of '{manifest.name}'"
        return Installation(spec, folder, Condition.DAMAGED, used, detail)
    wrong = _wrong_file(folder, manifest, full=full, progress=progress)
    if wrong:
        return Installation(spec, folder, Condition.DAMAGED, used, wrong)
    return Installation(spec, folder, Condition.VERIFIED if full else Condition.INSTALLED, used)


def inspect_all(*, full: bool = False, progress: ProgressCallback = ignore_progress) -> list[Installation]:
    """Every model of the registry."""
    return [inspect(name, full=full, progress=progress) for name in REGISTRY]


def remove(name: str) -> int:
    """Take a model away, also an unfinished one or pull; bytes freed. Raises WeightsError when there is none.

    A model goes with its additions, and at once: an interruption leaves a folder that the next removal clears.
    Digests that were recorded are forgotten.
    """
    spec, folder = find_spec(name), folder_of(name)
    going = [name, *(other.name for other in REGISTRY.values() if other.within == name)]
    dying = folder.with_name(f".removed-{name}")
    rests = [dying, *(pull_folder(each) for each in going)]
    freed = sum(folder_bytes(rest) for rest in rests)
    if not (own_files(spec) or any(place.exists() for place in (*rests, digests_file(name)))):
        raise WeightsError(f"the weights of {name} are not installed, there is nothing to remove")
    try:
        for rest in rests:
            if rest.exists():
                shutil.rmtree(rest)
        for each in going:
            digests_file(each).unlink(missing_ok=True)
        if spec.within is None:
            freed += folder_bytes(folder)
            if folder.exists():
                folder.rename(dying)
                shutil.rmtree(dying)
        else:
            files = own_files(spec)
            freed += sum(path.stat().st_size for path in files)
            (folder / spec.manifest_name).unlink(missing_ok=True)
            for path in files:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return freed


def own_files(spec: WeightsSpec) -> list[Path]:
    """What lies on the disk of a model, without its additions; finished or not."""
    folder = folder_of(spec.name)
    if spec.within is not None:
        return sorted(path for path in folder.glob(f"{spec.name}.*") if path.is_file())
    additions = {
        path for other in REGISTRY.values() if other.within == spec.name for path in own_files(other)
    }
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in additions)


def read_manifest(path: Path) -> Manifest:
    """What `write_manifest` wrote. Raises OSError or ValueError."""
    return Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """The last act of an installation: from now on the model is there. Raises OutputError."""
    with saving(path) as part:
        part.write_text(json.dumps(manifest.to_json(), indent=1), encoding="utf-8")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; 0 when there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def check_room(place: Path, needed: int, written: int) -> None:
    """Before any work: is there room in `place` for `needed` bytes, of which some are `written` already?

    Raises OutputError when there is not.
    """
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    missing = needed - written + ROOM_TO_SPARE
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise OutputError(
            f"{size_text(missing)} more are needed in {place} and {size_text(free)} are free; "
            "free some space, or choose another disk with OMOKAGE_HOME"
        )


def refuse_installed(name: str) -> None:
    """Raise WeightsError when a model is there and whole: nothing is replaced without the user's word."""
    state = inspect(name)
    if state.condition is Condition.INSTALLED:
        raise WeightsError(
            f"the weights of {name} are installed already, in {state.folder}; to replace them, run "
            f"'omokage weights remove {name}' first"
        )


def is_within(path: str) -> bool:
    """Whether a path with '/' names a file within a folder, whatever the platform makes of it, in its one spelling."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and path == "/".join(parts)
        and path.isprintable()
        and not any(part == ".." or "\\" in part or ":" in part for part in parts)
    )


def _is_of(path: str, spec: WeightsSpec) -> bool:
    """Whether a file may be of this model: no manifest, and the names of an addition are its own."""
    name = path.casefold()  # as file systems that do not tell capitals apart take it
    if name in {other.manifest_name for other in REGISTRY.values()}:
        return False
    if spec.within is not None:
        return name.startswith(f"{spec.name}.") and "/" not in name
    return not any(
        name.startswith(f"{other.name}.") for other in REGISTRY.values() if other.within == spec.name
    )


def _wrong_file(folder: Path, manifest: Manifest, *, full: bool, progress: ProgressCallback) -> str:
    """One sentence about the first file that is not as recorded, or ''."""
    done = 0.0
    for name, record in sorted(manifest.files.items()):
        path = folder / name
        try:
            size = path.stat().st_size
            if size != record.size:
                return f"{path} has {size} bytes instead of {record.size}"
            if full:
                progress(Progress(f"verifying {manifest.name}", done, manifest.total_bytes, name))
                if file_digest(path) != record.sha256:
                    return f"the checksum of {path} is wrong"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        done += record.size
    if full:
        progress(Progress(f"verifying {manifest.name}", done, done))
    return ""


def _how_to_get(spec: WeightsSpec) -> str:
    return (
        f"run 'omokage weights add {spec.name}' with the official folder, "
        f"or 'omokage weights pull {spec.name} --from' with an address"
    )
