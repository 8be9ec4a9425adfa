"""Is this picture a portrait that can be animated, and which part of it is the face. MAIN: `read_portrait`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.capture.face_reading import angles_deg, head_axes
from omokage.errors import InputError, NoFaceError
from omokage.media.clip import Image
from omokage.media.image import read_image
from omokage.talking.conditions.portrait import FaceRectangle, face_rectangle
from omokage.talking.prepare import Portrait
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks, count_faces

MIN_FACE_PX = 64
# Of the largest face's width: smaller faces belong to the background.
SECOND_FACE_SHARE = 0.3
# Beyond this half of the face is hidden and the network would have to invent it.
MAX_YAW_DEG = 45.0
MAX_FACES = 4
ANY_FACE = "if it is painted or drawn, add --any-face"


@dataclass(frozen=True)
class PortraitReading:
    """The portrait, and sentences on what about it may spoil the video."""

    portrait: Portrait
    notes: tuple[str, ...]

    def shown_width(self, height: int, width: int) -> int:
        """Pixels a row of the video, whose network makes `height` x `width`: of a square portrait without the bars."""
        rows, columns = self.portrait.picture.shape[:2]
        return height if rows == columns else width


def read_portrait(
    path: Path,
    height: int,
    width: int,
    *,
    any_face: bool = False,
    backend: LandmarkBackend | None = None,
) -> PortraitReading:
    """Read a picture, find its face and cut it to what a video of `height` x `width` pixels can show.

    any_face: take whatever else would be refused, also pictures without a face that the landmark network knows; then
    the picture, or the upper square of one that is higher than wide, is the reference. Raises MediaError for what is no
    picture; NoFaceError without a face; InputError for several faces, a tiny one, or one in profile.
    """
    picture = read_image(path)
    faces = (backend or MediaPipeLandmarks(max_faces=MAX_FACES, is_stream=False)).detect(picture)
    points = [np.asarray(face.points, dtype=np.float32) for face in faces]
    points.sort(key=_width, reverse=True)
    complaint = _complaint(picture, points)
    if complaint is not None and not any_face:
        kind = InputError if points else NoFaceError
        raise kind(f"{path}: {complaint}")
    notes = [] if complaint is None else [f"{path.name}: {complaint.split(';')[0]}; taken all the same"]
    if not points:
        rows, columns = picture.shape[:2]
        if rows > columns:  # a portrait has its head at the top, and the video's own cut is around the middle
            picture, shown = (
                np.ascontiguousarray(picture[:columns]),
                f"the upper {columns}x{columns} pixels are",
            )
        else:
            shown = "the whole picture is"
        whole = Portrait(picture, FaceRectangle(0, min(rows, columns), 0, columns), None)
        return PortraitReading(whole, (*notes, f"{shown} the reference, since no face was found in it"))
    portrait = Portrait(picture, face_rectangle(points[0], *picture.shape[:2]), points[0])
    framed = frame(portrait, height, width)
    if framed.picture.shape != picture.shape:
        rows, columns = framed.picture.shape[:2]
        notes.append(
            f"the video shows {columns}x{rows} pixels around the face of the {picture.shape[1]}x{picture.shape[0]} of "
            f"{path.name}; a square picture, or one of {width}:{height}, is shown whole"
        )
    return PortraitReading(framed, tuple(notes))


def frame(portrait: Portrait, height: int, width: int) -> Portrait:
    """Cut a picture beforehand to what a video of `height` x `width` pixels shows of it, see `shown_part`."""
    rows, columns = portrait.picture.shape[:2]
    part = shown_part(rows, columns, portrait.face, height, width)
    if part == FaceRectangle(0, rows, 0, columns):
        return portrait
    landmarks = portrait.landmarks
    if landmarks is not None:
        landmarks = landmarks - np.array([part.left, part.top, 0], dtype=np.float32)
    picture = np.ascontiguousarray(portrait.picture[part.top : part.bottom, part.left : part.right])
    return Portrait(picture, within(portrait.face, part), landmarks)


def shown_part(rows: int, columns: int, face: FaceRectangle, height: int, width: int) -> FaceRectangle:
    """The part of a picture of `rows` x `columns` to cut out where the video's own cut, around the middle, would lose
    some of the face; else the whole.

    A square one is shown whole. One that is higher than wide becomes a square: cut to a landscape it would lose half of
    itself. A wider one keeps all of its shorter side.
    """
    whole = FaceRectangle(0, rows, 0, columns)
    if rows == columns:
        return whole
    if rows > columns:
        target = (columns, columns)
    elif columns * height > rows * width:
        target = (rows, rows * width // height)
    else:
        target = (columns * height // width, columns)
    top, left = (rows - target[0]) // 2, (columns - target[1]) // 2
    is_inside = left <= face.left and face.right <= left + target[1]
    if rows < columns and is_inside and top <= face.top and face.bottom <= top + target[0]:
        return whole
    top = _shifted(face.top, face.bottom, target[0], rows)
    left = _shifted(face.left, face.right, target[1], columns)
    return FaceRectangle(top, top + target[0], left, left + target[1])


def within(face: FaceRectangle, part: FaceRectangle) -> FaceRectangle:
    """A rectangle of a picture as one of a part of it."""
    rows, columns = part.bottom - part.top, part.right - part.left
    return FaceRectangle(
        max(face.top - part.top, 0),
        min(face.bottom - part.top, rows),
        max(face.left - part.left, 0),
        min(face.right - part.left, columns),
    )


def _shifted(start: int, stop: int, length: int, limit: int) -> int:
    """Where a cut of `length` begins that has its middle at that of start to stop, inside the picture."""
    return min(max((start + stop - length) // 2, 0), limit - length)


def _complaint(picture: Image, faces: list[NDArray[np.float32]]) -> str | None:
    """Why this is no portrait, with advice; None for a good one. `faces`: the largest first."""
    if not faces:
        if count_faces(picture):
            return (
                "the face in this picture is too small or turned too far away to be read; crop the picture to head and "
                "shoulders, the face to the camera"
            )
        return (
            "no face was found in this picture; use one that shows a face from the front, well lit and not covered, or "
            + ANY_FACE
        )
    widths = [_width(points) for points in faces]
    count = sum(width > SECOND_FACE_SHARE * widths[0] for width in widths)
    if count > 1:
        return f"this picture shows {count} faces and one is needed; crop it to one person"
    if widths[0] < MIN_FACE_PX:
        return (
            f"the face in this picture is only {widths[0]:.0f} pixels wide and at least {MIN_FACE_PX} are needed; use "
            "a larger picture"
        )
    yaw, _, _ = angles_deg(head_axes(faces[0].astype(np.float64)))
    if abs(yaw) > MAX_YAW_DEG:
        return (
            f"the face in this picture is turned {abs(yaw):.0f} degrees to the side and at most {MAX_YAW_DEG:.0f} can "
            "be animated; use one that looks toward the camera"
        )
    return None


def _width(points: NDArray[np.float32]) -> float:
    return float(np.ptp(points[:468, 0]))
