"""A driver's skin detail -> the avatar's: the part of an expression that the 52 named ones leave out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from omokage.render.retarget import Controls, Float, Rest
from omokage.tracking.detail import SKIN_COUNT, skin_detail
from omokage.tracking.face_track import FaceTrack

MEAN_ROWS = 500  # of a driver's track, evenly, for the mean of its detail


@dataclass(frozen=True)
class DetailTransfer:
    """How a driver's skin detail, what the named expressions leave out, becomes the avatar's.

    mean: (468, 3) cm, the driver's own detail at rest, which belongs to their face.  strength: factor on the rest.
    """

    mean: Float
    strength: float

    @classmethod
    def of(cls, driving: FaceTrack, *, source_rest: Rest, controls: Controls | None = None) -> DetailTransfer:
        """From a track of the driver; nothing of it counts when the driver is the avatar's own subject.

        Another person's detail is taken against its mean over the track and scaled to the avatar's head.
        """
        controls = controls or Controls()
        strength = 0.0 if controls.mouth_only else min(1.0, controls.expression_strength)
        mean = np.zeros((SKIN_COUNT, 3))
        if not source_rest.is_of(driving.subject) and driving.landmarks.size:
            seen = np.flatnonzero(driving.is_tracked)
            seen = seen[:: -(-len(seen) // MEAN_ROWS)]
            mean = np.mean([skin_detail(driving, int(row)) for row in seen], axis=0)
            width = float(Rest.of(driving).head_width)
            strength *= float(source_rest.head_width) / width if width > 0 else 1.0
        return cls(mean, strength)

    def apply(self, driving: FaceTrack, row: int) -> Float:
        """The avatar's detail (468, 3) cm in head space for one row; zeros where no face was seen."""
        if not driving.is_tracked[row] or not driving.landmarks.size:
            return np.zeros((SKIN_COUNT, 3))
        return self.strength * (skin_detail(driving, row) - self.mean)


def retarget_detail(
    driving: FaceTrack, *, source_rest: Rest, controls: Controls | None = None
) -> Iterator[Float]:
    """What the named expressions leave out of the driver's face, for the avatar's: (468, 3) cm a frame, head space."""
    transfer = DetailTransfer.of(driving, source_rest=source_rest, controls=controls)
    for row in range(len(driving)):
        yield transfer.apply(driving, row)
