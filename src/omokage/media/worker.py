"""The decoder's process: one task on one file, which is its standard input. Started by `sandbox`, as a module.

Its standard output is the wire of `records`. It confines itself before the first byte of the file is looked at.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from omokage.errors import MediaError
from omokage.media.confinement import allow_cpu, confine
from omokage.media.limits import InputLimits
from omokage.media.records import (
    Alive,
    Answer,
    Done,
    Failed,
    Message,
    PicturesTask,
    RawScan,
    RawSound,
    Ready,
    ScanTask,
    SoundTask,
    StillTask,
    Task,
    from_line,
    to_line,
)
from omokage.media.source import Source

OUT_OF_MEMORY = 71  # exit status: the parent knows the limit and says it


def answers(source: Source, task: Task, limits: InputLimits) -> Iterator[Answer | Alive]:
    """Do a task; here or in a process of its own. Raises MediaError."""
    match task:
        case ScanTask():
            from omokage.media.demux import scan_source

            return scan_source(source, limits)
        case PicturesTask():
            from omokage.media.pictures import pictures_of

            return pictures_of(source, task, limits)
        case SoundTask():
            from omokage.media.sound import sound_of

            return sound_of(source, task, limits)
        case StillTask():
            from omokage.media.still import still_of

            return still_of(source, limits)


def main() -> NoReturn:
    """Read the request of the command line, answer on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    request = json.loads(sys.argv[1])
    limits = InputLimits.from_json(request["limits"])
    task = from_line(json.dumps(request["task"]).encode()).finish(b"")
    assert isinstance(task, ScanTask | PicturesTask | SoundTask | StillTask)
    source = Source(Path(request["path"]), io.FileIO(os.dup(0), "r"), request["kind"])
    work = answers(source, task, limits)  # imports what it needs while files may still be opened
    _send(Ready(", ".join(confine(limits))))
    try:
        for number, answer in enumerate(work):
            if number == 0:
                _allow_for(task, answer, limits)
            _send(answer)
        _send(Done())
    except MediaError as error:
        _send(Failed(str(error), is_ours=False))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BrokenPipeError:
        pass  # nobody wants more
    except Exception as error:
        _send(Failed(f"{type(error).__name__}: {error}", is_ours=True))
    os._exit(0)  # nothing of a library that read the file runs once more


def _allow_for(task: Task, first: Answer | Alive, limits: InputLimits) -> None:
    """The file has opened: computing time in proportion to what it claims to be, up to the longest that is read."""
    claimed_s = task.duration_s if isinstance(task, PicturesTask) else 0.0
    if isinstance(first, RawSound):
        claimed_s = first.announced_s
    if isinstance(first, Alive | RawScan):
        claimed_s = limits.opening_cpu_s  # reading through a large file
    claimed_s = min(max(0.0, claimed_s), limits.max_hours * 3600)
    allow_cpu(2 * limits.opening_cpu_s + limits.cpu_share * claimed_s)


def _send(message: Message) -> None:
    line = to_line(message)
    _write(line)
    if data := getattr(message, "data", None):
        _write(data)


def _write(data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    main()
