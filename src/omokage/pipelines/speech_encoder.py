"""The speech encoder that is installed on this machine, if one is: alone, or Hallo3's. MAIN: `installed_encoder`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from omokage.talking.conditions.speech import SpeechEncoder
from omokage.talking.folder import SPEECH_FOLDER
from omokage.weights.registry import HALLO3, SPEECH, WeightsSpec
from omokage.weights.store import find, folder_of, read_manifest


@dataclass(frozen=True)
class InstalledEncoder:
    """network: loaded.  digest: of its weights, as they were installed."""

    network: SpeechEncoder
    digest: str


def installed_encoder(digest: str | None = None) -> InstalledEncoder | None:
    """The installed encoder, loaded; `digest`: the one with these weights. None when there is none.

    Raises WeightsError when it is damaged, MissingDependencyError without the package that runs it.
    """
    for spec, part in ((SPEECH, ""), (HALLO3, SPEECH_FOLDER)):
        if find(spec.name) is None:
            continue
        found = _digest(spec, part)
        if digest in (None, found):
            return InstalledEncoder(SpeechEncoder.load(folder_of(spec.name) / part), found)
    return None


def _digest(spec: WeightsSpec, part: str) -> str:
    files = read_manifest(folder_of(spec.name) / spec.manifest_name).files
    weights = sorted(
        record.sha256
        for path, record in files.items()
        if Path(path).parent == Path(part) and path.endswith(".safetensors")
    )
    return hashlib.sha256("".join(weights).encode()).hexdigest()
