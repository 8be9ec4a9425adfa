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
import torch
from numpy.typing import NDArray

from omokage.avatar.appearance import Appearance
from omokage.avatar.conditioning import AvatarState, Conditioner
from omokage.avatar.generator import Generator
from omokage.avatar.sheet import POSE_FEATURES, RESPONSE_FEATURES, RING_SCALES
from omokage.avatar.texture import (
    Float32,
    Sample,
    UInt8,
    estimate_plate,
    explicit_portrait,
    mix_texture,
    side_by_side,
    texture_modes,
    unproject_texture,
)
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.tracking.face_track import BLENDSHAPES

ROUNDS = 4
MAX_FRAMES = 64
MAX_KEYS = 128
# Key frames nearer in time than this part of the recording do not help to draw a frame in training.
LEFT_OUT = 20
RIDGE = 0.25


@dataclass(frozen=True)
class ExplicitAvatar:
    """The avatar without a network: how to draw it, its atlas uint8 (A, 2A, 4), what changes in it, float32
    (K, A / 2, A, 4) in units of 255, and its plate uint8 (S, S, 3)."""

    conditioner: Conditioner
    atlas: UInt8
    modes: Float32
    plate: UInt8

    def portrait(self, state: AvatarState) -> UInt8:
        """Its picture of a state, uint8 (S, S, 3)."""
        condition = self.conditioner.draw(state)
        atlas = mix_texture(self.atlas, self.modes, condition.mixture)
        return explicit_portrait(atlas, condition.warp, self.plate)

    def generator(self) -> Generator:
        """A network that adds nothing yet to this composition."""
        generator = Generator(self.conditioner.config)
        with torch.no_grad():
            generator.colors.copy_(torch.from_numpy(self.atlas).permute(2, 0, 1)[None] / 255)
            generator.modes.copy_(torch.from_numpy(self.modes).permute(0, 3, 1, 2))
        return generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_explicit(
    conditioner: Conditioner, samples: Sequence[Sample], *, on_progress: ProgressCallback = ignore_progress
) -> ExplicitAvatar:
    """Plate, texture, its modes and the sheet's response from the frames of a recording."""
    chosen = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, MAX_FRAMES).astype(int))]
    plate = estimate_plate(np.stack([s.image for s in chosen]), np.stack([s.matte for s in chosen]))
    on_progress(Progress("first picture", 0, ROUNDS + 2))
    for round_ in range(ROUNDS):
        on_progress(Progress("first picture", round_ + 1, ROUNDS + 2))
        conditioner = _refine(conditioner, chosen, plate)
    explicit = paint(conditioner, samples, chosen, plate)
    on_progress(Progress("first picture", ROUNDS + 1, ROUNDS + 2))
    # Once more with the texture that changes: nearer to the frames, it shows better where they still move.
    explicit = paint(_refine_closely(explicit, samples), samples, chosen, plate)
    on_progress(Progress("first picture", ROUNDS + 2, ROUNDS + 2))
    return explicit


def left_out_mixtures(conditioner: Conditioner, samples: Sequence[Sample]) -> NDArray[np.float32]:
    """Strengths of the texture's modes for every sample (N, 2, K), without the key frames next to it in time.

    The frame itself and its neighbors tell what it looks like; in use there are none.
    """
    if conditioner.appearance is None:
        return np.stack([conditioner.mixture(sample.state) for sample in samples])
    keys, reach = key_rows(len(samples)), len(samples) / LEFT_OUT
    mixtures = [
        conditioner.appearance.mixture_without(
            conditioner.pose_features(sample.state),
            sample.state.expression,
            np.flatnonzero(abs(keys - row) <= reach),
        )
        for row, sample in enumerate(samples)
    ]
    return np.stack(mixtures)


def key_rows(count: int) -> NDArray[np.int64]:
    """Which of `count` samples are key frames of the appearance."""
    return np.unique(np.linspace(0, count - 1, MAX_KEYS).astype(np.int64))


def paint(
    conditioner: Conditioner, samples: Sequence[Sample], chosen: Sequence[Sample], plate: UInt8
) -> ExplicitAvatar:
    """Mean texture from the chosen frames, its modes from the key frames among all samples."""
    atlas = unproject_texture(conditioner, chosen)
    keys = [samples[i] for i in key_rows(len(samples))]
    modes, strengths = texture_modes(conditioner, keys, atlas)
    poses = np.stack([conditioner.pose_features(s.state) for s in keys])
    appearance = Appearance(poses, np.stack([s.state.expression for s in keys]), strengths)
    return ExplicitAvatar(conditioner.with_appearance(appearance), atlas, modes, plate)


def _refine(conditioner: Conditioner, samples: Sequence[Sample], plate: UInt8) -> Conditioner:
    """One round: texture, flow, regression."""
    atlas = unproject_texture(conditioner, samples[::2])

    def flow(sample: Sample) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        picture = explicit_portrait(atlas, conditioner.draw(sample.state).warp, plate)
        return _flow_at_points(conditioner, picture, sample)

    return _with_response(conditioner, samples, list(side_by_side(flow, samples)))


def _refine_closely(explicit: ExplicitAvatar, samples: Sequence[Sample]) -> Conditioner:
    """One round against pictures with the texture that changes, drawn as if each frame had not been recorded."""
    conditioner, rows = explicit.conditioner, key_rows(len(samples))
    mixtures = left_out_mixtures(conditioner, samples)

    def flow(row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        atlas = mix_texture(explicit.atlas, explicit.modes, mixtures[row])
        picture = explicit_portrait(atlas, conditioner.draw(samples[row].state).warp, explicit.plate)
        return _flow_at_points(conditioner, picture, samples[row])

    return _with_response(conditioner, [samples[row] for row in rows], list(side_by_side(flow, rows)))


def _flow_at_points(
    conditioner: Conditioner, picture: UInt8, sample: Sample
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each sheet point (N,) should move, (N, 2) in output pixels, and how sure that is, (N,) in [0, 1]."""
    size = conditioner.config.size
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


def _with_response(
    conditioner: Conditioner,
    samples: Sequence[Sample],
    flows: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> Conditioner:
    """The sheet's new response (N, 59, 2): what it was, plus the flow explained by pose and expression."""
    sheet = conditioner.sheet
    scale = conditioner.config.size / conditioner.crop.side
    features = np.stack([sheet.features(s.state.pose, s.state.expression) for s in samples])
    per_head = np.array([sheet.pixels_per_head(s.state.pose) * scale for s in samples])
    moved = np.stack([flow for flow, _ in flows]) / per_head[:, None, None]
    sure = np.stack([certainty for _, certainty in flows])
    target = moved + np.einsum("tk,nkc->tnc", features, sheet.response)
    ridge = np.diag([RIDGE / 4] + [RIDGE] * (POSE_FEATURES - 1) + [RIDGE / 2] * len(BLENDSHAPES))
    weighted = sure.T[:, None] * features.T  # (N, 59, T)
    left = weighted @ features + ridge
    right = weighted @ target.transpose(1, 0, 2)
    response = np.linalg.solve(left, right).reshape(len(RING_SCALES), -1, RESPONSE_FEATURES, 2)
    around = (np.roll(response, 1, axis=1) + 2 * response + np.roll(response, -1, axis=1)) / 4
    return conditioner.with_sheet(replace(sheet, response=around.reshape(-1, RESPONSE_FEATURES, 2)))
