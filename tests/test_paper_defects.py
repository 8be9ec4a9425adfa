"""What the released training of StyleAvatar gets wrong (specification, section 6), and ours does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from official_styleavatar import official_content, save_official
from omokage.avatar.paper.batch import Draws, Loader
from omokage.avatar.paper.bundle import PaperAvatar
from omokage.avatar.paper.config import small_discriminator, small_portrait
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.perceptual import STAGES, PerceptualLoss
from omokage.avatar.paper.run import PaperRun
from omokage.avatar.paper.time_code import RELEASED_TIME, REST_TIME, time_code
from omokage.avatar.paper.train import Learner, train_paper
from omokage.errors import InputError
from omokage.pipelines.import_styleavatar import ImportConfig, import_styleavatar
from omokage.workers import Workers
from paper_parts import TINY, first_batches, toy_run

ALONE = Workers.alone()


def test_later_pictures_have_a_code_that_was_trained(stores: list[FrameStore]) -> None:
    """Defect: the released scripts draw with the code of frame 2500, which a shorter recording never trained."""
    loader = Loader(stores, Draws(0, 4, 2, 0.5))
    times = torch.cat([b.times for step in range(50) for b in loader.micro_batches(step, range(4))])
    share = float((times == REST_TIME).float().mean())
    assert 0.4 < share < 0.6
    trained = time_code(times.unique()[:, None])
    assert float((trained - time_code(torch.tensor([[REST_TIME]]))).norm(dim=1).min()) == 0
    assert float((trained - time_code(torch.tensor([[RELEASED_TIME]]))).norm(dim=1).min()) > 4
    assert (loader.fixed(0, 3).times == REST_TIME).all()


def test_textures_learn_whenever_a_training_begins(stores: list[FrameStore]) -> None:
    """Defect: the released training freezes the textures after step 10,000 of whatever it was started from."""
    config = replace(TINY, steps=1000, batch=2, texture_share=0.6)
    run = toy_run(config, stores)
    learner, batches = Learner(run, config, ALONE, None), first_batches(run, stores, config)
    made = {"face": run.face, "background": run.background}

    def changed(share: float) -> dict[str, bool]:
        before = {name: network.constant.clone() for name, network in made.items()}
        run.set_rates(share, config)
        learner.step(batches, [0, 1], share)
        return {name: not torch.equal(before[name], network.constant) for name, network in made.items()}

    assert changed(0.0) == {"face": True, "background": True}
    assert changed(0.7) == {"face": False, "background": False}
    generator = next(run.generator.image.parameters()).clone()
    changed(0.8)
    assert not torch.equal(generator, next(run.generator.image.parameters()))


def test_textures_are_averaged_and_alone_in_their_normalisation(stores: list[FrameStore]) -> None:
    """Defect: stored textures are those of the last step, normalised over a batch of equal rows."""
    run = toy_run(TINY, stores)
    first = [kind.clone() for kind in run.textures]
    together = run.produced(0).tensors()
    assert all(torch.equal(a, b[:1]) for a, b in zip(together, first, strict=True))
    made = {0: run.produced(0), 1: run.produced(1)}
    run.step = 99
    for textures in made.values():
        for value in textures.tensors():
            value.data.add_(1.0)
    run.average_textures(made, 0.5)
    for kind, before in zip(run.textures, first, strict=True):
        torch.testing.assert_close(kind, before + 0.5)


def test_the_matte_of_hair_is_soft(stores: list[FrameStore]) -> None:
    """Defect: the released target is 0 or 1 of every eighth pixel."""
    loader = Loader(stores, Draws(0, 4, 4, 0.5))
    background = next(loader.micro_batches(1, range(4))).background
    assert ((background > 0.1) & (background < 0.9)).any()
    assert float(background.min()) == 0 and float(background.max()) == 1


def test_nothing_decays_that_should_not(stores: list[FrameStore]) -> None:
    """Defect: the released optimiser shrinks biases and noise strengths."""
    for optimizer in toy_run(TINY, stores).optimizers().values():
        assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)


def test_discriminator_and_noise_are_in_the_checkpoint(stores: list[FrameStore]) -> None:
    """Defect: a resumed training takes the discriminator of a fixed file. Ours is in the checkpoint."""
    run = toy_run(TINY, stores)
    names = run.named_state().keys()
    assert {f"discriminator.{name}" for name in run.discriminator.state_dict()} <= names
    assert {"noise.face", "noise.background", "noise.foreground"} <= names


def test_a_training_can_start_from_an_official_checkpoint(tmp_path: Path) -> None:
    """With the networks of its training, or without: then only the averaged generator is taken over."""
    source = save_official(tmp_path / "person_065000.pt", official_content())
    sizes, critic = small_portrait(), small_discriminator()
    for keeps in (True, False):
        output = tmp_path / f"{keeps}.avatar"
        kinds = ImportConfig(network=sizes, discriminator=critic, keep_training=keeps)
        import_styleavatar(source, output=output, config=kinds)
        start, ours = PaperAvatar.load(output), replace(sizes, rounded_window=False)
        run = PaperRun(ours, critic, TINY, frames=10, start=start)
        assert run.step == 0 and not run.generator.config.rounded_window
        assert torch.equal(run.noise.face, start.noise.face)
        for name, network in run.modules().items():
            given = start.training.get(name, start.generator.state_dict() if name == "generator" else {})
            state = network.state_dict()
            assert bool(given) == (keeps or name == "generator")
            assert all(torch.equal(state[key], v) for key, v in given.items())


# the perceptual loss


def vgg(folder: Path) -> Path:
    """VGG19 of one channel a layer where it may be, with drawn weights."""
    generator, weights, inputs = torch.Generator().manual_seed(0), {}, 3
    for index in (number for stage in STAGES for number in stage):
        weights[f"features.{index}.weight"] = torch.randn(4, inputs, 3, 3, generator=generator) / 3
        weights[f"features.{index}.bias"] = torch.zeros(4)
        inputs = 4
    save_file(weights, folder / "vgg19.safetensors")
    return folder / "vgg19.safetensors"


def test_the_perceptual_loss_teaches(stores: list[FrameStore], tmp_path: Path) -> None:
    """Defect: the released training computes it and leaves it out of the sum."""
    loss = PerceptualLoss.load(vgg(tmp_path))
    config = replace(TINY, steps=1, batch=2, perceptual=1.0)
    plain, taught = (toy_run(config, stores) for _ in range(2))
    without = train_paper(plain, stores, config)
    with_loss = train_paper(taught, stores, config, perceptual=loss)
    assert with_loss.losses[0] > without.losses[0] + 1e-3
    pairs = zip(plain.generator.parameters(), taught.generator.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    assert float(loss(picture, picture)) == 0


def test_the_perceptual_loss_is_that_of_vgg19(tmp_path: Path) -> None:
    """Beside VGG19 as its paper lists it (Simonyan & Zisserman 2015, configuration E, here an eighth as wide): features
    behind layers 2, 7, 12, 21 and 30 (specification 3.1) of half the picture in ImageNet's colours."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    inputs = 3
    for width in (8, 8, 0, 16, 16, 0, 32, 32, 32, 32, 0, 64, 64, 64, 64, 0, 64, 64, 64, 64, 0):
        if width:
            layers += [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()]
            inputs = width
        else:
            layers.append(torch.nn.MaxPool2d(2))
    network = torch.nn.Sequential(*layers)
    state = {f"features.{key}": value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / "vgg19.pth")
    drawn, truth = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    pair = torch.nn.functional.avg_pool2d(torch.cat([drawn, truth]), 2) / 2 + 0.5
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colors = (pair - mean[:, None, None]) / deviation[:, None, None]
    expected = torch.zeros(())
    for depth, share in ((2, 1 / 32), (7, 1 / 16), (12, 1 / 8), (21, 1 / 4), (30, 1.0)):
        one, other = network[:depth](colors)
        expected = expected + share * (one - other).abs().mean()
    torch.testing.assert_close(PerceptualLoss.load(tmp_path / "vgg19.pth")(drawn, truth), expected)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = vgg(tmp_path)
    weights = load_file(path)
    weights.pop("features.28.weight")
    save_file(weights, path)
    with pytest.raises(InputError, match=r"lacks the tensor 'features.28.weight' of VGG19"):
        PerceptualLoss.load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        PerceptualLoss.load(path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg19.pth")
    with pytest.raises(InputError, match=r"lacks the tensor 'features.0.bias'"):
        PerceptualLoss.load(tmp_path / "vgg19.pth")
