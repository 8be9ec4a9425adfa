"""A task on an untrusted file: in a process of its own that can do little else, or in this one.

`run` is the only way to a decoder. See `confinement` for what that process lacks, and docs/safety.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Final, TypeVar

import numpy as np

from omokage.errors import InternalError, MediaError
from omokage.files import Given
from omokage.media.limits import InputLimits, input_limits
from omokage.media.records import (
    LONGEST_LINE,
    Alive,
    Answer,
    Data,
    Done,
    Failed,
    Handed,
    Message,
    RawStill,
    Ready,
    StillsTask,
    StillTask,
    Task,
    from_line,
    one_line,
    to_line,
)
from omokage.media.source import PICTURE, Source, open_source
from omokage.media.worker import OUT_OF_MEMORY, answers

logger = logging.getLogger(__name__)

Wanted = TypeVar("Wanted", bound=Answer)
_LINE_BYTES: Final = 1 << 12
_PIPE_BYTES: Final = 1 << 20
_SET_PIPE_SIZE: Final = 1031  # of fcntl, Linux
_SUGGEST: Final = "do not trust this file, or export it again, as H.264 in an MP4 or as a PNG"


def run(path: Path, task: Task, wanted: type[Wanted]) -> Generator[Wanted, None, None]:
    """The answers to a task, one by one; their data belong to the caller.

    Raises MediaError when the file cannot be read, asks for too much, or breaks the decoder.
    """
    limits = input_limits()
    with open_source(path, limits) as source:
        given = _in_a_process(source, task, limits) if limits.is_sandboxed else _here(source, task, limits)
        with contextlib.closing(given) as incoming:
            for answer in incoming:
                if not isinstance(answer, wanted):
                    raise MediaError(f"the decoder of {path} gave no sensible answer; {_SUGGEST}")
                yield answer


def run_once(path: Path, task: Task, wanted: type[Wanted]) -> Wanted:
    """The one answer to a task; see `run`."""
    with contextlib.closing(run(path, task, wanted)) as incoming:
        for answer in incoming:
            return answer
    raise MediaError(f"the decoder of {path} gave no answer; {_SUGGEST}")


def run_stills(paths: Iterable[Path]) -> Generator[RawStill, None, None]:
    """Many pictures of one origin, one after the other in one process, which starts in a fifth of a second.

    Raises MediaError like `run`.
    """
    limits = input_limits()
    if not limits.is_sandboxed:
        yield from (run_once(path, StillTask(), RawStill) for path in paths)
        return
    with _started(Path(), PICTURE, StillsTask(), limits, subprocess.PIPE) as decoder:
        for path in paths:
            with open_source(path, limits) as source:
                data = source.file.read()
            # When it breaks down meanwhile, its answer tells.
            with contextlib.suppress(OSError):
                decoder.hand(Handed(str(path), data))
            answer = _next_answer(path, decoder, limits)
            if not isinstance(answer, RawStill):
                raise MediaError(f"the decoder of {path} gave no sensible answer; {_SUGGEST}")
            yield answer


def _here(source: Source, task: Task, limits: InputLimits) -> Generator[Answer, None, None]:
    try:
        for answer in answers(source, task, limits):
            if not isinstance(answer, Alive):
                yield replace(answer, data=bytearray(answer.data))
    except MemoryError as error:
        raise _too_much_memory(source.path, limits) from error


def _in_a_process(source: Source, task: Task, limits: InputLimits) -> Generator[Answer, None, None]:
    assert isinstance(source.file, Given)
    with _started(source.path, source.kind, task, limits, source.file) as decoder:
        while (answer := _next_answer(source.path, decoder, limits)) is not None:
            yield answer


def _next_answer(path: Path, decoder: _Decoder, limits: InputLimits) -> Answer | None:
    """What comes next of a file, or None when all has come. Raises MediaError."""
    while True:
        try:
            message = decoder.next_message(limits.silence_s, 8 * limits.max_side**2)
        except ValueError as error:
            raise MediaError(
                f"the decoder of {path} gave no sensible answer ({error}); {_SUGGEST}"
            ) from error
        match message:
            case None:
                raise _ended(path, decoder, limits)
            case Done():
                return None
            case Failed(is_ours=True):
                raise InternalError(f"decoding {path} failed: {one_line(message.sentence)}")
            case Failed():
                raise MediaError(one_line(message.sentence))
            case Ready():
                decoder.is_ready = True
                logger.debug("decoding %s without: %s", path, one_line(message.protections))
            case Alive():
                pass
            case Handed():
                raise MediaError(f"the decoder of {path} gave no sensible answer; {_SUGGEST}")
            case _:
                return message


class _Decoder:
    """The process and the reading end of its answers, with a guard that ends it when it is silent for too long."""

    def __init__(self, process: subprocess.Popen[bytes], wire: IO[bytes]) -> None:
        self.process = process
        self.is_ready = False
        self.is_silent = False
        self._wire = wire
        self._rest = b""
        self._deadline: float | None = None
        self._is_closed = threading.Event()
        self._guard = threading.Thread(target=self._watch, name="decoder guard", daemon=True)
        self._guard.start()

    def next_message(self, silence_s: float, most: int) -> Message | None:
        """What it says next, of at most `most` bytes of data; None when it has ended. Raises ValueError."""
        self._deadline = time.monotonic() + silence_s
        try:
            while (end := self._rest.find(b"\n")) < 0:
                if len(self._rest) > LONGEST_LINE:
                    raise ValueError("an endless line")
                more = self._wire.read(_LINE_BYTES)
                if not more:
                    return None
                self._rest += more
            announced = from_line(self._rest[:end])
            self._rest = self._rest[end + 1 :]
            if announced.size > most:
                raise ValueError(f"{announced.size} bytes at once")
            data = self._read(announced.size)
        finally:
            self._deadline = None
        message = announced.finish(data) if data is not None else None
        if message is not None and not isinstance(message, Message):
            raise ValueError("a task")
        return message

    def hand(self, handed: Handed) -> None:
        """Give it a file through the pipe that is its standard input. Raises OSError when it has ended."""
        assert self.process.stdin is not None
        for part in (to_line(handed), handed.data):
            rest = memoryview(part)
            while rest:
                rest = rest[self.process.stdin.write(rest) :]

    def close(self) -> None:
        self._is_closed.set()
        self.process.kill()
        self.process.wait()
        self._guard.join()
        self._wire.close()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _read(self, size: int) -> Data | None:
        """Exactly so many bytes in memory of their own; None when it ends before."""
        data = np.empty(size, np.uint8)  # not set to zero first
        view = memoryview(data)  # type: ignore[arg-type]
        done = min(size, len(self._rest))
        view[:done] = self._rest[:done]
        self._rest = self._rest[done:]
        while done < size:
            # A raw file: a read gives what is there.
            count = self._wire.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                return None
            done += count
        return view

    def _watch(self) -> None:
        while not self._is_closed.wait(0.25):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self.is_silent = True
                self.process.kill()
                return


def _command(request: str) -> list[str]:
    # -P: files beside the user's recordings are no modules.
    return [sys.executable, "-P", "-m", "omokage.media.worker", request]


@contextmanager
def _started(path: Path, kind: str, task: Task, limits: InputLimits, file: Given | int) -> Iterator[_Decoder]:
    """The process, with `file` as its standard input."""
    said = {"path": str(path), "kind": kind, "limits": limits.to_json(), "task": json.loads(to_line(task))}
    # Each arena takes 64 MB of address space.
    settings = os.environ | {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        _command(json.dumps(said)),
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=settings,
    )
    assert process.stdout is not None
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(process.stdout, _SET_PIPE_SIZE, _PIPE_BYTES)
    decoder = _Decoder(process, process.stdout)
    try:
        yield decoder
    finally:
        decoder.close()


def _ended(path: Path, decoder: _Decoder, limits: InputLimits) -> MediaError | InternalError:
    """Why it ended without having said so."""
    status = decoder.process.wait()
    if not decoder.is_ready and status == 1:
        return InternalError(
            f"the decoder for {path} cannot be started; 'python -P -m omokage.media.worker' shows the reason"
        )
    if decoder.is_silent:
        reason = f"it gave nothing for {limits.silence_s:g} s"
    elif status == OUT_OF_MEMORY:
        return _too_much_memory(path, limits)
    elif _died_of("SIGXCPU", status):
        reason = "it took far more computing time than its length allows"
    elif _died_of("SIGKILL", status):
        reason = "the system ended it, most often for lack of memory"
    else:
        reason = f"it broke down (status {status})"
    return MediaError(f"the decoder of {path} was stopped: {reason}; {_SUGGEST}")


def _died_of(name: str, status: int) -> bool:
    number = getattr(signal, name, None)  # Windows has neither
    return number is not None and status == -number


def _too_much_memory(path: Path, limits: InputLimits) -> MediaError:
    return MediaError(
        f"{path} needs more memory to decode than the {limits.memory_gb:g} GB that are allowed; {_SUGGEST}"
    )
