"""What may spoil a driver: other people and cuts. It is followed all the same, and the user is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from omokage.capture.stability import CutDetector, Points
from omokage.media.clip import Frame, Image
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks

SAMPLES = 12  # pictures in which faces are counted
MAX_SHARE = 0.10  # of them may show somebody else for a moment


class DriverWatch:
    """Looks at the frames of a driver while they go by; `frame_count` is how many will come."""

    def __init__(self, frame_count: int, *, backend: LandmarkBackend | None = None) -> None:
        self._stride = math.ceil(frame_count / SAMPLES)
        self._backend = backend or MediaPipeLandmarks(max_faces=2, is_stream=False)
        self._cuts = CutDetector(self._main_face)
        self._counts: list[int] = []

    def watch(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The same frames."""
        for frame in frames:
            self._cuts.add(frame)
            if frame.index % self._stride == 0:
                self._counts.append(len(self._backend.detect(frame.image)))
            yield frame

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each thing that was seen."""
        sentences = []
        share = sum(count > 1 for count in self._counts) / max(1, len(self._counts))
        if share > MAX_SHARE:
            sentences.append(
                f"the driver shows more than one face in {100 * share:.0f} % of the pictures looked at, and the avatar "
                "follows one of them; give a clip of one person"
            )
        if self._cuts.cut_times_s:
            times = ", ".join(f"{time:.1f} s" for time in self._cuts.cut_times_s[:5])
            sentences.append(f"the driver is cut at {times}, where the movement jumps; give one uncut take")
        return tuple(sentences)

    def _main_face(self, image: Image) -> Points | None:
        faces = self._backend.detect(image)
        return faces[0].points if faces else None
