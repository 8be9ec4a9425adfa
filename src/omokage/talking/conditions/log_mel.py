"""Speech features without a trained encoder: log-mel bands in the place of wav2vec's hidden states.

For networks that learn one voice from scratch (specification 7.1). Three pseudo layers stand for hidden states: the
bands themselves, their change over time, and their mean over some frames. Windows, contexts and lengths are those of
`speech`.

Shapes: S samples, T frames, C bands.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.talking.conditions.speech import (
    FRAME_RATE,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SpeechFeatures,
    normalized,
    speech_length,
)

LAYERS = 3
SPECTRUM_SAMPLES = 1024
HOP_SAMPLES = SAMPLES_PER_FRAME // 4  # 10 ms
WINDOW_SAMPLES = 400  # 25 ms
LOWEST_HZ, HIGHEST_HZ = 50.0, 7600.0
SMOOTHED_FRAMES = 9
# Speech of unit deviation lies between about these two; below the first there is silence.
FLOOR = 1e-2
MIDDLE, SPREAD = 1.5, 3.0
# A longer speech is read in pieces, lest memory grow with it.
PIECE_FRAMES = 60 * FRAME_RATE


class LogMelEncoder:
    """A waveform to `LAYERS` x `bands` numbers for each video frame; knows no weights."""

    def __init__(self, bands: int) -> None:
        self._filters = mel_filters(bands)

    def features(
        self,
        speech: NDArray[np.float32],
        window_frames: int,
        *,
        exact: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> SpeechFeatures:
        """All features of a speech (S,) mono at 16 kHz, padded as `SpeechEncoder.features` does.

        The loudness of the clip is normalised, its silence stays silent. Raises InputError for an empty speech.
        """
        length = speech_length(len(speech), window_frames, exact=exact)
        bands = self.bands(normalized(speech), length.padded_frames)
        before = torch.cat([bands[:1], bands[:-1]])
        after = torch.cat([bands[1:], bands[-1:]])
        layers = [bands, (after - before) / 2, _smoothed(bands)]
        return SpeechFeatures(torch.stack(layers, dim=1).to(dtype), length)

    def bands(self, waveform: NDArray[np.float32], frames: int) -> Tensor:
        """Log-mel bands (T, C) of a waveform (S,), silence after its end; about of mean 0 and deviation 1."""
        samples = torch.from_numpy(np.ascontiguousarray(waveform))
        # Each frame is the mean of four spectra around the middles of its quarters.
        margin = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
        samples = F.pad(samples, (margin, frames * SAMPLES_PER_FRAME + margin - len(samples)))
        parts = []
        for start in range(0, frames, PIECE_FRAMES):
            stop = min(start + PIECE_FRAMES, frames)
            piece = samples[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME + 2 * margin]
            windows = piece.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES) * torch.hann_window(WINDOW_SAMPLES)
            energy = torch.fft.rfft(windows, n=SPECTRUM_SAMPLES).abs().square() @ self._filters
            parts.append(torch.log(energy + FLOOR).reshape(stop - start, 4, -1).mean(dim=1))
        return (torch.cat(parts) - MIDDLE) / SPREAD


def mel_filters(bands: int) -> Tensor:
    """Triangles (spectrum lines, bands) of equal width on the mel scale (O'Shaughnessy 1987), each of sum 1."""
    lines = torch.fft.rfftfreq(SPECTRUM_SAMPLES, 1 / SAMPLE_RATE)
    ends = torch.tensor([LOWEST_HZ, HIGHEST_HZ])
    low, high = _mel(ends).tolist()
    edges = torch.linspace(low, high, bands + 2)
    rising = (_mel(lines)[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - _mel(lines)[:, None]) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(dim=0)


def _mel(hertz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hertz / 700)


def _smoothed(bands: Tensor) -> Tensor:
    """The mean over `SMOOTHED_FRAMES` around each frame, the ends repeated outwards."""
    reach = SMOOTHED_FRAMES // 2
    padded = F.pad(bands.T[None], (reach, reach), mode="replicate")
    return F.avg_pool1d(padded, SMOOTHED_FRAMES, stride=1)[0].T
