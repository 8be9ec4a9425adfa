"""The answer before the camera: what is asked is found, in order, of the same person, once, and what is not is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from clips import make_clip
from omokage.capture.gestures import GESTURES, first_missing, found_gestures
from omokage.cli import app as cli
from omokage.errors import ConsentError, InputError
from omokage.files import file_digest
from omokage.media.clip import Audio, Image
from omokage.pipelines import challenge as checks
from omokage.pipelines.challenge import check_answer
from omokage.speaking.voices import speak_text
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust import challenge as challenges
from omokage.trust.challenge import issue, open_challenge
from omokage.trust.consent import Answer, Medium, Terms, Use, decide, new_consent, read_consent, write_consent
from omokage.trust.consents import POLICY_VARIABLE, keep, permit
from omokage.trust.keys import public_name, signing_key

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RATE, EACH_S, SIZE = 12.5, 0.8, 256
ANNA = Terms(
    kind="agreed",
    purposes=("reception",),
    start="2026-11-22",
    end="2027-11-22",
    uses="Greets visitors",
    licensee="Example AS",
    witness="B. Hansen",
    reference="archive 116",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "COMPARED", 12)
    monkeypatch.setattr(checks, "COUNTED", 10)


def acted(gestures: Sequence[str], *, seed: int = 3) -> FaceTrack:
    """Rest, a gesture, rest, a gesture, ...: the truth of a synthetic person."""
    person = SyntheticSubject(seed)
    each = round(RATE * EACH_S)
    track = person.performance(
        EACH_S * (2 * len(gestures) + 1) + 0.01, frame_rate=RATE, size=SIZE, motion=0.0
    )
    rotation, expression = track.rotation.copy(), track.expression.copy()
    for number, name in enumerate(gestures):
        rows = slice((2 * number + 1) * each, (2 * number + 2) * each)
        turn = {"side": (0.0, 0.45, 0.0), "up": (-0.3, 0.0, 0.0), "down": (0.3, 0.0, 0.0)}.get(
            name, (0.0, 0.0, 0.0)
        )
        rotation[rows] += turn
        if name == "mouth":
            expression[rows, BLENDSHAPES.index("jawOpen")] = 0.8
        if name == "eyes":
            for eye in ("eyeBlinkLeft", "eyeBlinkRight"):
                expression[rows, BLENDSHAPES.index(eye)] = 1.0
    return replace(track, rotation=rotation, expression=expression)


@cache
def pictures(gestures: tuple[str, ...], seed: int) -> list[Image]:
    track, person = acted(gestures, seed=seed), SyntheticSubject(seed)
    if seed != 3:  # painted faces are alike; freckles of one's own tell them apart
        rng = np.random.default_rng(seed)
        freckles = cv2.GaussianBlur(rng.normal(0, 1, person._texture.shape[:2]), (0, 0), 4)
        skin = person._texture + 18 * (freckles / freckles.std())[..., None]
        person = SyntheticSubject(seed, skin=skin.astype(np.float32))
    return [
        person.render(*row, SIZE, noise=1.0, noise_seed=index, supersampling=1)
        for index, row in enumerate(
            zip(track.rotation, track.translation, track.expression, track.gaze, strict=True)
        )
    ]


def recorded(path: Path, gestures: Sequence[str], *, seed: int = 3, sound: Audio | None = None) -> Path:
    shown = pictures(tuple(gestures), seed)
    make_clip(
        path,
        seconds=len(shown) / RATE,
        frame_rate=Fraction(RATE),
        width=SIZE,
        height=SIZE,
        draw=lambda time_s, *_: shown[min(int(time_s * RATE + 1e-6), len(shown) - 1)],
        audio=sound,
    )
    return path


@cache
def voice() -> Audio:
    return speak_text("four, seven, one, one, nine, zero.", "en-us").sound


@pytest.mark.parametrize("name", GESTURES)
def test_every_gesture_is_found_where_it_was_made(name: str) -> None:
    found = found_gestures(acted([name]))
    assert [gesture.name for gesture in found] == [name]
    assert found[0].start_s == pytest.approx(EACH_S, abs=0.1)
    assert found[0].end_s == pytest.approx(2 * EACH_S, abs=0.2)


def test_gestures_count_in_the_asked_order() -> None:
    found = found_gestures(acted(["mouth", "side", "eyes"]))
    assert first_missing(found, ("mouth", "side", "eyes")) is None
    assert first_missing(found, ("mouth", "eyes")) is None  # others may come between
    assert first_missing(found, ("side", "mouth", "eyes")) == "mouth"
    assert first_missing(found, ("mouth", "mouth")) == "mouth"
    assert first_missing((), ("up",)) == "up"


def test_a_blink_is_no_closing_of_the_eyes() -> None:
    track = acted(["eyes"])
    expression = track.expression.copy()
    expression[np.flatnonzero(expression[:, BLENDSHAPES.index("eyeBlinkLeft")] > 0.5)[3:]] = 0.0
    assert found_gestures(replace(track, expression=expression)) == ()


def test_nothing_is_found_where_nobody_is() -> None:
    track = acted(["side"])
    assert found_gestures(replace(track, is_tracked=np.zeros(len(track.time_s), dtype=bool))) == ()


def test_a_challenge_counts_once_and_for_ten_minutes() -> None:
    asked = issue(tuple(GESTURES), now=NOW)
    assert len(asked.code) == 6 and len(set(asked.gestures)) == 3 and set(asked.gestures) <= set(GESTURES)
    spelled = " ".join(asked.code)
    assert open_challenge(spelled, "a" * 64, now=NOW + timedelta(minutes=9)) == asked
    with pytest.raises(ConsentError, match="could be answered until"):
        open_challenge(spelled, "a" * 64, now=NOW + timedelta(minutes=11))
    with pytest.raises(ConsentError, match="could be answered until"):  # a clock set back
        open_challenge(spelled, "a" * 64, now=NOW - timedelta(hours=1))
    wrong = "".join(str((int(digit) + 1) % 10) for digit in asked.code)
    with pytest.raises(ConsentError, match="not the digits of a challenge"):
        open_challenge(wrong, "a" * 64, now=NOW)
    challenges.close_challenge(asked, "a" * 64, now=NOW)
    with pytest.raises(ConsentError, match="answered before"):
        open_challenge(spelled, "b" * 64, now=NOW)
    other = issue(tuple(GESTURES), now=NOW)
    with pytest.raises(ConsentError, match="clip answered another"):
        open_challenge(other.code, "a" * 64, now=NOW)


def test_a_damaged_list_of_challenges_counts_for_nothing() -> None:
    asked = issue(tuple(GESTURES), now=NOW)
    (challenges.made_folder() / challenges.ROWS).write_text('{"what": "iss')
    with pytest.raises(ConsentError, match="damaged"):
        open_challenge(asked.code, "a" * 64, now=NOW)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> challenges.Challenge:
    """A challenge with known gestures."""
    monkeypatch.setattr(
        challenges.secrets,
        "SystemRandom",
        lambda: type("Fixed", (), {"sample": lambda _, every, n: ["mouth", "side"]})(),
    )
    return issue(tuple(GESTURES), now=NOW)


def test_an_answer_is_kept_in_the_record(tmp_path: Path, asked: challenges.Challenge) -> None:
    recording = recorded(tmp_path / "anna.mp4", ["side"])
    clip = recorded(tmp_path / "answer.mp4", ["mouth", "side"], sound=voice())
    answer = check_answer(clip, [recording], asked.code, now=NOW)
    assert answer.clip == file_digest(clip) and answer.likeness > 0.65
    record = new_consent([recording], ANNA, now=NOW, key=signing_key(), answer=answer)
    write_consent(record, tmp_path / "anna.consent.json")
    assert read_consent(tmp_path / "anna.consent.json") == record
    assert " ".join(asked.code) in record.to_text()
    with pytest.raises(ConsentError, match="answered before"):
        check_answer(clip, [recording], asked.code, now=NOW)


def test_all_that_is_wrong_with_an_answer_is_told(
    tmp_path: Path, asked: challenges.Challenge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else, the wrong order, no voice; and the challenge stays open for a better clip."""
    recording = recorded(tmp_path / "anna.mp4", ["side"])
    clip = recorded(tmp_path / "answer.mp4", ["side", "mouth"], seed=8)
    with pytest.raises(ConsentError) as refused:
        check_answer(clip, [recording], asked.code, now=NOW)
    said = str(refused.value)
    assert "'turn your head to one side' was not seen at its place" in said
    assert "has no sound" in said and "not like that in anna.mp4" in said
    assert open_challenge(asked.code, file_digest(clip), now=NOW) == asked
    monkeypatch.setattr(checks.FaceCounter, "count", lambda *_: 2)
    assert "more than one face is seen in 100 %" in next(checks._is_alone(clip))


def test_a_generated_clip_is_no_answer(tmp_path: Path) -> None:
    from omokage.trust.release import release_clip

    made = tmp_path / "made.mp4"
    release_clip(iter(pictures(("side",), 3)), made, frame_rate=Fraction(RATE))
    assert list(checks._is_recorded(made)) == ["it is a generated clip; an answer is recorded with a camera"]
    assert list(checks._is_recorded(recorded(tmp_path / "anna.mp4", ["side"]))) == []


def test_a_house_that_asks_for_an_answer_refuses_paper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    medium = Medium("a" * 64, "anna.mp4")
    answer = Answer("b" * 64, "471190", ("mouth", "side", "eyes"), 0.9, NOW.isoformat())
    on_paper = new_consent([medium], ANNA, now=NOW, key=signing_key())
    keep(on_paper)
    assert permit(Use("a" * 64), name="anna.mp4", now=NOW).consent == on_paper
    monkeypatch.setenv(POLICY_VARIABLE, "answer")
    with pytest.raises(ConsentError, match="answer before the camera"):
        permit(Use("a" * 64), name="anna.mp4", now=NOW)
    answered = new_consent([medium], ANNA, now=NOW, key=signing_key(), answer=answer)
    keep(answered)
    assert permit(Use("a" * 64), name="anna.mp4", now=NOW).consent == answered
    myself = replace(ANNA, kind="self")  # nobody is kept from using their own face
    mine = new_consent([medium], myself, now=NOW, key=signing_key())
    trusted = frozenset({public_name(signing_key())})
    assert decide(mine, Use("a" * 64), now=NOW, trusted=trusted, revoked={}, needs_answer=True).is_allowed
    monkeypatch.setenv(POLICY_VARIABLE, "yes")
    with pytest.raises(InputError, match="set it to 'answer'"):
        permit(Use("a" * 64), name="anna.mp4", now=NOW)


def test_an_altered_answer_is_noticed(tmp_path: Path) -> None:
    answer = Answer("b" * 64, "471190", ("mouth", "side", "eyes"), 0.9, NOW.isoformat())
    record = new_consent([Medium("a" * 64, "anna.mp4")], ANNA, now=NOW, key=signing_key(), answer=answer)
    path = tmp_path / "anna.consent.json"
    write_consent(record, path)
    told = json.loads(path.read_text())
    told["answer"]["likeness"] = 0.99
    path.write_text(json.dumps(told))
    assert not read_consent(path).is_signed
    del told["answer"]["clip"]
    path.write_text(json.dumps(told))
    with pytest.raises(ConsentError, match="damaged"):
        read_consent(path)


def test_the_command_asks_and_refuses_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["consent", "challenge"]) == 0
    said = capsys.readouterr().out
    assert "say one by one" in said and sum(words in said for words in GESTURES.values()) == 3
    recording = recorded(tmp_path / "anna.mp4", ["side"])
    agreed = ["consent", "new", str(recording), "--agreed", "--purpose", "reception", "--uses", "Greets"]
    agreed += ["--to", "Example AS", "--witness", "B. Hansen", "--paper", "116", "--answer", str(recording)]
    assert cli.run(agreed) == InputError.exit_code
    assert "which digits the witness hears" in capsys.readouterr().err
    assert cli.run([*agreed, "--heard", "12"]) == ConsentError.exit_code
    assert "not the digits of a challenge" in capsys.readouterr().err
    mine = [*agreed[:3], "--me", "--purpose", "private", "--answer", str(recording), "--heard", "12"]
    assert cli.run(mine) == InputError.exit_code
    assert "give --agreed with it" in capsys.readouterr().err
    assert cli.run(["consent", "list"]) == 0
    assert "no consent is recorded" in capsys.readouterr().out
