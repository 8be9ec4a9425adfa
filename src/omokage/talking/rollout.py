"""Window after window: the denoising core with everything that was prepared, and the frames that come out of it.

Of the largest network only what works at every step is kept. Keys and values of the portrait and the face are made
once, those of the speech once a window, the modulation of all timesteps once. Nothing in the loop over the steps waits
for the device. What is in memory does not depend on the number of windows, but for the tokens of the speech.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from omokage.media.clip import Image
from omokage.talking.caches import ConditionCache, Conditions, Modulation
from omokage.talking.conditions.portrait import (
    MOTION_FRAMES,
    condition_clip,
    condition_latents,
    first_motion,
    next_motion,
    to_image,
)
from omokage.talking.conditions.speech import SpeechFeatures
from omokage.talking.config import SamplerConfig
from omokage.talking.model import TalkingModel
from omokage.talking.parallel import Team
from omokage.talking.placement import Profile
from omokage.talking.prepare import Draw, PreparedPortrait
from omokage.talking.sampler import denoise, draw_noise, guided_velocity, null_conditions
from omokage.talking.scheduler import Step, sampling_steps
from omokage.talking.transformer import Transformer
from omokage.talking.vae import CausalVae
from omokage.workers import Workers

# Index of a window, steps done.
StepCallback = Callable[[int, int], None]
# In the place of an index: there are no more windows.
DONE = -1


class WindowStore(Protocol):
    """Keeps the clean latents of finished windows: all else follows from them."""

    def load(self, index: int) -> Tensor | None:
        """The latents (1, T, C, h, w) of a window, None when they were never saved whole."""
        ...

    def save(self, index: int, latents: Tensor) -> None: ...


@dataclass(frozen=True)
class Scene:
    """The networks of the loop and all that was prepared for it.

    denoiser: only `forward` and `cache_audio_tokens` are left of it.  table: modulation of all `steps`.
    text: embeddings (1, N, D).  picture: the portrait (1, 3, H, W) in about [-1, 1]; `is_square`: between black bars.
    reference, face, silence: keys and values of portrait, face embedding and zero features of speech.
    speech_tokens: of every window, (1, T, N, D) on the CPU.  frame_count: of the whole video.
    team: the processes that share the work; each has a scene of its own.
    """

    denoiser: Transformer
    vae: CausalVae
    steps: tuple[Step, ...]
    table: Modulation
    text: Tensor
    picture: Tensor
    is_square: bool
    reference: ConditionCache
    face: ConditionCache
    silence: ConditionCache
    speech_tokens: tuple[Tensor, ...]
    frame_count: int
    sampler: SamplerConfig
    seed: int
    team: Team

    @classmethod
    def set_up(
        cls,
        model: TalkingModel,
        portrait: PreparedPortrait,
        text: Tensor,
        speech: SpeechFeatures,
        sampler: SamplerConfig,
        seed: int,
        profile: Profile,
        team: Team | None = None,
    ) -> Self:
        """Load the denoiser and the autoencoder, make all caches, and free what they replace."""
        denoiser, device = model.denoiser(profile), model.machine.device
        steps = sampling_steps(sampler.steps, stochastic=sampler.stochastic)
        with torch.no_grad():
            table = denoiser.modulation(torch.tensor([step.timestep for step in steps], device=device))
            windows = speech.windows(model.sizes.transformer.frames)
            project = denoiser.audio_tokens
            assert project is not None
            # One window at a time: its features repeat those of a frame five-fold, and are far larger than its tokens.
            tokens = tuple(project(speech.window(rows).to(device)).cpu() for rows in windows)
            silence = denoiser.cache_audio(torch.zeros_like(speech.window(windows[0]), device=device))
            reference = denoiser.cache_reference(tuple(tokens.to(device) for tokens in portrait.reference))
            face = denoiser.cache_face(portrait.embedding.to(device))
        denoiser.free_prepared()
        return cls(
            denoiser=denoiser,
            vae=model.vae(profile),
            steps=steps,
            table=table,
            text=text.to(device),
            picture=portrait.picture.to(device),
            is_square=portrait.is_square,
            reference=reference,
            face=face,
            silence=silence,
            speech_tokens=tokens,
            frame_count=speech.length.frames,
            sampler=replace(sampler, together=sampler.together and profile.together),
            seed=seed,
            team=team or Team(Workers.alone(device)),
        )


def rollout(scene: Scene, store: WindowStore, on_step: StepCallback) -> Iterator[Image]:
    """MAIN: all frames of the video, uint8 (H, W, 3), one window in memory at a time.

    A window that the store has is only decoded; the frames are then those of a run that was never stopped. Where
    several processes share the work, the first one calls this, and all others `assist`.
    """
    yield from _frames(scene, store, on_step)
    scene.team.workers.agree(DONE)


def assist(scene: Scene) -> None:
    """What the other processes do: their share of every window that the first one asks for."""
    while (index := int(scene.team.workers.agree(DONE)[0])) != DONE:
        denoise_window(scene, index, first_motion(scene.picture), lambda *_: None)


def _frames(scene: Scene, store: WindowStore, on_step: StepCallback) -> Iterator[Image]:
    left = scene.frame_count
    motion = first_motion(scene.picture)
    for index in range(len(scene.speech_tokens)):
        latents = store.load(index)
        if latents is None:
            scene.team.workers.agree(index)
            latents = denoise_window(scene, index, motion, on_step)
            store.save(index, latents)
        skip = MOTION_FRAMES  # the window before has shown them; in the first one they are the portrait
        for chunk in scene.vae.decode(latents.to(motion)):
            for frame in chunk[0, skip:][:left]:
                yield to_image(frame, square=scene.is_square)
                left -= 1
            skip = 0
            motion = next_motion(chunk)
            if not left:
                return


def denoise_window(scene: Scene, index: int, motion: Tensor, on_step: StepCallback) -> Tensor:
    """Clean latents (1, T, C, h, w) of a window after its motion frames (1, 2, 3, H, W) in [-1, 1].

    All draws depend on the seed, the window and the step alone. Where several processes share the work, only the first
    one knows the motion frames, and all get what it makes of them.
    """
    conditions = window_conditions(scene, index, motion)
    with torch.no_grad():
        null = null_conditions(conditions, scene.silence.layers)
        velocity = guided_velocity(scene.denoiser, scene.table, conditions, null, scene.sampler, scene.team)
        shape, device = tuple(conditions.latents.shape), motion.device
        start = draw_noise(shape, scene.seed, Draw.START, index).to(device)
        # On the device before the loop begins: a copy within it would wait for the steps before.
        noise = [
            draw_noise(shape, scene.seed, Draw.STEP, index, step).to(device)
            for step in range(len(scene.steps) - 1)
        ]
        clean = start
        on_step(index, 0)
        for done, denoised in enumerate(denoise(velocity, scene.steps, start, noise.__getitem__), 1):
            clean = denoised.clean
            on_step(index, done)
    return clean.to(motion.dtype)


def window_conditions(scene: Scene, index: int, motion: Tensor) -> Conditions:
    """Everything the denoiser is told in a window."""
    picture = scene.picture
    # Uniform draws: what the distribution function of the normal makes of normal ones.
    hidden = torch.special.ndtr(draw_noise(tuple(picture.shape[-2:]), scene.seed, Draw.HIDDEN, index))
    clip = condition_clip(picture, motion, hidden.to(picture.device))
    frames, channels, height, width = _latent_shape(scene)
    noise = draw_noise((1, 1, channels, height, width), scene.seed, Draw.CONDITION, index).to(picture)
    latents = scene.team.workers.share(condition_latents(scene.vae, clip, frames, noise))
    with torch.no_grad():
        speech = scene.denoiser.cache_audio_tokens(scene.speech_tokens[index].to(picture.device))
    return Conditions(
        text=scene.text,
        latents=latents,
        reference=scene.reference.layers,
        face=scene.face.layers,
        audio=speech.layers,
    )


def _latent_shape(scene: Scene) -> tuple[int, int, int, int]:
    sizes = scene.denoiser.config
    return sizes.latent_frames, sizes.latent_channels, sizes.latent_height, sizes.latent_width
