"""What every frame shows before any model knows the person: landmarks, hair, shoulders, a small picture of the face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omokage.media.clip import Frame
from omokage.tracking.landmarks import LandmarkBackend, Landmarks
from omokage.tracking.matting import MatteBackend
from omokage.tracking.photometric import FaceCrop
from omokage.tracking.sway import ZONE_COUNT, ZonePlaces, ZoneTracker

SETTLING_RUNS = 3
BLOCK_FRAMES = 256
_ROW = np.dtype(
    [
        ("frame_index", np.int64),
        ("time_s", np.float64),
        ("points", np.float32, (478, 3)),
        ("pixels", np.float32, (ZONE_COUNT, 2)),
        ("certainty", np.float32, (ZONE_COUNT,)),
        ("scale", np.float64),
        ("offset", np.float64, (2,)),
        ("end", np.int64),  # of its picture, in the block's
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
    """Looks at frames in order."""

    def __init__(self, backend: LandmarkBackend, matting: MatteBackend | None = None) -> None:
        self._backend = backend
        self._zones = ZoneTracker(matting)
        self._has_face = False
        backend.reset()

    def step(self, frame: Frame) -> Observation:
        faces = self._backend.detect(frame.image)
        if faces and not self._has_face:
            # The network centers on where the face was: let it settle on a new one before trusting it.
            for _ in range(SETTLING_RUNS):
                faces = self._backend.detect(frame.image) or faces
        self._has_face = bool(faces)
        face = max(faces, key=lambda found: found.size_px) if faces else None
        crop = FaceCrop.of(frame.image, face.points) if face is not None else None
        return Observation(frame.index, frame.time_s, face, self._zones.step(frame.image, face), crop)


class ObservationLog:
    """What an `Observer` saw of a long recording, in order.

    They are written into a few large blocks at once. A small array that stayed would lie where one of the recording's
    pictures was, and the next picture would have to lie elsewhere: half an hour of 1080p took half a gigabyte more than
    was in it.
    """

    def __init__(self) -> None:
        self._rows: list[NDArray[np.void]] = []
        self._jpegs: list[bytearray] = []
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
            self._rows.append(np.zeros(BLOCK_FRAMES, _ROW))
            self._jpegs.append(bytearray())
        value, jpegs = self._rows[block][row], self._jpegs[block]
        value["frame_index"], value["time_s"] = observation.frame_index, observation.time_s
        value["pixels"], value["certainty"] = observation.zones.pixels, observation.zones.certainty
        if observation.face is not None and observation.crop is not None:
            value["points"], self._origin = observation.face.points, observation.zones.origin
            value["scale"], value["offset"] = observation.crop.scale, observation.crop.offset
            jpegs += observation.crop.jpeg.tobytes()
            self._seen.append(self._count)
        value["end"] = len(jpegs)
        self._count += 1

    def face(self, place: int) -> SeenFace:
        """The landmarks and the picture at one of the places of `seen`."""
        observation = self[place]
        assert observation.face is not None and observation.crop is not None
        return observation.face.points, observation.crop

    def __getitem__(self, place: int) -> Observation:
        block, row = divmod(place, BLOCK_FRAMES)
        value = self._rows[block][row]
        start, end = int(self._rows[block]["end"][row - 1]) if row else 0, int(value["end"])
        if start == end:
            return Observation(int(value["frame_index"]), float(value["time_s"]), None, ZonePlaces.unknown())
        jpeg = np.frombuffer(bytes(self._jpegs[block][start:end]), dtype=np.uint8)
        return Observation(
            int(value["frame_index"]),
            float(value["time_s"]),
            Landmarks(value["points"].copy()),
            ZonePlaces(value["pixels"].copy(), value["certainty"].copy(), self._origin),
            FaceCrop(jpeg, float(value["scale"]), value["offset"].copy()),
        )

    def drain(self) -> Iterator[Observation]:
        """All in order; each block is forgotten when it was used."""
        for block in range(len(self._rows)):
            for place in range(BLOCK_FRAMES * block, min(BLOCK_FRAMES * (block + 1), self._count)):
                yield self[place]
            self._rows[block], self._jpegs[block] = np.zeros(0, _ROW), bytearray()
