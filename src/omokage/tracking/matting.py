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

    products = np.empty((3, *guide.shape), dtype=np.float32)
    _multiply(guide, target, products)
    guide_mean, target_mean = mean(guide), mean(target)
    covariance, variance, mixed = (mean(product) for product in products)
    slope, offset = np.empty_like(guide), np.empty_like(target)
    _solve(variance, mixed, covariance, guide_mean, target_mean, epsilon, slope, offset)
    return np.asarray(_applied(mean(slope), mean(offset), guide), dtype=np.float32)


@njit(cache=True, nogil=True)
def _multiply(guide, target, products):  # type: ignore[no-untyped-def]
    """Color (r, g, b) times target, squares (rr, gg, bb), and (rg, rb, gb): products (3, H, W, 3)."""
    for y in range(guide.shape[0]):
        for x in range(guide.shape[1]):
            for k in range(3):
                products[0, y, x, k] = guide[y, x, k] * target[y, x]
                products[1, y, x, k] = guide[y, x, k] * guide[y, x, k]
            products[2, y, x, 0] = guide[y, x, 0] * guide[y, x, 1]
            products[2, y, x, 1] = guide[y, x, 0] * guide[y, x, 2]
            products[2, y, x, 2] = guide[y, x, 1] * guide[y, x, 2]


@njit(cache=True, nogil=True)
def _solve(  # type: ignore[no-untyped-def]
    squares, mixed, products, guide_mean, target_mean, epsilon, slope, offset
):
    """(variance + epsilon) slope = covariance in every pixel, by Cramer's rule, and the offset that goes with it."""
    for y in range(slope.shape[0]):
        for x in range(slope.shape[1]):
            u, v, w, t = guide_mean[y, x, 0], guide_mean[y, x, 1], guide_mean[y, x, 2], target_mean[y, x]
            a = np.float64(squares[y, x, 0] - u * u) + epsilon
            d = np.float64(squares[y, x, 1] - v * v) + epsilon
            f = np.float64(squares[y, x, 2] - w * w) + epsilon
            b, c, e = mixed[y, x, 0] - u * v, mixed[y, x, 1] - u * w, mixed[y, x, 2] - v * w
            p, q, r = products[y, x, 0] - u * t, products[y, x, 1] - v * t, products[y, x, 2] - w * t
            ca, cb, cc = d * f - e * e, c * e - b * f, b * e - c * d
            cd, ce, cf = a * f - c * c, b * c - a * e, a * d - b * b
            scale = 1 / (a * ca + b * cb + c * cc)
            slope[y, x, 0] = (ca * p + cb * q + cc * r) * scale
            slope[y, x, 1] = (cb * p + cd * q + ce * r) * scale
            slope[y, x, 2] = (cc * p + ce * q + cf * r) * scale
            offset[y, x] = t - (slope[y, x, 0] * u + slope[y, x, 1] * v + slope[y, x, 2] * w)


@njit(cache=True, nogil=True)
def _applied(slope, offset, guide):  # type: ignore[no-untyped-def]
    alpha = np.empty_like(offset)
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            by_color = slope[y, x, 0] * guide[y, x, 0] + slope[y, x, 1] * guide[y, x, 1]
            alpha[y, x] = by_color + slope[y, x, 2] * guide[y, x, 2] + offset[y, x]
    return alpha
