"""Every golden output of the style networks, computed with ours: the tests' comparisons, and those of a full folder.

    python tests/paper_golden.py FOLDER [NAME...] [--output benchmarks/results/paper-parity.json]

prints the largest share of a tolerance that each network takes, and each output above a tenth; the output file keeps
the share of every single one. The full-size networks need 5 GB and some minutes on one core; the tests use the small
ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golden_fill import Golden
from omokage.avatar.paper import keys, layers, window
from omokage.avatar.paper.config import (
    PortraitConfig,
    StyleUNetConfig,
    released_discriminator,
    released_portrait,
    released_style_unet,
)
from omokage.avatar.paper.discriminator import (
    Discriminator,
    batch_deviation,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from omokage.avatar.paper.filters import Blur, Double, Halve
from omokage.avatar.paper.portrait import NoiseMaps, Portrait, PortraitGenerator
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.paper.time_code import RELEASED_TIME, time_code
from omokage.avatar.paper.unet import StyleUNet
from omokage.avatar.wavelets import haar, inverse_haar
from omokage.official import KeyMap

Outputs = Iterator[tuple[str, Tensor]]


def fill(network: nn.Module, golden: Golden, name: str, keys: KeyMap) -> None:
    """Load golden weights by their official names; every one has a place, and every place gets one."""
    given, own = golden.weights(name), network.state_dict()
    assert golden.shapes(name).keys() == keys.names.keys() | keys.dropped
    filled = {
        ours: torch.from_numpy(given[theirs]).reshape(own[ours].shape)
        for theirs, ours in keys.names.items()
        if theirs in given
    }
    missing = own.keys() - filled.keys()
    assert missing <= {"norm.num_batches_tracked"}
    network.load_state_dict(filled, strict=False)
    network.requires_grad_(False)


def inputs(golden: Golden, *names: str) -> list[Tensor]:
    """On the default device, where networks are made, too: `with torch.device("cuda")` compares a card's numbers."""
    return [torch.from_numpy(golden.input(name)).to(torch.get_default_device()) for name in names]


# building blocks


def primitives(golden: Golden) -> Outputs:
    rgb, bands, feature, style = inputs(golden, "rgb", "bands", "feature", "style")
    skips, same, quarter = inputs(golden, "skip_bands", "skip_feature_same", "skip_quarter")
    noise, noise_up = inputs(golden, "noise", "noise_up")
    gained = layers.DISCRIMINATOR_GAIN

    def ready(name: str, block: nn.Module, names: dict[str, str], *dropped: str) -> nn.Module:
        fill(block, golden, name, KeyMap(names, frozenset(dropped)))
        return block

    wavelets = [f"{t}.{b}" for t in ("iwt", "dwt") for b in ("ll", "lh", "hl", "hh")]
    simple = {"weight": "weight", "bias": "bias"}
    yield "dwt", haar(rgb)
    yield "iwt", inverse_haar(bands)
    yield "upsample", Double(3)(rgb)
    yield "downsample", Halve(3)(rgb)
    yield "blur_after_up", Blur(3, 1, gain=4.0)(rgb)
    yield "blur_before_down", Blur(3, 2)(rgb)
    yield "pixel_norm", layers.unit_power(style)
    yield "equal_conv", ready("equal_conv", layers.Conv(6, 5, 3, gain=None, stride=2), simple)(feature)
    yield "equal_linear", ready("equal_linear", layers.Linear(8, 5), simple)(style)
    yield "d_equal_linear", ready("d_equal_linear", layers.Linear(8, 5, gain=gained), simple)(style)
    for prefix, place, gain in (("", 0, 1.0), ("d_", 1, gained)):
        names = {"0.weight": "weight", f"{place}.bias": "bias"}
        conv = ready(f"{prefix}conv_layer", layers.Conv(6, 5, 3, gain=gain), names)
        yield f"{prefix}conv_layer", conv(feature)
        names = {"1.weight": "weight", f"{place + 1}.bias": "bias"}
        down = layers.HalvingConv(6, 5, gain=gain)
        yield f"{prefix}conv_layer_down", ready(f"{prefix}conv_layer_down", down, names, "0.kernel")(feature)
        pairs = {f"conv1.{k}": f"keep.{v}" for k, v in (("0.weight", "weight"), (f"{place}.bias", "bias"))}
        pairs |= {f"conv2.{k}": f"halve.{v}" for k, v in names.items()}
        block = ready(f"{prefix}conv_block", layers.DownBlock(6, 5, gain=gain), pairs, "conv2.0.kernel")
        yield f"{prefix}conv_block", block(feature)
        pairs = {"conv.0.weight": "read.weight", f"conv.{place}.bias": "read.bias"}
        read = layers.FromBands(12, 6, gain=gain)
        ready(f"{prefix}from_rgb", read, pairs, "downsample.kernel", *wavelets)
        smaller, features = read(bands, None if prefix else quarter)
        yield f"{prefix}from_rgb.bands", smaller
        yield f"{prefix}from_rgb.feature", features
        if not prefix:
            yield "from_rgb.bands_noskip", smaller
            yield "from_rgb.feature_noskip", read(bands)[1]
    names = {"0.weight": "weight", "0.bias": "bias"}
    yield "conv_layer_linear", ready("conv_layer_linear", layers.Conv(6, 5, 3, gain=None), names)(feature)
    read = layers.FromBands(12, 6, is_halving=False)
    ready("from_rgb_same", read, {"conv.0.weight": "read.weight", "conv.0.bias": "read.bias"})
    for part, value in zip(("bands", "feature"), read(bands, same), strict=True):
        yield f"from_rgb_same.{part}", value
    modulated = {
        "weight": "weight",
        "modulation.weight": "style.weight",
        "modulation.bias": "style.bias",
    }
    plain = layers.ModulatedConv(6, 5, 3, 8)
    yield "mod_conv", ready("mod_conv", plain, modulated)(feature, style)
    doubling = layers.ModulatedConv(6, 5, 3, 8, is_doubling=True)
    yield "mod_conv_up", ready("mod_conv_up", doubling, modulated, "blur.kernel")(feature, style)
    pointwise = layers.ModulatedConv(6, 12, 1, 8, is_demodulated=False)
    yield "mod_conv_rgb", ready("mod_conv_rgb", pointwise, modulated)(feature, style)
    inner = {f"conv.{theirs}": f"conv.{ours}" for theirs, ours in modulated.items()} | {"bias": "bias"}
    styled = inner | {"noise.weight": "noise_strength"}
    conv = ready("styled_conv", layers.StyledConv(6, 5, 8), styled)
    yield "styled_conv.noise", conv(feature, style, noise)
    yield "styled_conv.plain", conv(feature, style)
    up = ready("styled_conv_up", layers.StyledConv(6, 5, 8, is_doubling=True), styled, "conv.blur.kernel")
    yield "styled_conv_up.noise", up(feature, style, noise_up)
    yield "styled_conv_up.plain", up(feature, style)
    linear = ready("styled_conv_linear", layers.StyledConv(6, 5, 8, is_activated=False), styled)
    yield "styled_conv_linear", linear(feature, style)
    write = ready("to_rgb", layers.ToBands(6, 12, 8), inner, "upsample.kernel", *wavelets)
    yield "to_rgb.skip", write(feature, style, skips)
    yield "to_rgb.noskip", write(feature, style)
    yield "time_code", time_code(*inputs(golden, "times"))
    yield "erode_1", window.erode(*inputs(golden, "mask"))


def windows(golden: Golden) -> Outputs:
    image, alpha, uv, uv_valid, render, wide, back = inputs(
        golden, "image", "alpha", "uv", "uv_valid", "render", "wide_feature", "back_feature"
    )
    for i, (dx, dy) in enumerate(golden.config["offsets"]):
        offset = (dx, dy)
        yield f"w{i}.image", window.cut_picture(image, offset)
        yield f"w{i}.uv_half", window.to_cells(window.cut_drawing(uv, offset))
        yield f"w{i}.render_for_concat", window.to_pixels(window.cut_drawing(render, offset))
        yield f"w{i}.background_mask", window.background_cells(window.cut_picture(alpha, offset))
        yield f"w{i}.face_mask", window.face_cells(window.to_cells(window.cut_drawing(uv_valid, offset)))
        yield f"w{i}.feature_window", window.cut_features(wide, offset, rounded=True)
        yield f"w{i}.back_feature", window.cut_background(back, offset)


# networks


class Watch:
    """Remembers what the named parts of a network return."""

    def __init__(self, network: nn.Module, names: dict[str, str]) -> None:
        self.seen: dict[str, Any] = {}
        for shown, name in names.items():
            network.get_submodule(name).register_forward_hook(self._keep(shown))

    def _keep(self, shown: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.seen[shown] = output

        return keep


def features(golden: Golden) -> Outputs:
    config = released_portrait()
    (code,) = inputs(golden, "code")
    for name in golden.meta["networks"]:
        network = TextureGenerator(config.texture, config.style).eval()
        fill(network, golden, name, keys.texture_keys(config.texture, config.style))
        yield f"{name}.latent", network.mapping(code)
        texture = network(code)
        yield f"{name}.feature_eval", texture.features
        yield f"{name}.skip", texture.bands
        if f"{name}.feature_train" in golden.outputs():
            yield f"{name}.feature_train", network.train()(code).features
            yield f"{name}.running_mean_after", network.norm.running_mean
            yield f"{name}.running_var_after", network.norm.running_var


def portrait_network(golden: Golden, name: str, config: PortraitConfig) -> PortraitGenerator:
    network = PortraitGenerator(config).eval()
    fill(network, golden, name, keys.portrait_keys(config))
    return network


def noise_maps(golden: Golden) -> NoiseMaps:
    return NoiseMaps(*inputs(golden, "noise_face", "noise_back", "noise_base"))


def unet(golden: Golden) -> Outputs:
    network = portrait_network(golden, "g_ema", released_portrait())
    render, uv, mask, code = inputs(golden, "render", "uv", "mask_face", "style")
    face = Texture(*inputs(golden, "feature_face", "skip_face"))
    back = Texture(*inputs(golden, "feature_back", "skip_back"))
    watch = Watch(
        network,
        {
            "latent": "mapping", "fg_enc0": "foreground.encoder.0", "fg_skip1": "foreground.decoder.1",
            "fg_enc2": "foreground.encoder.2", "fg_dec2": "foreground.decoder.2", "wide": "widen",
            "cond_addition": "condition", "enc0": "image.encoder.0", "enc1": "image.encoder.1",
            "enc2": "image.encoder.2",
        }
        | {f"dec_{16 << i}": f"image.decoder.{i}" for i in range(6)},
    )  # fmt: skip
    composed: dict[str, Tensor] = {}
    network.condition.register_forward_pre_hook(lambda _, given: composed.update(fused_feature=given[0]))
    network.image.register_forward_pre_hook(lambda _, given: composed.update(fused_skip=given[0]))
    for level, side in ((3, 128), (4, 256), (5, 512)):
        network.image.decoder[level].grow.register_forward_pre_hook(
            lambda _, given, side=side: composed.update({f"noise_{side}": given[2]})
        )
    for i, (dx, dy) in enumerate(golden.config["offsets"]):
        if f"w{i}.image" not in golden.outputs():
            continue
        result = network(render, uv, mask, face, back, code, offset=(dx, dy), noise=noise_maps(golden))
        found: dict[str, Any] = {**watch.seen, **composed, "mask": result.mask, "image": result.image}
        found["fg_skip1"] = found["fg_skip1"][1]
        found["fg_wide_feature"], found["fg_wide_skip"] = found.pop("wide")
        found["bands_512"] = found["dec_512"][1]
        for name, value in found.items():
            if f"w{i}.{name}" in golden.outputs():
                last = 1 if name.startswith(("fg_enc", "enc")) else 0
                yield f"w{i}.{name}", value[last] if isinstance(value, tuple) else value


def gradients(golden: Golden) -> Outputs:
    network = portrait_network(golden, "i_g", released_portrait()).requires_grad_(True)
    render, uv, mask_face, code = inputs(golden, "render", "uv", "mask_face", "style")
    textures = inputs(golden, "feature_face", "skip_face", "feature_back", "skip_back")
    target, mask = inputs(golden, "target", "mask")
    for texture in textures:
        texture.requires_grad_(True)
    offset = tuple(golden.config["offset"])
    face, back = Texture(*textures[:2]), Texture(*textures[2:])
    drawn: Portrait = network(
        render, uv, mask_face, face, back, code, offset=offset, noise=noise_maps(golden)
    )
    l1, mask_loss = F.l1_loss(drawn.image, target), F.l1_loss(drawn.mask / 2 + 0.5, mask)
    yield "l1_loss", l1.detach()[None]
    yield "mask_loss", 3 * mask_loss.detach()[None]
    (l1 + 3 * mask_loss).backward()
    names = keys.portrait_keys(network.config).names
    own = {theirs: network.get_parameter(ours) for theirs, ours in names.items()}
    norms = [
        torch.full((), -30.0) if own[key].grad is None else own[key].grad.norm().log10()
        for key in golden.config["parameters"]
    ]
    yield "parameter_gradient_log10_norm", torch.stack(norms)
    for name, texture in zip(
        ("feature_face", "skip_face", "feature_back", "skip_back"), textures, strict=True
    ):
        yield f"gradient.{name}", texture.grad
    for name in golden.outputs():
        key = name.removeprefix("gradient.")
        if key in own:
            yield name, own[key].grad.reshape(golden.meta["outputs"][name]["shape"])


def testtime(golden: Golden) -> Outputs:
    config = released_portrait()
    render, uv = inputs(golden, "render", "uv")
    code = time_code(torch.tensor([[RELEASED_TIME]]))
    yield "style_in", code
    middle = window.centred(config.grid)
    face = Texture(*inputs(golden, "feature_face", "skip_face"))
    back = Texture(*(window.cut_background(t, middle) for t in inputs(golden, "feature_back", "skip_back")))
    for name, border in (("image", True), ("image_training_graph", False)):
        if name not in golden.outputs():
            continue
        network = portrait_network(golden, "g_ema", replace(config, released_border=border))
        drawn = network(render, uv[:, :2], window.face_cells(uv), face, back, code, noise=noise_maps(golden))
        yield name, drawn.image


def imported(golden: Golden) -> Outputs:
    """The picture of the test script's inputs, by the avatar made of an official file of the released sizes."""
    from official_styleavatar import official_content, save_official
    from omokage.avatar.paper.bundle import PaperAvatar
    from omokage.pipelines.import_styleavatar import import_styleavatar

    content = official_content(released_portrait(), released_discriminator())
    content["g_ema"] |= {key: torch.from_numpy(value) for key, value in golden.weights("g_ema").items()}
    names = ("feature_face", "skip_face", "feature_back", "skip_back")
    for name, texture in zip(names, inputs(golden, *names), strict=True):
        content[name] = torch.cat([texture, torch.zeros_like(texture)])  # a batch; its first row counts
    render, cells = inputs(golden, "render", "uv")
    with tempfile.TemporaryDirectory() as folder:
        official = save_official(Path(folder) / "person_065000.pt", content)
        made = import_styleavatar(official, output=Path(folder) / "person.avatar")
        avatar = replace(PaperAvatar.load(made.path), noise=noise_maps(golden))
    uv = cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)  # of which every second cell is taken
    yield "image_training_graph", avatar.draw(render, uv).image


def style_unet(golden: Golden, name: str, config: StyleUNetConfig) -> Outputs:
    network = StyleUNet(config).eval()
    fill(network, golden, name, keys.style_unet_keys(config))
    image, code = inputs(golden, f"{name}.image", f"{name}.style")
    maps = [f"{name}.noise.{i}" for i in range(2 * len(config.unet.decoder))]
    noise = inputs(golden, *maps)
    names = {f"enc{i}": f"unet.encoder.{i}" for i in range(len(config.unet.encoder))}
    names |= {
        "latent": "mapping",
        "dec0": "unet.decoder.0.grow",
        "dec1": "unet.decoder.0.refine",
        "unet": "unet",
    }
    watch = Watch(network, names)
    yield f"{name}.image", network(image, code, noise=list(zip(noise[::2], noise[1::2], strict=True)))
    yield f"{name}.bands", watch.seen.pop("unet")[1]
    for part, value in watch.seen.items():
        yield f"{name}.{part}", value[1] if isinstance(value, tuple) else value


def style_unets(golden: Golden) -> Outputs:
    for name, config in (("small", released_style_unet(64, 128)), ("full", released_style_unet(256))):
        if name in golden.meta["networks"]:
            yield from style_unet(golden, name, config)


def discriminator(golden: Golden, name: str, size: int) -> Outputs:
    network = Discriminator(released_discriminator(size))
    fill(network, golden, name, keys.discriminator_keys(network.config))
    real, fake, render = inputs(golden, f"{name}.real", f"{name}.fake", f"{name}.render")
    count = len(network.config.widths)
    watch = Watch(
        network,
        {"block0": "levels.0", "block_last": f"levels.{count - 1}", "read": "read", "final_conv": "conv"},
    )
    fooled = network(torch.cat([fake, render], dim=1))
    logit = network(torch.cat([real, render], dim=1))
    yield f"{name}.fake_logit", fooled
    yield f"{name}.real_logit", logit
    yield f"{name}.block0", watch.seen["block0"][1]
    yield f"{name}.block_last", watch.seen["block_last"][1]
    yield f"{name}.stddev", batch_deviation(watch.seen["read"][1])[:, 0]
    yield f"{name}.final_conv", watch.seen["final_conv"]
    yield f"{name}.g_loss", generator_loss(fooled)[None]
    yield f"{name}.d_loss", discriminator_loss(logit, fooled)[None]
    yield f"{name}.l1_loss", F.l1_loss(fake, real)[None]
    if f"{name}.r1" not in golden.outputs():
        return
    network.requires_grad_(True)
    real.requires_grad_(True)
    logit = network(torch.cat([real, render], dim=1))
    penalty = gradient_penalty(logit, real)
    yield f"{name}.r1", penalty.detach()[None]
    (first,) = torch.autograd.grad(logit.sum(), real, retain_graph=True)
    yield f"{name}.r1_image_gradient", first
    if f"{name}.r1_grad_linear" not in golden.outputs():
        return
    penalty.backward()
    yield f"{name}.r1_grad_from_rgb", network.levels[0].read.read.weight.grad
    yield f"{name}.r1_grad_linear", network.hidden.weight.grad
    fake.requires_grad_(True)
    generator_loss(network(torch.cat([fake, render], dim=1))).backward()
    yield f"{name}.g_loss_gradient", fake.grad


def discriminators(golden: Golden) -> Outputs:
    for name, size in (("small", 64), ("d", 1024)):
        if name in golden.meta["networks"]:
            yield from discriminator(golden, name, size)


FILES: dict[str, Callable[[Golden], Outputs]] = {
    "primitives": primitives,
    "window": windows,
    "features": features,
    "unet": unet,
    "gradients": gradients,
    "testtime": testtime,
    "styleunet": style_unets,
    "discriminator": discriminators,
}
# An official file of 766 MB is written and read for these, from the reference file behind the name.
THROUGH_FILES = {"imported": (imported, "testtime")}
# Networks at the released sizes, of whose outputs the project keeps some slices.
FULL_SIZE = ("full_features", "full_unet", "full_testtime", "full_styleunet", "full_discriminator")
FILES |= {name: FILES[name.removeprefix("full_")] for name in FULL_SIZE}


def shares(golden: Golden, outputs: Outputs) -> dict[str, float]:
    """Name -> share of the tolerance, for those of the outputs that the file keeps."""
    kept = set(golden.outputs())
    return {
        name: golden.share(name, value.detach().float().cpu().numpy())
        for name, value in outputs
        if name in kept
    }


def compared(name: str, golden: Golden) -> dict[str, Any]:
    """The shares of one file, largest first, and the outputs that ours does not have."""
    started = time.monotonic()
    outputs = THROUGH_FILES[name][0] if name in THROUGH_FILES else FILES[name]
    found = shares(golden, outputs(golden))
    found = {k: float(f"{v:.3g}") for k, v in sorted(found.items(), key=lambda item: -item[1])}
    return {
        "outputs": len(found),
        "largest_share": max(found.values()),
        "seconds": round(time.monotonic() - started, 1),
        "not_compared": sorted(set(golden.outputs()) - found.keys()),
        "shares": found,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the reference files")
    parser.add_argument("names", nargs="*", help="default all")
    parser.add_argument("--output", type=Path, help="also write the shares into this JSON file")
    given = parser.parse_args(arguments)
    load, rows = os.getloadavg()[0], dict[str, dict[str, Any]]()
    for name in given.names or [name for name in (*FILES, *THROUGH_FILES) if name not in FULL_SIZE]:
        file = THROUGH_FILES[name][1] if name in THROUGH_FILES else name
        row = rows[name] = compared(name, Golden(given.folder.resolve() / f"styleavatar_{file}"))
        print(
            f"{name}: {row['outputs']} outputs, largest share {row['largest_share']:.3g}, {row['seconds']} s"
        )
        print(f"  not compared: {row['not_compared']}")
        for output, share in row["shares"].items():
            if share > 0.1:
                print(f"  {output}: {share:.3g}")
    if given.output is not None:
        write(given.output, load, rows)


def write(path: Path, load: float, rows: dict[str, dict[str, Any]]) -> None:
    """The result file, in the form of the benchmarks' own."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    from reports import circumstances

    result: dict[str, Any] = {
        "benchmark": "StyleAvatar's networks beside the reference numbers of its released code",
        "unit": "share of the tolerance that is stored with each reference number; 1 would be a failure",
    }
    # Sums in another order, and so the last digits, come with the kernels that PyTorch and its oneDNN choose.
    kernels = (
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("ONEDNN_MAX_CPU_ISA", "all that there are"),
    )
    machine = {
        "threads": torch.get_num_threads(),
        "instructions": dict(zip(("torch", "onednn"), kernels, strict=True)),
    }
    result |= circumstances(load) | machine | {"networks": rows}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
