"""What the numbers say, in sentences for somebody who does not read numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from omokage.evaluate.scores import METRIC_BY_KEY, MethodScores, Region

# The measures that decide: an avatar should win all of them against every baseline.
HEADLINE: tuple[tuple[str, Region, str], ...] = (
    ("psnr", "whole", "The whole portrait is"),
    ("psnr", "mouth", "The mouth is"),
    ("ssim", "whole", "Fine structure of the whole portrait is"),
    ("ssim", "mouth", "Fine structure of the mouth is"),
    ("landmark_percent", "whole", "The face's features are"),
    ("landmark_percent", "mouth", "The lips are"),
)
CHANGE = {"psnr": ("nearer to the truth", "farther from the truth"), "ssim": ("better kept", "less well kept"),
          "landmark_percent": ("nearer to their true places", "farther from their true places")}  # fmt: skip
MOSTLY_WON = 4  # of the six
POSE_GOOD_DEG, POSE_BAD_DEG = 2.0, 4.0
LANDMARKS_GOOD_PERCENT, LANDMARKS_BAD_PERCENT = 2.0, 4.0
JITTER_BAD_RATIO = 1.3  # of the recording's own
BLUR_VISIBLE = 0.04
BACKGROUND_STILL = 0.05  # grey levels squared

Grade = Literal["good", "mixed", "poor", "alone"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`headline`: one sentence; `good`, `bad`: sentences; `grade`: 'alone' when there is nothing to compare with."""

    grade: Grade
    headline: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


def judge(methods: tuple[MethodScores, ...], controls: tuple[MethodScores, ...] = ()) -> Verdict:
    """Compare the first method, the avatar, with the others; its steadiness with the first control, the recording."""
    avatar, baselines = methods[0], methods[1:]
    good: list[str] = []
    bad: list[str] = []
    won = 0
    for key, region, words in HEADLINE:
        rival = _best(key, region, baselines)
        if rival is None or not np.isfinite(avatar.mean(key, region)):
            continue
        is_won = _badness(key, avatar.mean(key, region)) < _badness(key, rival.mean(key, region))
        won += is_won
        (good if is_won else bad).append(_comparison(key, region, words, avatar, rival, is_won=is_won))
    _judge_movement(avatar, good, bad)
    _judge_steadiness(avatar, controls[0] if controls else None, good, bad)
    grade, headline = _headline(won, len(baselines))
    return Verdict(grade, headline, tuple(good), tuple(bad))


def _headline(won: int, baselines: int) -> tuple[Grade, str]:
    total = len(HEADLINE)
    if not baselines:
        return "alone", "Nothing to compare with: the numbers below stand alone."
    if won == total:
        return "good", f"This avatar is better than every simple method on all {total} deciding measures."
    if won >= MOSTLY_WON:
        return (
            "mixed",
            f"This avatar is better than the simple methods on {won} of the {total} deciding measures.",
        )
    return (
        "poor",
        f"Not good enough yet: better than the simple methods on only {won} of the {total} deciding measures.",
    )


def _comparison(
    key: str, region: Region, subject: str, avatar: MethodScores, rival: MethodScores, *, is_won: bool
) -> str:
    metric = METRIC_BY_KEY[key]
    ours, theirs = avatar.mean(key, region), rival.mean(key, region)
    unit = f" {metric.unit}" if metric.unit else ""
    numbers = f"{metric.title} {ours:.{metric.digits}f} against {theirs:.{metric.digits}f}{unit}"
    if key == "psnr":
        change = 100 * abs(1 - 10 ** ((theirs - ours) / 20))
        numbers += f", {change:.0f} % {'less' if is_won else 'more'} error"
    return f"{subject} {CHANGE[key][not is_won]} than in the best simple method ({rival.name}): {numbers}."


def _judge_movement(avatar: MethodScores, good: list[str], bad: list[str]) -> None:
    pose, points = avatar.mean("pose_deg"), avatar.mean("landmark_percent")
    found = avatar.mean("face_found")
    if pose <= POSE_GOOD_DEG:
        good.append(f"The head follows: {pose:.1f}° mean error.")
    elif pose > POSE_BAD_DEG:
        bad.append(
            f"The head does not follow well: {pose:.1f}° mean error (good is under {POSE_GOOD_DEG:.0f}°)."
        )
    if points <= LANDMARKS_GOOD_PERCENT:
        good.append(f"Features are in place: off by {points:.1f} % of the eye distance.")
    elif points > LANDMARKS_BAD_PERCENT:
        bad.append(
            f"Features are off by {points:.1f} % of the eye distance (good is under {LANDMARKS_GOOD_PERCENT:.0f} %)."
        )
    if found < 100:
        bad.append(f"No face is recognized in {100 - found:.1f} % of the generated frames.")


def _judge_steadiness(
    avatar: MethodScores, recording: MethodScores | None, good: list[str], bad: list[str]
) -> None:
    blurred, background = avatar.mean("blur_added", "head"), avatar.mean("background_variance")
    if blurred > BLUR_VISIBLE:
        bad.append(f"The head is visibly softer than the recording (blur {blurred:+.2f}).")
    elif np.isfinite(blurred):
        good.append(f"The head is as sharp as the recording (blur {blurred:+.2f}).")
    still = recording.mean("background_variance") if recording is not None else BACKGROUND_STILL
    if background <= max(still, BACKGROUND_STILL):
        good.append("The background does not flicker.")
    elif np.isfinite(background):
        bad.append(f"The background flickers (variance {background:.2f}, in the recording {still:.2f}).")
    if recording is None:
        return
    ratio = avatar.mean("jitter_px") / max(recording.mean("jitter_px"), 1e-6)
    if ratio > JITTER_BAD_RATIO:
        bad.append(f"The face trembles: {ratio:.1f} times the small movements of the recording.")
    elif np.isfinite(ratio):
        good.append(f"Movement is calm: {ratio:.1f} times the small movements of the recording.")


def _best(key: str, region: Region, methods: tuple[MethodScores, ...]) -> MethodScores | None:
    measured = [method for method in methods if np.isfinite(method.mean(key, region))]
    return min(measured, key=lambda method: _badness(key, method.mean(key, region)), default=None)


def _badness(key: str, value: float) -> float:
    return METRIC_BY_KEY[key].badness(value)
