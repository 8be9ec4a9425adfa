"""What lies in the folder of converted weights: one network or encoder by name each, and the sizes of all.

architecture.json                               sizes of transformers and autoencoder
{denoiser,reference,vae}-*-of-*.safetensors     the networks, each with its index, see `convert`
text/, speech/                                  the encoders, as `transformers` reads them
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from omokage.errors import WeightsError
from omokage.files import parse_json, saving
from omokage.talking.config import TransformerConfig, official, small
from omokage.talking.vae import VaeConfig, official_vae, small_vae

DENOISER, REFERENCE, VAE = "denoiser", "reference", "vae"
TEXT_FOLDER, SPEECH_FOLDER = "text", "speech"
ARCHITECTURE_FILE = "architecture.json"
TOY = "single-subject toy, trained from scratch"
SPEECHLESS = "made by networks that have not learned to speak: lips show nothing of the speech"


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks of one folder: the denoiser, whose reference network follows from it, and the VAE.

    is_small: speech, prompt and face are read without trained encoders, see `TalkingModel`; the folder holds none.
    caution: a sentence that goes with everything these networks make, empty for none.
    """

    transformer: TransformerConfig
    vae: VaeConfig
    is_small: bool = False
    caution: str = ""

    def to_json(self) -> dict[str, Any]:
        networks = {"transformer": self.transformer.to_json(), "vae": self.vae.to_json()}
        return networks | {"is_small": self.is_small, "caution": self.caution}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build from `to_json` output. Raises KeyError or TypeError for anything else."""
        return cls(
            TransformerConfig.from_json(values["transformer"]),
            VaeConfig.from_json(values["vae"]),
            bool(values.get("is_small", False)),
            str(values.get("caution", "")),
        )


def official_architecture() -> Architecture:
    """The published networks."""
    return Architecture(official(), official_vae())


def small_architecture(scale: float) -> Architecture:
    """The networks that learn one person from scratch; `scale` of the autoencoder's latents is measured."""
    return Architecture(small(), replace(small_vae(), scale=scale), is_small=True, caution=TOY)


def save_architecture(folder: Path, architecture: Architecture) -> Path:
    """Write the sizes beside the weights. Raises OutputError."""
    path = folder / ARCHITECTURE_FILE
    with saving(path) as part:
        part.write_text(json.dumps(architecture.to_json(), indent=1), encoding="utf-8")
    return path


def load_architecture(folder: Path) -> Architecture:
    """The sizes of the networks in a folder. Raises WeightsError when they are missing or damaged."""
    path = folder / ARCHITECTURE_FILE
    try:
        return Architecture.from_json(parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{folder} holds no weights of Hallo3; run 'omokage weights add hallo3' with the official folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is damaged; run 'omokage weights add hallo3' again") from error
