"""Frames for the paper's networks: from our own tracker and from folders of the official preprocessing."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from omokage.avatar.paper.drawing import MeshDrawing, paper_crop
from omokage.avatar.paper.frames import (
    BLOCK,
    MAPPED_BLOCKS,
    FrameRecord,
    FrameStore,
    FrameWriter,
    alpha_of_cells,
    record_type,
    stored_bytes,
)
from omokage.avatar.paper.prepared_folder import PreparedFolder
from omokage.avatar.samples import Split, avatar_state, cut_out
from omokage.avatar.sheet import Crop
from omokage.config import Progress
from omokage.errors import InputError, NoFaceError, OmokageError
from omokage.geometry.camera import rotation_matrix
from omokage.media.decode import probe
from omokage.pipelines.paper_frames import mesh_drawing, prepare_folder, prepare_recording
from omokage.pipelines.recording import Recording
from omokage.tracking.face_track import FaceTrack
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.synthetic import SyntheticSubject
from omokage.trust.release import release_clip

SIZE, RATE = 128, Fraction(12)


def with_landmarks(track: FaceTrack) -> FaceTrack:
    """Landmarks where the model's vertices are seen."""
    points = np.zeros_like(track.landmarks)
    for row in range(len(track)):
        vertices = MorphableModel.load().pose_vertices(track.subject, track.expression[row], track.gaze[row])
        in_camera = vertices @ rotation_matrix(track.rotation[row]).T + track.translation[row]
        points[row, :, :2] = track.camera.project(in_camera)[:478, :2]
    return replace(track, landmarks=points)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A clip with the motion it was drawn from as its track."""
    path = tmp_path_factory.mktemp("film") / "me.mp4"
    subject = SyntheticSubject(seed=3)
    truth = subject.performance(2.5, frame_rate=float(RATE), size=256, motion=0.7)
    truth = with_landmarks(truth)
    release_clip((frame.image for frame in subject.render_clip(truth)), path, frame_rate=RATE)
    rows = np.arange(len(truth))
    return Recording(path, probe(path), truth, paper_crop(truth), Split(rows[:24], rows[24:]), len(truth), 1)


@pytest.fixture(scope="module")
def store(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    folder = tmp_path_factory.mktemp("frames") / "store"
    return prepare_recording(recording, mesh_drawing(recording, SIZE), folder)


def random_record(frame: int, seed: int = 0) -> FrameRecord:
    random = np.random.default_rng((seed, frame))
    fields = {
        name: random.integers(256, size=kind.shape, dtype=np.uint8)
        for name, (kind, _) in (record_type(SIZE).fields or {}).items()
        if name != "frame"
    }
    return FrameRecord(frame, **fields)


# the records


def test_a_frame_at_the_papers_size_takes_seven_megabytes() -> None:
    assert stored_bytes(1024, 1) == 8 + 1536**2 * 3 + 192**2 + 2 * 256**2 * 3
    assert stored_bytes(1024, 2500) == pytest.approx(18.8e9, rel=0.01)


def test_records_come_back_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "store", SIZE)
    for number in range(BLOCK + 3):
        writer.add(random_record(number))
    # Stopped here: the three of the block that was not full are lost, no half block is there.
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["block-00000.npy"]
    with pytest.raises(InputError, match="holds no prepared frames"):
        FrameStore.open(tmp_path / "store")
    writer = FrameWriter(tmp_path / "store", SIZE)
    assert writer.done == BLOCK
    for number in range(writer.done, BLOCK + 5):
        writer.add(random_record(number))
    store = writer.finish(BLOCK, 5)
    assert (len(store), store.train, store.held_out, store.size) == (BLOCK + 5, BLOCK, 5, SIZE)
    for row in (0, BLOCK - 1, BLOCK, BLOCK + 4):
        got, put = store.record(row), random_record(row)
        assert got.frame == row and isinstance(got.image, np.memmap)  # not read before it is looked at
        assert all(
            np.array_equal(getattr(got, name), getattr(put, name)) for name in ("image", "alpha", "uv")
        )


def test_a_damaged_store_is_said(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "store", SIZE)
    for number in range(3):
        writer.add(random_record(number))
    writer.finish(3, 0)
    block = tmp_path / "store" / "block-00000.npy"
    block.write_bytes(block.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"holds no prepared frames of this version .*remove it to prepare"):
        FrameStore.open(tmp_path / "store")


def test_a_long_recording_needs_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = FrameWriter(tmp_path / "store", SIZE)
    blocks = MAPPED_BLOCKS + 3
    for number in range(blocks * BLOCK):
        writer.add(random_record(number))
    store = writer.finish(blocks * BLOCK, 0)
    for row in (*range(0, len(store), BLOCK), 0, len(store) - 1):
        assert store.record(row).frame == row
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        assert len([name for name in mapped if name.startswith(str(tmp_path))]) <= MAPPED_BLOCKS
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", too_many_files)
        with pytest.raises(OmokageError, match=r"no more files can be opened.*ulimit -n") as caught:
            FrameStore.open(tmp_path / "store")
    assert not isinstance(caught.value, InputError)


def too_many_files(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_opacity_of_a_cell_is_its_mean() -> None:
    alpha = np.zeros((192, 192), dtype=np.uint8)
    alpha[:8, :4] = 255  # half of the first cell
    cells = alpha_of_cells(alpha, SIZE)
    assert cells.shape == (24, 24) and abs(int(cells[0, 0]) - 127.5) <= 0.5 and not cells[1:].any()
    assert np.array_equal(alpha_of_cells(alpha[::2, ::2] / 255.0, SIZE), cells)


# from our own tracker


def test_a_recording_becomes_crops_and_drawings(recording: Recording, store: FrameStore) -> None:
    assert (store.train, store.held_out) == (24, 6)
    record = store.record(4)
    assert record.frame == 4 and record.image.shape == (192, 192, 3) and record.image.std() > 10
    # The person is in the middle of the crop and not in its upper corners.
    assert record.alpha[10:14, 10:14].min() > 240 and record.alpha[0, 0] < 60
    face = record.uv[..., 2] == 255
    assert 0.1 < face.mean() < 0.6 and set(np.unique(record.uv[..., 2])) == {0, 255}
    assert np.array_equal(face, record.render.any(axis=-1))


def test_the_drawing_lies_on_the_face(recording: Recording) -> None:
    """The tip of the nose is drawn where the crop shows it, at a quarter of the pixels."""
    drawing, track = mesh_drawing(recording, SIZE), recording.track
    for row in (0, 11, 20):
        drawn = drawing.draw(avatar_state(track, row))
        at = drawing.crop.apply(track.landmarks[row].astype(float), SIZE * 3 // 2)[:, :2]
        x, y = (at - SIZE / 4).T / 4  # from the crop to the window's drawing
        oval = drawn.uv[..., 2] > 0
        assert oval[int(y[4]), int(x[4])]
        rows, columns = np.nonzero(oval)
        assert abs(columns.min() - x[:468].min()) < 1.5 and abs(columns.max() + 1 - x[:468].max()) < 1.5
        assert abs(rows.min() - y[:468].min()) < 1.5 and abs(rows.max() + 1 - y[:468].max()) < 1.5


def test_a_place_of_the_face_keeps_its_colour_in_the_uv_picture(recording: Recording) -> None:
    drawing, track = mesh_drawing(recording, SIZE), recording.track
    seen = []
    for row in (0, 8, 16):
        uv = drawing.draw(avatar_state(track, row)).uv
        at = drawing.crop.apply(track.landmarks[row].astype(float), SIZE * 3 // 2)
        x, y = (at[4, :2] - SIZE / 4) / 4
        seen.append(uv[int(y), int(x)])
    assert np.ptp(np.array(seen, dtype=int), axis=0).max() <= 12  # a pixel of the drawing is wide


def test_the_drawing_shows_the_mouth_and_the_eyes(recording: Recording) -> None:
    drawing = mesh_drawing(recording, SIZE)
    state = avatar_state(recording.track, 0)
    wide, aside = state.expression.copy(), state.gaze + 0.5
    wide[17] = 1.0  # jawOpen
    still = drawing.draw(replace(state, detail=None))
    for changed in (replace(state, expression=wide, detail=None), replace(state, gaze=aside, detail=None)):
        assert (drawing.draw(changed).render != still.render).any()


def test_the_crop_reaches_beyond_the_picture_and_is_black_there() -> None:
    image = np.full((60, 80, 3), 200, dtype=np.uint8)
    cut = cut_out(image, Crop(-20, -10, 100), 100)
    assert cut.shape == (100, 100, 3)
    assert (cut[10:70, 20:100] == 200).all() and not cut[:10].any() and not cut[:, :20].any()
    assert not cut[70:].any()


def test_a_track_without_landmarks_cannot_place_the_crop(recording: Recording) -> None:
    for points in (0, 478):
        bare = np.zeros((len(recording.track), points, 3), np.float32)
        with pytest.raises(NoFaceError, match="no landmarks to place the crop by"):
            paper_crop(replace(recording.track, landmarks=bare))


def test_preparing_goes_on_where_it_was_stopped(
    recording: Recording, store: FrameStore, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done == BLOCK + 2:
            raise Stopped

    drawing, seen = mesh_drawing(recording, SIZE), list[float]()
    with pytest.raises(Stopped):
        prepare_recording(recording, drawing, tmp_path / "again", on_progress=stop)
    again = prepare_recording(
        recording, drawing, tmp_path / "again", on_progress=lambda progress: seen.append(progress.done)
    )
    assert seen[0] == BLOCK + 1
    for row in range(len(store)):
        one, other = store.record(row), again.record(row)
        assert np.array_equal(one.image, other.image) and np.array_equal(one.alpha, other.alpha)
        assert np.array_equal(one.uv, other.uv)


# from the official preprocessing


def prepared(folder: Path, count: int = 30) -> Path:
    for name in ("image", "render", "uv", "back"):
        (folder / name).mkdir(parents=True)
    for number in range(1, count + 1):
        save_frame(folder, number)
    return folder


def save_frame(folder: Path, number: int) -> None:
    record = random_record(number)
    back = np.repeat(np.repeat(record.alpha, 8, axis=0), 8, axis=1)
    for name, picture in (
        ("image", record.image), ("render", record.render), ("uv", record.uv), ("back", back),
    ):  # fmt: skip
        PIL.Image.fromarray(picture).save(folder / name / f"{number:06d}.png", compress_level=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("official") / "person")


def test_a_prepared_folder_gives_the_same_records(folder: Path, tmp_path: Path) -> None:
    (folder / "image" / "Thumbs.db").touch()
    store = prepare_folder(PreparedFolder.open(folder, SIZE), tmp_path / "store")
    assert (store.train, store.held_out) == (24, 6)
    for row in (0, 17, 29):
        got, put = store.record(row), random_record(row + 1)
        assert got.frame == row + 1
        for name in ("image", "alpha", "render", "uv"):
            assert np.array_equal(getattr(got, name), getattr(put, name)), name


def test_prepared_folders_with_faults_are_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            prepare_folder(PreparedFolder.open(folder, SIZE), tmp_path / "store")
        said = str(caught.value)
        assert said.count("\n") == 0 and not said.endswith(".")
        return said

    def away(name: str) -> Path:
        (folder / name).rename(tmp_path / "away")
        return tmp_path / "away"

    kept = away("uv")
    assert "lacks the folder 'uv'; a prepared dataset has image, render, uv, back" in refusal()
    kept.rename(folder / "uv")

    kept = away("uv/000007.png")
    assert "uv lacks 000007.png, which other folders beside it have" in refusal()
    kept.rename(folder / "uv" / "000007.png")

    for name in ("image", "render", "uv", "back"):
        (folder / name / "000012.png").rename(folder / name / "000099.png")
    assert "has no frame 000012, though it goes up to 000099; frames must be numbered" in refusal()
    for name in ("image", "render", "uv", "back"):
        (folder / name / "000099.png").rename(folder / name / "000012.png")

    (folder / "render" / "000003.png").rename(folder / "render" / "frame3.png")
    assert "render holds 'frame3.png', whose name is not a frame's number such as 000001" in refusal()
    (folder / "render" / "frame3.png").rename(folder / "render" / "000003.png")

    save = PIL.Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save
    kept = away("image/000002.png")
    save(folder / "image" / "000002.png")
    assert "000002.png is 128x128 pixels, and 192x192 are needed for pictures of 128" in refusal()
    kept.replace(folder / "image" / "000002.png")
    prepare_folder(PreparedFolder.open(folder, SIZE), tmp_path / "store")


def test_frames_under_other_names_or_from_another_number_are_told(folder: Path, tmp_path: Path) -> None:
    """None of them is passed over, to be missed hours later or said to be absent."""
    copy = tmp_path / "person"
    kinds = ("image", "render", "uv", "back")

    def renamed(name: Callable[[int], str]) -> str:
        """What is said of the folder with its frames under other names."""
        shutil.rmtree(copy, ignore_errors=True)
        for kind in kinds:
            (copy / kind).mkdir(parents=True)
            for number in range(1, 31):
                (copy / kind / name(number)).hardlink_to(folder / kind / f"{number:06d}.png")
        with pytest.raises(InputError) as caught:
            PreparedFolder.open(copy, SIZE)
        said = str(caught.value)
        assert said.count("\n") == 0 and not said.endswith(".")
        return said

    said = renamed(lambda number: f"{number - 1:06d}.png")
    assert (
        "counts its frames from 000000, and they must be numbered from 000001; give the files of image"
        in said
    )
    assert "has no frame" not in said
    assert "has no frame 000001, though it goes up to 000034" in renamed(
        lambda number: f"{number + 4:06d}.png"
    )
    said = renamed(lambda number: f"{number:07d}.png")
    assert (
        "image holds '0000001.png', whose name is not a frame's number such as 000001, of six digits" in said
    )
    for ending in (".PNG", ".jpg", ".jpeg"):
        said = renamed(lambda number, ending=ending: f"{number:06d}{ending}")  # type: ignore[misc]
        assert f"image holds '000001{ending}', and frames are read from files such as 000001.png" in said
    assert "image holds 'frame001.jpg', and frames" in renamed(lambda number: f"frame{number:03d}.jpg")
    one = renamed(lambda number: f"{number:06d}{'.PNG' if number == 12 else '.png'}")
    assert "image holds '000012.PNG', and frames are read from" in one


def test_pictures_beside_the_frames_are_passed_over(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "person", count=25)
    for name in ("contact.jpg", "000003.jpg"):
        (folder / "image" / name).touch()
    assert PreparedFolder.open(folder, SIZE).count == 25


def test_frames_from_a_million_on_have_seven_digits(tmp_path: Path) -> None:
    for name in ("image", "render", "uv", "back"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1000000.png").touch()
    with pytest.raises(InputError, match=r"has no frame 000001, though it goes up to 1000000; "):
        PreparedFolder.open(tmp_path, SIZE)


def test_folders_with_nothing_or_little_are_refused(tmp_path: Path) -> None:
    few = prepared(tmp_path / "few", count=4)
    with pytest.raises(InputError, match="holds 4 frames, at least 25 are needed"):
        prepare_folder(PreparedFolder.open(few, SIZE), tmp_path / "store")
    empty = prepared(tmp_path / "empty", count=0)
    with pytest.raises(InputError, match="holds no frames"):
        PreparedFolder.open(empty, SIZE)
    assert PreparedFolder.is_one(empty) and not PreparedFolder.is_one(tmp_path)


def test_the_drawing_is_at_the_configured_size(recording: Recording) -> None:
    track = recording.track
    drawing = MeshDrawing(track.subject, track.camera, paper_crop(track), 1024)
    drawn = drawing.draw(avatar_state(track, 0))
    assert drawn.render.shape == drawn.uv.shape == (256, 256, 3)
