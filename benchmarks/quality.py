"""Quality of avatars on the held-out tail of clips, beside the four baselines, and what it cost.

    python benchmarks/quality.py CLIP... --minutes 10 --size 256 --output benchmarks/results/quality-256.json
    python benchmarks/quality.py CLIP --minutes 1 3 10 30 --passes 1000 ...      quality against training time

A clip is named by its file name only; no picture is kept. Every clip is trained alone, one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from reports import command

from omokage.config import Progress
from omokage.pipelines.bench import machine
from omokage.pipelines.create import CreateConfig, create_avatar
from omokage.pipelines.evaluate import evaluate_avatar
from omokage.pipelines.predict import predict_create


class Stopwatch:
    """Seconds a stage took, and when the first picture of the network was there."""

    def __init__(self, preview: Path) -> None:
        self.started, self.stages, self.preview = time.monotonic(), {}, preview  # type: ignore[var-annotated]
        self.first_preview: float | None = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic() - self.started
        first, _ = self.stages.get(progress.stage, (now, now))
        self.stages[progress.stage] = (first, now)
        if self.first_preview is None and self.preview.exists():
            self.first_preview = now

    def seconds(self) -> dict[str, float]:
        return {stage: round(last - first, 1) for stage, (first, last) in self.stages.items()}


def measure(clip: Path, minutes: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Create and evaluate one avatar in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        avatar = Path(folder) / "clip.avatar"
        watch = Stopwatch(avatar.with_name("clip.avatar.work") / "preview.png")
        config = CreateConfig(
            minutes=minutes,
            passes=arguments.passes,
            size=arguments.size,
            force=True,
            evaluate=False,
            seed=arguments.seed,
        )
        made = create_avatar(clip, output=avatar, config=config, on_progress=watch)
        seconds = time.monotonic() - watch.started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        unet = made.provenance.minutes if arguments.unet else 0.0
        evaluation = evaluate_avatar(avatar, output=Path(folder) / "report", unet_minutes=unet)
        clip_seconds = len(made.track) / 0.8 / float(eval_rate(made.provenance.frame_rate))
        predicted = predict_create(
            clip_seconds,
            eval_rate(made.provenance.frame_rate),
            arguments.size,
            minutes,
            arguments.passes,
        )
        return {
            "clip": clip.name,
            "minutes": minutes,
            "steps": made.provenance.steps,
            "training_minutes": round(made.provenance.minutes, 2),
            "create_seconds": round(seconds, 1),
            "stage_seconds": watch.seconds(),
            "first_preview_after_tracking_s": None
            if watch.first_preview is None
            else round(watch.first_preview - watch.stages["fitting"][1], 1),
            "peak_memory_gb": round(peak, 2),
            "predicted": {"minutes": predicted.minutes, "memory_gb": predicted.memory_gb},
            "test_frames": len(evaluation.frame_index),
            "methods": {
                method.name: {f"{m.region}.{m.metric}": round(m.mean, 4) for m in method.measurements}
                for method in (*evaluation.methods, *evaluation.controls)
            },
        }


def eval_rate(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[10.0], help="of training at most, in turn"
    )
    parser.add_argument("--passes", type=float, default=CreateConfig.passes, help="over the frames at most")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--unet", action="store_true", help="train the plain U-Net baseline as long as the avatar"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "quality",
        "protocol": "last 20 % of the tracked frames held out; whole, head and mouth regions of docs/evaluation.md",
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(),
        "passes": arguments.passes,
        "size": arguments.size,
        "clips": [],
    }
    for clip, minutes in itertools.product(arguments.clips, arguments.minutes):
        before = os.getloadavg()[0]
        result["clips"].append(
            measure(clip, minutes, arguments) | {"load_before": before, "load_after": os.getloadavg()[0]}
        )
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["clips"][-1], indent=1))


if __name__ == "__main__":
    main()
