"""The video autoencoder: the same numbers as the released one, causal, and nothing remembered between calls."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from golden_fill import Golden
from omokage.errors import InputError
from omokage.talking.vae import (
    CausalVae,
    DecoderCache,
    VaeConfig,
    chunk_lengths,
    latent_frames,
    official_vae,
    official_vae_key,
    tiny_vae,
)

pytest.importorskip("diffusers", reason="the video autoencoder needs 'pip install omokage[portrait]'")


def build(golden: Golden, config: VaeConfig) -> CausalVae:
    """Our autoencoder with the golden weights, loaded by their official names."""
    given = golden.weights("first_stage_model")
    vae = CausalVae(config).eval().requires_grad_(False)
    vae.load_state_dict(
        {key: torch.from_numpy(given[official_vae_key(key, config)]) for key in vae.state_dict()}
    )
    return vae


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("hallo3_vae")


@pytest.fixture(scope="module")
def vae(golden: Golden) -> CausalVae:
    return build(golden, tiny_vae())


def clip(golden: Golden, name: str) -> torch.Tensor:
    """An input of the file, whose layout is (B, C, T, H, W), in ours."""
    return torch.from_numpy(golden.input(name)).transpose(1, 2)


def check(golden: Golden, name: str, ours: torch.Tensor) -> None:
    golden.check(name, ours.transpose(1, 2).numpy(), share=0.5)


def joined(vae: CausalVae, latents: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(vae.decode(latents)), dim=1)


# the released numbers


@pytest.mark.parametrize("frames", [1, 3, 9, 17])
def test_encoding_is_the_released_one(golden: Golden, vae: CausalVae, frames: int) -> None:
    posterior = vae.posterior(clip(golden, f"video_{frames}"))
    check(golden, f"encode_{frames}.mean", posterior.mean)
    check(golden, f"encode_{frames}.logvar", posterior.logvar)
    assert posterior.mean.shape[1] == latent_frames(frames)


def test_a_drawn_posterior_is_the_released_one_scaled(golden: Golden, vae: CausalVae) -> None:
    video, noise = clip(golden, "video_3"), clip(golden, "posterior_noise")
    check(golden, "sample_3", vae.posterior(video).sample(noise))
    torch.testing.assert_close(vae.encode(video, noise), 0.7 * vae.posterior(video).sample(noise))
    torch.testing.assert_close(vae.encode(video), 0.7 * vae.posterior(video).mean)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_decoding_in_one_call_is_the_released_one(golden: Golden, vae: CausalVae, count: int) -> None:
    latents = 0.7 * clip(golden, f"latent_{count}")
    check(golden, f"decode_{count}", vae.decode_chunk(latents, None).video)


def test_decoding_in_chunks_is_the_released_one(golden: Golden, vae: CausalVae) -> None:
    latents = 0.7 * clip(golden, "latent_13")
    check(golden, "decode_13_chunked", joined(vae, latents))
    check(golden, "decode_13_whole", vae.decode_chunk(latents, None).video)
    # One call normalises over all frames: close, and not the same.
    with pytest.raises(AssertionError, match="of the tolerance"):
        check(golden, "decode_13_whole", joined(vae, latents))


@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_the_norms_have_the_released_epsilon(golden: Golden, vae: CausalVae, stage: str) -> None:
    probe, latent = (torch.from_numpy(golden.input(name)) for name in ("probe", "probe_latent"))
    if stage == "encoder":
        ours = vae.encoder.down_blocks[0].resnets[0].norm1(probe)  # type: ignore[union-attr,index]
    else:
        ours, _ = vae.decoder.norm_out(probe, latent)  # type: ignore[operator]
    golden.check(f"norm.{stage}", ours.numpy(), share=0.5)


def test_the_official_size_gives_the_released_numbers() -> None:
    golden = Golden("hallo3_vae_official")
    vae = build(golden, official_vae())
    for frames in (1, 3, 9):
        posterior = vae.posterior(clip(golden, f"video_{frames}"))
        check(golden, f"encode_{frames}.mean", posterior.mean)
        check(golden, f"encode_{frames}.logvar", posterior.logvar)
    check(golden, "decode_5_chunked", joined(vae, 0.7 * clip(golden, "latent_5")))


# what a caller may rely on


def test_every_official_key_has_one_of_ours_at_full_size() -> None:
    official = Golden("hallo3_vae_official").shapes("first_stage_model")
    with torch.device("meta"):
        vae = CausalVae(official_vae())
    ours = {official_vae_key(key, vae.config): tuple(value.shape) for key, value in vae.state_dict().items()}
    assert ours == official
    assert len(ours) == len(vae.state_dict()) == 436
    assert sum(value.numel() for value in vae.state_dict().values()) == 215_583_907


@pytest.mark.parametrize(
    ("frames", "expected"), [(1, 1), (2, 1), (3, 1), (5, 2), (8, 2), (9, 3), (17, 5), (49, 13)]
)
def test_latent_frames_of_a_clip(frames: int, expected: int) -> None:
    assert latent_frames(frames) == expected


def test_chunks_of_a_clip() -> None:
    assert chunk_lengths(13) == (3, 2, 2, 2, 2, 2)
    assert [chunk_lengths(count) for count in (1, 2, 3, 4, 5)] == [(1,), (2,), (3,), (2, 2), (3, 2)]
    with pytest.raises(InputError, match="at least one latent frame"):
        chunk_lengths(0)


def test_later_frames_never_change_earlier_latents() -> None:
    """Causal but for the statistics of the norms, which span time: without them not a bit may change."""
    vae = CausalVae(tiny_vae()).eval().requires_grad_(False)
    for norm in [module for module in vae.modules() if isinstance(module, torch.nn.GroupNorm)]:
        norm.forward = lambda values: values.tanh()  # type: ignore[method-assign]
    video = torch.randn(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = video.clone()
    changed[:, 5:] += 1
    before, after = vae.encode(video), vae.encode(changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_two_clips_decoded_in_turn_do_not_disturb_each_other(golden: Golden, vae: CausalVae) -> None:
    mine = 0.7 * clip(golden, "latent_5")
    other = mine.flip(1)
    alone = joined(vae, mine)
    pairs = zip(vae.decode(mine), vae.decode(other), strict=True)
    assert torch.equal(torch.cat([chunk for chunk, _ in pairs], dim=1), alone)


def test_a_cache_can_be_used_twice(golden: Golden, vae: CausalVae) -> None:
    latents = 0.7 * clip(golden, "latent_5")
    cache: DecoderCache = vae.decode_chunk(latents[:, :3], None).cache
    first, again = (vae.decode_chunk(latents[:, 3:], cache).video for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, vae.decode_chunk(latents[:, 3:], None).video)


def test_a_pixel_stem_makes_the_grid_coarser() -> None:
    config = VaeConfig(widths=(8, 8, 16), blocks=1, latent_channels=6, norm_groups=8, stem=2, scale=1.0)
    vae = CausalVae(config).eval().requires_grad_(False)
    video = torch.rand(1, 5, 3, 32, 16)
    latents = vae.encode(video)
    assert latents.shape == (1, 2, 6, 4, 2)
    assert joined(vae, latents).shape == (1, 8, 3, 32, 16)
    assert vae.config == VaeConfig.from_json(config.to_json())


def test_a_side_that_does_not_fit_is_refused(vae: CausalVae) -> None:
    with pytest.raises(InputError, match=re.escape("multiples of 8 pixels, got 20x32")):
        vae.encode(torch.zeros(1, 1, 3, 32, 20))


def test_sizes_that_cannot_be_built_are_refused() -> None:
    fields = tiny_vae().to_json()
    with pytest.raises(InputError, match="at least 3 widths, got 2"):
        VaeConfig.from_json(fields | {"widths": [32, 64]})
    with pytest.raises(InputError, match="multiples of its 32 norm groups"):
        VaeConfig.from_json(fields | {"widths": [32, 48, 64]})


def test_latents_are_scaled_both_ways(golden: Golden, vae: CausalVae) -> None:
    """Encoding and decoding agree on the scale: of two networks that differ in it alone, latents differ by it."""
    other = CausalVae(VaeConfig.from_json(tiny_vae().to_json() | {"scale": 1.4})).eval().requires_grad_(False)
    other.load_state_dict(vae.state_dict())
    video = clip(golden, "video_1")
    torch.testing.assert_close(2 * vae.encode(video), other.encode(video))
    torch.testing.assert_close(joined(vae, vae.encode(video)), joined(other, other.encode(video)))
    assert np.isfinite(joined(vae, vae.encode(video)).numpy()).all()
