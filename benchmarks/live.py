"""Speed of tracking and of the live path on a clip: the first three rows of the table of numbers.

    python benchmarks/live.py CLIP --size 256 512 --output benchmarks/results/live.json

The avatar is an untrained network of the real size around the clip's own person, which costs what a trained one costs;
--avatar takes a trained one. The clip is named by its file name only; no picture is kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from omokage.avatar.bundle import Avatar
from omokage.avatar.samples import avatar_state
from omokage.media.clip import Frame
from omokage.media.decode import probe, read_frames
from omokage.pipelines.bench import (
    LIVE_RATE,
    LiveSpeed,
    encoding_speed,
    is_installed,
    live_speed,
    machine,
    timed,
    tracking_speed,
)
from omokage.pipelines.bench import RUNTIMES as ALL_RUNTIMES
from omokage.pipelines.stand_in import stand_in
from omokage.render.renderer import Portrait, Renderer
from omokage.render.retarget import Rest
from omokage.threads import one_blas_thread
from omokage.tracking.tracker import OnlineTracker, track_clip

CLIP_SIDE_PX = 512
QUIET_CORES = 0.25
TARGETS = {
    "tracking": {"must_fps": 40, "goal_fps": 60},
    "live-256": {"must_fps": 25, "must_p95_ms": 60, "goal_fps": 40},
    "live-512": {"must_fps": 20, "goal_fps": 25, "goal_p95_ms": 60},
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--avatar", type=Path, help="a trained avatar, of one of the sizes")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for a quiet machine before each repeat"
    )
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)

    frames = list(itertools.islice(read_frames(given.clip, max_side=CLIP_SIDE_PX), given.frames))
    track = track_clip(frames)
    tracking, others = [], []
    for _ in range(given.repeats):
        wait_for_quiet(given.wait)
        watch = Others()
        tracking.append(asdict(tracking_speed(frames, OnlineTracker(subject=track.subject))))
        others.append(watch.cores())
    results: dict[str, Any] = {
        "tracking": {
            "runs": tracking,
            "cores_busy_with_others": others,
            **summary([1000 / t["median_ms"] for t in tracking]),
        }
    }
    for size in given.size:
        avatar = avatar_of(given.avatar, size)
        stages = stages_of(avatar)
        live, others = [], []
        for _ in range(given.repeats):
            wait_for_quiet(given.wait)
            watch = Others()
            live.append(live_on(avatar, given.clip, given.frames, track))
            others.append(watch.cores())
        results[f"live-{size}"] = {
            "stages": stages,
            "runs": [asdict(run) for run in live],
            "cores_busy_with_others": others,
            **summary([run.fps for run in live]),
            "p50_ms": statistics.median(run.p50_ms for run in live),
            "p95_ms": statistics.median(run.p95_ms for run in live),
            "p95_ms_best": min(run.p95_ms for run in live),
        }
    info = probe(given.clip)
    report = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/live.py " + " ".join(named(a) for a in arguments),
        "clip": {"name": given.clip.name, "width": info.width, "height": info.height, "frames": len(frames)},
        "machine": machine() | {"slowdown_of_two_threads": slowdown_of_two_threads(), "note": given.note},
        "targets": TARGETS,
        "results": results,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    for name, result in results.items():
        print(
            f"{name}: {result['fps']:.1f} fps (best {result['fps_best']:.1f}), p95 {result.get('p95_ms', '-')} ms"
        )
    return 0


class Others:
    """How many cores other processes kept busy since it was made (Linux; else None)."""

    def __init__(self) -> None:
        self._start = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        stat = Path("/proc/stat")
        if not stat.is_file():
            return None
        user, nice, system, *_ = (float(x) for x in stat.read_text().split("\n", 1)[0].split()[1:])
        own = resource.getrusage(resource.RUSAGE_SELF)
        return (
            (user + nice + system) / os.sysconf("SC_CLK_TCK"),
            own.ru_utime + own.ru_stime,
            time.monotonic(),
        )

    def cores(self) -> float | None:
        now = self._now()
        if now is None or self._start is None:
            return None
        busy, own, seconds = (after - before for after, before in zip(now, self._start, strict=True))
        return round(max(0.0, busy - own) / seconds, 2)


def slowdown_of_two_threads() -> float:
    """How much longer a thread takes while another one does the same: 1 on two real cores, 1.4 to 1.6 where the 'two
    cores' are two threads of one."""

    def work() -> float:
        start = time.perf_counter()
        for _ in range(60):
            matrix @ matrix
        return time.perf_counter() - start

    matrix = np.random.default_rng(0).random((400, 400), dtype=np.float32)
    with one_blas_thread(), ThreadPoolExecutor(2) as pool:
        work()
        ratios = []
        for _ in range(5):
            alone = work()
            together = [pool.submit(work) for _ in range(2)]
            ratios.append(statistics.mean(t.result() for t in together) / alone)
    return round(statistics.median(ratios), 2)


def wait_for_quiet(seconds: float) -> None:
    """Until other processes use less than `QUIET_CORES`, but no longer than this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        watch = Others()
        time.sleep(2)
        if (watch.cores() or 0.0) < QUIET_CORES:
            return


def avatar_of(trained: Path | None, size: int) -> Avatar:
    """The trained avatar if it has this size, else an untrained one."""
    if trained is not None and (loaded := Avatar.load(trained)).size == size:
        return loaded
    return stand_in(size).avatar


def live_on(avatar: Avatar, clip: Path, count: int, track: Any) -> LiveSpeed:
    """The whole path, decoding included."""

    def source() -> Iterator[Frame]:
        return itertools.islice(read_frames(clip, max_side=CLIP_SIDE_PX), count)

    tracker = OnlineTracker(subject=track.subject)
    return live_speed(avatar, source, rest=Rest.of(track), rate=LIVE_RATE, tracker=tracker)


def stages_of(avatar: Avatar) -> dict[str, Any]:
    """Milliseconds of each stage alone."""
    state = avatar_state(avatar.track, len(avatar.track) // 2)
    condition = avatar.conditioner.draw(state)
    values = {"draw": asdict(timed(lambda: avatar.conditioner.draw(state), 30))}
    image = avatar.plate
    for name in filter(is_installed, ALL_RUNTIMES):
        renderer = Renderer(avatar, runtime=name)

        def picture(drawn: Renderer = renderer) -> Portrait:
            return drawn.composed(drawn.runtime.portrait(condition))

        values[f"picture, {name}"] = asdict(timed(picture, 12))
        image = picture().image
    values["encode"] = asdict(encoding_speed([np.roll(image, shift, axis=0) for shift in range(40)]))
    return values


def summary(fps: list[float]) -> dict[str, float]:
    """Median and spread over the repeats."""
    return {
        "fps": round(statistics.median(fps), 1),
        "fps_best": round(max(fps), 1),
        "fps_worst": round(min(fps), 1),
    }


def named(argument: str) -> str:
    """An argument without folders of this machine."""
    return Path(argument).name if "/" in argument and not argument.startswith("benchmarks") else argument


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
