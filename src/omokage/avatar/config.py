"""Sizes of the avatar network. A preset is a function; every field of `AvatarConfig` is spelled out there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from omokage.config import Config
from omokage.errors import InputError


@dataclass(frozen=True)
class AvatarConfig(Config):
    """Architecture of one avatar generator.

    size: side of the square output in pixels.
    wavelet_levels: depth of the Haar head; the trunk runs on a grid of size / 2**wavelet_levels cells.
    widths: channels of the U-Net from the grid downwards, each level half the side of the one before.
    stem_kernel, head_kernel: side of the first convolution, which reads the cells' colors, and of the last ones, which
    write colors and offset; they have many channels on the finest grid, and 1 costs a ninth of 3.
    texture_size: texels a side of each of the two charts (face, sheet).
    texture_channels: learned features a texel, beside colour and opacity.
    texture_modes: ways in which the colours of each chart change with pose and expression, at half its resolution.
    code_size: length of the appearance code.
    """

    size: int
    wavelet_levels: int
    widths: tuple[int, ...]
    stem_kernel: int
    head_kernel: int
    texture_size: int
    texture_channels: int
    texture_modes: int
    code_size: int

    def __post_init__(self) -> None:
        coarsest = 2 ** (self.wavelet_levels + len(self.widths) - 1)
        if self.size % coarsest:
            raise InputError(
                f"an avatar's size must be a multiple of {coarsest} for this preset, got {self.size}"
            )

    @property
    def grid(self) -> int:
        """Side of the trunk's grid, in cells."""
        return self.size >> self.wavelet_levels


def compact_128() -> AvatarConfig:
    """For tests and previews."""
    return AvatarConfig(
        size=128,
        wavelet_levels=2,
        widths=(32, 48, 64),
        stem_kernel=3,
        head_kernel=1,
        texture_size=128,
        texture_channels=8,
        texture_modes=16,
        code_size=8,
    )


def compact_256() -> AvatarConfig:
    """The default on a CPU."""
    return AvatarConfig(
        size=256,
        wavelet_levels=2,
        widths=(40, 64, 96, 128),
        stem_kernel=3,
        head_kernel=3,
        texture_size=256,
        texture_channels=16,
        texture_modes=32,
        code_size=8,
    )


def compact_512() -> AvatarConfig:
    """Four times the pixels on the same grid: a cell is 8 pixels wide, and three wavelet levels carry its detail."""
    return AvatarConfig(
        size=512,
        wavelet_levels=3,
        widths=(40, 64, 96, 128),
        stem_kernel=1,
        head_kernel=1,
        texture_size=512,
        texture_channels=16,
        texture_modes=16,
        code_size=8,
    )


PRESETS = {128: compact_128, 256: compact_256, 512: compact_512}


def nearest_preset(size: int) -> AvatarConfig:
    """Sizes of a composition of `size` pixels, a power of two, whether there is a preset of it or not: the nearest
    preset's grid, with more or fewer pixels in a cell."""
    nearest = PRESETS[min(PRESETS, key=lambda known: abs(known - size))]()
    levels = nearest.wavelet_levels + round(math.log2(size / nearest.size))
    return replace(nearest, size=size, texture_size=size, wavelet_levels=max(1, levels))


def preset_for(size: int) -> AvatarConfig:
    """The preset whose output is `size` pixels. Raises InputError for a size that has none."""
    if size not in PRESETS:
        raise InputError(f"there is no avatar of size {size}; choose one of {', '.join(map(str, PRESETS))}")
    return PRESETS[size]()
