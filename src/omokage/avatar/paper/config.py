"""Sizes of the style networks. A preset is a function; the released sizes and small ones for tests.

Widths are channels of a level; grids follow from them. A portrait of S pixels has a face mesh drawn on S/4, features
that are composed on G = S/8 cells, and a foreground that is drawn on a canvas twice as wide as the picture, so that a
window can be moved over it (specification, table of grids).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from omokage.config import Config
from omokage.errors import InputError

BANDS = 12  # wavelet bands of an RGB picture
# Noise maps of the three finest levels in one tensor on G cells: 1 for G, 4 for 2G, 16 for 4G (specification 2.3 e).
NOISE_CHANNELS = 21


@dataclass(frozen=True)
class UNetConfig(Config):
    """Channels of the levels. stem: in front of the first.  encoder: each on half the grid of the one before.
    decoder: each on twice the grid.  joins: how many of the first decoder levels read the encoder's."""

    stem: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    joins: int

    def __post_init__(self) -> None:
        if not 0 <= self.joins < len(self.encoder) or self.joins > len(self.decoder):
            raise InputError(
                f"a U-Net of {len(self.encoder)} encoder levels can join at most {len(self.encoder) - 1}, "
                f"got {self.joins}"
            )


@dataclass(frozen=True)
class StyleConfig(Config):
    """size: length of code and style.  layers: of the mapping between them."""

    size: int
    layers: int


@dataclass(frozen=True)
class StyleUNetConfig(Config):
    """A style U-Net from a picture of `input_size` to one of `output_size` pixels (specification 2.5)."""

    input_size: int
    output_size: int
    style: StyleConfig
    unet: UNetConfig

    def __post_init__(self) -> None:
        bottleneck = self.input_size >> (len(self.unet.encoder) + 2)
        reached = bottleneck << (len(self.unet.decoder) + 1)
        if self.input_size % (4 << len(self.unet.encoder)) or reached != self.output_size:
            raise InputError(
                f"a style U-Net of these levels makes pictures of {reached} pixels from {self.input_size}, "
                f"not of {self.output_size}"
            )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output. Unknown names raise TypeError."""
        nested = {
            "style": StyleConfig.from_json(values["style"]),
            "unet": UNetConfig.from_json(values["unet"]),
        }
        return cls(**{**values, **nested})


@dataclass(frozen=True)
class TextureConfig(Config):
    """Generator of a neural texture. base: side of the learned constant.  constant: its channels.
    widths: channels of the levels, each twice the grid; the last ones are the texture's."""

    base: int
    constant: int
    widths: tuple[int, ...]

    @property
    def grid(self) -> int:
        """Side of the texture in cells."""
        return self.base << len(self.widths)


@dataclass(frozen=True)
class PortraitConfig(Config):
    """The whole StyleAvatar (specification 2.3) for pictures of `size` pixels.

    foreground: U-Net over the face mesh drawn on the canvas.  lift: channels of the level between its result and the
    wide features.  image: U-Net from composed features to the picture.  texture: of face and background.
    rounded_window: cut the window as the released code does, with its last row and column (even offsets), or its first
    (odd ones), one cell too far out (specification 1.3.6).  released_border: see `layers.HalvingConv`.
    """

    size: int
    style: StyleConfig
    foreground: UNetConfig
    lift: int
    image: UNetConfig
    texture: TextureConfig
    rounded_window: bool
    released_border: bool

    def __post_init__(self) -> None:
        fore, image = self.foreground, self.image
        levels = len(fore.decoder) == len(fore.encoder) and len(image.decoder) == len(image.encoder) + 3
        smallest = 8 << (1 + max(len(fore.encoder), len(image.encoder)))
        if not levels or self.size % smallest or self.texture.grid != self.grid:
            raise InputError(
                f"the levels of a portrait network do not fit its {self.size} pixels: as many decoder as encoder "
                f"levels in the foreground, 3 more in the image, a texture of {self.grid} cells, and a multiple of "
                f"{smallest} pixels are needed"
            )

    @property
    def grid(self) -> int:
        """G, side of the composed features in cells."""
        return self.size // 8

    @property
    def channels(self) -> int:
        """Of the composed features."""
        return self.texture.widths[-1]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output. Unknown names raise TypeError."""
        kinds: dict[str, type[Config]] = {
            "style": StyleConfig,
            "foreground": UNetConfig,
            "image": UNetConfig,
            "texture": TextureConfig,
        }
        nested = {name: kind.from_json(values[name]) for name, kind in kinds.items()}
        return cls(**{**values, **nested})


@dataclass(frozen=True)
class DiscriminatorConfig(Config):
    """size: of the pictures, pixels.  channels: of the pictures.  stem: in front of the first level.
    widths: channels of the levels, each half the grid, down to 4 cells a side."""

    size: int
    channels: int
    stem: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.size != 8 << len(self.widths):
            raise InputError(
                f"a discriminator of {len(self.widths)} levels judges pictures of {8 << len(self.widths)} pixels, "
                f"not of {self.size}"
            )


STYLE = StyleConfig(size=64, layers=4)


def released_width(side: int) -> int:
    """Channels of a grid in the released networks: 512 up to 64 cells a side, then halved at every doubling."""
    return min(512, 32768 // side)


def released_portrait() -> PortraitConfig:
    """47.5 million weights, 236 GFLOP a picture of 1024 pixels, with the window of the released training."""
    return PortraitConfig(
        size=1024,
        style=STYLE,
        foreground=UNetConfig(stem=32, encoder=(256, 256, 256), decoder=(256, 256, 128), joins=1),
        lift=128,
        image=UNetConfig(stem=128, encoder=(512, 512, 512), decoder=(512, 512, 512, 256, 128, 64), joins=2),
        texture=TextureConfig(base=4, constant=512, widths=(512, 512, 512, 512, 256)),
        rounded_window=True,
        released_border=False,
    )


def paper_portrait() -> PortraitConfig:
    """The released sizes with an exact window: what `omokage create --preset paper` trains."""
    return replace(released_portrait(), rounded_window=False)


def small_portrait() -> PortraitConfig:
    """For tests: pictures of 128 pixels."""
    return PortraitConfig(
        size=128,
        style=STYLE,
        foreground=UNetConfig(stem=4, encoder=(8, 8), decoder=(8, 8), joins=1),
        lift=6,
        image=UNetConfig(stem=6, encoder=(12, 12), decoder=(12, 12, 8, 6, 4), joins=1),
        texture=TextureConfig(base=4, constant=12, widths=(12, 8)),
        rounded_window=True,
        released_border=False,
    )


def released_style_unet(input_size: int, output_size: int = 1024) -> StyleUNetConfig:
    """The single network: 256 -> 1024 draws a portrait from a face mesh, 1024 -> 1024 restores pictures.

    Its encoder goes down to 8 cells a side.
    """
    grids = [input_size // 8]
    while grids[-1] > 8:
        grids.append(grids[-1] // 2)
    decoder: list[int] = []
    while grids[-1] << (len(decoder) + 2) <= output_size:
        decoder.append(released_width(grids[-1] << (len(decoder) + 1)))
    unet = UNetConfig(
        stem=released_width(input_size),
        encoder=tuple(released_width(grid) for grid in grids),
        decoder=tuple(decoder),
        joins=len(grids) - 1,
    )
    return StyleUNetConfig(input_size, output_size, STYLE, unet)


def released_discriminator(size: int = 1024, channels: int = 6) -> DiscriminatorConfig:
    """27.8 million weights at 1024 pixels; 6 channels are the picture and the drawn face mesh."""
    widths, grid = [], size // 4
    while grid >= 4:
        widths.append(released_width(grid))
        grid //= 2
    return DiscriminatorConfig(size, channels, released_width(size), tuple(widths))


def small_discriminator() -> DiscriminatorConfig:
    """For tests, beside `small_portrait`."""
    return DiscriminatorConfig(size=128, channels=6, stem=4, widths=(6, 8, 8, 8))
