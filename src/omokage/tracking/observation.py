"""What every frame shows before any model knows the person: landmarks, hair, shoulders, a small picture of the face."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from omokage.errors import OutputError
from omokage.files import output_error
from omokage.media.clip import Frame
from omokage.tracking.landmarks import LandmarkBackend, Landmarks
from omokage.tracking.matting import MatteBackend
from omokage.tracking.photometric import FaceCrop
from omokage.tracking.sway import ZONE_COUNT, ZonePlaces, ZoneTracker

SETTLING_RUNS = 3
# Blocks so large get memory of their own from any system, and give it back at once; only what is written counts.
BLOCK_FRAMES = 4800  # 35 MB
CHUNK_BYTES = 35_000_000
_ROW = np.dtype(
    [
        ("frame_index", np.int64),
        ("time_s", np.float64),
        ("points", np.float32, (478, 3)),
        ("pixels", np.float32, (ZONE_COUNT, 2)),
        ("certainty", np.float32, (ZONE_COUNT,)),
        ("scale", np.float64),
        ("offset", np.float64, (2,)),
        ("jpeg", np.int64, (3,)),  # number of the chunk, start, end: nothing of a frame that shows nobody
    ]
)

SeenFace = tuple[NDArray[np.float32], FaceCrop]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one frame shows: `face` None when nobody is seen.

    crop: the picture of the face; without it the state comes from the landmarks alone.
    """

    frame_index: int
    time_s: float
    face: Landmarks | None
    zones: ZonePlaces
    crop: FaceCrop | None = None


class Observer:
    """Looks at frames in order.

    is_live: at hair and shoulders while the landmark network runs; the same comes out sooner, and more memory is
    held at once.
    """

    def __init__(
        self, backend: LandmarkBackend, matting: MatteBackend | None = None, *, is_live: bool = False
    ) -> None:
        self._backend, self._is_live = backend, is_live
        self._zones = ZoneTracker(matting)
        self._has_face = False
        backend.reset()

    def step(self, frame: Frame) -> Observation:
        if self._is_live:
            self._zones.begin(frame.image)
        faces = self._backend.detect(frame.image)
        if faces and not self._has_face:
            if self._is_live:
                self._zones.find_person(frame.image)
            # The network centers on where the face was: let it settle on a new one before trusting it.
            for _ in range(SETTLING_RUNS):
                faces = self._backend.detect(frame.image) or faces
        self._has_face = bool(faces)
        face = max(faces, key=lambda found: found.size_px) if faces else None
        crop = FaceCrop.of(frame.image, face.points) if face is not None else None
        return Observation(frame.index, frame.time_s, face, self._zones.step(frame.image, face), crop)


class ObservationLog:
    """What an `Observer` saw of a long recording, in order.

    It is written into large blocks at once. A small array that stayed would lie where one of the recording's pictures
    was, and the next picture would have to lie elsewhere: half an hour of 1080p took half a gigabyte more than was in
    it. Full blocks, from about three minutes on, wait in a file without a name. Raises OutputError where that has no
    room.
    """

    def __init__(self) -> None:
        self._shelf = _Shelf()
        self._rows = _Blocks(self._shelf)
        self._jpegs = _Blocks(self._shelf)
        self._room = (0, 0)  # start and end of what is free of the last chunk
        self._origin = ZonePlaces.unknown().origin
        self._seen: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def seen(self) -> Sequence[int]:
        """Where there is a face."""
        return self._seen

    def add(self, observation: Observation) -> None:
        block, row = divmod(self._count, BLOCK_FRAMES)
        if row == 0:
            self._rows.append(np.empty(BLOCK_FRAMES, _ROW))
        value = self._rows.at(block)[row]
        value["frame_index"], value["time_s"] = observation.frame_index, observation.time_s
        value["pixels"], value["certainty"] = observation.zones.pixels, observation.zones.certainty
        value["jpeg"] = 0
        if observation.face is not None and observation.crop is not None:
            value["points"], self._origin = observation.face.points, observation.zones.origin
            value["scale"], value["offset"] = observation.crop.scale, observation.crop.offset
            value["jpeg"] = self._keep(observation.crop.jpeg)
            self._seen.append(self._count)
        self._count += 1

    def _keep(self, jpeg: NDArray[np.uint8]) -> tuple[int, int, int]:
        start, end = self._room
        if start + len(jpeg) > end:
            start, end = 0, max(CHUNK_BYTES, len(jpeg))
            self._jpegs.append(np.empty(end, np.uint8))
        self._jpegs.at(len(self._jpegs) - 1)[start : start + len(jpeg)] = jpeg
        self._room = (start + len(jpeg), end)
        return len(self._jpegs) - 1, start, start + len(jpeg)

    def face(self, place: int) -> SeenFace:
        """The landmarks and the picture at one of the places of `seen`."""
        observation = self[place]
        assert observation.face is not None and observation.crop is not None
        return observation.face.points, observation.crop

    def __getitem__(self, place: int) -> Observation:
        block, row = divmod(place, BLOCK_FRAMES)
        value = self._rows.at(block)[row]
        index, time_s = int(value["frame_index"]), float(value["time_s"])
        chunk, start, end = value["jpeg"].tolist()
        if start == end:
            return Observation(index, time_s, None, ZonePlaces.unknown())
        return Observation(
            index,
            time_s,
            Landmarks(value["points"].copy()),
            ZonePlaces(value["pixels"].copy(), value["certainty"].copy(), self._origin),
            FaceCrop(self._jpegs.at(chunk)[start:end].copy(), float(value["scale"]), value["offset"].copy()),
        )

    def drain(self) -> Iterator[Observation]:
        """All in order; nothing is left afterwards."""
        for place in range(self._count):
            yield self[place]
        self._rows, self._jpegs = _Blocks(self._shelf), _Blocks(self._shelf)
        self._shelf.close()
        self._seen, self._count = [], 0


class _Shelf:
    """A file without a name for arrays that can wait; it is there once the first one comes."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def put(self, array: NDArray[Any]) -> int:
        """Where it lies. Raises OutputError."""
        try:
            self._file = self._file or TemporaryFile()  # noqa: SIM115 (it stays open)
            place = self._file.seek(0, os.SEEK_END)
            # `tofile` would not say why it failed.
            self._file.write(array.view(np.uint8).data)
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{output_error(Path(gettempdir()), error)}, by TMPDIR") from error
        return place

    def take(self, place: int, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        assert self._file is not None
        self._file.seek(place)
        return np.fromfile(self._file, kind, count)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Blocks:
    """Arrays, of which the last and the one that was looked at last are in memory, the others on the shelf."""

    def __init__(self, shelf: _Shelf) -> None:
        self._shelf = shelf
        self._places: list[tuple[int, int, np.dtype[Any]]] = []  # of all but the last
        self._last: NDArray[Any] | None = None
        self._open: tuple[int, NDArray[Any]] | None = None

    def __len__(self) -> int:
        return len(self._places) + (self._last is not None)

    def append(self, block: NDArray[Any]) -> None:
        if self._last is not None:
            full = self._last
            self._places.append((self._shelf.put(full), len(full), full.dtype))
        self._last = block

    def at(self, index: int) -> NDArray[Any]:
        """One of them; only the last one may be written to."""
        if index == len(self._places) and self._last is not None:
            return self._last
        if self._open is None or self._open[0] != index:
            self._open = None  # its memory first
            self._open = (index, self._shelf.take(*self._places[index]))
        return self._open[1]
