"""The C2PA manifest in a file, as the library reads it. MAIN: `manifest_of`.

The library is native code and the file is a stranger's, so `metadata.read_manifest` has this run in the decoder's
process. What a manifest is worth is for `trust.origin` to say.
"""

from __future__ import annotations

import io
import json
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self

from omokage.files import parse_json
from omokage.media.records import Alive, ManifestTask, RawManifest
from omokage.media.source import Source

# Kinds of files that a manifest may lie in, of whoever wrote it: where in the file its first bytes are.
_SIGNATURES: Final = (
    (4, b"ftyp", "video/mp4"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (8, b"AVI ", "video/avi"),
    (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)
# The boxes that the encoder and the signature write; others, which no hash covers, could carry anything.
_KNOWN_BOXES: Final = ("ftyp", "uuid", "moov", "mdat", "free", "wide")
_LARGEST_FREE_BOX: Final = 16  # bytes: what an encoder leaves between index and data
_SIGN_OF_LIFE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """said: the manifest store and what the library found in checking it, or None.  state: its verdict, '' for none.
    error: what is wrong with a manifest that is there.  hidden: parts of the container that no signature covers.
    unread: why nothing is known, because the library broke down over the file."""

    said: dict[str, Any] | None = None
    state: str = ""
    error: str = ""
    hidden: tuple[str, ...] = ()
    unread: str = ""

    @classmethod
    def parsed(cls, data: bytes) -> Self:
        """Raises ValueError for anything else than `data` writes."""
        said = parse_json(data.decode())
        try:
            store, hidden = said["said"], tuple(map(str, said["hidden"]))
            made = cls(store, str(said["state"]), str(said["error"]), hidden)
        except (KeyError, TypeError) as error:
            raise ValueError("no manifest") from error
        if not isinstance(store, dict | None):
            raise ValueError("no manifest")
        return made

    @property
    def data(self) -> bytes:
        """For the wire."""
        values = {"said": self.said, "state": self.state, "error": self.error, "hidden": self.hidden}
        return json.dumps(values).encode()


def media_type_of(head: bytes) -> str | None:
    """By the first 12 bytes, never by the name; None for a kind that has no place for a manifest."""
    return next((kind for at, start, kind in _SIGNATURES if head[at:].startswith(start)), None)


def reading_settings(roots: str) -> dict[str, Any]:
    """For the library: nothing is fetched, whatever a file says. roots: PEM, what is trusted."""
    return {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        **({"trust": {"trust_anchors": roots}} if roots else {}),
    }


def manifest_in(file: BinaryIO, roots: str) -> Manifest | None:
    """Read in this process; None for a kind of file that has no place for a manifest. roots: PEM, what is trusted."""
    import c2pa

    media_type = media_type_of(file.read(12))
    if media_type is None:
        return None
    hidden = tuple(_unknown_boxes(file)) if media_type == "video/mp4" else ()
    file.seek(0)
    try:
        with (
            c2pa.Context.from_dict(reading_settings(roots)) as context,
            c2pa.Reader(media_type, file, context=context) as reader,
        ):
            return Manifest(json.loads(reader.json()), str(reader.get_validation_state()), "", hidden)
    except c2pa.C2paError.ManifestNotFound:
        return Manifest(hidden=hidden)
    except c2pa.C2paError as error:
        return Manifest(error=str(error) or type(error).__name__, hidden=hidden)


def manifest_of(source: Source, task: ManifestTask) -> Iterator[RawManifest | Alive]:
    """In the decoder's process: the library reads on a thread, and a sign of life goes out while it gets on."""
    import c2pa  # noqa: F401  # before no file may be opened any more

    return _watched(_Counted(source.file), task)


def _watched(file: _Counted, task: ManifestTask) -> Iterator[RawManifest | Alive]:
    found: list[Manifest | BaseException] = []

    def work() -> None:
        try:
            found.append(manifest_in(file, task.roots) or Manifest())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, name="manifest", daemon=True)
    thread.start()
    before = -1
    while thread.is_alive():
        thread.join(_SIGN_OF_LIFE_S)
        if file.reads != before:
            before = file.reads
            yield Alive()
    (one,) = found
    if isinstance(one, BaseException):
        raise one
    yield RawManifest(one.data)


class _Counted(io.BufferedReader):
    """reads: how many there were."""

    def __init__(self, raw: Any) -> None:
        super().__init__(raw)
        self.reads = 0

    def readinto(self, buffer: Any) -> int:
        self.reads += 1
        return super().readinto(buffer)


def _unknown_boxes(file: BinaryIO) -> Iterator[str]:
    """Top-level boxes (ISO 14496-12, 4.2) that no encoder of ours writes: no signature covers all of them."""
    end = file.seek(0, io.SEEK_END)
    place = 0
    while place + 8 <= end:
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        size = size or end - place
        name = kind.decode("latin-1")
        if size < header or place + size > end:
            yield f"the container ends in the middle of its box '{name}'"
            return
        if name not in _KNOWN_BOXES or (name in ("free", "wide") and size > _LARGEST_FREE_BOX):
            yield f"a box '{name}' of {size} bytes that no signature covers"
        place += size
    if place != end:
        yield f"{end - place} bytes after the last box"
