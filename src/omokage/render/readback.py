"""Reading back: the landmark network looks at the avatar's own picture, and what it misreads is corrected.

A texture learned from many frames puts lips and lids of one frame a little beside where they were told to be. The
picture without network is drawn, its landmarks are compared with the face model that it was drawn from, and the skin
detail moves by a part of the difference (analysis by synthesis, one step of it). The landmarks of what comes out are a
quarter nearer to the driver's, the mouth's pixels too (docs/research/avatar-ablations.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import AvatarState
from omokage.geometry.camera import rotation_matrix
from omokage.render.lookup import Texture, compose, pull_portrait
from omokage.tracking.detail import SKIN_COUNT, displacement
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.tracker import SETTLING_RUNS

GAIN = 0.5  # of the difference: a second step, or a full one, costs pixels for landmarks


class ReadBack:
    """Corrects the states of one film of an avatar, frame after frame."""

    def __init__(self, avatar: Avatar, backend: LandmarkBackend | None = None) -> None:
        self._avatar, self._texture = avatar, Texture.of(avatar.generator)
        self._backend = backend or MediaPipeLandmarks()
        self._is_first = True
        cell, grid = avatar.size // avatar.config.grid, avatar.config.grid
        self._no_offset = np.zeros((2, grid, grid), dtype=np.float32)
        self._no_residual = np.zeros((4 * cell * cell, grid, grid), dtype=np.float32)

    def corrected(self, state: AvatarState) -> AvatarState:
        """The state whose picture looks as `state` says; unchanged where no face is found in the picture."""
        conditioner, camera = self._avatar.conditioner, self._avatar.conditioner.sheet.camera
        condition = conditioner.draw(state)
        texture = self._texture.mixed(condition.mixture)
        portrait = pull_portrait(texture, condition.warp, self._no_offset, self._no_residual)
        picture = compose(portrait, self._avatar.plate)[0]
        for _ in range(SETTLING_RUNS if self._is_first else 0):  # as tracking does with a new face
            self._backend.detect(picture)
        self._is_first = False
        faces = self._backend.detect(picture)
        if not faces:
            return state
        told = conditioner.project(state)[0][:SKIN_COUNT]
        scale = camera.focal_px * self._avatar.size / conditioner.crop.side
        missed = (told[:, :2] - faces[0].points[:SKIN_COUNT, :2]) * told[:, 2:] / scale
        detail = 0.0 if state.detail is None else state.detail
        return replace(
            state, detail=detail + GAIN * displacement(missed, rotation_matrix(state.pose.rotation))
        )
