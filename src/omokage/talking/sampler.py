"""From noise to the clean latents of one window: the denoising loop with classifier-free guidance.

The state stays in float32 whatever the precision of the network. All draws come from outside, so that the same noise
gives the same video on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from omokage.talking.caches import Conditions, Modulation, Source
from omokage.talking.config import SamplerConfig
from omokage.talking.parallel import Team, TokenShare
from omokage.talking.reuse import Residuals, pass_or_reuse
from omokage.talking.scheduler import Step
from omokage.talking.transformer import Transformer

# State (B, T, C, h, w) and index of the step -> velocity, same shape.
Velocity = Callable[[Tensor, int], Tensor]
# Index of a step -> the Gaussian noise that its update adds, of the state's shape.
StepNoise = Callable[[int], Tensor]


@dataclass(frozen=True)
class Denoised:
    """After a step: the new state, and the clean estimate that led to it; the same at the last step."""

    step: Step
    state: Tensor
    clean: Tensor


def denoise(
    velocity: Velocity, steps: tuple[Step, ...], start: Tensor, noise: StepNoise
) -> Iterator[Denoised]:
    """MAIN: the steps of the solver, one after the other (spec 6.3)."""
    state = start.float()
    previous = torch.zeros_like(state)
    for index, step in enumerate(steps):
        clean = step.clean(state, velocity(state, index).float())
        if step.update is None:
            state = clean
        else:
            update = step.update
            direction = update.current * clean - update.previous * previous
            state = update.state * state + update.clean * direction
            if update.noise:
                state = state + update.noise * noise(index).to(state)
        previous = clean
        yield Denoised(step, state, clean)


def guided_velocity(
    transformer: Transformer,
    table: Modulation,
    conditions: Conditions,
    null: Conditions,
    config: SamplerConfig,
    team: Team | None = None,
) -> Velocity:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6): null + scale * (conditioned - null), in float32.

    The scale is constant, as in the official code (spec 6.1.1); at 1, and outside the interval in which guidance works,
    the null conditions are not evaluated.
    `table`: modulation of all steps. `config.together`: both halves in one batch, which reads all weights once; else
    one after the other, which needs half the memory. `team`: processes that share the work, all of which evaluate the
    result together and come to the same numbers. The result belongs to one run: it remembers what steps reuse.
    """
    pair, share = (None, None) if team is None else (team.pair, team.share)
    joined = null.join(conditions) if config.together else conditions
    toward_pass, away_pass, joint_pass = (_network_pass(transformer, table, config, share) for _ in range(3))

    def velocity(state: Tensor, index: int) -> Tensor:
        if pair is not None:
            is_idle = pair.is_null and not config.is_guided(index)
            mine, told = (away_pass, null) if pair.is_null else (toward_pass, conditions)
            away, toward = pair.exchange(torch.zeros_like(state) if is_idle else mine(state, index, told))
            return away + config.guidance_scale * (toward - away) if config.is_guided(index) else toward
        if not config.is_guided(index):
            return toward_pass(state, index, conditions)
        if config.together:
            away, toward = joint_pass(torch.cat([state, state]), index, joined).chunk(2)
        else:
            away = away_pass(state, index, null)
            toward = toward_pass(state, index, conditions)
        return away + config.guidance_scale * (toward - away)

    return velocity


def _network_pass(
    transformer: Transformer, table: Modulation, config: SamplerConfig, share: TokenShare | None
) -> Callable[[Tensor, int, Conditions], Tensor]:
    """State, step and conditions -> velocity in float32; step after step of one run and one kind of conditions."""
    before: Residuals | None = None

    def evaluate(state: Tensor, index: int, conditions: Conditions) -> Tensor:
        nonlocal before
        if not config.reuse_threshold:
            plain: Tensor = transformer(state, table.row(index), conditions, share)
            return plain.float()
        done = pass_or_reuse(
            transformer, state, table.row(index), conditions, before, config.reuse_threshold, share
        )
        before = done.residuals
        return done.velocity.float()

    return evaluate


def null_conditions(conditions: Conditions, null_audio: tuple[Source, ...] | None) -> Conditions:
    """The other half of guidance (spec 6.1.2): no words and the tokens of silent speech features; face, portrait and
    motion frames stay.

    `null_audio`: what zero windows become; they are not zero themselves, and belong to the model, not to the request.
    """
    return replace(conditions, text=torch.zeros_like(conditions.text), audio=null_audio)


def draw_noise(shape: tuple[int, ...], *key: int) -> Tensor:
    """Gaussian noise, float32, that depends on nothing but the key: seed, window, step and so on (each 0 or more).

    Drawn on the CPU: a window can be repeated after a crash, on another machine, without those before it.
    """
    # A seed sequence ignores zeros at its end; with the length before them, keys of any length differ.
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((len(key), *key))))
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
