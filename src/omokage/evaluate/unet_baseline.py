"""Baseline 4: a plain U-Net that paints the frame from a drawing of the landmarks, with the avatar's size and time."""

from __future__ import annotations

import time
from bisect import bisect_left

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import Delaunay
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.evaluate.baselines import PredictFn
from omokage.evaluate.protocol import HeldOut
from omokage.metrics.image import Frames
from omokage.metrics.motion import (
    FACE_OVAL,
    LEFT_EYE,
    LEFT_IRIS,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE,
    RIGHT_IRIS,
    Landmarks,
)

DRAWING_CHANNELS = (
    8  # mesh lines, oval, lips, inside of the mouth, eyes, irises, and the two picture coordinates
)
DEPTH = 4  # times the resolution is halved
BATCH = 4
LEAK = 0.1
LEARNING_RATE = 1e-3
SUBPIXEL_BITS = 3  # drawing positions to 1/8 px, so that small movements are visible


class PlainUnet(nn.Module):
    """Drawing (B, 8, S, S) in [0, 1] -> RGB (B, 3, S, S) in [0, 1]; S divisible by 32.

    It works on 2 x 2 pixel blocks, which quarters its cost: within a time budget on a CPU that makes it better.
    """

    def __init__(self, base_channels: int) -> None:
        super().__init__()
        widths = [min(base_channels * 2**level, base_channels * 8) for level in range(DEPTH + 1)]
        self.enter = _double_convolution(DRAWING_CHANNELS * 4, widths[0])
        self.down = nn.ModuleList(_double_convolution(widths[i], widths[i + 1]) for i in range(DEPTH))
        self.up = nn.ModuleList(
            _double_convolution(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(DEPTH))
        )
        self.leave = nn.Conv2d(widths[0], 3 * 4, kernel_size=1)
        for layer in self.modules():
            if isinstance(
                layer, nn.Conv2d
            ):  # torch's default shrinks the signal and costs minutes of training
                nn.init.kaiming_normal_(layer.weight, a=LEAK)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, drawing: Tensor) -> Tensor:
        features = self.enter(F.pixel_unshuffle(drawing, 2))
        skips = []
        for block in self.down:
            skips.append(features)
            features = block(F.max_pool2d(features, 2))
        for block in self.up:
            features = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = block(torch.cat([features, skips.pop()], dim=1))
        return torch.sigmoid(F.pixel_shuffle(self.leave(features), 2))


def parameter_count(base_channels: int) -> int:
    """Trainable numbers of the U-Net of this width."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PlainUnet(base_channels).parameters())


def width_for(parameters: int) -> int:
    """The `base_channels`, 4 to 128, whose U-Net comes nearest to this many parameters."""
    widths = range(4, 129)
    # A wider one has more; to build all of them takes seconds.
    above = bisect_left(widths, parameters, key=parameter_count)
    return min(
        widths[max(above - 1, 0) : above + 1], key=lambda width: abs(parameter_count(width) - parameters)
    )


def train_plain_unet(
    held_out: HeldOut,
    *,
    seconds: float,
    base_channels: int,
    seed: int,
    max_steps: int | None = None,
    device: str = "cpu",
    on_progress: ProgressCallback = ignore_progress,
) -> PredictFn:
    """Train on the training part with L1, Adam and batches of 4 for `seconds`; returns the method for `predict`.

    device: where it is trained; torch's current thread count is used, as for the avatar. `max_steps` ends earlier, for
    repeatable results.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    mesh = _mesh_edges(held_out.train_landmarks)
    model = PlainUnet(base_channels).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    start, step = time.monotonic(), 0
    while (elapsed := time.monotonic() - start) < seconds and (max_steps is None or step < max_steps):
        spent = elapsed / seconds if max_steps is None else step / max_steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (0.05 + 0.95 * np.cos(0.5 * np.pi * spent))
        rows = rng.integers(len(held_out.train_frames), size=BATCH)
        drawings = _drawings(held_out.train_landmarks[rows], held_out.size, mesh)
        truth = torch.from_numpy(held_out.train_frames[rows]).to(device).permute(0, 3, 1, 2).float() / 255
        loss = F.l1_loss(model(drawings.to(device)), truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        on_progress(
            Progress("training the plain U-Net", elapsed, seconds, f"step {step}, L1 {loss.item():.4f}")
        )
    model.eval()

    def paint(question: HeldOut) -> Frames:
        with torch.inference_mode():
            pictures = [
                _to_bytes(
                    model(_drawings(question.test_landmarks[t : t + BATCH], question.size, mesh).to(device))
                )
                for t in range(0, len(question.test_landmarks), BATCH)
            ]
        return np.concatenate(pictures)

    return paint


def _to_bytes(pictures: Tensor) -> Frames:
    frames = pictures.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(frames.cpu().numpy())


def draw_landmarks(landmarks: Landmarks, size: int, mesh: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The U-Net's input for one frame: landmarks (478, 2+) px -> uint8 (8, size, size).

    `mesh`: (E, 2), the pairs of landmarks that are joined by a line.
    """
    points = np.rint((landmarks[:, :2] - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)
    drawing = np.zeros((DRAWING_CHANNELS, size, size), np.uint8)
    cv2.polylines(
        drawing[0], list(points[mesh]), isClosed=False, color=255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS
    )
    outlines = ((FACE_OVAL,), (LIPS_OUTER,), (LIPS_INNER,), (LEFT_EYE, RIGHT_EYE), (LEFT_IRIS, RIGHT_IRIS))
    for channel, loops in enumerate(outlines, start=1):
        cv2.fillPoly(
            drawing[channel], [points[list(loop)] for loop in loops], 255, cv2.LINE_AA, SUBPIXEL_BITS
        )
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    drawing[6], drawing[7] = ramp[None, :], ramp[:, None]
    return drawing


def _drawings(landmarks: Landmarks, size: int, mesh: NDArray[np.int64]) -> Tensor:
    stack = np.stack([draw_landmarks(points, size, mesh) for points in landmarks])
    return torch.from_numpy(stack).float().div_(255).contiguous(memory_format=torch.channels_last)


def _mesh_edges(landmarks: Landmarks) -> NDArray[np.int64]:
    """Edges (E, 2) of the triangulated mean face."""
    triangles = Delaunay(landmarks[..., :2].astype(np.float64).mean(axis=0)).simplices
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.unique(np.sort(edges, axis=1), axis=0).astype(np.int64)


def _double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1),
        nn.LeakyReLU(LEAK, inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1),
        nn.LeakyReLU(LEAK, inplace=True),
    )
