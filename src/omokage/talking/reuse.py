"""Steps that change little reuse what the layers behind the first did at the step before ("first-block cache").

The change of the first layer's residual tells how much the rest would change (Liu et al. 2024, "TeaCache", section 3.3,
with the first layer instead of the timestep embedding). This is no lossless saving: it is off unless asked for, and
looking at the change makes the host wait for the device once a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omokage.talking.blocks import Tokens
from omokage.talking.caches import Conditions, Modulation
from omokage.talking.parallel import TokenShare
from omokage.talking.transformer import Transformer


@dataclass(frozen=True)
class Residuals:
    """What a whole pass added to the video tokens, or to a share of them: `first` in its first layer, `rest` in all
    others; (B, T*P, D)."""

    first: Tensor
    rest: Tensor


@dataclass(frozen=True)
class ReusedPass:
    """A velocity, the residuals to compare the next step with, and whether the pass ended after the first layer."""

    velocity: Tensor
    residuals: Residuals
    is_reused: bool


def pass_or_reuse(
    transformer: Transformer,
    latents: Tensor,
    modulation: Modulation,
    conditions: Conditions,
    before: Residuals | None,
    threshold: float,
    share: TokenShare | None = None,
) -> ReusedPass:
    """One evaluation of the network, or of its first layer alone when that changed by less than `threshold`.

    `before`: of the last whole pass, None for none. The change is the mean absolute difference of the first layer's
    residual over the mean absolute residual; a batch of another size is always computed. `share`: see `Transformer`;
    all processes decide alike.
    """
    passes = transformer.passes(latents, modulation, conditions, share)
    entered, after_first = next(passes).video, next(passes).video
    first = after_first - entered
    is_comparable = before is not None and before.first.shape == first.shape
    if before is not None and is_comparable and _change(before.first, first, share) < threshold:
        passes.close()
        video, residuals, is_reused = after_first + before.rest, before, True
    else:
        last = Tokens(after_first, after_first)
        for tokens in passes:
            last = tokens
        video, residuals, is_reused = last.video, Residuals(first, last.video - after_first), False
    velocity = transformer.finish(video, modulation, latents.shape, share)
    return ReusedPass(velocity, residuals, is_reused)


def _change(before: Tensor, now: Tensor, share: TokenShare | None) -> float:
    means = torch.stack([(now - before).abs().mean(), before.abs().mean()]).float()
    if share is not None:
        means = share.mean(means)
    return float(means[0] / means[1])
