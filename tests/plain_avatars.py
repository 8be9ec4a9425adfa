"""Avatar files without encryption, as earlier versions wrote them, for tests that look into the layout."""

from __future__ import annotations

from pathlib import Path

from omokage.avatar.container import read_content


def made_plain(path: Path) -> Path:
    """Write a sealed avatar file anew as it was before files were sealed."""
    path.write_bytes(read_content(path).serialized())
    return path
