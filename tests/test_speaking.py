"""From a voice or a text to a face that says it: phonemes, hearing, reading, life, and the command."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.cli import app as cli
from omokage.errors import InputError, MediaError, MissingDependencyError, OutputError
from omokage.evaluate.talking_scores import Experts
from omokage.media.audio import read_audio
from omokage.media.clip import Audio
from omokage.media.decode import probe
from omokage.metrics.image import Frames
from omokage.metrics.talking import SyncScores, lag_curve, pearson
from omokage.pipelines import speak as speak_pipeline
from omokage.pipelines.evaluate_video import evaluate_video
from omokage.pipelines.speak import SpeakConfig, hear_or_read, speak, speaking_rest, within_reach
from omokage.pipelines.speech_track import resampled
from omokage.pipelines.stand_in import stand_in
from omokage.render.detail import rest_of
from omokage.render.retarget import JAW
from omokage.speaking import voices
from omokage.speaking.cues import read_cues
from omokage.speaking.driver import MOODS, Style, driven_by_text, driven_by_voice, fullest, motion
from omokage.speaking.hearing import HOPS_PER_S, Hearing, hear
from omokage.speaking.liveliness import Life, Liveliness
from omokage.speaking.phonemes import Phoneme, viseme_weights, visemes_of
from omokage.speaking.reader import VoiceReader
from omokage.speaking.voices import SpokenText, sayable, speak_text
from omokage.tracking.arkit import gaze_from_looks, read_arkit_csv
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.visemes import NAMES, shapes
from omokage.trust.release import release_clip

Float32 = NDArray[np.float32]
REST, CLOSED = NAMES.index("rest"), NAMES.index("closed")


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("speaking") / "me.avatar"
    stand_in(128, frame_count=30, clip_side=128).avatar.save(path)
    return path


def wav(path: Path, samples: Float32, rate: int = 16000) -> Path:
    """The sound of a short clip; speech comes out of any container."""
    frames = (np.zeros((64, 64, 3), np.uint8) for _ in range(max(1, int(10 * len(samples) / rate))))
    release_clip(frames, path, frame_rate=Fraction(10), audio=Audio(samples[:, None], rate))
    return path


# Phonemes


def test_lips_meet_in_the_middle_of_every_bilabial(spoken: SpokenText) -> None:
    bilabials = [p for p in spoken.phonemes if visemes_of(p.symbol) == ("closed",)]
    assert len(bilabials) >= 9
    middles = np.array([(p.start_s + p.end_s) / 2 for p in bilabials])
    weights = viseme_weights(spoken.phonemes, middles)
    assert (weights[:, CLOSED] > 0.75).all()
    assert ((weights @ shapes())[:, JAW] < 0.08).all()


def test_weights_are_shares_and_long_pauses_are_at_rest() -> None:
    phonemes = [Phoneme("a", 1.0, 1.2), Phoneme("s", 1.2, 1.3), Phoneme("uː", 3.0, 3.2)]
    times = np.arange(0, 5, 0.02)
    weights = viseme_weights(phonemes, times)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    is_pause = (times < 0.8) | ((times > 1.6) & (times < 2.7)) | (times > 3.6)
    assert weights[is_pause, REST].min() > 0.95
    assert weights[np.argmin(np.abs(times - 1.1)), NAMES.index("a")] > 0.8


def test_a_mouth_prepares_the_next_sound() -> None:
    """Coarticulation: the same s is rounder before u than before i, and a sound is prepared longer than it lingers."""
    times = np.array([0.55])
    at_s = {
        vowel: viseme_weights([Phoneme("s", 0.5, 0.6), Phoneme(vowel, 0.6, 0.8)], times) @ shapes()
        for vowel in "ui"
    }
    pucker = BLENDSHAPES.index("mouthPucker")
    assert at_s["u"][0, pucker] > at_s["i"][0, pucker] + 0.05
    before, after = viseme_weights([Phoneme("u", 1.0, 1.2)], np.array([0.92, 1.28]))[:, NAMES.index("u")]
    assert before > after


def test_symbols_of_many_languages() -> None:
    assert visemes_of("aʊ") == ("a", "u")
    assert visemes_of("tɕ") == ("s",)
    assert visemes_of("ä") == ("a",)
    assert visemes_of("k") == ()
    assert visemes_of("") == ("rest",)


# Hearing and reading


def test_a_stream_is_heard_as_the_file_is(voice: Float32) -> None:
    whole, rng = hear(voice), np.random.default_rng(0)
    hearing, pieces, start = Hearing(), [], 0
    while start < len(voice):
        count = int(rng.integers(1, 3000))
        pieces.append(hearing.hear(voice[start : start + count]))
        start += count
    pieces.append(hearing.hear(voice[:0], is_end=True))
    for name in ("bands", "level_db", "voicing", "speech"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-5)
    assert len(whole) == -(-len(voice) // 160)


def test_a_stream_is_read_as_the_file_is(voice: Float32) -> None:
    whole, _ = VoiceReader().read(voice, is_end=True)
    reader = VoiceReader()
    pieces = [reader.read(voice[start : start + 777])[0] for start in range(0, len(voice), 777)]
    pieces.append(reader.read(voice[:0], is_end=True)[0])
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4)
    assert len(whole) == -(-len(voice) // 160)


def test_the_jaw_is_read_from_the_sound_alone(spoken: SpokenText, voice: Float32) -> None:
    """Against the known phonemes, beside controls: shuffled seconds, silence, and a fifth of a second off."""
    known = (driven_by_text(spoken.phonemes, voice).visemes @ shapes())[:, JAW]
    found = (driven_by_voice(voice).visemes @ shapes())[:, JAW]
    assert pearson(found, known) > 0.6
    assert abs(lag_curve(found, known, HOPS_PER_S, 0.3).peak_s) <= 0.04
    assert abs(pearson(np.roll(found, HOPS_PER_S), known)) < 0.3
    for shift in (-20, 20):
        assert pearson(np.roll(found, shift), known) < 0.35
    assert driven_by_voice(np.zeros_like(voice)).visemes[:, REST].min() > 0.99


def sounds() -> dict[str, Float32]:
    rng, time_s = np.random.default_rng(1), np.arange(4 * 16000) / 16000
    chord = sum(np.sin(2 * np.pi * tone * time_s) for tone in (220, 277, 330)) * np.exp(-2 * (time_s % 0.5))
    return {
        "silence": np.zeros(len(time_s), np.float32),
        "noise": (0.1 * rng.normal(size=len(time_s))).astype(np.float32),
        "music": (0.2 * chord).astype(np.float32),
        "hum": (0.1 * np.sin(2 * np.pi * 50 * time_s)).astype(np.float32),
    }


@pytest.mark.parametrize("name", sounds())
def test_nothing_but_speech_moves_the_mouth(name: str) -> None:
    articulation = driven_by_voice(sounds()[name])
    track = motion(articulation, 4.0, 25.0)
    assert np.mean(track.expression[:, JAW] < 0.03) >= 0.98
    assert articulation.level.max() < 0.2


def test_lips_are_shut_in_pauses(spoken: SpokenText) -> None:
    rate = spoken.sound.sample_rate
    quiet = Audio(
        np.concatenate([spoken.sound.samples, np.zeros((2 * rate, 1), np.float32), spoken.sound.samples]),
        rate,
    )
    mono = resampled(quiet, 16000)[:, 0]
    track = motion(driven_by_voice(mono), len(mono) / 16000, 25.0)
    end = len(spoken.sound.samples) / rate
    is_pause = (track.time_s > end + 0.15) & (track.time_s < end + 1.85)
    assert np.mean(track.expression[is_pause, JAW] < 0.03) >= 0.98
    assert track.expression[~is_pause, JAW].max() > 0.2


@pytest.mark.parametrize("count", [0, 1, 159, 1600])
def test_the_shortest_sounds(count: int) -> None:
    track = motion(driven_by_voice(np.zeros(count, np.float32)), count / 16000, 25.0)
    assert len(track) == max(1, -(-count * 25 // 16000))


def test_a_telephone_and_a_loud_voice_are_read_too(voice: Float32) -> None:
    whole = (driven_by_voice(voice).visemes @ shapes())[:, JAW]
    spectrum = np.fft.rfft(voice)
    spectrum[int(len(spectrum) * 3400 / 8000) :] = 0
    telephone = np.fft.irfft(spectrum, len(voice)).astype(np.float32)
    clipped = np.clip(8 * voice / np.abs(voice).max(), -1, 1).astype(np.float32)
    for worn in (telephone, clipped, (0.02 * voice).astype(np.float32)):
        assert pearson((driven_by_voice(worn).visemes @ shapes())[:, JAW], whole) > 0.6


# Life


def test_the_same_seed_is_the_same_life_and_another_is_another_take() -> None:
    def angles(seed: int, frames: int = 200) -> NDArray[np.float64]:
        liveliness = Liveliness(Life(seed=seed), 25.0)
        return np.array([liveliness.step(0.3).angles for _ in range(frames)])

    np.testing.assert_array_equal(angles(1), angles(1))
    assert np.abs(angles(1) - angles(2)).max() > np.radians(1)


def test_idle_life_does_not_repeat_and_stays_small() -> None:
    liveliness = Liveliness(Life(), 25.0)
    moments = [liveliness.step(0.0) for _ in range(25 * 120)]
    yaw = np.degrees([moment.angles[0] for moment in moments])
    assert 0.4 < yaw.std() < 3
    assert np.abs(np.diff(yaw)).max() < 0.8  # no jerk: degrees a frame
    centered = yaw - yaw.mean()
    power = np.fft.irfft(np.abs(np.fft.rfft(centered, 2 * len(yaw))) ** 2)[: len(yaw)]
    assert (power[25 * 10 : 25 * 100] / power[0]).max() < 0.6
    blinks = np.array([moment.blink for moment in moments])
    starts = np.count_nonzero((blinks[1:] > 0.5) & (blinks[:-1] <= 0.5))
    assert 14 <= starts <= 42  # 14 a minute were asked


@pytest.mark.parametrize("asked", [5.0, 14.0, 30.0])
def test_as_many_blinks_as_were_asked_while_speaking(asked: float, voice: Float32) -> None:
    level = np.tile(driven_by_voice(voice).level[::4], 60)[: 25 * 240]
    counts = []
    for seed in range(3):
        liveliness = Liveliness(Life(blinks_per_minute=asked, seed=seed), 25.0)
        blinks = np.array([liveliness.step(value).blink for value in level])
        counts.append(np.count_nonzero((blinks[1:] > 0.5) & (blinks[:-1] <= 0.5)) / 4)
    assert 0.65 * asked < np.mean(counts) < 1.4 * asked


def test_a_still_head_that_never_blinks() -> None:
    liveliness = Liveliness(Life(head=0, blinks_per_minute=0, glances=0), 25.0)
    moments = [liveliness.step(0.5) for _ in range(300)]
    assert max(np.abs(moment.angles).max() for moment in moments) == 0
    assert max(moment.blink for moment in moments) == 0


@pytest.mark.parametrize(
    "wish",
    [
        {"energy": 3.0},
        {"head": -1.0},
        {"mood": "angry"},
        {"blinks_per_minute": 99.0},
        {"frame_rate": 5},
        {"seed": -1},
        {"gaze": "x"},
    ],
)
def test_wishes_out_of_range_are_refused(wish: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SpeakConfig(**wish)  # type: ignore[arg-type]


def test_energy_opens_the_mouth_and_a_mood_stays_below_the_words(voice: Float32) -> None:
    articulation = driven_by_voice(voice)
    still = Life(head=0, glances=0)
    plain = motion(articulation, 3.0, 25.0, Style(life=still))
    loud = motion(articulation, 3.0, 25.0, Style(energy=1.5, life=still))
    assert loud.expression[:, JAW].max() > 1.3 * plain.expression[:, JAW].max()
    friendly = motion(articulation, 3.0, 25.0, Style(mood="friendly", life=still))
    smile = BLENDSHAPES.index("mouthSmileLeft")
    assert friendly.expression[:, smile].mean() > plain.expression[:, smile].mean() + 0.15
    assert pearson(friendly.expression[:, JAW], plain.expression[:, JAW]) > 0.99


def test_cues_change_what_they_name_at_their_time(voice: Float32, tmp_path: Path) -> None:
    path = tmp_path / "cues.json"
    path.write_text('[{"at": 2, "look": [12, -4], "energy": 0}, {"at": 1, "mood": "friendly", "head": 0}]')
    articulation, still = driven_by_voice(voice), Life(glances=0)
    plain = motion(articulation, 4.0, 25.0, Style(life=still))
    cued = motion(articulation, 4.0, 25.0, Style(life=still), read_cues(path, MOODS))
    smile = BLENDSHAPES.index("mouthSmileLeft")
    before, friendly, quiet = slice(0, 26), slice(36, 50), slice(61, 100)
    for name in ("expression", "rotation", "gaze"):
        np.testing.assert_allclose(getattr(cued, name)[before], getattr(plain, name)[before], atol=1e-9)
    assert (cued.expression[friendly, smile] - plain.expression[friendly, smile]).min() > 0.1
    np.testing.assert_allclose(cued.rotation[friendly], 0, atol=1e-9)
    assert cued.expression[quiet, JAW].max() == 0
    np.testing.assert_allclose(np.degrees(cued.gaze[quiet, 0]), np.broadcast_to([12, -4], (39, 2)), atol=1e-4)
    assert np.abs(np.diff(cued.gaze[:, 0, 0])).max() < np.radians(3)  # no jump


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nonsense", "JSON"),
        ('{"at": 1}', "holds no list"),
        ('[{"mood": "friendly"}]', 'cue 1 needs a time in seconds as "at"'),
        ('[{"at": 0}, {"at": -1}]', "cue 2 needs"),
        ('[{"at": 0, "mood": "angry"}]', "neutral, friendly, serious"),
        ('[{"at": 0, "loud": 1}]', "'loud'"),
        ('[{"at": 0, "energy": 5}]', "between 0 and 2"),
        ('[{"at": 0, "energy": true}]', "between 0 and 2"),
        ('[{"at": 0, "look": [90, 0]}]', "within 25"),
    ],
)
def test_faulty_cues_are_named(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "cues.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(part)):
        read_cues(path, MOODS)


# Voices


def test_what_nobody_says_is_left_out() -> None:
    assert sayable("Hi 🎉 you\u200b! Ent\u00adwicklung") == "Hi you! Entwicklung"
    assert sayable("see https://www.example.com/a?b=1 now") == "see example.com now"
    assert sayable("See https://example.com/a. Next") == "See example.com. Next"
    assert sayable("(https://x.org/b?c=1) ok") == "(x.org) ok"
    assert (
        sayable("詳しくはhttps://example.com/aをご覧ください。次です。")
        == "詳しくはexample.comをご覧ください。次です。"
    )
    assert sayable("ﾃｽﾄ 123") == "テスト 123"
    assert sayable("1½ cups, 20 °C") == "1 1/2 cups, 20 degrees C"
    assert sayable("Title\nA line.\n\nNext\n") == "Title. A line. Next"
    assert sayable("می\u200cخواهم") == "می\u200cخواهم"


@pytest.mark.parametrize(("text", "part"), [("", "empty"), ("  \n", "empty"), ("🎉 ...", "no word")])
def test_texts_without_words_are_refused(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        speak_text(text, "en-us")


def test_japanese_and_english_are_read_with_times() -> None:
    for text, voice in (
        ("こんにちは、ぼくのなまえは おもかげ です。", "ja"),
        ("It costs 12 dollars at 10:30.", "en-gb"),
    ):
        spoken = speak_text(text, voice)
        duration = len(spoken.sound.samples) / spoken.sound.sample_rate
        assert duration > 1
        starts = [p.start_s for p in spoken.phonemes]
        assert len(starts) > 12
        assert starts == sorted(starts)
        assert spoken.phonemes[-1].end_s == pytest.approx(duration, abs=0.01)


def test_missing_voices_and_engines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="omokage voices"):
        speak_text("hello", "xx-none")
    with pytest.raises(InputError, match=r"'en-us' has no variant 'nobody'; take one of .*f3"):
        speak_text("hello", "en-us+nobody")
    with pytest.raises(MissingDependencyError, match="offers voices"):
        speak_text("hello", "nobody:en")
    monkeypatch.setattr(voices, "run_module", lambda *_, **__: b'{"error": "library"}\n')
    with pytest.raises(MissingDependencyError, match="apt-get install espeak-ng"):
        speak_text("hello", "en-us")
    assert voices.installed_voices()["espeak"] == ()


def test_kanji_need_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyopenjtalk", None)
    with pytest.raises(MissingDependencyError, match="pyopenjtalk-plus"):
        speak_text("日本語です", "ja")
    said = []
    dictionary = SimpleNamespace(g2p=lambda text, kana: said.append(text) or "ニホンゴデス")
    monkeypatch.setitem(__import__("sys").modules, "pyopenjtalk", dictionary)
    assert voices.in_kana("日本語です。はい") == "ニホンゴデス。ニホンゴデス"
    assert said == ["日本語です", "はい"]
    said.clear()
    voices.in_kana("1,000円で3.14です。omokage.comへ")
    assert said == ["1,000円で3.14です", "omokage.comへ"]


def test_a_change_of_language_is_no_sound() -> None:
    phonemes = voices._timed([("h", 0.0), ("(en)", 0.1), ("a", 0.12), ("", 0.3)], 0.4)
    assert [(p.symbol, p.start_s, p.end_s) for p in phonemes] == [
        ("h", 0.0, 0.12), ("a", 0.12, 0.3), ("", 0.3, 0.4)
    ]  # fmt: skip


def test_a_voice_that_would_spell_is_told() -> None:
    assert "cannot read Japanese" in voices.misread("日本語", "en-us")[0]
    assert "letter by letter" in voices.misread("ぼくは hello です", "ja")[0]
    assert voices.misread("ぼくです、A です", "ja") == voices.misread("Hello", "en-us") == ()


def test_a_package_may_bring_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine:
        def languages(self) -> tuple[str, ...]:
            return ("low",)

        def synthesize(self, text: str, voice: str) -> SpokenText:
            assert (text, voice) == ("hello", "low")
            return SpokenText(Audio(np.full((1600, 1), 0.1, np.float32), 16000), ())

    point = SimpleNamespace(name="mine", load=lambda: Mine)
    monkeypatch.setattr(voices, "entry_points", lambda group: [point] if group == voices.GROUP else [])
    assert len(speak_text("hello", "mine:low").sound.samples) == 1600
    assert voices.installed_voices()["mine"] == ("mine:low",)


# The command


def test_an_avatar_says_a_text(avatar: Path, tmp_path: Path) -> None:
    output, curves = tmp_path / "out.mp4", tmp_path / "curves.csv"
    speak(avatar, output=output, text="Mama, bye.", curves_output=curves)
    sound = read_audio(output)
    info = probe(output)
    assert sound is not None
    assert info.frame_rate == 25
    assert info.duration_s == pytest.approx(len(sound.samples) / sound.sample_rate, abs=0.08)
    track = read_arkit_csv(curves, frame_rate=25)
    assert len(track) == info.frame_count
    assert track.expression[:, JAW].max() > 0.1


def test_edited_curves_are_drawn_in_place_of_the_voice(avatar: Path, tmp_path: Path) -> None:
    text, first, again = "Mama, bye.", tmp_path / "first.csv", tmp_path / "again.csv"
    speak(avatar, output=tmp_path / "a.mp4", text=text, curves_output=first)
    speak(avatar, output=tmp_path / "b.mp4", text=text, curves=first, curves_output=again)
    np.testing.assert_allclose(
        read_arkit_csv(again, frame_rate=25).expression,
        read_arkit_csv(first, frame_rate=25).expression,
        atol=1e-6,
    )
    lines = first.read_text().splitlines()
    column = [name.lower() for name in lines[0].split(",")].index("jawopen")
    edited = [lines[0]]
    for line in lines[1:]:
        cells = line.split(",")
        cells[column] = "0"
        edited.append(",".join(cells))
    first.write_text("\n".join(edited))
    speak(avatar, output=tmp_path / "c.mp4", text=text, curves=first, curves_output=again)
    assert read_arkit_csv(again, frame_rate=25).expression[:, JAW].max() == 0


def test_an_avatar_says_a_recording_as_far_as_its_person_went(
    avatar: Path, voice: Float32, tmp_path: Path
) -> None:
    person = stand_in(128, frame_count=30, clip_side=128).avatar
    rest = speaking_rest(rest_of(person), person.track)
    assert rest.expression[JAW] <= np.quantile(person.track.expression[:, JAW], 0.3)
    speech = hear_or_read(wav(tmp_path / "me.mp4", voice[: 2 * 16000]), None, "")
    track = within_reach(motion(speech.articulation, speech.duration_s, 25.0), rest)
    assert track.expression[:, JAW].max() <= max(rest.reach[JAW], 0.25 * fullest()[JAW]) + 1e-6
    output = tmp_path / "out.mp4"
    assert speak(avatar, output=output, audio=tmp_path / "me.mp4").released.path == output
    assert speech.notes == ()


def test_a_syncnet_of_the_users_measures_what_an_avatar_says(
    avatar: Path, voice: Float32, tmp_path: Path
) -> None:
    """`evaluate VIDEO --speech SOUND` takes any talking video; its LSE-C and LSE-D are those of the given network."""
    said, seen = voice[: 2 * 16000], []

    def syncnet(frames: Frames, landmarks: NDArray[np.floating], sound: Float32) -> SyncScores:
        seen.append((frames, sound))
        return SyncScores(confidence=7.5, distance=6.25)

    sound = wav(tmp_path / "said.mp4", said)
    speak(avatar, output=tmp_path / "out.mp4", audio=sound)
    experts = Experts(sync=syncnet)
    measured = evaluate_video(tmp_path / "out.mp4", sound, output=tmp_path / "report", experts=experts)
    scores = measured.methods[0]
    assert (scores.mean("sync_confidence"), scores.mean("sync_distance")) == (7.5, 6.25)
    assert not any("SyncNet" in sentence for sentence in measured.missing)
    assert "LSE-C" in (tmp_path / "report" / "report.html").read_text()
    ((frames, heard),) = seen
    assert frames.shape == (-(-len(heard) // 640), 128, 128, 3)  # 25 a second
    assert pearson(heard[: len(said)].astype(np.float64), said[: len(heard)].astype(np.float64)) > 0.9


def test_curves_never_replace_what_was_given(avatar: Path, tmp_path: Path) -> None:
    given = tmp_path / "take.csv"
    given.write_text("mine")
    with pytest.raises(OutputError, match="never overwritten"):
        speak(avatar, output=tmp_path / "o.mp4", text="hi", curves=given, curves_output=given)
    assert given.read_text() == "mine"


def test_lids_follow_the_eyes(voice: Float32) -> None:
    track = motion(driven_by_voice(voice), 4.0, 25.0)
    np.testing.assert_allclose(gaze_from_looks(track.expression), track.gaze, atol=1e-5)


def test_a_sound_without_a_voice_is_said_and_keeps_the_mouth_shut(tmp_path: Path) -> None:
    noise = (0.1 * np.random.default_rng(0).normal(size=32000)).astype(np.float32)
    speech = hear_or_read(wav(tmp_path / "noise.mp4", noise), None, "")
    assert "no speech was found in noise.mp4" in " ".join(speech.notes)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "one of the two"),
        (["--text", "hi", "--audio", "a.wav"], "one of the two"),
        (["--text", ""], "empty"),
        (["--text", "@nowhere.txt"], "plain text file"),
        (["--text", "hi", "--voice", "xx-none"], "omokage voices"),
        (["--audio", "nowhere.wav"], "nowhere.wav"),
        (["--audio", "notes.txt"], "notes.txt"),
        (["--text", "hi", "--curves", "notes.txt"], "Timecode"),
    ],
)
def test_bad_wishes_get_one_sentence(
    arguments: list[str], part: str, avatar: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a sound\n")
    before = sorted(tmp_path.iterdir())
    assert cli.run(["speak", str(avatar), "-o", "out.mp4", "--quiet", *arguments]) in (2, 4)
    error = capsys.readouterr().err.strip()
    assert part in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_voices_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.run(["voices"]) == 0
    assert " en-us " in capsys.readouterr().out
    monkeypatch.setattr(voices, "run_module", lambda *_, **__: b'{"error": "library"}\n')
    assert cli.run(["voices"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_a_silent_engine_failure_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise MediaError("it broke")

    monkeypatch.setattr(voices, "run_module", broken)
    with pytest.raises(MediaError):
        speak_text("hello", "en-us")
    assert speak_pipeline.DEFAULT_VOICE == "en-us"
