"""The script that builds a TensorRT engine: what it asks of TensorRT, which is not here, and what it does with that."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from omokage.avatar.paper.bundle import Origin, PaperAvatar, Person
from omokage.avatar.paper.drawing import MeshDrawing, paper_crop
from omokage.avatar.paper.portrait import PortraitGenerator, draw_noise
from omokage.avatar.paper.textures import Texture
from omokage.avatar.samples import avatar_state
from omokage.errors import MissingDependencyError, OmokageError
from omokage.render.paper_export import paper_to_onnx
from omokage.tracking.synthetic import SyntheticSubject
from paper_parts import NETWORK
from test_paper_data import with_landmarks

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "build_tensorrt.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_tensorrt", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another program's face meshes, as imported ones are."""
    torch.manual_seed(0)
    grid = NETWORK.grid
    face, background = (
        Texture(torch.randn(1, NETWORK.channels, grid, grid), torch.randn(1, 12, grid, grid))
        for _ in range(2)
    )
    generator = PortraitGenerator(NETWORK).eval().requires_grad_(False)
    made = PaperAvatar(generator, face, background, draw_noise(NETWORK, 0), 0.5, Origin("a.pt", "0", "0"))
    path = tmp_path_factory.mktemp("avatar") / "me.avatar"
    made.save(path)
    return path


class Fake:
    """TensorRT as far as the script asks it; its engines are the graphs themselves, which ONNX Runtime computes."""

    __version__ = "10.3.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})

    def __init__(self, *, parses: bool = True) -> None:
        self.flags, self.cleared, self.graph = list[int](), list[str](), b""
        fake = self

        class Parser:
            num_errors = 1

            def __init__(self, network: Any, logger: Any) -> None:
                pass

            def parse(self, graph: bytes) -> bool:
                fake.graph = graph
                return parses

            def get_error(self, number: int) -> str:
                return f"error {number}"

        class Builder:
            def __init__(self, logger: Any) -> None:
                pass

            def create_network(self, flags: int) -> str:
                fake.flags.append(flags)
                return "network"

            def create_builder_config(self) -> Any:
                return SimpleNamespace(set_memory_pool_limit=lambda *_: None, clear_flag=fake.cleared.append)

            def build_serialized_network(self, network: Any, config: Any) -> bytes:
                return fake.graph

        self.Builder, self.OnnxParser = Builder, Parser


def asked(avatar: Path, output: Path, **changes: Any) -> Namespace:
    options = {"precision": "fp32", "trtexec": None, "no_check": False} | changes
    return Namespace(avatar=avatar, output=output, **options)


@pytest.fixture(scope="module")
def exported(avatar: Path) -> Callable[..., bytes]:
    """The graph in a type, made once."""
    return cache(lambda dtype: paper_to_onnx(PaperAvatar.load(avatar), dtype))


@pytest.fixture
def fake(script: ModuleType, exported: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(script, "paper_to_onnx", lambda _, dtype=torch.float32: exported(dtype))
    monkeypatch.setattr(script, "tensorrt", lambda: fake)
    monkeypatch.setattr(script, "engine_picture", lambda _, plan: script.onnx_picture(plan))
    monkeypatch.setattr(script, "TIMED", 1)
    return fake


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_that_draws_the_same_is_written(
    precision: str,
    script: ModuleType,
    fake: Fake,
    avatar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script.build(asked(avatar, tmp_path / "me.engine", precision=precision))
    assert (tmp_path / "me.engine").read_bytes() == fake.graph
    assert fake.flags == [2] and fake.cleared == (["tf32"] if precision == "fp32" else [])
    said = capsys.readouterr().out
    assert "dB from those of ONNX Runtime" in said and "me.engine" in said


def test_an_engine_that_draws_something_else_is_not(
    script: ModuleType, fake: Fake, avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Any, plan: bytes) -> Any:
        exact = script.onnx_picture(plan)
        return lambda render, uv: exact(render, uv) + 0.05

    monkeypatch.setattr(script, "engine_picture", wrong)
    with pytest.raises(OmokageError, match=r"are 3\d\.\d dB from the exact ones, and 45 are needed"):
        script.build(asked(avatar, tmp_path / "me.engine"))
    assert not list(tmp_path.iterdir())
    assert script.likeness(lambda *_: np.full(1, np.nan), lambda *_: np.zeros(1), [(0, 0)]) == -np.inf


def test_the_graph_of_16_bits_keeps_places_in_32(exported: Callable[..., bytes]) -> None:
    """A strongly typed engine changes no type of it."""
    graph = onnx.load_from_string(exported(torch.float16))
    kinds = {i.name: i.type.tensor_type.elem_type for i in (*graph.graph.input, *graph.graph.output)}
    assert kinds == dict.fromkeys(["render", "uv", "image", "mask"], onnx.TensorProto.FLOAT)
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    known = {
        value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)
    }
    (lookup,) = [node for node in inferred.node if node.op_type == "GridSample"]
    assert known[lookup.input[1]] == onnx.TensorProto.FLOAT
    convolved = {known[node.output[0]] for node in inferred.node if node.op_type in ("Conv", "ConvTranspose")}
    assert convolved == {onnx.TensorProto.FLOAT16}


def test_without_tensorrt_it_says_what_to_install(
    script: ModuleType,
    avatar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: str) -> Any:
        raise ImportError

    monkeypatch.setattr(script, "import_module", missing)
    monkeypatch.setattr(script, "paper_to_onnx", lambda *_: pytest.fail("it was exported first"))
    assert script.main([str(avatar), "-o", str(tmp_path / "me.engine")]) == 1
    said = capsys.readouterr().err
    assert "pip install tensorrt" in said and said.count("\n") == 1
    monkeypatch.setattr(script, "import_module", lambda _: SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(MissingDependencyError, match=r"TensorRT 8.6.1, and 10 or newer is needed"):
        script.tensorrt()
    with pytest.raises(OmokageError, match=r"cannot read the graph \(error 0\)"):
        script.built_by_package(Fake(parses=False), b"", "fp16")


def test_nvidias_command_builds_the_same(
    script: ModuleType, avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = script.command(Path("trtexec"), Path("a.onnx"), Path("a.engine"), "fp32")
    assert words[:4] == ["trtexec", "--onnx=a.onnx", "--saveEngine=a.engine", "--stronglyTyped"]
    assert "--noTF32" in words and "--noTF32" not in script.command(Path("t"), Path("a"), Path("b"), "fp16")
    monkeypatch.setattr(script, "paper_to_onnx", lambda *_: b"graph")
    copying = tmp_path / "copying"
    copying.write_text('#!/bin/sh\ncp "${1#--onnx=}" "${2#--saveEngine=}"\n')
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho 'out of workspace' >&2\nexit 1\n")
    for path in (copying, failing):
        path.chmod(0o755)
    options = {"no_check": True}
    script.build(asked(avatar, tmp_path / "me.engine", trtexec=copying, **options))
    assert (tmp_path / "me.engine").read_bytes() == b"graph"
    with pytest.raises(OmokageError, match=r"trtexec built no engine \(out of workspace\)"):
        script.build(asked(avatar, tmp_path / "other.engine", trtexec=failing, **options))
    with pytest.raises(MissingDependencyError, match="cannot be started"):
        script.build(asked(avatar, tmp_path / "other.engine", trtexec=tmp_path / "none", **options))
    assert not (tmp_path / "other.engine").exists()


def test_its_pictures_are_checked_on_noise_where_there_is_no_recording(
    script: ModuleType, avatar: Path, exported: Callable[..., bytes]
) -> None:
    loaded = PaperAvatar.load(avatar)
    states = script.checked_states(loaded)
    assert len(states) == script.CHECKED
    assert all(
        part.shape == (1, 3, 16, 16) and part.dtype == np.float32 for state in states for part in state
    )
    assert not np.array_equal(states[0][0], states[1][0])
    render, uv = (torch.from_numpy(part) for part in states[0])
    drawn = script.onnx_picture(exported(torch.float32))(*states[0])
    np.testing.assert_allclose(drawn, loaded.draw(render, uv).image.numpy(), atol=1e-4)


def test_its_pictures_are_checked_on_states_of_the_recording(
    script: ModuleType, avatar: Path, exported: Callable[..., bytes], tmp_path: Path
) -> None:
    track = with_landmarks(SyntheticSubject(seed=3).performance(1.0, frame_rate=12.0, size=192, motion=0.7))
    drawing = MeshDrawing(track.subject, track.camera, paper_crop(track), NETWORK.size)
    person = Person(drawing, track, np.zeros((478, 3), np.float32))
    replace(PaperAvatar.load(avatar), person=person).save(tmp_path / "own.avatar")
    loaded = PaperAvatar.load(tmp_path / "own.avatar")
    states = script.checked_states(loaded)
    assert len(states) == script.CHECKED
    for (render, uv), row in zip(states, (0, 3, 7, 11), strict=True):
        drawn = drawing.draw(avatar_state(track, row))
        for given, picture in ((render, drawn.render), (uv, drawn.uv)):
            assert given.shape == (1, 3, 16, 16) and given.dtype == np.float32
            np.testing.assert_allclose(given[0].transpose(1, 2, 0), picture / 127.5 - 1, atol=1e-6)
        assert 0.1 < (uv[0, 2] == 1).mean() < 0.6  # a face before black, in 8 bits, is no noise
    pair = [torch.from_numpy(part) for part in states[1]]
    image = script.onnx_picture(exported(torch.float32))(*states[1])
    np.testing.assert_allclose(image, loaded.draw(*pair).image.numpy(), atol=1e-4)
