"""The capture check: every limit, the verdict, the guide that says the same, and the measurements themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from clips import make_clip
from omokage.capture.advice import ADVICE
from omokage.capture.check import assess, check_recording
from omokage.capture.contact_sheet import LEVEL_COLORS, bar_position, contact_sheet
from omokage.capture.face_reading import read_face
from omokage.capture.measure import (
    count_blinks,
    count_mouth_shapes,
    measure_recording,
    measure_sound,
    summarize_faces,
)
from omokage.capture.measurements import (
    BackgroundMeasurements,
    CaptureMeasurements,
    CaptureSample,
    FaceMeasurements,
    SoundMeasurements,
    Span,
)
from omokage.capture.report import CaptureReport, Finding
from omokage.capture.stability import BackgroundWatch, CutDetector
from omokage.capture.thresholds import CaptureThresholds
from omokage.errors import CaptureRefusedError, MediaError
from omokage.geometry.camera import rotation_matrix, yaw_pitch_roll
from omokage.media.clip import Audio, ClipInfo, Frame, Image
from omokage.tracking.landmarks import Landmarks

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "capture-guide.md"

CLIP = ClipInfo(
    path=Path("me.mp4"),
    width=1920,
    height=1080,
    frame_rate=Fraction(30),
    frame_count=3600,
    duration_s=120.0,
    rotation_deg=0,
    is_variable_rate=False,
    pixel_format="yuv420p",
    has_audio=True,
)
FACE = FaceMeasurements(
    height_px=400.0,
    width_px=380.0,
    pupil_distance_px=180.0,
    picture_share=0.45,
    outside_share=0.0,
    sharpness=40.0,
    luma=130.0,
    contrast=35.0,
    clipped_share=0.001,
    unevenness=0.1,
    yaw_deg=Span(-25.0, 25.0),
    pitch_deg=Span(-12.0, 12.0),
    roll_deg=Span(-8.0, 8.0),
    mouth_opening=Span(0.0, 0.3),
    mouth_width=Span(0.5, 0.7),
    mouth_shapes=14,
    blinks=20,
    gaze_yaw_deg=Span(-20.0, 20.0),
    gaze_pitch_deg=Span(-8.0, 8.0),
    neutral_s=4.0,
)
GOOD = CaptureMeasurements(
    clip=CLIP,
    face_share=1.0,
    second_face_share=0.0,
    usable_s=120.0,
    cut_times_s=(),
    repeated_share=0.0,
    face=FACE,
    background=BackgroundMeasurements(camera_travel=0.001, changed_share=0.0),
    sound=SoundMeasurements(level_dbfs=-20.0, above_noise_db=40.0, clipped_share=0.0, sample_rate=48000),
)


def changed(part: str = "", **values: Any) -> CaptureMeasurements:
    """The good recording with some measurements replaced, in the record `part` or at the top."""
    return replace(GOOD, **({part: replace(getattr(GOOD, part), **values)} if part else values))


def finding_of(report: CaptureReport, name: str) -> Finding:
    return next(finding for finding in report.findings if finding.name == name)


# --- verdict, findings, advice -----------------------------------------------------------------------------------


def test_a_good_recording_gets_no_advice() -> None:
    report = assess(GOOD)
    assert report.verdict == "good"
    assert {finding.level for finding in report.findings} == {"ok"}
    assert not any(finding.advice for finding in report.findings)
    report.raise_if_refused()


FAULTS = [
    (changed(face_share=0.97), "face found", "advice", "uncovered"),
    (changed(face_share=0.69), "face found", "refuse", "uncovered"),
    (changed(second_face_share=0.03), "second face", "advice", "alone"),
    (changed(second_face_share=0.11), "second face", "refuse", "alone"),
    (changed(usable_s=59.0), "usable face", "advice", "two findings above"),
    (replace(changed("clip", duration_s=1.5), usable_s=1.5), "usable face", "refuse", "longer"),
    (changed("face", width_px=59.0), "face width", "refuse", "closer"),
    (changed("face", height_px=199.0), "face, chin to brow", "advice", "closer"),
    (changed("face", pupil_distance_px=79.0), "pupil distance", "advice", "closer"),
    (changed("face", picture_share=0.24), "face in the picture", "advice", "Move closer"),
    (changed("face", picture_share=0.76), "face in the picture", "advice", "Move back"),
    (changed("face", outside_share=0.06), "head leaves picture", "advice", "room above the hair"),
    (changed("face", sharpness=11.0), "sharpness", "advice", "lens"),
    (changed("face", luma=59.0), "brightness", "advice", "lamp behind the camera"),
    (changed("face", luma=201.0), "brightness", "advice", "Dim"),
    (changed("face", clipped_share=0.03), "black or white skin", "advice", "exposure"),
    (changed("face", contrast=14.0), "contrast", "advice", "windows"),
    (changed("face", unevenness=0.36), "uneven light", "advice", "lamp behind the camera"),
    (changed("face", yaw_deg=Span(-14.0, 15.0)), "turning, left to right", "advice", "Turn the head"),
    (changed("face", yaw_deg=Span(-41.0, 15.0)), "farthest turn", "advice", "less far"),
    (changed("face", yaw_deg=Span(-15.0, 41.0)), "farthest turn", "advice", "less far"),
    (changed("face", pitch_deg=Span(10.0, 24.0)), "nodding, up and down", "advice", "chin"),
    (changed("face", roll_deg=Span(-4.0, 5.0)), "tilting, side to side", "advice", "Tilt"),
    (changed("face", mouth_opening=Span(0.0, 0.19)), "widest mouth", "advice", "'ah'"),
    (changed("face", mouth_width=Span(0.5, 0.59)), "mouth width, range", "advice", "'ee' and 'oo'"),
    (changed("face", mouth_shapes=7), "mouth shapes", "advice", "Talk more"),
    (changed("face", blinks=2), "blinks", "advice", "Blink"),
    (changed("face", gaze_yaw_deg=Span(-9.0, 10.0)), "gaze, left to right", "advice", "eyes wander"),
    (changed("face", gaze_pitch_deg=Span(0.0, 7.0)), "gaze, up and down", "advice", "ceiling"),
    (changed("face", neutral_s=0.4), "face at rest", "advice", "mouth closed"),
    (changed(cut_times_s=(3.2, 8.0)), "cuts", "refuse", "3.2 s, 8.0 s"),
    (changed("background", camera_travel=0.011), "camera movement", "advice", "tripod"),
    (changed("background", changed_share=0.031), "background movement", "advice", "still wall"),
    (changed("clip", frame_rate=Fraction(15)), "frame rate", "advice", "25 or 30"),
    (changed("clip", is_variable_rate=True), "variable frame rate", "advice", "constant"),
    (changed(repeated_share=0.06), "repeated frames", "advice", "Close other programs"),
    (changed("clip", height=480), "shorter side", "advice", "720p"),
    (changed("sound", level_dbfs=-36.0), "loudness of speech", "advice", "Speak up"),
    (changed("sound", level_dbfs=-8.0), "loudness of speech", "advice", "Move the microphone away"),
    (changed("sound", level_dbfs=-math.inf), "loudness of speech", "advice", "silent"),
    (changed(sound=None), "loudness of speech", "advice", "no sound track"),
    (changed("sound", above_noise_db=19.0), "speech above noise", "advice", "closer"),
    (changed("sound", clipped_share=0.002), "clipped sound", "advice", "gain"),
    (changed("sound", sample_rate=8000), "sample rate", "advice", "48000"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("measurements", "name", "level", "words"), FAULTS, ids=[f"{f[1]}-{f[3]}" for f in FAULTS]
)
def test_each_fault_is_named_with_its_fix(
    measurements: CaptureMeasurements, name: str, level: str, words: str
) -> None:
    report = assess(measurements)
    finding = finding_of(report, name)
    assert finding.level == level
    assert words in finding.advice
    others = [f.name for f in report.findings if f.level != "ok" and f is not finding]
    assert others == []
    expected = "refuse" if level == "refuse" else "good" if finding.group == "Sound" else "usable"
    assert report.verdict == expected


def test_every_advice_is_exercised() -> None:
    assert {fault[1] for fault in FAULTS} == set(ADVICE)


def test_a_value_on_the_limit_is_good_enough() -> None:
    t = CaptureThresholds()
    face = replace(FACE, height_px=t.min_face_height_px, luma=t.max_luma, blinks=t.min_blinks)
    measurements = changed(face=face, face_share=t.min_face_share, usable_s=t.min_usable_s)
    assert assess(replace(measurements, second_face_share=t.max_second_face_share)).verdict == "good"


def test_thresholds_can_be_replaced() -> None:
    assert assess(changed("face", blinks=2), CaptureThresholds(min_blinks=2)).verdict == "good"


def test_no_face_is_refused_with_nothing_said_about_faces() -> None:
    report = assess(changed(face=None, background=None, face_share=0.0, usable_s=0.0))
    assert report.verdict == "refuse"
    groups = {finding.group for finding in report.findings}
    assert groups == {"Person", "Stillness", "File", "Sound"}
    with pytest.raises(
        CaptureRefusedError,
        match=r"me\.mp4 cannot become an avatar: face found 0 % \(at least 98, refused below 70\), usable",
    ):
        report.raise_if_refused()


def test_text_is_complete_and_fits_a_terminal() -> None:
    report = assess(changed("face", luma=40.0))
    text = report.to_text()
    assert text.startswith(
        "me.mp4: 1920 x 1080 px, 120.0 s, 30 frames a second, with sound\nVerdict: USABLE."
    )
    assert all(finding.name in text and finding.threshold in text for finding in report.findings)
    assert (
        "  advice  brightness              40 of 255           (60 to 200)\n          Move the lamp" in text
    )
    assert max(map(len, text.splitlines())) <= 100


def test_json_holds_the_same_in_plain_values() -> None:
    report = assess(changed("sound", level_dbfs=-math.inf))
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["verdict"] == "good"
    assert values["clip"]["path"] == "me.mp4"
    assert values["clip"]["frame_rate"] == 30
    by_name = {finding["name"]: finding for finding in values["findings"]}
    assert list(by_name) == [finding.name for finding in report.findings]
    assert by_name["loudness of speech"]["value"] is None
    assert by_name["brightness"] == {
        "group": "Picture", "name": "brightness", "value": 130.0, "unit": "of 255", "threshold": "60 to 200",
        "level": "ok", "advice": "", "low": 60.0, "high": 200.0,
    }  # fmt: skip


def test_the_printed_guide_says_the_same() -> None:
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    expected = []
    for finding in assess(GOOD).findings:
        what = f"{finding.name} ({finding.unit})" if finding.unit else finding.name
        advice = " ".join(sentence for sentence in ADVICE[finding.name] if sentence)
        expected.append(f"| {what} | {finding.threshold} | {advice} |")
    assert [row for row in rows if row.count("|") == 4 and "| limit |" not in row] == expected


def test_contact_sheet_shows_samples_levels_and_advice() -> None:
    blue = np.full((180, 320, 3), (0, 0, 255), np.uint8)
    samples = [CaptureSample("sharpest neutral", 1.0, blue)] * 6
    good = np.asarray(contact_sheet(assess(GOOD), samples))
    bad = np.asarray(contact_sheet(assess(changed(cut_times_s=(1.0,))), []))

    def shows(sheet: Image, color: str) -> int:
        return int((sheet == np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])).all(axis=2).sum())

    assert good.shape[1] == bad.shape[1] == 1240
    assert 0.95 < shows(good, "#0000ff") / (6 * 230 * 129) < 1.05
    assert shows(good, LEVEL_COLORS["refuse"]) == shows(good, LEVEL_COLORS["advice"]) == 0
    assert shows(good, LEVEL_COLORS["ok"]) > 10_000
    assert shows(bad, LEVEL_COLORS["refuse"]) > 500


def test_bars_put_the_limits_where_the_ticks_are() -> None:
    report = assess(GOOD)
    brightness, sharpness = finding_of(report, "brightness"), finding_of(report, "sharpness")
    assert [bar_position(brightness, v) for v in (60, 130, 200, 400)] == [0.25, 0.5, 0.75, 1.0]
    assert [bar_position(sharpness, v) for v in (0, 12, 100)] == [0.0, 0.5, 1.0]
    assert [bar_position(finding_of(report, "cuts"), v) for v in (0, 1)] == [0.0, 1.0]


# --- one face in one frame ---------------------------------------------------------------------------------------


def face_points(
    rotation: Sequence[float] = (0.0, 0.0, 0.0), **moves: tuple[int, tuple[float, ...]]
) -> NDArray[np.float32]:
    """A schematic head: 478 points on an ellipsoid, the named ones where they belong; 200 px wide, in 512 x 512."""
    rng = np.random.default_rng(3)
    unit = rng.normal(size=(478, 3))
    points = 0.5 * unit / np.linalg.norm(unit, axis=1, keepdims=True) * (200, 260, 100)
    points[:, 2] = -np.abs(points[:, 2])
    at = {
        10: (0, -125, -30), 2: (0, 25, -30), 152: (0, 130, -10), 168: (0, -35, -50),
        105: (-45, -60, -40), 334: (45, -60, -40), 234: (-100, 0, 0), 454: (100, 0, 0),
        33: (-65, -35, -20), 133: (-25, -35, -20), 362: (25, -35, -20), 263: (65, -35, -20),
        159: (-45, -41, -20), 145: (-45, -29, -20), 386: (45, -41, -20), 374: (45, -29, -20),
        468: (-45, -35, -20), 473: (45, -35, -20),
        61: (-35, 65, -30), 291: (35, 65, -30), 13: (0, 64, -40), 14: (0, 66, -40),
    }  # fmt: skip
    for number, place in (at | dict(moves.values())).items():
        points[number] = place
    turned = points @ rotation_matrix(np.array(rotation)).T
    return np.asarray(turned + np.array([256, 256, 0]), dtype=np.float32)


@pytest.fixture(scope="module")
def texture() -> Image:
    """Fine grey texture around luma 128 with 64 px blobs under it."""
    rng = np.random.default_rng(0)
    fine = cv2.GaussianBlur(rng.normal(size=(512, 512)), (0, 0), 1.0)
    coarse = cv2.GaussianBlur(rng.normal(size=(512, 512)), (0, 0), 20.0)
    mixed = 128 + 20 * fine / fine.std() + 20 * coarse / coarse.std()
    return np.repeat(np.clip(mixed, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("rotation", [(0.0, 0.5, 0.0), (0.4, 0.0, 0.0), (0.0, 0.0, 0.3), (-0.2, -0.4, 0.2)])
def test_head_angles_agree_with_the_camera_conventions(rotation: tuple[float, ...], texture: Image) -> None:
    reading = read_face(texture, face_points(rotation), 0.0)
    expected = np.degrees(yaw_pitch_roll(np.array(rotation)))
    assert np.allclose([reading.yaw_deg, reading.pitch_deg, reading.roll_deg], expected, atol=0.1)


@pytest.mark.parametrize("rotation", [(0.0, 0.0, 0.0), (0.2, 0.5, 0.1)])
def test_mouth_eyes_and_gaze_do_not_depend_on_the_pose(rotation: tuple[float, ...], texture: Image) -> None:
    points = face_points(
        rotation, low_lip=(14, (0, 90, -40)), left=(468, (-41, -37, -20)), right=(473, (49, -37, -20))
    )
    reading = read_face(texture, points, 0.0)
    assert reading.mouth_opening == pytest.approx(26 / 130, abs=1e-4)
    assert reading.mouth_width == pytest.approx(70 / 130, abs=1e-4)
    assert reading.eye_opening == pytest.approx(12 / 40, abs=1e-4)
    assert reading.gaze_yaw_deg == pytest.approx(math.degrees(math.asin(2.5 * 4 / 40)), abs=0.01)
    assert reading.gaze_pitch_deg == pytest.approx(math.degrees(math.asin(2.5 * 2 / 40)), abs=0.01)


def test_sizes_and_light_of_a_face(texture: Image) -> None:
    points = face_points()
    reading = read_face(texture, points, 1.5)
    assert reading.time_s == 1.5
    assert reading.height_px == pytest.approx(190)
    assert reading.width_px == pytest.approx(200)
    assert reading.pupil_distance_px == pytest.approx(90)
    assert reading.picture_share == pytest.approx(260 / 512, abs=0.02)
    assert not reading.is_outside
    assert read_face(texture, points - np.float32([130, 0, 0]), 0.0).is_outside
    assert reading.luma == pytest.approx(128, abs=6)
    assert reading.clipped_share == 0 and reading.unevenness < 0.1
    lit = texture.astype(float) * np.linspace(0.1, 1.9, 512)[:, None]
    assert read_face(np.clip(lit, 0, 255).astype(np.uint8), points, 0.0).unevenness > 0.15
    assert read_face(np.clip(3.0 * texture - 128, 0, 255).astype(np.uint8), points, 0.0).clipped_share > 0.2


def test_sharpness_falls_with_blur_but_not_with_light(texture: Image) -> None:
    points = face_points()

    def sharpness(image: NDArray[np.floating] | Image) -> float:
        return read_face(np.asarray(image).round().astype(np.uint8), points, 0.0).sharpness

    assert sharpness(0.5 * texture) == pytest.approx(sharpness(texture), rel=0.05)
    assert sharpness(cv2.GaussianBlur(texture, (0, 0), 2.0)) < 0.2 * sharpness(texture)


def test_blinks_are_counted_once_each() -> None:
    eyes = np.ones(100)
    eyes[10:14] = 0.1
    eyes[14] = 0.6  # not yet open again
    eyes[15] = 0.4
    eyes[40], eyes[99] = 0.3, 0.2
    assert count_blinks(eyes) == 3
    assert count_blinks(np.full(50, 0.8)) == 0


def test_mouth_shapes_are_occupied_cells() -> None:
    opening = np.repeat([0.01, 0.05, 0.35], 20)
    assert count_mouth_shapes(opening, np.full(60, 0.6)) == 3
    assert count_mouth_shapes(opening, np.tile([0.5, 0.6, 0.6, 0.6, 0.8], 12)) == 9
    assert count_mouth_shapes(np.append(opening, 0.2), np.full(61, 0.6)) == 3  # one frame is no shape


def test_readings_become_medians_ranges_and_seconds(texture: Image) -> None:
    rest = read_face(texture, face_points(), 0.0)
    turned = [replace(rest, yaw_deg=float(yaw)) for yaw in np.linspace(-30, 30, 61)]
    blurred = [replace(rest, sharpness=0.0)] * 9
    face = summarize_faces([*turned, *blurred], scale=2.0, spacing_s=0.5)
    assert face.height_px == pytest.approx(2 * rest.height_px)
    assert face.sharpness == rest.sharpness
    assert face.yaw_deg.width == pytest.approx(57, abs=1)
    assert face.neutral_s == pytest.approx(0.5 * (19 + 9))


# --- sound -------------------------------------------------------------------------------------------------------


def in_pieces(samples: NDArray[np.float32], sample_rate: int) -> list[Audio]:
    """As a decoder gives them: the blocks in which levels are measured begin anywhere in them."""
    return [Audio(part, sample_rate) for part in np.split(samples, range(1024, len(samples), 1024))]


def test_sound_levels() -> None:
    time = np.arange(48000 * 4) / 48000
    speech = 0.1 * np.sqrt(2) * np.sin(2 * np.pi * 300 * time) * (time % 1 < 0.7)
    noise = 0.001 * np.random.default_rng(0).normal(size=len(time))
    sound = measure_sound(in_pieces((speech + noise)[:, None].astype(np.float32), 48000))
    assert sound.level_dbfs == pytest.approx(-20, abs=0.1)
    assert sound.above_noise_db == pytest.approx(40, abs=0.5)
    assert sound.clipped_share == 0
    loud = measure_sound(in_pieces(np.clip(20 * speech, -1, 1)[:, None].astype(np.float32), 48000))
    assert loud.clipped_share > 0.3


def test_a_silent_track_is_told_from_a_quiet_one() -> None:
    assert measure_sound(in_pieces(np.zeros((16000, 2), np.float32), 16000)).level_dbfs == -math.inf
    quiet = np.full((16000, 1), 0.01, np.float32)
    assert measure_sound(in_pieces(quiet, 16000)).level_dbfs == pytest.approx(-40, abs=0.1)
    assert measure_sound([]) is None


# --- cuts, camera, background ------------------------------------------------------------------------------------


def scene(seed: int) -> Image:
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(0, 256, (12, 16, 3)).astype(np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(coarse, dtype=np.uint8)


def with_disc(image: Image, x: float, radius: int = 40) -> Image:
    return np.asarray(cv2.circle(image.copy(), (round(x), 96), radius, (230, 180, 150), -1), dtype=np.uint8)


def cuts_in(pictures: Sequence[Image], face_x: Callable[[Image], float | None]) -> tuple[float, ...]:
    """Cut times at 25 frames a second; `face_x` stands in for the landmarks: where the face of a picture is."""

    def landmarks_of(image: Image) -> NDArray[np.float32] | None:
        x = face_x(image)
        return None if x is None else (face_points() * 0.3 + np.float32([x - 77, 20, 0])).astype(np.float32)

    detector = CutDetector(landmarks_of)
    for index, picture in enumerate(pictures):
        detector.add(Frame(index, index / 25, picture))
    return detector.cut_times_s


def disc_x(image: Image) -> float:
    is_disc = (np.abs(image.astype(int) - (230, 180, 150)) < 8).all(axis=2)
    return float(np.nonzero(is_disc)[1].mean())


def test_a_new_scene_is_a_cut() -> None:
    pictures = [with_disc(scene(1), 100 + i) for i in range(12)] + [
        with_disc(scene(2), 150 - i) for i in range(12)
    ]
    assert cuts_in(pictures, disc_x) == (12 / 25,)
    assert cuts_in(pictures, lambda _: None) == (12 / 25,)  # the face may vanish, too


def test_a_jump_within_one_scene_is_a_cut() -> None:
    pictures = [with_disc(scene(1), 80 + 0.5 * i) for i in range(12)] + [
        with_disc(scene(1), 130 + 0.5 * i) for i in range(12)
    ]
    assert cuts_in(pictures, disc_x) == (12 / 25,)


def test_a_quick_shake_of_the_head_is_not_a_cut() -> None:
    assert cuts_in([with_disc(scene(1), 128 + 60 * math.sin(i / 2)) for i in range(40)], disc_x) == ()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_is_not_a_cut(length: int) -> None:
    pictures = [with_disc(scene(1), 100 + i) for i in range(24)]
    for index in range(10, 10 + length):
        pictures[index] = np.full_like(pictures[index], 255)
    assert cuts_in(pictures, lambda image: None if image.min() == 255 else disc_x(image)) == ()


def test_a_dip_to_black_breaks_the_take() -> None:
    pictures = [with_disc(scene(1), 100 + i) for i in range(30)]
    pictures[10:20] = [np.zeros_like(pictures[0])] * 10
    assert cuts_in(pictures, lambda image: disc_x(image) if image.any() else None) == (0.4, 0.8)


def test_a_screen_that_changes_behind_a_still_face_is_not_a_cut() -> None:
    pictures = [with_disc(scene(1 + index // 12), 100) for index in range(24)]
    assert cuts_in(pictures, disc_x) == ()


def test_a_lamp_switched_on_is_not_a_cut() -> None:
    dark = [(0.3 * with_disc(scene(1), 100 + i)).astype(np.uint8) for i in range(12)]
    lit = [with_disc(scene(1), 112 + i) for i in range(12)]
    assert cuts_in(dark + lit, lambda image: 100.0) == ()


def test_repeated_frames_are_counted() -> None:
    detector = CutDetector(lambda _: None)
    for index in range(21):
        detector.add(Frame(index, index / 25, with_disc(scene(1), 60 + 4 * (index // 2))))
    assert detector.repeated_share == pytest.approx(0.5)


def watched(pictures: Sequence[Image]) -> BackgroundMeasurements | None:
    """A person covers the middle of all pictures."""
    alpha = np.zeros((48, 64), np.float32)
    alpha[10:, 20:44] = 1.0
    watch = BackgroundWatch()
    for picture in pictures:
        watch.add(picture, alpha)
    return watch.measure()


def test_a_still_background_stays_still_behind_a_moving_person() -> None:
    found = watched([with_disc(scene(1), 128 + 20 * math.sin(i), radius=20) for i in range(10)])
    assert found is not None and found.camera_travel is not None
    assert found.camera_travel < 0.001
    assert found.changed_share == 0.0


def test_camera_travel_is_measured_and_undone() -> None:
    wide = cv2.resize(scene(1), None, fx=1.25, fy=1.25)
    found = watched([np.ascontiguousarray(wide[10:202, i : i + 256]) for i in range(14)])
    assert found is not None
    assert found.camera_travel == pytest.approx(13 / 256, rel=0.1)
    assert found.changed_share < 0.03


def test_something_moving_behind_the_person_is_seen() -> None:
    found = watched([with_disc(scene(1), 20 + 2 * i, radius=30) for i in range(10)])
    assert found is not None and found.camera_travel is not None
    assert found.camera_travel < 0.005
    assert found.changed_share > 0.03


def test_a_plain_wall_tells_nothing_about_the_camera() -> None:
    noise = np.random.default_rng(0).normal(0, 1.5, size=(6, 192, 256, 3))
    found = watched(list(np.clip(120 + noise, 0, 255).astype(np.uint8)))
    assert found == BackgroundMeasurements(camera_travel=None, changed_share=0.0)


def test_without_background_nothing_is_said() -> None:
    watch = BackgroundWatch()
    for _ in range(3):
        watch.add(scene(1), np.ones((48, 64), np.float32))
    assert watch.measure() is None


# --- whole recordings --------------------------------------------------------------------------------------------


def portrait(time_s: float, width: int, height: int) -> Image:
    """The astronaut's head, moving a little to and fro."""
    crop = skimage.data.astronaut()[0:256, 96:352]
    move = np.array([[width / 256, 0, 4 * math.sin(6 * time_s)], [0, height / 256, 0]])
    return np.asarray(
        cv2.warpAffine(crop, move, (width, height), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8
    )


def test_a_real_portrait_can_be_used(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "me.mp4", seconds=2.4, frame_rate=10, width=384, height=384, draw=portrait)
    seen: list[float] = []
    report = check_recording(path, on_progress=lambda progress: seen.append(progress.done / progress.total))
    assert report.verdict == "usable", report.to_text()
    assert finding_of(report, "face found").value == 100
    assert finding_of(report, "second face").value == 0
    assert finding_of(report, "face width").value == pytest.approx(150, rel=0.25)
    assert finding_of(report, "cuts").level == "ok"
    advised = {finding.name for finding in report.findings if finding.level == "advice"}
    assert {
        "usable face",
        "frame rate",
        "turning, left to right",
        "loudness of speech",
        "shorter side",
    } <= advised
    assert seen == sorted(seen) and seen[-1] == 1.0
    captions = {sample.caption for sample in report.samples}
    assert {"sharpest neutral", "turned left", "turned right", "widest mouth", "blink"} <= captions
    assert all(max(sample.image.shape) == 320 for sample in report.samples)


def test_two_people_are_refused(tmp_path: Path) -> None:
    def two(time_s: float, width: int, height: int) -> Image:
        one = portrait(time_s, width // 2, height)
        return np.concatenate([one, one[:, ::-1]], axis=1)

    report = check_recording(
        make_clip(tmp_path / "two.mp4", seconds=2.4, frame_rate=5, width=640, height=320, draw=two)
    )
    assert report.verdict == "refuse"
    assert finding_of(report, "second face").level == "refuse"
    assert "second person" in {sample.caption for sample in report.samples}


def test_no_face_is_refused(tmp_path: Path) -> None:
    report = check_recording(make_clip(tmp_path / "disc.mp4", seconds=1.0))
    assert report.verdict == "refuse"
    assert finding_of(report, "face found").value == 0
    assert [sample.caption for sample in report.samples] == ["no face found"]
    contact_sheet(report, report.samples)


def test_a_text_file_is_a_media_error(tmp_path: Path) -> None:
    (tmp_path / "me.mp4").write_text("hello")
    with pytest.raises(MediaError):
        check_recording(tmp_path / "me.mp4")


class FixedFace:
    """A landmark network that always answers the same, and a matte of nothing; counts how often they are asked."""

    def __init__(self, shift: float = 0.0) -> None:
        self.detected = self.matted = 0
        self._shift = np.float32([shift, 0, 0])

    def detect(self, image: Image) -> list[Landmarks]:
        self.detected += 1
        return [Landmarks((face_points() + self._shift) * np.float32(image.shape[1] / 512))]

    def reset(self) -> None: ...

    def matte(self, image: Image) -> NDArray[np.float32]:
        self.matted += 1
        return np.zeros(image.shape[:2], np.float32)


def test_long_recordings_are_sampled(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "long.mp4", seconds=26, frame_rate=50, width=64, height=64)
    backend = FixedFace()
    measured = measure_recording(path, landmark_backend=backend, matte_backend=backend).measurements
    assert 400 <= backend.detected <= 600
    assert 100 <= backend.matted <= 150
    assert measured.usable_s == pytest.approx(26, abs=0.1)
    assert isinstance(measured.face, FaceMeasurements)


def test_sizes_are_those_of_the_recording_not_of_the_decoded_picture(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "big.mp4", seconds=0.2, width=1920, height=1920)
    measured = measure_recording(path, landmark_backend=FixedFace(), matte_backend=FixedFace()).measurements
    assert measured.face is not None
    assert measured.face.width_px == pytest.approx(200 / 512 * 1920, rel=0.01)


def test_a_face_guessed_outside_the_picture_is_no_face(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "side.mp4", seconds=0.4)
    outside = FixedFace(shift=400.0)
    assert (
        measure_recording(path, landmark_backend=outside, matte_backend=outside).measurements.face_share == 0
    )
    edge = FixedFace(shift=240.0)
    measured = measure_recording(path, landmark_backend=edge, matte_backend=edge).measurements
    assert measured.face_share == 1.0
    assert measured.face is not None and measured.face.outside_share == 1.0
