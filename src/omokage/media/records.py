"""What is asked of a decoder and what it answers, with the wire on which both travel between two processes.

A message is a line of JSON and as many bytes as it announces. No pickles: a decoder that was taken over must not be
able to run anything here, so every field is checked for its type.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import UnionType
from typing import Any, Final, TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview
LONGEST_LINE: Final = 1 << 20
MOST_LETTERS: Final = 400
PQ: Final = 16  # transfer characteristics of ITU-T H.273
HLG: Final = 18


@dataclass(frozen=True, slots=True)
class ScanTask:
    """Headers, first picture and all time stamps."""


@dataclass(frozen=True, slots=True)
class PicturesTask:
    """The pictures nearest to k / rate for k in [first, stop), scaled to width x height before the turn.

    zero, last: time stamps of the clip's first and last picture in units of time_base (s).
    duration_s: of the clip, for its allowance.
    """

    rate: Fraction
    first: int
    stop: int
    width: int
    height: int
    zero: int
    last: int
    time_base: Fraction
    duration_s: float


@dataclass(frozen=True, slots=True)
class SoundTask:
    """The first sound track, at its own rate or resampled to sample_rate (Hz)."""

    sample_rate: int | None


@dataclass(frozen=True, slots=True)
class StillTask:
    """A still picture."""


@dataclass(frozen=True, slots=True)
class StillsTask:
    """Still pictures one after the other, each handed over with a `Handed` when the last has been answered."""


@dataclass(frozen=True, slots=True)
class CommentTask:
    """What a clip or a picture says about itself in its metadata."""


@dataclass(frozen=True, slots=True)
class ManifestTask:
    """The C2PA manifest in it. roots: certificates that are trusted, PEM."""

    roots: str


@dataclass(frozen=True, slots=True)
class Handed:
    """A whole file. path: for messages."""

    path: str
    data: Data


@dataclass(frozen=True, slots=True)
class Ready:
    """The decoder has started; protections: what has been taken from it."""

    protections: str


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing to tell yet."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The one sentence. is_ours: it is a defect of omokage and not of the file."""

    sentence: str
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The last message."""


@dataclass(frozen=True, slots=True)
class RawScan:
    """Of the first picture: width, height, pixel_format, the sample aspect and the display matrix (9 numbers or none).

    time_base: unit of the stamps, s.  zero: the stamp of time 0.  last_duration: of the last picture, 0 if unknown.
    data: int64 stamps of all pictures, sorted.
    """

    width: int
    height: int
    pixel_format: str
    aspect: Fraction | None
    matrix: tuple[int, ...]
    time_base: Fraction
    zero: int
    last_duration: int
    has_audio: bool
    data: Data


@dataclass(frozen=True, slots=True)
class RawPicture:
    """A picture as the file holds it, not yet upright. layout: 'rgb24', 'rgba' or 'rgb48le', rows of row_bytes.

    transfer: characteristics of ITU-T H.273.  is_narrow_grey: 16..235.  is_repeated: as the last one; without data.
    """

    width: int
    height: int
    row_bytes: int
    layout: str
    transfer: int
    is_narrow_grey: bool
    is_repeated: bool
    data: Data


@dataclass(frozen=True, slots=True)
class RawSound:
    """A piece of sound, float32 interleaved. start: s on the file's clock; has_video, announced_s: of the file."""

    start: Fraction | None
    rate: int
    channels: int
    has_video: bool
    announced_s: float
    data: Data


@dataclass(frozen=True, slots=True)
class RawStill:
    """A still picture, upright. mode: as Pillow names it."""

    width: int
    height: int
    mode: str
    data: Data


@dataclass(frozen=True, slots=True)
class RawComment:
    """The comment in the metadata, cut after `MOST_LETTERS`; '' when there is none."""

    text: str
    data: Data = b""


@dataclass(frozen=True, slots=True)
class RawManifest:
    """What `manifest.Manifest.data` holds."""

    data: Data


def comment_in(tags: Mapping[Any, object]) -> str:
    """The tag 'comment', whatever its capitals, as text."""
    found = next((value for name, value in tags.items() if str(name).lower() == "comment"), "")
    return (found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found))[:MOST_LETTERS]


def one_line(sentence: str) -> str:
    """What a stranger's file or its reader says, as text for a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in sentence)[:2000]


Task: TypeAlias = ScanTask | PicturesTask | SoundTask | StillTask | StillsTask | CommentTask | ManifestTask
Answer: TypeAlias = RawScan | RawPicture | RawSound | RawStill | RawComment | RawManifest
Message: TypeAlias = Answer | Handed | Ready | Alive | Failed | Done

_KINDS: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind for kind in (*typing.get_args(Task), *typing.get_args(Message))
}
_TYPES: Final = {name: typing.get_type_hints(kind) for name, kind in _KINDS.items()}


def to_line(record: Task | Message, **more: Any) -> bytes:
    """A record as one line of JSON, its data left out but counted; `more` goes along."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "data"}
    size = len(record.data) if hasattr(record, "data") else 0
    line = {"kind": type(record).__name__, "bytes": size, "fields": fields} | more
    return json.dumps(line, default=str).encode() + b"\n"  # str: of a Fraction


@dataclass(frozen=True, slots=True)
class Announced:
    """A message whose data, `size` bytes, are still to come."""

    size: int
    finish: Callable[[Data], Task | Message] = field(repr=False)


def from_line(line: bytes) -> Announced:
    """The record of a line, once its data are there. Raises ValueError for anything that `to_line` does not write."""
    try:
        said = json.loads(line)
        kind, size, fields = _KINDS[said["kind"]], said["bytes"], said["fields"]
        types = _TYPES[said["kind"]]
        if (
            type(size) is not int
            or size < 0
            or (size and "data" not in types)
            or not isinstance(fields, dict)
        ):
            raise ValueError("its size")
        values = {name: _checked(fields.pop(name), types[name]) for name in types if name != "data"}
        if fields:
            raise ValueError(f"field {next(iter(fields))!r}")
    except (KeyError, TypeError, RecursionError, ZeroDivisionError) as error:
        raise ValueError(f"no message: {error}") from error

    def finish(data: Data) -> Task | Message:
        made: Task | Message = kind(**values, **({"data": data} if "data" in types else {}))
        return made

    return Announced(size, finish)


def _checked(value: Any, wanted: Any) -> Any:
    if isinstance(wanted, UnionType):  # X | None
        return None if value is None else _checked(value, typing.get_args(wanted)[0])
    if typing.get_origin(wanted) is tuple:
        return tuple(_checked(item, int) for item in _checked(value, list))
    if wanted is Fraction:
        return Fraction(_checked(value, str))
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{value!r} is no {wanted.__name__}")
    return value
