"""The folder of an animation that is under way: the latents of every finished window, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omokage.errors import ConsentError, OutputError
from omokage.files import parse_json, result_folder, saving
from omokage.talking.quantize import WeightFormat

MARKER = "animation.json"
SHORTAGE = MARKER + ".short-"
WINDOWS = "window-*.safetensors"


@dataclass(frozen=True)
class WindowFiles:
    """One file a window; a `with` block removes the folder when the run is done, or nothing in it is worth keeping.

    say: hears in a sentence of windows that were discarded and files that were left.  weights: name of the
    `WeightFormat` that windows are made with; those of another one are kept, and not used.
    """

    folder: Path
    say: Callable[[str], None]
    weights: str = WeightFormat.EXACT.value

    @classmethod
    def beside(cls, output: Path, say: Callable[[str], None]) -> Self:
        """Those of an animation to this file, as they are: nothing is made or deleted."""
        return cls(output.with_name(output.name + ".work"), say)

    @classmethod
    def open(
        cls, output: Path, fingerprint: Mapping[str, Any], say: Callable[[str], None], *, resume: bool
    ) -> Self:
        """Go on with `<output>.work` of a stopped run with the same fingerprint, or start a new one.

        Raises OutputError when it cannot be written, old windows cannot be deleted, or it is not of omokage.
        """
        files = cls.beside(output, say)
        folder, marker, key = (
            files.folder,
            files.folder / MARKER,
            json.dumps(dict(fingerprint), sort_keys=True),
        )
        if folder.exists() and not (folder.is_dir() and (marker.is_file() or files._is_unmarked())):
            raise OutputError(f"{folder} is in the way and not of omokage; move it or choose another -o")
        try:
            before = marker.read_text(encoding="utf-8", errors="replace") if marker.is_file() else None
            if before is not None and not (resume and before == key):
                count = files._discard()
                files.forget_shortages()
                if count:
                    reason = _difference(before, key) if before != key else "they were not to be used"
                    say(f"{count} finished windows of a stopped run in {folder} were discarded: {reason}")
        except OSError as error:
            raise OutputError(
                f"old windows in {folder} cannot be deleted ({error.strerror or error}); delete the folder or choose "
                "another -o"
            ) from error
        with result_folder(folder):
            if before != key:
                with saving(marker) as part:
                    part.write_text(key, encoding="utf-8")
        return files

    def made_with(self, weights: str) -> Self:
        """The same folder for windows that are made with this format of weights."""
        return replace(self, weights=weights)

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

    def note_shortage(self, profile: str) -> bool:
        """Note for the next start that memory ran out with this profile; whether that was possible."""
        try:
            (self.folder / f"{SHORTAGE}{profile}").touch()
        except OSError:
            return False
        return True

    @property
    def shortages(self) -> frozenset[str]:
        """Names of the profiles with which memory ran out in earlier starts."""
        return frozenset(path.name.removeprefix(SHORTAGE) for path in self.folder.glob(SHORTAGE + "*"))

    def forget_shortages(self) -> None:
        """Let the next start try every profile again."""
        for name in self.shortages:
            (self.folder / f"{SHORTAGE}{name}").unlink(missing_ok=True)

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
        is_over = error is None or isinstance(error, ConsentError)  # withdrawn: nothing of the person stays
        if is_over or not (any(self.folder.glob(WINDOWS)) or self.shortages):
            self.remove()

    def remove(self) -> None:
        """Delete the folder, or say why some of it is left."""
        try:
            self._discard()
            for path in self.folder.glob(MARKER + "*"):  # last: without it nobody knows whose files these are
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            self.say(
                f"{self.folder} could not be deleted ({error.strerror or error}); it is no longer needed"
            )

    def _discard(self) -> int:
        """Delete all windows, and say how many there were. Raises OSError."""
        paths = list(self.folder.glob(WINDOWS + "*"))  # parts too: a run that is killed leaves them
        for path in paths:
            path.unlink(missing_ok=True)
        return sum(path.suffix == ".safetensors" for path in paths)

    def _is_unmarked(self) -> bool:
        """Whether there is nothing in it, but for what a run that was killed at its start leaves."""
        return all(path.name.startswith(MARKER) for path in self.folder.iterdir())

    def _path(self, index: int) -> Path:
        kind = "" if self.weights == WeightFormat.EXACT.value else f".{self.weights}"
        return self.folder / f"window-{index:05d}{kind}.safetensors"


def _difference(before: str, now: str) -> str:
    """What is not as it was, for people."""
    try:
        old, new = dict(parse_json(before)), dict(parse_json(now))
    except (ValueError, TypeError):
        return "its list of choices is damaged"
    names = [name.replace("_", " ") for name in sorted(old | new) if old.get(name) != new.get(name)]
    return f"not the same: {', '.join(names)}"
