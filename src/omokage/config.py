"""What every stage may be given: a progress callback, and JSON for the frozen-dataclass configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a long-running stage.

    `stage` is a word for people ('tracking'); `done` of `total` units are finished (`total` 0: unknown);
    `note` adds one short fact, such as a loss.
    """

    stage: str
    done: float
    total: float
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """The default callback: say nothing."""


@dataclass(frozen=True)
class Config:
    """Base of the frozen configurations: to and from plain JSON values."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json` output. Unknown names raise TypeError; lists become tuples."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
