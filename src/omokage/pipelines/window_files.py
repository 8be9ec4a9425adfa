"""The folder of an animation that is under way: the latents of every finished window, so that a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omokage.errors import OutputError
from omokage.files import output_error, result_folder, saving


@dataclass(frozen=True)
class WindowFiles:
    """One file a window; a `with` block removes the folder when the run is done, or nothing in it is worth keeping."""

    folder: Path

    @classmethod
    def open(cls, output: Path, fingerprint: Mapping[str, Any], *, resume: bool) -> Self:
        """Go on with `<output>.work` of a stopped run with the same fingerprint, or start a new one.

        Raises OutputError when it cannot be written or is not of omokage.
        """
        folder = output.with_name(output.name + ".work")
        marker, key = folder / "animation.json", json.dumps(dict(fingerprint), sort_keys=True)
        if folder.exists() and not marker.is_file():
            raise OutputError(f"{folder} is in the way and not of omokage; move it or choose another -o")
        files = cls(folder)
        try:
            if marker.is_file() and not (resume and marker.read_text(encoding="utf-8") == key):
                files.remove()
            with result_folder(folder):
                marker.write_text(key, encoding="utf-8")
        except OSError as error:
            raise output_error(folder, error) from error
        return files

    def load(self, index: int) -> Tensor | None:
        """The latents of a window; None when they were never written whole, or were damaged since."""
        try:
            return load_file(self._path(index))["latents"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def save(self, index: int, latents: Tensor) -> None:
        """Write the latents of a window: all of them or nothing. Raises OutputError."""
        with saving(self._path(index), SafetensorError) as part:
            save_file({"latents": latents.contiguous().cpu()}, part)

    @property
    def count(self) -> int:
        """Windows from the first one on that need not be computed again."""
        count = 0
        while self._path(count).is_file():
            count += 1
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self.count:
            self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"window-{index:05d}.safetensors"
