"""What tests of training train: networks of a few thousand weights on windows of noise, one process or two."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from omokage.talking.config import TransformerConfig, tiny
from omokage.talking.training.batch import TrainingBatch
from omokage.talking.training.config import StageConfig, from_scratch
from omokage.talking.training.couple import Couple
from omokage.talking.transformer import Transformer


def smallest() -> TransformerConfig:
    """Windows of 5 frames and 4 x 4 latent cells, one layer more than one."""
    config = tiny()
    assert config.audio is not None and config.face is not None
    return replace(
        config, layers=2, width=16, heads=1, timestep_width=8, latent_channels=4, latent_frames=2, latent_height=4,
        latent_width=4, text_tokens=3, text_width=6,
        audio=replace(config.audio, layers=2, channels=3, hidden=6, tokens=2, width=8, window=3),
        face=replace(config.face, embedding=5, tokens=2, width=6),
    )  # fmt: skip


def stage(**changes: object) -> StageConfig:
    """A few steps of everything at once."""
    few = replace(from_scratch(), steps=4, batch=4, micro_batch=2, ema=0.9, learning_rate=1e-2)
    return replace(few, **changes)  # type: ignore[arg-type]


def couple(seed: int = 0, *, hears: bool = True) -> Couple:
    torch.manual_seed(seed)
    config = smallest()
    denoiser = Transformer(config if hears else replace(config, audio=None))
    return Couple(denoiser, Transformer(config.reference))


class NoiseWindows:
    """Five windows of noise, each always the same but for a tremble that the loop's generator decides."""

    def __len__(self) -> int:
        return 5

    def sample(self, index: int, random: np.random.Generator) -> TrainingBatch:
        sizes, own = smallest(), np.random.default_rng(index)
        assert sizes.audio is not None and sizes.face is not None

        def draw(*shape: int) -> torch.Tensor:
            return torch.from_numpy(own.standard_normal(shape, dtype=np.float32))

        grid = (sizes.latent_channels, sizes.latent_height, sizes.latent_width)
        audio = sizes.audio
        latents = draw(1, sizes.latent_frames, *grid)
        return TrainingBatch(
            latents=latents + 0.01 * float(random.standard_normal()),
            reference=draw(1, 1, *grid),
            condition=draw(1, 1, *grid),
            text=draw(1, sizes.text_tokens, sizes.text_width),
            face=draw(1, sizes.face.embedding),
            audio=draw(1, sizes.frames, audio.window, audio.layers, audio.channels),
        )


def main(checkpoint: str, result: str, killed_at: str = "0") -> None:
    """Train as one of the processes that the environment names; the first one writes losses and weights.

    killed_at: after this step the process kills itself as the system would, 0 for never.
    """
    from omokage.talking.training.sharding import whole
    from omokage.talking.training.train import train
    from omokage.workers import Workers

    def on_step(step: int) -> None:
        if step == int(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    workers, trained = Workers.join(torch.device("cpu")), couple()
    done = train(
        trained,
        NoiseWindows(),
        stage(recompute=True),
        workers=workers,
        checkpoint=Path(checkpoint),
        checkpoint_seconds=0,
        on_step=on_step,
    )
    tensors = {name: whole(value).clone() for name, value in trained.state_dict().items()}
    if workers.is_first:
        save_file(tensors | {"losses": torch.tensor(done.losses, dtype=torch.float64)}, result)
