"""How close predicted pictures are to the true ones: PSNR, SSIM and MS-SSIM, whole or inside a region.

All functions take `truth` and `predicted`, uint8 (T, H, W, 3) RGB, and an optional `region`, bool (H, W) or (T, H, W)
(None: the whole picture), and return float64 (T,). A frame whose region is empty gives NaN.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from omokage.errors import InputError

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]
PerFrame = NDArray[np.float64]

PSNR_CEILING_DB = 100.0  # what identical pictures score, so that means and JSON stay finite
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5  # of the Gaussian window, px: scikit-image cuts it at 3.5 sigma
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, finest scale first


def psnr(truth: Frames, predicted: Frames, region: Mask | None = None) -> PerFrame:
    """Peak signal-to-noise ratio in dB per frame, over the three channels; at most `PSNR_CEILING_DB`."""
    masks = region_masks(truth, predicted, region)
    values = np.full(len(truth), np.nan)
    for t, mask in enumerate(masks):
        if mask.any():
            error = truth[t][mask].astype(np.float64) - predicted[t][mask]
            mean_square = max(float((error**2).mean()), 255.0**2 * 10 ** (-PSNR_CEILING_DB / 10))
            values[t] = 10 * np.log10(255.0**2 / mean_square)
    return values


def ssim(truth: Frames, predicted: Frames, region: Mask | None = None) -> PerFrame:
    """Structural similarity (Wang 2004) per frame, in [-1, 1].

    scikit-image with the paper's settings: Gaussian window of sigma 1.5 px, population covariance, data range 255, mean
    of the three channels. Inside a region it is the mean of the SSIM map over the region's pixels. The 5 pixels along
    the border of the picture, where the window does not fit, never count.
    """
    masks = region_masks(truth, predicted, region) & _window_fits(truth.shape[1:3])
    values = np.full(len(truth), np.nan)
    for t, mask in enumerate(masks):
        if mask.any():
            box = bounding_box(mask, margin=SSIM_RADIUS)
            _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
                truth[t][box].astype(np.float32),
                predicted[t][box].astype(np.float32),
                channel_axis=2,
                gaussian_weights=True,
                sigma=SSIM_SIGMA,
                use_sample_covariance=False,
                data_range=255,
                full=True,
            )
            values[t] = similarity[mask[box]].mean()
    return values


def ms_ssim(truth: Frames, predicted: Frames, region: Mask | None = None) -> PerFrame:
    """Multi-scale structural similarity (Wang 2003) per frame, in [0, 1], on luma.

    Five scales when the picture is at least 176 px, else as many as keep the 11-px window inside (their weights are
    scaled to sum to 1). A region is averaged with the share of each coarse pixel that it covers.
    """
    masks = region_masks(truth, predicted, region)
    scales = _scale_count(min(truth.shape[1:3]))
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    values = np.full(len(truth), np.nan)
    for t, mask in enumerate(masks):
        if mask.any():
            terms = _scale_terms(luma(truth[t]), luma(predicted[t]), mask.astype(np.float32), scales)
            values[t] = np.prod(np.clip(terms, 0, 1) ** weights)
    return values


def luma(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) RGB -> BT.601 luma, float32 (H, W) in [0, 255]."""
    return np.asarray(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def region_masks(truth: Frames, predicted: Frames, region: Mask | None) -> Mask:
    """Check that the pictures belong together and spread `region` to bool (T, H, W)."""
    if truth.shape != predicted.shape or truth.ndim != 4 or truth.shape[-1] != 3:
        raise InputError(
            f"two equal stacks of pictures (T, H, W, 3) are needed, got {truth.shape} and {predicted.shape}; "
            "bring the prediction to the size and length of the truth"
        )
    if truth.dtype != np.uint8 or predicted.dtype != np.uint8:
        raise InputError(
            f"8-bit pictures are needed, got {truth.dtype} and {predicted.dtype}; convert them to uint8"
        )
    if region is None:
        return np.ones(truth.shape[:3], dtype=bool)
    if region.shape[-2:] != truth.shape[1:3] or region.ndim not in (2, 3):
        raise InputError(f"a region of {truth.shape[1:3]} pixels is needed, got {region.shape}")
    return np.broadcast_to(region, truth.shape[:3])


def bounding_box(mask: NDArray[np.bool_], *, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around the True pixels of a non-empty mask, grown by `margin` px."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _window_fits(shape: tuple[int, ...]) -> Mask:
    inside = np.zeros(shape[:2], dtype=bool)
    inside[SSIM_RADIUS : shape[0] - SSIM_RADIUS, SSIM_RADIUS : shape[1] - SSIM_RADIUS] = True
    return inside


def _scale_count(size: int) -> int:
    window = 2 * SSIM_RADIUS + 1
    return max(1, min(len(MS_SSIM_WEIGHTS), int(np.log2(max(size / window, 1))) + 1))


def _scale_terms(
    truth: NDArray[np.float32], predicted: NDArray[np.float32], weight: NDArray[np.float32], scales: int
) -> PerFrame:
    """Contrast-structure of every scale, times luminance at the coarsest, averaged with `weight`: (scales,)."""
    terms = []
    for scale in range(scales):
        luminance, contrast = _luminance_and_contrast(truth, predicted)
        similarity = contrast * luminance if scale == scales - 1 else contrast
        terms.append(float((similarity * weight).sum() / weight.sum()))
        truth, predicted, weight = _halve(truth), _halve(predicted), _halve(weight)
    return np.array(terms)


def _halve(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    half = (plane.shape[1] // 2, plane.shape[0] // 2)
    return np.asarray(cv2.resize(plane, half, interpolation=cv2.INTER_AREA), np.float32)


def _luminance_and_contrast(
    truth: NDArray[np.float32], predicted: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    window = 2 * SSIM_RADIUS + 1

    def smooth(plane: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(plane, (window, window), SSIM_SIGMA))

    mean_truth, mean_predicted = smooth(truth), smooth(predicted)
    variances = smooth(truth**2) - mean_truth**2 + smooth(predicted**2) - mean_predicted**2
    covariance = smooth(truth * predicted) - mean_truth * mean_predicted
    floor_mean, floor_variance = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_truth * mean_predicted + floor_mean) / (
        mean_truth**2 + mean_predicted**2 + floor_mean
    )
    contrast = (2 * covariance + floor_variance) / (variances + floor_variance)
    return luminance, contrast
