"""Reading back: the landmark network looks at the avatar's own picture, and what it misreads is corrected.

A texture learned from many frames puts lips and lids of one frame a little beside where they were told to be, and the
network moves the lips once more. So the picture is drawn without network, its landmarks are compared with the face
model that it was drawn from, and the skin detail moves by a part of the difference; then the same for the lips in the
network's picture (analysis by synthesis, two steps of it). Lips come out a third nearer to the driver's
(docs/research/avatar-ablations.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import AvatarState
from omokage.geometry.camera import rotation_matrix
from omokage.media.clip import Image
from omokage.render.lookup import Texture, compose, pull_portrait
from omokage.render.renderer import Renderer
from omokage.tracking.detail import SKIN_COUNT, displacement, lips_share
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.observation import SETTLING_RUNS

GAIN = 0.5  # of the difference: more costs pixels for landmarks


class ReadBack:
    """Corrects the states of one film of an avatar, frame after frame, for this renderer."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self._avatar = renderer, renderer.avatar
        self._texture = Texture.of(self._avatar.generator)
        self._explicit_reader, self._network_reader = _Reader(), _Reader()
        cell, grid = self._avatar.size // self._avatar.config.grid, self._avatar.config.grid
        self._no_offset = np.zeros((2, grid, grid), dtype=np.float32)
        self._no_residual = np.zeros((4 * cell * cell, grid, grid), dtype=np.float32)

    def corrected(self, state: AvatarState) -> AvatarState:
        """The state whose picture looks as `state` says; unchanged where no face is found in the picture."""
        told = self._avatar.conditioner.project(state)[0][:SKIN_COUNT]
        state = self._moved(state, told, self._explicit_reader.read(self._explicit(state)), 1.0)
        return self._moved(state, told, self._network_reader.read(self._network(state)), lips_share())

    def _explicit(self, state: AvatarState) -> Image:
        condition = self._avatar.conditioner.draw(state)
        texture = self._texture.mixed(condition.mixture)
        portrait = pull_portrait(texture, condition.warp, self._no_offset, self._no_residual)
        return compose(portrait, self._avatar.plate)[0]

    def _network(self, state: AvatarState) -> Image:
        portrait = self._renderer.runtime.portrait(self._avatar.conditioner.draw(state))
        return compose(portrait, self._avatar.plate)[0]

    def _moved(
        self,
        state: AvatarState,
        told: NDArray[np.float64],
        seen: NDArray[np.float32] | None,
        share: NDArray[np.float64] | float,
    ) -> AvatarState:
        """The state with its skin moved from where it is seen (478, 3) towards where it was told to be (468, 3)."""
        if seen is None:
            return state
        conditioner = self._avatar.conditioner
        scale = conditioner.sheet.camera.focal_px * self._avatar.size / conditioner.crop.side
        missed = (told[:, :2] - seen[:SKIN_COUNT, :2]) * told[:, 2:] / scale
        detail = 0.0 if state.detail is None else state.detail
        move = GAIN * share * displacement(missed, rotation_matrix(state.pose.rotation))
        return replace(state, detail=detail + move)


class _Reader:
    """Landmarks of one film of pictures."""

    def __init__(self) -> None:
        self._backend: LandmarkBackend = MediaPipeLandmarks()
        self._is_first = True

    def read(self, picture: Image) -> NDArray[np.float32] | None:
        """(478, 3), or None where no face is found."""
        for _ in range(SETTLING_RUNS if self._is_first else 0):  # as tracking does with a new face
            self._backend.detect(picture)
        self._is_first = False
        faces = self._backend.detect(picture)
        return faces[0].points if faces else None
