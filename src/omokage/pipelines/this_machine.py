"""What this machine can do and has free, and how long that is for people."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from omokage.talking.model import Machine

TIMED_S = 0.3


def matmul_rate(machine: Machine) -> float:
    """Floating-point operations a second of a large matrix product, measured in a moment."""
    side = 4096 if machine.device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=machine.device).to(machine.dtype) for _ in range(2))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            product = left @ right
        product[0, 0].item()  # waits for the device
        return time.perf_counter() - start

    seconds(1)
    count = max(1, int(TIMED_S / max(seconds(1), 1e-6)))
    return 2.0 * side**3 * count / seconds(count)


def free_bytes(device: torch.device) -> float:
    """Memory that could be used: of the graphics card, or of the machine where it tells; infinite where not."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def duration(minutes: float) -> str:
    """A length of time for people."""
    for limit, scale, unit in ((1.5, 1 / 60, "seconds"), (90, 1, "minutes"), (72 * 60, 60, "hours")):
        if minutes < limit:
            return f"{max(minutes / scale, 1):.0f} {unit}"
    return f"{minutes / 60 / 24:.0f} days"
