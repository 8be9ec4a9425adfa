"""The personal driver: how one person's mouth moves when they speak. MAIN: `PersonalStream.push`, `offsets`.

It starts from the general driver's mouth and says what is to be added: a Gaussian process gives the mouth that this
person is expected to make (`mouth_regression`), a diffusion transformer how they move about it (`motion_transformer`).
Where the sound is unlike all that was heard of this person, and where there is silence, nothing is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.errors import BundleError
from omokage.speaking.driver import CLOSED, Articulation, speaking
from omokage.speaking.encoded import Reduction
from omokage.speaking.motion_transformer import (
    MotionConditions,
    MotionTransformer,
    SamplerConfig,
    TransformerConfig,
    sample,
)
from omokage.speaking.mouth_regression import MouthRegression
from omokage.speaking.sound_frames import COLUMNS, FUTURE, PAST, SoundFrames, silence
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.visemes import NAMES, shapes

Float = NDArray[np.float64]

CHANNELS = tuple(i for i, name in enumerate(BLENDSHAPES) if name.startswith(("mouth", "jaw")))
CLOSED_FULL = 0.7  # the weight of closed lips at which the general driver decides alone


@dataclass(frozen=True)
class MouthModes:
    """The mouth of one person, in ways from rest with shut lips, as `driver.motion` has them.

    middle (C,), axes (K, C): principal components of the expressions `CHANNELS`.  deviations (K,): of what the
    regression leaves over.  reach (C,): factors that fit the general driver to this person.
    """

    middle: Float
    axes: Float
    deviations: Float
    reach: Float

    def general(self, visemes: Float) -> Float:
        """The general driver's mouth (T, C) of viseme weights (T, 10)."""
        return np.asarray((visemes @ shapes())[:, CHANNELS] * self.reach)


@dataclass(frozen=True)
class SoundScale:
    """center, scale (`COLUMNS`,): of sound frames, as the networks hear them."""

    center: Float
    scale: Float


@dataclass(frozen=True)
class Ear:
    """A speech encoder that listens too. digest: of its weights.  reduction: what is kept of its channels."""

    digest: str
    reduction: Reduction


@dataclass(frozen=True)
class PersonalDriver:
    """Everything that was learned of one person; `networks`: each draws samples, and the mean of all is taken.

    strength: of what the networks add to the regression.  share: of the way from the general driver's mouth.
    ear: the encoder whose `Articulation.encoded` the regression needs, None when it needs none.
    """

    config: TransformerConfig
    sampler: SamplerConfig
    modes: MouthModes
    sound: SoundScale
    regression: MouthRegression
    networks: tuple[MotionTransformer, ...]
    strength: float
    share: float
    ear: Ear | None = None

    def settings(self) -> dict[str, Any]:
        """What is no array, as JSON values."""
        return {
            "transformer": self.config.to_json(),
            "sampler": self.sampler.to_json(),
            "networks": len(self.networks),
            "strength": self.strength,
            "share": self.share,
            "encoder": None if self.ear is None else self.ear.digest,
        }

    def arrays(self) -> dict[str, Tensor]:
        """All numbers by name, float32."""
        parts: dict[str, MouthModes | SoundScale | MouthRegression | Reduction] = {
            "modes": self.modes,
            "sound": self.sound,
            "regression": self.regression,
        }
        if self.ear is not None:
            parts["encoder"] = self.ear.reduction
        arrays = {
            f"{name}.{f.name}": torch.from_numpy(np.asarray(getattr(part, f.name), np.float32))
            for name, part in parts.items()
            for f in fields(part)
        }
        for number, network in enumerate(self.networks):
            arrays |= {f"network.{number}.{name}": value for name, value in network.state_dict().items()}
        return arrays

    @classmethod
    def of(cls, settings: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `arrays`. Raises BundleError when they do not fit together."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n[len(prefix) + 1 :]: t for n, t in arrays.items() if n.startswith(prefix + ".")}

        def numbers(prefix: str) -> dict[str, Float]:
            return {name: tensor.numpy().astype(np.float64) for name, tensor in part(prefix).items()}

        try:
            config = TransformerConfig.from_json(settings["transformer"])
            networks = []
            for number in range(settings["networks"]):
                network = MotionTransformer(config)
                network.load_state_dict(part(f"network.{number}"))
                networks.append(network.eval().requires_grad_(False))
            digest = settings.get("encoder")
            return cls(
                config,
                SamplerConfig.from_json(settings["sampler"]),
                MouthModes(**numbers("modes")),
                SoundScale(**numbers("sound")),
                MouthRegression(**numbers("regression")),
                tuple(networks),
                float(settings["strength"]),
                float(settings["share"]),
                None if digest is None else Ear(str(digest), Reduction(**numbers("encoder"))),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"what the avatar learned of this person's speech is damaged ({error}); learn it again with "
                "'omokage learn-speech', or speak with --driver general"
            ) from error


class PersonalStream:
    """Offsets for a sound that comes in pieces; what comes out does not depend on how it was cut.

    A frame is ready when its window of `TransformerConfig.window` frames and the sound `FUTURE` frames beyond are
    there. The same seed gives the same motion.
    """

    def __init__(self, driver: PersonalDriver, seed: int = 0) -> None:
        config = driver.config
        self._driver, self._seed = driver, seed
        encoded = 0 if driver.ear is None else driver.ear.reduction.axes.shape[1]
        self._frames, self._silence = SoundFrames(encoded), silence(encoded)
        self._sound = np.tile(self._silence, (PAST + config.previous, 1))
        self._visemes = np.zeros((0, len(NAMES)))
        self._previous = [
            torch.zeros(driver.sampler.samples, config.previous, config.modes) for _ in driver.networks
        ]
        self._window = 0

    def push(self, articulation: Articulation, *, is_end: bool = False) -> Float:
        """What is to be added to the expressions (T, 52) of the next frames, 25 a second, as ways from rest.

        is_end: silence follows, and all that is left comes out.
        """
        config = self._driver.config
        sound, visemes = self._frames.push(articulation, is_end=is_end)
        self._sound = np.concatenate([self._sound, sound])
        self._visemes = np.concatenate([self._visemes, visemes])
        if is_end:
            missing = np.tile(self._silence, (config.window + FUTURE, 1))
            self._sound = np.concatenate([self._sound, missing])
        pieces = [np.zeros((0, len(BLENDSHAPES)))]
        while len(self._visemes) and len(self._sound) >= config.heard:
            pieces.append(self._next())
        return np.concatenate(pieces)

    def _next(self) -> Float:
        driver, config = self._driver, self._driver.config
        sound, visemes = self._sound[: config.heard], self._visemes[: config.window]
        expected, trust = driver.regression.predict(sound)
        modes = expected[config.previous :].copy()
        trust = trust[config.previous :]
        if driver.networks and driver.strength:
            modes += driver.strength * driver.modes.deviations * self._motion(sound, expected)
        mouth = np.clip(driver.modes.middle + modes @ driver.modes.axes, 0, 1)
        count = len(visemes)
        weight = driver.share * trust[:count] * openness(visemes)
        offsets = np.zeros((count, len(BLENDSHAPES)))
        offsets[:, CHANNELS] = weight[:, None] * (mouth[:count] - driver.modes.general(visemes))
        self._sound, self._visemes = self._sound[config.window :], self._visemes[config.window :]
        self._window += 1
        return offsets

    def _motion(self, sound: Float, expected: Float) -> Float:
        """What the networks add in this window (W, K), in deviations."""
        driver, config = self._driver, self._driver.config
        random = torch.Generator().manual_seed(1_000_003 * self._seed + self._window)
        heard = torch.from_numpy((sound[:, :COLUMNS] - driver.sound.center) / driver.sound.scale).float()
        around = torch.from_numpy(expected / driver.modes.deviations).float()
        count = driver.sampler.samples
        known = torch.full((count,), float(self._window > 0))
        motion = []
        for number, network in enumerate(driver.networks):
            noise = torch.randn(count, config.window, config.modes, generator=random)
            given = MotionConditions(
                heard.expand(count, -1, -1),
                around.expand(count, -1, -1),
                self._previous[number],
                torch.ones(count),
                known,
            )
            drawn = sample(network, noise, given, driver.sampler)
            self._previous[number] = torch.cat([self._previous[number], drawn], dim=1)[:, -config.previous :]
            motion.append(drawn)
        return np.asarray(torch.cat(motion).mean(dim=0).numpy(), dtype=np.float64)


def offsets(driver: PersonalDriver, articulation: Articulation, seed: int = 0) -> Float:
    """What is to be added to the expressions (T, 52) of a whole sound, 25 frames a second."""
    return PersonalStream(driver, seed).push(articulation, is_end=True)


def openness(visemes: Float) -> Float:
    """How far (T,) the personal driver may move the lips: not in silence, and not while they must meet."""
    return np.asarray(speaking(visemes) * (1 - np.clip(visemes[:, CLOSED] / CLOSED_FULL, 0, 1)))
