"""What `omokage create --preset paper` learns from, and whether all of it can be used. MAIN: `Sources`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omokage.avatar.paper.prepared_folder import PreparedFolder
from omokage.capture.check import check_recording
from omokage.config import ProgressCallback
from omokage.errors import InputError
from omokage.files import material_digest
from omokage.media.clip import ClipInfo
from omokage.media.decode import probe
from omokage.pipelines.paper_frames import LEAST_FRAMES, require_enough
from omokage.pipelines.training_data import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Sources:
    """Recordings, and folders of the official preprocessing for pictures of `size` pixels. Avatars show the first."""

    paths: tuple[Path, ...]
    size: int

    @classmethod
    def find(cls, given: Path, size: int) -> Sources:
        """A recording, a prepared folder, or a folder of some of either. Raises InputError."""
        if not given.is_dir() or PreparedFolder.is_one(given):
            return cls((given,), size)
        paths = sorted(
            path
            for path in given.iterdir()
            if path.suffix.lower() in VIDEO_SUFFIXES or (path.is_dir() and PreparedFolder.is_one(path))
        )
        if not paths:
            raise InputError(
                f"{given} holds neither recordings nor a dataset of the official preprocessing (image, render, uv, "
                "back); give a recording or such a folder"
            )
        return cls(tuple(paths), size)

    @cached_property
    def folders(self) -> Mapping[Path, PreparedFolder]:
        """Those that are prepared folders. Raises InputError where one is not whole."""
        return {path: PreparedFolder.open(path, self.size) for path in self.paths if path.is_dir()}

    @cached_property
    def clips(self) -> Mapping[Path, ClipInfo]:
        """Those that are recordings. Raises MediaError."""
        return {path: probe(path) for path in self.paths if not path.is_dir()}

    @property
    def is_drivable(self) -> bool:
        """Whether our tracker reads the one that an avatar shows."""
        return self.paths[0] in self.clips

    def check(self) -> None:
        """What can be seen at once, of every one: so that none is found wanting when others took hours.

        Raises InputError for a prepared folder that cannot be used or a recording that is too short, MediaError.
        """
        for folder in self.folders.values():
            require_enough(folder)
            next(folder.records())  # raises for pictures of another size
        for path, clip in self.clips.items():
            if clip.frame_count < LEAST_FRAMES:
                raise InputError(
                    f"{path} has {clip.frame_count} frames, at least {LEAST_FRAMES} are needed; record at least 5 "
                    "seconds with the face in view"
                )

    def judge(self, recordings: Iterable[Path], on_progress: ProgressCallback) -> None:
        """`omokage check` of these, all before the first is tracked. Raises CaptureRefusedError, MediaError."""
        for path in recordings:
            check_recording(path, on_progress=on_progress).raise_if_refused()

    def frames(self, cap: int) -> int:
        """How many are prepared at most."""
        counts = [folder.count for folder in self.folders.values()]
        counts += [clip.frame_count for clip in self.clips.values()]
        return sum(min(cap, count) for count in counts)

    def tracked(self) -> int:
        """How many frames our tracker must read."""
        return sum(clip.frame_count for clip in self.clips.values())

    def digest(self) -> str:
        """SHA-256 over all of them."""
        return hashlib.sha256(json.dumps([material_digest(path) for path in self.paths]).encode()).hexdigest()
