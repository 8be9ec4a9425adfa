"""The live pipeline drops instead of queueing, the bench, and the prediction of `create`."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omokage.avatar.conditioning import AvatarState
from omokage.avatar.samples import avatar_state
from omokage.errors import MediaError
from omokage.media.clip import Frame
from omokage.pipelines import bench as bench_module
from omokage.pipelines import predict as predict_module
from omokage.pipelines.bench import Paced, bench, endless
from omokage.pipelines.predict import UnitCosts, predict_create
from omokage.pipelines.reenact import motion_states
from omokage.pipelines.stand_in import StandIn, stand_in
from omokage.render import readback as readback_module
from omokage.render import realtime
from omokage.render.detail import retarget_detail
from omokage.render.readback import ReadBack
from omokage.render.realtime import REST_FRAMES, LivePipeline
from omokage.render.renderer import Renderer
from omokage.render.retarget import Controls, Coverage, Rest, retarget
from omokage.render.stages import Place
from omokage.threads import one_ahead
from omokage.tracking.detail import mean_detail
from omokage.tracking.face_track import FRAME_ARRAYS
from omokage.tracking.fitting import FaceFitter
from omokage.tracking.landmarks import MediaPipeLandmarks
from omokage.tracking.morphable import MorphableModel
from omokage.tracking.observation import Observer
from omokage.tracking.photometric import learn_skin
from omokage.tracking.synthetic import SyntheticSubject
from omokage.tracking.tracker import FaceState, OnlineTracker, track_clip


@pytest.fixture(scope="module")
def person() -> StandIn:
    """Its landmarks are read off the pictures, so that there is detail beside the known motion."""
    torch.set_num_threads(1)
    made = stand_in(128, frame_count=10, clip_side=128)
    detect = MediaPipeLandmarks().detect
    points = np.stack([detect(frame.image)[0].points for frame in made.frames])
    track = replace(made.track, landmarks=points)
    return replace(made, track=track, avatar=replace(made.avatar, track=track, skin=mean_detail(track)))


class KnownMotion:
    """A tracker that knows the truth, so that tests do not wait for landmarks; `lost` frames show no face."""

    def __init__(self, person: StandIn, lost: tuple[int, ...] = ()) -> None:
        self.track, self.lost = person.track, lost
        self.subject, self.camera = person.track.subject, person.track.camera

    @contextmanager
    def streaming(self) -> Iterator[KnownMotion]:
        yield self

    def step(self, frame: Frame) -> FaceState:
        row = frame.index % len(self.track)
        values: dict[str, Any] = {name: getattr(self.track, name)[row] for name in FRAME_ARRAYS}
        return FaceState(**values | {"is_tracked": frame.index not in self.lost})


def pipeline(person: StandIn, **changes: Any) -> LivePipeline:
    arguments = {
        "driving_rest": Rest.of(person.track),
        "controls": Controls(pose_strength=0.8),
        "runtime": "torch",
        "tracker": KnownMotion(person),
    }
    return LivePipeline(person.avatar, **(arguments | changes))


def slowed(live: LivePipeline, seconds: float) -> LivePipeline:
    inner = live.renderer.runtime

    def infer(ready: Any) -> Any:
        time.sleep(seconds)
        return inner.infer(ready)

    live.renderer.runtime = SimpleNamespace(
        name="slow", look_up=inner.look_up, infer=infer, finish=inner.finish
    )
    return live


def test_frame_by_frame_equals_the_whole_clip(person: StandIn) -> None:
    live = pipeline(person)
    pictures = list(live.run(person.frames, keep_all=True))
    moved = retarget(
        person.track,
        source_rest=Rest.of(person.track),
        coverage=Coverage.of(person.track),
        controls=Controls(pose_strength=0.8),
        driving_rest=Rest.of(person.track),
    )
    assert [p.index for p in pictures] == list(range(len(person.frames)))
    details = list(retarget_detail(person.track, source_rest=Rest.of(person.track)))
    assert np.abs(details).max() > 0.05
    for picture, state in zip(pictures, motion_states(moved.motion, details), strict=True):
        expected = live.renderer.render(state)
        np.testing.assert_array_equal(picture.portrait.image, expected.image)
    statistics = live.statistics()
    assert (statistics.frames_in, statistics.frames_out, statistics.dropped) == (10, 10, 0)
    assert statistics.fps > 0 and statistics.latency_p50_ms <= statistics.latency_p95_ms


def test_a_slow_stage_drops_the_oldest_and_never_queues(person: StandIn) -> None:
    live = slowed(pipeline(person), 0.08)
    for _ in live.run(person.frames[:2], keep_all=True):
        pass
    source = itertools.islice(endless(person.frames), 60)
    pictures = list(live.run(Paced(source, 60.0)))
    statistics = live.statistics()
    assert statistics.frames_in == 60
    assert 5 <= statistics.frames_out <= 20
    assert statistics.frames_out + statistics.dropped == 60
    indices = [p.index for p in pictures]
    assert indices == sorted(set(indices))
    assert indices[-1] == 59  # the newest is never the one that is dropped
    # At most one finished condition waits for the slow stage: two turns of it, and some slack for a busy machine.
    assert np.median([p.latency_ms for p in pictures]) < 400


def test_a_lost_face_holds_the_last_state(person: StandIn) -> None:
    tracker = KnownMotion(person, lost=(4, 5))
    pictures = list(pipeline(person, tracker=tracker).run(person.frames, keep_all=True))
    assert [p.is_tracked for p in pictures[3:7]] == [True, False, False, True]
    held = pictures[3].portrait.image
    np.testing.assert_array_equal(pictures[5].portrait.image, held)
    assert (pictures[6].portrait.image != held).any()


def test_an_unknown_driver_is_waited_for(person: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "REST_FRAMES", 4)
    pictures = list(pipeline(person, driving_rest=None).run(person.frames, keep_all=True))
    for picture in pictures[1:3]:
        np.testing.assert_array_equal(picture.portrait.image, pictures[0].portrait.image)
    assert (pictures[-1].portrait.image != pictures[0].portrait.image).any()


def test_live_and_offline_pictures_agree(person: StandIn) -> None:
    """The same driver, another person than the avatar's: above 40 dB once their skin at rest is known, and the skin
    detail brings the live pictures nearer to those of `reenact`."""
    driver = SyntheticSubject(5)
    frames = list(driver.render_clip(driver.performance(3.0, frame_rate=25.0, size=192, motion=0.5)))
    whole, source = track_clip(frames), Rest.of(person.track)
    observer, fitter = Observer(MediaPipeLandmarks()), FaceFitter(driver.model, whole.subject, whole.camera)
    seen = [observer.step(frame) for frame in frames[::4]]
    points = np.array([each.face.points for each in seen if each.face is not None])
    skin = learn_skin(
        fitter, points, [each.crop for each in seen if each.crop is not None], with_shape=False
    )[1]
    track = track_clip(frames, subject=whole.subject, skin=skin)
    moved = retarget(track, source_rest=source, coverage=Coverage.of(person.track))
    live = pipeline(
        person,
        driving_rest=Rest.of(track),
        controls=Controls(),
        tracker=OnlineTracker(subject=track.subject, skin=skin),
    )
    shown = np.stack([picture.portrait.image for picture in live.run(frames, keep_all=True)])
    with_detail = retarget_detail(track, source_rest=source)
    without = np.zeros((len(track), 468, 3))
    agreement = {}
    for name, details in (("with", with_detail), ("without", without)):
        states = motion_states(moved.motion, details)
        expected = np.stack([live.renderer.render(state).image for state in states])
        errors = np.square(shown[REST_FRAMES:].astype(float) - expected[REST_FRAMES:]).mean(axis=(1, 2, 3))
        agreement[name] = float(np.mean(10 * np.log10(255**2 / errors)))
    assert agreement["with"] > 40 and agreement["with"] > agreement["without"] + 2, agreement


def test_the_next_driver_starts_afresh(person: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learned of one driver, rest, skin and identity, does not reach the pictures of the next run."""
    monkeypatch.setattr(realtime, "REST_FRAMES", 4)
    turned = replace(person.track, rotation=person.track.rotation + np.array([0.0, 0.3, 0.0]))
    drivers = [KnownMotion(replace(person, track=track)) for track in (turned, person.track)]
    upcoming = [*drivers, drivers[1]]
    monkeypatch.setattr(realtime, "OnlineTracker", lambda **_: upcoming.pop(0))
    monkeypatch.setattr(realtime, "MediaPipeLandmarks", lambda: None)
    live = pipeline(person, driving_rest=None, tracker=None)
    list(live.run(person.frames, keep_all=True))
    second = [picture.portrait.image for picture in live.run(person.frames, keep_all=True)]
    fresh = pipeline(person, driving_rest=None, tracker=None)
    for image, picture in zip(second, fresh.run(person.frames, keep_all=True), strict=True):
        np.testing.assert_array_equal(image, picture.portrait.image)
    assert not upcoming


def test_memory_does_not_grow_with_the_stream(person: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "RECENT", 6)
    live = pipeline(person)
    list(live.run(itertools.islice(endless(person.frames), 20), keep_all=True))
    kept = [value for value in vars(live._clock).values() if not isinstance(value, int)]
    assert len(kept) == 6 and all(len(times) == 6 for times in kept)
    statistics = live.statistics()
    assert (statistics.frames_in, statistics.frames_out) == (20, 20) and statistics.fps > 0


def test_errors_of_the_source_reach_the_caller_and_threads_end(person: StandIn) -> None:
    def broken() -> Iterator[Frame]:
        yield from person.frames[:3]
        raise MediaError("the camera is gone")

    before = threading.active_count()
    seen = []
    with pytest.raises(MediaError, match="camera is gone"):
        for picture in pipeline(person).run(broken(), keep_all=True):
            seen.append(picture.index)
    assert seen == [0, 1, 2]
    for _ in pipeline(person).run(endless(person.frames)):
        break  # a caller that leaves early
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_place_holds_one_item() -> None:
    live: Place[int] = Place(keep_all=False)
    for item in range(3):
        live.put(item)
    live.close()
    assert list(live) == [2] and live.dropped == 2
    assert not live.put(3)

    waiting: Place[int] = Place(keep_all=True)
    thread = threading.Thread(target=lambda: [waiting.put(i) for i in range(20)] and waiting.close())
    thread.start()
    assert list(waiting) == list(range(20)) and waiting.dropped == 0
    thread.join()


def test_bench_measures_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "RUNTIMES", ("torch", "onnxruntime-fp32"))
    monkeypatch.setattr(bench_module, "LIVE_FRAMES", 16)
    monkeypatch.setattr(bench_module, "LIVE_RUNTIME", "onnxruntime-fp32")
    monkeypatch.setattr(predict_module, "unit_costs", lambda _: UNIT_COSTS)
    seen = []
    report = bench(size=128, on_progress=lambda p: seen.append(p.done))
    assert seen == list(range(len(seen))) and len(seen) >= 6
    values = json.loads(json.dumps(report.to_json()))
    assert set(values["pictures"]) == {"torch", "onnxruntime-fp32"}
    assert 1 < report.tracking.per_second < 1000
    assert 0 < report.live.p50_ms <= report.live.p95_ms
    assert report.training_images_per_second > 0
    assert values["machine"]["versions"]["torch"] == torch.__version__
    text = report.to_text()
    for word in ("tracking", "onnxruntime-fp32", "latency at 25 fps", "pictures a second", "GB"):
        assert word in text


UNIT_COSTS = UnitCosts(
    track=0.02, find=0.01, matte=0.03, register=0.2, picture=0.02, warp=0.02, score=0.05, train=0.2
)  # fmt: skip


def test_prediction_grows_with_clip_size_and_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "unit_costs", lambda _: UNIT_COSTS)
    base = predict_create(60, 25, 256, 10)
    assert base.training_minutes == 10 and 10.5 < base.minutes < 20
    assert predict_create(60, 25, 256, 12).minutes == pytest.approx(base.minutes + 2)
    assert predict_create(120, 25, 256, 10).minutes > base.minutes
    assert predict_create(60, 25, 512, 10).memory_gb > base.memory_gb
    # A half-hour recording does not take the memory of a half hour.
    assert predict_create(1800, 25, 256, 10).memory_gb < 1.5 * base.memory_gb
    assert f"{base.minutes:.1f} minutes" in base.to_text() and "by heart" not in base.to_text()
    # Of six seconds there is little to learn: four passes over 120 frames.
    short = predict_create(6, 25, 256, 10)
    assert short.training_minutes == pytest.approx(4 * 120 * 0.2 / 60) and "by heart" in short.to_text()
    assert predict_create(6, 25, 256, 10, passes=60).training_minutes == 10


def test_reading_back_brings_lips_and_lids_to_where_they_were_told_to_be(person: StandIn) -> None:
    """The landmarks of the picture come nearer to the face model's; nothing else of the state changes."""
    renderer = Renderer(person.avatar, runtime="torch")
    read_back = ReadBack(renderer)
    track = person.avatar.track
    states = [avatar_state(track, row) for row in range(0, len(track), 2)]
    # Lips and lids that are told to be a millimeter and a half lower than the texture has them.
    lower = np.zeros((468, 3))
    lower[:, 1] = 0.15
    told = [replace(state, detail=state.detail + lower) for state in states if state.detail is not None]
    corrected = [read_back.corrected(state) for state in told]
    for state, after in zip(told, corrected, strict=True):
        assert after.pose is state.pose and after.expression is state.expression and after.gaze is state.gaze
    lips, conditioner = MorphableModel.load().lips_outer, person.avatar.conditioner

    def missed(drawn: Sequence[AvatarState]) -> float:
        backend, errors = MediaPipeLandmarks(), []
        for wanted, shown in zip(told, drawn, strict=True):
            picture = renderer.render(shown).image
            seen = [backend.detect(picture) for _ in range(3)][-1][0].points[lips, :2]
            errors.append(np.linalg.norm(seen - conditioner.project(wanted)[0][lips, :2], axis=1).mean())
        return float(np.mean(errors))

    before, after = missed(told), missed(corrected)
    assert after < 0.85 * before, (before, after)
    again = ReadBack(renderer)
    np.testing.assert_array_equal(again.corrected(told[0]).detail, corrected[0].detail)


def test_a_picture_without_a_face_is_left_alone(person: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = SimpleNamespace(detect=lambda _: [], reset=lambda: None)
    monkeypatch.setattr(readback_module, "MediaPipeLandmarks", lambda: nobody)
    state = avatar_state(person.avatar.track, 0)
    assert ReadBack(Renderer(person.avatar, runtime="torch")).corrected(state) is state


def test_the_picture_of_the_network_is_read_too(person: StandIn) -> None:
    """A network that moves the lips is noticed, which the picture without network cannot show."""
    state = avatar_state(person.avatar.track, 0)
    moving = copy.deepcopy(person.avatar.generator)
    torch.nn.init.zeros_(moving.offset.weight)
    with torch.no_grad():
        moving.offset.bias.copy_(torch.tensor([0.0, 0.15]))
    still, moved = (
        ReadBack(Renderer(replace(person.avatar, generator=generator), runtime="torch"))
        .corrected(state)
        .detail
        for generator in (person.avatar.generator, moving)
    )
    lips = MorphableModel.load().lips_outer
    assert np.abs(moved - still)[lips].mean() > 0.005  # cm


def test_turns_are_quick_only_while_a_stream_runs(person: StandIn) -> None:
    usual, during = sys.getswitchinterval(), []
    for _ in pipeline(person).run(person.frames[:3], keep_all=True):
        during.append(sys.getswitchinterval())
    assert max(during) < usual / 5 and sys.getswitchinterval() == usual


def test_work_done_ahead_keeps_order_and_errors() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("gone")

    taken = []
    with pytest.raises(OSError, match="gone"):
        for item in one_ahead(items()):
            taken.append(item)
    assert taken == [1, 2, 3]
    assert list(one_ahead(iter([]))) == []
