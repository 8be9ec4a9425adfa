"""Memory grows with the length of a recording only as far as is said: half an hour of 1080p stays under 1.5 GB."""

from __future__ import annotations

import errno
import gc
import io
import tracemalloc
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clips import small_disk
from omokage.config import Progress
from omokage.errors import OutputError
from omokage.media.clip import Frame
from omokage.pipelines import predict, recording
from omokage.pipelines.predict import BYTES_PER_TRACKED_FRAME, UnitCosts, predict_create, tracking_gb
from omokage.pipelines.recording import Recording
from omokage.tracking import observation
from omokage.tracking.face_track import FRAME_ARRAYS, FaceTrack
from omokage.tracking.fitting import FaceFitter
from omokage.tracking.landmarks import FaceCounter, Landmarks, MediaPipeLandmarks
from omokage.tracking.matting import MediaPipeMatte
from omokage.tracking.observation import Observation, ObservationLog
from omokage.tracking.photometric import FaceCrop, learn_skin
from omokage.tracking.sway import ZONE_COUNT, ZonePlaces
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import track_clip

HALF_AN_HOUR = 54_000  # frames at 30 a second


class KnownLandmarks:
    """Gives the true points of a synthetic person, each time in memory of its own as a network does."""

    def __init__(self, person: SyntheticSubject, truth: FaceTrack) -> None:
        self.points, self.calls = [], 0
        for row in range(len(truth)):
            vertices = person.model.pose_vertices(person.subject, truth.expression[row], truth.gaze[row])[
                :478
            ]
            placed = person.model.to_camera(vertices, truth.rotation[row], truth.translation[row])
            points = truth.camera.project(placed)
            depth = placed[:, 2] - placed[:, 2].mean()
            points[:, 2] = depth * truth.camera.focal_px / truth.translation[row, 2]
            self.points.append(points.astype(np.float32))

    def detect(self, image: np.ndarray) -> list[Landmarks]:
        self.calls += 1
        return [Landmarks(self.points[self.calls % len(self.points)].copy())]

    def reset(self) -> None:
        self.calls = 0


def test_tracking_takes_what_is_predicted_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "BLOCK_FRAMES", 5)
    monkeypatch.setattr(observation, "CHUNK_BYTES", 20_000)
    person = SyntheticSubject(3)
    truth = person.performance(2.0, frame_rate=25.0, size=64)
    images = [frame.image for frame in person.render_clip(truth)]
    landmarks = KnownLandmarks(person, truth)
    fitter = FaceFitter(person.model, person.subject, truth.camera)
    crops = [FaceCrop.of(*seen) for seen in zip(images, landmarks.points, strict=True)]
    _, skin = learn_skin(fitter, np.array(landmarks.points[::4]), crops[::4], with_shape=False)

    def peaks(count: int) -> dict[str, int]:
        """The most that is held in every stage, and by the track that comes out."""
        frames = (Frame(i, i / 25, images[i % len(images)]) for i in range(count))
        top, stage = dict[str, int](), ""

        def note(stage: str) -> None:
            top[stage] = max(top.get(stage, 0), tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()

        def watch(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                note(stage)
                stage = progress.stage

        gc.collect()
        gc.disable()  # or a peak depends on when cycles of something else are found
        try:
            tracemalloc.start()
            track = track_clip(
                frames, subject=person.subject, skin=skin, backend=landmarks, on_progress=watch
            )
            note(stage)  # with all that follows the last frame
        finally:
            tracemalloc.stop()
            gc.enable()
        return top | {"track": sum(getattr(track, name).nbytes for name in FRAME_ARRAYS)}

    peaks(20)  # what is loaded once
    short, long = peaks(60), peaks(160)
    growth = {stage: (long[stage] - short[stage]) / 100 for stage in short}
    assert set(growth) == {"", "landmarks", "identity", "fitting", "track"}
    # What was seen waits in a file; only the track that comes out is held whole.
    assert growth["landmarks"] < 500
    assert 0.8 * BYTES_PER_TRACKED_FRAME < growth["fitting"] < BYTES_PER_TRACKED_FRAME
    assert tracking_gb(HALF_AN_HOUR) < 1.5


def test_only_the_frames_that_are_used_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3000 frames 900 at most for training and the last 350; the track on disk has all of them."""
    truth = SyntheticSubject(3).performance(120.0, frame_rate=25.0, size=64)
    points = np.zeros((len(truth), 478, 3), np.float32)
    points[:, ::2] = 40.0
    whole = replace(truth, landmarks=points)
    monkeypatch.setattr(recording, "probe", lambda path: SimpleNamespace(path=path, frame_rate=Fraction(25)))
    monkeypatch.setattr(recording, "read_frames", lambda *_, **__: iter(()))
    monkeypatch.setattr(recording, "track_clip", lambda *_, **__: whole)
    opened = Recording.open(Path("me.mp4"), size=256)
    assert opened.frame_count == 3000 and len(opened.track) <= 960 + 350
    assert opened.track.landmarks.base is None  # no view that keeps the whole alive
    split = opened.split
    assert len(split.train) + len(split.held_out) == len(opened.track) and len(split.held_out) == 350
    assert opened.track.frame_index[split.held_out[-1]] == 2999
    assert (
        opened.track.frame_index[split.train].max() < 2400 <= opened.track.frame_index[split.held_out].min()
    )


def test_the_prediction_knows_the_length_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = UnitCosts(
        track=0.02, find=0.01, matte=0.03, register=0.2, picture=0.02, warp=0.02, score=0.05, train=0.1
    )
    monkeypatch.setattr(predict, "unit_costs", lambda _: costs)
    minute, half_hour, hour = (predict_create(60.0 * m, 30, 128, 10).memory_gb for m in (1, 30, 60))
    assert minute < half_hour < 1.5 < hour
    assert hour - half_hour == pytest.approx(HALF_AN_HOUR * BYTES_PER_TRACKED_FRAME / 1e9, abs=0.01)


def test_the_log_gives_back_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over borders of blocks and of chunks, with frames that show nobody among them."""
    monkeypatch.setattr(observation, "BLOCK_FRAMES", 64)
    monkeypatch.setattr(observation, "CHUNK_BYTES", 100)
    random, log, put = np.random.default_rng(0), ObservationLog(), []
    origin = random.random((ZONE_COUNT, 2), np.float32)
    for index in range(200):
        places = ZonePlaces(
            random.random((ZONE_COUNT, 2), np.float32), random.random(ZONE_COUNT, np.float32), origin
        )
        crop = FaceCrop(random.integers(0, 256, 3 + index % 5, np.uint8), 0.5 + index, random.random(2))
        seen = Observation(
            index + 10, index / 30, Landmarks(random.random((478, 3), np.float32)), places, crop
        )
        nobody = Observation(index + 10, index / 30, None, ZonePlaces.unknown())
        put.append(nobody if index % 50 in (0, 1) else seen)
        log.add(put[-1])
    assert len(log) == len(put) and len(log.seen) == sum(one.face is not None for one in put)
    points, crop = log.face(log.seen[-1])
    assert np.array_equal(points, put[-1].face.points) and crop.jpeg.tobytes() == put[-1].crop.jpeg.tobytes()
    for one, other in zip(put, log.drain(), strict=True):
        assert (one.frame_index, one.time_s) == (other.frame_index, other.time_s)
        np.testing.assert_equal(flat(one), flat(other))


class FullDisk(io.BytesIO):
    """A file on a disk without room."""

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_has_no_room_for_its_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "BLOCK_FRAMES", 4)
    nobody = [Observation(index, index / 30, None, ZonePlaces.unknown()) for index in range(5)]
    log = ObservationLog()
    with pytest.raises(OutputError, match=r"grew beyond the limit.*TMPDIR"), small_disk(10_000):
        for one in nobody:
            log.add(one)
    monkeypatch.setattr(observation, "TemporaryFile", FullDisk)
    log = ObservationLog()
    with pytest.raises(OutputError, match=r"disk is full.*TMPDIR"):
        for one in nobody:
            log.add(one)


def test_the_log_keeps_little_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight full blocks of landmarks and pictures, while they are seen and while they are used: two at a time."""
    monkeypatch.setattr(observation, "BLOCK_FRAMES", 256)
    monkeypatch.setattr(observation, "CHUNK_BYTES", 1_000_000)
    points, offset = np.zeros((478, 3), np.float32), np.zeros(2)
    crop = FaceCrop(np.zeros(7_500, np.uint8), 1.0, offset)
    gc.collect()
    tracemalloc.start()
    log = ObservationLog()
    for index in range(8 * 256):
        log.add(Observation(index, index / 30, Landmarks(points), ZonePlaces.unknown(), crop))
    for _ in log.drain():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * 256 * 14_500 > 29e6  # what was seen
    assert peak < 9e6


def flat(value: object) -> object:
    """All numbers of nested records, comparable."""
    return [flat(getattr(value, f.name)) for f in fields(value)] if is_dataclass(value) else value


def test_networks_give_their_memory_back() -> None:
    """MediaPipe's networks keep theirs until they are closed, whoever forgets them."""
    picture = np.zeros((64, 64, 3), np.uint8)
    landmarks, counter, matting = MediaPipeLandmarks(), FaceCounter(), MediaPipeMatte()
    landmarks.detect(picture), counter.count(picture), matting.matte(picture)
    networks = [owner._network for owner in (landmarks, counter, matting)]
    assert all(network._graph is not None for network in networks)
    del landmarks, counter, matting
    gc.collect()
    assert all(network._graph is None for network in networks)
