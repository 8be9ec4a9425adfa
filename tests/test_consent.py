"""Consent: what is signed counts, every refusal says why, withdrawal reaches all that was made of a recording."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import skimage.data
import skimage.io

from clips import make_clip, plain
from omokage.cli import app as cli
from omokage.errors import ConsentError, InputError, OmokageError
from omokage.files import file_digest
from omokage.pipelines.create import CreateConfig, create_avatar
from omokage.pipelines.reenact import ReenactConfig, performer_of
from omokage.pipelines.rehearse import rehearse
from omokage.pipelines.small_portrait import train_small_portrait
from omokage.pipelines.speak import SpeakConfig, speak
from omokage.pipelines.stand_in import stand_in
from omokage.trust import consents
from omokage.trust.consent import (
    Consent,
    Medium,
    Terms,
    Use,
    decide,
    new_consent,
    purposes,
    read_consent,
    write_consent,
)
from omokage.trust.keys import KEY_FILE, canonical, public_name, signing_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ME = Terms(kind="self", purposes=("private",), start="2026-11-22", end="2027-11-22")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "me.mp4"
    path.write_bytes(b"a recording")
    return path


def _record(clip: Path, terms: Terms = ME, **changes: object) -> Consent:
    return new_consent([clip], replace(terms, **changes), now=NOW, key=signing_key())  # type: ignore[arg-type]


def _reasons(
    consent: Consent, use: Use, *, now: datetime = NOW, revoked: dict[str, str] | None = None
) -> str:
    trusted = frozenset({public_name(signing_key())})
    decision = decide(consent, use, now=now, trusted=trusted, revoked=revoked or {})
    assert decision.is_allowed == (not decision.reasons)
    return "; ".join(decision.reasons)


def test_a_record_comes_back_and_allows_what_it_says(tmp_path: Path, clip: Path) -> None:
    record = _record(clip)
    write_consent(record, tmp_path / "me.consent.json")
    assert read_consent(tmp_path / "me.consent.json") == record
    assert _reasons(record, Use(file_digest(clip))) == ""
    assert record.id in record.to_text() and "me.mp4" in record.to_text()


def test_every_reason_to_refuse_is_told(clip: Path) -> None:
    record, use = _record(clip), Use(file_digest(clip))
    assert "another recording" in _reasons(record, replace(use, media="0" * 64))
    assert "is for private, not for marketing" in _reasons(record, replace(use, purpose="marketing"))
    assert "ended on 2027-11-22" in _reasons(record, use, now=NOW + timedelta(days=366))
    assert "starts on 2027-01-01" in _reasons(_record(clip, start="2027-01-01"), use)
    assert "dated in the future" in _reasons(record, use, now=NOW - timedelta(hours=1))
    assert "withdrawn on 2026-11-23" in _reasons(record, use, revoked={record.id: "2026-11-23"})
    two = _record(
        clip, purposes=("private", "training"), channels=("web",), languages=("en", "ja"), voice=False
    )
    assert "say what it is for with --purpose, one of private, training" in _reasons(two, use)
    asked = replace(use, purpose="training", channel="tv", language="de", voice=True)
    told = _reasons(two, asked)
    assert "channels are web, not tv" in told and "languages are en, ja, not de" in told and "voice" in told
    assert _reasons(two, replace(asked, channel="web", language="ja", voice=False)) == ""


def test_nothing_of_a_signed_record_can_be_changed(tmp_path: Path, clip: Path) -> None:
    record, use = _record(clip), Use(file_digest(clip))
    for altered in (
        replace(record, terms=replace(ME, purposes=("private", "marketing"))),
        replace(record, terms=replace(ME, end="2030-01-01")),
        replace(record, media=()),
        replace(record, signature="00" * 64),
        replace(record, signature="no"),
        replace(record, subject="person-0"),
    ):
        assert "altered after it was signed" in _reasons(altered, use)
    foreign = _signed_elsewhere(tmp_path, clip)
    assert "a key that this installation does not trust" in _reasons(foreign, use)
    path = tmp_path / "me.consent.json"
    write_consent(record, path)
    plain = json.loads(path.read_text())
    for changed, words in (
        (plain | {"extra": 1}, "altered"),
        (plain | {"never": []}, "altered"),
        (plain | {"format": 2}, "update omokage"),
        (plain | {"what": "a cake"}, "no consent record"),
        (plain | {"created": "today"}, "damaged"),
        (plain | {"terms": plain["terms"] | {"end": "2050-01-01"}}, "ten years"),
        ({k: v for k, v in plain.items() if k != "media"}, "damaged"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ConsentError, match=words):
            read_consent(path)
    for content in (b"", b"\xff\xfe", path.read_bytes()[:100], b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ConsentError):
            read_consent(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"purposes": ()}, "got none"),
        ({"purposes": ("politics",)}, "got 'politics'"),
        ({"end": "2026-11-21"}, "cannot end"),
        ({"end": "2037-01-01"}, "ten years at most"),
        ({"end": "tomorrow"}, "'tomorrow' is no day"),
        ({"kind": "other"}, "kind of consent"),
        ({"adult": False}, "under 18"),
        ({"kind": "agreed"}, "witness, reference, uses, licensee"),
        ({"kind": "sample"}, "the demo and nothing else"),
    ],
)
def test_terms_that_nobody_can_agree_to(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(ME, **changes)  # type: ignore[arg-type]


def test_the_key_is_the_owners_alone(home: Path) -> None:
    first = signing_key()
    path = home / "keys" / KEY_FILE
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_name(signing_key()) == public_name(first)
    assert [one.name for one in path.parent.iterdir()] == [KEY_FILE]
    path.write_text("no key")
    with pytest.raises(InputError, match="is no signing key"):
        signing_key()


def test_canonical_json_has_one_form() -> None:
    assert canonical({"b": ("é", 1), "a": None}) == '{"a":null,"b":["é",1]}'.encode()
    with pytest.raises(TypeError):
        canonical({"a": Path("x")})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


def test_permits_come_from_the_register(clip: Path) -> None:
    use = Use(file_digest(clip))
    with pytest.raises(ConsentError, match=r"nobody's consent is recorded for .*'omokage consent new me"):
        consents.permit(use, name=str(clip), now=NOW)
    old = _record(clip, end="2026-11-22")
    consents.keep(old)
    later = NOW + timedelta(days=30)
    with pytest.raises(ConsentError, match="may not be used for this: the consent ended on 2026-11-22"):
        consents.permit(use, name=str(clip), now=later)
    renewed = new_consent([clip], ME, now=NOW + timedelta(days=1), key=signing_key(), previous=old)
    consents.keep(renewed)
    assert renewed.subject == old.subject and renewed.previous == old.id
    permitted = consents.permit(use, name=str(clip), now=later)
    assert (permitted.consent, permitted.purpose) == (renewed, "private")


def test_a_damaged_record_permits_nothing_and_stops_nobody_else(tmp_path: Path, clip: Path) -> None:
    path = consents.keep(_record(clip))
    other = tmp_path / "other.mp4"
    other.write_bytes(b"another")
    consents.keep(_record(other))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConsentError, match="nobody's consent"):
        consents.permit(Use(file_digest(clip)), name="me.mp4", now=NOW)
    consents.permit(Use(file_digest(other)), name="other.mp4", now=NOW)
    assert len(consents.damaged()) == 1


def test_withdrawal_reaches_what_was_made_of_a_recording(tmp_path: Path, clip: Path) -> None:
    photo_record = _record(clip)
    consents.keep(photo_record)
    made = tmp_path / "rehearsal.mp4"
    made.write_bytes(b"made of it")
    permitted = consents.permit(Use(file_digest(clip)), name="me.mp4", now=NOW)
    derived = consents.derive(permitted, made)
    # `derive` signs now, whatever day the tests run on.
    late = max(NOW, datetime.now(UTC))
    assert consents.permit(Use(file_digest(made)), name="rehearsal.mp4", now=late).consent == derived
    assert set(consents.revoke(photo_record, "changed my mind", now=late)) == {photo_record.id, derived.id}
    for path in (clip, made):
        with pytest.raises(ConsentError, match="withdrawn"):
            consents.permit(Use(file_digest(path)), name=path.name, now=late)


@pytest.mark.parametrize("damage", [b"not json\n", b'{"what": "omokage revocation"}\n', None])
def test_a_damaged_list_of_withdrawals_stops_everything(home: Path, clip: Path, damage: bytes | None) -> None:
    record = _record(clip)
    consents.keep(record)
    consents.revoke(_record(clip), "", now=NOW)
    path = home / "consents" / consents.ROWS
    path.write_bytes(path.read_bytes().replace(b"2026", b"2036") if damage is None else damage)
    with pytest.raises(ConsentError, match="so nothing may go ahead"):
        consents.permit(Use(file_digest(clip)), name="me.mp4", now=NOW)


def test_withdrawals_travel_to_machines_without_a_network(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = _record(clip)
    consents.keep(record)
    owner = public_name(signing_key())
    write_consent(record, tmp_path / "me.consent.json")
    consents.revoke(record, "", now=NOW)
    assert consents.export_revocations(tmp_path / "list.json", now=NOW) == 1

    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(ConsentError, match=f"signed by {owner}, a key that is not trusted"):
        consents.import_file(tmp_path / "me.consent.json")
    with pytest.raises(InputError, match="is no public key"):
        consents.import_file(tmp_path / "me.consent.json", trust="me")
    assert consents.import_file(tmp_path / "me.consent.json", trust=owner) == f"consent {record.id}"
    use = Use(file_digest(clip))
    consents.permit(use, name="me.mp4", now=NOW)
    assert "1 withdrawn consents" in consents.import_file(tmp_path / "list.json")
    with pytest.raises(ConsentError, match="withdrawn"):
        consents.permit(use, name="me.mp4", now=NOW)
    # From then on this machine wants to hear every day that nothing was withdrawn.
    with pytest.raises(ConsentError, match="older than a day"):
        consents.permit(use, name="me.mp4", now=NOW + timedelta(hours=25))
    listed = json.loads((tmp_path / "list.json").read_text())
    for changed in (listed | {"rows": []}, listed | {"issued": "2027-01-01T00:00:00+00:00"}):
        (tmp_path / "altered.json").write_text(json.dumps(changed))
        with pytest.raises(ConsentError, match="altered"):
            consents.import_file(tmp_path / "altered.json")


def _signed_elsewhere(tmp_path: Path, clip: Path) -> Consent:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
        return _record(clip)


# the command


def test_the_commands_from_new_to_revoke(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.json"
    assert cli.run(["consent", "new", str(clip), "--me", "--purpose", "private", "-o", str(copy)]) == 0
    number = read_consent(copy).id
    assert number in capsys.readouterr().out
    assert cli.run(["consent", "verify", number[:8], str(clip)]) == 0
    assert "allowed, for private" in capsys.readouterr().out
    assert (
        cli.run(["consent", "verify", str(copy), str(clip), "--purpose", "marketing"])
        == ConsentError.exit_code
    )
    assert "not for marketing" in capsys.readouterr().out
    assert cli.run(["consent", "revoke", number[:8]]) == 0
    assert cli.run(["consent", "verify", number[:8], str(clip)]) == ConsentError.exit_code
    assert cli.run(["consent", "list"]) == 0 and cli.run(["consent", "show", number[:8]]) == 0
    out = capsys.readouterr().out
    assert "withdrawn" in out and "WITHDRAWN" in out
    assert cli.run(["consent", "show", "zz"]) == ConsentError.exit_code
    assert cli.run(["consent", "key"]) == 0
    assert public_name(signing_key()) in capsys.readouterr().out


def test_without_a_terminal_nothing_is_taken_for_granted(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["consent", "new", str(clip)]) == InputError.exit_code
    assert "--me, --agreed (somebody else) or --nobody" in capsys.readouterr().err
    assert cli.run(["consent", "new", str(clip), "--me"]) == InputError.exit_code
    assert "--purpose, one of " + ", ".join(purposes()) in capsys.readouterr().err
    assert cli.run(["consent", "new", str(clip.with_name("none.mp4")), "--me", "--purpose", "private"]) != 0
    assert consents.all_records() == []


def test_three_questions_and_it_works(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["1", "private, training", "2027-01-31"])
    monkeypatch.setattr("omokage.cli.consent._is_asking", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(answers))
    assert cli.run(["consent", "new", str(clip)]) == 0
    (record,) = consents.all_records()
    assert (record.terms.kind, record.terms.purposes, record.terms.end) == (
        "self",
        ("private", "training"),
        "2027-01-31",
    )


# the commands that make or show somebody


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("film") / "me.mp4", draw=plain(90, 90, 90))


def _agree(path: Path, **changes: object) -> Consent:
    today = datetime.now(UTC).date()
    terms = replace(ME, start=today.isoformat(), end=(today + timedelta(days=9)).isoformat(), **changes)  # type: ignore[arg-type]
    record = new_consent([path], terms, now=datetime.now(UTC), key=signing_key())
    consents.keep(record)
    return record


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


def test_nothing_is_learned_without_a_consent(film: Path, tmp_path: Path) -> None:
    photo = tmp_path / "me.png"
    skimage.io.imsave(photo, skimage.data.astronaut(), check_contrast=False)
    made = tmp_path / "me.avatar"
    for refused in (
        lambda: create_avatar(film, output=made),
        lambda: create_avatar(film, output=made, config=CreateConfig(force=True)),
        lambda: rehearse(photo, output=tmp_path / "clip.mp4"),
        lambda: train_small_portrait(film, output=tmp_path / "model"),
    ):
        with pytest.raises(ConsentError, match=r"nobody's consent is recorded for .*me"):
            refused()
    assert _left(tmp_path) == ["me.png"]
    _agree(film)
    with pytest.raises(OmokageError) as told:  # the next gate: there is no face in it
        create_avatar(film, output=made)
    assert not isinstance(told.value, ConsentError)


def test_an_avatar_is_shown_for_what_was_agreed_and_no_longer_than_that(tmp_path: Path) -> None:
    drawn = stand_in(128, frame_count=4).avatar
    seen = hashlib.sha256(b"a recording of somebody").hexdigest()
    avatar = replace(
        drawn, provenance=replace(drawn.provenance, recording_sha256=seen, recording_name="anna.mp4")
    )
    with pytest.raises(ConsentError, match=r"nobody's consent is recorded for anna\.mp4"):
        performer_of(avatar, ReenactConfig())
    today = datetime.now(UTC).date()
    days = {"start": today.isoformat(), "end": (today + timedelta(days=9)).isoformat()}
    terms = replace(ME, purposes=("reception", "training"), **days)
    record = new_consent([Medium(seen, "anna.mp4")], terms, now=datetime.now(UTC), key=signing_key())
    consents.keep(record)
    with pytest.raises(ConsentError, match="say what it is for with --purpose, one of reception, training"):
        performer_of(avatar, ReenactConfig())
    with pytest.raises(ConsentError, match="for reception, training, not for marketing"):
        speak(avatar, output=tmp_path / "out.mp4", text="Hello.", config=SpeakConfig(purpose="marketing"))
    assert performer_of(avatar, ReenactConfig(purpose="reception", runtime="torch")).size == 128
    consents.revoke(record, "")
    with pytest.raises(ConsentError, match="withdrawn"):
        performer_of(avatar, ReenactConfig(purpose="reception"))
    assert _left(tmp_path) == []


def test_a_terminal_is_asked_once(film: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = iter(["1", "private", "2099-01-01", *3 * ["1", "private", "2035-01-01"]])
    monkeypatch.setattr("omokage.cli.consent._is_asking", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(asked))
    create = ["create", str(film), "-o", str(tmp_path / "me.avatar"), "--quiet"]
    assert cli.run(create) == InputError.exit_code  # not for longer than ten years
    assert consents.all_records() == []
    for _ in range(2):
        assert cli.run(create) not in (0, ConsentError.exit_code)  # there is no face in it
        assert len(consents.all_records()) == 1
