"""Attention of the video transformer: rotary positions, joint attention of text and video, cross-attention.

Shape letters: B batch, T latent frames, P tokens of a latent frame, N tokens, A heads, d head width, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.talking.caches import KeyValue, Source

HEAD_NORM_EPS = 1e-6
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine (N, 1, d/2), float32, of the angles by which channel pairs of N tokens turn."""

    cosine: Tensor
    sine: Tensor

    def rotate(self, heads: Tensor) -> Tensor:
        """Turn the pairs of neighbouring channels of (..., N, A, d); in float32, the tables never rounded."""
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = torch.stack(
            [even * self.cosine - odd * self.sine, even * self.sine + odd * self.cosine], dim=-1
        )
        return turned.flatten(-2).to(heads.dtype)


def attend_jointly(queries: Tensor, keys: Tensor, values: Tensor, reference: KeyValue | None) -> Tensor:
    """Attention within tokens (B, A, N, d) and to the reference tokens, if there are any: (B, A, N, d)."""
    if reference is not None:
        keys = torch.cat([keys, reference.keys], dim=2)
        values = torch.cat([values, reference.values], dim=2)
    return F.scaled_dot_product_attention(queries, keys, values)


@dataclass(frozen=True)
class Rotaries:
    """What the places of a pass's tokens are to attention.

    joint: of text and video tokens together; text has angle 0.  frame: of the video tokens of frame 0, which the
    queries of all frames use in cross-attention (spec 2.1, steps 4 and 5).
    attend: how tokens attend to each other; another one where they are shared between processes (see `parallel`).
    """

    joint: Rotary
    frame: Rotary
    attend: Callable[[Tensor, Tensor, Tensor, KeyValue | None], Tensor] = attend_jointly


def rotary_angles(frames: int, rows: int, columns: int, head_width: int, device: torch.device) -> Tensor:
    """Angles (frames * rows * columns, d/2) of video tokens, frame-major (RoFormer on three axes; spec 2.1).

    A quarter of the channels of a head turns with the frame, three eighths with the row, three eighths with the column.
    """
    widths = (head_width // 4, 3 * head_width // 8, 3 * head_width // 8)
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in (frames, rows, columns)]
    places = torch.meshgrid(*axes, indexing="ij")
    angles = []
    for place, width in zip(places, widths, strict=True):
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
        angles.append(place.reshape(-1, 1) * ROTARY_BASE**-exponents)
    return torch.cat(angles, dim=1)


def rotaries(
    text_tokens: int, frames: int, rows: int, columns: int, head_width: int, device: torch.device
) -> Rotaries:
    """The rotations of one input: text, then frames x rows x columns of video tokens."""
    video = rotary_angles(frames, rows, columns, head_width, device)
    joint = F.pad(video, (0, 0, text_tokens, 0))[:, None]
    frame = video[: rows * columns, None]
    return Rotaries(Rotary(joint.cos(), joint.sin()), Rotary(frame.cos(), frame.sin()))


class HeadNorms(nn.Module):
    """LayerNorm within each head, of queries and of keys. One pair serves all attentions of a layer (spec 6.2.7)."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.query = nn.LayerNorm(head_width, eps=HEAD_NORM_EPS)
        self.key = nn.LayerNorm(head_width, eps=HEAD_NORM_EPS)


class JointAttention(nn.Module):
    """Text and video attend to each other, and to the reference tokens, which ask nothing themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys and values (B, N, A, d)."""
        queries, keys, values = self.query_key_value(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return queries, keys, values

    def keys_values(self, tokens: Tensor, norms: HeadNorms) -> KeyValue:
        """What reference tokens (B, N, D) are to this layer: keys and values (B, A, N, d), not rotated."""
        _, keys, values = self._project(tokens)
        # A copy of the values, lest the cache hold the queries too.
        return KeyValue(norms.key(keys).transpose(1, 2), values.transpose(1, 2).contiguous())

    def forward(self, tokens: Tensor, norms: HeadNorms, turns: Rotaries, reference: Source | None) -> Tensor:
        """Text and video tokens (B, N, D), normalised and modulated -> what they gather, (B, N, D)."""
        queries, keys, values = self._project(tokens)
        queries = turns.joint.rotate(norms.query(queries)).transpose(1, 2)
        keys = turns.joint.rotate(norms.key(keys)).transpose(1, 2)
        if isinstance(reference, Tensor):
            reference = self.keys_values(reference, norms)
        portrait = None if reference is None else reference.expand(len(tokens))
        gathered = turns.attend(queries, keys, values.transpose(1, 2), portrait)
        attended: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return attended


class CrossAttention(nn.Module):
    """Video tokens attend to the few tokens of a condition, frame by frame (spec 2.1, steps 4 and 5)."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width, 2 * width)
        self.output = nn.Linear(width, width)

    def initialize(self, layers: int) -> None:
        """How training of the branch begins (spec 2.1): nothing is zero, no gate is learned."""
        for linear in (self.query, self.key_value, self.output):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        # The residual sums of a deep stack grow; the output starts smaller (Radford et al. 2019, section 2.3).
        with torch.no_grad():
            self.output.weight.div_(math.sqrt(2 * layers))

    def keys_values(self, tokens: Tensor, norms: HeadNorms) -> KeyValue:
        """Condition tokens (B, T or 1, N, source width) -> keys and values (B, T or 1, A, N, d), not rotated."""
        keys, values = self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).unbind(3)
        return KeyValue(norms.key(keys).transpose(2, 3), values.transpose(2, 3).contiguous())

    def forward(self, video: Tensor, norms: HeadNorms, rotary: Rotary, source: Source) -> Tensor:
        """Normalised video tokens (B, T*P, D) -> what they gather, (B, T*P, D). `rotary` is that of one frame."""
        if isinstance(source, Tensor):
            source = self.keys_values(source, norms)
        source = source.expand(len(video))
        keys, values = source.keys.flatten(0, 1), source.values.flatten(0, 1)  # (B*T or B, A, N, d)
        queries = self.query(video).unflatten(1, (-1, len(rotary.cosine))).unflatten(-1, (self.heads, -1))
        queries = rotary.rotate(norms.query(queries))  # (B, T, P, A, d)
        # Where one frame of the condition serves all, all video tokens of a sample ask together.
        queries = queries.reshape(len(keys), -1, *queries.shape[3:]).transpose(1, 2)
        gathered = F.scaled_dot_product_attention(queries, keys, values)
        attended: Tensor = self.output(gathered.transpose(1, 2).reshape(video.shape))
        return attended
