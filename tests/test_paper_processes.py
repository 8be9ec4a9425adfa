"""`create --preset paper` in two processes: the avatar of one, and one writer."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.run import PaperRun
from omokage.config import Progress
from omokage.files import material_digest
from omokage.pipelines.create_paper import create_paper_avatar
from paper_parts import CRITIC, NETWORK, TINY
from processes import Started, places
from test_paper_create import QUICK, patch_plan, prepared

# The textures stop learning after the second of four steps, and the discriminator takes part from the second on.
TRAINING = replace(TINY, texture_share=0.5, checkpoint_seconds=0.0)
CONFIG = replace(QUICK, training=TRAINING)
CREATING = "import sys, test_paper_processes; test_paper_processes.create(*sys.argv[1:])"


def create(source: str, output: str, killed_at: str = "0") -> None:
    """As one of the processes that the environment names; after this step it kills itself, 0 for never."""

    def on_progress(progress: Progress) -> None:
        if progress.stage in ("preparing frames", "training"):
            print(progress.stage, round(4 * progress.done), flush=True)
        if progress.stage == "training" and round(4 * progress.done) == int(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch_plan(patch)
        create_paper_avatar(Path(source), output=Path(output), config=CONFIG, on_progress=on_progress)


def test_two_processes_that_were_stopped_make_the_avatar_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import agree  # not above: it gives whoever imports it a home of its own

    patch_plan(monkeypatch)
    source, output = prepared(tmp_path / "person"), tmp_path / "two.avatar"
    agree(material_digest(source))

    def run(killed_at: int) -> list[tuple[int, str, str]]:
        given = [source, output, killed_at]
        return [process.wait() for process in [Started(CREATING, given, tmp_path, **p) for p in places(2)]]

    for status, said, told in run(3):
        assert status == -signal.SIGKILL and "training 2" in said, told[-2000:]
    assert not output.exists() and (tmp_path / "two.avatar.work" / "frames-0" / "frames.json").is_file()
    for status, said, told in run(0):
        assert status == 0, told[-2000:]
        # The third step was not written yet; frames are prepared by the first process, and once.
        assert said.splitlines() == ["training 3", "training 4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["person", "two.avatar"]

    create_paper_avatar(source, output=tmp_path / "one.avatar", config=CONFIG)
    two, one = (PaperAvatar.load(tmp_path / name) for name in ("two.avatar", "one.avatar"))
    begun = PaperRun(NETWORK, CRITIC, TRAINING, frames=20)
    for mine, other, first in (
        (one.generator.state_dict(), two.generator.state_dict(), begun.generator.state_dict()),
        (vars(one.face), vars(two.face), vars(begun.averages(0).face)),
        (vars(one.background), vars(two.background), vars(begun.averages(0).background)),
    ):
        moved, apart = (
            torch.cat([(mine[name] - value).flatten() for name, value in state.items()]).norm()
            for state in (first, other)
        )
        # Processes that kept their own gradients, or a rank that began anew, would be apart by half of the way.
        assert moved > 0 and apart < 1e-3 * moved
    assert two.evaluation["psnr"] == pytest.approx(one.evaluation["psnr"], abs=1e-3)
    assert (two.origin.steps, one.origin.steps) == (4, 4)  # type: ignore[union-attr]
    assert torch.equal(two.noise.face, one.noise.face)
