"""What holds for every test: a core and a home of its own, and people who agree unless the test is about that.

And what several files of tests begin with.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from omokage.trust import consents, guard, release
from omokage.trust.consent import Consent, Medium, Terms, new_consent
from omokage.trust.keys import signing_key
from omokage.trust.origin import sign_origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from omokage.avatar.paper.frames import FrameStore
    from omokage.speaking.voices import SpokenText

# `make test` runs two files at a time: each keeps to its own core, or they wait for each other at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Keys, registers and models of the tests are not those of who runs them.
_home = tempfile.TemporaryDirectory(prefix="omokage-tests-")
os.environ["OMOKAGE_HOME"] = _home.name
for _name in ("OMOKAGE_MARK_KEY", "OMOKAGE_MARK_PROFILE"):
    os.environ.pop(_name, None)

RECORDED_FOR = consents.recorded_for


@pytest.fixture(scope="session", autouse=True)
def everybody_agrees() -> Iterator[None]:
    """A real record, signed and kept, for every medium that a test makes something of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consents, "recorded_for", lambda media: RECORDED_FOR(media) or [agree(media)])
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_is_signed() -> Iterator[None]:
    """A signature has a time in it, and many tests ask for equal bytes; `signed` is for those about signatures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "sign_origin", lambda *_, **__: False)
        yield


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it."""
    monkeypatch.setattr(release, "sign_origin", sign_origin)


@pytest.fixture
def denied_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: nobody agrees until it is recorded."""
    monkeypatch.setattr(consents, "recorded_for", RECORDED_FOR)


@pytest.fixture
def asked_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the consent still holds, which is asked every twenty seconds otherwise."""
    monkeypatch.setattr(guard, "CHECK_S", 0.0)


def agree(media: str, purpose: str = "private") -> Consent:
    """Record that a drawn face, in a medium of this SHA-256, may be used, in private unless said otherwise."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    terms = Terms(
        kind="nobody",
        purposes=(purpose,),
        start=yesterday.date().isoformat(),
        end=(yesterday + timedelta(days=300)).date().isoformat(),
    )
    record = new_consent([Medium(media, "test")], terms, now=yesterday, key=signing_key())
    consents.keep(record)
    return record


@pytest.fixture(autouse=True)
def audit_log_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What modules and sessions release is written into the home of the tests."""
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path_factory.mktemp("audit")))


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings for the paper's networks, `store-0` and `store-1`."""
    from paper_parts import toy_store

    folder = tmp_path_factory.mktemp("recordings")
    for seed in range(2):
        toy_store(folder / f"store-{seed}", seed=seed)
    return folder


@pytest.fixture(scope="session")
def stores(toy_folder: Path) -> list[FrameStore]:
    """Both, opened."""
    from omokage.avatar.paper.frames import FrameStore

    return [FrameStore.open(toy_folder / f"store-{seed}") for seed in range(2)]


@pytest.fixture(scope="session")
def spoken() -> SpokenText:
    """Two sentences with many lips that meet, in a synthetic voice whose phonemes are known."""
    from omokage.speaking.voices import speak_text

    sentences = (
        "My mother brings a big blue umbrella. Happy people move to bigger towns, far away from the sea."
    )
    return speak_text(sentences, "en-us")


@pytest.fixture(scope="session")
def voice(spoken: SpokenText) -> NDArray[np.float32]:
    """Its sound (S,), mono at 16 kHz."""
    from omokage.pipelines.speech_track import resampled

    return resampled(spoken.sound, 16000)[:, 0]
