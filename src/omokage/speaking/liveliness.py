"""What a living head does beside speaking: it turns and nods with the voice, blinks, glances, breathes.

Everything is drawn from one seed and goes on frame by frame, so a live stream and a file get the same life, and nothing
comes again: positions follow Ornstein-Uhlenbeck processes through a damped spring, blinks come at random times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.config import Config
from omokage.errors import InputError

Float = NDArray[np.float64]

# Deviation of yaw, pitch and roll in degrees, while speaking and while waiting.
SPEAKING_DEG, IDLE_DEG = np.array([2.6, 1.7, 1.3]), np.array([1.4, 0.8, 0.6])
SPEAKING_S, IDLE_S = 0.9, 2.2  # how fast a position is forgotten
SPRING_PER_S = 7.0
NOD_DEG, NOD_S = 1.6, 0.36
NOD_PAUSE_S = 0.7  # between two nods
ACCENT = 0.16  # a level this much above its mean is an accent
BROW = 0.3
BLINK_S = (0.08, 0.04, 0.16)  # closing, closed, opening
LEAST_BLINK_GAP_S = 0.9
PHRASE_END_S = 0.3  # of quiet: shorter gaps are closures of the lips or the tongue
PAUSE_BLINKS = 0.4  # of the mean gap: a blink that would come so soon is drawn to the end of a phrase
GLANCE_DEG = np.array([3.0, 1.6])
GLANCE_S = (0.7, 2.6)
BREATH_S = 3.9


@dataclass(frozen=True)
class Life(Config):
    """How lively. head: amount of head movement (1: as drawn, 0: still).  blinks_per_minute.  glances: amount of eye
    movement away from the camera.  seed: another one makes another take."""

    head: float = 1.0
    blinks_per_minute: float = 14.0
    glances: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        for name, high in (("head", 2.0), ("blinks_per_minute", 60.0), ("glances", 2.0)):
            if not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} must lie between 0 and {high:g}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Moment:
    """One frame: angles (3,) yaw, pitch, roll in radians from rest (`head_angles`' signs); glance (2,) of the eyes,
    yaw, pitch in radians away from the camera; blink, brow in [0, 1]; breath in [-1, 1]."""

    angles: Float
    glance: Float
    blink: float
    brow: float
    breath: float


class Liveliness:
    """Frame after frame of one head's life; it is told how loud the voice is."""

    def __init__(self, life: Life, frame_rate: float) -> None:
        self._life = life
        self._step = 1 / frame_rate
        self._rng = np.random.default_rng(life.seed)
        self._wander, self._angles, self._speed = np.zeros(3), np.zeros(3), np.zeros(3)
        self._glance, self._next_glance = np.zeros(2), 0.6
        self._time = 0.0
        self._mean = 0.0
        self._nod, self._brow = -9.0, -9.0
        self._quiet_s = PHRASE_END_S
        self._blink = -9.0
        self._next_blink = self._blink_gap()

    def step(self, level: float) -> Moment:
        """The next frame. level: of the voice in [0, 1], 0 is silence."""
        self._quiet_s = 0.0 if level > 0.05 else self._quiet_s + self._step
        is_speaking = self._quiet_s < PHRASE_END_S
        self._follow_accents(level)
        angles = self._turned(is_speaking) + self._nodding()
        moment = Moment(
            angles=self._life.head * np.radians(angles),
            glance=np.radians(self._looked()),
            blink=self._blinked(),
            brow=_bump((self._time - self._brow) / 0.5),
            breath=float(np.sin(2 * np.pi * self._time / BREATH_S)),
        )
        self._time += self._step
        return moment

    def _follow_accents(self, level: float) -> None:
        self._mean += (level - self._mean) * self._step / 0.8
        if level > self._mean + ACCENT and self._time - self._nod > NOD_PAUSE_S:
            if self._rng.random() < 0.5:
                self._nod = self._time
            if self._rng.random() < BROW:
                self._brow = self._time

    def _turned(self, is_speaking: bool) -> Float:
        """A wandering target, followed by a critically damped spring: a head has mass."""
        spread, memory = (SPEAKING_DEG, SPEAKING_S) if is_speaking else (IDLE_DEG, IDLE_S)
        share = self._step / memory
        self._wander += -share * self._wander + np.sqrt(2 * share) * spread * self._rng.normal(size=3)
        pull = SPRING_PER_S**2 * (self._wander - self._angles) - 2 * SPRING_PER_S * self._speed
        self._speed = self._speed + pull * self._step
        self._angles = self._angles + self._speed * self._step
        return self._angles

    def _nodding(self) -> Float:
        return np.array([0.0, -NOD_DEG * _bump((self._time - self._nod) / NOD_S), 0.0])

    def _looked(self) -> Float:
        if self._time >= self._next_glance:
            # Most of the time at the camera, where the listener is.
            away = self._rng.random() < 0.35
            self._glance = (
                self._life.glances * GLANCE_DEG * self._rng.normal(size=2) * (1.0 if away else 0.15)
            )
            self._next_glance = self._time + self._rng.uniform(*GLANCE_S) * (0.5 if away else 1.0)
        return self._glance

    def _blinked(self) -> float:
        # A blink that was due soon comes at the end of the phrase; how many there are does not change.
        ends = PHRASE_END_S <= self._quiet_s < PHRASE_END_S + self._step
        is_near = self._next_blink - self._time < PAUSE_BLINKS * 60 / max(self._life.blinks_per_minute, 1e-9)
        if ends and is_near and self._time - self._blink > LEAST_BLINK_GAP_S:
            self._next_blink = self._time
        if self._life.blinks_per_minute and self._time >= self._next_blink:
            self._blink = self._time
            self._next_blink = self._time + self._blink_gap()
        closing, closed, opening = BLINK_S
        since = self._time - self._blink
        if since < closing:
            return float(np.sin(0.5 * np.pi * since / closing))
        if since < closing + closed:
            return 1.0
        return float(np.clip(np.cos(0.5 * np.pi * (since - closing - closed) / opening), 0, 1)) * (
            since < sum(BLINK_S)
        )

    def _blink_gap(self) -> float:
        mean = 60 / max(self._life.blinks_per_minute, 1e-9)
        return max(LEAST_BLINK_GAP_S, mean * float(self._rng.lognormal(-0.18, 0.6)))


def _bump(share: float) -> float:
    """Rises from 0 to 1 and falls back while `share` goes from 0 to 1."""
    return float(np.sin(np.pi * share) ** 2) if 0 < share < 1 else 0.0
