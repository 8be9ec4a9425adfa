"""Work and memory of a portrait video of ten seconds at the published size, counted, not measured.

    python benchmarks/portrait_video_plan.py --output benchmarks/results/portrait-video-plan.json

The real networks run on PyTorch's meta device, which knows shapes and no values, so any machine gives these numbers:
operations, bytes of weights, bytes held, and what every memory profile is expected to take. After a change of
the networks --table src/omokage/pipelines/published_costs.json renews what `animate --plan` knows of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from omokage.pipelines.animate_plan import needs_of, stages_of
from omokage.pipelines.network_costs import count_costs
from omokage.talking.config import official_sampler
from omokage.talking.folder import official_architecture
from omokage.talking.model import Machine
from omokage.talking.placement import expected, profiles

FRAMES = 250


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the counts of both precisions there, too")
    given = parser.parse_args(arguments)

    # A card that nothing is computed on.
    machine, sizes, sampler = (
        Machine(torch.device("cuda"), torch.bfloat16),
        official_architecture(),
        official_sampler(),
    )
    costs = count_costs(sizes, machine.dtype)
    if given.table is not None:
        table = {"bfloat16": asdict(costs), "float32": asdict(count_costs(sizes, torch.float32))}
        given.table.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    needs = needs_of(sizes, costs, FRAMES, sampler, machine)
    stages = stages_of(sizes, costs, FRAMES, sampler, machine, None)
    report = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/portrait_video_plan.py --output benchmarks/results/{given.output.name}",
        "how": "counted on the meta device, where nothing is computed; not measured on a card",
        "torch": torch.__version__,
        "frames": FRAMES,
        "steps": sampler.steps,
        "dtype": "bfloat16",
        "costs": asdict(costs),
        "stages": [asdict(stage) | {"peak": stage.peak} for stage in stages],
        "profiles": [
            {
                "name": profile.name,
                "device_bytes": round(expected(profile, needs).device_bytes),
                "host_bytes": round(expected(profile, needs).host_bytes),
            }
            for profile in profiles()
        ],
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
