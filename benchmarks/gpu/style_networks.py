"""The networks that `style_avatar.py` times: ours with weights drawn by name, and the generator as the released code
goes about it.

The released graph is written from the specification (2.1), as a plain reader of the paper would: a kernel of its own
for every sample, modulated at every call, in one grouped convolution; wavelets by their four filters; the background's
texture enlarged for every picture. Its numbers are those of our unfolded networks, which the rows say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from golden_fill import draw, is_constant, weight
from omokage.avatar.paper import keys
from omokage.avatar.paper.config import (
    BANDS,
    STYLE,
    DiscriminatorConfig,
    PortraitConfig,
    StyleUNetConfig,
    TextureConfig,
    UNetConfig,
    paper_portrait,
    released_discriminator,
    released_style_unet,
)
from omokage.avatar.paper.discriminator import Discriminator
from omokage.avatar.paper.filters import DoubleBands, HalveBands
from omokage.avatar.paper.layers import ModulatedConv
from omokage.avatar.paper.networks import AvatarNetworks
from omokage.avatar.paper.portrait import PortraitGenerator, draw_noise
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.paper.time_code import REST_TIME, time_code
from omokage.avatar.paper.unet import StyleUNet
from omokage.avatar.paper.window import centred, cut_background, face_cells, to_cells
from omokage.official import KeyMap

MESHES = 4  # different inputs that are drawn in turn


@dataclass(frozen=True)
class Sizes:
    """Of all networks. restoring: the StyleUNet from a picture to one of the same size."""

    name: str
    portrait: PortraitConfig
    critic: DiscriminatorConfig
    drawing: StyleUNetConfig
    restoring: StyleUNetConfig


def released() -> Sizes:
    return Sizes(
        "released",
        paper_portrait(),
        released_discriminator(),
        released_style_unet(256),
        released_style_unet(1024),
    )


def tiny() -> Sizes:
    """For tests: pictures of 64 pixels."""
    unet = UNetConfig(stem=6, encoder=(12, 12), decoder=(12, 12, 8, 6, 4), joins=1)
    portrait = PortraitConfig(
        size=64,
        style=STYLE,
        foreground=UNetConfig(stem=4, encoder=(8, 8), decoder=(8, 8), joins=1),
        lift=6,
        image=unet,
        texture=TextureConfig(base=4, constant=12, widths=(8,)),
        rounded_window=False,
        released_border=False,
    )
    critic = DiscriminatorConfig(size=64, channels=6, stem=4, widths=(6, 8, 8))
    small = StyleUNetConfig(32, 64, STYLE, UNetConfig(stem=6, encoder=(8, 8), decoder=(8, 8, 6, 4), joins=1))
    return Sizes("tiny", portrait, critic, small, small)


SIZES = {"released": released, "tiny": tiny}


# Rows that make the same network again take the same numbers.
drawn_weight = cache(weight)


def named(network: nn.Module, maps: KeyMap, entry: str) -> None:
    """Fill a network by its official names: activations stay near 1, and noise counts."""
    own = network.state_dict()
    filled = {
        ours: torch.from_numpy(
            drawn_weight(f"{entry}.{theirs}", theirs, tuple(own[ours].shape), equalised=True)
        )
        for theirs, ours in maps.names.items()
        if not is_constant(theirs)
    }
    network.load_state_dict(filled, strict=False)
    network.eval().requires_grad_(False)


def avatar_of(config: PortraitConfig, device: torch.device) -> AvatarNetworks:
    """An avatar whose generator is filled by name, with textures and noise, on the device."""
    generator = PortraitGenerator(config)
    named(generator, keys.portrait_keys(config), "g_ema")

    def texture(part: str) -> Texture:
        grid = config.grid
        features, bands = (
            torch.from_numpy(draw(f"input:{part}.{kind}", {"shape": shape, "dist": "normal", "std": 0.5}))
            for kind, shape in (
                ("features", (1, config.channels, grid, grid)),
                ("bands", (1, BANDS, grid, grid)),
            )
        )
        return Texture(features, bands)

    face, background = texture("face"), texture("background")
    return AvatarNetworks(generator, face, background, draw_noise(config, 0), REST_TIME).to(device)


def meshes(config: PortraitConfig, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Drawn face meshes and their places in the texture, as inputs of a picture: blocks of noise on half of it."""
    side, found = config.size // 4, []
    for number in range(MESHES):
        spec = {"shape": (1, 3, side, side), "dist": "octaves", "blocks": [1, 4, 16], "std": [0.1, 0.2, 0.4]}
        render = torch.from_numpy(draw(f"input:mesh.{number}", spec)).clamp(-1, 1)
        places = {"shape": (1, 3, side, side), "dist": "cells", "n": config.grid}
        uv = torch.from_numpy(draw(f"input:uv.{number}", places))
        uv[:, 2], render[..., : side // 4, :] = 1.0, -1.0
        uv[..., : side // 4, :] = -1.0
        found.append((render.to(device), uv.to(device)))
    return found


def other_networks(sizes: Sizes) -> dict[str, Callable[[], tuple[nn.Module, list[tuple[Tensor, ...]]]]]:
    """Name -> makes one of the other networks and its inputs, on the processor."""
    portrait, style = sizes.portrait, sizes.portrait.style.size

    def drawn(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(draw(f"input:{name}", {"shape": shape, "dist": "normal", "std": 0.5}))

    def codes(name: str) -> list[Tensor]:
        return [drawn(f"{name}.code.{number}", 1, style) for number in range(MESHES)]

    def texture() -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
        network = TextureGenerator(portrait.texture, portrait.style)
        named(network, keys.texture_keys(portrait.texture, portrait.style), "f_g")
        return network, [(code,) for code in codes("texture")]

    def critic() -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
        config = sizes.critic
        network = Discriminator(config)
        named(network, keys.discriminator_keys(config), "d")
        shape = (1, config.channels, config.size, config.size)
        return network, [(drawn(f"critic.{number}", *shape),) for number in range(MESHES)]

    def style_unet(config: StyleUNetConfig) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
        network, side = StyleUNet(config), config.input_size
        named(network, keys.style_unet_keys(config), "g")
        pictures = [drawn(f"picture.{number}", 1, 3, side, side) for number in range(MESHES)]
        return network, list(zip(pictures, codes("style_unet"), strict=True))

    return {
        "texture generator": texture,
        "discriminator": critic,
        "StyleUNet that draws": partial(style_unet, sizes.drawing),
        "StyleUNet that restores": partial(style_unet, sizes.restoring),
    }


# the generator as the released code goes about it


def official_graph(avatar: AvatarNetworks) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """The unfolded generator in eager operations; it takes the avatar's own network and changes how that computes."""
    generator, middle = avatar.generator, centred(avatar.config.grid)
    for module in generator.modules():
        if isinstance(module, ModulatedConv):
            module.forward = partial(sample_conv, module)
        elif isinstance(module, DoubleBands):
            module.forward = partial(doubled_bands, module)
        elif isinstance(module, HalveBands):
            module.forward = partial(halved_bands, module)

    @torch.no_grad()
    def picture(render: Tensor, uv: Tensor) -> tuple[Tensor, ...]:
        cells = to_cells(uv)
        times = torch.full((len(render), 1), avatar.time, device=render.device)
        behind = avatar.background
        drawn = generator(
            render,
            cells[:, :2],
            face_cells(cells),
            avatar.face,
            Texture(cut_background(behind.features, middle), cut_background(behind.bands, middle)),
            time_code(times, avatar.config.style.size),
            noise=avatar.noise,
        )
        return drawn.image, drawn.mask

    return picture


def sample_conv(conv: Any, features: Tensor, style: Tensor) -> Tensor:
    """StyleGAN2's modulated convolution with a kernel for every sample (Karras et al. 2020, section 2.2)."""
    batch, inputs, height, width = features.shape
    kernel = conv.weight * conv.scale * conv.style(style)[:, None, :, None, None]
    if conv.is_demodulated:
        kernel = kernel * torch.rsqrt(kernel.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    outputs = kernel.shape[1]
    joined = features.reshape(1, batch * inputs, height, width)
    if conv.blur is None:
        result = F.conv2d(joined, kernel.flatten(0, 1), padding=conv.padding, groups=batch)
        return result.reshape(batch, outputs, *result.shape[-2:])
    grown = F.conv_transpose2d(joined, kernel.transpose(1, 2).flatten(0, 1), stride=2, groups=batch)
    blurred: Tensor = conv.blur(grown.reshape(batch, outputs, *grown.shape[-2:]))
    return blurred


@cache
def wavelet_filters(channels: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The four of the Haar transform, (channels, 1, 2, 2) each: LL, LH, HL, HH."""
    signs = (((1, 1), (1, 1)), ((1, 1), (-1, -1)), ((1, -1), (1, -1)), ((1, -1), (-1, 1)))
    return [torch.tensor(band, dtype=dtype, device=device).div(2).repeat(channels, 1, 1, 1) for band in signs]


def filtered_haar(image: Tensor) -> Tensor:
    """One strided convolution for every band."""
    channels = image.shape[1]
    filters = wavelet_filters(channels, image.dtype, image.device)
    return torch.cat([F.conv2d(image, band, stride=2, groups=channels) for band in filters], dim=1)


def filtered_inverse(bands: Tensor) -> Tensor:
    """One transposed convolution for every band, and their sum."""
    channels, total = bands.shape[1] // 4, None
    filters = wavelet_filters(channels, bands.dtype, bands.device)
    for part, band in zip(bands.chunk(4, dim=1), filters, strict=True):
        grown = F.conv_transpose2d(part, band, stride=2, groups=channels)
        total = grown if total is None else total + grown
    assert total is not None
    return total


def doubled_bands(module: Any, bands: Tensor) -> Tensor:
    grown = F.conv_transpose2d(
        filtered_inverse(bands), module.kernel, stride=2, padding=1, groups=module.channels
    )
    return filtered_haar(grown)


def halved_bands(module: Any, bands: Tensor) -> Tensor:
    halved = F.conv2d(filtered_inverse(bands), module.kernel, stride=2, padding=1, groups=module.channels)
    return filtered_haar(halved)
