"""Measures of a video that talks, on tracks and pictures whose answer is known; and the report made of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from omokage.errors import InputError
from omokage.evaluate.portrait_video import TalkingEvaluation, evaluate_takes, render_talking_report
from omokage.evaluate.talking_scores import Experts, Question, Take, score_take
from omokage.metrics.talking import (
    SyncScores,
    chance,
    color_drift,
    envelope_db,
    frechet_distance,
    lag_curve,
    mouth_opening,
    outside_faces,
    pearson,
    seam_ratio,
    still_flicker,
)

RATE, FRAMES, SIDE = 25.0, 120, 48
JOINS = tuple(range(15, FRAMES, 15))


def track(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Syllables: noise of about 5 Hz."""
    noise = np.random.default_rng(seed).standard_normal(frames + 4)
    return 0.1 + 0.03 * np.convolve(noise, np.ones(5) / 5, mode="valid")


def landmarks(opening: np.ndarray) -> np.ndarray:
    """Faces, 20 px between the outer eye corners, whose lips are `opening` of that apart."""
    points = np.zeros((len(opening), 478, 3))
    points[:, :, 0], points[:, :, 1] = np.linspace(12, 36, 478), np.linspace(10, 38, 478)
    points[:, 33, :2], points[:, 263, :2] = (14, 20), (34, 20)
    for x, (upper, lower) in zip((24, 21, 27), ((13, 14), (82, 87), (312, 317)), strict=True):
        points[:, upper, 0] = points[:, lower, 0] = x
        points[:, upper, 1], points[:, lower, 1] = 30, 30 + 20 * opening
    points[:, 61, :2], points[:, 291, :2] = (19, 31), (29, 31)
    points[:, (468, 473, 1), :2] = (18, 20), (30, 20), (24, 26)
    return points


def take(opening: np.ndarray, seed: int = 0, joins: tuple[int, ...] = JOINS) -> Take:
    """A face whose mouth gets darker as it opens, before a still wall."""
    picture = np.random.default_rng(seed).integers(60, 200, (SIDE, SIDE, 3))
    frames = np.repeat(picture[None], len(opening), axis=0)
    frames[:, 28:36, 18:30] = (250 - 800 * opening)[:, None, None, None].clip(0, 255)
    return Take(frames.astype(np.uint8), landmarks(opening), joins)


def question(opening: np.ndarray, *, has_truth: bool = True) -> Question:
    truth = take(opening, joins=())
    portrait = Take(truth.frames[:1], truth.landmarks[:1])
    return Question(RATE, np.zeros(0, np.float32), 100 * opening, portrait, truth if has_truth else None)


def test_opening_is_the_gap_of_the_lips_in_eye_distances() -> None:
    np.testing.assert_allclose(mouth_opening(landmarks(track(0))), track(0), atol=1e-12)
    missing = landmarks(track(0))
    missing[3] = np.nan
    assert np.isnan(mouth_opening(missing)).sum() == 1 and pearson(
        mouth_opening(missing), track(0)
    ) == pytest.approx(1)


def test_loudness_is_in_db_of_full_scale_and_silence_has_a_floor() -> None:
    voice = np.concatenate([np.ones(640), 0.1 * np.ones(640), np.zeros(640)]).astype(np.float32)
    np.testing.assert_allclose(envelope_db(voice, 640, 4), [0, -20, -60, -60], atol=1e-4)


@pytest.mark.parametrize("late", [-7, 0, 5])
def test_the_lag_curve_peaks_where_the_shift_is(late: int) -> None:
    """A mouth that moves `late` frames after the reference matches the reference as it was earlier."""
    longer = track(0, FRAMES + 40)
    curve = lag_curve(longer[20 - late : 20 - late + FRAMES], longer[20 : 20 + FRAMES], RATE)
    assert curve.peak_s == pytest.approx(-late / RATE) and np.nanmax(curve.r) == pytest.approx(1)
    assert len(curve.r) == 51 and curve.at_zero == pytest.approx(
        pearson(longer[20 - late : 20 - late + FRAMES], longer[20 : 20 + FRAMES])
    )


def test_chance_tells_a_synced_mouth_from_any_other() -> None:
    assert chance(track(0) + 0.5 * track(1), track(0), RATE) == 0
    values = [chance(track(seed), track(seed + 50), RATE) for seed in range(12)]
    assert 0.25 < np.mean(values) < 0.75
    assert np.isnan(chance(np.ones(FRAMES), track(0), RATE))


def test_a_seam_is_a_jump_between_windows() -> None:
    frames = np.zeros((60, 8, 8, 3), np.uint8)
    frames += (np.arange(60) % 2 * 10).astype(np.uint8)[:, None, None, None]
    assert seam_ratio(frames, (15, 30, 45)) == pytest.approx(1)
    frames[30:] += 100
    assert seam_ratio(frames, (30,)) > 8
    assert np.isnan(seam_ratio(frames, ()))


def test_colors_drift_by_window() -> None:
    frames = np.full((45, 8, 8, 3), 100, np.uint8)
    frames[30:] = 200
    np.testing.assert_allclose(color_drift(frames, frames[:1], (15, 30)), [0, 0, 1])
    frames[15:30, :4] = 200
    np.testing.assert_allclose(color_drift(frames, frames[:1], (15, 30)), [0, 0.5, 1])


def test_likeness_is_told_by_window() -> None:
    """Another face in the second of three windows."""
    asked = question(track(0))
    shown = take(track(0), joins=(40, 80))
    shown.frames[40:80] = take(track(0), seed=7).frames[40:80]
    found = evaluated(asked, shown).likeness
    assert len(found) == 3 and min(found[0], found[2]) > 0.9 > 0.5 > found[1]


def test_flicker_is_measured_where_nothing_moves() -> None:
    frames = np.full((20, SIDE, SIDE, 3), 90, np.uint8)
    frames[::2, 12:40, 12:40] = 200
    away = outside_faces(landmarks(track(0, 20)), SIDE, SIDE)
    assert away[0, 0] and not away[24, 24] and still_flicker(frames, away) == 0
    frames[::2, 0, 0] += 40
    assert still_flicker(frames, away) == pytest.approx(40 / away.sum(), rel=1e-3)
    assert np.isnan(still_flicker(frames, np.zeros((SIDE, SIDE), bool)))


def test_the_frechet_distance_of_gaussians_is_the_known_one() -> None:
    random = np.random.default_rng(0)
    one = random.standard_normal((4000, 3))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, 2 * one + [3, 0, 0]) == pytest.approx(9 + 3 * 1, rel=0.05)
    with pytest.raises(InputError, match="at least 2 vectors"):
        frechet_distance(one[:1], one)


def test_a_video_in_sync_wins_against_other_speech() -> None:
    asked = question(track(0))
    near = take(track(0) + 0.4 * track(9))
    evaluation = evaluated(asked, near)
    assert evaluation.verdict().headline == "The lips follow the speech."
    assert evaluation.lag.peak_s == 0 and evaluation.chance == 0
    assert evaluation.methods[0].mean("lip_sync") > 0.8 > abs(evaluation.controls[1].mean("lip_sync"))


@pytest.mark.parametrize("wrong", ["other", "late"])
def test_a_video_out_of_sync_is_not_believed(wrong: str) -> None:
    longer = track(0, FRAMES + 20)
    asked = question(longer[20:])
    seen = track(5) if wrong == "other" else longer[10:-10]
    verdict = evaluated(asked, take(seen)).verdict()
    assert verdict.grade == "poor" and "not shown" in verdict.headline


def evaluated(asked: Question, *takes: Take) -> TalkingEvaluation:
    controls = {"shuffled speech": [take(track(3))], "silence": [take(np.full(FRAMES, 0.1))]}
    ceiling = {"recording": [asked.truth or take(track(0))]}
    return evaluate_takes("clip.mp4", asked, list(takes), controls, ceiling, caution="a toy")


def test_without_true_frames_the_loudness_is_the_reference() -> None:
    scores = score_take("generated", take(track(0)), question(track(0), has_truth=False))
    assert scores.mean("lip_sync") == pytest.approx(1)
    assert scores.find("psnr") is None and scores.find("lip_width") is None
    with pytest.raises(InputError, match="120 frames cannot be compared"):
        score_take("generated", take(track(0)), replace(question(track(0)), loudness=np.zeros(7)))


def test_what_has_no_weights_is_left_out_and_said() -> None:
    asked = question(track(0))
    assert len(Experts().missing()) == 4 and "SyncNet" in Experts().missing()[0]
    experts = Experts(
        face=lambda image, landmarks: image[:2, :2].astype(float).ravel(),
        sync=lambda frames, landmarks, voice: SyncScores(5.0, 8.0),
        frame_features=lambda frames: frames.reshape(len(frames), -1)[:, :3].astype(float),
        clip_features=lambda frames: frames.reshape(-1, frames[0].size * 2)[:, :3].astype(float),
    )
    scores = score_take("generated", take(track(0)), asked, experts)
    assert experts.missing() == ()
    assert scores.mean("identity") == pytest.approx(1) and scores.mean("sync_confidence") == 5
    assert scores.mean("fid") == pytest.approx(0, abs=1e-3) and scores.mean("fvd") == pytest.approx(
        0, abs=1e-3
    )


def test_the_report_holds_every_number_and_the_caution() -> None:
    asked = question(track(0))
    evaluation = evaluated(asked, take(track(0) + 0.4 * track(9)), take(track(0) + 0.4 * track(8)))
    values = json.loads(json.dumps(evaluation.to_json()))
    assert values["caution"] == "a toy" and values["windows"] == 8 and len(values["lag_r"]) == 51
    assert {m["metric"] for m in values["methods"][0]["measurements"]} <= set(values["metrics"])
    page = render_talking_report(
        evaluation, {"recording": take(track(0)).frames, "generated": take(track(1)).frames}
    )
    for text in (
        "a toy",
        "Opening of the mouth",
        "shuffled speech",
        "SyncNet",
        "Talking video: clip.mp4",
        "in 8 windows",
    ):
        assert text in page
    assert "The worst" not in page
    assert evaluation.to_text().startswith("The lips follow the speech.")
