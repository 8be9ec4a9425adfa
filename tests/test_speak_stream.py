"""Streams of sound in and films out while they are made: headers, rates, the one door, the command and its end."""

from __future__ import annotations

import io
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.cli import app as cli
from omokage.cli import speak_live as cli_live
from omokage.errors import InternalError, MediaError, OutputError
from omokage.media.audio import read_audio
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.media.decode import probe
from omokage.media.pcm import Resampler, read_pcm
from omokage.pipelines.speech_track import resampled
from omokage.pipelines.stand_in import stand_in
from omokage.speaking.voices import speak_text
from omokage.trust.release import DISCLOSURE, ReleaseConfig, release_live

Float32 = NDArray[np.float32]
RAW = SoundFormat(16000, 1)


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("stream") / "me.avatar"
    stand_in(128, frame_count=30, clip_side=128).avatar.save(path)
    return path


@pytest.fixture(scope="module")
def said() -> bytes:
    """0.8 s of speech, raw."""
    voice = resampled(speak_text("Mama, hello.", "en-us").sound, 16000)[:12800, 0]
    return np.round(voice * 32767).astype("<i2").tobytes()


# What comes


def reader(data: bytes, most: int = 1 << 20) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)
    return lambda count: stream.read(min(count, most))


def wav(
    samples: bytes, *, kind: int = 1, channels: int = 1, rate: int = 22050, bits: int = 16, **how: Any
) -> bytes:
    width = bits // 8 * channels
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * width, width, bits) + how.get("more", b"")
    size = how.get("size", 0x7FFFF000)  # what programs write that do not know yet
    return (
        b"RIFF" + struct.pack("<I", size) + b"WAVE" + how.get("before", b"")
        + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size) + samples
    )  # fmt: skip


def heard(data: bytes, most: int = 1 << 20) -> tuple[SoundFormat, Float32]:
    stream = read_pcm(reader(data, most), RAW, name="the stream")
    return stream.format, np.concatenate([np.zeros((0, stream.format.channels), np.float32), *stream.pieces])


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_raw_samples_are_read_however_they_come(most: int) -> None:
    samples = np.array([0, 16384, -32768, 32767] * 50, dtype="<i2")
    sound, values = heard(samples.tobytes() + b"\x01", most)  # half a sample at the end
    assert sound == RAW
    np.testing.assert_allclose(values[:, 0], samples / 32768, atol=1e-7)


@pytest.mark.parametrize("most", [1, 1 << 20])
def test_a_wav_header_tells_its_own_format(most: int) -> None:
    samples = np.arange(-300, 300, dtype="<i2")
    sound, values = heard(wav(samples.tobytes(), channels=2, rate=44100), most)
    assert sound == SoundFormat(44100, 2) and values.shape == (300, 2)
    listed = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    sound, values = heard(wav(samples.tobytes(), before=listed, size=0), most)
    assert sound == SoundFormat(22050, 1) and len(values) == 600
    for at_once in (7, 1 << 20):
        told = wav(samples.tobytes(), size=1200) + b"LIST" + struct.pack("<I", 6) + b"INFOxx"
        np.testing.assert_array_equal(heard(told, at_once)[1][:, 0], samples / np.float32(32768))
    floats = np.array([0.5, np.nan, 7.0], dtype="<f4").tobytes()
    np.testing.assert_array_equal(heard(wav(floats, kind=3, bits=32))[1][:, 0], [0.5, 0, 1])
    extended = struct.pack("<HHIH14s", 22, 16, 4, 1, b"\0" * 14)
    assert len(heard(wav(samples.tobytes(), kind=0xFFFE, more=extended))[1]) == 600


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty (0 bytes)"),
        (b"not a sound\n", "holds text"),
        (b"fLaC" + bytes(64), "'flac'"),
        (b"ID3" + bytes(64), "'mp3'"),
        (b"\0\0\0\x20ftypisom" + bytes(64), "'mov'"),
        (b"RIFF\0\0\0\0WAVEfmt ", "damaged or cut off"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\x7f" + bytes(64), "damaged or cut off"),
        (wav(b"")[:30], "damaged or cut off"),
        (wav(b"", bits=24), "not read as it comes"),
        (wav(b"", kind=7, bits=8), "not read as it comes"),
        (wav(b"", rate=100), "not read as it comes"),
    ],
)
def test_what_is_no_stream_of_sound_is_refused_in_a_sentence(data: bytes, part: str) -> None:
    with pytest.raises(MediaError) as refused:
        read_pcm(reader(data), RAW, name="the stream")
    assert part in str(refused.value) and str(refused.value).count("\n") == 0


def test_raw_samples_that_begin_like_a_picture_are_samples() -> None:
    for first in (b"BM", b"\xff\xfb", b"GG"):
        assert len(heard(first + bytes(range(1, 200)))[1]) == 100


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_a_rate_is_changed_while_it_comes(rate: int) -> None:
    """The same times, at most `DELAY_S` behind, whatever the cuts."""
    time_s, rng = np.arange(rate) / rate, np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 300 * time_s).astype(np.float32)
    resampler, pieces, fed = Resampler(rate, 16000), [], 0
    while fed < len(tone):
        count = int(rng.integers(1, 2000))
        pieces.append(resampler.step(tone[fed : fed + count]))
        fed = min(len(tone), fed + count)
        behind = fed / rate - sum(map(len, pieces)) / 16000
        assert 0 <= behind <= Resampler.DELAY_S
    found = np.concatenate(pieces)
    np.testing.assert_allclose(
        found[200:], np.sin(2 * np.pi * 300 * np.arange(len(found)) / 16000)[200:], atol=1e-3
    )


# What leaves


def film(count: int, rate: int = 16000, frame_rate: int = 25, channels: int = 1) -> Iterator[SoundingFrame]:
    sound = SoundFormat(rate, channels)
    for index in range(count):
        image = np.full((64, 64, 3), 255 if index == count // 2 else 40, np.uint8)
        samples = sound.samples_until(index + 1, Fraction(frame_rate)) - sound.samples_until(
            index, Fraction(frame_rate)
        )
        yield SoundingFrame(image, np.full((samples, channels), 0.5 * (index == count // 2), np.float32))


def seen(data: Any) -> tuple[list[NDArray[np.uint8]], Float32, dict[str, str]]:
    """Pictures, sound (S, channels), and what the file says about itself."""
    with av.open(data) as container:
        pictures, samples = [], []
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                pictures.append(frame.to_ndarray(format="rgb24"))
            else:
                samples.append(frame.to_ndarray().reshape(-1, len(frame.layout.channels)))
        said = {name.lower(): value for name, value in container.metadata.items()}
    return pictures, np.concatenate(samples) if samples else np.zeros((0, 0), np.float32), said


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 2), (44100, 2)])
def test_a_stream_can_be_watched_and_says_what_it_is(rate: int, channels: int) -> None:
    """Every frame and every sample, the flash at the beep, and the notice."""
    sent = bytearray()
    released = release_live(
        film(40, rate, channels=channels),
        lambda data: sent.extend(data) or len(data),  # type: ignore[func-returns-value]
        frame_rate=Fraction(25),
        sound=SoundFormat(rate, channels),
        config=ReleaseConfig(title="me"),
    )
    pictures, samples, said = seen(io.BytesIO(bytes(sent)))
    assert released.frame_count == len(pictures) == 40 and released.duration_s == 1.6
    assert len(samples) == rate * 40 // 25
    assert said["comment"].startswith(DISCLOSURE["generated"]) and said["title"] == "me"
    flash = int(np.argmax([picture.mean() for picture in pictures]))
    assert flash == 20
    beep = int(np.flatnonzero(np.abs(samples[:, 0].astype(float)) > 0)[0])
    assert beep / rate == pytest.approx(flash / 25, abs=1 / rate)


def test_a_stream_needs_no_sound(tmp_path: Path) -> None:
    sent = bytearray()
    targets = (lambda data: sent.extend(data) or len(data), tmp_path / "mute.mp4")  # type: ignore[func-returns-value]
    for target in targets:
        mute = (SoundingFrame(frame.image) for frame in film(10))
        assert release_live(mute, target, frame_rate=Fraction(25), sound=None).frame_count == 10
    for made in (io.BytesIO(bytes(sent)), str(tmp_path / "mute.mp4")):
        pictures, samples, said = seen(made)
        assert (
            len(pictures) == 10 and samples.size == 0 and said["comment"].startswith(DISCLOSURE["generated"])
        )


def test_a_picture_leaves_with_the_next_one() -> None:
    sent, sizes = bytearray(), []

    def frames() -> Iterator[SoundingFrame]:
        for frame in film(10):
            sizes.append(len(sent))
            yield frame

    release_live(frames(), lambda data: sent.extend(data) or len(data), frame_rate=Fraction(25), sound=RAW)  # type: ignore[func-returns-value]
    assert (np.diff(sizes[2:]) > 0).all()


def test_a_visible_label_is_drawn_live(tmp_path: Path) -> None:
    for name, label in (("a.mp4", None), ("b.mp4", "made")):
        release_live(
            film(5), tmp_path / name, frame_rate=Fraction(25), sound=RAW, config=ReleaseConfig(label=label)
        )
    plain, labeled = (seen(str(tmp_path / name))[0][0].astype(int) for name in ("a.mp4", "b.mp4"))
    assert np.abs(plain - labeled)[-20:].max() > 100 > np.abs(plain - labeled)[:30].max()


def test_a_film_appears_when_it_ends_and_not_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"

    def broken() -> Iterator[SoundingFrame]:
        yield from film(10)
        assert not path.exists()
        raise MediaError("the line is dead")

    with pytest.raises(MediaError):
        release_live(broken(), path, frame_rate=Fraction(25), sound=RAW)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InternalError):
        release_live(iter(()), path, frame_rate=Fraction(25), sound=RAW)
    with pytest.raises(OutputError):
        release_live(film(2), tmp_path / "film.txt", frame_rate=Fraction(25), sound=RAW)
    release_live(film(25), path, frame_rate=Fraction(25), sound=RAW)
    sound = read_audio(path)
    assert probe(path).frame_count == 25 and sound is not None
    beep = np.flatnonzero(np.abs(sound.samples[:, 0]) > 0.1)
    assert beep[0] / 16000 == pytest.approx(0.48, abs=0.02)


def test_a_viewer_who_goes_away_is_told_as_such() -> None:
    def gone(data: bytes) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        release_live(film(30), gone, frame_rate=Fraction(25), sound=RAW)


# The command


class Pipes:
    """Stdin and stdout of a command that runs in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self._into = os.pipe()
        self._out_of, self._outside = os.pipe()
        self.received = bytearray()
        stdin = SimpleNamespace(fileno=lambda: self.inside, isatty=lambda: False)
        stdout = SimpleNamespace(fileno=lambda: self._outside, isatty=lambda: False)
        monkeypatch.setattr(cli_live, "sys", SimpleNamespace(stdin=stdin, stdout=stdout))
        self._threads: list[threading.Thread] = []

    def send(self, *parts: bytes | Callable[[], None]) -> Pipes:
        """Bytes go in, and calls are made, one after the other."""

        def run() -> None:
            for part in parts:
                if isinstance(part, bytes):
                    os.write(self._into, part)
                else:
                    part()
            os.close(self._into)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return self

    def receive(self, most: int | None = None) -> Pipes:
        def run() -> None:
            while (most is None or len(self.received) < most) and (data := os.read(self._out_of, 1 << 16)):
                self.received.extend(data)
            os.close(self._out_of)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return self

    def join(self) -> None:
        os.close(self._outside)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        os.close(self.inside)


@pytest.fixture
def pipes(monkeypatch: pytest.MonkeyPatch) -> Pipes:
    return Pipes(monkeypatch)


def live(avatar: Path, *arguments: str) -> int:
    return cli.run(
        ["speak", str(avatar), "--audio", "-", "--live", "--runtime", "torch", "--quiet", *arguments]
    )


def test_a_stream_becomes_a_film(
    avatar: Path, said: bytes, pipes: Pipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Telephone sound of an odd number of bytes, and cues."""
    output, cues = tmp_path / "out.mp4", tmp_path / "cues.json"
    cues.write_text('[{"at": 0.1, "mood": "friendly"}]')
    narrow = np.frombuffer(said, "<i2")[::2].tobytes() + b"\0"
    pipes.send(narrow)
    assert live(avatar, "-o", str(output), "--rate", "8000", "--cues", str(cues), "--energy", "1.2") == 0
    pipes.join()
    pictures, _, notice = seen(str(output))
    assert notice["comment"].startswith("AI-generated")
    assert len(pictures) >= 20  # 0.8 s, and what passed before it began
    sound = read_audio(output)
    assert sound is not None and np.abs(sound.samples).max() > 0.05
    assert (
        abs(len(sound.samples) / sound.sample_rate - len(pictures) / 25) < 0.15
    )  # AAC comes in whole blocks


def test_a_stream_becomes_a_stream(avatar: Path, said: bytes, pipes: Pipes) -> None:
    pipes.send(wav(said, rate=16000)).receive()
    assert live(avatar, "-o", "-") == 0
    pipes.join()
    pictures, samples, notice = seen(io.BytesIO(bytes(pipes.received)))
    assert notice["comment"].startswith("AI-generated")
    assert len(samples) == 640 * len(pictures)
    spoken = np.frombuffer(said, "<i2")
    found = np.flatnonzero(samples[:, 0])
    first = int(found[0]) - int(np.flatnonzero(np.abs(spoken) > 1)[0])
    assert np.abs(samples[found[0] :, 0]).max() >= 0.9 * np.abs(spoken).max() and first < 16000


def test_ctrl_c_ends_the_film_properly(avatar: Path, said: bytes, pipes: Pipes, tmp_path: Path) -> None:
    """A voice that would go on: the film closes and can be played."""
    output, ready = tmp_path / "out.mp4", threading.Event()
    from omokage.pipelines import live_speaker

    iterate = live_speaker.LiveSpeaker.__iter__

    def counted(self: Any) -> Iterator[Any]:
        for frame in iterate(self):
            if frame.index == 10:
                ready.set()
            yield frame

    patch = pytest.MonkeyPatch()
    patch.setattr(live_speaker.LiveSpeaker, "__iter__", counted)
    go_on, ended = threading.Event(), list[bool]()
    pipes.send(
        said,
        lambda: ready.wait(20) and None,
        lambda: os.kill(os.getpid(), signal.SIGINT),
        lambda: ended.append(go_on.wait(20)),
    )
    usual = signal.getsignal(signal.SIGINT)
    try:
        assert live(avatar, "-o", str(output)) == 0
    finally:
        go_on.set()
        patch.undo()
    pipes.join()
    assert ended == [True]  # the command ended before the voice did
    assert signal.getsignal(signal.SIGINT) is usual
    assert len(seen(str(output))[0]) >= 11
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_viewer_who_closes_the_window_ends_it_quietly(
    avatar: Path, said: bytes, pipes: Pipes, capsys: pytest.CaptureFixture[str]
) -> None:
    pipes.send(said).receive(most=2000)
    assert live(avatar, "-o", "-") == 0
    pipes.join()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("sent", "arguments", "code", "part"),
    [
        (b"", ["-o", "out.mp4"], 2, "empty (0 bytes)"),
        (b"hello, this is a text\n" * 9, ["-o", "out.mp4"], 2, "holds text"),
        (b"fLaC" + bytes(99), ["-o", "out.mp4"], 2, "'flac'"),
        (b"", ["-o", "nowhere/out.mp4"], 3, "create the folder"),
        (b"", ["-o", "out.txt"], 3, "suffix"),
        (b"", ["-o", "-", "--background", "transparent"], 3, "transparent"),
        (b"", ["-o", "out.mp4", "--text", "hello"], 2, "--live follows a voice"),
        (b"", ["-o", "out.mp4", "--write-curves", "a.csv"], 2, "--live follows a voice"),
        (b"", ["-o", "out.mp4", "--cues", "missing.json"], 2, "missing.json"),
        (b"", ["-o", "out.mp4", "--audio", "missing.wav"], 2, "missing.wav"),
    ],
)
def test_bad_streams_get_one_sentence_and_leave_nothing(
    sent: bytes, arguments: list[str], code: int, part: str, avatar: Path, pipes: Pipes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pipes.send(sent) if sent else pipes.send()
    assert live(avatar, *arguments) == code
    pipes.join()
    error = capsys.readouterr().err.strip()
    assert part in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_streams_need_live(avatar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--audio", "-", "-o", str(tmp_path / "a.mp4")], ["--text", "hello", "-o", "-"]):
        assert cli.run(["speak", str(avatar), *arguments]) == 2
        assert "add --live" in capsys.readouterr().err


def test_a_terminal_is_no_stream(
    avatar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(cli_live, "sys", SimpleNamespace(stdin=terminal, stdout=terminal))
    assert live(avatar, "-o", str(tmp_path / "a.mp4")) == 2
    assert "terminal" in capsys.readouterr().err


def test_a_file_is_said_as_if_it_came(avatar: Path, said: bytes, tmp_path: Path) -> None:
    sound, output = tmp_path / "me.wav", tmp_path / "out.webm"
    sound.write_bytes(wav(said, rate=16000, size=len(said)))
    given = ["speak", str(avatar), "--audio", str(sound), "--live", "--runtime", "torch", "-o", str(output)]
    assert cli.run([*given, "--background", "transparent", "--quiet"]) == 0
    heard_again = read_audio(output)
    assert heard_again is not None and np.abs(heard_again.samples).max() > 0.05
    assert probe(output).frame_count >= 20


def test_a_microphone_is_not_kept_waiting(avatar: Path, said: bytes) -> None:
    """What came before all was ready is left out, and the voice never waits."""
    from omokage.pipelines.speak_live import _Voice

    early, late, reads = threading.Event(), threading.Event(), threading.Semaphore(0)

    def read(_: int) -> bytes:
        if not early.is_set():
            early.set()
            return said
        reads.release()
        late.wait(10)
        return next(rest, b"")

    rest, calls, ended = iter([said[:6400]]), list[tuple[int, bool]](), threading.Event()
    voice = _Voice(read, RAW, is_microphone=True)
    assert voice.format() == RAW
    reads.acquire(timeout=10)  # what came early was passed on
    speaker = SimpleNamespace(
        hear=lambda samples, wait: calls.append((len(samples), wait)) or 0, end=ended.set
    )
    voice.say_to(speaker)  # type: ignore[arg-type]
    late.set()
    assert ended.wait(10)
    assert calls == [(3200, False)]
