"""One photo becomes a puppet: a textured portrait mesh over a filled background, which can be drawn in any pose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from omokage.avatar.conditioning import AvatarState, Conditioner
from omokage.avatar.config import preset_for
from omokage.avatar.samples import avatar_state, cut_out
from omokage.avatar.sheet import Crop, Pose, Sheet
from omokage.avatar.texture import Sample, UInt8, explicit_portrait, fill_holes
from omokage.errors import InputError, NoFaceError
from omokage.geometry.camera import head_angles, head_rotation, rotation_matrix
from omokage.geometry.rasterize import interpolate, rasterize
from omokage.geometry.rings import smoothstep
from omokage.media.clip import Frame, Image
from omokage.render.face_paint import Lid, paint_face, with_teeth_of
from omokage.render.performance import FARTHEST, Performance
from omokage.tracking.face_track import BLENDSHAPES
from omokage.tracking.fitting import with_eye_look
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.tracking.matting import MatteBackend, MediaPipeMatte
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.tracker import track_clip

Float = NDArray[np.float64]

MIN_FACE_PX = 64
SECOND_FACE_SHARE = 0.3  # of the largest face's width: smaller faces belong to the background
SIDE_IN_FACE_HEIGHTS = 2.7
CLOSED_EYES = 0.7
# Head turns about this point of the neck (head space, cm) instead of the middle of the head.
NECK_PIVOT_CM = np.array([0.0, 8.0, 3.0])
# Farthest that the face may look away from the camera (yaw, pitch, roll), and what is left to a photo beyond it.
POSE_LIMIT = np.radians([28.0, 24.0, 16.0])
POSE_LEAST = np.radians([6.0, 4.0, 4.0])
OVERCLOSED = 1.06  # a blink that leaves no slit between the lids
BLINK = tuple(BLENDSHAPES.index(f"eyeBlink{side}") for side in ("Right", "Left"))  # picture's left eye first
LID_OPENERS = tuple(
    tuple(BLENDSHAPES.index(f"{name}{side}") for name in ("eyeWide", "eyeSquint", "eyeLookUp", "eyeLookDown"))
    for side in ("Right", "Left")
)
MOUTH = np.array([name.startswith(("mouth", "jaw")) for name in BLENDSHAPES])


@dataclass(frozen=True)
class Puppet:
    """A photo that can be drawn in any pose. `plate` uint8 (S, S, 3); `rest`: what the face does in the photo."""

    conditioner: Conditioner
    atlas: UInt8
    lids: tuple[Lid, Lid]
    plate: UInt8
    rest: AvatarState

    @classmethod
    def of(
        cls,
        photo: Image,
        *,
        size: int,
        backend: LandmarkBackend | None = None,
        matting: MatteBackend | None = None,
    ) -> Self:
        """Build it from a photo uint8 (H, W, 3), cut to a square around the head.

        Raises NoFaceError without a face, InputError for several, a tiny one, or closed eyes.
        """
        backend = backend or MediaPipeLandmarks(max_faces=3, is_stream=False)
        image = cut_out(photo, head_square(photo, backend), size)
        config = replace(preset_for(size), texture_size=size * 3 // 2)
        track = track_clip([Frame(0, 0.0, image)], backend=backend, smooth=False)
        rest = avatar_state(track, 0)
        if rest.expression[list(BLINK)].min() > CLOSED_EYES:
            raise InputError("the eyes are closed in this photo; use one with open eyes")
        model, subject, camera = MorphableModel.load(), track.subject, track.camera
        matte = (matting or MediaPipeMatte()).matte(image)
        alpha = decided(matte)
        person = person_only(image, _eroded(alpha > 0.95, 5))
        sample = Sample(person, np.round(alpha * 255).astype(np.uint8), rest)
        subject = with_teeth_of(model, subject, sample, camera)
        crop = Crop(0.0, 0.0, float(size))
        sheet = Sheet.build(model, subject, rest=rest.pose, camera=camera, crop=crop)
        conditioner = Conditioner(model, subject, sheet, crop, config)
        face = paint_face(conditioner, sample, _eroded(matte > 0.95, 3))
        return cls(conditioner, face.atlas, face.lids, background(image, alpha), rest)

    def states(self, performance: Performance) -> list[AvatarState]:
        """The performance as this person does it: relative to the photo's own pose, expression and look."""
        return [self._state(performance, row) for row in range(len(performance))]

    def draw(self, state: AvatarState) -> UInt8:
        """The picture of a state, uint8 (S, S, 3)."""
        atlas = self.atlas.copy()
        for eye, lid in enumerate(self.lids):
            share = np.float32(smoothstep(0.15, 0.6, state.expression[BLINK[eye]]))
            mixed = lid.opened + share * (lid.closed - lid.opened)
            atlas[lid.rows, lid.columns, :3] = (mixed + 0.5).astype(np.uint8)
        warp = self.conditioner.draw(state).warp
        picture = explicit_portrait(atlas, warp, self.plate)
        return self._refined(picture, atlas, state)

    def _refined(self, picture: UInt8, atlas: UInt8, state: AvatarState) -> UInt8:
        """The face drawn again at twice the resolution: clean edges of lids, lips and cheeks."""
        size = self.conditioner.config.size
        points, _ = self.conditioner.project(state)
        face = points[: len(self.conditioner.model.neutral), :2]
        margin = size // 32
        left, top = np.clip(np.floor(face.min(axis=0)).astype(int) - margin, 0, size - 2)
        right, bottom = np.clip(np.ceil(face.max(axis=0)).astype(int) + margin, 2, size)
        fine = points.copy()
        fine[:, :2] = (points[:, :2] - (left, top)) * 2
        raster = rasterize(fine, self.conditioner.triangles, 2 * (bottom - top), 2 * (right - left))
        warp = interpolate(raster, self.conditioner.triangles, self.conditioner.atlas_uv)
        warp[~raster.is_covered] = self.conditioner.atlas_uv[-1]
        plate = cv2.resize(
            self.plate[top:bottom, left:right], None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR
        )
        drawn = explicit_portrait(atlas, warp.transpose(2, 0, 1), np.asarray(plate, dtype=np.uint8))
        picture[top:bottom, left:right] = cv2.resize(
            drawn, (int(right - left), int(bottom - top)), interpolation=cv2.INTER_AREA
        )
        return picture

    def _state(self, performance: Performance, row: int) -> AvatarState:
        rest = self.rest
        angles = _within_limits(performance.angles[row], head_angles(rest.pose.rotation))
        rotation = head_rotation(head_angles(rest.pose.rotation) + angles)
        moved = (rotation_matrix(rest.pose.rotation) - rotation_matrix(rotation)) @ NECK_PIVOT_CM
        pose = Pose(
            rotation,
            rest.pose.translation + performance.shift[row] + moved,
            rest.pose.sway + performance.sway[row],
        )
        gaze = np.clip(rest.gaze + performance.gaze[row], -0.5, 0.5)
        kept = np.where(MOUTH, performance.keep[row], 1.0)
        expression = np.clip(kept * rest.expression + performance.expression[row], 0.0, 1.0)
        expression = with_eye_look(expression, gaze)
        for blink, openers in zip(BLINK, LID_OPENERS, strict=True):
            closed = expression[blink]
            expression[list(openers)] *= 1 - closed
            expression[blink] = closed * OVERCLOSED
        return AvatarState(pose, expression, gaze)


def head_square(photo: Image, backend: LandmarkBackend) -> Crop:
    """The square around the head of the only person, as large as needed for the shoulders, where the photo has it."""
    faces = backend.detect(photo)
    backend.reset()
    if not faces:
        raise NoFaceError(
            "no face was found in this photo; use one that shows a face from the front, well lit and not covered"
        )
    boxes = [np.stack([f.points[:468, :2].min(axis=0), f.points[:468, :2].max(axis=0)]) for f in faces]
    widths = np.array([float(np.ptp(box[:, 0])) for box in boxes])
    count = int((widths > SECOND_FACE_SHARE * widths.max()).sum())
    if count > 1:
        raise InputError(f"this photo shows {count} faces and one is needed; crop it to one person")
    if widths.max() < MIN_FACE_PX:
        raise InputError(
            f"the face in this photo is only {widths.max():.0f} pixels wide and at least {MIN_FACE_PX} are needed; "
            "use a larger picture"
        )
    (left, top), (right, bottom) = boxes[int(widths.argmax())]
    height, width = photo.shape[:2]
    side = min(float(height), float(width), SIDE_IN_FACE_HEIGHTS * float(bottom - top))
    x = np.clip((left + right - side) / 2, 0, width - side)
    y = np.clip((top + bottom - side) / 2 + 0.08 * side, 0, height - side)
    return Crop(float(x), float(y), side)


def decided(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matte with its wide unsure areas given to the person: moving along shows less than half fading away."""
    return np.asarray(smoothstep(0.15, 0.6, alpha.astype(np.float64)), dtype=np.float32)


def person_only(image: Image, is_sure: NDArray[np.bool_]) -> UInt8:
    """The photo (S, S, 3) with the person's colors going on beyond the outline, free of what is behind."""
    if not is_sure.any():
        return image
    inside = cv2.GaussianBlur(is_sure.astype(np.float32), (0, 0), 1.0)[..., None]
    inside = np.clip(2 * inside - 1, 0, 1)
    mixed = image * inside + fill_holes(image, is_sure) * (1 - inside)
    return np.asarray(mixed + 0.5).astype(np.uint8)


def background(image: Image, alpha: NDArray[np.float32]) -> UInt8:
    """The photo without the person, uint8 (S, S, 3): filled smoothly, from a little away of hair and clothes."""
    reach = max(3, len(image) // 64) | 1
    person = cv2.dilate((alpha > 0.02).astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    return fill_holes(image, ~person) if not person.all() else image


def _eroded(mask: NDArray[np.bool_], window: int) -> NDArray[np.bool_]:
    return np.asarray(cv2.erode(mask.astype(np.uint8), np.ones((window, window), np.uint8)) > 0)


def _within_limits(angles: Float, rest: Float) -> Float:
    """Scripted angles (3,), scaled so that with the photo's own (3,) the face stays toward the camera."""
    toward = np.sign(angles) * rest
    # Turning back from a half profile shows the cheek that the photo does not.
    unseen = np.array([0.5, 0.0, 0.0]) * np.minimum(toward, 0)
    room = np.clip(np.minimum(POSE_LIMIT - toward, FARTHEST + unseen), POSE_LEAST, FARTHEST)
    return np.asarray(angles * room / FARTHEST)
