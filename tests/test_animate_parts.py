"""The parts of `omokage animate` one by one: which portraits it takes, whose face, which voice, what it will cost."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omokage.pipelines.animate_plan as planning
import omokage.pipelines.speech_track as speech_track
from omokage.errors import (
    InputError,
    MediaError,
    MissingDependencyError,
    NoFaceError,
    OutputError,
    WeightsError,
)
from omokage.media.clip import Audio
from omokage.pipelines.animate import AnimateConfig
from omokage.pipelines.network_costs import Costs, network_costs
from omokage.pipelines.network_load import load_of, loads_of
from omokage.pipelines.portrait_gate import frame, read_portrait
from omokage.pipelines.speech_track import SEPARATORS, read_speech, resampled, separator_named
from omokage.pipelines.window_files import WindowFiles
from omokage.talking.conditions.identity import (
    FIVE_POINTS,
    TEMPLATE,
    OnnxIdentity,
    ZeroIdentity,
    aligned_crop,
)
from omokage.talking.conditions.portrait import FaceRectangle
from omokage.talking.config import official_sampler
from omokage.talking.folder import Architecture, official_architecture
from omokage.talking.model import Machine
from omokage.talking.parallel import Layout
from omokage.talking.placement import expected, grouped, resident
from omokage.talking.prepare import Portrait
from omokage.tracking.landmarks import Landmarks
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from talking_folder import CPU, astronaut, save_face_network, save_picture, save_sound, tiny_architecture

HEIGHT, WIDTH = 480, 720


@pytest.fixture(scope="module")
def person() -> np.ndarray:
    return astronaut()


# portraits


class Fixed:
    """A landmark network that finds what it is told."""

    def __init__(self, *faces: np.ndarray) -> None:
        self.faces = [Landmarks(face.astype(np.float32)) for face in faces]

    def detect(self, image: np.ndarray) -> list[Landmarks]:
        return self.faces

    def reset(self) -> None: ...


def face_at(x: float, y: float, width: float, yaw_deg: float = 0.0) -> np.ndarray:
    """The neutral face of the morphable model, so many pixels wide, turned, its middle at x, y."""
    points = MorphableModel.load().neutral[:478].astype(np.float64)
    points = points - points[:468].mean(axis=0)
    turn = np.radians(yaw_deg)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    points = points / np.ptp(points[:468, 0]) @ rotation.T * width
    return np.asarray(points + np.array([x, y, 0]))


def test_a_portrait_is_read_with_its_face(person: np.ndarray, tmp_path: Path) -> None:
    reading = read_portrait(save_picture(tmp_path / "p.png", person), HEIGHT, WIDTH)
    assert reading.notes == ()
    face = reading.portrait.face
    # The astronaut's face is around column 224, row 115.
    assert face.left < 224 < face.right and face.top < 115 < face.bottom and face.area < 0.2 * 512 * 512
    assert reading.shown_width(HEIGHT, WIDTH) == HEIGHT


def test_pictures_of_any_kind_are_turned_upright_and_to_color(person: np.ndarray, tmp_path: Path) -> None:
    upright = read_portrait(save_picture(tmp_path / "p.png", person), HEIGHT, WIDTH).portrait
    turned = PIL.Image.fromarray(person).transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a player turns it by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    again = read_portrait(tmp_path / "turned.png", HEIGHT, WIDTH).portrait
    assert np.array_equal(again.picture, upright.picture) and again.face == upright.face
    grey = PIL.Image.fromarray(person).convert("LA")
    grey.save(tmp_path / "grey.png")
    picture = read_portrait(tmp_path / "grey.png", HEIGHT, WIDTH).portrait.picture
    assert picture.shape == person.shape and np.array_equal(picture[..., 0], picture[..., 2])


def test_no_face_is_refused_and_a_painted_one_allowed(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "wall.png", np.full((300, 300, 3), 90, np.uint8))
    with pytest.raises(NoFaceError, match=r"no face was found .* add --any-face"):
        read_portrait(path, HEIGHT, WIDTH)
    reading = read_portrait(path, HEIGHT, WIDTH, any_face=True)
    assert reading.portrait.face == FaceRectangle(0, 300, 0, 300) and reading.portrait.landmarks is None
    assert "the whole picture is the reference" in reading.notes[-1]


@pytest.mark.parametrize(("size", "shown"), [((500, 300), (300, 300)), ((300, 500), (300, 500))])
def test_of_an_upright_picture_without_a_face_the_top_is_shown(
    size: tuple[int, int], shown: tuple[int, int], tmp_path: Path
) -> None:
    """The head of a painted figure is at the top; the video's own cut, around the middle, would lose it."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[:40] = 200
    reading = read_portrait(
        save_picture(tmp_path / "p.png", picture), HEIGHT, WIDTH, any_face=True, backend=Fixed()
    )
    rows, columns = shown
    assert np.array_equal(reading.portrait.picture, picture[:rows, :columns])
    assert reading.portrait.face == FaceRectangle(0, rows, 0, columns)
    said = (
        "the upper 300x300 pixels are the reference"
        if size != shown
        else "the whole picture is the reference"
    )
    assert said in reading.notes[-1]


def test_a_tiny_face_is_refused(person: np.ndarray, tmp_path: Path) -> None:
    small = np.asarray(PIL.Image.fromarray(person).resize((200, 200)))
    path = save_picture(tmp_path / "small.png", small)
    with pytest.raises(InputError, match=r"only \d\d pixels wide and at least 64 are needed"):
        read_portrait(path, HEIGHT, WIDTH)
    far = np.zeros((900, 900, 3), np.uint8)
    far[:150, :150] = np.asarray(PIL.Image.fromarray(person).resize((150, 150)))
    with pytest.raises(InputError):
        read_portrait(save_picture(tmp_path / "far.png", far), HEIGHT, WIDTH)


def test_several_faces_and_profiles_are_refused_with_advice(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "p.png", np.full((400, 600, 3), 90, np.uint8))
    main, second, child = face_at(200, 200, 150), face_at(450, 200, 80), face_at(450, 200, 40)
    with pytest.raises(InputError, match="shows 2 faces and one is needed; crop it to one person"):
        read_portrait(path, HEIGHT, WIDTH, backend=Fixed(second, main))
    # A face in the background, and the largest one first whatever the network's order.
    kept = read_portrait(path, HEIGHT, WIDTH, backend=Fixed(child, main)).portrait
    assert kept.landmarks is not None
    np.testing.assert_allclose(kept.landmarks, main, rtol=1e-5)
    with pytest.raises(
        InputError, match=r"is turned \d\d degrees to the side and at most 45 can be animated"
    ):
        read_portrait(path, HEIGHT, WIDTH, backend=Fixed(face_at(300, 200, 150, yaw_deg=60)))
    allowed = read_portrait(path, HEIGHT, WIDTH, any_face=True, backend=Fixed(second, main))
    assert "this picture shows 2 faces and one is needed; taken all the same" in allowed.notes[0]
    assert allowed.portrait.landmarks is not None


def test_two_people_side_by_side_are_refused(person: np.ndarray, tmp_path: Path) -> None:
    """By the landmark network itself."""
    head = person[:256, 96:352]
    path = save_picture(tmp_path / "two.png", np.hstack([head, head]))
    with pytest.raises(InputError, match="shows 2 faces and one is needed; crop it to one person"):
        read_portrait(path, HEIGHT, WIDTH)
    alone = read_portrait(save_picture(tmp_path / "one.png", head), HEIGHT, WIDTH)
    assert alone.notes == ()


def drawn_face(side: int = 300) -> np.ndarray:
    """With chalk on a blackboard: a circle, two dots, a curve. (Drawn in ink the network takes it for a face.)"""
    y, x = (np.mgrid[:side, :side] / side - 0.5) * 2
    picture = np.full((side, side, 3), 5, np.uint8)
    line = np.abs(np.hypot(x, y) - 0.8) < 0.02
    mouth = (np.abs(np.hypot(x, y + 0.1) - 0.5) < 0.02) & (y > 0.2)
    eyes = np.hypot(np.abs(x) - 0.3, y + 0.25) < 0.05
    picture[line | mouth | eyes] = 245
    return picture


def test_a_drawn_face_is_taken_with_the_switch(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "drawn.png", drawn_face())
    with pytest.raises(NoFaceError, match="if it is painted or drawn, add --any-face"):
        read_portrait(path, HEIGHT, WIDTH)
    taken = read_portrait(path, HEIGHT, WIDTH, any_face=True)
    assert taken.portrait.picture.shape == (300, 300, 3) and "taken all the same" in taken.notes[0]
    # One that is painted well enough is a face like others.
    subject = SyntheticSubject(3)
    (painted,) = subject.render_clip(subject.performance(0.04, size=256, motion=0))
    good = read_portrait(save_picture(tmp_path / "painted.png", painted.image), HEIGHT, WIDTH, any_face=True)
    assert good.notes == () and good.portrait.landmarks is not None


def test_a_portrait_in_the_wrong_format_is_told(tmp_path: Path) -> None:
    sound = save_sound(tmp_path / "s.wav", Audio(np.zeros((100, 1), np.float32), 16000))
    with pytest.raises(MediaError, match="a picture"):
        read_portrait(sound, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("size", "face", "shown"),
    [
        ((600, 600), (0, 100, 0, 100), ((600, 600), (0, 0))),  # square: whole
        ((400, 600), (100, 200, 250, 350), ((400, 600), (0, 0))),  # 3:2: whole
        ((400, 1000), (100, 200, 450, 550), ((400, 1000), (0, 0))),  # wide, the face in the middle
        ((400, 1000), (100, 200, 50, 150), ((400, 600), (0, 0))),  # wide, the face at the left
        ((400, 1000), (100, 200, 800, 960), ((400, 600), (0, 400))),  # wide, the face at the right
        ((590, 600), (0, 60, 250, 350), ((400, 600), (0, 0))),  # nearly square, the face at the top
        ((900, 600), (100, 300, 200, 400), ((600, 600), (0, 0))),  # upright
        ((900, 600), (400, 600, 200, 400), ((600, 600), (200, 0))),
    ],
)
def test_no_face_is_cut_off_by_the_frame(
    size: tuple[int, int], face: tuple[int, int, int, int], shown: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    rows, columns = np.indices(size)
    picture = np.stack([rows // 256, rows % 256, columns // 4], axis=-1).astype(np.uint8)
    landmarks = np.full((478, 3), 50, np.float32)
    framed = frame(Portrait(picture, FaceRectangle(*face), landmarks), HEIGHT, WIDTH)
    (height, width), (top, left) = shown
    assert np.array_equal(framed.picture, picture[top : top + height, left : left + width])
    moved = FaceRectangle(face[0] - top, face[1] - top, face[2] - left, face[3] - left)
    assert framed.face == moved
    assert framed.landmarks is not None and framed.landmarks[0].tolist() == [50 - left, 50 - top, 50]


# identity


def test_an_embedding_is_that_of_the_aligned_face_in_rgb(person: np.ndarray, tmp_path: Path) -> None:
    weights = save_face_network(tmp_path / "face.onnx", 20)
    identity = OnnxIdentity(tmp_path / "face.onnx", 20)
    landmarks = face_at(224, 115, 120)
    crop = aligned_crop(person, landmarks)
    expected = (crop.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1).reshape(1, -1) @ weights
    np.testing.assert_allclose(identity.embed(person, landmarks).numpy(), expected, rtol=1e-3, atol=1e-3)
    assert not identity.is_blind
    assert identity.embed(person, None).abs().max() == 0
    assert ZeroIdentity(20).embed(person, landmarks).tolist() == [[0.0] * 20]


def test_the_five_points_come_to_their_places() -> None:
    """A dot on each point of a face that is turned, scaled and shifted ends where ArcFace expects it."""
    turn, scale = np.radians(20), 2.5
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = np.zeros((478, 2))
    landmarks[list(FIVE_POINTS)] = TEMPLATE @ rotation.T + (180, 60)
    for point, place in zip(landmarks[list(FIVE_POINTS)], TEMPLATE, strict=True):
        picture = np.zeros((500, 500, 3), np.uint8)
        x, y = np.rint(point).astype(int)
        picture[y - 4 : y + 5, x - 4 : x + 5] = 255
        found = np.argwhere(aligned_crop(picture, landmarks)[..., 0] > 60).mean(axis=0)[::-1]
        np.testing.assert_allclose(found, place, atol=1.0)


def test_a_foreign_face_network_is_refused(tmp_path: Path) -> None:
    save_face_network(tmp_path / "wide.onnx", 30)
    with pytest.raises(WeightsError, match="gives embeddings of 30 numbers and the denoiser takes 20"):
        OnnxIdentity(tmp_path / "wide.onnx", 20)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="is no face embedding"):
        OnnxIdentity(tmp_path / "junk.onnx", 20)


# speech


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_a_voice_comes_at_16_khz_in_its_length(rate: int, tmp_path: Path) -> None:
    time = np.arange(round(1.5 * rate)) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * time))[:, None].astype(np.float32)
    track = read_speech(save_sound(tmp_path / "s.wav", Audio(tone, rate)))
    assert len(track.voice) == 24000 and track.frame_count == 38 and track.notes == ()
    assert track.sound.sample_rate == rate
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 16000)
    middle = slice(2000, 22000)
    np.testing.assert_allclose(track.voice[middle], expected[middle], atol=0.01)
    np.testing.assert_allclose(resampled(Audio(tone, rate), 16000)[middle, 0], expected[middle], atol=0.01)


def hummed(rate: int, channels: int) -> Audio:
    """A second of tones that swell and fade, so that no shift of it is like it."""
    time = np.arange(rate) / rate
    tones = sum(
        np.sin(2 * np.pi * pitch * time) * (1 + np.sin(2 * np.pi * pace * time))
        for pitch, pace in ((180, 3.1), (410, 5.3), (930, 4.2), (1730, 7.7))
    )
    ears = [0.08 * np.asarray(tones), 0.04 * np.asarray(tones)[::-1]]
    return Audio(np.stack(ears[:channels], axis=1).astype(np.float32), rate)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (48000, 2)])
@pytest.mark.parametrize(
    ("suffix", "codec", "error"),
    [
        (".mp3", "libmp3lame", 0.1),
        (".flac", "flac", 0.001),
        (".ogg", "libopus", 0.1),
        (".m4a", "aac", 0.1),
    ],
)
def test_a_voice_in_any_format_is_that_of_the_wav(
    suffix: str, codec: str, error: float, rate: int, channels: int, tmp_path: Path
) -> None:
    """To the sample: what an encoder puts in front and behind is taken away again."""
    try:
        av.codec.Codec(codec, "w")
    except av.error.FFmpegError:
        pytest.skip(f"this build has no encoder {codec}")
    sound = hummed(rate, channels)
    plain = read_speech(save_sound(tmp_path / "s.wav", sound))
    other = read_speech(encoded(tmp_path / f"s{suffix}", codec, sound))
    assert other.sound.samples.shape[1] == channels
    # The last packet of AAC is filled up.
    assert len(plain.voice) <= len(other.voice) <= len(plain.voice) + 1024 * 16000 // rate
    gap = other.voice[: len(plain.voice)] - plain.voice
    assert np.sqrt((gap**2).mean() / (plain.voice**2).mean()) < error


def encoded(path: Path, codec: str, sound: Audio) -> Path:
    channels = sound.samples.shape[1]
    layout = ("mono", "stereo")[channels - 1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sound.sample_rate, layout=layout)
        if codec != "flac":
            stream.bit_rate = 96_000 * channels if sound.sample_rate > 16_000 else 32_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.samples).reshape(1, -1), "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.sample_rate, 0, Fraction(1, sound.sample_rate)
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sound_of_no_numbers_is_refused(value: float, tmp_path: Path) -> None:
    from scipy.io import wavfile

    samples = np.full((16000, 2), 0.1, np.float32)
    samples[8000, 1] = value
    wavfile.write(tmp_path / "s.wav", 16000, samples)
    if np.isnan(value):  # what is infinite is read as the largest value
        with pytest.raises(
            MediaError, match=r"s\.wav is damaged: its sound holds values that are no numbers"
        ):
            read_speech(tmp_path / "s.wav")

    class Broken:
        def separate(self, sound: Audio) -> Audio:
            return Audio(sound.samples * value, sound.sample_rate)

    wavfile.write(tmp_path / "fine.wav", 16000, np.full(16000, 0.1, np.float32))
    with pytest.raises(MediaError, match="no numbers"):
        read_speech(tmp_path / "fine.wav", Broken())


def offered(monkeypatch: pytest.MonkeyPatch, **separators: Any) -> None:
    """Let packages be installed that bring these vocal separators."""
    points = [SimpleNamespace(name=name, load=lambda made=made: made) for name, made in separators.items()]
    monkeypatch.setattr(speech_track, "entry_points", lambda group: points if group == SEPARATORS else [])


def test_another_package_brings_a_vocal_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder:
        def separate(self, sound: Audio) -> Audio:
            return Audio(2 * sound.samples, sound.sample_rate)

    class Broken:
        def separate(self, sound: Audio) -> Audio:
            raise ValueError("no model file")

    offered(monkeypatch, louder=Louder, broken=Broken, missing=lambda: 1 / 0)
    path = save_sound(tmp_path / "s.wav", Audio(np.full((8000, 1), 0.2, np.float32), 16_000))
    plain, changed = (
        read_speech(path, AnimateConfig(separator=name).separation()) for name in (None, "louder")
    )
    assert np.array_equal(plain.sound.samples, changed.sound.samples)
    assert changed.voice == pytest.approx(2 * plain.voice, abs=1e-4)
    with pytest.raises(
        MissingDependencyError, match="vocal separator 'other' \\(there are broken, louder, missing\\)"
    ):
        separator_named("other")
    with pytest.raises(MissingDependencyError, match="'missing' cannot be made \\(ZeroDivisionError"):
        separator_named("missing")
    with pytest.raises(MediaError, match=r"failed with .*s\.wav \(ValueError: no model file\)"):
        read_speech(path, separator_named("broken"))
    offered(monkeypatch)
    with pytest.raises(MissingDependencyError, match="none is installed"):
        separator_named("other")


def test_a_long_speech_is_announced(tmp_path: Path) -> None:
    track = read_speech(save_sound(tmp_path / "s.wav", Audio(np.full((310 * 800, 1), 0.5, np.float32), 800)))
    assert track.frame_count == 310 * 25
    assert "s.wav is 5 minutes long" in track.drift_notes[0]


def test_a_long_speech_is_read_in_a_few_times_its_memory(tmp_path: Path) -> None:
    """Six minutes: 23 MB at 16 kHz; two hours then are 0.5 GB, and 1.6 GB while they are read."""
    second = 0.3 * np.sin(np.arange(800) / 20)
    given = Audio(np.tile(second, 360)[:, None].astype(np.float32), 800)
    path = save_sound(tmp_path / "s.wav", given)
    tracemalloc.start()
    try:
        track = read_speech(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert track.frame_count == 9_000 and len(track.voice) == 16_000 * 360
    assert peak < 5 * track.voice.nbytes
    last = np.arange(20)[:, None] * 16_000 + 16_000 * 300 + np.arange(16_000)
    assert np.ptp(track.voice[last], axis=0).max() < 0.01  # every second as the one before


def test_a_long_speech_is_read_in_pieces_that_fit_together() -> None:
    transformers = pytest.importorskip("transformers", reason="needs 'pip install omokage[portrait]'")
    import omokage.talking.conditions.speech as speech

    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    encoder = speech.SpeechEncoder(transformers.Wav2Vec2Model(config))
    voice = np.random.default_rng(0).standard_normal(16000 * 40).astype(np.float32)
    whole = encoder.features(voice, 49, exact=True)
    assert torch.equal(whole.hidden, encoder.features(voice, 49, one_pass_frames=1029).hidden)
    pieces = encoder.features(voice, 49, exact=True, one_pass_frames=400)
    assert pieces.hidden.shape == whole.hidden.shape and pieces.length == whole.length
    # Not the same: group norm and attention see less. But near, also where two pieces meet.
    error = (pieces.hidden - whole.hidden).abs().mean(dim=(1, 2)) / whole.hidden.std()
    assert error.max() < 0.1
    half = encoder.features(voice, 49, exact=True, dtype=torch.bfloat16)
    assert torch.equal(half.hidden, whole.hidden.bfloat16())


def test_no_piece_of_a_long_speech_is_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is laid into the features of all, and is gone when the next but one is made."""
    import omokage.talking.conditions.speech as speech

    pieces, alive = list[Any](), list[int]()

    def hidden(encoder: Any, waveform: torch.Tensor, frames: int) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in pieces))
        made = torch.full((frames, 2, 3), float(len(pieces)))
        pieces.append(weakref.ref(made))
        return made

    monkeypatch.setattr(speech.SpeechEncoder, "hidden", hidden)
    encoder = speech.SpeechEncoder(nn.Linear(1, 1))
    monkeypatch.setattr(speech.SpeechEncoder, "depth", 2)
    monkeypatch.setattr(speech.SpeechEncoder, "width", 3)
    voice = np.ones(16000 * 60, np.float32)
    features = encoder.features(voice, 49, exact=True, one_pass_frames=300)
    assert len(pieces) == 6 and max(alive) <= 1
    assert features.hidden[::300, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


# the folder of a stopped run


def stopped(tmp_path: Path, count: int = 2) -> Path:
    """The output of a run that was stopped after so many windows."""
    output = tmp_path / "o.mp4"
    files = WindowFiles.open(output, {"seed": 1, "prompt": "a"}, print, resume=True)
    for index in range(count):
        files.save(index, torch.full((1, 2), float(index)))
    return output


def test_a_resumption_does_not_write_the_marker_anew(tmp_path: Path) -> None:
    output = stopped(tmp_path)
    marker = tmp_path / "o.mp4.work" / "animation.json"
    before = marker.stat()
    said: list[str] = []
    assert WindowFiles.open(output, {"prompt": "a", "seed": 1}, said.append, resume=True).count == 2
    assert (marker.stat().st_mtime_ns, marker.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert said == []
    # A run that was killed before it had a marker leaves nothing that is in the way.
    marker.rename(marker.with_name("animation.json.part"))
    with pytest.raises(OutputError, match="is in the way and not of omokage"):
        WindowFiles.open(output, {}, print, resume=True)
    for window in marker.parent.glob("window*"):
        window.unlink()
    assert WindowFiles.open(output, {}, print, resume=True).count == 0


@pytest.mark.parametrize(
    ("fingerprint", "resume", "reason"),
    [
        ({"seed": 2, "prompt": "b"}, True, "not the same: prompt, seed"),
        ({"seed": 1, "prompt": "a"}, False, "they were not to be used"),
    ],
)
def test_windows_that_are_discarded_are_told(
    fingerprint: dict[str, object], resume: bool, reason: str, tmp_path: Path
) -> None:
    output = stopped(tmp_path)
    said: list[str] = []
    assert WindowFiles.open(output, fingerprint, said.append, resume=resume).count == 0
    assert said == [
        f"2 finished windows of a stopped run in {tmp_path / 'o.mp4.work'} were discarded: {reason}"
    ]


def test_windows_of_another_format_are_kept_apart(tmp_path: Path) -> None:
    files = WindowFiles.open(stopped(tmp_path), {"seed": 1, "prompt": "a"}, print, resume=True)
    small = files.made_with("int8")
    assert small.count == 0 and small.load(0) is None
    small.save(0, torch.zeros(1))
    assert small.count == 1 and files.count == 2 and files.load(0).tolist() == [[0, 0]]  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = stopped(tmp_path)
    unlink = Path.unlink

    def fails(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("window"):
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok)

    said: list[str] = []
    files = WindowFiles.open(output, {"seed": 1, "prompt": "a"}, said.append, resume=True)
    (files.folder / "mine.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        with pytest.raises(OutputError, match=r"old windows in .* cannot be deleted \(Permission denied\)"):
            WindowFiles.open(output, {"seed": 2}, said.append, resume=True)
        with files:
            pass
    assert said == [f"{files.folder} could not be deleted (Permission denied); it is no longer needed"]
    assert (
        files.folder / "animation.json"
    ).is_file()  # until the last window is gone it says whose folder this is
    files.remove()
    assert [path.name for path in files.folder.iterdir()] == ["mine.txt"]  # nobody else's file is deleted
    assert "Directory not empty" in said[-1]


# costs


def test_held_bytes_and_operations_are_counted() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 100))
        given = torch.empty(10, 100)
    load = load_of(network, lambda: network(given))
    assert load.flops == 2 * 2 * 10 * 100 * 400
    assert load.held == 2 * 10 * 400 * 4  # the inner layer before and after its ReLU

    with torch.device("meta"):
        queries, keys = torch.empty(1, 2, 50, 8), torch.empty(1, 2, 70, 8)
    attention = load_of(network, lambda: F.scaled_dot_product_attention(queries, keys, keys))
    assert attention.flops == 2 * 2 * 2 * 50 * 70 * 8
    assert attention.held == 2 * 50 * 8 * 4  # not the matrix of 50 x 70


PLAN = Path(__file__).parent.parent / "benchmarks" / "results" / "portrait-video-plan.json"


def counted() -> Costs:
    """Of the published model in bfloat16, as the committed file has them: counting them takes a while."""
    return Costs.from_json(json.loads(PLAN.read_text())["costs"])


def test_the_committed_counts_are_those_of_the_specification() -> None:
    """TFLOP of the specification, section 3.1: 9.96 a layer and sample of which reference tokens are 4.2 %."""
    costs = counted()
    assert costs.encode_one.flops == pytest.approx(4.8e12, rel=0.02)
    assert costs.encode_three.flops == pytest.approx(10.2e12, rel=0.01)
    assert costs.decode.flops == pytest.approx(315e12, rel=0.001)
    assert costs.reference.flops == pytest.approx(16.3e12, rel=0.05)
    assert costs.denoise_half.flops == pytest.approx((1 - 0.042) * 418e12, rel=0.002)
    assert costs.denoise.flops == pytest.approx(2 * costs.denoise_half.flops, rel=1e-6)
    assert costs.whole == pytest.approx(2 * 8_921_253_952, rel=1e-4)


def test_the_networks_are_counted_as_the_committed_file_says() -> None:
    """The denoiser, which is nearly all of the work, and weights; the autoencoder's count takes too long for a test."""
    from omokage.pipelines.network_costs import denoiser_load, of_all
    from omokage.talking.config import official
    from omokage.talking.transformer import Transformer

    config, costs = official(), counted()
    load = of_all(lambda layers: denoiser_load(config, torch.bfloat16, 1, layers), config.layers)
    assert load == costs.denoise_half
    with torch.device("meta"):
        one = Transformer(replace(config, layers=1)).bfloat16()
    assert sum(value.nbytes for value in one.blocks.state_dict().values()) == costs.waiting
    one.free_prepared()
    assert sum(value.nbytes for value in one.blocks.state_dict().values()) == costs.layer


def test_the_published_networks_need_no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    from omokage.pipelines import network_costs as costs
    from omokage.talking.config import official

    monkeypatch.setattr(costs, "count_costs", lambda *_: pytest.fail("was counted"))
    costs.network_costs.cache_clear()
    assert costs.network_costs(official_architecture(), torch.bfloat16) == counted()
    single = costs.network_costs(official_architecture(), torch.float32)
    load = costs.of_all(lambda layers: costs.denoiser_load(official(), torch.float32, 1, layers), 42)
    assert load == single.denoise_half
    assert (single.whole, single.decode.flops) == (2 * counted().whole, counted().decode.flops)
    costs.network_costs.cache_clear()


def test_the_costs_of_small_networks_are_counted() -> None:
    """Every part of `network_costs`, the chunks of a window in one pass: 13 latent frames cost what 3 + 5 * 2 cost."""
    pytest.importorskip("diffusers", reason="needs 'pip install omokage[portrait]'")
    from omokage.talking.vae import CausalVae

    sizes = tiny_architecture()
    costs = network_costs(sizes, torch.float32)
    with torch.device("meta"):
        vae, latents = CausalVae(sizes.vae), torch.empty(1, 7, 16, 8, 12)
    one, two, three = loads_of(vae, vae.decode(latents))  # chunks of 3, 2 and 2
    assert costs.decode.flops == one.flops + 5 * (three.flops - two.flops)
    assert costs.decode.held == pytest.approx(two.held, rel=0.01) and three.held == two.held
    assert 0 < costs.decode_lean.held < costs.decode.held
    assert 0 < costs.layer < costs.waiting and costs.kept < costs.whole
    assert 0 < costs.encode_one.flops < costs.encode_three.flops


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """Nothing is counted or timed: the committed counts, a rate of 0.1 TFLOP/s, 16 GB."""
    monkeypatch.setattr(planning, "network_costs", lambda *_: counted())
    monkeypatch.setattr(planning, "matmul_rate", lambda _: 0.1e12)
    monkeypatch.setattr(planning, "free_bytes", lambda _: 16e9)
    return official_architecture()


def test_the_plan_of_the_published_model(published: Architecture) -> None:
    sampler, machine = official_sampler(), replace(CPU, dtype=torch.bfloat16)
    plan = planning.plan_animation(published, 250, sampler, machine, None)
    assert (plan.frames, plan.windows, plan.passes, plan.tokens) == (250, 6, 600, 19126)
    assert plan.flops == pytest.approx(6 * 40.4e15, rel=0.01)
    text = plan.to_text()
    assert "250 frames, 10.00 s" in text and "no memory profile fits" in text and not plan.options
    assert "one second of video takes 5 days" in text  # 21.5 PFLOP at half of 0.1 TFLOP/s
    # Without guidance the null conditions are not evaluated.
    alone = planning.plan_animation(published, 250, replace(sampler, guidance_scale=1.0), machine, None)
    assert alone.passes == 300 and alone.flops < 0.52 * plan.flops
    # Two hours, and a tenth of a second.
    long = planning.plan_animation(published, 2 * 3600 * 25, sampler, machine, None)
    assert (
        "180000 frames (7200.00 s) in 3830 windows take about" in long.sentence()
        and "days" in long.sentence()
    )
    assert max(stage.peak for stage in long.stages) == max(stage.peak for stage in plan.stages)
    short = planning.plan_animation(published, 3, sampler, machine, None)
    assert (short.windows, short.passes) == (1, 100)


def test_the_plan_tells_what_savings_cost(published: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda _: 64e9)
    sampler, machine = official_sampler(), Machine(torch.device("cuda"), torch.bfloat16)
    plan = planning.plan_animation(published, 250, sampler, machine, None)
    assert plan.savings == () and "option" not in plan.to_text()
    between = replace(sampler, guidance_interval=(0.2, 0.8))
    some = planning.plan_animation(published, 250, between, machine, None)
    # 30 of 50 steps take two passes.
    assert some.passes == 6 * 80 and some.flops == pytest.approx(0.8 * plan.flops, rel=0.01)
    assert "option    guidance works in 30 of 50 steps; the others take half" in some.to_text()
    # Both halves keep what 17550 tokens of width 3072 became in the first layer and in the rest, 2 bytes a number.
    caches = [
        planning.cache_bytes(published.transformer, replace(given, reuse_threshold=value), 2)
        for given, value in ((sampler, 0.0), (sampler, 0.1), (between, 0.0), (between, 0.1))
    ]
    assert caches[1] - caches[0] == 2 * 2 * 17550 * 3072 * 2
    assert caches[3] - caches[2] == 2 * 3 * 17550 * 3072 * 2
    reusing = planning.plan_animation(published, 250, replace(sampler, reuse_threshold=0.1), machine, None)
    assert reusing.flops == plan.flops and "changes by less than 0.1 of itself reuse" in reusing.to_text()


def test_the_plan_tells_what_processes_share(
    published: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_bytes", lambda _: 64e9)
    sampler, machine = official_sampler(), Machine(torch.device("cuda"), torch.bfloat16)
    alone = planning.plan_animation(published, 250, sampler, machine, None)
    assert "processes" not in alone.to_text()
    for layout, share in ((Layout(2, 1), 0.5), (Layout(2, 4), 0.125), (Layout(1, 3), 1 / 3)):
        plan = planning.plan_animation(published, 250, sampler, machine, None, layout=layout)
        assert plan.flops == alone.flops and plan.passes == alone.passes
        denoising = next(stage.flops for stage in plan.stages if stage.name == "denoising")
        assert plan.spared == pytest.approx((1 - share) * denoising)
        assert plan.minutes == pytest.approx(alone.minutes * (1 - (1 - share) * denoising / plan.flops))
        assert f"processes {layout.sentence}" in plan.to_text()
    # Who has one half of guidance holds one half of a pass.
    half = planning.plan_animation(published, 250, sampler, machine, None, layout=Layout(2, 1))
    assert half.options[0].device_bytes <= alone.options[0].device_bytes
    # Beyond the interval of guidance one of a pair has nothing to do.
    between = replace(sampler, guidance_interval=(0.2, 0.8))
    some = planning.plan_animation(published, 250, between, machine, None, layout=Layout(2, 1))
    one = counted().denoise_half.flops
    assert some.spared == pytest.approx(6 * 30 * one, rel=1e-6)


def test_idle_cards_are_told(published: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, sampler = Machine(torch.device("cuda"), torch.bfloat16), official_sampler()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    (sentence,) = planning.idle_cards(machine, sampler, 48)
    assert sentence.startswith(
        "this machine has 5 graphics cards; 'torchrun --no-python --nproc-per-node 4 omokage"
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planning.idle_cards(machine, sampler, 48) == () == planning.idle_cards(CPU, sampler, 48)


def test_a_named_profile_is_taken_or_refused(
    published: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(planning, "free_bytes", lambda _: 30e9)
    plan = planning.plan_animation(published, 250, official_sampler(), machine, None, memory="grouped")
    assert [option.profile.name for option in plan.options] == ["grouped", "layerwise", "grouped-8bit"]
    plan = planning.plan_animation(published, 250, official_sampler(), machine, None, memory="resident")
    assert plan.options == () and plan.shortage.startswith(
        "the chosen memory profile does not fit: 'resident' takes"
    )


def test_the_plan_chooses_a_profile_for_a_card(
    published: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 80, 24 and 12 GB, of which the driver takes some."""
    monkeypatch.setattr(planning, "free_bytes", lambda _: 64e9)
    machine, costs = Machine(torch.device("cuda"), torch.bfloat16), counted()
    needs = planning.needs_of(published, costs, 250, official_sampler(), machine)
    chosen = [
        planning.memory_options(needs, machine.device, free)[0][0].profile.name
        for free in (79e9, 23.5e9, 11.6e9)
    ]
    assert chosen == ["resident", "resident-lean", "grouped"]
    plan = planning.plan_animation(published, 250, official_sampler(), machine, None)
    assert "take longer by what their way costs" not in plan.to_text()
    waits = replace(plan, options=(expected(grouped(), needs),))
    assert "layers that wait in the machine's memory take longer by what their way costs" in waits.to_text()
    # The text encoder goes to the processor where it has no room; a speech of ten minutes has to have some.
    assert needs.text == 2 * planning.TEXT_WEIGHTS and needs.loading == 0
    hour = planning.needs_of(published, costs, 90_000, official_sampler(), machine)
    assert 6e9 < hour.encoders < 7e9 and needs.encoders < 1e9
    # In another precision than that of the files the denoiser is converted in the machine's memory.
    single = replace(machine, dtype=torch.float32)
    assert planning.needs_of(published, costs, 250, official_sampler(), single).loading == costs.whole


def test_the_plan_counts_what_a_long_speech_leaves_in_memory(
    published: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two hours 5.8 GB in 16 bits: twelve states of 768 for 3674 windows of 49 frames, 32 tokens of 768 for 13
    latent frames of 3830 windows."""
    card, sampler, frames = Machine(torch.device("cuda"), torch.bfloat16), official_sampler(), 2 * 3600 * 25
    kept = 2 * (3674 * 49 * 12 * 768 + 3830 * 13 * 32 * 768)
    assert planning.speech_bytes(published.transformer, frames, 2) == kept
    short, long = (planning.needs_of(published, counted(), count, sampler, card) for count in (250, frames))
    assert long.speech == kept and short.speech < 0.02e9 and long.caches == short.caches
    assert expected(grouped(), long).host_bytes - expected(grouped(), short).host_bytes == kept - short.speech
    # A machine that has room for the waiting layers alone takes those of 8 bits.
    monkeypatch.setattr(planning, "free_bytes", lambda device: 11.6e9 if device.type == "cuda" else 24e9)
    chosen = [
        planning.plan_animation(published, count, sampler, card, None).options[0] for count in (250, frames)
    ]
    assert [choice.profile.name for choice in chosen] == ["grouped", "grouped-8bit"]
    # On a processor it is the device that has to have room.
    alone = Machine(torch.device("cpu"), torch.bfloat16)
    before, after = (
        expected(resident(), planning.needs_of(published, counted(), count, sampler, alone))
        for count in (250, frames)
    )
    assert after.device_bytes - before.device_bytes == pytest.approx(1.05 * (kept - short.speech))
    assert after.host_bytes == before.host_bytes == 0
    # What a short speech leaves is not worth a word.
    assert "of the machine's memory" not in expected(resident(), replace(short, text=0.0)).sentence


@pytest.mark.parametrize(
    ("minutes", "said"),
    [(0.001, "1 seconds"), (1.2, "72 seconds"), (45, "45 minutes"), (600, "10 hours"), (10_000, "7 days")],
)
def test_lengths_of_time_are_told_to_people(minutes: float, said: str) -> None:
    from omokage.pipelines.this_machine import duration

    assert duration(minutes) == said
