"""What the capture check says: findings, verdict, and both as text and JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from omokage.capture.measurements import CaptureSample
from omokage.errors import CaptureRefusedError
from omokage.media.clip import ClipInfo

Verdict = Literal["good", "usable", "refuse"]
Level = Literal["ok", "advice", "refuse"]

VERDICT_SENTENCES: dict[Verdict, str] = {
    "good": "This recording is good: train from it as it is.",
    "usable": "This recording can be used; the advice below would make the avatar better.",
    "refuse": "This recording cannot become an avatar; change what is marked below and record again.",
}
YES_OR_NO = "yes or no"  # the unit of a fact: 1 or 0
_MARKS: dict[Level, str] = {"ok": "ok", "advice": "advice", "refuse": "REFUSE"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One measurement against its limits.

    `value` in `unit` (None: nothing to measure); `threshold` says the limits in words; `advice` is one sentence that
    names the fix, empty when the level is 'ok'. `low` and `high` are the limits as numbers (None: no such limit).
    """

    group: str
    name: str
    value: float | None
    unit: str
    threshold: str
    level: Level
    advice: str
    low: float | None
    high: float | None

    @property
    def value_text(self) -> str:
        if self.value is None:
            return "none"
        if self.unit == YES_OR_NO:
            return "yes" if self.value else "no"
        return f"{format_number(self.value)} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class CaptureReport:
    """The verdict on one recording. `samples` are frames for the contact sheet; they are not part of the JSON."""

    clip: ClipInfo
    verdict: Verdict
    findings: tuple[Finding, ...]
    samples: tuple[CaptureSample, ...] = ()

    @property
    def clip_text(self) -> str:
        """The facts of the file in one line."""
        clip = self.clip
        rate = f"{format_number(float(clip.frame_rate))} frames a second"
        rate += " (variable)" if clip.is_variable_rate else ""
        sound = "with sound" if clip.has_audio else "no sound"
        return f"{clip.path.name}: {clip.width} x {clip.height} px, {clip.duration_s:.1f} s, {rate}, {sound}"

    def to_text(self) -> str:
        """A table for a terminal, 100 columns wide; advice stands under the finding it belongs to."""
        lines = [self.clip_text, f"Verdict: {self.verdict.upper()}. {VERDICT_SENTENCES[self.verdict]}"]
        group = ""
        for finding in self.findings:
            if finding.group != group:
                group = finding.group
                lines += ["", group]
            limits = f"({finding.threshold})"
            lines.append(f"  {_MARKS[finding.level]:<8}{finding.name:<24}{finding.value_text:<20}{limits}")
            lines += textwrap.wrap(finding.advice, 99, initial_indent=" " * 10, subsequent_indent=" " * 10)
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values, for scripts: verdict, clip, findings."""
        clip = asdict(self.clip) | {"path": str(self.clip.path), "frame_rate": float(self.clip.frame_rate)}
        return {
            "verdict": self.verdict,
            "clip": clip,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def raise_if_refused(self) -> None:
        """Raise CaptureRefusedError, naming every reason and the first's advice, when the verdict is 'refuse'."""
        reasons = [finding for finding in self.findings if finding.level == "refuse"]
        if reasons:
            words = ", ".join(f"{r.name} {r.value_text} ({r.threshold})" for r in reasons)
            raise CaptureRefusedError(
                f"{self.clip.path} cannot become an avatar: {words}. {reasons[0].advice} "
                "'omokage check' says more; 'omokage create --force' trains all the same."
            )


def format_number(value: float) -> str:
    """Two or three digits are enough for people: 0.27, 5.7, 12.3, 261, 44100."""
    if abs(value) < 0.05:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{3 if abs(value) >= 10 else 2}g}"
