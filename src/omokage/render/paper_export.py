"""An imported StyleAvatar as one ONNX graph: the numbers of its training graph, which the released export changes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from omokage.avatar.paper.fold import fold_style
from omokage.avatar.paper.networks import AvatarNetworks
from omokage.avatar.paper.portrait import NoiseMaps
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.time_code import time_code
from omokage.avatar.paper.window import face_cells, to_cells
from omokage.files import saving

INPUTS, OUTPUTS = ("render", "uv"), ("image", "mask")


class PaperGraph(nn.Module):
    """render and uv (1, 3, S/4, S/4) float32, as for `AvatarNetworks.draw` -> image (1, 3, S, S) and mask (1, 1, G, G),
    float32.

    Style, textures and noise of the avatar are constants of the graph, and nothing in it depends on the inputs' values
    but their numbers: it can be captured, compiled or exported as it is. It computes in float32, or in the `dtype` that
    `to` brings it to; the places in the face's texture are always exact.
    """

    def __init__(self, avatar: AvatarNetworks) -> None:
        super().__init__()
        face, background, noise = avatar.face, avatar.background_in_window, avatar.noise
        times = torch.full((1, 1), avatar.time, device=face.features.device)
        code = time_code(times, avatar.config.style.size)
        self.generator = fold_style(avatar.generator, code).eval()
        constants = {
            "code": code,
            "face": face.features,
            "face_bands": face.bands,
            "face_noise": noise.face,
            "background": background.features,
            "background_bands": background.bands,
            "background_noise": noise.background,
            "foreground_noise": noise.foreground,
        }
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, render: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
        cells, held = to_cells(uv), dict(self.named_buffers(recurse=False))
        dtype = held["face"].dtype
        portrait = self.generator(
            render.to(dtype),
            cells[:, :2],
            face_cells(cells).to(dtype),
            Texture(held["face"], held["face_bands"]),
            Texture(held["background"], held["background_bands"]),
            held["code"],
            noise=NoiseMaps(held["face_noise"], held["background_noise"], held["foreground_noise"]),
        )
        return portrait.image.float(), portrait.mask.float()


def paper_to_onnx(avatar: AvatarNetworks, dtype: torch.dtype = torch.float32) -> bytes:
    """The graph of `PaperGraph`: static shapes, batch 1, inputs `render` and `uv`, outputs `image` and `mask`, all
    float32.

    dtype: that it computes in; it is traced on the avatar's device, where other types than float32 take long on a
    processor.
    """
    # The packages of ONNX take seconds that only those wait for who export.
    from omokage.render.export import trace_to_onnx

    side = avatar.config.size // 4
    blank = torch.full((1, 3, side, side), -1.0, device=avatar.face.features.device)
    return trace_to_onnx(PaperGraph(avatar).to(dtype), (blank, blank.clone()), INPUTS, OUTPUTS)


def export_paper_onnx(avatar: AvatarNetworks, path: Path) -> None:
    """Write `paper_to_onnx` to a file, atomically. Raises OutputError."""
    with saving(path) as part:
        part.write_bytes(paper_to_onnx(avatar))
