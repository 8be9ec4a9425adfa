"""`Avatar`: a trained person in one file (see `container`).

Layout of `me.avatar`, version 4 (docs/avatar-format.md): tensors `generator.*`, `subject.*`, `sheet.*`,
`appearance.*`, `track.*` (the recording's motion, without landmarks), `skin` and `plate`; in the header the
architecture, camera, crop, frame rate, hash of the recording, evaluation summary and the version that wrote it.
Version 7 has `speech.*` too, version 8 one that a speech encoder listens to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.avatar.appearance import Appearance
from omokage.avatar.conditioning import Conditioner
from omokage.avatar.config import AvatarConfig
from omokage.avatar.container import COMPACT, Content, read_content, write_content
from omokage.avatar.generator import Generator
from omokage.avatar.motion import motion_arrays, read_motion
from omokage.avatar.sheet import POSE_FEATURES, Crop, Pose, Sheet
from omokage.errors import BundleError
from omokage.geometry.camera import Camera
from omokage.tracking.detail import SKIN_COUNT
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.sway import ZONE_COUNT

VERSION, VERSION_WITH_SPEECH, VERSION_WITH_ENCODER = 4, 7, 8
_SHEET_ARRAYS = ("points", "head_weight", "oval_weight", "triangles", "uv", "response")


@dataclass(frozen=True)
class Provenance:
    """Where an avatar comes from.

    recording_sha256: of the file it was trained on.  recording_name: its name, no folder.  recording_path: where it
    was, so that `evaluate` can find it again.  frame_rate: of that clip.  photo_only: it was made from one
    picture.  label: visible text on every picture made of this person.
    minutes, steps: of training.  omokage: version that wrote it.
    """

    recording_sha256: str
    recording_name: str
    recording_path: str
    frame_rate: str
    photo_only: bool
    label: str | None
    minutes: float
    steps: int
    omokage: str


@dataclass(frozen=True)
class SpeechPart:
    """How the person speaks, as `speaking.personal` writes and reads it: JSON values, and arrays by name."""

    settings: Mapping[str, Any]
    arrays: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Avatar:
    """A person, ready to be driven.

    `track` is the recording's motion: it gives the person's rest state and what the recording covers.
    `plate`: uint8 (S, S, 3), the still background.  `skin`: (468, 3) cm, the skin detail that the person has at all
    times (`tracking.detail`), with which every picture is drawn.  `evaluation`: summary of the held-out report, {}
    before it ran.  `speech`: None where nothing was learned of how the person speaks.
    """

    generator: Generator
    conditioner: Conditioner
    plate: NDArray[np.uint8]
    track: FaceTrack
    skin: NDArray[np.float64]
    provenance: Provenance
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    speech: SpeechPart | None = None

    @property
    def config(self) -> AvatarConfig:
        return self.conditioner.config

    @property
    def size(self) -> int:
        """Side of its pictures, pixels."""
        return self.config.size

    def with_evaluation(self, summary: Mapping[str, Any]) -> Avatar:
        """The same avatar with the summary of its held-out report."""
        return replace(self, evaluation=dict(summary))

    def save(self, path: Path, *, in_place_of: Path | None = None) -> None:
        """Write the bundle, atomically, see `write_content`. Raises OutputError when it cannot be written."""
        conditioner, sheet = self.conditioner, self.conditioner.sheet
        arrays: dict[str, NDArray[Any]] = {"plate": self.plate, "skin": self.skin}
        arrays |= motion_arrays(self.track)
        arrays |= {f"sheet.{name}": getattr(sheet, name) for name in _SHEET_ARRAYS}
        arrays |= {f"sheet.rest.{f.name}": getattr(sheet.rest, f.name) for f in fields(Pose)}
        if conditioner.appearance is not None:
            arrays |= {
                f"appearance.{f.name}": getattr(conditioner.appearance, f.name) for f in fields(Appearance)
            }
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        tensors |= {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        header = {
            "config": self.config.to_json(),
            "camera": asdict(sheet.camera),
            "head_width": sheet.head_width,
            "crop": asdict(conditioner.crop),
            "provenance": asdict(self.provenance),
            "evaluation": dict(self.evaluation),
        }
        version = VERSION
        if self.speech is not None:
            has_encoder = self.speech.settings["driver"].get("encoder") is not None
            version = VERSION_WITH_ENCODER if has_encoder else VERSION_WITH_SPEECH
            header["speech"] = dict(self.speech.settings)
            tensors |= {f"speech.{name}": tensor for name, tensor in self.speech.arrays.items()}
        write_content(path, Content(version, COMPACT, header, tensors), in_place_of=in_place_of)

    @classmethod
    def load(cls, path: Path) -> Avatar:
        """Read a bundle. Raises BundleError when it is missing, damaged, foreign or from a newer version."""
        tensors, header = _read(Path(path))
        try:
            return _assemble(tensors, header)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"{path} is damaged ({error}); create the avatar again or use a copy"
            ) from error


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a compact avatar, older layouts brought up to date."""
    content = read_content(path)
    if content.kind != COMPACT:
        if "origin" not in content.header:
            raise BundleError(
                f"{path} is an avatar at the paper's scale, which this command cannot use; drive it with "
                "'omokage reenact', or use an avatar of the compact preset"
            )
        raise BundleError(
            f"{path} is an imported StyleAvatar, which can be neither driven nor measured here: its networks need face "
            "meshes drawn as the official preprocessing draws them; use an avatar of 'omokage create'"
        )
    tensors, header, version = content.tensors, content.header, content.version
    if version < 4:
        header = _with_config(header, stem_kernel=3, head_kernel=3)
    if version == 1:
        tensors, header = _with_modes(tensors), _with_config(header, texture_modes=1)
    if version < 3:
        tensors = _with_sway(tensors)
    if version < 4:
        # The person's usual skin detail was not kept: an avatar driven by another person is drawn without.
        tensors["skin"] = torch.zeros(SKIN_COUNT, 3, dtype=torch.float64)
    return tensors, header


def _with_modes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Version 1 had a texture that does not change and a sheet that follows the pose alone."""
    _, channels, height, width = tensors["generator.colors"].shape
    response = tensors["sheet.response"]
    expression = response.new_zeros(len(response), len(BLENDSHAPES), 2)
    modes = torch.zeros(1, channels, height // 2, width // 2)
    return tensors | {"generator.modes": modes, "sheet.response": torch.cat([response, expression], dim=1)}


def _with_sway(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Before version 3 the shoulders followed four numbers of a torso: hair and shoulders now follow the head alone."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("torso")}
    pose, torso = POSE_FEATURES, 4
    response = tensors["sheet.response"]
    kept["sheet.response"] = torch.cat([response[:, :pose], response[:, pose + torso :]], dim=1)
    if "appearance.poses" in tensors:
        kept["appearance.poses"] = tensors["appearance.poses"][:, : pose - 1]
    rows = len(tensors["track.frame_index"])
    kept["track.sway"] = torch.zeros(rows, ZONE_COUNT, 2)
    return kept | {"sheet.rest.sway": torch.zeros(ZONE_COUNT, 2, dtype=torch.float64)}


def _with_config(header: dict[str, Any], **fixed: int) -> dict[str, Any]:
    """What earlier versions could not choose."""
    return header | {"config": header["config"] | fixed}


def _assemble(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> Avatar:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

    def arrays(prefix: str) -> dict[str, NDArray[Any]]:
        return {name: t.numpy() for name, t in part(prefix).items()}

    config = AvatarConfig.from_json(header["config"])
    generator = Generator(config)
    generator.load_state_dict(part("generator."))
    generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    track = read_motion(tensors, Camera(**header["camera"]))
    rest = Pose(**arrays("sheet.rest."))
    stored = {name: array for name, array in arrays("sheet.").items() if name in _SHEET_ARRAYS}
    sheet = Sheet(
        rest=rest,
        camera=track.camera,
        head_width=float(header["head_width"]),
        **stored,
    )
    appearance = arrays("appearance.")
    conditioner = Conditioner(
        MorphableModel.load(),
        track.subject,
        sheet,
        Crop(**header["crop"]),
        config,
        Appearance(**appearance) if appearance else None,
    )
    return Avatar(
        generator,
        conditioner,
        tensors["plate"].numpy(),
        track,
        tensors["skin"].numpy(),
        Provenance(**header["provenance"]),
        header["evaluation"],
        SpeechPart(header["speech"], part("speech.")) if "speech" in header else None,
    )
