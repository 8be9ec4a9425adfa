"""What the door costs: label, marks, signature with time stamp, audit log, register and consent, beside `reenact`.

    python benchmarks/door.py --output benchmarks/results/door.json

A drawn head moves for ten seconds at 512x512, and an untrained network of the real size, which costs what a trained one
costs, repeats it; nobody is shown. Each repeat is one `reenact` with the door as users have it and one through a door
that only encodes, in turns. The difference of the two is what the door costs, with what the mark costs the encoder; the
steps are also timed one by one within the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from live import Lost, named, wait_for_quiet

from omokage.files import file_digest
from omokage.home import passing_home
from omokage.pipelines import reenact as reenacting
from omokage.pipelines.bench import machine
from omokage.pipelines.reenact import ReenactConfig, reenact
from omokage.pipelines.stand_in import agree_for_nobody, stand_in
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust import release
from omokage.trust.audit import AUDIT_VARIABLE, AuditLog
from omokage.trust.consent import Medium
from omokage.trust.origin import read_origin
from omokage.trust.release import ReleaseConfig, release_clip

SIDE_PX = 512
TARGET_PERCENT = 15.0
# The functions of each step, as the door calls them.
STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "label": ((release, "draw_label"),),
    "mark": ((release, "mark_for"), (release.Marker, "__init__"), (release.Marker, "apply")),
    "fingerprint": ((release, "thumbnail"), (release.Sketch, "add"), (release.Sketch, "fingerprint")),
    "sign": ((release, "identity"), (release, "stamp_authority"), (release, "sign_origin")),
    "audit": ((release, "check_audit"), (release, "record_release")),
    "register": ((release, "register"),),
    "digest": ((release, "file_digest"),),
    "consent": ((reenacting, "permit"),),
    "check": ((release, "check_key"), (release, "check_identity"), (release, "check_stamps")),
}


class Watch:
    """Seconds on the clock within each step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def of(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named_ones: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*arguments, **named_ones)
            finally:
                self.seconds[step] += time.perf_counter() - begun

        return timed


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    with ExitStack() as stack:
        for step, places in STEPS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, watch.of(step, getattr(owner, name))))
        yield watch


@contextmanager
def encoding_only(avatar_permit: Any) -> Iterator[None]:
    """A door that neither asks, labels, marks, signs nor writes down. For measurements, and only here."""
    nothing = {"can_be_marked": False, "sign_origin": False, "file_digest": "0" * 64}
    silent = ("check_key", "check_identity", "check_stamps", "check_audit", "record_release", "register")
    silent += ("identity", "stamp_authority")
    with ExitStack() as stack:
        for name, value in nothing.items():
            stack.enter_context(patch.object(release, name, lambda *_, value=value, **__: value))
        for name in silent:
            stack.enter_context(patch.object(release, name, lambda *_, **__: None))
        for owner in (reenacting, release):
            stack.enter_context(patch.object(owner, "permit", lambda *_, **__: avatar_permit))
        yield


def drawn_driver(path: Path, seconds: float) -> None:
    """A drawn head that moves, as a clip."""
    person = SyntheticSubject(1)
    frames = person.render_clip(person.performance(seconds, size=SIDE_PX))
    images = (np.ascontiguousarray(frame.image) for frame in frames)
    release_clip(images, path, frame_rate=Fraction(25), config=ReleaseConfig(title="drawn head"))


def drawn_avatar(path: Path, size: int) -> None:
    """An avatar of a drawn head, with the record that it shows nobody."""
    avatar = stand_in(size).avatar
    avatar.save(path)
    digest = file_digest(path)
    replace(avatar, provenance=replace(avatar.provenance, recording_sha256=digest)).save(path)
    agree_for_nobody(Medium(digest, "drawn"))


class Cost(NamedTuple):
    """Seconds on the clock, and of this process's computing, which other programs disturb less."""

    wall_s: float
    processor_s: float


def timed(work: Callable[[], Any]) -> Cost:
    begun, before = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - begun, time.process_time() - before)


def overhead(whole: Sequence[float], bare: Sequence[float]) -> list[float]:
    """Of each repeat, percent."""
    return [round(100 * (w - b) / b, 2) for w, b in zip(whole, bare, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def measured(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    avatar, driver, output = folder / "drawn.avatar", folder / "driver.mp4", folder / "out.mp4"
    drawn_avatar(avatar, given.size)
    drawn_driver(driver, given.seconds)
    labeled, plain = ReenactConfig(label="eu"), ReenactConfig()
    permitted = reenacting.performer_of(avatar, plain).permit

    def draw(config: ReenactConfig) -> None:
        reenact(avatar, driver, output=output, config=config)

    draw(labeled)  # warms up, and makes the keys
    assert read_origin(output).stamped, "the door did not stamp"
    whole, bare, shares, others = list[Cost](), list[Cost](), list[float](), list[Any]()
    steps: defaultdict[str, list[float]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for repeat in range(given.repeats):
        wait_for_quiet(given.wait)
        busy = Lost()
        for is_whole in (True, False) if repeat % 2 else (False, True):  # neither is always the first
            if is_whole:
                with watched() as watch:
                    whole.append(timed(lambda: draw(labeled)))
                within = sum(watch.seconds.values())
                shares.append(100 * within / (whole[-1].wall_s - within))
                for step in STEPS:
                    steps[step].append(watch.seconds[step])
            else:
                with encoding_only(permitted):
                    bare.append(timed(lambda: draw(plain)))
            sizes["whole" if is_whole else "encoding only"] = output.stat().st_size
        others.append(busy.cores())
        print(
            f"{repeat + 1} of {given.repeats}: {whole[-1].wall_s:.1f} s with the door, {bare[-1].wall_s:.1f} s without",
            flush=True,
        )
    walls = overhead([one.wall_s for one in whole], [one.wall_s for one in bare])
    processors = overhead([one.processor_s for one in whole], [one.processor_s for one in bare])
    return {
        "reenact": {name: spread([getattr(one, name) for one in whole]) for name in Cost._fields},
        "reenact_encoding_only": {
            name: spread([getattr(one, name) for one in bare]) for name in Cost._fields
        },
        "overhead_percent": spread(walls),
        "overhead_percent_of_each_repeat": walls,
        "overhead_processor_percent": spread(processors),
        "steps_s": {step: spread(values) for step, values in steps.items()},
        "steps_percent": spread(shares),
        "bytes": sizes,
        "audit_rows": sum(1 for _ in (AuditLog().folder / "log.jsonl").open("rb")),
        "cores_lost": others,
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, default=512, help="of the avatar, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--wait", type=float, default=0, help="seconds to wait for a quiet machine before each repeat"
    )
    parser.add_argument("--note", default="", help="what else the machine was doing")
    given = parser.parse_args(arguments)
    with passing_home(AUDIT_VARIABLE) as folder:
        result = measured(folder, given)
    report = {
        "benchmark": "door",
        "protocol": "seconds of `reenact` on a clip, with the whole door and through one that only encodes, in turns; "
        "overhead_percent: their difference in each repeat, in percent of the latter, on the clock and (processor) in "
        "computing; steps_s: within the door's own "
        "functions in the same runs, steps_percent: their sum in percent of the rest of the run",
        "command": "python benchmarks/door.py " + " ".join(named(a) for a in arguments),
        "date": date.today().isoformat(),
        "clip": {"name": "drawn head", "seconds": given.seconds, "side_px": SIDE_PX, "frame_rate": 25},
        "avatar_px": given.size,
        "repeats": given.repeats,
        "machine": machine() | {"c2pa-python": version("c2pa-python"), "note": given.note},
        "target_percent": TARGET_PERCENT,
        "is_met": result["overhead_percent"]["median"] < TARGET_PERCENT,
        "results": result,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
