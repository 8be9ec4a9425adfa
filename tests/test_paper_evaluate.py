"""`evaluate` of an avatar in the paper's networks: the same protocol, baselines and report as of any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from omokage.avatar.bundle import Avatar, Provenance
from omokage.avatar.config import nearest_preset, preset_for
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.config import small_discriminator, small_portrait
from omokage.avatar.samples import avatar_state
from omokage.cli import app as cli
from omokage.errors import BundleError, InputError
from omokage.files import file_digest
from omokage.media.decode import read_frames
from omokage.pipelines import recording
from omokage.pipelines.candidate import Candidate
from omokage.pipelines.create_paper import PaperCreateConfig, create_paper_avatar
from omokage.pipelines.evaluate import evaluate_avatar
from omokage.pipelines.paper_frames import cut_crop, cut_window
from omokage.render.paper_renderer import PaperRenderer
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.release import release_clip
from paper_parts import TINY
from test_paper_create import patch_plan
from test_paper_data import with_landmarks

SIZE, FRAMES = 128, 30
QUICK = PaperCreateConfig(
    training=replace(TINY, steps=2, batch=1, micro_batch=1),
    network=replace(small_portrait(), rounded_window=False),
    critic=small_discriminator(),
    force=True,
    device="cpu",
)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FaceTrack]:
    """A clip in which the face is as large as in a portrait, and its motion."""
    path, subject = tmp_path_factory.mktemp("film") / "me.mp4", SyntheticSubject(seed=3)
    truth = with_landmarks(subject.performance(FRAMES / 12, frame_rate=12, size=256, motion=0.4))
    release_clip((frame.image for frame in subject.render_clip(truth)), path, frame_rate=Fraction(12))
    return path, truth


@pytest.fixture(scope="module")
def made(filmed: tuple[Path, FaceTrack], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "me.avatar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "tracked", lambda *_: filmed[1])
        patch_plan(patch)
        create_paper_avatar(filmed[0], output=path, config=QUICK)
    return path


@pytest.fixture(autouse=True)
def known_track(filmed: tuple[Path, FaceTrack], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "tracked", lambda *_: filmed[1])


def test_it_is_measured_beside_the_same_baselines(made: Path, tmp_path: Path) -> None:
    evaluation = evaluate_avatar(made, output=tmp_path / "report", unet_minutes=0)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "held-out.mp4",
        "report.html",
        "report.json",
    ]
    assert [method.name for method in evaluation.methods] == [
        "avatar",
        "nearest training frame",
        "warped training frame",
        "explicit composition, no network",
    ]
    assert evaluation.size == SIZE and evaluation.split.kind == "last-20%"
    assert evaluation.frame_index and min(evaluation.frame_index) >= 24
    for method in evaluation.methods:
        assert all(np.isfinite(method.mean("psnr", region)) for region in ("whole", "head", "mouth"))
    # Frames of the same person are nearer to the truth than two steps of training.
    assert evaluation.methods[1].mean("psnr") > evaluation.methods[0].mean("psnr")
    assert evaluation.methods[3].mean("psnr") > evaluation.methods[0].mean("psnr")
    assert any("drawn as a face mesh" in note for note in evaluation.notes)
    values = json.loads((tmp_path / "report" / "report.json").read_text())
    assert values["format"] == "omokage.evaluation" and values["methods"][0]["name"] == "avatar"
    page = (tmp_path / "report" / "report.html").read_text()
    assert "warped training frame" in page
    pairs = list(read_frames(tmp_path / "report" / "held-out.mp4"))
    assert len(pairs) == len(evaluation.frame_index) and pairs[0].image.shape == (SIZE, 2 * SIZE, 3)


def test_what_is_measured_is_what_the_avatar_draws(made: Path, filmed: tuple[Path, FaceTrack]) -> None:
    """The picture of the true frame is the one that training had, to the pixel, and the avatar's is a reenactment's."""
    candidate, avatar = Candidate.load(made), PaperAvatar.load(made)
    opened = candidate.open(filmed[0])
    train, held_out = candidate.samples(opened)
    assert len(train) == 24 and len(held_out) == 6
    assert avatar.person is not None
    frame = next(read_frames(filmed[0]))
    crop = cut_crop(frame, avatar.person.drawing)
    assert crop.shape == (192, 192, 3)
    np.testing.assert_array_equal(train[0].image, crop[32:160, 32:160])
    np.testing.assert_array_equal(cut_window(frame, avatar.person.drawing), train[0].image)
    expected = PaperRenderer(avatar).render(avatar_state(filmed[1], int(opened.split.held_out[0]))).image
    np.testing.assert_array_equal(candidate.draw([held_out[0].state])[0], expected)


def test_it_wants_its_own_recording_and_finds_it_beside_it(
    made: Path, filmed: tuple[Path, FaceTrack], tmp_path: Path
) -> None:
    origin = PaperAvatar.load(made).origin
    assert isinstance(origin, Provenance)
    assert origin.recording_sha256 == file_digest(filmed[0])
    other = tmp_path / "other.mp4"
    other.write_bytes(b"something else")
    with pytest.raises(InputError, match="is not the recording this avatar was made from"):
        evaluate_avatar(made, recording=other, output=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_an_avatar_of_another_programs_meshes_is_refused_in_a_sentence(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    replace(PaperAvatar.load(made), person=None).save(tmp_path / "theirs.avatar")
    assert cli.run(["evaluate", str(tmp_path / "theirs.avatar")]) == 2
    said = capfd.readouterr().err
    assert "face meshes that another program drew" in said and said.count("\n") == 1
    shutil.copy(made, tmp_path / "copy.avatar")
    with pytest.raises(BundleError, match="at the paper's scale"):
        Avatar.load(tmp_path / "copy.avatar")


def test_a_composition_of_any_size_has_the_nearest_presets_grid() -> None:
    assert nearest_preset(256) == preset_for(256)
    assert (nearest_preset(1024).grid, nearest_preset(1024).size) == (preset_for(512).grid, 1024)
    assert nearest_preset(64).grid == preset_for(128).grid
