"""Records of the capture check: what was measured on a recording, and the frames chosen to show."""

from __future__ import annotations

from dataclasses import dataclass

from omokage.media.clip import ClipInfo, Image


@dataclass(frozen=True, slots=True)
class Span:
    """The usual reach of a signal over the sampled frames, without the rare extremes (2 % on either side)."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class FaceMeasurements:
    """Numbers of the main face over the sampled frames that show one; medians unless said otherwise.

    Sizes are in pixels of the recording: `height_px` chin to brow, `width_px` cheek to cheek, `pupil_distance_px`.
    `picture_share`: height of the face's box over that of the picture; `outside_share`: share of frames in which the
    box of the whole head leaves the picture.
    `sharpness`: 1000 x variance of the Laplacian / variance of the luma, on the face's box scaled to 256 px height.
    `luma`, `contrast`: mean and standard deviation of the face's luma (0..255); `clipped_share`: share of its pixels
    that are black or white; `unevenness`: difference between its left and right half over the mean.
    Angles are in degrees: `yaw_deg` > 0 turns to the right of the picture, `pitch_deg` > 0 looks up, `roll_deg` > 0
    tilts clockwise; gaze is relative to the head.
    `mouth_opening`, `mouth_width`: in eye spans (distance between the outer eye corners, about 9 cm).
    `mouth_shapes`: occupied cells of a 5 x 5 histogram of opening and width. `blinks`: number of closings seen.
    `neutral_s`: seconds facing the camera with open eyes and closed mouth.
    """

    height_px: float
    width_px: float
    pupil_distance_px: float
    picture_share: float
    outside_share: float
    sharpness: float
    luma: float
    contrast: float
    clipped_share: float
    unevenness: float
    yaw_deg: Span
    pitch_deg: Span
    roll_deg: Span
    mouth_opening: Span
    mouth_width: Span
    mouth_shapes: int
    blinks: int
    gaze_yaw_deg: Span
    gaze_pitch_deg: Span
    neutral_s: float


@dataclass(frozen=True, kw_only=True)
class BackgroundMeasurements:
    """What moves behind the person.

    `camera_travel`: how far the still background wanders in the picture, over the picture's width; None where the
    background is too plain to tell. `changed_share`: share of the background that looks different from the first frame
    once the camera's own movement is undone (95th percentile over frames).
    """

    camera_travel: float | None
    changed_share: float


@dataclass(frozen=True, kw_only=True)
class SoundMeasurements:
    """`level_dbfs`: RMS of the loud parts; -inf for a silent track. `above_noise_db`: how far they stand above the
    quietest tenth of the track. `clipped_share`: share of samples at full scale."""

    level_dbfs: float
    above_noise_db: float
    clipped_share: float
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class CaptureMeasurements:
    """All that the capture check knows about a recording.

    Shares are of the sampled frames, in [0, 1]. `usable_s`: seconds with exactly one face. `repeated_share`: share of
    neighbouring frames that are the same picture. `face` is None when no frame shows a face, `background` when too
    little of it is visible, `sound` when there is no sound track.
    """

    clip: ClipInfo
    face_share: float
    second_face_share: float
    usable_s: float
    cut_times_s: tuple[float, ...]
    repeated_share: float
    face: FaceMeasurements | None
    background: BackgroundMeasurements | None
    sound: SoundMeasurements | None


@dataclass(frozen=True, slots=True)
class CaptureSample:
    """A frame chosen for the contact sheet: uint8 RGB, at most 320 px on its longer side."""

    caption: str
    time_s: float
    image: Image
