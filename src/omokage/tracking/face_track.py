"""The record of what a person's face did: one `Subject`, and the state of every frame.

A frame without a face stays in the track, marked by `is_tracked`, so that frame numbers and times are never lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.files import parse_json, refuse_device, saving
from omokage.geometry.camera import Camera

FORMAT_VERSION = 2

# The 52 names of ARKit's ARFaceAnchor.BlendShapeLocation, `tongueOut` last: the order in which phone capture apps
# write them. `expression[:, i]` belongs to BLENDSHAPES[i].
BLENDSHAPES: tuple[str, ...] = (
    "eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft",
    "eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight",
    "eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose",
    "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft",
    "mouthStretchRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthPressLeft", "mouthPressRight", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft",
    "mouthUpperUpRight", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight",
    "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A person's own face model: what the morphable model becomes once identity is solved.

    neutral: float32 (V, 3), face without expression in head space, cm.
    blendshapes: float32 (52, V, 3), displacement at weight 1, cm, in the order of `BLENDSHAPES`.
    identity: float32 (K,), coefficients of the morphable model behind `neutral`.
    """

    neutral: NDArray[np.float32]
    blendshapes: NDArray[np.float32]
    identity: NDArray[np.float32]

    def vertices(self, expression: NDArray[np.floating]) -> NDArray[np.float64]:
        """Weights (..., 52) -> vertices (..., V, 3) in head space, cm. Gaze is applied by `morphable`."""
        moved = np.asarray(expression, dtype=np.float64) @ self._flat
        return self.neutral + moved.reshape(*moved.shape[:-1], *self.neutral.shape)

    @cached_property
    def _flat(self) -> NDArray[np.float64]:
        """Blendshapes (52, V * 3): a picture needs them several times."""
        return self.blendshapes.reshape(len(self.blendshapes), -1).astype(np.float64)


@dataclass(frozen=True)
class FaceTrack:
    """Head pose, expression and gaze over time. All arrays have the length T of the clip.

    frame_index: int64 (T,), number of the frame in the clip.  time_s: float64 (T,), seconds.
    is_tracked: bool (T,), False where no face was found; such rows hold the last known state.
    confidence: float32 (T,) in [0, 1].
    rotation: float64 (T, 3), axis-angle, the head's mesh to camera.  translation: float64 (T, 3), cm, of its origin.
    expression: float32 (T, 52) in [0, 1], order of `BLENDSHAPES`.
    gaze: float32 (T, 2, 2), yaw and pitch in radians in head space, of the picture's left and right eye.
    sway: float32 (T, Z, 2): shift of Z zones of hair and shoulders beyond following the head, in head widths (see
        `tracking.sway`). Its zero differs between clips: only the way from a rest of the same clip means something.
    landmarks: float32 (T, 478, 3), x, y in pixels of the clip's picture, z of the same scale (MediaPipe's order).
    axes: float64 (3,), axis-angle, from the head's own axes to those of its mesh (`tracking.head_axes`).
    """

    frame_index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    is_tracked: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    expression: NDArray[np.float32]
    gaze: NDArray[np.float32]
    sway: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    camera: Camera
    subject: Subject
    axes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    @cached_property
    def head_rotation(self) -> NDArray[np.float64]:
        """The pose of the head (T, 3), axis-angle in radians: at zeros it looks straight along the camera's axis.

        `rotation` is that of the mesh, which goes with `subject`; only where it looks is off by a constant turn.
        """
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(self.rotation) * Rotation.from_rotvec(self.axes)
        return np.asarray(turned.as_rotvec(), dtype=np.float64)

    def __post_init__(self) -> None:
        length = len(self.frame_index)
        for name in FRAME_ARRAYS:
            if len(getattr(self, name)) != length:
                rows = len(getattr(self, name))
                raise InputError(
                    f"a face track needs {length} rows in '{name}', got {rows}; track the clip again"
                )

    def __len__(self) -> int:
        return len(self.frame_index)

    def select(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Self:
        """The same track at some rows only (numbers and times are kept)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in FRAME_ARRAYS})

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically. Raises OutputError."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in FRAME_ARRAYS}
        tensors |= {
            f"subject.{f.name}": np.ascontiguousarray(getattr(self.subject, f.name)) for f in fields(Subject)
        }
        tensors["axes"] = np.ascontiguousarray(self.axes)
        camera = {"focal_px": self.camera.focal_px, "width": self.camera.width, "height": self.camera.height}
        metadata = {
            "format": "omokage.face_track",
            "version": str(FORMAT_VERSION),
            "camera": json.dumps(camera),
        }
        with saving(path, SafetensorError) as part:
            save_file(tensors, part, metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of `save`. Raises InputError when it is something else or damaged."""
        from safetensors import SafetensorError, safe_open

        refuse_device(path)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != "omokage.face_track" or int(metadata["version"]) != FORMAT_VERSION:
                raise InputError(f"{path} is not a face track that this version reads; track the clip again")
            camera = Camera(**parse_json(metadata["camera"]))
            subject = Subject(**{f.name: tensors.pop(f"subject.{f.name}") for f in fields(Subject)})
            return cls(**tensors, camera=camera, subject=subject)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a readable face track ({error}); track the clip again"
            ) from error


FRAME_ARRAYS: tuple[str, ...] = tuple(
    f.name for f in fields(FaceTrack) if f.name not in ("camera", "subject", "axes")
)
