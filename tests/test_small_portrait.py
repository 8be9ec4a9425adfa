"""The small model that learns one person from scratch: its parts, its training, its folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from omokage.talking.conditions.log_mel import LogMelEncoder
from omokage.talking.conditions.speech import SAMPLES_PER_FRAME
from omokage.talking.vae import CausalVae, small_vae

FRAMES = 17


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae() -> CausalVae:
    torch.manual_seed(0)
    return CausalVae(replace(small_vae(), widths=(8, 8, 16), scale=1.5)).eval().requires_grad_(False)


def clip(frames: int, side: int = 32) -> Tensor:
    return torch.rand(1, frames, 3, side, side, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def decoded(vae: CausalVae, latents: Tensor) -> Tensor:
    return torch.cat(list(vae.decode(latents)), dim=1)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (3, 1), (5, 2), (9, 3), (17, 5)])
def test_time_shrinks_fourfold_and_an_odd_first_frame_stays_alone(
    vae: CausalVae, frames: int, latents: int
) -> None:
    assert vae.encode(clip(frames)).shape == (1, latents, 32, 2, 2)


def test_the_small_preset_turns_17_frames_of_96_pixels_into_5_latent_frames_and_back() -> None:
    vae = CausalVae(small_vae()).eval().requires_grad_(False)
    latents = vae.encode(clip(FRAMES, side=96))
    assert latents.shape == (1, 5, 32, 6, 6)
    assert decoded(vae, latents).shape == (1, FRAMES, 3, 96, 96)
    assert sum(value.numel() for value in vae.parameters()) < 4e6


@pytest.mark.parametrize("changed", [1, 5, 9, 13])
def test_a_changed_frame_changes_no_earlier_latent(vae: CausalVae, changed: int) -> None:
    video = clip(FRAMES)
    other = video.clone()
    other[:, changed:] = -other[:, changed:]
    before, after = vae.encode(video), vae.encode(other)
    first = (changed + 3) // 4
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.allclose(before[:, first], after[:, first])


@pytest.mark.parametrize("changed", [1, 2, 4])
def test_a_changed_latent_changes_no_earlier_frame(vae: CausalVae, changed: int) -> None:
    latents = torch.randn(1, 5, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    other = latents.clone()
    other[:, changed:] *= -1
    before, after = (vae.decode_chunk(values, None).video for values in (latents, other))
    assert torch.equal(before[:, : 4 * changed - 3], after[:, : 4 * changed - 3])
    assert not torch.allclose(before[:, 4 * changed - 3], after[:, 4 * changed - 3])


def test_a_clip_decoded_in_chunks_is_the_clip_decoded_at_once(vae: CausalVae) -> None:
    latents = torch.randn(1, 5, 32, 2, 2, generator=torch.Generator().manual_seed(0))
    chunks = list(vae.decode(latents))
    assert [chunk.shape[1] for chunk in chunks] == [9, 8]
    torch.testing.assert_close(torch.cat(chunks, dim=1), vae.decode_chunk(latents, None).video)


def test_the_scale_goes_in_and_out(vae: CausalVae) -> None:
    plain = CausalVae(replace(vae.config, scale=1.0)).eval().requires_grad_(False)
    plain.load_state_dict(vae.state_dict())
    video = clip(9)
    torch.testing.assert_close(vae.encode(video), 1.5 * plain.encode(video))
    torch.testing.assert_close(decoded(vae, vae.encode(video)), decoded(plain, plain.encode(video)))


def tone(hertz: float, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(16000 * seconds)) / 16000).astype(np.float32)


def test_log_mel_features_have_the_shape_and_lengths_of_wav2vec() -> None:
    found = LogMelEncoder(80).features(tone(300, 1.02), FRAMES, exact=True)
    assert found.length.frames == 26 and found.length.padded_frames == 34
    assert found.hidden.shape == (34, 3, 80) and torch.isfinite(found.hidden).all()
    windows = found.windows(FRAMES)
    assert found.window(windows[0]).shape == (1, FRAMES, 5, 3, 80)


def test_a_tone_is_in_its_band_and_in_its_frames_only() -> None:
    encoder = LogMelEncoder(80)
    sound = np.zeros(50 * SAMPLES_PER_FRAME, np.float32)
    sound[20 * SAMPLES_PER_FRAME : 30 * SAMPLES_PER_FRAME] = tone(2000, 0.4)
    bands, change, smooth = encoder.features(sound, 50).hidden.unbind(1)
    # 2000 Hz are 1521 mel; the 80 bands lie evenly between 78 and 2750 mel.
    assert int(bands[25].argmax()) == pytest.approx((1521.4 - 77.8) / (2749.5 - 77.8) * 81 - 1, abs=1)
    loud = bands.max(dim=1).values > (bands.min() + bands.max()) / 2
    assert loud.nonzero().flatten().tolist() == list(range(20, 30))
    assert change[20].max() > 0.5 > change[25].abs().max() and change[29].min() < -0.5
    assert bands.min() < smooth[18].max() < bands.max()


def test_silence_stays_silent_and_loudness_does_not_matter() -> None:
    encoder, sound = LogMelEncoder(80), tone(500, 1)
    loud, soft = (encoder.features(level * sound, FRAMES).hidden for level in (0.5, 0.05))
    torch.testing.assert_close(loud, soft, atol=1e-3, rtol=0)
    silent = encoder.features(0 * sound, FRAMES).hidden
    assert silent[:, 0].std() < 1e-6 and silent[0, 0].max() <= loud[:, 0].min() + 1e-4
