"""StyleAvatar's networks at the paper's scale: the released numbers, and what is ours beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from golden_fill import FOLDER, Golden, draw
from official_styleavatar import official_state
from omokage.avatar.paper import keys, window
from omokage.avatar.paper.config import (
    BANDS,
    NOISE_CHANNELS,
    DiscriminatorConfig,
    PortraitConfig,
    StyleUNetConfig,
    UNetConfig,
    released_discriminator,
    released_portrait,
    released_style_unet,
    small_discriminator,
    small_portrait,
)
from omokage.avatar.paper.discriminator import Discriminator, batch_deviation
from omokage.avatar.paper.portrait import NoiseMaps, Portrait, PortraitGenerator, compose, draw_noise
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.paper.time_code import RELEASED_TIME, time_code
from omokage.avatar.paper.unet import StyleUNet
from omokage.config import Config
from omokage.errors import InputError
from paper_golden import FILES, shares

SMALL = small_portrait()


def drawn(name: str, *shape: int, deviation: float = 0.5) -> torch.Tensor:
    return torch.from_numpy(draw(f"input:{name}", {"shape": shape, "dist": "normal", "std": deviation}))


@pytest.fixture(scope="module")
def network() -> PortraitGenerator:
    """The small generator with weights of the golden rule."""
    generator, maps = PortraitGenerator(SMALL), keys.portrait_keys(SMALL)
    own, given = generator.state_dict(), official_state("g_ema", maps, generator)
    generator.load_state_dict(
        {ours: given[theirs].reshape(own[ours].shape) for theirs, ours in maps.names.items()}
    )
    return generator.eval().requires_grad_(False)


def parts(grid: int = SMALL.grid) -> tuple[Texture, Texture, NoiseMaps]:
    """Textures of face and background, and noise."""
    face, back = (
        Texture(drawn(f"{name}.features", 1, 8, grid, grid), drawn(f"{name}.bands", 1, BANDS, grid, grid))
        for name in ("face", "background")
    )
    return face, back, draw_noise(SMALL, seed=0)


def picture(network: PortraitGenerator, *, offset: tuple[int, int] = (5, 2), noise: bool = True) -> Portrait:
    face, back, maps = parts()
    grid = SMALL.grid
    uv = torch.from_numpy(draw("input:uv", {"shape": (2, 2, grid, grid), "dist": "cells", "n": grid}))
    mask = torch.ones(2, 1, grid, grid)
    mask[..., : grid // 2] = 0
    render, code = drawn("render", 2, 3, 32, 32), drawn("code", 2, 64, deviation=1.0)
    return network(render, uv, mask, face, back, code, offset=offset, noise=maps if noise else None)


# the released numbers


@pytest.mark.parametrize("name", ["primitives", "window", "styleunet", "discriminator"])
def test_the_released_numbers(name: str) -> None:
    golden = Golden(f"styleavatar_{name}")
    golden.verify()
    found = shares(golden, FILES[name](golden))
    assert found.keys() == set(golden.outputs())
    worst = max(found, key=lambda output: found[output])
    assert found[worst] <= 0.5, f"{worst} is off by {found[worst]:.3g} of its tolerance"


@pytest.mark.parametrize("name", ["full_features", "full_unet"])
def test_the_released_numbers_at_full_size(name: str) -> None:
    """A neural texture and the whole generator, in a window that is not centred; the kit for graphics cards compares
    the other networks too (benchmarks/gpu/style_avatar.py)."""
    golden = Golden(f"styleavatar_{name}")
    found = shares(golden, FILES[name](golden))
    assert found.keys() == set(golden.outputs())
    worst = max(found, key=lambda output: found[output])
    assert found[worst] <= 0.5, f"{worst} is off by {found[worst]:.3g} of its tolerance"


def test_the_whole_generator_gives_the_numbers_it_gave_when_it_was_compared(
    network: PortraitGenerator,
) -> None:
    """It was compared with the released one at full size (docs/research/paper-scale.md); these are of a small one."""
    kept = np.load(FOLDER / "styleavatar_small_portrait.npz")
    released = PortraitGenerator(replace(SMALL, released_border=True)).eval().requires_grad_(False)
    released.load_state_dict(network.state_dict())
    results = {
        "training": picture(network),
        "quiet": picture(network, noise=False),
        "released": picture(released),
    }
    for name, result in results.items():
        for part, value in (("image", result.image[..., ::4, 1::4]), ("mask", result.mask)):
            expected = kept[f"{name}.{part}"]
            error = np.abs(value.numpy() - expected).max() / expected.std()
            assert error < 5e-5, f"{name} {part}: {error}"


@pytest.mark.parametrize(
    ("build", "weights"),
    [
        (lambda: PortraitGenerator(released_portrait()), 47_462_093),
        (lambda: TextureGenerator(released_portrait().texture, released_portrait().style), 21_167_430),
        (lambda: Discriminator(released_discriminator()), 27_771_841),
        (lambda: Discriminator(released_discriminator(channels=3)), 27_736_129),
        (lambda: StyleUNet(released_style_unet(256)), 38_928_852),
        (lambda: StyleUNet(released_style_unet(1024)), 50_671_764),
    ],
)  # fmt: skip
def test_the_released_sizes(build: object, weights: int) -> None:
    with torch.device("meta"):
        network = build()  # type: ignore[operator]
    assert sum(parameter.numel() for parameter in network.parameters()) == weights


# the window


def test_an_exact_window_is_a_shift_and_the_released_one_is_not_at_its_edge() -> None:
    wide = torch.arange(32 * 32, dtype=torch.float32).reshape(1, 1, 32, 32)
    for dx, dy in ((4, 4), (1, 6), (7, 3)):
        exact = window.cut_features(wide, (dx, dy))
        assert torch.equal(exact, wide[..., dy + 4 : dy + 20, dx + 4 : dx + 20])
        rounded = window.cut_features(wide, (dx, dy), rounded=True)
        assert torch.equal(rounded[..., 1:-1, 1:-1], exact[..., 1:-1, 1:-1])
        assert not torch.equal(rounded, exact)


def test_the_whole_canvas_can_be_reached_and_nothing_wraps() -> None:
    crop = torch.zeros(1, 1, 192, 192)
    assert window.cut_picture(crop, (8, 8)).shape[-2:] == (128, 128)
    drawing = window.cut_drawing(torch.ones(1, 3, 32, 32), (0, 0))
    assert drawing.shape[-2:] == (32, 32)
    assert (drawing[..., :8, :] == -1).all() and (drawing[..., 8:, 8:] == 1).all()


# the codes of time


def test_neighbouring_frames_have_unrelated_codes() -> None:
    """Known of the released code: the code is a memory of each frame, and that of its test script none of a clip's."""
    codes = time_code(torch.arange(0, 1000, dtype=torch.float32)[:, None] / 5000)
    codes = codes * torch.rsqrt(codes.square().mean(dim=1, keepdim=True))
    steps = (codes[1:] - codes[:-1]).norm(dim=1)
    assert 7 < float(steps.mean()) < 9
    released = time_code(torch.tensor([[RELEASED_TIME]]))
    released = released * torch.rsqrt(released.square().mean())
    assert float((codes - released).norm(dim=1).min()) > 5


# gradients and noise


def test_mask_and_background_are_cut_off_as_released(network: PortraitGenerator) -> None:
    foreground, background, face = (torch.randn(1, 8, 4, 4, requires_grad=True) for _ in range(3))
    mask = torch.tanh(torch.randn(1, 1, 4, 4)).requires_grad_(True)
    compose(foreground, background, face, mask).sum().backward()
    assert mask.grad is None and face.grad is not None
    inside = torch.randn(1, 8, 16, 16, requires_grad=True)
    behind = torch.randn(1, 8, 16, 16, requires_grad=True)
    network.draw_mask(inside, behind).sum().backward()
    assert inside.grad is not None and behind.grad is None


def test_kept_noise_gives_the_same_picture_and_its_absence_another(network: PortraitGenerator) -> None:
    first, again = picture(network).image, picture(network).image
    assert torch.equal(first, again)
    assert not torch.allclose(first, picture(network, noise=False).image, atol=1e-2)
    assert draw_noise(SMALL, 1).face.shape == (1, NOISE_CHANNELS, SMALL.grid, SMALL.grid)
    assert not torch.equal(draw_noise(SMALL, 1).face, draw_noise(SMALL, 0).face)


def test_the_released_border_changes_the_top_left_most(network: PortraitGenerator) -> None:
    """One layer: through a network of 128 pixels the difference reaches every corner."""
    level = network.foreground.encoder[0].down.halve
    features = drawn("border", 1, 4, 16, 16)
    plain = level(features)
    level.released_border = True
    try:
        difference = (level(features) - plain).abs().amax(dim=(0, 1))
    finally:
        level.released_border = False
    assert difference[0].max() > 0 and difference[:, 0].max() > 0
    assert difference[1:, 1:].max() == 0


# the discriminator


def test_samples_are_compared_in_fours() -> None:
    features = torch.zeros(8, 2, 4, 4)
    features[1] = 1.0  # its group are 1, 3, 5, 7
    deviation = batch_deviation(features)[:, 0, 0, 0]
    assert deviation[[0, 2, 4, 6]].max() < 1e-3 and deviation[[1, 3, 5, 7]].min() > 0.4
    with pytest.raises(InputError, match="a batch of 6 is no multiple of 4"):
        batch_deviation(torch.zeros(6, 2, 4, 4))
    assert Discriminator(small_discriminator())(torch.zeros(3, 6, 128, 128)).shape == (3, 1)


# sizes that do not fit


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: replace(SMALL, size=100), "do not fit its 100 pixels"),
        (lambda: replace(SMALL, image=replace(SMALL.image, decoder=(4, 4))), "3 more in the image"),
        (lambda: UNetConfig(stem=4, encoder=(8, 8), decoder=(8, 8), joins=2), "can join at most 1, got 2"),
        (lambda: replace(released_style_unet(64, 128), output_size=256), "128 pixels from 64, not of 256"),
        (lambda: replace(small_discriminator(), size=64), "pictures of 128 pixels, not of 64"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_said(build: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    "config",
    [SMALL, released_portrait(), released_style_unet(1024), small_discriminator()],
    ids=lambda config: type(config).__name__,
)
def test_configurations_survive_json(config: Config) -> None:
    import json

    kind: type[PortraitConfig] | type[StyleUNetConfig] | type[DiscriminatorConfig] = type(config)  # type: ignore[assignment]
    assert kind.from_json(json.loads(json.dumps(config.to_json()))) == config
