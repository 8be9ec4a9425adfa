"""Learn how hair and shoulders follow the head, before any network is trained.

The sheet's geometry is a guess, so its texture, averaged over frames, is blurred where the guess is wrong. Optical flow
from the explicit picture to the true frame says by how much; a ridge regression of that flow on the pose gives each
point of the sheet a linear response, the texture is averaged again, now sharper, and so on for a few rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import Conditioner
from omokage.avatar.sheet import POSE_FEATURES, RING_SCALES
from omokage.avatar.texture import Sample, UInt8, estimate_plate, explicit_portrait, unproject_texture
from omokage.config import Progress, ProgressCallback, ignore_progress

ROUNDS = 5
MAX_FRAMES = 64
RIDGE = 2.0


@dataclass(frozen=True)
class ExplicitAvatar:
    """The avatar without a network: how to draw it, its atlas uint8 (A, 2A, 4) and its plate uint8 (S, S, 3)."""

    conditioner: Conditioner
    atlas: UInt8
    plate: UInt8

    def portrait(self, sample_state: Sample) -> UInt8:
        """Its picture of a state, uint8 (S, S, 3)."""
        warp = self.conditioner.draw(sample_state.state).warp
        return explicit_portrait(self.atlas, warp, self.plate)


def build_explicit(
    conditioner: Conditioner, samples: Sequence[Sample], *, on_progress: ProgressCallback = ignore_progress
) -> ExplicitAvatar:
    """Plate, texture and the sheet's response from the frames of a recording."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, MAX_FRAMES).astype(int))]
    plate = estimate_plate(np.stack([s.image for s in chosen]), np.stack([s.matte for s in chosen]))
    on_progress(Progress("first picture", 0, ROUNDS + 1))
    conditioner = _choose_torso(conditioner, chosen, plate)
    for round_ in range(ROUNDS):
        on_progress(Progress("first picture", round_ + 1, ROUNDS + 1))
        conditioner = _refine(conditioner, chosen, plate)
    on_progress(Progress("first picture", ROUNDS + 1, ROUNDS + 1))
    return ExplicitAvatar(conditioner, unproject_texture(conditioner, chosen), plate)


def _choose_torso(conditioner: Conditioner, samples: Sequence[Sample], plate: UInt8) -> Conditioner:
    """Follow the tracked torso only where it helps: learned on the first three quarters, judged on the last.

    Shoulders with texture are tracked well and gain 0.7 dB (talk-c); under long hair the tracker sees the hair, and
    following it costs 0.5 dB (talk-b).
    """
    border = max(1, len(samples) * 3 // 4)
    early, late = samples[:border:2], samples[border:] or samples

    def error(weight: float) -> float:
        trial = conditioner.with_sheet(replace(conditioner.sheet, torso_weight=weight))
        for _ in range(2):
            trial = _refine(trial, early, plate)
        atlas = unproject_texture(trial, early)
        pictures = [explicit_portrait(atlas, trial.draw(s.state).warp, plate) for s in late]
        return float(
            np.mean(
                [
                    np.square(p.astype(np.float32) - s.image).mean()
                    for p, s in zip(pictures, late, strict=True)
                ]
            )
        )

    return conditioner.with_sheet(replace(conditioner.sheet, torso_weight=min((1.0, 0.0), key=error)))


def _refine(conditioner: Conditioner, samples: Sequence[Sample], plate: UInt8) -> Conditioner:
    """One round: texture, flow, regression."""
    atlas = unproject_texture(conditioner, samples[::2])
    flows = [_flow_at_points(conditioner, atlas, plate, sample) for sample in samples]
    response = _regress(conditioner, samples, flows)
    return conditioner.with_sheet(replace(conditioner.sheet, response=response))


def _flow_at_points(
    conditioner: Conditioner, atlas: UInt8, plate: UInt8, sample: Sample
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each sheet point (N,) should move, (N, 2) in output pixels, and how sure that is, (N,) in [0, 1]."""
    size = conditioner.config.size
    picture = explicit_portrait(atlas, conditioner.draw(sample.state).warp, plate)
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (picture, sample.image)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(gray[0], gray[1], None)  # type: ignore[call-overload]
    points, _ = conditioner.project(sample.state)
    x, y = (points[len(conditioner.model.neutral) :, :2].T - 0.5).astype(np.float32)[:, :, None]
    smooth = cv2.GaussianBlur(flow, (0, 0), size / 128)
    matte = cv2.GaussianBlur(sample.matte, (0, 0), size / 85).astype(np.float32) / 255
    inside = (x > 2) & (y > 2) & (x < size - 3) & (y < size - 3)
    moved = cv2.remap(smooth, x, y, cv2.INTER_LINEAR)[:, 0]
    certainty = cv2.remap(matte, x, y, cv2.INTER_LINEAR)[:, 0] * inside[:, 0]
    return moved.astype(np.float64), certainty.astype(np.float64)


def _regress(
    conditioner: Conditioner,
    samples: Sequence[Sample],
    flows: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """The sheet's new response (N, 11, 2): what it was, plus the flow explained by the pose."""
    sheet = conditioner.sheet
    scale = conditioner.config.size / conditioner.crop.side
    features = np.stack([sheet.pose_features(s.state.pose) for s in samples])
    per_head = np.array([sheet.pixels_per_head(s.state.pose) * scale for s in samples])
    moved = np.stack([flow for flow, _ in flows]) / per_head[:, None, None]
    sure = np.stack([certainty for _, certainty in flows])
    target = moved + np.einsum("tk,nkc->tnc", features, sheet.response)
    ridge = RIDGE * np.eye(POSE_FEATURES)
    ridge[0, 0] /= 4
    left = np.einsum("tn,tk,tl->nkl", sure, features, features) + ridge
    right = np.einsum("tn,tk,tnc->nkc", sure, features, target)
    response = np.linalg.solve(left, right).reshape(len(RING_SCALES), -1, POSE_FEATURES, 2)
    around = (np.roll(response, 1, axis=1) + 2 * response + np.roll(response, -1, axis=1)) / 4
    return np.asarray(around.reshape(-1, POSE_FEATURES, 2))
