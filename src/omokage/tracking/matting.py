"""Separates the person from the background: a soft alpha from mediapipe's selfie network, sharpened by the picture."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from omokage.media.clip import Image
from omokage.tracking.landmarks import closed_with, load_solution, quiet, reduced

Alpha = NDArray[np.float32]


class MatteBackend(Protocol):
    """Anything that tells the person from the background."""

    def matte(self, image: Image) -> Alpha:
        """Picture uint8 (H, W, 3) -> alpha float32 (H, W) in [0, 1], 1 = person."""
        ...


class MediaPipeMatte:
    """MediaPipe's selfie segmentation (256 pixels), refined against the picture by a guided filter.

    radius_share: the filter's radius as a share of the longer side; edge: how strong a colour edge must be (0..1).
    """

    def __init__(self, *, radius_share: float = 0.012, edge: float = 0.02) -> None:
        self._radius_share = radius_share
        self._edge = edge
        self._network: Any = None
        load_solution("selfie_segmentation")

    def matte(self, image: Image) -> Alpha:
        small = reduced(image)
        if self._network is None:
            with quiet():
                selfie = load_solution("selfie_segmentation").SelfieSegmentation(model_selection=0)
                self._network = closed_with(self, selfie)
                coarse = self._network.process(small).segmentation_mask
        else:
            coarse = self._network.process(small).segmentation_mask
        height, width = image.shape[:2]
        coarse = cv2.resize(
            np.asarray(coarse, dtype=np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        radius = max(2, round(self._radius_share * max(height, width)))
        guide = image.astype(np.float32) / np.float32(255)
        alpha = guided_filter(guide, coarse.astype(np.float32), radius, self._edge**2)
        # The filter blurs certainty a little: stretch it back, so that inside and outside are exact.
        return np.asarray(np.clip((alpha - 0.1) / 0.8, 0, 1), dtype=np.float32)


def matte(image: Image, backend: MatteBackend | None = None) -> Alpha:
    """Alpha of one picture, float32 (H, W) in [0, 1]. Keep a backend for many pictures: starting one takes 0.3 s."""
    return (backend or MediaPipeMatte()).matte(image)


def refine_against_background(image: Image, alpha: Alpha, background: Image, noise: float = 0.03) -> Alpha:
    """Use a known still background: where the picture equals it, the person is not there.

    noise: colour distance (0..1) that camera noise explains. Only uncertain pixels (0 < alpha < 1) change.
    """
    difference = np.abs(image.astype(np.float32) - background.astype(np.float32)).max(axis=2) / 255
    shown = np.clip((cv2.GaussianBlur(difference, (0, 0), 1.0) - noise) / (2 * noise), 0, 1)
    uncertain = (alpha > 0.02) & (alpha < 0.98)
    return np.where(uncertain, alpha * (0.3 + 0.7 * shown), alpha).astype(np.float32)


def guided_filter(guide: NDArray[np.float32], target: Alpha, radius: int, epsilon: float) -> Alpha:
    """He et al. 2010: `target` (H, W) made locally linear in the colour `guide` (H, W, 3) in [0, 1]."""
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(values, window), dtype=np.float32)

    guide_mean, target_mean = mean(guide), mean(target)
    covariance = mean(guide * target[..., None]) - guide_mean * target_mean[..., None]
    first, second = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]  # of a symmetric matrix, its upper half
    halves = guide[..., first[:3]] * guide[..., second[:3]], guide[..., first[3:]] * guide[..., second[3:]]
    variance = np.concatenate([mean(half) for half in halves], axis=-1)
    variance -= guide_mean[..., first] * guide_mean[..., second]
    slope = np.empty_like(covariance)
    _solve(variance, covariance, epsilon, slope)
    offset = target_mean - (slope * guide_mean).sum(axis=-1)
    return np.asarray((mean(slope) * guide).sum(axis=-1) + mean(offset), dtype=np.float32)


@njit(cache=True, nogil=True)
def _solve(variance, covariance, epsilon, slope):  # type: ignore[no-untyped-def]
    """(variance + epsilon) slope = covariance in every pixel, by Cramer's rule; variance (H, W, 6): the upper half."""
    for y in range(slope.shape[0]):
        for x in range(slope.shape[1]):
            a, b, c = np.float64(variance[y, x, 0]) + epsilon, variance[y, x, 1], variance[y, x, 2]
            d, e = np.float64(variance[y, x, 3]) + epsilon, variance[y, x, 4]
            f = np.float64(variance[y, x, 5]) + epsilon
            p, q, r = covariance[y, x, 0], covariance[y, x, 1], covariance[y, x, 2]
            ca, cb, cc = d * f - e * e, c * e - b * f, b * e - c * d
            cd, ce, cf = a * f - c * c, b * c - a * e, a * d - b * b
            scale = 1 / (a * ca + b * cb + c * cc)
            slope[y, x, 0] = (ca * p + cb * q + cc * r) * scale
            slope[y, x, 1] = (cb * p + cd * q + ce * r) * scale
            slope[y, x, 2] = (cc * p + ce * q + cf * r) * scale
