"""From a clip and its track to training samples at output size, in memory as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.sheet import Crop, Pose
from omokage.avatar.texture import Sample
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.media.clip import Frame, Image
from omokage.tracking.detail import skin_detail
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.matting import MatteBackend

# At 256 pixels this many frames take 320 MB; larger pictures get fewer (`frame_cap`).
MAX_FRAMES_AT_256 = 1200
# A picture this close to square is shown whole; of a wider one, a square around the head.
NEARLY_SQUARE = 1.2
CROP_IN_FACE_HEIGHTS = 3.2


def frame_cap(size: int) -> int:
    """How many frames of a recording are used at most, for training and held-out together."""
    return max(200, int(MAX_FRAMES_AT_256 * (256 / size) ** 2)) if size > 256 else MAX_FRAMES_AT_256


def avatar_state(track: FaceTrack, row: int) -> AvatarState:
    """One row of a track as the conditioner takes it."""
    pose = Pose(track.rotation[row], track.translation[row], track.sway[row].astype(np.float64))
    return AvatarState(
        pose,
        track.expression[row].astype(np.float64),
        track.gaze[row].astype(np.float64),
        skin_detail(track, row),
    )


def choose_crop(track: FaceTrack) -> Crop:
    """The fixed square that the avatar will show: the whole picture if nearly square, else around the head."""
    width, height = track.camera.width, track.camera.height
    shorter = float(min(width, height))
    if max(width, height) <= NEARLY_SQUARE * shorter:
        return Crop((width - shorter) / 2, (height - shorter) / 2, shorter)
    seen = track.landmarks[track.is_tracked][:, :468, :2]
    top, bottom = np.median(seen[..., 1].min(axis=1)), np.median(seen[..., 1].max(axis=1))
    side = min(shorter, CROP_IN_FACE_HEIGHTS * float(bottom - top))
    center_x = float(np.median(seen[..., 0].mean(axis=1)))
    center_y = float((top + bottom) / 2) + 0.12 * side
    left = np.clip(center_x - side / 2, 0, width - side)
    return Crop(float(left), float(np.clip(center_y - side / 2, 0, height - side)), side)


def cut_out(image: NDArray[np.uint8], crop: Crop, size: int) -> NDArray[np.uint8]:
    """The crop of a picture, uint8 (S, S, 3), anti-aliased; black where it leaves the picture."""
    left, top, side = round(crop.left), round(crop.top), round(crop.side)
    height, width = image.shape[:2]
    part = image[max(0, top) : top + side, max(0, left) : left + side]
    beyond = np.array([[-top, top + side - height], [-left, left + side - width], [0, 0]])
    if beyond.max() > 1:  # a single pixel is rounding
        part = np.pad(part, np.maximum(beyond, 0))
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, (size, size), interpolation=method), dtype=np.uint8)


@dataclass(frozen=True)
class Split:
    """Rows of a track: `train` comes first in time, `held_out` is the tail that no training ever sees."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def split_tail(track: FaceTrack, *, cap: int, share: float = 0.2) -> Split:
    """The last `share` of the frames with a face is held out.

    Of more than `cap` such frames every k-th of the training part is taken, and the first consecutive ones of the tail.
    """
    rows = np.flatnonzero(track.is_tracked)
    border = round(len(rows) * (1 - share))
    return Split(
        train=rows[: border : thinning_of(track, cap)],
        held_out=rows[border : border + max(1, int(cap * share))],
    )


def thinning_of(track: FaceTrack, cap: int) -> int:
    """Of so many frames with a face one is used, so that there are at most `cap`."""
    return max(1, -(-int(track.is_tracked.sum()) // cap))


def collect_samples(
    frames: Iterable[Frame],
    track: FaceTrack,
    rows: NDArray[np.int64],
    *,
    cut: Callable[[Frame], Image],
    matting: MatteBackend,
    on_progress: ProgressCallback = ignore_progress,
) -> Sequence[Sample]:
    """Cut the chosen rows out of the clip and matte them. `frames` must be those that were tracked, in order.

    cut: what an avatar shows of a frame, uint8 (S, S, 3).
    """
    wanted = {int(track.frame_index[row]): int(row) for row in rows}
    samples: list[Sample] = []
    for frame in frames:
        row = wanted.get(frame.index)
        if row is None:
            continue
        image = cut(frame)
        matte = np.round(matting.matte(image) * 255).astype(np.uint8)
        samples.append(Sample(image, matte, avatar_state(track, row)))
        on_progress(Progress("cutting out", len(samples), len(wanted)))
        if len(samples) == len(wanted):
            break
    return samples
