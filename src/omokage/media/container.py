"""Opening of media files that nobody has vouched for.

The kind of a file is read from its first bytes, never from its name, and the matching demuxer is forced, so that a
playlist named `clip.mp4` cannot make the decoder read other files. Only the `file` protocol is allowed.
"""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from omokage.errors import MediaError

MAX_SIDE = 8192
PICTURE = "picture"

VIDEO_DEMUXERS = {"mov": "MP4 or MOV", "matroska": "WebM or Matroska", "avi": "AVI", "mpegts": "MPEG-TS"}
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


def sniff(path: Path) -> str:
    """Return the name of the demuxer for `path`, or `PICTURE`, from the first bytes.

    Raises MediaError when the file cannot be read, is empty, or is of no kind that omokage reads.
    """
    head = _read_head(path)
    kind = kind_of(head)
    if kind is not None:
        return kind
    what = "text" if all(byte in b"\t\n\r" or byte >= 32 for byte in head) else "an unknown kind of file"
    raise MediaError(
        f"{path} holds {what}, whatever its name says; give a video (MP4, MOV, WebM, MKV, AVI, MPEG-TS) "
        "or a picture (PNG, JPEG, WebP)"
    )


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


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise MediaError(f"{path} is a folder; give the file inside it")
    if path.exists() and not path.is_file():
        raise MediaError(f"{path} is a device or a pipe; give an ordinary file")
    try:
        with path.open("rb") as file:
            head = file.read(4 + _TS_PACKET + 1)
    except FileNotFoundError as error:
        raise MediaError(f"{path} does not exist; check the name and the folder") from error
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise MediaError(f"{path} is empty (0 bytes); copy or export the recording again")
    return head


def open_container(path: Path) -> InputContainer:
    """Open a video or sound file with the demuxer that its first bytes ask for. Raises MediaError."""
    kind = sniff(path)
    if kind == PICTURE:
        raise MediaError(
            f"{path} is a still picture, and a video is needed here; 'omokage rehearse' makes one of a portrait"
        )
    try:
        return av.open(
            f"file:{path.absolute()}",
            mode="r",
            format=kind,
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path} is damaged or cut off: its {VIDEO_DEMUXERS.get(kind, kind)} headers cannot be read; "
            "copy or export the recording again"
        ) from error


def video_stream(container: InputContainer) -> VideoStream | None:
    """The stream of moving pictures, or None. Cover pictures of sound files do not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return max(streams, key=lambda s: s.width * s.height, default=None)
