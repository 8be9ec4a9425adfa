"""Speed, memory and exactness of the video transformer and the autoencoder, at the published size on one GPU.

    python benchmarks/gpu/portrait_video.py --minutes 9 --output portrait-video.json

Weights are random: they cost what the published ones cost. What a row changes of the result is measured against the row
'resident', with the same weights and noise. The row 'official loop' computes again at every step what the released code
computes again: modulation, speech tokens, keys and values of portrait, face and speech, and what the portrait's tokens
ask. The rows '24 GB' and '12 GB' may take no more of the card than such a card has, with the decoder.

Needs PyTorch, NumPy, OpenCV and safetensors, and diffusers for the decoder's rows. Rows come in the order of their
value, and the file is written after each. Memory that runs out, or any other failure, is noted in the row; no row
begins, and none goes on, for which the minutes do not suffice. The same command goes on where it was stopped, also by
itself after a failure that leaves the card unusable for the process. Small sizes run anywhere: --size tiny
--device cpu.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import torch
from measuring import (
    OUT_OF_TIME,
    Report,
    Row,
    accelerator,
    attempt,
    command_of,
    difference,
    is_usable,
    matmul_rate,
)
from portrait_rows import WINDOW_STEPS, Bench, Setting, Timed, decoders, run, run_shared, settings
from safetensors.torch import load_file, save_file
from torch import Tensor

from omokage.pipelines.this_machine import machine
from omokage.talking.config import TransformerConfig, official, tiny
from omokage.talking.parallel import ALONE
from omokage.talking.vae import official_vae, tiny_vae

SIZES = {"official": (official, official_vae), "tiny": (tiny, tiny_vae)}
FIRST, OFFICIAL = "resident", "official loop"
# Behind these rows: the decoders are worth more than what comes then.
DECODERS_AFTER = 5


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--layers", type=int, help="fewer layers than this size has")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--steps", type=int, default=6, help="sampling steps of each row; the first is not timed"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="of the whole; rows are left out for it"
    )
    parser.add_argument("--rows", nargs="+", help="names of the rows, default all")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="rows with compiled layers (default: on a GPU)",
    )
    parser.add_argument("--processes", type=int, default=1, help="add rows in which so many share the work")
    parser.add_argument("--no-decoder", action="store_true", help="leave the autoencoder out")
    parser.add_argument("--matmul-side", type=int, default=8192)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    given, started = parse(arguments), time.monotonic()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    transformer, autoencoder = SIZES[given.size]
    config = transformer()
    config = replace(config, layers=given.layers or config.layers)
    bench = Bench(config, autoencoder(), given.steps, device, dtype, started + 60 * given.minutes)
    is_card = device.type == "cuda"
    compiled = is_card if given.compile is None else given.compile
    chosen = [
        setting
        for setting in settings(compiled=compiled, processes=given.processes, card=is_card)
        if not given.rows or setting.name in (*given.rows, FIRST)
    ]
    results = Results.begin(given.output, head(arguments, given, bench))
    for number, setting in enumerate(chosen):
        if setting.name in results.rows:
            continue
        expected = results.expected_seconds(bench.steps(setting))
        results.add_compared(*measured(setting, bench, 1e12 * results.head["matmul_tflops"], expected))
        if not is_usable(
            device
        ):  # a fault of the card stays with the process: another one takes the other rows
            left = max((bench.deadline - time.monotonic()) / 60, 0.0)
            os.execv(sys.executable, [sys.executable, __file__, *arguments, "--minutes", str(left)])
        if number + 1 == DECODERS_AFTER and not given.no_decoder:
            results.decode(bench)
    if not given.no_decoder:
        results.decode(bench)
    return 0 if results.is_sound else 1


def head(arguments: Sequence[str], given: argparse.Namespace, bench: Bench) -> Row:
    """What the numbers hold for."""
    rate = matmul_rate(bench.device, bench.dtype, given.matmul_side)
    return {
        "date": date.today().isoformat(),
        "command": command_of("benchmarks/gpu/portrait_video.py", arguments),
        "machine": machine() | accelerator(bench.device),
        "size": {
            "name": given.size,
            "layers": bench.config.layers,
            "dtype": given.dtype,
            "steps": given.steps,
        },
        "matmul_tflops": round(rate / 1e12, 3),
        "tflop_per_step": round(step_flops(bench.config) / 1e12, 4),
    }


@dataclass
class Results(Report):
    """The report, and what its rows are compared with.

    plain: by number of steps, the latents of the first row with as many, which the others are compared with.
    """

    decoding: Row = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)

    def take_over(self, known: Row) -> None:
        self.plain = load_file(self.latents)
        super().take_over(known)
        self.decoding = known["decoding"]

    def content(self) -> Row:
        """All that is known, with the speed of every row over that of the official loop."""
        official_step = self.rows.get(OFFICIAL, {}).get("mean_seconds_per_step")
        for row in self.rows.values():
            if official_step and row.get("mean_seconds_per_step"):
                row["times_official_loop"] = round(official_step / row["mean_seconds_per_step"], 3)
        return super().content() | {"decoding": self.decoding}

    @property
    def latents(self) -> Path:
        return self.output.with_suffix(".latents.safetensors")

    @property
    def is_sound(self) -> bool:
        return super().is_sound and not self.decoding.get("is_defect")

    def add_compared(self, row: Row, latents: Tensor | None) -> None:
        """Write a row, and how far its latents are from the plain ones."""
        if latents is not None:
            steps = str(row["steps"])
            if steps not in self.plain:
                self.plain[steps] = latents.float().contiguous()
                save_file(self.plain, self.latents)
            row |= difference(latents.float(), self.plain[steps])
        self.add(row)

    def decode(self, bench: Bench) -> None:
        """Measure the autoencoder, if that was not done."""
        if self.decoding and self.decoding.get("failed") != OUT_OF_TIME:
            return
        self.decoding |= attempt(self.decoding, bench.deadline, lambda: decoders(bench)) or {}
        self.write()

    def expected_seconds(self, steps: int) -> float:
        """Of another row with so many steps, as slow as the slowest ones."""
        done = [row for row in self.rows.values() if row.get("mean_seconds_per_step")]
        slowest = max((row["mean_seconds_per_step"] for row in done), default=0.0)
        longest = max((row["setup_seconds"] for row in done), default=0.0)
        return float(longest + steps * slowest)


def measured(setting: Setting, bench: Bench, rate: float, expected: float) -> tuple[Row, Tensor | None]:
    """Time and memory of a row, and the latents it came to; without them when it failed. `expected`: its seconds."""
    row: Row = {"name": setting.name, "steps": bench.steps(setting), "profile": setting.profile.to_json()}
    if bench.device.type == "cuda" and setting.layout.world > torch.cuda.device_count():
        return row | {"failed": f"needs {setting.layout.world} cards"}, None
    begun, measure = time.monotonic(), run if setting.layout == ALONE else run_shared
    timed = attempt(row, bench.deadline, lambda: measure(setting, bench), expected)
    if timed is None:
        return row, None
    row |= numbers_of(setting, timed, bench, rate)
    row["setup_seconds"] = round(time.monotonic() - begun - sum(timed.seconds), 1)
    return row, timed.latents.cpu()


def numbers_of(setting: Setting, timed: Timed, bench: Bench, rate: float) -> Row:
    """What the seconds of a row's steps say; the first step loads kernels, and compiles."""
    times, worked = timed.seconds[1:] or timed.seconds, timed.worked[1:] or timed.worked
    mean = statistics.mean(times)
    row: Row = {
        "seconds_per_step": round(statistics.median(times), 5),
        "mean_seconds_per_step": round(mean, 5),
        "seconds_per_step_spread": [round(min(times), 5), round(max(times), 5)],
        "first_step_seconds": round(timed.seconds[0], 3),
        "peak_gb": timed.peak_gb,
    }
    if bench.device.type == "cpu":
        # On a processor that others use, too, this says more than the clock.
        row["processor_seconds_per_step"] = round(statistics.mean(worked), 5)
    # How much is reused depends on how far apart the steps are: a few coarse ones say nothing of a window's.
    if bench.steps(setting) == WINDOW_STEPS or not setting.sampler.get("reuse_threshold"):
        row["seconds_per_window"] = round(WINDOW_STEPS * mean, 3)
    # Steps that do less than all of the work have no share that could be compared.
    if setting.is_whole:
        row["share_of_matmul_rate"] = round(step_flops(bench.config) / mean / rate, 4)
    if timed.decoded is not None:
        row["decoding_seconds"] = round(timed.decoded, 3)
    return row


def step_flops(config: TransformerConfig) -> float:
    """Operations of one step, both halves of guidance, with everything cached; a multiply-add is two."""
    video = config.latent_frames * config.tokens_per_frame
    tokens, square = config.text_tokens + video, config.width**2
    layer = (8 + 4 * config.mlp_ratio) * tokens * square
    layer += 4 * tokens * (tokens + config.tokens_per_frame) * config.width
    for branch in (config.face, config.audio):
        if branch is not None:
            layer += 4 * video * square + 4 * video * branch.tokens * config.width
    return 2.0 * config.layers * layer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
