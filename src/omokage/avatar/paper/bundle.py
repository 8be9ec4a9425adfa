"""`PaperAvatar`: a StyleAvatar of one person in an avatar file of kind "styleavatar" (docs/avatar-format.md).

Tensors `generator.*` (averaged weights), `textures.<part>.features` and `.bands`, `noise.<part>`, and, if they were
kept, `training.<network>.*`; in the header the architecture, the time whose code draws every picture,
and where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from omokage.avatar.container import FIRST_WITH_KINDS, STYLEAVATAR, Content, read_content, write_content
from omokage.avatar.paper.checkpoint import State
from omokage.avatar.paper.config import PortraitConfig
from omokage.avatar.paper.portrait import NoiseMaps, Portrait, PortraitGenerator
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.time_code import time_code
from omokage.avatar.paper.window import centred, cut_background, face_cells, to_cells
from omokage.errors import BundleError


@dataclass(frozen=True)
class Origin:
    """checkpoint: name of the official file, no folder.  sha256: of that file.  omokage: version that imported it."""

    checkpoint: str
    sha256: str
    omokage: str


@dataclass(frozen=True)
class PaperAvatar:
    """A person in StyleAvatar's own networks.

    face, background: textures of G x G cells, batch of 1.  noise: kept, so that a picture comes out the same every
    time; official checkpoints have none.  time: whose code draws every picture.  training: weights that more
    training starts from, by network, {} when they were not kept.
    """

    generator: PortraitGenerator
    face: Texture
    background: Texture
    noise: NoiseMaps
    time: float
    origin: Origin
    training: Mapping[str, State] = field(default_factory=dict)

    @property
    def config(self) -> PortraitConfig:
        return self.generator.config

    @torch.no_grad()
    def draw(self, render: Tensor, uv: Tensor) -> Portrait:
        """The pictures for drawn face meshes, as the official preprocessing draws them.

        render, uv: (B, 3, S/4, S/4) in [-1, 1], black where there is no face; red and green of `uv` are the place in
        the face's texture, its blue is above -1 on the face.
        """
        cells = to_cells(uv)
        code = time_code(torch.full((len(render), 1), self.time, device=render.device))
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

    def save(self, path: Path) -> None:
        """Write the file, atomically. Raises OutputError when it cannot be written."""
        tensors = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        for part, texture in (("face", self.face), ("background", self.background)):
            tensors |= {f"textures.{part}.{f.name}": getattr(texture, f.name) for f in fields(Texture)}
        tensors |= {f"noise.{f.name}": getattr(self.noise, f.name) for f in fields(NoiseMaps)}
        for network, state in self.training.items():
            tensors |= {f"training.{network}.{name}": value for name, value in state.items()}
        header = {"config": self.config.to_json(), "time": self.time, "origin": asdict(self.origin)}
        write_content(path, Content(FIRST_WITH_KINDS, STYLEAVATAR, header, tensors))

    @classmethod
    def load(cls, path: Path) -> PaperAvatar:
        """Read a file. Raises BundleError when it is missing, damaged, foreign, of another kind or a newer version."""
        content = read_content(Path(path))
        if content.kind != STYLEAVATAR:
            raise BundleError(
                f"{path} is an avatar of 'omokage create', not an imported StyleAvatar; drive it with 'omokage reenact'"
            )
        try:
            return _assemble(content)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"{path} is damaged ({error}); import the checkpoint again or use a copy"
            ) from error


def _assemble(content: Content) -> PaperAvatar:
    def part(prefix: str) -> State:
        return {name[len(prefix) :]: t for name, t in content.tensors.items() if name.startswith(prefix)}

    generator = PortraitGenerator(PortraitConfig.from_json(content.header["config"]))
    generator.load_state_dict(part("generator."), assign=True)
    generator.eval().requires_grad_(False)
    training: dict[str, State] = {}
    for name, value in part("training.").items():
        network, key = name.split(".", 1)
        training.setdefault(network, {})[key] = value
    return PaperAvatar(
        generator,
        Texture(**part("textures.face.")),
        Texture(**part("textures.background.")),
        NoiseMaps(**part("noise.")),
        float(content.header["time"]),
        Origin(**content.header["origin"]),
        training,
    )
