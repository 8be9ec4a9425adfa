"""What `omokage create --preset paper` takes on this machine: counted on the real networks, without computing them.
MAIN: `plan_paper`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from omokage.avatar.paper.config import BANDS, DiscriminatorConfig, PortraitConfig
from omokage.avatar.paper.discriminator import Discriminator
from omokage.avatar.paper.drawing import MeshDrawing
from omokage.avatar.paper.frames import stored_bytes
from omokage.avatar.paper.portrait import PortraitGenerator
from omokage.avatar.paper.precision import matrix_precision
from omokage.avatar.paper.run import PaperTrainingConfig
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.sheet import Crop
from omokage.errors import InputError, MemoryShortageError, OutputError
from omokage.pipelines.network_load import kept_for_gradients, load_of
from omokage.pipelines.paper_frames import prepare_frame
from omokage.pipelines.predict import seconds_of, tracking_cost
from omokage.pipelines.stand_in import stand_in
from omokage.pipelines.this_machine import duration, free_bytes, matmul_rate
from omokage.talking.model import Machine
from omokage.tracking.matting import MediaPipeMatte

# Of the rate of a large matrix product, what such networks are taken to reach: few channels on many pixels.
EFFICIENCY = 0.35
# With fewer steps there is no avatar; a useful one needs so many (specification 3.4: two hours of the paper are 8000).
LEAST_STEPS, USEFUL_STEPS = 500, 8000
# Bytes for every weight: it, its gradient and two averages of the optimiser.
BYTES_PER_LEARNED = 16
PROGRAM_BYTES = 1.0e9
STAND_IN_SIZE = 128


@dataclass(frozen=True)
class PaperPlan:
    """step_tflop: of a step's whole batch.  step_seconds: of one in this process.  memory, disk: bytes at the peak.
    frames: that are used at most.  preparing_s: time before training.  minutes: of training."""

    step_tflop: float
    step_seconds: float
    memory: float
    disk: float
    frames: int
    preparing_s: float
    minutes: float
    device: str

    @property
    def steps(self) -> float:
        """That fit into the minutes."""
        return 60 * self.minutes / self.step_seconds

    def to_text(self) -> str:
        """For people."""
        return (
            f"the paper's networks on {self.device}: {self.disk / 1e9:.3g} GB on disk for {self.frames} frames, "
            f"{self.memory / 1e9:.3g} GB of memory, about {duration(self.preparing_s / 60)} of preparing and "
            f"{self.steps:.0f} steps of {self.step_tflop:.3g} TFLOP in {duration(self.minutes)} of training"
        )

    def require(self, folder: Path, *, prepared: int = 0) -> None:
        """prepared: bytes that a stopped run has already written.

        Raises OutputError, MemoryShortageError or InputError where it cannot be done in a useful way."""
        free = shutil.disk_usage(folder).free
        if self.disk > free + prepared:
            raise OutputError(
                f"preparing {self.frames} frames needs {self.disk / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB "
                "are free; make room or choose another -o"
            )
        free_memory = free_bytes(torch.device(self.device))
        if self.memory > free_memory:
            raise MemoryShortageError(
                f"training the paper's networks needs {self.memory / 1e9:.1f} GB of memory on {self.device}, and "
                f"{free_memory / 1e9:.1f} GB are free; use a smaller --batch, or --force to try all the same"
            )
        if self.steps < LEAST_STEPS:
            useful = duration(self.step_seconds * USEFUL_STEPS / 60)
            raise InputError(
                f"the paper's networks need a graphics card: here a step takes about {duration(self.step_seconds / 60)}"
                f", so that a useful avatar would take {useful}; use a machine with one, the compact preset, more "
                "--minutes, or --force to start all the same"
            )


def plan_paper(
    network: PortraitConfig,
    critic: DiscriminatorConfig,
    training: PaperTrainingConfig,
    *,
    frames: int,
    preparing_s: float,
    device: torch.device,
    world: int = 1,
) -> PaperPlan:
    """Count the networks and time a matrix product; seconds at the paper's size. frames: to prepare at most."""
    generator, textures, judge = _costs(network, critic)
    # Backward passes take twice a forward one. The generator's picture is judged, then it and a true one; R1 goes
    # through the discriminator and its gradient, and back through both.
    judged = 9 + 6 / training.r1_every
    share = training.batch / world
    flops = share * (3 * generator.flops + judged * judge.flops) + 3 * textures.flops
    kept = training.micro_batch * (generator.kept + 2 * judge.kept) + textures.kept
    weights = generator.weights + textures.weights + judge.weights
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    with matrix_precision(training.precision):
        rate = matmul_rate(Machine(device, dtype))
    return PaperPlan(
        step_tflop=flops * world / 1e12,
        step_seconds=flops / (EFFICIENCY * rate),
        memory=kept + weights * BYTES_PER_LEARNED + generator.weights * 4 + PROGRAM_BYTES,
        disk=stored_bytes(network.size, frames),
        frames=frames,
        preparing_s=preparing_s,
        minutes=training.minutes,
        device=device.type,
    )


@dataclass(frozen=True)
class FrameCosts:
    """Seconds that one frame takes. track: every frame of a recording.  prepare: those that are used."""

    track: float
    prepare: float


@cache
def frame_costs(size: int) -> FrameCosts:
    """Measure them for pictures of `size` pixels with the real functions on a synthetic person; some seconds."""
    person, matting = stand_in(STAND_IN_SIZE), MediaPipeMatte()
    track, frame, state = person.track, person.frames[0], person.samples[0].state
    crop = Crop(0.0, 0.0, float(min(frame.image.shape[:2])))
    drawing = MeshDrawing(track.subject, track.camera, crop, size)
    return FrameCosts(
        track=tracking_cost(person),
        prepare=seconds_of(lambda: prepare_frame(frame, drawing, state, matting), 3),
    )


@dataclass(frozen=True)
class _Cost:
    """Of one sample: operations forward, bytes kept for the way back; and how many weights there are."""

    flops: float
    kept: float
    weights: int


def _costs(network: PortraitConfig, critic: DiscriminatorConfig) -> tuple[_Cost, _Cost, _Cost]:
    """Generator, both texture generators, discriminator."""
    grid, drawing, style = network.grid, network.size // 4, network.style.size
    with torch.device("meta"):
        generator, texture = PortraitGenerator(network), TextureGenerator(network.texture, network.style)
        judge, code = Discriminator(critic), torch.empty(1, style)
        maps = Texture(torch.empty(1, network.channels, grid, grid), torch.empty(1, BANDS, grid, grid))
        inputs = (
            torch.empty(1, 3, drawing, drawing),
            torch.empty(1, 2, grid, grid),
            torch.empty(1, 1, grid, grid),
        )
        picture = torch.empty(1, critic.channels, critic.size, critic.size)

    def cost(module: nn.Module, call: partial[object], copies: int = 1) -> _Cost:
        weights = sum(value.numel() for value in module.parameters())
        kept = kept_for_gradients(module, call)
        flops = load_of(module.requires_grad_(False), call).flops
        return _Cost(copies * flops, copies * kept, copies * weights)

    return (
        cost(generator, partial(generator, *inputs, maps, maps, code)),
        cost(texture, partial(texture, code), 2),
        cost(judge, partial(judge, picture)),
    )
