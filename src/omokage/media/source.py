"""A file that somebody gave, opened once and known by its first bytes, never by its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from omokage.errors import MediaError
from omokage.files import Given, open_given
from omokage.media.limits import InputLimits, input_limits

PICTURE: Final = "picture"
VIDEO_DEMUXERS: Final = {
    "mov": "MP4 or MOV",
    "matroska": "WebM or Matroska",
    "avi": "AVI",
    "mpegts": "MPEG-TS",
}
SOUND_DEMUXERS: Final = ("wav", "aiff", "flac", "ogg", "mp3", "aac")

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    *((4, box, "mov") for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (8, b"WAVE", "wav"),
    (8, b"AIFF", "aiff"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    *((0, sync, "mp3") for sync in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")),
    *((0, sync, "aac") for sync in (b"\xff\xf1", b"\xff\xf9")),
    (8, b"WEBP", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"\x89PNG\r\n\x1a\n", PICTURE),
    (0, b"GIF8", PICTURE),
    (0, b"BM", PICTURE),
    (0, b"II*\0", PICTURE),
    (0, b"MM\0*", PICTURE),
)
_PICTURE_BRANDS = (b"avif", b"heic", b"heix", b"mif1")  # still pictures in the box format of MP4
_TS_PACKET = 188


@dataclass(frozen=True, slots=True)
class Source:
    """An open file and the name of its demuxer, or `PICTURE`. path: for messages; only `file` is read."""

    path: Path
    file: Given | BytesIO
    kind: str


@contextmanager
def open_source(path: Path, limits: InputLimits | None = None) -> Iterator[Source]:
    """Open a video, sound or picture and look at its first bytes.

    Raises MediaError when it is no ordinary file, cannot be read, is empty or too large, or is of no kind that
    omokage reads.
    """
    most = (limits or input_limits()).max_gb * 1e9
    with open_given(path, MediaError) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise MediaError(f"{path} is empty (0 bytes); copy or export the recording again")
        if size > most:
            raise MediaError(
                f"{path} has {size / 1e9:.1f} GB; at most {most / 1e9:g} GB are read, so export it smaller"
            )
        kind = _require_kind(path, file.read(4 + _TS_PACKET + 1))
        file.seek(0)
        yield Source(path, file, kind)


def sniff(path: Path) -> str:
    """The name of the demuxer for `path`, or `PICTURE`. Raises MediaError, see `open_source`."""
    with open_source(path) as source:
        return source.kind


def kind_of(head: bytes, *, least_bytes: int = 1) -> str | None:
    """The name of the demuxer, or `PICTURE`, for what begins with these bytes (193 tell all); None: of no known kind.

    least_bytes: that a signature must have to be believed.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        return PICTURE
    for offset, signature, kind in _SIGNATURES:
        if len(signature) >= least_bytes and head[offset : offset + len(signature)] == signature:
            return kind
    if least_bytes <= 2 and any(
        head[at : at + 1] == head[at + _TS_PACKET : at + _TS_PACKET + 1] == b"G" for at in (0, 4)
    ):
        return "mpegts"
    return None


def _require_kind(path: Path, head: bytes) -> str:
    kind = kind_of(head)
    if kind is not None:
        return kind
    what = "text" if all(byte in b"\t\n\r" or byte >= 32 for byte in head) else "an unknown kind of file"
    raise MediaError(
        f"{path} holds {what}, whatever its name says; give a video (MP4, MOV, WebM, MKV, AVI, MPEG-TS), "
        "a sound (WAV, M4A, MP3, FLAC, Ogg, AIFF) or a picture (PNG, JPEG, WebP)"
    )
