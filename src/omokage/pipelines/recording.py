"""A recording, tracked and cut into training and held-out samples: what `create` and `evaluate` both start from."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from omokage.avatar.conditioning import Conditioner
from omokage.avatar.config import AvatarConfig
from omokage.avatar.samples import (
    Split,
    choose_crop,
    collect_samples,
    cut_out,
    frame_cap,
    split_tail,
    thinning_of,
)
from omokage.avatar.sheet import Crop, Pose, Sheet
from omokage.avatar.texture import Sample
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import NoFaceError
from omokage.media.clip import ClipInfo, Frame, Image
from omokage.media.decode import probe, read_frames
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.matting import MediaPipeMatte
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.tracker import track_clip

# Larger pictures are reduced while they are decoded: an avatar shows at most 512 pixels of a square crop.
MAX_SIDE_PX = 1920
MIN_TRAINING_FRAMES = 20
CROP_FRAMES = 4000  # say where the head is
# Frames at the end that are evaluated: enough for the literature's split of 350 where memory allows it.
EVALUATED_FRAMES = 350


@dataclass(frozen=True)
class Recording:
    """A clip with its track at the frames that are used; `split` names its rows for training and the held-out tail.

    frame_count: of the whole clip.  thinning: of so many frames of the training part one is used.
    """

    path: Path
    info: ClipInfo
    track: FaceTrack
    crop: Crop
    split: Split
    frame_count: int
    thinning: int

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        size: int,
        cap: int | None = None,
        held_out: int | None = None,
        known_track: Path | None = None,
        on_progress: ProgressCallback = ignore_progress,
    ) -> Recording:
        """Track the clip, or read the track of an earlier run from `known_track`; a new one that is of use is written
        there.

        cap: frames that are used at most, by default as many as a compact avatar of that size keeps in memory.
        held_out: of the last fifth, by default `evaluated_frames`, or with `cap` `EVALUATED_FRAMES`.
        Raises MediaError or NoFaceError.
        """
        info = probe(path)
        if known_track is not None and known_track.exists():
            track = FaceTrack.load(known_track)
        else:
            track = tracked(info, read_frames(path, max_side=MAX_SIDE_PX), on_progress)
        split = split_of(track, size, cap, held_out)
        if len(split.train) < MIN_TRAINING_FRAMES or not len(split.held_out):
            raise NoFaceError(
                f"only {int(track.is_tracked.sum())} frames of {path.name} show a face, at least "
                f"{MIN_TRAINING_FRAMES * 5 // 4} are needed; record at least 5 seconds with the face in view"
            )
        if known_track is not None and not known_track.exists():
            track.save(known_track)
        # The landmarks of half an hour would take 0.3 GB while the network is trained: keep what is used.
        crop = choose_crop(track.select(slice(None, None, -(-len(track) // CROP_FRAMES))))
        used, border = np.concatenate([split.train, split.held_out]), len(split.train)
        rows = Split(train=np.arange(border), held_out=np.arange(border, len(used)))
        return cls(
            path, info, track.select(used), crop, rows, len(track), thinning_of(track, cap or frame_cap(size))
        )

    def samples(
        self,
        size: int,
        *,
        cut: Callable[[Frame], Image] | None = None,
        max_side: int = MAX_SIDE_PX,
        on_progress: ProgressCallback = ignore_progress,
    ) -> tuple[Sequence[Sample], Sequence[Sample]]:
        """The training samples and the held-out ones, at output size.

        cut: the picture of a frame, by default its crop.  max_side: frames are decoded at this many pixels at most.
        """
        rows = np.concatenate([self.split.train, self.split.held_out])
        samples = collect_samples(
            read_frames(self.path, max_side=max_side),
            self.track,
            rows,
            cut=cut or (lambda frame: cut_out(frame.image, self.crop, size)),
            matting=MediaPipeMatte(),
            on_progress=on_progress,
        )
        return samples[: len(self.split.train)], samples[len(self.split.train) :]

    def conditioner(self, config: AvatarConfig) -> Conditioner:
        """How this person is drawn, before the sheet has learned how their hair and shoulders move."""
        model, seen = MorphableModel.load(), self.track.select(self.split.train)
        rest = Pose(
            np.median(seen.rotation, axis=0),
            np.median(seen.translation, axis=0),
            np.median(seen.sway, axis=0).astype(np.float64),
        )
        sheet = Sheet.build(model, self.track.subject, rest=rest, camera=self.track.camera, crop=self.crop)
        return Conditioner(model, self.track.subject, sheet, self.crop, config)


def split_of(track: FaceTrack, size: int, cap: int | None = None, held_out: int | None = None) -> Split:
    """The rows for training, and of the held-out fifth the last ones. cap, held_out: see `Recording.open`."""
    split = split_tail(track, cap=cap or frame_cap(size))
    rows = np.flatnonzero(track.is_tracked)
    tail = rows[rows >= split.held_out[0]] if len(split.held_out) else split.held_out
    held_out = held_out or (EVALUATED_FRAMES if cap else evaluated_frames(size))
    return replace(split, held_out=tail[-held_out:])


def evaluated_frames(size: int) -> int:
    """How many frames at the end of a recording are evaluated at most; every method keeps them all in memory."""
    return EVALUATED_FRAMES if size <= 256 else frame_cap(size) // 5


def tracked(info: ClipInfo, frames: Iterable[Frame], on_progress: ProgressCallback) -> FaceTrack:
    """`track_clip` of the frames of a file, which an error names and whose length is known."""

    def counted(progress: Progress) -> None:
        on_progress(progress if progress.total else replace(progress, total=info.frame_count))

    try:
        return track_clip(frames, on_progress=counted)
    except NoFaceError as error:
        raise NoFaceError(f"{info.path}: {error}") from error
    finally:
        give_back_memory()


def give_back_memory() -> None:
    """Let the C library return what was freed: of tracking it would keep 9 kB a frame, half a GB of half an hour."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # only glibc has it
        trim(0)
