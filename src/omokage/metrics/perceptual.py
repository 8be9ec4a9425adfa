"""How pictures look to people: gradient similarity and blur without weights, LPIPS with the user's own weights."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from skimage.measure import blur_effect
from torch.nn import functional as F

from omokage.errors import InputError
from omokage.files import refuse_device
from omokage.metrics.image import Frames, Mask, PerFrame, bounding_box, luma, region_masks

BLUR_MIN_SIZE = 12  # px: blur_effect compares with an 11-px average


def gmsd(truth: Frames, predicted: Frames, region: Mask | None = None) -> PerFrame:
    """Gradient magnitude similarity deviation (Xue 2014) per frame, 0 (equal) to about 0.35 (bad); float64 (T,).

    OpenCV's map (luma, halved by area, Prewitt gradients, constant 170); its standard deviation over the region.
    Arguments as in `metrics.image`.
    """
    masks = region_masks(truth, predicted, region)
    values = np.full(len(truth), np.nan)
    for t, mask in enumerate(masks):
        pair = [np.rint(luma(image)).astype(np.uint8) for image in (truth[t], predicted[t])]
        _, similarity = cv2.quality.QualityGMSD_compute(*pair)  # type: ignore[attr-defined]
        covered = (
            cv2.resize(mask.astype(np.float32), similarity.shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5
        )
        if covered.any():
            values[t] = similarity[covered].std()
    return values


def blur(frames: Frames, region: Mask | None = None) -> PerFrame:
    """Perceived blur (Crété 2007) per frame in the box around the region, 0 (sharp) to 1; float64 (T,).

    It needs no truth: compare a prediction's blur with the blur of the true frames. scikit-image, window of 11 px.
    NaN where the box is smaller than 12 px.
    """
    masks = region_masks(frames, frames, region)
    values = np.full(len(frames), np.nan)
    for t, mask in enumerate(masks):
        if mask.any():
            patch = luma(frames[t])[bounding_box(mask)]
            if min(patch.shape) >= BLUR_MIN_SIZE and np.ptp(patch) > 0:
                values[t] = blur_effect(patch / 255.0)  # type: ignore[no-untyped-call]
    return values


class Lpips:
    """LPIPS (Zhang 2018, AlexNet, version 0.1), from weights that the user has: none come with omokage.

    The file is safetensors with torchvision's AlexNet convolutions (`features.{0,3,6,8,10}.{weight,bias}`) and the
    linear heads of the `lpips` package (`lin{0..4}.model.1.weight`).
    """

    CONVOLUTIONS = (
        (0, 4, 2),
        (3, 1, 2),
        (6, 1, 1),
        (8, 1, 1),
        (10, 1, 1),
    )  # index in `features`, stride, padding

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights
        self.shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        self.scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    @classmethod
    def load(cls, path: Path) -> Lpips:
        """Read the weights. Raises InputError when the file is unreadable or tensors are missing."""
        refuse_device(path)
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is not a readable safetensors file ({error}); convert the weights"
            ) from error
        needed = [f"features.{i}.{part}" for i, _, _ in cls.CONVOLUTIONS for part in ("weight", "bias")]
        needed += [f"lin{i}.model.1.weight" for i in range(len(cls.CONVOLUTIONS))]
        missing = [name for name in needed if name not in weights]
        if missing:
            raise InputError(
                f"{path} lacks the tensor '{missing[0]}' of LPIPS (AlexNet); see docs/evaluation.md"
            )
        return cls({name: weights[name].float() for name in needed})

    def __call__(self, truth: Frames, predicted: Frames, region: Mask | None = None) -> PerFrame:
        """Distance per frame, 0 (equal) upwards; float64 (T,). A region is measured in the box around it."""
        masks = region_masks(truth, predicted, region)
        values = np.full(len(truth), np.nan)
        for t, mask in enumerate(masks):
            if mask.any():
                box = bounding_box(mask)
                values[t] = self._distance(truth[t][box], predicted[t][box])
        return values

    @torch.inference_mode()
    def _distance(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> float:
        if min(truth.shape[:2]) < 64:  # AlexNet needs 63 px; mouth boxes of small portraits have less
            truth, predicted = (_enlarge(image, 64) for image in (truth, predicted))
        pair = torch.from_numpy(np.stack([truth, predicted])).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = (pair - self.shift) / self.scale
        total = 0.0
        for level, (index, stride, padding) in enumerate(self.CONVOLUTIONS):
            if level in (1, 2):
                features = F.max_pool2d(features, kernel_size=3, stride=2)
            kernel, bias = self.weights[f"features.{index}.weight"], self.weights[f"features.{index}.bias"]
            features = F.relu(F.conv2d(features, kernel, bias, stride=stride, padding=padding))
            unit = features / (features.norm(dim=1, keepdim=True) + 1e-10)
            squared = (unit[:1] - unit[1:]) ** 2
            total += F.conv2d(squared, self.weights[f"lin{level}.model.1.weight"]).mean().item()
        return total


def _enlarge(image: NDArray[np.uint8], shortest: int) -> NDArray[np.uint8]:
    factor = shortest / min(image.shape[:2])
    size = (max(shortest, round(image.shape[1] * factor)), max(shortest, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
