"""Memory and work of the two training stages at the published size, counted, not measured.

    python benchmarks/portrait_training_plan.py --output benchmarks/results/portrait-training-plan.json

The real networks are built on PyTorch's meta device, which knows shapes and no values, so any machine gives these
numbers: weights that learn and weights that stay, and what belongs to them on one card and on eight.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from omokage.pipelines.train_portrait import TrainConfig
from omokage.pipelines.training_plan import plan_training
from omokage.talking.folder import official_architecture
from omokage.talking.model import Machine

BYTES = ("frozen", "weights", "gradients", "optimizer", "activations", "needed")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)

    # A card that nothing is computed on: its rate and its memory are not asked for.
    machine, rows = Machine(torch.device("cuda"), torch.bfloat16), []
    for stage, lora, cards in ((1, 0, 1), (1, 0, 8), (2, 0, 1), (2, 0, 8), (2, 16, 1)):
        settings = TrainConfig(stage=stage, lora=lora).settings()
        plan = plan_training(official_architecture(), settings, machine, cards, rate=1.0, free=0.0)
        plain = plan_training(
            official_architecture(), replace(settings, recompute=False), machine, cards, rate=1.0, free=0.0
        )
        rows.append(
            {"stage": stage, "lora": lora, "cards": cards, "learning": plan.learning, "flops": plan.flops}
            | {name: round(getattr(plan, name)) for name in BYTES}
            | {"activations_without_recomputing": round(plain.activations)}
        )
    report = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/portrait_training_plan.py --output benchmarks/results/{given.output.name}",
        "how": "counted on the meta device, where nothing is computed; not measured on a card; bytes of one card, "
        "operations of one step on all cards",
        "torch": torch.__version__,
        "dtype": "bfloat16, float32 where weights learn",
        "rows": rows,
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
