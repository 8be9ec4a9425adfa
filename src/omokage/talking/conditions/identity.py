"""The face embedding: one vector that says who the portrait shows.

The published denoiser was trained with ArcFace (Deng et al. 2019), whose weights are for research only. They are
therefore no part of the product: without them the embedding is zero, which is what the released pipeline gives the
denoiser when it finds no face, and the reference tokens alone carry the likeness. A user who may use such a network can
add its ONNX file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.errors import WeightsError
from omokage.media.clip import Image

# Where ArcFace's training pictures of 112 x 112 pixels have the eyes, the tip of the nose and the corners of the mouth.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIDE_PX = 112
# The same five points among the 478 landmarks; the picture's left one of a pair comes first.
FIVE_POINTS = (468, 473, 1, 61, 291)


class IdentityEncoder(Protocol):
    """Says who a picture shows."""

    @property
    def is_blind(self) -> bool:
        """Whether the embedding is the same for everybody."""
        ...

    def embed(self, picture: Image, landmarks: NDArray[np.floating] | None) -> Tensor:
        """Embedding (1, D), not normalised, of the face at `landmarks` (478, 2 or 3) px of uint8 (H, W, 3); zeros when
        they are None."""
        ...


class ZeroIdentity:
    """The embedding of nobody."""

    is_blind = True

    def __init__(self, width: int) -> None:
        self._width = width

    def embed(self, picture: Image, landmarks: NDArray[np.floating] | None) -> Tensor:
        return torch.zeros(1, self._width)


class ThumbnailIdentity:
    """The aligned face at 6 x 6 pixels, as 108 numbers in [-1, 1].

    A stand-in for a trained embedding, for networks that learn one person from scratch: it says how this face is lit
    and colored, and does not tell persons apart.
    """

    is_blind = False
    side = 6

    def embed(self, picture: Image, landmarks: NDArray[np.floating] | None) -> Tensor:
        if landmarks is None:
            return torch.zeros(1, 3 * self.side**2)
        grid = cv2.resize(
            aligned_crop(picture, landmarks), (self.side, self.side), interpolation=cv2.INTER_AREA
        )
        return torch.from_numpy(grid.astype(np.float32).ravel() / 127.5 - 1)[None]


class OnnxIdentity:
    """An ArcFace network in ONNX format that takes RGB crops (1, 3, 112, 112) in [-1, 1].

    width: of the embeddings, None for any. Raises WeightsError when the file is none or gives another width.
    """

    is_blind = False

    def __init__(self, path: Path, width: int | None = None) -> None:
        import onnxruntime

        try:
            self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            crop = np.zeros((1, 3, SIDE_PX, SIDE_PX), dtype=np.float32)
            given = self._run(crop).shape
        except Exception as error:  # a foreign file may fail in any way
            raise WeightsError(
                f"{path} is no face embedding of 112 x 112 pixels; remove it or give an ArcFace network in ONNX format"
            ) from error
        if given != (1, width or given[-1]):
            raise WeightsError(
                f"{path} gives embeddings of {given[-1]} numbers and the denoiser takes {width}; remove it or give "
                "another network"
            )
        self._width = given[-1]

    def embed(self, picture: Image, landmarks: NDArray[np.floating] | None) -> Tensor:
        if landmarks is None:
            return torch.zeros(1, self._width)
        crop = aligned_crop(picture, landmarks).astype(np.float32) / 127.5 - 1
        return torch.from_numpy(self._run(crop.transpose(2, 0, 1)[None]))

    def _run(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        (embedding,) = self._session.run(None, {self._session.get_inputs()[0].name: crop})
        return np.asarray(embedding, dtype=np.float32)


def aligned_crop(picture: Image, landmarks: NDArray[np.floating]) -> Image:
    """The face as ArcFace wants it, uint8 (112, 112, 3) RGB: turned, scaled and shifted onto `TEMPLATE`.

    The least-squares similarity: x' = a x - b y + c and y' = b x + a y + d.
    """
    points = np.asarray(landmarks, dtype=np.float64)[list(FIVE_POINTS), :2]
    x, y, one, zero = points[:, 0], points[:, 1], np.ones(5), np.zeros(5)
    rows = np.concatenate([np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)])
    a, b, c, d = np.linalg.lstsq(rows, TEMPLATE.T.ravel(), rcond=None)[0]
    move = np.array([[a, -b, c], [b, a, d]])
    return np.asarray(cv2.warpAffine(picture, move, (SIDE_PX, SIDE_PX)), dtype=np.uint8)
