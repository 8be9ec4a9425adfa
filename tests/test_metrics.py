"""Metrics: known values, agreement with plain references, and the rules for regions and missing faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from omokage.errors import InputError
from omokage.metrics.image import ms_ssim, psnr, ssim
from omokage.metrics.motion import (
    background_variance,
    expression_error,
    flicker,
    identity_similarity,
    jitter_px,
    landmark_distance_px,
    normalized_landmark_distance,
    pose_error_deg,
    rotation_from_landmarks,
)
from omokage.metrics.perceptual import Lpips, blur, gmsd

Frames = NDArray[np.uint8]

# What the `lpips` package 0.1.4 (net="alex") gives for `pair` with the weights of `_lpips_weights`.
LPIPS_NOISY, LPIPS_BLURRED = 0.00259132, 0.00219790


@pytest.fixture(scope="module")
def pair() -> tuple[Frames, Frames]:
    truth = cv2.resize(astronaut()[:320, 60:380], (192, 192), interpolation=cv2.INTER_AREA)
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    noisy = np.clip(truth + noise, 0, 255).astype(np.uint8)
    return np.stack([truth, truth]), np.stack([noisy, cv2.GaussianBlur(truth, (0, 0), 1.5)])


@pytest.fixture(scope="module")
def landmarks() -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    face = rng.uniform([60, 50, -20], [140, 150, 20], (478, 3))
    face[33], face[263] = [80, 80, 0], [120, 80, 0]  # outer eye corners, 40 px apart
    return np.repeat(face[None], 6, axis=0)


def test_psnr_and_ssim_agree_with_scikit_image(pair: tuple[Frames, Frames]) -> None:
    truth, predicted = pair
    expected = [peak_signal_noise_ratio(t, p) for t, p in zip(truth, predicted, strict=True)]
    np.testing.assert_allclose(psnr(truth, predicted), expected, atol=1e-9)
    settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        structural_similarity(t, p, data_range=255, **settings) for t, p in zip(truth, predicted, strict=True)
    ]
    np.testing.assert_allclose(ssim(truth, predicted), expected, atol=1e-5)


def test_equal_pictures_score_the_best_value(pair: tuple[Frames, Frames]) -> None:
    truth, _ = pair
    assert psnr(truth, truth).tolist() == [100.0, 100.0]
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(ms_ssim(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(gmsd(truth, truth), 0, atol=1e-6)


def test_a_region_looks_only_inside_itself(pair: tuple[Frames, Frames]) -> None:
    truth, _ = pair
    damaged = truth.copy()
    damaged[:, :60] = 0
    region = np.zeros(truth.shape[1:3], bool)
    region[90:150, 40:120] = True
    assert ms_ssim(truth, damaged, region)[0] > ms_ssim(truth, damaged)[0] + 0.1
    for measure, best in ((psnr, 100.0), (ssim, 1.0), (gmsd, 0.0)):
        np.testing.assert_allclose(measure(truth, damaged, region), best, atol=1e-5)
        assert abs(measure(truth, damaged)[0] - best) > 0.05
    _, similarity = structural_similarity(
        truth[0], damaged[0], channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=255, full=True,
    )  # fmt: skip
    edge = np.zeros_like(region)
    edge[40:90, 30:160] = True
    np.testing.assert_allclose(ssim(truth, damaged, edge)[0], similarity[edge].mean(), atol=1e-5)


def test_an_empty_region_is_nan_and_a_wrong_size_is_refused(pair: tuple[Frames, Frames]) -> None:
    truth, predicted = pair
    nothing = np.zeros(truth.shape[1:3], bool)
    for measure in (psnr, ssim, ms_ssim, gmsd):
        assert np.isnan(measure(truth, predicted, nothing)).all()
        with pytest.raises(InputError, match="equal stacks"):
            measure(truth, predicted[:, ::2])
        with pytest.raises(InputError, match="8-bit"):
            measure(truth, predicted.astype(np.float32))


def test_ms_ssim_forgives_a_fine_blur_more_than_ssim_and_falls_with_damage(
    pair: tuple[Frames, Frames],
) -> None:
    truth, predicted = pair
    assert ms_ssim(truth, predicted)[1] > ssim(truth, predicted)[1]
    blurs = [np.stack([cv2.GaussianBlur(truth[0], (0, 0), s)]) for s in (1, 2, 4)]
    values = [ms_ssim(truth[:1], soft)[0] for soft in blurs]
    assert 1 > values[0] > values[1] > values[2] > 0
    small = np.ascontiguousarray(truth[:, ::4, ::4])  # 48 px: three scales
    np.testing.assert_allclose(ms_ssim(small, small), 1, atol=1e-6)


def test_ms_ssim_of_a_brightness_shift_is_the_luminance_term_alone() -> None:
    flat, brighter = (np.full((1, 176, 176, 3), value, np.uint8) for value in (100, 120))
    floor = (0.01 * 255) ** 2
    luminance = (2 * 100 * 120 + floor) / (100**2 + 120**2 + floor)
    np.testing.assert_allclose(ms_ssim(flat, brighter), luminance**0.1333, atol=1e-5)


def test_gmsd_agrees_with_the_paper(pair: tuple[Frames, Frames]) -> None:
    """Xue 2014 in plain numpy; OpenCV treats only the border pixels differently."""
    planes = []
    for frame in (pair[0][0], pair[1][1]):
        grey = np.rint(frame @ np.array([0.299, 0.587, 0.114])).astype(np.float64)
        half = (grey[::2, ::2] + grey[1::2, ::2] + grey[::2, 1::2] + grey[1::2, 1::2]) / 4
        across = sum(half[i : i + 94, 2:] - half[i : i + 94, :-2] for i in range(3)) / 3
        down = sum(half[2:, i : i + 94] - half[:-2, i : i + 94] for i in range(3)) / 3
        planes.append(np.hypot(across, down))
    similarity = (2 * planes[0] * planes[1] + 170) / (planes[0] ** 2 + planes[1] ** 2 + 170)
    inside = np.zeros((192, 192), bool)
    inside[2:-2, 2:-2] = True
    np.testing.assert_allclose(gmsd(*pair, inside)[1], similarity.std(), atol=2e-3)


def test_blur_grows_with_blur_and_needs_some_pixels(pair: tuple[Frames, Frames]) -> None:
    truth, _ = pair
    soft = np.stack([cv2.GaussianBlur(truth[0], (0, 0), sigma) for sigma in (1, 3)])
    assert blur(truth)[0] < blur(soft)[0] < blur(soft)[1]
    tiny = np.zeros((192, 192), bool)
    tiny[5:10, 5:10] = True
    assert np.isnan(blur(truth, tiny)).all()


def _lpips_weights() -> dict[str, torch.Tensor]:
    """Deterministic stand-ins: any machine makes the same numbers."""
    shapes = ((64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))
    weights = {}
    for level, (index, shape) in enumerate(zip((0, 3, 6, 8, 10), shapes, strict=True)):
        count = int(np.prod(shape))
        wave = np.sin(np.arange(count) * (0.37 + 0.11 * level)) / np.sqrt(count / shape[0])
        weights[f"features.{index}.weight"] = torch.from_numpy(wave.astype(np.float32).reshape(shape))
        weights[f"features.{index}.bias"] = torch.full((shape[0],), 0.01 * (level + 1))
        head = np.abs(np.cos(np.arange(shape[0]) * 0.7)).astype(np.float32) / shape[0]
        weights[f"lin{level}.model.1.weight"] = torch.from_numpy(head.reshape(1, -1, 1, 1))
    return weights


def test_landmark_distances(landmarks: NDArray[np.float64]) -> None:
    moved = landmarks.copy()
    moved[:, :, 0] += 3
    moved[:, :, 1] += 4
    moved[2] = np.nan
    np.testing.assert_allclose(landmark_distance_px(landmarks, moved), [5, 5, np.nan, 5, 5, 5])
    np.testing.assert_allclose(normalized_landmark_distance(landmarks, moved, (1, 2))[0], 100 * 5 / 40)
    with pytest.raises(InputError, match="same shape"):
        landmark_distance_px(landmarks, moved[:3])


def test_pose_and_expression_errors(landmarks: NDArray[np.float64]) -> None:
    from omokage.geometry.camera import rotation_matrix

    turns = np.array([[0, 0, 0], [0, 0.3, 0], [0.2, 0, -0.1], [0, 0, 0.5], [0, -0.4, 0], [0.1, 0.1, 0.1]])
    np.testing.assert_allclose(pose_error_deg(turns, turns), 0, atol=1e-5)
    np.testing.assert_allclose(pose_error_deg(turns, np.zeros_like(turns))[1], np.degrees(0.3))
    turned = landmarks @ np.swapaxes(rotation_matrix(turns), 1, 2) * 1.3 + [20.0, 5.0, 0.0]
    turned[5] = np.nan
    recovered = rotation_from_landmarks(turned, landmarks[0])
    np.testing.assert_allclose(recovered[:5], turns[:5], atol=1e-9)
    assert np.isnan(recovered[5]).all() and np.isnan(pose_error_deg(turns, recovered)[5])
    flat = landmarks * [1, 1, 0]  # without depth a mirrored face fits as well: it must not be taken
    rolled = flat @ np.swapaxes(rotation_matrix(turns), 1, 2)
    np.testing.assert_allclose(rotation_from_landmarks(rolled, flat[0])[[0, 3]], turns[[0, 3]], atol=1e-9)
    mirrored = landmarks * [1, 1, -1]
    assert np.linalg.norm(rotation_from_landmarks(mirrored, landmarks[0])[0]) < np.radians(60)
    weights = np.zeros((2, 52))
    np.testing.assert_allclose(expression_error(weights, weights + np.array([[0.1], [0.2]])), [0.1, 0.2])


def test_jitter_ignores_steady_movement_and_sees_shaking(landmarks: NDArray[np.float64]) -> None:
    steady = landmarks.copy()
    steady[..., 0] += 2 * np.arange(6)[:, None]
    assert jitter_px(steady) == pytest.approx(0, abs=1e-9)
    shaking = landmarks.copy()
    shaking[::2, :, 1] += 1.0
    assert jitter_px(shaking) == pytest.approx(2.0)
    assert np.isnan(jitter_px(np.full_like(landmarks, np.nan)))


def test_flicker_is_measured_where_the_truth_is_still() -> None:
    rng = np.random.default_rng(3)
    truth = np.full((8, 32, 32, 3), 100, np.uint8)
    truth[:, :, 16:] = rng.integers(0, 255, (8, 32, 16, 3))  # moves: does not count
    predicted = np.full_like(truth, 110)  # another brightness, but steady: no flicker
    assert flicker(truth, predicted) == pytest.approx(0, abs=1e-4)
    breathing = predicted.copy()
    breathing[::2] = 114
    assert flicker(truth, breathing) == pytest.approx(2.0, abs=1e-4)
    left = np.zeros((32, 32), bool)
    left[:, :16] = True
    assert background_variance(predicted, left) == 0.0
    assert background_variance(breathing, left) == pytest.approx(4.0, abs=1e-3)
    assert np.isnan(background_variance(breathing, ~left & left)) and np.isnan(
        flicker(truth[..., :], predicted, ~left)
    )


def test_identity_similarity_uses_the_given_network(pair: tuple[Frames, Frames]) -> None:
    truth, predicted = pair

    def embed(image: Frames) -> NDArray[np.float64] | None:
        return None if image.mean() < 1 else image.mean(axis=(0, 1)).astype(np.float64)

    black = predicted.copy()
    black[1] = 0
    values = identity_similarity(truth, black, embed)
    assert values[0] == pytest.approx(1, abs=1e-3) and np.isnan(values[1])


def test_lpips_from_a_weight_file(pair: tuple[Frames, Frames], tmp_path: Path) -> None:
    path = tmp_path / "lpips.safetensors"
    save_file(_lpips_weights(), path)
    distance = Lpips.load(path)
    truth, predicted = pair
    assert distance(truth, truth).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(distance(truth, predicted), [LPIPS_NOISY, LPIPS_BLURRED], rtol=1e-4)
    partial = {name: value for name, value in _lpips_weights().items() if name != "lin3.model.1.weight"}
    save_file(partial, path)
    with pytest.raises(InputError, match=r"lacks the tensor 'lin3.model.1.weight'"):
        Lpips.load(path)
    path.write_bytes(b"not weights")
    with pytest.raises(InputError, match="not a readable safetensors"):
        Lpips.load(path)
