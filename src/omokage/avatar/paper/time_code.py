"""The code of a frame: where in the recording it is, spread over frequencies up to 2^31 (specification 1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENCIES = 32
# The released scripts draw every picture with the code of this time, which is frame 2500 of a recording.
RELEASED_TIME = 0.5


def time_code(times: Tensor, size: int = 64) -> Tensor:
    """Times (B, 1), frame number / 5000 -> the first `size` of [t, sin t, cos t, sin 2t, cos 2t, ...], (B, size).

    At such frequencies neighbouring frames have unrelated codes: it is a memory of each frame, not a clock.
    """
    octaves = 2.0 ** torch.arange(FREQUENCIES, dtype=torch.float64, device=times.device)
    # Products of float32 times with powers of two are exact; their sine needs more digits than float32 has.
    angles = times.double() * octaves
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(start_dim=1)
    return torch.cat([times, waves.to(times.dtype)], dim=1)[:, :size]
