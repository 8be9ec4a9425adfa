"""The folder in which omokage keeps what belongs to this installation: models, the key of its marks, its renders."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOME_VARIABLE = "OMOKAGE_HOME"


def data_home() -> Path:
    """`OMOKAGE_HOME`, or the folder that the platform keeps for a user's data; it may not exist yet."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen).expanduser()
    match sys.platform:
        case "win32":
            data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        case "darwin":
            data = Path.home() / "Library" / "Application Support"
        case _:
            data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "omokage"


@contextmanager
def passing_home(*variables: str) -> Iterator[Path]:
    """Give this process a home that goes away again, for measurements: what they release is nobody's history.

    variables: of the environment, which name other places; unset meanwhile.
    """
    kept = {name: os.environ.pop(name, None) for name in (HOME_VARIABLE, *variables)}
    try:
        with tempfile.TemporaryDirectory(prefix="omokage-") as folder:
            os.environ[HOME_VARIABLE] = folder
            yield Path(folder)
    finally:
        os.environ.pop(HOME_VARIABLE, None)
        os.environ.update({name: value for name, value in kept.items() if value is not None})
