"""The small model that learns one person from scratch: its parts, its training, its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import omokage.talking.training.subject as subject_module
from omokage.config import Progress
from omokage.errors import InputError
from omokage.media.decode import read_frames
from omokage.metrics.talking import lag_curve, mouth_opening, pearson
from omokage.pipelines.animate import AnimateConfig, animate
from omokage.pipelines.evaluate_video import evaluate_video
from omokage.pipelines.small_portrait import (
    SmallPortrait,
    SmallPortraitConfig,
    small_portrait,
    subject_of,
    train_small_portrait,
)
from omokage.pipelines.small_portrait_report import Parts, other_speech
from omokage.pipelines.subject import Recorded, read_subject, read_take
from omokage.pipelines.talker import Utterance, write_talker
from omokage.pipelines.untrained import tiny_architecture
from omokage.talking.conditions.log_mel import LogMelEncoder
from omokage.talking.conditions.speech import SAMPLES_PER_FRAME, context_rows
from omokage.talking.folder import TOY, load_architecture
from omokage.talking.small_vae import in_motion, stacked, unstacked
from omokage.talking.training.autoencoder import (
    Footage,
    begin_linear,
    small_autoencoder,
    to_frames,
    to_video,
    train_autoencoder,
)
from omokage.talking.training.subject import SubjectSamples, vary_speech
from omokage.talking.vae import CausalVae, small_vae
from omokage.talking.vae import latent_frames as vae_frames

FRAMES = 17


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae() -> CausalVae:
    torch.manual_seed(0)
    vae = CausalVae(replace(small_vae(), widths=(8, 8, 16), scale=1.5, grid=(2, 2)))
    for value in vae.parameters():  # nothing stays at the zero where it begins
        torch.nn.init.normal_(value, std=0.2)
    return vae.eval().requires_grad_(False)


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
    assert sum(value.numel() for value in vae.parameters()) < 6e6


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


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_what_is_stacked_is_unstacked(frames: int) -> None:
    cells = torch.randn(1, 3, frames, 4, 8, generator=torch.Generator().manual_seed(0))
    joined = stacked(cells, 4)
    assert joined.shape == (1, 4 * 3 * 16, vae_frames(frames), 1, 2)
    back = unstacked(joined, 4)
    torch.testing.assert_close(back[:, :, -2:], cells[:, :, -2:])
    if (
        frames != 3
    ):  # two frames that came from an odd number are four: the first one is no longer known as single
        torch.testing.assert_close(back, cells)


def test_what_moves_evenly_is_decoded_moving_evenly() -> None:
    """From one still picture for every four frames; what stands still stays still, in one pass and in chunks."""
    line, whole = torch.arange(17.0), torch.ones(())
    means = torch.cat([line[:1], line[1:].reshape(4, 4).mean(dim=1).repeat_interleave(4)])
    stairs = means.view(1, 1, 17, 1, 1)
    moving, _ = in_motion(stairs, {}, whole)
    assert torch.equal(moving.flatten(), line)
    first, tail = in_motion(stairs[:, :, :9], {}, whole)
    second, _ = in_motion(stairs[:, :, 9:], tail, whole)
    assert torch.equal(torch.cat([first, second], dim=2), moving)
    one, tail = in_motion(stairs[:, :, :1], {}, whole)
    rest, _ = in_motion(stairs[:, :, 1:], tail, whole)
    assert torch.equal(torch.cat([one, rest], dim=2), moving)
    assert torch.equal(in_motion(torch.ones(1, 2, 8, 3, 3), {}, whole)[0], torch.ones(1, 2, 8, 3, 3))


def test_the_share_of_motion_is_measured() -> None:
    """A bar that goes on evenly, from latents that tell its place only once in four frames."""
    frames = np.zeros((80, 32, 32, 3), np.uint8)
    for row, frame in enumerate(frames):
        frame[:, :] = 60 + row
    torch.manual_seed(0)
    config = replace(small_autoencoder(), frames=17)
    vae = CausalVae(replace(small_vae(), widths=(8, 16, 16), latent_channels=1, norm_groups=1, grid=(2, 2)))
    begin_linear(vae, Footage(frames, np.ones(frames.shape[:3], np.float32)), config)
    assert 0.8 < float(vae.decoder.motion.detach()) <= 1


def test_training_begins_with_principal_components() -> None:
    """A clip that sways between few pictures is given back before anything is learned; a first frame
    stands still in its latent frame, and these pictures never do."""
    random = np.random.default_rng(0)
    pictures, shares = random.normal(0, 12, (3, 32, 32, 3)), np.sin(np.arange(40)[:, None] * [0.3, 0.7, 1.1])
    frames = np.clip(128 + np.tensordot(shares, pictures, axes=1), 0, 255).astype(np.uint8)
    torch.manual_seed(0)
    learner = CausalVae(replace(small_vae(), widths=(8, 8, 16), grid=(2, 2), latent_channels=48)).eval()
    begin_linear(learner, Footage(frames, np.ones((40, 32, 32), np.float32)), small_autoencoder())
    with torch.no_grad():
        latents = learner.encode(to_video(frames[:17])[None])
        again = to_frames(decoded(learner, latents)[0])
    assert (
        np.abs(again.astype(int) - frames[:17]).mean()
        < 0.1 * np.abs(frames[:17] - frames.mean(axis=0)).mean()
    )
    assert 0.1 < float(latents.std()) < 10


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


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Utterance]:
    path = tmp_path_factory.mktemp("clips") / "talker.mp4"
    return path, write_talker(path, 70, side=128)


@pytest.fixture(scope="module")
def recorded(talker: tuple[Path, Utterance]) -> Recorded:
    return read_subject(talker[0], 64)


def tiny_config() -> SmallPortraitConfig:
    sizes = replace(tiny_architecture(), caution=TOY)
    sizes = replace(sizes, vae=replace(sizes.vae, grid=(4, 4)))
    plain = small_portrait(1)
    return replace(
        plain,
        sizes=sizes,
        autoencoder=replace(plain.autoencoder, steps=30, minutes=0),
        windows=replace(plain.windows, draws=2),
        stage=replace(plain.stage, steps=12, minutes=0, batch=2, micro_batch=2),
        sampler=replace(plain.sampler, steps=2),
        chained=2,
        seeds=(1,),
    )


@pytest.fixture(scope="module")
def made(
    talker: tuple[Path, Utterance], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SmallPortrait]:
    output = tmp_path_factory.mktemp("made") / "person"
    return output, train_small_portrait(talker[0], output=output, config=tiny_config())


def test_the_synthetic_talker_opens_the_mouth_as_far_as_it_says(
    talker: tuple[Path, Utterance], recorded: Recorded
) -> None:
    said = talker[1]
    assert recorded.frames.shape == (70, 64, 64, 3) and len(recorded.voice) == 70 * SAMPLES_PER_FRAME
    opening, jaw = mouth_opening(recorded.landmarks), said.jaw.astype(np.float64)
    assert pearson(opening, jaw) > 0.9
    assert lag_curve(opening, jaw, 25.0, 0.4).peak_s == 0
    # Small pictures are read as well.
    assert pearson(mouth_opening(read_take(recorded.frames, ()).landmarks), jaw) > 0.8


def test_the_end_is_held_out_and_repeated_until_it_fills_the_windows(recorded: Recorded) -> None:
    parts = Parts.cut(recorded, FRAMES, chained=10)
    assert (len(parts.learned), len(parts.held_out)) == (42, 28)  # two fifths at most
    assert len(parts.repeated) == 150
    np.testing.assert_array_equal(parts.repeated.frames[28:56], parts.held_out.frames)
    np.testing.assert_array_equal(parts.held_out.voice, recorded.voice[42 * SAMPLES_PER_FRAME :])
    opening = mouth_opening(parts.learned.landmarks)
    assert opening[parts.portrait] == opening.min()
    with pytest.raises(InputError, match="at least 68 are needed"):
        Parts.cut(recorded.part(0, 40), FRAMES, chained=10)


def test_no_piece_of_the_shuffled_control_is_in_its_place() -> None:
    voice = np.arange(6 * 16000, dtype=np.float32)
    controls = other_speech(voice)
    assert sorted(controls["shuffled speech"].tolist()) == voice.tolist()
    piece = round(0.6 * 16000)
    kept = [
        np.array_equal(controls["shuffled speech"][i : i + piece], voice[i : i + piece])
        for i in range(0, 96000, piece)
    ]
    assert not any(kept) and not controls["silence"].any()
    assert controls["speech 1 s late"][16000] == voice[0] and controls["speech 1 s early"][0] == voice[16000]


def test_windows_are_weighted_at_the_mouth_and_hear_what_the_network_hears(recorded: Recorded) -> None:
    config = tiny_config()
    sizes = config.sizes.transformer
    vae = CausalVae(config.sizes.vae).eval().requires_grad_(False)
    subject = subject_of(recorded, config.sizes)
    quiet = replace(config.windows, gain=0.0, tilt=0.0, noise=0.0, shift=0)
    samples = SubjectSamples(subject, vae, sizes, quiet, seed=0)
    assert len(samples) == 70 - FRAMES + 1
    batch = samples.sample(5, np.random.default_rng(0))
    assert batch.latents.shape == (1, 5, 8, 4, 4) and batch.condition.shape == batch.reference.shape == (
        1,
        1,
        8,
        4,
        4,
    )
    torch.testing.assert_close(batch.latents, vae.encode(to_video(recorded.frames[5:22])[None]))
    assert batch.audio is not None and batch.weight is not None
    encoder = LogMelEncoder(80).features(recorded.voice, FRAMES, exact=True)
    # The second window of an animation begins with frames 13 and 14 of the video.
    heard = samples.sample(13, np.random.default_rng(0)).audio
    assert heard is not None
    torch.testing.assert_close(heard, encoder.window(encoder.windows(FRAMES)[1]))
    row, column = np.unravel_index(int(batch.weight[0, 0, 0].argmax()), (4, 4))
    lips = recorded.landmarks[5, [13, 14], :2].mean(axis=0) / 16
    assert (int(lips[1]), int(lips[0])) == (row, column) or batch.weight[
        0, 0, 0, int(lips[1]), int(lips[0])
    ] == batch.weight.max()
    others = [samples.sample(5, np.random.default_rng(seed)).condition for seed in range(8)]
    assert torch.equal(others[0], batch.condition)
    assert len({float(condition.sum()) for condition in others}) == config.windows.draws


def test_motion_frames_are_the_end_of_the_window_before(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rollout; where no window ends, the beginning of the same one stands for it."""
    config, given = tiny_config(), list[torch.Tensor]()
    whole = subject_module._condition_clip

    def told(portrait: torch.Tensor, motion: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
        given.append(motion)
        return whole(portrait, motion, random)

    monkeypatch.setattr(subject_module, "_condition_clip", told)
    vae = CausalVae(config.sizes.vae).eval().requires_grad_(False)
    settings = replace(config.windows, draws=2, decoded=0.5)
    SubjectSamples(subject_of(recorded, config.sizes), vae, config.sizes.transformer, settings, seed=0)

    def windows(start: int) -> torch.Tensor:
        return torch.cat(
            list(vae.decode(vae.encode(to_video(recorded.frames[start : start + FRAMES])[None]))), 1
        )[0]

    decoded, clean = given[0::2], given[1::2]
    assert torch.equal(clean[20], to_video(recorded.frames[20:22]))
    torch.testing.assert_close(decoded[20], windows(20 - FRAMES + 2)[-2:].clamp(-1, 1))
    torch.testing.assert_close(decoded[FRAMES - 3], windows(FRAMES - 3)[:2].clamp(-1, 1))


def test_varied_speech_keeps_its_words(recorded: Recorded) -> None:
    speech = subject_of(recorded, tiny_config().sizes).speech
    windows = speech[torch.from_numpy(context_rows(len(speech)))]
    varied = vary_speech(windows, small_portrait(1).windows, np.random.default_rng(0))
    assert varied.shape == windows.shape and not torch.equal(varied, windows)
    one, other = (values[:, 2, 0].mean(dim=-1).numpy().astype(np.float64) for values in (windows, varied))
    assert pearson(one, other) > 0.95


def test_an_autoencoder_that_was_stopped_goes_on_exactly(recorded: Recorded, tmp_path: Path) -> None:
    config, footage = tiny_config(), subject_of(recorded, tiny_config().sizes).footage(4.0)

    def learn(checkpoint: Path | None, stop: int | None) -> CausalVae:
        torch.manual_seed(0)
        vae = CausalVae(config.sizes.vae)

        def stopping(progress: Progress) -> None:
            if stop is not None and progress.note.startswith(f"step {stop},"):
                raise KeyboardInterrupt

        settings = replace(config.autoencoder, steps=6)
        train_autoencoder(
            vae, footage, settings, checkpoint=checkpoint, checkpoint_seconds=0, on_progress=stopping
        )
        return vae

    whole = learn(None, None)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", 4)
    resumed = learn(tmp_path / "run", None)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_one_clip_becomes_a_folder_with_a_report_that_says_what_it_is(
    made: tuple[Path, SmallPortrait],
) -> None:
    output, result = made
    names = {path.name for path in output.iterdir()}
    assert {"architecture.json", "portrait.png", "report.html", "report.json", "held-out.mp4"} <= names
    assert not output.with_name("person.work").exists()
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert report["caution"] == TOY and TOY in (output / "report.html").read_text(encoding="utf-8")
    assert [m["name"] for m in report["methods"]] == ["generated"]
    assert [c["name"] for c in report["controls"]][2:] == [
        "shuffled speech", "silence", "speech 1 s early", "speech 1 s late"
    ]  # fmt: skip
    assert report["windows"] == 2 and report["frames"] == 30
    assert set(result.timing) == {"reading", "autoencoder", "encoding", "denoiser", "measuring"}
    sizes = load_architecture(output)
    assert sizes.vae.scale != 1 and sizes.is_small
    seen = next(c for c in result.evaluation.controls if c.name.endswith("at this size"))
    assert seen.mean("lip_sync") > 0.8


def test_the_folder_is_animated_from(
    made: tuple[Path, SmallPortrait], talker: tuple[Path, Utterance], tmp_path: Path
) -> None:
    output = tmp_path / "said.mp4"
    config = AnimateConfig(weights=made[0], steps=2, any_face=True)
    animation = animate(made[0] / "portrait.png", talker[0], output=output, config=config)
    assert TOY in animation.notes
    frames = list(read_frames(output))
    assert len(frames) >= 70 and frames[0].image.shape == (64, 64, 3)


def test_any_video_is_measured_against_its_speech(talker: tuple[Path, Utterance], tmp_path: Path) -> None:
    """The truth itself, as if it had been generated."""
    alone = evaluate_video(talker[0], talker[0], output=tmp_path / "alone", window_frames=FRAMES)
    assert not alone.has_truth and alone.methods[0].mean("lip_sync") > 0.3 and alone.window_count == 5
    assert alone.lag.peak_s == pytest.approx(0, abs=0.081)
    beside = evaluate_video(talker[0], talker[0], output=tmp_path / "beside", recording=talker[0])
    assert beside.methods[0].mean("lip_sync") == pytest.approx(1) and beside.methods[0].mean("psnr") == 100
    assert {path.name for path in (tmp_path / "beside").iterdir()} == {"report.html", "report.json"}
