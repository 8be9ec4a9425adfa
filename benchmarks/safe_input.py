"""What the sandbox around decoding costs: to open a file, for each picture, in memory; beside decoding in this process.

    python benchmarks/safe_input.py --output benchmarks/results/safe-input.json

The clips are drawn here: a moving gradient with noise, H.264 as `omokage` writes it. Processor time is that of this
process and of the decoder's together, so it also counts on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from reports import command

from omokage.media.decode import read_frames, read_image
from omokage.media.limits import InputLimits, use_input_limits
from omokage.media.probe import _scan, scan
from omokage.pipelines.bench import machine
from omokage.trust.release import release_clip

SIZES = ((256, 256), (512, 512), (1920, 1080))
MODES = {"sandboxed": InputLimits(), "in_this_process": InputLimits(is_sandboxed=False)}


def drawn(width: int, height: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures that are neither trivial nor impossible to encode."""
    noise = np.random.default_rng(0).integers(0, 24, (height, 2 * width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 200 // width, y * 200 // height, (x + y) * 100 // (width + height)], -1)
    for index in range(count):
        yield (base + noise[:, 4 * index % width :][:, :width]).astype(np.uint8)


def used_s() -> float:
    """Processor time of this process and of those that it has waited for, s."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measured(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds on the clock and of processor time."""
    walls, processors = [], []
    for _ in range(repeats):
        begun, before = time.perf_counter(), used_s()
        work()
        walls.append(time.perf_counter() - begun)
        processors.append(used_s() - before)
    return {"wall_s": spread(walls), "processor_s": spread(processors)}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def decoder_memory(clip: Path) -> float:
    """The most memory that the decoder's process held while it read a clip, MB."""
    most = 0
    for frame in read_frames(clip):
        if frame.index % 10 == 0:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in children:
                status = Path(f"/proc/{child}/status").read_text()
                held = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                most = max(most, int(held.split()[1]))
    return round(most / 1024, 1)


def difference(said: dict[str, Any]) -> float:
    """How much more processor time the sandbox takes, s."""
    sandboxed, here = (said[name]["processor_s"]["median"] for name in MODES)
    return float(sandboxed - here)


def opened_anew(clip: Path) -> None:
    _scan.cache_clear()
    scan(clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "safe-input",
        "protocol": "wall_s and processor_s of one open, or of all pictures of the clip; median, min and max of "
        f"{given.repeats} repeats of {given.frames} pictures; processor time is that of both processes; "
        "start_processor_s: of the sandbox, each time that a file is opened; extra_processor_ms_per_picture: beyond it",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "pictures": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OMOKAGE_HOME"] = folder  # a key and a log of its own
        still = Path(folder) / "still.png"
        PIL.Image.fromarray(next(drawn(1024, 1024, 1))).save(still)
        for width, height in SIZES:
            clip = Path(folder) / f"{width}.mp4"
            release_clip(drawn(width, height, given.frames), clip, frame_rate=Fraction(25))
            said = result["pictures"][f"{width}x{height}"] = {}
            for name, limits in MODES.items():
                with use_input_limits(limits):
                    scan(clip)
                    said[name] = measured(lambda clip=clip: [None for _ in read_frames(clip)], given.repeats)
                    said[name]["pictures_per_s"] = round(given.frames / said[name]["wall_s"]["median"], 1)
            if sys.platform == "linux":
                said["decoder_memory_mb"] = decoder_memory(clip)
        for name, limits in MODES.items():
            with use_input_limits(limits):
                result.setdefault("opening_a_clip", {})[name] = measured(
                    lambda: opened_anew(Path(folder) / "256.mp4"), given.repeats
                )
                result.setdefault("reading_a_picture_1024", {})[name] = measured(
                    lambda: read_image(still), given.repeats
                )
    start_s = difference(result["opening_a_clip"])
    result["start_processor_s"] = round(start_s, 3)
    for said in result["pictures"].values():
        extra_s = difference(said) - start_s
        said["extra_processor_ms_per_picture"] = round(1000 * extra_s / given.frames, 2)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
