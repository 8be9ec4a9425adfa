"""States of a person -> pictures of their avatar in the paper's networks. MAIN: `PaperRenderer.render`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.paper.batch import to_unit
from omokage.avatar.paper.bundle import PaperAvatar, Person
from omokage.errors import BundleError
from omokage.render.renderer import Portrait


class PaperRenderer:
    """Draws one avatar that was trained on our own tracker's face meshes; a graphics card is used if there is one.

    Raises BundleError for an avatar that needs another program's face meshes.
    """

    def __init__(self, avatar: PaperAvatar, *, device: str | None = None) -> None:
        self.person = person_of(avatar)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._avatar = avatar.to(self._device)

    def render(self, state: AvatarState) -> Portrait:
        """The picture of a state. Its color is not freed of the background: the network draws both together."""
        drawn = self.person.drawing.draw(state)
        portrait = self._avatar.draw(self._input(drawn.render), self._input(drawn.uv))
        image = _to_bytes(portrait.image[0].permute(1, 2, 0) * 127.5 + 127.5)
        shown = (1.1 * portrait.mask).clamp(-1, 1) / 2 + 0.5  # as the generator composes
        clear = F.interpolate(shown.float(), scale_factor=8.0, mode="bilinear", align_corners=False)[0, 0]
        return Portrait(image=image, matte=_to_bytes(255 * (1 - clear)), color=image)

    def _input(self, drawing: NDArray[np.uint8]) -> Tensor:
        return to_unit(torch.from_numpy(drawing)[None].to(self._device))


def person_of(avatar: PaperAvatar) -> Person:
    """Whose motion the avatar was trained with. Raises BundleError where another program tracked them."""
    if avatar.person is None:
        raise BundleError(
            "this avatar was trained on face meshes that another program drew, and ours would not fit them; make one "
            "from a recording with 'omokage create'"
        )
    return avatar.person


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
