"""What `create --preset paper` learns from: all of it is looked at first, and what was prepared is not lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from omokage.avatar.paper.prepared_folder import PreparedFolder
from omokage.config import Progress
from omokage.errors import CaptureRefusedError, InputError
from omokage.pipelines import create_paper, paper_sources, recording
from omokage.pipelines.create_paper import create_paper_avatar
from omokage.pipelines.paper_frames import prepare_folder
from omokage.pipelines.paper_plan import FrameCosts
from omokage.pipelines.paper_sources import Sources
from omokage.pipelines.work import Work
from omokage.trust.release import release_clip
from paper_parts import SIZE
from test_paper_create import QUICK, patch_plan, prepared


@pytest.fixture(autouse=True)
def known_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_plan(monkeypatch)


def clip(path: Path, frames: int) -> Path:
    picture = np.full((96, 96, 3), 128, dtype=np.uint8)
    release_clip((picture for _ in range(frames)), path, frame_rate=Fraction(12))
    return path


def test_every_source_is_looked_at_before_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_paper, "plan_paper", lambda *_, **__: pytest.fail("it was counted"))
    people, output = tmp_path / "people", tmp_path / "a.avatar"
    prepared(people / "a")
    prepared(people / "few", count=4)
    with pytest.raises(InputError, match="few holds 4 frames, at least 25 are needed"):
        create_paper_avatar(people, output=output, config=QUICK)
    shutil.rmtree(people / "few")
    short = clip(people / "short.mp4", 6)
    with pytest.raises(InputError, match=r"short\.mp4 has 6 frames, at least 25 are needed"):
        create_paper_avatar(people, output=output, config=QUICK)
    short.unlink()
    PIL.Image.new("RGB", (40, 40)).save(people / "a" / "uv" / "000001.png")
    with pytest.raises(InputError, match="is 40x40 pixels"):
        create_paper_avatar(people, output=output, config=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_every_recording_is_judged_once_and_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, output, judged = tmp_path / "people", tmp_path / "a.avatar", list[str]()

    class Report:
        def __init__(self, path: Path) -> None:
            self.path = path

        def raise_if_refused(self) -> None:
            judged.append(self.path.name)
            if self.path.name == "z.mp4":
                raise CaptureRefusedError("it is dark")

    monkeypatch.setattr(paper_sources, "check_recording", lambda path, **_: Report(path))
    monkeypatch.setattr(recording, "tracked", lambda *_: pytest.fail("it was tracked"))
    prepared(people / "a")
    clip(people / "b.mp4", 30)
    clip(people / "z.mp4", 30)
    seen: list[str] = []
    with pytest.raises(CaptureRefusedError):
        create_paper_avatar(
            people,
            output=output,
            config=replace(QUICK, force=False),
            on_progress=lambda progress: seen.append(progress.stage),
        )
    assert judged == ["b.mp4", "z.mp4"] and seen == ["plan"]
    assert [path.name for path in tmp_path.iterdir()] == ["people"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # What a stopped run has tracked was judged by it.
    sources, work = Sources.find(people, SIZE), Work(tmp_path / "work")
    work.folder.mkdir()
    for number in (1, 2):
        (work.folder / f"recording-{number}.track").touch()
    monkeypatch.setattr(create_paper.Recording, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        create_paper._prepare(sources, work, replace(QUICK, force=False), lambda _: None)
    assert judged == ["b.mp4", "z.mp4"]


def test_finished_frames_outlive_an_error_in_another_source(tmp_path: Path) -> None:
    people, work = tmp_path / "people", tmp_path / "a.avatar.work"
    faulty = people / "b" / "uv" / "000020.png"
    prepared(people / "a")
    prepared(people / "b", seed=1)
    PIL.Image.new("RGB", (40, 40)).save(faulty)
    with pytest.raises(InputError, match="is 40x40 pixels"):
        create_paper_avatar(people, output=tmp_path / "a.avatar", config=QUICK)
    assert (work / "frames-0" / "frames.json").is_file()
    # Half of the only one is of no use.
    with pytest.raises(InputError, match="is 40x40 pixels"):
        create_paper_avatar(people / "b", output=tmp_path / "b.avatar", config=QUICK)
    assert not (tmp_path / "b.avatar.work").exists()


def test_no_more_frames_are_prepared_than_the_plan_says(tmp_path: Path) -> None:
    source = PreparedFolder.open(prepared(tmp_path / "person", count=60), SIZE)
    sources = Sources((source.folder,), SIZE)

    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        assert progress.total == 30
        if progress.done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        prepare_folder(source, tmp_path / "store", cap=30, on_progress=stop)
    store = prepare_folder(source, tmp_path / "store", cap=30)
    assert (store.train, store.held_out) == (24, 6) and len(store) == sources.frames(30)
    assert [store.record(row).frame for row in range(30)] == [*range(1, 49, 2), *range(49, 55)]
    assert sources.frames(2500) == len(prepare_folder(source, tmp_path / "all", cap=2500)) == 60


def test_the_plan_says_that_no_command_will_drive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        said.append(progress.note)
        raise Stopped

    monkeypatch.setattr(create_paper, "frame_costs", lambda _: FrameCosts(track=0.1, prepare=2.0))
    for source, is_said in (
        (prepared(tmp_path / "person"), True),
        (clip(tmp_path / "me.mp4", 30), False),
    ):
        said: list[str] = []
        with pytest.raises(Stopped):
            create_paper_avatar(source, output=tmp_path / "a.avatar", config=QUICK, on_progress=stop)
        assert ("no command will drive this avatar" in said[0]) is is_said
