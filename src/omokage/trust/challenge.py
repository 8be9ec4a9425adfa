"""What a person is asked to say and do before the camera, so that an old clip of them does not pass for an agreement.

A challenge is six digits and three gestures, drawn by chance, answered within ten minutes and once. Under
`data_home()/consents/challenges.jsonl` lies one row for each that was issued and for each that was answered.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from omokage.errors import ConsentError
from omokage.files import output_error, parse_json
from omokage.trust.consents import made_folder

ROWS = "challenges.jsonl"
DIGITS, GESTURES = 6, 3
VALID = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Challenge:
    """code: the digits to say.  gestures: names, in order.  issued: UTC, ISO 8601."""

    code: str
    gestures: tuple[str, ...]
    issued: str

    @property
    def until(self) -> datetime:
        return datetime.fromisoformat(self.issued) + VALID


def issue(gestures: Sequence[str], *, now: datetime | None = None) -> Challenge:
    """A new challenge of three of these gestures; it is on the disk. Raises OutputError."""
    known = {row["code"] for row in _rows()}
    while (code := "".join(secrets.choice("0123456789") for _ in range(DIGITS))) in known:
        pass
    chosen = secrets.SystemRandom().sample(list(gestures), GESTURES)
    when = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    challenge = Challenge(code, tuple(chosen), when)
    _append({"what": "issued"} | asdict(challenge))
    return challenge


def open_challenge(heard: str, clip_sha256: str, *, now: datetime | None = None) -> Challenge:
    """The challenge whose digits were heard in a clip. Raises ConsentError when none may be answered by it now."""
    now, code = now or datetime.now(UTC), "".join(letter for letter in heard if letter.isdigit())
    rows = _rows()
    issued = [row for row in rows if row["what"] == "issued" and row["code"] == code]
    if not issued:
        raise ConsentError(
            f"'{heard}' are not the digits of a challenge of this installation; 'omokage consent challenge' makes one"
        )
    challenge = Challenge(code, tuple(issued[0]["gestures"]), issued[0]["issued"])
    answered = [row for row in rows if row["what"] == "answered"]
    if any(row["code"] == code for row in answered):
        raise ConsentError("this challenge was answered before; each counts once, ask for a new one")
    if any(row["clip"] == clip_sha256 for row in answered):
        raise ConsentError("this clip answered another challenge; each counts once, record a new one")
    if not datetime.fromisoformat(challenge.issued) - timedelta(minutes=1) <= now <= challenge.until:
        raise ConsentError(
            f"this challenge could be answered until {challenge.until.isoformat(timespec='minutes')}; ask for a new one"
        )
    return challenge


def close_challenge(challenge: Challenge, clip_sha256: str, *, now: datetime | None = None) -> None:
    """It was answered; neither it nor the clip counts again. Raises OutputError."""
    when = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    _append({"what": "answered", "code": challenge.code, "clip": clip_sha256, "when": when})


def _rows() -> list[dict[str, Any]]:
    path = made_folder() / ROWS
    try:
        return [dict(parse_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise ConsentError(
            f"{path} is damaged, so no challenge counts; remove it and ask for a new one"
        ) from error


def _append(row: dict[str, Any]) -> None:
    path = made_folder() / ROWS
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error
