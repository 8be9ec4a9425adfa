"""Builds a TensorRT engine of an avatar in the paper's networks from its ONNX graph, and checks its pictures.

    python scripts/build_tensorrt.py me.avatar -o me.engine
    python scripts/build_tensorrt.py me.avatar -o me.engine --trtexec /path/to/trtexec

TensorRT is not a package of omokage: NVIDIA's `pip install tensorrt` (10 or newer), which brings the builder for
Python, on a machine with a graphics card. An engine fits that card and that version only. With --trtexec NVIDIA's own
command builds it, and Python's package is needed for the check alone; --no-check leaves that out.

The graph is exported in the precision that is asked for and built strongly typed, so that TensorRT changes no type:
with fp16 the places in the face's texture stay in 32 bits, where 16 would show the wrong ones. The engine draws states
of the avatar's own recording, or drawn noise where it has none, and is written only if its pictures are within 45 dB of
those of ONNX Runtime in 32 bits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.avatar.paper.batch import to_unit
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.samples import avatar_state
from omokage.errors import MissingDependencyError, OmokageError
from omokage.render.paper_export import INPUTS, OUTPUTS, paper_to_onnx
from omokage.render.paper_runtime import DTYPES, MIN_HALF_PSNR, psnr_db
from omokage.trust.release import release_model

Float32 = NDArray[np.float32]
Picture = Callable[[Float32, Float32], Float32]

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
LEAST_VERSION = 10
WORKSPACE_BYTES = 8 << 30
CHECKED = 4  # pictures
TIMED = 50


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("avatar", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the engine, such as me.engine")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--trtexec", type=Path, help="build with this command instead of Python's package")
    parser.add_argument("--no-check", action="store_true", help="write the engine unseen")
    given = parser.parse_args(arguments)
    try:
        build(given)
    except OmokageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build(given: argparse.Namespace) -> None:
    """Raises MissingDependencyError before any work, BundleError, OutputError, and OmokageError where the engine cannot
    be built or draws something else."""
    trt = None if given.trtexec is not None and given.no_check else tensorrt()
    avatar = PaperAvatar.load(given.avatar)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph = paper_to_onnx(avatar.to(device), DTYPES[given.precision])
    if given.trtexec is not None:
        plan = built_by_command(given.trtexec, graph, given.precision)
    else:
        plan = built_by_package(trt, graph, given.precision)
    if not given.no_check:
        states = checked_states(avatar)
        picture = engine_picture(trt, plan)
        closeness = likeness(picture, onnx_picture(paper_to_onnx(avatar.to(torch.device("cpu")))), states)
        print(f"pictures: {closeness:.1f} dB from those of ONNX Runtime in 32 bits")
        if closeness < MIN_HALF_PSNR:
            raise OmokageError(
                f"the engine's pictures are {closeness:.1f} dB from the exact ones, and {MIN_HALF_PSNR:g} are needed; "
                "build it with --precision tf32"
            )
        print(f"a picture: {milliseconds(picture, states[0]):.2f} ms, with its way to the card and back")
    release_model(lambda part: part.write_bytes(plan), given.output, kind="tensorrt")
    print(f"engine: {given.output}")


# building


def tensorrt() -> Any:
    """NVIDIA's package. Raises MissingDependencyError where it is missing or too old."""
    try:
        trt: Any = import_module("tensorrt")
    except ImportError as error:
        raise MissingDependencyError(
            "TensorRT is not installed; run: pip install tensorrt (NVIDIA's, on a machine with a graphics card), or "
            "draw with 'omokage reenact --runtime compiled', which needs no engine"
        ) from error
    if int(trt.__version__.split(".")[0]) < LEAST_VERSION:
        raise MissingDependencyError(
            f"this is TensorRT {trt.__version__}, and {LEAST_VERSION} or newer is needed; run: pip install -U tensorrt"
        )
    return trt


def built_by_package(trt: Any, graph: bytes, precision: str) -> bytes:
    """The serialized engine. Raises OmokageError with TensorRT's own words."""
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    if not parser.parse(graph):
        said = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise OmokageError(f"TensorRT cannot read the graph ({said}); use another version of it")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise OmokageError("TensorRT built no engine; its words above say why")
    return bytes(plan)


def command(trtexec: Path, graph: Path, engine: Path, precision: str) -> list[str]:
    """What builds the same with NVIDIA's command."""
    exact = ["--noTF32"] if precision == "fp32" else []
    return [
        str(trtexec),
        f"--onnx={graph}",
        f"--saveEngine={engine}",
        "--stronglyTyped",
        "--skipInference",
        f"--memPoolSize=workspace:{WORKSPACE_BYTES >> 20}M",
        *exact,
    ]


def built_by_command(trtexec: Path, graph: bytes, precision: str) -> bytes:
    """The serialized engine. Raises OmokageError where the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        source, engine = Path(folder) / "avatar.onnx", Path(folder) / "avatar.engine"
        source.write_bytes(graph)
        try:
            done = subprocess.run(command(trtexec, source, engine, precision), capture_output=True, text=True)
        except OSError as error:
            raise MissingDependencyError(
                f"{trtexec} cannot be started ({error.strerror}); give the path of NVIDIA's trtexec"
            ) from error
        if done.returncode or not engine.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
            raise OmokageError(f"trtexec built no engine ({last[0]}); run it by hand to see all it says")
        return engine.read_bytes()


# what it draws


def checked_states(avatar: PaperAvatar) -> list[tuple[Float32, Float32]]:
    """Drawn face meshes and their places in the texture, (1, 3, S/4, S/4) each, in [-1, 1]."""
    side = avatar.size // 4
    if avatar.person is None:
        random, cells = np.random.default_rng(0), avatar.config.grid
        shape = (1, 3, side, side)
        return [
            (
                random.uniform(-1, 1, shape).astype(np.float32),
                ((2 * random.integers(0, cells, shape) + 1) / cells - 1).astype(np.float32),
            )
            for _ in range(CHECKED)
        ]
    track, drawing = avatar.person.track, avatar.person.drawing
    found = []
    for row in np.unique(np.linspace(0, len(track) - 1, CHECKED).astype(int)):
        drawn = drawing.draw(avatar_state(track, int(row)))
        pair = (to_unit(torch.from_numpy(picture)[None]).numpy() for picture in (drawn.render, drawn.uv))
        found.append((next(pair), next(pair)))
    return found


def onnx_picture(graph: bytes) -> Picture:
    """The graph on ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def picture(render: Float32, uv: Float32) -> Float32:
        image: Float32 = session.run(list(OUTPUTS[:1]), dict(zip(INPUTS, (render, uv), strict=True)))[0]
        return image

    return picture


def engine_picture(trt: Any, plan: bytes) -> Picture:
    """The engine on the card; its tensors are PyTorch's."""
    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    held = {
        name: torch.empty(tuple(engine.get_tensor_shape(name)), device="cuda") for name in (*INPUTS, *OUTPUTS)
    }
    for name, tensor in held.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()

    def picture(render: Float32, uv: Float32) -> Float32:
        with torch.cuda.stream(stream):
            for name, value in zip(INPUTS, (render, uv), strict=True):
                held[name].copy_(torch.from_numpy(value))
            context.execute_async_v3(stream.cuda_stream)
            image: Float32 = held[OUTPUTS[0]].cpu().numpy()
        return image

    return picture


def likeness(mine: Picture, exact: Picture, states: Sequence[tuple[Float32, Float32]]) -> float:
    """`psnr_db` between what two draw."""
    errors = [
        float(np.square(np.clip(mine(*state), -1, 1) - np.clip(exact(*state), -1, 1)).mean())
        for state in states
    ]
    return psnr_db(errors)


def milliseconds(picture: Picture, state: tuple[Float32, Float32]) -> float:
    """The median of many."""
    times = []
    for _ in range(TIMED):
        begin = time.perf_counter()
        picture(*state)
        times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
