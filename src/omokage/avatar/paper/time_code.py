"""The code of a frame: where in the recording it is, spread over frequencies up to 2^31 (specification 1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENCIES = 32
# The released scripts draw every picture with the code of this time, which is frame 2500 of a recording.
RELEASED_TIME = 0.5
# Our own training lets half of its samples take the code of this time, which no frame has, and so do all pictures that
# are drawn later: a code that no sample had draws a style that was never trained (specification 6.2).
REST_TIME = -1.0
FRAMES_PER_UNIT = 5000


def time_code(times: Tensor, size: int = 64) -> Tensor:
    """Times (B, 1) -> the first `size` of [t, sin t, cos t, sin 2t, cos 2t, ...], (B, size).

    The time of a frame is its number / `FRAMES_PER_UNIT`.

    At such frequencies neighbouring frames have unrelated codes: it is a memory of each frame, not a clock.
    """
    octaves = 2.0 ** torch.arange(FREQUENCIES, dtype=torch.float64, device=times.device)
    # Products of float32 times with powers of two are exact; their sine needs more digits than float32 has.
    angles = times.double() * octaves
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(start_dim=1)
    return torch.cat([times, waves.to(times.dtype)], dim=1)[:, :size]
