"""Is an audit log what was written? Every hash, the order, the end, the signatures, and what is personal beside it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import AuditError, InputError
from omokage.files import open_given
from omokage.trust.audit import BEGIN, FORGET, HEAD, LOG, REPAIR, AuditLog
from omokage.trust.audit_row import (
    LONGEST_ROW,
    NOTHING_BEFORE,
    Kept,
    Parts,
    is_row_signed,
    parse_kept,
    parse_row,
    split_line,
)
from omokage.trust.keys import known_name

EXPORT: Final = "export"
SIGNED_EVERY: Final = 1000  # rows; the signature of the last one vouches for all, these say up to where
_MOST_PROBLEMS = 20
_FIRST_LINES = 10  # a write may have broken off before the first row
_REPORT_EVERY = 20_000


@dataclass(frozen=True)
class AuditReport:
    """What was found. rows: whole ones.  key: public, hexadecimal.  repairs: writes that broke off and were noted.

    problems: a sentence for each; none: the log is what was written.  notes: what an auditor should know.
    """

    rows: int
    key: str
    head: str
    repairs: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "whole": self.is_whole,
            "rows": self.rows,
            "key": self.key,
            "head": self.head,
            "repairs": self.repairs,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """For people."""
        verdict = "whole" if self.is_whole else "CHANGED"
        lines = [f"{self.rows} rows, {verdict}; key {self.key[:16]}, last row {self.head[:16]}"]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass
class _Chain:
    """The state while rows go by. watched: number of a row whose hash is remembered as `seen`."""

    key: str
    watched: int
    seen: str = ""
    problems: list[str] = field(default_factory=list)
    number: int = -1
    hash: str = NOTHING_BEFORE
    signature: str = ""
    repairs: int = 0
    torn: bytes = b""
    personal: dict[int, str] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)

    def blame(self, problem: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


@dataclass(frozen=True)
class _Claim:
    """What an export says of its log: the number and hash of the last row, and the public key."""

    number: int
    hash: str
    key: str


def verify(
    place: Path | None = None,
    *,
    against: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> AuditReport:
    """Check the log in a folder (by default this user's), or a file that `audit_report.export` wrote.

    against: an export that was kept elsewhere: its key must be the one that signs, its last row must still be there.
    Finds rows that were edited, dropped, put in another order, added without the key or cut off at the end. Raises
    InputError when there is no log.
    """
    is_own = place is None
    place = place if place is not None else AuditLog().folder
    kept = _export_claim(against) if against is not None else None
    watched = kept.number if kept else -1
    if place.is_file():
        claim = _export_claim(place)
        chain = _Chain(claim.key, watched)
        personal = _walk(chain, place, on_progress, skip=1)
        _check_end(chain)
        if (chain.number, chain.hash) != (claim.number, claim.hash):
            chain.blame(f"its first line says that it ends with row {claim.number}, and that is not its end")
    else:
        chain = _Chain(stated_key(place), watched)
        _walk(chain, place / LOG, on_progress)
        _check_end(chain)
        _check_head(chain, place / HEAD)
        if is_own and (own := known_name()) is not None and own != chain.key:
            chain.blame("the log is signed by another key than that of this installation")
        personal = AuditLog(place).personal()
    if kept is not None:
        _check_kept(chain, kept)
    notes = [f"{chain.repairs} writes broke off and were noted"] if chain.repairs else []
    notes += _check_personal(chain, personal)
    if kept is None:
        notes.append(
            "whoever has the key can write another log; --against an export that is kept elsewhere tells"
        )
    return AuditReport(
        chain.number + 1, chain.key, chain.hash, chain.repairs, tuple(chain.problems), tuple(notes)
    )


def stated_key(folder: Path) -> str:
    """The public key that the first row of a log names; '' when all rows are gone. Raises InputError for no log."""
    try:
        with (folder / LOG).open("rb") as file:
            for line in itertools.islice(file, _FIRST_LINES):
                if (row := parse_row(line.rstrip(b"\n"))) is not None:
                    return str(row.facts.get("key", ""))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AuditError(
            f"{folder / LOG} cannot be read ({error.strerror}); check its permissions"
        ) from error
    if (folder / HEAD).exists():  # there was one
        return ""
    raise InputError(f"{folder} holds no audit log; give its folder or an export, or release something first")


def _export_claim(path: Path) -> _Claim:
    """The first line of an export, its signature checked. Raises InputError."""
    with open_given(path) as file:
        row = parse_row(file.read(LONGEST_ROW).split(b"\n")[0])
    try:
        if row is None or row.event != EXPORT:
            raise ValueError("no first line of an export")
        claim = _Claim(int(row.facts["rows"]) - 1, str(row.facts["head"]), str(row.facts["key"]))
        if not is_row_signed(row.hash, row.signature, claim.key):
            raise ValueError("its signature is wrong")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no export of an audit log ({error}); give a file that 'omokage audit export' wrote"
        ) from error
    return claim


def _walk(chain: _Chain, log: Path, on_progress: ProgressCallback, skip: int = 0) -> dict[str, Kept]:
    """Take every line of a log, or of an export after its first line; what is personal in an export."""
    personal = dict[str, Kept]()
    try:
        with log.open("rb") as file:
            for done, line in enumerate(file):
                if done % _REPORT_EVERY == 0:
                    on_progress(Progress("verifying", done, 0))
                if done < skip:
                    continue
                if skip and (kept := parse_kept(line.rstrip(b"\n"))) is not None:
                    personal[kept.hash] = kept
                else:
                    _take(chain, line)
    except OSError as error:
        raise AuditError(f"{log} cannot be read ({error.strerror}); check its permissions") from error
    return personal


def _take(chain: _Chain, line: bytes) -> None:
    """One line with its end. Whatever is no row must be told of by the next row, as a write that broke off."""
    parts = split_line(line[:-1]) if line.endswith(b"\n") else None
    if parts is None or hashlib.sha256(parts.body).hexdigest() != parts.hash:
        chain.torn += line
        return
    number = chain.number + 1
    if not parts.body.endswith(b',"previous":"%s","row":%d' % (chain.hash.encode(), number)):
        row = parse_row(line[:-1])
        found = row.number if row else -1
        chain.blame(f"row {found} stands where row {number} should, or does not follow the row before it")
        number = max(found, number)
    _take_meaning(chain, line[:-1], parts, number)
    if number % SIGNED_EVERY == 0 and not is_row_signed(parts.hash, parts.signature, chain.key):
        chain.blame(f"the signature of row {number} is not that of the log's key")
    if number == chain.watched:
        chain.seen = parts.hash
    chain.number, chain.hash, chain.signature = number, parts.hash, parts.signature


def _take_meaning(chain: _Chain, line: bytes, parts: Parts, number: int) -> None:
    """What a row says of the log itself. Ordinary rows are not parsed, which takes most of the time."""
    if not chain.torn and number > 0 and b'"event":"release"' in parts.body:
        at = parts.body.rfind(b'"personal":"')
        if at > 0:
            chain.personal[number] = parts.body[at + 12 : at + 76].decode("ascii", "replace")
        return
    row = parse_row(line)
    if row is None:
        chain.blame(f"row {number} makes no sense")
        return
    if chain.torn:
        if row.event != REPAIR or row.facts.get("sha256") != hashlib.sha256(chain.torn).hexdigest():
            chain.blame(f"something that is no row stands before row {number}: a row was edited or removed")
        chain.torn = b""
    if number == 0 and (row.event not in (BEGIN, REPAIR) or row.facts.get("key") != chain.key):
        chain.blame("the log does not begin with its own key")
    if row.event == REPAIR:
        chain.repairs += 1
    if row.event == FORGET:
        chain.forgotten |= {int(each) for each in row.facts.get("rows", [])}
    if row.personal is not None:
        chain.personal[number] = row.personal


def _check_end(chain: _Chain) -> None:
    """The signature of the last row vouches for every row before it."""
    if chain.number < 0:
        chain.blame("there is no row at all")
        return
    if not is_row_signed(chain.hash, chain.signature, chain.key):
        chain.blame(f"the signature of the last row {chain.number} is not that of the log's key")
    if chain.torn:
        chain.blame(
            f"{len(chain.torn)} bytes behind row {chain.number} are no row: a write broke off, which the next release "
            "notes, or a row was edited"
        )


def _check_head(chain: _Chain, place: Path) -> None:
    """The head beside the log says that nothing was cut off."""
    try:
        head = parse_row(place.read_bytes().rstrip(b"\n"))
    except OSError:
        head = None
    if head is None or not is_row_signed(head.hash, head.signature, chain.key):
        chain.blame(f"{place.name} is missing, damaged or not signed by the log's key")
    elif head.number > chain.number:
        chain.blame(f"the log is cut off: it ends with row {chain.number}, and row {head.number} was written")
    elif head.number == chain.number and head.hash != chain.hash:
        chain.blame(f"row {chain.number} is not the one that was written")


def _check_kept(chain: _Chain, kept: _Claim) -> None:
    if kept.key != chain.key:
        chain.blame("the log is signed by another key than the export that was kept")
    if kept.number > chain.number:
        chain.blame(
            f"the export that was kept ends with row {kept.number}, and the log with row {chain.number}"
        )
    elif kept.hash != chain.seen:
        chain.blame(f"row {kept.number} is not the one of the export that was kept")


def _check_personal(chain: _Chain, kept: Mapping[str, Kept]) -> list[str]:
    """What is kept beside the log must have the hashes in it; what is gone must have been erased on purpose."""
    for number, digest in chain.personal.items():
        if digest in kept and not kept[digest].is_true:
            chain.blame(f"what is personal of row {number} was changed")
    gone = {number for number, digest in chain.personal.items() if digest not in kept}
    untold = sorted(gone - chain.forgotten)
    notes = [f"what is personal of {len(gone)} rows is not here"] if gone else []
    if untold:
        notes.append(f"of {len(untold)} of them, first row {untold[0]}, no row says that it was erased")
    return notes
