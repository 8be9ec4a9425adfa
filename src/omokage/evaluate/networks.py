"""Networks that measure talking videos, as ONNX files that the user installed: SyncNet, and features for FID and FVD.

omokage ships none of them. What each is fed and gives back is said in docs/evaluation.md; other files are refused when
they are opened. The face embedding is that which `animate` uses (`omokage weights add face`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.errors import WeightsError
from omokage.evaluate.talking_scores import Experts
from omokage.metrics.image import Frames
from omokage.metrics.motion import Landmarks
from omokage.metrics.syncnet import (
    COEFFICIENTS,
    FRAMES,
    SIDE_PX,
    STEPS,
    face_crops,
    looks,
    sounds,
    sync_scores,
)
from omokage.metrics.talking import SyncScores
from omokage.talking.conditions.identity import OnnxIdentity
from omokage.weights.registry import FACE, FID, FVD, SYNC, WeightsSpec
from omokage.weights.store import find

BATCH = 16
# Of networks that take any size: Inception's frames, I3D's clips.
FRAME_PX, CLIP_FRAMES, CLIP_PX = 299, 16, 224


def installed_experts() -> Experts:
    """Those that are installed. Raises WeightsError for one that is damaged or not of its kind."""
    face, sync, fid, fvd = (_file(spec) for spec in (FACE, SYNC, FID, FVD))
    return Experts(
        face=None if face is None else OnnxFaces(face),
        sync=None if sync is None else OnnxSyncNet(sync),
        frame_features=None if fid is None else OnnxFrameFeatures(fid),
        clip_features=None if fvd is None else OnnxClipFeatures(fvd),
    )


class OnnxFaces:
    """ArcFace: the face, aligned to 112 x 112 pixels, to a vector."""

    def __init__(self, path: Path) -> None:
        self._identity = OnnxIdentity(path)

    def __call__(self, image: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(self._identity.embed(image, landmarks)[0])


class OnnxSyncNet:
    """Looks (N, 3, 5, 224, 224), BGR from 0 to 255, and sounds (N, 1, 13, 20), cepstral coefficients, to vectors (N, D)
    of each, in this order."""

    def __init__(self, path: Path) -> None:
        self._network = _Network(
            path, "SyncNet of looks (N, 3, 5, 224, 224) and sounds (N, 1, 13, 20)", (5, 4)
        )
        self._network.check(
            np.zeros((1, 3, FRAMES, SIDE_PX, SIDE_PX), np.float32),
            np.zeros((1, 1, COEFFICIENTS, STEPS), np.float32),
        )

    def __call__(self, frames: Frames, landmarks: Landmarks, voice: NDArray[np.float32]) -> SyncScores:
        crops = face_crops(frames, landmarks)
        count = len(crops) - FRAMES + 1
        heard, seen_all, heard_all = sounds(voice, count), list[_Vectors](), list[_Vectors]()
        for start in range(0, count, BATCH):
            stop = min(start + BATCH, count)
            pair = self._network.run(looks(crops[start : stop + FRAMES - 1]), heard[start:stop])
            seen_all.append(pair[0])
            heard_all.append(pair[1])
        return sync_scores(np.concatenate(seen_all), np.concatenate(heard_all))


class OnnxFrameFeatures:
    """Frames (N, 3, H, W), RGB from 0 to 1, to vectors (N, D): for FID, as those of Inception's last pooling."""

    def __init__(self, path: Path) -> None:
        self._network = _Network(path, "network of frames (N, 3, H, W)", (4,))
        height, width = self._network.sizes(0)[2:]
        self._size = (height or FRAME_PX, width or FRAME_PX)
        self._network.check(np.zeros((1, 3, *self._size), np.float32))

    def __call__(self, frames: Frames) -> NDArray[np.floating]:
        batches = (frames[start : start + BATCH] for start in range(0, len(frames), BATCH))
        planes = (_planes(batch, self._size) / np.float32(255) for batch in batches)
        return np.concatenate([self._network.run(of_batch)[0] for of_batch in planes])


class OnnxClipFeatures:
    """Clips (N, 3, T, H, W), RGB from -1 to 1, to vectors (N, D): for FVD, as those of I3D.

    A video is cut into clips of T frames (16 where the network takes any number); what is left at its end is not seen.
    """

    def __init__(self, path: Path) -> None:
        self._network = _Network(path, "network of clips (N, 3, T, H, W)", (5,))
        frames, height, width = self._network.sizes(0)[2:]
        self._frames = frames or CLIP_FRAMES
        self._size = (height or CLIP_PX, width or CLIP_PX)
        self._network.check(np.zeros((1, 3, self._frames, *self._size), np.float32))

    def __call__(self, frames: Frames) -> NDArray[np.floating]:
        starts = range(0, len(frames) - self._frames + 1, self._frames)
        clips = (_planes(frames[start : start + self._frames], self._size) for start in starts)
        vectors = [
            self._network.run(clip.transpose(1, 0, 2, 3)[None] / np.float32(127.5) - np.float32(1))[0]
            for clip in clips
        ]
        return np.concatenate(vectors) if vectors else np.zeros((0, 1))


_Vectors = NDArray[np.float32]


class _Network:
    """A file of ONNX Runtime on the processor, whose inputs have these ranks, in this order.

    Raises WeightsError, with `what` is needed, for any other file.
    """

    def __init__(self, path: Path, what: str, ranks: tuple[int, ...]) -> None:
        import onnxruntime

        self._refusal = (
            f"{path} is no {what} in ONNX format; remove it or give another file (docs/evaluation.md)"
        )
        try:
            self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # a foreign file may fail in any way
            raise WeightsError(self._refusal) from error
        self._inputs = self._session.get_inputs()
        if tuple(len(given.shape) for given in self._inputs) != ranks:
            raise WeightsError(self._refusal)

    def sizes(self, index: int) -> tuple[int | None, ...]:
        """Of an input; None for what may have any size."""
        return tuple(
            size if isinstance(size, int) and size > 0 else None for size in self._inputs[index].shape
        )

    def check(self, *samples: _Vectors) -> None:
        """Raises WeightsError when these, of one each, do not give a vector each, of one length."""
        try:
            given = self.run(*samples)
        except Exception as error:  # a foreign file may fail in any way
            raise WeightsError(self._refusal) from error
        if len(given) != len(samples) or len({vectors.shape for vectors in given}) != 1 or len(given[0]) != 1:
            raise WeightsError(self._refusal)

    def run(self, *batches: _Vectors) -> list[_Vectors]:
        """The outputs, each flattened to (N, D)."""
        names = (given.name for given in self._inputs)
        outputs = self._session.run(None, dict(zip(names, batches, strict=True)))
        return [np.asarray(values, dtype=np.float32).reshape(len(values), -1) for values in outputs]


def _planes(frames: Frames, size: tuple[int, int]) -> NDArray[np.float32]:
    """Frames (N, H, W, 3) at another size, as (N, 3, height, width), 0 to 255."""
    height, width = size
    shrinks = height < frames.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in frames])
    return np.ascontiguousarray(resized.transpose(0, 3, 1, 2), dtype=np.float32)


def _file(spec: WeightsSpec) -> Path | None:
    folder = find(spec.name)
    return None if folder is None else folder / spec.file_name
