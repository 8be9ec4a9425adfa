"""The audit log for people and for auditors: its last rows, and the whole of it in one signed file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC
from pathlib import Path

from omokage.errors import AuditError, InputError
from omokage.files import saving
from omokage.trust.audit import ERASE, FORGET, LIVE, LOG, REFUSAL, RELEASE, REPAIR, AuditLog
from omokage.trust.audit_check import EXPORT, stated_key
from omokage.trust.audit_row import Kept, Row, Value, make_row, parse_row
from omokage.trust.keys import public_name

Shown = tuple[Row, Mapping[str, Value] | None]


def export(output: Path, *, with_personal: bool = False) -> Row:
    """Write this user's whole log to one file, with a signed first line that names the key and the last row.

    To be kept where nobody who could change the log can reach: `audit_check.verify` compares with it. with_personal:
    also what is personal, as far as it was not erased. Raises InputError when there is no log, AuditError and
    OutputError.
    """
    log = AuditLog()
    stated_key(log.folder)
    with log.held() as key:
        last = log.ready(key)
        if last is None:
            raise InputError(f"the audit log in {log.folder} is empty; release something first")
        rows = (log.folder / LOG).read_bytes()
        personal = log.personal() if with_personal else {}
        facts = {"rows": last.number + 1, "head": last.hash, "key": public_name(key)}
        first = make_row(last.number + 1, EXPORT, facts, None, last.hash, key)
    with saving(output) as part, part.open("wb") as file:
        file.write(first.line + b"\n" + rows)
        file.writelines(kept.line + b"\n" for kept in personal.values())
    return first


def last_rows(count: int) -> list[Shown]:
    """The last rows of this user's log, oldest first, with what is personal of each if it is still there.

    Rows are given as they stand: `audit_check.verify` says whether they are true. Raises AuditError.
    """
    log = AuditLog()
    try:
        with (log.folder / LOG).open("rb") as file:
            lines = deque(file, maxlen=2 * count)  # some may be no rows
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuditError(
            f"{log.folder / LOG} cannot be read ({error.strerror}); check its permissions"
        ) from error
    rows = [row for line in lines if (row := parse_row(line.rstrip(b"\n"))) is not None]
    personal = log.personal()
    return [(row, _values(personal.get(row.personal or ""))) for row in rows[-count:]]


def _values(kept: Kept | None) -> Mapping[str, Value] | None:
    try:
        return kept.values() if kept is not None else None
    except (ValueError, TypeError):  # somebody changed it, which `verify` says
        return None


def rows_text(rows: Iterable[Shown]) -> str:
    """A table for people."""
    return "\n".join(_line(row, personal) for row, personal in rows)


def _line(row: Row, personal: Mapping[str, Value] | None) -> str:
    facts = row.facts
    what = {
        RELEASE: f"{facts.get('kind', '')} {str(facts.get('sha256', ''))[:12]}",
        REFUSAL: f"for {facts.get('reason', '')}",
        FORGET: f"personal data of {len(facts.get('rows', []))} rows",
        ERASE: f"keys of {len(facts.get('keys', []))} avatars",
        LIVE: f"stream {facts.get('state', '')}",
        REPAIR: f"a write of {facts.get('bytes')} bytes had broken off",
    }.get(row.event, "")
    named = personal.get("path") or personal.get("said", "") if personal else ""
    whose = f"{named} by {personal.get('user', '')}" if personal else ""
    if row.personal and personal is None:
        whose = "(not kept)"
    text = f"{row.number:>7}  {row.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}  {row.event:<8}  {what:<20}  {whose}"
    return "".join(letter if letter.isprintable() else "?" for letter in text.rstrip())
