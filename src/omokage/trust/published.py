"""What has left under a consent, from the audit log: what is to be taken down once the consent is withdrawn.

MAIN: `published_under`. Nothing is written. Where files went is personal and lies beside the log; what was erased there
is named by the register of renders, without its folder, or not at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any, Final

from omokage.errors import AuditError
from omokage.trust.audit import LIVE, LOG, RELEASE, AuditLog
from omokage.trust.audit_row import Row, parse_row
from omokage.trust.registry import all_renders

_EVENTS: Final = (RELEASE, LIVE)
STREAM: Final = "stream"


@dataclass(frozen=True, slots=True)
class Published:
    """A file or a stream that left.

    kind: clip, picture, stream, avatar (an export), onnx or tensorrt.  at: when, UTC, ISO 8601.  file: its path, its
    name where the path was erased, or '' where neither is known.  render_id: by which its marks name it, or ''.
    sha256: '' of a stream.  consent: number of the record that it rests on.
    """

    kind: str
    at: str
    file: str
    render_id: str
    sha256: str
    consent: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """For people."""
        name = self.file or ("" if self.kind == STREAM else "(its name was erased)")
        render = f"render {self.render_id}" if self.render_id else f"SHA-256 {self.sha256[:16]}..."
        text = f"{self.at[:10]} {self.at[11:16]}  {self.kind:<8}  {render}  {name}".rstrip()
        return "".join(letter if letter.isprintable() else "?" for letter in text)


def published_under(consents: Collection[str]) -> tuple[Published, ...]:
    """What left under the records with these numbers, oldest first. Raises AuditError when the log cannot be read.

    Avatars that stay on this machine are not among it: they are encrypted, and a withdrawal destroys their keys.
    """
    log = AuditLog()
    found = [
        (row, number)
        for row in _rows(log, [number.encode() for number in consents])
        for number in consents
        if number in _numbers(row)
    ]
    if not found:
        return ()
    kept = log.personal()
    names = {render.sha256: render.file for render in all_renders()}

    def place(row: Row) -> str:
        said = kept.get(row.personal or "")
        try:
            path = said.values().get("path") if said else None
        except (ValueError, TypeError):  # somebody changed it, which `omokage audit verify` says
            path = None
        return str(path or names.get(str(row.facts.get("sha256")), ""))

    return tuple(_published(row, number, place(row)) for row, number in found)


def consents_of(render_id: str) -> tuple[str, ...]:
    """Numbers of the records that a render rests on. Raises AuditError when the log cannot be read."""
    rows = _rows(AuditLog(), [render_id.encode()])
    found = (number for row in rows if row.facts.get("render_id") == render_id for number in _numbers(row))
    return tuple(dict.fromkeys(found))


def published_text(found: Sequence[Published], *, is_withdrawn: bool = True) -> str:
    """What left and, when it was withdrawn, what to do now, for people."""
    if not found:
        return "published under it: nothing that the audit log of this machine knows"
    lines = "".join(f"\n  {one.line()}" for one in found)
    if not is_withdrawn:
        return f"published under it: {len(found)}{lines}"
    return (
        f"published under it: {len(found)}, of which every copy is to be taken down{lines}\n"
        "'omokage verify FOLDER' finds copies of the pictures and clips, also cropped or encoded again"
    )


def _rows(log: AuditLog, named: Sequence[bytes]) -> Iterator[Row]:
    """Rows of what left, in which one of these stands."""
    path = log.folder / LOG
    try:
        with path.open("rb") as file:
            for line in file:
                row = parse_row(line.rstrip(b"\n")) if any(name in line for name in named) else None
                # A stream has a row when it begins, and one when it has ended.
                if row is not None and row.event in _EVENTS and row.facts.get("state") != "ended":
                    yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuditError(
            f"{path} cannot be read ({error.strerror}), so it is not known what was published; check its permissions"
        ) from error


def _numbers(row: Row) -> tuple[str, ...]:
    """One of what was made of one recording; of an exported avatar, of each."""
    said = row.facts.get("consent")
    return tuple(map(str, said)) if isinstance(said, list) else (str(said),) if said else ()


def _published(row: Row, number: str, place: str) -> Published:
    facts: Mapping[str, Any] = row.facts
    return Published(
        kind=STREAM if row.event == LIVE else str(facts.get("kind", "")),
        at=row.at.astimezone(UTC).isoformat(timespec="seconds"),
        file=place,
        render_id=str(facts.get("render_id") or ""),
        sha256=str(facts.get("sha256") or ""),
        consent=number,
    )
