"""The moving window: what one training sample shows of a crop half as wide again (paper, section 3.4; spec 1.3).

A window of S pixels moves over a crop of 3S/2 in steps of a cell, 8 pixels. Offsets (dx, dy) are in cells, from 0 to
G/2 = S/16; at G/4 the window is centred. The face mesh is drawn for the central S pixels only, on S/4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # pixels
VALID = -0.999  # blue of a drawn uv picture above this: a place of the face
OUTSIDE = -1.0  # black

Offset = tuple[int, int]


def centred(grid: int) -> Offset:
    """The offset of the window in the middle, for features on `grid` cells a side."""
    return grid // 4, grid // 4


def cut_picture(crop: Tensor, offset: Offset) -> Tensor:
    """The window's pixels, (B, C, 3S/2, 3S/2) -> (B, C, S, S)."""
    size = crop.shape[-1] * 2 // 3
    return _cut(crop, (offset[0] * CELL, offset[1] * CELL), size)


def cut_drawing(drawing: Tensor, offset: Offset) -> Tensor:
    """The window of a face mesh or uv picture (B, C, S/4, S/4), same shape; black where nothing was drawn."""
    side = drawing.shape[-1]
    return _cut(F.pad(drawing, [side // 4] * 4, value=OUTSIDE), (2 * offset[0], 2 * offset[1]), side)


def to_cells(uv: Tensor) -> Tensor:
    """A uv picture (B, 3, S/4, S/4) on the cells, (B, 3, G, G): every second pixel, never a mean of two places."""
    return uv[..., ::2, ::2]


def to_pixels(drawing: Tensor) -> Tensor:
    """A drawing (B, C, S/4, S/4) beside a picture of S pixels, for the discriminator: each pixel four times."""
    return F.interpolate(drawing, scale_factor=4.0, mode="nearest")


def background_cells(alpha: Tensor) -> Tensor:
    """Grey alpha of a window (B, C, S, S) in [-1, 1] -> (B, 1, G, G), 1 where the background is and 0 on the person."""
    return (alpha[:, -1:, ::CELL, ::CELL] <= 0).to(alpha.dtype)


def face_cells(uv: Tensor) -> Tensor:
    """uv on the cells (B, 3, G, G) -> (B, 1, G, G): 1 where the face is, without its outermost cell."""
    return erode((uv[:, 2:3] > VALID).to(uv.dtype))


def erode(mask: Tensor) -> Tensor:
    """Take the outermost cell off a mask (B, 1, H, W) of 0 and 1; cells beyond the edge count as inside."""
    padded = F.pad(mask, [1, 1, 1, 1], value=1.0)
    height, width = mask.shape[-2:]
    shifts = ((0, 1), (2, 1), (1, 0), (1, 2))
    sides = [padded[..., y : y + height, x : x + width] for y, x in shifts]
    return torch.stack([mask, *sides]).amin(dim=0)


def cut_background(texture: Tensor, offset: Offset) -> Tensor:
    """A background texture (B, C, G, G) of the whole canvas, enlarged to 2G, in the window: (B, C, G, G)."""
    grid = texture.shape[-1]
    wide = F.interpolate(texture, scale_factor=2.0, mode="bilinear", align_corners=False)
    return _cut(wide, (offset[0] + grid // 4, offset[1] + grid // 4), grid)


def cut_features(wide: Tensor, offset: Offset, *, rounded: bool = False) -> Tensor:
    """The window of features on the canvas, (B, C, 2G, 2G) -> (B, C, G, G).

    rounded: as the released code does it, by nearest-neighbour look-ups at positions of which the outermost fall on
    the middle between two cells, and are rounded to the even one (specification 1.3.6).
    """
    grid = wide.shape[-1] // 2
    start = [side + grid // 4 for side in offset]
    if not rounded:
        return _cut(wide, (start[0], start[1]), grid)
    return _rounded(_rounded(wide, start[0], grid, -1), start[1], grid, -2)


def _rounded(wide: Tensor, start: int, count: int, axis: int) -> Tensor:
    """`count` cells from `start`, of which the first (odd start) or the last (even) is one further out."""
    runs = ((start - 1, 1), (start + 1, count - 1)) if start % 2 else ((start, count - 1), (start + count, 1))
    return torch.cat([wide.narrow(axis, first, length) for first, length in runs], dim=axis)


def _cut(picture: Tensor, corner: Offset, side: int) -> Tensor:
    left, top = corner
    return picture[..., top : top + side, left : left + side]
