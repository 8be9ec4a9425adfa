"""A user's networks that measure a talking video: what SyncNet is fed, its distances, and files of ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from omokage.cli import app as cli
from omokage.errors import InputError, WeightsError
from omokage.evaluate.networks import OnnxClipFeatures, OnnxFrameFeatures, OnnxSyncNet, installed_experts
from omokage.metrics.syncnet import cepstrum, face_crops, looks, sounds, sync_scores
from omokage.pipelines.talker import write_talker
from talking_folder import save_face_network

FRAMES, SIDE = 75, 64
ROW = (
    18.555,
    23.897,
    14.194,
    6.59,
    -1.6,
    -10.457,
    -17.449,
    -22.979,
    -25.033,
    -23.907,
    -18.98,
    -12.744,
    -5.82,
)
SILENT = (-36.044, *(0.0,) * 12)


def graph(
    path: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list[object]], outputs: list[str]
) -> Path:
    """A network of these nodes: a file, whose vectors are float32 (N, D)."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in outputs]
    made = helper.make_graph(nodes, "measure", inputs, given)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def means(name: str, axes: list[int], output: str) -> list[onnx.NodeProto]:
    """Nodes that take the mean over these axes of `name`, flat behind the first."""
    return [
        helper.make_node("ReduceMean", [name], [f"{output}.mean"], axes=axes, keepdims=1),
        helper.make_node("Flatten", [f"{output}.mean"], [output]),
    ]


def save_syncnet(path: Path) -> Path:
    """Sees how bright a face is, hears how loud a voice is: near where ten times the loudness is the brightness."""
    nodes = [
        helper.make_node("Constant", [], ["ten"], value=numpy_helper.from_array(np.array(0.1, np.float32))),
        helper.make_node("Mul", ["face", "ten"], ["dim"]),
        *means("dim", [1, 2, 3, 4], "seen"),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Gather", ["sound", "zero"], ["loud"], axis=2),
        *means("loud", [1, 2, 3], "heard"),
    ]
    shapes: dict[str, list[object]] = {"face": ["n", 3, 5, 224, 224], "sound": ["n", 1, 13, 20]}
    return graph(path, nodes, shapes, ["seen", "heard"])


def babble(seed: int, frames: int = FRAMES) -> NDArray[np.float32]:
    """Noise whose loudness changes at random, ten times a second."""
    random = np.random.default_rng(seed)
    loudness = 10 ** np.interp(
        np.arange(frames * 640),
        np.arange(0, frames * 640 + 1600, 1600),
        random.uniform(-3, -0.6, frames * 640 // 1600 + 1),
    )
    return (loudness * random.standard_normal(frames * 640)).clip(-1, 1).astype(np.float32)


def bright(voice: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Frames (T, 64, 64, 3) that are as bright as the voice beside them is loud."""
    steps = cepstrum(voice)[:, 0]
    per_frame = np.pad(steps, (0, 4 * FRAMES - len(steps)), mode="edge").reshape(FRAMES, 4).mean(axis=1)
    return np.broadcast_to(
        (10 * per_frame).clip(0, 255)[:, None, None, None], (FRAMES, SIDE, SIDE, 3)
    ).astype(np.uint8)


def faces(count: int = FRAMES) -> NDArray[np.float64]:
    points = np.zeros((count, 478, 3))
    points[:, :, 0], points[:, :, 1] = np.linspace(22, 42, 478), np.linspace(20, 40, 478)
    return points


def test_the_cepstrum_is_the_customary_one() -> None:
    """Rows of a sweep and of silence, as the package python_speech_features 0.6 gives them with its settings."""
    time_s = np.arange(8000) / 16000
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s) * (time_s < 0.3)
    found = cepstrum(sweep.astype(np.float32))
    assert found.shape == (49, 13)
    np.testing.assert_allclose(found[10], ROW, atol=2e-3)
    np.testing.assert_allclose(found[48], SILENT, atol=2e-3)


def test_a_face_is_cut_out_with_its_margins() -> None:
    frames = np.zeros((20, 300, 400, 3), np.uint8)
    frames[:, 148:153, 198:203] = 255
    points = np.full((20, 478, 3), 150.0)
    points[:, :, 0] = np.linspace(150, 250, 478)
    points[:, 10, :2], points[:, 152, :2] = (200, 100), (200, 200)  # top and chin
    points[:, 234, :2], points[:, 454, :2] = (150, 150), (250, 150)
    points[7] = np.nan
    crops = face_crops(frames, points)
    assert crops.shape == (20, 224, 224, 3)
    rows, columns = np.nonzero(crops[7, ..., 0] > 128)
    # 1.4 times the face is 224 pixels wide; the face's upper edge is the crop's.
    assert (rows.mean(), columns.mean()) == pytest.approx((50 * 1.6, 112), abs=1)
    with pytest.raises(InputError, match="needs a face"):
        face_crops(frames, np.full_like(points, np.nan))


def test_looks_and_sounds_lie_beside_each_other() -> None:
    crops = np.zeros((8, 224, 224, 3), np.uint8)
    crops[..., 0] = np.arange(8)[:, None, None]  # red counts
    seen = looks(crops)
    assert seen.shape == (4, 3, 5, 224, 224)
    assert seen[2, 2, :, 0, 0].tolist() == [2, 3, 4, 5, 6] and seen[:, :2].max() == 0
    voice = babble(0)
    heard, steps = sounds(voice, 40), cepstrum(voice)
    assert heard.shape == (40, 1, 13, 20)
    np.testing.assert_array_equal(heard[7, 0], steps[28:48].T)
    assert sounds(voice[:640], 4).shape == (4, 1, 13, 20)


def test_distances_are_means_over_shifts() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 8))
    near = sync_scores(vectors, vectors)
    assert near.distance == 0 and 3 < near.confidence < 5  # two independent vectors are 4 apart
    late = sync_scores(vectors[:57], vectors[3:])
    assert late.distance < 0.2 * near.confidence and late.confidence > 0.8 * near.confidence
    other = sync_scores(vectors, np.random.default_rng(1).standard_normal((60, 8)))
    assert other.distance > 3 and other.confidence < 0.5
    with pytest.raises(InputError, match="as many vectors"):
        sync_scores(vectors, vectors[:5])


def test_a_syncnet_tells_its_own_voice_from_another(tmp_path: Path) -> None:
    network, voice = OnnxSyncNet(save_syncnet(tmp_path / "syncnet.onnx")), babble(0)
    own, other = network(bright(voice), faces(), voice), network(bright(voice), faces(), babble(1))
    assert own.distance < 0.15 < 1 < other.distance
    assert own.confidence > 2 * other.confidence


def test_features_of_frames_and_clips(tmp_path: Path) -> None:
    any_size = graph(tmp_path / "f.onnx", means("x", [2, 3], "y"), {"x": ["n", 3, None, None]}, ["y"])
    frames = np.zeros((40, 30, 50, 3), np.uint8)
    frames[..., 1] = 51
    found = OnnxFrameFeatures(any_size)(frames)
    np.testing.assert_allclose(found, np.tile([0, 0.2, 0], (40, 1)), atol=1e-4)
    clips = graph(tmp_path / "c.onnx", means("x", [3, 4], "y"), {"x": ["n", 3, 16, 20, 20]}, ["y"])
    frames[20:, ..., 1] = 255
    vectors = OnnxClipFeatures(clips)(frames)
    assert vectors.shape == (2, 48)  # what is left of the third clip is not seen
    np.testing.assert_allclose(vectors[0], np.repeat([-1, -0.6, -1], 16), atol=1e-4)
    np.testing.assert_allclose(vectors[1, 16:32], [-0.6] * 4 + [1] * 12, atol=1e-4)
    assert len(OnnxClipFeatures(clips)(frames[:10])) == 0


@pytest.mark.parametrize("kind", [OnnxSyncNet, OnnxFrameFeatures, OnnxClipFeatures])
def test_other_files_are_refused(tmp_path: Path, kind: type) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    wide = graph(tmp_path / "wide.onnx", means("x", [1], "y"), {"x": ["n", 7]}, ["y"])
    for path in (tmp_path / "junk.onnx", wide):
        with pytest.raises(WeightsError, match=r"is no .* in ONNX format; remove it or give another file"):
            kind(path)


def test_installed_networks_measure_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    assert len(installed_experts().missing()) == 4
    graph(tmp_path / "inception.onnx", means("x", [2, 3], "y"), {"x": ["n", 3, 32, 32]}, ["y"])
    graph(tmp_path / "i3d.onnx", means("x", [2, 3, 4], "y"), {"x": ["n", 3, 8, 16, 16]}, ["y"])
    save_syncnet(tmp_path / "syncnet.onnx")
    save_face_network(tmp_path / "glintr100.onnx", 20)
    for name, file in {"sync": "syncnet", "fid": "inception", "fvd": "i3d", "face": "glintr100"}.items():
        assert cli.run(["weights", "add", name, str(tmp_path / f"{file}.onnx"), "--quiet"]) == 0
    video = str(tmp_path / "talk.mp4")
    write_talker(Path(video), 40, side=128)
    capsys.readouterr()
    files = ["--speech", video, "--recording", video, "-o", str(tmp_path / "report")]
    code = cli.run(["evaluate", video, *files, "--json", "--quiet"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0 and said["missing"] == []
    values = {row["metric"]: row["mean"] for row in said["methods"][0]["measurements"]}
    assert values["identity"] > 0.9 and values["sync_distance"] > 0 and values["sync_confidence"] >= 0
    assert values["fid"] == pytest.approx(0, abs=1e-4) and values["fvd"] == pytest.approx(0, abs=1e-4)
