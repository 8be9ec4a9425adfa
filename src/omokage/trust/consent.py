"""Who agreed to what: records of consent, signed, bound to recordings by their digests, and decided upon.

MAIN: `new_consent`, `decide`. A record is one JSON file. It holds no name of the person shown, only digests of the
files and a pseudonym; who that is stays with whoever keeps the papers. Its number is the SHA-256 of all that is signed,
so an altered record is another record, and one that nobody signed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from omokage.config import Config
from omokage.errors import ConsentError, InputError
from omokage.files import material_digest, parse_json, refuse_device, saving
from omokage.trust.keys import canonical, is_signed, public_name

FORMAT = 1
LONGEST_DAYS = 3653  # ten years: the most that the draft of the NO FAKES Act lets a licence run
# What no consent covers; the wording is part of what is signed.
FORBIDDEN = (
    "political persuasion",
    "medical, legal or financial advice",
    "sexual or degrading content",
    "statements of fact that the person did not approve",
    "passing a check of identity",
)
_WHO = {
    "self": "the person who uses omokage",
    "agreed": "somebody who agreed",
    "nobody": "nobody real",
    "sample": "the portrait of the demo",
}
_LARGEST_RECORD = 1_000_000  # bytes
_CLOCK_SLACK = timedelta(minutes=5)  # between two machines

# 'self': the person shown is the one who uses omokage.  'agreed': somebody who agreed on paper, before a witness.
# 'nobody': a drawn or invented face.  'sample': the portrait that the demo brings.
Kind = Literal["self", "agreed", "nobody", "sample"]


@cache
def purposes() -> Mapping[str, str]:
    """What an avatar may be used for: names, and what they mean."""
    return cast(
        Mapping[str, str], json.loads((files("omokage.trust") / "data" / "purposes.json").read_text("utf-8"))
    )


@dataclass(frozen=True)
class Terms(Config):
    """What was agreed.

    uses: one sentence that describes them.  channels, languages: empty for any.  start, end: days, both included,
    ISO 8601.  licensee: who may use it.  witness: who saw the person agree.  reference: where the signed paper is kept.
    """

    kind: Kind
    purposes: tuple[str, ...]
    start: str
    end: str
    uses: str = ""
    channels: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    voice: bool = True
    adult: bool = True
    licensee: str = ""
    witness: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"the kind of consent must be one of {', '.join(get_args(Kind))}, got '{self.kind}'"
            )
        unknown = [name for name in self.purposes if name not in purposes()]
        if unknown or not self.purposes:
            got = f"got '{unknown[0]}'" if unknown else "got none"
            raise InputError(f"purposes must be some of {', '.join(purposes())}; {got}")
        if self.kind == "sample" and self.purposes != ("demo",):
            raise InputError("the sample portrait may be used for the demo and nothing else")
        first, last = _day(self.start), _day(self.end)
        if last < first:
            raise InputError(f"a consent cannot end ({self.end}) before it starts ({self.start})")
        if (last - first).days > LONGEST_DAYS:
            raise InputError(
                f"a consent lasts ten years at most, got {self.start} to {self.end}; renew it instead"
            )
        if self.kind == "agreed":
            missing = [
                name
                for name in ("witness", "reference", "uses", "licensee")
                if not getattr(self, name).strip()
            ]
            if missing:
                raise InputError(
                    f"the consent of somebody else needs {', '.join(missing)}: who saw the person agree, where the "
                    "signed paper is, what it allows in a sentence, and to whom"
                )
        if not self.adult:
            raise InputError("omokage makes no avatars of persons under 18")


@dataclass(frozen=True, slots=True)
class Medium:
    """A file, or folder of a dataset, that a consent is bound to, by its digest; `name` is for people only."""

    sha256: str
    name: str

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(material_digest(path), path.name)


@dataclass(frozen=True, slots=True)
class Answer:
    """How the person answered a challenge before the camera (see `challenge`).

    clip: the SHA-256 of what was recorded.  code, gestures: what was asked; the witness of the terms heard the one, the
    other was found in the clip.  likeness: of the faces in the clip and in the medium that is least like it.
    answered: UTC, ISO 8601.
    """

    clip: str
    code: str
    gestures: tuple[str, ...]
    likeness: float
    answered: str


@dataclass(frozen=True, slots=True)
class Consent:
    """A record as it was signed.

    subject: a pseudonym.  created: UTC, ISO 8601.  previous: the number of the record that this one renews, or ''.
    signer: the public half of the key that signed, hexadecimal.  answer: None where it rests on words or paper alone.
    """

    terms: Terms
    media: tuple[Medium, ...]
    subject: str
    created: str
    signer: str
    previous: str = ""
    signature: str = ""
    answer: Answer | None = None

    @property
    def signed_bytes(self) -> bytes:
        return canonical(self._signed())

    @property
    def id(self) -> str:
        """SHA-256 of what is signed, hexadecimal."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    @property
    def is_signed(self) -> bool:
        return is_signed(self.signer, self.signature, self.signed_bytes)

    def to_json(self) -> dict[str, Any]:
        return self._signed() | {"signature": self.signature}

    def to_text(self) -> str:
        """For people: what was agreed, line by line."""
        terms = self.terms
        allowed = ", ".join(f"{name} ({purposes()[name]})" for name in terms.purposes)
        lines = [
            f"consent {self.id}",
            f"  who: {_WHO[terms.kind]}, {self.subject}",
            f"  for: {allowed}",
            *([f"  uses: {terms.uses}"] if terms.uses else []),
            f"  channels: {', '.join(terms.channels) or 'any'}; languages: {', '.join(terms.languages) or 'any'}; "
            f"voice: {'yes' if terms.voice else 'no'}",
            f"  from {terms.start} to {terms.end}",
            *([f"  to: {terms.licensee}"] if terms.licensee else []),
            *([f"  witness: {terms.witness}; paper: {terms.reference}"] if terms.witness else []),
            *(
                [
                    f"  answered before the camera {self.answer.answered}: {' '.join(self.answer.code)}; "
                    f"{', '.join(self.answer.gestures)}; likeness {self.answer.likeness:.2f}"
                ]
                if self.answer
                else []
            ),
            *(f"  file: {medium.name} {medium.sha256[:16]}" for medium in self.media),
            f"  never: {'; '.join(FORBIDDEN)}",
            f"  signed {self.created} by {self.signer[:16]}",
        ]
        return "\n".join(lines)

    def _signed(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "what": "omokage consent",
            "terms": self.terms.to_json(),
            "never": list(FORBIDDEN),
            "media": [asdict(medium) for medium in self.media],
            "subject": self.subject,
            "created": self.created,
            "signer": self.signer,
            "previous": self.previous,
        } | ({"answer": asdict(self.answer)} if self.answer else {})


@dataclass(frozen=True, slots=True)
class Use:
    """What is about to be done with a person.

    media: the SHA-256 of the recording or portrait.  purpose: None where the consent names one only.  act: 'create'
    learns from a medium, for which any of the agreed purposes will do; 'render' shows the person, for one of them.
    channel, language: '' when not told.
    """

    media: str
    purpose: str | None = None
    act: Literal["create", "render"] = "render"
    channel: str = ""
    language: str = ""
    voice: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something may be done, for what purpose, and if not, every reason in a sentence."""

    is_allowed: bool
    purpose: str
    reasons: tuple[str, ...] = ()


def new_consent(
    media: Sequence[Path | Medium],
    terms: Terms,
    *,
    now: datetime,
    key: Ed25519PrivateKey,
    previous: Consent | None = None,
    answer: Answer | None = None,
) -> Consent:
    """A signed record, bound to files. now: with a time zone. Raises InputError for a file that is not there."""
    if not media:
        raise InputError("a consent needs the recording or portrait that it is for")
    for one in media:
        if isinstance(one, Path) and not one.exists():
            raise InputError(f"{one} is not there; a consent is bound to the very file")
    record = Consent(
        terms=terms,
        media=tuple(Medium.of(one) if isinstance(one, Path) else one for one in media),
        subject=previous.subject if previous else f"person-{secrets.token_hex(4)}",
        created=now.astimezone(UTC).isoformat(timespec="seconds"),
        signer=public_name(key),
        previous=previous.id if previous else "",
        answer=answer,
    )
    return replace(record, signature=key.sign(record.signed_bytes).hex())


def decide(
    consent: Consent,
    use: Use,
    *,
    now: datetime,
    trusted: frozenset[str],
    revoked: Mapping[str, str],
    needs_answer: bool = False,
) -> Decision:
    """Whether a consent allows a use. Pure: everything it looks at is given.

    trusted: public halves of the keys whose records count.  revoked: numbers of withdrawn records and when that was.
    needs_answer: somebody else's consent counts only with their answer before the camera.
    """
    terms, today = consent.terms, now.date()
    reasons = []
    if not consent.is_signed:
        reasons.append("the record was altered after it was signed, or never was signed")
    elif consent.signer not in trusted:
        reasons.append(
            f"the record is signed by {consent.signer[:16]}, a key that this installation does not trust"
        )
    if consent.id in revoked:
        reasons.append(f"the consent was withdrawn on {revoked[consent.id]}")
    if datetime.fromisoformat(consent.created) > now + _CLOCK_SLACK:
        reasons.append(
            f"the record is dated in the future ({consent.created}); is this machine's clock right?"
        )
    if today < _day(terms.start):
        reasons.append(f"the consent starts on {terms.start}")
    if today > _day(terms.end):
        reasons.append(f"the consent ended on {terms.end}; renew it with 'omokage consent new'")
    if use.media not in {medium.sha256 for medium in consent.media}:
        reasons.append("the consent is for another recording")
    is_one = len(terms.purposes) == 1 or use.act == "create"
    purpose = use.purpose or (terms.purposes[0] if is_one else "")
    if not purpose:
        reasons.append(f"say what it is for with --purpose, one of {', '.join(terms.purposes)}")
    elif purpose not in terms.purposes:
        reasons.append(f"the consent is for {', '.join(terms.purposes)}, not for {purpose}")
    for what, asked, allowed in (
        ("channel", use.channel, terms.channels),
        ("language", use.language, terms.languages),
    ):
        if asked and allowed and asked not in allowed:
            reasons.append(f"the consent's {what}s are {', '.join(allowed)}, not {asked}")
    if needs_answer and terms.kind == "agreed" and consent.answer is None:
        reasons.append(
            "this installation asks for the person's answer before the camera ('omokage consent challenge')"
        )
    if use.voice and not terms.voice:
        reasons.append("the consent does not cover the person's voice")
    return Decision(not reasons, purpose, tuple(reasons))


def write_consent(consent: Consent, path: Path) -> None:
    """Raises OutputError."""
    with saving(path) as part:
        part.write_text(json.dumps(consent.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_consent(path: Path) -> Consent:
    """A record from a file, whatever it says; `decide` tells what it is worth. Raises ConsentError."""
    refuse_device(path, ConsentError)
    try:
        if path.stat().st_size > _LARGEST_RECORD:
            raise ConsentError(f"{path} is no consent record: it is larger than any")
        found = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConsentError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConsentError(f"{path} is no consent record, or only a part of one") from error
    if not isinstance(found, dict) or found.get("what") != "omokage consent":
        raise ConsentError(f"{path} is no consent record; 'omokage consent new' makes one")
    if found.get("format") != FORMAT:
        raise ConsentError(
            f"{path} is of format {found.get('format')}, this omokage knows {FORMAT}; update omokage"
        )
    try:
        consent = Consent(
            terms=Terms.from_json(found["terms"]),
            media=tuple(Medium(str(one["sha256"]), str(one["name"])) for one in found["media"]),
            **{name: str(found[name]) for name in ("subject", "created", "signer", "previous", "signature")},
            answer=_answer(found["answer"]) if "answer" in found else None,
        )
        if datetime.fromisoformat(consent.created).tzinfo is None:
            raise ValueError("a time without a zone")
    except (KeyError, TypeError, ValueError) as error:
        raise ConsentError(f"{path} is a damaged consent record ({error})") from error
    except InputError as error:
        raise ConsentError(f"{path} is a damaged consent record: {error}") from error
    if canonical(consent.to_json()) != canonical(found):
        raise ConsentError(f"{path} says more, or other things, than a consent record does; it was altered")
    return consent


def _answer(found: Mapping[str, Any]) -> Answer:
    return Answer(
        clip=str(found["clip"]),
        code=str(found["code"]),
        gestures=tuple(str(name) for name in found["gestures"]),
        likeness=float(found["likeness"]),
        answered=str(found["answered"]),
    )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"'{text}' is no day; write it as {date.today().isoformat()}") from None
