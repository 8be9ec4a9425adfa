"""Every model that the product can use but does not bring: what it is, how large, under which licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from omokage.errors import WeightsError


class CommercialUse(Enum):
    """Whether a licence lets a business use a model."""

    YES = "yes"
    ON_REGISTRATION = "on registration"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Licence:
    """name: as its owner calls it.  terms: one sentence that a user reads before he accepts."""

    name: str
    commercial: CommercialUse
    terms: str


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a release, by its path in the official folder.

    size in bytes and sha256 are None where no trusted number is known: then the digest is recorded once a pulled file
    is installed, and checked from then on.
    """

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A part of a model that has an owner of its own."""

    title: str
    licence: Licence


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """A model: its parts, what of it is published, and bytes to pull (`download_bytes`) and to keep.

    within: the model in whose folder an addition lies, its files named after it; None for a model of its own.
    """

    name: str
    title: str
    used_for: str
    parts: tuple[ModelPart, ...]
    files: tuple[PublishedFile, ...]
    download_bytes: int
    installed_bytes: int
    within: str | None = None

    @property
    def manifest_name(self) -> str:
        """The file that says what is installed."""
        return "weights.json" if self.within is None else f"{self.name}.weights.json"

    @property
    def notice_name(self) -> str:
        """The file that says whose weights these are."""
        return "NOTICE.txt" if self.within is None else f"{self.name}.NOTICE.txt"

    @property
    def file_name(self) -> str:
        """Of a model that is one file, once installed."""
        return f"{self.name}.onnx"

    @property
    def licences(self) -> str:
        """The names of all licences, each once."""
        return ", ".join(dict.fromkeys(part.licence.name for part in self.parts))

    @property
    def commercial(self) -> CommercialUse:
        """What the strictest of the licences says."""
        return max((part.licence.commercial for part in self.parts), key=list(CommercialUse).index)

    @property
    def notice(self) -> str:
        """The text that is laid beside installed weights."""
        lines = [f"{self.title}: {self.used_for}.", ""]
        for part in self.parts:
            lines += [f"{part.title}", f"  Licence: {part.licence.name}. {part.licence.terms}", ""]
        lines += [
            "These weights were converted to another file format; their values are those of the release.",
            "",
        ]
        return "\n".join(lines)


COGVIDEOX = Licence(
    "CogVideoX License",
    CommercialUse.ON_REGISTRATION,
    "Research is free; commercial use needs a registration with the CogVideoX team and has a limit of visits a month; "
    "derivatives, such as Hallo3, keep these terms.",
)
APACHE = Licence("Apache-2.0", CommercialUse.YES, "Any use, with the licence and notices kept.")
INSIGHTFACE = Licence(
    "InsightFace model licence",
    CommercialUse.NO,
    "Non-commercial research only, unless InsightFace grants more.",
)

OWNERS = Licence(
    "that of the file",
    CommercialUse.NO,
    "omokage does not know whose file it is; ask its owner, the usual ones are for research.",
)

_TEXT_FILES = (
    "added_tokens.json",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer_config.json",
)
_SPEECH_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")

HALLO3 = WeightsSpec(
    name="hallo3",
    title="Hallo3 (Cui et al. 2024)",
    used_for="a portrait, a voice and a prompt become a video",
    parts=(
        ModelPart("Hallo3's denoiser and reference network, derived from CogVideoX-5B-I2V", COGVIDEOX),
        ModelPart("CogVideoX's video autoencoder", COGVIDEOX),
        ModelPart("T5 v1.1 XXL text encoder", APACHE),
        ModelPart("wav2vec 2.0 base 960h speech encoder", APACHE),
    ),
    files=(
        PublishedFile("hallo3/1/mp_rank_00_model_states.pt"),
        PublishedFile("cogvideox-5b-i2v-sat/vae/3d-vae.pt"),
        *(PublishedFile(f"t5-v1_1-xxl/{name}") for name in _TEXT_FILES),
        *(PublishedFile(f"wav2vec/wav2vec2-base-960h/{name}") for name in _SPEECH_FILES),
    ),
    # 14.55 billion weights of the transformers and 4.76 of T5 in 16 bits, 216 and 94 million of the others in 32.
    download_bytes=39_900_000_000,
    installed_bytes=39_900_000_000,
)
FACE = WeightsSpec(
    name="face",
    title="Face embedding (ArcFace R100, glintr100.onnx)",
    used_for="Hallo3 keeps the portrait's identity better with it; without it, it works too",
    parts=(ModelPart("InsightFace's ArcFace R100", INSIGHTFACE),),
    files=(PublishedFile("face_analysis/models/glintr100.onnx"),),
    download_bytes=261_000_000,
    installed_bytes=261_000_000,
    within="hallo3",
)
SPEECH = WeightsSpec(
    name="speech",
    title="Speech encoder (wav2vec 2.0 base 960h, Baevski et al. 2020)",
    used_for="an avatar may learn its person's way of speaking better with it; hallo3 brings it, too",
    parts=(ModelPart("wav2vec 2.0 base 960h speech encoder", APACHE),),
    files=tuple(PublishedFile(f"wav2vec/wav2vec2-base-960h/{name}") for name in _SPEECH_FILES),
    download_bytes=378_000_000,
    installed_bytes=378_000_000,
)
COGVIDEOX_I2V = WeightsSpec(
    name="cogvideox",
    title="CogVideoX-5B-I2V (Yang et al. 2024)",
    used_for="the first stage of training begins with it, as published; it cannot speak",
    parts=(
        ModelPart("CogVideoX-5B-I2V's transformer and video autoencoder", COGVIDEOX),
        ModelPart("T5 v1.1 XXL text encoder", APACHE),
        ModelPart("wav2vec 2.0 base 960h speech encoder", APACHE),
    ),
    files=(
        PublishedFile("cogvideox-5b-i2v-sat/transformer/1/mp_rank_00_model_states.pt"),
        PublishedFile("cogvideox-5b-i2v-sat/vae/3d-vae.pt"),
        *(PublishedFile(f"t5-v1_1-xxl/{name}") for name in _TEXT_FILES),
        *(PublishedFile(f"wav2vec/wav2vec2-base-960h/{name}") for name in _SPEECH_FILES),
    ),
    # 5.63 billion weights of the transformer in 16 bits, once in the release; installed it is in both networks.
    download_bytes=22_000_000_000,
    installed_bytes=39_900_000_000,
)
SYNC = WeightsSpec(
    name="sync",
    title="SyncNet (Chung & Zisserman 2016)",
    used_for="`evaluate --speech` measures lip sync as papers do (LSE-C, LSE-D)",
    parts=(ModelPart("a SyncNet in ONNX format, exported by its user", OWNERS),),
    files=(PublishedFile("syncnet.onnx"),),
    download_bytes=54_000_000,
    installed_bytes=54_000_000,
)
FID = WeightsSpec(
    name="fid",
    title="Features of frames (Inception v3 for FID, Heusel et al. 2017)",
    used_for="`evaluate --speech` measures FID against a recording",
    parts=(ModelPart("a network of frames in ONNX format, exported by its user", OWNERS),),
    files=(PublishedFile("inception.onnx"),),
    download_bytes=95_000_000,
    installed_bytes=95_000_000,
)
FVD = WeightsSpec(
    name="fvd",
    title="Features of clips (I3D for FVD, Unterthiner et al. 2018)",
    used_for="`evaluate --speech` measures FVD against a recording",
    parts=(ModelPart("a network of clips in ONNX format, exported by its user", OWNERS),),
    files=(PublishedFile("i3d.onnx"),),
    download_bytes=51_000_000,
    installed_bytes=51_000_000,
)
SPECS = (HALLO3, FACE, SPEECH, COGVIDEOX_I2V, SYNC, FID, FVD)
REGISTRY: Mapping[str, WeightsSpec] = {spec.name: spec for spec in SPECS}


def find_spec(name: str) -> WeightsSpec:
    """The model of this name. Raises WeightsError, listing the names that there are."""
    try:
        return REGISTRY[name]
    except KeyError:
        raise WeightsError(
            f"there is no model '{name}'; 'omokage weights list' knows {', '.join(REGISTRY)}"
        ) from None


def size_text(size: float) -> str:
    """Bytes for people: '39.9 GB', '261 MB', '17 kB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}" if size < 100 * scale else f"{size / scale:.0f} {unit}"
    return f"{size / 1e3:.0f} kB"
