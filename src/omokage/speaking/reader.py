"""Reads mouth shapes from a voice, in any language: bands of sound in, viseme weights out, by a small network.

The network saw synthetic voices only, whose phonemes are known (`scripts/learn_voice_reader.py`), through many
microphones and rooms; the detector of speech keeps the mouth shut for everything else.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from omokage.speaking.hearing import BANDS, Heard, Hearing
from omokage.tracking.visemes import NAMES

Float32 = NDArray[np.float32]

CONTEXT = 10  # hops to either side of the one that is read
SPEECH_MEAN = 6  # hops to either side over which judgements are averaged: a single one errs
SPEECH_REACH = 12  # hops to either side in which there must be speech for the mouth to move
SPEECH_FROM, SPEECH_FULL = 0.45, 0.8
_REST = NAMES.index("rest")


def windows(bands: Float32) -> Float32:
    """Bands (N, B) -> each with its neighbors, ((N, (2 `CONTEXT` + 1) B); silence before and after."""
    padded = np.pad(bands, ((CONTEXT, CONTEXT), (0, 0)), constant_values=-1)
    view = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT + 1, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1)).reshape(len(bands), -1)


class VoiceReader:
    """Viseme weights of a voice that comes in pieces; what comes out does not depend on how it was cut.

    A hop is read when `LATENCY` hops after it have been heard.
    """

    LATENCY = max(CONTEXT, SPEECH_REACH + SPEECH_MEAN)

    def __init__(self) -> None:
        self._hearing = Hearing()
        silence = self.LATENCY
        self._bands = np.full((silence, BANDS), -1, dtype=np.float32)
        self._speech = np.zeros(silence, dtype=np.float32)

    def read(self, samples: Float32, *, is_end: bool = False) -> tuple[Float32, Heard]:
        """Weights (N, 10) of the next hops that can be read, and what was heard newly (of later hops)."""
        heard = self._hearing.hear(samples, is_end=is_end)
        tail = self.LATENCY if is_end else 0
        self._bands = np.concatenate([self._bands, heard.bands, np.full((tail, BANDS), -1, dtype=np.float32)])
        self._speech = np.concatenate([self._speech, heard.speech, np.zeros(tail, dtype=np.float32)])
        count = max(0, len(self._bands) - 2 * self.LATENCY)
        whole = windows(self._bands)[self.LATENCY : self.LATENCY + count]
        near = _near(self._speech)[self.LATENCY : self.LATENCY + count]
        weights = _posterior(whole)
        gate = np.clip((near - SPEECH_FROM) / (SPEECH_FULL - SPEECH_FROM), 0, 1)[:, None]
        weights *= gate
        weights[:, _REST] += 1 - gate[:, 0]
        self._bands, self._speech = self._bands[count:], self._speech[count:]
        return weights, heard


def _near(speech: Float32) -> Float32:
    """The highest mean of judgements (N,) about every hop."""
    box = np.full(2 * SPEECH_MEAN + 1, 1 / (2 * SPEECH_MEAN + 1), dtype=np.float32)
    mean = np.convolve(speech, box, mode="same")
    padded = np.pad(mean, (SPEECH_REACH, SPEECH_REACH))
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * SPEECH_REACH + 1).max(axis=1))


def _posterior(inputs: Float32) -> Float32:
    layers = _network()
    values = inputs
    for number, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        if number < len(layers) - 1:
            values = np.maximum(values, 0)
    values = np.exp(values - values.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(values / values.sum(axis=1, keepdims=True), dtype=np.float32)


@cache
def _network() -> tuple[tuple[Float32, Float32], ...]:
    from safetensors.numpy import load_file

    with as_file(files("omokage.speaking") / "data" / "voice_reader.safetensors") as path:
        tensors = load_file(path)
    count = len(tensors) // 2
    return tuple(
        (tensors[f"{i}.weight"].astype(np.float32), tensors[f"{i}.bias"].astype(np.float32))
        for i in range(count)
    )
