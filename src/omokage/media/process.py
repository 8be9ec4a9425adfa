"""Other programs: what may not, or must not, run inside this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from omokage.errors import MediaError, OutputError


def run_module(module: str, request: bytes, *, timeout_s: float) -> bytes:
    """Run a Python module in a process of its own: `request` goes to its input, its output comes back.

    Raises MediaError with its last line of complaint when it fails or takes longer than `timeout_s`.
    """
    try:
        # -P: files beside the user's recordings are no modules.
        done = _run([sys.executable, "-P", "-m", module], request, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise MediaError(
            f"a helper program took longer than {timeout_s:.0f} s; give it less to do"
        ) from error
    if done.returncode:
        raise MediaError(_complaint(done) or f"{module} ended with status {done.returncode}")
    return done.stdout


def run_program(command: Sequence[str], request: bytes, *, timeout_s: float) -> bytes:
    """Run a program that the user named, without a shell: `request` goes to its input, its output comes back.

    Raises OutputError when it cannot be started, fails or takes longer than `timeout_s`.
    """
    try:
        done = _run(command, request, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise OutputError(f"{command[0]} gave no answer within {timeout_s:.0f} s") from error
    except OSError as error:
        raise OutputError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    if done.returncode:
        said = _complaint(done)
        raise OutputError(f"{command[0]} ended with status {done.returncode}" + (f": {said}" if said else ""))
    return done.stdout


def _run(command: Sequence[str], request: bytes, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=request, capture_output=True, timeout=timeout_s, check=False)


def _complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
