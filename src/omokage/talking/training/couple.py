"""Denoiser and reference network as one module: from a batch to its losses; and what of it learns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omokage.errors import InternalError
from omokage.talking.caches import Conditions
from omokage.talking.lora import add_adapters
from omokage.talking.scheduler import add_noise, velocity_loss
from omokage.talking.training.batch import TrainingBatch
from omokage.talking.training.config import StageConfig, freeze
from omokage.talking.transformer import Transformer


class Couple(nn.Module):
    """The two networks that learn together. The denoiser has no audio branch where nothing is heard."""

    def __init__(self, denoiser: Transformer, reference: Transformer) -> None:
        super().__init__()
        self.denoiser, self.reference = denoiser, reference

    def forward(self, batch: TrainingBatch, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Squared error of the predicted velocity, of each sample: (B,), float32 (spec 4.1: plain v-MSE over all latent
        frames).

        noise: unit Gaussian of the latents' shape.  timesteps: (B,) int64.
        """
        conditions = self.conditions(batch)
        noisy = add_noise(batch.latents, noise, timesteps)
        velocity = self.denoiser(noisy, self.denoiser.modulation(timesteps), conditions)
        return velocity_loss(velocity, batch.latents, noise, timesteps, batch.weight)

    def conditions(self, batch: TrainingBatch) -> Conditions:
        """Everything that the denoiser is told, as tokens that every layer projects anew.

        Unlike in animation, the reference network reads the caption, too (spec 4.2).
        """
        denoiser = self.denoiser
        if denoiser.face_tokens is None or (denoiser.audio_tokens is None) != (batch.audio is None):
            raise InternalError(
                "a denoiser is trained with its face branch, and with speech features when it has a speech branch"
            )
        later = batch.latents.shape[1] - batch.condition.shape[1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_learning(self.reference)):
            reference = self.reference.reference_tokens(batch.reference, batch.text)
        return Conditions(
            text=batch.text,
            latents=nn.functional.pad(batch.condition, (0, 0, 0, 0, 0, 0, 0, later)),
            reference=reference,
            face=denoiser.in_all_layers(denoiser.face_tokens(batch.face)),
            audio=None
            if denoiser.audio_tokens is None or batch.audio is None
            else denoiser.in_all_layers(denoiser.audio_tokens(batch.audio)),
        )


def without_speech(denoiser: Transformer) -> None:
    """Take the speech branch out of a denoiser: in the published first stage there is none (spec 4.1)."""
    denoiser.config = replace(denoiser.config, audio=None)
    denoiser.audio_tokens = None
    for block in denoiser.blocks:
        if hasattr(block, "audio"):
            del block.audio, block.audio_norm


def is_learning(network: nn.Module) -> bool:
    """Whether any of its parameters is trained."""
    return any(value.requires_grad for value in network.parameters())


def make_ready(couple: Couple, config: StageConfig) -> int:
    """Freeze what the stage leaves alone, add its adapters, and keep what learns in float32; once, before training.

    Gives the number of weights that learn. Raises InternalError when nothing does.
    """
    networks = (
        (couple.denoiser, config.denoiser, config.seed),
        (couple.reference, config.reference, config.seed + 1),
    )
    for network, patterns, seed in networks:
        freeze(network, patterns)
        if config.lora_rank:
            add_adapters(network, config.lora_rank, config.lora_scale, seed)
    learning = [value for value in couple.parameters() if value.requires_grad]
    if not learning:
        raise InternalError("the patterns of this stage match no parameter of its networks")
    for value in learning:
        # An update of 1e-5 would be lost in the 8 bits of bfloat16's fraction.
        value.data = value.data.float()
    if config.recompute:
        for network in (couple.denoiser, couple.reference):
            for block in network.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return sum(value.numel() for value in learning)
