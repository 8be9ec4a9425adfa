"""Retargeting a driver's motion to an avatar, and the blendshape tables of phone capture apps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omokage.errors import InputError, NoFaceError
from omokage.geometry.camera import Camera, head_angles, head_rotation, yaw_pitch_roll
from omokage.render.retarget import (
    BLINK,
    JAW,
    Controls,
    Coverage,
    Motion,
    Rest,
    camera_direction,
    retarget,
)
from omokage.tracking.arkit import (
    LOOK_FULL,
    gaze_from_looks,
    looks_from_gaze,
    read_arkit_csv,
    write_arkit_csv,
)
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack, Subject
from omokage.tracking.sway import ZONE_COUNT

SMILE = BLENDSHAPES.index("mouthSmileLeft")
BROW = BLENDSHAPES.index("browInnerUp")
MOTION_ARRAYS = ("rotation", "translation", "expression", "gaze", "sway")


def make_track(
    *,
    length: int = 200,
    seed: int = 0,
    identity: float = 1.0,
    neutral: float = 0.02,
    full_blink: float = 0.9,
    yaw_deg: float = 15.0,
    width_cm: float = 15.0,
    distance_cm: float = 60.0,
    turned_deg: float = 0.0,
) -> FaceTrack:
    """A person who turns the head, blinks four times and opens the mouth and smiles in the second half."""
    rng = np.random.default_rng(seed)
    t = np.arange(length) / 25
    angles = np.stack([yaw_deg * np.sin(t), 6 * np.sin(1.7 * t), 4 * np.sin(0.6 * t)], axis=1)
    angles = np.radians(angles + np.array([turned_deg, 0, 0]))
    expression = np.full((length, 52), neutral) + rng.uniform(0, 0.01, (length, 52))
    for start in np.linspace(10, length - 20, 4).astype(int):
        expression[start : start + 6, BLINK] = full_blink * np.array([[0.4, 0.9, 1, 1, 0.7, 0.3]]).T
    talking = t > t[-1] / 2
    expression[talking, JAW] = 0.05 + 0.5 * np.abs(np.sin(5 * t[talking]))
    expression[talking, SMILE] = 0.05 + 0.4 * np.abs(np.sin(2 * t[talking]))
    corner = np.array([[-width_cm / 2, 0, 0], [width_cm / 2, 0, 0]], np.float32)
    return FaceTrack(
        frame_index=np.arange(length),
        time_s=t,
        is_tracked=np.ones(length, bool),
        confidence=np.ones(length, np.float32),
        rotation=head_rotation(angles),
        translation=np.stack([np.sin(t), 0.5 * np.cos(t), distance_cm + 3 * np.sin(0.8 * t)], axis=1),
        expression=expression.astype(np.float32),
        gaze=np.tile(0.1 * np.sin(t)[:, None, None], (1, 2, 2)).astype(np.float32),
        sway=np.repeat(
            0.1
            * np.stack([np.sin(t), np.cos(t), np.sin(2 * t), np.cos(3 * t)], axis=1).reshape(length, 2, 2),
            ZONE_COUNT // 2,
            axis=1,
        ).astype(np.float32),
        landmarks=np.zeros((length, 478, 3), np.float32),
        camera=Camera.for_image(512, 512),
        subject=Subject(
            neutral=corner,
            blendshapes=np.zeros((52, 2, 3), np.float32),
            identity=np.full(3, identity, np.float32),
        ),
    )


def inside(track: FaceTrack) -> FaceTrack:
    """The frames that lie inside the track's own coverage in every channel."""
    coverage = Coverage.of(track)
    pairs = [
        (track.expression, coverage.expression),
        (head_angles(track.rotation), coverage.angles),
        (track.translation, coverage.translation),
        (track.gaze.reshape(len(track), -1), np.tile(coverage.gaze, 2)),
        (track.sway.reshape(len(track), -1), coverage.sway.reshape(2, -1)),
    ]
    rows = np.all([((v >= low) & (v <= high)).all(axis=1) for v, (low, high) in pairs], axis=0)
    return track.select(rows)


def to_source(driver: FaceTrack, source: FaceTrack, **controls: object) -> Motion:
    result = retarget(
        driver,
        source_rest=Rest.of(source),
        coverage=Coverage.of(source),
        controls=Controls(**controls),  # type: ignore[arg-type]
    )
    return result.motion


def test_self_reenactment_inside_the_coverage_changes_nothing() -> None:
    track = make_track()
    driver = inside(track)
    assert len(driver) > 60
    result = retarget(driver, source_rest=Rest.of(track), coverage=Coverage.of(track))
    assert result.warnings == ()
    for name in MOTION_ARRAYS:
        np.testing.assert_allclose(
            getattr(result.motion, name), getattr(driver, name), atol=1e-6, err_msg=name
        )


def test_the_whole_recording_passes_almost_unchanged() -> None:
    track = make_track()
    motion = to_source(track, track)
    assert np.abs(motion.rotation - track.rotation).max() < np.radians(0.5)
    assert np.abs(motion.expression - track.expression).max() < 0.05


def test_frame_by_frame_equals_the_whole_clip() -> None:
    source, driver = make_track(), make_track(seed=1, identity=2.0, yaw_deg=25, turned_deg=10)
    rests = {"source_rest": Rest.of(source), "driving_rest": Rest.of(driver)}
    whole = retarget(driver, coverage=Coverage.of(source), **rests).motion
    for row in (0, 57, 133):
        one = retarget(driver.select(slice(row, row + 1)), coverage=Coverage.of(source), **rests).motion
        for name in MOTION_ARRAYS:
            np.testing.assert_array_equal(getattr(one, name)[0], getattr(whole, name)[row], err_msg=name)


def test_rest_of_the_driver_becomes_rest_of_the_source() -> None:
    source = make_track(neutral=0.05)
    driver = make_track(identity=2.0, neutral=0.2, turned_deg=20, width_cm=12, distance_cm=90, seed=3)
    rest = Rest.of(driver)
    still = driver.select(slice(0, 1))
    still = replace(
        still,
        rotation=rest.rotation[None],
        translation=rest.translation[None],
        expression=rest.expression[None],
        gaze=rest.gaze[None],
        sway=rest.sway[None],
    )
    source_rest = Rest.of(source)
    motion = retarget(still, source_rest=source_rest, driving_rest=rest, coverage=Coverage.of(source)).motion
    for name in MOTION_ARRAYS:
        np.testing.assert_allclose(
            getattr(motion, name)[0], getattr(source_rest, name), atol=1e-5, err_msg=name
        )


def test_neutral_is_found_between_blinks_and_words() -> None:
    track = make_track(neutral=0.03)
    rest = Rest.of(track)
    assert np.abs(rest.expression - 0.035).max() < 0.01
    assert rest.reach[BLINK[0]] > 0.85


def test_a_full_blink_stays_a_full_blink() -> None:
    source = make_track(full_blink=0.95)
    driver = make_track(full_blink=0.72, identity=2.0)  # a tracker that underrates this driver's blinks
    motion = to_source(driver, source)
    assert motion.expression[:, BLINK].max() > 0.9
    open_frames = driver.expression[:, BLINK[0]] < 0.05
    assert motion.expression[open_frames][:, BLINK].max() < 0.06


def test_pose_travels_relative_to_rest() -> None:
    source = make_track(yaw_deg=30)
    driver = make_track(identity=2.0, turned_deg=25, yaw_deg=10)
    motion = to_source(driver, source)
    way = np.degrees(head_angles(motion.rotation)[:, 0] - head_angles(Rest.of(source).rotation[None])[0, 0])
    asked = np.degrees(head_angles(driver.rotation)[:, 0] - head_angles(Rest.of(driver).rotation[None])[0, 0])
    assert np.abs(way - asked).max() < 1.5
    assert np.corrcoef(way, asked)[0, 1] > 0.999


def test_translation_scales_with_the_head_and_keeps_the_apparent_size() -> None:
    source = make_track(width_cm=16, distance_cm=50)
    driver = make_track(width_cm=8, distance_cm=100, identity=2.0)
    motion = to_source(driver, source)
    middle = np.abs(np.sin(driver.time_s)) < 0.3  # well inside the coverage
    rest_x, drv_x = Rest.of(source).translation[0], Rest.of(driver).translation[0]
    np.testing.assert_allclose(
        (motion.translation[middle, 0] - rest_x), 2 * (driver.translation[middle, 0] - drv_x), atol=0.02
    )
    ratio = motion.translation[:, 2] / Rest.of(source).translation[2]
    np.testing.assert_allclose(ratio, driver.translation[:, 2] / Rest.of(driver).translation[2], atol=0.01)


def test_pose_beyond_the_coverage_is_bent_and_reported() -> None:
    source, driver = make_track(yaw_deg=12), make_track(identity=2.0, yaw_deg=45)
    result = retarget(driver, source_rest=Rest.of(source), coverage=Coverage.of(source))
    yaw = np.degrees(head_angles(result.motion.rotation)[:, 0])
    low, high = np.degrees(Coverage.of(source).angles[:, 0])
    margin = 0.12 * (high - low)
    assert high < yaw.max() <= high + margin + 1e-6
    assert low > yaw.min() >= low - margin - 1e-6
    (sentence,) = [s for s in result.warnings if "pose was limited" in s]
    assert f"(yaw to {low - margin:.0f}..{high + margin:.0f} degrees in " in sentence
    asked = np.degrees(head_angles(driver.rotation)[:, 0])
    assert np.abs(np.diff(yaw)).max() <= 1.05 * np.abs(np.diff(asked)).max()  # bent, never jumping


def test_expression_beyond_the_coverage_is_bent_and_reported() -> None:
    source = make_track()
    driver = make_track(identity=2.0)
    wide = driver.expression.copy()
    wide[50:100, BROW] = 0.9
    result = retarget(
        replace(driver, expression=wide), source_rest=Rest.of(source), coverage=Coverage.of(source)
    )
    assert result.motion.expression[:, BROW].max() < 0.1
    assert any("browInnerUp" in sentence and "25 %" in sentence for sentence in result.warnings)


def test_strengths() -> None:
    source, driver = make_track(yaw_deg=40), make_track(identity=2.0)
    rest = Rest.of(source)
    still = to_source(driver, source, expression_strength=0.0, pose_strength=0.0, blink=0.0)
    np.testing.assert_allclose(still.rotation, np.tile(rest.rotation, (len(driver), 1)), atol=1e-9)
    np.testing.assert_allclose(still.translation, np.tile(rest.translation, (len(driver), 1)), atol=1e-9)
    np.testing.assert_allclose(still.sway, np.broadcast_to(rest.sway, still.sway.shape), atol=1e-6)
    moving = [SMILE, JAW, *BLINK]
    assert np.abs(still.expression[:, moving] - rest.expression[moving]).max() < 1e-6
    full, half = to_source(driver, source), to_source(driver, source, expression_strength=0.5)
    np.testing.assert_allclose(
        half.expression[:, JAW] - rest.expression[JAW],
        (full.expression[:, JAW] - rest.expression[JAW]) / 2,
        atol=0.02,
    )
    np.testing.assert_array_equal(half.expression[:, BLINK], full.expression[:, BLINK])


def test_mouth_only_moves_nothing_else() -> None:
    source, driver = make_track(), make_track(identity=2.0)
    motion = to_source(driver, source, mouth_only=True)
    assert np.ptp(motion.expression[:, JAW]) > 0.3
    for name in ("rotation", "translation", "gaze", "sway"):
        assert np.ptp(getattr(motion, name), axis=0).max() < 1e-9, name
    assert np.ptp(motion.expression[:, (*BLINK, BROW)], axis=0).max() < 1e-9


def test_gaze_to_the_camera_turns_against_the_head() -> None:
    source, driver = make_track(yaw_deg=30), make_track(identity=2.0, yaw_deg=20)
    wide = replace(Coverage.of(source), gaze=np.array([[-1.0, -1.0], [1.0, 1.0]]))
    rest = Rest.of(source)
    motion = retarget(driver, source_rest=rest, coverage=wide, controls=Controls(gaze="camera")).motion
    yaw = head_angles(motion.rotation)[:, 0]
    assert np.corrcoef(yaw, motion.gaze[:, 0, 0])[0, 1] < -0.9
    here = camera_direction(motion.rotation, motion.translation)
    there = camera_direction(rest.rotation[None], rest.translation[None])
    np.testing.assert_allclose(motion.gaze[:, 0] - rest.gaze[0], here - there, atol=1e-5)


def test_camera_direction_of_a_frontal_head_is_straight_ahead() -> None:
    ahead = camera_direction(np.zeros((1, 3)), np.array([[0.0, 0.0, 60.0]]))
    np.testing.assert_allclose(ahead, 0, atol=1e-12)
    right = camera_direction(head_rotation(np.array([[0.3, 0.0, 0.0]])), np.array([[0.0, 0.0, 60.0]]))
    np.testing.assert_allclose(right, [[-0.3, 0.0]], atol=1e-9)


def test_head_angles_agree_with_the_camera_convention() -> None:
    angles = np.array([[0.4, -0.3, 0.0], [-0.2, 0.1, 0.0], [0.0, 0.0, 0.25]])
    np.testing.assert_allclose(yaw_pitch_roll(head_rotation(angles)), angles, atol=1e-9)
    np.testing.assert_allclose(head_angles(head_rotation(angles)), angles, atol=1e-9)


def test_frames_without_a_face_do_not_count_and_are_named() -> None:
    source, driver = make_track(), make_track(identity=2.0)
    is_tracked = np.ones(len(driver), bool)
    is_tracked[::4] = False
    garbage = driver.expression.copy()
    garbage[::4] = 1.0
    driver = replace(driver, is_tracked=is_tracked, expression=garbage)
    result = retarget(driver, source_rest=Rest.of(source), coverage=Coverage.of(source))
    assert result.warnings == (
        "the driver shows no face in 25 % of the frames: the avatar holds its last state there",
    )
    assert len(result.motion) == len(driver)
    with pytest.raises(NoFaceError, match="no frame shows a face"):
        retarget(
            replace(driver, is_tracked=np.zeros(len(driver), bool)),
            source_rest=Rest.of(source),
            coverage=Coverage.of(source),
        )


@pytest.mark.parametrize(
    "values", [{"expression_strength": -1.0}, {"pose_strength": 9.0}, {"blink": float("nan")}, {"gaze": "up"}]
)
def test_impossible_controls_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        Controls(**values)  # type: ignore[arg-type]


# Blendshape tables


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_arkit_round_trip(tmp_path: Path) -> None:
    track = make_track(length=120)
    track = replace(
        track, expression=np.clip(track.expression + looks_from_gaze(track.gaze), 0, 1).astype(np.float32)
    )
    again = read_arkit_csv(write(tmp_path / "take.csv", write_arkit_csv(track)))
    np.testing.assert_allclose(again.time_s, track.time_s, atol=1e-6)
    np.testing.assert_allclose(again.expression, track.expression, atol=1e-6)
    np.testing.assert_allclose(again.rotation, track.rotation, atol=1e-6)
    np.testing.assert_allclose(again.gaze, track.gaze, atol=1e-6)
    motion = to_source(again, make_track(yaw_deg=30))
    assert np.isfinite(motion.translation).all()
    assert np.ptp(np.degrees(head_angles(motion.rotation)[:, 0])) > 20


def test_a_table_as_an_app_writes_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / "take.csv",
        "\ufeffTimecode,BlendshapeCount,EyeBlinkLeft,JAWOPEN,mouthsmileleft,HeadYaw,HeadPitch,HeadRoll\r\n"
        "23:59:59:58.500,61,0.1,0.2,0.3,0.1,0,0\r\n"
        "23:59:59:59.500,61,0.2,0.4,0.3,0.2,0,0\r\n"
        "00:00:00:00.500,0\r\n"
        "00:00:00:02.500,61,1.2,0.4,0.3,0.3,0,0\r\n",
    )
    track = read_arkit_csv(path)
    np.testing.assert_allclose(track.time_s, np.array([0, 1, 2, 4]) / 60, atol=1e-9)
    assert track.frame_index.tolist() == [0, 1, 2, 4]
    assert track.is_tracked.tolist() == [True, True, False, True]
    np.testing.assert_allclose(track.expression[:, BLINK[0]], [0.1, 0.2, 0.2, 1.0])
    np.testing.assert_allclose(track.expression[:, JAW], [0.2, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(head_angles(track.rotation)[:, 0], [0.1, 0.2, 0.2, 0.3], atol=1e-9)


@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60])
def test_the_frame_rate_is_read_off_the_frame_numbers(tmp_path: Path, rate: int) -> None:
    rows = [f"00:00:{i // rate:02d}:{i % rate:02d},52,0.5" for i in range(3 * rate)]
    track = read_arkit_csv(
        write(tmp_path / "take.csv", "\n".join(["Timecode,BlendshapeCount,JawOpen", *rows]))
    )
    np.testing.assert_allclose(np.diff(track.time_s), 1 / rate, atol=1e-9)


def test_plain_seconds_degrees_and_missing_eye_angles(tmp_path: Path) -> None:
    text = "Timecode,EyeLookOutLeft,EyeLookInRight,HeadYaw\n" + "".join(
        f"{i / 30},0.5,0.5,{i}\n" for i in range(20)
    )
    track = read_arkit_csv(write(tmp_path / "take.csv", text))
    np.testing.assert_allclose(np.diff(track.time_s), 1 / 30, atol=1e-6)
    np.testing.assert_allclose(head_angles(track.rotation)[:, 0], np.radians(np.arange(20)), atol=1e-9)
    np.testing.assert_allclose(track.gaze[:, :, 0], LOOK_FULL / 2, atol=1e-6)


def test_an_app_with_opposite_signs_is_turned_round(tmp_path: Path) -> None:
    track = make_track(length=100)
    track = replace(
        track, expression=np.clip(track.expression + looks_from_gaze(track.gaze), 0, 1).astype(np.float32)
    )
    yaw = head_angles(track.rotation) * (-1, 1, 1)
    other = replace(track, rotation=head_rotation(yaw), gaze=track.gaze * np.array([-1, 1], np.float32))
    again = read_arkit_csv(write(tmp_path / "take.csv", write_arkit_csv(other)))
    np.testing.assert_allclose(again.rotation, track.rotation, atol=1e-6)
    np.testing.assert_allclose(again.gaze, track.gaze, atol=1e-6)


def test_looks_and_gaze_are_inverse() -> None:
    gaze = np.random.default_rng(0).uniform(-0.4, 0.4, (20, 2, 2))
    np.testing.assert_allclose(gaze_from_looks(looks_from_gaze(gaze)), gaze, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'Timecode'"),
        ("hello world\n", "no column 'Timecode'"),
        ("Timecode,BlendshapeCount,HeadYaw\n00:00:00:00,1,0\n", "none of the 52"),
        ("Timecode,JawOpen\n", "no frames"),
        ("Timecode,JawOpen\n00:00:00:00,0.1\n00:00:00:01,many\n", "line 3: 'many' in column jawOpen"),
        ("Timecode,JawOpen\n00:00:00:00,0.1\n\nsoon,0.1\n", "line 4: 'soon' is no time code"),
        ("Timecode,JawOpen\n00:00:00:05,0.1\n00:00:00:04,0.1\n", "line 3: the time code does not go forward"),
        ("Timecode,JawOpen\n00:00:00:00,0.1,0.2\n", "line 2: 3 cells"),
        ("Timecode,JawOpen\n00:00:00:75,0.1\n", "frame 75 of a second does not fit 60"),
        ("Timecode,BlendshapeCount,JawOpen\n00:00:00:00,0,0\n", "no row with a face"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_arkit_csv(write(tmp_path / "take.csv", text))


def test_a_video_named_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "take.csv"
    path.write_bytes(bytes(range(128, 256)) * 10)
    with pytest.raises(InputError, match="cannot be read as text"):
        read_arkit_csv(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_arkit_csv(tmp_path / "nothing.csv")
