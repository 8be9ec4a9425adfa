"""An evaluation as JSON for scripts and as one self-contained HTML page for people: texts, nothing is written."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray
from PIL import Image as PillowImage

from omokage.errors import InputError
from omokage.evaluate.plots import Plot, plot_over_time
from omokage.evaluate.protocol import HeldOut, Split, SplitScores
from omokage.evaluate.scores import METRIC_BY_KEY, METRICS, REGIONS, MethodScores, Metric, Region
from omokage.evaluate.verdict import Verdict, judge
from omokage.evaluate.worst import WorstFrame
from omokage.metrics.image import Frames

FORMAT, FORMAT_VERSION = "omokage.evaluation", 1
STRIP_COLUMNS = 6
TILE_PX = 256
PLOTTED: tuple[tuple[str, Region], ...] = (
    ("psnr", "head"),
    ("landmark_percent", "whole"),
    ("pose_deg", "whole"),
)
TABLES: Mapping[Region, str] = {
    "whole": "Whole portrait",
    "head": "Head (face oval grown by hair)",
    "mouth": "Mouth (lips grown by 30 %)",
}
MOVEMENT = ("pose_deg", "expression", "identity", "jitter_px", "flicker", "background_variance", "face_found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One avatar on one clip's held-out end. The first of `methods` is the avatar, the others are baselines.

    `controls`: the recording against itself and the like, shown below the methods and never ranked. `frame_index`,
    `time_s`: of the test frames. `notes`: facts about the run in words (minutes of training, machine, versions).
    `other_splits`: means over other parts of the same frames, for comparison with publications.
    """

    clip: str
    split: Split
    size: int
    frame_rate: float
    frame_index: tuple[int, ...]
    time_s: tuple[float, ...]
    methods: tuple[MethodScores, ...]
    controls: tuple[MethodScores, ...] = ()
    worst: tuple[WorstFrame, ...] = ()
    notes: tuple[str, ...] = ()
    other_splits: tuple[SplitScores, ...] = ()

    def __post_init__(self) -> None:
        names = [method.name for method in (*self.methods, *self.controls)]
        if not self.methods or len(set(names)) != len(names):
            raise InputError(f"an evaluation needs the avatar first and every name once, got {names}")

    @property
    def protocol(self) -> tuple[str, ...]:
        """How it was measured, one sentence each."""
        return (
            f"Split '{self.split.kind}': the first {self.split.train_count} frames were for training, the last "
            f"{self.split.test_count} never; {len(self.frame_index)} of these show a face and are measured here.",
            f"Pictures of {self.size} x {self.size} px at {self.frame_rate:g} frames a second, 8-bit RGB, no cropping.",
            "Regions follow the landmarks of the true frame: head is the face oval's box grown by 30 % of its width on "
            "both sides, 35 % of its height up and 10 % down; mouth is the lips' box, at least 0.6 times as high as "
            "wide, grown by 30 % on every side.",
            "Every value is the mean over the frames; frames without a value are left out.",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads; NaN becomes None. The definitions of the metrics are included."""
        verdict = judge(self.methods, self.controls)
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "clip": self.clip,
            "split": {
                "kind": self.split.kind,
                "train": self.split.train_count,
                "test": self.split.test_count,
            },
            "size": self.size,
            "frame_rate": self.frame_rate,
            "protocol": self.protocol,
            "metrics": {m.key: {"unit": m.unit, "best": m.best, "definition": m.definition} for m in METRICS},
            "verdict": {"headline": verdict.headline, "good": verdict.good, "bad": verdict.bad},
            "frame_index": self.frame_index,
            "time_s": self.time_s,
            "methods": [method.to_json() for method in self.methods],
            "controls": [method.to_json() for method in self.controls],
            "worst": [frame.to_json() for frame in self.worst],
            "notes": self.notes,
            "other_splits": [part.to_json() for part in self.other_splits],
        }

    def to_text(self) -> str:
        """The verdict and its reasons, for a terminal."""
        verdict = judge(self.methods, self.controls)
        good = (f"  + {sentence}" for sentence in verdict.good)
        return "\n".join([verdict.headline, *good, *(f"  - {sentence}" for sentence in verdict.bad)])

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read `to_json` values. Raises InputError when it is something else or from a newer version."""
        try:
            if values["format"] != FORMAT or values["version"] > FORMAT_VERSION:
                raise InputError(
                    "this is not an evaluation that this version reads; run `omokage evaluate` again"
                )
            return cls(
                clip=values["clip"],
                split=Split(values["split"]["kind"], values["split"]["train"], values["split"]["test"]),
                size=values["size"],
                frame_rate=values["frame_rate"],
                frame_index=tuple(values["frame_index"]),
                time_s=tuple(values["time_s"]),
                methods=tuple(MethodScores.from_json(method) for method in values["methods"]),
                controls=tuple(MethodScores.from_json(method) for method in values["controls"]),
                worst=tuple(WorstFrame.from_json(frame) for frame in values["worst"]),
                notes=tuple(values["notes"]),
                other_splits=tuple(SplitScores.from_json(part) for part in values.get("other_splits", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"this is not a readable evaluation ({error}); run `omokage evaluate` again"
            ) from error


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as text."""

    text: str
    is_best: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Methods, below them controls, each a name and a cell for every metric."""

    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    controls: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Pictures of one method at the report's times, as data URIs."""

    name: str
    is_generated: bool
    tiles: tuple[str, ...]


def render_report(evaluation: Evaluation, *, held_out: HeldOut, predictions: Mapping[str, Frames]) -> str:
    """One HTML page that needs nothing else: verdict, picture strips, tables, plots, worst frames, protocol.

    `predictions`: the test frames, uint8 (T, S, S, 3), by the name of the method (methods without pictures appear in
    the tables only).
    """
    avatar = evaluation.methods[0].name
    columns = np.unique(np.linspace(0, len(held_out.test_frames) - 1, STRIP_COLUMNS).astype(int))
    sources = [("recording", held_out.test_frames, False)]
    sources += [
        (m.name, predictions[m.name], m.name == avatar) for m in evaluation.methods if m.name in predictions
    ]
    strips = tuple(
        Strip(name, made, tuple(tile(frames[t]) for t in columns)) for name, frames, made in sources
    )
    worst = [
        (frame, tile(held_out.test_frames[frame.row]), tile(predictions[avatar][frame.row]))
        for frame in evaluation.worst
        if avatar in predictions
    ]
    repairs = Counter(frame.repair for frame in evaluation.worst).most_common()
    return render_page(
        "report.html.j2",
        evaluation=evaluation,
        verdict=_verdict(evaluation),
        strip_times=[f"{evaluation.time_s[t]:.2f} s" for t in columns],
        strips=strips,
        tables=_tables(evaluation),
        plots=_plots(evaluation),
        worst=worst,
        repairs=repairs,
        metrics=[
            m for m in METRICS if any(method.find(m.key, r) for method in evaluation.methods for r in REGIONS)
        ],
    )


def render_page(template: str, **values: Any) -> str:
    """One of the package's templates, filled; every text in it is escaped."""
    environment = Environment(loader=PackageLoader("omokage.evaluate"), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(**values)


def _verdict(evaluation: Evaluation) -> Verdict:
    return judge(evaluation.methods, evaluation.controls)


def table_of(
    title: str,
    region: Region,
    metrics: tuple[Metric, ...],
    methods: tuple[MethodScores, ...],
    controls: tuple[MethodScores, ...] = (),
) -> Table:
    """The metrics that any method has in a region; the best method of each is marked."""
    metrics = tuple(m for m in metrics if any(method.find(m.key, region) for method in methods))
    best = {metric.key: _best_value(metric, region, methods) for metric in metrics}

    def cells(scores: MethodScores) -> tuple[Cell, ...]:
        made = []
        for metric in metrics:
            value = scores.mean(metric.key, region)
            text = "–" if not np.isfinite(value) else f"{value:.{metric.digits}f}"
            made.append(Cell(text, text != "–" and text == f"{best[metric.key]:.{metric.digits}f}"))
        return tuple(made)

    return Table(
        title=title,
        metrics=metrics,
        rows=tuple((method.name, cells(method)) for method in methods),
        controls=tuple((method.name, cells(method)) for method in controls),
    )


def _tables(evaluation: Evaluation) -> list[Table]:
    methods, controls = evaluation.methods, evaluation.controls
    pictures = tuple(metric for metric in METRICS if metric.key not in MOVEMENT)
    movement = tuple(metric for metric in METRICS if metric.key in MOVEMENT)
    tables = [table_of(title, region, pictures, methods, controls) for region, title in TABLES.items()]
    tables.append(table_of("Movement and steadiness", "whole", movement, methods, controls))
    for part in evaluation.other_splits:
        title = f"Whole portrait, split '{part.split.kind}': the last {part.frame_count} frames with a face"
        tables.append(table_of(title, "whole", METRICS, part.methods))
    return tables


def _best_value(metric: Metric, region: Region, methods: tuple[MethodScores, ...]) -> float:
    values = [value for method in methods if np.isfinite(value := method.mean(metric.key, region))]
    return min(values, key=metric.badness, default=float("nan"))


def _plots(evaluation: Evaluation) -> list[Plot]:
    plots = []
    for key, region in PLOTTED:
        metric = METRIC_BY_KEY[key]
        lines = tuple(
            (method.name, found.per_frame)
            for method in evaluation.methods
            if (found := method.find(key, region)) is not None and found.per_frame is not None
        )
        title = f"{metric.title}, {region} ({metric.unit}), {'higher' if metric.best == 'high' else 'lower'} is better"
        marked = tuple(frame.time_s for frame in evaluation.worst)
        plot = plot_over_time(title, np.array(evaluation.time_s), lines, marked_s=marked)
        plots += [plot] if plot is not None else []
    return plots


def tile(image: NDArray[np.uint8]) -> str:
    """A picture as a data URI, JPEG, at most 256 px."""
    picture = PillowImage.fromarray(image)
    picture.thumbnail((TILE_PX, TILE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
