"""A speech encoder that listens, too: piece by piece as at once, used where it helps, and told where it is missing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from omokage.avatar.bundle import Avatar, SpeechPart
from omokage.config import Progress
from omokage.errors import WeightsError
from omokage.media.clip import Audio
from omokage.pipelines.learn_speech import learned_speech, material_of, shifted
from omokage.pipelines.speak import NO_ENCODER, SpeakConfig, own_driver, speak
from omokage.pipelines.speech_encoder import installed_encoder
from omokage.pipelines.speech_track import SpeechTrack, resampled
from omokage.pipelines.stand_in import stand_in
from omokage.pipelines.weights import add_weights
from omokage.speaking.encoded import Encoding, Reduction, encode
from omokage.speaking.personal import Ear, PersonalDriver, PersonalStream, offsets
from omokage.speaking.personal_training import Material, learn
from omokage.speaking.sound_frames import COLUMNS, sound_frames
from omokage.speaking.voices import speak_text
from omokage.talking.conditions.speech import SpeechEncoder
from omokage.tracking.face_track import FaceTrack
from omokage.trust.release import release_clip
from omokage.weights.registry import SPEECH
from omokage.weights.store import Condition, inspect
from plain_avatars import made_plain
from test_personal_speech import QUICK, TEXT, articulation, material, own_way, talking

transformers = pytest.importorskip("transformers", reason="encoders need 'pip install omokage[portrait]'")

Float = NDArray[np.float64]
WIDTH, LAYERS = 16, 4
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))


def network(kind: str = "Wav2Vec2", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    return getattr(transformers, f"{kind}Model")(config).eval()


def voice(seconds: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return np.asarray(0.1 * rng.normal(size=round(16000 * seconds)), np.float32)


# What it hears


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert"])
@pytest.mark.parametrize("is_stable", [False, True])
def test_every_kind_gives_the_hidden_states_of_its_maker(kind: str, is_stable: bool, tmp_path: Path) -> None:
    built = network(kind, do_stable_layer_norm=is_stable, feat_extract_norm="layer" if is_stable else "group")
    built.save_pretrained(tmp_path / "encoder")
    sound = torch.from_numpy(voice(1.0))
    with torch.no_grad():
        theirs = built(sound[None], output_hidden_states=True).hidden_states
        encoder = SpeechEncoder.load(tmp_path / "encoder")
        ours = encoder.hidden(sound, theirs[0].shape[1])
    assert (encoder.depth, encoder.width) == (LAYERS, WIDTH)
    # The last one of a stable encoder is normalised once more by its maker.
    for layer in range(LAYERS - int(is_stable)):
        torch.testing.assert_close(ours[:, layer], theirs[layer + 1][0], atol=1e-5, rtol=1e-4)


def test_a_voice_in_pieces_is_heard_as_at_once() -> None:
    encoder, sound, rng = SpeechEncoder(network()), voice(9.3), np.random.default_rng(1)
    whole = encode(encoder, sound)
    assert whole.shape == (930, WIDTH)
    encoding, pieces, start = Encoding(encoder), [], 0
    while start < len(sound):
        count = int(rng.integers(1, 40_000))
        pieces.append(encoding.hear(sound[start : start + count]))
        start += count
    assert sum(map(len, pieces)) == 800  # two blocks, each with the second behind it
    pieces.append(encoding.hear(sound[:0], is_end=True))
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    # What comes long after changes nothing; what comes now does.
    other = sound.copy()
    other[8 * 16000 :] = 0
    changed = np.abs(encode(encoder, other) - whole).max(axis=1)
    assert changed[:400].max() == 0
    assert changed[800:].min() > 0
    assert encode(encoder, sound[:0]).shape == (0, WIDTH)
    assert encode(encoder, sound[:100]).shape == (1, WIDTH)


def test_the_few_channels_that_are_kept_are_the_principal_ones() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 3)) * [5.0, 2.0, 1.0]
    mixed = 4 + hidden @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    kept = Reduction.of(mixed, 3)(mixed)
    np.testing.assert_allclose(kept.T @ kept / 500, np.eye(3), atol=1e-9)
    assert abs(np.corrcoef(kept[:, 0], hidden[:, 0])[0, 1]) > 0.99
    encoder = SpeechEncoder(network())
    sound = voice(5.0)
    reduction = Reduction.of(encode(encoder, sound), 4)
    np.testing.assert_allclose(
        encode(encoder, sound, reduction), reduction(encode(encoder, sound)), atol=1e-4
    )


# Whether it helps


def heard(signal: Float) -> Material:
    """A recording whose jaw follows a signal (N,) a hop that only the encoder hears."""
    encoded = np.stack([signal, np.random.default_rng(5).normal(size=len(signal))], axis=1)
    sound = replace(articulation(), encoded=encoded)
    rows, _ = sound_frames(sound)
    jaw = np.clip(0.3 + 0.15 * rows[:, COLUMNS], 0, 1)
    return replace(material(jaw), articulation=sound, ear=Ear("abc", Reduction(np.zeros(2), np.eye(2))))


def slow_signal() -> Float:
    noise = np.random.default_rng(4).normal(size=len(articulation().level))
    return np.asarray(6 * np.convolve(noise, np.hanning(25) / 12.5, mode="same"))


def test_an_encoder_that_helps_is_used_and_one_that_does_not_is_left_out() -> None:
    helped = learn(heard(slow_signal()), QUICK)
    assert helped.driver.ear is not None
    deaf = learn(replace(heard(slow_signal()), ear=None), QUICK)
    assert deaf.driver.ear is None
    assert helped.verdict.cross.all > deaf.verdict.cross.all + 0.3
    assert helped.verdict.personal.all > deaf.verdict.personal.all + 0.3
    # A jaw that the bands tell all of: noise beside them only harms.
    noise = np.random.default_rng(6).normal(size=(len(articulation().level), 16))
    ear = Ear("abc", Reduction(np.zeros(16), np.eye(16)))
    plain = material(own_way())
    useless = replace(plain, articulation=replace(articulation(), encoded=noise), ear=ear)
    left_out, without = learn(useless, QUICK), learn(plain, QUICK)
    assert left_out.driver.ear is None
    assert left_out.verdict == without.verdict
    for name, values in without.driver.arrays().items():
        torch.testing.assert_close(left_out.driver.arrays()[name], values, msg=name)


@pytest.fixture(scope="module")
def helped() -> PersonalDriver:
    torch.set_num_threads(1)
    return learn(heard(slow_signal()), QUICK).driver


def test_a_stream_is_moved_as_the_file_is(helped: PersonalDriver) -> None:
    sound = heard(slow_signal()).articulation.cut(0, 703)
    whole = offsets(helped, sound)
    stream = PersonalStream(helped)
    pieces = [stream.push(sound.cut(start, start + 33)) for start in range(0, 703, 33)]
    pieces.append(stream.push(sound.cut(703, 703), is_end=True))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)
    moved = offsets(helped, replace(sound, encoded=-sound.encoded))
    assert np.abs(moved - whole).max() > 0.05


def test_it_is_moved_on_the_clock_with_the_sound() -> None:
    sound = heard(slow_signal()).articulation
    np.testing.assert_array_equal(shifted(sound, 0.3).encoded[30:], sound.encoded[:-30])
    assert not shifted(sound, 0.3).encoded[:30].any()


# The product


@pytest.fixture(scope="module")
def person() -> Avatar:
    torch.set_num_threads(1)
    return stand_in(128, frame_count=30, clip_side=128).avatar


def taught(person: Avatar, driver: PersonalDriver) -> Avatar:
    report = {"is_better": True, "recording": "me.mp4"}
    return replace(
        person, speech=SpeechPart({"driver": driver.settings(), "report": report}, driver.arrays())
    )


def installed(folder: Path, kind: str = "Wav2Vec2") -> None:
    network(kind).save_pretrained(folder / "wav2vec")
    add_weights("speech", folder)


def test_an_encoder_is_installed_and_found(tmp_path: Path) -> None:
    assert installed_encoder() is None
    with pytest.raises(WeightsError, match="there is no speech encoder in"):
        add_weights("speech", tmp_path)
    installed(tmp_path / "download", "Hubert")
    assert inspect("speech", full=True).condition is Condition.VERIFIED
    found = installed_encoder()
    assert found is not None
    assert found.network.width == WIDTH
    assert installed_encoder(found.digest) is not None
    assert installed_encoder("another") is None
    assert "Apache-2.0" in SPEECH.notice


def test_an_avatar_remembers_which_encoder_listened(
    person: Avatar, helped: PersonalDriver, tmp_path: Path
) -> None:
    path = tmp_path / "me.avatar"
    taught(person, helped).save(path)
    with safe_open(made_plain(path), framework="pt") as file:
        assert file.metadata()["version"] == "8"
    part = Avatar.load(path).speech
    assert part is not None
    again = PersonalDriver.of(part.settings["driver"], part.arrays)
    assert again.ear is not None
    assert again.ear.digest == "abc"
    sound = heard(slow_signal()).articulation
    np.testing.assert_allclose(offsets(again, sound, 3), offsets(helped, sound, 3), atol=1e-4)


def test_without_its_encoder_an_avatar_speaks_in_the_general_way_and_says_so(
    person: Avatar, helped: PersonalDriver, tmp_path: Path
) -> None:
    part = taught(person, helped).speech
    assert own_driver(part, "auto") == (None, None, f"general; {NO_ENCODER}")
    assert own_driver(part, "general") == (None, None, "general")
    with pytest.raises(WeightsError, match="omokage weights add speech"):
        own_driver(part, "personal")
    installed(tmp_path / "download")  # another one than that which listened
    assert own_driver(part, "auto")[0] is None


def test_a_recording_is_heard_by_the_installed_encoder_and_so_is_what_is_said(
    person: Avatar, tmp_path: Path
) -> None:
    installed(tmp_path / "download")
    encoder = installed_encoder()
    assert encoder is not None
    track: FaceTrack = talking()
    sound = voice(float(track.time_s[-1]))
    speech = SpeechTrack("me.mp4", Audio(sound[:, None], 16000), sound, ())
    taken, _ = material_of(speech, track, encoder)
    assert taken.ear is not None
    assert taken.ear.digest == encoder.digest
    assert taken.articulation.encoded.shape == (len(taken.articulation.level), 16)
    alone, _ = material_of(speech, track)
    assert alone.articulation.encoded.shape == (len(alone.articulation.level), 0)
    assert alone.ear is None
    clip = tmp_path / "me.mp4"
    said = resampled(speak_text(TEXT, "en-us").sound, 16000)
    blank = (np.zeros((64, 64, 3), np.uint8) for _ in range(len(said) // 16000 + 1))
    release_clip(blank, clip, frame_rate=Fraction(1), audio=Audio(said, 16000))
    for given, sentences in ((encoder, 1), (None, 0)):
        found = learned_speech(clip, track, QUICK, given)
        assert found.part is not None
        assert sum("the installed speech encoder" in told for told in found.sentences) == sentences


def test_what_is_said_is_heard_as_it_was_learned(
    person: Avatar, helped: PersonalDriver, tmp_path: Path
) -> None:
    installed(tmp_path / "download")
    encoder = installed_encoder()
    assert encoder is not None
    curves = {}
    for name, first in (("one", 0), ("other", 2)):  # other channels of the encoder, another mouth
        reduction = Reduction(np.zeros(WIDTH), np.eye(WIDTH)[:, first : first + 2])
        driver = replace(helped, ear=Ear(encoder.digest, reduction))
        reports: list[Progress] = []
        curves[name] = tmp_path / f"{name}.csv"
        speak(
            taught(person, driver), output=tmp_path / f"{name}.mp4", text="Mama.", curves_output=curves[name],
            config=SpeakConfig(driver="personal"), on_progress=reports.append,
        )  # fmt: skip
        assert "personal, learned from me.mp4" in [report.note for report in reports]
    assert curves["one"].read_text() != curves["other"].read_text()
