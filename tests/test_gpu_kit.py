"""The GPU benchmark at a small size on the processor: it runs, and its rows say the truth about exactness."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from omokage.talking.config import official

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu" / "portrait_video.py"


@pytest.fixture(scope="module")
def kit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("portrait_video", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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


def test_processes_share_a_row(kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # the processes look for the script, too
    output, rows = tmp_path / "result.json", ["guidance in 2 processes"]
    kit.main(
        ["--size", "tiny", "--layers", "1", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--no-decoder",
         "--matmul-side", "32", "--processes", "2", "--rows", *rows, "--output", str(output)]
    )  # fmt: skip
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ["resident", *rows]
    assert report["rows"][1]["difference_max"] < 1e-4 and report["rows"][1]["processor_seconds_per_step"] > 0
    names = [setting.name for setting in kit.settings(compiled=True, processes=2)]
    assert names[-3:] == ["compiled", "tokens in 2 processes", *rows]


def test_options_are_measured_over_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent.parent))
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
