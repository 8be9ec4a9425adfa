"""The noise schedule: from timesteps to noise levels, sampling updates and the training loss.

`alpha` is the share of clean latents in a noisy state, sqrt(alpha_bar); the share of noise is sqrt(1 - alpha^2). The
network predicts the velocity v = alpha noise - sqrt(1 - alpha^2) clean (Salimans & Ho 2022, section 4). The last
timestep holds no signal at all (zero terminal SNR; Lin et al. 2024, section 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from omokage.errors import InputError

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


@dataclass(frozen=True)
class Update:
    """How a state follows from the one before: state * x + clean * D + noise * gaussian, where
    D = current * (clean estimate) - previous * (clean estimate of the step before)."""

    state: float
    clean: float
    current: float
    previous: float
    noise: float


@dataclass(frozen=True)
class Step:
    """One evaluation of the network.

    timestep: what the network is told.
    alpha: of the state that it sees.
    clean_alpha: the level with which its velocity becomes a clean estimate, close to `alpha` but not the same.
    clean_row: row of `alpha_table` that holds it.
    update: to the next state; None at the last step, whose result is the clean estimate itself.
    """

    timestep: int
    alpha: float
    clean_alpha: float
    clean_row: int
    update: Update | None

    def clean(self, state: Tensor, velocity: Tensor) -> Tensor:
        """Clean estimate of a state, from the velocity predicted for it."""
        return self.clean_alpha * state - math.sqrt(1 - self.clean_alpha**2) * velocity


def _unscaled_table() -> Tensor:
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).sqrt()


def _without_terminal_signal(alphas: Tensor) -> Tensor:
    """Shift and stretch levels in the order of timesteps so that the first stays and the last becomes 0."""
    return (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])


def alpha_table() -> Tensor:
    """alpha of every timestep, (1000,) float64, index = timestep, zero at the last."""
    return _without_terminal_signal(_unscaled_table())


def sampling_steps(count: int, *, stochastic: bool = True) -> tuple[Step, ...]:
    """`count` steps of the second-order multistep DPM-Solver++ (Lu et al. 2022, algorithm 2), from noise to clean.

    stochastic: the solver of the reverse SDE, which adds noise at every step but the last; else that of the ODE.
    Raises InputError unless 2 <= count <= 1000.

    Two details of the official code are kept (spec 6.3, differences A and B): the levels are freed of their terminal
    signal after they were picked from the table, and the clean estimate uses the nearest level of the whole table.
    """
    if not 2 <= count <= TIMESTEPS:
        raise InputError(f"sampling takes 2 to {TIMESTEPS} steps, got {count}")
    table = alpha_table()
    timesteps = [(TIMESTEPS - 1) * (count - done) // count for done in range(count)]
    alphas: list[float] = _without_terminal_signal(_unscaled_table()[timesteps[::-1]]).flip(0).tolist()
    steps, decay_before = [], 0.0
    for index, (timestep, alpha) in enumerate(zip(timesteps, alphas, strict=True)):
        row = int((table - alpha).abs().argmin())
        update = None
        if index + 1 < count:
            decay = _decay(alpha, alphas[index + 1])
            update = _update(alpha, alphas[index + 1], decay, decay_before, stochastic=stochastic)
            decay_before = decay
        steps.append(Step(timestep, alpha, float(table[row]), row, update))
    return tuple(steps)


def _decay(alpha: float, to: float) -> float:
    """exp(-h), where h is the growth of log(alpha / sigma) from one level to the next; 0 where there was no signal."""
    return alpha * math.sqrt(1 - to**2) / (to * math.sqrt(1 - alpha**2))


def _update(alpha: float, to: float, decay: float, decay_before: float, *, stochastic: bool) -> Update:
    """The solver's step between two levels; `decay_before`: that of the step before, 0 if it had none or no signal."""
    sigma, sigma_to = math.sqrt(1 - alpha**2), math.sqrt(1 - to**2)
    # From no signal at all h is infinite: the step before then says nothing about the slope.
    slope = math.log(decay) / math.log(decay_before) / 2 if decay_before > 0 else 0.0
    if stochastic:
        state, kept, noise = sigma_to / sigma * decay, decay**2, sigma_to * math.sqrt(1 - decay**2)
    else:
        state, kept, noise = sigma_to / sigma, decay, 0.0
    return Update(state=state, clean=to * (1 - kept), current=1 + slope, previous=slope, noise=noise)


def training_timesteps(
    count: int, *, rank: int = 0, world: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """`count` uniform timesteps (count,) int64; each of `world` processes draws from its own slice of 0 to 999."""
    low, high = TIMESTEPS * rank // world, TIMESTEPS * (rank + 1) // world
    return torch.randint(low, high, (count,), generator=generator)


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The state of clean latents (B, ...) at timesteps (B,) int64."""
    alpha, sigma = _levels(timesteps, clean)
    return alpha * clean + sigma * noise


def velocity_loss(
    velocity: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of a predicted velocity (B, ...), of each sample: (B,), in float32.

    The same as the error of the clean estimate weighted by 1 / (1 - alpha^2), which the official code writes.
    `weight`: of every squared error, of a shape that spreads to the velocity's; None is 1 everywhere, as published.
    """
    alpha, sigma = _levels(timesteps, clean)
    errors = (velocity.float() - (alpha * noise - sigma * clean)).square()
    return (errors if weight is None else weight * errors).flatten(1).mean(dim=1)


def _levels(timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of timesteps (B,), float32, shaped to multiply (B, ...)."""
    alpha = alpha_table()[timesteps.cpu()].view(-1, *(1,) * (like.dim() - 1))
    sigma = (1 - alpha**2).sqrt()
    return alpha.float().to(like.device), sigma.float().to(like.device)
