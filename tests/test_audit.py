"""The audit log: nothing leaves without a row, and whoever changes a row is found out."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from clips import moving_disc, small_disk
from omokage.cli import app as cli
from omokage.errors import AuditError, ConsentError, InputError, OutputError
from omokage.files import locked
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.trust import audit
from omokage.trust import release as door
from omokage.trust.audit import AuditLog, audit_folder, record_release
from omokage.trust.audit_check import AuditReport, verify
from omokage.trust.audit_report import export, last_rows, rows_text
from omokage.trust.audit_row import parse_row
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.keys import signing_key
from omokage.trust.release import (
    ReleaseConfig,
    check_label,
    check_writable,
    release_clip,
    release_image,
    release_live,
    release_model,
    release_text,
)

PICTURE = np.zeros((64, 96, 3), np.uint8)


def log_of(count: int) -> Path:
    """A log with so many rows after its first; its folder."""
    for number in range(count):
        AuditLog().append("release", {"n": number}, {"path": f"/secret/{number}.mp4"})
    return audit_folder()


def lines_of(folder: Path) -> list[bytes]:
    return (folder / audit.LOG).read_bytes().split(b"\n")[:-1]


def write_lines(folder: Path, lines: list[bytes]) -> None:
    (folder / audit.LOG).write_bytes(b"".join(line + b"\n" for line in lines))


def problems(**how: Path) -> str:
    return " | ".join(verify(**how).problems)


# What is written


def test_every_release_has_a_row(tmp_path: Path) -> None:
    frames = [moving_disc(i / 25, 96, 64) for i in range(3)]
    config = ReleaseConfig(title="Taro's greeting", purpose="reception")
    released = [
        release_clip(frames, tmp_path / "clip.mp4", frame_rate=Fraction(25), config=config),
        release_image(PICTURE, tmp_path / "taro.png", config=ReleaseConfig(label="AI-generated")),
        release_text("fine", tmp_path / "report.txt"),
    ]
    rows = last_rows(10)
    assert [row.event for row, _ in rows] == ["begin", "release", "release", "release"]
    for (row, personal), file, kind in zip(rows[1:], released, ("clip", "picture", "report"), strict=True):
        assert row.facts["kind"] == kind and row.facts["sha256"] == file.sha256
        assert row.facts["bytes"] == file.path.stat().st_size
        assert personal is not None and personal["path"] == str(file.path) and personal["user"]
    assert rows[1][0].facts["render_id"] == released[0].render_id and rows[2][0].facts["is_labeled"] is True
    text = (audit_folder() / audit.LOG).read_text()
    assert "taro" not in text.lower() and "reception" not in text and str(tmp_path) not in text
    assert verify().is_whole and verify().rows == 4
    assert str(tmp_path / "taro.png") in rows_text(rows)


def test_a_stream_has_a_row_before_its_first_byte_and_one_at_its_end(tmp_path: Path) -> None:
    sent = list[bytes]()

    def write(data: bytes) -> int:
        assert [row.facts["state"] for row, _ in last_rows(5) if row.event == "live"] == ["begun"]
        sent.append(bytes(data))
        return len(data)

    sound = SoundFormat(16000, 1)
    frames = [SoundingFrame(PICTURE, np.zeros((640, 1), np.float32)) for _ in range(3)]
    release_live(frames, write, frame_rate=Fraction(25), sound=sound)
    ended = last_rows(1)[0][0]
    assert (
        ended.facts["state"] == "ended"
        and ended.facts["sha256"] == hashlib.sha256(b"".join(sent)).hexdigest()
    )
    release_live(frames, tmp_path / "a.mp4", frame_rate=Fraction(25), sound=sound)
    assert last_rows(1)[0][0].facts["kind"] == "clip" and verify().is_whole


def test_a_row_says_what_docs_say() -> None:
    folder = log_of(1)
    line = lines_of(folder)[1]
    said = json.loads(line)
    assert list(said) == ["at", "event", "facts", "personal", "previous", "row", "hash", "signature"]
    assert said["hash"] == hashlib.sha256(line[: line.index(b',"hash"')]).hexdigest()
    assert said["previous"] == json.loads(lines_of(folder)[0])["hash"]
    kept = json.loads((folder / audit.PERSONAL).read_text())
    text = json.dumps(kept["values"], separators=(",", ":"))
    assert said["personal"] == kept["hash"] == hashlib.sha256((kept["salt"] + text).encode()).hexdigest()
    assert json.loads((folder / audit.HEAD).read_text()) == said


def test_where_the_log_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "here"))
    assert audit_folder() == tmp_path / "here"
    monkeypatch.delenv("OMOKAGE_AUDIT")
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    assert audit_folder() == tmp_path / "home" / "audit"


# What was changed


def edit(lines: list[bytes]) -> list[bytes]:
    lines[3] = lines[3].replace(b'"n":2', b'"n":7')
    return lines


def edit_last(lines: list[bytes]) -> list[bytes]:
    lines[-1] = lines[-1].replace(b'"event":"release"', b'"event":"nothing"')
    return lines


def rehash(lines: list[bytes]) -> list[bytes]:
    """By somebody who knows how it works and lacks the key: every later hash is made anew."""
    previous = json.loads(lines[2])["hash"]
    for place in range(3, len(lines)):
        said = json.loads(lines[place])
        said["facts"] = {"n": 99} if place == 3 else said["facts"]
        said["previous"] = previous
        ends = said.pop("hash"), said.pop("signature")
        body = json.dumps(said, separators=(",", ":"))[:-1].encode()
        previous = hashlib.sha256(body).hexdigest()
        lines[place] = body + f',"hash":"{previous}","signature":"{ends[1]}"}}'.encode()
    return lines


def add(lines: list[bytes]) -> list[bytes]:
    """A row without a key at the end."""
    last = json.loads(lines[-1])
    said = {**last, "row": last["row"] + 1, "previous": last["hash"]}
    del said["hash"], said["signature"]
    body = json.dumps(said, separators=(",", ":"))[:-1].encode()
    digest = hashlib.sha256(body).hexdigest()
    forged = "00" * 64
    return [*lines, body + f',"hash":"{digest}","signature":"{forged}"}}'.encode()]


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "edited": edit,
    "the last edited": edit_last,
    "edited with new hashes": rehash,
    "dropped": lambda lines: lines[:3] + lines[4:],
    "the first dropped": lambda lines: lines[1:],
    "swapped": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "repeated": lambda lines: [*lines[:4], lines[3], *lines[4:]],
    "cut off": lambda lines: lines[:-1],
    "cut off at the middle": lambda lines: lines[:4],
    "emptied": lambda lines: [],
    "added": add,
    "text between": lambda lines: [*lines[:3], b"nothing to see here", *lines[3:]],
    "text at the end": lambda lines: [*lines, b"nothing to see here"],
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_found(name: str) -> None:
    folder = log_of(6)
    assert verify().is_whole
    write_lines(folder, CHANGES[name](lines_of(folder)))
    assert not verify().is_whole


@pytest.mark.parametrize("name", ["the last edited", "edited with new hashes", "cut off", "emptied", "added"])
def test_nothing_is_written_behind_a_changed_end(name: str, tmp_path: Path) -> None:
    folder = log_of(6)
    changed = CHANGES[name](lines_of(folder))
    write_lines(folder, changed)
    with pytest.raises(AuditError, match=r"was changed: .*nothing is released until"):
        release_text("fine", tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists() and lines_of(folder) == changed


def test_any_flipped_bit_is_found() -> None:
    folder = log_of(3)
    whole = (folder / audit.LOG).read_bytes()
    for place in range(0, len(whole), 37):
        data = bytearray(whole)
        data[place] ^= 4
        (folder / audit.LOG).write_bytes(data)
        is_signature = b'"signature":"' in whole[whole.rfind(b"\n", 0, place) + 1 : place]
        # The signatures of earlier rows are repeated by that of the last.
        assert is_signature or not verify().is_whole, place


def test_a_head_or_a_key_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = log_of(3)
    head = (folder / audit.HEAD).read_bytes()
    (folder / audit.HEAD).unlink()
    assert "head.json is missing" in problems()
    with pytest.raises(AuditError, match=r"its head\.json is missing"):
        release_text("fine", tmp_path / "a.txt")
    (folder / audit.HEAD).write_bytes(head)
    release_text("fine", tmp_path / "a.txt")
    (tmp_path / "a.txt").unlink()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "another"))
    assert verify().is_whole  # without any key at hand
    with pytest.raises(
        AuditError, match=r"the key that signed the audit log .* is gone, so nothing is released"
    ):
        release_text("fine", tmp_path / "a.txt")
    place = tmp_path / "another" / "keys" / "signing-key.pem"
    assert not place.exists() and not (tmp_path / "a.txt").exists()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"no key")
    with pytest.raises(AuditError, match="cannot be used, so nothing is released"):
        release_text("fine", tmp_path / "a.txt")
    place.unlink()
    signing_key()
    with pytest.raises(AuditError, match="row 4 is not signed with the key of this installation"):
        release_text("fine", tmp_path / "a.txt")
    assert "another key than that of this installation" in problems() and verify(folder).is_whole
    with pytest.raises(InputError, match="holds no audit log"):
        verify(tmp_path)


def test_another_whole_log_is_found_by_an_export_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kept = log_of(4), tmp_path / "kept.jsonl"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    log_of(3)
    export(kept)
    assert not problems(against=kept) and not problems(place=kept) and verify(kept).rows == 8
    log_of(1)
    assert not problems(against=kept) and verify(against=kept).rows == 9
    for file, data in before.items():  # an old copy of all, head included
        file.write_bytes(data)
    assert not problems() and "ends with row 7, and the log with row 4" in problems(against=kept)
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "other"))
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "elsewhere"))
    log_of(9)
    assert not problems() and "another key" in problems(against=kept)
    lines = kept.read_bytes().split(b"\n")
    for changed in (lines[:-2], [*lines[:3], *lines[4:]]):
        kept.write_bytes(b"\n".join([*changed, b""]))
        assert problems(place=kept)
    kept.write_bytes(b"\n".join(lines[1:]))
    with pytest.raises(InputError, match="is no export of an audit log"):
        verify(kept)


# What breaks off


TORN = (b'{"at":"2026', b"\0" * 700, b'{"row":4}\n', b"\n", b'{"at":"2026\n{"at"')


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("count", [0, 3])
def test_a_write_that_broke_off_is_noted_and_kept(torn: bytes, count: int) -> None:
    folder = log_of(count)
    folder.mkdir(exist_ok=True, parents=True)
    with (folder / audit.LOG).open("ab") as file:
        file.write(torn)
    if count == 0:
        AuditLog().folder.joinpath(audit.LOG).unlink()
        AuditLog().check_writable()  # makes the key
        (folder / audit.LOG).write_bytes(torn)
    log_of(2)
    found = verify()
    assert found.is_whole, found.problems
    assert found.repairs == 1 and "1 writes broke off" in found.notes[0]
    repair = next(row for row, _ in last_rows(20) if row.event == "repair")
    assert base64.b64decode(repair.facts["torn"]).startswith(torn[: audit._TORN_BYTES])
    assert torn in (folder / audit.LOG).read_bytes()
    # A row that tells of it hides nothing else.
    write_lines(folder, [line for line in lines_of(folder) if parse_row(line) is not None])
    assert verify().rows == found.rows
    lines = lines_of(folder)
    write_lines(folder, [*lines[:-1], b"x", lines[-1]])
    assert not verify().is_whole


KILLED = """
import os, signal, sys
from pathlib import Path
from omokage.trust import audit
whole, step = audit.AuditLog._append_bytes, int(sys.argv[1])
calls = 0
def stop():
    os.kill(os.getpid(), signal.SIGKILL)
def half(self, name, data, **how):
    global calls
    calls += 1
    if calls == step:
        whole(self, name, data[: len(data) // 2], **how)
        stop()
    whole(self, name, data, **how)
    if calls == step - 10:
        stop()
audit.AuditLog._append_bytes = half
for n in range(3):
    audit.AuditLog().append("release", {"n": n}, {"path": "x"})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of the other systems")
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 12, 13, 14])
def test_kill_9_in_the_middle_of_a_write_loses_nothing(step: int) -> None:
    """Halfway through a line, up to 5; whole on the disk, but the head is not: from 11 on."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(step)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = sum(parse_row(line) is not None for line in lines_of(audit_folder())) if (
        audit_folder() / audit.LOG
    ).exists() else 0  # fmt: skip
    log_of(2)
    found = verify()
    assert found.is_whole, found.problems
    events = [row.event for row, _ in last_rows(20)]
    begun = 0 if before else 1
    assert found.rows == before + 2 + begun * ("begin" in events) + found.repairs


@pytest.mark.skipif(sys.platform == "win32", reason="takes long there")
def test_several_processes_and_threads_write_at_once() -> None:
    code = "from omokage.trust.audit import AuditLog as A\nfor n in range(8): A().append('release', {'n': n}, {'a': n})"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    threads = [threading.Thread(target=log_of, args=(8,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for each in (*threads, *running):
        each.join() if isinstance(each, threading.Thread) else each.wait()
    assert all(process.returncode == 0 for process in running)
    assert verify().is_whole and verify().rows == 41 and verify().repairs == 0


def test_a_lock_is_waited_for_and_given_up(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(TimeoutError, match=r"another process has held lock for 0\.05 s"),
        locked(tmp_path / "lock", wait_s=0.05),
    ):
        pass
    with locked(tmp_path / "lock", wait_s=0):
        pass


# When no row can be written


def broken(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    match how:
        case "a folder that is a file":
            (tmp_path / "f").write_text("x")
            monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "f"))
        case "a log that is a folder":
            audit_folder().mkdir(parents=True, exist_ok=True)
            (audit_folder() / audit.LOG).unlink(missing_ok=True)
            (audit_folder() / audit.LOG).mkdir()
        case "a disk that is read-only":

            def refuse(*_: object, **__: object) -> None:
                raise OSError(30, "Read-only file system")

            monkeypatch.setattr(audit.AuditLog, "_append_bytes", refuse)
        case "a disk that is full":
            log_of(1)


BROKEN = (
    "a folder that is a file",
    "a log that is a folder",
    "a disk that is read-only",
    "a disk that is full",
)


@pytest.mark.parametrize("how", BROKEN)
def test_without_a_row_nothing_leaves(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.mp4").write_bytes(b"precious")
    broken(how, monkeypatch, tmp_path)
    full = audit_folder() / "head.json.part"
    there = {file.name for file in tmp_path.iterdir()}
    frames = [moving_disc(i / 25, 96, 64) for i in range(3)]
    for release in (
        lambda: release_clip(frames, tmp_path / "old.mp4", frame_rate=Fraction(25)),
        lambda: release_image(PICTURE, tmp_path / "a.png"),
        lambda: release_text("fine", tmp_path / "a.txt"),
    ):
        if how == "a disk that is full" and not full.is_symlink():
            full.symlink_to("/dev/full")  # a failed write takes the link away
        with pytest.raises(OutputError) as caught:
            release()
        said = str(caught.value)
        assert "so nothing is released" in said and "\n" not in said and str(audit_folder()) in said
        assert isinstance(caught.value, AuditError) and caught.value.exit_code == 3
    assert {file.name for file in tmp_path.iterdir()} == there
    assert (tmp_path / "old.mp4").read_bytes() == b"precious"


def test_a_quota_that_ends_in_the_middle_of_a_row_is_survived(tmp_path: Path) -> None:
    folder = log_of(3)
    size = (folder / audit.LOG).stat().st_size
    with small_disk(size + 100), pytest.raises(AuditError, match="grew beyond the limit"):
        release_text("fine", tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()
    release_text("fine", tmp_path / "a.txt")
    assert verify().is_whole and verify().repairs == 1


def test_it_is_told_before_long_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a.mp4", (".mp4",))
    assert not any(audit_folder().iterdir())
    broken("a log that is a folder", monkeypatch, tmp_path)
    with pytest.raises(AuditError, match="it is a folder"):
        check_writable(tmp_path / "a.mp4", (".mp4",))


# What is personal


def test_what_is_personal_can_be_erased_and_the_chain_holds() -> None:
    folder = log_of(4)
    assert AuditLog().forget([2, 3, 77]) == 2
    kept = (folder / audit.PERSONAL).read_text()
    assert "/secret/0.mp4" in kept and "/secret/1.mp4" not in kept and "/secret/2.mp4" not in kept
    found = verify()
    assert found.is_whole and "what is personal of 2 rows is not here" in found.notes
    assert last_rows(1)[0][0].facts == {"rows": [2, 3]}
    assert "(not kept)" in rows_text(last_rows(10))
    assert AuditLog().forget([2]) == 0 and verify().rows == 6
    (folder / audit.PERSONAL).unlink()
    assert verify().is_whole and "no row says that it was erased" in verify().notes[1]


def test_what_is_personal_cannot_be_changed(tmp_path: Path) -> None:
    folder = log_of(3)
    place = folder / audit.PERSONAL
    place.write_text(place.read_text().replace("/secret/1.mp4", "/secret/9.mp4"))
    assert "what is personal of row 2 was changed" in problems()
    export(tmp_path / "whole.jsonl", with_personal=True)
    assert "what is personal of row 2 was changed" in problems(place=tmp_path / "whole.jsonl")
    export(tmp_path / "bare.jsonl")
    assert "secret" not in (tmp_path / "bare.jsonl").read_text() and not problems(
        place=tmp_path / "bare.jsonl"
    )


def test_a_broken_personal_line_harms_no_other() -> None:
    folder = log_of(2)
    with (folder / audit.PERSONAL).open("ab") as file:
        file.write(b'{"row": 3, "sal')
    log_of(2)
    assert verify().is_whole and len(AuditLog().personal()) == 4


# The commands


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(["audit", *words])
    return (code, *capfd.readouterr())


def test_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "show") == (0, "nothing has left yet\n", "")
    code, out, err = run(capfd, "verify", "--quiet")
    assert code == 2 and not out and "holds no audit log" in err and err.count("\n") == 1
    folder = log_of(3)
    code, out, _ = run(capfd, "show", "--last", "2")
    assert code == 0 and out.count("\n") == 2 and "/secret/2.mp4" in out
    code, out, _ = run(capfd, "show", "--json")
    assert [said["row"] for said in json.loads(out)] == [0, 1, 2, 3]
    assert json.loads(out)[3]["personal_values"] == {"path": "/secret/2.mp4"}
    code, out, _ = run(capfd, "verify", "--quiet")
    assert code == 0 and out.startswith("4 rows, whole; key ")
    place = tmp_path / "audit.jsonl"
    assert run(capfd, "export", "-o", str(place))[:2] == (0, f"export: {place}\n")
    assert run(capfd, "verify", str(place), "--against", str(place), "--quiet")[0] == 0
    write_lines(folder, lines_of(folder)[:-1])
    code, out, _ = run(capfd, "verify", "--quiet")
    assert code == 2 and "CHANGED" in out and "the log is cut off: it ends with row 2" in out
    code, out, _ = run(capfd, "verify", "--json", "--quiet")
    said = json.loads(out)
    assert code == 2 and said["whole"] is False and said["rows"] == 3
    assert isinstance(verify(), AuditReport)


def test_a_name_is_no_word_to_the_terminal(tmp_path: Path) -> None:
    record_release(tmp_path / "a\x1b[2J.mp4", kind="clip", sha256="00" * 32, facts={}, personal={})
    assert "\x1b" not in rows_text(last_rows(1)) and "a?[2J.mp4" in rows_text(last_rows(1))


# What leaves without a picture, and what does not leave


def test_a_model_leaves_with_a_row_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "me.avatar"
    path.write_bytes(b"the one before")
    released = release_model(lambda part: part.write_bytes(b"weights"), path, kind="avatar", avatar="ab" * 32)
    row, personal = last_rows(1)[0]
    assert (row.event, row.facts["kind"], row.facts["bytes"]) == ("release", "avatar", 7)
    assert row.facts["sha256"] == released.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert personal is not None and personal["path"] == str(path)
    (audit_folder() / audit.HEAD).write_text("{}")
    with pytest.raises(AuditError):
        release_model(lambda part: part.write_bytes(b"newer"), path, kind="avatar")
    assert path.read_bytes() == b"weights" and [p.name for p in tmp_path.iterdir()] == ["me.avatar"]
    with pytest.raises(OutputError, match=r"none/me\.avatar cannot be written: its folder does not exist"):
        release_model(lambda part: part.write_bytes(b""), tmp_path / "none" / "me.avatar", kind="onnx")


@pytest.mark.usefixtures("denied_by_default")
def test_what_is_refused_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConsentError, match="nobody's consent is recorded"):
        permit(Use("a5" * 32, "advertising"), name="/films/taro.mp4")
    with pytest.raises(InputError, match="does not fit"):
        release_image(PICTURE, tmp_path / "a.png", config=ReleaseConfig(label="far too long for it " * 9))
    with pytest.raises(InputError, match="does not fit"):
        check_label("far too long for it " * 9, 96, 64)
    monkeypatch.setattr(door, "sign_origin", _fail)
    with pytest.raises(OutputError, match="the token is locked"):
        release_image(PICTURE, tmp_path / "b.png")
    rows = [(row, personal) for row, personal in last_rows(9) if row.event == "refusal"]
    assert [row.facts["reason"] for row, _ in rows] == ["consent", "label", "label", "identity"]
    assert rows[0][0].facts["media"] == "a5" * 32 and rows[0][0].facts["purpose"] == "advertising"
    assert b"taro" not in rows[0][0].line and rows[0][1] is not None and "taro.mp4" in str(rows[0][1]["said"])
    assert "the token is locked" in rows_text(rows) and verify().is_whole
    assert list(tmp_path.iterdir()) == []
    (audit_folder() / audit.HEAD).write_text("{}")  # a log that takes no row permits nothing
    with pytest.raises(ConsentError, match="nobody's consent is recorded"):
        permit(Use("a5" * 32), name="taro.mp4")


def _fail(*_: object, **__: object) -> bool:
    raise OutputError("b.png could not be signed (the token is locked), so it was not released")


def test_a_measurement_is_nobodys_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omokage.pipelines.bench import encoding_speed

    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path / "audit"))
    release_text("fine", tmp_path / "a.txt")
    before = verify().rows
    assert encoding_speed([np.zeros((256, 256, 3), np.uint8)] * 4).count == 2
    assert verify().rows == before and audit_folder() == tmp_path / "audit"
    assert not (tmp_path / "home" / "marks").exists()
