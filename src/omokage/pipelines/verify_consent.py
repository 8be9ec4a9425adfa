"""How a consent stands now, in a sentence: the part of `omokage verify` that asks the records of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from omokage.trust import consents
from omokage.trust.consent import Consent
from omokage.trust.published import consents_of


def consent_named(number: str) -> str:
    """Of the record with this number. Raises ConsentError for a damaged list of withdrawals."""
    for record in consents.all_records():
        if record.id == number:
            return _state(record)[1]
    return f"{number[:12]}, which is not recorded on this machine"


def consent_of_render(render_id: str) -> str:
    """Of the record that a render of this installation rests on, by the audit log; '' for one that it does not know.

    Raises ConsentError for a damaged list of withdrawals, AuditError for a log that cannot be read.
    """
    return "; ".join(map(consent_named, consents_of(render_id)))


def consent_for(media: Iterable[str]) -> str:
    """Of what was made of recordings with these SHA-256: for each the record that holds, or else the latest.

    Raises ConsentError for a damaged list of withdrawals.
    """
    return "; ".join(_consent_for_one(medium) for medium in media)


def _consent_for_one(medium: str) -> str:
    states = [_state(record) for record in consents.recorded_for(medium)]
    if not states:
        return f"nobody's is recorded on this machine for the recording {medium[:12]}"
    return next((said for holds, said in states if holds), states[0][1])


def _state(record: Consent) -> tuple[bool, str]:
    """Whether it holds, and a sentence."""
    today = datetime.now(UTC)
    withdrawn, end = consents.revoked(today).get(record.id), record.terms.end
    if withdrawn:
        return False, f"{record.id[:12]}, WITHDRAWN on {withdrawn}"
    has_ended = today.date().isoformat() > end
    return not has_ended, f"{record.id[:12]}, {'ended' if has_ended else 'holds until'} {end}"
