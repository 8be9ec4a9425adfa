"""Speech -> features a video frame, and which of them each window of the video hears.

The encoder is wav2vec 2.0 (Baevski et al. 2020), or HuBERT (Hsu et al. 2021), which is built alike, as `transformers`
has them; all hidden states are kept. Its convolutions give 50 features a second, which are brought to the 25 frames a
second of the video before its transformer, as the released pipeline does. The whole clip is one sequence, padded with
silence to whole windows.

Shapes: B batch, S samples, T frames, N features at 50 Hz, L hidden states, C channels, X frames of a context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from omokage.errors import InputError, MissingDependencyError
from omokage.talking.conditions.portrait import MOTION_FRAMES
from omokage.talking.conditions.pretrained import load_whole

SAMPLE_RATE = 16_000
FRAME_RATE = 25
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
CONTEXT_FRAMES = 5
# A longer speech is read in pieces: the first convolution takes 0.26 MB a frame, several times over.
ONE_PASS_FRAMES = 5 * 60 * FRAME_RATE
OVERLAP_FRAMES = 10 * FRAME_RATE  # of a piece with its neighbours, on either side
SILENCE = -1  # in a table of rows: zeros instead of a frame's features

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SpeechLength:
    """How much video a speech makes.

    samples: at 16 kHz.  frames: of video.  padded_frames: of features, whole windows.
    padding: zero samples that are appended for them.
    """

    samples: int
    frames: int
    padded_frames: int
    padding: int


def speech_length(samples: int, window_frames: int, *, exact: bool = False) -> SpeechLength:
    """Lengths of a speech of `samples` at 16 kHz, for windows of `window_frames`.

    The released pipeline rounds up in double precision, which gives one frame too many for some lengths (19.6 s give
    491); `exact` counts in whole numbers. Raises InputError for a speech without a sample.
    """
    if samples < 1:
        raise InputError("the speech is empty; a sound of at least one frame of video (40 ms) is needed")
    frames = (
        -(-samples // SAMPLES_PER_FRAME) if exact else math.ceil(samples / SAMPLE_RATE * float(FRAME_RATE))
    )
    padded = -(-frames // window_frames) * window_frames
    return SpeechLength(samples, frames, padded, (padded - frames) * SAMPLES_PER_FRAME)


def window_count(frames: int, window_frames: int) -> int:
    """Windows that `frames` of video take; each adds all but its motion frames.

    The released pipeline counts the padded frames and so computes up to one window more than it writes; of
    `SpeechLength.frames` only those are counted that are seen, and nothing of the result changes.
    """
    return -(-frames // (window_frames - MOTION_FRAMES))


def context_rows(frames: int, context: int = CONTEXT_FRAMES) -> Rows:
    """Frames that each of `frames` hears, (T, X): itself in the middle, the ends repeated outwards."""
    reach = np.arange(context) - context // 2
    rows: Rows = np.clip(np.arange(frames)[:, None] + reach, 0, frames - 1)
    return rows


def window_rows(frames: int, window_frames: int, context: int = CONTEXT_FRAMES) -> Rows:
    """Frames that each window hears, (windows, window_frames, X), of a clip of `frames`; `SILENCE` for none.

    A window's motion frames hear what they heard as new frames in the window before, those of the first one silence.
    After the last frame its context is repeated. Rows of the first windows do not depend on how many follow.
    """
    new = window_frames - MOTION_FRAMES
    contexts = context_rows(frames, context)
    places = np.arange(window_count(frames, window_frames))[:, None] * new + np.arange(-MOTION_FRAMES, new)
    rows: Rows = contexts[np.clip(places, 0, frames - 1)]
    rows[places < 0] = SILENCE
    return rows


def take(features: Tensor, rows: Rows) -> Tensor:
    """Features (T, ...) by a table of rows of any shape -> (*rows.shape, ...); zeros where it says `SILENCE`."""
    index = torch.from_numpy(rows).to(features.device)
    taken = features[index.clamp(min=0)]
    return taken.masked_fill((index == SILENCE).view(*index.shape, *(1,) * (features.dim() - 1)), 0)


def to_frames(features: Tensor, frames: int) -> Tensor:
    """Bring features (B, N, C) to `frames` of video, linearly, first on first and last on last -> (B, T, C)."""
    return F.interpolate(features.transpose(1, 2), size=frames, mode="linear", align_corners=True).transpose(
        1, 2
    )


@dataclass(frozen=True, slots=True)
class SpeechFeatures:
    """All that the video hears of one speech: `hidden` (padded_frames, L, C), and its `length`."""

    hidden: Tensor
    length: SpeechLength

    def windows(self, window_frames: int) -> Rows:
        """The rows of every window whose frames are seen, see `window_rows`; give one to `window`."""
        count = window_count(self.length.frames, window_frames)
        return window_rows(self.length.padded_frames, window_frames)[:count]

    def window(self, rows: Rows) -> Tensor:
        """The features (1, window_frames, X, L, C) of one window."""
        return take(self.hidden, rows)[None]


class SpeechEncoder:
    """wav2vec 2.0 or HuBERT without its masking: a waveform to the hidden states of every layer, one for each video
    frame."""

    def __init__(self, network: nn.Module) -> None:
        self._network: Any = network.eval().requires_grad_(False)

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return len(self._network.encoder.layers)

    @property
    def width(self) -> int:
        """How many channels each of them gives."""
        return int(self._network.config.hidden_size)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Read the encoder from a folder in the format of `transformers`, in float32, from this machine alone.

        Raises InputError when the folder holds no such encoder, its kind WeightsError for one that is not whole,
        MissingDependencyError without `transformers`.
        """
        try:
            from transformers import AutoConfig, HubertModel, Wav2Vec2Model
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise MissingDependencyError(
                "the speech encoder needs the package transformers, which is not installed; "
                "run: pip install 'omokage[portrait]'"
            ) from error
        try:
            transformers_logging.disable_progress_bar()
            kinds = {"wav2vec2": Wav2Vec2Model, "hubert": HubertModel}
            kind = kinds[AutoConfig.from_pretrained(folder, local_files_only=True).model_type]
            network = load_whole(kind, folder, "speech encoder")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{folder} holds no speech encoder: a folder of wav2vec2 or hubert with config.json and safetensors is "
                "needed; fetch it with 'omokage weights pull hallo3'"
            ) from error
        return cls(network.to(device))

    def convolved(self, waveform: Tensor) -> Tensor:
        """Features (B, N, C) at 50 Hz of a normalised waveform (B, S) at 16 kHz."""
        features: Tensor = self._network.feature_extractor(waveform)
        return features.transpose(1, 2)

    def hidden(self, waveform: Tensor, frames: int) -> Tensor:
        """Hidden states (T, L, C) of one normalised waveform (S,) at 16 kHz, of layers 1 to L, at `frames`."""
        encoder = self._network.encoder
        state = _first(self._network.feature_projection(to_frames(self.convolved(waveform[None]), frames)))
        state = state + encoder.pos_conv_embed(state)
        if not getattr(self._network.config, "do_stable_layer_norm", False):  # else each layer brings its own
            state = encoder.layer_norm(state)
        # Layer by layer, since releases of transformers differ in whether the encoder hands out what is between them.
        states = []
        for layer in encoder.layers:
            state = _first(layer(state))
            states.append(state)
        return torch.cat(states, dim=0).transpose(0, 1)

    def features(
        self,
        speech: NDArray[np.float32],
        window_frames: int,
        *,
        exact: bool = False,
        dtype: torch.dtype = torch.float32,
        one_pass_frames: int = ONE_PASS_FRAMES,
    ) -> SpeechFeatures:
        """All features of a speech (S,) mono at 16 kHz: normalised over the whole clip, then padded with zeros.

        The padding reaches the features of the last frames, and is therefore that of the released pipeline. A speech of
        up to `one_pass_frames` is one sequence; a longer one is read in pieces that overlap, lest the memory of the
        convolutions grow with it. The features are put on the CPU as `dtype`. `exact`: see `speech_length`. Raises
        InputError for an empty speech.
        """
        length = speech_length(len(speech), window_frames, exact=exact)
        device = next(self._network.parameters()).device
        padded = torch.from_numpy(np.pad(normalized(speech), (0, length.padding)))
        total = length.padded_frames
        # Laid out at once: of two hours they are gigabytes, and pieces that were put together would be there twice.
        features = torch.empty(total, self.depth, self.width, dtype=dtype)
        step = max(total, 1) if total <= one_pass_frames else one_pass_frames
        with torch.no_grad():
            for start in range(0, total, step):
                stop = min(start + step, total)
                first, last = max(start - OVERLAP_FRAMES, 0), min(stop + OVERLAP_FRAMES, total)
                piece = padded[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME].to(device)
                hidden = self.hidden(piece, last - first)[start - first : stop - first]
                features[start:stop] = hidden.to("cpu", dtype)
        return SpeechFeatures(features, length)


def _first(result: Any) -> Tensor:
    """What a module gives, alone or before what else it tells."""
    tensor: Tensor = result if isinstance(result, Tensor) else result[0]
    return tensor


def normalized(speech: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 over the whole clip (S,), as the encoder was trained."""
    values = np.asarray(speech, dtype=np.float32)
    scaled: NDArray[np.float32] = (values - values.mean()) / np.sqrt(values.var() + np.float32(1e-7))
    return scaled.astype(np.float32)
