"""The texture look-ups around the network and the final composition, one pass over the pixels each.

These loops do what `Generator.forward` does with tensor operations, without its intermediate pictures. They are a third
of a live picture's time, so they keep to what a compiler turns into vector instructions: row buffers, planes instead of
pixels, and unsigned offsets (a signed one may be negative, which Python would count from the end).

Legend: S output side, G grid side, A texels a side of a chart, F texture features, D channels of the drawing,
n = S / G pixels a side of a cell, K = 4 n n colour values of a cell (channel, row, column in the cell: the order of
`pixel_unshuffle`), M modes of a chart.
"""

from __future__ import annotations

from dataclasses import dataclass

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
# Modes are read whole for every picture: in 16 bits that is half the memory traffic, and nothing is lost.
MODE_LEVELS = 32767
MIX_BLOCK = 4096  # texels mixed at a time, so that sums stay in the nearest cache


@dataclass(frozen=True)
class Texture:
    """A generator's texture, texel by texel: colors float32 (A, 2A, 4), features float32 (A / 2, A, F).

    modes: int16 (2, M, A / 2 * A / 2 * 4), what changes in the colors of each chart, in units of mode_units float32
    (2, M).
    """

    colors: Float32
    features: Float32
    modes: NDArray[np.int16]
    mode_units: Float32

    @classmethod
    def of(cls, generator: Generator) -> Texture:
        def texels(parameter: Tensor) -> Float32:
            planes = parameter.detach().cpu().numpy()
            return np.ascontiguousarray(np.moveaxis(planes, 1, -1), dtype=np.float32)

        modes = np.stack(np.split(texels(generator.modes), 2, axis=2))
        modes = modes.reshape(*modes.shape[:2], -1)
        units = np.maximum(np.abs(modes).max(axis=2, initial=0.0), 1e-12) / MODE_LEVELS
        rounded = np.rint(modes / units[..., None]).astype(np.int16)
        return cls(texels(generator.colors)[0], texels(generator.features)[0], rounded, units)

    def mixed(self, mixture: Float32) -> Texture:
        """The texture of one state, whose modes have strengths (2, M)."""
        colors = np.empty_like(self.colors)
        _mix(self.modes, self.mode_units * mixture, self.colors, colors)
        return Texture(colors, self.features, self.modes, self.mode_units)


def pull_cells(texture: Texture, condition: Condition) -> Float32:
    """What the network sees, (1, K + F + D, G, G): pulled colour cell by cell, features at the centers, drawing.

    `texture` is the mixed one of the condition.
    """
    side, grid = condition.warp.shape[-1], condition.drawing.shape[-1]
    values = 4 * (side // grid) ** 2
    features = texture.features.shape[2]
    cells = np.empty((1, values + features + len(condition.drawing), grid, grid), dtype=np.float32)
    _pull(texture.colors, condition.warp, cells[0, :values])
    _pull_centers(texture.features, condition.warp, cells[0, values : values + features])
    cells[0, values + features :] = condition.drawing
    return cells


def pull_portrait(texture: Texture, warp: Float32, offset: Float32, residual: Float32) -> Float32:
    """The second look-up: warp (2, S, S) moved by offset (2, G, G), plus residual (K, G, G) -> (4, S, S).

    Straight colour (not clamped) and opacity in [0, 1].
    """
    portrait = np.empty((4, *warp.shape[1:]), dtype=np.float32)
    _finish(texture.colors, warp, offset, residual, portrait)
    return portrait


def smooth_rims(portrait: Float32, warp: Float32) -> None:
    """Portrait (4, S, S), in place: where the charts of face and sheet meet, pixels take the mean of their neighborhood
    (3 x 3, in shares of 4, 2 and 1).

    A pixel sees one triangle or the other; a cheek in front of dark hair would end in steps. A camera's would not.
    """
    _smooth_rims(portrait, warp[0])


def compose(portrait: Float32, background: UInt8) -> tuple[UInt8, UInt8, UInt8]:
    """Portrait (4, S, S) over a background (S, S, 3) -> picture (S, S, 3), color (S, S, 3) and matte (S, S), uint8.

    Where the matte is 0 the background's bytes come through unchanged.
    """
    picture, color = np.empty_like(background), np.empty_like(background)
    matte = np.empty(background.shape[:2], dtype=np.uint8)
    _compose(portrait, background, picture, color, matte)
    return picture, color, matte


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _mix(modes, strengths, colors, mixed):  # type: ignore[no-untyped-def]
    """Not BLAS: its threads spin on after each product and take the cores from the network (25 against 40 fps)."""
    change = np.zeros((2, modes.shape[2]), dtype=np.float32)
    for chart in range(2):
        for start in range(0, modes.shape[2], MIX_BLOCK):
            total = change[chart, start : start + MIX_BLOCK]
            end, fours = start + len(total), modes.shape[1] // 4 * 4
            for k in range(0, fours, 4):  # four at a time: sums are read and written a quarter as often
                a, b = strengths[chart, k], strengths[chart, k + 1]
                c, d = strengths[chart, k + 2], strengths[chart, k + 3]
                first, second = modes[chart, k, start:end], modes[chart, k + 1, start:end]
                third, fourth = modes[chart, k + 2, start:end], modes[chart, k + 3, start:end]
                for i in range(len(total)):
                    total[i] += a * np.float32(first[i]) + b * np.float32(second[i])
                    total[i] += c * np.float32(third[i]) + d * np.float32(fourth[i])
            for k in range(fours, modes.shape[1]):
                strength, part = strengths[chart, k], modes[chart, k, start:end]
                for i in range(len(total)):
                    total[i] += strength * np.float32(part[i])
    _add_doubled(change, colors, mixed)


@njit(inline="always")
def _add_doubled(change, colors, mixed):  # type: ignore[no-untyped-def]
    """Colors (A, 2A, 4) plus the changes of both charts (2, A / 2 * A / 2 * 4) side by side, at twice their size
    (bilinear, as `interpolate` has it)."""
    near, far = np.float32(0.75), np.float32(0.25)
    half = colors.shape[0] // 2
    stride = 4 * half
    line = np.empty(2 * stride + 8, dtype=np.float32)  # with a texel more at either end
    for y in range(2 * half):
        row = y // 2
        beside = max(row - 1, 0) if y % 2 == 0 else min(row + 1, half - 1)
        for chart in range(2):
            one = change[chart, row * stride : (row + 1) * stride]
            other = change[chart, beside * stride : (beside + 1) * stride]
            part = line[4 + chart * stride : 4 + (chart + 1) * stride]
            for i in range(stride):
                part[i] = near * one[i] + far * other[i]
        line[:4], line[-4:] = line[4:8], line[-8:-4]
        base, result = colors[y].reshape(-1), mixed[y].reshape(-1)
        for x in range(2 * half):
            for k in range(4):
                value = near * line[4 * x + 4 + k]
                result[8 * x + k] = base[8 * x + k] + value + far * line[4 * x + k]
                result[8 * x + 4 + k] = base[8 * x + 4 + k] + value + far * line[4 * x + 8 + k]


@njit(inline="always")
def _place(u, v, width, height, at, right, below):  # type: ignore[no-untyped-def]
    """Where rows of coordinates in [-1, 1] fall (align_corners=False, border padding): index of the texel above left of
    each, and the shares of the texels to its right and below. The last row and column count as right and below."""
    half, zero = np.float32(0.5), np.float32(0)
    x_scale, y_scale = np.float32(width) * half, np.float32(height) * half
    last_x, last_y = np.float32(width - 1), np.float32(height - 1)
    for i in range(len(at)):
        x = min(max(u[i] * x_scale + (x_scale - half), zero), last_x)
        y = min(max(v[i] * y_scale + (y_scale - half), zero), last_y)
        column, row = min(np.int32(x), np.int32(width - 2)), min(np.int32(y), np.int32(height - 2))
        at[i] = row * np.int32(width) + column
        right[i], below[i] = x - np.float32(column), y - np.float32(row)


@njit(inline="always")
def _blend(texels, above, below, step, right, down):  # type: ignore[no-untyped-def]
    """One channel between four texels: `above` and `below` are offsets of the left ones, `step` of those beside."""
    top = texels[above] + right * (texels[above + step] - texels[above])
    bottom = texels[below] + right * (texels[below + step] - texels[below])
    return top + down * (bottom - top)


@njit(inline="always")
def _look_up(texels, width, at, right, below, rows):  # type: ignore[no-untyped-def]
    """Four channels of a row of places -> rows (4, S)."""
    four = np.uintp(4)
    line = four * np.uintp(width)
    red, green, blue, alpha = rows[0], rows[1], rows[2], rows[3]
    for i in range(len(at)):
        a = four * np.uintp(at[i])
        b, tx, ty = a + line, right[i], below[i]
        first = _blend(texels, a, b, four, tx, ty)
        second = _blend(texels, a + np.uintp(1), b + np.uintp(1), four, tx, ty)
        third = _blend(texels, a + np.uintp(2), b + np.uintp(2), four, tx, ty)
        fourth = _blend(texels, a + np.uintp(3), b + np.uintp(3), four, tx, ty)
        red[i], green[i], blue[i], alpha[i] = first, second, third, fourth


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _pull(colors, warp, cells):  # type: ignore[no-untyped-def]
    height, width, _ = colors.shape
    texels, side, grid = colors.reshape(-1), warp.shape[1], cells.shape[1]
    cell = side // grid
    at, right, below = np.empty(side, np.int32), np.empty(side, np.float32), np.empty(side, np.float32)
    rows = np.empty((4, side), dtype=np.float32)
    for y in range(side):
        _place(warp[0, y], warp[1, y], width, height, at, right, below)
        _look_up(texels, width, at, right, below, rows)
        i, dy = y // cell, y % cell
        for k in range(4):
            for dx in range(cell):
                line, row = cells[(k * cell + dy) * cell + dx, i], rows[k, dx::cell]
                for j in range(grid):
                    line[j] = row[j]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _pull_centers(features, warp, cells):  # type: ignore[no-untyped-def]
    height, width, channels = features.shape
    texels, side, grid = features.reshape(-1), warp.shape[1], cells.shape[1]
    cell, step = side // grid, np.uintp(channels)
    at, right, below = np.empty(grid, np.int32), np.empty(grid, np.float32), np.empty(grid, np.float32)
    values = np.empty((grid, channels), dtype=np.float32)
    for i in range(grid):
        y = i * cell + cell // 2
        _place(warp[0, y, cell // 2 :: cell], warp[1, y, cell // 2 :: cell], width, height, at, right, below)
        for j in range(grid):
            a, tx, ty = step * np.uintp(at[j]), right[j], below[j]
            b = a + step * np.uintp(width)
            for k in range(channels):
                values[j, k] = _blend(texels, a + np.uintp(k), b + np.uintp(k), step, tx, ty)
        for k in range(channels):
            for j in range(grid):
                cells[k, i, j] = values[j, k]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _finish(colors, warp, offset, residual, portrait):  # type: ignore[no-untyped-def]
    height, width, _ = colors.shape
    texels, side, grid = colors.reshape(-1), warp.shape[1], offset.shape[1]
    cell = side // grid
    # Cells before and after each pixel and the share of the latter, as `interpolate` (bilinear) has them.
    first, second = np.empty(side, dtype=np.int64), np.empty(side, dtype=np.int64)
    share = np.empty(side, dtype=np.float32)
    for x in range(side):
        place = max((x + 0.5) / cell - 0.5, 0.0)
        first[x] = int(place)
        second[x] = min(first[x] + 1, grid - 1)
        share[x] = place - first[x]
    moved, placed = np.empty(grid, dtype=np.float32), np.empty((2, side), dtype=np.float32)
    at, right, below = np.empty(side, np.int32), np.empty(side, np.float32), np.empty(side, np.float32)
    for y in range(side):
        for k in range(2):
            above, beneath, t = offset[k, first[y]], offset[k, second[y]], share[y]
            for j in range(grid):
                moved[j] = above[j] + t * (beneath[j] - above[j])
            for x in range(side):
                near = moved[first[x]]
                placed[k, x] = warp[k, y, x] + near + share[x] * (moved[second[x]] - near)
        _place(placed[0], placed[1], width, height, at, right, below)
        rows = portrait[:, y]
        _look_up(texels, width, at, right, below, rows)
        i, dy = y // cell, y % cell
        for k in range(4):
            for dx in range(cell):
                line, row = residual[(k * cell + dy) * cell + dx, i], rows[k, dx::cell]
                for j in range(grid):
                    row[j] += line[j]
        for x in range(side):
            rows[3, x] = min(max(rows[3, x], np.float32(0)), np.float32(1))


@njit(cache=True, nogil=True)
def _smooth_rims(portrait, u):  # type: ignore[no-untyped-def]
    height, width = u.shape
    rows, columns = np.empty(height * width, dtype=np.int32), np.empty(height * width, dtype=np.int32)
    count = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            is_face = u[y, x] < 0
            if (
                is_face != (u[y, x - 1] < 0)
                or is_face != (u[y, x + 1] < 0)
                or is_face != (u[y - 1, x] < 0)
                or is_face != (u[y + 1, x] < 0)
            ):
                rows[count], columns[count] = y, x
                count += 1
    smooth = np.empty((count, 4), dtype=np.float32)
    for i in range(count):
        y, x = rows[i], columns[i]
        for k in range(4):
            plane = portrait[k]
            corners = plane[y - 1, x - 1] + plane[y - 1, x + 1] + plane[y + 1, x - 1] + plane[y + 1, x + 1]
            sides = plane[y - 1, x] + plane[y + 1, x] + plane[y, x - 1] + plane[y, x + 1]
            smooth[i, k] = (4 * plane[y, x] + 2 * sides + corners) / 16
    for i in range(count):
        portrait[:, rows[i], columns[i]] = smooth[i]


@njit(cache=True, nogil=True)
def _compose(portrait, background, picture, color, matte):  # type: ignore[no-untyped-def]
    full, half, zero = np.float32(255), np.float32(0.5), np.float32(0)
    side, clear = portrait.shape[2], np.float32(CLEAR)
    share, behind = np.empty(side, dtype=np.float32), np.empty(side, dtype=np.float32)
    opacity, straight, mixed = np.empty(side, np.int32), np.empty(side, np.int32), np.empty(side, np.int32)
    for y in range(portrait.shape[1]):
        alpha = portrait[3, y]
        for x in range(side):
            share[x] = alpha[x] if alpha[x] >= clear else zero
            opacity[x] = np.int32(share[x] * full + half)
        for x in range(side):
            matte[y, x] = opacity[x]
        for k in range(3):
            plane = portrait[k, y]
            for x in range(side):
                behind[x] = background[y, x, k]
            for x in range(side):
                value = min(max(plane[x] * full, zero), full)
                straight[x] = np.int32(value + half)
                mixed[x] = np.int32(behind[x] + share[x] * (value - behind[x]) + half)
            for x in range(side):
                color[y, x, k], picture[y, x, k] = straight[x], mixed[x]
