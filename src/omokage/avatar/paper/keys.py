"""Where each tensor of an official checkpoint goes: names of the style networks (specification 2.6).

Every tensor is either renamed or, when it is a filter that we compute, dropped; none is split, joined or transposed.
Official shapes keep ones that ours do not: (1, O, I, k, k) of a modulated kernel, (1, C, 1, 1) of a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

from omokage.avatar.paper.config import (
    DiscriminatorConfig,
    PortraitConfig,
    StyleConfig,
    StyleUNetConfig,
    TextureConfig,
    UNetConfig,
)
from omokage.official import KeyMap

_BANDS = ("ll", "lh", "hl", "hh")
# Name of an official entry and of ours, None when it is dropped.
_Pairs = Iterator[tuple[str, str | None]]


def portrait_keys(config: PortraitConfig) -> KeyMap:
    """The whole generator, official entries "i_g" and "g_ema"."""

    def pairs() -> _Pairs:
        yield from _mapping(config.style)
        for transform in ("dwt", "iwt", "iwt_1", "iwt_4"):
            yield from _transform(transform)
        yield from _unet(config.foreground, "foreground.", "_0")
        yield from _decoder_level("widen", "tex_up.0", "tex_up.1", "tex_up.2")
        yield from _conv("mask", "get_mask")
        yield from _down_block("condition", "cond_addition")
        yield from _unet(config.image, "image.", "_1")

    return _key_map(pairs())


def style_unet_keys(config: StyleUNetConfig) -> KeyMap:
    """The single network, official entries "g" and "g_ema" of StyleUNet."""

    def pairs() -> _Pairs:
        yield from _mapping(config.style)
        yield from _transform("dwt")
        yield from _transform("iwt")
        yield from _unet(config.unet, "unet.", "")

    return _key_map(pairs())


def texture_keys(config: TextureConfig, style: StyleConfig) -> KeyMap:
    """A texture generator, official entries "f_g" and "b_g"."""

    def pairs() -> _Pairs:
        yield from _mapping(style)
        yield "input.input", "constant"
        for level in range(len(config.widths)):
            yield from _numbered_level(f"levels.{level}", level, "")
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            yield f"batchnorm.{name}", f"norm.{name}"

    return _key_map(pairs())


def discriminator_keys(config: DiscriminatorConfig) -> KeyMap:
    """The discriminator, official entry "d"; its biases lie in the activations."""

    def pairs() -> _Pairs:
        yield from _transform("dwt")
        count = len(config.widths)
        for level in range(count):
            yield from _from_bands(f"levels.{level}.read", f"from_rgbs.{level}", bias=1, is_halving=level > 0)
            yield from _down_block(f"levels.{level}.down", f"convs.{level}", bias=1)
        yield from _from_bands("read", f"from_rgbs.{count}", bias=1)
        yield from _conv("conv", "final_conv", bias=1)
        for ours, theirs in (("hidden", "final_linear.0"), ("verdict", "final_linear.1")):
            yield from _same(ours, theirs)

    return _key_map(pairs())


def _key_map(pairs: _Pairs) -> KeyMap:
    listed = list(pairs)
    return KeyMap(
        {theirs: ours for theirs, ours in listed if ours is not None},
        frozenset(theirs for theirs, ours in listed if ours is None),
    )


def _same(ours: str, theirs: str) -> _Pairs:
    for name in ("weight", "bias"):
        yield f"{theirs}.{name}", f"{ours}.{name}"


def _transform(theirs: str) -> _Pairs:
    for band in _BANDS:
        yield f"{theirs}.{band}", None


def _mapping(style: StyleConfig) -> _Pairs:
    for layer in range(style.layers):
        yield from _same(f"mapping.layers.{layer}", f"mapping.{2 * layer}")


def _unet(config: UNetConfig, ours: str, suffix: str) -> _Pairs:
    for level in range(len(config.encoder)):
        yield from _from_bands(f"{ours}encoder.{level}.read", f"from_rgbs{suffix}.{level}")
        yield from _down_block(f"{ours}encoder.{level}.down", f"cond_convs{suffix}.{level}")
    # The official code counts the joins from the finest level downwards, the bottleneck is the last.
    yield from _conv(f"{ours}bottleneck", f"comb_convs{suffix}.{config.joins}")
    for join in range(config.joins):
        yield from _conv(f"{ours}join.{join}", f"comb_convs{suffix}.{config.joins - 1 - join}")
    for level in range(len(config.decoder)):
        yield from _numbered_level(f"{ours}decoder.{level}", level, suffix)


def _numbered_level(ours: str, level: int, suffix: str) -> _Pairs:
    convs = f"convs{suffix}"
    yield from _decoder_level(
        ours, f"{convs}.{2 * level}", f"{convs}.{2 * level + 1}", f"to_rgbs{suffix}.{level}"
    )


def _decoder_level(ours: str, grow: str, refine: str, write: str) -> _Pairs:
    for name, theirs in (("grow", grow), ("refine", refine)):
        yield f"{theirs}.bias", f"{ours}.{name}.bias"
        yield f"{theirs}.noise.weight", f"{ours}.{name}.noise_strength"
        yield from _modulated(f"{ours}.{name}", theirs)
    yield f"{grow}.conv.blur.kernel", None
    yield f"{write}.bias", f"{ours}.write.bias"
    yield f"{write}.upsample.kernel", None
    yield from _modulated(f"{ours}.write", write)
    for transform in ("iwt", "dwt"):
        yield from _transform(f"{write}.{transform}")


def _modulated(ours: str, theirs: str) -> _Pairs:
    yield f"{theirs}.conv.weight", f"{ours}.conv.weight"
    yield from _same(f"{ours}.conv.style", f"{theirs}.conv.modulation")


def _from_bands(ours: str, theirs: str, *, bias: int = 0, is_halving: bool = True) -> _Pairs:
    yield from _conv(f"{ours}.read", f"{theirs}.conv", bias=bias)
    if is_halving:
        yield f"{theirs}.downsample.kernel", None
        for transform in ("iwt", "dwt"):
            yield from _transform(f"{theirs}.{transform}")


def _down_block(ours: str, theirs: str, *, bias: int = 0) -> _Pairs:
    yield from _conv(f"{ours}.keep", f"{theirs}.conv1", bias=bias)
    yield f"{theirs}.conv2.0.kernel", None
    yield f"{theirs}.conv2.1.weight", f"{ours}.halve.weight"
    yield f"{theirs}.conv2.{1 + bias}.bias", f"{ours}.halve.bias"


def _conv(ours: str, theirs: str, *, bias: int = 0) -> _Pairs:
    """bias: place of the module that holds it, in the official sequence."""
    yield f"{theirs}.0.weight", f"{ours}.weight"
    yield f"{theirs}.{bias}.bias", f"{ours}.bias"
