"""What the pictures of an avatar at the paper's scale are computed from: `AvatarNetworks`.

Nothing of files and of people is here, so that whatever draws needs no more than PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from omokage.avatar.paper.config import PortraitConfig
from omokage.avatar.paper.portrait import NoiseMaps, Portrait, PortraitGenerator
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.time_code import time_code
from omokage.avatar.paper.window import centred, cut_background, face_cells, to_cells


@dataclass(frozen=True)
class AvatarNetworks:
    """face, background: textures of G x G cells, batch of 1.  noise: kept, so that a picture comes out the same every
    time; official checkpoints have none.  time: whose code draws every picture.
    """

    generator: PortraitGenerator
    face: Texture
    background: Texture
    noise: NoiseMaps
    time: float

    @property
    def config(self) -> PortraitConfig:
        return self.generator.config

    @property
    def size(self) -> int:
        """Side of its pictures, pixels."""
        return self.config.size

    def to(self, device: torch.device) -> Self:
        """The same with all that draws on a device; the generator itself moves there."""

        def moved(record: Any) -> Any:
            return replace(record, **{f.name: getattr(record, f.name).to(device) for f in fields(record)})

        return replace(
            self,
            generator=self.generator.to(device),
            face=moved(self.face),
            background=moved(self.background),
            noise=moved(self.noise),
        )

    @torch.no_grad()
    def draw(self, render: Tensor, uv: Tensor) -> Portrait:
        """The pictures for drawn face meshes, as the preprocessing of its training draws them.

        render, uv: (B, 3, S/4, S/4) in [-1, 1], black where there is no face; red and green of `uv` are the place in
        the face's texture, its blue is above -1 on the face.
        """
        cells = to_cells(uv)
        times = torch.full((len(render), 1), self.time, device=render.device)
        code = time_code(times, self.config.style.size)
        portrait: Portrait = self.generator(
            render,
            cells[:, :2],
            face_cells(cells),
            self.face,
            self.background_in_window,
            code,
            noise=self.noise,
        )
        return portrait

    @cached_property
    def background_in_window(self) -> Texture:
        """The background's texture, cut by the centred window."""
        middle = centred(self.config.grid)
        return Texture(
            cut_background(self.background.features, middle), cut_background(self.background.bands, middle)
        )
