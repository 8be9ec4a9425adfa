"""The training loop: what learns, what is drawn, exact resume, several processes, low-rank updates."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omokage.errors import InputError, InternalError, WeightsError
from omokage.talking.checkpoint import transformer_keys
from omokage.talking.config import official
from omokage.talking.lora import DOWN, UP, Lora, add_adapters, load_lora, merge, save_lora
from omokage.talking.training.batch import collate
from omokage.talking.training.config import (
    StageConfig,
    freeze,
    from_scratch,
    learns,
    stage_one,
    stage_two,
)
from omokage.talking.training.couple import Couple, make_ready, without_speech
from omokage.talking.training.state import Run
from omokage.talking.training.train import draw_sample, draw_step, train
from omokage.talking.transformer import Transformer
from omokage.workers import Workers
from processes import Started, places
from training_parts import NoiseWindows, couple, smallest, stage

# What the published stages choose, as parts of the official names (specification 4.1).
CHOSEN = {
    "one, denoiser": (stage_one().denoiser, ("attention", "post_attention_layernorm", "face")),
    "one, reference": (stage_one().reference, ("attention", "post_attention_layernorm")),
    "two, denoiser": (stage_two().denoiser, ("audio",)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_stages_choose_the_published_tensors(name: str) -> None:
    patterns, parts = CHOSEN[name]
    config = official() if "denoiser" in name else official().reference
    keys = transformer_keys(config, "").names
    theirs = {ours for key, ours in keys.items() if any(part in key for part in parts)}
    assert {ours for ours in keys.values() if learns(patterns, ours)} == theirs


def test_as_many_weights_learn_as_published() -> None:
    with torch.device("meta"):
        denoiser, reference = Transformer(official()), Transformer(official().reference)
    attention = 1_585_963_008 + 2 * 42 * 3072  # and the norms
    face = 1_057_480_704 + 2_103_296 + 2 * 42 * 3072
    assert freeze(reference, stage_one().reference) == attention
    assert freeze(denoiser, stage_one().denoiser) == attention + face
    assert freeze(denoiser, stage_two().denoiser) == 991_420_416 + 1_244_449_280 + 2 * 42 * 3072
    assert freeze(reference, stage_two().reference) == 0
    without_speech(denoiser)
    assert freeze(denoiser, (".*",)) == 8_921_253_952 - 64 * 3072 - (
        991_420_416 + 1_244_449_280 + 2 * 42 * 3072
    )


def test_the_published_rates() -> None:
    config = stage_one()
    assert (config.learning_rate, config.clip, config.betas, config.eps) == (1e-5, 0.1, (0.9, 0.95), 1e-8)
    assert (config.weight_decay, config.steps, config.ema) == (1e-4, 30_000, 0)
    assert [config.rate(share) for share in (0.005, 0.01, 0.505, 1.0)] == pytest.approx(
        [5e-6, 1e-5, 5.5e-6, 1e-6]
    )
    assert (config.text_dropout, config.condition_dropout) == (0.1, 0.05)
    assert (config.reference_dropout, config.audio_dropout) == (0.05, 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps, a learning rate"),
        ({"batch": 2, "micro_batch": 4}, "a micro-batch no more"),
        ({"ema": 1.5}, "shares from 0 to 1"),
        ({"text_dropout": -0.1}, "dropouts are shares"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stage(**changes)


def test_settings_survive_their_file() -> None:
    assert StageConfig.from_json(stage_one().to_json()) == stage_one()


def test_conditions_are_left_out_as_published() -> None:
    """Text of 10 % of the samples, condition, reference and speech of 5 % each; the face of none."""
    config = replace(from_scratch(), batch=1000, micro_batch=1)
    samples = [draw_sample(NoiseWindows(), config, 0, place).batch for place in range(1000)]
    gone = {
        name: np.mean([float(getattr(sample, name).abs().sum()) == 0 for sample in samples])
        for name in ("text", "condition", "reference", "audio", "face", "latents")
    }
    assert gone["text"] == pytest.approx(0.1, abs=0.03)
    for name in ("condition", "reference", "audio"):
        assert gone[name] == pytest.approx(0.05, abs=0.02)
    assert gone["face"] == gone["latents"] == 0
    # Each by its own chance: that several are gone at once is rare.
    both = [float(s.text.abs().sum()) + float(s.audio.abs().sum()) == 0 for s in samples]
    assert sum(both) < 20


def test_timesteps_are_spread_over_the_batch() -> None:
    config = stage(batch=5, micro_batch=1)
    drawn = torch.stack(
        [
            torch.cat([d.timesteps for d in draw_step(NoiseWindows(), config, step, range(5))])
            for step in range(200)
        ]
    )
    assert torch.equal(drawn // 200, torch.arange(5).expand(200, 5))
    assert drawn.float().mean().item() == pytest.approx(499.5, abs=5)


def test_every_sample_comes_once_in_a_pass() -> None:
    config, windows = stage(batch=5), NoiseWindows()
    for step in range(3):
        found = [draw_sample(windows, config, step, place).batch.face[0, 0].item() for place in range(5)]
        assert sorted(found) == sorted(
            windows.sample(i, np.random.default_rng(0)).face[0, 0].item() for i in range(5)
        )


def test_only_what_the_stage_names_learns() -> None:
    two = couple()
    before = {name: value.clone() for name, value in two.state_dict().items()}
    train(two, NoiseWindows(), stage(denoiser=stage_two().denoiser, reference=(), steps=2, ema=0))
    changed = {name for name, value in two.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"denoiser.{name}" for name in dict(two.denoiser.named_parameters()) if "audio" in name
    }


def test_without_speech_nothing_is_heard() -> None:
    one = couple()
    without_speech(one.denoiser)
    done = train(one, NoiseWindows(), stage(hears=False, steps=2))
    assert len(done.losses) == 2
    with pytest.raises(InternalError, match="with speech features when it has a speech branch"):
        train(couple(), NoiseWindows(), stage(hears=False, steps=1))


def test_the_last_layer_of_the_reference_only_exports() -> None:
    """Its attention gets no gradient at all (specification 4.1)."""
    trained = couple()
    make_ready(trained, stage())
    drawn = next(draw_step(NoiseWindows(), stage(), 0, range(2)))
    trained(drawn.batch, drawn.noise, drawn.timesteps).sum().backward()
    silent = {name for name, value in trained.named_parameters() if value.grad is None}
    assert any(name.startswith("reference.blocks.1.attention.") for name in silent)
    assert not any(name.startswith(("denoiser", "reference.blocks.0.")) for name in silent)


def gradients(**changes: object) -> dict[str, torch.Tensor]:
    config, trained = stage(**changes), couple()
    make_ready(trained, config)
    for drawn in draw_step(NoiseWindows(), config, 3, range(config.batch)):
        (trained(drawn.batch, drawn.noise, drawn.timesteps).sum() / config.batch).backward()
    return {name: value.grad for name, value in trained.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"recompute": True}])
def test_saving_memory_changes_no_gradient(changes: dict[str, object]) -> None:
    plain, other = gradients(micro_batch=2, recompute=False), gradients(**changes)
    assert plain.keys() == other.keys()
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("choice", ["one, denoiser", "two, denoiser"])
def test_a_card_learns_in_mixed_precision_what_float32_learns(choice: str) -> None:
    """As on a card: frozen weights in bfloat16, what learns in float32, products in bfloat16 (here on a processor)."""
    patterns, _ = CHOSEN[choice]
    config = stage(denoiser=patterns, reference=(), recompute=True)
    drawn = next(draw_step(NoiseWindows(), config, 0, range(2)))
    found: list[torch.Tensor] = []
    for is_mixed in (False, True):
        trained = couple()
        if is_mixed:
            trained.to(torch.bfloat16)
        make_ready(trained, config)
        learning = {name: value for name, value in trained.named_parameters() if value.requires_grad}
        frozen = {value.dtype for name, value in trained.named_parameters() if name not in learning}
        assert {value.dtype for value in learning.values()} == {torch.float32}
        assert frozen == {torch.bfloat16 if is_mixed else torch.float32}
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            losses = trained(drawn.batch, drawn.noise, drawn.timesteps)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        found.append(
            torch.cat([value.grad.flatten() for value in learning.values() if value.grad is not None])
        )
    assert found[1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999


def test_a_weight_of_the_loss() -> None:
    drawn = next(draw_step(NoiseWindows(), stage(), 0, range(2)))
    trained, cells = couple(), torch.zeros(2, 1, 1, 4, 4)
    cells[..., 1, 2] = 16.0

    def losses(weight: torch.Tensor | None) -> torch.Tensor:
        return trained(replace(drawn.batch, weight=weight), drawn.noise, drawn.timesteps)

    assert torch.allclose(losses(torch.ones_like(cells)), losses(None))
    assert torch.allclose(losses(2 * torch.ones_like(cells)), 2 * losses(None))
    assert not torch.allclose(losses(cells), losses(None), rtol=0.01)


def test_the_average_is_the_result() -> None:
    averaged, last, start = (couple() for _ in range(3))
    for trained, ema in ((averaged, 0.9), (last, 0.0)):
        train(trained, NoiseWindows(), stage(ema=ema))

    def distance(trained: Couple) -> float:
        pairs = zip(trained.parameters(), start.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs)

    assert 0 < distance(averaged) < distance(last)


# Several runs and processes

TRAINING = "import sys, training_parts; training_parts.main(*sys.argv[1:])"


@cache
def undisturbed() -> tuple[tuple[float, ...], dict[str, torch.Tensor]]:
    trained = couple()
    done = train(trained, NoiseWindows(), stage(recompute=True))
    return done.losses, {name: value.clone() for name, value in trained.state_dict().items()}


def test_a_killed_run_goes_on_exactly(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    status, _, said = Started(TRAINING, [checkpoint, tmp_path / "result", 2], tmp_path).wait()
    assert status == -signal.SIGKILL and (checkpoint / "latest.json").is_file(), said
    trained, seen = couple(seed=5), list[int]()  # other first weights: all comes from the checkpoint
    done = train(trained, NoiseWindows(), stage(recompute=True), checkpoint=checkpoint, on_step=seen.append)
    losses, weights = undisturbed()
    assert seen == [2, 3, 4] and done.losses == losses
    frozen = {name for name in weights if not torch.equal(weights[name], trained.state_dict()[name])}
    assert frozen == set()
    assert len(list(checkpoint.glob("step-*"))) == 1
    with pytest.raises(InputError, match="a training with other data, weights or settings"):
        train(couple(), NoiseWindows(), stage(seed=1), checkpoint=checkpoint)
    with pytest.raises(InputError, match="of 1 processes, and now there are 2"):
        key = json.loads((checkpoint / "latest.json").read_text())["run"]
        Run.start(trained, stage()).load(checkpoint, key, Workers(0, 2, torch.device("cpu")))


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    given = [tmp_path / "checkpoint", tmp_path / "result"]
    for process in [Started(TRAINING, given, tmp_path, **place) for place in places(2)]:
        status, _, said = process.wait()
        assert status == 0, said[-2000:]
    result = load_file(tmp_path / "result")
    losses, weights = undisturbed()
    assert result.pop("losses").tolist() == pytest.approx(losses, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "checkpoint").glob("step-*.rank-*-of-0002.safetensors"))) == 2


def test_a_batch_that_cannot_be_shared_out() -> None:
    with pytest.raises(InputError, match="a multiple of 6"):
        train(couple(), NoiseWindows(), stage(), workers=Workers(0, 3, torch.device("cpu")))


def test_batches_must_agree() -> None:
    sample = NoiseWindows().sample(0, np.random.default_rng(0))
    with pytest.raises(InternalError, match="some samples of a batch have 'audio'"):
        collate([sample, replace(sample, audio=None)])


# Low-rank updates


def adapted() -> tuple[Couple, dict[str, torch.Tensor]]:
    """A couple with trained updates of rank 2, and these."""
    trained = couple()
    train(trained, NoiseWindows(), stage(lora_rank=2, lora_scale=0.5, steps=4, ema=0))
    updates = {
        name: value.detach().clone() for name, value in trained.named_parameters() if value.requires_grad
    }
    return trained, updates


def test_a_merged_update_is_the_update(tmp_path: Path) -> None:
    trained, updates = adapted()
    assert {name.rpartition(".")[2] for name in updates} == {DOWN, UP}
    assert all(float(value.abs().sum()) > 0 for name, value in updates.items() if "denoiser" in name)
    save_lora(tmp_path / "one.safetensors", Lora(updates, 0.5, "base"))
    lora, merged = load_lora(tmp_path / "one.safetensors"), couple()
    assert (lora.scale, lora.base) == (0.5, "base") and lora.digest == Lora(updates, 0.5, "other").digest
    merge(merged.denoiser, lora.of("denoiser"), lora.scale)
    merge(merged.reference, lora.of("reference"), lora.scale)
    drawn = next(draw_step(NoiseWindows(), stage(), 9, range(2)))
    with torch.no_grad():
        ours, theirs, before = (
            c(drawn.batch, drawn.noise, drawn.timesteps) for c in (merged, trained, couple())
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, before, rtol=1e-3)


def test_an_update_begins_as_nothing_and_leaves_the_weights_alone() -> None:
    plain, other = couple(), couple()
    add_adapters(other.denoiser, 2, 1.0, seed=0)
    drawn = next(draw_step(NoiseWindows(), stage(), 0, range(2)))
    assert torch.equal(
        plain(drawn.batch, drawn.noise, drawn.timesteps), other(drawn.batch, drawn.noise, drawn.timesteps)
    )
    trained, _ = adapted()
    for name, value in plain.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value)


def test_foreign_updates_are_refused(tmp_path: Path) -> None:
    _, updates = adapted()
    other = Transformer(replace(smallest(), width=32, heads=2))
    with pytest.raises(WeightsError, match="does not fit this model"):
        merge(other, Lora(updates, 1.0, "").of("denoiser"), 1.0)
    (tmp_path / "text").write_text("no tensors")
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(WeightsError, match="no LoRA file of this version"):
            load_lora(path)
