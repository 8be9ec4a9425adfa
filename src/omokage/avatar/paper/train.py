"""Train the paper's networks on prepared frames. MAIN: `train_paper`.

Phases, in the words of StyleGAN2: Greg (L1, matte, perceptual) and Gadv, once the adversarial part has begun; Dmain and
Dr1, lazily. One pass through the generator serves both networks (paper, section 3.4; specification 3.1).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.avatar.loop import PreviewCallback, check_rows, check_sheet, train
from omokage.avatar.paper.batch import Batch, Draws, Loader
from omokage.avatar.paper.discriminator import discriminator_loss, generator_loss, gradient_penalty
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.paper.perceptual import PerceptualLoss
from omokage.avatar.paper.portrait import Portrait, PortraitGenerator
from omokage.avatar.paper.precision import fastest_kernels, matrix_precision
from omokage.avatar.paper.run import PaperRun, PaperTrainingConfig, Textures
from omokage.avatar.paper.textures import Texture
from omokage.avatar.paper.time_code import time_code
from omokage.avatar.paper.window import Offset, cut_background
from omokage.compiling import BACKEND, compiler_required
from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import MissingDependencyError
from omokage.threads import one_ahead
from omokage.workers import Workers

# The discriminator has won when its loss is below this; undecided it is 1.39.
WON = 0.2
RAMP = 0.1  # of the budget, over which the adversarial part grows to its weight


@dataclass(frozen=True)
class PaperResult:
    """steps, seconds: spent in all runs together.  curve: (step, seconds, PSNR of the check frames in dB).
    losses: of the generator in every step of this process, mean over its samples."""

    steps: int
    seconds: float
    curve: tuple[tuple[int, float, float], ...]
    losses: tuple[float, ...]


def train_paper(
    run: PaperRun,
    stores: Sequence[FrameStore],
    config: PaperTrainingConfig,
    *,
    perceptual: PerceptualLoss | None = None,
    workers: Workers | None = None,
    checkpoint: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    on_preview: PreviewCallback | None = None,
) -> PaperResult:
    """Train in place on the training frames of one or several recordings.

    Of several processes each takes its share of every batch, and they average their gradients. With `checkpoint`,
    resumes from that file and keeps it up to date. Raises InputError for a batch that cannot be shared out or a
    checkpoint of another run, MissingDependencyError where networks cannot be compiled, OutputError.
    """
    workers = workers or Workers.alone(run.device)
    config.check(workers)
    loader = Loader(stores, Draws(config.seed, config.batch, config.micro_batch, config.code_dropout))
    learner = Learner(run, config, workers, None if perceptual is None else perceptual.to(run.device))
    compile_networks(run, config)
    checks = [loader.rows[row] for row in check_rows(len(loader.rows))]
    losses: list[float] = []
    coming: list[Generator[list[Batch], None, None]] = []  # begins at the step that a checkpoint tells

    def step(share: float) -> float:
        if not coming:
            coming.append(one_ahead(loader.steps(run.step, workers)))
        run.set_rates(share, config)
        losses.append(learner.step(next(coming[0]), loader.videos(run.step), share))
        return losses[-1]

    with matrix_precision(config.precision), fastest_kernels(), _compiling(config):
        try:
            train(
                run,
                config,
                step=step,
                check=lambda: check_sheet([drawn_after(run, loader.fixed(*row)) for row in checks]),
                workers=workers,
                checkpoint=checkpoint,
                on_progress=on_progress,
                on_preview=on_preview,
            )
        finally:
            for batches in coming:
                batches.close()
    return PaperResult(run.step, run.seconds, tuple(run.curve), tuple(losses))


class Learner:
    """One training step after the other."""

    def __init__(
        self,
        run: PaperRun,
        config: PaperTrainingConfig,
        workers: Workers,
        perceptual: PerceptualLoss | None,
    ) -> None:
        self.run, self.config, self.workers, self.perceptual = run, config, workers, perceptual
        self._kept: dict[int, Textures] = {}  # once they do not learn any more

    def step(self, batches: Sequence[Batch], videos: Sequence[int], share: float) -> float:
        """Generator, then discriminator, on this process's micro-batches; the generator's loss over all processes.

        videos: recordings that the whole batch shows.
        """
        run, config = self.run, self.config
        batches = [batch.to(run.device) for batch in batches]
        is_adversarial = config.adversarial > 0 and share >= config.adversarial_from
        ramp = min(1.0, (share - config.adversarial_from) / RAMP) if is_adversarial else 0.0
        made, leaves = self._textures(videos, is_learning=share < config.texture_share)
        total, fakes = 0.0, []
        run.discriminator.requires_grad_(False)
        for batch in batches:
            portrait = self._draw(batch, leaves)
            loss = self._generator_loss(batch, portrait, ramp) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            fakes.append(portrait.image.detach())
        self._teach_textures(made, leaves)
        self._update()
        run.average(run.averaged, run.generator, config.ema)
        run.average_textures(made, config.ema)
        if is_adversarial:
            run.discriminator.requires_grad_(True)
            self._critic_step(batches, fakes)
        return self.workers.mean(total)

    def _textures(
        self, videos: Sequence[int], *, is_learning: bool
    ) -> tuple[dict[int, Textures], dict[int, Textures]]:
        """The textures of a step, with the way back to their generators, and copies that gather gradients."""
        with torch.set_grad_enabled(is_learning), self._autocast():
            made = {
                video: self._kept.get(video) or self.run.produced(video, is_learning=is_learning)
                for video in videos
            }
        if not is_learning:
            self._kept |= made
        leaves = {
            video: Textures.of([t.detach().requires_grad_(is_learning) for t in textures.tensors()])
            for video, textures in made.items()
        }
        return made, leaves

    def _draw(self, batch: Batch, textures: dict[int, Textures]) -> Portrait:
        shown = [textures[video] for video in batch.videos]
        with self._autocast():
            return draw_window(self.run.generator, batch, joined(shown), self.run)

    def _generator_loss(self, batch: Batch, portrait: Portrait, ramp: float) -> Tensor:
        config, image = self.config, portrait.image
        # Greg: the picture, where the background is seen, and how it looks to a trained eye.
        loss = F.l1_loss(image, batch.truth)
        loss = loss + config.matte * F.l1_loss(portrait.mask.float() / 2 + 0.5, batch.background)
        if self.perceptual is not None and config.perceptual > 0:
            with self._autocast():
                loss = loss + config.perceptual * self.perceptual(image, batch.truth).float()
        # Gadv, for as long as the discriminator is trusted.
        if ramp > 0:
            with self._autocast():
                logits = self.run.discriminator(batch.beside(image))
            loss = loss + config.adversarial * ramp * self.run.critic_trust * generator_loss(logits.float())
        return loss

    def _teach_textures(self, made: dict[int, Textures], leaves: dict[int, Textures]) -> None:
        """From the gathered gradients back through the texture generators, once for all micro-batches."""
        pairs = [
            (value, leaf.grad)
            for video in made
            for value, leaf in zip(made[video].tensors(), leaves[video].tensors(), strict=True)
            if leaf.grad is not None
        ]
        if pairs:
            values, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(values, gradients)

    def _update(self) -> None:
        """A step of generator and textures with the mean gradients of all processes."""
        run = self.run
        networks = (run.generator, run.face, run.background)
        self.workers.average_gradients([value for network in networks for value in network.parameters()])
        for network in networks:
            nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
        for optimizer in (run.optimizer, run.texture_optimizer):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _critic_step(self, batches: Sequence[Batch], fakes: Sequence[Tensor]) -> None:
        """Dmain, every so often Dr1, and the collapse guard."""
        run, config, total = self.run, self.config, 0.0
        for batch, fake in zip(batches, fakes, strict=True):
            with self._autocast():
                logits = [run.discriminator(batch.beside(picture)) for picture in (batch.truth, fake)]
            loss = discriminator_loss(logits[0].float(), logits[1].float()) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            if run.step % config.r1_every == 0:
                image = batch.truth.clone().requires_grad_()
                # In full precision and not compiled: its gradient is differentiated again.
                penalty = gradient_penalty(run.discriminator.forward(batch.beside(image)), image)
                (config.r1 / 2 * config.r1_every / len(batches) * penalty).backward()  # type: ignore[no-untyped-call]
        self.workers.average_gradients(run.discriminator.parameters())
        run.critic_optimizer.step()
        run.critic_optimizer.zero_grad(set_to_none=True)
        run.judge(has_critic_won=self.workers.mean(total) < WON)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.run.device.type, torch.bfloat16)


def draw_window(generator: PortraitGenerator, batch: Batch, textures: Textures, run: PaperRun) -> Portrait:
    """The portraits of a batch in its window, in float32. textures: of every sample, or of all."""
    portrait: Portrait = generator(
        batch.mesh,
        batch.cells[:, :2],
        batch.face,
        textures.face,
        in_window(textures.background, batch.offset),
        time_code(batch.times, generator.config.style.size),
        offset=batch.offset,
        noise=run.noise,
    )
    return Portrait(portrait.image.float(), portrait.mask)


def in_window(background: Texture, offset: Offset) -> Texture:
    """The part of a background's texture that the window shows."""
    return Texture(cut_background(background.features, offset), cut_background(background.bands, offset))


def joined(textures: Sequence[Textures]) -> Textures:
    """Textures of samples as one batch; of a single recording once for all."""
    if all(one is textures[0] for one in textures):
        return textures[0]
    kinds = zip(*(one.tensors() for one in textures), strict=True)
    return Textures.of([torch.cat(kind) for kind in kinds])


@torch.no_grad()
def drawn_after(run: PaperRun, batch: Batch) -> tuple[Tensor, Tensor]:
    """Truth and picture of a fixed frame, (3, S, S) in [0, 1], drawn as the saved avatar would."""
    batch = batch.to(run.device)
    portrait = draw_window(run.averaged, batch, run.averages(batch.videos[0]), run)
    return batch.truth[0] / 2 + 0.5, (portrait.image[0] / 2 + 0.5).clamp(0, 1)


def held_out_psnr(run: PaperRun, store: FrameStore, config: PaperTrainingConfig) -> NDArray[np.float64]:
    """PSNR in dB of every frame that was never trained on, of the first recording."""
    loader = Loader([store], Draws(config.seed, 1, 1, 1.0))
    rows = range(store.train, len(store))
    with matrix_precision(config.precision):
        return np.array([check_sheet([drawn_after(run, loader.fixed(0, row))])[1] for row in rows])


@contextmanager
def _compiling(config: PaperTrainingConfig) -> Iterator[None]:
    """Say it in a sentence where networks that should be compiled cannot be."""
    if not config.compiled:
        yield
        return
    try:
        with compiler_required():
            yield
    except MissingDependencyError as error:
        raise MissingDependencyError(f"the networks {error}, or leave --compile out") from error


def compile_networks(run: PaperRun, config: PaperTrainingConfig) -> None:
    """Compile what takes the time; the parts have one shape whatever the window.

    For that shape alone: networks of one class share their code, and the second of them, which has another shape, would
    be compiled for any, which PyTorch's compiler fails at.
    """
    if config.compiled:
        generator = run.generator
        for part in (generator.foreground, generator.widen, generator.image, run.face, run.background):
            part.compile(backend=BACKEND, dynamic=False)
        run.discriminator.compile(backend=BACKEND, dynamic=False)
