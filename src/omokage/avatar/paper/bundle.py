"""`PaperAvatar`: a StyleAvatar of one person in an avatar file of kind "styleavatar" (docs/avatar-format.md).

Tensors `generator.*` (averaged weights), `textures.<part>.features` and `.bands`, `noise.<part>`, if they were kept
`training.<network>.*`, and of an avatar that was trained here from a recording `subject.*`, `track.*` and `skin`; in
the header the architecture, the time whose code draws every picture, and where it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.avatar.bundle import Provenance
from omokage.avatar.container import FIRST_WITH_KINDS, STYLEAVATAR, Content, read_content, write_content
from omokage.avatar.motion import motion_arrays, read_motion
from omokage.avatar.paper.checkpoint import State
from omokage.avatar.paper.config import PortraitConfig
from omokage.avatar.paper.drawing import MeshDrawing
from omokage.avatar.paper.networks import AvatarNetworks
from omokage.avatar.paper.portrait import NoiseMaps, PortraitGenerator
from omokage.avatar.paper.textures import Texture
from omokage.avatar.sheet import Crop
from omokage.errors import BundleError
from omokage.geometry.camera import Camera
from omokage.tracking.face_track import FaceTrack

TRAINED_VERSION = 6


@dataclass(frozen=True)
class Origin:
    """checkpoint: name of the official file, no folder.  sha256: of that file.  omokage: version that imported it."""

    checkpoint: str
    sha256: str
    omokage: str


@dataclass(frozen=True)
class Person:
    """Who was tracked in the recording. drawing: how their face mesh is drawn.  track: their motion in it.
    skin: (468, 3) cm, the skin detail that they have at all times (`tracking.detail`)."""

    drawing: MeshDrawing
    track: FaceTrack
    skin: NDArray[np.float64]


@dataclass(frozen=True)
class PaperAvatar(AvatarNetworks):
    """A person in StyleAvatar's own networks.

    origin: of an imported one, or provenance of one that was trained here.  training: weights that more training starts
    from, by network, {} when they were not kept.  person: None where the face meshes were drawn by another program.
    evaluation: what was measured on held-out frames.
    """

    origin: Origin | Provenance
    training: Mapping[str, State] = field(default_factory=dict)
    person: Person | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """What is known of its making, for people."""
        measured = self.evaluation
        if isinstance(self.origin, Origin):
            return f"imported from {self.origin.checkpoint}"
        trained = (
            f"pictures of {self.size} pixels, {self.origin.steps} steps in {self.origin.minutes:.1f} minutes"
        )
        if not measured:
            return trained
        return f"{trained}, {measured['psnr']:.2f} dB on {measured['held_out_frames']} held-out frames"

    def save(self, path: Path, *, in_place_of: Path | None = None) -> None:
        """Write the file, atomically, see `write_content`. Raises OutputError when it cannot be written."""
        tensors = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        for part, texture in (("face", self.face), ("background", self.background)):
            tensors |= {f"textures.{part}.{f.name}": getattr(texture, f.name) for f in fields(Texture)}
        tensors |= {f"noise.{f.name}": getattr(self.noise, f.name) for f in fields(NoiseMaps)}
        for network, state in self.training.items():
            tensors |= {f"training.{network}.{name}": value for name, value in state.items()}
        header: dict[str, Any] = {"config": self.config.to_json(), "time": self.time}
        version = FIRST_WITH_KINDS
        if isinstance(self.origin, Origin):
            header["origin"] = asdict(self.origin)
        else:
            header |= {"provenance": asdict(self.origin), "evaluation": dict(self.evaluation)}
            version = TRAINED_VERSION
        if self.person is not None:
            drawing = self.person.drawing
            arrays = motion_arrays(self.person.track) | {"skin": self.person.skin}
            tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            header |= {"camera": asdict(drawing.camera), "crop": asdict(drawing.crop)}
        tensors = {name: value.detach().cpu() for name, value in tensors.items()}
        write_content(path, Content(version, STYLEAVATAR, header, tensors), in_place_of=in_place_of)

    @classmethod
    def load(cls, path: Path) -> PaperAvatar:
        """Read a file. Raises BundleError when it is missing, damaged, foreign, of another kind or a newer version."""
        content = read_content(Path(path))
        if content.kind != STYLEAVATAR:
            raise BundleError(
                f"{path} is an avatar of the compact preset, not one at the paper's scale; drive it with "
                "'omokage reenact'"
            )
        try:
            return _assemble(content)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"{path} is damaged ({error}); import or create it again or use a copy"
            ) from error


def _assemble(content: Content) -> PaperAvatar:
    header = content.header

    def part(prefix: str) -> State:
        return {name[len(prefix) :]: t for name, t in content.tensors.items() if name.startswith(prefix)}

    generator = PortraitGenerator(PortraitConfig.from_json(header["config"]))
    generator.load_state_dict(part("generator."), assign=True)
    generator.eval().requires_grad_(False)
    training: dict[str, State] = {}
    for name, value in part("training.").items():
        network, key = name.split(".", 1)
        training.setdefault(network, {})[key] = value
    person = None
    if "crop" in header:
        track = read_motion(content.tensors, Camera(**header["camera"]))
        drawing = MeshDrawing(track.subject, track.camera, Crop(**header["crop"]), generator.config.size)
        person = Person(drawing, track, content.tensors["skin"].numpy())
    origin = Origin(**header["origin"]) if "origin" in header else Provenance(**header["provenance"])
    return PaperAvatar(
        generator,
        Texture(**part("textures.face.")),
        Texture(**part("textures.background.")),
        NoiseMaps(**part("noise.")),
        float(header["time"]),
        origin,
        training,
        person,
        header.get("evaluation", {}),
    )
