"""A driver's face track -> the motion of an avatar, within what the avatar's own recording has shown.

Expression, pose, gaze and shoulders travel relative to each person's own rest state; what the recording does not cover
is bent back softly, and the result says so in sentences.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from omokage.config import Config
from omokage.errors import InputError, NoFaceError
from omokage.geometry.camera import head_angles, head_rotation
from omokage.tracking.arkit import LOOKS, looks_from_gaze
from omokage.tracking.detail import mean_detail
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack, Subject

Float = NDArray[np.float64]

BLINK = tuple(BLENDSHAPES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight"))
JAW = BLENDSHAPES.index("jawOpen")
MOUTH = tuple(
    i for i, name in enumerate(BLENDSHAPES) if name.startswith(("mouth", "jaw", "cheekPuff", "tongue"))
)

PERCENTILES = (0.5, 99.5)  # of the recording; what lies outside is taken for a tracking error
MARGIN = 0.12  # of the covered range: how far beyond it the avatar may go
SMALLEST_MARGIN = {"expression": 0.03, "angle": np.radians(1.5), "length": 0.5, "sway": 0.02}
FULL = 0.45  # a blink or an open jaw above this counts as complete
SCALE_LIMITS = (0.75, 1.35)  # how much a blink or a jaw may be stretched to reach the other person's extreme


@dataclass(frozen=True)
class Controls(Config):
    """What the user may change about the motion.

    `expression_strength` and `pose_strength` scale the way from rest (0: none, 1: as driven); blinks follow `blink`
    alone. With `mouth_only` head, eyes, brows and shoulders stay at rest. `gaze` 'camera' makes the eyes look into the
    camera however the head is turned.
    """

    expression_strength: float = 1.0
    pose_strength: float = 1.0
    mouth_only: bool = False
    gaze: Literal["driver", "camera"] = "driver"
    blink: float = 1.0

    def __post_init__(self) -> None:
        for name in ("expression_strength", "pose_strength", "blink"):
            if not 0 <= getattr(self, name) <= 2:
                raise InputError(f"{name} must lie between 0 and 2, got {getattr(self, name)}")
        if self.gaze not in ("driver", "camera"):
            raise InputError(f"gaze must be 'driver' or 'camera', got '{self.gaze}'")


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What an avatar is told to do, frame by frame; shapes, units and meaning are those of `FaceTrack`."""

    time_s: Float
    is_tracked: NDArray[np.bool_]
    rotation: Float
    translation: Float
    expression: NDArray[np.float32]
    gaze: NDArray[np.float32]
    sway: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.time_s)

    @classmethod
    def of(cls, track: FaceTrack) -> Self:
        """The track's own motion, unchanged."""
        return cls(**{f.name: getattr(track, f.name) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Rest:
    """A person's own rest state, and how far their blinks and jaw go.

    expression (52,), reach (52,): weights at rest and at their fullest.  rotation (3,), translation (3,), gaze (2, 2),
    sway (Z, 2): medians.  skin (468, 3): mean skin detail, cm, zeros when unknown.  head_width: cm, 0 when unknown.
    identity (K,): whose it is.
    """

    expression: NDArray[np.float32]
    reach: NDArray[np.float32]
    rotation: Float
    translation: Float
    sway: NDArray[np.float32]
    gaze: NDArray[np.float32]
    skin: Float
    head_width: float
    identity: NDArray[np.float32]

    @classmethod
    def of(cls, track: FaceTrack) -> Self:
        """Estimate it from a track. Raises NoFaceError when no frame shows a face.

        The neutral expression is the median of the calmest fifth of the frames, where calm means that eyes are open
        and the mouth is shut; the pose is the median of all frames.
        """
        seen = tracked(track)
        activity = np.delete(seen.expression, list(LOOKS), axis=1).sum(axis=1)
        activity += 2 * seen.expression[:, (*BLINK, JAW)].sum(axis=1)
        calm = activity <= np.quantile(activity, 0.2)
        width = np.ptp(track.subject.neutral[:, 0]) if len(track.subject.neutral) else 0.0
        return cls(
            expression=np.median(seen.expression[calm], axis=0).astype(np.float32),
            reach=np.percentile(seen.expression, PERCENTILES[1], axis=0).astype(np.float32),
            rotation=np.median(seen.rotation, axis=0),
            translation=np.median(seen.translation, axis=0),
            sway=np.median(seen.sway, axis=0).astype(np.float32),
            gaze=np.median(seen.gaze[calm], axis=0).astype(np.float32),
            skin=mean_detail(seen),
            head_width=float(width),
            identity=track.subject.identity,
        )

    def of_driver(self, driving: FaceTrack) -> Rest:
        """The rest of a driver of this person's avatar: their own, or this one if it is the same person."""
        return self if self.is_of(driving.subject) else Rest.of(driving)

    def larger_than(self, other: Rest) -> float:
        """The ratio of the heads' widths; 1 when one is unknown."""
        widths = (self.head_width, other.head_width)
        return widths[0] / widths[1] if min(widths) > 0 else 1.0

    def is_of(self, subject: Subject) -> bool:
        """Whether `subject` is the same solved identity, so that nothing has to be retargeted."""
        return len(self.identity) > 0 and np.array_equal(self.identity, subject.identity)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What a recording has shown: low and high of every channel.

    expression (2, 52).  angles (2, 3): yaw, pitch, roll in radians (`head_angles`).  translation (2, 3): cm.
    gaze (2, 2): yaw and pitch of either eye.  sway (2, Z, 2).
    """

    expression: Float
    angles: Float
    translation: Float
    gaze: Float
    sway: Float

    @classmethod
    def of(cls, track: FaceTrack) -> Self:
        """Percentiles over the frames with a face. Raises NoFaceError when there is none."""
        seen = tracked(track)

        def span(values: NDArray[np.floating]) -> Float:
            return np.asarray(np.percentile(values, PERCENTILES, axis=0), dtype=np.float64)

        return cls(
            expression=span(seen.expression),
            angles=span(head_angles(seen.rotation)),
            translation=span(seen.translation),
            gaze=span(seen.gaze.reshape(-1, 2)),
            sway=span(seen.sway),
        )


@dataclass(frozen=True, kw_only=True)
class RetargetedMotion:
    """`motion` for the avatar, and `warnings`: one sentence for each way in which the driver asked for too much."""

    motion: Motion
    warnings: tuple[str, ...] = field(default=())


def retarget(
    driving: FaceTrack,
    *,
    source_rest: Rest,
    coverage: Coverage,
    controls: Controls | None = None,
    driving_rest: Rest | None = None,
) -> RetargetedMotion:
    """Move `driving` from its own person to the avatar's.

    Every frame is computed alone, so a live caller that passes a fixed `driving_rest` gets the same result frame by
    frame. Without it the rest is estimated from `driving`; when the driver is the avatar's own subject it is
    `source_rest`, and motion inside the coverage then comes out unchanged. Raises NoFaceError when there is no face.
    """
    controls = controls or Controls()
    driving_rest = driving_rest or source_rest.of_driver(driving)
    warnings = Warnings(is_tracked=driving.is_tracked)
    motion = relative(driving, source_rest, driving_rest)
    motion = controlled(motion, source_rest, controls)
    motion = limited_pose(motion, coverage, warnings)
    if controls.gaze == "camera":  # after the pose is final, since the eyes turn against it
        motion = look_into_camera(motion, source_rest)
    motion = limited_face(motion, coverage, warnings)
    return RetargetedMotion(motion=motion, warnings=tuple(warnings.sentences))


def relative(driving: FaceTrack, source: Rest, driver: Rest) -> Motion:
    """The driver's way from their rest, taken from the source's rest."""
    drv, src = Rotation.from_rotvec(driver.rotation), Rotation.from_rotvec(source.rotation)
    turn = src * drv.inv() * Rotation.from_rotvec(driving.rotation)
    translation = source.translation + source.larger_than(driver) * (driving.translation - driver.translation)
    # In depth the ratio travels: it is what makes the head grow in the picture, whatever the focal length.
    translation[:, 2] = source.translation[2] * driving.translation[:, 2] / driver.translation[2]
    return Motion(
        time_s=driving.time_s,
        is_tracked=driving.is_tracked,
        rotation=turn.as_rotvec(),
        translation=translation,
        expression=relative_expression(driving.expression, source, driver),
        gaze=source.gaze + (driving.gaze - driver.gaze),
        sway=source.sway + (driving.sway - driver.sway),
    )


def relative_expression(expression: NDArray[np.float32], source: Rest, driver: Rest) -> NDArray[np.float32]:
    """Weights (T, 52) of the driver -> of the source: rest maps to rest, and full maps to full."""
    here, there = driver.expression.astype(np.float64), source.expression.astype(np.float64)
    up = np.maximum(1 - there, 0.05) / np.maximum(1 - here, 0.05)
    down = np.minimum(1.0, there / np.maximum(here, 1e-9))
    for i in (*BLINK, JAW):
        if min(driver.reach[i], source.reach[i]) > FULL:
            up[i] = max(source.reach[i] - there[i], 0.05) / max(driver.reach[i] - here[i], 0.05)
    up = np.clip(up, *SCALE_LIMITS)
    way = expression - here
    return np.clip(there + np.where(way > 0, up, down) * way, 0, 1).astype(np.float32)


def controlled(motion: Motion, rest: Rest, controls: Controls) -> Motion:
    """Apply the user's strengths."""
    strength = np.full(len(BLENDSHAPES), controls.expression_strength, dtype=np.float32)
    strength[list(BLINK)] = controls.blink
    strength[list(LOOKS)] = 1.0
    pose = controls.pose_strength
    if controls.mouth_only:
        pose = 0.0
        strength[[i for i in range(len(BLENDSHAPES)) if i not in MOUTH]] = 0.0
    expression = np.clip(rest.expression + strength * (motion.expression - rest.expression), 0, 1)
    origin = Rotation.from_rotvec(rest.rotation)
    turn = (origin.inv() * Rotation.from_rotvec(motion.rotation)).as_rotvec()
    translation = rest.translation + pose * (motion.translation - rest.translation)
    translation[:, 2] = rest.translation[2] * (motion.translation[:, 2] / rest.translation[2]) ** pose
    return replace(
        motion,
        expression=expression,
        rotation=(origin * Rotation.from_rotvec(pose * turn)).as_rotvec(),
        translation=translation,
        sway=rest.sway + np.float32(pose) * (motion.sway - rest.sway),
        gaze=np.broadcast_to(rest.gaze, motion.gaze.shape) if controls.mouth_only else motion.gaze,
    )


def look_into_camera(motion: Motion, rest: Rest) -> Motion:
    """Turn the eyes against the head, so that they keep looking where they look at rest: into the camera."""
    at_rest = camera_direction(rest.rotation[None], rest.translation[None])
    change = camera_direction(motion.rotation, motion.translation) - at_rest
    gaze = rest.gaze + change[:, None]
    looks = list(LOOKS)
    expression = motion.expression.copy()
    # The lids follow the eyes, and the eyeLook shapes carry the lids.
    expression[:, looks] = (
        rest.expression[looks] + (looks_from_gaze(gaze) - looks_from_gaze(rest.gaze[None]))[:, looks]
    )
    return replace(motion, gaze=gaze.astype(np.float32), expression=np.clip(expression, 0, 1))


def camera_direction(rotation: Float, translation: Float) -> Float:
    """Where the camera is, seen from the head: yaw and pitch (T, 2) in radians, in head space."""
    x, y, z = Rotation.from_rotvec(rotation).inv().apply(-translation).T
    return np.stack([np.arctan2(x, -z), np.arctan2(-y, np.hypot(x, z))], axis=-1)


def limited_pose(motion: Motion, coverage: Coverage, warnings: Warnings) -> Motion:
    """Bend head and shoulders back to what the recording covers."""
    angles = head_angles(motion.rotation)
    bent, low, high = bend(angles, coverage.angles, SMALLEST_MARGIN["angle"])
    for i, name in enumerate(("yaw", "pitch", "roll")):
        warnings.of_pose(
            name, "degrees", *(np.degrees(v[..., i]) for v in (angles, bent, low, high)), tolerance=0.5
        )
    is_bent = np.any(bent != angles, axis=1)
    translation, low, high = bend(motion.translation, coverage.translation, SMALLEST_MARGIN["length"])
    for i, name in enumerate(("way sideways", "way up and down", "distance")):
        values = (motion.translation, translation, low, high)
        warnings.of_pose(name, "cm", *(v[..., i] for v in values), tolerance=0.5)
    warnings.end_of_pose()
    return replace(
        motion,
        rotation=np.where(is_bent[:, None], head_rotation(bent), motion.rotation),
        translation=translation,
        sway=bend(motion.sway, coverage.sway, SMALLEST_MARGIN["sway"])[0].astype(np.float32),
    )


def limited_face(motion: Motion, coverage: Coverage, warnings: Warnings) -> Motion:
    """Bend expression and gaze back to what the recording covers."""
    expression, _, high = bend(motion.expression, coverage.expression, SMALLEST_MARGIN["expression"])
    warnings.of_expression(motion.expression, expression, high)
    gaze, _, _ = bend(motion.gaze, coverage.gaze, SMALLEST_MARGIN["angle"])
    return replace(
        motion, expression=np.clip(expression, 0, 1).astype(np.float32), gaze=gaze.astype(np.float32)
    )


def bend(values: NDArray[np.floating], span: Float, least_margin: float) -> tuple[Float, Float, Float]:
    """Saturate smoothly: unchanged inside `span` (2, ...), never beyond it by more than the margin.

    Returns the bent values and the lowest and highest value that can come out.
    """
    low, high = span
    margin = np.maximum(MARGIN * (high - low), least_margin)
    above = high + margin * np.tanh((values - high) / margin)
    below = low - margin * np.tanh((low - values) / margin)
    bent = np.where(values > high, above, np.where(values < low, below, values))
    return bent, low - margin, high + margin


class Warnings:
    """Collects one sentence for pose and expression each, if visibly limited; counts frames with a face only."""

    SHAPES = 3  # name at most so many blendshapes

    def __init__(self, *, is_tracked: NDArray[np.bool_]) -> None:
        self.sentences: list[str] = []
        self._poses: list[str] = []
        self._is_tracked = is_tracked
        if not is_tracked.all():
            share = 100 * np.mean(~is_tracked)
            self.sentences.append(
                f"the driver shows no face in {share:.0f} % of the frames: the avatar holds its last state there"
            )

    def of_pose(
        self, name: str, unit: str, asked: Float, given: Float, low: Float, high: Float, *, tolerance: float
    ) -> None:
        share = float(self._share(np.abs(asked - given) > tolerance))
        if share >= 0.01:
            # Whole numbers, and never '-0'.
            span = f"{round(float(low))}..{round(float(high))} {unit}"
            self._poses.append(f"{name} to {span} in {100 * share:.0f} %")

    def end_of_pose(self) -> None:
        """All that was collected of the pose becomes one sentence."""
        if self._poses:
            self.sentences.append(
                f"the head's pose was limited ({', '.join(self._poses)} of the frames): the recording shows no more; "
                "record a wider range, or lower the pose strength"
            )

    def of_expression(self, asked: NDArray[np.floating], given: Float, high: Float) -> None:
        shares = self._share(np.abs(asked - given) > 0.1)
        worst = [i for i in np.argsort(-shares, kind="stable") if shares[i] >= 0.01]
        if worst:
            named = ", ".join(
                f"{BLENDSHAPES[i]} to {high[i]:.2f} in {100 * shares[i]:.0f} %" for i in worst[: self.SHAPES]
            )
            more = f" and {len(worst) - self.SHAPES} more shapes" if len(worst) > self.SHAPES else ""
            self.sentences.append(
                f"expressions were limited ({named} of the frames{more}): the recording shows no more; record "
                "stronger expressions, or lower the expression strength"
            )

    def _share(self, is_limited: NDArray[np.bool_]) -> Float:
        """Of the frames with a face, per column (T, ...)."""
        count = max(1, np.count_nonzero(self._is_tracked))
        return np.asarray(is_limited[self._is_tracked].sum(axis=0) / count, dtype=np.float64)


def tracked(track: FaceTrack) -> FaceTrack:
    """The rows that show a face. Raises NoFaceError when there are none."""
    if not track.is_tracked.any():
        raise NoFaceError("no frame shows a face; give a video in which one face looks into the camera")
    return track.select(track.is_tracked)
