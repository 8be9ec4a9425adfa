"""The folder of a `create` that is under way: what a stopped run goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import omokage
from omokage.avatar.paper.frames import INDEX
from omokage.errors import ConsentError, InputError, OutputError
from omokage.files import output_error, result_folder, saving
from omokage.trust.release import ReleaseConfig, release_image

SUFFIX = ".avatar"


@dataclass(frozen=True)
class Work:
    """The folder; a `with` block cleans up after it."""

    folder: Path

    @classmethod
    def beside(cls, output: Path) -> Work:
        """That of an avatar file."""
        return cls(output.with_name(output.name + ".work"))

    @property
    def track(self) -> Path:
        return self.folder / "recording.track"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def preview(self) -> Path:
        return self.folder / "preview.png"

    @classmethod
    def open(
        cls, output: Path, *, data: Mapping[str, Any], settings: Mapping[str, Any], is_resumed: bool
    ) -> Work:
        """Go on with the folder of a stopped run, or start a new one. Raises OutputError.

        data: all that tracks and prepared frames depend on; of other data nothing is kept.  settings: what the training
        depends on besides; of other settings its checkpoint is not.
        """
        work = cls.beside(output)
        asked = {"data": {**data, "version": omokage.__version__}, "settings": dict(settings)}
        marker = work.folder / "run.json"
        if work.folder.exists() and not marker.is_file():
            raise OutputError(f"{work.folder} is in the way and not of omokage; move it or choose another -o")
        try:
            known = _read(marker) if is_resumed else {}
            if known.get("data") != _plain(asked["data"]):
                work.remove()
            elif known != _plain(asked):
                for path in (work.checkpoint, work.preview):
                    path.unlink(missing_ok=True)
            with result_folder(work.folder), saving(marker) as part:
                part.write_text(json.dumps(asked), encoding="utf-8")
        except OSError as error:
            raise output_error(work.folder, error) from error
        return work

    def release_preview(self, image: NDArray[np.uint8]) -> None:
        """Put a sheet of check pictures there, for people."""
        release_image(image, self.preview, config=ReleaseConfig(label="preview"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gone when the run is done, and when there is nothing that the same command could go on from.

        What is finished, a track or all frames of a recording, took long and outlives any error; what is not is of no
        use after an error in the input. When the consent was withdrawn or has ended, nothing of the person stays.
        """
        is_finished = any(any(self.folder.glob(name)) for name in ("*.track", f"*/{INDEX}"))
        is_begun = not isinstance(error, InputError) and any(self.folder.glob("*/block-*"))
        if (
            error is None
            or isinstance(error, ConsentError)
            or not (is_finished or is_begun or self.checkpoint.exists())
        ):
            self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(marker: Path) -> dict[str, Any]:
    """What a stopped run has written of itself; {} where there is none, or one that cannot be understood."""
    try:
        known = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _plain(values: Mapping[str, Any]) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(values))
