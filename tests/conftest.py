"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest

# `make test` runs two files at a time: each keeps to its own core, or they wait for each other at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _no_test_writes_into_the_real_audit_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what sessions and modules release; every test has a log of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMOKAGE_AUDIT", str(tmp_path_factory.mktemp("audit-of-the-session")))
        yield


@pytest.fixture(autouse=True)
def _audit_log_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOKAGE_AUDIT", str(tmp_path_factory.mktemp("audit")))
