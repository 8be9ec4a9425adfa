"""Twenty ways to let somebody speak without their consent (T13): none gives a video, each leaves a row in the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clips import beep
from omokage.avatar.bundle import Avatar
from omokage.errors import ConsentError
from omokage.pipelines.speak import SpeakConfig, speak
from omokage.pipelines.stand_in import stand_in
from omokage.trust import consents
from omokage.trust.audit_report import last_rows
from omokage.trust.consent import Consent, Medium, Terms, new_consent
from omokage.trust.keys import signing_key
from talking_folder import save_sound

RECORDING = hashlib.sha256(b"a recording of Anna").hexdigest()
OTHER = hashlib.sha256(b"a recording of Taro").hexdigest()
NOW = datetime.now(UTC)


def day(days: int) -> str:
    return (NOW + timedelta(days=days)).date().isoformat()


def agreed(*, media: str = RECORDING, at_hours: float = -1, **terms: Any) -> Consent:
    """A signed record, not yet in the register."""
    own: dict[str, Any] = {"kind": "self", "purposes": ("private",), "start": day(-20), "end": day(20)}
    created = NOW + timedelta(hours=at_hours)
    return new_consent([Medium(media, "anna.mp4")], Terms(**own | terms), now=created, key=signing_key())


def of_another_installation(change: Callable[[Consent], Consent] = lambda record: record) -> Consent:
    """Signed by a key that lies elsewhere, as whoever wants to sign for themselves would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMOKAGE_HOME", str(consents.made_folder().parent / "elsewhere"))
        return change(agreed())


def edited(change: Callable[[dict[str, Any]], object]) -> None:
    """A record that was changed in its file."""
    path = consents.keep(agreed())
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def cut_short() -> None:
    path = consents.keep(agreed())
    path.write_bytes(path.read_bytes()[:-40])


def linked() -> None:
    """Nothing but a link to a record of somebody else's."""
    path = consents.keep(agreed(media=OTHER))
    path.with_name("0000.consent.json").symlink_to(path)


def withdrawn(erase: Callable[[bytes], bytes] | None = None) -> None:
    """A consent that was withdrawn, perhaps with an edited list of withdrawals."""
    record = agreed()
    consents.keep(record)
    consents.revoke(record, "changed my mind")
    path = consents.made_folder() / consents.ROWS
    path.write_bytes(path.read_bytes() if erase is None else erase(path.read_bytes()))


def withdrawn_where_it_came_from() -> None:
    """Of a record that was made from another, the first is withdrawn."""
    first = agreed()
    consents.keep(first)
    key = signing_key()
    consents.keep(new_consent(first.media, first.terms, now=NOW, key=key, previous=first))
    consents.revoke(first, "")


CASES: dict[str, tuple[Callable[[], object], str, str | None]] = {
    # what is done to the register, what the refusal says, and the purpose that is told
    "no consent": (lambda: None, "nobody's consent is recorded", None),
    "expired": (lambda: consents.keep(agreed(end=day(-2))), "the consent ended on", None),
    "not begun": (lambda: consents.keep(agreed(start=day(2))), "the consent starts on", None),
    "dated in the future": (lambda: consents.keep(agreed(at_hours=5)), "dated in the future", None),
    "withdrawn": (withdrawn, "was withdrawn on", None),
    "withdrawn at its origin": (withdrawn_where_it_came_from, "was withdrawn on", None),
    "withdrawal edited": (lambda: withdrawn(lambda b: b.replace(b"private", b"").replace(b"20", b"19")),
                          "so nothing may go ahead", None),
    "withdrawal cut": (lambda: withdrawn(lambda b: b[:50]), "so nothing may go ahead", None),
    "another purpose": (lambda: consents.keep(agreed()), "not for marketing", "marketing"),
    "a purpose that nobody may agree to": (lambda: consents.keep(agreed()), "not for politics", "politics"),
    "no purpose where two were agreed": (
        lambda: consents.keep(agreed(purposes=("training", "reception"))), "say what it is for", None),
    "another recording": (lambda: consents.keep(agreed(media=OTHER)), "nobody's consent is recorded", None),
    "purposes added": (lambda: edited(lambda r: r["terms"]["purposes"].append("marketing")), "altered", "marketing"),
    "term prolonged": (lambda: edited(lambda r: r["terms"].update(end=day(900))), "altered", None),
    "recording added": (lambda: edited(lambda r: r["media"].append({"sha256": OTHER, "name": "b"})), "altered", None),
    "signature taken off": (lambda: edited(lambda r: r.update(signature="")), "altered", None),
    "cut short": (cut_short, "nobody's consent is recorded", None),
    "signed elsewhere": (lambda: consents.keep(of_another_installation()), "does not trust", None),
    "signed elsewhere in our name": (
        lambda: consents.keep(of_another_installation(lambda r: replace(r, signer="0" * 64))), "altered", None),
    "a link to another's": (linked, "nobody's consent is recorded", None),
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied_by_default: None) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path.with_name(tmp_path.name + "-home")))


@pytest.fixture(scope="module")
def anna() -> Avatar:
    drawn = stand_in(128, frame_count=4).avatar
    seen = replace(drawn.provenance, recording_sha256=RECORDING, recording_name="anna.mp4")
    return replace(drawn, provenance=seen)


@pytest.mark.parametrize("name", CASES)
def test_nobody_speaks_without_their_consent(
    name: str, anna: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is told before a long sound is heard."""
    assert len(CASES) == 20
    monkeypatch.setattr("omokage.pipelines.speak.hear_or_read", lambda *_: pytest.fail("it was heard first"))
    prepare, words, purpose = CASES[name]
    prepare()
    sound = save_sound(tmp_path / "hello.wav", beep(0.2, 0.4))
    with pytest.raises(ConsentError, match=words):
        speak(
            anna,
            audio=sound,
            output=tmp_path / "out.mp4",
            config=SpeakConfig(runtime="torch", purpose=purpose),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["hello.wav"]
    refusals = [row for row, _ in last_rows(99) if row.event == "refusal"]
    assert [(row.facts["reason"], row.facts["media"]) for row in refusals] == [("consent", RECORDING)]
    assert not [row for row, _ in last_rows(99) if row.event == "release" and row.facts.get("avatar")]


def test_an_avatar_of_another_recording_than_the_consents(anna: Avatar, tmp_path: Path) -> None:
    """The same avatar with the consent in place does speak; told to be of another recording it does not."""
    consents.keep(agreed())
    sound = save_sound(tmp_path / "hello.wav", beep(0.2, 0.4))
    config = SpeakConfig(runtime="torch")
    speak(anna, audio=sound, output=tmp_path / "out.mp4", config=config)
    assert (tmp_path / "out.mp4").exists()
    swapped = replace(anna, provenance=replace(anna.provenance, recording_sha256=OTHER))
    with pytest.raises(ConsentError, match="nobody's consent is recorded"):
        speak(swapped, audio=sound, output=tmp_path / "swapped.mp4", config=config)
    assert not (tmp_path / "swapped.mp4").exists()
