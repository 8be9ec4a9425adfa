"""How one person speaks: learned from their recording, beside what everybody does; and where it is not learned."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.avatar.bundle import Avatar, SpeechPart
from omokage.config import Progress
from omokage.errors import BundleError, InputError, MediaError
from omokage.media.clip import Audio
from omokage.metrics.talking import INNER_LIPS, pearson
from omokage.pipelines import create as create_pipeline
from omokage.pipelines.learn_speech import (
    LearnSpeechConfig,
    learn_speech,
    learned_speech,
    near_the_border,
    picture_lag,
    shifted,
    way_from_rest,
)
from omokage.pipelines.predict import UnitCosts, predict_create
from omokage.pipelines.speak import SpeakConfig, personal_driver, speak, speaker_rest, speaking_rest
from omokage.pipelines.speech_track import SpeechTrack, resampled
from omokage.pipelines.stand_in import stand_in
from omokage.pipelines.talker import write_talker
from omokage.pipelines.work import Work
from omokage.render.retarget import JAW, Rest, relative_expression
from omokage.speaking.driver import REST, Articulation, driven_by_voice
from omokage.speaking.motion_transformer import (
    MotionConditions,
    MotionTransformer,
    SamplerConfig,
    TransformerConfig,
    flow_loss,
    sample,
)
from omokage.speaking.mouth_regression import MouthRegression
from omokage.speaking.personal import CHANNELS, PersonalDriver, PersonalStream, offsets
from omokage.speaking.personal_networks import NetworkTrainingConfig
from omokage.speaking.personal_training import Learned, LearningConfig, Material, learn, speech_seconds
from omokage.speaking.sound_frames import COLUMNS, FRAME_RATE, SoundFrames, sound_frames
from omokage.speaking.voices import speak_text
from omokage.tracking.arkit import bare_track
from omokage.tracking.face_track import BLENDSHAPES, FaceTrack
from omokage.tracking.visemes import NAMES, shapes
from omokage.trust.release import release_clip
from plain_avatars import made_plain

Float = NDArray[np.float64]
JAW_CHANNEL = CHANNELS.index(JAW)
QUICK = LearningConfig(
    transformer=TransformerConfig(modes=4, width=16, heads=2, layers=1),
    sampler=SamplerConfig(samples=2),
    network=NetworkTrainingConfig(steps=12, batch=8),
)
TEXT = (
    "My mother brings a big blue umbrella. Happy people move to bigger towns, far away from the sea. "
    "Please open the window, because the room is warm and the music outside is very beautiful today. "
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def articulation() -> Articulation:
    return driven_by_voice(resampled(speak_text(TEXT, "en-us").sound, 16000)[:, 0])


def material(jaw: Float) -> Material:
    """A recording of somebody whose jaw (T,) alone moves."""
    mouth = np.zeros((len(jaw), len(CHANNELS)))
    mouth[:, JAW_CHANNEL] = jaw
    return Material(
        articulation(),
        mouth,
        is_known=np.ones(len(jaw), dtype=bool),
        opening=jaw,
        border=int(0.8 * len(jaw)),
        reach=np.ones(len(CHANNELS)),
        opened=lambda way: way[:, JAW],
    )


def own_way() -> Float:
    """A jaw that opens with the high bands of the sound, late: nothing like what everybody does."""
    sound, visemes = sound_frames(articulation())
    loud = np.clip(1 + sound[:, 18:24].mean(axis=1), 0, 1) * (visemes[:, REST] < 0.5)
    return np.asarray(0.05 + 0.5 * np.roll(loud, 2))


@pytest.fixture(scope="module")
def learned() -> Learned:
    torch.set_num_threads(1)
    return learn(material(own_way()), QUICK)


# What is heard


def test_frames_are_the_same_however_the_sound_was_cut() -> None:
    whole, visemes = sound_frames(articulation())
    frames, rng = SoundFrames(), np.random.default_rng(0)
    pieces, start, length = [], 0, len(articulation().level)
    while start < length:
        count = int(rng.integers(1, 23))
        pieces.append(frames.push(articulation().cut(start, start + count)))
        start += count
    pieces.append(frames.push(articulation().cut(length, length), is_end=True))
    np.testing.assert_allclose(np.concatenate([rows for rows, _ in pieces]), whole)
    np.testing.assert_allclose(np.concatenate([found for _, found in pieces]), visemes)
    assert len(whole) == -(-length // 4)


def test_a_frame_is_the_sound_about_its_time() -> None:
    hops = 400
    visemes = np.tile(np.eye(len(NAMES))[REST], (hops, 1))
    visemes[200:208] = np.eye(len(NAMES))[NAMES.index("a")]
    bands = np.full((hops, COLUMNS - 11), -1.0)
    _, found = sound_frames(Articulation(visemes, np.zeros(hops), bands, np.zeros(hops)))
    # Hops 200 to 208 last from 2.00 to 2.08 s: about the frame at 2.04 s.
    np.testing.assert_allclose(found[:, NAMES.index("a")][49:54], [0, 0.5, 1, 0.5, 0])


def test_a_sound_is_moved_on_the_clock() -> None:
    whole = articulation()
    for by_s, rows, kept in (
        (0.3, slice(30, None), slice(None, -30)),
        (-0.3, slice(None, -30), slice(30, None)),
    ):
        moved = shifted(whole, by_s)
        assert len(moved.level) == len(whole.level)
        np.testing.assert_array_equal(moved.bands[rows], whole.bands[kept])
        silent = slice(None, 30) if by_s > 0 else slice(-30, None)
        assert (moved.visemes[silent, REST] == 1).all()
        assert (moved.bands[silent] == -1).all()


def test_a_picture_that_is_late_is_found_out() -> None:
    visemes = articulation().visemes
    times = np.arange(0, len(visemes) / 100 - 1, 1 / 30)
    jaw = np.interp(times, (np.arange(len(visemes)) + 0.5) / 100, (visemes @ shapes())[:, JAW])
    noise = np.random.default_rng(0)

    def lag(by_frames: float, share: float) -> float:
        late = np.interp(times - by_frames / 30, times, jaw, period=len(times) / 30)
        moved = late + share * noise.normal(size=len(jaw))
        expression = np.zeros((len(times), len(BLENDSHAPES)))
        expression[:, JAW] = moved
        zero = np.zeros((len(times), 3))
        track = bare_track(times, rotation=zero, expression=expression, gaze=np.zeros((len(times), 2, 2)))
        return picture_lag(articulation(), track, moved)

    for by_frames in (0, 1, 8, -7):
        assert lag(by_frames, 0.05) == pytest.approx(by_frames / 30)
    for by_frames in (0.5, -1.7):  # between frames; a sound is moved by whole hundredths of a second
        assert lag(by_frames, 0.05) == pytest.approx(by_frames / 30, abs=0.005)
    assert lag(8, 2.0) == 0  # noise tells nothing
    assert lag(13, 0.05) == 0  # farther than is looked: its rise has no peak


def test_of_a_long_recording_the_minutes_about_the_border_are_used() -> None:
    times = np.arange(0, 1000, 0.1)
    zero = np.zeros((len(times), 3))
    track = bare_track(
        times, rotation=zero, expression=np.zeros((len(times), 52)), gaze=np.zeros((len(times), 2, 2))
    )
    voice = np.arange(160 * 1000, dtype=np.float32).repeat(100)
    speech = SpeechTrack("long.mp4", Audio(voice[:, None], 16000), voice, ())
    cut, part = near_the_border(speech, track)
    assert len(cut.voice) / 16000 == 300
    assert len(part) == pytest.approx(3000, abs=1)  # a row may lie on the edge
    # The border is where it was, four fifths through.
    border = round(0.8 * (len(times) - 1))
    assert part.time_s[part.frame_index == border] == pytest.approx(240)
    assert cut.voice[0] / 160 == pytest.approx(times[border] - 240, abs=0.02)
    short = track.select(times < 60)
    assert near_the_border(speech, short)[1] is short


# Learning


def test_a_person_with_an_own_way_is_learned(learned: Learned) -> None:
    verdict = learned.verdict
    assert verdict.is_better
    assert verdict.personal.all > 0.75
    assert verdict.personal.all > verdict.general.all + 0.2
    assert verdict.cross.all > verdict.cross_general.all


def test_a_mouth_that_has_nothing_to_do_with_the_sound_is_not_believed() -> None:
    frames = len(own_way())
    wander = np.random.default_rng(3).normal(size=frames)
    jaw = np.convolve(wander, np.hanning(9) / 4, mode="same")
    verdict = learn(material(np.clip(0.3 + 0.2 * jaw, 0, 1)), QUICK).verdict
    assert not verdict.is_better
    assert abs(verdict.personal.all) < 0.4


def test_the_held_out_end_is_never_learned_from(learned: Learned) -> None:
    jaw = own_way()
    changed = material(jaw)
    changed.mouth[changed.border :] = 0.9
    changed.opening[changed.border :] = np.arange(len(jaw) - changed.border)
    other = learn(changed, QUICK)
    driver, verdict = other.driver, other.verdict
    for name, values in learned.driver.arrays().items():
        torch.testing.assert_close(driver.arrays()[name], values, msg=name)
    assert verdict.cross == learned.verdict.cross
    assert verdict.personal != learned.verdict.personal


def test_a_stopped_training_goes_on_as_it_would_have(learned: Learned, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done > 1.4:  # in the second of three networks
            raise KeyboardInterrupt

    often = replace(QUICK, network=replace(QUICK.network, checkpoint_seconds=0.0))
    with pytest.raises(KeyboardInterrupt):
        learn(material(own_way()), often, folder=tmp_path, on_progress=stop)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["speech-0.safetensors", "speech-1.safetensors"]
    driver = learn(material(own_way()), often, folder=tmp_path).driver
    for name, values in learned.driver.arrays().items():
        torch.testing.assert_close(driver.arrays()[name], values, msg=name)


def test_a_face_that_is_hardly_seen_at_a_time_is_learned_without_networks() -> None:
    seen = material(own_way())
    often_lost = replace(seen, is_known=np.arange(len(seen.mouth)) % 12 > 1)
    learned = learn(often_lost, QUICK)
    assert learned.driver.networks == ()
    assert learned.verdict.is_better


def test_speech_is_counted_where_there_is_a_face() -> None:
    whole = material(own_way())
    said, in_tail = speech_seconds(whole)
    assert 5 < said < whole.border / FRAME_RATE
    assert in_tail > 1
    unseen = replace(whole, is_known=np.zeros(len(whole.mouth), dtype=bool))
    assert speech_seconds(unseen) == (0, 0)


# What comes out


def test_a_stream_is_moved_as_the_file_is(learned: Learned) -> None:
    driver = restless(learned.driver)
    sound, length = articulation().cut(0, 703), 703
    whole = offsets(driver, sound, seed=5)
    assert len(whole) == 176
    stream = PersonalStream(driver, seed=5)
    pieces = [stream.push(sound.cut(start, start + 33)) for start in range(0, length, 33)]
    assert len(pieces[0]) == 0  # the first window has to be heard
    assert sum(map(len, pieces)) >= len(whole) - 10
    pieces.append(stream.push(sound.cut(length, length), is_end=True))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)


def restless(driver: PersonalDriver) -> PersonalDriver:
    """The same with networks that have learned nothing, and a person who moves a lot."""
    torch.manual_seed(0)
    networks = tuple(MotionTransformer(driver.config).eval() for _ in driver.networks)
    for network in networks:
        torch.nn.init.normal_(network.output.weight)
    deviations = np.full_like(driver.modes.deviations, 0.05)
    return replace(
        driver, networks=networks, strength=1.0, modes=replace(driver.modes, deviations=deviations)
    )


def test_the_same_seed_is_the_same_motion(learned: Learned) -> None:
    driver, sound = restless(learned.driver), articulation().cut(0, 400)
    first = offsets(driver, sound, seed=1)
    np.testing.assert_array_equal(first, offsets(driver, sound, seed=1))
    assert np.abs(first - offsets(driver, sound, seed=2)).max() > 0.01


def test_nothing_is_added_in_silence_and_to_closed_lips(learned: Learned) -> None:
    driver, hops = learned.driver, 400
    bands = np.tile(articulation().bands[100:200], (4, 1))
    for name in ("rest", "closed"):
        weights = np.tile(np.eye(len(NAMES))[NAMES.index(name)], (hops, 1))
        added = offsets(driver, Articulation(weights, np.ones(hops), bands, np.ones(hops)))
        # The frames at either end have silence about them.
        assert np.abs(added[1:-1]).max() == 0
    weights = np.tile(np.eye(len(NAMES))[NAMES.index("a")], (hops, 1))
    assert np.abs(offsets(driver, Articulation(weights, np.ones(hops), bands, np.ones(hops)))).max() > 0.05


def test_only_the_mouth_is_moved(learned: Learned) -> None:
    added = offsets(learned.driver, articulation())
    others = [i for i in range(len(BLENDSHAPES)) if i not in CHANNELS]
    assert not added[:, others].any()
    assert added[:, JAW].any()


def test_an_unknown_sound_is_not_trusted(learned: Learned) -> None:
    sound, _ = sound_frames(articulation())
    _, known = learned.driver.regression.predict(sound)
    strange = np.random.default_rng(0).normal(0, 2, sound.shape)
    _, unknown = learned.driver.regression.predict(strange)
    assert known.mean() > 0.9
    assert unknown.max() < 0.2


def test_the_regression_is_that_of_the_textbook() -> None:
    """Against the posterior mean of a Gaussian process written down plainly."""
    rng = np.random.default_rng(1)
    frames, modes = rng.normal(size=(60, COLUMNS)), rng.normal(size=(60, 2))
    regression = MouthRegression.fit(frames, np.arange(50), modes, noise=0.3)
    rows, gamma = regression.rows, 0.4

    def kernel(one: Float, other: Float) -> Float:
        return np.array(
            [[np.exp(-gamma * np.mean((a - b) ** 2)) for b in other] for a in one]  # mean: over the width
        )

    prior = modes[:50].mean(axis=0)
    solved = np.linalg.inv(kernel(rows, rows) + 0.3 * np.eye(50)) @ (modes[:50] - prior)
    found, _ = regression.predict(frames[:50])
    # Windows that do not reach beyond the frames are the training's own.
    np.testing.assert_allclose(found, (kernel(rows, rows) @ solved + prior)[3:-1], atol=1e-9)


# The network


def toy(count: int, seed: int) -> tuple[torch.Tensor, MotionConditions]:
    """Motions that follow one column of the sound."""
    config, random = TransformerConfig(modes=2), torch.Generator().manual_seed(seed)
    sound = torch.randn(count, config.heard, COLUMNS, generator=random)
    motion = sound[:, 3:-1, :2]
    return motion[:, config.previous :], MotionConditions(
        sound,
        torch.zeros(count, config.frames, 2),
        motion[:, : config.previous],
        torch.ones(count),
        torch.ones(count),
    )


@pytest.fixture(scope="module")
def follower() -> MotionTransformer:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = MotionTransformer(TransformerConfig(modes=2, width=32, heads=2, layers=1, dropout=0.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for step in range(250):
        motion, given = toy(32, step)
        has_sound = (torch.rand(32) > 0.2).float()
        given = replace(given, has_sound=has_sound)
        loss = flow_loss(network, motion, given, torch.randn(motion.shape), torch.rand(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_a_network_follows_the_sound_and_is_guided_by_it(follower: MotionTransformer) -> None:
    motion, given = toy(64, 999)
    noise = torch.randn(motion.shape, generator=torch.Generator().manual_seed(1))

    def drawn(sound: float, steps: int = 3) -> torch.Tensor:
        return sample(follower, noise, given, SamplerConfig(steps=steps, sound=sound))

    def follows(found: torch.Tensor) -> float:
        return pearson(found.flatten().double().numpy(), motion.flatten().double().numpy())

    assert follows(drawn(1.0)) > 0.6
    assert follows(drawn(0.0)) < 0.2  # led by the previous frames alone
    assert drawn(2.0, steps=1).std() > 1.2 * drawn(1.0, steps=1).std()


def test_one_step_is_the_networks_own_prediction(follower: MotionTransformer) -> None:
    motion, given = toy(4, 5)
    noise = torch.randn(motion.shape, generator=torch.Generator().manual_seed(1))
    found = sample(follower, noise, given, SamplerConfig(steps=1, sound=1.0, previous=1.0))
    with torch.no_grad():
        torch.testing.assert_close(found, follower(noise, torch.zeros(4), given))


def test_what_is_left_out_has_no_effect(follower: MotionTransformer) -> None:
    motion, given = toy(4, 5)
    other = toy(4, 6)[1]
    with torch.no_grad():
        for name, has in (("sound", "has_sound"), ("previous", "has_previous")):
            deaf = replace(given, **{has: torch.zeros(4)})
            same = follower(motion, torch.full((4,), 0.5), replace(deaf, **{name: getattr(other, name)}))
            torch.testing.assert_close(same, follower(motion, torch.full((4,), 0.5), deaf))


@pytest.mark.parametrize("wish", [{"modes": 0}, {"width": 30, "heads": 4}])
def test_impossible_networks_are_refused(wish: dict[str, int]) -> None:
    with pytest.raises(InputError):
        TransformerConfig(**wish)


# The product


@pytest.fixture(scope="module")
def person() -> Avatar:
    torch.set_num_threads(1)
    return stand_in(128, frame_count=30, clip_side=128).avatar


def with_speech(person: Avatar, driver: PersonalDriver, *, is_better: bool) -> Avatar:
    report = {"is_better": is_better, "recording": "me.mp4"}
    return replace(
        person, speech=SpeechPart({"driver": driver.settings(), "report": report}, driver.arrays())
    )


def test_an_avatar_keeps_what_it_learned(person: Avatar, learned: Learned, tmp_path: Path) -> None:
    path = tmp_path / "me.avatar"
    with_speech(person, learned.driver, is_better=True).save(path)
    again = personal_driver(Avatar.load(path).speech, "auto")
    assert again is not None
    np.testing.assert_allclose(
        offsets(again, articulation(), 3), offsets(learned.driver, articulation(), 3), atol=1e-4
    )


def test_an_avatar_that_learned_nothing_is_as_before(person: Avatar, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "me.avatar"
    person.save(path)
    with safe_open(made_plain(path), framework="pt") as file:
        assert file.metadata()["version"] == "4"
    assert Avatar.load(path).speech is None
    assert personal_driver(None, "auto") is None
    with pytest.raises(InputError, match="omokage learn-speech"):
        personal_driver(None, "personal")


def test_the_better_driver_speaks(person: Avatar, learned: Learned) -> None:
    better = with_speech(person, learned.driver, is_better=True).speech
    worse = with_speech(person, learned.driver, is_better=False).speech
    assert personal_driver(better, "auto") is not None
    assert personal_driver(worse, "auto") is None
    assert personal_driver(worse, "personal") is not None
    assert personal_driver(better, "general") is None
    broken = SpeechPart({**better.settings, "driver": {"transformer": {}}}, better.arrays) if better else None
    with pytest.raises(BundleError, match="damaged"):
        personal_driver(broken, "auto")


def test_speaking_says_which_driver_spoke(person: Avatar, learned: Learned, tmp_path: Path) -> None:
    avatar = with_speech(person, learned.driver, is_better=True)
    curves, said = {}, {}
    for driver in ("general", "auto"):
        reports: list[Progress] = []
        path = tmp_path / f"{driver}.csv"
        speak(
            avatar, output=tmp_path / f"{driver}.mp4", text="Mama.", curves_output=path,
            config=SpeakConfig(driver=driver), on_progress=reports.append,
        )  # fmt: skip
        curves[driver] = path.read_text()
        said[driver] = next(report.note for report in reports if report.stage == "driver")
    assert curves["auto"] != curves["general"]
    assert said == {"auto": "personal, learned from me.mp4", "general": "general"}
    with pytest.raises(InputError, match="driver"):
        SpeakConfig(driver="nobody")  # type: ignore[arg-type]


def test_a_way_from_rest_is_what_retargeting_makes_of_it(person: Avatar) -> None:
    rest = speaking_rest(Rest.of(person.track), person.track)
    expression = np.maximum(person.track.expression, rest.expression).astype(np.float64)
    way = way_from_rest(expression, rest)
    again = relative_expression(way.astype(np.float32), rest, speaker_rest())
    # What would have to be more than full cannot be.
    np.testing.assert_allclose(again[way < 1], expression[way < 1], atol=1e-5)


def test_an_avatar_learns_from_a_recording(person: Avatar, tmp_path: Path) -> None:
    path, clip = tmp_path / "me.avatar", tmp_path / "me.mp4"
    person.save(path)
    before = path.read_bytes()
    write_talker(clip, 40, side=192)  # syllables, but too few
    with pytest.raises(InputError, match="seconds of speech to learn from"):
        learn_speech(path, clip, config=LearnSpeechConfig(QUICK))
    assert path.read_bytes() == before


def talking(rate: float = 25.0) -> FaceTrack:
    """A track of somebody who says `TEXT` in their own way: jaw and the gap between the lips in the pictures."""
    jaw = own_way().astype(np.float32)
    times = np.arange(len(jaw)) / rate
    still = stand_in(128, frame_count=2, clip_side=128).track
    track = still.select(np.zeros(len(jaw), dtype=int))
    expression = np.zeros((len(jaw), len(BLENDSHAPES)), np.float32)
    expression[:, JAW] = jaw
    landmarks = np.zeros((len(jaw), 478, 3), np.float32)
    landmarks[:, 263, 0] = 1  # outer corners of the eyes
    for upper, lower in INNER_LIPS:
        landmarks[:, lower, 1] = landmarks[:, upper, 1] + jaw
    return replace(
        track, frame_index=np.arange(len(jaw)), time_s=times, expression=expression, landmarks=landmarks
    )


def test_a_recording_teaches_an_avatar_and_a_stopped_run_goes_on(
    person: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clip, work = tmp_path / "me.avatar", tmp_path / "me.mp4", tmp_path / "me.avatar.speech.work"
    person.save(path)
    sound = resampled(speak_text(TEXT, "en-us").sound, 16000)
    blank = (np.zeros((64, 64, 3), np.uint8) for _ in range(int(10 * len(sound) / 16000)))
    release_clip(blank, clip, frame_rate=Fraction(10), audio=Audio(sound, 16000))
    monkeypatch.setattr("omokage.pipelines.learn_speech.tracked", lambda *_: talking())

    def stop(progress: Progress) -> None:
        if progress.stage == "learning speech" and progress.done > 1:
            raise KeyboardInterrupt

    often = LearnSpeechConfig(replace(QUICK, network=replace(QUICK.network, checkpoint_seconds=0.0)))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        learn_speech(path, clip, config=often, on_progress=stop)
    assert path.read_bytes() == before
    assert {"recording.track", "speech-0.safetensors"} <= {file.name for file in work.iterdir()}
    monkeypatch.setattr("omokage.pipelines.learn_speech.tracked", lambda *_: pytest.fail("tracked again"))
    found = learn_speech(path, clip, config=often)
    assert not work.exists()
    assert "own way of speaking was learned" in found.sentences[-1]
    assert found.verdict is not None
    assert found.verdict.personal.all > 0.6
    part = Avatar.load(path).speech
    assert part is not None
    assert part.settings["report"]["recording"] == "me.mp4"
    assert personal_driver(part, "auto") is not None


def test_a_sound_of_no_use_does_not_stop_an_avatar(
    person: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MediaError("its sound is damaged")

    monkeypatch.setattr(create_pipeline, "learned_speech", broken)
    work, told = Work(tmp_path), []
    talking().save(work.track)
    assert create_pipeline._with_speech(person, tmp_path / "me.mp4", QUICK, work, told.append) is person
    assert [progress.note for progress in told] == [
        "its sound is damaged; the avatar speaks in the general way"
    ]


def test_learning_is_in_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = dict.fromkeys(("track", "find", "matte", "register", "picture", "warp", "score", "train"), 0.01)
    monkeypatch.setattr("omokage.pipelines.predict.unit_costs", lambda _: UnitCosts(**costs))
    silent, speaking = (predict_create(60, 25, 256, 10, has_speech=has).minutes for has in (False, True))
    assert speaking > silent + 0.5


def test_a_silent_recording_is_said(person: Avatar, tmp_path: Path) -> None:
    clip = tmp_path / "mute.mp4"
    release_clip((np.zeros((64, 64, 3), np.uint8) for _ in range(5)), clip, frame_rate=Fraction(10))
    found = learned_speech(clip, person.track)
    assert found.part is None
    assert found.sentences == (
        "mute.mp4 has no sound, so nothing was learned of how this person speaks; the avatar speaks in the general way",
    )
