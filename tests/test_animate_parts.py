"""The parts of `omokage animate` one by one: which portraits it takes, whose face, which voice, what it will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import PIL.Image
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from omokage.errors import InputError, MediaError, NoFaceError, WeightsError
from omokage.media.clip import Audio
from omokage.pipelines.network_load import load_of
from omokage.pipelines.portrait_gate import frame, read_portrait
from omokage.pipelines.speech_track import read_speech, resampled
from omokage.talking.conditions.identity import (
    FIVE_POINTS,
    TEMPLATE,
    OnnxIdentity,
    ZeroIdentity,
    aligned_crop,
)
from omokage.talking.conditions.portrait import FaceRectangle
from omokage.talking.prepare import Portrait
from omokage.tracking.landmarks import Landmarks
from omokage.tracking.morphable import MorphableModel
from talking_folder import CPU, astronaut, save_picture, save_sound

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


def save_network(path: Path, width: int) -> np.ndarray:
    """A network that sums up pixels with fixed weights; returns those (3 * 112 * 112, width)."""
    weights = np.random.default_rng(0).standard_normal((3 * 112 * 112, width)).astype(np.float32) / 100
    nodes = [
        helper.make_node("Flatten", ["crop"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "face",
        [helper.make_tensor_value_info("crop", TensorProto.FLOAT, [1, 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return weights


def test_an_embedding_is_that_of_the_aligned_face_in_rgb(person: np.ndarray, tmp_path: Path) -> None:
    weights = save_network(tmp_path / "face.onnx", 20)
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
    save_network(tmp_path / "wide.onnx", 30)
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


def test_a_long_speech_is_announced(tmp_path: Path) -> None:
    track = read_speech(save_sound(tmp_path / "s.wav", Audio(np.full((310 * 800, 1), 0.5, np.float32), 800)))
    assert track.frame_count == 310 * 25
    assert "s.wav is 5 minutes long" in track.notes[0]


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


def test_the_plan_of_the_published_model_is_that_of_its_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TFLOP of the specification, section 3.1: 9.96 a layer and sample of which reference tokens are 4.2 %."""
    pytest.importorskip("diffusers", reason="needs 'pip install omokage[portrait]'")
    import omokage.pipelines.animate_plan as planning
    from omokage.talking.config import official_sampler
    from omokage.talking.folder import official_architecture

    monkeypatch.setattr(planning, "matmul_rate", lambda _: 0.1e12)
    monkeypatch.setattr(planning, "free_bytes", lambda _: 16e9)
    sizes, sampler = official_architecture(), official_sampler()
    costs = planning.network_costs(sizes, torch.bfloat16)
    assert costs.encode_one.flops == pytest.approx(4.8e12, rel=0.02)
    assert costs.encode_three.flops == pytest.approx(10.2e12, rel=0.01)
    assert costs.decode.flops == pytest.approx(315e12, rel=0.001)
    assert costs.reference.flops == pytest.approx(16.3e12, rel=0.05)
    assert costs.denoise_half.flops == pytest.approx((1 - 0.042) * 418e12, rel=0.002)
    assert costs.denoise.flops == pytest.approx(2 * costs.denoise_half.flops, rel=1e-6)
    assert costs.whole == pytest.approx(2 * 8_921_253_952, rel=1e-4)
    machine = replace(CPU, dtype=torch.bfloat16)
    plan = planning.plan_animation(sizes, 250, sampler, machine, None)
    assert (plan.frames, plan.windows, plan.passes, plan.tokens) == (250, 6, 600, 19126)
    assert plan.flops == pytest.approx(6 * 40.4e15, rel=0.01)
    text = plan.to_text()
    assert "250 frames, 10.00 s" in text and "no memory profile fits" in text and not plan.options
    assert "one second of video takes 5 days" in text  # 21.5 PFLOP at half of 0.1 TFLOP/s
    # What is chosen for cards of 80, 24 and 12 GB, of which the driver takes some.
    needs, card = planning.needs_of(sizes, costs, sampler, machine), torch.device("cuda")
    monkeypatch.setattr(planning, "free_bytes", lambda _: 64e9)
    chosen = [
        planning.memory_options(needs, card, free)[0][0].profile.name for free in (79e9, 23.5e9, 11.6e9)
    ]
    assert chosen == ["resident", "resident-lean", "grouped"]
    # Without guidance the null conditions are not evaluated.
    alone = planning.plan_animation(sizes, 250, replace(sampler, guidance_scale=1.0), machine, None)
    assert alone.passes == 300 and alone.flops < 0.52 * plan.flops
    # Two hours, and a tenth of a second.
    long = planning.plan_animation(sizes, 2 * 3600 * 25, sampler, machine, None)
    assert (
        "180000 frames (7200.00 s) in 3830 windows take about" in long.sentence()
        and "days" in long.sentence()
    )
    assert max(stage.peak for stage in long.stages) == max(stage.peak for stage in plan.stages)
    short = planning.plan_animation(sizes, 3, sampler, machine, None)
    assert (short.windows, short.passes) == (1, 100)


@pytest.mark.parametrize(
    ("minutes", "said"),
    [(0.001, "1 seconds"), (1.2, "72 seconds"), (45, "45 minutes"), (600, "10 hours"), (10_000, "7 days")],
)
def test_lengths_of_time_are_told_to_people(minutes: float, said: str) -> None:
    from omokage.pipelines.animate_plan import duration

    assert duration(minutes) == said
