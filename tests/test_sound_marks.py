"""The inaudible mark of sounds: what it changes, what it survives, and that it is not heard where there is none."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter, resample_poly

import omokage
from clips import make_clip
from omokage.cli.app import run
from omokage.errors import InternalError, MediaError
from omokage.media.audio import read_audio
from omokage.media.clip import Audio, SoundFormat, SoundingFrame
from omokage.media.decode import read_frames
from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_BITS, PUBLIC_PAYLOAD, PUBLIC_SOUND_KEY, chips_of
from omokage.trust.mark_search import LEAST_PRIVATE_SCORE, LEAST_PUBLIC_SCORE, PRESENT, Key
from omokage.trust.registry import registry_path
from omokage.trust.release import ReleaseConfig, Released, release_clip, release_live
from omokage.trust.sound_mark import _LARGEST, SoundMarker, _hidden, _sent, sound_key
from omokage.trust.sound_search import SoundFound, find_in_sound
from omokage.trust.sound_signal import BANDS, SLOTS, bands_of_bins, folded, levels
from omokage.trust.video_mark import PUBLIC_SHARE, Mark
from test_marks import texture

Float32 = NDArray[np.float32]
SECRET = b"a secret of a test".ljust(32, b".")
RENDER = 0x0123456789AB
MARK = Mark(RENDER, SECRET)
RATE = 16000
WINDOW_S = 0.02
GOLDEN_SENT = "ce78580e2626cf4b2a6b1e9357b4060a41ec5e9b2bb4cde96521ed1a293ba960"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def speech(seconds: float, rate: int = RATE, seed: int = 0) -> Float32:
    """What is hard about a synthetic voice: clean harmonics through resonances, hisses, and pauses of exact silence."""
    random, count = np.random.default_rng(seed), round(seconds * rate)
    time = np.arange(count) / rate
    pitch = 110 * 2 ** (0.3 * np.sin(2 * np.pi * 0.4 * time + seed))
    pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0.0)
    sound = np.zeros(count)
    length = round(0.12 * rate)
    for start in range(0, count, length):
        piece = slice(start, start + length)
        kind = random.random()
        source = 0.05 * random.normal(size=len(pulses[piece])) if kind < 0.2 else pulses[piece]
        centers = random.uniform(300, 800), random.uniform(1000, 2300), 2900, 3900
        for center, width in zip(centers, (80, 100, 140, 200), strict=True):
            radius = np.exp(-np.pi * width / rate)
            source = lfilter(
                [1 - radius], [1, -2 * radius * np.cos(2 * np.pi * center / rate), radius**2], source
            )
        sound[piece] = source if kind < 0.85 else 0
    return np.asarray(np.rint(0.5 * sound / max(np.abs(sound).max(), 1e-9) * 32767) / 32768, np.float32)[
        :, None
    ]


def marked(sound: Float32, rate: int = RATE, mark: Mark = MARK, step: int | None = None) -> Float32:
    marker = SoundMarker(mark, rate)
    pieces = (
        [marker.step(sound[at : at + step]) for at in range(0, len(sound), step)]
        if step
        else [marker.step(sound)]
    )
    return np.concatenate([*pieces, marker.rest()])


def found(sound: Float32, rate: int = RATE, *secrets: bytes) -> list[SoundFound]:
    own = [
        Key(chips_of(sound_key(s), PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)
        for s in secrets or (SECRET,)
    ]
    public = Key(chips_of(PUBLIC_SOUND_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE)
    return find_in_sound(sound, rate, [public, *own])


def said(sound: Float32, rate: int = RATE) -> list[int | None]:
    return [one.payload for one in found(sound, rate)]


def encoded(sound: Float32, codec: str, kind: str, bit_rate: int) -> Float32:
    """Through a codec and back, at 16 kHz, one channel."""
    buffer, rate = io.BytesIO(), 48000 if codec == "libopus" else RATE
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    buffer.seek(0)
    converter = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(buffer) as container:
        pieces = [p.to_ndarray().ravel() for f in container.decode(audio=0) for p in converter.resample(f)]
    return np.concatenate(pieces)[:, None].astype(np.float32)


def noisy(sound: Float32, below_db: float) -> Float32:
    noise = np.random.default_rng(1).normal(size=sound.shape)
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-below_db / 20)
    return np.asarray(sound + level * noise, np.float32)


def ratio_db(sound: Float32, other: Float32) -> float:
    return float(10 * np.log10(np.sum(sound**2) / np.sum((sound - other) ** 2)))


# What it changes


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.5, 3.0])
def test_it_is_as_long_as_the_sound_and_far_below_it(rate: int, seconds: float) -> None:
    sound = speech(seconds, rate) if seconds else np.zeros((0, 1), np.float32)
    changed = marked(sound, rate)
    assert changed.shape == sound.shape and changed.dtype == np.float32
    assert np.abs(changed).max(initial=0) <= 1
    if seconds == 3.0:
        assert 26 < ratio_db(sound, changed) < 33
        assert ratio_db(sound, marked(sound, rate, Mark(RENDER, SECRET, "high assurance"))) > 24


def test_silence_stays_silent() -> None:
    sound = speech(4.0)
    sound[8000:12000] = 0
    sound[:777] = 0
    changed = marked(sound)
    assert not changed[sound == 0].any()
    assert not marked(np.zeros((5000, 2), np.float32)).any()


@pytest.mark.parametrize("step", [1, 160, 319, 640, 5000])
def test_a_stream_is_marked_as_a_file_is(step: int) -> None:
    """Whatever comes at a time, and never more than 20 ms behind."""
    sound = speech(0.1 if step == 1 else 1.0)
    np.testing.assert_allclose(marked(sound, step=step), marked(sound), atol=1e-6)
    marker, came, left = SoundMarker(MARK, RATE), 0, 0
    for at in range(0, len(sound), step):
        came += len(sound[at : at + step])
        left += len(marker.step(sound[at : at + step]))
        assert came - WINDOW_S * RATE <= left <= came
    assert left + len(marker.rest()) == len(sound)


def test_what_comes_later_changes_nothing_before() -> None:
    sound = speech(2.0)
    other = sound.copy()
    other[16000:] = speech(2.0, seed=3)[16000:]
    one, two = marked(sound), marked(other)
    before = 16000 - int(WINDOW_S * RATE)
    assert np.array_equal(one[:before], two[:before]) and not np.array_equal(one, two)


def test_both_channels_change_alike_even_when_one_is_the_other_upside_down() -> None:
    sound = speech(8.0)
    stereo = np.hstack([sound, -sound])
    changed = marked(stereo)
    np.testing.assert_array_equal(changed[:, 0], -changed[:, 1])
    assert said(changed) == [PUBLIC_PAYLOAD, RENDER]
    with pytest.raises(InternalError, match="2 channels came to a sound of 1"):
        marker = SoundMarker(MARK, RATE)
        marker.step(sound)
        marker.step(stereo)


def test_a_loud_sound_stays_within_what_a_file_holds() -> None:
    sound = np.asarray(np.clip(8 * speech(2.0), -1, 1), np.float32)
    assert np.abs(marked(sound)).max() <= 1


def test_no_change_is_larger_than_what_its_neighbours_hide() -> None:
    """Noise-like bands beside one strong band: those near it may change more, those far from it as if alone."""
    power = np.full((1, BANDS), 1e-6, np.float32)
    alone = _hidden(power)[0]
    power[0, 20] = 1
    beside = _hidden(power)[0]
    assert beside[21] > 3 * alone[21] and beside[19] > 3 * alone[19]
    assert beside[20] == pytest.approx(10 ** (-14 / 20), rel=0.01)
    assert beside[0] == pytest.approx(alone[0], rel=0.05)

    uneven = np.geomspace(1e-8, 1, BANDS, dtype=np.float32)[None].repeat(2, axis=0)
    allowed = SoundMarker(MARK, RATE)._allowed(uneven, uneven.sum(axis=1))
    assert (allowed <= np.minimum(_hidden(uneven), _LARGEST) * 1.001).all() and allowed.max() > 0.9 * _LARGEST

    sound = np.random.default_rng(0).normal(0, 0.1, (RATE * 2, 1)).astype(np.float32)
    change = levels(marked(sound), RATE) - levels(sound, RATE)
    assert np.sqrt(np.mean(change**2)) < 20 * np.log10(1 + _LARGEST)


def test_every_render_begins_elsewhere_and_the_pattern_is_the_same_everywhere() -> None:
    import hashlib

    one, other = _sent(MARK), _sent(Mark(RENDER + 1, SECRET))
    assert one.shape == (SLOTS, BANDS) and np.mean(one**2) == pytest.approx(1, abs=0.02)
    assert abs(np.mean(one * other)) < 0.05
    assert hashlib.sha256(np.sign(one).astype(np.int8).tobytes()).hexdigest() == GOLDEN_SENT


def test_bands_cover_the_spectrum_once() -> None:
    for rate in (8000, 22050, 48000):
        window = round(WINDOW_S * rate)
        bands = bands_of_bins(window, rate)
        inside = np.abs(np.arange(window // 2 + 1) * rate / window - 2675) < 2300
        inside &= np.arange(window // 2 + 1) < window // 2
        assert np.allclose(bands.sum(axis=1)[inside], 1)


# What it survives

SURVIVED: dict[str, Callable[[Float32], tuple[Float32, int]]] = {
    "nothing": lambda s: (s, RATE),
    "AAC 64k": lambda s: (encoded(s, "aac", "adts", 64000), RATE),
    "AAC 32k": lambda s: (encoded(s, "aac", "adts", 32000), RATE),
    "MP3 64k": lambda s: (encoded(s, "libmp3lame", "mp3", 64000), RATE),
    "Opus 32k": lambda s: (encoded(s, "libopus", "ogg", 32000), RATE),
    "8 kHz": lambda s: (resample_poly(s, 1, 2).astype(np.float32), 8000),
    "44.1 kHz": lambda s: (resample_poly(s, 441, 160).astype(np.float32), 44100),
    "beginning cut off": lambda s: (s[34567:], RATE),
    "a quarter as loud": lambda s: (np.rint(s / 4 * 32768).astype(np.float32) / 32768, RATE),
    "noise 25 dB below": lambda s: (noisy(s, 25), RATE),
    "two channels": lambda s: (np.hstack([s, 0.3 * s]), RATE),
}


@pytest.fixture(scope="module")
def spoken() -> tuple[Float32, Float32]:
    sound = speech(15.0, seed=4)
    return sound, marked(sound)


@pytest.mark.parametrize("name", SURVIVED)
def test_it_survives_what_happens_to_sounds(name: str, spoken: tuple[Float32, Float32]) -> None:
    sound, rate = SURVIVED[name](spoken[1])
    assert said(sound, rate) == [PUBLIC_PAYLOAD, RENDER]


def test_a_long_sound_says_it_louder(spoken: tuple[Float32, Float32]) -> None:
    """Periods add up: what 15 s under noise cannot say, 75 s can."""
    loud = np.concatenate([speech(15.0, seed=seed) for seed in range(5)])
    changed = noisy(marked(loud), 12)
    short, long = found(changed[: 5 * RATE])[1], found(changed)[1]
    assert short.payload is None and long.payload == RENDER


# What it never claims


def test_what_is_not_marked_says_nothing(spoken: tuple[Float32, Float32]) -> None:
    plain, changed = spoken
    random = np.random.default_rng(0)
    for sound in (
        plain,
        np.zeros_like(plain),
        np.ones_like(plain),
        random.normal(0, 0.1, plain.shape).astype(np.float32),
        plain[:100],
        np.zeros((0, 1), np.float32),
    ):
        for one in found(sound):
            assert one.payload is None and not one.is_present and np.isfinite(one.z)
    public, *wrong = found(changed, RATE, *(bytes([n]) * 32 for n in range(20)))
    assert public.payload == PUBLIC_PAYLOAD
    assert all(one.payload is None for one in wrong)
    assert all(len(set(folded(levels(plain[:n], RATE), 0).ravel())) == 1 for n in (0, 100, 400))


def test_noise_of_the_search_is_far_from_the_acceptance(spoken: tuple[Float32, Float32]) -> None:
    """Wrong keys in an unmarked sound: the best of 3072 places, and the score of what is read there."""
    seen = found(spoken[0], RATE, *(n.to_bytes(32, "big") for n in range(60)))[1:]
    assert max(one.z for one in seen) < PRESENT - 1.5
    assert max(one.score for one in seen) < LEAST_PRIVATE_SCORE


# Through the one door, and back


def talk(path: Path, side: int = 64, seconds: float = 12.0, seed: int = 0, **settings: str) -> Released:
    ground = texture(side, side)
    pictures = (ground for _ in range(round(seconds)))
    sound = Audio(speech(seconds, seed=seed), RATE)
    config = ReleaseConfig(**settings)  # type: ignore[arg-type]
    return release_clip(pictures, path, frame_rate=Fraction(1), audio=sound, config=config)


def wav_of(sound: Audio, path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((sound.samples.shape[1], 2, sound.sample_rate, 0, "NONE", ""))
        file.writeframes(np.clip(np.rint(sound.samples * 32768), -32768, 32767).astype("<i2").tobytes())
    return path


def sound_file(clip: Path, path: Path, codec: str, kind: str) -> Path:
    """The sound of a clip alone, encoded again."""
    with av.open(str(clip)) as source, av.open(str(path), "w", format=kind) as target:
        stream = target.add_stream(codec, rate=RATE, layout="mono")
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Released, Path]]:
    """A clip whose pictures are too small for a mark, and the folder of its keys."""
    folder = tmp_path_factory.mktemp("talk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMOKAGE_HOME", str(folder / "home"))
        yield talk(folder / "talk.mp4", purpose="a test"), folder / "home"


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.m4a", "aac", "mp4"),
        ("a.mp3", "libmp3lame", "mp3"),
        ("a.flac", "flac", "flac"),
        ("a.wav", "pcm_s16le", "wav"),
    ],
)
def test_a_file_of_the_sound_alone_is_known(
    name: str,
    codec: str,
    kind: str,
    clip: tuple[Released, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released, home = clip
    monkeypatch.setenv("OMOKAGE_HOME", str(home))
    report = omokage.verify(sound_file(released.path, tmp_path / name, codec, kind))
    (file,) = report.files
    assert report.exit_code == 0 and file.verdict == "made with omokage" and file.frame_count == 0
    assert file.sound is not None and file.sound.private is not None
    assert file.sound.private.render_id == released.render_id
    assert file.sound.private.renders[0].purpose == "a test"
    assert f"private mark in the sound: render {released.render_id}" in report.to_text()
    shown = json.loads(json.dumps(report.to_json()))["files"][0]["sound"]
    assert shown["private_mark"]["render_id"] == released.render_id
    assert shown["seconds"] == pytest.approx(12, abs=0.3)


def test_a_clip_with_tiny_pictures_is_known_by_its_sound(
    clip: tuple[Released, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    released, home = clip
    monkeypatch.setenv("OMOKAGE_HOME", str(home))
    (file,) = omokage.verify(released.path).files
    assert file.verdict == "made with omokage" and file.public is not None and file.public.product is None
    assert file.sound is not None and file.sound.private is not None
    assert file.sound.private.render_id == released.render_id is not None


def test_pictures_and_sound_of_two_renders_are_both_told(tmp_path: Path) -> None:
    """A voice laid under other pictures."""
    one, two = talk(tmp_path / "a.mp4", 320), talk(tmp_path / "b.mp4", 320, seed=1, title="other")
    shown = [frame.image for frame in read_frames(tmp_path / "a.mp4")]
    make_clip(tmp_path / "mixed.mp4", seconds=len(shown), frame_rate=1, width=320, height=320,
              draw=lambda t, *_: shown[round(t)], audio=read_audio(tmp_path / "b.mp4"))  # fmt: skip
    (file,) = omokage.verify(tmp_path / "mixed.mp4").files
    assert file.private is not None and file.private.render_id == one.render_id
    assert file.sound is not None and file.sound.private is not None
    assert file.sound.private.render_id == two.render_id != one.render_id


def test_a_live_stream_is_marked_piece_by_piece(tmp_path: Path) -> None:
    sound, sent = speech(12.0), bytearray()
    image = np.full((64, 64, 3), 90, np.uint8)
    released = release_live(
        (SoundingFrame(image, sound[at : at + 3200]) for at in range(0, len(sound), 3200)),
        lambda data: sent.extend(data) or len(data),  # type: ignore[func-returns-value]
        frame_rate=Fraction(5),
        sound=SoundFormat(RATE, 1),
    )
    (tmp_path / "live.mkv").write_bytes(sent)
    (file,) = omokage.verify(tmp_path / "live.mkv").files
    assert file.sound is not None and file.sound.private is not None
    assert file.sound.private.render_id == released.render_id is not None
    heard = read_audio(tmp_path / "live.mkv")
    assert heard is not None and len(heard.samples) == len(sound)
    assert 26 < ratio_db(sound, heard.samples) < 33


def test_the_last_20_ms_leave_too(tmp_path: Path) -> None:
    noise = Audio(np.random.default_rng(0).normal(0, 0.1, (RATE, 1)).astype(np.float32), RATE)
    release_clip([texture(64, 64)] * 5, tmp_path / "a.mp4", frame_rate=Fraction(5), audio=noise)
    heard = read_audio(tmp_path / "a.mp4")
    assert heard is not None and np.std(heard.samples[-150 + RATE : RATE - 20]) > 0.05


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    one, two = (talk(tmp_path / name, seconds=2.0) for name in ("a.mp4", "b.mp4"))
    assert one.sha256 == two.sha256 and one.render_id == two.render_id


def test_a_silent_track_is_no_mark(tmp_path: Path) -> None:
    silence = Audio(np.zeros((RATE, 1), np.float32), RATE)
    released = release_clip([texture(64, 64)] * 5, tmp_path / "a.mp4", frame_rate=Fraction(5), audio=silence)
    assert released.render_id is None and not registry_path().exists()
    heard = read_audio(tmp_path / "a.mp4")
    assert heard is not None and not heard.samples.any()


def test_an_unmarked_sound_is_never_called_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav_of(Audio(speech(3.0), RATE), tmp_path / "a.wav")
    assert run(["verify", str(tmp_path), "--quiet"]) == 1
    text = capsys.readouterr().out
    assert "no mark found; that does not tell how the sound came about" in text and "real" not in text


def test_a_damaged_sound_is_told_and_its_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEnothing")
    with pytest.raises(MediaError, match=r"a\.wav"):
        omokage.verify(tmp_path / "a.wav")
    mute = make_clip(tmp_path / "mute.mp4", seconds=1.0)
    (file,) = omokage.verify(mute).files
    assert file.sound is None and file.verdict == "no mark found"
