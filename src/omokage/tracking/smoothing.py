"""Smooths a track: without lag when the whole clip is known, with as little lag as possible when it is live.

Both filters let fast motion through (a blink lasts three frames) and calm what stands still.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from omokage.tracking.face_track import FaceTrack

Float = NDArray[np.float64]

WINDOW_S = 0.3  # span of the zero-phase filter
COLUMNS_AT_ONCE = 16  # half an hour of hair and shoulders would fill most of a gigabyte


@dataclass(frozen=True, slots=True)
class Channel:
    """How one array of a track moves.

    fast: a difference that is motion, not noise (units of the array). rest_hz, response: One-Euro's cutoff for a still
    face and how many Hz it gains per unit of speed.
    """

    fast: float
    rest_hz: float
    response: float


CHANNELS: dict[str, Channel] = {
    "rotation": Channel(fast=0.012, rest_hz=1.5, response=8.0),
    "translation": Channel(fast=0.15, rest_hz=1.5, response=0.8),
    "expression": Channel(fast=0.10, rest_hz=2.0, response=4.0),
    "gaze": Channel(fast=0.08, rest_hz=2.0, response=6.0),
    "sway": Channel(fast=0.004, rest_hz=1.5, response=20.0),
}


def smooth_track(track: FaceTrack) -> FaceTrack:
    """The track with pose, expression, gaze and sway smoothed, zero phase; runs of tracked frames stay apart."""
    changed: dict[str, Any] = {name: np.array(getattr(track, name)) for name in CHANNELS}
    edges = np.flatnonzero(np.diff(track.is_tracked.astype(np.int8))) + 1
    for first, last in pairwise([0, *edges.tolist(), len(track)]):
        if not track.is_tracked[first] or last - first < 5:
            continue
        step_s = (track.time_s[last - 1] - track.time_s[first]) / (last - 1 - first)
        for name, channel in CHANNELS.items():
            columns = changed[name].reshape(len(track), -1)[first:last]  # a view: what is written stays
            for start in range(0, columns.shape[1], COLUMNS_AT_ONCE):
                some = columns[:, start : start + COLUMNS_AT_ONCE]
                some[:] = smooth_signal(some.astype(np.float64), step_s, channel.fast)
    changed["expression"] = np.clip(changed["expression"], 0, 1)
    return replace(track, **changed)


def smooth_signal(raw: Float, step_s: float, fast: float) -> Float:
    """Zero-phase smoothing of (T, ...) samples, `step_s` apart; steps larger than `fast` are kept as they are."""
    window = min(max(5, round(WINDOW_S / step_s) | 1), (len(raw) - 1) | 1)
    if window > len(raw):
        window -= 2
    calm = savgol_filter(raw, window, 2, axis=0, mode="interp")
    keep = 1 - np.exp(-(((raw - calm) / fast) ** 2))
    # Neighbors share the decision, or a spike would come through half smoothed.
    keep = np.maximum(keep, 0.7 * np.maximum(np.roll(keep, 1, axis=0), np.roll(keep, -1, axis=0)))
    smoothed: Float = calm + keep * (raw - calm)
    return smoothed


class OneEuro:
    """The One-Euro filter (Casiez et al. 2012) for arrays: a low pass whose cutoff rises with speed."""

    SPEED_HZ = 2.0

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._value: Float | None = None
        self._speed: Float | None = None
        self._time_s = 0.0

    def reset(self) -> None:
        """Forget the past: the next sample passes unchanged."""
        self._value = None

    def step(self, value: Float, time_s: float) -> Float:
        """One sample and its time in seconds -> the smoothed sample."""
        if self._value is None or self._speed is None:
            self._value, self._speed, self._time_s = value, np.zeros_like(value), time_s
            return value
        elapsed = max(time_s - self._time_s, 1e-3)
        speed = (value - self._value) / elapsed
        self._speed = self._speed + _share(self.SPEED_HZ, elapsed) * (speed - self._speed)
        cutoff = self._channel.rest_hz + self._channel.response * np.abs(self._speed)
        self._value = self._value + _share(cutoff, elapsed) * (value - self._value)
        self._time_s = time_s
        return self._value


def _share(cutoff_hz: float | Float, elapsed_s: float) -> Float:
    turn = 2 * np.pi * np.asarray(cutoff_hz) * elapsed_s
    return np.asarray(turn / (turn + 1))
