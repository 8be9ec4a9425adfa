"""The blendshape table (CSV) of phone capture apps such as Live Link Face <-> `FaceTrack`.

One row per frame: `Timecode` (HH:MM:SS:FF.fff or seconds), `BlendshapeCount` (0: no face), the 52 ARKit weights and
nine angles. Names are matched without regard to case, and every column but `Timecode` may be missing.

Angles are radians (degrees are recognized by their size) with the signs of `geometry.camera.yaw_pitch_roll`. Apps
differ in their signs: where a file's eye angles contradict its `eyeLook...` weights, whose meaning is fixed, yaw or
pitch of eyes and head are turned round together.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omokage.errors import InputError
from omokage.files import read_given_text
from omokage.geometry.camera import Camera, head_angles, head_rotation
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack, Subject
from omokage.tracking.sway import ZONE_COUNT

Float = NDArray[np.float64]

HEAD = ("HeadYaw", "HeadPitch", "HeadRoll")
EYES = (
    "RightEyeYaw",
    "RightEyePitch",
    "LeftEyeYaw",
    "LeftEyePitch",
)  # the picture's left eye is the subject's right
ANGLES = (*HEAD, "LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")
USUAL_RATES = (24, 25, 30, 50, 60)
DEFAULT_RATE = 60  # of Live Link Face
DISTANCE_CM = 60.0  # the table holds no position: the head stays here
LOOK_FULL = math.radians(30)  # the eye's turn at weight 1 of an eyeLook shape

# eyeLook shape -> eye (0: the picture's left), axis (0: yaw, 1: pitch), sign.
LOOKS = {
    BLENDSHAPES.index(f"eyeLook{way}{side}"): (eye, axis, sign)
    for side, eye, out in (("Left", 1, 1), ("Right", 0, -1))
    for way, axis, sign in (("Out", 0, out), ("In", 0, -out), ("Up", 1, 1), ("Down", 1, -1))
}


@dataclass(frozen=True)
class _Table:
    """Columns by lower-case name, and the line of the file that each row came from."""

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]

    def columns(self, names: Sequence[str]) -> Float:
        """Numbers (T, len(names)): zero where there is no such column, NaN where a cell is empty."""
        return np.stack([self._column(name) for name in names], axis=1)

    def _column(self, name: str) -> Float:
        if name.lower() not in self.names:
            return np.zeros(len(self.rows))
        place = self.names.index(name.lower())
        return np.array(
            [self._number(row[place], name, line) for row, line in zip(self.rows, self.lines, strict=True)]
        )

    def _number(self, cell: str, name: str, line: int) -> float:
        try:
            number = float(cell) if cell.strip() else math.nan
        except ValueError:
            number = math.inf
        if math.isinf(number):
            raise InputError(
                f"{self.path}, line {line}: '{cell}' in column {name} is no number; export the take again"
            )
        return number


def read_arkit_csv(path: Path, *, frame_rate: float | None = None) -> FaceTrack:
    """Read a blendshape table as a face track.

    `frame_rate` is what the app counted frames at; by default the usual rate above the highest frame number is
    taken. The table has neither pictures nor positions: `landmarks` and `sway` are zero, the head stays at a fixed
    distance, `subject` has no vertices, and rows without a face repeat the last state. Raises InputError.
    """
    table = _read_table(path)
    time_s, rate = _times(table, frame_rate)
    length = len(time_s)
    if not any(name.lower() in table.names for name in BLENDSHAPES):
        raise InputError(
            f"{path} names none of the 52 ARKit blendshapes in its first line; give a capture app's CSV"
        )
    expression, head = table.columns(BLENDSHAPES), table.columns(HEAD)
    looks = gaze_from_looks(expression)
    has_eyes = all(name.lower() in table.names for name in EYES)
    eyes = table.columns(EYES).reshape(-1, 2, 2)
    is_tracked: NDArray[np.bool_] = np.isfinite(
        np.concatenate([expression, head, eyes.reshape(-1, 4)], 1)
    ).all(axis=1)
    if "blendshapecount" in table.names:
        is_tracked &= table.columns(["BlendshapeCount"])[:, 0] > 0
    if not is_tracked.any():
        raise InputError(
            f"{path} has no row with a face (BlendshapeCount is 0 or cells are empty); record it again"
        )
    last = np.maximum.accumulate(np.where(is_tracked, np.arange(length), int(np.argmax(is_tracked))))
    head, eyes = _radians_and_signs(head[last], eyes[last], looks[last])
    gaze = eyes if has_eyes else looks[last]
    return bare_track(
        time_s,
        rotation=head_rotation(head),
        expression=expression[last],
        gaze=gaze,
        is_tracked=is_tracked,
        frame_index=np.round(time_s * rate).astype(np.int64),
    )


def bare_track(
    time_s: Float,
    *,
    rotation: Float,
    expression: NDArray[np.floating],
    gaze: NDArray[np.floating],
    is_tracked: NDArray[np.bool_] | None = None,
    frame_index: NDArray[np.int64] | None = None,
    shift: Float | None = None,
    sway: NDArray[np.floating] | None = None,
) -> FaceTrack:
    """A motion (T rows, as in `FaceTrack`) that was seen in no picture: there are no landmarks, and `subject` has no
    vertices. shift: (T, 3) cm from a head at `DISTANCE_CM`, by default none."""
    length = len(time_s)
    seen = np.ones(length, dtype=bool) if is_tracked is None else is_tracked
    place = np.tile([0.0, 0.0, DISTANCE_CM], (length, 1))
    return FaceTrack(
        frame_index=np.arange(length) if frame_index is None else frame_index,
        time_s=time_s,
        is_tracked=seen,
        confidence=np.asarray(seen, dtype=np.float32),
        rotation=rotation,
        translation=place if shift is None else place + shift,
        expression=np.clip(expression, 0, 1).astype(np.float32),
        gaze=gaze.astype(np.float32),
        sway=np.zeros((length, ZONE_COUNT, 2), np.float32) if sway is None else sway.astype(np.float32),
        landmarks=np.zeros((length, 478, 3), np.float32),
        camera=Camera.for_image(512, 512),
        subject=Subject(
            neutral=np.zeros((0, 3), np.float32),
            blendshapes=np.zeros((len(BLENDSHAPES), 0, 3), np.float32),
            identity=np.zeros(0, np.float32),
        ),
    )


def write_arkit_csv(track: FaceTrack, *, frame_rate: float = DEFAULT_RATE) -> str:
    """A track as the text of such a table; `frame_rate` is what the time code counts frames at."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    titles = [name[0].upper() + name[1:] for name in BLENDSHAPES]
    writer.writerow(["Timecode", "BlendshapeCount", *titles, *ANGLES])
    head = head_angles(track.head_rotation)
    right, left = track.gaze[:, 0], track.gaze[:, 1]
    zero = np.zeros((len(track), 1))
    values = np.concatenate([track.expression, head, left, zero, right, zero], axis=1)
    for time_s, is_tracked, row in zip(track.time_s, track.is_tracked, values, strict=True):
        count = values.shape[1] if is_tracked else 0
        writer.writerow([_timecode(time_s, frame_rate), count, *(f"{value:.8f}" for value in row)])
    return text.getvalue()


def gaze_from_looks(expression: NDArray[np.floating]) -> Float:
    """Weights (T, 52) -> yaw and pitch (T, 2, 2) in radians of the picture's left and right eye."""
    gaze = np.zeros((len(expression), 2, 2))
    for shape, (eye, axis, sign) in LOOKS.items():
        gaze[:, eye, axis] += sign * LOOK_FULL * expression[:, shape]
    return gaze


def looks_from_gaze(gaze: NDArray[np.floating]) -> Float:
    """Yaw and pitch (T, 2, 2) in radians -> weights (T, 52), all zero but the eyeLook shapes."""
    weights = np.zeros((len(gaze), len(BLENDSHAPES)))
    for shape, (eye, axis, sign) in LOOKS.items():
        weights[:, shape] = np.clip(sign * gaze[:, eye, axis] / LOOK_FULL, 0, 1)
    return weights


def _read_table(path: Path) -> _Table:
    try:
        text = read_given_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); give a capture app's CSV") from error
    reader = csv.reader(io.StringIO(text))
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if "timecode" not in names:
            raise InputError(f"{path} has no column 'Timecode' in its first line; give a capture app's CSV")
        rows, lines = [], []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            # A row without a face may end after its count.
            if len(row) > len(names) or len(row) < 2:
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} cells where the first line names {len(names)}; "
                    "export the take again"
                )
            rows.append(row + [""] * (len(names) - len(row)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; export the take again") from error
    if not rows:
        raise InputError(f"{path} has a first line but no frames; record the take again")
    return _Table(path=path, names=names, rows=rows, lines=lines)


def _times(table: _Table, frame_rate: float | None) -> tuple[Float, float]:
    """Seconds from the first row, and the frame rate."""
    place = table.names.index("timecode")
    codes = [
        _parse_timecode(row[place], table.path, line)
        for row, line in zip(table.rows, table.lines, strict=True)
    ]
    seconds, frames = np.array(codes).T
    highest = frames.max()
    if frame_rate is None:
        # Frame numbers only tell the rate once they have run through a whole second.
        fits = [rate for rate in USUAL_RATES if rate > highest]
        frame_rate = fits[0] if fits and seconds[-1] - seconds[0] >= 2 else DEFAULT_RATE
    if highest >= frame_rate:
        line = table.lines[int(np.argmax(frames >= frame_rate))]
        raise InputError(
            f"{table.path}, line {line}: frame {highest:g} of a second does not fit {frame_rate:g} frames a second; "
            "give the rate at which the app recorded"
        )
    time_s = seconds + frames / frame_rate
    steps = np.diff(time_s)
    steps[steps < -43200] += 86400  # past midnight
    if np.any(steps <= 0):
        line = table.lines[int(np.argmax(steps <= 0)) + 1]
        raise InputError(
            f"{table.path}, line {line}: the time code does not go forward; export the take again"
        )
    return np.concatenate([[0.0], np.cumsum(steps)]), float(frame_rate)


def _parse_timecode(code: str, path: Path, line: int) -> tuple[float, float]:
    """HH:MM:SS:FF.fff -> whole seconds and frames; plain seconds -> seconds and 0."""
    try:
        parts = [float(part) for part in code.strip().replace(";", ":").split(":")]
        if len(parts) == 1 and math.isfinite(parts[0]):
            return parts[0], 0.0
        hours, minutes, seconds, frames = parts
        if hours >= 0 and 0 <= minutes < 60 and 0 <= seconds < 60 and 0 <= frames < 1000:
            return hours * 3600 + minutes * 60 + seconds, frames
    except ValueError:
        pass
    raise InputError(f"{path}, line {line}: '{code}' is no time code HH:MM:SS:FF; export the take again")


def _timecode(time_s: float, frame_rate: float) -> str:
    # Rounded first, so that no frame number rounds up to the frame rate itself.
    seconds, frames = divmod(round(time_s * frame_rate, 6), frame_rate)
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}:{frames:09.6f}"


def _radians_and_signs(head: Float, eyes: Float, looks: Float) -> tuple[Float, Float]:
    """Degrees -> radians, and the signs that agree with the eyeLook shapes."""
    if max(np.abs(head).max(), np.abs(eyes).max()) > math.pi:
        head, eyes = np.radians(head), np.radians(eyes)
    for axis in (0, 1):
        seen, meant = eyes[:, :, axis].ravel(), looks[:, :, axis].ravel()
        # Far from noise: a clear and mostly opposite movement.
        if min(seen.std(), meant.std()) > 0.01 and np.corrcoef(seen, meant)[0, 1] < -0.5:
            head[:, axis] *= -1
            eyes[:, :, axis] *= -1
    return head, eyes
