"""`omokage weights pull`: a model comes over the network, on the user's word. MAIN: `pull_weights`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, WeightsError
from omokage.files import output_error, parse_json, saving
from omokage.pipelines.model_files import AddConfig
from omokage.pipelines.weights import add_weights
from omokage.weights.fetch import FetchConfig, fetch_file, fetch_text, file_address
from omokage.weights.registry import PublishedFile, WeightsSpec, find_spec, size_text
from omokage.weights.store import (
    Manifest,
    check_room,
    digests_file,
    folder_bytes,
    folder_of,
    inspect,
    pull_folder,
    refuse_installed,
    weights_home,
    write_manifest,
)

ADDRESS_VARIABLE = "OMOKAGE_WEIGHTS_URL"


@dataclass(frozen=True, slots=True)
class PullConfig:
    """address: of the folder with the files, None for `OMOKAGE_WEIGHTS_URL`.  accept_licence: the user's word."""

    address: str | None
    accept_licence: bool
    fetch: FetchConfig


def pull_weights(
    name: str,
    config: PullConfig,
    *,
    add: AddConfig | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Path:
    """Bring a model over the network and install it; its folder.

    The address holds the official files, or a folder that was installed by omokage, which needs no conversion. Raises
    WeightsError without the user's word or an address, or when a file is missing or wrong there; what came stays, but
    for files that cannot be installed: those are asked for again.
    """
    spec = find_spec(name)
    refuse_installed(name)
    address = _agreed_address(spec, config)
    manifest = _mirror(spec, address, config.fetch)
    coming = pull_folder(name)
    if manifest is None:
        # What is there already: pulled files, and converted ones of a run that was stopped.
        check_room(weights_home(), spec.download_bytes + spec.installed_bytes, inspect(name).bytes_used)
        digests = _pull_all(address, _with_digests(spec), coming, config.fetch, progress)
        folder = _install(spec, coming, add, progress)
        with saving(digests_file(name)) as part:
            part.write_text(json.dumps(digests, indent=1), encoding="utf-8")
        shutil.rmtree(coming, ignore_errors=True)
        return folder
    check_room(weights_home(), manifest.total_bytes, folder_bytes(coming))
    files = [PublishedFile(path, record.size, record.sha256) for path, record in manifest.files.items()]
    _pull_all(address, files, coming, config.fetch, progress)
    _put_in_place(coming, manifest, spec)
    return folder_of(name)


def _agreed_address(spec: WeightsSpec, config: PullConfig) -> str:
    address = config.address or os.environ.get(ADDRESS_VARIABLE)
    if not config.accept_licence:
        terms = " ".join(dict.fromkeys(f"{part.licence.name}: {part.licence.terms}" for part in spec.parts))
        raise WeightsError(
            f"{spec.title} needs {size_text(spec.download_bytes)} from the network, "
            f"{size_text(spec.download_bytes + spec.installed_bytes)} of the disk while it is converted and "
            f"{size_text(spec.installed_bytes)} afterwards; {terms} "
            "If you accept these licences, run the same command with --accept-licence"
        )
    if not address:
        raise WeightsError(
            f"no address of {spec.name} is known to omokage; give that of the folder with the official files "
            f"with --from, or in {ADDRESS_VARIABLE}"
        )
    return address


def _mirror(spec: WeightsSpec, address: str, config: FetchConfig) -> Manifest | None:
    """The manifest of an installed folder at this address; None when official files lie there."""
    text = fetch_text(file_address(address, spec.manifest_name), config)
    if text is None:
        return None
    try:
        content = parse_json(text)
    except ValueError:  # a server that answers everything with a page
        return None
    try:
        manifest = Manifest.from_json(content)
    except ValueError as error:
        raise WeightsError(
            f"the {spec.manifest_name} at that address cannot be used ({error}); give another address"
        ) from error
    if manifest.name != spec.name:
        raise WeightsError(
            f"that address holds the weights of '{manifest.name}', not of '{spec.name}'; give another address"
        )
    return manifest


def _pull_all(
    address: str,
    files: Sequence[PublishedFile],
    folder: Path,
    config: FetchConfig,
    progress: ProgressCallback,
) -> dict[str, str]:
    """Fetch every file; path -> digest."""
    digests = {}
    for number, file in enumerate(files, 1):

        def report(step: Progress, number: int = number) -> None:
            progress(replace(step, stage=f"pulling file {number} of {len(files)}"))

        where = file_address(address, file.path)
        digests[file.path] = fetch_file(where, folder / file.path, file, config, report)
    return digests


def _install(spec: WeightsSpec, coming: Path, add: AddConfig | None, progress: ProgressCallback) -> Path:
    """Add what was pulled; what the installation refuses is deleted, or it would be refused forever."""
    source = coming / spec.files[0].path if len(spec.files) == 1 else coming
    try:
        return add_weights(spec.name, source, config=add, progress=progress)
    except InputError as error:
        refused = _named_files(str(error), [coming / file.path for file in spec.files])
        try:
            for path in refused:
                path.unlink(missing_ok=True)
        except OSError as failure:
            raise output_error(coming, failure) from failure
        raise WeightsError(
            f"what was pulled cannot be installed: {error}; {len(refused)} of {len(spec.files)} pulled files were "
            "deleted and are asked for again by the same command"
        ) from error


def _named_files(said: str, files: Sequence[Path]) -> list[Path]:
    """Those that an error is about: named themselves, or by their folder.

    Where none is named the parts were not recognized, which is done by their descriptions.
    """
    named = [path for path in files if str(path) in said]
    named = named or [path for path in files if f"{path.parent} " in said]
    return named or [path for path in files if path.suffix == ".json"] or list(files)


def _put_in_place(coming: Path, manifest: Manifest, spec: WeightsSpec) -> None:
    """Pulled files take the places of what was unfinished or damaged there; the manifest comes last."""
    folder = folder_of(spec.name)
    try:
        (folder / spec.manifest_name).unlink(missing_ok=True)
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (coming / name).replace(folder / name)
        shutil.rmtree(coming)
    except OSError as error:
        raise output_error(folder, error) from error
    write_manifest(folder / spec.manifest_name, manifest)


def _with_digests(spec: WeightsSpec) -> list[PublishedFile]:
    """The files of a release; where nobody published a digest, with that of an earlier pull that was installed."""
    try:
        content = parse_json(digests_file(spec.name).read_text(encoding="utf-8"))
        known = {str(path): str(digest) for path, digest in content.items()}
    except (OSError, ValueError, AttributeError):
        known = {}
    return [file if file.sha256 else replace(file, sha256=known.get(file.path)) for file in spec.files]
