"""The talking model: how each part is built and filled from a folder of weights (see `folder`), and where it computes.

Parts are built here and nowhere else, each when it is needed: whoever asked for one lets go of it when it has done its
work, so that the largest ones are never in memory together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

from omokage.errors import MissingDependencyError, WeightsError
from omokage.talking.conditions.log_mel import LogMelEncoder
from omokage.talking.conditions.speech import SpeechEncoder
from omokage.talking.conditions.text import TextEncoder, Unread
from omokage.talking.convert import load_weights, read_index
from omokage.talking.folder import (
    DENOISER,
    REFERENCE,
    SPEECH_FOLDER,
    TEXT_FOLDER,
    VAE,
    Architecture,
    load_architecture,
)
from omokage.talking.lora import Lora, load_lora, merge
from omokage.talking.placement import Profile, place, place_vae
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae

# A face embedding that the user added himself.
FACE_FILE = "face.onnx"  # `file_name` of its entry in weights.registry

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Machine:
    """Where the networks compute, and the precision of the transformers and the autoencoder.

    The text encoder is in bfloat16 and the speech encoder in float32 everywhere, as in the released pipeline.
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str = "auto") -> Self:
        """bfloat16 on a graphics card, as released; float32 on a processor, which as a rule has no fast 16 bits.

        'auto' takes the graphics card when there is one. Raises MissingDependencyError for one that is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device != "cpu" and not torch.cuda.is_available():
            raise MissingDependencyError(
                "PyTorch finds no graphics card on this machine; choose --device cpu, or install the card's driver and "
                "a build of PyTorch for it"
            )
        return cls(torch.device(device), torch.float32 if device == "cpu" else torch.bfloat16)


@dataclass(frozen=True)
class TalkingModel:
    """A folder of weights, the sizes that it declares, and where to compute. Holds no network itself.

    lora: low-rank updates that are added to the weights when they are loaded.
    """

    folder: Path
    sizes: Architecture
    machine: Machine
    lora: Lora | None = None

    @classmethod
    def open(cls, folder: Path, machine: Machine, lora: Path | None = None) -> Self:
        """Read the sizes, and look whether every part is there and of this model; loads no network.

        lora: a file of updates that were trained beside these weights. Raises InputError, or its kind WeightsError, for
        a folder that is not such a model, or a file that belongs to other weights.
        """
        model = cls(folder, load_architecture(folder), machine)
        for name, network in skeletons(model.sizes).items():
            strange = sorted(set(read_index(folder, name).shards) ^ set(network.state_dict()))
            if strange:
                raise WeightsError(
                    f"{folder} holds another model than it says: {len(strange)} tensors of its {name} are missing or "
                    f"unknown, such as '{strange[0]}'; run 'omokage weights add hallo3' again"
                )
        for part in () if model.sizes.is_small else (TEXT_FOLDER, SPEECH_FOLDER):
            if not (folder / part / "config.json").is_file():
                raise WeightsError(
                    f"{folder} lacks the {part} encoder; run 'omokage weights add hallo3' again"
                )
        if lora is None:
            return model
        updates = load_lora(lora)
        if updates.base != model.digest:
            raise WeightsError(
                f"{lora} was trained beside other weights than those in {folder}; use it with the model it was trained "
                "from"
            )
        return replace(model, lora=updates)

    @property
    def height(self) -> int:
        """Pixels of the video."""
        return video_size(self.sizes)[0]

    @property
    def width(self) -> int:
        """Pixels of the video."""
        return video_size(self.sizes)[1]

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all shards: equal when the weights are equal."""
        names = (DENOISER, REFERENCE, VAE)
        shards: list[Any] = [[name, sorted(read_index(self.folder, name).digests.items())] for name in names]
        if self.lora is not None:
            shards.append(["lora", self.lora.digest])
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()

    def denoiser(self, profile: Profile) -> Transformer:
        return self._placed(_on_meta(lambda: Transformer(self.sizes.transformer)), DENOISER, profile)

    def reference(self, profile: Profile) -> Transformer:
        return self._placed(
            _on_meta(lambda: Transformer(self.sizes.transformer.reference)), REFERENCE, profile
        )

    def vae(self, profile: Profile) -> CausalVae:
        network = self._filled(_on_meta(lambda: CausalVae(self.sizes.vae)), VAE, self.machine.device)
        place_vae(network, profile, self.machine.device)
        return network

    def text_encoder(self, device: torch.device) -> TextEncoder | Unread:
        sizes = self.sizes.transformer
        if self.sizes.is_small:
            return Unread(sizes.text_tokens, sizes.text_width)
        return TextEncoder.load(self.folder / TEXT_FOLDER, sizes.text_tokens, device=device)

    def speech_encoder(self, device: torch.device) -> SpeechEncoder | LogMelEncoder:
        audio = self.sizes.transformer.audio
        if self.sizes.is_small and audio is not None:
            return LogMelEncoder(audio.channels)
        return SpeechEncoder.load(self.folder / SPEECH_FOLDER, device)

    def _placed(self, network: Transformer, name: str, profile: Profile) -> Transformer:
        # What waits in the machine's memory or changes its format never is on the device as a whole.
        is_direct = not profile.group and profile.is_exact
        network = self._filled(network, name, self.machine.device if is_direct else torch.device("cpu"))
        place(network, profile, self.machine.device)
        return network

    def _filled(self, network: Network, name: str, device: torch.device) -> Network:
        load_weights(network, self.folder, name, device=device, dtype=self.machine.dtype)
        if self.lora is not None:
            merge(network, self.lora.of(name), self.lora.scale)
        return network.eval().requires_grad_(False)


def video_size(sizes: Architecture) -> tuple[int, int]:
    """Height and width in pixels of what these networks make."""
    cell = sizes.vae.spatial_factor
    return sizes.transformer.latent_height * cell, sizes.transformer.latent_width * cell


def skeletons(sizes: Architecture) -> dict[str, nn.Module]:
    """The converted networks without weights, on the meta device, by the name of their part."""
    return {
        DENOISER: _on_meta(lambda: Transformer(sizes.transformer)),
        REFERENCE: _on_meta(lambda: Transformer(sizes.transformer.reference)),
        VAE: _on_meta(lambda: CausalVae(sizes.vae)),
    }


def _on_meta(build: Callable[[], Network]) -> Network:
    with torch.device("meta"):
        return build()
