"""The noise schedule and the denoising loop against golden numbers, and against a distribution known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_fill import Golden
from omokage.errors import InputError
from omokage.talking.caches import Conditions
from omokage.talking.config import SamplerConfig, official_sampler
from omokage.talking.sampler import StepNoise, Velocity, denoise, draw_noise, guided_velocity, null_conditions
from omokage.talking.scheduler import (
    Step,
    add_noise,
    alpha_table,
    sampling_steps,
    training_timesteps,
    velocity_loss,
)
from omokage.talking.transformer import Transformer
from test_talking_transformer import SHARE, load

STEPS = 6


def sample(
    network: Transformer,
    conditions: Conditions,
    null: Conditions,
    config: SamplerConfig,
    start: Tensor,
    noise: StepNoise,
) -> Tensor:
    """Gaussian `start` -> clean latents: the parts of the sampler in turn, as a window does it."""
    steps = sampling_steps(config.steps, stochastic=config.stochastic)
    with torch.no_grad():
        table = network.modulation(torch.tensor([step.timestep for step in steps]))
        velocity = guided_velocity(network, table, conditions, null, config)
        *_, last = denoise(velocity, steps, start, noise)
    return last.clean


class Run:
    """The golden run: networks, conditions and injected noise."""

    def __init__(self) -> None:
        self.golden = Golden("hallo3_sampler")
        self.network: Transformer = load(self.golden, "model")
        tokens = load(self.golden, "ref_model").reference_tokens(self.given("reference_latent"))
        speech = self.given("audio")
        self.conditions = Conditions(
            text=self.given("text"),
            latents=self.given("concat"),
            reference=self.network.cache_reference(tokens).layers,
            face=self.network.cache_face(self.given("face")).layers,
            audio=self.network.cache_audio(speech).layers,
        )
        silence = self.network.cache_audio(torch.zeros_like(speech)).layers
        self.null = null_conditions(self.conditions, silence)

    def given(self, name: str) -> Tensor:
        return torch.from_numpy(self.golden.input(name))

    def noise(self, step: int) -> Tensor:
        return self.given(f"noise.{step}")


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_the_table_of_all_timesteps() -> None:
    Golden("hallo3_schedule").check("table_1000", alpha_table().numpy(), share=SHARE)


@pytest.mark.parametrize("count", [50, 30, 20, 6])
def test_levels_timesteps_and_updates(count: int) -> None:
    golden, steps = Golden("hallo3_schedule"), sampling_steps(count)
    updates = [step.update for step in steps[:-1]]
    measured = {
        "alpha": [*(step.alpha for step in steps), 1.0],
        "timestep": [step.timestep for step in steps],
        "table_index": [step.clean_row for step in steps],
        "coefficients": [(u.state, -u.clean, u.current, u.previous, u.noise) for u in updates],
    }
    for name, values in measured.items():
        golden.check(f"steps_{count}.{name}", np.array(values), share=SHARE)
    assert steps[-1].update is None
    assert [step.clean_alpha for step in steps] == alpha_table()[[step.clean_row for step in steps]].tolist()


@pytest.mark.parametrize("together", [True, False])
def test_a_guided_run_step_by_step(run: Run, together: bool) -> None:
    steps = sampling_steps(STEPS)
    table = run.network.modulation(torch.tensor([step.timestep for step in steps]))
    guidance = run.golden.config["guidance"]
    config = replace(official_sampler(), steps=STEPS, guidance_scale=guidance, together=together)
    velocity = guided_velocity(run.network, table, run.conditions, run.null, config)
    reached = list(denoise(velocity, steps, run.given("noise.init"), run.noise))
    assert len(reached) == STEPS
    for index, denoised in enumerate(reached):
        run.golden.check(f"clean.{index}", denoised.clean.numpy(), share=SHARE)
        if index + 1 < STEPS:
            run.golden.check(f"x.{index}", denoised.state.numpy(), share=SHARE)
    assert torch.equal(reached[-1].state, reached[-1].clean)


def test_sample_is_that_run(run: Run) -> None:
    config = replace(official_sampler(), steps=STEPS)
    start = run.given("noise.init")
    clean = sample(run.network, run.conditions, run.null, config, start, run.noise)
    run.golden.check("clean.5", clean.numpy(), share=SHARE)
    assert torch.equal(start, run.given("noise.init"))


def test_guidance_of_one_is_the_conditions_alone(run: Run) -> None:
    """The null conditions are not even looked at."""
    steps = sampling_steps(STEPS)
    table = run.network.modulation(torch.tensor([step.timestep for step in steps]))
    state, nothing = (
        run.given("noise.init"),
        replace(run.null, text=torch.full_like(run.null.text, torch.nan)),
    )
    alone = run.network(state, table.row(2), run.conditions)
    for together in (True, False):
        config = replace(official_sampler(), guidance_scale=1, together=together)
        velocity = guided_velocity(run.network, table, run.conditions, nothing, config)
        assert torch.equal(velocity(state, 2), alone)


def test_null_conditions_keep_the_portrait(run: Run) -> None:
    assert run.null.text.abs().max() == 0
    assert run.null.reference is run.conditions.reference
    assert run.null.face is run.conditions.face and run.null.latents is run.conditions.latents
    assert run.null.audio is not run.conditions.audio


def gaussian_velocity(steps: tuple[Step, ...], mean: float, deviation: float) -> Velocity:
    """The exact velocity when clean latents are normal with this mean and deviation."""

    def velocity(state: Tensor, index: int) -> Tensor:
        alpha = steps[index].clean_alpha
        sigma = math.sqrt(1 - alpha**2)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        clean = mean + gain * (state - alpha * mean)
        return (alpha * state - clean) / sigma

    return velocity


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_normal_distribution_is_sampled_as_such(stochastic: bool) -> None:
    """From exact velocities both solvers reach the mean and the deviation; nothing is divided by the level zero."""
    steps = sampling_steps(100, stochastic=stochastic)
    shape, mean, deviation = (40_000,), 0.7, 0.4
    velocity = gaussian_velocity(steps, mean, deviation)
    *_, last = denoise(velocity, steps, draw_noise(shape, 1), lambda step: draw_noise(shape, 2, step))
    assert torch.isfinite(last.clean).all()
    assert last.clean.mean().item() == pytest.approx(mean, abs=0.01)
    assert last.clean.std().item() == pytest.approx(deviation, rel=0.04)


def test_the_ode_solver_draws_nothing() -> None:
    steps = sampling_steps(10, stochastic=False)

    def no_noise(step: int) -> Tensor:
        raise AssertionError(f"noise was drawn at step {step}")

    assert len(list(denoise(gaussian_velocity(steps, 0, 1), steps, draw_noise((8,), 3), no_noise))) == 10


def test_more_steps_bring_the_ode_solver_closer() -> None:
    """Second order: with exact velocities the error falls faster than the step."""
    mean, deviation, start = 0.7, 0.4, draw_noise((1000,), 4)
    errors = []
    for count in (10, 40):
        steps = sampling_steps(count, stochastic=False)
        *_, last = denoise(gaussian_velocity(steps, mean, deviation), steps, start, lambda _: start)
        # What is left of the noise in the last level stays: compare with the exact map to the last clean estimate.
        errors.append(float((last.clean - (mean + deviation * start)).abs().mean()))
    assert errors[1] < errors[0] / 3


def test_noise_depends_on_its_key_alone() -> None:
    first = draw_noise((2, 3), 7, 0, 1)
    assert first.dtype == torch.float32
    assert torch.equal(first, draw_noise((2, 3), 7, 0, 1))
    others = [draw_noise((2, 3), *key) for key in ((7, 1, 0), (7, 0, 2), (8, 0, 1), (7, 0), (7, 0, 1, 0))]
    assert not any(torch.equal(first, other) for other in others)
    # The first numbers of this stream, so that a seed keeps its meaning.
    expected = torch.tensor([0.1854564, -0.5984622, 2.1907449])
    torch.testing.assert_close(draw_noise((3,), 7, 0, 1), expected, rtol=0, atol=1e-6)


def test_noise_free_and_signal_free_states() -> None:
    clean, noise = draw_noise((2, 4, 3), 5), draw_noise((2, 4, 3), 6)
    state = add_noise(clean, noise, torch.tensor([999, 0]))
    assert torch.equal(state[0], noise[0])
    assert (state[1] - clean[1]).abs().max() < 0.1


def test_the_loss_is_the_weighted_error_of_the_clean_estimate() -> None:
    clean, noise, velocity = (draw_noise((2, 4, 3), 9, i) for i in range(3))
    timesteps = torch.tensor([500, 40])
    alpha = alpha_table()[timesteps].view(2, 1, 1)
    estimate = alpha * add_noise(clean, noise, timesteps) - (1 - alpha**2).sqrt() * velocity
    weighted = ((estimate - clean) ** 2 / (1 - alpha**2)).flatten(1).mean(1)
    torch.testing.assert_close(
        velocity_loss(velocity, clean, noise, timesteps), weighted.float(), rtol=1e-4, atol=0
    )


def test_each_process_trains_on_its_own_timesteps() -> None:
    generator = torch.Generator().manual_seed(0)
    slices = [training_timesteps(4000, rank=rank, world=3, generator=generator) for rank in range(3)]
    assert [(int(s.min()), int(s.max())) for s in slices] == [(0, 332), (333, 665), (666, 999)]
    assert training_timesteps(20_000, generator=generator).float().mean().item() == pytest.approx(
        499.5, rel=0.02
    )


@pytest.mark.parametrize("count", [1, 1001])
def test_impossible_numbers_of_steps(count: int) -> None:
    with pytest.raises(InputError, match=f"2 to 1000 steps, got {count}"):
        sampling_steps(count)
