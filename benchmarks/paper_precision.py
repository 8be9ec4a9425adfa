"""What shorter numbers cost in the paper's networks at full size: pictures and gradients beside float32.

    python benchmarks/paper_precision.py --output benchmarks/results/paper-precision.json

Weights and inputs are those of the reference files of the tests, drawn from their names: noise, so that errors are
those of a network that has learned nothing, and neither smooth nor dark pictures hide them. All on a processor: bf16 is
PyTorch's autocast, as `--precision bf16` trains; tf32 is what a graphics card makes of float32 products, whose factors
are rounded to 10 bits behind the point here, forwards and backwards, and summed in float32. Losses are the training's
own (L1 and the matte, the discriminator's), of one sample; the textures and StyleUNet are given L1 to noise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from reports import circumstances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from golden_fill import Golden
from omokage.avatar.paper import keys
from omokage.avatar.paper.config import released_discriminator, released_portrait, released_style_unet
from omokage.avatar.paper.discriminator import Discriminator, discriminator_loss
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.paper.unet import StyleUNet
from omokage.render.paper_runtime import psnr_db
from paper_golden import fill, inputs, noise_maps, portrait_network

# Products of a card's tensor cores -> which of their arguments are factors.
FACTORS = {
    torch.ops.aten.convolution: (0, 1),
    torch.ops.aten.convolution_backward: (0, 1, 2),
    torch.ops.aten.mm: (0, 1),
    torch.ops.aten.bmm: (0, 1),
    torch.ops.aten.addmm: (1, 2),
}
DROPPED_BITS = 13  # of the 23 behind the point of float32
# Network -> its parameters, and a pass that gives what is compared and a loss.
Pass = Callable[[], tuple[Tensor, Tensor]]


def shortened(value: Any) -> Any:
    """A float32 tensor rounded to the nearest number of 10 bits behind the point, ties to even."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return value
    bits = value.contiguous().view(torch.int32)
    half = (1 << (DROPPED_BITS - 1)) - 1
    rounded = (bits + half + ((bits >> DROPPED_BITS) & 1)) & ~((1 << DROPPED_BITS) - 1)
    return rounded.view(torch.float32).view_as(value)


class ShortFactors(TorchDispatchMode):
    """Within it, factors of products are `shortened`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        places = FACTORS.get(func.overloadpacket, ())
        short = [shortened(value) if place in places else value for place, value in enumerate(args)]
        return func(*short, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "tf32": ShortFactors,
}


def noise_like(value: Tensor) -> Tensor:
    """A target for L1."""
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0))


# networks


def portrait() -> tuple[nn.Module, Pass]:
    golden = Golden("styleavatar_full_unet")
    network = portrait_network(golden, "g_ema", released_portrait()).requires_grad_(True)
    render, uv, mask, code = inputs(golden, "render", "uv", "mask_face", "style")
    face = Texture(*inputs(golden, "feature_face", "skip_face"))
    back = Texture(*inputs(golden, "feature_back", "skip_back"))

    def run() -> tuple[Tensor, Tensor]:
        drawn = network(render, uv, mask, face, back, code, noise=noise_maps(golden))
        picture, matte = drawn.image.float(), drawn.mask.float() / 2 + 0.5
        loss = F.l1_loss(picture, noise_like(picture)) + 3 * F.l1_loss(matte, (noise_like(matte) > 0).float())
        return picture, loss

    return network, run


def texture() -> tuple[nn.Module, Pass]:
    golden, config = Golden("styleavatar_full_features"), released_portrait()
    network = TextureGenerator(config.texture, config.style)
    fill(network, golden, "f_g", keys.texture_keys(config.texture, config.style))
    network.requires_grad_(True)
    (code,) = inputs(golden, "code")

    def run() -> tuple[Tensor, Tensor]:
        made = network(code)
        features = made.features.float()
        return features, F.l1_loss(features, noise_like(features)) + made.bands.float().abs().mean()

    return network, run


def discriminator() -> tuple[nn.Module, Pass]:
    golden = Golden("styleavatar_full_discriminator")
    network = Discriminator(released_discriminator())
    fill(network, golden, "d", keys.discriminator_keys(network.config))
    network.requires_grad_(True)
    real, fake, render = inputs(golden, "d.real", "d.fake", "d.render")

    def run() -> tuple[Tensor, Tensor]:
        logits = [network(torch.cat([picture, render], dim=1)).float() for picture in (real, fake)]
        return torch.cat(logits), discriminator_loss(*logits)

    return network, run


def style_unet() -> tuple[nn.Module, Pass]:
    golden, config = Golden("styleavatar_full_styleunet"), released_style_unet(256)
    network = StyleUNet(config)
    fill(network, golden, "full", keys.style_unet_keys(config))
    network.requires_grad_(True)
    image, code, *maps = inputs(
        golden, "full.image", "full.style", *(f"full.noise.{i}" for i in range(2 * len(config.unet.decoder)))
    )

    def run() -> tuple[Tensor, Tensor]:
        picture = network(image, code, noise=list(zip(maps[::2], maps[1::2], strict=True))).float()
        return picture, F.l1_loss(picture, noise_like(picture))

    return network, run


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Pass]]] = {
    "image generator": portrait,
    "texture generator": texture,
    "discriminator": discriminator,
    "StyleUNet 256 to 1024": style_unet,
}
PICTURES = ("image generator", "StyleUNet 256 to 1024")


# comparing


def measured(network: nn.Module, run: Pass, mode: str) -> tuple[Tensor, dict[str, Tensor], float]:
    """What is compared, every parameter's gradient, and the seconds that both passes took."""
    network.zero_grad(set_to_none=True)
    begun = time.monotonic()
    with MODES[mode]():
        output, loss = run()
    # Backwards without autocast, as it is meant; an emulated card shortens there, too.
    with MODES[mode]() if mode == "tf32" else nullcontext():
        loss.backward()
    gradients = {
        name: value.grad.detach().clone()
        for name, value in network.named_parameters()
        if value.grad is not None
    }
    return output.detach(), gradients, time.monotonic() - begun


def compared(name: str) -> dict[str, Any]:
    """Errors of one network in every shorter precision. psnr_db: of pictures in [-1, 1].  output_error: root mean
    square over the deviation.  gradient_cosine: of all parameters together, and the least one among them."""
    network, run = NETWORKS[name]()
    exact, directions, seconds = measured(network, run, "fp32")
    row: dict[str, Any] = {"deviation": round(float(exact.std()), 4), "seconds": {"fp32": round(seconds, 1)}}
    whole = torch.cat([value.flatten() for value in directions.values()])
    for mode in ("bf16", "tf32"):
        output, gradients, seconds = measured(network, run, mode)
        flat = torch.cat([gradients[key].flatten() for key in directions])
        cosines = {key: cosine(gradients[key], value) for key, value in directions.items() if value.any()}
        least = min(cosines, key=lambda key: cosines[key])
        row["seconds"][mode] = round(seconds, 1)
        row[mode] = {
            "output_error": float(f"{float((output - exact).square().mean().sqrt() / exact.std()):.3g}"),
            "gradient_cosine": round(cosine(flat, whole), 6),
            "gradient_length": round(float(flat.norm() / whole.norm()), 5),
            "least_cosine": round(cosines[least], 5),
            "least_cosine_of": least,
        }
        if name in PICTURES:
            error = float((output.clamp(-1, 1) - exact.clamp(-1, 1)).square().mean())
            row[mode]["psnr_db"] = round(psnr_db([error]), 2)
        print(name, mode, row[mode], row["seconds"], flush=True)
    return row


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = {name: compared(name) for name in given.networks}
    report = {"benchmark": "paper precision"} | circumstances(load) | {"networks": rows}
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
