"""Processes of their own that begin in a moment: they fork off a bare one that has imported what is heavy, once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# What is not installed is left out.
HEAVY = [
    "omokage.cli.animate",
    "omokage.pipelines.animate",
    "omokage.tracking.landmarks",
    "omokage.talking.training.train",
    "omokage.avatar.paper.train",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.t5.modeling_t5",
    "transformers.models.wav2vec2.modeling_wav2vec2",
]


class Started:
    """A Python process that runs a script, with `sys.argv[1:]` and environment of its own."""

    def __init__(self, script: str, arguments: Sequence[Any], folder: Path, **environment: str) -> None:
        """folder: where to keep what it says; nothing is left of it after `wait`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        self.said = [folder / f"{name}-{environment.get('RANK', 0)}" for name in ("out", "err")]
        given = (script, [str(one) for one in arguments], {**os.environ, **environment}, self.said)
        self.process: BaseProcess = context.Process(target=_run, args=given)
        self.process.start()

    def wait(self, timeout_s: float = 240.0) -> tuple[int, str, str]:
        """Its exit status (negative: the signal that ended it), what it printed, and what it told as errors."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
        assert self.process.exitcode is not None, self.said[1].read_text()
        out, err = (file.read_text() for file in self.said)
        for file in self.said:
            file.unlink()
        return self.process.exitcode, out, err


def places(count: int) -> list[dict[str, str]]:
    """The environment of each of so many processes that work together, as `torchrun` makes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _run(script: str, arguments: list[str], environment: dict[str, str], said: list[Path]) -> None:
    for stream, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["omokage", *arguments]
    exec(compile(script, "script", "exec"), {"__name__": "__main__"})
