"""What computes the pictures of an avatar in the paper's networks. MAIN: `start`.

    torch        the networks as they were trained, in float32, on any device: the reference of the others
    cuda-graph   one static graph in 16 bits: the style folded into the kernels, recorded once on a graphics card, so
                 that a picture is a single call to it
    compiled     the same graph, fused by PyTorch's compiler before it is recorded, which takes its time
    auto         on a graphics card 'cuda-graph', elsewhere 'torch'

16 bits are taken if their pictures are close to those of 32 (`MIN_HALF_PSNR`), else 32 bits whose products are computed
from 19.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.avatar.paper.networks import AvatarNetworks
from omokage.avatar.paper.precision import fastest_kernels, matrix_precision
from omokage.compiling import BACKEND, Compiled
from omokage.errors import InputError
from omokage.render.paper_export import PaperGraph

RUNTIMES = ("auto", "torch", "cuda-graph", "compiled")
# A drawn face mesh and its places in the texture, (1, 3, S/4, S/4) each in [-1, 1], on the device.
MeshPair = tuple[Tensor, Tensor]
# Image (1, 3, S, S) and mask (1, 1, G, G), float32.
Drawn = tuple[Tensor, Tensor]
DrawFn = Callable[[Tensor, Tensor], Drawn]
# dB between pictures of 16 and of 32 bits: as for compact avatars, under 0.1 dB against the truth.
MIN_HALF_PSNR = 45.0
WARM_UP_RUNS = 3  # compile, choose kernels, take memory


class PaperRuntime(Protocol):
    """name: one of `RUNTIMES` but 'auto'.  precision: 'fp32', 'tf32' or 'fp16'."""

    name: str
    precision: str

    def draw(self, render: Tensor, uv: Tensor) -> Drawn:
        """The picture of a drawn face mesh, see `MeshPair` and `Drawn`. The next call may write over it."""
        ...


class EagerRuntime:
    """The avatar's own networks."""

    name, precision = "torch", "fp32"

    def __init__(self, avatar: AvatarNetworks) -> None:
        self._avatar = avatar

    def draw(self, render: Tensor, uv: Tensor) -> Drawn:
        with matrix_precision("fp32"):
            portrait = self._avatar.draw(render, uv)
        return portrait.image, portrait.mask


class GraphRuntime:
    """The static graph, recorded on the card of its weights. Its tensors are held by the recording."""

    def __init__(self, name: str, precision: str, draw: DrawFn, example: MeshPair) -> None:
        self.name, self.precision = name, precision
        with matrix_precision(precision):
            self._recorded = Recorded(draw, example)

    def draw(self, render: Tensor, uv: Tensor) -> Drawn:
        image, mask = self._recorded(render, uv)
        return image, mask


class Recorded:
    """A function of tensors, recorded once as a CUDA graph: a call copies its inputs to where they were and plays it.

    function: of the shapes of `example` alone, without a look at values.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]) -> None:
        self._inputs = tuple(value.clone() for value in example)
        with torch.no_grad(), fastest_kernels():
            self._outputs, self._play = record(lambda: function(*self._inputs))

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The outputs, which the next call writes over."""
        for held, value in zip(self._inputs, given, strict=True):
            held.copy_(value)
        self._play()
        return self._outputs


def record(function: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Warm a function up on a side stream, as PyTorch asks for, and record it -> its outputs, and what plays it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_RUNS):
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


def start(
    avatar: AvatarNetworks,
    wish: str,
    *,
    states: Callable[[], Sequence[MeshPair]],
    say: Callable[[str], None],
) -> PaperRuntime:
    """The runtime of that name for an avatar that is on its device; on a processor always 'torch', and `say` hears why.

    states: drawn face meshes of the avatar's recording, by which 16 bits are judged.
    Raises InputError for an unknown name.
    """
    if wish not in RUNTIMES:
        raise InputError(
            f"an avatar at the paper's scale is drawn by PyTorch and not by '{wish}'; use --runtime "
            f"{', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}"
        )
    exact = EagerRuntime(avatar)
    if not _is_card(avatar.face.features.device):
        if wish not in ("auto", exact.name):
            say(
                f"the runtime '{wish}' needs a graphics card of NVIDIA; pictures are drawn by 'torch' instead"
            )
        return exact
    if wish == exact.name:
        return exact
    is_compiled, judged = wish == "compiled", states()
    half = _graph_runtime(avatar, "fp16", judged[0], is_compiled=is_compiled, say=say)
    closeness = likeness(half, exact, judged)
    if closeness >= MIN_HALF_PSNR:
        return half
    say(f"pictures are computed in 32 bits, since those of 16 are {closeness:.1f} dB from them")
    return _graph_runtime(avatar, "tf32", judged[0], is_compiled=is_compiled, say=say)


def _is_card(device: torch.device) -> bool:
    return device.type == "cuda"


def _graph_runtime(
    avatar: AvatarNetworks,
    precision: str,
    example: MeshPair,
    *,
    is_compiled: bool,
    say: Callable[[str], None],
) -> GraphRuntime:
    draw = graph_function(avatar, precision, is_compiled=is_compiled, say=say)
    return GraphRuntime("compiled" if is_compiled else "cuda-graph", precision, draw, example)


DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def graph_function(
    avatar: AvatarNetworks,
    precision: str,
    *,
    is_compiled: bool,
    say: Callable[[str], None],
    channels_last: bool | None = None,
    backend: str | Callable[..., Any] = BACKEND,
) -> DrawFn:
    """The static graph of an avatar as a function on the avatar's device, in a precision of `DTYPES`.

    channels_last: layout of features in memory, None for that of 16 bits, whose matrix units read it so.
    """
    dtype = DTYPES[precision]
    is_last = dtype != torch.float32 if channels_last is None else channels_last
    layout = torch.channels_last if is_last else torch.contiguous_format
    graph: Any = PaperGraph(avatar).to(dtype).to(memory_format=layout)  # type: ignore[call-overload]

    @torch.no_grad()
    def draw(render: Tensor, uv: Tensor) -> Drawn:
        drawn: Drawn = graph(render, uv)
        return drawn

    if not is_compiled:
        return draw
    fused = torch.compile(draw, backend=backend, dynamic=False)
    return Compiled(fused, draw, say=say, what="the networks run")


def likeness(one: PaperRuntime, other: PaperRuntime, states: Sequence[MeshPair]) -> float:
    """`psnr_db` between the pictures of two runtimes."""
    errors = []
    for render, uv in states:
        image = one.draw(render, uv)[0].clamp(-1, 1).clone()
        errors.append(float((image - other.draw(render, uv)[0].clamp(-1, 1)).square().mean()))
    return psnr_db(errors)


def psnr_db(errors: Sequence[float]) -> float:
    """Of pictures in [-1, 1], from the mean squared error of each; -inf where one is not finite."""
    mean = sum(errors) / len(errors)
    return 10 * math.log10(4 / max(mean, 1e-12)) if math.isfinite(mean) else -math.inf


def picture_of(image: Tensor) -> NDArray[np.uint8]:
    """The first of images (B, 3, S, S), nominally in [-1, 1], as a picture in the processor's memory, (S, S, 3)."""
    return to_bytes(image[0].permute(1, 2, 0) * 127.5 + 127.5)


def to_bytes(values: Tensor) -> NDArray[np.uint8]:
    """Values of 0 to 255, in the processor's memory."""
    return np.ascontiguousarray(values.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
