"""Lip sync as papers measure it: LSE-C and LSE-D (Prajwal et al. 2020) by a user's SyncNet (Chung & Zisserman 2016).

The network sees five frames of the face and hears the 0.2 s of sound beside them, and gives a vector for each; in sync,
they are near. What it is fed, and what is made of its vectors, is here; omokage ships no weights of it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from omokage.errors import InputError
from omokage.metrics.image import Frames
from omokage.metrics.motion import FACE_OVAL, Landmarks
from omokage.metrics.talking import SyncScores

FRAMES, SIDE_PX = 5, 224  # of one look
COEFFICIENTS, STEPS = 13, 20  # of the sound beside it
STEPS_PER_FRAME = 4
REACH_FRAMES = 15  # shifts of the sound that are tried, to both sides
MARGIN = 0.4  # of the half side of a face's box, around it; none above, twice below
STEADY_FRAMES = 13  # over which the box is a median

# Mel-frequency cepstral coefficients as in Davis & Mermelstein 1980: every 10 ms of 25 ms, 26 bands.
WINDOW, HOP, SPECTRUM, BANDS = 400, 160, 512, 26
EMPHASIS, LIFTER, RATE = 0.97, 22, 16000


def cepstrum(voice: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel-frequency cepstral coefficients (N, 13) of a voice (S,) mono at 16 kHz, every 10 ms.

    Of samples as 16-bit numbers; the first coefficient is the logarithm of the energy.
    """
    samples = np.round(np.clip(voice, -1, 1) * 32767).astype(np.float64)
    emphasized = np.append(samples[:1], samples[1:] - EMPHASIS * samples[:-1])
    count = 1 + max(0, -(-(len(emphasized) - WINDOW) // HOP))
    padded = np.pad(emphasized, (0, max(0, (count - 1) * HOP + WINDOW - len(emphasized))))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:count]
    power = np.abs(np.fft.rfft(pieces, SPECTRUM)) ** 2 / SPECTRUM
    least = np.finfo(float).eps
    energy = np.maximum(power.sum(axis=1), least)
    bands = np.log(np.maximum(power @ _mel_bands().T, least))
    cosines = dct(bands, type=2, norm="ortho", axis=1)[:, :COEFFICIENTS]
    lifted = cosines * (1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER))
    lifted[:, 0] = np.log(energy)
    return np.asarray(lifted, dtype=np.float32)


def face_crops(frames: Frames, landmarks: Landmarks) -> Frames:
    """The face in every frame, uint8 (T, 224, 224, 3): a square box around its oval, steady over half a second.

    Where no face was found its box is that of the nearest frame with one. Raises InputError where there is none.
    """
    oval = landmarks[:, list(FACE_OVAL), :2]
    known = np.flatnonzero(np.isfinite(oval).all(axis=(1, 2)))
    if not len(known):
        raise InputError("lip sync needs a face, and none is found in any frame")
    low, high = oval[known].min(axis=1), oval[known].max(axis=1)
    boxes = np.column_stack([(low + high) / 2, (high - low).max(axis=1) / 2])  # middle x, y, half side
    nearest = np.abs(np.arange(len(frames))[:, None] - known).argmin(axis=1)
    reach = STEADY_FRAMES // 2
    padded = np.pad(boxes[nearest], ((reach, reach), (0, 0)), mode="edge")
    steady = np.median(np.lib.stride_tricks.sliding_window_view(padded, STEADY_FRAMES, axis=0), axis=-1)
    crops = [_crop(frame, *box) for frame, box in zip(frames, steady, strict=True)]
    return np.stack(crops)


def looks(crops: Frames) -> NDArray[np.float32]:
    """Every five frames on end, as the network sees them: (T - 4, 3, 5, 224, 224), BGR, 0 to 255."""
    planes = crops[..., ::-1].transpose(3, 0, 1, 2).astype(np.float32)  # (3, T, H, W)
    return np.stack([planes[:, row : row + FRAMES] for row in range(len(crops) - FRAMES + 1)])


def sounds(voice: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The sound beside each of `count` looks, as the network hears it: (count, 1, 13, 20)."""
    coefficients = cepstrum(voice)
    needed = (count - 1) * STEPS_PER_FRAME + STEPS
    coefficients = np.pad(coefficients, ((0, max(0, needed - len(coefficients))), (0, 0)), mode="edge").T
    starts = range(0, count * STEPS_PER_FRAME, STEPS_PER_FRAME)
    return np.stack([coefficients[None, :, start : start + STEPS] for start in starts])


def sync_scores(seen: NDArray[np.floating], heard: NDArray[np.floating]) -> SyncScores:
    """From the vectors (N, D) of looks and of the sounds beside them.

    At each shift of the sound by up to 15 frames, with zeros beyond its ends, the distance is a mean over all looks.
    LSE-D is the smallest of these, LSE-C how far it lies below their median.
    """
    if seen.shape != heard.shape or not len(seen):
        raise InputError(f"looks and sounds must have as many vectors, got {seen.shape} and {heard.shape}")
    padded = np.pad(heard.astype(np.float64), ((REACH_FRAMES, REACH_FRAMES), (0, 0)))
    distances = [
        float(np.linalg.norm(seen - padded[shift : shift + len(seen)], axis=1).mean())
        for shift in range(2 * REACH_FRAMES + 1)
    ]
    return SyncScores(float(np.median(distances) - min(distances)), min(distances))


def _crop(frame: NDArray[np.uint8], x: float, y: float, half: float) -> NDArray[np.uint8]:
    """A square with a margin beside the face and twice of it below; grey beyond the picture."""
    wide = half * (1 + MARGIN)
    scale = SIDE_PX / (2 * wide)
    left, top = x - wide, y - half
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    return np.asarray(
        cv2.warpAffine(frame, move, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderValue=(110, 110, 110)),
        dtype=np.uint8,
    )


def _mel_bands() -> NDArray[np.float64]:
    """Triangles (26, 257) over the spectrum, evenly spaced in mel from 0 to 8000 Hz."""
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    edges = np.floor((SPECTRUM + 1) * 700 * (10 ** (mel / 2595) - 1) / RATE)
    bins = np.arange(SPECTRUM // 2 + 1)
    low, middle, high = (edges[i : i + BANDS, None] for i in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where(
        (bins >= low) & (bins < middle), rising, np.where((bins >= middle) & (bins < high), falling, 0.0)
    )
