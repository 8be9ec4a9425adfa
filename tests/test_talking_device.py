"""A graphics card that is not there: shapes and devices of everything that runs on one, without values.

PyTorch's fake tensors know their device and refuse an operation of tensors on different ones, as a card would. The card
is the meta device, which every build of PyTorch has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("diffusers", reason="animation needs 'pip install omokage[portrait]'")

from omokage.talking import reuse, rollout
from omokage.talking.blocks import Block
from omokage.talking.conditions.identity import ZeroIdentity
from omokage.talking.conditions.portrait import FaceRectangle, first_motion, next_motion
from omokage.talking.conditions.speech import SpeechFeatures, speech_length
from omokage.talking.config import SamplerConfig, official_sampler
from omokage.talking.model import Machine, TalkingModel
from omokage.talking.placement import Profile, profiles
from omokage.talking.prepare import Portrait, prepare_likeness
from omokage.talking.rollout import Scene, denoise_window
from omokage.talking.scheduler import sampling_steps
from omokage.talking.vae import _autoencoder_class
from talking_folder import tiny_architecture

CARD = torch.device("meta")
HALF, STEPS = torch.bfloat16, 3


class Pretended(TalkingModel):
    """Weights of the right shapes, wherever they are loaded to, without a file."""

    def _filled(self, network: Any, name: str, device: torch.device) -> Any:
        values = {
            key: torch.empty(value.shape, dtype=self.machine.dtype, device=device)
            for key, value in network.state_dict().items()
        }
        network.load_state_dict(values, assign=True)
        return network.eval().requires_grad_(False)


def moved(network: nn.Module, device: torch.device | str) -> nn.Module:
    """`Module.to`, which exchanges fake tensors only where nothing else refers to them."""
    values = {key: value.to(device) for key, value in network.state_dict().items()}
    network.load_state_dict(values, assign=True)
    return network


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch with a card that computes nothing."""
    _autoencoder_class()  # what it loads must not be fake
    monkeypatch.setattr(nn.Module, "to", moved)
    levels = {way: sampling_steps(STEPS, stochastic=way) for way in (True, False)}  # numbers, of real tensors
    monkeypatch.setattr(rollout, "sampling_steps", lambda _, stochastic: levels[stochastic])
    # Draws come from the processor, as they do, and are brought to the card.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def sampler(**savings: Any) -> SamplerConfig:
    return replace(official_sampler(), steps=STEPS, **savings)


def scene_on_card(profile: Profile, config: SamplerConfig) -> Scene:
    """A portrait and a speech of two windows, prepared as `animate` does it."""
    sizes = tiny_architecture()
    model = Pretended(Path(), sizes, Machine(CARD, HALF))
    picture = np.zeros((80, 80, 3), np.uint8)
    face, audio = sizes.transformer.face, sizes.transformer.audio
    assert face is not None and audio is not None
    likeness = prepare_likeness(
        model, Portrait(picture, FaceRectangle(0, 80, 0, 80), None), ZeroIdentity(face.embedding), 0, profile
    )
    length = speech_length(60 * 640, sizes.transformer.frames, exact=True)
    hidden = torch.zeros(length.padded_frames, audio.layers, audio.channels, dtype=HALF)
    text = torch.zeros(1, sizes.transformer.text_tokens, sizes.transformer.text_width, dtype=HALF)
    return Scene.set_up(model, likeness, text, SpeechFeatures(hidden, length), config, 0, profile)


def tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a record, and where it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{key}", tensor) for key, tensor in value.state_dict().items())
    elif isinstance(value, tuple):
        for number, part in enumerate(value):
            yield from tensors(part, f"{name}[{number}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name), f"{name}.{field.name}")


class NothingComesBack(TorchDispatchMode):
    """Refuses every operation, by whatever method it was asked for, that makes something of the card's on the
    processor."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        given, made = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), result)
        )
        if any(tensor.device == CARD for tensor in given):
            for tensor in made:
                assert tensor.device.type != "cpu", (
                    f"{tuple(tensor.shape)} is brought to the host ({operation})"
                )
        return result


@contextmanager
def kept_from_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is brought to the processor, which would wait for the card."""

    def refuse(tensor: Tensor, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"{tuple(tensor.shape)} is brought to the host")

    with monkeypatch.context() as patch:
        for name in ("cpu", "item", "tolist", "numpy", "__float__", "__bool__", "__int__"):
            patch.setattr(Tensor, name, refuse)
        with NothingComesBack():
            yield


@pytest.mark.parametrize("profile", profiles(), ids=lambda profile: profile.name)
def test_everything_of_a_window_is_on_the_card(
    profile: Profile, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_on_card(profile, sampler())
    found = dict(tensors(scene, "scene"))
    assert len(found) > 50
    speech = {name for name in found if name.startswith("scene.speech_tokens")}
    assert {name for name, value in found.items() if value.device != CARD} == speech
    weights = {value.dtype for name, value in found.items() if not name.endswith(".bits")}
    assert weights == {HALF}
    waiting = [group.piece for group in getattr(scene.denoiser.blocks, "_groups", [])]
    assert all(piece.device.type == "cpu" for piece in waiting) and bool(waiting) == bool(profile.group)

    motion = first_motion(scene.picture)
    for index in range(2):
        latents = denoise_window(scene, index, motion, lambda *_: None)
        assert (latents.device, latents.dtype) == (CARD, HALF)
        *_, last = scene.vae.decode(latents)
        motion = next_motion(last)
        assert (motion.device, motion.dtype) == (CARD, HALF)


@pytest.mark.parametrize(
    "savings",
    [{"together": False}, {"guidance_interval": (0.0, 0.5)}, {"guidance_scale": 1.0}, {"stochastic": False}],
)
def test_every_way_of_the_sampler_stays_on_the_card(savings: dict[str, Any], card: None) -> None:
    scene = scene_on_card(profiles()[0], sampler(**savings))
    assert denoise_window(scene, 0, first_motion(scene.picture), lambda *_: None).device == CARD


@pytest.mark.parametrize("is_alike", [False, True])
def test_steps_that_reuse_stay_on_the_card(
    is_alike: bool, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How alike two steps are is a number, which fake tensors have none of."""
    monkeypatch.setattr(reuse, "_change", lambda *_: 0.0 if is_alike else 1.0)
    scene = scene_on_card(profiles()[0], sampler(reuse_threshold=0.1))
    assert denoise_window(scene, 0, first_motion(scene.picture), lambda *_: None).device == CARD


def test_no_step_waits_for_the_card(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for profile in profiles():
        scene = scene_on_card(profile, sampler())
        with kept_from_the_host(monkeypatch):
            denoise_window(scene, 0, first_motion(scene.picture), lambda *_: None)


def test_a_tensor_on_the_wrong_device_is_seen(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above can fail."""
    scene = scene_on_card(profiles()[0], sampler())
    misplaced = replace(scene, text=scene.text.to("cpu"))
    with pytest.raises(RuntimeError, match="devices"):
        denoise_window(misplaced, 0, first_motion(scene.picture), lambda *_: None)
    with kept_from_the_host(monkeypatch), pytest.raises(AssertionError, match="brought to the host"):
        scene.text.cpu()


BROUGHT: list[Callable[[Tensor], object]] = [
    lambda tensor: tensor.to("cpu"),
    lambda tensor: tensor.to(torch.device("cpu")),
    lambda tensor: tensor.to(device="cpu", dtype=torch.float32, non_blocking=True),
    lambda tensor: tensor.to(torch.zeros(1)),
    lambda tensor: torch.empty(tensor.shape).copy_(tensor),
    lambda tensor: tensor.item(),
]


def test_whatever_waits_for_the_card_within_a_step_is_seen(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above can fail, by each of the ways to the processor."""
    forward, scene = Block.forward, scene_on_card(profiles()[0], sampler())
    motion = first_motion(scene.picture)
    for bring in BROUGHT:

        def waiting(block: Block, tokens: Any, *given: Any, bring: Any = bring, **named: Any) -> Any:
            bring(tokens.video)
            return forward(block, tokens, *given, **named)

        monkeypatch.setattr(Block, "forward", waiting)
        with kept_from_the_host(monkeypatch), pytest.raises(AssertionError, match="brought to the host"):
            denoise_window(scene, 0, motion, lambda *_: None)
