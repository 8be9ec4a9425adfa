"""Paper frames of a clip that our own tracker has read: drawings lie on the person whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from omokage.avatar.paper.drawing import NOSE_BRIDGE, MeshDrawing
from omokage.avatar.paper.frames import FrameStore
from omokage.avatar.samples import avatar_state
from omokage.media.decode import read_frames
from omokage.pipelines.paper_frames import cut_crop, cut_window, mesh_drawing, prepare_recording
from omokage.pipelines.recording import Recording
from omokage.tracking import face_regions as region
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.release import release_clip
from test_paper_data import with_landmarks

SIZE, FRAMES, PX, RATE = 128, 26, 192, Fraction(12)
MOUTH = (13, 14, 61, 291)


@pytest.fixture(scope="module")
def truth() -> FaceTrack:
    person = SyntheticSubject(seed=3)
    return with_landmarks(
        person.performance(FRAMES / float(RATE), frame_rate=float(RATE), size=PX, motion=0.7)
    )


@pytest.fixture(scope="module")
def recording(truth: FaceTrack, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Read by the tracker, to which the truth is not known."""
    path = tmp_path_factory.mktemp("film") / "me.mp4"
    person = SyntheticSubject(seed=3)
    release_clip((frame.image for frame in person.render_clip(truth)), path, frame_rate=RATE)
    return Recording.open(path, size=SIZE, cap=FRAMES)


@pytest.fixture(scope="module")
def drawing(recording: Recording) -> MeshDrawing:
    return mesh_drawing(recording, SIZE)


@pytest.fixture(scope="module")
def store(recording: Recording, drawing: MeshDrawing, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return prepare_recording(recording, drawing, tmp_path_factory.mktemp("frames") / "store")


def in_drawing(points: NDArray[np.floating], drawing: MeshDrawing) -> NDArray[np.float64]:
    """Pixels of the clip -> pixels of the drawing, in the official geometry: of a crop of 3S/2 pixels its middle S is
    drawn on S/4."""
    crop = drawing.crop
    in_crop = (points[..., :2] - [crop.left, crop.top]) * (SIZE * 1.5 / crop.side)
    return np.asarray((in_crop - SIZE / 4) / 4, dtype=np.float64)


def test_the_crop_is_that_of_the_official_preprocessing(truth: FaceTrack, drawing: MeshDrawing) -> None:
    """Its side is (2 x 2.1 x 1.25 x 1.5) times the way from the bridge of the nose to the lips; here of the truth."""
    bridge = truth.landmarks[:, NOSE_BRIDGE, :2]
    way = np.linalg.norm(bridge - truth.landmarks[:, [13, 14], :2].mean(axis=1), axis=1)
    assert drawing.crop.side == pytest.approx(7.875 * np.median(way), rel=0.08)
    middle = np.array([drawing.crop.left, drawing.crop.top]) + drawing.crop.side / 2
    assert np.abs(middle - np.median(bridge, axis=0)).max() < 0.02 * drawing.crop.side


def test_records_have_the_shapes_of_the_papers(
    recording: Recording, drawing: MeshDrawing, store: FrameStore
) -> None:
    record = store.record(5)
    assert record.image.shape == (SIZE * 3 // 2,) * 2 + (3,) and record.alpha.shape == (SIZE * 3 // 16,) * 2
    assert record.render.shape == record.uv.shape == (SIZE // 4, SIZE // 4, 3)
    frame = next(frame for frame in read_frames(recording.path) if frame.index == record.frame)
    inner = record.image[SIZE // 4 : SIZE * 5 // 4, SIZE // 4 : SIZE * 5 // 4]
    assert np.array_equal(cut_window(frame, drawing), inner)


def test_at_the_papers_size_a_crop_of_1536_is_drawn_on_256_for_its_middle_1024(
    truth: FaceTrack, recording: Recording, drawing: MeshDrawing
) -> None:
    """The eyes: dark in the crop, and of their places in the uv picture, where they truly are."""
    model, full = MorphableModel.load(), replace(drawing, size=1024)
    darker, off = list[float](), list[float]()
    for row in (0, 4, 12):
        number = int(recording.track.frame_index[row])
        frame = next(frame for frame in read_frames(recording.path) if frame.index == number)
        crop, drawn = cut_crop(frame, full), full.draw(avatar_state(recording.track, row))
        assert crop.shape == (1536, 1536, 3) and drawn.uv.shape == drawn.render.shape == (256, 256, 3)
        in_crop = (truth.landmarks[number, :, :2] - [full.crop.left, full.crop.top]) * (1536 / full.crop.side)
        for eye in region.IRIS_CENTERS:
            (x, y), (nose_x, nose_y) = in_crop[eye].astype(int), in_crop[4].astype(int)
            darker.append(crop[nose_y, nose_x].mean() - crop[y - 4 : y + 5, x - 4 : x + 5].mean())
            place = drawn.uv[(y - 256) // 4, (x - 256) // 4]
            off.append(float(np.abs(place[:2] / 255 - model.uv[eye]).max()))
    assert np.median(darker) > 60
    assert np.median(off) < 0.03


def test_drawings_of_a_tracked_clip_lie_on_the_true_face(
    truth: FaceTrack, drawing: MeshDrawing, store: FrameStore
) -> None:
    for row in (0, 9, 21):
        record = store.record(row)
        at = in_drawing(truth.landmarks[record.frame], drawing)
        rows, columns = np.nonzero(record.uv[..., 2] == 255)
        x, y = at[:468].T
        for edge, drawn in (
            (x.min(), columns.min()), (x.max(), columns.max() + 1), (y.min(), rows.min()), (y.max(), rows.max() + 1),
        ):  # fmt: skip
            assert abs(edge - drawn) < 2


def test_places_of_eyes_and_mouth_are_where_they_truly_are(
    truth: FaceTrack, drawing: MeshDrawing, store: FrameStore
) -> None:
    """The uv picture at the true eye corners and lips says where these are in the texture."""
    model = MorphableModel.load()
    corners = [*region.EYE_CORNERS, *model.mirror[list(region.EYE_CORNERS)].tolist()]
    off: list[float] = []
    for row in range(0, store.train, 3):
        record = store.record(row)
        at = in_drawing(truth.landmarks[record.frame], drawing)
        for vertex in (*corners, *MOUTH, 4):
            x, y = at[vertex]
            seen = record.uv[int(y), int(x)]
            if seen[2] == 255:
                off.append(float(np.abs(seen[:2] / 255 - model.uv[vertex]).max()))
    assert len(off) > 60
    # A pixel of the drawing is a thirtieth of the face; a quarter of the pixels may be of the other lip or lid.
    assert np.median(off) < 0.04 and np.quantile(off, 0.75) < 0.08
