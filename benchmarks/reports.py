"""What the result of every benchmark begins with: how it was called, when, where, beside what."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from omokage.pipelines.bench import machine

ROOT = Path(__file__).resolve().parent.parent


def command() -> str:
    """The command line as it was typed, without folders of this machine: the script's are those of the project."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return "python " + " ".join([name, *(Path(a).name if "/" in a else a for a in sys.argv[1:])])


def circumstances(load_before: float, **versions: str) -> dict[str, Any]:
    """For a measurement that ends now. load_before: `os.getloadavg()[0]` when it began; versions: more of libraries."""
    return {
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine() | versions,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }


def measure_parts(
    path: Path,
    benchmark: str,
    parts: Mapping[str, Callable[[], dict[str, Any]]],
    only: Sequence[str] | None,
    **versions: str,
) -> None:
    """Measure part by part; the file is whole after each. only: the parts that are measured anew, others stay."""
    result: dict[str, Any] = json.loads(path.read_text()) if only and path.exists() else {}
    result["benchmark"] = benchmark
    for name in only or parts:
        started, load = time.monotonic(), os.getloadavg()[0]
        measured = parts[name]()
        seconds = round(time.monotonic() - started, 1)
        result[name] = circumstances(load, **versions) | measured | {"seconds": seconds}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)
        print(name, "done after", seconds, "s", flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def timed(work: Any, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds on the clock, and of this process's computing."""
    walls, processors = [], []
    for _ in range(repeats):
        begun, before = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - begun)
        processors.append(time.process_time() - before)
    return spread(walls), spread(processors)
