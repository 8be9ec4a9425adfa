"""What omokage takes from a file that nobody has vouched for: how large, how long, in which codecs, at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from omokage.config import Config
from omokage.errors import MediaError

# Names of FFmpeg's decoders: what phones, cameras, screen recorders, editors and omokage itself write. The other 400
# are for games of the nineties and the like; each of them would be one more way in.
VIDEO_CODECS: Final = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4", "h263", "mpeg1video"),
    *("mpeg2video", "mjpeg", "prores", "dnxhd", "dvvideo", "cfhd", "ffv1", "ffvhuff", "huffyuv", "utvideo"),
    *("rawvideo", "v210", "qtrle", "png"),
)
SOUND_CODECS: Final = (
    *(
        "aac",
        "aac_latm",
        "mp3",
        "mp3float",
        "mp2",
        "mp2float",
        "ac3",
        "eac3",
        "opus",
        "libopus",
        "vorbis",
        "flac",
    ),
    *("alac", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "adpcm_ms", "adpcm_ima_wav"),
    *("adpcm_ima_qt", "pcm_alaw", "pcm_mulaw", "pcm_bluray", "pcm_dvd", "pcm_u8", "pcm_s8", "pcm_s16le"),
    *("pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le"),
    "pcm_f64be",
)


@dataclass(frozen=True)
class InputLimits(Config):
    """What is read. Everything beyond is refused by a sentence that says what was got and what is allowed.

    max_side: pixels of the longer side.  max_rate: pictures a second.  max_hours: of a clip or a sound.
    max_gap_s: silence that breaks in a sound track are filled with, all together.  max_gb: of a file, 10^9 bytes.
    max_streams: tracks in a file.  codecs: names of FFmpeg's decoders.

    is_sandboxed: decode in a process of its own, without files, network or programs as far as the system can take
    them away (docs/safety.md). memory_gb: its address space.  opening_cpu_s: its computing time to open a file, and a
    second more for each 20 MB; what could be opened gets cpu_share seconds for each second that it lasts.
    silence_s: how long it may be waited for without a sign of life.
    """

    max_side: int = 8192
    max_rate: float = 240.0
    max_hours: float = 12.0
    max_gap_s: float = 3600.0
    max_gb: float = 64.0
    max_streams: int = 64
    codecs: tuple[str, ...] = VIDEO_CODECS + SOUND_CODECS
    is_sandboxed: bool = True
    memory_gb: float = 4.0
    opening_cpu_s: float = 5.0
    cpu_share: float = 60.0
    silence_s: float = 30.0


_limits = InputLimits()


def input_limits() -> InputLimits:
    """The limits that hold now."""
    return _limits


@contextmanager
def use_input_limits(limits: InputLimits) -> Iterator[None]:
    """Other limits, for every file that this process opens within the block, on whichever thread."""
    global _limits
    before, _limits = _limits, limits
    try:
        yield
    finally:
        _limits = before


def check_size(path: Path, width: int, height: int, limits: InputLimits) -> None:
    """Raise MediaError for too many pixels a side."""
    if max(width, height) > limits.max_side:
        raise MediaError(
            f"{path} is {width}x{height} pixels; at most {limits.max_side} a side are read, "
            "so export it smaller (1080p is plenty)"
        )
