"""What a training will cost on this machine, before any of it is done. MAIN: `plan_training`.

Weights are counted in the real networks on PyTorch's meta device, and so is what a pass keeps for its gradients.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from omokage.pipelines.animate_plan import EFFICIENCY
from omokage.pipelines.network_costs import denoiser_load, of_all
from omokage.pipelines.network_load import CardAutocast, kept_for_gradients, stand_in_attention
from omokage.pipelines.this_machine import duration, free_bytes, matmul_rate
from omokage.talking.caches import Conditions
from omokage.talking.config import TransformerConfig
from omokage.talking.folder import Architecture
from omokage.talking.model import Machine
from omokage.talking.placement import FRAGMENTED, RESERVED_BYTES
from omokage.talking.training.config import StageConfig, freeze
from omokage.talking.training.couple import Couple
from omokage.talking.transformer import Transformer

# Bytes of one weight that learns: itself, its gradient and the two moments of Adam, in float32.
LEARNING_BYTES = {"weights": 4, "gradients": 4, "optimizer": 8}
AVERAGE_BYTES = 4
# A backward pass costs twice a forward one; recomputing costs one more.
PASSES, RECOMPUTED = 3, 1


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What one stage takes. All bytes are those of one device.

    parameters, learning: of both networks.  frozen, weights, gradients, optimizer, average: bytes of what stays as it
    is, of what learns, and of what belongs to it.  activations: bytes that a pass keeps.
    flops: of a step, on all devices.  rate: operations a second of one device.  free: bytes on it.
    """

    device: str
    world: int
    parameters: int
    learning: int
    frozen: float
    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    flops: float
    rate: float
    free: float
    steps: int

    @property
    def needed(self) -> float:
        """Bytes of one device."""
        held = self.frozen + self.weights + self.gradients + self.optimizer + self.average + self.activations
        # Every process loads the weights whole, and cuts them then.
        held = max(held, self.world * (self.frozen + self.weights))
        return (RESERVED_BYTES if self.device == "cuda" else 0.0) + (1 + FRAGMENTED) * held

    @property
    def step_minutes(self) -> float:
        return self.flops / (self.world * EFFICIENCY * self.rate) / 60

    def sentence(self) -> str:
        """The plan for somebody who is about to wait."""
        each = f" on each of {self.world} devices" if self.world > 1 else f" on {self.device}"
        parts = (
            f"{_size(self.frozen)} of frozen weights, {_size(self.weights)} of weights that learn, "
            f"{_size(self.gradients)} of gradients, {_size(self.optimizer + self.average)} of the optimiser, "
            f"{_size(self.activations)} of activations"
        )
        return (
            f"{self.learning / 1e6:.4g} of {self.parameters / 1e6:.4g} million weights learn; {_size(self.needed)} are "
            f"needed{each} ({parts}) and {_size(self.free)} are free; a step takes about "
            f"{duration(self.step_minutes)}, {self.steps} steps {duration(self.steps * self.step_minutes)}"
        )

    @property
    def shortage(self) -> str:
        """Why it cannot be done; empty when it can."""
        if self.needed <= self.free:
            return ""
        return (
            f"this training needs {_size(self.needed)} of each device's memory ({_size(self.frozen + self.weights)} of "
            f"weights, {_size(self.gradients)} of gradients, {_size(self.optimizer + self.average)} of the optimiser, "
            f"{_size(self.activations)} of activations) and {_size(self.free)} are free; share it between more cards "
            "with torchrun, train a LoRA instead (--lora), or try --preset tiny"
        )


def plan_training(
    sizes: Architecture,
    stage: StageConfig,
    machine: Machine,
    world: int = 1,
    *,
    rate: float | None = None,
    free: float | None = None,
) -> TrainingPlan:
    """Plan a stage with networks of these sizes, shared by `world` devices like this machine's.

    rate, free: see `TrainingPlan`; measured on this machine when they are None.
    """
    config = sizes.transformer if stage.hears else replace(sizes.transformer, audio=None)
    with torch.device("meta"):
        couple = Couple(Transformer(config), Transformer(config.reference))
    every = sum(value.numel() for value in couple.parameters())
    learning = _learning(couple, stage)
    frozen = every if stage.lora_rank else every - learning
    counts = {name: float(learning * size) / world for name, size in LEARNING_BYTES.items()}
    size = machine.dtype.itemsize
    forward = of_all(partial(denoiser_load, config, machine.dtype, 1), config.layers).flops
    passes = PASSES + (RECOMPUTED if stage.recompute else 0)
    return TrainingPlan(
        device=machine.device.type,
        world=world,
        parameters=every,
        learning=learning,
        frozen=frozen * size / world,
        **counts,
        average=AVERAGE_BYTES * learning / world if stage.ema else 0.0,
        activations=activation_bytes(config, stage, machine.dtype),
        flops=stage.batch * passes * forward,
        rate=matmul_rate(machine) if rate is None else rate,
        # Where processes share one processor, they share its memory, too.
        free=free_bytes(machine.device) / (world if machine.device.type == "cpu" else 1)
        if free is None
        else free,
        steps=stage.steps,
    )


def activation_bytes(config: TransformerConfig, stage: StageConfig, dtype: torch.dtype) -> float:
    """What a micro-batch keeps for its gradients: of every layer its input when layers are recomputed, and all of one;
    else all of each."""
    inside = kept_bytes(config, dtype, 2) - kept_bytes(config, dtype, 1)
    tokens = config.text_tokens + config.latent_frames * config.tokens_per_frame
    entering = tokens * config.width * dtype.itemsize
    layers = config.layers * entering + inside if stage.recompute else config.layers * inside
    return float(stage.micro_batch * layers)


def kept_bytes(config: TransformerConfig, dtype: torch.dtype, layers: int) -> int:
    """Bytes that one sample's pass through a denoiser of so many layers keeps for its gradients, weights left out.

    In 16 bits it is computed as a training does it on a card: normalised tokens and what follows from them are float32.
    """
    with torch.device("meta"):
        network = Transformer(replace(config, layers=layers)).to(dtype)
        grid = (config.latent_channels, config.latent_height, config.latent_width)
        state = torch.empty(1, config.latent_frames, *grid)
        reference = torch.empty(1, config.tokens_per_frame, config.width, dtype=dtype)
        conditions = Conditions(
            text=torch.empty(1, config.text_tokens, config.text_width),
            latents=state,
            reference=(reference,) * layers,
            face=_tokens(config.face.tokens, config.face.width, dtype, layers) if config.face else None,
            audio=_tokens(config.audio.tokens, config.audio.width, dtype, layers, config.latent_frames)
            if config.audio
            else None,
        )
        types = nullcontext() if dtype == torch.float32 else CardAutocast(dtype)
        with stand_in_attention(), types:
            return kept_for_gradients(
                network, lambda: network(state, network.modulation(torch.zeros(1)), conditions)
            )


def _tokens(count: int, width: int, dtype: torch.dtype, layers: int, frames: int = 1) -> tuple[Tensor, ...]:
    return (torch.empty(1, frames, count, width, dtype=dtype),) * layers


def _learning(couple: Couple, stage: StageConfig) -> int:
    networks = ((couple.denoiser, stage.denoiser), (couple.reference, stage.reference))
    count = sum(freeze(network, patterns) for network, patterns in networks)
    if not stage.lora_rank:
        return count
    linears = [module for module in couple.modules() if isinstance(module, torch.nn.Linear)]
    return sum(
        stage.lora_rank * (linear.in_features + linear.out_features)
        for linear in linears
        if linear.weight.requires_grad
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
