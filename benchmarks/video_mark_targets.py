"""Targets T7 and T8 of the invisible mark with enough trials: stretches of clips, drawn people, moving pictures.

    python benchmarks/video_mark_targets.py CLIP... --work FOLDER --output benchmarks/results/video-mark-targets.json

In two steps, each of which goes on where it was stopped. `make` marks 2 s with a random key and message, encodes them
as omokage releases them (H.264, CRF 18), changes them, encodes them again and keeps the bytes in the folder `--work`.
`read` looks for the marks in them as `omokage verify` does and adds a line to a journal there. The result is written
again after every trial, from all lines so far. Round after round goes over all scenes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mark_clips import Clip, Scene, cropped, packed, resized, scenes, unpacked
from reports import circumstances

from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_BITS, PUBLIC_KEY, PUBLIC_PAYLOAD, chips_of
from omokage.trust.mark_search import LEAST_PRIVATE_SCORE, LEAST_PUBLIC_SCORE, Evidence, Key, find
from omokage.trust.video_mark import PUBLIC_SHARE, Mark, Marker, Profile

PUBLIC = Key(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE)
CHANGES: dict[str, Callable[[Clip], bytes]] = {
    "CRF 23": lambda clip: packed(clip, 23),
    "CRF 28": lambda clip: packed(clip, 28),
    "0.75x, CRF 23": lambda clip: packed(resized(clip, 0.75), 23),
    "10 % crop, CRF 23": lambda clip: packed(cropped(clip), 23),
    "CRF 33": lambda clip: packed(clip, 33),
    "10 % crop, 0.75x, CRF 28": lambda clip: packed(resized(cropped(clip), 0.75), 28),
}
FRAMES = 60  # `omokage verify` looks at so many


def drawn_mark(scene: Scene, round_: int, profile: Profile) -> Mark:
    """A random message and key, the same in every run."""
    seed = hashlib.sha256(f"{scene.name} {round_}".encode()).digest()
    random = np.random.default_rng(list(seed))
    return Mark(int(random.integers(0, 1 << PRIVATE_BITS)), random.bytes(32), profile)


def file_of(work: Path, scene: Scene, round_: int, change: str) -> Path:
    name = f"{scene.name}-{round_}-{change}"
    return work / ("".join(c if c.isalnum() else "_" for c in name) + ".mp4")


def make(scene: Scene, round_: int, profile: Profile, changes: Sequence[str], work: Path) -> None:
    missing = [change for change in changes if not file_of(work, scene, round_, change).exists()]
    if not missing:
        return
    plain = scene.frames()
    marker = Marker(drawn_mark(scene, round_, profile), plain[0])
    leaving = unpacked(packed([marker.apply(picture) for picture in plain], 18))
    for change in missing:
        path = file_of(work, scene, round_, change)
        path.with_suffix(".part").write_bytes(CHANGES[change](leaving))
        path.with_suffix(".part").replace(path)


def read(scene: Scene, round_: int, profile: Profile, change: str, work: Path) -> dict[str, Any]:
    clip = unpacked(file_of(work, scene, round_, change).read_bytes())
    mark = drawn_mark(scene, round_, profile)
    evidence = Evidence()
    for picture in clip[:: -(-len(clip) // FRAMES)]:
        evidence.add(picture)
    started = time.process_time()
    private = Key(chips_of(mark.key, PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)
    public, own = find(evidence.plane(), [PUBLIC, private])
    return {
        "scene": scene.name,
        "round": round_,
        "change": change,
        "public": public.payload == PUBLIC_PAYLOAD,
        "private": own.payload == mark.render_id,
        "wrong": (public.payload not in (None, PUBLIC_PAYLOAD)) + (own.payload not in (None, mark.render_id)),
        "z": round(max(public.z, own.z), 2),
        "public_score": round(public.score, 2),
        "private_score": round(own.score, 2),
        "search_s": round(time.process_time() - started, 2),
    }


def summary(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each change: how many of n were read, the share, and the least that 95 % certainty leaves of it (Wilson)."""
    rows = []
    for change in CHANGES:
        group = [trial for trial in trials if trial["change"] == change]
        if not group:
            continue
        row: dict[str, Any] = {"change": change, "n": len(group)}
        for layer in ("public", "private"):
            count = sum(trial[layer] for trial in group)
            row[layer] = count
            row[f"{layer}_percent"] = round(100 * count / len(group), 1)
            row[f"{layer}_at_least_percent"] = round(100 * wilson(count, len(group)), 1)
        row["wrong"] = sum(trial["wrong"] for trial in group)
        row["missed"] = sorted(t["scene"] for t in group if not t["private"])
        rows.append(row)
    return rows


def wilson(count: int, n: int, z: float = 1.645) -> float:
    """The lower end of Wilson's interval (1927), one-sided, 95 %."""
    share = count / n
    middle = share + z * z / (2 * n)
    spread = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((middle - spread) / (1 + z * z / n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--drawn", type=int, default=6, help="how many drawn people")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the changed clips and the journal"
    )
    parser.add_argument("--name", default="two_seconds", help="of this part in the result")
    parser.add_argument("--make-only", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    journal = arguments.work / "journal.jsonl"
    trials = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(t["scene"], t["round"], t["change"]) for t in trials}
    found = scenes(arguments.clips, arguments.seconds, arguments.drawn)
    print(len(found), "scenes", flush=True)
    load = os.getloadavg()[0]
    for round_ in range(arguments.rounds):
        for scene in found:
            make(scene, round_, arguments.profile, arguments.changes, arguments.work)
            if arguments.make_only:
                continue
            for change in arguments.changes:
                if (scene.name, round_, change) in done:
                    continue
                trials.append(read(scene, round_, arguments.profile, change, arguments.work))
                with journal.open("a") as file:
                    file.write(json.dumps(trials[-1]) + "\n")
            if arguments.output:
                write(arguments, trials, load)
        print("round", round_, summary(trials), flush=True)


def write(arguments: argparse.Namespace, trials: Sequence[dict[str, Any]], load: float) -> None:
    path: Path = arguments.output
    result = json.loads(path.read_text()) if path.exists() else {"benchmark": "video mark, targets T7 and T8"}
    result[arguments.name] = {
        **circumstances(load, opencv=cv2.__version__),
        "seconds_of_each": arguments.seconds,
        "profile": arguments.profile,
        "scenes": len({t["scene"] for t in trials}),
        "rule": f"private: CRC and score >= {LEAST_PRIVATE_SCORE}; public: CRC and score >= {LEAST_PUBLIC_SCORE}",
        "rows": summary(trials),
        "trials": list(trials),
    }
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
