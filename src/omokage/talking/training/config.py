"""How a talking model is trained: the two published stages as presets, and the same for small networks.

A stage says which weights learn, by patterns over OUR parameter names; the published stages select by parts of the
official names (spec 4.1), and a test holds both to be the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from omokage.config import Config
from omokage.errors import InputError
from omokage.talking.scheduler import TIMESTEPS

# Of a transformer's parameters. The published rule "attention" also meets the norm that is called post_attention in
# the official names, and not the norm in front of attention.
ATTENTION = r"blocks\.\d+\.(attention|mlp_norm)\..*"
FACE = r"(face_tokens|blocks\.\d+\.face|blocks\.\d+\.face_norm)\..*"
AUDIO = r"(audio_tokens|blocks\.\d+\.audio|blocks\.\d+\.audio_norm)\..*"
ALL = r".*"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How weights learn, whatever they are for.

    steps: of the optimiser.  minutes: stop after this time at the latest, 0 for never; the learning rate falls along
    whichever of both is spent faster.
    learning_rate: its peak.  warmup: share of training until the peak.  final_rate: share of the peak at the end, a
    straight line between.  betas, eps, weight_decay: of AdamW.  clip: largest norm of all gradients together.
    ema: decay of the average of the weights that is the result; 0: the last weights are.
    seed: of every draw.
    """

    steps: int
    minutes: float
    learning_rate: float
    warmup: float
    final_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float
    ema: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.steps, self.learning_rate, self.clip) <= 0 or min(self.minutes, self.seed) < 0:
            raise InputError(
                "training needs steps, a learning rate and a gradient norm above 0, and minutes and seed of at least "
                f"0; got {self.steps}, {self.learning_rate:g}, {self.clip:g}, {self.minutes:g} and {self.seed}"
            )
        if not all(0 <= share <= 1 for share in (self.warmup, self.final_rate, self.ema)):
            raise InputError(
                "warm-up, final rate and the decay of the average are shares from 0 to 1, got "
                f"{self.warmup:g}, {self.final_rate:g} and {self.ema:g}"
            )

    def rate(self, share: float) -> float:
        """Learning rate after this share of training: up in a straight line, then down in one (spec 4.1)."""
        if share < self.warmup:
            return self.learning_rate * share / self.warmup
        down = (share - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.learning_rate * (1 - (1 - self.final_rate) * min(down, 1.0))


@dataclass(frozen=True, kw_only=True)
class StageConfig(OptimizerConfig):
    """One stage of training.

    denoiser, reference: patterns; a parameter learns when one matches its whole name.
    hears: whether the denoiser has its speech branch; without, all else is the same.
    batch: samples of a step, over all processes.  micro_batch: samples that a process computes at once; gradients of a
    step's micro-batches are added up.
    text_dropout, condition_dropout, reference_dropout, audio_dropout: share of samples whose text embeddings, first
    condition latent, reference latents and speech features are zeros.
    recompute: activations inside layers are computed again for the gradient instead of kept.
    lora_rank: 0 trains the weights themselves, else low-rank updates of the linear layers among them.
    lora_scale: factor of those updates.
    """

    denoiser: tuple[str, ...]
    reference: tuple[str, ...]
    hears: bool
    batch: int
    micro_batch: int
    text_dropout: float
    condition_dropout: float
    reference_dropout: float
    audio_dropout: float
    recompute: bool
    lora_rank: int = 0
    lora_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.micro_batch <= self.batch <= TIMESTEPS or self.lora_rank < 0:
            raise InputError(
                f"a batch has 1 to {TIMESTEPS} samples, a micro-batch no more, and a LoRA a rank of 0 or more; got "
                f"{self.batch}, {self.micro_batch} and {self.lora_rank}"
            )
        dropouts = (self.text_dropout, self.condition_dropout, self.reference_dropout, self.audio_dropout)
        if not all(0 <= share <= 1 for share in dropouts):
            raise InputError(f"dropouts are shares of the samples, from 0 to 1, got {dropouts}")


def learns(patterns: Iterable[str], name: str) -> bool:
    """Whether the parameter of this name is trained."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> int:
    """Let only the matching parameters learn; gives their number of weights."""
    count = 0
    for name, value in network.named_parameters():
        value.requires_grad_(learns(patterns, name))
        count += value.numel() if value.requires_grad else 0
    return count


def stage_one() -> StageConfig:
    """Identity (spec 4.1): self-attention of both networks and everything of the face learn; nothing is heard.

    The batch is that of the published launch script, a sample on each of eight cards. No decay of an average is
    published.
    """
    return StageConfig(
        denoiser=(ATTENTION, FACE),
        reference=(ATTENTION,),
        hears=False,
        steps=30_000,
        minutes=0,
        batch=8,
        micro_batch=1,
        learning_rate=1e-5,
        warmup=0.01,
        final_rate=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=1e-4,
        clip=0.1,
        ema=0.0,
        text_dropout=0.1,
        condition_dropout=0.05,
        reference_dropout=0.05,
        audio_dropout=0.05,
        recompute=True,
        seed=0,
    )


def stage_two() -> StageConfig:
    """Speech (spec 4.1): only the speech branch of the denoiser learns, from the result of the first stage."""
    return replace(stage_one(), denoiser=(AUDIO,), reference=(), hears=True)


def tiny_stage_one() -> StageConfig:
    """The first stage for networks that fit anywhere: few steps at a rate that shows in them."""
    return replace(stage_one(), steps=20, batch=2, learning_rate=1e-3, clip=1.0, recompute=False)


def tiny_stage_two() -> StageConfig:
    """The second stage of the same kind."""
    return replace(tiny_stage_one(), denoiser=(AUDIO,), reference=(), hears=True)


def from_scratch() -> StageConfig:
    """One stage for small networks without any weights to begin with: everything learns at once."""
    return replace(
        tiny_stage_one(), denoiser=(ALL,), reference=(ALL,), hears=True, steps=4000, batch=8, micro_batch=8,
        learning_rate=5e-4, weight_decay=1e-2, ema=0.999,
    )  # fmt: skip
