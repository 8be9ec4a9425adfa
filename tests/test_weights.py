"""Weights: the registry, the folder of installed models, import of official files, and pulling from a server."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import omokage.weights as weights
from clips import small_disk
from golden_fill import Golden
from omokage.cli import app as cli
from omokage.config import Progress
from omokage.errors import InputError, OutputError, WeightsError
from omokage.talking.config import tiny
from omokage.talking.vae import tiny_vae, vae_keys
from omokage.weights import fetch, registry, store
from omokage.weights.fetch import FetchConfig, fetch_file, file_address
from omokage.weights.registry import FACE, HALLO3, CommercialUse, PublishedFile, size_text
from omokage.weights.store import Condition, FileRecord, Manifest, folder_of, inspect, installed, remove

FAST = FetchConfig(timeout_s=5, attempts=3, pause_s=0.001)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMOKAGE_WEIGHTS_URL", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "weights"


def put(folder: Path, files: dict[str, bytes], name: str = "hallo3") -> Manifest:
    """An installed model made of these files."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    records = {
        path: FileRecord(len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()
    }
    manifest = Manifest(name, "a test", records)
    store.write_manifest(folder / registry.REGISTRY[name].manifest_name, manifest)
    return manifest


FILES = {"denoiser-1.safetensors": b"d" * 3000, "text/config.json": b"{}"}

# the registry


def test_the_registry_says_sizes_and_licences() -> None:
    assert list(registry.REGISTRY) == ["hallo3", "face", "speech", "cogvideox", "sync", "fid", "fvd"]
    assert HALLO3.commercial is CommercialUse.ON_REGISTRATION
    assert FACE.commercial is CommercialUse.NO
    assert HALLO3.licences == "CogVideoX License, Apache-2.0"
    assert 38e9 < HALLO3.installed_bytes < 41e9
    assert all("://" not in file.path for spec in registry.REGISTRY.values() for file in spec.files)
    assert [size_text(size) for size in (39.9e9, 261e6, 2.5e6, 17e3)] == [
        "39.9 GB",
        "261 MB",
        "2.5 MB",
        "17 kB",
    ]
    with pytest.raises(
        WeightsError,
        match="there is no model 'halo'; 'omokage weights list' knows hallo3, face, speech, cogvideox",
    ):
        registry.find_spec("halo")


# the folder


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert folder_of("hallo3") == folder_of("face") == tmp_path / "home" / "weights" / "hallo3"
    monkeypatch.delenv("OMOKAGE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("sys.platform", "linux")
    assert store.weights_home() == tmp_path / "data" / "omokage" / "weights"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert store.weights_home() == tmp_path / "local" / "omokage" / "weights"
    monkeypatch.setattr("sys.platform", "darwin")
    assert store.weights_home() == Path.home() / "Library" / "Application Support" / "omokage" / "weights"


def test_missing_weights_are_said_with_size_and_licence() -> None:
    assert inspect("hallo3").condition is Condition.ABSENT
    with pytest.raises(WeightsError) as missing:
        installed("hallo3")
    said = str(missing.value)
    assert "39.9 GB; licence: CogVideoX License, Apache-2.0; commercial use: on registration" in said
    assert "'omokage weights add hallo3'" in said and "'omokage weights pull hallo3" in said
    assert weights.find("face") is None


def test_an_installed_model_is_found(home: Path) -> None:
    put(home / "hallo3", FILES)
    assert installed("hallo3") == weights.find("hallo3") == home / "hallo3"
    assert inspect("hallo3").condition is Condition.INSTALLED
    seen: list[Progress] = []
    assert inspect("hallo3", full=True, progress=seen.append).condition is Condition.VERIFIED
    assert seen[-1].done == seen[-1].total == 3002


def test_what_is_wrong_is_said(home: Path) -> None:
    folder = home / "hallo3"
    put(folder, FILES)
    shard = folder / "denoiser-1.safetensors"
    shard.write_bytes(b"e" + b"d" * 2999)
    assert installed("hallo3") == folder  # the quick look cannot see it
    state = inspect("hallo3", full=True)
    assert (state.condition, state.detail) == (Condition.DAMAGED, f"the checksum of {shard} is wrong")
    shard.write_bytes(b"d")
    with pytest.raises(WeightsError, match=r"has 1 bytes instead of 3000; run 'omokage weights add hallo3'"):
        installed("hallo3")
    shard.unlink()
    with pytest.raises(WeightsError, match=r"denoiser-1\.safetensors cannot be read \(No such file"):
        installed("hallo3")
    (folder / "weights.json").unlink()
    assert inspect("hallo3").condition is Condition.UNFINISHED
    with pytest.raises(WeightsError, match="are not installed"):
        installed("hallo3")
    (folder / "weights.json").write_text("{")
    with pytest.raises(WeightsError, match=r"weights\.json cannot be used"):
        installed("hallo3")


def test_another_model_in_the_folder(home: Path) -> None:
    manifest = put(home / "hallo3", FILES)
    store.write_manifest(home / "hallo3" / "weights.json", replace(manifest, name="other"))
    with pytest.raises(WeightsError, match="holds the weights of 'other'"):
        installed("hallo3")


@pytest.mark.parametrize(
    "path",
    ["../x", "/x", "a/../../x", "C:x", "a\\..\\x", "", "./a", "a//b", "a/", "a\0b", "a\nb", "a\x1b[2Jb"],
)
def test_no_manifest_leads_out_of_its_folder(path: str) -> None:
    content = Manifest("hallo3", "", {"a": FileRecord(1, "0")}).to_json()
    content["files"] = {path: {"size": 1, "sha256": "0"}}
    with pytest.raises(ValueError, match="outside its folder"):
        Manifest.from_json(content)


@pytest.mark.parametrize("size", [float("inf"), float("nan"), -1, "many", None])
def test_no_manifest_holds_impossible_sizes(size: Any) -> None:
    content = Manifest("hallo3", "", {"a": FileRecord(1, "0")}).to_json()
    content["files"]["a"]["size"] = size
    with pytest.raises(ValueError, match=r"manifest|cannot convert|invalid literal"):
        Manifest.from_json(json.loads(json.dumps(content)))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("face", "weights.json"),
        ("face", "denoiser-1.safetensors"),
        ("face", "face.weights.json"),
        ("face", "face.d/x"),
        ("hallo3", "weights.json"),
        ("hallo3", "Weights.JSON"),
        ("hallo3", "face.onnx"),
    ],
)
def test_no_manifest_names_files_of_another_model(name: str, path: str) -> None:
    content = Manifest(name, "", {path: FileRecord(1, "0")}).to_json()
    with pytest.raises(ValueError, match=rf"no manifest of {name}: '{path}' is no file of it"):
        Manifest.from_json(content)


def test_removal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home / "hallo3", FILES)
    put(home / "hallo3", {"face.onnx": b"f" * 10}, "face")
    assert inspect("hallo3").bytes_used < 4000
    assert remove("face") > 10
    assert weights.find("face") is None and installed("hallo3")
    assert not list((home / "hallo3").glob("face*"))
    # Interrupted: it is gone all the same, and the next removal clears the rest.
    with monkeypatch.context() as patched:
        patched.setattr(store.shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove("hallo3")
    assert inspect("hallo3").condition is Condition.ABSENT
    assert remove("hallo3") > 3000
    assert list(home.iterdir()) == []
    with pytest.raises(WeightsError, match="nothing to remove"):
        remove("hallo3")


@pytest.mark.parametrize("name", ["hallo3", "face"])
def test_an_abandoned_pull_is_seen_and_removed(home: Path, name: str) -> None:
    coming = home / f".pulled-{name}" / "deep"
    coming.mkdir(parents=True)
    (coming / "a.partial").write_bytes(b"p" * 500)
    (home / f"{name}.digests.json").write_text("{}")
    state = inspect(name)
    assert (state.condition, state.bytes_used) == (Condition.UNFINISHED, 500)
    assert remove(name) == 500
    assert list(home.iterdir()) == []
    assert inspect(name).condition is Condition.ABSENT


def test_a_model_goes_with_the_pulls_of_its_additions(home: Path) -> None:
    put(home / "hallo3", FILES)
    for name in ("hallo3", "face"):
        (home / f".pulled-{name}").mkdir()
        (home / f"{name}.digests.json").write_text("{}")
    remove("face")
    assert {path.name for path in home.iterdir()} == {"hallo3", ".pulled-hallo3", "hallo3.digests.json"}
    (home / ".pulled-face").mkdir()
    remove("hallo3")
    assert list(home.iterdir()) == []


# official files


@cache
def golden_state() -> dict[str, torch.Tensor]:
    golden = Golden("hallo3_denoiser")
    return {
        f"{prefix}.{key}": torch.from_numpy(value)
        for prefix in ("model", "ref_model")
        for key, value in golden.weights(prefix).items()
    }


@cache
def vae_state() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in Golden("hallo3_vae").weights("first_stage_model").items()}


def official_folder(folder: Path) -> Path:
    """Small networks and encoders in the official layout, beside what else lies there."""
    files = {
        "hallo3/1/mp_rank_00_model_states.pt": {"module": golden_state()},
        "cogvideox-5b-i2v-sat/transformer/1/mp_rank_00_model_states.pt": {"module": {"x": torch.ones(1)}},
        "cogvideox-5b-i2v-sat/vae/3d-vae.pt": {"state_dict": vae_state() | {"loss.logvar": torch.zeros(())}},
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / path)
    (folder / "hallo3" / "latest").write_text("1")
    encoders = {
        "t5-v1_1-xxl": {"model_type": "t5", "d_model": 28},
        "wav2vec/wav2vec2-base-960h": {"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 12},
    }
    for name, config in encoders.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file({"shared.weight": torch.ones(3, 5)}, folder / name / "model.safetensors")
    (folder / "t5-v1_1-xxl" / "spiece.model").write_bytes(b"words")
    (folder / "t5-v1_1-xxl" / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture(scope="module")
def libraries() -> None:
    """Loaded before a test is timed: that of the autoencoder alone takes longer than all of a tiny installation."""
    add_config()
    vae_keys(tiny_vae(), prefix="")


@pytest.fixture
def official(tmp_path: Path, libraries: None) -> Path:
    return official_folder(tmp_path / "pretrained_models")


def add_config() -> Any:
    pytest.importorskip("diffusers", reason="the video autoencoder needs 'pip install omokage[portrait]'")
    from omokage.pipelines.model_files import AddConfig
    from omokage.talking.folder import Architecture

    return AddConfig(Architecture(tiny(), tiny_vae()), torch.float32, shard_bytes=2_000_000)


def add(source: Path, progress: Any = lambda _: None) -> Path:
    config = add_config()
    from omokage.pipelines.weights import add_weights

    return add_weights("hallo3", source, config=config, progress=progress)


def test_official_files_become_an_installed_model(official: Path, home: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in official.rglob("*"))
    seen: list[Progress] = []
    folder = add(official, seen.append)
    assert folder == installed("hallo3") == home / "hallo3"
    assert inspect("hallo3", full=True).condition is Condition.VERIFIED
    assert sorted((path, path.stat().st_mtime_ns) for path in official.rglob("*")) == before
    assert {step.stage for step in seen} == {"converting", "copying text", "copying speech"}
    written = load_file(folder / "denoiser-00001-of-00001.safetensors")
    official_key = "model.diffusion_model.transformer.layers.1.attention.dense.weight"
    assert torch.equal(written["blocks.1.attention.output.weight"], golden_state()[official_key])
    assert (folder / "text" / "spiece.model").read_bytes() == b"words"
    assert not (folder / "text" / "pytorch_model.bin").exists()
    assert "CogVideoX License" in (folder / "NOTICE.txt").read_text()
    from omokage.talking.folder import load_architecture

    assert load_architecture(folder) == add_config().architecture
    with pytest.raises(WeightsError, match=r"installed already.*'omokage weights remove hallo3' first"):
        add(official)


def test_the_installed_networks_give_the_golden_numbers(official: Path) -> None:
    folder = add(official)
    from omokage.talking.convert import load_weights
    from omokage.talking.transformer import Transformer

    with torch.device("meta"):
        network = Transformer(tiny().reference)
    load_weights(network, folder, "reference")
    golden = Golden("hallo3_denoiser")
    tokens = network.reference_tokens(torch.from_numpy(golden.input("reference_latent")))
    golden.check("reference.bank.1", tokens[1].detach().numpy(), share=0.5)


def test_an_interrupted_import_goes_on(official: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_config()
    import omokage.pipelines.model_files as pipeline

    copy = pipeline.copy_file

    def stop(source: Path, target: Path) -> FileRecord:
        if source.name == "spiece.model":
            raise KeyboardInterrupt
        return copy(source, target)

    monkeypatch.setattr(pipeline, "copy_file", stop)
    with pytest.raises(KeyboardInterrupt):
        add(official)
    assert inspect("hallo3").condition is Condition.UNFINISHED
    shards = {path: path.stat().st_mtime_ns for path in (home / "hallo3").glob("*.safetensors")}
    assert len(shards) >= 3
    monkeypatch.setattr(pipeline, "copy_file", copy)
    add(official)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert inspect("hallo3", full=True).condition is Condition.VERIFIED


def test_a_damaged_model_is_repaired_by_adding_it_again(official: Path) -> None:
    folder = add(official)
    shard = folder / "reference-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert inspect("hallo3").condition is Condition.DAMAGED
    add(official)
    assert inspect("hallo3", full=True).condition is Condition.VERIFIED


def test_the_autoencoder_may_be_in_the_main_file(official: Path) -> None:
    shutil.rmtree(official / "cogvideox-5b-i2v-sat")
    with pytest.raises(
        WeightsError, match=r"neither .* nor a file such as 3d-vae\.pt .* holds the video autoencoder"
    ):
        add(official)
    inside = {f"first_stage_model.{key}": value for key, value in vae_state().items()}
    state = golden_state() | inside | {"conditioner.embedders.0.transformer.shared.weight": torch.ones(2)}
    torch.save({"module": state}, official / "hallo3" / "1" / "mp_rank_00_model_states.pt")
    folder = add(official)
    assert list(folder.glob("vae-*.safetensors"))


def break_main(official: Path) -> None:
    path = official / "hallo3" / "1" / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-300])


def other_main(official: Path) -> None:
    state = {key: value for key, value in golden_state().items() if not key.startswith("ref_model")}
    torch.save({"module": state}, official / "hallo3" / "1" / "mp_rank_00_model_states.pt")


def other_text(official: Path) -> None:
    config = {"model_type": "t5", "d_model": 512}
    (official / "t5-v1_1-xxl" / "config.json").write_text(json.dumps(config))


def break_text(official: Path) -> None:
    (official / "t5-v1_1-xxl" / "model.safetensors").write_bytes(b"\xff" * 20)


def lose_shard(official: Path) -> None:
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (official / "t5-v1_1-xxl" / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda f: shutil.rmtree(f / "hallo3"),
            r"hallo3/1/mp_rank_00_model_states\.pt is missing; fetch the whole",
        ),
        (
            lambda f: [shutil.rmtree(f / name) for name in ("hallo3", "wav2vec")],
            r"mp_rank_00_model_states\.pt and the speech encoder wav2vec2-base-960h .* are missing",
        ),
        (lambda f: (f / "t5-v1_1-xxl" / "model.safetensors").unlink(), "text encoder .* is missing"),
        (break_main, "is damaged"),
        (other_main, r"is not the expected model: .* are missing, such as 'ref_model\."),
        (other_text, r"another encoder than Hallo3 was trained with \(d_model 512 instead of 28\)"),
        (break_text, r"model\.safetensors is damaged or incomplete; fetch it again"),
        (lose_shard, r"lacks model-00002-of-00002\.safetensors"),
    ],
)
def test_unusable_official_files_leave_nothing(official: Path, home: Path, harm: Any, said: str) -> None:
    harm(official)
    with pytest.raises(InputError, match=said) as refused:
        add(official)
    assert "\n" not in str(refused.value)
    assert not (home / "hallo3").exists()


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no folder; give the folder with the official files"):
        add(tmp_path / "nothing")


def test_no_room_is_said_before_the_work(official: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(
        OutputError, match=r"2\d\d MB more are needed in .* and 1\.0 MB are free; free some space"
    ):
        add(official)
    assert not (home / "hallo3").exists()


def test_no_permission_is_said(official: Path, home: Path) -> None:
    home.parent.mkdir()
    home.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot be written: it"):
        add(official)


def test_a_disk_that_fills_up_keeps_what_is_done(
    official: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_config()
    import omokage.pipelines.model_files as pipeline

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.shutil, "copyfile", full)
        with pytest.raises(OutputError, match="the disk is full"):
            add(official)
    assert list((home / "hallo3").glob("denoiser-*.safetensors"))
    add(official)


def test_a_face_embedding_is_added_beside_the_model(tmp_path: Path, home: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    from omokage.pipelines.weights import add_weights

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph), tmp_path / "glintr100.onnx")
    assert add_weights("face", tmp_path) == home / "hallo3"
    assert (weights.find("face") or Path()) / "face.onnx" == home / "hallo3" / "face.onnx"
    assert inspect("hallo3").condition is Condition.ABSENT
    remove("face")
    (tmp_path / "glintr100.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="is damaged or no ONNX model"):
        add_weights("face", tmp_path / "glintr100.onnx")


# pulling


class Server:
    """A web server on this machine with files, that can be told to misbehave; `asked` holds path and range."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[tuple[str, str]] = []
        self.cut_after: int | None = None  # bytes after which the next answer ends
        self.statuses: list[int] = []  # of the next answers
        self.has_ranges = True
        self.redirects: dict[str, str] = {}  # path -> address
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/release"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.removeprefix("/release/"), request.headers.get("Range", "")
        self.asked.append((path, wanted))
        content = self.files.get(path)
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.statuses or content is None:
            request.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        begin = 0
        if wanted and self.has_ranges and request.headers.get("If-Range", tag) == tag:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                request.send_error(416)
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(len(content) - begin))
        request.end_headers()
        stop = len(content) if self.cut_after is None else begin + self.cut_after
        self.cut_after = None
        request.wfile.write(content[begin:stop])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


CONTENT = bytes(range(256)) * 16
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server({"a.bin": CONTENT})
    yield serving
    serving.close()


def get(server: Server, target: Path, config: FetchConfig = FAST, **expected: Any) -> str:
    return fetch_file(f"{server.address}/a.bin", target, PublishedFile("a.bin", **expected), config)


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bin"
    seen: list[Progress] = []
    expected = PublishedFile("a.bin", 4096, DIGEST)
    assert fetch_file(f"{server.address}/a.bin", target, expected, FAST, seen.append) == DIGEST
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]
    assert (seen[-1].done, seen[-1].total) == (4096, 4096)
    assert get(server, target, sha256=DIGEST) == DIGEST  # is there, and not asked for again
    assert len(server.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1000
    assert get(server, tmp_path / "a.bin") == DIGEST
    assert server.asked == [("a.bin", ""), ("a.bin", "bytes=1000-")]


def test_another_run_goes_on_where_the_first_ended(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1000
    with pytest.raises(
        WeightsError, match=r"connection to 127\.0\.0\.1 failed .* goes on where it stopped"
    ) as lost:
        get(server, tmp_path / "a.bin", FetchConfig(timeout_s=5, attempts=1, pause_s=0))
    assert "\n" not in str(lost.value)
    assert (tmp_path / "a.bin.partial").read_bytes() == CONTENT[:1000]
    assert not (tmp_path / "a.bin").exists()
    assert get(server, tmp_path / "a.bin", sha256=DIGEST) == DIGEST
    assert server.asked[-1] == ("a.bin", "bytes=1000-")


def test_a_file_that_changed_meanwhile_starts_anew(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1000
    with pytest.raises(WeightsError):
        get(server, tmp_path / "a.bin", FetchConfig(timeout_s=5, attempts=1, pause_s=0))
    server.files["a.bin"] = CONTENT[::-1]
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:500]])
def test_parts_of_two_versions_are_never_joined(server: Server, tmp_path: Path, content: bytes) -> None:
    """A server without tags, whose file became longer or shorter."""
    (tmp_path / "a.bin.partial").write_bytes(CONTENT[:1000])
    (tmp_path / "a.bin.partial.json").write_text(json.dumps({"tag": "", "size": 4096}))
    server.files["a.bin"] = content
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == content


def test_a_server_without_ranges_sends_all(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.cut_after = False, 1000
    assert get(server, tmp_path / "a.bin") == DIGEST


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert get(server, tmp_path / "a.bin") == DIGEST
    server.statuses = [503, 503, 503]
    with pytest.raises(WeightsError, match=r"connection to .* failed"):
        get(server, tmp_path / "b.bin")


def test_a_wrong_checksum_is_thrown_away(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"a\.bin from 127\.0\.0\.1 has a wrong checksum and was thrown away"
    ):
        get(server, tmp_path / "a.bin", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_refused_before_it_comes(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has 4096 bytes at 127\.0\.0\.1 and 5 in the release"):
        get(server, tmp_path / "a.bin", size=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "said"), [(404, "folder with the official files"), (403, "ask its owner")]
)
def test_what_a_server_refuses_is_said(server: Server, tmp_path: Path, status: int, said: str) -> None:
    server.statuses = [status]
    with pytest.raises(WeightsError, match=rf"does not give a\.bin \(HTTP {status}\); .*{said}"):
        get(server, tmp_path / "a.bin")
    assert len(server.asked) == 1


def test_no_server_and_no_web_address(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(WeightsError, match="Connection refused"):
        get(server, tmp_path / "a.bin")


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc",
        "ftp://x/y",
        "models",
        "http:///x",
        "https://[bad",
        "https://h:port/x",
        "https://h:99999/x",
        "https://a b/x",
        "https://a..b/x",
        f"https://{'a' * 64}.example/x",
        "https://h/\udcfc",
        "https://h\nx:1:2/",
        "https:/me:secret@h/?secret",
    ],
)
def test_what_is_no_web_address_is_said(address: str) -> None:
    with pytest.raises(WeightsError, match="is no web address") as refused:
        file_address(address, "a.bin")
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["https://me:secret@host/x", "https://secret@host", "me:secret@host/x", "https://me:secret@[h"]
)
def test_a_password_in_an_address_is_refused_and_never_shown(address: str) -> None:
    with pytest.raises(WeightsError, match="a user name or a password in it is not taken") as refused:
        file_address(address, "a.bin")
    assert "secret" not in str(refused.value) and "me:" not in str(refused.value)


@pytest.mark.parametrize(
    ("base", "whole"),
    [
        ("https://host:8/x/?k=1", "https://host:8/x/a%20b.bin?k=1"),
        ("http://h/ü/%20/@me", "http://h/%C3%BC/%20/@me/a%20b.bin"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example/a%20b.bin"),
        ("https://[::1]:80/", "https://[::1]:80/a%20b.bin"),
    ],
)
def test_an_address_becomes_that_of_a_file(base: str, whole: str) -> None:
    assert file_address(base, "a b.bin") == whole


def test_an_encrypted_connection_is_never_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unencrypted(fetch.urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(fetch.http.client.HTTPConnection, request)  # type: ignore[arg-type]

    server.redirects["b.bin"] = f"{server.address}/a.bin"
    target, asked = PublishedFile("b.bin"), f"{server.address}/b.bin"
    assert fetch_file(asked, tmp_path / "b.bin", target, FAST) == DIGEST
    monkeypatch.setattr(fetch.urllib.request, "HTTPSHandler", Unencrypted)
    secure = asked.replace("http:", "https:")
    server.asked.clear()
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 redirects to an address that is not encrypted"):
        fetch_file(secure, tmp_path / "c.bin", target, FAST)
    with pytest.raises(WeightsError, match="redirects to an address that is not encrypted"):
        fetch.fetch_text(secure, FAST)
    assert [path for path, _ in server.asked] == ["b.bin", "b.bin"]
    server.redirects["b.bin"] = f"{server.address.replace('http:', 'https:')}/a.bin"
    assert fetch_file(secure, tmp_path / "c.bin", target, FAST) == DIGEST
    for odd in ("ftp://h/a", "http://[bad/a"):
        server.redirects["b.bin"] = odd
        with pytest.raises(WeightsError, match=r"127\.0\.0\.1"):
            fetch.fetch_text(asked, FAST)


@pytest.mark.parametrize(
    "page", [b" <!DOCTYPE html><p>log in", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_page_in_place_of_a_file_is_thrown_away(server: Server, tmp_path: Path, page: bytes) -> None:
    server.files["a.bin"] = page
    (tmp_path / "a.bin").write_bytes(page)  # also when it lies there
    with pytest.raises(WeightsError, match=r"came from 127\.0\.0\.1 as a\.bin is a web page"):
        get(server, tmp_path / "a.bin")
    server.files["a.bin"] = CONTENT
    assert get(server, tmp_path / "a.bin") == DIGEST
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("stop", ["open", "_note"])
def test_a_stop_while_starting_anew_joins_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """The file changed, and its size did not: the old part must not be taken for one of the new file."""
    server.cut_after = 1000
    with pytest.raises(WeightsError):
        get(server, tmp_path / "a.bin", FetchConfig(timeout_s=5, attempts=1, pause_s=0))
    server.files["a.bin"] = CONTENT[::-1]
    opened = Path.open

    def stop_writing(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "wb":
            raise KeyboardInterrupt
        return opened(path, mode, *rest, **options)

    def stop_noting(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stop == "open":
            patched.setattr(Path, "open", stop_writing)
        else:
            patched.setattr(fetch, "_note", stop_noting)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path / "a.bin")
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []

    def sync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, (tmp_path / "a.bin").exists()))

    monkeypatch.setattr(fetch.os, "fsync", sync)
    get(server, tmp_path / "a.bin")
    assert synced == [(4096, False)]


def test_a_full_disk_keeps_the_part(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT * 100
    with small_disk(200_000), pytest.raises(OutputError, match=r"a\.bin cannot be written: the file grew"):
        get(server, tmp_path / "a.bin")
    assert 0 < (tmp_path / "a.bin.partial").stat().st_size <= 200_000
    get(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT * 100
    assert [wanted for _, wanted in server.asked] == ["", "bytes=200000-"]


def test_a_stop_keeps_the_part(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 512)

    def stop(step: Progress) -> None:
        if step.done >= 1024:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_file(f"{server.address}/a.bin", tmp_path / "a.bin", PublishedFile("a.bin"), FAST, stop)
    assert (tmp_path / "a.bin.partial").read_bytes() == CONTENT[:1024]
    get(server, tmp_path / "a.bin")
    assert server.asked[-1] == ("a.bin", "bytes=1024-")


def pull(server: Server | None, name: str = "hallo3", *, accept: bool = True) -> Path:
    config = add_config()
    from omokage.pipelines.pull import PullConfig, pull_weights

    return pull_weights(name, PullConfig(server and server.address, accept, FAST), add=config)


def test_nothing_is_pulled_without_the_users_word(server: Server) -> None:
    with pytest.raises(
        WeightsError,
        match=r"39\.9 GB from the network, 79\.8 GB of the disk .* CogVideoX License: .* --accept-licence",
    ):
        pull(server, accept=False)
    with pytest.raises(WeightsError, match=r"no address of hallo3 is known to omokage; give .* --from"):
        pull(None)
    assert server.asked == []


@pytest.fixture
def release(server: Server, official: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The official layout on a server, all files that the registry names; a disk with room for the real ones."""
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=80_100_000_000))
    for file in HALLO3.files:
        path = official / file.path
        if not path.exists():
            path.write_bytes(b"{}" if path.suffix == ".json" else b"")
    text = official / "t5-v1_1-xxl"
    for number in (1, 2):
        save_file({f"block.{number}": torch.ones(2)}, text / f"model-0000{number}-of-00002.safetensors")
    (text / "model.safetensors").unlink()
    files = {file.path: (official / file.path).read_bytes() for file in HALLO3.files}
    server.files.update(files)
    return server


def test_a_release_is_pulled_and_installed(release: Server, home: Path) -> None:
    main = HALLO3.files[0].path
    pull(release)
    assert inspect("hallo3", full=True).condition is Condition.VERIFIED
    assert not (home / ".pulled-hallo3").exists()
    noted = json.loads((home / "hallo3.digests.json").read_text())
    assert noted[main] == hashlib.sha256(release.files[main]).hexdigest()
    # Its digests are known from now on, and another file under the same name is refused.
    next((home / "hallo3").glob("denoiser-*.safetensors")).unlink()
    release.files[main] += b"x"
    with pytest.raises(WeightsError, match=r"mp_rank_00_model_states\.pt from .* has a wrong checksum"):
        pull(release)
    remove("hallo3")
    assert list(home.iterdir()) == []


def test_what_cannot_be_installed_is_asked_for_again(release: Server, home: Path) -> None:
    """None of what once came wrong stays in the way."""
    main, config = HALLO3.files[0].path, "t5-v1_1-xxl/config.json"
    whole, described = release.files[main], release.files[config]
    for path, wrong, said in (
        (main, b"<html>log in</html>", "is a web page"),
        (main, b"no checkpoint", r"cannot be installed: .* is damaged .*; 1 of 13 pulled files were deleted"),
        (config, b'{"model_type": "t5", "d_model": 5}', "another encoder .*; 8 of 13 pulled files"),
        (config, b'{"login": true}', "text encoder .* is missing; .* 7 of 13 pulled files"),
    ):
        shutil.rmtree(home, ignore_errors=True)
        release.files |= {main: whole, config: described, path: wrong}
        with pytest.raises(WeightsError, match=said) as refused:
            pull(release)
        assert "\n" not in str(refused.value)
        assert not (home / "hallo3.digests.json").exists()
    release.files |= {main: whole, config: described}
    release.asked.clear()
    pull(release)
    assert config in [path for path, _ in release.asked] and main not in [path for path, _ in release.asked]
    assert inspect("hallo3").condition is Condition.INSTALLED


def test_a_stopped_conversion_goes_on_on_a_tight_disk(
    release: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is needed only for what is missing: neither the pulled files nor the converted ones count twice."""
    add_config()
    import omokage.pipelines.pull as pipeline

    rooms: list[int] = []

    def look(place: Path, needed: int, written: int) -> None:
        rooms.append(needed - written)

    def stop(*_: object, **__: object) -> None:
        (home / "hallo3").mkdir()
        (home / "hallo3" / "denoiser-00001-of-00002.safetensors").write_bytes(b"d" * 1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "check_room", look)
    monkeypatch.setattr(pipeline, "add_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        pull(release)
    (home / "hallo3" / "face.onnx").write_bytes(b"f" * 10)  # an addition is no part of it
    with pytest.raises(FileExistsError):
        pull(release)
    assert rooms[0] - rooms[1] == sum(map(len, release.files.values())) - len(CONTENT) + 1000


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"denoiser-1.safetensors": 1}, "is no file of it"),
        ({"face.a\0b": 1}, "outside its folder"),
        ({"face.onnx": float("inf")}, "infinity"),
    ],
)
def test_a_mirror_that_names_wrong_files_is_refused(
    server: Server, home: Path, files: dict[str, Any], said: str
) -> None:
    content = Manifest("face", "", {"face.onnx": FileRecord(1, "0")}).to_json()
    content["files"] = {path: {"size": size, "sha256": "0"} for path, size in files.items()}
    server.files["face.weights.json"] = json.dumps(content).encode()
    with pytest.raises(WeightsError, match=rf"face\.weights\.json at that address cannot be used .*{said}"):
        pull(server, "face")
    assert not home.exists()


def test_room_for_a_pull_is_looked_for_first(release: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=79_000_000_000))
    with pytest.raises(OutputError, match=r"80\.0 GB more are needed"):
        pull(release)
    assert [path for path, _ in release.asked] == ["weights.json"]


def test_an_interrupted_pull_goes_on(release: Server, home: Path) -> None:
    text = "t5-v1_1-xxl/spiece.model"
    kept = release.files.pop(text)
    with pytest.raises(WeightsError, match=r"does not give spiece\.model"):
        pull(release)
    release.files[text] = kept
    release.asked.clear()
    pull(release)
    assert HALLO3.files[0].path not in [path for path, _ in release.asked]


def test_an_installed_folder_serves_as_a_mirror(
    official: Path, server: Server, home: Path, tmp_path: Path
) -> None:
    folder = add(official)
    server.files = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    remove("hallo3")
    shard = "denoiser-00001-of-00001.safetensors"
    whole = server.files[shard]
    server.files[shard] = whole[:-1] + b"?"
    with pytest.raises(WeightsError, match="has a wrong checksum"):
        pull(server)
    server.files[shard] = whole
    assert pull(server) == folder
    assert inspect("hallo3", full=True).condition is Condition.VERIFIED
    assert sorted(path.name for path in home.iterdir()) == ["hallo3"]
    remove("hallo3")
    server.files["weights.json"] = server.files["weights.json"].replace(b'"hallo3"', b'"other"')
    with pytest.raises(WeightsError, match="holds the weights of 'other', not of 'hallo3'"):
        pull(server)


# the command line


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("weights list", capsys)
    assert code == 0
    assert "hallo3: not installed, 39.9 GB when installed" in out
    assert "licence: InsightFace model licence; commercial use: no" in out
    assert "checksums: none is published" in out
    put(home / "hallo3", FILES)
    code, out, _ = run("weights list --verify --quiet", capsys)
    assert code == 0 and "hallo3: verified, 3 kB" in out and f"folder: {home / 'hallo3'}" in out
    (home / "hallo3" / "text" / "config.json").write_bytes(b"[]")
    code, out, _ = run("weights list --verify --json --quiet", capsys)
    first, second, *_ = json.loads(out)
    assert code == 2
    assert (first["condition"], second["condition"]) == ("damaged", "not installed")
    assert "config.json is wrong" in first["detail"]


def test_add_pull_and_remove_from_the_command_line(
    official: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = add_config()
    import omokage.pipelines.weights as pipeline

    code, out, err = run(f"weights add hallo3 {official} --quiet", capsys)
    assert (code, out) == (2, "") and "another encoder than Hallo3 was trained with" in err
    monkeypatch.setattr(pipeline, "AddConfig", lambda _: config)
    assert run(f"weights add hallo3 {official} --quiet", capsys) == (0, f"installed: {home / 'hallo3'}\n", "")
    code, out, _ = run("weights remove hallo3", capsys)
    assert (code, out.split(",")[0]) == (0, "removed: hallo3")
    code, out, err = run("weights pull hallo3 --quiet", capsys)
    assert (code, out) == (2, "") and "--accept-licence" in err and err.count("\n") == 1
    code, _, err = run("weights pull hallo3 --quiet --accept-licence --from x", capsys)
    assert code == 2 and "is no web address" in err
    code, _, err = run("weights add halo x", capsys)
    assert code == 2 and "there is no model 'halo'" in err
