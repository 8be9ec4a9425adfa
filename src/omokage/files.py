"""Files that users give and results on disk.

What was given is read when it is an ordinary file of a sensible size. A result is complete, or it is not there. And a
file is known by its digest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

from omokage.errors import InputError, OutputError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file grew beyond the limit set for this disk or process; choose another folder or a shorter clip",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "there is no permission to write there; choose another folder",
    errno.EPERM: "there is no permission to write there; choose another folder",
    errno.ENOENT: "its folder does not exist; create the folder first",
    errno.ENOTDIR: "its folder is a file; choose another folder",
    errno.EISDIR: "it is a folder; give a file name",
    errno.EEXIST: "it is a file, and a folder is needed; choose another name",
}


Given: TypeAlias = FileIO
MOST_TEXT_BYTES = 64_000_000  # three hours of a capture app's table at 60 frames a second


def open_given(path: Path, error: type[InputError] = InputError) -> Given:
    """Open a file that a user named, for reading and without a buffer.

    Raises `error` with one sentence when it is a folder, a device, a pipe or a socket, is not there, or may not be
    read: what is no ordinary file may never end, or wait for somebody to write into it.
    """
    try:
        if path.is_dir():
            raise error(f"{path} is a folder; give the file inside it")
        refuse_device(path, error)
        file = path.open("rb", buffering=0)
    except FileNotFoundError as problem:
        raise error(f"{path} does not exist; check the name and the folder") from problem
    except (OSError, ValueError) as problem:  # ValueError: a name with a zero byte
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path} cannot be read ({reason}); check its permissions") from problem
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced just now
        file.close()
        raise error(f"{path} is a device or a pipe; give an ordinary file")
    return file


def is_given_file(path: Path) -> bool:
    """`Path.is_file`, and False for names that no system takes: too long, or with a zero byte."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def refuse_device(path: Path, error: type[InputError] = InputError, *, most_bytes: int | None = None) -> None:
    """For libraries that open a path themselves: raise `error` for a device, a pipe or a socket, or too many bytes."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise error(f"{path} is a device or a pipe; give an ordinary file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise error(
            f"{path} has {found.st_size / 1e9:.1f} GB; at most {most_bytes / 1e9:g} GB are read, so use another file"
        )


def read_given_text(path: Path, *, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of a file that a user named: UTF-8, with or without a byte order mark.

    Raises InputError for a device, a pipe or more than `most_bytes`; OSError and UnicodeDecodeError for the rest,
    because only the caller knows what was meant to be in it.
    """
    refuse_device(path)
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"{path} has more than {most_bytes / 1e6:g} MB of text; give a shorter file")
    return data.decode("utf-8-sig")


def parse_json(text: str) -> Any:
    """The values of a JSON text. Raises ValueError, also for one that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def refuse_links_out(folder: Path, paths: Iterable[Path]) -> None:
    """Files that were found in a folder must lie in it: raise InputError for a link that leads elsewhere."""
    root = folder.resolve()
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise InputError(
                f"{path} is a link to a file outside {folder}; put the file itself there, or leave it out"
            )


@contextmanager
def saving(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Write a file atomically: give the `.part` neighbor to write, and let it take the place of `path` at the end.

    After an error or an interruption no neighbor is left, and `path` is what it was. OSErrors, and `failures` of the
    library that writes, become OutputError.
    """
    part = path.with_name(path.name + ".part")
    kinds: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except kinds as error:
        raise output_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait_s: float = 30.0) -> Iterator[None]:
    """One process and thread at a time: hold an exclusive lock on a file, which is made if missing and stays.

    The system lifts it when its holder ends, however that was. Raises OSError; TimeoutError is one.
    """
    with path.open("ab") as file:
        give_up = time.monotonic() + wait_s
        while not _try_lock(file.fileno()):
            if time.monotonic() > give_up:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held {path.name} for {wait_s:g} s")
            time.sleep(0.005)
        try:
            yield
        finally:
            _unlock(file.fileno())


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def result_folder(folder: Path) -> Iterator[Path]:
    """A folder for results, made with its parents if missing; what was made goes away again when the work fails.

    Raises OutputError, before the work, when it cannot be made or takes no file.
    """
    made: list[Path] = []
    try:
        try:
            made += [place for place in (folder, *folder.parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise output_error(folder, error) from error
        yield folder
    except BaseException:
        if made:
            shutil.rmtree(made[-1], ignore_errors=True)
        raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises InputError for a device or a pipe, and OSError."""
    refuse_device(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def material_digest(path: Path) -> str:
    """SHA-256 of a file, or of names and sizes of all that lies in a folder, such as a dataset.

    Raises what `file_digest` raises.
    """
    if not path.is_dir():
        return file_digest(path)
    held = [
        [file.relative_to(path).as_posix(), file.stat().st_size]
        for file in sorted(path.rglob("*"))
        if file.is_file()
    ]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def output_error(path: Path, error: Exception) -> OutputError:
    """The one sentence for a write that failed."""
    number = getattr(error, "errno", None)
    if number is None and (said := re.search(r"\(os error (\d+)\)", str(error))):  # as Rust libraries put it
        number = int(said[1])
    unknown = f"the system says '{getattr(error, 'strerror', None) or error}'; choose another folder"
    return OutputError(f"{path} cannot be written: {_REASONS.get(number or 0, unknown)}")
