"""Other programs: what may not, or must not, run inside this process."""

from __future__ import annotations

import subprocess
import sys

from omokage.errors import MediaError


def run_module(module: str, request: bytes, *, timeout_s: float) -> bytes:
    """Run a Python module in a process of its own: `request` goes to its input, its output comes back.

    Raises MediaError with its last line of complaint when it fails or takes longer than `timeout_s`.
    """
    try:
        done = subprocess.run(
            # -P: files beside the user's recordings are no modules.
            [sys.executable, "-P", "-m", module],
            input=request,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError(
            f"a helper program took longer than {timeout_s:.0f} s; give it less to do"
        ) from error
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip().splitlines()
        raise MediaError(complaint[-1] if complaint else f"{module} ended with status {done.returncode}")
    return done.stdout
