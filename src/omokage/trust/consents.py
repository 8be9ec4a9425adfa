"""The consents and withdrawals that this installation knows, and the question that every command asks of them.

MAIN: `permit`. Under `data_home()/consents` lies one file a record, `revocations.jsonl` with a signed row for every
withdrawal, and `trusted-keys.json` with the keys of others whose records count. A damaged record permits nothing; a
damaged list of withdrawals stops everything, since what it withdrew is not known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from omokage.errors import ConsentError, InputError, OutputError
from omokage.files import MOST_TEXT_BYTES, output_error, parse_json, refuse_device, saving
from omokage.home import data_home
from omokage.trust.audit import ERASE, AuditLog, record_refusal
from omokage.trust.consent import Consent, Medium, Use, decide, read_consent, write_consent
from omokage.trust.keys import canonical, is_signed, public_name, signing_key
from omokage.trust.published import Published, published_under
from omokage.vault.avatar_keys import destroy, key_records

ROWS, KEYS, LIST = "revocations.jsonl", "trusted-keys.json", "revocation-list.json"
POLICY_VARIABLE = "OMOKAGE_CONSENT"
LIST_AGE = timedelta(hours=24)  # of a list from elsewhere, where one was ever imported
HOW_TO_CONSENT = "record it with 'omokage consent new {name}', which asks three questions"


@dataclass(frozen=True, slots=True)
class Permit:
    """What may go ahead: the record it rests on, the purpose, and what was asked. name: of the recording."""

    consent: Consent
    purpose: str
    use: Use
    name: str


def permit(use: Use, *, name: str, now: datetime | None = None) -> Permit:
    """The consent that a use rests on. name: of the recording, for the sentence.

    Raises ConsentError for none, of which the audit log keeps a row.
    """
    try:
        return _permit(use, name, now)
    except ConsentError as error:
        record_refusal("consent", str(error), {"media": use.media, "act": use.act, "purpose": use.purpose})
        raise


def _permit(use: Use, name: str, now: datetime | None) -> Permit:
    now = now or datetime.now(UTC)
    candidates = recorded_for(use.media)
    if not candidates:
        raise ConsentError(
            f"nobody's consent is recorded for {name}; " + HOW_TO_CONSENT.format(name=Path(name).name)
        )
    trusted, withdrawn = trusted_keys(), revoked(now)
    refused: tuple[str, ...] = ()
    for consent in candidates:
        decision = decide(
            consent, use, now=now, trusted=trusted, revoked=withdrawn, needs_answer=needs_answer()
        )
        if decision.is_allowed:
            return Permit(consent, decision.purpose, use, name)
        refused = refused or decision.reasons
    raise ConsentError(f"{name} may not be used for this: " + "; ".join(refused))


def needs_answer() -> bool:
    """Whether somebody else's consent counts only with an answer before the camera: `OMOKAGE_CONSENT=answer`.

    Raises InputError for another value.
    """
    wish = os.environ.get(POLICY_VARIABLE, "")
    if wish not in ("", "answer"):
        raise InputError(f"{POLICY_VARIABLE} is '{wish}'; set it to 'answer', or leave it out")
    return wish == "answer"


def recorded_for(media: str) -> list[Consent]:
    """The records that name a medium's SHA-256, the latest first."""
    return [consent for consent in all_records() if media in {medium.sha256 for medium in consent.media}]


def all_records() -> list[Consent]:
    """All records that can be read, the latest first."""
    return _records()[0]


def damaged() -> list[str]:
    """A sentence for each record that cannot be read."""
    return _records()[1]


def keep(consent: Consent) -> Path:
    """Put a record into the register. Raises OutputError."""
    path = made_folder() / f"{consent.id}.consent.json"
    write_consent(consent, path)
    return path


def derive(permitted: Permit, made: Path) -> Consent:
    """Bind the same terms to a file that was made of a recording, such as a rehearsal. Raises OutputError."""
    old, key = permitted.consent, signing_key()
    record = replace(
        old,
        media=(*old.media, Medium.of(made)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        signer=public_name(key),
        previous=old.id,
    )
    record = replace(record, signature=key.sign(record.signed_bytes).hex())
    keep(record)
    return record


def find(number: str) -> Consent:
    """A record by its number, or the first digits of it. Raises ConsentError."""
    if not re.fullmatch(r"[0-9a-f]{4,64}", number):
        raise ConsentError(f"'{number}' is no number of a consent; 'omokage consent list' shows them")
    found = [consent for consent in all_records() if consent.id.startswith(number)]
    if len(found) != 1:
        how_many = "no consent begins" if not found else f"{len(found)} consents begin"
        raise ConsentError(f"{how_many} with '{number}'; 'omokage consent list' shows them")
    return found[0]


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What was withdrawn: the numbers of the records, which it also iterates over."""

    numbers: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def published(self) -> tuple[Published, ...]:
        """What had left under them, to be taken down. Raises AuditError when the audit log cannot be read."""
        return published_under(self.numbers)


def revoke(consent: Consent, reason: str, *, now: datetime | None = None) -> Withdrawal:
    """Withdraw a record and all that were made of it or before it. Raises OutputError.

    The keys of their avatars are destroyed, after the rows are on the disk.
    """
    key, when = signing_key(), (now or datetime.now(UTC)).isoformat(timespec="seconds")
    gone = tuple(sorted(one.id for one in family(consent)))
    lines = b""
    for number in gone:
        row = {
            "what": "omokage revocation",
            "consent": number,
            "when": when,
            "reason": reason,
            "signer": public_name(key),
        }
        lines += canonical(row | {"signature": key.sign(canonical(row)).hex()}) + b"\n"
    path = made_folder() / ROWS
    try:
        with path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise output_error(path, error) from error
    erase_withdrawn(now=now)
    return Withdrawal(gone)


def revoked(now: datetime) -> dict[str, str]:
    """Numbers of withdrawn records and the day, from here and from an imported list. Raises ConsentError."""
    issued, days = _withdrawals()
    if issued is not None and now - issued > LIST_AGE:
        raise ConsentError(
            f"the list of withdrawn consents is of {issued.isoformat(timespec='minutes')}, older than a day; "
            "import a new one with 'omokage consent import'"
        )
    return days


def withdrawal_of(media: Iterable[str], *, now: datetime | None = None) -> tuple[str, str] | None:
    """Number and day of the withdrawn consent for one of these SHA-256 that no other consent stands in for, or None.

    One that has ended stands in for none. Raises ConsentError when it is not known what was withdrawn.
    """
    today = (now or datetime.now(UTC)).date().isoformat()
    days, trusted = _withdrawals()[1], trusted_keys()
    counted = [one for one in all_records() if one.is_signed and one.signer in trusted]
    for sha256 in media:
        naming = [one for one in counted if sha256 in {medium.sha256 for medium in one.media}]
        gone = [one.id for one in naming if one.id in days]
        if gone and not any(one.id not in days and one.terms.end >= today for one in naming):
            return gone[0], days[gone[0]]
    return None


def erase_withdrawn(*, now: datetime | None = None) -> tuple[str, ...]:
    """Destroy the keys of all avatars of withdrawn recordings, with a row in the audit log; their ids.

    Raises ConsentError as `withdrawal_of` does, OutputError, and AuditError when the keys are gone, but the row is not
    written.
    """
    erased = dict[str, str]()
    for record in key_records():
        if record.erasure is None and (found := withdrawal_of(record.media, now=now)):
            destroy(record, consent=found[0], withdrawn=found[1])
            erased[record.id] = found[0]
    if erased:
        AuditLog().append(ERASE, {"keys": sorted(erased), "consents": sorted(set(erased.values()))})
    return tuple(erased)


def export_revocations(path: Path, *, now: datetime | None = None) -> int:
    """Write a signed list of all withdrawals, for machines without a network; how many. Raises OutputError."""
    key, rows = signing_key(), _rows(_folder() / ROWS)
    listed = {
        "what": "omokage revocations",
        "issued": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "rows": rows,
        "signer": public_name(key),
    }
    with saving(path) as part:
        part.write_bytes(canonical(listed | {"signature": key.sign(canonical(listed)).hex()}) + b"\n")
    return len(rows)


def import_file(path: Path, *, trust: str | None = None) -> str:
    """Take a record or a list of withdrawals from elsewhere; a sentence on what was taken.

    trust: the public half of the signer's key, told by its owner on another way. Raises ConsentError, OutputError.
    """
    if trust is not None:
        _trust(trust)
    refuse_device(path, ConsentError, most_bytes=MOST_TEXT_BYTES)
    try:
        what = parse_json(path.read_text(encoding="utf-8")).get("what")
    except (OSError, ValueError, AttributeError) as error:
        raise ConsentError(f"{path} is neither a consent record nor a list of withdrawals") from error
    if what == "omokage revocations":
        issued, rows = _read_list(path)
        held = _folder() / LIST
        if held.exists() and _read_list(held)[0] > issued:
            raise ConsentError(f"{path} is older than the list that is here; nothing was changed")
        with saving(made_folder() / LIST) as part:
            part.write_bytes(path.read_bytes())
        erase_withdrawn()
        return f"{len(rows)} withdrawn consents, as of {issued.isoformat(timespec='minutes')}"
    consent = read_consent(path)
    if not consent.is_signed or consent.signer not in trusted_keys():
        raise ConsentError(
            f"{path} is signed by {consent.signer}, a key that is not trusted here; compare it with what its owner "
            "tells you, then give it with --trust"
        )
    keep(consent)
    return f"consent {consent.id}"


def trusted_keys() -> frozenset[str]:
    """Public halves of the keys whose records count: this installation's, and those that were given with --trust."""
    return frozenset({public_name(signing_key()), *_listed_keys()})


def _records() -> tuple[list[Consent], list[str]]:
    found: list[Consent] = []
    problems: list[str] = []
    for path in sorted(_folder().glob("*.consent.json")):
        try:
            found.append(read_consent(path))
        except ConsentError as error:
            problems.append(str(error))
    found.sort(key=lambda consent: (datetime.fromisoformat(consent.created), consent.id), reverse=True)
    return found, problems


def _withdrawals() -> tuple[datetime | None, dict[str, str]]:
    """When the imported list was issued, if there is one; numbers of withdrawn records and the day."""
    rows, issued, path = _rows(_folder() / ROWS), None, _folder() / LIST
    if path.exists():
        issued, listed = _read_list(path)
        rows += listed
    return issued, {str(row["consent"]): str(row["when"])[:10] for row in reversed(rows)}


def _listed_keys() -> list[str]:
    path = _folder() / KEYS
    if not path.exists():
        return []
    try:
        return [str(name) for name in parse_json(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ConsentError(
            f"{path} is damaged; put back the saved one, or remove it and trust the keys anew"
        ) from error


def _trust(name: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        raise InputError(
            f"'{name}' is no public key; 64 hexadecimal digits are needed, as 'omokage consent key' prints"
        )
    with saving(made_folder() / KEYS) as part:
        part.write_text(json.dumps(sorted({*_listed_keys(), name})) + "\n", encoding="utf-8")


def family(consent: Consent) -> list[Consent]:
    """Records that were made of this one or that it was made of, itself among them: they are withdrawn together."""
    everybody, found = all_records(), {consent.id: consent}
    while True:
        more = {
            one.id: one
            for one in everybody
            if one.id not in found
            and (one.previous in found or any(one.id == member.previous for member in found.values()))
        }
        if not more:
            return list(found.values())
        found |= more


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConsentError(f"{path} cannot be read ({error.strerror}), so nothing may go ahead") from error
    return [_row(line, path) for line in lines]


def _row(line: bytes, path: Path) -> dict[str, Any]:
    try:
        row = parse_json(line.decode())
        _check_signed(row, "omokage revocation")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConsentError(
            f"{path} is damaged or was altered, so nothing may go ahead; put back the saved one"
        ) from error
    return dict(row)


def _read_list(path: Path) -> tuple[datetime, list[dict[str, Any]]]:
    try:
        listed = parse_json(path.read_text(encoding="utf-8"))
        _check_signed(listed, "omokage revocations")
        issued, rows = datetime.fromisoformat(listed["issued"]), list(listed["rows"])
        signer = str(listed["signer"])
        if issued.tzinfo is None:
            raise ValueError("a time without a zone")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConsentError(f"{path} is no list of withdrawals, or was altered") from error
    if signer not in trusted_keys():
        raise ConsentError(
            f"{path} is signed by {signer}, a key that is not trusted here; give it with --trust"
        )
    return issued, [_row(canonical(row), path) for row in rows]


def _check_signed(record: Mapping[str, Any], what: str) -> None:
    unsigned = {name: value for name, value in record.items() if name != "signature"}
    if record["what"] != what or not is_signed(record["signer"], record["signature"], canonical(unsigned)):
        raise ValueError("altered")


def _folder() -> Path:
    return data_home() / "consents"


def made_folder() -> Path:
    """Where records lie; it is made when missing. Raises OutputError."""
    path = _folder()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror}), so no consent can be kept") from error
    return path
