"""The state of a training of the paper's networks: what learns, what is averaged, and the optimisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omokage.avatar.loop import BudgetConfig, TrainingRun
from omokage.avatar.paper.config import DiscriminatorConfig, PortraitConfig
from omokage.avatar.paper.discriminator import Discriminator
from omokage.avatar.paper.portrait import NoiseMaps, PortraitGenerator, draw_noise
from omokage.avatar.paper.textures import Texture, TextureGenerator
from omokage.avatar.paper.time_code import time_code
from omokage.errors import InputError
from omokage.workers import Workers

if TYPE_CHECKING:  # a training needs nothing of what reads avatar files
    from omokage.avatar.paper.bundle import PaperAvatar

PARTS = ("face", "background")
PRECISIONS = ("fp32", "tf32", "bf16")
# Recordings are told apart by codes of times a tenth apart (specification 1.2).
VIDEO_STEP = 0.1


@dataclass(frozen=True)
class PaperTrainingConfig(BudgetConfig):
    """How the paper's networks are trained (specification 3.1); sizes are in their own configurations.

    micro_batch: samples that go through the networks at once and that the discriminator compares; a step's batch is so
    many of them, in one process or shared by several.
    matte, perceptual, adversarial: weights beside L1's 1; the perceptual loss needs VGG19's weights.
    adversarial_from, texture_share: shares of the budget from which the discriminator takes part, and up to which the
    textures learn.  r1, r1_every: weight of the gradient penalty, and of so many steps one has it.
    code_dropout: share of samples with the code that later pictures are drawn with.
    precision: 'fp32', 'tf32' (matrix products of a graphics card) or 'bf16' (networks, not losses or the penalty).
    channels_last, compiled: the layout of features in memory; networks compiled by PyTorch.
    """

    minutes: float = 10.0
    passes: float = 200.0
    patience: float = 1.0  # never: a discriminator costs PSNR, and pays in what PSNR does not see
    checkpoint_seconds: float = 300.0
    micro_batch: int = 4
    learning_rate: float = 2e-3
    matte: float = 3.0
    perceptual: float = 0.03
    adversarial: float = 1.0
    adversarial_from: float = 0.1
    texture_share: float = 0.6
    r1: float = 5.0
    r1_every: int = 16
    code_dropout: float = 0.5
    clip: float = 1.0
    precision: str = "tf32"
    channels_last: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"there is no precision '{self.precision}'; choose one of {', '.join(PRECISIONS)}"
            )
        if self.batch % self.micro_batch or (self.micro_batch > 4 and self.micro_batch % 4):
            raise InputError(
                f"a batch of {self.batch} cannot be cut into micro-batches of {self.micro_batch}; a micro-batch is of "
                "1 to 4 samples or a multiple of 4, and a batch of whole ones"
            )

    def check(self, workers: Workers) -> None:
        """Raises InputError unless every process gets as many whole micro-batches of a step."""
        share = workers.world * self.micro_batch
        if self.batch % share:
            raise InputError(
                f"a batch of {self.batch} cannot be shared out to {workers.world} processes in micro-batches of "
                f"{self.micro_batch}; use a batch that is a multiple of {share}"
            )


@dataclass(frozen=True)
class Textures:
    """Of one recording."""

    face: Texture
    background: Texture

    def tensors(self) -> tuple[Tensor, ...]:
        """face features and bands, background features and bands."""
        return (self.face.features, self.face.bands, self.background.features, self.background.bands)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Textures:
        return cls(Texture(*tensors[:2]), Texture(*tensors[2:]))


class PaperRun(TrainingRun):
    """Networks on the device of `workers`. noise: drawn once and kept, so that what is drawn later has the noise that
    was trained with.  textures: averages of what the texture generators made, (recordings, C, G, G) each."""

    def __init__(
        self,
        network: PortraitConfig,
        critic: DiscriminatorConfig,
        config: PaperTrainingConfig,
        *,
        frames: int,
        videos: int = 1,
        start: PaperAvatar | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(frames)
        self.device = (workers or Workers.alone()).device
        torch.manual_seed(config.seed)
        self.generator = PortraitGenerator(network)
        self.face = TextureGenerator(network.texture, network.style)
        self.background = TextureGenerator(network.texture, network.style)
        self.discriminator = Discriminator(critic)
        noise = draw_noise(network, config.seed)
        if start is not None:
            _load_start(self.modules(), start, is_shared=False)
            noise = start.noise
        for module in self.modules().values():
            module.to(self.device)
            if config.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.noise = NoiseMaps(
            *(part.to(self.device) for part in (noise.face, noise.background, noise.foreground))
        )
        self.codes = time_code(
            torch.arange(videos, device=self.device)[:, None] * VIDEO_STEP, network.style.size
        )
        with torch.no_grad():
            made = [self.produced(video, is_learning=False).tensors() for video in range(videos)]
        self.textures = [torch.cat(kind) for kind in zip(*made, strict=True)]
        self.optimizer = self._adam(config, self.generator)
        self.texture_optimizer = self._adam(config, self.face, self.background)
        self.critic_optimizer = self._adam(config, self.discriminator)

    def modules(self) -> dict[str, nn.Module]:
        """The networks that learn, by their names in an avatar file."""
        return {
            "generator": self.generator,
            "face": self.face,
            "background": self.background,
            "discriminator": self.discriminator,
        }

    def produced(self, video: int, *, is_learning: bool = True) -> Textures:
        """What the texture generators make of one recording's code, alone in its batch: their normalisation is that
        of the texture itself, whatever else is trained with it (specification 6.4, 6.18).

        is_learning: whether the running statistics of that normalisation follow. Textures that do not learn any more
        are made once, and once more after a resumption, which must not be told from the weights.
        """
        code = self.codes[video : video + 1]
        for part in (self.face, self.background):
            part.norm.track_running_stats = is_learning
        made = self.face(code), self.background(code)
        return Textures(*(Texture(part.features.float(), part.bands.float()) for part in made))

    def averages(self, video: int) -> Textures:
        """The averaged textures of a recording, batch of 1."""
        return Textures.of([kind[video : video + 1] for kind in self.textures])

    def average_textures(self, made: Mapping[int, Textures], ema: float) -> None:
        """Moving average of the textures, as of the generator's weights."""
        for video, textures in made.items():
            for kind, value in zip(self.textures, textures.tensors(), strict=True):
                kind[video].lerp_(value[0].detach(), 1 - self.decay(ema))

    def set_rates(self, share: float, config: PaperTrainingConfig) -> None:
        for optimizer in self.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * self.rate(share)

    def named_state(self) -> Mapping[str, Tensor]:
        networks = self.modules() | {"averaged": self.averaged}
        state = {
            f"{name}.{k}": v for name, module in networks.items() for k, v in module.state_dict().items()
        }
        noise = {f"noise.{name}": getattr(self.noise, name) for name in ("face", "background", "foreground")}
        return state | noise | {f"textures.{number}": value for number, value in enumerate(self.textures)}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {
            "adam": self.optimizer,
            "texture_adam": self.texture_optimizer,
            "critic_adam": self.critic_optimizer,
        }

    def _adam(self, config: PaperTrainingConfig, *networks: nn.Module) -> torch.optim.Optimizer:
        parameters = [value for network in networks for value in network.parameters()]
        # The released optimiser lets biases, noise and modulation weights decay too (specification 6.24): none here.
        return torch.optim.Adam(parameters, lr=config.learning_rate, betas=(0.0, 0.99))


def check_start(start: PaperAvatar, network: PortraitConfig, critic: DiscriminatorConfig) -> None:
    """Raises InputError where a run of these networks could not begin with that avatar."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {
            "generator": PortraitGenerator(network),
            "face": TextureGenerator(network.texture, network.style),
            "background": TextureGenerator(network.texture, network.style),
            "discriminator": Discriminator(critic),
        }
    _load_start(modules, start, is_shared=True)


def _load_start(modules: Mapping[str, nn.Module], start: PaperAvatar, *, is_shared: bool) -> None:
    """Weights of another avatar; what it does not keep begins anew. is_shared: its own tensors instead of copies."""
    found = {"generator": start.generator.state_dict()} | dict(start.training)
    try:
        for name, state in found.items():
            modules[name].load_state_dict(state, assign=is_shared)
    except (KeyError, RuntimeError) as error:
        raise InputError(
            "the avatar to start from has networks of other sizes; start from one of the same preset"
        ) from error
