"""Training of the denoiser and its reference network on prepared windows. MAIN: `train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from omokage.config import ProgressCallback, ignore_progress
from omokage.errors import InternalError
from omokage.talking.training.batch import Samples
from omokage.talking.training.config import StageConfig
from omokage.talking.transformer import Transformer


class Couple(nn.Module):
    """The two networks that learn together."""

    def __init__(self, denoiser: Transformer, reference: Transformer) -> None:
        super().__init__()
        self.denoiser, self.reference = denoiser, reference


@dataclass(frozen=True)
class TrainingResult:
    """steps, seconds: spent in all runs together.  losses: of every step, mean over its samples."""

    steps: int
    seconds: float
    losses: tuple[float, ...]


def train(
    couple: Couple,
    samples: Samples,
    config: StageConfig,
    *,
    device: torch.device | None = None,
    checkpoint: Path | None = None,
    on_progress: ProgressCallback = ignore_progress,
    on_step: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Train in place; afterwards the couple holds the result (the average, where the stage keeps one).

    checkpoint: a folder; a stopped run goes on from it exactly. on_step: hears the number of finished steps after each,
    such as for previews; it must change nothing.
    """
    raise InternalError("the loop is not there yet")
