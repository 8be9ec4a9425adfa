"""The decoder's process: one task on one file, which is its standard input. Started by `sandbox`, as a module.

Its standard output is the wire of `records`. It confines itself before the first byte of the file is looked at.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from omokage.errors import MediaError
from omokage.media.confinement import allow_cpu, confine
from omokage.media.limits import InputLimits
from omokage.media.records import (
    LONGEST_LINE,
    Alive,
    Answer,
    CommentTask,
    Done,
    Failed,
    Handed,
    ManifestTask,
    Message,
    PicturesTask,
    RawSound,
    Ready,
    ScanTask,
    SoundTask,
    StillsTask,
    StillTask,
    Task,
    from_line,
    to_line,
)
from omokage.media.source import PICTURE, Source

_BYTES_A_SECOND = 20e6  # of a file that is read from end to end
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
        case CommentTask() if source.kind == PICTURE:
            from omokage.media.still import still_comment

            return still_comment(source, limits)
        case CommentTask():
            from omokage.media.demux import clip_comment

            return clip_comment(source, limits)
        case ManifestTask():
            from omokage.media.manifest import manifest_of

            return manifest_of(source, task)
        case StillsTask():
            from omokage.media.still import still_of

            return (still for each in _handed(source) for still in still_of(each, limits))


def _handed(pipe: Source) -> Iterator[Source]:
    """What comes through standard input, until it is closed."""
    wire = io.BufferedReader(pipe.file)
    while line := wire.readline(LONGEST_LINE):
        announced = from_line(line)
        handed = announced.finish(wire.read(announced.size))
        assert isinstance(handed, Handed)
        yield Source(Path(handed.path), io.BytesIO(handed.data), pipe.kind)


def main() -> NoReturn:
    """Read the request of the command line, answer on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    request = json.loads(sys.argv[1])
    limits = InputLimits.from_json(request["limits"])
    task = from_line(json.dumps(request["task"]).encode()).finish(b"")
    assert isinstance(task, Task)
    source = Source(Path(request["path"]), io.FileIO(os.dup(0), "r"), request["kind"])
    work = answers(source, task, limits)  # imports what it needs while files may still be opened
    _send(Ready(", ".join(confine(limits, _allowance_s(task, limits)))))
    try:
        for number, answer in enumerate(work):
            if number == 0 and isinstance(answer, RawSound):
                allow_cpu(_allowance_s(task, limits, answer.announced_s))
            if isinstance(task, StillsTask):  # each anew
                allow_cpu(time.process_time() + _allowance_s(task, limits))
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


def _allowance_s(task: Task, limits: InputLimits, claimed_s: float = 0.0) -> float:
    """Computing time, s: for the headers and the first picture, for going through the file, and for what it holds."""
    if isinstance(task, PicturesTask):
        claimed_s = task.duration_s
    held_s = min(max(0.0, claimed_s), limits.max_hours * 3600)
    opening = limits.opening_cpu_s * (4 if isinstance(task, StillTask | StillsTask) else 1)
    return opening + os.fstat(0).st_size / _BYTES_A_SECOND + limits.cpu_share * held_s


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
