"""StyleAvatar's networks at the paper's size on one GPU: parity, speed and memory, and how fast a person is learned.

    python benchmarks/gpu/style_avatar.py --budget-s 1500 --output style-avatar.json

Parity: all reference numbers of a folder (`tests/golden` unless another is given), computed on the card; float32 must
be within their tolerances. Speed: every network in every precision, eager, recorded as a CUDA graph, and compiled.
Weights are drawn by name: they cost what trained ones cost. The rows 'portrait, official' compute the image generator
as the released code does (`style_networks.official_graph`), in the same run; how many times as fast each other row is,
and how far its pictures are from the exact ones, is told beside it. Training: milliseconds of whole steps, then a
person for `--train-minutes` in the fastest way, with a curve of frames that are never trained on: of `--clip`, or of a
drawn person.

Needs PyTorch, NumPy, SciPy, OpenCV, numba, safetensors, onnx and onnxruntime; for `--clip` all of omokage's packages.
Rows come in the order of their value, and the file is written after each. Memory that runs out, or any other failure,
is noted in the row; no row begins for which the budget does not suffice. The same command goes on where it was stopped,
also by itself after a failure that leaves the card unusable for the process. Small sizes run anywhere: --size tiny
--device cpu; rows that need a card say so.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import beginning
import PIL.Image
import torch
from measuring import (
    Report,
    Row,
    accelerator,
    attempt,
    command_of,
    go_on_anew,
    indexed,
    is_usable,
    matmul_rate,
)
from style_networks import SIZES
from style_rows import (
    COMPILED,
    OFFICIAL_EAGER,
    PORTRAIT,
    STATIC,
    Bench,
    Exact,
    measured,
    parity_rows,
    settings,
)
from style_training import (
    Part,
    SyntheticFrames,
    Way,
    clip_store,
    fastest,
    step_row,
    training_row,
    usable_cores,
    ways,
)

from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.run import PaperTrainingConfig
from omokage.errors import DivergedError
from omokage.pipelines.this_machine import machine

PARTS = ("parity", "speed", "training")
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
# Of the rows of speed, so many come before the training: what is compared with the targets.
FIRST_ROWS = 12
COMPILING_S = 60.0  # of a card's first compiled row, of which nothing is known yet
RESERVE_S = 45.0  # for what comes after a training
TRAINING = "training, a person"
TIMES = ("ms", "fps", "latency_ms", "to_host_ms", "peak_gb")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="released")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="seconds of the whole")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="+", help="only rows whose names begin so")
    parser.add_argument("--runs", type=int, default=100, help="pictures that are timed of a row")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="rows with PyTorch's compiler (default: on a GPU)",
    )
    parser.add_argument("--matmul-side", type=int, default=8192)
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="folder of reference numbers")
    parser.add_argument("--clip", type=Path, help="recording to train on (default: a drawn person)")
    parser.add_argument("--frames", type=int, default=400, help="of the drawn person")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes that draw them")
    parser.add_argument("--work", type=Path, help="folder for prepared frames (default: beside the output)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--train-steps", type=int, default=16, help="steps that are timed of every way")
    parser.add_argument("--train-minutes", type=float, default=10.0)
    parser.add_argument(
        "--goes-on",
        action="store_true",
        help="a training that the budget ends is gone on with by the same command, from --work",
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--begun", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], started: float | None = None) -> int:
    """started: of `time.monotonic`, from which the budget counts; now if it is None."""
    given, started = parse(arguments), time.monotonic() if started is None else started
    device = indexed(torch.device(given.device))
    compiled = device.type == "cuda" if given.compile is None else given.compile
    bench = Bench(SIZES[given.size](), device, given.runs, started + given.budget_s, compiled)
    report = StyleReport.begin(given.output, head(arguments, given, device), given.begun)
    kit = Kit(given, bench, report)
    for part, measure in (
        ("parity", kit.check_parity),
        ("speed", partial(kit.time_networks, None, FIRST_ROWS)),
        ("training", kit.train),
        ("speed", partial(kit.time_networks, FIRST_ROWS, None)),
    ):
        if part in given.parts:
            measure()
        if not is_usable(device):
            left = max(bench.deadline - time.monotonic(), 0.0)
            go_on_anew(__file__, arguments, given.begun, ["--budget-s", str(left)])
    return 0 if report.is_sound else 1


def head(arguments: Sequence[str], given: argparse.Namespace, device: torch.device) -> Row:
    """What the numbers hold for."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        "date": date.today().isoformat(),
        "command": command_of("benchmarks/gpu/style_avatar.py", arguments),
        "machine": machine() | accelerator(device),
        "size": given.size,
        "golden": given.golden.name,
        "frames": given.clip.name if given.clip else f"{given.frames} of a drawn person",
        "matmul_tflops": round(matmul_rate(device, dtype, given.matmul_side) / 1e12, 4),
    }


@dataclass
class StyleReport(Report):
    """With the speed of the portrait's rows over that of the released graph in the same precision of products."""

    same = (*Report.same, "golden", "frames")

    def content(self) -> Row:
        for precision in ("fp32", "tf32"):
            reference = self.rows.get(replace(OFFICIAL_EAGER, precision=precision).name, {}).get("ms")
            for name, row in self.rows.items():
                if reference and name.startswith(PORTRAIT) and row.get("ms"):
                    times = reference / row.get("recorded_ms", row["ms"])
                    row[f"times_official_{precision}"] = round(times, 2)
        return super().content() | {"fastest": self.fastest()}

    def fastest(self) -> Row:
        """The way of drawing that the targets are about: 5 ms a picture, three times the released graph's speed."""
        drawn = [
            row for name, row in self.rows.items() if name.startswith(f"{PORTRAIT}, {STATIC}") and "ms" in row
        ]
        best = min(drawn, key=lambda row: row.get("recorded_ms", row["ms"]), default={})
        way = "recorded_" if "recorded_ms" in best else ""  # all of one way, not the best of each
        wanted = ("name", *(way + name for name in TIMES), "psnr_db")
        return {key: value for key, value in best.items() if key in wanted or key.startswith("times_")}


@dataclass
class Kit:
    """The parts, each of which adds its rows to the report."""

    given: argparse.Namespace
    bench: Bench
    report: StyleReport

    def is_asked(self, name: str) -> bool:
        """Whether a row is wanted, and not there yet."""
        chosen = self.given.rows
        return not self.report.is_done(name) and (not chosen or name.startswith(tuple(chosen)))

    def check_parity(self) -> None:
        for name, measure in parity_rows(self.given.golden, self.bench):
            if self.is_asked(name) and is_usable(self.bench.device):
                self._add(name, measure)

    def time_networks(self, first: int | None, last: int | None) -> None:
        exact, rate = Exact(self.bench), 1e12 * self.report.head["matmul_tflops"]
        for setting in settings(self.bench)[first:last]:
            if self.is_asked(setting.name) and is_usable(self.bench.device):
                self.report.add(measured(setting, self.bench, exact, rate, self._expected(setting.mode)))

    def _expected(self, mode: str) -> float:
        """Seconds of another row: as the slowest of its kind so far."""
        rows, is_card = self.report.rows.items(), self.bench.device.type == "cuda"
        return max(
            (row["seconds"] for name, row in rows if f", {mode}, " in name and "ms" in row),
            default=COMPILING_S if mode == COMPILED and is_card else 0.0,
        )

    def train(self) -> None:
        """Steps in every way that needs no compiler, then a person in the fastest; where that diverges, in the next.

        Ways that are compiled come at last: what that takes, the person would not have.
        """
        device = self.bench.device
        every = ways(compiled=self.bench.compiled, card=device.type == "cuda")
        asked = [way for way in every if self.is_asked(steps_of(way))]
        if not asked and not self.is_asked(TRAINING):
            return
        store = self._store()
        if store is None:
            return
        batch, steps = self.given.batch, self.given.train_steps
        base = PaperTrainingConfig(batch=batch, micro_batch=min(4, batch), passes=1e6)

        def time_steps(chosen: Sequence[Way]) -> None:
            for way in chosen:
                if is_usable(device):
                    work = partial(step_row, way, self.bench.sizes, base, store, device, steps)
                    self._add(steps_of(way), work)

        time_steps([way for way in asked if not way.compiled])
        if self.is_asked(TRAINING) and is_usable(device):
            known = [(way, self.report.rows.get(steps_of(way), {})) for way in every]
            self._add(TRAINING, partial(self._person, fastest(known) or every[:1], base, store))
        time_steps([way for way in asked if way.compiled])

    def _person(self, order: Sequence[Way], base: PaperTrainingConfig, store: FrameStore) -> Row:
        diverged: list[str] = []
        for way in order:
            until = self.bench.deadline - RESERVE_S
            left, checkpoint = (until - time.monotonic()) / 60, None
            if min(self.given.train_minutes, left) < self.given.train_minutes / 4:
                raise TimeoutError
            minutes = min(self.given.train_minutes, left)
            if self.given.goes_on:
                minutes = self.given.train_minutes
                checkpoint = store.folder.with_name(f"{store.folder.name}.{way.name}.checkpoint")
            end = until if self.given.goes_on else math.inf
            part = Part(minutes, end, checkpoint, partial(self._keep, way))
            try:
                row, sheet = training_row(way, self.bench.sizes, base, store, self.bench.device, part)
            except DivergedError:
                diverged.append(way.name)
                continue
            if self.given.clip is None:  # nobody's picture is kept
                PIL.Image.fromarray(sheet).save(self.given.output.with_suffix(".png"))
            return row | {"diverged": diverged}
        return {"failed": "the training has diverged in every way", "diverged": diverged}

    def _keep(self, way: Way, curve: list[Row]) -> None:
        """Write what is known of a training that is not over: the process may be ended before."""
        row = {"name": TRAINING, "way": way.name, "failed": "stopped before its end", "curve": curve}
        self.report.rows[TRAINING] = row
        self.report.write()

    def _add(self, name: str, work: Callable[[], Row]) -> None:
        row: Row = {"name": name}
        found = attempt(row, self.bench.deadline, work)
        self.report.add(row | (found or {}))

    def _store(self) -> FrameStore | None:
        """The frames, prepared before; what went wrong is a row."""
        given, size = self.given, self.bench.sizes.portrait.size
        what = given.clip.stem if given.clip else given.frames
        folder = (given.work or given.output.with_suffix(".work")) / f"frames-{size}-{what}"
        row: Row = {"name": "frames"}
        begun = time.monotonic()

        def prepare() -> FrameStore:
            if given.clip is not None:
                return clip_store(given.clip, size, folder)
            return SyntheticFrames(size, given.frames, given.jobs).store(folder)

        store = attempt(row, self.bench.deadline, prepare)
        if store is not None:
            row |= {"train": store.train, "held_out": store.held_out}
        self.report.add(row | {"seconds": round(time.monotonic() - begun, 1)})
        return store


def steps_of(way: Way) -> str:
    return f"training steps, {way.name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], beginning.STARTED))
