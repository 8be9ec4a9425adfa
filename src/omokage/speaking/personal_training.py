"""Learns a personal driver from one recording, and whether it is better than the general one. MAIN: `learn`.

Everything is cross-fitted: what the networks learn to add is what a regression leaves over that did not see the frame,
and what is chosen is chosen by frames that neither saw. The recording's end is only measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.metrics.talking import pearson
from omokage.speaking.driver import Articulation, speaking
from omokage.speaking.motion_transformer import MotionTransformer, SamplerConfig, TransformerConfig
from omokage.speaking.mouth_regression import MouthRegression
from omokage.speaking.personal import (
    CHANNELS,
    Ear,
    MouthModes,
    PersonalDriver,
    SoundScale,
    offsets,
)
from omokage.speaking.personal_networks import Motions, NetworkTrainingConfig, train_network
from omokage.speaking.sound_frames import COLUMNS, FRAME_RATE, FUTURE, HOPS, PAST, silence, sound_frames
from omokage.tracking.face_track import BLENDSHAPES

Float = NDArray[np.float64]
Rows = NDArray[np.int64]

FOLDS = 3
GAP = PAST + FUTURE  # frames beside a fold that share sound with it
DRIFT_S = 1.0  # slower changes of a mouth are of mood and posture, not of speech
NOISES = (0.15, 0.5)
STRENGTHS = (0.0, 1.0)
WARM_UP = 24  # frames before a fold, so that it does not begin from nothing
SHARES = (0.5, 0.75, 1.0)
AS_GOOD = 0.01  # a correlation this much lower is as good, and more motion is better
SPEAKING = 0.5  # of `speaking`
LEAST_R = 0.2  # a correlation of seconds that says something
LEAST_SPEECH_S, LEAST_TAIL_S = 4.0, 1.0


@dataclass(frozen=True)
class LearningConfig(Config):
    """networks: one for each of the folds; 0 steps leave them out."""

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    network: NetworkTrainingConfig = field(default_factory=NetworkTrainingConfig)
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """A recording, as far as its mouth and sound last, 25 frames a second.

    articulation: of its sound, shifted onto the picture.  mouth (T, C): expressions `CHANNELS` as ways from rest.
    is_known (T,): where a face was seen.  opening (T,): measured between the lips.  border: the first frame that is
    held out.  reach (C,): see `MouthModes`.  opened: expressions (T, 52), ways from rest -> opening (T,).
    ear: the encoder that listened, if one did; whether it helps is found out.
    """

    articulation: Articulation
    mouth: Float
    is_known: NDArray[np.bool_]
    opening: Float
    border: int
    reach: Float
    opened: Callable[[Float], Float]
    ear: Ear | None = None


@dataclass(frozen=True)
class Agreement(Config):
    """Correlation of the opening mouth with the recording's: over all frames, and while it is spoken."""

    all: float
    speaking: float


@dataclass(frozen=True)
class Verdict(Config):
    """personal, general: on the held-out end.  cross, cross_general: on the rest, each part by what did not see it."""

    personal: Agreement
    general: Agreement
    cross: Agreement
    cross_general: Agreement

    @property
    def is_better(self) -> bool:
        """Better than the general driver on the held-out end, and not only there; and no accident."""
        is_ahead = self.personal.all > self.general.all and self.cross.all > self.cross_general.all
        return is_ahead and min(self.personal.speaking, self.cross.speaking) >= LEAST_R


@dataclass(frozen=True)
class Choice:
    """How well a strength of the networks and a share of the way agree, cross-validated."""

    strength: float
    share: float
    cross: Agreement


@dataclass(frozen=True)
class Learned:
    """tried: all choices, of which `driver` is one."""

    driver: PersonalDriver
    verdict: Verdict
    tried: tuple[Choice, ...]


def speech_seconds(material: Material) -> tuple[float, float]:
    """How long is spoken with a face in view: before the held-out end, and in it."""
    _, visemes = sound_frames(material.articulation)
    is_said = (speaking(visemes[: len(material.mouth)]) > SPEAKING) & material.is_known
    return (
        float(is_said[: material.border].sum() / FRAME_RATE),
        float(is_said[material.border :].sum() / FRAME_RATE),
    )


def learn(
    material: Material,
    config: LearningConfig | None = None,
    *,
    folder: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Learned:
    """Learn from the frames before `border`, then measure on those from there on.

    folder: where checkpoints are kept, so that a stopped run goes on.
    """
    config = config or LearningConfig()
    learning = _Learning(material, config)
    networks: tuple[MotionTransformer, ...] = ()
    if learning.has_windows():
        networks = tuple(learning.network(fold, folder, on_progress) for fold in range(FOLDS))
    tried = learning.tried(networks)
    best = max(choice.cross.speaking for choice in tried)
    chosen = max(
        (choice for choice in tried if choice.cross.speaking >= best - AS_GOOD),
        key=lambda choice: (choice.strength, choice.share),
    )
    driver = replace(learning.driver, networks=networks, strength=chosen.strength, share=chosen.share)
    tail = np.arange(material.border, len(material.mouth))
    added = offsets(driver, learning.articulation, config.seed)[: len(material.mouth)]
    verdict = Verdict(
        personal=learning.agreement(added, tail),
        general=learning.agreement(np.zeros_like(added), tail),
        cross=chosen.cross,
        cross_general=learning.agreement(np.zeros_like(added), learning.known),
    )
    return Learned(driver, verdict, tried)


class _Learning:
    """What the steps of `learn` share."""

    def __init__(self, material: Material, config: LearningConfig) -> None:
        self._material, self._config = material, config
        length = len(material.mouth)
        sound, visemes = sound_frames(material.articulation)
        sound, self._visemes = sound[:length], visemes[:length]
        seen = np.flatnonzero(material.is_known)
        self.known: Rows = seen[seen < material.border]
        self.folds: list[Rows] = np.array_split(self.known, FOLDS)
        middle, axes, modes = _modes(material, self.known, config.transformer.modes)
        self.modes = modes
        # Whether the encoder helps with this person is found out as everything else is.
        (ear, noise), self._expected, self._regressions = min(
            (
                ((ear, noise), *self._cross_fitted(heard_with(ear, sound), noise))
                for ear in ((None,) if material.ear is None else (None, material.ear))
                for noise in NOISES
            ),
            key=lambda fit: float(np.square(fit[1] - modes)[self.known].sum()),
        )
        self.articulation = material.articulation
        if ear is None:
            self.articulation = replace(self.articulation, encoded=np.zeros((0, 0)))
        self.sound = sound[:, :COLUMNS]
        left = modes - self._expected
        deviations = np.maximum(left[self.known].std(axis=0), 1e-6)
        self._left = left / deviations
        self._scale = SoundScale(
            self.sound[self.known].mean(axis=0), np.maximum(self.sound[self.known].std(axis=0), 0.05)
        )
        transformer = replace(config.transformer, modes=len(axes))
        self.driver = PersonalDriver(
            transformer,
            config.sampler,
            MouthModes(middle, axes, deviations, material.reach),
            self._scale,
            regression=MouthRegression.fit(heard_with(ear, sound), self.known, modes, noise),
            networks=(),
            strength=1.0,
            share=1.0,
            ear=ear,
        )

    def _outside(self, fold: Rows) -> Rows:
        """Known frames that share no sound with those of a fold."""
        is_far = (self.known < fold[0] - GAP) | (self.known > fold[-1] + GAP)
        return np.asarray(self.known[is_far])

    def _cross_fitted(self, sound: Float, noise: float) -> tuple[Float, list[MouthRegression]]:
        """The modes (T, K) that each fold is expected to have by a regression that did not see it; those."""
        nothing = silence(sound.shape[1] - COLUMNS)
        context = np.concatenate([np.tile(nothing, (PAST, 1)), sound, np.tile(nothing, (FUTURE, 1))])
        expected, regressions = np.zeros_like(self.modes), []
        for fold in self.folds:
            regression = MouthRegression.fit(sound, self._outside(fold), self.modes, noise)
            rows = slice(fold[0], fold[-1] + 1)
            expected[rows] = regression.predict(context)[0][rows]
            regressions.append(regression)
        return expected, regressions

    def has_windows(self) -> bool:
        """Whether the face was seen for long enough at a time, in every fold and beside it."""
        parts = [part for fold in self.folds for part in (fold, self._outside(fold))]
        return all(len(self._motions(part).starts) for part in parts)

    def network(self, fold: int, folder: Path | None, on_progress: ProgressCallback) -> MotionTransformer:
        """The one that did not see a fold, stopped by how well it knows it."""

        def counted(progress: Progress) -> None:
            on_progress(replace(progress, done=fold + progress.done, total=FOLDS))

        return train_network(
            self._motions(self._outside(self.folds[fold])),
            self._motions(self.folds[fold]),
            self.driver.config,
            replace(self._config.network, seed=self._config.seed + fold),
            checkpoint=None if folder is None else folder / f"speech-{fold}.safetensors",
            on_progress=counted,
        )

    def _motions(self, rows: Rows) -> Motions:
        """The windows that lie in some rows."""
        config = self.driver.config
        before, behind = config.previous + PAST, config.window + FUTURE
        inside = np.zeros(len(self.sound), dtype=bool)
        inside[rows] = True
        fits = np.lib.stride_tricks.sliding_window_view(inside, before + behind).all(axis=1)
        return Motions(
            (self.sound - self._scale.center) / self._scale.scale,
            self._expected / self.driver.modes.deviations,
            self._left,
            np.flatnonzero(fits) + before,
        )

    def tried(self, networks: Sequence[MotionTransformer]) -> tuple[Choice, ...]:
        """How well all agree, each on its own fold, with every strength and share."""
        found = []
        for strength in STRENGTHS if networks else (0.0,):
            added = np.zeros((len(self.sound), len(BLENDSHAPES)))
            for number, fold in enumerate(self.folds):
                one = replace(
                    self.driver,
                    regression=self._regressions[number],
                    networks=tuple(networks[number : number + 1]),
                    strength=strength,
                )
                first, stop = max(0, int(fold[0]) - WARM_UP), int(fold[-1]) + 1
                heard = self.articulation.cut(first * HOPS, (stop + FUTURE + 1) * HOPS)
                added[fold[0] : stop] = offsets(one, heard)[fold[0] - first : stop - first]
            found += [Choice(strength, share, self.agreement(share * added, self.known)) for share in SHARES]
        return tuple(found)

    def agreement(self, added: Float, rows: Rows) -> Agreement:
        """Of the general driver with something added (T, 52), over rows."""
        way = np.zeros_like(added)
        way[:, CHANNELS] = self.driver.modes.general(self._visemes)
        opening = self._material.opened(way + added)
        rows = rows[self._material.is_known[rows]]
        is_said = speaking(self._visemes[rows]) > SPEAKING
        true = self._material.opening
        return Agreement(
            _finite(pearson(opening[rows], true[rows])),
            _finite(pearson(opening[rows][is_said], true[rows][is_said])),
        )


def heard_with(ear: Ear | None, sound: Float) -> Float:
    """Sound frames (T, `COLUMNS` + M) as far as they are heard."""
    return sound if ear is not None else sound[:, :COLUMNS]


def _modes(material: Material, known: Rows, count: int) -> tuple[Float, Float, Float]:
    """Middle (C,), principal axes (K, C) of a mouth without its drift, and its modes (T, K), 0 where it is held out."""
    mouth = material.mouth
    learned = np.arange(material.border)
    filled = np.stack([np.interp(learned, known, column[known]) for column in mouth.T], axis=1)
    lively = np.zeros_like(mouth)
    lively[learned] = filled - gaussian_filter1d(filled, DRIFT_S * FRAME_RATE, axis=0)
    middle = mouth[known].mean(axis=0)
    _, _, axes = np.linalg.svd(lively[known], full_matrices=False)
    axes = axes[:count]
    return middle, axes, lively @ axes.T


def _finite(value: float) -> float:
    return value if np.isfinite(value) else 0.0
