"""A person's own face model and motion as the arrays of an avatar file, whatever kind of avatar it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from omokage.geometry.camera import Camera
from omokage.tracking.face_track import FRAME_ARRAYS, FaceTrack, Subject

MAX_TRACK_ROWS = 3000


def motion_arrays(track: FaceTrack) -> dict[str, NDArray[Any]]:
    """`subject.*` and `track.*`: without landmarks, of a long recording every k-th row."""
    track = track.select(slice(None, None, -(-len(track) // MAX_TRACK_ROWS)))
    arrays = {f"subject.{f.name}": getattr(track.subject, f.name) for f in fields(Subject)}
    return arrays | {f"track.{name}": getattr(track, name) for name in FRAME_ARRAYS if name != "landmarks"}


def read_motion(tensors: Mapping[str, Tensor], camera: Camera) -> FaceTrack:
    """The inverse. Raises KeyError or TypeError where arrays are missing."""

    def part(prefix: str) -> dict[str, NDArray[Any]]:
        return {name[len(prefix) :]: t.numpy() for name, t in tensors.items() if name.startswith(prefix)}

    motion = part("track.")
    landmarks = np.zeros((len(motion["frame_index"]), 0, 3), dtype=np.float32)
    return FaceTrack(**motion, landmarks=landmarks, camera=camera, subject=Subject(**part("subject.")))
