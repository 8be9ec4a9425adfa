"""What a speech encoder hears in a voice, piece by piece, the same for a file and a stream. MAIN: `Encoding.hear`.

wav2vec 2.0 and HuBERT listen to a whole sound at once. Here they listen to blocks on a fixed grid, each with a second
of sound on either side, so that what comes out never depends on how the samples were cut, nor memory on the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from omokage.speaking.hearing import HOPS_PER_S
from omokage.talking.conditions.log_mel import HOP_SAMPLES
from omokage.talking.conditions.speech import SAMPLE_RATE, SpeechEncoder, normalized

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

ENCODED_PER_S = 50
BLOCK_S, CONTEXT_S = 4, 1
# Of the depth: where phonemes are heard best (Pasad et al. 2021, "Layer-wise analysis of a self-supervised speech
# representation model", figure 3).
FIRST_LAYER, LAST_LAYER = 0.5, 0.75
MODES = 16
PIECE_SAMPLES = 10 * SAMPLE_RATE
_BLOCK, _CONTEXT = BLOCK_S * SAMPLE_RATE, CONTEXT_S * SAMPLE_RATE


@dataclass(frozen=True)
class Reduction:
    """What is kept of an encoder's channels: mean (C,) and principal axes (C, M), scaled to a deviation of 1."""

    mean: Float
    axes: Float

    @classmethod
    def of(cls, encoded: NDArray[np.floating], count: int = MODES) -> Self:
        """From what was heard, (N, C), of one person."""
        mean = encoded.mean(axis=0, dtype=np.float64)
        away = encoded - mean
        values, axes = np.linalg.eigh(away.T @ away / max(1, len(encoded)))
        largest = slice(None, -min(count, len(axes)) - 1, -1)
        return cls(mean, axes[:, largest] / np.sqrt(np.maximum(values[largest], 1e-9)))

    def __call__(self, encoded: NDArray[np.floating]) -> Float:
        """(N, C) -> (N, M)."""
        return np.asarray((encoded - self.mean) @ self.axes)


class Encoding:
    """Hears a voice (S,) mono at 16 kHz in pieces of any length; a block comes out with the second that follows it.

    reduction: what is kept of the encoder's channels; None for all.
    """

    def __init__(self, encoder: SpeechEncoder, reduction: Reduction | None = None) -> None:
        self._encoder, self._reduction = encoder, reduction
        self._samples = np.zeros(_CONTEXT, dtype=np.float32)  # of the next block, with what precedes it
        self._width = encoder.width if reduction is None else reduction.axes.shape[1]
        first = int(FIRST_LAYER * encoder.depth)
        self._layers = slice(first, max(first + 1, round(LAST_LAYER * encoder.depth)))

    def hear(self, samples: Float32, *, is_end: bool = False) -> Float32:
        """Features (N, C) of the next hops of 10 ms. is_end: silence follows, and all that is left comes out."""
        self._samples = np.concatenate([self._samples, np.asarray(samples, dtype=np.float32)])
        left = len(self._samples) - _CONTEXT
        blocks = -(-left // _BLOCK) if is_end else max(0, (left - _CONTEXT) // _BLOCK)
        if is_end:
            self._samples = np.pad(self._samples, (0, blocks * _BLOCK - left + _CONTEXT))
        found = [np.zeros((0, self._width), np.float32), *(self._block(n * _BLOCK) for n in range(blocks))]
        self._samples = self._samples[blocks * _BLOCK :]
        return np.concatenate(found)[: -(-left // HOP_SAMPLES) if is_end else None]

    @torch.no_grad()
    def _block(self, start: int) -> Float32:
        heard = normalized(self._samples[start : start + _BLOCK + 2 * _CONTEXT])
        frames = (BLOCK_S + 2 * CONTEXT_S) * ENCODED_PER_S
        layers = self._encoder.hidden(torch.from_numpy(heard), frames)[:, self._layers]
        inside = layers.mean(dim=1)[CONTEXT_S * ENCODED_PER_S : -CONTEXT_S * ENCODED_PER_S].numpy()
        if self._reduction is not None:
            inside = self._reduction(inside).astype(np.float32)
        return np.repeat(inside, HOPS_PER_S // ENCODED_PER_S, axis=0)


def encode(encoder: SpeechEncoder, voice: Float32, reduction: Reduction | None = None) -> Float32:
    """Features (N, C) of all hops of a voice (S,)."""
    encoding = Encoding(encoder, reduction)
    starts = range(0, max(len(voice), 1), PIECE_SAMPLES)
    return np.concatenate(
        [
            encoding.hear(voice[start : start + PIECE_SAMPLES], is_end=start + PIECE_SAMPLES >= len(voice))
            for start in starts
        ]
    )
