"""The explicit avatar, by direct computation from the recording: still plate, texture atlas, matte.

Every texel's place on the mesh is known, so its color is a weighted mean of the pixels it falls on in the frames that
see it: no training. The composition of the two is the avatar's very first picture.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.appearance import principal_modes
from omokage.avatar.conditioning import AvatarState, Conditioner
from omokage.geometry.camera import rotation_matrix
from omokage.geometry.rasterize import rasterize

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sample:
    """One training frame at output size: image uint8 (S, S, 3), matte uint8 (S, S), and what the face does in it."""

    image: UInt8
    matte: UInt8
    state: AvatarState


def estimate_plate(images: UInt8, mattes: UInt8) -> UInt8:
    """Still background (S, S, 3): per-pixel median of the frames (T, S, S, 3) where the matte (T, S, S) is clear.

    Pixels that the person always covers are filled smoothly from around.
    """
    clear = mattes < 16
    values = np.ma.masked_array(images, np.broadcast_to(~clear[..., None], images.shape))
    plate = np.asarray(np.ma.median(values, axis=0).filled(0), dtype=np.uint8)  # type: ignore[no-untyped-call]
    known = clear.sum(axis=0) >= max(1, min(3, len(images) // 20))
    return fill_holes(plate, known)


def fill_holes(image: NDArray[np.uint8] | Float32, known: NDArray[np.bool_]) -> UInt8:
    """Fill the unknown pixels of uint8 (H, W, C) from the known ones, coarse to fine (pull-push)."""
    levels: list[tuple[Float32, Float32]] = [
        (np.where(known[..., None], image, 0).astype(np.float32), known.astype(np.float32))
    ]
    while min(levels[-1][1].shape) > 1:
        color, weight = levels[-1]
        height, width = weight.shape
        shape = ((width + 1) // 2, (height + 1) // 2)
        weight_below = cv2.resize(weight, shape, interpolation=cv2.INTER_AREA)
        color_below = cv2.resize(color * weight[..., None], shape, interpolation=cv2.INTER_AREA)
        color_below = color_below.reshape(*weight_below.shape, -1) / np.maximum(weight_below, 1e-6)[..., None]
        weight_below = np.minimum(weight_below * 4, 1.0)
        levels.append((np.asarray(color_below, np.float32), np.asarray(weight_below, np.float32)))
    filled = np.asarray(levels[-1][0])
    for color, weight in reversed(levels[:-1]):
        wider = cv2.resize(filled, weight.shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(color.shape)
        filled = color * weight[..., None] + np.asarray(wider, np.float32) * (1 - weight[..., None])
    return np.asarray(np.clip(filled + 0.5, 0, 255), dtype=np.uint8)


@dataclass(frozen=True)
class Texels:
    """The n texels of the atlas that lie on the mesh, at `side` texels a chart.

    inside: bool (side, 2 side), where they are.  corners: (n, 3), vertices of the triangle of each, with barycentric
    `weights` (n, 3).  is_sheet: bool (n,).  tolerance: (n,) cm, how far behind the nearest surface one counts as seen.
    """

    side: int
    inside: NDArray[np.bool_]
    corners: NDArray[np.int32]
    weights: NDArray[np.float64]
    is_sheet: NDArray[np.bool_]
    tolerance: NDArray[np.float64]

    @classmethod
    def of(cls, conditioner: Conditioner, side: int) -> Texels:
        at = (conditioner.atlas_uv.astype(np.float64) + 1) / 2 * (2 * side, side)
        flat = np.concatenate([at, np.ones((len(at), 1))], axis=1)
        raster = rasterize(flat, conditioner.triangles, side, 2 * side)
        inside = raster.is_covered
        triangle = raster.triangle_id[inside]
        is_sheet = triangle >= len(conditioner.model.triangles)
        # Eyeballs and teeth lie just behind lids and lips: without a narrow tolerance the skin's color bleeds in.
        is_behind = ~is_sheet & (triangle >= conditioner.model.skin_triangle_count)
        corners = conditioner.triangles[triangle]
        weights = raster.barycentric[inside].astype(np.float64)
        return cls(side, inside, corners, weights, is_sheet, np.where(is_behind, 0.1, 0.4))

    def look_up(self, conditioner: Conditioner, sample: Sample) -> tuple[Float32, NDArray[np.bool_]]:
        """Color and matte (n, 4) of one frame in 0..255, and which texels it shows, bool (n,)."""
        size = conditioner.config.size
        points, _ = conditioner.project(sample.state)
        raster = rasterize(points, conditioner.triangles, size, size)
        depth = np.where(
            raster.is_covered,
            (points[conditioner.triangles[raster.triangle_id], 2] * raster.barycentric).sum(-1),
            np.inf,
        )
        at = np.einsum("nkc,nk->nc", points[self.corners], self.weights)
        x, y = at[:, 0].astype(np.float32) - 0.5, at[:, 1].astype(np.float32) - 0.5
        column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
        in_picture = (column >= 0) & (row >= 0) & (column < size) & (row < size)
        nearest = depth[row.clip(0, size - 1), column.clip(0, size - 1)]
        is_seen = in_picture & (at[:, 2] <= nearest + self.tolerance)
        rgba = np.dstack([sample.image, sample.matte]).astype(np.float32)
        map_xy = np.zeros((*self.inside.shape, 2), dtype=np.float32)
        map_xy[self.inside] = np.stack([x, y], axis=1)
        values = cv2.remap(
            rgba, map_xy[..., 0], map_xy[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(values[self.inside], dtype=np.float32), is_seen


def unproject_texture(conditioner: Conditioner, samples: Iterable[Sample]) -> UInt8:
    """Color and matte of the atlas, uint8 (A, 2A, 4): weighted mean over the frames in which a texel is seen.

    Frames near the rest pose weigh more (they are least foreshortened), the sheet's color counts where the matte does.
    """
    side = conditioner.config.texture_size
    texels = Texels.of(conditioner, side)
    inside, count = texels.inside, len(texels.corners)
    rest = rotation_matrix(conditioner.sheet.rest.rotation)
    color, opacity = np.zeros((count, 3)), np.zeros(count)
    color_weight, opacity_weight = np.full(count, 1e-9), np.full(count, 1e-9)
    frames = 0
    for sample, (values, is_seen) in side_by_side(
        lambda sample: (sample, texels.look_up(conditioner, sample)), samples
    ):
        frames += 1
        away = np.linalg.norm(rotation_matrix(sample.state.pose.rotation) - rest)
        weight = is_seen * np.exp(-0.5 * (away / 0.35) ** 2)
        by_matte = weight * np.where(texels.is_sheet, (values[:, 3] / 255) ** 2 + 1e-3, 1.0)
        color += by_matte[:, None] * values[:, :3]
        color_weight += by_matte
        opacity += weight * values[:, 3]
        opacity_weight += weight

    atlas = np.zeros((*inside.shape, 4), dtype=np.float32)
    atlas[inside] = np.concatenate(
        [color / color_weight[:, None], (opacity / opacity_weight)[:, None]], axis=1
    )
    known = np.zeros(inside.shape, dtype=bool)
    known[inside] = opacity_weight > 1e-6
    # The mouth's inside is seen in slits, by a few frames each: the mean of several is noise unless it is smoothed.
    is_mouth = np.zeros(inside.shape, dtype=bool)
    is_mouth[inside] = np.isin(texels.corners, conditioner.model.mouth_interior).all(axis=1) & (frames > 1)
    seen_weight = np.zeros(inside.shape)
    seen_weight[inside] = np.where(is_mouth[inside], opacity_weight, 0.0)
    blurred = cv2.GaussianBlur(np.dstack([atlas * seen_weight[..., None], seen_weight]), (0, 0), side / 64)
    atlas[is_mouth] = (blurred[..., :4] / np.maximum(blurred[..., 4:], 1e-9))[is_mouth]
    charts = [fill_holes(atlas[:, s], known[:, s]) for s in (slice(0, side), slice(side, None))]
    return np.concatenate(charts, axis=1)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in order, computed on all cores, a few items ahead (frames are large)."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def texture_modes(
    conditioner: Conditioner, samples: Sequence[Sample], atlas: UInt8
) -> tuple[Float32, NDArray[np.float64]]:
    """How the frames' textures differ from the atlas: modes float32 (K, A / 2, A, 4) in units of 255, and their
    strengths (2, T, K) in the T samples, of each chart (face, sheet)."""
    side, count = conditioner.config.texture_size // 2, conditioner.config.texture_modes
    texels = Texels.of(conditioner, side)
    mean = cv2.resize(atlas, (2 * side, side), interpolation=cv2.INTER_AREA)[texels.inside].astype(np.float32)
    differences = np.zeros((len(samples), *mean.shape), dtype=np.float32)
    seen = side_by_side(lambda sample: texels.look_up(conditioner, sample), samples)
    for difference, (values, is_seen) in zip(differences, seen, strict=True):
        difference[is_seen] = (values - mean)[is_seen] / 255
    modes = np.zeros((count, *texels.inside.shape, 4), dtype=np.float32)
    strengths = []
    for part in (~texels.is_sheet, texels.is_sheet):
        found, strength = principal_modes(differences[:, part].reshape(len(samples), -1), count)
        where = np.zeros(texels.inside.shape, dtype=bool)
        where[texels.inside] = part
        modes[:, where] = found.reshape(count, -1, 4)
        strengths.append(strength)
    return modes, np.stack(strengths)


def mix_texture(atlas: UInt8, modes: Float32, mixture: Float32) -> UInt8:
    """The atlas uint8 (A, 2A, 4) changed by modes (K, A / 2, A, 4) of strengths (2, K)."""
    charts = zip(mixture, np.split(modes, 2, axis=2), strict=True)
    change = np.concatenate([np.tensordot(of, part, axes=1) for of, part in charts], axis=1)
    wide = cv2.resize(change, atlas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(atlas + 255 * wide + 0.5, 0, 255), dtype=np.uint8)


def explicit_portrait(atlas: UInt8, warp: Float32, plate: UInt8) -> UInt8:
    """The composition before training: atlas uint8 (A, 2A, 4) pulled by warp (2, S, S), over the plate (S, S, 3)."""
    height, width = atlas.shape[:2]
    x, y = (warp[0] + 1) / 2 * width - 0.5, (warp[1] + 1) / 2 * height - 0.5
    pulled = cv2.remap(atlas, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    matte = pulled[..., 3:] / 255
    return np.asarray(pulled[..., :3] * matte + plate * (1 - matte) + 0.5, dtype=np.float32).astype(np.uint8)
