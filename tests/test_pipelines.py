"""The commands from end to end on the synthetic subject, with bad inputs and interruptions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from clips import beep, make_clip, moving_disc
from omokage.avatar.bundle import Avatar
from omokage.config import Progress
from omokage.errors import (
    BundleError,
    CaptureRefusedError,
    ConsentError,
    InputError,
    MediaError,
    NoFaceError,
    OutputError,
)
from omokage.media.audio import read_audio
from omokage.media.clip import Audio
from omokage.media.decode import probe, read_frames
from omokage.pipelines.create import CreateConfig, create_avatar
from omokage.pipelines.demo import demo
from omokage.pipelines.evaluate import evaluate_avatar
from omokage.pipelines.predict import Prediction
from omokage.pipelines.recording import evaluated_frames, split_of
from omokage.pipelines.reenact import ReenactConfig, motion_states, reenact
from omokage.render.detail import rest_of, retarget_detail
from omokage.render.retarget import Coverage, retarget
from omokage.tracking.arkit import write_arkit_csv
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import track_clip
from omokage.trust.release import release_clip, release_image
from withdrawing import Withdrawing

RATE = Fraction(12)
QUICK = CreateConfig(size=128, steps=8, force=True, evaluate=False)


def film(path: Path, seed: int, seconds: float, motion: float = 0.7, audio: Audio | None = None) -> Path:
    """A clip of the synthetic subject."""
    subject = SyntheticSubject(seed=seed)
    truth = subject.performance(seconds, frame_rate=float(RATE), size=256, motion=motion)
    release_clip((f.image for f in subject.render_clip(truth)), path, frame_rate=RATE, audio=audio)
    return path


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction measures the machine for some seconds; here it is not what is tested."""
    monkeypatch.setattr(
        "omokage.pipelines.create.predict_create",
        lambda *_: Prediction(minutes=1.0, training_minutes=1.0, memory_gb=1.0, allowed_minutes=1.0),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def recording(folder: Path) -> Path:
    return film(folder / "me.mp4", seed=3, seconds=5.0)


@pytest.fixture(scope="module")
def short_recording(folder: Path) -> Path:
    """For what does not depend on how long it is."""
    return film(folder / "short.mp4", seed=3, seconds=2.6)


@pytest.fixture(scope="module")
def driver(folder: Path) -> Path:
    tone = 0.3 * np.sin(np.arange(2 * 16000) * 0.2).astype(np.float32)[:, None]
    return film(folder / "driver.mp4", seed=5, seconds=2.0, audio=Audio(tone, 16000))


@pytest.fixture(scope="module")
def driver_track(driver: Path) -> FaceTrack:
    return track_clip(read_frames(driver))


@pytest.fixture(scope="module")
def avatar(recording: Path, folder: Path) -> Path:
    path = folder / "me.avatar"
    create_avatar(recording, output=path, config=replace(QUICK, steps=30))
    return path


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_create_leaves_one_file_and_the_same_run_gives_the_same_avatar(
    avatar: Path, short_recording: Path, folder: Path, tmp_path: Path
) -> None:
    assert not any(name.endswith((".part", ".work")) for name in names(folder))
    first = create_avatar(short_recording, output=tmp_path / "a.avatar", config=QUICK)
    again = create_avatar(short_recording, output=tmp_path / "b.avatar", config=QUICK)
    assert names(tmp_path) == {"a.avatar", "b.avatar"}
    for one, other in zip(first.generator.parameters(), again.generator.parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())
    loaded = Avatar.load(avatar)
    assert loaded.provenance.recording_name == "me.mp4" and loaded.provenance.steps == 30
    assert len(loaded.track) == 48  # four fifths of 60 frames


@pytest.mark.parametrize("stage", ["landmarks", "training"])
def test_a_withdrawal_while_it_learns_leaves_nothing(
    stage: str,
    short_recording: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    asked_at_every_step: None,
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path_factory.mktemp("home")))
    withdrawing = Withdrawing(stage)
    with pytest.raises(ConsentError, match=r"stopped: .* the consent was withdrawn on"):
        create_avatar(short_recording, output=tmp_path / "me.avatar", config=QUICK, on_progress=withdrawing)
    assert withdrawing.left and names(tmp_path) == set()


def test_reenact_keeps_length_rate_and_sound(avatar: Path, driver: Path, tmp_path: Path) -> None:
    result = reenact(avatar, driver, output=tmp_path / "out.mp4")
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.frame_rate) == (128, 128, RATE)
    assert result.released.frame_count == 24 and info.has_audio
    sound = read_audio(tmp_path / "out.mp4")
    assert sound is not None and abs(len(sound.samples) / sound.sample_rate - 2.0) < 0.07
    assert np.abs(sound.samples).max() > 0.1


def test_reenact_follows_the_driver(
    avatar: Path, driver: Path, driver_track: FaceTrack, tmp_path: Path
) -> None:
    """Track the result: its head turns with the driver's."""
    from omokage.geometry.camera import yaw_pitch_roll

    reenact(avatar, driver, output=tmp_path / "out.mp4", config=ReenactConfig(runtime="torch"))
    shown = track_clip(read_frames(tmp_path / "out.mp4"))
    yaw = [yaw_pitch_roll(track.rotation)[:, 0] for track in (driver_track, shown)]
    assert shown.is_tracked.mean() > 0.9
    assert np.corrcoef(*yaw)[0, 1] > 0.8


def test_still_background_is_exactly_still_and_runs_repeat(
    avatar: Path, driver: Path, tmp_path: Path
) -> None:
    """Before encoding: zero variance over time where the person never is; equal input, equal file."""
    from omokage.avatar.samples import avatar_state
    from omokage.render.renderer import Renderer

    person = Avatar.load(avatar)
    renderer = Renderer(person, runtime="torch")
    portraits = [renderer.render(avatar_state(person.track, row)) for row in range(0, 48, 6)]
    never = np.stack([p.matte for p in portraits]).max(axis=0) == 0
    images = np.stack([p.image for p in portraits])
    assert never.mean() > 0.05
    assert np.ptp(images[:, never].astype(int), axis=0).max() == 0
    one, other = (
        reenact(avatar, driver, output=tmp_path / name, config=ReenactConfig(runtime="torch")).released.sha256
        for name in ("one.mp4", "other.mp4")
    )
    assert one == other


def test_drivers_of_all_kinds_and_backgrounds(avatar: Path, driver_track: FaceTrack, tmp_path: Path) -> None:
    driver_track.save(tmp_path / "driver.track")
    (tmp_path / "driver.csv").write_text(write_arkit_csv(driver_track))
    release_image(np.full((90, 160, 3), (0, 0, 250), np.uint8), tmp_path / "blue.png")
    for name, config in (
        ("driver.track", ReenactConfig(background="#00ff00")),
        ("driver.csv", ReenactConfig(background=str(tmp_path / "blue.png"))),
    ):
        result = reenact(avatar, tmp_path / name, output=tmp_path / "out.mp4", config=config)
        assert result.released.frame_count >= 23
        corner = next(read_frames(tmp_path / "out.mp4")).image[4, 4]
        assert corner.argmax() == (1 if name.endswith("track") else 2) and corner.max() > 200
    result = reenact(
        avatar,
        tmp_path / "driver.track",
        output=tmp_path / "out.webm",
        config=ReenactConfig(background="transparent"),
    )
    assert probe(result.released.path).width == 128


def test_it_says_when_it_clamps(avatar: Path, tmp_path: Path) -> None:
    wild = film(tmp_path / "wild.mp4", seed=5, seconds=2.0, motion=2.0)
    assert any("limited" in s for s in reenact(avatar, wild, output=tmp_path / "o.mp4").warnings)


def test_evaluate_writes_the_report(avatar: Path, tmp_path: Path) -> None:
    evaluation = evaluate_avatar(avatar, output=tmp_path / "report", unet_minutes=0.01)
    assert names(tmp_path / "report") == {"report.html", "report.json", "held-out.mp4"}
    assert [m.name for m in evaluation.methods] == [
        "avatar",
        "nearest training frame",
        "warped training frame",
        "explicit composition, no network",
        "plain U-Net, equal size and time",
    ]
    assert len(evaluation.frame_index) == 12 and min(evaluation.frame_index) >= 48
    page = (tmp_path / "report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "warped training frame" in page


def test_the_very_end_of_a_long_recording_is_evaluated() -> None:
    """So that the literature's splits lie within it: the last 350 frames, fewer where a picture takes more memory."""
    short, long = (SyntheticSubject(3).performance(t, frame_rate=10, size=64) for t in (10.0, 300.0))
    split = split_of(short, 256)
    assert (split.train[-1], split.held_out[0], split.held_out[-1]) == (79, 80, 99)
    for size, count in ((128, 350), (256, 350), (512, 60)):
        split = split_of(long, size)
        assert (len(split.held_out), split.held_out[-1]) == (count, 2999)
        assert split.train[-1] < 2400 and evaluated_frames(size) == count


def test_an_avatar_of_the_demo_can_be_evaluated_again(
    short_recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a short drawn clip in place of the rehearsed one; also after its folder was moved."""
    monkeypatch.setattr(
        "omokage.pipelines.demo.rehearse", lambda photo, output, **_: shutil.copy(short_recording, output)
    )
    monkeypatch.setattr("omokage.pipelines.demo.TEXT", "Hello.")
    monkeypatch.setattr("omokage.pipelines.demo.DRIVER_S", 0.4)
    files = demo(tmp_path / "demo", minutes=0.02, size=128).files
    assert [file.name for file in files] == [
        "portrait.png", "rehearsal.mp4", "reenacted.mp4", "speaking.mp4", "held-out.mp4", "report.html",
        "sample.avatar", "recording.mp4",
    ]  # fmt: skip
    assert all(file.is_file() for file in files) and not list(tmp_path.rglob("*.work"))
    labeled, plain = (next(read_frames(file)).image[-20:, :20] for file in (files[1], files[-1]))
    assert labeled.max() > 230 > plain.max()
    (tmp_path / "demo").rename(tmp_path / "moved")
    again = evaluate_avatar(tmp_path / "moved" / "sample.avatar", output=tmp_path / "report", unet_minutes=0)
    assert again.clip == "recording.mp4"


def test_skin_detail_reaches_the_pictures(avatar: Path, driver_track: FaceTrack) -> None:
    """What the report measures is what the user gets: reenactment is driven by the same detail as evaluation."""
    track, person = driver_track, Avatar.load(avatar)
    rest = rest_of(person)
    moved = retarget(track, source_rest=rest, coverage=Coverage.of(person.track))
    states = list(motion_states(moved.motion, retarget_detail(track, source_rest=rest)))
    details = np.stack([state.detail for state in states if state.detail is not None])
    assert len(details) == len(track) == len(states)
    assert 0.001 < np.abs(details).mean() < 0.2
    # Another person's: the way from their own mean, beginning at the mean of the avatar's recording.
    assert np.abs(person.skin).max() > 0.01
    np.testing.assert_allclose(details.mean(axis=0), person.skin, atol=1e-6)


def test_a_users_folder_in_the_way_is_left_alone(recording: Path, tmp_path: Path) -> None:
    precious = tmp_path / "me.avatar.work" / "notes.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        create_avatar(recording, output=tmp_path / "me.avatar", config=QUICK)
    assert precious.read_text() == "mine"
    for bad in ({"minutes": 0.0}, {"seed": -1}, {"steps": 0}):
        with pytest.raises(InputError, match="above 0"):
            CreateConfig(**bad)


def test_evaluate_wants_the_same_recording(avatar: Path, driver: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the recording"):
        evaluate_avatar(avatar, recording=driver, output=tmp_path / "r")
    assert not names(tmp_path)


def test_interrupted_reenactment_leaves_nothing(avatar: Path, driver: Path, tmp_path: Path) -> None:
    for stage in ("landmarks", "writing"):

        def interrupt(progress: Progress, stage: str = stage) -> None:
            if progress.stage == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            reenact(avatar, driver, output=tmp_path / "o.mp4", on_progress=interrupt)
        assert not names(tmp_path)


def test_bad_recordings_are_refused_in_a_sentence(tmp_path: Path) -> None:
    output = tmp_path / "me.avatar"
    empty = make_clip(tmp_path / "empty.mp4", seconds=3, draw=moving_disc, audio=beep(3.0, 1.0))
    with pytest.raises(CaptureRefusedError, match="face"):
        create_avatar(empty, output=output)
    with pytest.raises(NoFaceError, match="face"):
        create_avatar(empty, output=output, config=QUICK)
    short = film(tmp_path / "short.mp4", seed=3, seconds=1.0)
    with pytest.raises(CaptureRefusedError):
        create_avatar(short, output=output)
    with pytest.raises(NoFaceError, match="at least"):
        create_avatar(short, output=output, config=QUICK)
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    with pytest.raises(MediaError):
        create_avatar(text, output=output)
    assert not output.exists()


def test_bad_drivers_and_outputs_are_refused_in_a_sentence(
    avatar: Path, driver: Path, tmp_path: Path
) -> None:
    release_image(np.zeros((64, 64, 3), np.uint8), tmp_path / "still.png")
    empty = make_clip(tmp_path / "empty.mp4", seconds=2, draw=moving_disc)
    out = tmp_path / "out.mp4"
    with pytest.raises(InputError, match="still picture"):
        reenact(avatar, tmp_path / "still.png", output=out)
    with pytest.raises(NoFaceError):
        reenact(avatar, empty, output=out)
    with pytest.raises(InputError, match="not a color"):
        reenact(avatar, driver, output=out, config=ReenactConfig(background="#nothing"))
    with pytest.raises(OutputError, match="webm"):
        reenact(avatar, driver, output=out, config=ReenactConfig(background="transparent"))
    with pytest.raises(OutputError):
        reenact(avatar, driver, output=tmp_path / "none" / "o.mp4")
    with pytest.raises(OutputError):
        reenact(avatar, driver, output=driver)
    with pytest.raises(BundleError):
        reenact(driver, driver, output=out)
    with pytest.raises(OutputError, match=r"\.avatar"):
        create_avatar(driver, output=tmp_path / "me.zip")
    with pytest.raises(InputError, match="128, 256, 512"):
        create_avatar(driver, output=tmp_path / "me.avatar", config=replace(QUICK, size=300))
    assert not out.exists()
