"""States of a person -> pictures of their avatar in the paper's networks. MAIN: `PaperRenderer.render`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.paper.batch import to_unit
from omokage.avatar.paper.bundle import PaperAvatar, Person
from omokage.avatar.samples import avatar_state
from omokage.errors import BundleError
from omokage.render.paper_runtime import MeshPair, PaperRuntime, picture_of, start, to_bytes
from omokage.render.renderer import Portrait

JUDGED_STATES = 8  # of the recording, by which a runtime is judged


def _unheard(_: str) -> None:
    pass


class PaperRenderer:
    """Draws one avatar that was trained on our own tracker's face meshes; a graphics card is used if there is one.

    runtime: see `paper_runtime`.  say: hears a sentence where another one is taken.
    Raises BundleError for an avatar that needs another program's face meshes, InputError for an unknown runtime.
    """

    def __init__(
        self,
        avatar: PaperAvatar,
        *,
        runtime: str = "auto",
        device: str | None = None,
        say: Callable[[str], None] = _unheard,
    ) -> None:
        self.person = person_of(avatar)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.runtime: PaperRuntime = start(
            avatar.to(self._device), runtime, states=self._recorded_meshes, say=say
        )

    def render(self, state: AvatarState) -> Portrait:
        """The picture of a state. Its color is not freed of the background: the network draws both together."""
        image, mask = self.runtime.draw(*self._meshes(state))
        picture = picture_of(image)
        shown = (1.1 * mask).clamp(-1, 1) / 2 + 0.5  # as the generator composes
        clear = F.interpolate(shown.float(), scale_factor=8.0, mode="bilinear", align_corners=False)[0, 0]
        return Portrait(image=picture, matte=to_bytes(255 * (1 - clear)), color=picture)

    def _meshes(self, state: AvatarState) -> MeshPair:
        drawn = self.person.drawing.draw(state)
        return self._input(drawn.render), self._input(drawn.uv)

    def _recorded_meshes(self) -> list[MeshPair]:
        """Of states spread over the person's own recording."""
        track = self.person.track
        rows = np.unique(np.linspace(0, len(track) - 1, JUDGED_STATES).astype(int))
        return [self._meshes(avatar_state(track, int(row))) for row in rows]

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
