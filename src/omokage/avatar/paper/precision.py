"""How a graphics card computes convolutions and products: how exactly, and by which kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def matrix_precision(precision: str) -> Iterator[None]:
    """Whether a graphics card may shorten the factors of float32 products to 19 bits: not in 'fp32'."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Let the library of convolutions try its kernels for every new shape, and keep what is fastest here."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
