"""The fingerprint: what it survives (target T12), what it confuses, what it costs. docs/marks.md explains the numbers.

    python benchmarks/fingerprint.py CLIP... --alike FOLDER --output benchmarks/results/fingerprint.json

Every stretch of `--seconds` of the clips, drawn people and moving pictures is marked, encoded as omokage releases it,
changed and encoded again without any metadata; each copy is compared with the fingerprints of all stretches. The hard
case are other stretches of the same recording, and the clips in a folder `--alike`, which are all of one avatar.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mark_clips import RATE, Clip, Scene, cropped, each, packed, resized, scenes, stretch, unpacked
from reports import circumstances

from omokage.media.decode import probe
from omokage.trust.fingerprint import Fingerprint, Plane, Sketch, thumbnail
from omokage.trust.fingerprint_search import ALIKE_BITS, SAME_MOTION, Copy, best_of
from omokage.trust.video_mark import Mark, Marker

CHANGES: dict[str, Callable[[Clip], Clip]] = {
    "CRF 28": lambda clip: unpacked(packed(clip, 28)),
    "CRF 33": lambda clip: unpacked(packed(clip, 33)),
    "0.5x, CRF 28": lambda clip: unpacked(packed(resized(clip, 0.5), 28)),
    "10 % crop, 0.75x, CRF 28": lambda clip: unpacked(packed(resized(cropped(clip), 0.75), 28)),
    "mirrored, CRF 28": lambda clip: unpacked(packed(each(lambda p: p[:, ::-1])(clip), 28)),
}
LATER: dict[str, Callable[[Clip], Clip]] = {
    "20 % crop": lambda clip: cropped(clip, 0.2),
    "crop to 9:16": lambda clip: each(lambda p: p[:, round(0.22 * p.shape[1]) : -round(0.22 * p.shape[1])])(
        clip
    ),
    "gamma and contrast": each(lambda p: np.clip(255 * (p / 255) ** 0.8 * 0.9 + 10, 0, 255)),
    "a quarter second cut off": lambda clip: clip[RATE // 4 :],
    "black bars of 12 %": each(
        lambda p: cv2.copyMakeBorder(p, p.shape[0] // 8, p.shape[0] // 8, 0, 0, cv2.BORDER_CONSTANT)
    ),
    "a logo in the corner": each(lambda p: _with_logo(p)),
}


def _with_logo(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    side = min(picture.shape[:2]) // 6
    return np.asarray(cv2.rectangle(picture.copy(), (8, 8), (8 + side, 8 + side // 2), (250, 250, 250), -1))


def kept_of(clip: Clip) -> Fingerprint:
    sketch = Sketch()
    for index, picture in enumerate(clip):
        sketch.add(thumbnail(picture), index / RATE)
    found = sketch.fingerprint()
    assert found is not None
    return found


def thumbnails(clip: Clip) -> list[Plane]:
    """A copy, small enough to keep hundreds of: what a fingerprint sees of it."""
    return [thumbnail(picture) for picture in clip]


def copy_of(clip: Sequence[Plane]) -> Copy:
    copy = Copy()
    for index, small in enumerate(clip):
        copy.add_thumbnail(small, index / RATE)
    return copy


def family(name: str) -> str:
    """Stretches of one recording, and clips of one folder, show one person in one place."""
    return name.split()[0].split("/")[0]


def compared(name: str, change: str, clip: Sequence[Plane], kept: dict[str, Fingerprint]) -> dict[str, Any]:
    """The copy against everything that was kept."""
    copy, names = copy_of(clip), list(kept)
    own = copy.likeness(kept[name])
    relatives, strangers = [], []
    for other in names:
        if other != name:
            found = copy.likeness(kept[other])
            (relatives if family(other) == family(name) else strangers).append(
                (found.bits, found.motion, other)
            )
    ranked = best_of(copy, list(kept.values()))
    return {
        "source": name,
        "change": change,
        "bits": own.bits,
        "motion": own.motion,
        "alike": own.is_alike,
        "same": own.is_same,
        "first": bool(ranked) and names[ranked[0][0]] == name,
        "relatives": relatives,
        "strangers": strangers,
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for change in dict.fromkeys(row["change"] for row in rows):
        group = [row for row in rows if row["change"] == change]
        motions = [row["motion"] for row in group if row["motion"] is not None]
        found.append(
            {
                "change": change,
                "n": len(group),
                "record_found": sum(row["same"] and row["first"] for row in group),
                "named_first": sum(row["first"] for row in group),
                "looks_alike": sum(row["alike"] for row in group),
                "most_bits": max(row["bits"] for row in group),
                "median_bits": float(np.median([row["bits"] for row in group])),
                "least_motion": round(min(motions), 3) if motions else None,
                "not_found": sorted(row["source"] for row in group if not (row["same"] and row["first"])),
            }
        )
    return found


def confusion(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    pairs = [(row["source"], *pair) for row in rows for pair in row[kind]]
    if not pairs:
        return {"pairs": 0}
    bits = np.array([pair[1] for pair in pairs])
    motions = np.array([pair[2] for pair in pairs if pair[2] is not None])
    highest = sorted((p for p in pairs if p[2] is not None), key=lambda pair: -pair[2])[:6]
    return {
        "pairs": len(pairs),
        "look_alike": int((bits <= ALIKE_BITS).sum()),
        "taken_for_the_same": int((motions >= SAME_MOTION).sum()),
        "least_bits": int(bits.min()),
        "bits_p1": float(np.percentile(bits, 1)),
        "motion_compared": len(motions),
        "motion_p99": round(float(np.percentile(motions, 99)), 3) if len(motions) else None,
        "most_motion": round(float(motions.max()), 3) if len(motions) else None,
        "highest": [[a, b, round(m, 3)] for a, _, m, b in highest],
        "taken_for_the_same_pairs": sorted(
            {f"{a} | {b}" for a, _, m, b in pairs if m is not None and m >= SAME_MOTION}
        ),
    }


def cost() -> list[dict[str, Any]]:
    """Milliseconds of one thread for a frame, the median and least of 60."""
    rows = []
    for width, height, channels in (
        (256, 256, 3),
        (512, 512, 3),
        (512, 512, 4),
        (1280, 720, 3),
        (1920, 1080, 3),
    ):
        noise = np.random.default_rng(0).integers(0, 255, (height, width, channels), np.uint8)
        picture, sketch, times = np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), np.uint8), Sketch(), []
        for index in range(60):
            start = time.process_time()
            sketch.add(thumbnail(picture), index / RATE)
            times.append(1000 * (time.process_time() - start))
        rows.append(
            {
                "size": f"{width}x{height}x{channels}",
                "median_ms": round(float(np.median(times)), 3),
                "least_ms": round(min(times), 3),
            }
        )
    return rows


def search_cost(kept: dict[str, Fingerprint], clip: Clip) -> dict[str, Any]:
    copy, many = copy_of(thumbnails(clip)), list(kept.values()) * (1000 // len(kept) + 1)
    copy.likeness(many[0])
    start = time.process_time()
    best_of(copy, many[:1000])
    return {"kept": 1000, "seconds": round(time.process_time() - start, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--alike", type=Path, help="folder of clips of one avatar")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--drawn", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    found = scenes(arguments.clips, arguments.seconds, arguments.drawn)
    for path in sorted(arguments.alike.glob("*.mp4")) if arguments.alike else []:
        seconds = probe(path).duration_s
        found.append(Scene(f"alike/{path.stem}", lambda p=path, s=seconds: stretch(p, 0.0, s)))  # type: ignore[misc]
    load, copies, kept, clip = os.getloadavg()[0], [], {}, []
    for index, scene in enumerate(found):
        clip = scene.frames()
        kept[scene.name] = kept_of(clip)
        marker = Marker(Mark(index, b"fingerprint".ljust(32, b".")), clip[0])
        leaving = unpacked(packed([marker.apply(picture) for picture in clip], 18))
        copies += [(scene.name, name, thumbnails(change(leaving))) for name, change in CHANGES.items()]
        copies += [(scene.name, name, thumbnails(change(leaving))) for name, change in LATER.items()]
        print(index + 1, "of", len(found), scene.name, flush=True)
    rows = [compared(name, change, small, kept) for name, change, small in copies]
    result = {
        "benchmark": "fingerprint, target T12",
        **circumstances(load, opencv=cv2.__version__),
        "rule": f"alike: at most {ALIKE_BITS} of 256 bits differ; same: motion agrees to {SAME_MOTION} or more too",
        "seconds_of_each": arguments.seconds,
        "kept": len(kept),
        "found": summary(rows),
        "one_person_in_one_place": confusion([r for r in rows if r["change"] in CHANGES], "relatives"),
        "others": confusion([r for r in rows if r["change"] in CHANGES], "strangers"),
        "cost_per_frame": cost(),
        "cost_of_comparing": search_cost(kept, clip),
        "bytes_in_the_register": {"of 2 s": len(kept[found[0].name].text())},
        "copies": [{k: v for k, v in row.items() if k not in ("relatives", "strangers")} for row in rows],
    }
    path: Path = arguments.output
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    for key in ("found", "one_person_in_one_place", "others", "cost_per_frame", "cost_of_comparing"):
        print(json.dumps(result[key], indent=1))


if __name__ == "__main__":
    main()
