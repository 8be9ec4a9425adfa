"""The phones of a whole voice: what is read at once, where it lies in time, and what it adds to the reader."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from clips import make_sound
from omokage.config import Progress
from omokage.errors import MissingDependencyError
from omokage.media.clip import Audio
from omokage.metrics.talking import lag_curve, pearson
from omokage.pipelines import learn_speech
from omokage.pipelines.speak import hear_or_read
from omokage.pipelines.speech_track import SpeechTrack
from omokage.render.retarget import JAW
from omokage.speaking import phone_reader
from omokage.speaking.driver import CLOSED, REST, driven_by_text, driven_by_voice, speaking
from omokage.speaking.hearing import HOPS_PER_S
from omokage.speaking.phone_reader import (
    LONGEST_S,
    MARGIN_HOPS,
    PHONES_SHARE,
    SHUT_BY_PHONES,
    driven_by_whole_voice,
    read_phones,
    stretches,
)
from omokage.speaking.phonemes import Phoneme, viseme_weights, visemes_of
from omokage.speaking.voices import SpokenText
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.visemes import NAMES, shapes

Float32 = NDArray[np.float32]


def hops(*parts: tuple[float, bool]) -> NDArray[np.bool_]:
    return np.concatenate([np.full(round(seconds * HOPS_PER_S), said) for seconds, said in parts])


def test_nothing_is_read_where_nobody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone_reader, "_decoder", lambda: pytest.fail("nothing to decode"))
    silence = np.zeros(32000, np.float32)
    assert read_phones(silence, hops((2, False))) == []
    assert driven_by_whole_voice(silence).visemes[:, REST].min() > 0.99
    assert len(driven_by_whole_voice(silence[:0]).level) == 0


@pytest.mark.parametrize("kind", ["noise", "music"])
def test_noise_and_music_move_no_mouth(kind: str) -> None:
    time_s = np.arange(4 * 16000) / 16000
    chord = sum(np.sin(2 * np.pi * tone * time_s) for tone in (220, 277, 330)) * np.exp(-2 * (time_s % 0.5))
    noise = np.random.default_rng(1).normal(size=len(time_s))
    sound = (0.1 * noise if kind == "noise" else 0.2 * chord).astype(np.float32)
    assert driven_by_whole_voice(sound).visemes[:, REST].min() > 0.95


def test_a_stretch_ends_in_a_pause() -> None:
    talk, rest = (lambda seconds: (seconds, True)), (lambda seconds: (seconds, False))
    is_speech = hops(rest(1), talk(6), rest(0.5), talk(6), rest(1), talk(4), rest(3), talk(1))
    assert list(stretches(is_speech)) == [
        (100 - MARGIN_HOPS, 1350 + MARGIN_HOPS),
        (1450 - MARGIN_HOPS, 1850 + MARGIN_HOPS),  # a long pause is not read
        (2150 - MARGIN_HOPS, 2250),
    ]
    assert list(stretches(np.zeros(500, bool))) == []
    assert list(stretches(hops(talk(0.05)))) == [(0, 5)]
    # Never inside a phrase while there is a pause to end at.
    assert list(stretches(hops(talk(3), rest(24), talk(8)))) == [(0, 315), (2685, 3500)]
    assert list(stretches(hops(talk(9), rest(0.5), talk(25)))) == [(0, 915), (935, 3450)]


def test_a_voice_without_a_pause_is_cut_all_the_same() -> None:
    """Memory does not grow with the length: no stretch is longer, and every hop of speech is in one."""
    is_speech = hops((100, True))
    found = list(stretches(is_speech))
    assert max(stop - first for first, stop in found) <= LONGEST_S * HOPS_PER_S + 2 * MARGIN_HOPS + 1
    assert (found[0][0], found[-1][1]) == (0, len(is_speech))
    assert [first for first, _ in found[1:]] == [stop for _, stop in found[:-1]]  # nothing is read twice


def test_phones_lie_where_their_stretch_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    class Decoder:
        def start_utt(self) -> None: ...
        def end_utt(self) -> None: ...

        def process_raw(self, data: bytes, *, full_utt: bool) -> None:
            samples = np.frombuffer(data, "<i2")
            given.extend((len(samples), int(np.abs(samples).max())))

        def seg(self) -> Any:
            words = (("SIL", 0, 14), ("M", 15, 20), ("+NSN+", 21, 25), ("AY", 26, 40))
            return [SimpleNamespace(word=w, start_frame=a, end_frame=b) for w, a, b in words]

    monkeypatch.setattr(phone_reader, "_decoder", Decoder)
    voice = np.full(3 * 16000, 0.01, np.float32)
    told: list[Progress] = []
    phones = read_phones(voice, hops((1, False), (1, True), (1, False)), told.append)
    assert told == [Progress("hearing", seconds, 3) for seconds in (2 + MARGIN_HOPS / 100, 3)]
    assert given == [(100 + 2 * MARGIN_HOPS) * 160, 32000]  # a quiet voice is made loud
    assert [(p.symbol, p.start_s, p.end_s) for p in phones] == [("m", 1.0, 1.06), ("aɪ", 1.11, 1.26)]


def test_a_real_decoder_reads_phones_in_order(voice: Float32) -> None:
    is_speech = np.ones(len(voice) // 160, bool)
    phones = read_phones(voice, is_speech)
    assert phones == read_phones(voice, is_speech)
    assert 25 < len(phones) < 120
    edges = np.array([(p.start_s, p.end_s) for p in phones])
    assert (edges[:, 1] > edges[:, 0]).all() and (edges[1:, 0] >= edges[:-1, 1] - 1e-9).all()
    assert edges.min() >= 0 and edges.max() <= len(voice) / 16000 + 0.01
    assert {symbol for symbol in phone_reader._IPA.values() if not visemes_of(symbol)} == {"g", "k", "h", "ŋ"}


def test_the_mouth_is_the_middle_of_both_readings(voice: Float32, spoken: SpokenText) -> None:
    both, reader = driven_by_whole_voice(voice), driven_by_voice(voice)
    np.testing.assert_allclose(both.visemes.sum(axis=1), 1)
    np.testing.assert_array_equal(both.bands, reader.bands)
    is_speech = speaking(reader.visemes)
    phones = viseme_weights(read_phones(voice, is_speech > 0), (np.arange(len(is_speech)) + 0.5) / HOPS_PER_S)
    trust = PHONES_SHARE + (SHUT_BY_PHONES - PHONES_SHARE) * phones[:, CLOSED, None]
    assert (both.visemes >= (1 - trust) * reader.visemes - 1e-9).all()
    known = (driven_by_text(spoken.phonemes, voice).visemes @ shapes())[:, JAW]
    for found in (both.visemes, phones):
        jaw = (found @ shapes())[:, JAW]
        assert pearson(jaw, known) > 0.45
        assert abs(lag_curve(jaw, known, HOPS_PER_S, 0.3).peak_s) <= 0.03
        for shift in (-20, 20):
            assert pearson(np.roll(jaw, shift), known) < 0.35


@pytest.mark.parametrize(
    ("symbol", "viseme", "least"), [("m", CLOSED, SHUT_BY_PHONES), ("a", NAMES.index("a"), PHONES_SHARE)]
)
def test_lips_that_a_phone_shuts_are_shut(
    monkeypatch: pytest.MonkeyPatch, voice: Float32, symbol: str, viseme: int, least: float
) -> None:
    """More than halfway, whatever the reader says: half shut is not shut. Of any other shape phones make a half."""
    monkeypatch.setattr(
        phone_reader, "read_phones", lambda *_: [Phoneme(symbol, -1.0, len(voice) / 16000 + 1)]
    )
    found, reader = driven_by_whole_voice(voice), driven_by_voice(voice)
    is_loud = (maximum_filter1d(reader.level, 13) > 0.25) & (speaking(reader.visemes) > 0.99)
    assert is_loud.sum() > 50
    assert found.visemes[is_loud, viseme].min() > least - 0.02


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, voice: Float32) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pocketsphinx":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="pip install pocketsphinx"):
        driven_by_whole_voice(voice)


def test_a_phone_that_lasts_into_the_silence_moves_no_mouth(
    monkeypatch: pytest.MonkeyPatch, voice: Float32
) -> None:
    """The last phone of a phrase often takes the breath behind it along."""
    monkeypatch.setattr(phone_reader, "read_phones", lambda *_: [Phoneme("a", 0.0, len(voice) / 16000 + 1)])
    found, reader = driven_by_whole_voice(voice), driven_by_voice(voice)
    jaw = (found.visemes @ shapes())[:, JAW]
    is_quiet = maximum_filter1d(reader.level, 21) == 0
    assert is_quiet.sum() > 10 and jaw[is_quiet].max() < 0.05 < jaw.max()


def test_a_file_and_what_is_learned_are_read_so(
    monkeypatch: pytest.MonkeyPatch, voice: Float32, tmp_path: Path
) -> None:
    sound = make_sound(tmp_path / "a.wav", Audio(voice[:32000, None], 16000))
    told: list[Progress] = []
    speech = hear_or_read(sound, None, "en-us", told.append)
    np.testing.assert_array_equal(speech.articulation.visemes, driven_by_whole_voice(speech.voice).visemes)
    assert told[-1].stage == "hearing" and told[-1].done == told[-1].total
    monkeypatch.setattr(learn_speech, "driven_by_whole_voice", lambda *_: pytest.fail("as a whole"))
    track = SyntheticSubject(0).performance(2)
    with pytest.raises(pytest.fail.Exception, match="as a whole"):
        learn_speech.material_of(SpeechTrack("a.wav", speech.sound, speech.voice, ()), track)


def test_another_installation_of_the_package_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, voice: Float32
) -> None:
    known = driven_by_whole_voice(voice[:32000]).visemes
    monkeypatch.setenv("POCKETSPHINX_PATH", "/nonexistent")
    np.testing.assert_array_equal(driven_by_whole_voice(voice[:32000]).visemes, known)
