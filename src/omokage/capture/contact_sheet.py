"""One picture of a capture report: chosen frames with captions, a bar for every measurement, the advice."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import PIL.Image
from PIL import ImageDraw, ImageFont

from omokage.capture.measurements import CaptureSample
from omokage.capture.report import VERDICT_SENTENCES, CaptureReport, Finding, Level

WIDTH, MARGIN = 1240, 20  # px
COLUMNS, CELL_WIDTH, CAPTION_HEIGHT = 5, 240, 34
ROW_HEIGHT, BAR_WIDTH, NAME_WIDTH = 26, 110, 185
TEXT_SIZE, TITLE_SIZE = 15, 24
PAPER, INK, GREY = "#ffffff", "#222222", "#d4d4d4"
LEVEL_COLORS: dict[Level, str] = {"ok": "#3a7d44", "advice": "#d98e04", "refuse": "#c0392b"}
VERDICT_COLORS = dict(zip(("good", "usable", "refuse"), LEVEL_COLORS.values(), strict=True))


def contact_sheet(report: CaptureReport, samples: Sequence[CaptureSample]) -> PIL.Image.Image:
    """Draw the sheet: RGB, 1240 px wide, as high as it needs. `samples` are usually `report.samples`."""
    advised = [finding for finding in report.findings if finding.advice]
    lines = [line for finding in advised for line in _advice_lines(finding)]
    heading = 2 * TITLE_SIZE + 40
    shown = [_fit(sample) for sample in samples]
    cell_height = max((picture.height for picture in shown), default=0) + CAPTION_HEIGHT
    pictures = math.ceil(len(samples) / COLUMNS) * cell_height
    half = math.ceil(len(report.findings) / 2)
    bars = half * ROW_HEIGHT + 20
    sheet = PIL.Image.new("RGB", (WIDTH, heading + pictures + bars + 22 * len(lines) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)

    title = f"{report.verdict.upper()}. {VERDICT_SENTENCES[report.verdict]}"
    draw.text((MARGIN, MARGIN), title, VERDICT_COLORS[report.verdict], ImageFont.load_default(TITLE_SIZE))
    draw.text((MARGIN, MARGIN + TITLE_SIZE + 12), report.clip_text, INK, font)
    for number, (sample, picture) in enumerate(zip(samples, shown, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * CELL_WIDTH, heading + row * cell_height
        sheet.paste(picture, (left, top))
        draw.text((left, top + picture.height + 2), f"{sample.caption}, {sample.time_s:.1f} s", INK, font)
    top = heading + pictures
    for number, finding in enumerate(report.findings):
        column, row = divmod(number, half)
        _draw_finding(draw, finding, MARGIN + column * (WIDTH // 2 - 10), top + row * ROW_HEIGHT)
    for number, line in enumerate(lines):
        draw.text((MARGIN, top + bars + 22 * number), line, INK, font)
    return sheet


def _advice_lines(finding: Finding) -> list[str]:
    return textwrap.wrap(f"{finding.name}: {finding.advice}", 150, subsequent_indent="    ")


def _fit(sample: CaptureSample) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(sample.image)
    picture.thumbnail((CELL_WIDTH - 10, CELL_WIDTH))
    return picture


def _draw_finding(draw: ImageDraw.ImageDraw, finding: Finding, left: int, top: int) -> None:
    """Name, a bar with a tick at each limit, and the value with its limits in words."""
    font = ImageFont.load_default(TEXT_SIZE)
    color = LEVEL_COLORS[finding.level]
    draw.text((left, top), finding.name, INK, font)
    start, end = left + NAME_WIDTH, left + NAME_WIDTH + BAR_WIDTH
    draw.rectangle((start, top + 4, end, top + 15), fill=GREY)
    if finding.value is not None:
        filled = start + round(BAR_WIDTH * bar_position(finding, finding.value))
        draw.rectangle((start, top + 4, max(filled, start + 2), top + 15), fill=color)
    for limit in (finding.low, finding.high):
        if limit is not None:
            tick = start + round(BAR_WIDTH * bar_position(finding, limit))
            draw.line((tick, top + 1, tick, top + 18), fill=INK, width=2)
    words = f"{finding.value_text} ({finding.threshold})"
    draw.text((end + 8, top), words, INK if finding.level == "ok" else color, font)


def bar_position(finding: Finding, value: float) -> float:
    """Place of a value on the finding's bar, 0 to 1: limits lie at 0.25 and 0.75, a single one in the middle."""
    if finding.low is not None and finding.high is not None:
        place = 0.25 + 0.5 * (value - finding.low) / (finding.high - finding.low)
    else:
        limit = finding.low if finding.high is None else finding.high
        place = 0.5 * value / limit if limit else min(1.0, value)
    return min(1.0, max(0.0, place))
