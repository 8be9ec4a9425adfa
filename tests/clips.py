"""Synthetic clips for tests: moving shapes and beeps, with any frame rate, time stamps, turn, format or codec.

`make_clip(path)` writes one second of a moving disc; every keyword changes one thing.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Audio

Picture = NDArray[np.uint8]
Draw = Callable[
    [float, int, int], NDArray
]  # time (s), width, height -> (H, W, 3 or 4) uint8, or uint16 for HDR

TRANSFERS = {"pq": 16, "hlg": 18}


def moving_disc(time_s: float, width: int, height: int) -> Picture:
    """A red disc that travels to the right once a second, over a blue-green slope."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([0 * x, 255 * y / height, 255 * x / width], axis=-1)
    center = (time_s % 1.0) * width
    picture[(x - center) ** 2 + (y - height / 2) ** 2 < (0.15 * height) ** 2] = (255, 0, 0)
    return picture.astype(np.uint8)


def corner_mark(time_s: float, width: int, height: int) -> Picture:
    """Black with a white block in the upper left corner: shows a wrong turn or mirror at once."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 4, : width // 4] = 255
    return picture


def plain(*color: int) -> Draw:
    """One color everywhere: uint8 when it has 3 or 4 small values."""
    kind = np.uint16 if max(color) > 255 else np.uint8
    return lambda time_s, width, height: np.full((height, width, len(color)), color, kind)


def flash(at_s: float, length_s: float = 0.2) -> Draw:
    """Black, but white from `at_s` on for `length_s`."""

    def draw(time_s: float, width: int, height: int) -> Picture:
        is_lit = at_s <= time_s + 1e-6 and time_s < at_s + length_s - 1e-6
        return np.full((height, width, 3), 255 if is_lit else 0, np.uint8)

    return draw


def beep(
    at_s: float, seconds: float, *, length_s: float = 0.2, sample_rate: int = 48000, channels: int = 1
) -> Audio:
    """Silence of `seconds` with a 1 kHz tone from `at_s` on."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= at_s) & (time < at_s + length_s))
    return Audio(np.repeat(tone[:, None], channels, axis=1).astype(np.float32), sample_rate)


def onset_s(audio: Audio) -> float:
    """When the sound first becomes loud (s)."""
    return float(np.argmax(np.abs(audio.samples).max(axis=1) > 0.1)) / audio.sample_rate


def make_sound(path: Path, sound: Audio) -> Path:
    """Write a sound of one channel and return its path: AAC in .m4a, 16 bits in .wav."""
    codec, kind = {".m4a": ("aac", "fltp"), ".wav": ("pcm_s16le", "s16")}[path.suffix]
    samples = sound.samples[:, :1].T.astype(np.float32)
    if kind == "s16":
        samples = np.round(samples * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=sound.sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.sample_rate = sound.sample_rate
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    return path


def make_clip(
    path: Path,
    *,
    seconds: float = 1.0,
    frame_rate: Fraction | int = 25,
    times_s: Sequence[float] | None = None,
    width: int = 96,
    height: int = 64,
    draw: Draw = moving_disc,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rotation_deg: int = 0,
    sample_aspect_ratio: Fraction | None = None,
    transfer: str | None = None,
    audio: Audio | None = None,
    audio_start_s: float = 0.0,
    start_s: float = 0.0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip and return its path. The container follows the suffix.

    `times_s`: presentation times for a variable rate (else `seconds` at `frame_rate`). `rotation_deg`: the clockwise
    turn that a player must apply. `transfer`: 'pq' or 'hlg' tags the clip as BT.2020 HDR. `start_s` delays the
    pictures and `audio_start_s` the sound on the file's clock.
    """
    times = (
        times_s
        if times_s is not None
        else [i / Fraction(frame_rate) for i in range(round(seconds * frame_rate))]
    )
    time_base = Fraction(1, 90000) if times_s is not None or start_s else 1 / Fraction(frame_rate)
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=Fraction(frame_rate), options=options or {})
        context = video.codec_context
        context.width, context.height, context.pix_fmt = width, height, pixel_format
        context.time_base = time_base
        context.thread_count = 1
        is_yuv = pixel_format.startswith("yuv")
        # MPEG-4 part 2 in AVI cannot say its color matrix; players then take that of BT.601.
        is_grey = pixel_format == "gray"
        matrix = 9 if transfer else 5 if codec == "mpeg4" else 1 if is_yuv or is_grey else 2
        context.colorspace = context.color_primaries = matrix
        color_range = 1 if is_yuv or is_grey else 2
        context.color_range = color_range
        if transfer:
            context.color_trc = TRANSFERS[transfer]
        if sample_aspect_ratio is not None:
            context.sample_aspect_ratio = sample_aspect_ratio
        if rotation_deg:
            video.set_display_rotation(-rotation_deg)
        sound = None
        if audio is not None:
            codec_name = {".webm": "libopus", ".avi": "pcm_s16le"}.get(path.suffix, "aac")
            layout = "mono" if audio.samples.shape[1] == 1 else "stereo"
            sound = container.add_stream(codec_name, rate=audio.sample_rate, layout=layout)
        for time_s in times:
            picture = draw(float(time_s), width, height)
            name = "rgb48le" if picture.dtype == np.uint16 else "rgba" if picture.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, name)
            frame = frame.reformat(
                format="yuv420p" if is_grey else pixel_format,
                dst_colorspace=matrix if is_yuv or is_grey else None,
                src_color_range=2,
                dst_color_range=color_range,
            )
            if is_grey:  # FFmpeg's own conversion to grey ignores the range that video uses
                frame = av.VideoFrame.from_ndarray(frame.to_ndarray()[:height], "gray")
            frame.pts, frame.time_base = round((time_s + Fraction(start_s)) / time_base), time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            layout = sound.layout.name
            whole = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(audio.samples).reshape(1, -1), "flt", layout
            )
            whole.sample_rate = audio.sample_rate
            whole.pts, whole.time_base = (
                round(audio_start_s * audio.sample_rate),
                Fraction(1, audio.sample_rate),
            )
            container.mux(sound.encode(whole))
            container.mux(sound.encode(None))
    return path


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """Every file of this process may grow to `limit` bytes only. For a few lines: pytest's own log is a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
