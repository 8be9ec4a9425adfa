"""The texture look-ups around the network and the final composition, one pass over the pixels each.

These loops do what `Generator.forward` does with tensor operations, without its intermediate pictures.

Legend: S output side, G grid side, A texels a side of a chart, F texture features, D channels of the drawing,
n = S / G pixels a side of a cell, K = 4 n n colour values of a cell (channel, row, column in the cell: the order of
`pixel_unshuffle`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from omokage.avatar.conditioning import Condition
from omokage.avatar.generator import Generator

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

# Opacity below this is taken for none, so that what a network leaks into the background does not make it flicker.
CLEAR = 2.5 / 255


@dataclass(frozen=True)
class Texture:
    """A generator's texture, texel by texel: colors float32 (A, 2A, 4), features float32 (A / 2, A, F).

    modes: float32 (2, K, A / 2, A / 2, 4), what changes in the colors of each chart.
    """

    colors: Float32
    features: Float32
    modes: Float32

    @classmethod
    def of(cls, generator: Generator) -> Texture:
        def texels(parameter: Tensor) -> Float32:
            planes = parameter.detach().cpu().numpy()
            return np.ascontiguousarray(np.moveaxis(planes, 1, -1), dtype=np.float32)

        modes = np.stack(np.split(texels(generator.modes), 2, axis=2))
        return cls(texels(generator.colors)[0], texels(generator.features)[0], np.ascontiguousarray(modes))

    def mixed(self, mixture: Float32) -> Texture:
        """The texture of one state, whose modes have strengths (2, K)."""
        charts, _, side = self.modes.shape[:3]
        change = np.zeros((charts, side * side * 4), dtype=np.float32)
        _mix(self.modes.reshape(charts, -1, change.shape[1]), mixture, change)
        narrow = np.concatenate(list(change.reshape(charts, side, side, 4)), axis=1)
        height, width = self.colors.shape[:2]
        colors = cv2.resize(narrow, (width, height), interpolation=cv2.INTER_LINEAR)
        return Texture(np.add(colors, self.colors, out=colors), self.features, self.modes)


def pull_cells(texture: Texture, condition: Condition) -> Float32:
    """What the network sees, (1, K + F + D, G, G): pulled colour cell by cell, features at the centers, drawing.

    `texture` is the mixed one of the condition.
    """
    side, grid = condition.warp.shape[-1], condition.drawing.shape[-1]
    values = 4 * (side // grid) ** 2
    features = texture.features.shape[2]
    cells = np.empty((1, values + features + len(condition.drawing), grid, grid), dtype=np.float32)
    _pull(texture.colors, texture.features, condition.warp, cells[0, : values + features])
    cells[0, values + features :] = condition.drawing
    return cells


def pull_portrait(texture: Texture, warp: Float32, offset: Float32, residual: Float32) -> Float32:
    """The second look-up: warp (2, S, S) moved by offset (2, G, G), plus residual (K, G, G) -> (S, S, 4).

    Straight colour (not clamped) and opacity in [0, 1].
    """
    portrait = np.empty((*warp.shape[1:], 4), dtype=np.float32)
    _finish(texture.colors, warp, offset, residual, portrait)
    return portrait


def compose(portrait: Float32, background: UInt8) -> tuple[UInt8, UInt8, UInt8]:
    """Portrait (S, S, 4) over a background (S, S, 3) -> picture (S, S, 3), color (S, S, 3) and matte (S, S), uint8.

    Where the matte is 0 the background's bytes come through unchanged.
    """
    picture, color = np.empty_like(background), np.empty_like(background)
    matte = np.empty(background.shape[:2], dtype=np.uint8)
    _compose(portrait, background, picture, color, matte)
    return picture, color, matte


@njit(inline="always")
def _texel(u, v, height, width, channels):  # type: ignore[no-untyped-def]
    """Where coordinates in [-1, 1] fall (align_corners=False, border padding): flat index of the first value of the
    four texels around (above left, above right, below left, below right), and the shares of right and below."""
    one, half, wide, high = np.float32(1), np.float32(0.5), np.float32(width), np.float32(height)
    x = min(max(((u + one) * wide - one) * half, np.float32(0)), wide - one)
    y = min(max(((v + one) * high - one) * half, np.float32(0)), high - one)
    column, row = int(x), int(y)
    a = (row * width + column) * channels
    b = a + channels * (column < width - 1)
    down = channels * width * (row < height - 1)
    return a, b, a + down, b + down, x - np.float32(column), y - np.float32(row)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _mix(modes, mixture, change):  # type: ignore[no-untyped-def]
    """Not BLAS: its threads spin on after each product and take the cores from the network (25 against 40 fps)."""
    for chart in range(modes.shape[0]):
        for k in range(modes.shape[1]):
            strength = mixture[chart, k]
            for i in range(modes.shape[2]):
                change[chart, i] += strength * modes[chart, k, i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _pull(colors, features, warp, cells):  # type: ignore[no-untyped-def]
    (height, width, _), (feature_height, feature_width, channels) = colors.shape, features.shape
    texels, feature_texels = colors.reshape(-1), features.reshape(-1)
    grid, cell = cells.shape[1], warp.shape[1] // cells.shape[1]
    step = cell * cell
    for i in range(grid):
        for dy in range(cell):
            y = i * cell + dy
            for dx in range(cell):
                part = dy * cell + dx
                for j in range(grid):
                    x = j * cell + dx
                    a, b, c, d, tx, ty = _texel(warp[0, y, x], warp[1, y, x], height, width, 4)
                    for k in range(4):
                        above = texels[a + k] + tx * (texels[b + k] - texels[a + k])
                        below = texels[c + k] + tx * (texels[d + k] - texels[c + k])
                        cells[k * step + part, i, j] = above + ty * (below - above)
        y = i * cell + cell // 2
        for j in range(grid):
            x = j * cell + cell // 2
            a, b, c, d, tx, ty = _texel(warp[0, y, x], warp[1, y, x], feature_height, feature_width, channels)
            for k in range(channels):
                above = feature_texels[a + k] + tx * (feature_texels[b + k] - feature_texels[a + k])
                below = feature_texels[c + k] + tx * (feature_texels[d + k] - feature_texels[c + k])
                cells[4 * step + k, i, j] = above + ty * (below - above)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _finish(colors, warp, offset, residual, portrait):  # type: ignore[no-untyped-def]
    height, width, _ = colors.shape
    texels = colors.reshape(-1)
    side, grid = warp.shape[1], offset.shape[1]
    cell = side // grid
    step = cell * cell
    # Cells before and after each pixel and the share of the latter, as `interpolate` (bilinear) has them.
    first, second = np.empty(side, dtype=np.int64), np.empty(side, dtype=np.int64)
    share = np.empty(side, dtype=np.float32)
    for x in range(side):
        place = max((x + 0.5) / cell - 0.5, 0.0)
        first[x] = int(place)
        second[x] = min(first[x] + 1, grid - 1)
        share[x] = place - first[x]
    moved = np.empty((2, grid), dtype=np.float32)
    for y in range(side):
        for k in range(2):
            for j in range(grid):
                above = offset[k, first[y], j]
                moved[k, j] = above + share[y] * (offset[k, second[y], j] - above)
        i, dy = y // cell, y % cell
        for j in range(grid):
            for dx in range(cell):
                x, part = j * cell + dx, dy * cell + dx
                left, right, t = first[x], second[x], share[x]
                u = warp[0, y, x] + moved[0, left] + t * (moved[0, right] - moved[0, left])
                v = warp[1, y, x] + moved[1, left] + t * (moved[1, right] - moved[1, left])
                a, b, c, d, tx, ty = _texel(u, v, height, width, 4)
                for k in range(4):
                    above = texels[a + k] + tx * (texels[b + k] - texels[a + k])
                    below = texels[c + k] + tx * (texels[d + k] - texels[c + k])
                    portrait[y, x, k] = above + ty * (below - above) + residual[k * step + part, i, j]
                portrait[y, x, 3] = min(max(portrait[y, x, 3], np.float32(0)), np.float32(1))


@njit(cache=True, nogil=True)
def _compose(portrait, background, picture, color, matte):  # type: ignore[no-untyped-def]
    full, half, zero = np.float32(255), np.float32(0.5), np.float32(0)
    clear = np.float32(CLEAR)
    for y in range(portrait.shape[0]):
        for x in range(portrait.shape[1]):
            share = portrait[y, x, 3]
            is_clear = share < clear
            matte[y, x] = 0 if is_clear else np.uint8(share * full + half)
            for k in range(3):
                straight = min(max(portrait[y, x, k] * full, zero), full)
                behind = background[y, x, k]
                mixed = np.float32(behind) + share * (straight - np.float32(behind)) + half
                color[y, x, k] = np.uint8(straight + half)
                picture[y, x, k] = behind if is_clear else np.uint8(mixed)
