"""States of an avatar -> pictures, on PyTorch or on an exported graph; the result is the same. MAIN: `Renderer.render`.

    torch         the generator as it was trained, on any device; the reference of the others
    onnxruntime   the graph on ONNX Runtime
    openvino      the graph on OpenVINO, if installed (`pip install omokage[openvino]`)
    auto          the cheapest graph runtime that is installed, measured at the start

A graph runs in 8 bits if that is faster here and as good (`MIN_INT8_PSNR`), else in 32; a name such as
'openvino-int8' or 'onnxruntime-fp32' insists. Which one wins depends on the CPU: with VNNI OpenVINO's 8 bits are twice
as fast as ONNX Runtime's, without it they are alike.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.avatar.bundle import Avatar
from omokage.avatar.conditioning import AvatarState, Condition
from omokage.avatar.generator import Generator
from omokage.avatar.samples import avatar_state
from omokage.errors import InputError, MissingDependencyError
from omokage.media.clip import Image
from omokage.render.export import ALL_OPERATIONS, CONVOLUTIONS, INPUTS, Feed, quantize, to_onnx
from omokage.render.lookup import Texture, compose, pull_cells, pull_portrait, smooth_rims

Ready = TypeVar("Ready")
Answer = TypeVar("Answer")

RUNTIMES = ("auto", "torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "int8")
# 8 bits are taken if their pictures are this close to those of 32 bits, dB: then they lose under 0.1 dB against the
# truth as long as the network itself is below 30 dB.
MIN_INT8_PSNR = 45.0
CALIBRATION_STATES = 24  # of the recording; every other one calibrates, the rest check
TIMING_RUNS = 8


@dataclass(frozen=True, slots=True)
class Portrait:
    """One picture of an avatar, all uint8.

    image: (S, S, 3), over the background.  matte: (S, S), 0 = only background.  color: (S, S, 3), the person's color
    without background (straight, not premultiplied).
    """

    image: Image
    matte: NDArray[np.uint8]
    color: Image

    def rgba(self) -> NDArray[np.uint8]:
        """(S, S, 4) with straight alpha, for a transparent background."""
        return np.dstack([self.color, self.matte])


class Runtime(Protocol[Ready, Answer]):
    """Computes the person without background, in three steps that a live pipeline takes on different cores.

    Several threads may call it. `Ready` and `Answer` are a runtime's own.
    """

    name: str

    def look_up(self, condition: Condition) -> Ready:
        """What the network is told."""
        ...

    def infer(self, ready: Ready) -> Answer:
        """The network."""
        ...

    def finish(self, answer: Answer) -> NDArray[np.float32]:
        """Color (straight) and opacity in [0, 1], float32 (4, S, S)."""
        ...

    def portrait(self, condition: Condition) -> NDArray[np.float32]:
        """All three."""
        return self.finish(self.infer(self.look_up(condition)))


AnyRuntime: TypeAlias = Runtime[Any, Any]


class TorchRuntime(Runtime[tuple[Tensor, ...], tuple[Tensor, Tensor]]):
    """The generator itself, in eager mode. It is the reference of the others."""

    name = "torch"

    def __init__(self, generator: Generator, *, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = generator.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._code = torch.zeros(1, generator.config.code_size, device=self.device)

    def look_up(self, condition: Condition) -> tuple[Tensor, ...]:
        inputs = (condition.warp, condition.drawing, condition.motion, condition.mixture)
        return tuple(torch.from_numpy(array)[None].to(self.device) for array in inputs)

    @torch.inference_mode()
    def infer(self, ready: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return torch.cat(self.generator(*ready, self._code), dim=1)[0], ready[0][0]

    def finish(self, answer: tuple[Tensor, Tensor]) -> NDArray[np.float32]:
        portrait, warp = (np.array(tensor.cpu().numpy(), order="C") for tensor in answer)
        smooth_rims(portrait, warp)
        return portrait


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A condition and its texture, mixed, with what the graph gets of them."""

    condition: Condition
    texture: Texture
    feed: Feed


@dataclass(frozen=True, slots=True)
class GraphAnswer:
    """What the graph made of its input: residual (1, K, G, G) and offset (1, 2, G, G)."""

    given: GraphInput
    residual: NDArray[np.float32]
    offset: NDArray[np.float32]


class GraphRuntime(Runtime[GraphInput, GraphAnswer]):
    """Texture look-ups of our own around an exported graph; `network` runs the graph."""

    def __init__(
        self,
        name: str,
        texture: Texture,
        network: Callable[[Feed], tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> None:
        self.name, self.texture, self.network = name, texture, network

    def look_up(self, condition: Condition) -> GraphInput:
        texture = self.texture.mixed(condition.mixture)
        return GraphInput(condition, texture, feed_of(texture, condition))

    def infer(self, ready: GraphInput) -> GraphAnswer:
        return GraphAnswer(ready, *self.network(ready.feed))

    def finish(self, answer: GraphAnswer) -> NDArray[np.float32]:
        given, warp = answer.given, answer.given.condition.warp
        portrait = pull_portrait(given.texture, warp, answer.offset[0], answer.residual[0])
        smooth_rims(portrait, warp)
        return portrait


class Renderer:
    """Draws one avatar; `name` says on which runtime.

    runtime: one of `RUNTIMES`, or engine and precision.  background: uint8 (S, S, 3), None = the recording's own.
    threads: of the graph's network, all cores by default (PyTorch keeps its own setting).  device: of PyTorch.
    Raises InputError for an unknown runtime, MissingDependencyError for one that is not installed.
    """

    def __init__(
        self,
        avatar: Avatar,
        *,
        runtime: str = "auto",
        background: Image | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.avatar = avatar
        self.background = avatar.plate if background is None else background
        if self.background.shape != avatar.plate.shape:
            got, need = ("x".join(map(str, p.shape)) for p in (self.background, avatar.plate))
            raise InputError(f"the background is {got}, this avatar needs {need}; use fit_background")
        self.runtime: AnyRuntime = start_runtime(avatar, runtime, threads or os.cpu_count() or 1, device)

    @property
    def name(self) -> str:
        return self.runtime.name

    @property
    def stages(self) -> tuple[Callable[[AvatarState], Any], Callable[[Any], Any], Callable[[Any], Portrait]]:
        """`render` in three steps, for different cores."""
        runtime, draw = self.runtime, self.avatar.conditioner.draw
        return (
            lambda state: runtime.look_up(draw(state)),
            runtime.infer,
            lambda answer: self.composed(runtime.finish(answer)),
        )

    def render(self, state: AvatarState) -> Portrait:
        """The picture of a state."""
        prepare, infer, finish = self.stages
        return finish(infer(prepare(state)))

    def composed(self, portrait: NDArray[np.float32]) -> Portrait:
        """A runtime's picture of the person (4, S, S) over the background."""
        image, color, matte = compose(portrait, self.background)
        return Portrait(image=image, matte=matte, color=color)


def fit_background(image: Image, size: int) -> Image:
    """The middle of any picture as a background, uint8 (size, size, 3)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side, :3]
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(square, (size, size), interpolation=method), dtype=np.uint8)


def feed_of(texture: Texture, condition: Condition) -> Feed:
    """Inputs of the graph for one condition; `texture` is the mixed one of it."""
    return {"cells": pull_cells(texture, condition), "motion": condition.motion[None]}


def start_runtime(avatar: Avatar, runtime: str, threads: int, device: str) -> AnyRuntime:
    """The runtime of a name, see `Renderer`."""
    engine, _, precision = runtime.partition("-")
    if engine not in RUNTIMES or (precision and (engine not in STARTERS or precision not in PRECISIONS)):
        raise InputError(f"there is no runtime '{runtime}'; choose one of {', '.join(RUNTIMES)}")
    if engine == "torch":
        return TorchRuntime(avatar.generator, device=device)
    engines = [engine]
    if engine == "auto":
        engines = [name for name in STARTERS if importlib.util.find_spec(name)]
    builder = GraphBuilder(avatar, threads)
    if precision:
        return builder.exact(engine) if precision == "fp32" else builder.small(engine)
    return builder.cheapest(engines)


class GraphBuilder:
    """Graph runtimes of one avatar; what they share is made once."""

    def __init__(self, avatar: Avatar, threads: int) -> None:
        self._threads, self._plate = threads, avatar.plate
        self._texture, self._graph = Texture.of(avatar.generator), to_onnx(avatar.generator)
        conditions = recorded_conditions(avatar, CALIBRATION_STATES)
        self._feeds = [feed_of(self._texture.mixed(c.mixture), c) for c in conditions[::2]]
        self._checks = conditions[1::2] or conditions  # not those of the calibration

    def exact(self, engine: str) -> GraphRuntime:
        """In 32 bits."""
        return GraphRuntime(
            f"{engine}-fp32", self._texture, STARTERS[engine].start(self._graph, self._threads)
        )

    def small(self, engine: str) -> GraphRuntime:
        """In 8 bits, calibrated on the avatar's own recording."""
        starter = STARTERS[engine]
        graph = quantize(self._graph, self._feeds, starter.operations)
        return GraphRuntime(f"{engine}-int8", self._texture, starter.start(graph, self._threads))

    def cheapest(self, engines: Sequence[str]) -> GraphRuntime:
        """The cheapest on this machine; 8 bits only where nobody can see the difference."""
        exact = self.exact(engines[0])
        small = [self.small(engine) for engine in engines]
        good = [r for r in small if runtime_psnr(r, exact, self._checks, self._plate) >= MIN_INT8_PSNR]
        return min((*good, exact), key=lambda runtime: cost_per_picture(runtime, self._checks[0]))


def recorded_conditions(avatar: Avatar, count: int) -> list[Condition]:
    """Conditions of states spread over the avatar's own recording."""
    rows = np.flatnonzero(avatar.track.is_tracked)
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    return [avatar.conditioner.draw(avatar_state(avatar.track, int(row))) for row in chosen]


def runtime_psnr(
    runtime: AnyRuntime, reference: AnyRuntime, conditions: Sequence[Condition], plate: Image
) -> float:
    """PSNR in dB of the composed pictures of one runtime against another's."""
    errors = []
    for condition in conditions:
        one, other = (compose(r.portrait(condition), plate)[0].astype(float) for r in (runtime, reference))
        errors.append(np.mean((one - other) ** 2))
    return float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-6)))


def cost_per_picture(runtime: AnyRuntime, condition: Condition) -> float:
    """Wall time and processor time, s, the least of a few runs after one to warm up.

    Both count: while a picture is computed, the next frame is tracked on the same cores, and an engine whose idle
    threads spin takes them away (live at 256 on two cores: p95 of 120 instead of 70 ms).
    """
    runtime.portrait(condition)
    costs = []
    for _ in range(TIMING_RUNS):
        start = time.perf_counter() + time.process_time()
        runtime.portrait(condition)
        costs.append(time.perf_counter() + time.process_time() - start)
    return min(costs)


def start_onnxruntime(graph: bytes, threads: int) -> Callable[[Feed], Any]:
    """A session of ONNX Runtime. Idle threads sleep: spinning ones slow everything else down."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def start_openvino(graph: bytes, threads: int) -> Callable[[Feed], Any]:
    """A compiled model of OpenVINO. Raises MissingDependencyError."""
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "OpenVINO is not installed; run: pip install 'omokage[openvino]', or use the runtime 'onnxruntime'"
        ) from error
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()

    lock = threading.Lock()  # a request serves one thread at a time, and its outputs are its own memory

    def network(feed: Feed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with lock:
            request.infer([feed[name] for name in INPUTS])
            return request.get_output_tensor(0).data.copy(), request.get_output_tensor(1).data.copy()

    return network


@dataclass(frozen=True, slots=True)
class Starter:
    """How an engine starts a graph on a number of threads, and what it wants in 8 bits."""

    start: Callable[[bytes, int], Callable[[Feed], Any]]
    operations: tuple[str, ...]


STARTERS = {
    "openvino": Starter(start_openvino, CONVOLUTIONS),
    "onnxruntime": Starter(start_onnxruntime, ALL_OPERATIONS),
}
