"""The phases of a training of the paper's networks: when the discriminator speaks, and when textures learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omokage.avatar.bundle import Provenance
from omokage.avatar.paper import train as module
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.discriminator import generator_loss
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.run import PaperRun, PaperTrainingConfig
from omokage.avatar.paper.train import (
    RAMP,
    Learner,
    PaperResult,
    draw_window,
    held_out_psnr,
    joined,
    train_paper,
)
from omokage.config import Progress
from omokage.pipelines.create_paper import paper_avatar
from omokage.workers import Workers
from paper_parts import PICTURES_ALONE, TINY, first_batches, toy_run, toy_store

ALONE = Workers.alone()
MADE = Provenance("0", "me", "me", "", False, None, 1.0, 4, "0")


class Stopped(Exception):
    pass


def stopped_and_resumed(
    config: PaperTrainingConfig, stores: list[FrameStore], checkpoint: Path, *, at: int
) -> tuple[PaperRun, PaperResult]:
    """Of a run that was stopped in step `at`, and whose checkpoint another process goes on with."""
    config, first = replace(config, checkpoint_seconds=0.0), toy_run(config, stores)

    def stop(_: Progress) -> None:
        if first.step == at:
            raise Stopped

    with pytest.raises(Stopped):
        train_paper(first, stores, config, checkpoint=checkpoint, on_progress=stop)
    other = toy_run(replace(config, seed=5), stores)  # other first weights: all is in the checkpoint
    return other, train_paper(other, stores, config, checkpoint=checkpoint)


def differing(one: PaperRun, other: PaperRun) -> list[str]:
    """Names of what is not the same in both."""
    state = other.named_state()
    return [name for name, value in one.named_state().items() if not torch.equal(value, state[name])]


# the adversarial part


@pytest.fixture(scope="module")
def late() -> PaperTrainingConfig:
    """The discriminator takes part after a quarter; no gradient is cut, so that parts add up."""
    return replace(TINY, batch=2, adversarial_from=0.25, clip=1e9, r1=0.0, texture_share=1.0)


def gradients(
    config: PaperTrainingConfig, stores: list[FrameStore], share: float, trust: float = 1.0
) -> Tensor:
    """Of everything that the generator's step teaches, where it is at `share` of the budget."""
    run = toy_run(config, stores)
    run.critic_trust = trust
    learner, kept = Learner(run, config, ALONE, None), list[Tensor]()
    taught = {run.optimizer: (run.generator,), run.texture_optimizer: (run.face, run.background)}
    for optimizer, networks in taught.items():
        values = [value for network in networks for value in network.parameters()]
        optimizer.step = lambda values=values: kept.extend(  # type: ignore[method-assign, misc, assignment]
            torch.zeros_like(value).flatten() if value.grad is None else value.grad.clone().flatten()
            for value in values
        )
    learner.step(first_batches(run, stores, config), [0, 1], share)
    return torch.cat(kept)


def test_the_adversarial_part_begins_late_and_grows_and_is_as_strong_as_it_is_trusted(
    late: PaperTrainingConfig, stores: list[FrameStore]
) -> None:
    without = gradients(replace(late, adversarial=0.0), stores, 0.5)
    for share in (0.2, 0.25):
        assert torch.equal(gradients(late, stores, share), without)
    whole = gradients(late, stores, 0.25 + RAMP) - without
    assert float(whole.norm()) > 1e-2 * float(without.norm())
    for share, trust, strength in (
        (0.9, 1.0, 1.0),
        (0.25 + RAMP / 2, 0.5, 0.25),
        (0.9, 0.0, 0.0),
    ):
        part = gradients(late, stores, share, trust) - without
        torch.testing.assert_close(part, strength * whole, rtol=1e-4, atol=1e-5)


def test_the_adversarial_part_is_the_gradient_of_the_discriminators_verdict(
    late: PaperTrainingConfig, stores: list[FrameStore]
) -> None:
    run = toy_run(late, stores)
    batches = first_batches(run, stores, late)
    made = {video: run.produced(video) for video in (0, 1)}
    for batch in batches:
        textures = joined([made[video] for video in batch.videos])
        image = draw_window(run.generator, batch, textures, run).image
        verdict = generator_loss(run.discriminator(batch.beside(image))) / len(batches)
        verdict.backward(retain_graph=True)
    networks = (run.generator, run.face, run.background)
    expected = torch.cat(
        [
            torch.zeros_like(value).flatten() if value.grad is None else value.grad.flatten()
            for network in networks
            for value in network.parameters()
        ]
    )
    part = gradients(late, stores, 0.9) - gradients(late, stores, 0.0)
    torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-5)


def test_the_trust_in_the_discriminator_outlives_a_resumption(
    stores: list[FrameStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WON", 100.0)  # it always wins
    config = replace(TINY, batch=2, adversarial_from=0.0)
    whole = toy_run(config, stores)
    undisturbed = train_paper(whole, stores, config)
    run, done = stopped_and_resumed(config, stores, tmp_path / "checkpoint.safetensors", at=3)
    assert run.critic_trust == whole.critic_trust == pytest.approx(0.97**4)
    assert done.losses == undisturbed.losses[2:]
    assert differing(whole, run) == []


# the textures


def test_textures_learn_after_a_start_from_an_avatar_that_was_trained_to_its_end(
    stores: list[FrameStore], tmp_path: Path
) -> None:
    """Defect of the released training: the step in a checkpoint's name freezes the textures of whoever comes next."""
    other = toy_run(TINY, stores[:1])
    train_paper(other, stores[:1], TINY)
    paper_avatar(other, MADE, None, keeps_training=True).save(tmp_path / "other.avatar")
    start = PaperAvatar.load(tmp_path / "other.avatar")
    run = toy_run(TINY, stores[1:], start=start)
    kinds = {"face": run.face, "background": run.background}
    for name, network in kinds.items():
        assert all(
            torch.equal(value, start.training[name][key]) for key, value in network.state_dict().items()
        )
    train_paper(run, stores[1:], replace(TINY, steps=2))
    for name, network in kinds.items():
        moved = (network.constant - start.training[name]["constant"]).abs().max()
        assert float(moved.detach()) > 1e-3


def test_a_run_that_is_stopped_after_its_textures_have_learned_goes_on_exactly(
    stores: list[FrameStore], tmp_path: Path
) -> None:
    config = replace(TINY, texture_share=0.25)
    whole = toy_run(config, stores)
    undisturbed = train_paper(whole, stores, config)
    before = toy_run(config, stores)
    run, done = stopped_and_resumed(config, stores, tmp_path / "checkpoint.safetensors", at=3)
    assert done.losses == undisturbed.losses[2:]
    assert differing(whole, run) == []  # with the running statistics of their normalisation
    assert not torch.equal(whole.face.constant, before.face.constant)
    assert int(whole.face.norm.num_batches_tracked) == 2  # both recordings, in the one step that taught them


# pretraining


def test_who_starts_from_others_is_further_after_as_many_steps(
    stores: list[FrameStore], tmp_path: Path
) -> None:
    """On frames that neither has seen, of a person whom nobody has seen before."""
    person = toy_store(tmp_path / "person", seed=3)
    config = replace(PICTURES_ALONE, steps=10)
    before = replace(config, steps=40)
    others = toy_run(before, stores)
    train_paper(others, stores, before)
    start = paper_avatar(others, MADE, None, keeps_training=True)
    reached = []
    for given in (None, start):
        run = toy_run(config, [person], start=given)
        assert train_paper(run, [person], config).steps == 10
        reached.append(float(held_out_psnr(run, person, config).mean()))
    # With three seeds of 60 steps it was 2.5 to 4.5 dB.
    assert reached[1] > reached[0] + 1
