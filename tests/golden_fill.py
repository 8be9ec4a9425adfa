"""Golden numbers: reference outputs for weights and inputs that are drawn anew from their names.

A file of `tests/golden/` holds neither weights nor inputs. Every array has a name, and the name seeds its random
stream; the file keeps the shapes, how inputs are distributed, and the outputs: whole, or slices and statistics per
channel.

    golden = Golden("hallo3_denoiser")
    state = golden.weights("model")              # {official key: float32 array}, without constant buffers
    x = golden.input("x")
    golden.check("given_bank.output", mine)      # share of the tolerance that the error takes; AssertionError above 1
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent / "golden"
Array = NDArray[Any]

CONSTANT = {"kernel", "ll", "lh", "hl", "hh", "freqs_sin", "freqs_cos", "num_batches_tracked"}
TABLE = (
    "embed_tokens.weight",
    "position_embeddings.weight",
    "relative_attention_bias.weight",
    "shared.weight",
)


def stream(name: str) -> np.random.Generator:
    """The random stream of a name: Philox, keyed by the CRC-32 of its bytes."""
    return np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))


def is_constant(key: str) -> bool:
    """Is this entry of a state dict a buffer that the module computes itself?"""
    return key.rsplit(".", 1)[-1] in CONSTANT


def weight(name: str, key: str, shape: Sequence[int], *, equalised: bool = False) -> Array:
    """Values of the state-dict entry `key`, drawn from the stream `name` (prefix of the checkpoint part + key)."""
    noise = stream(name).standard_normal(tuple(shape), dtype=np.float32)
    offset, scale = _law(key, tuple(shape), equalised)
    if key.endswith(("running_var", "weight_g")):
        noise = np.abs(noise)
    return np.float32(offset) + noise * np.float32(scale)


def _law(key: str, shape: tuple[int, ...], equalised: bool) -> tuple[float, float]:
    """Offset and scale of the values of an entry; the first rule that applies."""
    *path, last = key.split(".")
    rules = (
        (last == "pos_embedding" or f".{key}".endswith(tuple(f".{t}" for t in TABLE)), (0.0, 0.2)),
        (last == "running_mean", (0.0, 0.1)),
        (last == "running_var", (0.5, 0.5)),
        (last == "bias" and path[-1:] == ["modulation"], (1.0, 0.1)),
        (last == "bias", (0.0, 0.1)),
        (last == "input", (0.0, 1.0)),
        (last == "weight_g", (1.0, 0.1)),
        (shape == (1,), (0.3, 0.1)),
        (len(shape) <= 1, (1.0, 0.1)),
        (equalised and "mapping" not in path, (0.0, 1.0)),
    )
    fan_in = (0.0, 1 / math.sqrt(math.prod(shape[1:])))
    return next((law for applies, law in rules if applies), fan_in)


def draw(name: str, spec: dict[str, Any]) -> Array:
    """An input from its description, drawn from the stream `name`."""
    if spec["dist"] == "join":
        parts = [draw(f"{name}.{i}", part) for i, part in enumerate(spec["parts"])]
        return np.concatenate(parts, axis=spec["axis"])
    random, shape, f32 = stream(name), tuple(spec["shape"]), np.float32

    def on_blocks(values: Array, side: int) -> Array:
        return values.repeat(side, axis=-2).repeat(side, axis=-1)[..., : shape[-2], : shape[-1]]

    def coarse(side: int) -> tuple[int, ...]:
        return (*shape[:-2], -(-shape[-2] // side), -(-shape[-1] // side))

    match spec["dist"]:
        case "normal":
            mean, deviation = f32(spec.get("mean", 0)), f32(spec.get("std", 1))
            return mean + random.standard_normal(shape, dtype=f32) * deviation
        case "uniform":
            low, high = f32(spec["low"]), f32(spec["high"])
            return low + random.random(shape, dtype=f32) * (high - low)
        case "cells":
            cells = spec["n"]
            return ((2 * random.integers(0, cells, size=shape) + 1) / cells - 1).astype(f32)
        case "blocks":
            chosen = on_blocks(random.random(coarse(spec["block"]), dtype=f32) < spec["p"], spec["block"])
            return np.where(chosen, f32(spec["on"]), f32(spec["off"]))
        case "octaves":
            total = np.zeros(shape, dtype=f32)
            for side, deviation in zip(spec["blocks"], spec["std"], strict=True):
                total += on_blocks(random.standard_normal(coarse(side), dtype=f32), side) * f32(deviation)
            return total
        case "constant":
            return np.full(shape, spec["value"], dtype=f32)
        case "values":
            return np.array(spec["values"], dtype=f32).reshape(shape)
        case "ramp":
            return np.arange(math.prod(shape), dtype=f32).reshape(shape)
        case "integers":
            return random.integers(spec["low"], spec["high"], size=shape).astype(np.int64)
        case other:
            raise ValueError(f"no such distribution: {other}")


def fingerprint(array: Array) -> Array:
    """Sum, absolute sum, first and last value: what a file keeps of every array that is drawn anew."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    return np.array([flat.sum(), np.abs(flat).sum(), flat[0], flat[-1]])


def channel_statistics(array: Array, axis: int) -> Array:
    """Mean, standard deviation and largest magnitude of every channel, (channels, 3)."""
    rows = np.moveaxis(np.asarray(array, dtype=np.float64), axis, 0)
    rows = rows.reshape(len(rows), -1)
    return np.stack([rows.mean(1), rows.std(1), np.abs(rows).max(1)], axis=1)


class Golden:
    """One golden file: a name in `tests/golden/`, or a path."""

    def __init__(self, name: str | Path) -> None:
        self.arrays = np.load(FOLDER / Path(name).with_suffix(".npz"), allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self.arrays["meta"]))
        self.name: str = self.meta["name"]
        self.salt: str = self.meta["salt"]
        self.config: dict[str, Any] = self.meta.get("config", {})

    def shapes(self, network: str) -> dict[str, tuple[int, ...]]:
        """Official key -> shape, constant buffers included."""
        return {key: tuple(shape) for key, shape in self.meta["networks"][network]["keys"]}

    def weights(self, network: str) -> dict[str, Array]:
        """Official key -> values, without the constant buffers."""
        part = self.meta["networks"][network]
        return {
            key: weight(
                f"{self.salt}{part['prefix']}{key}", key, shape, equalised=part["family"] == "equalised"
            )
            for key, shape in part["keys"]
            if not is_constant(key)
        }

    def input(self, name: str) -> Array:
        return draw(f"{self.salt}input:{self.name}/{name}", self.meta["inputs"][name])

    def outputs(self) -> list[str]:
        return list(self.meta["outputs"])

    def output(self, name: str) -> Array:
        """A whole output. KeyError when only slices of it are kept."""
        return self.arrays[f"out/{name}"]

    def share(self, name: str, value: Array) -> float:
        """Error of `value`, as a share of the tolerance of this output; infinite for a wrong shape."""
        info = self.meta["outputs"][name]
        value = np.asarray(value)
        if list(value.shape) != info["shape"]:
            return math.inf
        kept = [(f"out/{name}", (...,))]
        if info["slices"] is not None:
            kept = [
                (f"out/{name}#{i}", tuple(slice(*axis) for axis in bounds))
                for i, bounds in enumerate(info["slices"])
            ]
        errors = np.concatenate(
            [(value[index].astype(np.float64) - self.arrays[entry]).ravel() for entry, index in kept]
        )
        error = float(np.abs(errors).max() if info["metric"] == "max" else np.sqrt((errors**2).mean()))
        if f"stat/{name}" in self.arrays:
            columns = 2 if info["metric"] == "rms" else 3
            gap = channel_statistics(value, info["channel_axis"]) - self.arrays[f"stat/{name}"]
            error = max(error, float(np.abs(gap[:, :columns]).max()))
        if not math.isfinite(error):
            return math.inf
        if info["tolerance"] == 0:
            return 0.0 if error == 0 else math.inf
        return error / info["scale"] / float(info["tolerance"])

    def check(self, name: str, value: Array, *, share: float = 1.0) -> float:
        """The share of the tolerance that the error takes. AssertionError above `share`."""
        reached = self.share(name, value)
        shape = list(np.shape(value))
        assert reached <= share, (
            f"{self.name}/{name} {shape}: {reached:.3g} of the tolerance, allowed {share}"
        )
        return reached

    def verify(self) -> int:
        """Draw every weight and input and compare with the fingerprints in the file; how many there were."""
        drawn: list[tuple[str, Array, Array]] = []
        for network, part in self.meta["networks"].items():
            rows = dict(zip([key for key, _ in part["keys"]], self.arrays[f"print/{network}"], strict=True))
            drawn += [(key, values, rows[key]) for key, values in self.weights(network).items()]
        if self.meta["inputs"]:
            rows = self.arrays["print/inputs"]
            drawn += [(i, self.input(i), row) for i, row in zip(self.meta["inputs"], rows, strict=True)]
        for name, values, expected in drawn:
            close = np.allclose(fingerprint(values), expected, rtol=1e-6, atol=1e-6 * (1 + expected[1]))
            assert close, f"{self.name}: {name} is drawn as {fingerprint(values)}, expected {expected}"
        return len(drawn)
