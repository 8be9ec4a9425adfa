"""The limits of the capture check, each with its reason. docs/capture-guide.md states the same numbers."""

from __future__ import annotations

from dataclasses import dataclass

from omokage.config import Config


@dataclass(frozen=True, kw_only=True)
class CaptureThresholds(Config):
    """Values outside these limits give advice; only the `refuse_*` ones make a recording hopeless.

    Shares are in [0, 1], angles in degrees, sizes in pixels of the recording.
    """

    # Person. Frames without the one face cannot be learned from; with nearly a third gone the rest is doubtful too.
    min_face_share: float = 0.98
    refuse_face_share: float = 0.70
    # A passer-by for a moment does no harm, but nobody else may be learned into the avatar.
    max_second_face_share: float = 0.02
    refuse_second_face_share: float = 0.10
    # A quarter of a face region of 256 px; below this no eye or tooth can be seen.
    refuse_face_width_px: float = 60.0
    # 200 px from chin to brow is about 256 px from chin to hair: the smallest avatar that looks sharp.
    min_face_height_px: float = 200.0
    # The same face seen by its eyes, which stay measurable with a beard or a low fringe.
    min_pupil_distance_px: float = 80.0
    # The portrait (head and shoulders) should fill half of the picture's height, but hair and shoulders must fit.
    min_picture_share: float = 0.25
    max_picture_share: float = 0.75
    max_outside_share: float = 0.05

    # Picture. Ten sharp clips measured 14 to 120; the same clips blurred by one pixel of 256 fell to 4 to 14.
    min_sharpness: float = 12.0
    # Room on both sides for the light to change; measured on the face, so a dark wall does not matter.
    min_luma: float = 60.0
    max_luma: float = 200.0
    # Black or white pixels hold no skin to learn.
    max_clipped_share: float = 0.02
    # Below this the face is flat grey: fog, a dirty lens, a veil of back light. Good clips have 19 and more.
    min_contrast: float = 15.0
    # One side of the face a third brighter than the other: the light turns with the head in the avatar.
    max_unevenness: float = 0.35

    # Movement of the face. An avatar cannot show what it has not seen; ranges are what a lively talk covers.
    min_yaw_range_deg: float = 30.0
    min_pitch_range_deg: float = 15.0
    min_roll_range_deg: float = 10.0
    # Beyond this half of the face is hidden and the landmarks guess.
    max_turn_deg: float = 40.0
    # In eye spans (about 9 cm): 0.20 is a clear 'ah', and 0.10 lies between 'oo' and a smile.
    min_mouth_opening: float = 0.20
    min_mouth_width_range: float = 0.10
    # Of 25 cells; connected speech fills ten and more, a face at rest two or three.
    min_mouth_shapes: int = 8
    min_blinks: int = 3
    min_gaze_yaw_range_deg: float = 20.0
    min_gaze_pitch_range_deg: float = 8.0
    # From these frames the avatar's face at rest is taken.
    min_neutral_s: float = 0.5

    # Stillness. The avatar has one still background; five pixels of 512 already blur it.
    max_camera_travel: float = 0.01
    max_background_change: float = 0.03
    max_cuts: int = 0  # more are refused: hair, clothes and light differ between takes

    # File. Film's rate, which recorders write as 23.976; a short clip shows too few shapes.
    min_frame_rate: float = 23.9
    max_repeated_share: float = 0.05
    min_resolution_px: int = 512
    min_usable_s: float = 60.0
    refuse_usable_s: float = 2.0

    # Sound (never lowers the verdict: only a speaking avatar needs it). Usual levels of speech recording.
    min_sound_dbfs: float = -35.0
    max_sound_dbfs: float = -9.0
    min_above_noise_db: float = 20.0
    max_sound_clipped_share: float = 0.001
    min_sample_rate: int = 16000
