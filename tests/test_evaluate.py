"""Evaluation on a drawn face with known landmarks: splits, regions, baselines, scores, reasons, report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.errors import InputError, InternalError
from omokage.evaluate.baselines import (
    choose_warp_rule,
    most_similar_frames,
    nearest_training_frame,
    predict,
    warp_by_landmarks,
    warped_training_frame,
)
from omokage.evaluate.plots import plot_over_time
from omokage.evaluate.protocol import (
    HeldOut,
    OtherSplits,
    Split,
    SplitScores,
    available_splits,
    other_splits,
    read_landmarks,
    region_box,
    region_mask,
    score,
    tail_split,
)
from omokage.evaluate.report import Evaluation, render_report
from omokage.evaluate.scores import Measurement, MethodScores
from omokage.evaluate.unet_baseline import parameter_count, train_plain_unet, width_for
from omokage.evaluate.verdict import judge
from omokage.evaluate.worst import explain_worst_frames
from omokage.metrics.image import psnr
from omokage.metrics.motion import (
    FACE_OVAL,
    LEFT_EYE,
    LEFT_IRIS,
    LIPS_INNER,
    LIPS_OUTER,
    RIGHT_EYE,
    RIGHT_IRIS,
)

SIZE, LENGTH, RATE = 96, 80, 25.0
SKIN, LIPS, TEETH, WHITE = (200, 150, 130), (170, 60, 60), (60, 20, 20), (235, 235, 235)
Frames = NDArray[np.uint8]


def _loop(center: tuple[float, float], radii: tuple[float, float], count: int) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([center[0] - radii[0] * np.sin(angle), center[1] - radii[1] * np.cos(angle)], axis=1)


def face_points(
    shift: tuple[float, float] = (0.0, 0.0), mouth: float = 1.0, eyes: float = 3.0
) -> NDArray[np.float64]:
    """A drawn face's landmarks (478, 2) px; `mouth` is half the opening of the lips, `eyes` of the lids."""
    inside = np.random.default_rng(7)
    points = np.array([48.0, 50.0]) + inside.uniform(-1, 1, (478, 2)) * [14, 20]
    points[list(FACE_OVAL)] = _loop((48, 50), (20, 28), len(FACE_OVAL))
    points[list(LIPS_OUTER)] = _loop((48, 66), (9, mouth + 3), len(LIPS_OUTER))
    points[list(LIPS_INNER)] = _loop((48, 66), (8, mouth), len(LIPS_INNER))
    points[13], points[14], points[61], points[291] = (48, 66 - mouth), (48, 66 + mouth), (39, 66), (57, 66)
    for outline, iris, x, corners in (
        (RIGHT_EYE, RIGHT_IRIS, 40, (33, 133)),
        (LEFT_EYE, LEFT_IRIS, 56, (362, 263)),
    ):
        points[list(outline)] = _loop((x, 44), (5, eyes), len(outline))
        points[list(iris)] = _loop((x, 44), (2, 2), 4)
        points[list(corners)] = (x - 5, 44), (x + 5, 44)
    points[[159, 145]], points[[386, 374]] = (
        [(40, 44 - eyes), (40, 44 + eyes)],
        [(56, 44 - eyes), (56, 44 + eyes)],
    )
    return points + np.array(shift)


def draw(points: NDArray[np.float64]) -> Frames:
    """The picture that goes with the landmarks, over a fixed colored noise."""
    noise = np.random.default_rng(5).integers(40, 90, (SIZE // 4, SIZE // 4, 3)).astype(np.uint8)
    image = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    parts = (
        (FACE_OVAL, SKIN),
        (LIPS_OUTER, LIPS),
        (LIPS_INNER, TEETH),
        (LEFT_EYE, WHITE),
        (RIGHT_EYE, WHITE),
    )
    for loop, color in (*parts, (LEFT_IRIS, (20, 20, 60)), (RIGHT_IRIS, (20, 20, 60))):
        cv2.fillPoly(image, [np.rint(points[list(loop)] * 8).astype(np.int32)], color, cv2.LINE_AA, 3)
    return image


def detect(image: Frames) -> NDArray[np.float64] | None:
    """Finds the drawn face by its skin color; it knows nothing of mouth and eyes."""
    skin = np.abs(image.astype(int) - SKIN).sum(axis=-1) < 60
    if skin.sum() < 200:
        return None
    rows, columns = np.nonzero(skin)
    return face_points(((columns.min() + columns.max() - 96) / 2, (rows.min() + rows.max() - 100) / 2))


def motion(t: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    shifts = np.stack([6 * np.sin(t / 5), 4 * np.cos(t / 7)], axis=1)
    return [
        face_points(tuple(s), mouth=1.5 + np.sin(x / 2), eyes=2.5 + 0.8 * np.sin(x / 3))
        for s, x in zip(shifts, t, strict=True)
    ]


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    landmarks = motion(np.arange(LENGTH, dtype=float))
    return HeldOut.from_clip(
        np.stack([draw(points) for points in landmarks]),
        np.stack(landmarks),
        time_s=np.arange(LENGTH) / RATE,
        frame_rate=RATE,
        split=tail_split(LENGTH),
    )


def test_splits_are_tails_and_need_enough_frames() -> None:
    split = tail_split(200)
    assert (split.train_count, split.test_count) == (160, 40)
    assert tail_split(1750, "last-350").test_count == 350 and tail_split(1100, "last-1/11").test_count == 100
    assert [s.kind for s in available_splits(300)] == ["last-20%", "last-1/11"]
    assert available_splits(30) == ()
    with pytest.raises(InputError, match="at least 1050 frames, got 600"):
        tail_split(600, "last-350")


def test_held_out_is_the_end_and_drops_frames_without_a_face() -> None:
    landmarks = np.stack(motion(np.arange(50, dtype=float)))
    landmarks[[3, 45]] = np.nan
    frames = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((50, SIZE, SIZE, 3), np.uint8)
    cut = HeldOut.from_clip(
        frames, landmarks, time_s=np.arange(50) / RATE, frame_rate=RATE, split=tail_split(50)
    )
    assert cut.frame_index.tolist() == [40, 41, 42, 43, 44, 46, 47, 48, 49]
    assert cut.test_frames[:, 0, 0, 0].tolist() == cut.frame_index.tolist() and len(cut.train_frames) == 39
    assert cut.train_frames.max() == 39 and cut.time_s[5] == 46 / RATE
    with pytest.raises(InputError, match="frames without a face"):
        replace(cut, test_landmarks=np.full_like(cut.test_landmarks, np.nan))
    with pytest.raises(InputError, match="square pictures"):
        replace(cut, test_frames=cut.test_frames[:, :, :50])


def test_regions_follow_the_stated_rules() -> None:
    points = face_points(mouth=0.0)
    assert region_box("whole", points, SIZE) == (slice(0, 96), slice(0, 96))
    # Oval: x 28..68, y 22..78.  40 x 30 % = 12 to the sides, 56 x 35 % = 19.6 up, 5.6 down.
    assert region_box("head", points, SIZE) == (slice(2, 84), slice(16, 80))
    # Lips: x 39..57, y 63..69, made 10.8 high, grown by 30 %.
    rows, columns = region_box("mouth", points, SIZE)
    assert (columns.start, columns.stop) == (34, 62) and (rows.start, rows.stop) == (57, 75)
    mask = region_mask("head", np.stack([points, points + 30]), SIZE)
    assert mask[0].sum() == 82 * 64 and mask[1, 95, 95] and not mask[1, 20, 20]


def test_methods_do_not_see_the_truth_and_must_return_the_right_shape(held_out: HeldOut) -> None:
    seen = []

    def spy(question: HeldOut) -> Frames:
        seen.append(question.test_frames.max())
        return question.test_frames

    predict(spy, held_out)
    assert seen == [0] and held_out.test_frames.max() > 0
    with pytest.raises(InternalError, match="must predict"):
        predict(lambda question: question.test_frames[:2], held_out)


def test_nearest_frame_is_found_with_its_position(held_out: HeldOut) -> None:
    repeated = replace(held_out, test_landmarks=held_out.train_landmarks[4:20] + 0.1)
    np.testing.assert_array_equal(predict(nearest_training_frame, repeated), held_out.train_frames[4:20])


def test_warp_moves_the_landmarks_and_leaves_the_border(held_out: HeldOut) -> None:
    source, target = face_points(), face_points((5.0, -3.0), mouth=3.0)
    moved = warp_by_landmarks(draw(source), source, target, still_radius=1.6)
    box = region_mask("mouth", target[None], SIZE)
    truth = draw(target)[None]
    assert psnr(truth, moved[None], box)[0] > psnr(truth, draw(source)[None], box)[0] + 6
    np.testing.assert_array_equal(moved[:, :1], draw(source)[:, :1])
    unmoved = warp_by_landmarks(draw(source), source, source, still_radius=1.6)
    np.testing.assert_array_equal(unmoved, draw(source))


def test_similar_frames_ignore_position_and_weigh_the_mouth() -> None:
    train = np.stack([face_points((0, 0), mouth=4.0), face_points((8, 0), mouth=1.0)])
    test = face_points((0, 0), mouth=1.0)[None]
    assert most_similar_frames(train, test, position_weight=0.0).tolist() == [1]
    assert most_similar_frames(train, test, position_weight=5.0).tolist() == [0]


@pytest.fixture(scope="module")
def warped(held_out: HeldOut) -> Frames:
    return predict(warped_training_frame, held_out)


def test_the_warp_beats_the_nearest_frame(held_out: HeldOut, warped: Frames) -> None:
    truth, nearest = held_out.test_frames, predict(nearest_training_frame, held_out)
    assert psnr(truth, warped).mean() > psnr(truth, nearest).mean() + 1
    assert choose_warp_rule(held_out.train_frames[:20], held_out.train_landmarks[:20]).still_radius == 1.6


def test_plain_unet_learns_and_repeats(held_out: HeldOut) -> None:
    torch.set_num_threads(1)
    losses: list[float] = []
    train_plain_unet(
        held_out, seconds=60, base_channels=8, seed=3, max_steps=25,
        on_progress=lambda progress: losses.append(float(progress.note.rsplit(" ", 1)[1])),
    )  # fmt: skip
    assert len(losses) == 25 and np.mean(losses[-3:]) < 0.7 * losses[0]
    one, other = (
        predict(train_plain_unet(held_out, seconds=60, base_channels=4, seed=seed, max_steps=2), held_out)
        for seed in (3, 3)
    )
    np.testing.assert_array_equal(one, other)
    train_plain_unet(
        held_out, seconds=0.0, base_channels=4, seed=0, on_progress=lambda _: pytest.fail("over time")
    )
    assert abs(parameter_count(width_for(500_000)) - 500_000) < 60_000


def test_the_width_of_the_plain_unet_is_the_nearest() -> None:
    """Between two neighbors on both sides of the middle, and at both ends."""
    narrow, wide = parameter_count(10), parameter_count(11)
    assert [width_for(count) for count in (narrow, narrow + 1, wide - 1, wide)] == [10, 10, 11, 11]
    middle = (narrow + wide) // 2
    assert (width_for(middle - 1), width_for(middle + 1)) == (10, 11)
    assert (width_for(1), width_for(10**9)) == (4, 128)


def test_score_measures_every_region_and_survives_missing_faces(held_out: HeldOut) -> None:
    held_out = replace(held_out, test_landmarks=read_landmarks(held_out.test_frames, detect))
    own = score("recording", held_out.test_frames, held_out, detect)
    assert own.mean("psnr") == own.mean("psnr", "mouth") == 100 and own.mean("ssim", "head") == pytest.approx(
        1
    )
    assert own.mean("landmark_px") == 0 and own.mean("face_found") == 100 and own.mean("flicker") == 0
    assert own.mean("blur_added", "head") == 0
    assert np.isnan(own.mean("lpips")) and own.find("expression") is None and own.find("pose_deg") is None

    shifted = np.roll(held_out.test_frames, 2, axis=2)
    shifted[3] = 0
    moved = score("shifted", shifted, held_out, detect)
    assert moved.mean("landmark_px", "mouth") == pytest.approx(2, abs=0.2)
    assert moved.mean("landmark_percent") == pytest.approx(100 * 2 / 26, rel=0.1)
    assert moved.mean("face_found") == pytest.approx(100 * 15 / 16)
    values = moved.find("landmark_px")
    assert values is not None and values.per_frame is not None and np.isnan(values.per_frame[3])
    assert moved.mean("psnr", "head") < 25 and np.isfinite(moved.mean("ms_ssim", "mouth"))


def test_pose_error_from_landmarks_in_space(held_out: HeldOut) -> None:
    depth = 10 * np.cos(np.linalg.norm(face_points() - 50, axis=1) / 20)
    place = np.array([48.0, 50.0, 0.0])
    solid = np.concatenate([face_points() - place[:2], depth[:, None]], axis=1)
    angle = np.radians(10)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    count = len(held_out.test_frames)
    spatial = replace(
        held_out,
        train_landmarks=np.repeat(solid[None], len(held_out.train_frames), axis=0) + place,
        test_landmarks=np.repeat(solid[None], count, axis=0) + place,
    )
    scores = score("turned", held_out.test_frames, spatial, lambda _: solid @ turn.T + place)
    assert scores.mean("pose_deg") == pytest.approx(10, abs=1e-3)


def test_other_splits_are_the_end_of_the_evaluated_frames() -> None:
    """2000 frames, evaluated from 1610 on, frame 1990 without a face; PSNR is the frame's number."""
    index = np.delete(np.arange(1610, 2000), 380)
    measured = _made_up_scores("avatar", index.astype(float)).measurements
    methods = (MethodScores("avatar", (*measured, Measurement("jitter_px", "whole", 1.0))),)
    others = other_splits(methods, index, frame_count=2000, evaluated_from=1610)
    assert [(part.split.kind, part.split.test_count, part.frame_count) for part in others.scores] == [
        ("last-350", 350, 349),
        ("last-1/11", 182, 181),
    ]
    for part in others.scores:
        seen = index[index >= part.split.train_count]
        assert part.methods[0].mean("psnr", "head") == pytest.approx(seen.mean())
        assert part.methods[0].find("jitter_px") is None  # not a mean of frames
    assert SplitScores.from_json(json.loads(json.dumps(part.to_json()))) == part

    # Where they begin before the evaluated frames, it says so; where the clip is too short, there is no such split.
    others = other_splits(methods, index, frame_count=2000, evaluated_from=1700)
    assert [part.split.kind for part in others.scores] == ["last-1/11"]
    assert len(others.reasons) == 1 and "350 frames begin before the 300" in others.reasons[0]
    assert other_splits(methods, index, frame_count=274, evaluated_from=220) == OtherSplits((), ())


def _made_up_scores(name: str, psnr_head: NDArray[np.float64]) -> MethodScores:
    return MethodScores(name, (Measurement("psnr", "head", float(psnr_head.mean()), psnr_head),))


def test_worst_frames_say_why(held_out: HeldOut) -> None:
    still = np.stack([face_points((0.01 * t, 0), mouth=1 + t / 64, eyes=2.5 + t / 128) for t in range(64)])
    count = len(held_out.test_frames)
    test = np.repeat(face_points(mouth=1.5, eyes=2.8)[None], count, axis=0)
    test[2] = face_points(mouth=6.0, eyes=2.8)
    test[7] = face_points((12.0, 0.0), mouth=1.5, eyes=2.8)
    test[11] = face_points(mouth=1.5, eyes=0.3)
    clip = replace(
        held_out,
        train_landmarks=still,
        train_frames=np.stack([draw(points) for points in still]),
        test_landmarks=test,
        test_frames=np.stack([draw(points) for points in test]),
    )
    clip.test_frames[14] = cv2.GaussianBlur(clip.test_frames[14], (0, 0), 4)
    values = np.full(count, 30.0)
    values[[2, 7, 11, 14, 5]] = [10, 11, 12, 13, 14]
    worst = explain_worst_frames(clip, _made_up_scores("avatar", values), count=5)
    assert [frame.row for frame in worst] == [2, 7, 11, 14, 5]
    assert [frame.cause for frame in worst] == [
        "outside coverage: mouth_open",
        "outside coverage: x",
        "outside coverage: eye_open",
        "soft recording",
        "not explained by the face",
    ]
    assert re.match(
        r"Mouth open wider than seen: 21\.4 % of the face's height; training saw 3\.\d to 7\.1\.",
        worst[0].reason,
    )
    assert worst[0].frame_index == clip.frame_index[2] and "vowels" in worst[0].repair
    with pytest.raises(InputError, match="not of these"):
        explain_worst_frames(clip, _made_up_scores("avatar", values[:4]))


def test_rare_poses_and_fast_movement_are_named(held_out: HeldOut) -> None:
    sway = 3 * np.sin(np.arange(200) / 30)
    train = np.stack([face_points((x, x), mouth=1.5, eyes=0.2 if t < 4 else 2.6) for t, x in enumerate(sway)])
    test = np.repeat(face_points(mouth=1.5, eyes=2.6)[None], 4, axis=0)
    test[1] = face_points(mouth=1.5, eyes=2.2)
    test[3] += 1.0
    clip = replace(
        held_out, train_landmarks=train, train_frames=np.repeat(draw(train[9])[None], 200, axis=0),
        test_landmarks=test, test_frames=np.stack([draw(p) for p in test]),
        frame_index=np.arange(4), time_s=np.arange(4.0),
    )  # fmt: skip
    worst = explain_worst_frames(clip, _made_up_scores("avatar", np.array([30.0, 10, 30, 11])), count=2)
    assert [frame.cause for frame in worst] == ["rarely seen: eyes closed", "fast movement"]


def _scores(name: str, level: float, **extra: float) -> MethodScores:
    keys = ("psnr", "ssim", "landmark_percent")
    values = {"psnr": level, "ssim": level / 40, "landmark_percent": 40 / level}
    measured = [
        Measurement(key, region, values[key], np.full(3, values[key]))
        for key in keys
        for region in ("whole", "mouth")
    ]
    measured += [Measurement(key, "head" if key == "blur_added" else "whole", v) for key, v in extra.items()]
    return MethodScores(name, tuple(measured))


def test_verdict_follows_the_numbers() -> None:
    steady = {
        "jitter_px": 1.0,
        "background_variance": 0.0,
        "blur_added": 0.0,
        "face_found": 100.0,
        "pose_deg": 1.0,
    }
    weak, strong = _scores("nearest", 18), _scores("avatar", 24, **steady)
    recording = _scores("recording", 90, jitter_px=1.0, background_variance=1.0)
    won = judge((strong, weak), (recording,))
    assert won.grade == "good" and not won.bad and "all 6" in won.headline
    assert any("24.00 against 18.00 dB, 50 % less error" in line for line in won.good)
    lost = judge((weak, strong), (recording,))
    assert lost.grade == "poor" and len(lost.bad) == 6 and "only 0 of the 6" in lost.headline
    shaky = _scores(
        "avatar", 24, jitter_px=2.0, background_variance=9.0, blur_added=0.2, face_found=90.0, pose_deg=9.0
    )
    words = " ".join(judge((shaky, weak), (recording,)).bad)
    for word in ("trembles", "flickers", "softer", "10.0 %", "9.0°"):
        assert word in words
    assert judge((strong,)).grade == "alone"


class _PageReader(HTMLParser):
    """Collects what a page would load, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path"):
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def evaluation(held_out: HeldOut, warped: Frames) -> tuple[Evaluation, dict[str, Frames], HeldOut]:
    held_out = replace(held_out, test_landmarks=read_landmarks(held_out.test_frames, detect))
    predictions = {
        "avatar <b>": warped,
        "nearest": predict(nearest_training_frame, held_out),
    }
    predictions["nearest"][2] = 0  # no face there: NaN must not reach the JSON
    methods = tuple(score(name, frames, held_out, detect) for name, frames in predictions.items())
    record = Evaluation(
        clip="me & you.mp4",
        split=tail_split(LENGTH),
        size=SIZE,
        frame_rate=RATE,
        frame_index=tuple(held_out.frame_index.tolist()),
        time_s=tuple(held_out.time_s.tolist()),
        methods=methods,
        controls=(score("recording", held_out.test_frames, held_out, detect),),
        worst=explain_worst_frames(held_out, methods[0]),
        notes=("One minute of training.",),
    )
    return record, predictions, held_out


def test_json_round_trip_is_strict_json(evaluation: tuple[Evaluation, dict[str, Frames], HeldOut]) -> None:
    record, _, _ = evaluation
    text = json.dumps(record.to_json(), allow_nan=False)
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["methods"][1]["measurements"] and values["metrics"]["psnr"]["best"] == "high"
    missing = next(m for m in values["methods"][1]["measurements"] if m["metric"] == "landmark_px")
    assert missing["per_frame"][2] is None
    assert json.dumps(Evaluation.from_json(values).to_json()) == text
    for bad in ({}, {"format": "else"}, values | {"version": 99}):
        with pytest.raises(InputError, match="omokage evaluate"):
            Evaluation.from_json(bad)
    with pytest.raises(InputError, match="every name once"):
        replace(record, methods=record.methods * 2)


def test_report_is_one_page_that_loads_nothing(
    evaluation: tuple[Evaluation, dict[str, Frames], HeldOut],
) -> None:
    record, predictions, held_out = evaluation
    page = render_report(record, held_out=held_out, predictions=predictions)
    reader = _PageReader()
    reader.feed(page)
    assert reader.open == [] and len(reader.loads) == 3 * 6 + 2 * len(record.worst)
    assert all(load.startswith("data:image/jpeg;base64,") for load in reader.loads)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "me &amp; you.mp4" in page and "avatar &lt;b&gt;" in page and "avatar <b>" not in page
    assert judge(record.methods, record.controls).headline in page and "One minute of training." in page
    assert page.index('class="verdict"') < page.index("<table") and page.count("<figure>") == 2


def test_the_best_value_of_a_column_is_bold_and_controls_never(
    evaluation: tuple[Evaluation, dict[str, Frames], HeldOut],
) -> None:
    record, predictions, held_out = evaluation
    page = render_report(record, held_out=held_out, predictions=predictions)
    best = max(method.mean("psnr") for method in record.methods)
    assert f"<td><b>{best:.2f}</b></td>" in page
    part = SplitScores(Split("last-1/11", 100, 10), 10, record.methods)
    page = render_report(replace(record, other_splits=(part,)), held_out=held_out, predictions=predictions)
    assert "Whole portrait, split &#39;last-1/11&#39;: the last 10 frames" in page
    copy = MethodScores("copy", record.methods[0].measurements)
    page = render_report(replace(record, controls=(copy,)), held_out=held_out, predictions=predictions)
    row = re.search(r'<tr class="control"><td>copy</td>.*?</tr>', page)
    assert row is not None and f"<td>{best:.2f}</td>" in row.group() and "<b>" not in row.group()


def test_plots_break_at_missing_frames() -> None:
    values = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
    plot = plot_over_time("x", np.arange(5) / RATE, (("a", values),), marked_s=(0.04,))
    assert plot is not None and plot.lines[0].path.count("M") == 2 and plot.lines[0].path.count("L") == 2
    assert [tick.label for tick in plot.y_ticks] == ["1", "2", "3", "4"] and plot.marks == (214.0,)
    assert plot_over_time("x", np.arange(2.0), (("a", np.full(2, np.nan)),)) is None
