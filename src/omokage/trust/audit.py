"""The audit log: what left omokage, when, and by which rules. Written by `release`, read by `omokage audit`.

    <audit>/log.jsonl        rows, see `audit_row`; only ever appended to
    <audit>/head.json        a copy of the last row: a log that ends before it has been cut off
    <audit>/personal.jsonl   what is personal of each row, with the salt of its hash; may be erased, the chain holds
    <audit>/lock             held while a row is written

<audit> is `OMOKAGE_AUDIT`, or the folder `audit` of `home.data_home`. Rows are signed with the key of this
installation, see `keys`. Whatever goes wrong raises AuditError, and then nothing may be released.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from omokage.errors import AuditError, InputError, OutputError
from omokage.files import locked, output_error, saving
from omokage.home import data_home

if TYPE_CHECKING:  # signing takes a moment to load, which `omokage --help` need not wait for
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from omokage.trust.audit_row import Kept, Row, Value

AUDIT_VARIABLE: Final = "OMOKAGE_AUDIT"
LOG, HEAD, PERSONAL, LOCK = "log.jsonl", "head.json", "personal.jsonl", "lock"
BEGIN, RELEASE, LIVE, REPAIR, FORGET = "begin", "release", "live", "repair", "forget"
REFUSAL: Final = "refusal"
ERASE, IMPORT = "erase", "import"  # of the keys of avatars; of an avatar file
FORMAT: Final = 1
_TAIL_BYTES: Final = 1 << 18
_TORN_BYTES: Final = 4096  # of a line that broke off, kept in the row that tells of it
_MOST_SAID: Final = 2000  # letters of a refusal
# A clock may be wrong by a time zone until it is set over the network; consents count in days.
_CLOCK_SLACK: Final = timedelta(days=1)


def audit_folder() -> Path:
    """Where the log lies, or would lie."""
    chosen = os.environ.get(AUDIT_VARIABLE)
    return Path(chosen).expanduser() if chosen else data_home() / "audit"


@dataclass(frozen=True)
class _End:
    """How the log ends. last: its last whole row, or None.  torn: bytes behind it, of a write that broke off."""

    last: Row | None
    torn: bytes


class AuditLog:
    """The log in a folder; any number of processes may write to it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or audit_folder()

    def append(
        self, event: str, facts: Mapping[str, Any], personal: Mapping[str, Value] | None = None
    ) -> Row:
        """Write a row and the signed head; when this returns, both are on the disk.

        facts: what may be kept for good. personal: what names a person or a place, kept beside the log.
        Raises AuditError when that is not possible, or the log is not as it was written.
        """
        with self.held() as key:
            last = self.ready(key)
            return self._write(last, key, event, facts, personal)

    def check_writable(self) -> None:
        """Tell before long work, and without making anything anew, that no row can be written. Raises AuditError."""
        if self._is_begun():
            with self.held() as key:
                self.ready(key)
            return
        place = next(place for place in (self.folder, *self.folder.absolute().parents) if place.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise self._failed(error) from error

    def _is_begun(self) -> bool:
        return (self.folder / LOG).exists() or (self.folder / HEAD).exists()

    def forget(self, numbers: Iterable[int]) -> int:
        """Erase what is personal of these rows, and say so in a row of its own; how many had something.

        Raises AuditError.
        """
        from omokage.trust.audit_row import parse_kept

        wanted = set(numbers)
        with self.held() as key:
            last = self.ready(key)
            kept, gone = list[bytes](), set[int]()
            for line in self._lines(PERSONAL):
                each = parse_kept(line)
                if each is not None and each.number in wanted:
                    gone.add(each.number)
                else:
                    kept.append(line)
            if gone:
                # First the row: what is erased without a trace would be worse than what is kept a moment longer.
                self._write(last, key, FORGET, {"rows": sorted(gone)}, None)
                with saving(self.folder / PERSONAL) as part:
                    part.write_bytes(b"".join(line + b"\n" for line in kept))
            return len(gone)

    def personal(self) -> dict[str, Kept]:
        """What is personal and was not erased, by its hash in a row. Raises AuditError.

        By the hash and not by the row, because the row may have broken off after its personal part was written.
        """
        from omokage.trust.audit_row import parse_kept

        kept = (parse_kept(line) for line in self._lines(PERSONAL))
        return {each.hash: each for each in kept if each is not None}

    def _lines(self, name: str) -> list[bytes]:
        try:
            return (self.folder / name).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failed(error) from error

    @contextmanager
    def held(self) -> Iterator[Ed25519PrivateKey]:
        """The lock and the key. Everything that fails within becomes AuditError."""
        from omokage.trust.keys import known_name, signing_key

        try:
            if self._is_begun() and known_name() is None:
                raise AuditError(
                    f"the key that signed the audit log in {self.folder} is gone, so nothing is released; bring it "
                    "back from a copy, or move the folder away to begin a new log"
                )
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self.folder / LOCK):
                yield signing_key()
        except AuditError:
            raise
        except (OSError, OutputError, InputError, ValueError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> AuditError:
        if isinstance(error, OSError | OutputError):
            told = str(error if isinstance(error, OutputError) else output_error(self.folder, error))
            reason = told.rpartition(" cannot be written: ")[2]
            return AuditError(
                f"the audit log in {self.folder} cannot be written, so nothing is released: {reason} "
                f"({AUDIT_VARIABLE} names its folder)"
            )
        return AuditError(
            f"the audit log in {self.folder} cannot be used, so nothing is released: {error}; restore it from a copy, "
            "or move the folder away to begin a new log"
        )

    def ready(self, key: Ed25519PrivateKey) -> Row | None:
        """Compare the end of the log with the head, note what broke off, and give the last row.

        Only while `held`. Raises AuditError when the log is not as it was written.
        """
        from omokage.trust.audit_row import is_row_signed, parse_row
        from omokage.trust.keys import public_name

        end = self._end()
        head_line = next(iter(self._lines(HEAD)), None)
        head = parse_row(head_line) if head_line is not None else None
        last = end.last
        number, expected = (last.number if last else -1), (head.number if head else -1)
        if head_line is not None and head is None:
            problem = f"its {HEAD} is damaged"
        elif head is None and number > 0:  # the first row may have been the last thing before the power went
            problem = f"its {HEAD} is missing"
        elif number < expected:
            problem = f"it ends with row {number}, but row {expected} was written"
        elif last is not None and not is_row_signed(last.hash, last.signature, public_name(key)):
            problem = f"its last row {number} is not signed with the key of this installation"
        elif head is not None and last is not None and number == expected and last.hash != head.hash:
            problem = f"row {number} is not the one that was written"
        else:
            self._refuse_earlier_clock(last)
            if end.torn:
                last = self._repair(last, key, end.torn)
            (self.folder / LOG).open("ab").close()  # may it be written at all?
            return last
        raise AuditError(
            f"the audit log in {self.folder} was changed: {problem}; nothing is released until it is restored from a "
            "copy ('omokage audit verify' says more)"
        )

    def _refuse_earlier_clock(self, last: Row | None) -> None:
        now = datetime.now(UTC)
        if last is not None and now < last.at - _CLOCK_SLACK:
            raise AuditError(
                f"the clock of this machine says {now:%Y-%m-%d %H:%M} UTC, but the last row of the audit log in "
                f"{self.folder} was written on {last.at:%Y-%m-%d %H:%M}, so nothing is released; set the clock right, "
                "or, if it was wrong then, move the folder away to begin a new log"
            )

    def _end(self) -> _End:
        """Read the end of the log only, whose rows are short."""
        from omokage.trust.audit_row import parse_row

        try:
            with (self.folder / LOG).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                tail = file.read()
        except FileNotFoundError:
            return _End(None, b"")
        behind = len(tail)
        while behind > 0:
            stop = tail.rfind(b"\n", 0, behind)
            if stop < 0:
                break
            start = tail.rfind(b"\n", 0, stop) + 1
            if (row := parse_row(tail[start:stop])) is not None:
                return _End(row, tail[stop + 1 :])
            behind = stop
        if size > len(tail):
            raise ValueError(f"the last {len(tail)} bytes of {LOG} hold no row")
        return _End(None, tail)

    def _repair(self, last: Row | None, key: Ed25519PrivateKey, torn: bytes) -> Row:
        """Nothing is taken away: the line that broke off is ended, and a row tells of it."""
        from omokage.trust.keys import public_name

        if not torn.endswith(b"\n"):
            self._append_bytes(LOG, b"\n")
            torn += b"\n"
        facts = {
            "bytes": len(torn),
            "sha256": hashlib.sha256(torn).hexdigest(),
            "torn": base64.b64encode(torn[:_TORN_BYTES]).decode("ascii"),
        }
        if last is None:  # it takes the place of the first row
            facts |= {"format": FORMAT, "key": public_name(key)}
        return self._write(last, key, REPAIR, facts, None)

    def _write(
        self,
        last: Row | None,
        key: Ed25519PrivateKey,
        event: str,
        facts: Mapping[str, Any],
        personal: Mapping[str, Value] | None,
    ) -> Row:
        from omokage.trust.audit_row import (
            LONGEST_ROW,
            NOTHING_BEFORE,
            keep,
            make_row,
        )
        from omokage.trust.keys import public_name

        if last is None and event != BEGIN and event != REPAIR:
            last = self._write(None, key, BEGIN, {"format": FORMAT, "key": public_name(key)}, None)
        number = last.number + 1 if last else 0
        hashed = None
        if personal:
            kept = keep(number, personal)
            hashed = kept.hash
            self._append_bytes(PERSONAL, kept.line + b"\n", own_line=True)
        row = make_row(number, event, facts, hashed, last.hash if last else NOTHING_BEFORE, key)
        if len(row.line) > LONGEST_ROW:
            raise ValueError(f"a row of {len(row.line)} bytes is too long")
        self._append_bytes(LOG, row.line + b"\n")
        with saving(self.folder / HEAD) as part:
            part.write_bytes(row.line + b"\n")
        return row

    def _append_bytes(self, name: str, data: bytes, *, own_line: bool = False) -> None:
        """Append and wait for the disk. own_line: first end a line that broke off."""
        with (self.folder / name).open("ab", buffering=0) as file:
            if own_line and file.tell() and not self._ends_with_line(name):
                data = b"\n" + data
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())

    def _ends_with_line(self, name: str) -> bool:
        with (self.folder / name).open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def record_release(
    path: Path, *, kind: str, sha256: str, facts: Mapping[str, Any], personal: Mapping[str, Value]
) -> None:
    """A row for a complete file of this digest that is about to become `path`. Raises AuditError.

    kind: clip, picture, report, avatar, onnx or tensorrt. facts and personal: more to keep; where the file goes and who
    is at work is personal.
    """
    AuditLog().append(
        RELEASE,
        {"kind": kind, "sha256": sha256, **facts},
        {"path": str(path.absolute()), "user": _user(), **personal},
    )


def record_live(facts: Mapping[str, Any], personal: Mapping[str, Value] | None = None) -> None:
    """A row for a stream: one before its first byte leaves and one when it has ended. Raises AuditError."""
    AuditLog().append(LIVE, facts, {"user": _user(), **(personal or {})})


def record_refusal(reason: str, said: str, facts: Mapping[str, Any]) -> None:
    """A row for something that was not done. reason: consent, label or identity.  said: the sentence, which may name.

    A log that takes no row changes nothing: what was refused stays refused.
    """
    with suppress(AuditError):
        AuditLog().append(REFUSAL, {"reason": reason, **facts}, {"said": said[:_MOST_SAID], "user": _user()})


def check_audit() -> None:
    """Tell before long work that its result could not be released. Raises AuditError."""
    AuditLog().check_writable()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody by that number, as in containers
        return str(os.getuid()) if hasattr(os, "getuid") else ""
