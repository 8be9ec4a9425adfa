"""Official checkpoints become sharded safetensors: read without running anything, resumable, checked."""

from __future__ import annotations

import json
import random
import re
import weakref
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import omokage.talking.convert as convert
from golden_fill import Golden, weight
from omokage.config import Progress
from omokage.errors import InputError, OutputError
from omokage.official import KeyMap
from omokage.talking.checkpoint import DENOISER_PREFIX, REFERENCE_PREFIX, transformer_keys
from omokage.talking.config import tiny
from omokage.talking.convert import (
    Part,
    convert_checkpoint,
    load_weights,
    read_checkpoint,
    read_index,
    verify_shards,
)
from omokage.talking.vae import tiny_vae, vae_keys

LAYER = KeyMap({"m.a.weight": "weight", "m.a.bias": "bias"}, frozenset({"m.table"}))


def official_file(path: Path) -> dict[str, torch.Tensor]:
    """A small file of the official layout, filled by the golden rule: what a training framework saves."""
    generator = {
        f"m.{key}": torch.from_numpy(weight(f"m.{key}", key, shape))
        for key, shape in {"a.weight": (5, 4), "a.bias": (5,), "table": (3,)}.items()
    }
    state = OrderedDict(generator | {"text.shared.weight": torch.ones(2, 2)})
    torch.save({"module": state, "iteration": 30000, "lr_scheduler": None, "args": {"seed": 7}}, path)
    return dict(state)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mp_rank_00_model_states.pt"
    official_file(path)
    return path


def run(source: Path, folder: Path, **options: object) -> convert.ShardIndex:
    settings = {"ignored": ("text.",), "shard_bytes": 40} | options
    return convert_checkpoint(source, [Part("layer", LAYER)], folder, **settings)[0]  # type: ignore[arg-type]


def test_a_converted_file_holds_the_same_tensors_under_our_names(source: Path, tmp_path: Path) -> None:
    index = run(source, tmp_path / "out")
    state = official_file(source)
    shards = {"layer-00001-of-00002.safetensors": "weight", "layer-00002-of-00002.safetensors": "bias"}
    assert index.shards == {key: file for file, key in shards.items()}
    for file, key in shards.items():
        written = load_file(tmp_path / "out" / file)
        assert list(written) == [key]
        assert torch.equal(written[key], state[f"m.a.{key}"])
    assert index.total_bytes == 25 * 4
    assert read_index(tmp_path / "out", "layer") == index == verify_shards(tmp_path / "out", "layer")


def test_a_network_is_filled_from_shards(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", dtype=torch.bfloat16)
    with torch.device("meta"):
        layer = nn.Linear(4, 5)
    load_weights(layer, tmp_path / "out", "layer", dtype=torch.float32)
    assert torch.equal(layer.weight, official_file(source)["m.a.weight"].bfloat16().float())
    with pytest.raises(
        InputError, match=r"another network or size \(1 tensors do not fit, such as 'weight'\)"
    ):
        load_weights(nn.Linear(3, 5), tmp_path / "out", "layer")
    with pytest.raises(InputError, match="holds no weights of the head; run 'omokage weights pull hallo3'"):
        load_weights(layer, tmp_path / "out", "head")


def test_the_autoencoder_goes_through_its_own_file_to_the_same_numbers(tmp_path: Path) -> None:
    """The file of the autoencoder has another wrapper, no prefix, and the training's losses beside it."""
    pytest.importorskip("diffusers", reason="the video autoencoder needs 'pip install omokage[portrait]'")
    from omokage.talking.vae import CausalVae

    golden = Golden("hallo3_vae")
    state = {key: torch.from_numpy(value) for key, value in golden.weights("first_stage_model").items()}
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "3d-vae.pt")
    part = Part("vae", vae_keys(tiny_vae(), prefix=""))
    convert_checkpoint(tmp_path / "3d-vae.pt", [part], tmp_path, ignored=("loss.",), shard_bytes=1_000_000)
    with torch.device("meta"):
        vae = CausalVae(tiny_vae())
    load_weights(vae, tmp_path, "vae")
    video = torch.from_numpy(golden.input("video_3")).transpose(1, 2)
    golden.check("encode_3.mean", vae.posterior(video).mean.detach().transpose(1, 2).numpy(), share=0.5)


def test_both_transformers_come_out_of_one_file(tmp_path: Path) -> None:
    golden = Golden("hallo3_denoiser")
    state = {
        f"{prefix}.{key}": torch.from_numpy(value)
        for prefix in ("model", "ref_model")
        for key, value in golden.weights(prefix).items()
    }
    torch.save({"module": state}, tmp_path / "official.pt")
    parts = [
        Part("denoiser", transformer_keys(tiny(), DENOISER_PREFIX)),
        Part("reference", transformer_keys(tiny().reference, REFERENCE_PREFIX)),
    ]
    denoiser, reference = convert_checkpoint(tmp_path / "official.pt", parts, tmp_path / "out")
    assert denoiser.shards.keys() == set(parts[0].keys.names.values())
    assert reference.shards.keys() == set(parts[1].keys.names.values())


def test_a_stopped_conversion_goes_on_with_the_next_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "out", []
    write = convert.save_file

    def stop_at_second(values: dict[str, torch.Tensor], path: Path) -> None:
        if "bias" in values:
            raise KeyboardInterrupt
        written.append(path.name)
        write(values, path)

    monkeypatch.setattr(convert, "save_file", stop_at_second)
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(source, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "layer-00001-of-00002.safetensors",
        "layer.conversion.json",
    ]
    monkeypatch.setattr(
        convert, "save_file", lambda values, path: (written.append(path.name), write(values, path))
    )
    run(source, out)
    assert written == ["layer-00001-of-00002.safetensors.part", "layer-00002-of-00002.safetensors.part"]
    run(source, out)
    assert len(written) == 2
    verify_shards(out, "layer")
    # While the shards are being replaced no index claims that they belong together.
    monkeypatch.setattr(convert, "save_file", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(source, out, dtype=torch.float16, shard_bytes=20)
    with pytest.raises(InputError, match="holds no weights of the layer"):
        read_index(out, "layer")


def test_a_damaged_shard_is_found_and_written_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    shard = out / "layer-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(InputError, match=r"00001-of-00002\.safetensors is missing or its checksum is wrong"):
        verify_shards(out, "layer")
    run(source, out)
    assert shard.read_bytes() == whole


def test_another_file_or_precision_starts_anew(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = run(source, out)
    assert run(source, out, dtype=torch.float16).digests != before.digests
    run(source, out)
    changed = {key: 2 * value for key, value in official_file(source).items()}
    size = source.stat().st_size
    torch.save(
        {"module": OrderedDict(changed), "iteration": 30000, "lr_scheduler": None, "args": {"seed": 7}},
        source,
    )
    assert source.stat().st_size == size
    assert run(source, out).digests.keys() == before.digests.keys()
    assert torch.equal(load_file(out / before.shards["weight"])["weight"], changed["m.a.weight"])


def test_progress_counts_bytes(source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(source, tmp_path / "out", progress=seen.append)
    assert [(report.done, report.total) for report in seen] == [(0, 100), (80, 100), (100, 100)]


def test_no_room_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match="need 1 GB more"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_what_a_training_framework_saves_beside_the_weights_is_passed_over(tmp_path: Path, core: str) -> None:
    extras = {
        "np_rng_state": np.random.RandomState(3).get_state(),
        "random_rng_state": random.Random(3).getstate(),
        "torch_rng_state": torch.get_rng_state(),
        "loss": np.float64(0.5),
        "param_shapes": [OrderedDict({"m.a.bias": torch.Size([2])})],
        "sparse_tensor_module_names": {"m.table"},
        "mp_world_size": 1,
    }
    torch.save({"module": {"m.a.bias": torch.ones(2)}, **extras}, tmp_path / "now.pt")
    other = {"numpy._core": "numpy.core", "numpy.core": "numpy._core"}[core]
    with zipfile.ZipFile(tmp_path / "now.pt") as now, zipfile.ZipFile(tmp_path / "x.pt", "w") as named:
        for name in now.namelist():
            named.writestr(name, now.read(name).replace(f"c{other}.".encode(), f"c{core}.".encode()))
    with zipfile.ZipFile(tmp_path / "x.pt") as named:
        assert f"c{core}.multiarray\n_reconstruct".encode() in named.read("now/data.pkl")
    assert torch.equal(read_checkpoint(tmp_path / "x.pt")["m.a.bias"], torch.ones(2))
    torch.save({"module": {"m.a.bias": np.ones(2)}}, tmp_path / "array.pt")
    with pytest.raises(InputError, match=r"holds 'm\.a\.bias', which is no tensor"):
        read_checkpoint(tmp_path / "array.pt")


# what is refused


class Runs:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    torch.save({"module": {"m.a.bias": torch.ones(2)}, "extra": Runs(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="holds more than tensors and cannot be read safely") as refused:
        read_checkpoint(tmp_path / "evil.pt")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_that_brings_code_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="the text encoder needs 'pip install omokage[portrait]'")
    from omokage.talking.conditions.text import TextEncoder

    questions: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "n")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass Words: pass\n"
    (tmp_path / "words.py").write_text(code)
    described = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["words.Words", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {}}))
    with pytest.raises(InputError, match="holds no text encoder"):
        TextEncoder.load(tmp_path, tokens=4)
    assert questions == [] and not (tmp_path / "ran").exists()


def test_a_damaged_file_is_refused(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"module": {"a": 1}}, "holds 'a', which is no tensor"),
        ({"module": {3: torch.ones(1)}}, "holds '3', which is no tensor"),
        ({"iteration": 4}, "holds 'iteration', which is no tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=re.escape(said)):
        read_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


def test_files_of_before_archives_are_read(tmp_path: Path) -> None:
    torch.save({"module": {"a": torch.ones(2)}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pt")["a"], torch.ones(2))


def test_missing_and_unknown_keys_are_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 are unknown, such as 'text\.shared\.weight'"):
        run(source, tmp_path / "out", ignored=())
    wider = replace(LAYER, names={**LAYER.names, "m.b.weight": "other"})
    with pytest.raises(InputError, match=r"1 are missing, such as 'm\.b\.weight'"):
        convert_checkpoint(source, [Part("layer", wider)], tmp_path / "out", ignored=("text.",))
    with pytest.raises(InputError, match="want the same tensors"):
        convert_checkpoint(source, [Part("a", LAYER), Part("b", LAYER)], tmp_path / "out", ignored=("text.",))
    assert not (tmp_path / "out").exists()


def test_a_damaged_index_is_said(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    path = convert.index_path(tmp_path / "out", "layer")
    path.write_text(json.dumps({"weight_map": {}}), encoding="utf-8")
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        read_index(tmp_path / "out", "layer")


def test_only_one_shard_is_in_memory(tmp_path: Path) -> None:
    """Tensors that are joined or made anew exist while their own shard is written, and no longer."""
    alive: set[int] = set()
    most = 0

    def pending(number: int) -> convert.Pending:
        def make() -> torch.Tensor:
            nonlocal most
            made = torch.full((10,), float(number))
            alive.add(number)
            weakref.finalize(made, alive.discard, number)
            most = max(most, len(alive))
            return made

        return convert.Pending(torch.Size((10,)), torch.float32, make)

    network = {f"part.{number}": pending(number) for number in range(12)}
    index = convert.write_networks({"network": network}, tmp_path, origins=[], shard_bytes=120)[0]
    assert len(index.digests) == 4 and most == 3 and not alive
    assert load_file(tmp_path / index.shards["part.7"])["part.7"].tolist() == [7.0] * 10
