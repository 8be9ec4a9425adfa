"""What holds for every test, and what several files of tests begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omokage.avatar.paper.frames import FrameStore

# `make test` runs two files at a time: each keeps to its own core, or they wait for each other at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


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
