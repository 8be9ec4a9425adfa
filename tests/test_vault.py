"""Avatar files at rest: sealed, opened by a key that stays here, erased with it, carried under a passphrase."""

from __future__ import annotations

import json
import logging
import stat
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from omokage.avatar.container import (
    COMPACT,
    STYLEAVATAR,
    Content,
    is_trained_here,
    read_content,
    write_content,
)
from omokage.cli import app as cli
from omokage.errors import BundleError, ConsentError, InputError, OutputError
from omokage.pipelines.carry import export_avatar, import_avatar, needs_passphrase
from omokage.trust import consents
from omokage.trust.audit_check import verify
from omokage.trust.audit_report import last_rows, rows_text
from omokage.trust.consent import Consent, Medium, Terms, new_consent, write_consent
from omokage.trust.keys import public_name, signing_key
from omokage.trust.release import check_writable
from omokage.vault import sealed as sealed_file
from omokage.vault.avatar_keys import find_record, key_records
from omokage.vault.sealed import MAGIC, Seal, SealBroken, opened, sealed
from omokage.vault.secret_file import erase_secret, make_secret

ANNA, TALK, OTHER = "a" * 64, "b" * 64, "c" * 64
SECRET = bytes(range(32))
PASSPHRASE = "four words that differ"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sealed_file, "SCRYPT_COST", 1 << 4)  # a test need not hold off anybody
    return tmp_path / "home"


def content(*media: str, **header: object) -> Content:
    provenance = {"provenance": {"recording_sha256": media[0], "recording_name": "anna.mp4"}} if media else {}
    speech = {"speech": {"report": {"recording_sha256": media[1]}}} if media[1:] else {}
    return Content(4, COMPACT, {**provenance, **speech, **header}, {"secret": torch.arange(1000)})


def agree(*media: str, days: int = 9) -> Consent:
    today = datetime.now(UTC)
    end = (today + timedelta(days=days)).date().isoformat()
    terms = Terms(
        kind="self", purposes=("private",), start=(today - timedelta(days=9)).date().isoformat(), end=end
    )
    record = new_consent(
        [Medium(one, "anna.mp4") for one in media], terms, now=today - timedelta(days=1), key=signing_key()
    )
    consents.keep(record)
    return record


def written(path: Path, *media: str) -> Path:
    write_content(path, content(*media))
    return path


# the sealed file


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 128, 200])
def test_what_is_sealed_comes_back(length: int) -> None:
    data = bytes(range(256))[:length]
    assert read_back(b"".join(sealed(data, Seal("1" * 32, chunk=64), SECRET))) == data


def read_back(data: bytes) -> bytes:
    file = BytesIO(data)
    seal = Seal.read(file)
    if seal is None:
        raise SealBroken("not sealed at all")
    return b"".join(opened(file, seal, SECRET))


def test_every_changed_bit_every_cut_and_every_move_is_found() -> None:
    seal = Seal("1" * 32, chunk=64)
    pieces = list(sealed(bytes(160), seal, SECRET))
    whole = b"".join(pieces)
    changed = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    cut = [whole[:length] for length in range(len(whole))]
    head, one, two, three = pieces
    moved = [head + two + one + three, head + one + three, head + one + two, head + one + two + two + three]
    other = list(sealed(bytes(160), Seal("1" * 32, chunk=64), SECRET))
    mixed = [head + one + other[2] + three, whole + three, whole + b"\0", other[0] + one + two + three]
    for data in changed + cut + moved + mixed:
        with pytest.raises(SealBroken):
            read_back(data)
    assert read_back(whole) == bytes(160)


def test_equal_contents_are_sealed_differently_and_none_can_be_read(tmp_path: Path) -> None:
    write_content(tmp_path / "a.avatar", content(ANNA))
    write_content(tmp_path / "b.avatar", content(ANNA))
    one, two = ((tmp_path / name).read_bytes() for name in ("a.avatar", "b.avatar"))
    assert one != two
    for data in (one, two):
        assert data.startswith(MAGIC)
        for told in (
            b"anna.mp4",
            ANNA.encode(),
            b"omokage.avatar",
            torch.arange(1000).numpy().tobytes()[:64],
        ):
            assert told not in data
    with (tmp_path / "a.avatar").open("rb") as file:
        seal = Seal.read(file)
    assert seal is not None and seal.version == 1 and find_record(seal.key) is not None


def test_only_as_much_is_opened_as_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "me.avatar"
    write_content(
        path, Content(6, STYLEAVATAR, {"provenance": {"recording_sha256": ANNA}}, {"x": torch.zeros(9)})
    )
    assert is_trained_here(path) and read_content(path).kind == STYLEAVATAR
    assert not is_trained_here(written(tmp_path / "other.avatar", ANNA))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not is_trained_here(path)


# the key


def test_the_keys_are_the_owners_alone_and_bound_to_the_recording(home: Path, tmp_path: Path) -> None:
    written(tmp_path / "me.avatar", ANNA)
    (record,) = key_records()
    assert record.media == (ANNA,)
    path = home / "keys" / "avatars" / f"{record.id}.json"
    for secret in (path, home / "keys" / "avatars.key"):
        if sys.platform != "win32":
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"media": [OTHER]}))
    with pytest.raises(InputError, match="was altered"):
        read_content(tmp_path / "me.avatar")
    path.write_text("no key")
    with pytest.raises(InputError, match="is damaged"):
        read_content(tmp_path / "me.avatar")


def test_an_avatar_keeps_its_key_and_another_gets_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "me.avatar", ANNA)
    written(path, ANNA)
    assert len(key_records()) == 1
    written(path, ANNA, TALK)
    assert [set(record.media) for record in key_records() if len(record.media) == 2] == [{ANNA, TALK}]
    assert len(key_records()) == 2 and read_content(path).media == (ANNA, TALK)


def test_without_its_key_nobody_reads_it_and_the_sentence_says_what_to_do(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "me.avatar", ANNA)
    (home / "keys" / "avatars.key").rename(tmp_path / "saved")
    with pytest.raises(InputError, match=r"avatars\.key is gone"):
        read_content(path)
    with pytest.raises(InputError, match="put back the saved one"):
        written(tmp_path / "new.avatar", ANNA)
    assert not (tmp_path / "new.avatar").exists()
    (home / "keys" / "avatars.key").write_text("0" * 64)
    with pytest.raises(InputError, match="is not the one that it was made with"):
        read_content(path)
    (home / "keys" / "avatars.key").write_text("no key")
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        check_writable(tmp_path / "new.avatar", (".avatar",))
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(
        BundleError, match=r"its key .* is not here; bring the avatar over with 'omokage export'"
    ):
        read_content(path)


def test_a_home_that_takes_no_key_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="the keys of avatars have no place"):
        check_writable(tmp_path / "me.avatar", (".avatar",))


def test_an_avatar_that_tells_of_another_recording_than_its_key_is_refused(tmp_path: Path) -> None:
    """Whoever has the key may write what he likes, but not move an avatar to another person's consent."""
    path = written(tmp_path / "me.avatar", ANNA)
    (record,) = key_records()
    key = record.unwrapped()
    path.write_bytes(b"".join(sealed(content(OTHER).serialized(), Seal(key.id), key.secret)))
    agree(OTHER)
    with pytest.raises(
        ConsentError, match=f"made of recording {OTHER[:12]}, but its key was made for {ANNA[:12]}"
    ):
        read_content(path)
    assert not is_trained_here(path)


def test_a_newer_seal_and_damage_are_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "me.avatar", ANNA)
    whole = path.read_bytes()
    path.write_bytes(Seal("1" * 32, version=2).prefix + b"whatever")
    with pytest.raises(BundleError, match="sealed in format 2, this omokage reads up to 1; update omokage"):
        read_content(path)
    for place in (0, 17, 40, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(BundleError, match=r"me\.avatar is damaged"):
            read_content(path)
    for length in (0, 8, 20, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"me\.avatar is damaged"):
            read_content(path)


def test_plain_files_of_earlier_versions_load_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "old.avatar"
    path.write_bytes(content(ANNA).serialized())
    with caplog.at_level(logging.WARNING):
        assert read_content(path).media == (ANNA,)
    assert "is not encrypted; 'omokage import avatar' makes an encrypted copy" in caplog.text
    import_avatar(path, output=tmp_path / "new.avatar")
    caplog.clear()
    assert read_content(tmp_path / "new.avatar").media == (ANNA,)
    assert (tmp_path / "new.avatar").read_bytes().startswith(MAGIC) and not caplog.text


# withdrawal


def test_an_erased_secret_is_overwritten(tmp_path: Path) -> None:
    path, seen = tmp_path / "secret", tmp_path / "seen"
    make_secret(path, b"the secret")
    seen.hardlink_to(path)  # the place on the disk
    make_secret(path, b"another")
    assert path.read_bytes() == b"the secret"
    erase_secret(path, b"gone")
    assert (path.read_bytes(), seen.read_bytes()) == (b"gone", bytes(10))
    assert {one.name for one in tmp_path.iterdir()} == {"secret", "seen"}


def test_a_withdrawal_destroys_the_key_of_every_copy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bystander = written(tmp_path / "me.avatar", ANNA), written(tmp_path / "other.avatar", OTHER)
    copy = tmp_path / "copy.avatar"
    copy.write_bytes(path.read_bytes())
    record = agree(ANNA)
    agree(OTHER)
    key = next(one for one in key_records() if one.media == (ANNA,))
    assert cli.run(["consent", "revoke", record.id[:8]]) == 0
    assert "destroyed: keys of 1 avatar files" in capsys.readouterr().out
    day = datetime.now(UTC).date().isoformat()
    sentence = (
        f"the consent {record.id[:12]} was withdrawn on {day}, and the avatar's key was destroyed with it"
    )
    for gone in (path, copy):
        with pytest.raises(ConsentError, match=sentence):
            read_content(gone)
    read_content(bystander)
    kept = (home / "keys" / "avatars" / f"{key.id}.json").read_text()
    assert key.wrapped not in kept and len(list((home / "keys" / "avatars").iterdir())) == 2
    row, _ = last_rows(1)[0]
    assert (row.event, row.facts) == ("erase", {"keys": [key.id], "consents": [record.id]})
    assert "keys of 1 avatars" in rows_text(last_rows(1)) and verify().is_whole
    written(path, OTHER)  # the name may be used again
    assert read_content(path).media == (OTHER,)


def test_a_key_lives_as_long_as_another_consent_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "me.avatar", ANNA)
    first, second, ended = agree(ANNA), agree(ANNA, days=8), agree(ANNA, days=-2)
    consents.revoke(first, "")
    read_content(path)
    consents.revoke(second, "")  # what has ended stands in for nobody
    assert ended.id not in consents.revoked(datetime.now(UTC))
    with pytest.raises(ConsentError, match=f"the consent ({first.id[:12]}|{second.id[:12]}) was withdrawn"):
        read_content(path)


def test_a_withdrawn_recording_takes_the_speech_learned_from_it_along(tmp_path: Path) -> None:
    path = written(tmp_path / "me.avatar", ANNA, TALK)
    agree(ANNA)
    consents.revoke(agree(TALK), "")
    with pytest.raises(ConsentError, match="was withdrawn"):
        read_content(path)


def test_a_list_from_elsewhere_destroys_keys_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, owner = agree(ANNA), public_name(signing_key())
    write_consent(record, tmp_path / "anna.consent.json")
    consents.revoke(record, "")
    consents.export_revocations(tmp_path / "list.json")
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "elsewhere" / "audit"))
    consents.import_file(tmp_path / "anna.consent.json", trust=owner)
    path = written(tmp_path / "me.avatar", ANNA)
    consents.import_file(tmp_path / "list.json")
    with pytest.raises(ConsentError, match="was withdrawn"):
        read_content(path)


def test_a_withdrawal_counts_when_the_audit_log_cannot_tell_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, record = written(tmp_path / "me.avatar", ANNA), agree(ANNA)
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="audit log"):
        consents.revoke(record, "")
    with pytest.raises(ConsentError, match="was withdrawn"):
        read_content(path)


# to another machine


def test_an_avatar_travels_under_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, carried = written(tmp_path / "me.avatar", ANNA), tmp_path / "carried.avatar"
    said = tmp_path / "passphrase.txt"
    said.write_text(PASSPHRASE + "\n")
    record = agree(ANNA)
    assert cli.run(["export", str(path), "-o", str(carried), "--passphrase-file", str(said)]) == 0
    row, _ = last_rows(1)[0]
    assert row.event == "release" and row.facts["kind"] == "avatar" and row.facts["is_encrypted"] is True
    assert row.facts["consent"] == [record.id]
    assert needs_passphrase(carried) and ANNA.encode() not in carried.read_bytes()

    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "elsewhere" / "audit"))
    with pytest.raises(BundleError, match="is under a passphrase"):
        read_content(carried)
    with pytest.raises(InputError, match="that is not the passphrase"):
        import_avatar(carried, output=tmp_path / "mine.avatar", passphrase="another one, as long")
    assert not (tmp_path / "mine.avatar").exists()
    mine = tmp_path / "mine.avatar"
    assert cli.run(["import", "avatar", str(carried), "-o", str(mine), "--passphrase-file", str(said)]) == 0
    again = read_content(mine)
    assert again.media == (ANNA,) and torch.equal(again.tensors["secret"], torch.arange(1000))
    whole = carried.read_bytes()
    carried.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(BundleError, match="is damaged"):
        import_avatar(carried, output=mine, passphrase=PASSPHRASE)


def test_a_plain_export_is_a_choice_and_stands_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plain = written(tmp_path / "me.avatar", ANNA), tmp_path / "plain.avatar"
    agree(ANNA)
    assert cli.run(["export", str(path), "-o", str(plain)]) == InputError.exit_code
    assert "--passphrase-file, since there is no terminal" in capsys.readouterr().err and not plain.exists()
    assert cli.run(["export", str(path), "-o", str(plain), "--plain"]) == 0
    assert "not encrypted" in capsys.readouterr().out
    with safe_open(plain, framework="pt") as file:  # as any reader of such files
        assert torch.equal(file.get_tensor("secret"), torch.arange(1000))
    row, personal = last_rows(1)[0]
    assert row.facts["is_encrypted"] is False and personal and personal["path"] == str(plain)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_nothing_is_exported_without_consent_or_log(
    passphrase: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = written(tmp_path / "me.avatar", ANNA), tmp_path / "out.avatar"
    with pytest.raises(ConsentError, match=r"nobody's consent is recorded for anna\.mp4"):
        export_avatar(path, output=out, passphrase=passphrase)
    agree(ANNA)
    with pytest.raises(InputError, match="12 are needed"):
        export_avatar(path, output=out, passphrase="short")
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="audit log"):
        export_avatar(path, output=out, passphrase=passphrase)
    assert not out.exists()


def test_what_was_withdrawn_is_not_taken_in_again(tmp_path: Path) -> None:
    path, record = written(tmp_path / "me.avatar", ANNA), agree(ANNA)
    for name, passphrase in (("plain", None), ("carried", PASSPHRASE)):
        export_avatar(path, output=tmp_path / f"{name}.avatar", passphrase=passphrase)
    consents.revoke(record, "")
    for name, passphrase in (("plain", None), ("carried", PASSPHRASE)):
        with pytest.raises(
            ConsentError, match=r"is not taken in: the consent .* for anna\.mp4 was withdrawn"
        ):
            import_avatar(tmp_path / f"{name}.avatar", output=tmp_path / "new.avatar", passphrase=passphrase)
    assert not (tmp_path / "new.avatar").exists()


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    secret, path = bytes(32), tmp_path / "a.avatar"
    for changed in ({"cost": 1 << 30}, {"cost": 3}, {"by": "hope"}, {"salt": "no"}, {"key": None}):
        wrapped = sealed_file.wrapped_by(PASSPHRASE, secret) | changed
        path.write_bytes(b"".join(sealed(b"data", Seal(wrapped=wrapped), secret)))
        with pytest.raises(BundleError, match="is damaged"):
            read_content(path, passphrase=PASSPHRASE)
    path.write_bytes(Seal("1" * 32, chunk=1 << 30).prefix)
    with pytest.raises(BundleError, match="is damaged"):
        read_content(path)
