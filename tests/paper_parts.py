"""A toy recording for the paper's networks, and one process of a training."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from omokage.avatar.paper.batch import Batch, Draws, Loader
from omokage.avatar.paper.config import STYLE, DiscriminatorConfig, PortraitConfig, TextureConfig, UNetConfig
from omokage.avatar.paper.frames import FrameRecord, FrameStore, FrameWriter, alpha_of_cells
from omokage.avatar.paper.run import PaperRun, PaperTrainingConfig
from omokage.avatar.paper.train import train_paper
from omokage.config import Progress
from omokage.workers import Workers

SIZE = 64
SIDE = SIZE * 3 // 2
NETWORK = PortraitConfig(
    size=SIZE,
    style=STYLE,
    foreground=UNetConfig(stem=4, encoder=(8, 8), decoder=(8, 8), joins=1),
    lift=6,
    image=UNetConfig(stem=6, encoder=(12, 12), decoder=(12, 12, 8, 6, 4), joins=1),
    texture=TextureConfig(base=4, constant=12, widths=(8,)),
    rounded_window=False,
    released_border=False,
)
CRITIC = DiscriminatorConfig(size=SIZE, channels=6, stem=4, widths=(6, 8, 8))
TINY = PaperTrainingConfig(
    steps=4,
    batch=4,
    micro_batch=2,
    adversarial_from=0.25,
    r1_every=2,
    texture_share=0.7,
    precision="fp32",
    learning_rate=0.2,
)
# Sample by sample, by what a picture should look like and no critic.
PICTURES_ALONE = replace(
    TINY,
    batch=1,
    micro_batch=1,
    adversarial=0.0,
    texture_share=1.0,
    learning_rate=1e-2,
    ema=0.9,
)


def toy_record(frame: int, seed: int = 0) -> FrameRecord:
    """An oval face with a pattern that moves over a still background."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    hue = 40 * seed
    back = np.stack([60 + x, 60 + y, 120 + 40 * np.sin(x / 9 + seed) + hue], axis=-1)
    center = SIDE / 2 + 7 * np.array([np.sin(0.7 * frame), np.cos(0.9 * frame)])
    u, v = (x - center[0]) / 30 + 0.5, (y - center[1]) / 40 + 0.5
    inside = ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.25)[..., None]
    skin = np.stack([180 + 40 * np.sin(9 * u), 120 + 60 * v, 90 + 40 * np.cos(9 * v) + hue], axis=-1)
    mesh = np.stack([255 * u, 255 * v, np.full_like(u, 255)], axis=-1)
    shade = np.repeat((255 * (1 - 2 * np.hypot(u - 0.5, v - 0.5)))[..., None], 3, axis=-1)

    def drawn(picture: np.ndarray) -> np.ndarray:  # of the window in the middle, every fourth pixel
        return np.clip(np.where(inside, picture, 0), 0, 255).astype(np.uint8)[18:82:4, 18:82:4]

    image = np.clip(np.where(inside, skin, back), 0, 255).astype(np.uint8)
    alpha = alpha_of_cells((inside[..., 0] * 255).astype(np.uint8), SIZE)
    return FrameRecord(frame, image, alpha, drawn(shade), drawn(mesh))


def toy_store(folder: Path, train: int = 12, held_out: int = 3, seed: int = 0) -> FrameStore:
    writer = FrameWriter(folder, SIZE)
    for frame in range(train + held_out):
        writer.add(toy_record(frame, seed))
    return writer.finish(train, held_out)


def toy_run(config: PaperTrainingConfig, stores: list[FrameStore], **options: object) -> PaperRun:
    frames = sum(store.train for store in stores)
    return PaperRun(NETWORK, CRITIC, config, frames=frames, videos=len(stores), **options)  # type: ignore[arg-type]


def first_batches(run: PaperRun, stores: list[FrameStore], config: PaperTrainingConfig = TINY) -> list[Batch]:
    """The micro-batches of a run's next step."""
    draws = Draws(config.seed, config.batch, config.micro_batch, config.code_dropout)
    return next(Loader(stores, draws).steps(run.step, Workers.alone()))


def main(folder: str, result: str, killed_at: str = "0") -> None:
    """Train on the recordings of a folder as one of the processes that the environment names; the first one writes
    losses and weights. killed_at: after this step the process kills itself as the system would, 0 for never."""

    def on_progress(_: Progress) -> None:
        if run.step == int(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    workers = Workers.join(torch.device("cpu"))
    stores = [FrameStore.open(path) for path in sorted(Path(folder).glob("store-*"))]
    config = replace(TINY, checkpoint_seconds=0.0)
    run = toy_run(config, stores, workers=workers)
    done = train_paper(
        run,
        stores,
        config,
        workers=workers,
        checkpoint=Path(result).with_name("checkpoint.safetensors"),
        on_progress=on_progress,
    )
    if workers.is_first:
        state = {name: value.detach().clone().contiguous() for name, value in run.named_state().items()}
        psnr = [point[2] for point in done.curve]
        save_file(state | {"losses": torch.tensor(done.losses), "psnr": torch.tensor(psnr)}, result)
