"""The small talking model of one person, trained from scratch, on speech that it never heard: one command.

    python benchmarks/portrait_small.py CLIP --minutes 60 --output benchmarks/results/portrait-small.json
    python benchmarks/portrait_small.py --synthetic 60 ...    a synthetic person, whose truth is known
    python benchmarks/portrait_small.py --quick ...           the way only, in a minute; the numbers say nothing

A clip is named by its file name only; no picture is kept but in the folder given with --keep. The same command goes on
where it was stopped. Runs of several clips are gathered in one file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

import omokage
from omokage.config import Progress
from omokage.files import saving
from omokage.pipelines.small_portrait import (
    SmallPortrait,
    SmallPortraitConfig,
    small_portrait,
    train_small_portrait,
)
from omokage.pipelines.stand_in import agree_for_nobody
from omokage.pipelines.talker import write_talker
from omokage.pipelines.untrained import tiny_architecture
from omokage.talking.folder import TOY

FRAME_RATE = 25
QUICK_FRAMES = 70


def quick() -> SmallPortraitConfig:
    """Every part at the smallest size."""
    plain, sizes = small_portrait(1), replace(tiny_architecture(), caution=TOY)
    return replace(
        plain,
        sizes=replace(sizes, vae=replace(sizes.vae, grid=(4, 4))),
        autoencoder=replace(plain.autoencoder, steps=20, minutes=0),
        windows=replace(plain.windows, draws=2),
        stage=replace(plain.stage, steps=10, minutes=0, batch=2, micro_batch=2),
        sampler=replace(plain.sampler, steps=2),
        chained=2,
        seeds=(1,),
    )


def measure(clip: Path, folder: Path, config: SmallPortraitConfig) -> dict[str, Any]:
    """Make and measure one model; what of it goes into the results."""
    started, used, shown = time.monotonic(), time.process_time(), [0.0]

    def say(progress: Progress) -> None:
        if time.monotonic() - shown[0] > 20:
            shown[0] = time.monotonic()
            print(f"{progress.stage} {progress.done:.4g} of {progress.total:.4g} {progress.note}", flush=True)

    made = train_small_portrait(clip, output=folder, config=config, on_progress=say)
    return {
        "clip": clip.name,
        "what": made.evaluation.caution,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "processor_minutes": round((time.process_time() - used) / 60, 1),
        "seconds_by_stage": {name: round(seconds, 1) for name, seconds in made.timing.items()},
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "settings": _settings(config),
        **_numbers(made),
    }


def _numbers(made: SmallPortrait) -> dict[str, Any]:
    evaluation = made.evaluation
    verdict = evaluation.verdict()
    rows = {
        method.name: {m.metric: _rounded(m.mean) for m in method.measurements}
        for method in (*evaluation.methods, *evaluation.controls)
    }
    return {
        "verdict": [verdict.headline, *verdict.good, *verdict.bad],
        "windows": evaluation.window_count,
        "frames": evaluation.frame_count,
        "rows": rows,
        "chance": _rounded(evaluation.chance),
        "lag_s": [round(float(lag), 2) for lag in evaluation.lag.lag_s],
        "lag_r": [_rounded(float(r)) for r in evaluation.lag.r],
        "color_drift_by_window": [_rounded(float(value)) for value in evaluation.drift],
        "likeness_by_window": [_rounded(float(value)) for value in evaluation.likeness],
        "notes": evaluation.notes,
        "missing": evaluation.missing,
    }


def _settings(config: SmallPortraitConfig) -> dict[str, Any]:
    return {
        "autoencoder": config.autoencoder.to_json(),
        "stage": config.stage.to_json(),
        "windows": config.windows.to_json(),
        "sampler": config.sampler.to_json(),
        "seeds": config.seeds,
    }


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path, nargs="?")
    parser.add_argument(
        "--synthetic", type=float, metavar="SECONDS", help="of a synthetic person instead of a clip"
    )
    parser.add_argument("--minutes", type=float, default=60, help="wall time of the whole")
    parser.add_argument(
        "--steps", type=int, nargs=2, metavar=("AUTOENCODER", "DENOISER"), help="instead of a time"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--keep", type=Path, help="folder for models, reports and what a stopped run goes on from"
    )
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    config = quick() if given.quick else small_portrait(given.minutes, given.seed)
    if given.steps is not None:
        first, second = given.steps
        config = replace(
            config,
            autoencoder=replace(config.autoencoder, steps=first, minutes=0),
            stage=replace(config.stage, steps=second, minutes=0),
        )
    with tempfile.TemporaryDirectory() as temporary:
        keep = given.keep or Path(temporary)
        keep.mkdir(parents=True, exist_ok=True)
        clip = given.clip
        if clip is None:
            frames = QUICK_FRAMES if given.quick else round((given.synthetic or 60) * FRAME_RATE)
            clip = keep / f"synthetic-{frames}-frames.mp4"
            if not clip.exists():
                write_talker(clip, frames, side=128 if given.quick else 256, seed=given.seed)
            agree_for_nobody(clip)
        result = measure(clip, keep / f"{clip.stem}.model", config)
    known = json.loads(given.output.read_text(encoding="utf-8"))["runs"] if given.output.exists() else []
    runs = [run for run in known if run["clip"] != result["clip"]] + [
        {"date": date.today().isoformat(), "command": _command(arguments), "machine": _machine(), **result}
    ]
    with saving(given.output) as part:
        part.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(result["verdict"]))
    return 0


def _command(arguments: Sequence[str]) -> str:
    """Without folders: those are of one machine."""
    return " ".join(
        [
            "python benchmarks/portrait_small.py",
            *(Path(word).name if "/" in word else word for word in arguments),
        ]
    )


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "omokage": omokage.__version__,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
