"""`omokage consent`: who agreed to what."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omokage.cli.options import FilePath, json_option
from omokage.cli.progress import ProgressBar
from omokage.errors import ConsentError, InputError

if TYPE_CHECKING:  # its module loads slowly
    from omokage.trust.consent import Consent

A_YEAR = timedelta(days=365)
_OF_OTHERS = {
    "uses": "What may it be used for, in a sentence",
    "licensee": "Who may use it",
    "witness": "Who saw the person agree",
    "reference": "Where is the signed paper kept",
}


@click.group()
def consent() -> None:
    """Who agreed to be shown, for what and until when.

    Records lie in the folder OMOKAGE_HOME, or where the system keeps a user's data; nothing is sent anywhere.
    """


@consent.command(name="new")
@click.argument("media", nargs=-1, required=True, type=FilePath)
@click.option("--me", "kind", flag_value="self", help="The person shown is you.")
@click.option(
    "--agreed", "kind", flag_value="agreed", help="Somebody else, who agreed on paper before a witness."
)
@click.option("--nobody", "kind", flag_value="nobody", help="A drawn or invented face.")
@click.option("--purpose", "purposes", multiple=True, help="What for; may be given several times.")
@click.option("--until", help="The last day, as 2027-05-31; a year from today if not given.")
@click.option("--uses", default="", help="What it may be used for, in a sentence.")
@click.option("--to", "licensee", default="", help="Who may use it.")
@click.option("--witness", default="", help="Who saw the person agree.")
@click.option("--paper", default="", help="Where the signed paper is kept.")
@click.option("--channel", "channels", multiple=True, help="Where it may be shown; any if not given.")
@click.option(
    "--language", "languages", multiple=True, help="What it may speak, as en or ja; any if not given."
)
@click.option("--no-voice", is_flag=True, help="The person's voice is not part of it.")
@click.option(
    "--answer", type=FilePath, help="The clip in which the person answers 'omokage consent challenge'."
)
@click.option("--heard", default="", help="The digits that the witness hears in it.")
@click.option("-o", "--output", type=FilePath, help="Also write the record here.")
def new(
    media: tuple[Path, ...],
    kind: str | None,
    purposes: tuple[str, ...],
    until: str | None,
    uses: str,
    licensee: str,
    witness: str,
    paper: str,
    channels: tuple[str, ...],
    languages: tuple[str, ...],
    no_voice: bool,
    answer: Path | None,
    heard: str,
    output: Path | None,
) -> None:
    """Record that the person in MEDIA (recordings, portraits) agrees; asks what is not given."""
    from omokage.trust.consent import write_consent
    from omokage.trust.consents import keep

    record = _asked(
        media,
        kind,
        purposes,
        until,
        uses=uses,
        licensee=licensee,
        witness=witness,
        reference=paper,
        channels=channels,
        languages=languages,
        voice=not no_voice,
        answer=answer,
        heard=heard,
    )
    keep(record)
    if output is not None:
        write_consent(record, output)
    click.echo(record.to_text())


@consent.command()
def challenge() -> None:
    """What somebody else says and does before the camera, so that an old clip of them is no agreement."""
    from omokage.capture.gestures import GESTURES
    from omokage.trust.challenge import issue

    asked = issue(tuple(GESTURES))
    lines = [f"{number} {GESTURES[name]}" for number, name in enumerate(asked.gestures, 2)]
    click.echo(
        f"Record one clip, alone before the camera, looking ahead between two things:\n"
        f"  1 say one by one: {' '.join(asked.code)}\n"
        + "".join(f"  {line}\n" for line in lines)
        + f"It counts once, "
        f"until {asked.until.astimezone():%H:%M}:\n"
        f"  omokage consent new RECORDING --agreed ... --answer CLIP --heard 'the digits that the witness hears in it'"
    )


@consent.command(name="list")
@json_option
def list_consents(as_json: bool) -> None:
    """All records, a line each, the latest first."""
    from omokage.trust.consents import all_records, damaged, revoked

    found, withdrawn = all_records(), revoked(datetime.now(UTC))
    if as_json:
        click.echo(
            json.dumps([one.to_json() | {"id": one.id, "withdrawn": withdrawn.get(one.id)} for one in found])
        )
        return
    for one in found:
        names = ", ".join(medium.name for medium in one.media)
        state = f"withdrawn {withdrawn[one.id]}" if one.id in withdrawn else f"until {one.terms.end}"
        click.echo(f"{one.id[:12]}  {one.terms.kind:6}  {state:20}  {', '.join(one.terms.purposes)}  {names}")
    for problem in damaged():
        click.echo(f"omokage: {problem}", err=True)
    if not found:
        click.echo("no consent is recorded; 'omokage consent new' records one")


@consent.command()
@click.argument("record")
@json_option
def show(record: str, as_json: bool) -> None:
    """What was agreed, and what left under it: RECORD is a file, or the first digits of a number that `list` shows."""
    from omokage.trust.consents import family, revoked
    from omokage.trust.published import published_text, published_under

    one = _found(record)
    day = revoked(datetime.now(UTC)).get(one.id)
    found = published_under([member.id for member in family(one)])
    if as_json:
        said = {"id": one.id, "withdrawn": day, "published": [each.to_json() for each in found]}
        click.echo(json.dumps(one.to_json() | said, ensure_ascii=False, indent=2))
    else:
        click.echo(one.to_text() + (f"\n  WITHDRAWN on {day}" if day else ""))
        click.echo(published_text(found, is_withdrawn=day is not None))


@consent.command()
@click.argument("record")
@click.argument("media", type=FilePath)
@click.option("--purpose", help="What for; needed where several were agreed.")
@click.option("--channel", default="", help="Where it is to be shown.")
@click.option("--language", default="", help="What it is to speak.")
def verify(record: str, media: Path, purpose: str | None, channel: str, language: str) -> int:
    """Whether RECORD allows MEDIA to be used now, and if not, every reason. The exit status is 5 when not."""
    from omokage.files import material_digest
    from omokage.trust.consent import Use, decide
    from omokage.trust.consents import revoked, trusted_keys

    if not media.exists():
        raise InputError(f"{media} is not there")
    use, now = Use(material_digest(media), purpose, channel=channel, language=language), datetime.now(UTC)
    decision = decide(_found(record), use, now=now, trusted=trusted_keys(), revoked=revoked(now))
    click.echo("\n".join(decision.reasons) if decision.reasons else f"allowed, for {decision.purpose}")
    return 0 if decision.is_allowed else ConsentError.exit_code


@consent.command()
@click.argument("record")
@click.option("--reason", default="", help="Kept with the withdrawal.")
def revoke(record: str, reason: str) -> None:
    """Withdraw a consent, and all that rest on the same words; from then on nothing new is made.

    Work that runs ends within a minute, and the keys of the avatars are destroyed: nobody opens their files any more.
    What had left before is listed, for you to take it down.
    """
    from omokage.trust.consents import revoke as revoke_consent
    from omokage.trust.published import published_text
    from omokage.vault.avatar_keys import key_records

    gone = revoke_consent(_found(record), reason)
    for number in gone:
        click.echo(f"withdrawn: {number}")
    erased = sum(key.erasure is not None and key.erasure.consent in gone.numbers for key in key_records())
    if erased:
        click.echo(f"destroyed: keys of {erased} avatar files, which nobody can open any more")
    click.echo(published_text(gone.published()))


@consent.command()
@click.option("-o", "--output", type=FilePath, required=True, help="The list, as .json.")
def export(output: Path) -> None:
    """Write a signed list of all withdrawals, for machines without a network."""
    from omokage.trust.consents import export_revocations

    click.echo(f"{export_revocations(output)} withdrawals in {output}")


@consent.command(name="import")
@click.argument("path", type=FilePath)
@click.option("--trust", metavar="KEY", help="The signer's key as its owner told you, once for each signer.")
def import_record(path: Path, trust: str | None) -> None:
    """Take a record, or a list of withdrawals, from another machine."""
    from omokage.trust.consents import import_file

    click.echo(f"taken: {import_file(path, trust=trust)}")


@consent.command()
def key() -> None:
    """The public half of this installation's key, for others to trust."""
    from omokage.trust.keys import public_name, signing_key

    click.echo(public_name(signing_key()))


def ask_unless_recorded(medium: Path) -> None:
    """At a terminal, ask the three questions for a file that nobody's consent is recorded for."""
    from omokage.files import material_digest
    from omokage.trust.consents import keep, recorded_for

    if not _is_asking() or not medium.exists():
        return
    if not recorded_for(material_digest(medium)):
        click.echo(f"Nobody's consent is recorded for {medium.name} yet.")
        keep(_asked((medium,), None, (), None))


def _asked(
    media: tuple[Path, ...],
    kind: str | None,
    purposes: tuple[str, ...],
    until: str | None,
    *,
    answer: Path | None = None,
    heard: str = "",
    **terms: Any,
) -> Consent:
    """A signed record; at a terminal, what is missing is asked."""
    from omokage.trust.consent import Terms, new_consent
    from omokage.trust.keys import signing_key

    kind = kind or _ask_who(media)
    if kind == "agreed" and _is_asking():
        for name, question in _OF_OTHERS.items():
            terms[name] = terms.get(name) or click.prompt(question)
    purposes, today = purposes or _ask_purposes(), date.today()
    agreed = Terms(
        kind=kind,  # type: ignore[arg-type]  # Terms refuses what is no kind
        purposes=purposes,
        start=today.isoformat(),
        end=until or _ask_until(today),
        **terms,
    )
    answered = None
    if answer is not None:
        from omokage.pipelines.challenge import check_answer

        if kind != "agreed":
            raise InputError("--answer is for somebody else's consent; give --agreed with it")
        if not heard and _is_asking():
            heard = click.prompt(f"{agreed.witness}, which digits do you hear in {answer.name}")
        if not heard:
            raise InputError("say with --heard which digits the witness hears in the answer")
        with ProgressBar() as on_progress:
            answered = check_answer(answer, media, heard, on_progress=on_progress)
    return new_consent(media, agreed, now=datetime.now(UTC), key=signing_key(), answer=answered)


def _found(record: str) -> Consent:
    from omokage.trust.consent import read_consent
    from omokage.trust.consents import find

    path = Path(record)
    return read_consent(path) if path.suffix or path.exists() else find(record)


def _is_asking() -> bool:
    return sys.stdin.isatty()


def _ask_who(media: tuple[Path, ...]) -> str:
    if not _is_asking():
        raise InputError("say who is to be seen: --me, --agreed (somebody else) or --nobody (a drawn face)")
    names = ", ".join(path.name for path in media)
    said = click.prompt(
        f"Who is to be seen in {names}?\n  1 me\n  2 somebody else, who agreed on paper\n  3 nobody real\n",
        type=click.Choice(["1", "2", "3"]),
        show_choices=False,
        prompt_suffix="> ",
    )
    return {"1": "self", "2": "agreed", "3": "nobody"}[said]


def _ask_purposes() -> tuple[str, ...]:
    from omokage.trust.consent import purposes

    if not _is_asking():
        raise InputError(f"say what for with --purpose, one of {', '.join(purposes())}")
    lines = "\n".join(f"  {name}: {meaning}" for name, meaning in purposes().items())
    said = click.prompt(
        f"What may be made of it? One or more, with commas between\n{lines}\n", prompt_suffix="> "
    )
    return tuple(name.strip() for name in said.split(",") if name.strip())


def _ask_until(today: date) -> str:
    usual = (today + A_YEAR).isoformat()
    return str(click.prompt("Until when", default=usual)) if _is_asking() else usual
