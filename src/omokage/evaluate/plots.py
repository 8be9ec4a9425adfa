"""Lines over time as plain numbers for an SVG in the report: no plotting library, no scripts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 720.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 8.0, 8.0, 24.0


@dataclass(frozen=True, slots=True)
class Tick:
    """A labeled position along an axis, in px of the drawing."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class PlotLine:
    """One method's line: `path` is an SVG path; `style` numbers its color and dashes in the template."""

    name: str
    path: str
    style: int


@dataclass(frozen=True, slots=True)
class Plot:
    """One diagram, 720 x 200 px. `marks`: x of the moments to point at."""

    title: str
    lines: tuple[PlotLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[float, ...]


def plot_over_time(
    title: str,
    time_s: NDArray[np.float64],
    values: tuple[tuple[str, NDArray[np.float64]], ...],
    *,
    marked_s: tuple[float, ...] = (),
) -> Plot | None:
    """Lay out lines, pairs of a name and float (T,); NaN makes a gap. None when there is nothing to draw."""
    finite = np.concatenate([line[np.isfinite(line)] for _, line in values]) if values else np.empty(0)
    if not finite.size:
        return None
    y_ticks = _nice_ticks(float(finite.min()), float(finite.max()))
    x_ticks = _nice_ticks(float(time_s.min()), float(time_s.max()), inside=True)
    low, high = min(y_ticks[0], finite.min()), max(y_ticks[-1], finite.max())
    start, end = float(time_s.min()), float(time_s.max())

    def x_of(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(LEFT + (seconds - start) / max(end - start, 1e-9) * (WIDTH - LEFT - RIGHT))

    def y_of(value: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(TOP + (high - value) / max(high - low, 1e-9) * (HEIGHT - TOP - BOTTOM))

    return Plot(
        title=title,
        lines=tuple(
            PlotLine(name, _path(x_of(time_s), y_of(line)), i) for i, (name, line) in enumerate(values)
        ),
        x_ticks=tuple(Tick(float(x_of(np.array(t))), f"{t:g} s") for t in x_ticks),
        y_ticks=tuple(Tick(float(y_of(np.array(t))), f"{t:g}") for t in y_ticks),
        marks=tuple(float(x_of(np.array(t))) for t in marked_s),
    )


def _nice_ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """About five round numbers around [low, high], or only those inside it."""
    rough = max(high - low, 1e-6) / 4
    magnitude = 10 ** np.floor(np.log10(rough))
    step = float(next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough))
    first, last = (
        (np.ceil(low / step), np.floor(high / step))
        if inside
        else (np.floor(low / step), np.ceil(high / step))
    )
    return [round(float(i * step), 6) for i in np.arange(first, last + 1)]


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    parts, pen = [], "M"
    for across, down in zip(x, y, strict=True):
        if np.isfinite(down):
            parts.append(f"{pen}{across:.1f} {down:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)
