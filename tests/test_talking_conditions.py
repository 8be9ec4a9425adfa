"""What the transformer is told: portrait, motion frames, speech, prompt. The released numbers, and our own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_fill import Golden
from omokage.errors import InputError, MissingDependencyError, NoFaceError, WeightsError
from omokage.talking.conditions.portrait import (
    MOTION_FRAMES,
    FaceRectangle,
    condition_clip,
    condition_latents,
    face_rectangle,
    first_motion,
    mask_face,
    next_motion,
    prepare_portrait,
    reference_latents,
    to_image,
)
from omokage.talking.conditions.speech import (
    SILENCE,
    SpeechEncoder,
    SpeechFeatures,
    context_rows,
    normalized,
    speech_length,
    take,
    to_frames,
    window_count,
    window_rows,
)
from omokage.talking.conditions.text import TextEncoder
from omokage.talking.config import tiny
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae, official_vae_key, tiny_vae
from omokage.tracking.morphable import MorphableModel
from talking_folder import save_encoders, tiny_architecture

WINDOW = 49


@pytest.fixture(scope="module")
def image() -> Golden:
    return Golden("hallo3_image")


@pytest.fixture(scope="module")
def audio() -> Golden:
    return Golden("hallo3_audio")


@pytest.fixture(scope="module")
def vae(image: Golden) -> CausalVae:
    pytest.importorskip("diffusers", reason="the video autoencoder needs 'pip install omokage[portrait]'")
    given = image.weights("first_stage_model")
    vae = CausalVae(tiny_vae()).eval().requires_grad_(False)
    names = {key: official_vae_key(key, vae.config) for key in vae.state_dict()}
    vae.load_state_dict({key: torch.from_numpy(given[name]) for key, name in names.items()})
    return vae


def tensor(golden: Golden, name: str) -> torch.Tensor:
    return torch.from_numpy(golden.input(name))


def frames_first(golden: Golden, name: str) -> torch.Tensor:
    """Clips of the file are (B, C, T, H, W)."""
    return tensor(golden, name).transpose(1, 2)


# portrait


@pytest.mark.parametrize("number", range(4))
def test_portraits_are_prepared_as_released(image: Golden, number: int) -> None:
    prepared = prepare_portrait(tensor(image, f"photo.{number}")[0], *image.config["frame"])
    image.check(f"prepared.{number}", prepared[None].numpy(), share=0.5)


def test_a_square_portrait_stands_between_black_bars() -> None:
    prepared = prepare_portrait(torch.ones(3, 50, 50), 32, 48)
    assert prepared[:, :, 8:40].min() > 0.999
    assert prepared[:, :, :8].max() == prepared[:, :, 40:].max() == -1
    with pytest.raises(InputError, match="wider than high by an even number of pixels, got 31x48"):
        prepare_portrait(torch.ones(3, 50, 50), 48, 31)


@pytest.mark.parametrize("number", range(5))
def test_face_rectangles_are_the_released_ones(image: Golden, number: int) -> None:
    x0, x1, y0, y1, height, width, enlargement = image.config["face_boxes"][number]
    spread = image.input("landmarks").astype(np.float64)
    landmarks = np.array([x0, y0]) + spread * np.array([x1 - x0, y1 - y0])
    face = face_rectangle(landmarks, height, width, enlargement)
    assert [face.top, face.bottom, face.left, face.right, face.area] == list(image.output("face_box")[number])


def outline(left: float, right: float, top: float, bottom: float) -> np.ndarray:
    landmarks = np.zeros((478, 2))
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    x, y = (1 + np.cos(turn)) / 2, (1 + np.sin(turn)) / 2
    landmarks[MorphableModel.load().face_oval] = np.stack(
        [left + x * (right - left), top + y * (bottom - top)], 1
    )
    return landmarks


def test_a_face_that_fills_the_picture_keeps_the_whole_side() -> None:
    """Shifted back as released, the enlarged rectangle of a 90 px face in 100 px would begin at -8: a strip of 8 px."""
    assert face_rectangle(outline(5, 95, 5, 95), 100, 100) == FaceRectangle(0, 100, 0, 100)
    assert face_rectangle(outline(0, 90, 30, 60), 100, 100) == FaceRectangle(27, 63, 0, 100)
    # Partly outside at the far edge: the shift back would pass the near one.
    assert face_rectangle(outline(15, 110, 30, 60), 100, 100) == FaceRectangle(27, 63, 0, 100)


def test_a_face_outside_the_picture_is_refused() -> None:
    with pytest.raises(NoFaceError, match="outside the picture"):
        face_rectangle(outline(120, 180, 10, 70), 100, 100)
    with pytest.raises(NoFaceError, match="outside the picture"):
        face_rectangle(outline(10, 70, -90, -20), 100, 100)


def test_only_the_face_is_left_in_the_masked_portrait() -> None:
    picture = torch.rand(3, 10, 12) + 0.1
    masked = mask_face(picture, FaceRectangle(2, 5, 3, 9))
    assert torch.equal(masked[:, 2:5, 3:9], picture[:, 2:5, 3:9])
    assert int((masked != 0).sum()) == 3 * 3 * 6


# condition latents


def test_the_first_windows_condition_is_the_released_one(image: Golden, vae: CausalVae) -> None:
    portrait = tensor(image, "portrait")
    clip = condition_clip(portrait, first_motion(portrait), tensor(image, "keep"))
    image.check("first.pixels", clip.transpose(1, 2).numpy())
    latents = condition_latents(vae, clip, 13, frames_first(image, "posterior_noise"))
    image.check("first.latent", latents.numpy(), share=0.5)


def test_a_later_windows_condition_and_the_networks_input_are_the_released_ones(
    image: Golden, vae: CausalVae
) -> None:
    clip = condition_clip(tensor(image, "portrait"), frames_first(image, "motion"), tensor(image, "keep"))
    image.check("next.pixels", clip.transpose(1, 2).numpy())
    latents = condition_latents(vae, clip, 13, frames_first(image, "posterior_noise"))
    image.check("next.latent", latents.numpy(), share=0.5)
    # What the denoiser embeds: of every frame the noisy latents, then those of the condition.
    sizes = replace(tiny(), latent_channels=4, latent_height=4, latent_width=6)
    network, embedded = Transformer(sizes), list[torch.Tensor]()
    network.embedding.register_forward_pre_hook(lambda _, given: embedded.append(given[0]))
    network.embed(tensor(image, "state"), latents, torch.zeros(1, sizes.text_tokens, sizes.text_width))
    image.check("network_input", embedded[0].numpy(), share=0.5)


def test_the_reference_latents_are_the_released_ones(image: Golden, vae: CausalVae) -> None:
    masked, noise = tensor(image, "face_portrait"), frames_first(image, "posterior_noise_face")
    image.check("face_latent", reference_latents(vae, masked, noise).numpy(), share=0.5)
    still = reference_latents(vae, masked)
    assert torch.equal(still, reference_latents(vae, masked))
    assert not torch.allclose(still, reference_latents(vae, masked, noise))


# after decoding


def test_the_end_of_a_window_is_the_released_one(image: Golden) -> None:
    video = frames_first(image, "decoded")
    image.check("tail.next_motion", next_motion(video).transpose(1, 2).numpy(), share=0.5)
    pictures = np.stack([to_image(frame, square=True) for frame in video[0, MOTION_FRAMES:]])
    image.check("tail.bytes", pictures, share=0.5)


def test_pictures_of_other_shapes_keep_their_sides_and_fractions_are_cut() -> None:
    level = (200.9 / 255) * 2 - 1
    picture = to_image(torch.full((3, 4, 6), level), square=False)
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    assert picture.min() == picture.max() == 200


# speech


@pytest.mark.parametrize("frames", [49, 50, 99, 157])
def test_features_are_brought_to_the_frame_rate_as_released(audio: Golden, frames: int) -> None:
    audio.check(
        f"interpolated_{frames}", to_frames(tensor(audio, "features_50hz"), frames).numpy(), share=0.5
    )


def test_contexts_are_the_released_ones(audio: Golden) -> None:
    audio.check("windows_7", take(tensor(audio, "hidden"), context_rows(7)).numpy())


def test_lengths_are_the_released_ones(audio: Golden) -> None:
    for samples, frames, padded, padding in audio.output("frame_counts").astype(int):
        length = speech_length(int(samples), WINDOW)
        assert (length.frames, length.padded_frames, length.padding) == (frames, padded, padding), samples


def test_exact_lengths_count_in_whole_numbers() -> None:
    assert speech_length(313_600, WINDOW).frames == 491
    assert speech_length(313_600, WINDOW, exact=True).frames == 490
    assert speech_length(313_601, WINDOW, exact=True).frames == 491
    with pytest.raises(InputError, match="the speech is empty"):
        speech_length(0, WINDOW)


@pytest.mark.parametrize("frames", [31, 98, 130])
def test_windows_hear_what_the_released_ones_hear(audio: Golden, frames: int) -> None:
    audio.check(f"segments_{frames}", window_rows(frames, WINDOW) + 1)


@pytest.mark.parametrize(("seconds", "released", "needed"), [(2, 3, 2), (5, 4, 3), (10, 7, 6), (60, 33, 32)])
def test_no_window_is_computed_for_nothing(seconds: int, released: int, needed: int) -> None:
    length = speech_length(seconds * 16_000, WINDOW)
    assert len(window_rows(length.padded_frames, WINDOW)) == released
    features = SpeechFeatures(torch.arange(1.0, length.padded_frames + 1)[:, None, None], length)
    rows = features.windows(WINDOW)
    assert len(rows) == needed == window_count(length.frames, WINDOW)
    assert np.array_equal(rows, window_rows(length.padded_frames, WINDOW)[:needed])
    assert needed * (WINDOW - 2) >= length.frames > (needed - 1) * (WINDOW - 2)


def test_silence_is_zeros_and_a_window_has_its_frames() -> None:
    features = SpeechFeatures(torch.arange(1.0, 99.0)[:, None, None], speech_length(32_000, WINDOW))
    first, second = (features.window(rows) for rows in features.windows(WINDOW))
    assert first.shape == (1, 49, 5, 1, 1)
    assert first[0, :2].abs().max() == 0
    assert first[0, 2, :, 0, 0].tolist() == [1, 1, 1, 2, 3]
    assert torch.equal(second[:, :2], first[:, -2:])
    assert int((features.windows(WINDOW)[0] == SILENCE).sum()) == 10


def test_speech_is_normalized_over_the_whole_clip() -> None:
    speech = (0.2 + 0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    assert normalized(speech).dtype == np.float32
    np.testing.assert_allclose([normalized(speech).mean(), normalized(speech).std()], [0, 1], atol=1e-4)
    assert np.abs(normalized(np.zeros(100, np.float32))).max() == 0


@pytest.fixture(scope="module")
def speech_encoder() -> SpeechEncoder:
    transformers = pytest.importorskip(
        "transformers", reason="the encoders need 'pip install omokage[portrait]'"
    )
    golden = Golden("hallo3_wav2vec")
    network = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(**golden.meta["networks"]["wav2vec2"]["config"])
    )
    # torch renamed the two halves of the weight-normalised kernel.
    halves = {
        "weight_g": "parametrizations.weight.original0",
        "weight_v": "parametrizations.weight.original1",
    }
    state = {
        re.sub(r"weight_[gv]$", lambda found: halves[found[0]], key): torch.from_numpy(value)
        for key, value in golden.weights("wav2vec2").items()
    }
    network.load_state_dict(state, strict=True)
    return SpeechEncoder(network)


def test_the_speech_encoder_gives_the_released_hidden_states(speech_encoder: SpeechEncoder) -> None:
    golden = Golden("hallo3_wav2vec")
    waveform, frames = tensor(golden, "waveform"), golden.config["frames"]
    features = speech_encoder.convolved(waveform)
    golden.check("features_50hz", features.numpy(), share=0.5)
    golden.check("features_25hz", to_frames(features, frames).numpy(), share=0.5)
    # What enters the first layer, which is no hidden state that the video hears.
    embedded: list[torch.Tensor] = []
    layer = speech_encoder._network.encoder.layers[0]
    listening = layer.register_forward_pre_hook(lambda _, given: embedded.append(given[0]))
    golden.check("hidden", speech_encoder.hidden(waveform[0], frames).numpy(), share=0.5)
    listening.remove()
    golden.check("embedding", embedded[0].numpy(), share=0.5)


def test_a_speech_becomes_features_of_its_padded_length(speech_encoder: SpeechEncoder) -> None:
    speech = np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    features = speech_encoder.features(speech, WINDOW)
    assert features.hidden.shape == (49, 3, 24)
    assert features.length.frames == 25
    padded = torch.from_numpy(np.concatenate([normalized(speech), np.zeros(15_360, np.float32)]))
    assert torch.equal(features.hidden, speech_encoder.hidden(padded, 49))
    louder = speech_encoder.features(0.25 * speech + 0.1, WINDOW)
    torch.testing.assert_close(louder.hidden, features.hidden, atol=1e-4, rtol=1e-3)


def test_the_speech_encoder_is_read_from_a_folder(speech_encoder: SpeechEncoder, tmp_path: Path) -> None:
    """The published file is that of the speech recogniser: a prefix, a head, and the old names of the two halves."""
    golden = Golden("hallo3_wav2vec")
    state = {f"wav2vec2.{k}": torch.from_numpy(v) for k, v in golden.weights("wav2vec2").items()}
    save_file(state | {"lm_head.bias": torch.zeros(32)}, tmp_path / "model.safetensors", {"format": "pt"})
    speech_encoder._network.config.save_pretrained(tmp_path)
    again = SpeechEncoder.load(tmp_path).hidden(tensor(golden, "waveform")[0], golden.config["frames"])
    golden.check("hidden", again.numpy(), share=0.5)


# text


def test_the_text_encoder_gives_the_released_embeddings() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="the encoders need 'pip install omokage[portrait]'"
    )
    golden = Golden("hallo3_t5")
    network = transformers.T5EncoderModel(
        transformers.T5Config(**golden.meta["networks"]["t5"]["config"], dropout_rate=0.0)
    )
    state = {key: torch.from_numpy(value) for key, value in golden.weights("t5").items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight", "shared.weight"}  # one table under two names
    asked: list[tuple[str, int]] = []

    def tokenizer(prompt: str, count: int) -> list[int]:
        asked.append((prompt, count))
        return golden.input("ids")[0].tolist()

    encoder = TextEncoder(network, tokenizer, tokens=11)
    golden.check("hidden", encoder.embeddings(tensor(golden, "ids")).numpy(), share=0.5)
    alone = encoder.encode("a woman talks by the sea")
    assert asked == [("a woman talks by the sea", 11)]
    np.testing.assert_allclose(alone[0].numpy(), golden.output("hidden")[0], atol=1e-5)


def test_the_text_encoder_is_read_from_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="the encoders need 'pip install omokage[portrait]'"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "woman": 3, "talks": 4}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(tmp_path)
    golden = Golden("hallo3_t5")
    network = transformers.T5EncoderModel(
        transformers.T5Config(**golden.meta["networks"]["t5"]["config"], dropout_rate=0.0)
    )
    network.save_pretrained(tmp_path)
    encoder = TextEncoder.load(tmp_path, tokens=6, dtype=torch.float32)
    padded, cut = encoder.encode("a woman talks"), encoder.encode("a woman talks a a a a a")
    assert padded.shape == cut.shape == (1, 6, 24)
    # Padding is a word like others: no mask, but the same encoder sees it.
    with torch.no_grad():
        expected = network(input_ids=torch.tensor([[2, 3, 4, 0, 0, 0], [2, 3, 4, 2, 2, 2]])).last_hidden_state
    torch.testing.assert_close(torch.cat([padded, cut]), expected)


# what is missing


def without(folder: Path, name: str) -> None:
    """Take a tensor out of the weights of a folder."""
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def resized(folder: Path, name: str) -> None:
    """Let a tensor have one row more."""
    state = load_file(folder / "model.safetensors")
    state[name] = torch.cat([state[name], state[name][:1]])
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def encoders(tmp_path: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Folders of a text and a speech encoder as they are installed, and how each is loaded."""
    pytest.importorskip("transformers", reason="the encoders need 'pip install omokage[portrait]'")
    save_encoders(tmp_path, tiny_architecture())
    return {
        "text": (tmp_path / "text", lambda folder: TextEncoder.load(folder, tokens=6)),
        "speech": (tmp_path / "speech", SpeechEncoder.load),
    }


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("text", "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
        ("text", "shared.weight"),  # of which the embedding of tokens is another name
        ("speech", "encoder.layers.1.attention.v_proj.bias"),
        ("speech", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ],
)
def test_an_encoder_that_lacks_a_tensor_is_refused(
    kind: str, lacking: str, encoders: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """`transformers` would fill it at random, and go on with a warning."""
    folder, load = encoders[kind]
    load(folder)
    without(folder, lacking)
    capfd.readouterr()
    with pytest.raises(
        WeightsError, match=rf"the {kind} encoder in .* is incomplete or of .* missing"
    ) as told:
        load(folder)
    named = {lacking, "encoder.embed_tokens.weight"} if lacking == "shared.weight" else {lacking}
    assert any(f"such as '{name}'" in str(told.value) for name in named)
    assert "'omokage weights pull hallo3'" in str(told.value) and "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_an_encoder_of_another_network_is_refused(encoders: Any) -> None:
    (text, load_text), (speech, load_speech) = encoders["text"], encoders["speech"]
    resized(text, "encoder.final_layer_norm.weight")
    with pytest.raises(
        WeightsError, match=r"or of another size, such as 'encoder\.final_layer_norm\.weight'"
    ):
        load_text(text)
    # Right names around the weights of somebody else.
    (text / "model.safetensors").write_bytes((speech / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"of another network than its config.json says: \d+ of its"):
        load_text(text)
    whole = (speech / "model.safetensors").read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:5]):
        (speech / "model.safetensors").write_bytes(broken)
        with pytest.raises(WeightsError, match=r"the speech encoder in .* is damaged or incomplete"):
            load_speech(speech)


def test_what_an_encoder_never_reads_may_lack(encoders: Any) -> None:
    """The published speech recogniser has no vector for masked frames."""
    folder, load = encoders["speech"]
    without(folder, "masked_spec_embed")
    load(folder)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("diffusers", lambda _: CausalVae(tiny_vae())),
        ("transformers", SpeechEncoder.load),
        ("transformers", lambda folder: TextEncoder.load(folder, tokens=226)),
    ],
)
def test_a_missing_package_is_named_with_its_install_command(
    package: str, use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'omokage[portrait]'")):
        use(tmp_path)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (SpeechEncoder.load, "holds no speech encoder"),
        (lambda folder: TextEncoder.load(folder, tokens=226), "holds no text encoder"),
    ],
)
def test_an_empty_folder_holds_no_encoder(load: Any, said: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the encoders need 'pip install omokage[portrait]'")
    with pytest.raises(InputError, match=said):
        load(tmp_path)
