"""The register of renders: what this installation has released, by the id in its marks.

<home>/marks/renders.jsonl    one JSON object a line, only ever appended to

A row is one write of a whole line, put on the disk before the released file takes its name; so a crash leaves a row too
many, never a marked file without one. A line that a crash has cut is passed over. This is the only module that knows
the file: a chain of hashes over the rows would go in here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from omokage.errors import OutputError
from omokage.files import output_error
from omokage.home import HOME_VARIABLE
from omokage.trust.mark_key import marks_folder

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Render:
    """A released file.

    render_id: 12 hexadecimal digits, as in its private mark.  time: UTC, ISO 8601.  sha256: of the whole file.
    file: its name without folders.  purpose: as given.  avatar: SHA-256 of the recording it was made from, or empty.
    fingerprint: `Fingerprint.text` of its pictures, or empty in rows of before there was one.
    """

    render_id: str
    time: str
    sha256: str
    file: str
    purpose: str = ""
    avatar: str = ""
    fingerprint: str = ""


def now() -> str:
    """The time for a row."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def registry_path() -> Path:
    """The file, which may not exist yet."""
    return marks_folder() / "renders.jsonl"


def register(render: Render) -> None:
    """Append a row and wait until it is on the disk. Raises OutputError."""
    path = registry_path()
    row = json.dumps({"format": FORMAT} | asdict(render), ensure_ascii=False, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        try:
            size = os.fstat(handle).st_size
            is_cut = size > 0 and os.lseek(handle, size - 1, os.SEEK_SET) >= 0 and os.read(handle, 1) != b"\n"
            line = (("\n" if is_cut else "") + row + "\n").encode()
            if os.write(handle, line) != len(line):
                raise OSError(None, "only a part of the row was written")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(
            f"the register of renders takes no row, so nothing was released: {output_error(path, error)} "
            f"({HOME_VARIABLE} names the folder)"
        ) from error


def renders_of(render_id: str) -> tuple[Render, ...]:
    """All rows of an id, oldest first; equal runs have equal ids."""
    return tuple(render for render in all_renders() if render.render_id == render_id)


def all_renders() -> Iterator[Render]:
    """Every row, oldest first."""
    try:
        with registry_path().open(encoding="utf-8", errors="replace") as file:
            for line in file:
                row = _row(line)
                if row is not None:
                    yield row
    except FileNotFoundError:
        return


def _row(line: str) -> Render | None:
    """None for a line that was cut, or is of a newer version."""
    try:
        values: Any = json.loads(line)
        if values.pop("format") != FORMAT:
            return None
        return Render(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
