"""A consent that is withdrawn, or ends, ends the work that runs: within a minute, in a sentence, with nothing left."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clips import beep, moving_disc
from omokage.avatar.bundle import Avatar
from omokage.config import Progress
from omokage.errors import ConsentError
from omokage.media.clip import Frame, SoundFormat, SoundingFrame
from omokage.media.decode import probe, read_frames
from omokage.pipelines import learn_speech as learning
from omokage.pipelines.live_reenact import LiveReenactor
from omokage.pipelines.live_speaker import LiveSpeaker
from omokage.pipelines.reenact import Performer, ReenactConfig, performer_of, reenact
from omokage.pipelines.speak import SpeakConfig, speak
from omokage.pipelines.stand_in import stand_in
from omokage.pipelines.window_files import WindowFiles
from omokage.pipelines.work import Work
from omokage.render.retarget import Rest
from omokage.tracking.face_track import FRAME_ARRAYS, FaceTrack
from omokage.tracking.tracker import FaceState
from omokage.trust import consents
from omokage.trust.audit_report import last_rows
from omokage.trust.consent import Consent, Medium, Terms, Use, new_consent
from omokage.trust.consents import Permit, permit
from omokage.trust.guard import CHECK_S, Guard
from omokage.trust.keys import signing_key
from omokage.trust.release import ReleaseConfig, release_clip, release_live
from talking_folder import save_sound
from withdrawing import Withdrawing

ANNA = "a" * 64
NOW = datetime.now(UTC)
STOPPED = r"stopped: .* may not be used for this: the consent was withdrawn on"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> Path:
    path = tmp_path.with_name(tmp_path.name + "-home")
    monkeypatch.setenv("OMOKAGE_HOME", str(path))
    return path


def agree(media: str = ANNA, days: int = 9) -> Consent:
    start, end = ((NOW + timedelta(days=n)).date().isoformat() for n in (-1, days))
    terms = Terms(kind="self", purposes=("private",), start=start, end=end)
    record = new_consent([Medium(media, "anna.mp4")], terms, now=NOW - timedelta(hours=1), key=signing_key())
    consents.keep(record)
    return record


def permitted() -> Permit:
    return permit(Use(ANNA, "private"), name="anna.mp4")


def release_of(record: Consent) -> ReleaseConfig:
    return ReleaseConfig(avatar=ANNA, consent=record.id, purpose="private")


class FakeTime:
    def __init__(self) -> None:
        self.s, self.asked = 0.0, 0

    def clock(self) -> float:
        return self.s

    def now(self) -> datetime:
        self.asked += 1
        return NOW + timedelta(seconds=self.s)


def test_it_is_asked_every_twenty_seconds_and_no_more_often() -> None:
    record, time = agree(), FakeTime()
    asking = Guard(permitted(), clock=time.clock, now=time.now)
    for _ in range(1000):  # 100 s
        time.s += 0.1
        asking.check()
    assert 4 <= time.asked <= 5 and CHECK_S <= 20
    consents.revoke(record, "")
    at = time.s
    with pytest.raises(ConsentError, match=r"stopped: anna\.mp4 may not .* withdrawn on"):
        while True:
            time.s += 0.1
            asking.check()
    assert time.s - at <= 20.2


def test_a_consent_that_ends_meanwhile_ends_the_work_and_a_new_one_goes_on() -> None:
    time = FakeTime()
    agree(days=0)
    asking = Guard(permitted(), clock=time.clock, now=time.now)
    time.s = 86400 * 2
    with pytest.raises(ConsentError, match=r"stopped: .* the consent ended on"):
        asking.check()
    agree(days=5)
    asking.check_now()


def test_work_stops_when_it_is_not_known_what_was_withdrawn(home: Path) -> None:
    agree()
    asking = Guard(permitted())
    (home / "consents" / consents.ROWS).write_text("damaged\n")
    with pytest.raises(ConsentError, match="so nothing may go ahead"):
        asking.check_now()


def test_what_rests_on_no_consent_is_never_stopped(asked_at_every_step: None) -> None:
    assert list(Guard(None).frames(range(3))) == [0, 1, 2]
    seen: list[Progress] = []
    Guard().progress(seen.append)(Progress("working", 1, 2))
    assert seen == [Progress("working", 1, 2)]


def test_the_end_of_what_is_short_is_asked_for() -> None:
    """A clip that took less than 20 s gets no name either."""
    record = agree()
    frames = Guard(permitted()).frames(iter([1, 2]))
    assert next(frames) == 1
    consents.revoke(record, "")
    with pytest.raises(ConsentError, match=STOPPED):
        list(frames)


# the door


def withdrawn_after(count: int, record: Consent, *, total: int = 50) -> Iterator[np.ndarray]:
    for i in range(total):
        if i == count:
            consents.revoke(record, "")
        yield moving_disc(i / 25, 96, 64)


def test_a_clip_is_not_finished(tmp_path: Path, asked_at_every_step: None) -> None:
    record = agree()
    with pytest.raises(ConsentError, match=r"stopped: the recording that a\.mp4 is made of may not"):
        release_clip(
            withdrawn_after(5, record), tmp_path / "a.mp4", frame_rate=Fraction(25), config=release_of(record)
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConsentError, match="withdrawn"):  # and none is begun
        release_clip(
            withdrawn_after(99, record),
            tmp_path / "a.mp4",
            frame_rate=Fraction(25),
            config=release_of(record),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_stream_ends_as_a_whole_one(tmp_path: Path, asked_at_every_step: None) -> None:
    record, sent = agree(), bytearray()

    def take(data: bytes) -> int:
        sent.extend(data)
        return len(data)

    def frames() -> Iterator[SoundingFrame]:
        for image in withdrawn_after(10, record):
            yield SoundingFrame(image, np.zeros((640, 1), np.float32))

    live: dict[str, Any] = {
        "frame_rate": Fraction(25),
        "sound": SoundFormat(16000, 1),
        "config": release_of(record),
    }
    with pytest.raises(ConsentError, match=STOPPED):
        release_live(frames(), take, **live)
    (tmp_path / "seen.mkv").write_bytes(sent)
    assert probe(tmp_path / "seen.mkv").has_audio
    assert len(list(read_frames(tmp_path / "seen.mkv"))) == 10
    row, _ = last_rows(1)[0]
    assert (row.event, row.facts["state"]) == ("live", "ended")


def test_a_live_clip_is_not_finished(tmp_path: Path, asked_at_every_step: None) -> None:
    record = agree()
    frames = (SoundingFrame(image, np.zeros((640, 1), np.float32)) for image in withdrawn_after(10, record))
    with pytest.raises(ConsentError, match=STOPPED):
        release_live(
            frames,
            tmp_path / "a.mp4",
            frame_rate=Fraction(25),
            sound=SoundFormat(16000, 1),
            config=release_of(record),
        )
    assert list(tmp_path.iterdir()) == []


# who uses it


@pytest.fixture(scope="module")
def anna() -> Avatar:
    torch.set_num_threads(1)
    drawn = stand_in(128, frame_count=4, clip_side=128).avatar
    made = replace(drawn.provenance, recording_sha256=ANNA, recording_name="anna.mp4")
    return replace(drawn, provenance=made)


@pytest.fixture
def performer(anna: Avatar) -> Performer:
    agree()
    return performer_of(anna, ReenactConfig(runtime="torch"), is_live=True)


def test_reenacting_stops(anna: Avatar, tmp_path: Path, asked_at_every_step: None) -> None:
    anna.track.save(tmp_path / "driver.track")
    agree()
    withdrawing = Withdrawing("writing", 1)
    with pytest.raises(ConsentError, match=STOPPED):
        reenact(
            anna,
            tmp_path / "driver.track",
            output=tmp_path / "out.mp4",
            config=ReenactConfig(runtime="torch"),
            on_progress=withdrawing,
        )
    assert withdrawing.left and [path.name for path in tmp_path.iterdir()] == ["driver.track"]


def test_speaking_stops(anna: Avatar, tmp_path: Path, asked_at_every_step: None) -> None:
    sound = save_sound(tmp_path / "hello.wav", beep(0.2, 1.0))
    agree()
    withdrawing = Withdrawing("writing", 3)
    with pytest.raises(ConsentError, match=STOPPED):
        speak(
            anna,
            audio=sound,
            output=tmp_path / "out.mp4",
            config=SpeakConfig(runtime="torch"),
            on_progress=withdrawing,
        )
    assert withdrawing.left and [path.name for path in tmp_path.iterdir()] == ["hello.wav"]


def test_a_live_speaker_stops(performer: Performer, asked_at_every_step: None) -> None:
    """Also where nobody but the caller takes its frames."""
    assert performer.permit is not None
    changed = replace(performer, stages=(lambda state: state,))
    taken = 0
    with LiveSpeaker(changed, keep_all=True) as speaker, pytest.raises(ConsentError, match=STOPPED):
        for _ in speaker:
            taken += 1
            if taken == 3:
                consents.revoke(performer.permit.consent, "")
    assert taken == 3


class StandingStill:
    """A tracker that sees the avatar's own movement."""

    def __init__(self, track: FaceTrack) -> None:
        self.track, self.subject, self.camera = track, track.subject, track.camera

    @contextmanager
    def streaming(self) -> Iterator[StandingStill]:
        yield self

    def step(self, frame: Frame) -> FaceState:
        row: dict[str, Any] = {name: getattr(self.track, name)[0] for name in FRAME_ARRAYS}
        return FaceState(**row | {"is_tracked": True})


def reenactor(anna: Avatar) -> LiveReenactor:
    still: Any = StandingStill(anna.track)
    return LiveReenactor(
        anna, ReenactConfig(runtime="torch"), driving_rest=Rest.of(anna.track), tracker=still
    )


def camera() -> Iterator[Frame]:
    for index in itertools.count():
        yield Frame(index, index / 25, np.zeros((64, 64, 3), np.uint8))


def test_live_reenactment_stops_with_all_its_threads(anna: Avatar, asked_at_every_step: None) -> None:
    record, before = agree(), set(threading.enumerate())
    live, taken = reenactor(anna), 0
    assert live.release.consent == record.id and live.release.avatar == ANNA
    # Whoever handles the error holds its traceback: nothing may run on meanwhile.
    with pytest.raises(ConsentError, match=STOPPED) as held:
        for _ in live.run(camera(), keep_all=True):
            taken += 1
            if taken == 3:
                consents.revoke(record, "")
    # The source's own thread ends with the frame that it is at.
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert held.value and taken == 3
    with pytest.raises(ConsentError, match="withdrawn"):
        next(live.run(camera()))
    with pytest.raises(ConsentError, match="withdrawn"):
        reenactor(anna)


def test_live_reenactment_without_a_consent_never_begins(anna: Avatar) -> None:
    with pytest.raises(ConsentError, match="nobody's consent is recorded"):
        reenactor(anna)


def test_learning_to_speak_stops_and_leaves_the_avatar_as_it_was(
    anna: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at_every_step: None
) -> None:
    path, talk = tmp_path / "me.avatar", tmp_path / "talk.mp4"
    anna.save(path)
    talk.write_bytes(b"a recording")
    before = path.read_bytes()
    agree(learning.file_digest(talk))
    monkeypatch.setattr(learning, "_track", lambda _, work, __: (work.folder / "recording.track").touch())

    def learned(*_: object, on_progress: Any, **__: object) -> SimpleNamespace:
        on_progress(Progress("speech", 1, 2))
        on_progress(Progress("speech", 2, 2))
        raise AssertionError("it went on")

    monkeypatch.setattr(learning, "learned_speech", learned)
    with pytest.raises(ConsentError, match=STOPPED):
        learning.learn_speech(path, talk, on_progress=Withdrawing("speech", 1))
    assert path.read_bytes() == before and {one.name for one in tmp_path.iterdir()} == {
        "me.avatar",
        "talk.mp4",
    }


def test_nothing_of_the_person_stays_in_the_folder_of_the_work(tmp_path: Path) -> None:
    """Other errors keep what the same command goes on from."""
    for error, stays in ((ConsentError("withdrawn"), False), (OSError("no room"), True)):
        with (
            pytest.raises(type(error)),
            Work.open(tmp_path / "a.avatar", data={}, settings={}, is_resumed=True) as work,
        ):
            work.track.touch()
            work.checkpoint.touch()
            raise error
        assert work.folder.exists() == stays
    for error, stays in ((ConsentError("withdrawn"), False), (OSError("no room"), True)):
        files = WindowFiles.open(tmp_path / "a.mp4", {}, print, resume=True)
        with pytest.raises(type(error)), files:
            files.save(0, torch.zeros(1))
            raise error
        assert files.folder.exists() == stays
