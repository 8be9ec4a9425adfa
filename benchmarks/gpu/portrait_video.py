"""Speed, memory and exactness of the video transformer and the autoencoder, at the published size on one GPU.

    python benchmarks/gpu/portrait_video.py --minutes 9 --output portrait-video.json

Weights are random: they cost what the published ones cost. What a row changes of the result is measured against the row
'resident', with the same weights, noise and steps, and against nothing else. The row 'official loop' computes again at
every step what the released code computes again: modulation, speech tokens, keys and values of portrait, face and
speech, and what the portrait's tokens ask. The rows '24 GB' and '12 GB' may take no more of the card than such a card
has, with the decoder. 'near-lossless' has only options that change little; how many steps it reused is told.

Needs PyTorch, NumPy, OpenCV and safetensors, and diffusers for the decoder alone (README.md says what to bring along).
Rows come in the order of their value, and the file is written after each. Memory that runs out, or any other failure,
is noted in the row; no row begins for which the minutes do not suffice, and one that they end is kept with the steps
that it has: seconds of a window are then an extrapolation, and called so. The same command goes on where it was
stopped and tries again what has failed; also by itself after a failure that leaves the card unusable for the process.
Small sizes run anywhere: --size tiny --device cpu.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import beginning
import torch
from measuring import (
    Report,
    Row,
    accelerator,
    attempt,
    command_of,
    difference,
    go_on_anew,
    indexed,
    is_usable,
    matmul_rate,
)
from portrait_rows import (
    EXACT,
    LIMITED,
    NEAR,
    OFFICIAL,
    WINDOW_STEPS,
    Bench,
    Setting,
    Timed,
    decoders,
    run,
    run_shared,
    settings,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omokage.pipelines.this_machine import machine
from omokage.talking.config import TransformerConfig, official, tiny
from omokage.talking.parallel import ALONE
from omokage.talking.vae import official_vae, tiny_vae

SIZES = {"official": (official, official_vae), "tiny": (tiny, tiny_vae)}
# The decoders are worth more than what comes behind these rows.
DECODERS_AFTER = 3
# Of the time that is left, what a row of a whole window may take: others come behind it.
WINDOW_SHARE, LEAST_WINDOW_S = 0.5, 60.0
# A row that ends nearer than this to the exact one, in units of that one's deviation, is called near.
NEAR_RMS = 0.05


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
    parser.add_argument("--begun", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], started: float | None = None) -> int:
    """started: of `time.monotonic`, from which the minutes count; now if it is None."""
    given, started = parse(arguments), time.monotonic() if started is None else started
    device, dtype = indexed(torch.device(given.device)), getattr(torch, given.dtype)
    transformer, autoencoder = SIZES[given.size]
    config = transformer()
    config = replace(config, layers=given.layers or config.layers)
    bench = Bench(config, autoencoder(), given.steps, device, dtype, started + 60 * given.minutes)
    is_card = device.type == "cuda"
    compiled = is_card if given.compile is None else given.compile
    chosen = [
        setting
        for setting in settings(compiled=compiled, processes=given.processes, card=is_card)
        if not given.rows or setting.name in (*given.rows, EXACT)
    ]
    results = Results.begin(given.output, head(arguments, given, bench), given.begun)
    results.write()  # the rate of products is a result, too
    for number, setting in enumerate(chosen):
        if not results.is_measured(setting, bench.steps(setting)):
            results.add_compared(setting, *measured(setting, bench, results))
        if not is_usable(device):
            left = max((bench.deadline - time.monotonic()) / 60, 0.0)
            go_on_anew(__file__, arguments, given.begun, ["--minutes", str(left)])
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

    plain: latents of the exact rows: by number of steps, by how many of them were done.
    """

    decoding: Row = field(default_factory=dict)
    plain: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    def take_over(self, known: Row) -> None:
        super().take_over(known)
        self.decoding = known["decoding"]
        for steps in {row["steps"] for row in self.rows.values()}:
            try:
                found = load_file(self.latents(steps))
            except (OSError, SafetensorError):
                continue  # the exact row is measured again, or others are not compared
            self.plain[steps] = {int(done): latents for done, latents in found.items()}

    def content(self) -> Row:
        """All that is known, with the speed of every row over that of the official loop."""
        official_step = self.rows.get(OFFICIAL, {}).get("mean_seconds_per_step")
        for row in self.rows.values():
            if official_step and row.get("mean_seconds_per_step"):
                row["times_official_loop"] = round(official_step / row["mean_seconds_per_step"], 3)
        return super().content() | {"decoding": self.decoding, "targets": self.targets()}

    def targets(self) -> Row:
        """Of the rows that matter most, what is known."""
        wanted = (
            "seconds_per_window",
            "seconds_per_window_extrapolated",
            "peak_gb",
            "decoding_seconds",
            "difference_rms",
            "times_official_loop",
            "reused",
            "failed",
        )
        rows = {name: self.rows.get(name, {}) for name in (OFFICIAL, EXACT, NEAR, LIMITED)}
        return {name: {key: row[key] for key in wanted if key in row} for name, row in rows.items()}

    def latents(self, steps: int) -> Path:
        """A file for every number of steps: none becomes large."""
        return self.output.with_suffix(f".latents-{steps}.safetensors")

    def is_measured(self, setting: Setting, steps: int) -> bool:
        """Whether a row is done; of an exact one its latents are needed, too."""
        return self.is_done(setting.name) and (
            not setting.is_exact or steps in self.plain or "failed" in self.rows[setting.name]
        )

    @property
    def is_sound(self) -> bool:
        return super().is_sound and not self.decoding.get("is_defect")

    def add_compared(self, setting: Setting, row: Row, marks: dict[int, Tensor]) -> None:
        """Write a row, and how far its latents are from those of the exact row after as many of the same steps."""
        if marks:
            steps, mine = row["steps"], {done: latents.float() for done, latents in marks.items()}
            if setting.is_exact:
                self.plain[steps] = {done: latents.contiguous() for done, latents in mine.items()}
                save_file({str(done): of for done, of in self.plain[steps].items()}, self.latents(steps))
            common = mine.keys() & self.plain.get(steps, {}).keys()
            if common:
                done = max(common)
                row |= difference(mine[done], self.plain[steps][done])
                row |= {"compared_after_steps": done, "is_exact_row": setting.is_exact}
                if row["difference_rms"] is not None:
                    row["is_near"] = row["difference_rms"] <= NEAR_RMS
            else:
                row["compared"] = f"not compared: there is no row '{EXACT}' of {steps} steps"
        self.add(row)

    def decode(self, bench: Bench) -> None:
        """Measure the autoencoder, if that was not done."""
        failed = self.decoding.get("failed")
        if self.decoding and (not failed or self.decoding.get("failed_at", 0.0) >= self.begun):
            return
        self.decoding = {}
        found = attempt(self.decoding, bench.deadline, lambda: decoders(bench))
        self.decoding = found or self.decoding | {"failed_at": round(time.time(), 3)}
        self.write()

    def expected_seconds(self, steps: int) -> float:
        """Of another row with so many steps, as slow as the slowest ones."""
        done = [row for row in self.rows.values() if row.get("mean_seconds_per_step")]
        slowest = max((row["mean_seconds_per_step"] for row in done), default=0.0)
        longest = max((row["setup_seconds"] for row in done), default=0.0)
        return float(longest + steps * slowest)


def measured(setting: Setting, bench: Bench, results: Results) -> tuple[Row, dict[int, Tensor]]:
    """Time and memory of a row, and the latents after some of its steps; none when it failed."""
    steps = bench.steps(setting)
    row: Row = {"name": setting.name, "steps": steps, "profile": setting.profile.to_json()}
    row |= {"options": setting.sampler} if setting.sampler else {}
    if bench.device.type == "cuda" and setting.layout.world > torch.cuda.device_count():
        return row | {"failed": f"needs {setting.layout.world} cards"}, {}
    begun, measure = time.monotonic(), run if setting.layout == ALONE else run_shared
    if setting.steps is not None:
        longest = max(WINDOW_SHARE * (bench.deadline - begun), LEAST_WINDOW_S)
        bench = replace(bench, row_end=begun + longest)
    # It may be left with as many steps as the others have.
    expected = results.expected_seconds(min(steps, bench.count))
    timed = attempt(row, bench.deadline, lambda: measure(setting, bench), expected)
    if timed is None:
        return row, {}
    row |= numbers_of(setting, timed, bench, 1e12 * results.head["matmul_tflops"])
    decoding = (timed.decoding or {}).get("seconds", 0.0)
    row["setup_seconds"] = round(time.monotonic() - begun - sum(timed.seconds) - decoding, 1)
    return row, {done: latents.cpu() for done, latents in timed.marks.items()}


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
        "attention_kernels": timed.kernels,
    }
    if bench.device.type == "cpu":
        # On a processor that others use, too, this says more than the clock.
        row["processor_seconds_per_step"] = round(statistics.mean(worked), 5)
    done, steps = len(timed.seconds), bench.steps(setting)
    if done < steps:
        row["steps_done"] = done
    if done == WINDOW_STEPS:
        row["seconds_per_window"] = round(sum(timed.seconds), 3)
    # How much is reused depends on how far apart the steps are: a few coarse ones say nothing of a window's.
    elif steps == WINDOW_STEPS or not setting.sampler.get("reuse_threshold"):
        row["seconds_per_window_extrapolated"] = round(WINDOW_STEPS * mean, 3)
        row["extrapolated_from_steps"] = len(times)
    if timed.reused is not None:
        row["reused"] = timed.reused
    if setting.is_compiled:
        row["compiled"] = not timed.not_compiled
        row |= {"not_compiled": timed.not_compiled} if timed.not_compiled else {}
    # Steps that do less than all of the work have no share that could be compared.
    if setting.is_whole:
        row["share_of_matmul_rate"] = round(step_flops(bench.config) / mean / rate, 4)
    if timed.decoding is not None:
        row |= {f"decoding_{key}": value for key, value in timed.decoding.items() if key != "is_defect"}
        row |= {"is_defect": True} if timed.decoding.get("is_defect") else {}
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
    sys.exit(main(sys.argv[1:], beginning.STARTED))
