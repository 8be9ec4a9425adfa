"""A driver's skin detail -> the avatar's: the part of an expression that the 52 named ones leave out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from omokage.avatar.bundle import Avatar
from omokage.render.retarget import Controls, Float, Rest
from omokage.tracking.detail import skin_detail
from omokage.tracking.face_track import FaceTrack


def rest_of(avatar: Avatar) -> Rest:
    """The rest of an avatar's person, from its recording."""
    return replace(Rest.of(avatar.track), skin=avatar.skin)


@dataclass(frozen=True)
class DetailTransfer:
    """The driver's way from their usual detail, taken from the avatar's usual one.

    source, driver: (468, 3) cm, what either skin has at all times.  strength: factor on the way.
    """

    source: Float
    driver: Float
    strength: float

    @classmethod
    def between(cls, source: Rest, driver: Rest, controls: Controls | None = None) -> DetailTransfer:
        """Scaled to the avatar's head; with `mouth_only`, or a driver of unknown skin, the avatar keeps its own."""
        controls = controls or Controls()
        is_left_out = controls.mouth_only or not driver.skin.any()
        strength = 0.0 if is_left_out else min(1.0, controls.expression_strength)
        return cls(source.skin, driver.skin, strength * source.larger_than(driver))

    def apply(self, driving: FaceTrack, row: int) -> Float:
        """The avatar's detail (468, 3) cm in head space for one row; its usual one where no face was seen."""
        if not driving.is_tracked[row] or not driving.landmarks.size:
            return self.source
        return self.source + self.strength * (skin_detail(driving, row) - self.driver)


def retarget_detail(
    driving: FaceTrack,
    *,
    source_rest: Rest,
    controls: Controls | None = None,
    driving_rest: Rest | None = None,
) -> Iterator[Float]:
    """What the named expressions leave out of the driver's face, for the avatar's: (468, 3) cm a frame, head space.

    driving_rest: as `retarget` has it.
    """
    transfer = DetailTransfer.between(source_rest, driving_rest or source_rest.of_driver(driving), controls)
    for row in range(len(driving)):
        yield transfer.apply(driving, row)
