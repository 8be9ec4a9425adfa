"""What turns timesteps, face embeddings and speech features into what the layers of the transformer use.

Each part runs once, not at every step: its result is a record of `caches`, and the part can then be freed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.errors import InputError
from omokage.talking.caches import Modulation
from omokage.talking.config import FRAMES_PER_LATENT, AudioTokensConfig, FaceTokensConfig, TransformerConfig

TOKEN_NORM_EPS = 1e-5
# Shift, scale and gate; before attention and before the feed-forward layer; of video and of text.
BLOCK_SIGNALS = 12
TIMESTEP_PERIOD = 10000.0


class TimestepModulation(nn.Module):
    """Timesteps to the shifts, scales and gates of every layer (adaptive LayerNorm; Peebles & Xie 2023, 3.2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.width = config.width
        self.first = nn.Linear(config.width, config.timestep_width)
        self.second = nn.Linear(config.timestep_width, config.timestep_width)
        self.blocks = nn.ModuleList(
            nn.Linear(config.timestep_width, BLOCK_SIGNALS * config.width) for _ in range(config.layers)
        )
        self.head = nn.Linear(config.timestep_width, 2 * config.width)

    def embed(self, timesteps: Tensor) -> Tensor:
        """Timesteps (B,), 0 to 999 -> timestep embedding (B, timestep width); the sinusoid is made in float32."""
        half = self.width // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps.float()[:, None] * torch.exp(-math.log(TIMESTEP_PERIOD) * exponents)
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedding: Tensor = self.second(F.silu(self.first(sinusoid.to(self.first.weight.dtype))))
        return embedding

    def forward(self, timesteps: Tensor) -> Modulation:
        """Timesteps (rows,) -> the modulation of every layer, a row for each."""
        signal = F.silu(self.embed(timesteps))
        return Modulation(tuple(block(signal) for block in self.blocks), self.head(signal))


class FaceProjection(nn.Module):
    """A face embedding as tokens: (B, embedding) -> (B, 1, tokens, width), the same for all frames."""

    def __init__(self, config: FaceTokensConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.embedding, config.tokens * config.width)
        self.norm = nn.LayerNorm(config.width, eps=TOKEN_NORM_EPS)

    def forward(self, embedding: Tensor) -> Tensor:
        tokens = self.linear(embedding.to(self.linear.weight.dtype)).unflatten(
            -1, (1, self.config.tokens, self.config.width)
        )
        normalized: Tensor = self.norm(tokens)
        return normalized


class AudioProjection(nn.Module):
    """Windows of speech features to the tokens of each latent frame (spec 2.1).

    Latent frame 0 hears video frame 0; latent frame j hears the windows of the four video frames 4j-3 to 4j, joined by
    one convolution that halves time, used twice.
    """

    def __init__(self, config: AudioTokensConfig) -> None:
        super().__init__()
        self.config = config
        joined = config.tokens * config.width
        self.first = nn.Linear(config.window * config.layers * config.channels, config.hidden)
        self.second = nn.Linear(config.hidden, config.hidden)
        self.third = nn.Linear(config.hidden, joined)
        self.halving = nn.Conv1d(joined, joined, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(config.width, eps=TOKEN_NORM_EPS)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, frames, window, layers, channels) -> (B, T, tokens, width) with frames = 4 (T - 1) + 1.

        Raises InputError for another number of frames.
        """
        frames = windows.shape[1]
        if frames % FRAMES_PER_LATENT != 1:
            raise InputError(
                f"speech features must have a multiple of {FRAMES_PER_LATENT} frames plus one, got {frames}; "
                "pad them to a whole window"
            )
        windows = windows.flatten(2).to(self.first.weight.dtype)
        features = self.third(F.relu(self.second(F.relu(self.first(windows)))))
        features = self._halve(self._halve(features))
        tokens: Tensor = self.norm(
            features.reshape(*features.shape[:2], self.config.tokens, self.config.width)
        )
        return tokens

    def _halve(self, features: Tensor) -> Tensor:
        """(B, 1 + 2n, C) -> (B, 1 + n, C): the first frame stays, the others are joined in pairs."""
        pairs = self.halving(features[:, 1:].transpose(1, 2)).transpose(1, 2)
        return torch.cat([features[:, :1], pairs], dim=1)
