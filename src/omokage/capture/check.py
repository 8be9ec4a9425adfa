"""Is this recording good enough for an avatar, and what should change? The capture check."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from omokage.capture.advice import ADVICE, HIDDEN_FACE, NO_SOUND, SILENT_SOUND
from omokage.capture.measure import measure_recording
from omokage.capture.measurements import (
    CaptureMeasurements,
    FaceMeasurements,
    SoundMeasurements,
)
from omokage.capture.report import YES_OR_NO, CaptureReport, Finding, Level, Verdict, format_number
from omokage.capture.thresholds import CaptureThresholds
from omokage.config import ProgressCallback, ignore_progress

DEFAULT_THRESHOLDS = CaptureThresholds()


def check_recording(
    path: Path,
    *,
    thresholds: CaptureThresholds = DEFAULT_THRESHOLDS,
    on_progress: ProgressCallback = ignore_progress,
) -> CaptureReport:
    """Measure a recording (takes about half its own length, at most ten seconds more than decoding) and judge it.

    Raises MediaError when the file cannot be read; everything else ends in a report.
    """
    measured = measure_recording(path, on_progress=on_progress)
    return replace(assess(measured.measurements, thresholds), samples=measured.samples)


def assess(
    measurements: CaptureMeasurements, thresholds: CaptureThresholds = DEFAULT_THRESHOLDS
) -> CaptureReport:
    """Numbers -> verdict and findings; reads no file.

    'refuse': a finding makes the recording hopeless. 'good': no advice at all, but for the sound. Else 'usable'.
    """
    about_picture = _person(measurements, thresholds)
    if measurements.face is not None:
        about_picture += _framing(measurements.face, thresholds)
        about_picture += _light(measurements.face, thresholds)
        about_picture += _movement(measurements.face, thresholds)
    about_picture += _stillness(measurements, thresholds)
    about_picture += _file(measurements, thresholds)
    levels = {finding.level for finding in about_picture}
    verdict: Verdict = "refuse" if "refuse" in levels else "usable" if "advice" in levels else "good"
    findings = (*about_picture, *_sound(measurements.sound, thresholds))
    return CaptureReport(clip=measurements.clip, verdict=verdict, findings=findings)


def _person(m: CaptureMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Person")
    found, second = 100 * m.face_share, 100 * m.second_face_share
    usable = judge("usable face", m.usable_s, "s", low=t.min_usable_s, refuse_below=t.refuse_usable_s)
    if usable.advice and m.usable_s < 0.5 * m.clip.duration_s:
        usable = replace(usable, advice=HIDDEN_FACE)
    return [
        judge("face found", found, "%", low=100 * t.min_face_share, refuse_below=100 * t.refuse_face_share),
        judge(
            "second face",
            second,
            "%",
            high=100 * t.max_second_face_share,
            refuse_above=100 * t.refuse_second_face_share,
        ),
        usable,
    ]


def _framing(face: FaceMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Framing")
    share = (100 * t.min_picture_share, 100 * t.max_picture_share)
    return [
        judge("face width", face.width_px, "px", refuse_below=t.refuse_face_width_px),
        judge("face, chin to brow", face.height_px, "px", low=t.min_face_height_px),
        judge("pupil distance", face.pupil_distance_px, "px", low=t.min_pupil_distance_px),
        judge("face in the picture", 100 * face.picture_share, "% of height", low=share[0], high=share[1]),
        judge("head leaves picture", 100 * face.outside_share, "%", high=100 * t.max_outside_share),
    ]


def _light(face: FaceMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Picture")
    return [
        judge("sharpness", face.sharpness, "", low=t.min_sharpness),
        judge("brightness", face.luma, "of 255", low=t.min_luma, high=t.max_luma),
        judge("black or white skin", 100 * face.clipped_share, "%", high=100 * t.max_clipped_share),
        judge("contrast", face.contrast, "of 255", low=t.min_contrast),
        judge("uneven light", 100 * face.unevenness, "%", high=100 * t.max_unevenness),
    ]


def _movement(face: FaceMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Movement of the face")
    turn = max(-face.yaw_deg.low, face.yaw_deg.high)
    opening, width = 100 * face.mouth_opening.high, 100 * face.mouth_width.width
    gaze_yaw, gaze_pitch = face.gaze_yaw_deg.width, face.gaze_pitch_deg.width
    eye_span = "% of eye span"
    return [
        judge("turning, left to right", face.yaw_deg.width, "degrees", low=t.min_yaw_range_deg),
        judge("farthest turn", turn, "degrees", high=t.max_turn_deg),
        judge("nodding, up and down", face.pitch_deg.width, "degrees", low=t.min_pitch_range_deg),
        judge("tilting, side to side", face.roll_deg.width, "degrees", low=t.min_roll_range_deg),
        judge("widest mouth", opening, eye_span, low=100 * t.min_mouth_opening),
        judge("mouth width, range", width, eye_span, low=100 * t.min_mouth_width_range),
        judge("mouth shapes", face.mouth_shapes, "of 25", low=t.min_mouth_shapes),
        judge("blinks", face.blinks, "", low=t.min_blinks),
        judge("gaze, left to right", gaze_yaw, "degrees", low=t.min_gaze_yaw_range_deg),
        judge("gaze, up and down", gaze_pitch, "degrees", low=t.min_gaze_pitch_range_deg),
        judge("face at rest", face.neutral_s, "s", low=t.min_neutral_s),
    ]


def _stillness(m: CaptureMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Stillness")
    cuts = judge("cuts", len(m.cut_times_s), "", refuse_above=t.max_cuts)
    if m.cut_times_s:
        times = ", ".join(f"{time:.1f} s" for time in m.cut_times_s[:5])
        cuts = replace(cuts, advice=f"{cuts.advice[:-1]} (at {times}).")
    findings = [cuts]
    if m.background is not None:
        changed = 100 * m.background.changed_share
        if m.background.camera_travel is not None:
            travel = 100 * m.background.camera_travel
            findings.append(judge("camera movement", travel, "% of width", high=100 * t.max_camera_travel))
        findings.append(judge("background movement", changed, "% of it", high=100 * t.max_background_change))
    return findings


def _file(m: CaptureMeasurements, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("File")
    side = min(m.clip.width, m.clip.height)
    variable = judge("variable frame rate", m.clip.is_variable_rate, YES_OR_NO, high=0)
    return [
        judge("frame rate", float(m.clip.frame_rate), "a second", low=t.min_frame_rate),
        replace(variable, threshold="no"),
        judge("repeated frames", 100 * m.repeated_share, "%", high=100 * t.max_repeated_share),
        judge("shorter side", side, "px", low=t.min_resolution_px),
    ]


def _sound(sound: SoundMeasurements | None, t: CaptureThresholds) -> list[Finding]:
    judge = _Judge("Sound")
    limits = (t.min_sound_dbfs, t.max_sound_dbfs)
    if sound is None or math.isinf(sound.level_dbfs):
        nothing = judge("loudness of speech", None, "dBFS", low=limits[0], high=limits[1])
        return [replace(nothing, level="advice", advice=NO_SOUND if sound is None else SILENT_SOUND)]
    clipped = 100 * sound.clipped_share
    return [
        judge("loudness of speech", sound.level_dbfs, "dBFS", low=limits[0], high=limits[1]),
        judge("speech above noise", sound.above_noise_db, "dB", low=t.min_above_noise_db),
        judge("clipped sound", clipped, "%", high=100 * t.max_sound_clipped_share),
        judge("sample rate", sound.sample_rate, "Hz", low=t.min_sample_rate),
    ]


class _Judge:
    """Compares values with limits, for one group of findings. A refusal limit lies beyond the one for advice."""

    def __init__(self, group: str) -> None:
        self._group = group

    def __call__(
        self,
        name: str,
        value: float | None,
        unit: str,
        *,
        low: float | None = None,
        high: float | None = None,
        refuse_below: float | None = None,
        refuse_above: float | None = None,
    ) -> Finding:
        is_refused = _is_below(value, refuse_below) or _is_above(value, refuse_above)
        is_low = _is_below(value, low) or _is_below(value, refuse_below)
        is_high = _is_above(value, high) or _is_above(value, refuse_above)
        level: Level = "refuse" if is_refused else "advice" if is_low or is_high else "ok"
        advice = ADVICE[name]
        return Finding(
            group=self._group,
            name=name,
            value=None if value is None else float(value),
            unit=unit,
            threshold=_limits_in_words(low, high, refuse_below, refuse_above),
            level=level,
            advice=advice.too_low if is_low else advice.too_high if is_high else "",
            low=refuse_below if low is None else low,
            high=refuse_above if high is None else high,
        )


def _is_below(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value < limit


def _is_above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _limits_in_words(
    low: float | None, high: float | None, refuse_below: float | None, refuse_above: float | None
) -> str:
    parts = []
    if low is not None and high is not None:
        parts.append(f"{format_number(low)} to {format_number(high)}")
    elif low is not None:
        parts.append(f"at least {format_number(low)}")
    elif high is not None:
        parts.append(f"at most {format_number(high)}")
    if refuse_below is not None:
        parts.append(f"refused below {format_number(refuse_below)}")
    if refuse_above is not None:
        parts.append(f"refused above {format_number(refuse_above)}")
    return ", ".join(parts)
