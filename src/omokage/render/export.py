"""The avatar's network as a graph of plain convolutions (ONNX), for runtimes that are faster than PyTorch on a CPU.

The graph is what lies between the texture look-ups, `Trunk`: the look-ups themselves are cheaper outside
(`renderer`). Wavelet transforms are folded into the weights of the first and the last convolution, the appearance code
(zeros when an avatar is driven) into a bias.

Legend: S output side, G grid side, F texture features, D channels of the drawing, K = 4 S S / G / G colour values of a
cell (channel, row, column in the cell).
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.generator import DRAWING_CHANNELS, MOTION_SIZE, Generator, Stage
from omokage.avatar.wavelets import haar, inverse_haar
from omokage.files import saving

OPSET = 17
INPUTS, OUTPUTS = ("cells", "motion"), ("residual", "offset")
# What a runtime's 8-bit kernels fuse best: ONNX Runtime wants every operation in 8 bits, OpenVINO convolutions only.
ALL_OPERATIONS: tuple[str, ...] = ()
CONVOLUTIONS = ("Conv",)

Feed = dict[str, NDArray[np.float32]]


class Trunk(nn.Module):
    """Cells (1, K + F + D, G, G) and motion (1, 62) -> residual (1, K, G, G) and offset (1, 2, G, G).

    cells: colour and opacity that the warp map pulls, cell by cell; texture features at the cells' centers; drawing.
    residual: what is added to the second look-up, cell by cell.  offset: shift of its coordinates.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator = copy.deepcopy(generator).float().requires_grad_(False)
        levels, cell = generator.config.wavelet_levels, 2**generator.config.wavelet_levels
        values = 4 * cell * cell
        unit = torch.eye(values)[:, :, None, None]
        bands, pixels = F.pixel_shuffle(unit, cell), unit
        for _ in range(levels):
            bands, pixels = haar(bands), inverse_haar(pixels)
        to_bands = bands[:, :, 0, 0].T * 2.0**-levels
        to_pixels = F.pixel_unshuffle(pixels, cell)[:, :, 0, 0].T

        first, (head, offset) = generator.stem.first, (generator.head, generator.offset)
        assert head.bias is not None and offset.bias is not None
        first.weight[:, :values] = torch.einsum("obyx,bp->opyx", first.weight[:, :values], to_bands)
        head.weight.copy_(torch.einsum("pb,biyx->piyx", to_pixels, head.weight))
        head.bias.copy_(to_pixels @ head.bias)
        offset.weight.mul_(0.1)
        offset.bias.mul_(0.1)

    def forward(self, cells: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        generator = self.generator
        # A driven avatar has the mean appearance, code 0: its part of the style's first layer is left out.
        first, *others = generator.style
        assert isinstance(first, nn.Linear)
        style = F.linear(motion, first.weight[:, :MOTION_SIZE], first.bias)
        for layer in others:
            style = layer(style)
        x, skips = _stage(generator.stem, cells, style), []
        for stage in generator.down:
            skips.append(x)
            x = _stage(stage, x, style)
        for lateral, stage, skip in zip(
            reversed(generator.lateral), reversed(generator.up), reversed(skips), strict=True
        ):
            x = F.interpolate(lateral(x), scale_factor=2.0, mode="nearest") + skip
            x = _stage(stage, x, style)
        return generator.head(x), generator.offset(x)


def _stage(stage: nn.Module, x: Tensor, style: Tensor) -> Tensor:
    """The same as `stage(x, style)` in operations that every runtime fuses."""
    assert isinstance(stage, Stage)
    (scale, shift), (bias, base) = stage.film.linear.weight.chunk(2), stage.film.linear.bias.chunk(2)
    scale = F.linear(style, scale, bias + 1)[:, :, None, None]
    shift = F.linear(style, shift, base)[:, :, None, None]
    x = F.relu(stage.first(x) * scale + shift)
    return F.relu(x + stage.second(x))


def to_onnx(generator: Generator) -> bytes:
    """The graph of `Trunk`: static shapes, batch 1, inputs `cells` and `motion`, outputs `residual` and `offset`."""
    config = generator.config
    values = 4 * (config.size // config.grid) ** 2
    cells = torch.zeros(1, values + config.texture_channels + DRAWING_CHANNELS, config.grid, config.grid)
    with torch.no_grad():
        trunk = Trunk(generator).cpu().eval()
    return trace_to_onnx(trunk, (cells, torch.zeros(1, MOTION_SIZE)), INPUTS, OUTPUTS)


def trace_to_onnx(
    network: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """A network in evaluation as an ONNX graph of the static shapes of `inputs`."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the tracing exporter is deprecated, but the new one needs onnxscript
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            network,
            inputs,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
        )
        return path.read_bytes()


def quantize(graph: bytes, feeds: Sequence[Feed], operations: Sequence[str] = ALL_OPERATIONS) -> bytes:
    """The graph in 8 bits (QDQ, per channel), its ranges calibrated on `feeds`: inputs of real frames."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises a preparation that our graph does not need
        try:
            quantize_static(
                onnx.load_from_string(graph),
                path,
                _Feeds(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # CPUs without VNNI add two products in 16 bits, which overflow otherwise
                op_types_to_quantize=list(operations) or None,
            )
        finally:
            logging.root.setLevel(level)
        return path.read_bytes()


def export_onnx(generator: Generator, path: Path) -> None:
    """Write `to_onnx` to a file, atomically. Raises OutputError."""
    with saving(path) as part:
        part.write_bytes(to_onnx(generator))


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)
