"""What `omokage weights list` shows."""

from __future__ import annotations

from collections.abc import Sequence

from omokage.weights.registry import size_text
from omokage.weights.store import Condition, Installation


def table(states: Sequence[Installation]) -> str:
    """A few lines for each model."""
    return "\n\n".join(_lines(state) for state in states)


def _lines(state: Installation) -> str:
    spec = state.spec
    is_there = state.condition is not Condition.ABSENT
    size = size_text(state.bytes_used if is_there else spec.installed_bytes)
    lines = [
        f"{spec.name}: {state.condition.value}, {size}{'' if is_there else ' when installed'}",
        f"  {spec.title}: {spec.used_for}",
        f"  licence: {spec.licences}; commercial use: {spec.commercial.value}",
    ]
    lines += [f"    {part.title}: {part.licence.name}" for part in spec.parts if len(spec.parts) > 1]
    if not all(file.sha256 for file in spec.files):
        lines.append(
            "  checksums: none is published; they are recorded when a pull is installed and checked from then on"
        )
    lines += [f"  {state.detail}"] * bool(state.detail)
    lines += [f"  folder: {state.folder}"] * is_there
    return "\n".join(lines)
