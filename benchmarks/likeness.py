"""How well the pattern of the skin tells whether two recordings show the same face (`omokage consent new --answer`).

    python benchmarks/likeness.py CLIP... --output benchmarks/results/likeness.json

Each clip shows another person. Both halves of one are the same person on the same day; the second half is also looked
at as another camera and another light would show it. Clips are named by their file names; no picture is kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from live import named

from omokage.media.clip import Frame, Image
from omokage.media.decode import probe, read_frames
from omokage.pipelines.bench import machine
from omokage.pipelines.challenge import COMPARED, LARGEST_PX
from omokage.tracking.likeness import ALIKE, ALIKE_STILL, likeness, skin_pattern
from omokage.tracking.photometric import SkinPattern


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    first = {clip: skin_pattern(half(clip, 0.0, 0.5)) for clip in given.clips}
    results = {}
    for name, change in LOOKS.items():
        least = 1 if name == "one picture" else 10
        count = 2 if least == 1 else COMPARED
        second = {
            clip: skin_pattern(changed(half(clip, 0.5, 1.0, count), change), least=least)
            for clip in given.clips
        }
        results[name] = compared(first, second, ALIKE_STILL if least == 1 else ALIKE)
        print(name, {key: value for key, value in results[name].items() if key != "same_person"})
    report = {
        "benchmark": "likeness",
        "date": date.today().isoformat(),
        "command": "python benchmarks/likeness.py " + " ".join(named(a) for a in arguments),
        "machine": machine(),
        "protocol": "first half of each clip against the second half of each, changed as named; frames spread evenly",
        "thresholds": {"recording": ALIKE, "one picture": ALIKE_STILL},
        "results": results,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def half(clip: Path, start: float, end: float, count: int = COMPARED) -> Iterator[Frame]:
    seconds = probe(clip).duration_s
    rate = min(Fraction(25), Fraction(count / (seconds * (end - start))).limit_denominator(1000))
    frames = read_frames(
        clip, frame_rate=rate, max_side=LARGEST_PX, start_s=start * seconds, end_s=end * seconds
    )
    return itertools.islice(frames, count)


def changed(frames: Iterator[Frame], change: Callable[[Image], Image]) -> Iterator[Frame]:
    return (replace(frame, image=change(frame.image)) for frame in frames)


def lit_from_the_side(image: Image) -> Image:
    slope = np.linspace(0.35, 1.15, image.shape[1])[None, :, None]
    return np.clip(image * slope, 0, 255).astype(np.uint8)


def through_jpeg(image: Image) -> Image:
    coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


def in_gamma(gamma: float) -> Callable[[Image], Image]:
    levels = np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return lambda image: levels[image]


LOOKS: dict[str, Callable[[Image], Image]] = {
    "as recorded": lambda image: image,
    "half the size": lambda image: np.asarray(
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8
    ),
    "darker (gamma 1.8)": in_gamma(1.8),
    "brighter (gamma 0.6)": in_gamma(0.6),
    "lit from the side": lit_from_the_side,
    "JPEG quality 30": through_jpeg,
    "one picture": lambda image: image,
}


def compared(
    first: dict[Path, SkinPattern], second: dict[Path, SkinPattern], threshold: float
) -> dict[str, object]:
    same = {clip.name: round(likeness(first[clip], second[clip]), 3) for clip in first}
    others = [likeness(first[a], second[b]) for a in first for b in second if a != b]
    return {
        "same_person": same,
        "same_person_least": min(same.values()),
        "same_person_accepted": f"{sum(value >= threshold for value in same.values())} of {len(same)}",
        "other_person_most": round(max(others), 3),
        "other_person_accepted": f"{sum(value >= threshold for value in others)} of {len(others)}",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
