"""What `style_avatar.py` measures beside training: parity with the reference numbers, and speed of every network."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Row, attempt, begin_memory, difference, now, peak_memory
from style_networks import Sizes, avatar_of, meshes, official_graph, other_networks
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from golden_fill import Golden
from omokage.avatar.paper.config import BANDS, PortraitConfig
from omokage.avatar.paper.portrait import PortraitGenerator
from omokage.avatar.paper.precision import fastest_kernels, matrix_precision
from omokage.avatar.paper.textures import Texture
from omokage.compiling import BACKEND
from omokage.errors import MissingDependencyError
from omokage.render.paper_runtime import DTYPES, Recorded, graph_function, picture_of, psnr_db
from paper_golden import FILES, FULL_SIZE, shares

PORTRAIT = "portrait"
# How the portrait's generator is computed: as the released code does, as trained, and with everything folded.
OFFICIAL, TRAINED, STATIC = "official", "as trained", "static"
EAGER, RECORDED, COMPILED = "eager", "recorded", "compiled"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
WARM_UP = 3
NEEDS_CUDA = "needs CUDA"

TensorFn = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Setting:
    """One row of speed.

    network: PORTRAIT or a name of `other_networks`.  graph: how the portrait is computed.
    mode: EAGER; RECORDED as a CUDA graph; COMPILED, which tells of the compiled one both alone and recorded.
    channels_last: layout of features in memory.
    """

    network: str
    precision: str
    mode: str
    graph: str = STATIC
    channels_last: bool = False

    @property
    def name(self) -> str:
        what = f"{self.network}, {self.graph}" if self.network == PORTRAIT else self.network
        return f"{what}, {self.mode}, {self.precision}" + ", channels last" * self.channels_last

    @property
    def needs_cuda(self) -> bool:
        return self.mode == RECORDED or self.precision == "tf32"


@dataclass(frozen=True)
class Bench:
    """sizes: of the networks.  runs: that are timed of a row.  deadline: of `time.monotonic`.
    compiled: whether rows are compiled."""

    sizes: Sizes
    device: torch.device
    runs: int
    deadline: float
    compiled: bool
    backend: str = BACKEND


EXACT = Setting(PORTRAIT, "fp32", EAGER, TRAINED)
OFFICIAL_EAGER = Setting(PORTRAIT, "tf32", EAGER, OFFICIAL)


def settings(bench: Bench) -> list[Setting]:
    """All rows, the most valuable first: a lease may end at any of them. One that is compiled costs as much of it as
    twenty others: of those only the portrait's stands among the first."""
    first = [
        EXACT,
        OFFICIAL_EAGER,
        Setting(PORTRAIT, "fp16", RECORDED, channels_last=True),
        Setting(PORTRAIT, "fp16", EAGER, channels_last=True),
        Setting(PORTRAIT, "bf16", RECORDED, channels_last=True),
        Setting(PORTRAIT, "bf16", EAGER, channels_last=True),
        Setting(PORTRAIT, "tf32", RECORDED),
        Setting(PORTRAIT, "tf32", EAGER),
        Setting(PORTRAIT, "fp32", EAGER, OFFICIAL),
        Setting(PORTRAIT, "fp16", RECORDED),
        Setting(PORTRAIT, "tf32", EAGER, TRAINED),
        Setting(PORTRAIT, "fp16", COMPILED, channels_last=True),
    ]
    others = list(other_networks(bench.sizes))
    halves = ("fp16", "bf16")
    rows = [Setting(name, precision, EAGER) for name in others for precision in ("fp32", "tf32")]
    rows += [Setting(name, "fp16", RECORDED, channels_last=True) for name in others]
    every = [
        Setting(name, precision, mode, channels_last=precision in halves)
        for mode in (EAGER, RECORDED, COMPILED)
        for name in (PORTRAIT, *others)
        for precision in PRECISIONS
    ]
    rows += [row for row in every if row.mode != COMPILED]
    rows.append(Setting(PORTRAIT, "tf32", RECORDED, channels_last=True))
    rows += [Setting(name, "fp16", COMPILED, channels_last=True) for name in others]
    rows += [*every, Setting(PORTRAIT, "fp16", COMPILED)]
    unique = dict.fromkeys([*first, *rows])
    return [row for row in unique if bench.compiled or row.mode != COMPILED]


# parity


def parity(name: str, folder: Path, precision: str, device: torch.device) -> Row:
    """How far a network is from the reference numbers, on this device: the largest share of a tolerance."""
    golden = Golden(folder / f"styleavatar_{name}.npz")
    begin = time.monotonic()
    with torch.device(device), matrix_precision(precision):
        found = shares(golden, FILES[name](golden))
    worst = max(found, key=lambda output: found[output])
    row: Row = {
        "outputs": len(found),
        "largest_share_of_tolerance": float(f"{found[worst]:.3g}"),
        "at": worst,
        "is_within": found[worst] <= 1,
        "seconds": round(time.monotonic() - begin, 1),
    }
    missing = sorted(set(golden.outputs()) - found.keys())
    return row | ({"not_compared": missing} if missing else {})


def parity_names(folder: Path) -> list[str]:
    """The reference files of a folder that are of these networks, small ones first."""
    known = [name for name in FILES if name not in FULL_SIZE] + list(FULL_SIZE)
    return [name for name in known if (folder / f"styleavatar_{name}.npz").is_file()]


def parity_rows(folder: Path, bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """float32 must be within the tolerances, at least with kernels that add in one order; of shorter products it is
    told how far they are."""
    for precision in ("fp32", "tf32") if bench.device.type == "cuda" else ("fp32",):
        for name in parity_names(folder):

            def measure(name: str = name, precision: str = precision) -> Row:
                begin_memory(bench.device)
                row = parity(name, folder, precision, bench.device)
                if precision == "fp32" and not row["is_within"]:
                    with deterministic_kernels():
                        again = parity(name, folder, precision, bench.device)
                    row["with_deterministic_kernels"] = again
                    if not again["is_within"]:
                        row |= {"failed": "outside the tolerance", "is_defect": True}
                return row

            yield f"parity, {name}, {precision}", measure


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Of the library of convolutions, those that add in the same order in every run."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


# speed


class Exact:
    """What the portrait's generator draws exactly, kept for comparison with every other way."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._pictures = bench, list[Tensor]()

    def pictures(self) -> list[Tensor]:
        if not self._pictures:
            given = meshes(self._bench.sizes.portrait, self._bench.device)
            avatar = avatar_of(self._bench.sizes.portrait, self._bench.device)
            with matrix_precision("fp32"):
                self._pictures = [avatar.draw(*pair).image.cpu() for pair in given]
        return self._pictures


def measured(setting: Setting, bench: Bench, exact: Exact, rate: float, expected: float) -> Row:
    """A row of speed. rate: operations a second of the device.  expected: seconds that the row will take."""
    row: Row = {"name": setting.name}
    if setting.needs_cuda and bench.device.type != "cuda":
        return row | {"failed": NEEDS_CUDA}
    begun = time.monotonic()
    found = attempt(row, bench.deadline, lambda: speed(setting, bench, exact, rate), expected)
    return row | (found or {}) | {"seconds": round(time.monotonic() - begun, 1)}


def speed(setting: Setting, bench: Bench, exact: Exact, rate: float) -> Row:
    """Milliseconds, pictures a second, memory, share of the device's rate, and distance to the exact picture."""
    device, truth = bench.device, exact.pictures() if setting.network == PORTRAIT else None
    begin_memory(device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    with torch.no_grad(), matrix_precision("fp32"):  # styles are folded exactly, as the product folds them
        function, inputs, flops = made(setting, bench)
    with torch.no_grad(), matrix_precision(setting.precision), fastest_kernels():
        begin = now(device)
        for given in inputs[:WARM_UP]:
            function(*given)
        row: Row = {"warm_up_seconds": round(now(device) - begin, 2)}
        if setting.mode == RECORDED:
            function = Recorded(function, inputs[0])
        row |= timings(function, inputs, bench)
        if truth is not None:
            row |= closeness(function, inputs, truth) | {"to_host_ms": shown_ms(function, inputs, bench)}
        peak = peak_memory(device)
        if setting.mode == COMPILED and device.type == "cuda":
            recorded = Recorded(function, inputs[0])
            row |= {f"recorded_{key}": value for key, value in timings(recorded, inputs, bench).items()}
            if truth is not None:
                row["recorded_to_host_ms"] = shown_ms(recorded, inputs, bench)
            row["recorded_peak_gb"] = without(peak_memory(device), held)
    row |= {"peak_gb": without(peak, held), "gflop": float(f"{flops / 1e9:.4g}")}
    fastest = row.get("recorded_ms", row["ms"])
    return row | {"share_of_matmul_rate": round(flops / (fastest / 1e3) / rate, 4)}


def made(setting: Setting, bench: Bench) -> tuple[TensorFn, list[tuple[Tensor, ...]], float]:
    """The function of a row, its inputs on the device, and its operations; a multiply-add is two."""
    if setting.network == PORTRAIT:
        config = bench.sizes.portrait
        avatar, given = avatar_of(config, bench.device), meshes(config, bench.device)
        return portrait_function(setting, bench, avatar), list(given), portrait_flops(config)
    network, inputs = other_networks(bench.sizes)[setting.network]()
    flops = counted(network, inputs[0])
    dtype = DTYPES[setting.precision]
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    on_device: Any = network.to(bench.device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    if setting.mode == COMPILED:
        torch.compiler.reset()  # what other rows have compiled counts against a limit, beyond which nothing is
        on_device = torch.compile(on_device, backend=bench.backend, dynamic=False)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        found = on_device(*values)
        return (found,) if isinstance(found, Tensor) else (found.features, found.bands)

    return function, [tuple(value.to(bench.device, dtype) for value in given) for given in inputs], flops


def portrait_function(setting: Setting, bench: Bench, avatar: Any) -> TensorFn:
    if setting.graph == OFFICIAL:
        return official_graph(avatar)
    if setting.graph == TRAINED:

        def drawn(render: Tensor, uv: Tensor) -> tuple[Tensor, ...]:
            portrait = avatar.draw(render, uv)
            return portrait.image, portrait.mask

        return drawn

    def refuse(sentence: str) -> None:
        raise MissingDependencyError(sentence)

    torch.compiler.reset()
    return graph_function(
        avatar,
        setting.precision,
        is_compiled=setting.mode == COMPILED,
        say=refuse,
        channels_last=setting.channels_last,
        backend=bench.backend,
    )


def timings(function: TensorFn, inputs: Sequence[tuple[Tensor, ...]], bench: Bench) -> Row:
    """Of `bench.runs` calls one after the other, and of single ones whose result is waited for.

    On a card the first are between events on it: what it takes for a picture when pictures follow each other.
    """
    device, count = bench.device, bench.runs
    for number in range(WARM_UP):
        function(*inputs[number % len(inputs)])
    now(device)
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for number in range(count):
            function(*inputs[number % len(inputs)])
            marks[number + 1].record()
        torch.cuda.synchronize(device)
        times = [one.elapsed_time(other) for one, other in pairwise(marks)]
    else:
        times = list(waited(function, inputs, device, count))
    waits = list(waited(function, inputs, device, max(1, count // 4)))
    low, median, high = np.percentile(times, (25, 50, 75))
    return {
        "ms": round(float(median), 4),
        "ms_quartiles": [round(float(low), 4), round(float(high), 4)],
        "fps": round(1000 * count / sum(times), 2),
        "latency_ms": round(statistics.median(waits), 4),
        "runs": count,
    }


def shown_ms(function: TensorFn, inputs: Sequence[tuple[Tensor, ...]], bench: Bench) -> float:
    """Milliseconds until a picture is in the processor's memory."""
    waits = waited(partial(to_host, function), inputs, bench.device, max(2, bench.runs // 4))
    return round(statistics.median(waits), 4)


def without(peak_gb: float | None, held: int) -> float | None:
    """GB of a row alone: less the bytes that were taken before it began."""
    return None if peak_gb is None else round(peak_gb - held / 1e9, 2)


def to_host(function: TensorFn, *given: Tensor) -> object:
    """A picture as `reenact` takes it from the card."""
    return picture_of(function(*given)[0])


def waited(
    function: TensorFn, inputs: Sequence[tuple[Tensor, ...]], device: torch.device, count: int
) -> Iterator[float]:
    """Milliseconds by the clock from the call until the result is there."""
    for number in range(count):
        begin = now(device)
        function(*inputs[number % len(inputs)])
        yield 1000 * (now(device) - begin)


def closeness(function: TensorFn, inputs: Sequence[tuple[Tensor, ...]], truth: Sequence[Tensor]) -> Row:
    """To the exact pictures: in units of their deviation, and as PSNR of what is seen."""
    drawn = [function(*given)[0].float().cpu() for given in inputs]
    mine, true = torch.cat(drawn), torch.cat(list(truth))
    psnr = psnr_db([float((mine.clamp(-1, 1) - true.clamp(-1, 1)).square().mean())])
    return difference(mine, true) | {"psnr_db": round(psnr, 2) if math.isfinite(psnr) else None}


def counted(network: nn.Module, given: tuple[Tensor, ...]) -> float:
    """Operations of a call, counted without computing."""
    meta = [value.to("meta") for value in given]
    own = {name: value.to("meta") for name, value in network.state_dict().items()}
    held = dict(network.named_parameters()) | dict(network.named_buffers())
    own |= {name: value.to("meta") for name, value in held.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(network, own, tuple(meta))
    return float(counter.get_total_flops())


def portrait_flops(config: PortraitConfig) -> float:
    """Of one picture as it was trained."""
    side, grid = config.size // 4, config.grid
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        texture = Texture(torch.empty(1, config.channels, grid, grid), torch.empty(1, BANDS, grid, grid))
        PortraitGenerator(config)(
            torch.empty(1, 3, side, side),
            torch.empty(1, 2, grid, grid),
            torch.empty(1, 1, grid, grid),
            texture,
            texture,
            torch.empty(1, config.style.size),
        )
    return float(counter.get_total_flops())
