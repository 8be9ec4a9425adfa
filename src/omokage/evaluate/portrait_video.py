"""How well a generated video talks: verdict, JSON and HTML page; texts, nothing is written.

Lips are compared with those of true frames when there are any, else with the loudness of the voice. Controls are videos
of the same model from other speech: they show how high a correlation is without any sync.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omokage.evaluate.plots import Plot, plot_over_time
from omokage.evaluate.report import STRIP_COLUMNS, Strip, Table, render_page, table_of, tile
from omokage.evaluate.scores import MethodScores
from omokage.evaluate.talking_scores import (
    METRICS,
    REACH_S,
    TABLES,
    Experts,
    Question,
    Take,
    likeness_by_window,
    mean_known,
    mean_scores,
    score_take,
)
from omokage.evaluate.verdict import Grade, Verdict
from omokage.metrics.image import Frames
from omokage.metrics.talking import FAR_S, LagCurve, Track, chance, color_drift, lag_curve, mouth_opening

FORMAT, FORMAT_VERSION = "omokage.talking-evaluation", 1
DETECTION_PX = 256  # smaller pictures are enlarged for the landmark network, which looks at as many pixels
RARE = 0.05  # a correlation that comes about by chance less often is told from none
SEAM_VISIBLE, DRIFT_VISIBLE, FLICKER_VISIBLE = 1.5, 0.15, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkingEvaluation:
    """One model on one speech. The first of `methods` is the video, averaged over several where there are seeds.

    clip: what was said, for people.  caution: a sentence about the model, or empty.  controls: ceilings, and `unsynced`
    videos from other speech.  lag: of the first method.  chance: how often other stretches of the reference correlate
    as well.  openings: of the mouth in every frame, by name.  drift: of colors, by window.
    likeness: to the portrait, by window.  has_truth: whether the reference is the real lips, and not the loudness of
    the voice.  missing: sentences on measures that were left out.
    """

    clip: str
    caution: str
    frame_rate: float
    frame_count: int
    width: int
    height: int
    has_truth: bool
    methods: tuple[MethodScores, ...]
    controls: tuple[MethodScores, ...]
    unsynced: tuple[str, ...]
    lag: LagCurve
    chance: float
    openings: Mapping[str, Track]
    drift: Track
    likeness: Track
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def window_count(self) -> int:
        return len(self.drift)

    @property
    def worst(self) -> tuple[()]:
        """Single frames say little here; the page leaves their part out."""
        return ()

    @property
    def protocol(self) -> tuple[str, ...]:
        """How it was measured, one sentence each."""
        target = "the true frames" if self.has_truth else "the loudness of the voice, for lack of true frames"
        return (
            f"Lips are compared with {target}; landmarks of every video are followed by the same detector, enlarged to "
            f"at least {DETECTION_PX} pixels.",
            f"Chance is the share of circular shifts of the reference by {FAR_S:g} s or more that correlate at least "
            "as well as the unshifted one.",
            "Every value is the mean over the seeds; frames without a face are left out.",
            *self.missing,
        )

    def verdict(self) -> Verdict:
        """In words."""
        return judge_talking(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        verdict = self.verdict()
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "clip": self.clip,
            "caution": self.caution,
            "frame_rate": self.frame_rate,
            "frames": self.frame_count,
            "size": [self.width, self.height],
            "windows": self.window_count,
            "reference": "true lips" if self.has_truth else "loudness of the voice",
            "protocol": self.protocol,
            "metrics": {m.key: {"unit": m.unit, "best": m.best, "definition": m.definition} for m in METRICS},
            "verdict": {"headline": verdict.headline, "good": verdict.good, "bad": verdict.bad},
            "methods": [method.to_json() for method in self.methods],
            "controls": [control.to_json() for control in self.controls],
            "lag_s": [round(float(lag), 3) for lag in self.lag.lag_s],
            "lag_r": [_number(r) for r in self.lag.r],
            "chance": _number(self.chance),
            "color_drift_by_window": [_number(value) for value in self.drift],
            "likeness_by_window": [_number(value) for value in self.likeness],
            "missing": self.missing,
            "notes": self.notes,
        }

    def to_text(self) -> str:
        """The verdict and its reasons, for a terminal."""
        verdict = self.verdict()
        good = (f"  + {sentence}" for sentence in verdict.good)
        return "\n".join([verdict.headline, *good, *(f"  - {sentence}" for sentence in verdict.bad)])


def evaluate_takes(
    clip: str,
    question: Question,
    takes: Sequence[Take],
    controls: Mapping[str, Sequence[Take]],
    ceilings: Mapping[str, Sequence[Take]],
    *,
    caution: str = "",
    experts: Experts | None = None,
    notes: tuple[str, ...] = (),
) -> TalkingEvaluation:
    """Score a model's videos of one speech, one a seed; below them its videos from other speech, as controls, and
    videos that it could not be better than, such as the recording after the autoencoder."""
    experts, reference = experts or Experts(), question.reference()
    openings = [mouth_opening(take.landmarks) for take in takes]
    curves = [lag_curve(opening, reference, question.frame_rate, REACH_S) for opening in openings]
    shown = {"generated": openings[0]}
    below = [
        mean_scores(name, [score_take(name, take, question, experts) for take in several])
        for name, several in (*ceilings.items(), *controls.items())
    ]
    if question.truth is not None:
        shown["recording"] = reference
    return TalkingEvaluation(
        clip=clip,
        caution=caution,
        frame_rate=question.frame_rate,
        frame_count=len(question.loudness),
        width=takes[0].frames.shape[2],
        height=takes[0].frames.shape[1],
        has_truth=question.truth is not None,
        methods=(mean_scores("generated", [score_take("generated", t, question, experts) for t in takes]),),
        controls=tuple(below),
        unsynced=tuple(controls),
        lag=LagCurve(curves[0].lag_s, _mean_rows([curve.r for curve in curves])),
        chance=chance(
            _mean_rows([_standard(opening) for opening in openings]), reference, question.frame_rate
        ),
        openings=shown,
        drift=_mean_rows([color_drift(t.frames, question.portrait.frames, t.joins) for t in takes]),
        likeness=_mean_rows([likeness_by_window(take, question.portrait) for take in takes]),
        missing=experts.missing(),
        notes=notes,
    )


def judge_talking(evaluation: TalkingEvaluation) -> Verdict:
    """Does it follow the speech, better than the controls, and does it stay as it began?"""
    video = evaluation.methods[0]
    sync, others = video.mean("lip_sync"), [c for c in evaluation.controls if c.name in evaluation.unsynced]
    rival = max((value for c in others if np.isfinite(value := c.mean("lip_sync"))), default=float("nan"))
    peak, is_rare = evaluation.lag.peak_s, evaluation.chance < RARE
    near = 1.5 / evaluation.frame_rate
    good: list[str] = []
    bad: list[str] = []
    said = f"lips follow the speech with r = {sync:.2f}"
    (good if is_rare else bad).append(f"The {said}; by chance {100 * evaluation.chance:.0f} % reach as much.")
    if np.isfinite(rival):
        (good if sync > rival else bad).append(f"The best control, from other speech, has r = {rival:.2f}.")
    (good if abs(peak) <= near else bad).append(f"The correlation is highest at a shift of {peak:+.2f} s.")
    for key, limit, words in (
        ("color_drift", DRIFT_VISIBLE, "Colors drift by {:.2f} from the first window to the last."),
        ("seam", SEAM_VISIBLE, "Where windows meet, {:.1f} times as much changes as elsewhere."),
        ("still_flicker", FLICKER_VISIBLE, "Still parts change by {:.2f} grey levels a frame."),
    ):
        value = video.mean(key)
        if np.isfinite(value):
            (good if value <= limit else bad).append(words.format(value))
    if video.mean("face_found") < 100:
        bad.append(f"No face is found in {100 - video.mean('face_found'):.1f} % of the frames.")
    has_won = is_rare and abs(peak) <= near and not sync <= rival
    headline = (
        "The lips follow the speech." if has_won else "It is not shown that the lips follow the speech."
    )
    grade: Grade = "poor" if not has_won else "mixed" if bad else "good"
    return Verdict(grade, headline, tuple(good), tuple(bad))


def render_talking_report(evaluation: TalkingEvaluation, strips: Mapping[str, Frames]) -> str:
    """One HTML page that needs nothing else. `strips`: videos to show, by name; 'recording' is the true one."""
    columns = np.unique(np.linspace(0, evaluation.frame_count - 1, STRIP_COLUMNS).astype(int))
    return render_page(
        "portrait_video.html.j2",
        evaluation=evaluation,
        verdict=evaluation.verdict(),
        strip_times=[f"{t / evaluation.frame_rate:.2f} s" for t in columns],
        strips=[
            Strip(name, name != "recording", tuple(tile(frames[t]) for t in columns))
            for name, frames in strips.items()
        ],
        tables=_tables(evaluation),
        plots=_plots(evaluation),
        worst=(),
        repairs=(),
        metrics=[m for m in METRICS if evaluation.methods[0].find(m.key) is not None],
    )


def _tables(evaluation: TalkingEvaluation) -> list[Table]:
    by_key = {metric.key: metric for metric in METRICS}
    return [
        table_of(title, "whole", tuple(by_key[key] for key in keys), evaluation.methods, evaluation.controls)
        for title, keys in TABLES
    ]


def _plots(evaluation: TalkingEvaluation) -> list[Plot]:
    times = np.arange(evaluation.frame_count) / evaluation.frame_rate
    window_s = evaluation.frame_count / max(evaluation.window_count, 1) / evaluation.frame_rate
    plots = (
        plot_over_time("Opening of the mouth (eye distances)", times, tuple(evaluation.openings.items())),
        plot_over_time(
            "Correlation against a shift of the reference (s)",
            evaluation.lag.lag_s,
            (("generated", evaluation.lag.r),),
        ),
        plot_over_time(
            "Colors' distance from the portrait, by the start of the window",
            (window_s * np.arange(evaluation.window_count)).astype(np.float64),
            (("generated", evaluation.drift),),
        ),
    )
    return [plot for plot in plots if plot is not None]


def _mean_rows(rows: Sequence[Track]) -> Track:
    """The mean of tracks (T,), of those that are known at a place."""
    return np.array([mean_known(column) for column in np.stack(rows).T.tolist()])


def _standard(track: Track) -> Track:
    """Of mean 0 and deviation 1, so that every seed counts as much."""
    return np.asarray((track - np.nanmean(track)) / max(float(np.nanstd(track)), 1e-9))


def _number(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
