"""One photo -> a clip: the script covers what an avatar must learn, and the puppet does what the script says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
from numpy.typing import NDArray

from omokage.config import Progress
from omokage.errors import InputError, MediaError, NoFaceError, OmokageError, OutputError
from omokage.geometry.camera import head_angles
from omokage.media.clip import Image
from omokage.media.decode import read_frames
from omokage.pipelines.rehearse import RehearseConfig, rehearse
from omokage.render.face_paint import mouth_colors
from omokage.render.performance import FARTHEST, HELD_OUT, Performance, performance
from omokage.render.rehearsal import Puppet
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.sway import ZONE_COUNT
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import track_clip

SECONDS, FRAME_RATE, SIZE = 6.0, 12, 256
JAW, BLINK = BLENDSHAPES.index("jawOpen"), BLENDSHAPES.index("eyeBlinkLeft")
UNSEEN = {"tongueOut"}  # nothing on our mesh


@dataclass(frozen=True)
class Rehearsed:
    images: NDArray[np.uint8]
    track: FaceTrack
    script: Performance


def portrait(size: int = 480, **weights: float) -> Image:
    """A photo of a person who does not exist."""
    expression = np.zeros(len(BLENDSHAPES))
    for name, value in weights.items():
        expression[BLENDSHAPES.index(name)] = value
    return SyntheticSubject(3).render(
        np.array([0.05, 0.08, 0.0]), np.array([0.0, -1.0, 64.0]), expression, np.zeros((2, 2)), size
    )


def save(image: Image, path: Path) -> Path:
    PIL.Image.fromarray(image).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearse")


@pytest.fixture(scope="module")
def rehearsed(folder: Path) -> Rehearsed:
    photo, clip = save(portrait(), folder / "photo.png"), folder / "clip.mp4"
    reports: list[Progress] = []
    released = rehearse(
        photo, output=clip, seconds=SECONDS, frame_rate=FRAME_RATE, size=SIZE, on_progress=reports.append
    )
    assert released.frame_count == SECONDS * FRAME_RATE
    assert released.duration_s == SECONDS
    assert (reports[-1].done, reports[-1].total) == (72, 72)
    frames = list(read_frames(clip))
    track = track_clip(iter(frames))
    return Rehearsed(np.stack([f.image for f in frames]), track, performance(SECONDS, FRAME_RATE))


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet.of(portrait(), size=SIZE)


def agreement(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def still(puppet: Puppet, **weights: float) -> Image:
    """The puppet with some weights, at rest otherwise."""
    expression = np.zeros((1, len(BLENDSHAPES)))
    for name, value in weights.items():
        expression[0, BLENDSHAPES.index(name)] = value
    script = Performance(
        time_s=np.zeros(1),
        angles=np.zeros((1, 3)),
        shift=np.zeros((1, 3)),
        expression=expression,
        keep=np.zeros(1) if weights else np.ones(1),
        gaze=np.zeros((1, 2)),
        sway=np.zeros((1, ZONE_COUNT, 2)),
    )
    return puppet.draw(puppet.states(script)[0])


@pytest.mark.parametrize("seconds", [5, 12, 30])
def test_the_script_visits_everything_before_the_held_out_part(seconds: float) -> None:
    script = performance(seconds, 25)
    border = round(len(script) * (1 - HELD_OUT))
    first, last = script.expression[:border], script.expression[border:]
    looks = np.array([name.startswith("eyeLook") for name in BLENDSHAPES])  # follow from the gaze
    expected = np.array([name not in UNSEEN for name in BLENDSHAPES]) & ~looks
    assert first.max(axis=0)[expected].min() > 0.25
    assert (last.max(axis=0) <= first.max(axis=0) + 1e-9).all()
    np.testing.assert_allclose(script.angles[:border].max(axis=0), FARTHEST, rtol=0.03)
    np.testing.assert_allclose(script.angles[:border].min(axis=0), -FARTHEST, rtol=0.03)
    assert (np.abs(script.angles[border:]).max(axis=0) <= FARTHEST).all()
    assert script.gaze[:border].max() > 0.3
    assert script.gaze[:border].min() < -0.3
    assert last[:, JAW].max() > 0.5
    assert last[:, BLINK].max() > 0.9


def test_the_script_is_smooth_and_the_same_every_time() -> None:
    script, again, other = performance(12, 25), performance(12, 25), performance(12, 25, seed=1)
    assert np.degrees(np.abs(np.diff(script.angles, axis=0))).max() < 4
    assert script.expression.min() >= 0
    assert script.expression.max() <= 1
    for name in ("angles", "shift", "expression", "keep", "gaze", "sway"):
        np.testing.assert_array_equal(getattr(script, name), getattr(again, name))
    assert not np.array_equal(script.expression, other.expression)


def test_a_blink_takes_a_quarter_of_a_second() -> None:
    blink = performance(12, 100).expression[:, BLINK]
    starts = np.flatnonzero((blink[:-1] == 0) & (blink[1:] > 0))
    ends = np.flatnonzero((blink[:-1] > 0) & (blink[1:] == 0))
    assert len(starts) >= 6
    np.testing.assert_allclose((ends[: len(starts)] - starts[: len(ends)]) / 100, 0.25, atol=0.02)


def test_speech_closes_the_lips_between_open_shapes() -> None:
    script = performance(12, 25)
    jaw = script.expression[:, JAW]
    rises = np.flatnonzero((jaw[:-1] < 0.1) & (jaw[1:] >= 0.1))
    assert len(rises) > 12


def test_the_clip_does_what_the_script_says(rehearsed: Rehearsed) -> None:
    track, script = rehearsed.track, rehearsed.script
    assert track.is_tracked.all()
    angles = head_angles(track.rotation)
    assert agreement(angles[:, 0], script.angles[:, 0]) > 0.95
    assert agreement(angles[:, 1], script.angles[:, 1]) > 0.9
    assert agreement(angles[:, 2], script.angles[:, 2]) > 0.9
    assert agreement(track.expression[:, JAW], script.expression[:, JAW]) > 0.9
    assert agreement(track.expression[:, BLINK], script.expression[:, BLINK]) > 0.9
    assert agreement(track.gaze.mean(axis=1)[:, 0], script.gaze[:, 0]) > 0.8


def test_the_background_stands_still(rehearsed: Rehearsed) -> None:
    corners = np.concatenate([rehearsed.images[:, :60, :30], rehearsed.images[:, :60, -30:]], axis=2)
    assert corners.astype(float).std(axis=0).max() < 3  # the codec's own noise
    assert rehearsed.images[:, 100:140, 100:150].astype(float).std(axis=0).mean() > 6


def test_at_rest_the_puppet_looks_like_the_photo(puppet: Puppet) -> None:
    photo = np.asarray(PIL.Image.fromarray(portrait()).resize((SIZE, SIZE), PIL.Image.Resampling.BOX))
    assert np.abs(still(puppet).astype(float) - photo).mean() < 6


def test_the_shoulders_stay_where_they_are(puppet: Puppet) -> None:
    script = performance(2.0, 2)
    turned = Performance(
        time_s=np.zeros(2),
        angles=np.array([[0.0, 0.0, 0.0], FARTHEST * [1, 0, 0]]),
        shift=np.zeros((2, 3)),
        expression=np.zeros((2, 52)),
        keep=np.ones(2),
        gaze=np.zeros((2, 2)),
        sway=np.zeros((2, ZONE_COUNT, 2)),
    )
    assert len(script) == 4
    rest, right = (puppet.draw(state).astype(float) for state in puppet.states(turned))
    assert np.abs(rest[-8:] - right[-8:]).mean() < 1
    assert np.abs(rest[100:140] - right[100:140]).mean() > 5


def test_a_closed_eye_shows_skin_and_an_open_mouth_shows_dark_teeth_and_tongue(puppet: Puppet) -> None:
    points, _ = puppet.conditioner.project(puppet.rest)
    model = puppet.conditioner.model
    eye = points[model.left_eye, :2].mean(axis=0).round().astype(int)
    cheek = points[330, :2].round().astype(int)
    closed = still(puppet, eyeBlinkLeft=1.0, eyeBlinkRight=1.0).astype(float)
    opened = still(puppet).astype(float)
    skin = closed[cheek[1] - 3 : cheek[1] + 3, cheek[0] - 3 : cheek[0] + 3].mean()
    lid = closed[eye[1] - 3 : eye[1] + 2, eye[0] - 4 : eye[0] + 4].mean()
    iris = opened[eye[1] - 3 : eye[1] + 2, eye[0] - 4 : eye[0] + 4].mean()
    assert lid > 0.5 * skin
    assert lid > iris + 20
    wide = still(puppet, jawOpen=0.9)
    x, top = points[13, :2].round().astype(int)
    column = wide[top - 4 : top + 40, x - 8 : x + 8].astype(float).mean(axis=1)
    luma, red = column.mean(axis=1), column[:, 0] - column[:, 2]
    dark = int(luma.argmin())
    assert luma[dark] < 60
    assert luma[:dark].max() > 140  # teeth above the dark
    assert red[dark : dark + 12].max() > red[dark] + 5  # the tongue below it


def test_teeth_are_lighter_than_gums_and_the_inside_is_darkest() -> None:
    v = np.linspace(0, 1, 101)
    column = mouth_colors(np.full(101, 0.05), v, np.array([220.0, 210, 195]), np.array([180.0, 90, 90]))
    luma = column.mean(axis=1)
    assert 0.15 < v[luma.argmax()] < 0.28
    assert 0.35 < v[luma.argmin()] < 0.55
    assert column.min() >= 0


@pytest.fixture(scope="module")
def astronaut() -> Puppet:
    return Puppet.of(skimage.data.astronaut(), size=SIZE)


def test_teeth_that_the_photo_shows_are_kept(astronaut: Puppet) -> None:
    points, _ = astronaut.conditioner.project(astronaut.rest)
    upper, lower = points[13, :2], points[14, :2]
    x, y = np.round((upper + lower) / 2).astype(int)
    drawn = still(astronaut)
    assert drawn[y - 1 : y + 2, x - 5 : x + 5].mean() > 170
    assert np.ptp(points[[13, 14], 1]) > 3
    pressed = still(astronaut, mouthPressLeft=0.3, mouthPressRight=0.3)
    assert pressed[y - 6 : y + 6, x - 5 : x + 5].mean() < drawn[y - 1 : y + 2, x - 5 : x + 5].mean() - 20


def test_the_skin_of_a_closed_lid_is_not_stretched_lashes(astronaut: Puppet) -> None:
    points, _ = astronaut.conditioner.project(astronaut.rest)
    closed = still(astronaut, eyeBlinkLeft=1.0, eyeBlinkRight=1.0).mean(axis=2)
    x, y = points[330, :2].round().astype(int)
    cheek = closed[y - 3 : y + 3, x - 3 : x + 3].mean()
    for eye in (astronaut.conditioner.model.left_eye, astronaut.conditioner.model.right_eye):
        (left, top), (right, bottom) = (
            points[eye, :2].min(axis=0).round().astype(int),
            points[eye, :2].max(axis=0).round().astype(int),
        )
        assert closed[top : bottom + 1, left : right + 1].min() > 0.36 * cheek


def test_the_same_photo_gives_the_same_pictures(puppet: Puppet) -> None:
    script = performance(1.0, 3)
    again = Puppet.of(portrait(), size=SIZE)
    for first, second in zip(puppet.states(script), again.states(script), strict=True):
        np.testing.assert_array_equal(puppet.draw(first), again.draw(second))


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        (lambda: np.full((300, 300, 3), 128, np.uint8), NoFaceError, "no face was found"),
        (lambda: np.tile(portrait(400), (1, 2, 1)), InputError, "shows 2 faces .* crop it to one"),
        (lambda: portrait(96), InputError, "pixels wide and at least 64"),
        (lambda: portrait(eyeBlinkLeft=1.0, eyeBlinkRight=1.0), InputError, "eyes are closed"),
    ],
)
def test_an_unfit_photo_is_refused_in_one_sentence(
    tmp_path: Path, picture: Callable[[], Image], error: type[OmokageError], words: str
) -> None:
    photo = save(picture(), tmp_path / "photo.png")
    with pytest.raises(error, match=words) as caught:
        rehearse(photo, output=tmp_path / "clip.mp4", size=SIZE)
    assert str(caught.value).startswith(str(photo))
    assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["photo.png"]


def test_files_that_are_no_photo_are_refused(rehearsed: Rehearsed, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a video or sound file; a picture"):
        rehearse(folder / "clip.mp4", output=tmp_path / "clip.mp4")
    with pytest.raises(MediaError):
        rehearse(tmp_path / "nothing.png", output=tmp_path / "clip.mp4")
    with pytest.raises(OutputError, match="suffix"):
        rehearse(folder / "photo.png", output=tmp_path / "clip.txt")
    with pytest.raises(InputError, match=r"got 0\.2 and 25"):
        rehearse(folder / "photo.png", output=tmp_path / "clip.mp4", seconds=0.2)
    with pytest.raises(InputError, match="no avatar of size 300"):
        rehearse(folder / "photo.png", output=tmp_path / "clip.mp4", size=300)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(rehearsed: Rehearsed, folder: Path, tmp_path: Path) -> None:
    def stop(report: Progress) -> None:
        if report.stage == "writing" and report.done == 3:
            raise KeyboardInterrupt

    output = tmp_path / "clip.mp4"
    output.write_bytes(b"what was there before")
    with pytest.raises(KeyboardInterrupt):
        rehearse(folder / "photo.png", output=output, seconds=2, frame_rate=10, size=128, on_progress=stop)
    assert [f.name for f in tmp_path.iterdir()] == ["clip.mp4"]
    assert output.read_bytes() == b"what was there before"


def test_the_label_of_the_config_is_drawn(rehearsed: Rehearsed, folder: Path, tmp_path: Path) -> None:
    config = RehearseConfig(label="sample, generated")
    clip = tmp_path / "clip.mp4"
    released = rehearse(folder / "photo.png", output=clip, seconds=1, frame_rate=5, size=SIZE, config=config)
    assert released.label == "sample, generated"
    marked = next(read_frames(clip)).image[-30:, :150].astype(float)
    plain = rehearsed.images[0, -30:, :150].astype(float)
    assert np.abs(marked - plain).mean() > 20
