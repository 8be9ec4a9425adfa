"""One layer of the video transformer, and the tokens that pass through it.

Shape letters: B batch, T latent frames, P tokens of a latent frame, N text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from omokage.talking.attention import CrossAttention, HeadNorms, JointAttention, Rotaries
from omokage.talking.caches import Source
from omokage.talking.config import TransformerConfig

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Tokens:
    """text: (B, N, D).  video: (B, T*P, D), frame by frame, then row by row."""

    text: Tensor
    video: Tensor

    @property
    def joint(self) -> Tensor:
        """(B, N + T*P, D), text first."""
        return torch.cat([self.text, self.video], dim=1)

    def split(self, joint: Tensor) -> Tokens:
        """A joint sequence as long as this one, taken apart."""
        return Tokens(joint[:, : self.text.shape[1]], joint[:, self.text.shape[1] :])


@dataclass(frozen=True)
class Signal:
    """Modulation of one sublayer for one kind of token: shift, scale and gate, each (B or 1, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def modulate(self, tokens: Tensor) -> Tensor:
        return tokens * (1 + self.scale) + self.shift


@dataclass(frozen=True)
class BlockSignals:
    """The modulation of one layer, taken apart: video first, then text (spec 2.1)."""

    video_attention: Signal
    video_mlp: Signal
    text_attention: Signal
    text_mlp: Signal

    @classmethod
    def of(cls, modulation: Tensor) -> BlockSignals:
        """(B or 1, 12 D) in the order above, each shift, scale, gate."""
        parts = modulation[:, None].chunk(12, dim=-1)
        return cls(*(Signal(*parts[i : i + 3]) for i in range(0, 12, 3)))


def cross_attention(config: TransformerConfig, source_width: int) -> CrossAttention:
    """The branch of one layer for tokens of `source_width`, as its training begins."""
    branch = CrossAttention(config.width, config.heads, source_width)
    branch.initialize(config.layers)
    return branch


class Block(nn.Module):
    """One layer. Text and video share all weights but have a modulation each; only video attends to face and speech."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.head_norms = HeadNorms(config.head_width)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = JointAttention(width, heads)
        if config.face is not None:
            self.face_norm = nn.LayerNorm(width, eps=NORM_EPS)
            self.face = cross_attention(config, config.face.width)
        if config.audio is not None:
            self.audio_norm = nn.LayerNorm(width, eps=NORM_EPS)
            self.audio = cross_attention(config, config.audio.width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_ratio * width, width),
        )

    def forward(
        self,
        tokens: Tokens,
        modulation: Tensor,
        turns: Rotaries,
        reference: Source | None = None,
        face: Source | None = None,
        audio: Source | None = None,
    ) -> Tokens:
        """Tokens after this layer, for its row of the modulation (B or 1, 12 D); a source that is None is left out."""
        signals = BlockSignals.of(modulation)
        tokens = self.attend(tokens, signals, turns, reference)
        if face is not None:
            tokens = self.attend_to_face(tokens, turns, face)
        if audio is not None:
            tokens = self.attend_to_audio(tokens, turns, audio)
        return self.feed_forward(tokens, signals)

    def export(self, tokens: Tokens, modulation: Tensor) -> Tensor:
        """What a reference network hands to the denoiser's same layer: (B, P, D), from what enters this one."""
        return self.attention_input(tokens, BlockSignals.of(modulation)).video

    def attention_input(self, tokens: Tokens, signals: BlockSignals) -> Tokens:
        """Normalised and modulated tokens."""
        return Tokens(
            signals.text_attention.modulate(self.attention_norm(tokens.text)),
            signals.video_attention.modulate(self.attention_norm(tokens.video)),
        )

    def attend(
        self, tokens: Tokens, signals: BlockSignals, turns: Rotaries, reference: Source | None
    ) -> Tokens:
        """Text and video attend to each other and to the reference tokens, which are not normalised again."""
        joint = self.attention_input(tokens, signals).joint
        update = tokens.split(self.attention(joint, self.head_norms, turns, reference))
        return Tokens(
            tokens.text + signals.text_attention.gate * update.text,
            tokens.video + signals.video_attention.gate * update.video,
        )

    def attend_to_face(self, tokens: Tokens, turns: Rotaries, face: Source) -> Tokens:
        update = self.face(self.face_norm(tokens.video), self.head_norms, turns.frame, face)
        return replace(tokens, video=tokens.video + update)

    def attend_to_audio(self, tokens: Tokens, turns: Rotaries, audio: Source) -> Tokens:
        update = self.audio(self.audio_norm(tokens.video), self.head_norms, turns.frame, audio)
        return replace(tokens, video=tokens.video + update)

    def feed_forward(self, tokens: Tokens, signals: BlockSignals) -> Tokens:
        text = self.mlp(signals.text_mlp.modulate(self.mlp_norm(tokens.text)))
        video = self.mlp(signals.video_mlp.modulate(self.mlp_norm(tokens.video)))
        return Tokens(
            tokens.text + signals.text_mlp.gate * text, tokens.video + signals.video_mlp.gate * video
        )
