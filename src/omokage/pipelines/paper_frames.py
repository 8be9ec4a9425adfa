"""Frames for the paper's networks: of a recording that our tracker followed, or of a folder that the official
preprocessing made. MAIN: `prepare_recording`, `prepare_folder`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.paper.drawing import MeshDrawing, paper_crop
from omokage.avatar.paper.frames import FrameRecord, FrameStore, FrameWriter, alpha_of_cells, crop_side
from omokage.avatar.paper.prepared_folder import PreparedFolder
from omokage.avatar.samples import avatar_state, cut_out
from omokage.avatar.sheet import Crop
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.media.clip import Frame, Image
from omokage.media.decode import read_frames
from omokage.pipelines.recording import EVALUATED_FRAMES, MIN_TRAINING_FRAMES, Recording
from omokage.tracking.matting import MatteBackend, MediaPipeMatte

HELD_OUT_SHARE = 0.2
LEAST_FRAMES = MIN_TRAINING_FRAMES * 5 // 4
# Frames are tracked at 1920 pixels and cut out at what the recording has, up to this.
MAX_CUT_SIDE_PX = 4096
STAGE = "preparing frames"


def mesh_drawing(recording: Recording, size: int) -> MeshDrawing:
    """How the recording's person is drawn for pictures of `size` pixels."""
    track = recording.track
    seen = track.select(recording.split.train)
    return MeshDrawing(track.subject, track.camera, paper_crop(seen), size)


def prepare_recording(
    recording: Recording,
    drawing: MeshDrawing,
    folder: Path,
    *,
    on_progress: ProgressCallback = ignore_progress,
) -> FrameStore:
    """Cut out, matte and draw the frames of a tracked recording, the held-out ones last; a stopped run goes on.

    Raises MediaError, OutputError.
    """
    if FrameStore.is_finished(folder):
        return FrameStore.open(folder)
    split, track = recording.split, recording.track
    wanted = {int(track.frame_index[row]): int(row) for row in (*split.train, *split.held_out)}
    writer, matting, seen = FrameWriter(folder, drawing.size), MediaPipeMatte(), 0
    for frame in read_frames(recording.path, max_side=MAX_CUT_SIDE_PX):
        row = wanted.get(frame.index)
        if row is None:
            continue
        seen += 1
        if seen > writer.done:
            writer.add(prepare_frame(frame, drawing, avatar_state(track, row), matting))
            on_progress(Progress(STAGE, seen, len(wanted)))
        if seen == len(wanted):
            break
    return writer.finish(len(split.train), len(split.held_out))


def prepare_folder(
    prepared: PreparedFolder,
    folder: Path,
    *,
    cap: int | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> FrameStore:
    """Read the pictures of a prepared folder once; the last fifth of the frames is held out. A stopped run goes on.

    cap: frames that are used at most, chosen as of a recording (`split_tail`). Raises InputError for too few frames or
    one of another size, MediaError, OutputError.
    """
    if FrameStore.is_finished(folder):
        return FrameStore.open(folder)
    require_enough(prepared)
    cap = prepared.count if cap is None else cap
    border, thinning = round(prepared.count * (1 - HELD_OUT_SHARE)), -(-prepared.count // cap)
    tail = min(prepared.count - border, EVALUATED_FRAMES, max(1, round(cap * HELD_OUT_SHARE)))
    train, held_out = range(1, border + 1, thinning), range(border + 1, border + 1 + tail)
    numbers, writer = (*train, *held_out), FrameWriter(folder, prepared.size)
    for done, record in enumerate(prepared.records(numbers[writer.done :]), writer.done + 1):
        writer.add(record)
        on_progress(Progress(STAGE, done, len(numbers)))
    return writer.finish(len(train), len(held_out))


def require_enough(prepared: PreparedFolder) -> None:
    """Raises InputError for fewer frames than are needed."""
    if prepared.count < LEAST_FRAMES:
        raise InputError(
            f"{prepared.folder} holds {prepared.count} frames, at least {LEAST_FRAMES} are needed; "
            "prepare a longer recording"
        )


def cut_crop(frame: Frame, drawing: MeshDrawing) -> Image:
    """What training may see of a frame, uint8 (3S/2, 3S/2, 3)."""
    crop = drawing.crop
    scale = frame.image.shape[1] / drawing.camera.width  # it was tracked at fewer pixels
    scaled = Crop(crop.left * scale, crop.top * scale, crop.side * scale)
    return cut_out(frame.image, scaled, crop_side(drawing.size))


def cut_window(frame: Frame, drawing: MeshDrawing) -> Image:
    """The middle of it, which an avatar shows, uint8 (S, S, 3)."""
    size = drawing.size
    return np.ascontiguousarray(cut_crop(frame, drawing)[size // 4 :, size // 4 :][:size, :size])


def window_crop(crop: Crop) -> Crop:
    """The window in the middle of training's crop."""
    return Crop(crop.left + crop.side / 6, crop.top + crop.side / 6, crop.side * 2 / 3)


def prepare_frame(
    frame: Frame, drawing: MeshDrawing, state: AvatarState, matting: MatteBackend
) -> FrameRecord:
    """One frame of a recording, of which the tracker read `state`."""
    size, image = drawing.size, cut_crop(frame, drawing)
    # Cells of 8 pixels are all that is kept of the matte: half the pixels say as much of them.
    half = (crop_side(size) // 2,) * 2
    matte = matting.matte(np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA)))
    drawn = drawing.draw(state)
    return FrameRecord(frame.index, image, alpha_of_cells(matte, size), drawn.render, drawn.uv)
