"""The paper's networks learn: repeatable, in one process or several, without the defects of the released code."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omokage.avatar.loop import check_sheet
from omokage.avatar.paper import train as module
from omokage.avatar.paper.batch import Draws, Loader
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.run import PaperRun
from omokage.avatar.paper.train import Learner, PaperResult, drawn_after, held_out_psnr, train_paper
from omokage.avatar.paper.window import centred
from omokage.errors import DivergedError, InputError, MissingDependencyError
from omokage.workers import Workers
from paper_parts import NETWORK, PICTURES_ALONE, TINY, first_batches, toy_run
from processes import Started, places

ALONE = Workers.alone()
TRAINING = "import sys, paper_parts; paper_parts.main(*sys.argv[1:])"


@pytest.fixture(scope="module")
def undisturbed(stores: list[FrameStore]) -> tuple[PaperRun, PaperResult]:
    run = toy_run(TINY, stores)
    return run, train_paper(run, stores, TINY)


# it learns


def test_a_person_is_learned(stores: list[FrameStore]) -> None:
    config = replace(PICTURES_ALONE, steps=40)
    run = toy_run(config, stores[:1])
    done = train_paper(run, stores[:1], config)
    first, last = done.curve[0][2], done.curve[-1][2]
    assert last > first + 1
    assert held_out_psnr(run, stores[0], config).mean() > first + 0.8
    assert done.losses[-1] < 0.75 * done.losses[0]


# draws


def test_draws_depend_on_seed_step_and_place_alone(stores: list[FrameStore]) -> None:
    whole = Loader(stores, Draws(7, 8, 2, 0.5))
    for step in (0, 5):
        alone = list(whole.micro_batches(step, range(8)))
        shared = [
            b for rank in range(2) for b in whole.micro_batches(step, Workers(rank, 2, ALONE.device).part(8))
        ]
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one.image, other.image) and torch.equal(one.times, other.times)
            assert (one.videos, one.offset) == (other.videos, other.offset)
    other = Loader(stores, Draws(8, 8, 2, 0.5))
    assert not all(
        torch.equal(a.times, b.times) for a, b in zip(alone, other.micro_batches(5, range(8)), strict=True)
    )


def test_windows_stay_in_the_crop_and_every_other_one_is_centred(stores: list[FrameStore]) -> None:
    loader = Loader(stores, Draws(0, 2, 2, 0.5))
    offsets = [loader.offset(step) for step in range(200)]
    middle = centred(NETWORK.grid)
    assert all(offset == middle for offset in offsets[1::2])
    moved = [x - middle[0] for offset in offsets[::2] for x in offset]
    assert {-1, 0} <= set(moved) <= {-1, 0, 1}
    batch = next(loader.micro_batches(0, range(2)))
    assert batch.truth.shape == (2, 3, 64, 64)
    assert batch.background.shape == batch.face.shape == (2, 1, 8, 8)


def test_picture_matte_and_drawing_are_cut_by_the_same_window(stores: list[FrameStore]) -> None:
    """Where the uv picture says there is a face, the matte says there is a person, wherever the window is."""
    loader = Loader(stores, Draws(0, 2, 2, 0.5))
    for step in range(0, 20, 2):
        batch = next(loader.micro_batches(step, range(2)))
        assert batch.face.sum() > 4
        assert float(batch.background[batch.face > 0].max()) < 0.5


# the same numbers however it is run


def test_a_killed_run_goes_on_exactly(
    toy_folder: Path, stores: list[FrameStore], undisturbed: tuple[PaperRun, PaperResult], tmp_path: Path
) -> None:
    status, _, said = Started(TRAINING, [toy_folder, tmp_path / "result", 3], tmp_path).wait()
    assert status == -signal.SIGKILL and not (tmp_path / "result").exists(), said
    run, seen = (
        toy_run(replace(TINY, seed=5), stores),
        list[float](),
    )  # other first weights: all is in the checkpoint
    done = train_paper(
        run,
        stores,
        TINY,
        checkpoint=tmp_path / "checkpoint.safetensors",
        on_progress=lambda progress: seen.append(progress.done),
    )
    whole, result = undisturbed
    assert len(seen) == 2  # the third step was done, and was not written yet
    assert done.losses == result.losses[2:]
    state = run.named_state()
    assert all(torch.equal(value, state[name]) for name, value in whole.named_state().items())
    assert [point[::2] for point in done.curve] == [point[::2] for point in result.curve]


def test_two_processes_learn_what_one_learns(
    toy_folder: Path, stores: list[FrameStore], undisturbed: tuple[PaperRun, PaperResult], tmp_path: Path
) -> None:
    given = [toy_folder, tmp_path / "result"]
    for process in [Started(TRAINING, given, tmp_path, **place) for place in places(2)]:
        status, _, said = process.wait()
        assert status == 0, said[-2000:]
    got, (run, result) = load_file(tmp_path / "result"), undisturbed
    assert got.pop("losses").tolist() == pytest.approx(result.losses, rel=1e-5)
    assert got.pop("psnr").tolist() == pytest.approx([psnr for *_, psnr in result.curve], abs=1e-4)
    before, after = toy_run(TINY, stores).named_state(), run.named_state()
    for kind in ("generator.", "face.", "background.", "discriminator.", "averaged.", "textures."):
        names = [name for name in got if name.startswith(kind) and got[name].is_floating_point()]
        moved, apart = (
            torch.cat([(after[name] - other[name]).flatten() for name in names]).norm()
            for other in (before, got)
        )
        # Processes that kept their own gradients would be apart by half of the way.
        assert apart < 1e-3 * moved


def test_batches_that_cannot_be_shared_out_and_unknown_precisions() -> None:
    with pytest.raises(InputError, match="a multiple of 6"):
        TINY.check(Workers(0, 3, torch.device("cpu")))
    with pytest.raises(InputError, match="cannot be cut into micro-batches of 3"):
        replace(TINY, micro_batch=3)
    with pytest.raises(InputError, match="there is no precision 'fp8'"):
        replace(TINY, precision="fp8")


def test_a_checkpoint_of_another_run_is_refused(stores: list[FrameStore], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    toy_run(TINY, stores).save(path)
    with pytest.raises(InputError, match="does not fit this avatar"):
        toy_run(TINY, stores[:1]).load(path)


@pytest.mark.parametrize("place", ["loss", "weights"])
def test_a_diverged_training_stops_and_leaves_the_last_good_checkpoint(
    place: str, stores: list[FrameStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, path = Learner.step, tmp_path / "checkpoint.safetensors"

    def overflow(learner: Learner, *arguments: object) -> float:
        loss = step(learner, *arguments)  # type: ignore[arg-type]
        if learner.run.step < 2:
            return loss
        with torch.no_grad():
            next(learner.run.generator.parameters()).fill_(float("inf"))
        return float("nan") if place == "loss" else loss

    monkeypatch.setattr(Learner, "step", overflow)
    with pytest.raises(
        DivergedError, match=r"diverged: .* at step 3, .*lower learning rate.*--precision fp32"
    ):
        train_paper(toy_run(TINY, stores), stores, replace(TINY, checkpoint_seconds=0.0), checkpoint=path)
    saved = toy_run(TINY, stores)
    saved.load(path)
    assert saved.step == 2 and all(value.isfinite().all() for value in saved.named_state().values())
    with pytest.raises(DivergedError):
        train_paper(toy_run(TINY, stores), stores, replace(TINY, steps=3))


def test_a_picture_that_is_no_number_is_not_a_perfect_one() -> None:
    truth = torch.zeros(3, 8, 8)
    sheet, psnr = check_sheet([(truth, truth), (truth, truth * float("nan"))])
    assert psnr != psnr and not sheet.any()
    assert check_sheet([(truth, truth)])[1] == pytest.approx(100)


@pytest.mark.parametrize(("switch", "tolerance"), [("channels_last", 1e-4), ("bf16", 0.03)])
def test_switches_change_speed_and_not_the_result(
    switch: str, tolerance: float, stores: list[FrameStore]
) -> None:
    changes = {"precision": switch} if switch == "bf16" else {switch: True}
    plain = replace(TINY, steps=2, adversarial_from=0.0, batch=2)
    config = replace(plain, **changes)
    expected = train_paper(toy_run(plain, stores), stores, plain).losses
    assert train_paper(toy_run(config, stores), stores, config).losses == pytest.approx(
        expected, rel=tolerance
    )


def test_what_takes_the_time_is_compiled_and_the_penalty_is_not(
    stores: list[FrameStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing all of them takes half a minute; here is one that is traced, and which the others are."""
    asked: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: asked.append(self))
    run = toy_run(TINY, stores)
    module.compile_networks(run, TINY)
    assert not asked
    module.compile_networks(run, replace(TINY, compiled=True))
    generator = run.generator
    parts = [generator.foreground, generator.widen, generator.image, run.face, run.background]
    assert asked == [*parts, run.discriminator]
    monkeypatch.undo()
    expected = run.face(run.codes[:1]).features
    run.face.compile(backend="eager")
    torch.testing.assert_close(run.face(run.codes[:1]).features, expected)


def test_a_machine_without_a_compiler_is_told_what_it_lacks(
    stores: list[FrameStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def failing(run: PaperRun, _: object) -> None:
        def forward(_: object) -> None:
            raise TorchDynamoException("No working C++ compiler found.\nLook for one.")

        run.face.forward = forward  # type: ignore[assignment, method-assign]

    monkeypatch.setattr(module, "compile_networks", failing)
    config = replace(TINY, compiled=True, steps=1)
    with pytest.raises(
        MissingDependencyError, match=r"^the networks cannot be compiled .*No working C\+\+.*--compile out$"
    ):
        train_paper(toy_run(config, stores), stores, config)


def test_a_step_and_a_picture_leave_nothing_on_the_processor(
    stores: list[FrameStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, which knows shapes and no values and refuses tensors of other devices, as a card does."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.5)
    workers = Workers.alone(torch.device("meta"))
    config = replace(TINY, adversarial_from=0.0, r1_every=1, batch=2)
    run = toy_run(config, stores, workers=workers)
    learner, batches = Learner(run, config, workers, None), first_batches(run, stores, config)
    for share in (0.5, 0.9):
        assert learner.step(batches, [0, 1], share) == 0.5
    loader = Loader(stores, Draws(0, 1, 1, 0.5))
    assert all(part.is_meta for part in drawn_after(run, loader.fixed(1, 2)))
    assert all(value.is_meta for value in run.named_state().values())


def test_precision_of_products_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with module.matrix_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def test_what_is_kept_is_the_average_of_the_weights(stores: list[FrameStore]) -> None:
    """A young average forgets faster: at the first step a tenth of it stays, later `ema`."""
    config = replace(TINY, batch=2, ema=0.75)
    run = toy_run(config, stores)
    learner, batches = Learner(run, config, ALONE, None), first_batches(run, stores, config)
    for step, stays in ((0, 0.1), (90, 0.75)):
        run.step = step
        before = [value.clone() for value in run.averaged.parameters()]
        learner.step(batches, [0, 1], 0.0)
        learned = list(run.generator.parameters())
        assert any(not torch.equal(old, new) for old, new in zip(before, learned, strict=True))
        for old, new, mean in zip(before, learned, run.averaged.parameters(), strict=True):
            torch.testing.assert_close(mean, stays * old + (1 - stays) * new)


# the discriminator


def test_the_penalty_comes_every_so_often(stores: list[FrameStore], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    genuine = module.gradient_penalty
    monkeypatch.setattr(module, "gradient_penalty", lambda *a: (asked.append(run.step), genuine(*a))[1])
    config = replace(TINY, steps=5, batch=2, adversarial_from=0.0, r1_every=2)
    run = toy_run(config, stores)
    train_paper(run, stores, config)
    assert asked == [0, 2, 4]


def test_a_lazy_penalty_weighs_as_much_as_one_in_every_step(stores: list[FrameStore]) -> None:
    def gradients(**changes: float) -> torch.Tensor:
        config = replace(TINY, batch=2, **changes)  # type: ignore[arg-type]
        run = toy_run(config, stores)
        learner, batches = Learner(run, config, ALONE, None), first_batches(run, stores, config)
        kept: list[torch.Tensor] = []
        run.critic_optimizer.step = lambda: kept.extend(  # type: ignore[method-assign, assignment]
            value.grad.clone().flatten() for value in run.discriminator.parameters()
        )
        learner._critic_step(batches, [batch.truth * 0.5 for batch in batches])
        return torch.cat(kept)

    none, once, lazy = gradients(r1=0.0), gradients(r1_every=1), gradients(r1_every=8)
    torch.testing.assert_close(lazy - none, 8 * (once - none), rtol=1e-3, atol=1e-5)
    assert (once - none).abs().max() > 1e-6


def test_a_winning_discriminator_is_trusted_less(
    stores: list[FrameStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_run(TINY, stores)
    learner, batches = Learner(run, TINY, ALONE, None), first_batches(run, stores)
    verdicts = {True: 5.0, False: -5.0}
    monkeypatch.setattr(
        run.discriminator, "forward",
        lambda pictures: run.discriminator.verdict.bias * 0 + verdicts[bool(pictures[:, :3].abs().sum() > 0)],
    )  # fmt: skip
    monkeypatch.setattr(module, "gradient_penalty", lambda logits, image: image.sum() * 0)
    for _ in range(30):
        learner._critic_step(batches, [torch.zeros_like(batch.truth) for batch in batches])
    assert run.critic_trust < 0.5


def test_before_its_time_the_discriminator_neither_learns_nor_speaks(stores: list[FrameStore]) -> None:
    config = replace(TINY, steps=2, batch=2, adversarial_from=0.9)
    run = toy_run(config, stores)
    before = {name: value.clone() for name, value in run.discriminator.state_dict().items()}
    train_paper(run, stores, config)
    assert all(torch.equal(value, run.discriminator.state_dict()[name]) for name, value in before.items())
