"""Several processes that ran out of memory: which profile the next start begins with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omokage.errors import MemoryShortageError
from omokage.pipelines.animate_plan import AnimationPlan
from omokage.pipelines.shortage import agreed_start, shortage_told
from omokage.pipelines.window_files import WindowFiles
from omokage.talking.placement import Choice, grouped, layerwise, profiles, resident

PROFILES = (resident(), grouped(), layerwise())


def planned(*options: Any) -> AnimationPlan:
    return AnimationPlan(
        frames=1, width=1, height=1, windows=1, window_frames=49, steps=2, passes=2, tokens=1, stages=(),
        device="cpu", dtype="float32", rate=1.0, free=1.0, shortage="" if options else "no memory profile fits",
        options=tuple(Choice(profile, 2e9, 0.0) for profile in options),
    )  # fmt: skip


def process(rank: int, world: int = 2, said: float | None = None) -> Any:
    """One of several processes; `said`: what the first one says, None for what is said to it."""

    def agree(*values: float) -> tuple[float, ...]:
        return values if said is None else (said,)

    return SimpleNamespace(rank=rank, world=world, is_first=rank == 0, agree=agree)


@pytest.fixture
def files(tmp_path: Path) -> WindowFiles:
    return WindowFiles.open(tmp_path / "o.mp4", {"seed": 1}, print, resume=True)


def begun(files: WindowFiles, rank: int = 0, **others: Any) -> list[str]:
    start = agreed_start(planned(*PROFILES), process(rank, **others), files)
    return [option.profile.name for option in start.plan.options]


def test_the_next_start_takes_the_next_profile(files: WindowFiles) -> None:
    assert begun(files) == ["resident"]
    for name, other in (("resident", "grouped"), ("grouped", "layerwise")):
        plan = agreed_start(planned(*PROFILES), process(0), files).plan
        with (
            pytest.raises(
                MemoryShortageError, match=f"in process 2 of 2; memory profile '{name}'.*same command"
            ),
            shortage_told(plan, process(1), files),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")
        start = agreed_start(planned(*PROFILES), process(0), files)
        assert [option.profile.name for option in start.plan.options] == [other]
        assert start.notes[-1] == f"memory ran out with the profile '{name}' before; going on with '{other}'"
    files.note_shortage("layerwise")
    with pytest.raises(MemoryShortageError, match="memory ran out with grouped, layerwise, resident"):
        begun(files)
    assert begun(files) == ["resident"]  # the machine may have more room by now


def test_the_last_profile_is_not_followed_by_another(files: WindowFiles) -> None:
    for name in ("resident", "grouped"):
        files.note_shortage(name)
    plan = agreed_start(planned(*PROFILES), process(0), files).plan
    with (
        pytest.raises(MemoryShortageError, match="with --memory, or use a larger machine") as caught,
        shortage_told(plan, process(0), files),
    ):
        raise MemoryError
    assert "'layerwise'" in str(caught.value) and "same command" not in str(caught.value)


def test_all_processes_take_the_first_ones_profile(files: WindowFiles) -> None:
    files.note_shortage("resident")  # only the first one looks
    number = profiles().index(layerwise())
    assert begun(files, rank=1, said=number) == ["layerwise"]
    with pytest.raises(MemoryShortageError, match="the first process has too little memory"):
        begun(files, rank=1, said=-1)
    files.forget_shortages()
    with pytest.raises(MemoryShortageError, match="no memory profile fits"):
        agreed_start(planned(), process(0), files)


def test_one_process_keeps_all_profiles_and_leaves_no_note(files: WindowFiles) -> None:
    files.note_shortage("resident")
    assert begun(files, world=1) == ["resident", "grouped", "layerwise"]
    files.forget_shortages()
    with (
        pytest.raises(MemoryShortageError, match="while the inputs were prepared"),
        shortage_told(planned(resident()), process(0, world=1), files),
    ):
        raise MemoryError
    assert not files.shortages


def test_notes_outlive_a_run_without_windows_and_no_other_run(tmp_path: Path, files: WindowFiles) -> None:
    with pytest.raises(MemoryShortageError), files:
        files.note_shortage("resident")
        raise MemoryShortageError("memory ran out")
    assert files.shortages == {"resident"}
    WindowFiles.open(tmp_path / "o.mp4", {"seed": 1}, print, resume=True)
    assert files.shortages == {"resident"}
    with WindowFiles.open(tmp_path / "o.mp4", {"seed": 2}, print, resume=True) as other:
        assert not other.shortages
        other.note_shortage("grouped")
    assert not list(tmp_path.iterdir())  # a run that is done leaves nothing


def test_a_disk_of_its_own_is_told(tmp_path: Path) -> None:
    elsewhere = WindowFiles.beside(tmp_path / "gone" / "o.mp4", print)
    with (
        pytest.raises(MemoryShortageError, match="choose a smaller profile with --memory"),
        shortage_told(planned(resident()), process(1), elsewhere),
    ):
        raise MemoryError
    with (
        pytest.raises(ValueError, match="a defect"),
        shortage_told(planned(resident()), process(1), elsewhere),
    ):
        raise ValueError("a defect")
