"""Cues: what changes while something is said, from a list in a JSON file.

    [{"at": 0.0, "mood": "friendly"}, {"at": 3.2, "energy": 1.3, "look": [12, -4]}, {"at": 5, "look": [0, 0]}]

A cue changes what it names and leaves the rest; every change takes `CHANGE_S`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.files import parse_json, read_given_text

Float = NDArray[np.float64]

CHANGE_S = 0.4
RANGES = {"energy": (0.0, 2.0), "head": (0.0, 2.0)}
FARTHEST_LOOK_DEG = 25.0


@dataclass(frozen=True, slots=True)
class Cue:
    """From `at` seconds on: mood, energy and head as in `driver.Style` and `liveliness.Life`; look: yaw and pitch of
    the eyes in degrees beside the camera, to the right of the picture and up. None: as before."""

    at: float
    mood: str | None = None
    energy: float | None = None
    head: float | None = None
    look: tuple[float, float] | None = None

    def followed_by(self, later: Cue) -> Cue:
        """Both as one: what the later one names holds."""
        named = {name: getattr(later, name) for name in ("mood", "energy", "head", "look")}
        return replace(self, **{name: value for name, value in named.items() if value is not None})


@dataclass(frozen=True)
class Course:
    """Frame by frame: mood (T, M), shares of the given names; energy, head (T,); look (T, 2), radians."""

    mood: Float
    energy: Float
    head: Float
    look: Float


def read_cues(path: Path, moods: Sequence[str]) -> tuple[Cue, ...]:
    """The cues of a file in order of time. Raises InputError that names the cue and what is wrong with it."""
    try:
        listed = parse_json(read_given_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); give a list of cues") from error
    if not isinstance(listed, list):
        raise InputError(f'{path} holds no list; write [{{"at": 0.5, "mood": "friendly"}}, ...]')
    cues = [cue_of(item, f"{path}, cue {number}", moods) for number, item in enumerate(listed, 1)]
    return tuple(sorted(cues, key=lambda cue: cue.at))


def course(cues: Sequence[Cue], start: Cue, time_s: Float, moods: Sequence[str]) -> Course:
    """What holds at every time (T,). start: all four of what holds before the first cue."""
    mood = np.zeros((len(time_s), len(moods)))
    mood[:, moods.index(str(start.mood))] = 1
    energy, head = (np.full(len(time_s), float(value or 0)) for value in (start.energy, start.head))
    look = np.zeros((len(time_s), 2)) + np.radians(start.look or (0.0, 0.0))
    for cue in cues:
        way = np.clip((time_s - cue.at) / CHANGE_S, 0, 1)
        way = way * way * (3 - 2 * way)
        if cue.mood is not None:
            mood += way[:, None] * (np.eye(len(moods))[moods.index(cue.mood)] - mood)
        if cue.energy is not None:
            energy += way * (cue.energy - energy)
        if cue.head is not None:
            head += way * (cue.head - head)
        if cue.look is not None:
            look += way[:, None] * (np.radians(cue.look) - look)
    return Course(mood, energy, head, look)


def cue_of(item: Any, where: str, moods: Sequence[str]) -> Cue:
    """What a JSON object asks for. Raises InputError that begins with `where`."""
    known = ("at", "mood", *RANGES, "look")
    if not isinstance(item, dict) or not _is_number(item.get("at")) or item["at"] < 0:
        raise InputError(f'{where} needs a time in seconds as "at", 0 or later; got {json.dumps(item)[:80]}')
    if unknown := sorted(set(item) - set(known)):
        raise InputError(f"{where} has '{unknown[0]}', which is none of {', '.join(known)}")
    if "mood" in item and item["mood"] not in moods:
        raise InputError(f"{where} has the mood '{item['mood']}'; give one of {', '.join(moods)}")
    for name, (low, high) in RANGES.items():
        if name in item and not (_is_number(item[name]) and low <= item[name] <= high):
            raise InputError(f"{where}: {name} must lie between {low:g} and {high:g}, got {item[name]}")
    look = item.get("look")
    if look is not None and not (
        isinstance(look, list)
        and len(look) == 2
        and all(_is_number(value) and abs(value) <= FARTHEST_LOOK_DEG for value in look)
    ):
        raise InputError(
            f"{where}: look must be yaw and pitch in degrees, within {FARTHEST_LOOK_DEG:g}, such as [10, 0]; got {look}"
        )
    return Cue(
        at=float(item["at"]),
        mood=item.get("mood"),
        energy=item.get("energy"),
        head=item.get("head"),
        look=None if look is None else (float(look[0]), float(look[1])),
    )


def _is_number(value: Any) -> bool:
    # Whole numbers of JSON may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
