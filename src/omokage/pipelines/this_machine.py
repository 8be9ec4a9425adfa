"""What this machine can do and has free, and how long that is for people."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from omokage.talking.model import Machine
from omokage.talking.placement import let_go

TIMED_S = 0.3
PACKAGES = ("torch", "numpy", "numba", "mediapipe", "av", "onnxruntime", "openvino")


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
        let_go()  # what an earlier animation of this process took is not free until then
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


def machine() -> dict[str, Any]:
    """What the numbers hold for: processor, cores, load, versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    versions["torch"] = str(torch.__version__)  # with its build, which the package's version may lack
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in values.items()}
    features = [
        name
        for name in ("avx2", "avx512f", "avx512_vnni", "amx_int8")
        if name in named.get("flags", "").split()
    ]
    return f"{named.get('model name', platform.processor())} ({' '.join(features)})"
