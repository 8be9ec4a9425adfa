"""What a video file holds: size, upright orientation, exact time stamps, frame rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.errors import MediaError
from omokage.media.clip import ClipInfo
from omokage.media.limits import InputLimits, check_size, input_limits
from omokage.media.records import RawScan, ScanTask
from omokage.media.sandbox import run_once

STANDARD_RATES = tuple(
    Fraction(*rate)
    for rate in (
        *(
            (5, 1),
            (10, 1),
            (12, 1),
            (25, 2),
            (15, 1),
            (20, 1),
            (24000, 1001),
            (24, 1),
            (25, 1),
            (30000, 1001),
        ),
        *((30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (100, 1), (120, 1), (240, 1)),
    )
)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture becomes upright: first transpose, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """The clockwise turn in degrees, leaving a mirror aside."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0


@dataclass(frozen=True, slots=True)
class Scan:
    """A clip's `info` with what decoding needs.

    `zero`: the first picture's time stamp in units of `time_base` (s), which is time 0 of the clip.
    `last`: the time stamp of the last picture. `stored_size`: width, height before the turn, square pixels.
    """

    info: ClipInfo
    time_base: Fraction
    zero: int
    last: int
    stored_size: tuple[int, int]
    orientation: Orientation


def probe(path: Path, *, min_frames: int = 1) -> ClipInfo:
    """Describe a video file without decoding more than its first picture.

    Raises MediaError for anything that is no readable video, is cut off, goes beyond the `InputLimits`, or holds
    fewer than `min_frames` frames.
    """
    info = scan(path).info
    if info.frame_count < min_frames:
        raise MediaError(
            f"{path} holds {info.frame_count} frames ({info.duration_s:.1f} s); at least {min_frames} are needed, "
            "so record longer"
        )
    return info


def scan(path: Path) -> Scan:
    """`probe` with the details that decoding needs; remembered until the file changes. Raises MediaError."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return _scan(path, 0, 0, input_limits())  # which says what is wrong
    return _scan(path, state.st_mtime_ns, state.st_size, input_limits())


@lru_cache(maxsize=32)
def _scan(path: Path, _mtime_ns: int, _size: int, limits: InputLimits) -> Scan:
    raw = run_once(path, ScanTask(), RawScan)
    stamps = np.frombuffer(raw.data, dtype=np.int64)
    stamps = stamps[stamps >= raw.zero]
    if not len(stamps) or raw.time_base <= 0 or min(raw.width, raw.height) < 1:
        raise MediaError(f"{path} has no sensible time stamps or size; copy or export the recording again")
    spacing = round(float(np.median(np.diff(stamps)))) if len(stamps) > 1 else 0
    last_duration = raw.last_duration or spacing or round(1 / (25 * raw.time_base))
    duration_s = float((int(stamps[-1]) + last_duration - int(stamps[0])) * raw.time_base)
    rate, is_variable = _frame_rate(stamps, raw.time_base)
    _check_times(path, duration_s, rate, limits)
    orientation = _orientation(raw.matrix)
    size = _square_size(path, raw, limits)
    width, height = size[::-1] if orientation.transpose else size
    info = ClipInfo(
        path=path,
        width=width,
        height=height,
        frame_rate=rate,
        frame_count=max(1, round(duration_s * rate)),
        duration_s=duration_s,
        rotation_deg=orientation.rotation_deg,
        is_variable_rate=is_variable,
        pixel_format=raw.pixel_format,
        has_audio=raw.has_audio,
    )
    return Scan(info, raw.time_base, int(stamps[0]), int(stamps[-1]), size, orientation)


def _check_times(path: Path, duration_s: float, rate: Fraction, limits: InputLimits) -> None:
    if duration_s > limits.max_hours * 3600:
        raise MediaError(
            f"{path} lasts {duration_s / 3600:.1f} hours; at most {limits.max_hours:g} are read, so cut it into parts"
        )
    if rate > limits.max_rate:
        raise MediaError(
            f"{path} has {float(rate):.0f} pictures a second; at most {limits.max_rate:g} are read, so export it with "
            "fewer (25 are plenty)"
        )


def _square_size(path: Path, raw: RawScan, limits: InputLimits) -> tuple[int, int]:
    """Size with square pixels: the width is stretched, as players do. Nonsense ratios are ignored."""
    aspect = raw.aspect
    if not aspect or not Fraction(1, 4) <= aspect <= 4:
        aspect = Fraction(1)
    width = max(1, round(raw.width * aspect))
    check_size(path, width, raw.height, limits)
    return width, raw.height


def _orientation(matrix: tuple[int, ...]) -> Orientation:
    """Read the display matrix: x' = a x + c y, y' = b x + d y with y down (ISO/IEC 14496-12, 8.2.2)."""
    if len(matrix) < 5:
        return Orientation()
    a, b, _, c, d = matrix[:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(mirror_x=a < 0, mirror_y=d < 0)


def _frame_rate(stamps: NDArray[np.int64], time_base: Fraction) -> tuple[Fraction, bool]:
    """Time stamps -> the constant rate that fits them, and whether their own spacing varies.

    The median spacing decides; its near neighbors are averaged, because time stamps in whole milliseconds are too
    coarse to tell 30 from 29.97 one by one.
    """
    if len(stamps) < 2:
        return Fraction(25), False
    spacing = np.diff(stamps).astype(np.float64)
    spacing = spacing[spacing > 0]
    near = np.abs(spacing - np.median(spacing)) <= np.maximum(0.1 * np.median(spacing), 1.01)
    rate = 1 / (float(spacing[near].mean()) * float(time_base))
    is_variable = bool(near.mean() < 0.99)
    standard = min(STANDARD_RATES, key=lambda candidate: abs(math.log(rate / float(candidate))))
    if is_variable or abs(rate / float(standard) - 1) < 0.004:
        return standard, is_variable
    return Fraction(rate).limit_denominator(100), is_variable
