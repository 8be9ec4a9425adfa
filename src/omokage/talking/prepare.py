"""What is computed once, before the first window: of the portrait, of the prompt and of the speech.

Each of the three loads the networks that it needs, lets go of them, and returns an immutable record; they do not depend
on each other. (Specification of the released pipeline, 3.3: it runs the same networks again for every window.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.media.clip import Image
from omokage.talking.conditions.identity import IdentityEncoder
from omokage.talking.conditions.portrait import (
    FaceRectangle,
    mask_face,
    prepare_portrait,
    reference_latents,
)
from omokage.talking.conditions.speech import SpeechFeatures
from omokage.talking.model import TalkingModel
from omokage.talking.placement import Profile, is_shortage, let_go
from omokage.talking.sampler import draw_noise

Result = TypeVar("Result")


class Draw(IntEnum):
    """What a draw of noise is for: part of its key, so that no two of a run are the same."""

    PORTRAIT = 0  # posterior of the reference latents
    CONDITION = 1  # posterior of a window's condition latents
    HIDDEN = 2  # pixels of the motion frames that are hidden
    START = 3  # first state of a window
    STEP = 4  # what an update adds


@dataclass(frozen=True)
class Portrait:
    """A picture and the face in it.

    picture: uint8 (H, W, 3).  face: the rectangle that reference tokens are made of.
    landmarks: (478, 3) in pixels, None when none were found.
    """

    picture: Image
    face: FaceRectangle
    landmarks: NDArray[np.float32] | None


@dataclass(frozen=True)
class PreparedPortrait:
    """picture: (1, 3, H, W) in about [-1, 1], at the size of the video.  is_square: it stands between black bars.
    reference: reference tokens (1, P, D) of every layer.  embedding: (1, D) of the face."""

    picture: Tensor
    is_square: bool
    reference: tuple[Tensor, ...]
    embedding: Tensor


def prepare_likeness(
    model: TalkingModel, portrait: Portrait, identity: IdentityEncoder, seed: int, profile: Profile
) -> PreparedPortrait:
    """The portrait as the denoiser sees it, on the CPU; the seed chooses from the posterior of its latents."""
    machine = model.machine
    pixels = torch.from_numpy(portrait.picture).permute(2, 0, 1).float() / 255
    pictures = [
        prepare_portrait(given, model.height, model.width)[None].to(machine.device, machine.dtype)
        for given in (pixels, mask_face(pixels, portrait.face))
    ]
    sizes = model.sizes.transformer
    shape = (1, 1, sizes.latent_channels, sizes.latent_height, sizes.latent_width)
    noise = draw_noise(shape, seed, Draw.PORTRAIT).to(pictures[1])
    latents = reference_latents(model.vae(profile), pictures[1], noise)
    with torch.no_grad():
        tokens = model.reference(profile).reference_tokens(latents)
    height, width = portrait.picture.shape[:2]
    return PreparedPortrait(
        picture=pictures[0].cpu(),
        is_square=height == width,
        reference=tuple(of_layer.cpu() for of_layer in tokens),
        embedding=identity.embed(portrait.picture, portrait.landmarks),
    )


def prepare_prompt(model: TalkingModel, prompt: str, say: Callable[[str], None]) -> Tensor:
    """Text embeddings (1, N, D) of a prompt, in the denoiser's precision, on the CPU.

    `say` hears when the encoder, which is larger than many a card, has to run on the processor.
    """
    encoded = _where_it_fits(model, "prompt", lambda device: model.text_encoder(device).encode(prompt), say)
    return encoded.to("cpu", model.machine.dtype)


def prepare_speech(
    model: TalkingModel, speech: NDArray[np.float32], say: Callable[[str], None]
) -> SpeechFeatures:
    """Features of a speech (S,) mono at 16 kHz, on the CPU; its frames are counted in whole numbers.

    `say` hears when the encoder has to run on the processor. Raises InputError for an empty speech.
    """
    frames, dtype = model.sizes.transformer.frames, model.machine.dtype

    def encode(device: torch.device) -> SpeechFeatures:
        return model.speech_encoder(device).features(speech, frames, exact=True, dtype=dtype)

    return _where_it_fits(model, "speech", encode, say)


def _where_it_fits(
    model: TalkingModel, name: str, encode: Callable[[torch.device], Result], say: Callable[[str], None]
) -> Result:
    """The result of an encoder on the model's device or, when memory runs out there, on the processor."""
    device = model.machine.device
    try:
        return encode(device)
    except (MemoryError, RuntimeError) as error:
        if device.type == "cpu" or not is_shortage(error):
            raise
    # Only here has the exception let go of what was on the device.
    let_go()
    say(f"the {name} was encoded by the processor, since its encoder does not fit on the device")
    return encode(torch.device("cpu"))
