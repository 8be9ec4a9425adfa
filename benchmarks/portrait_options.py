"""Every option of a portrait video at a small size on a processor: work saved, and difference to the exact result.

    python benchmarks/portrait_options.py --output benchmarks/results/portrait-options.json

All rows of `gpu/portrait_video.py` that need no card, and fewer steps, over all steps of a window. Weights and
conditions are random and the network is small (312 video tokens), so that shares of time carry over better than
differences do. Every row has one thread, and each of two processes one; what is compared is the time that the processor
worked, since others may use it, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from omokage.pipelines.this_machine import machine
from omokage.talking.config import TransformerConfig, tiny
from omokage.talking.parallel import ALONE
from omokage.talking.placement import resident
from omokage.talking.vae import tiny_vae

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))
from measuring import difference
from portrait_rows import Bench, Setting, decoders, run, run_shared, settings

CPU = torch.device("cpu")
STEPS = 50


def size() -> TransformerConfig:
    """As wide as measuring takes: most of the time goes into products, as at the published size."""
    return replace(tiny(), layers=6, width=256, heads=4, text_tokens=16)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layers", type=int, default=size().layers)
    parser.add_argument("--rows", nargs="+", help="names of the rows, default all")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config, rows = replace(size(), layers=given.layers), list[dict[str, Any]]()
    fewer = Setting(f"{given.steps // 2} steps instead of {given.steps}", resident(), {})
    plain: torch.Tensor | None = None
    for setting in [*settings(compiled=True, processes=2), fewer]:
        if given.rows and setting.name not in (*given.rows, "resident"):
            continue
        count = given.steps // 2 if setting is fewer else given.steps
        bench = Bench(config, tiny_vae(), count, CPU, torch.float32)
        timed = (run if setting.layout == ALONE else run_shared)(setting, bench)
        latents = timed.latents
        plain = latents if plain is None else plain
        # The first step is not timed: it compiles, and loads what is used for the first time.
        worked = count * mean(timed.worked[1:])
        whole = rows[0]["processor_seconds"] if rows else worked
        rows.append(
            {"name": setting.name, "processor_seconds": round(worked, 3), "share": round(worked / whole, 3)}
            | difference(latents, plain)
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    report = {
        "date": date.today().isoformat(),
        "command": "python benchmarks/portrait_options.py "
        + " ".join(Path(word).name if word.startswith("/") else word for word in arguments),
        "machine": machine(),
        "size": config.to_json() | {"dtype": "float32", "steps": given.steps},
        "rows": rows,
        "decoding": {} if given.rows else decoders(bench),
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
