"""What the benchmarks of this folder share: a report written row by row, what failed and why, time, memory."""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import beginning  # noqa: F401 - where the project is
import torch
from torch import Tensor

from omokage.errors import MissingDependencyError
from omokage.talking.placement import is_shortage

Row = dict[str, Any]
Result = TypeVar("Result")
OUT_OF_TIME = "no time was left"
# What another attempt on the same machine would not change: a failure that begins so is as good as a result.
LASTING = ("needs ",)


@dataclass
class Report:
    """The file, as far as it goes: what the numbers hold for, and rows by their names.

    begun: seconds of the clock (`time.time`) at which the call began: what failed before is tried again, and what
    failed since is not, also by a process that goes on in this one's place.
    same: entries of `head`, and of its `machine`, that must be equal for a file to be gone on with.
    """

    output: Path
    head: Row
    rows: dict[str, Row] = field(default_factory=dict)
    begun: float = 0.0
    same: ClassVar[tuple[str, ...]] = ("size", "accelerator", "processor", "torch")

    @classmethod
    def begin(cls, output: Path, head: Row, begun: float = 0.0) -> Self:
        """Go on with a file of the same size, machine and version of PyTorch."""
        report = cls(output, head, begun=begun)
        try:
            known = json.loads(output.read_text(encoding="utf-8"))
            if all(_entry(of, name) == _entry(head, name) for of in (known,) for name in cls.same):
                report.take_over(known)
        except (OSError, ValueError):
            pass
        return report

    def take_over(self, known: Row) -> None:
        """Keep what a file of an earlier run says. Raises OSError or ValueError where that cannot be used."""
        self.rows = {row["name"]: row for row in known["rows"] if row.get("failed") != OUT_OF_TIME}

    def is_done(self, name: str) -> bool:
        """Whether a row is there for good: measured, or failed for a reason that lasts, or in this call."""
        row = self.rows.get(name)
        if row is None:
            return False
        failed = row.get("failed")
        return not failed or failed.startswith(LASTING) or row.get("failed_at", 0.0) >= self.begun

    def content(self) -> Row:
        return self.head | {"rows": list(self.rows.values())}

    @property
    def is_sound(self) -> bool:
        """Whether no row met a defect."""
        return not any(row.get("is_defect") for row in self.rows.values())

    def add(self, row: Row) -> None:
        """Write a row, and say it."""
        if "failed" in row:
            row["failed_at"] = round(time.time(), 3)
        self.rows[row["name"]] = row
        self.write()
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def write(self) -> None:
        """The whole file, at once."""
        part = self.output.with_name(self.output.name + ".part")
        part.write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")
        part.replace(self.output)


def _entry(head: Row, name: str) -> Any:
    machine = head["machine"]
    return head[name] if name in head else machine.get(name, machine.get("versions", {}).get(name))


def indexed(device: torch.device) -> torch.device:
    """A card by its number, which some calls of PyTorch insist on."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def go_on_anew(script: str, arguments: Sequence[str], begun: float, limit: Sequence[str]) -> None:
    """The same script in a process of its own, in this one's place: a fault of the card stays with a process.

    begun: of the report.  limit: options that say what is left of the time.
    """
    path = str(Path(script).resolve())
    os.execv(sys.executable, [sys.executable, path, *arguments, "--begun", repr(begun), *limit])


def command_of(script: str, arguments: Sequence[str]) -> str:
    """As it was given, without the folders of this machine."""
    return f"python {script} " + " ".join(Path(w).name if w.startswith("/") else w for w in arguments)


def attempt(row: Row, deadline: float, work: Callable[[], Result], seconds: float = 0.0) -> Result | None:
    """What came of the work, None when it failed: then the row says why, and whether that is a defect.

    It is not begun when the `seconds` that it will take are not left until `deadline` (of `time.monotonic`).
    """
    row.pop("failed", None)
    try:
        if time.monotonic() + seconds > deadline:
            raise TimeoutError
        return work()
    except TimeoutError:
        row["failed"] = OUT_OF_TIME
    except Exception as error:
        if is_shortage(error):
            row["failed"] = "out of memory"
        elif isinstance(error, MissingDependencyError):
            row["failed"] = str(error)
        else:
            row |= {"failed": f"{type(error).__name__}: {error}".splitlines()[0], "is_defect": True}
            traceback.print_exc()
    return None


def now(device: torch.device) -> float:
    """Seconds; everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def begin_memory(device: torch.device) -> None:
    """Let go of the row before, which may refer to itself, and count from here."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # what was compiled holds its network
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float | None:
    """GB that tensors took at most since `begin_memory`; unknown on a processor."""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


def difference(value: Tensor, plain: Tensor) -> Row:
    """How far a result is from the plain one, in units of that one's deviation."""
    apart, scale = (value.float() - plain.float()), plain.float().std()
    return {
        "is_identical": bool(torch.equal(value, plain)),
        "difference_rms": _short(apart.pow(2).mean().sqrt() / scale),
        "difference_max": _short(apart.abs().max() / scale),
    }


def _short(value: Tensor) -> float | None:
    """Three digits; None of what is not finite, which JSON has no word for."""
    return float(f"{value:.3g}") if bool(torch.isfinite(value)) else None


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a large product in this precision: the median of ten."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        begin = now(device)
        left @ right
        times.append(now(device) - begin)
    return 2.0 * side**3 / statistics.median(times[2:])


def is_usable(device: torch.device) -> bool:
    """Whether this process can still compute there: after a fault of a kernel it cannot."""
    try:
        return float(torch.ones(1, device=device)) == 1
    except RuntimeError:
        return False


def accelerator(device: torch.device) -> Row:
    if device.type != "cuda":
        return {"accelerator": None}
    properties = torch.cuda.get_device_properties(device)
    memory = round(properties.total_memory / 1e9, 1)
    return {"accelerator": properties.name, "accelerator_gb": memory, "cuda": torch.version.cuda}
