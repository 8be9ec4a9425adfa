"""Ways to read the invisible mark, on the same marked clips: what was tried before `mark_signal.evened` was chosen.

    python benchmarks/video_mark_detectors.py CLIP... --work FOLDER --output results/video-mark-detectors.json

Takes the changed clips that `video_mark_targets.py` left in the folder `--work`, every other scene of the first round,
and reads them at the scale that is known, so that only the signal counts. `score` is the cosine between the soft values
of the private layer and the code word that was sent, times the root of its length: noise has 0, about 9.6 is needed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import scipy.fft
from mark_clips import scenes, unpacked
from reports import circumstances
from video_mark_targets import PUBLIC, drawn_mark, file_of

from omokage.trust import mark_search, mark_signal
from omokage.trust.mark_code import decode, encode
from omokage.trust.mark_pattern import PRIVATE_BITS, PUBLIC_PAYLOAD, chips_of
from omokage.trust.mark_search import LEAST_PRIVATE_SCORE, Key
from omokage.trust.mark_signal import Plane, Spectrum, chip_px, evened, folded, reduced, soft_bits
from omokage.trust.video_mark import PUBLIC_SHARE, Mark

CHANGES = {"CRF 33": 1.0, "10 % crop, 0.75x, CRF 28": 0.75}  # and what becomes of a chip's width


def by_deviation(plane: Plane, chips: float = 4) -> Plane:
    """The average again by its local deviation."""
    around = round(chips * chip_px(*plane.shape))
    spread = np.sqrt(np.maximum(cv2.blur(plane * plane, (around, around)), 0))
    return np.asarray(plane / (spread + 0.05), np.float32)


def evened_as(block: int, floor: float) -> Callable[[Plane], Plane]:
    def made(plane: Plane) -> Plane:
        with patch.multiple(mark_signal, BLOCK_PX=block, _POWER_FLOOR=floor):
            return evened(plane)

    return made


def whitened_by(exponent: float) -> Callable[[Plane], Spectrum]:
    """As `mark_signal.whitened`, by another power of the spectrum's power (0.5: by its magnitude)."""

    def made(torus: Plane) -> Spectrum:
        spectrum = scipy.fft.rfft2(torus)
        power = cv2.blur((spectrum.real**2 + spectrum.imag**2).astype(np.float32), (9, 9))
        return np.asarray(spectrum * (mark_signal._dot_spectrum() / (power + 1e-9) ** exponent), np.complex64)

    return made


BEFORE = mark_signal.whitened
VARIANTS: dict[str, tuple[Callable[[Plane], Plane], Callable[[Plane], Spectrum]]] = {
    "before: the average as it is": (np.copy, BEFORE),
    "matched by power^0.65, not magnitude": (np.copy, whitened_by(0.65)),
    "matched by power^0.8": (np.copy, whitened_by(0.8)),
    "average by its local deviation, 2 chips": (lambda plane: by_deviation(plane, 2), BEFORE),
    "average by its local deviation, 4 chips": (by_deviation, BEFORE),
    "evened out in pieces of 16 px, floor 2": (evened_as(16, 2.0), BEFORE),
    "evened out in pieces of 32 px, floor 0.1": (evened_as(32, 0.1), BEFORE),
    "evened out in pieces of 32 px, floor 2 (chosen)": (evened, BEFORE),
    "evened out in pieces of 64 px, floor 2": (evened_as(64, 2.0), BEFORE),
}


def tried(
    plane: Plane,
    width: float,
    mark: Mark,
    even: Callable[[Plane], Plane],
    whiten: Callable[[Plane], Spectrum],
) -> dict[str, float]:
    even_plane, private = even(plane), Key(chips_of(mark.key, PRIVATE_BITS), 1 - PUBLIC_SHARE, 0)
    with patch.object(mark_search, "whitened", whiten):
        (place, *_) = mark_search.search(even_plane, [width], [(PUBLIC, private)], (False,))
        place = mark_search._refined(even_plane, place)
    spectrum = whiten(folded(even_plane, place.chip_x, place.chip_y))
    found = {"z": place.z}
    for name, chips, payload in (
        ("public", PUBLIC.chips, PUBLIC_PAYLOAD),
        ("private", private.chips, mark.render_id),
    ):
        soft = soft_bits(spectrum, chips, place.row, place.column)
        word, decoded = encode(payload, chips.payload_bits), decode(soft, chips.payload_bits)
        least = PUBLIC.least_score if name == "public" else LEAST_PRIVATE_SCORE
        found[f"{name}_score"] = float(soft @ word / (np.linalg.norm(soft) + 1e-12))
        found[f"{name}_read"] = decoded.is_intact and decoded.payload == payload and decoded.score >= least
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    load, rows = os.getloadavg()[0], []
    for change, factor in CHANGES.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
        for scene in scenes(arguments.clips, 2.0)[::2]:
            path = file_of(arguments.work, scene, 0, change)
            if not path.exists():
                continue
            clip = unpacked(path.read_bytes())
            plane = np.mean([reduced(picture) for picture in clip], axis=0, dtype=np.float32)
            # A crop takes a tenth of the side, over which a chip's width was told.
            width = chip_px(*plane.shape) if factor == 1 else min(plane.shape) / 0.9 / 96
            for name, (even, whiten) in VARIANTS.items():
                found[name].append(tried(plane, width, drawn_mark(scene, 0, "standard"), even, whiten))
        for name, trials in found.items():
            row: dict[str, Any] = {"change": change, "detector": name, "n": len(trials)}
            row |= {
                key: round(float(np.mean([trial[key] for trial in trials])), 2)
                for key in ("z", "public_score", "private_score")
            }
            row |= {key: int(sum(trial[key] for trial in trials)) for key in ("public_read", "private_read")}
            rows.append(row)
            print(row, flush=True)
    result = {
        "benchmark": "detectors of the video mark",
        **circumstances(load, opencv=cv2.__version__),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
