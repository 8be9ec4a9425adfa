"""What had left under a consent is told when it is withdrawn, so that it can be taken down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import omokage
from omokage.cli.app import run
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.trust import consents
from omokage.trust.audit import LOG, AuditLog, audit_folder
from omokage.trust.audit_report import last_rows
from omokage.trust.consent import Consent, Medium, Terms, new_consent
from omokage.trust.keys import signing_key
from omokage.trust.published import consents_of, published_under
from omokage.trust.registry import registry_path
from omokage.trust.release import ReleaseConfig, release_image, release_live, release_model
from test_marks import few_scales, texture

__all__ = ["few_scales"]  # a fixture
ANNA, OTTO = "a" * 64, "b" * 64
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> Path:
    path = tmp_path.with_name(tmp_path.name + "-home")
    monkeypatch.setenv("OMOKAGE_HOME", str(path))
    return path


def agree(media: str = ANNA) -> Consent:
    start, end = ((NOW + timedelta(days=n)).date().isoformat() for n in (-1, 9))
    terms = Terms(kind="self", purposes=("private",), start=start, end=end)
    record = new_consent([Medium(media, "anna.mp4")], terms, now=NOW - timedelta(hours=1), key=signing_key())
    consents.keep(record)
    return record


def release_of(record: Consent, media: str = ANNA) -> ReleaseConfig:
    return ReleaseConfig(avatar=media, consent=record.id, purpose="private")


def stream(record: Consent) -> None:
    def frames() -> Iterator[SoundingFrame]:
        for _ in range(3):
            yield SoundingFrame(texture(64, 64), np.zeros((640, 1), np.float32))

    release_live(
        frames(), len, frame_rate=Fraction(25), sound=SoundFormat(16000, 1), config=release_of(record)
    )


def test_all_that_left_under_a_consent_is_told_once_and_nothing_else(tmp_path: Path) -> None:
    anna, otto = agree(), agree(OTTO)
    marked = release_image(texture(256, 256), tmp_path / "marked.png", config=release_of(anna))
    release_image(texture(256, 256, seed=2), tmp_path / "otto.png", config=release_of(otto, OTTO))
    release_image(texture(64, 64), tmp_path / "small.png", config=release_of(anna))  # too small for a mark
    release_image(texture(64, 64), tmp_path / "drawn.png")  # of nobody
    stream(anna)
    facts = {"avatar": [ANNA, OTTO], "consent": [anna.id, otto.id]}
    release_model(lambda part: part.touch(), tmp_path / "out.avatar", kind="avatar", facts=facts)
    before = (audit_folder() / LOG).read_bytes()
    found = published_under([anna.id])
    assert [one.kind for one in found] == ["picture", "picture", "stream", "avatar"]
    names = [str(tmp_path / name) for name in ("marked.png", "small.png", "out.avatar")]
    assert [one.file for one in found if one.file] == names
    assert (found[0].render_id, found[0].sha256) == (marked.render_id, marked.sha256)
    assert all(one.consent == anna.id for one in found) and abs(
        datetime.fromisoformat(found[0].at) - NOW
    ) < timedelta(days=1)
    assert [one.file for one in published_under([otto.id])] == [str(tmp_path / "otto.png"), names[-1]]
    assert consents_of(marked.render_id or "") == (anna.id,) and published_under(["c" * 64]) == ()
    assert (audit_folder() / LOG).read_bytes() == before  # to look writes nothing


def test_who_withdraws_is_told_what_to_take_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = agree()
    assert run(["consent", "show", record.id[:8]]) == 0
    assert "published under it: nothing that the audit log" in capsys.readouterr().out
    released = release_image(texture(256, 256), tmp_path / "a.png", config=release_of(record))
    assert run(["consent", "show", record.id[:8]]) == 0
    said = capsys.readouterr().out
    assert "published under it: 1\n" in said and f"picture   render {released.render_id}" in said
    assert "taken down" not in said
    assert run(["consent", "revoke", record.id[:8]]) == 0
    said = capsys.readouterr().out
    assert f"withdrawn: {record.id}" in said and "1, of which every copy is to be taken down" in said
    assert str(tmp_path / "a.png") in said and f"{released.render_id}" in said
    assert run(["consent", "show", record.id[:8], "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["published"]
    assert (one["file"], one["render_id"]) == (str(tmp_path / "a.png"), released.render_id)


def test_python_is_told_the_same_and_the_log_keeps_nothing_more_of_anybody(tmp_path: Path) -> None:
    record = agree()
    release_image(texture(256, 256), tmp_path / "anna smiles.png", config=release_of(record))
    gone = consents.revoke(record, "a private reason")
    (one,) = gone.published()
    assert tuple(gone) == gone.numbers == (record.id,) and one.file.endswith("anna smiles.png")
    log = (audit_folder() / LOG).read_text()
    assert not any(word in log for word in ("smiles", "private reason", "anna"))


def test_a_name_that_was_erased_from_the_log_comes_from_the_register(tmp_path: Path) -> None:
    record = agree()
    release_image(texture(256, 256), tmp_path / "a.png", config=release_of(record))
    AuditLog().forget([last_rows(1)[0][0].number])
    (one,) = published_under([record.id])
    assert one.file == "a.png"
    registry_path().unlink()
    (one,) = published_under([record.id])
    assert one.file == "" and "(its name was erased)" in one.line()


@pytest.mark.usefixtures("few_scales")
def test_verify_knows_the_consent_of_a_copy_without_its_origin(tmp_path: Path) -> None:
    record = agree()
    released = release_image(texture(320, 320), tmp_path / "a.png", config=release_of(record))
    copy = tmp_path / "copy.bmp"
    PIL.Image.open(released.path).convert("RGB").save(copy)
    (report,) = omokage.verify(copy).files
    assert (
        report.origin.state == "none"
        and f"consent of the marked render: {record.id[:12]}, holds until" in report.to_text()
    )
    consents.revoke(record, "")
    assert "WITHDRAWN on" in omokage.verify(copy).to_text()
