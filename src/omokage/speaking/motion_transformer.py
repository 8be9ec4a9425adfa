"""A small diffusion transformer over the modes of one person's mouth, and its sampler. MAIN: `sample`.

It sees the previous frames of the motion, clean, and the noisy ones of a window; it hears the sound about them through
cross-attention. Trained on straight paths from noise to motion (Lipman et al. 2023, "Flow Matching for Generative
Modeling") it predicts the motion itself, so that a few Euler steps are enough. Either condition is left out at times
in training, for guidance by each of them (Ho & Salimans 2022, "Classifier-Free Diffusion Guidance").

Shapes: B batch, P previous frames, W frames of a window, T = P + W, L frames of sound, K modes, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.config import Config
from omokage.errors import InputError
from omokage.speaking.sound_frames import COLUMNS, FUTURE, PAST


@dataclass(frozen=True)
class TransformerConfig(Config):
    """modes: of the mouth.  previous, window: frames at 25 a second."""

    modes: int = 8
    previous: int = 8
    window: int = 8
    width: int = 48
    heads: int = 4
    layers: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if min(self.modes, self.previous, self.window, self.width, self.heads, self.layers) < 1:
            raise InputError("a motion transformer needs at least one of everything")
        if self.width % self.heads:
            raise InputError(f"width {self.width} must be a multiple of the {self.heads} heads")

    @property
    def frames(self) -> int:
        """Of motion that it sees at once."""
        return self.previous + self.window

    @property
    def heard(self) -> int:
        """Frames of sound that it hears at once: those of the motion, and beside them."""
        return PAST + self.frames + FUTURE


@dataclass(frozen=True)
class SamplerConfig(Config):
    """steps: of Euler's method.  sound, previous: guidance scales, 1 is none.  samples: drawn, for their mean."""

    steps: int = 3
    sound: float = 1.25
    previous: float = 1.0
    samples: int = 4


@dataclass(frozen=True)
class MotionConditions:
    """sound (B, L, C): standardised sound frames.  expected (B, T, K): the regression's mouth.  previous (B, P, K).

    has_sound, has_previous: (B,) of 0 and 1; what is 0 is left out.
    """

    sound: Tensor
    expected: Tensor
    previous: Tensor
    has_sound: Tensor
    has_previous: Tensor


class _Block(nn.Module):
    """Self-attention over the motion, cross-attention to the sound, both moved by how much noise there is."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(3)])
        self.motion = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        self.sound = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, heard: Tensor, noise: Tensor) -> Tensor:
        changes = self.modulation(noise)[:, None].chunk(6, dim=-1)
        scales, shifts = changes[:3], changes[3:]

        def normed(part: int) -> Tensor:
            return torch.as_tensor(self.norms[part](tokens) * (1 + scales[part]) + shifts[part])

        asked = normed(0)
        tokens = tokens + self.motion(asked, asked, asked, need_weights=False)[0]
        tokens = tokens + self.sound(normed(1), heard, heard, need_weights=False)[0]
        return tokens + torch.as_tensor(self.feed(normed(2)))


class MotionTransformer(nn.Module):
    """Noisy motion of a window -> the motion, both as modes of what is left over the expected mouth, in deviations."""

    places: Tensor
    heard_places: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.motion = nn.Linear(2 * config.modes + 1, width)
        self.sound = nn.Linear(COLUMNS, width)
        # Motion and sound at the same time are at the same place.
        places = _waves((torch.arange(config.heard) - PAST).float() / config.frames, width)
        self.register_buffer("heard_places", places, persistent=False)
        self.register_buffer("places", places[PAST : PAST + config.frames], persistent=False)
        self.no_sound = nn.Parameter(torch.zeros(width))
        self.no_previous = nn.Parameter(torch.zeros(config.modes))
        self.noise = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, config.modes)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, noisy: Tensor, share: Tensor, given: MotionConditions) -> Tensor:
        """noisy: (B, W, K).  share: (B,), how much of it is motion.  Gives (B, W, K)."""
        has_previous = given.has_previous[:, None, None]
        previous = torch.where(has_previous > 0, given.previous, self.no_previous)
        has_sound = given.has_sound[:, None, None]
        expected = given.expected * has_sound
        is_new = torch.zeros(*expected.shape[:2], 1)
        is_new[:, self.config.previous :] = 1
        tokens = self.motion(torch.cat([torch.cat([previous, noisy], 1), expected, is_new], 2)) + self.places
        heard = torch.where(has_sound > 0, self.sound(given.sound), self.no_sound) + self.heard_places
        noise = self.noise(_waves(share, self.config.width))
        for block in self.blocks:
            tokens = block(tokens, heard, noise)
        return torch.as_tensor(self.output(self.norm(tokens[:, self.config.previous :])))


def flow_loss(
    network: MotionTransformer, motion: Tensor, given: MotionConditions, noise: Tensor, share: Tensor
) -> Tensor:
    """Square error of the motion (B, W, K) that is found in its mixture with noise (B, W, K), and of its speed.

    share: (B,) of motion in the mixture.
    """
    mixed = share[:, None, None] * motion + (1 - share[:, None, None]) * noise
    found = network(mixed, share, given)
    last = given.previous[:, -1:] * given.has_previous[:, None, None]
    speed, known_speed = (torch.diff(values, dim=1, prepend=last) for values in (found, motion))
    return F.mse_loss(found, motion) + F.mse_loss(speed, known_speed)


@torch.no_grad()
def sample(
    network: MotionTransformer, noise: Tensor, given: MotionConditions, config: SamplerConfig
) -> Tensor:
    """Motion (B, W, K) from noise (B, W, K), by Euler steps along the predicted straight paths."""
    motion = noise
    for step in range(config.steps):
        share = step / config.steps
        found = _guided(network, motion, share, given, config)
        # Where the path ends if it goes straight on from here; the last step arrives.
        motion = motion + (found - motion) / (config.steps - step)
    return motion


def _guided(
    network: MotionTransformer, motion: Tensor, share: float, given: MotionConditions, config: SamplerConfig
) -> Tensor:
    """One prediction, away from what it would be without sound, and without previous frames."""
    count = len(motion)
    ones, zeros = torch.ones(count), torch.zeros(count)
    # Nothing known; previous frames alone; both.
    sound, previous = torch.cat([zeros, zeros, ones]), torch.cat([zeros, ones, ones])
    three = MotionConditions(
        given.sound.repeat(3, 1, 1),
        given.expected.repeat(3, 1, 1),
        given.previous.repeat(3, 1, 1),
        sound * given.has_sound.repeat(3),
        previous * given.has_previous.repeat(3),
    )
    found = network(motion.repeat(3, 1, 1), torch.full((3 * count,), share), three)
    nothing, before, both = found.chunk(3)
    return torch.as_tensor(nothing + config.previous * (before - nothing) + config.sound * (both - before))


def _waves(share: Tensor, width: int) -> Tensor:
    """Sines and cosines (B, D) of a number (B,) in [0, 1]."""
    speeds = torch.exp(torch.arange(width // 2) * (math.log(1000.0) / (width // 2)))
    angles = share[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], dim=1)
