"""A live voice: streams equal files, one clock of samples, interruption, idle life, drops, bounds, threads."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from omokage.errors import InputError, MediaError
from omokage.media.clip import SoundFormat
from omokage.media.pcm import Resampler
from omokage.metrics.talking import pearson
from omokage.pipelines import live_speaker
from omokage.pipelines.live_speaker import PATIENCE_S, STALL_S, Clock, LiveSpeaker, Pacer, SpokenFrame
from omokage.pipelines.reenact import Performer, performer_of
from omokage.pipelines.speak import SpeakConfig
from omokage.pipelines.speech_track import resampled
from omokage.pipelines.stand_in import stand_in
from omokage.render.outlet import Outlet
from omokage.render.retarget import JAW
from omokage.speaking import live as live_module
from omokage.speaking.cues import Cue
from omokage.speaking.driver import (
    MotionStream,
    Style,
    VoiceDriver,
    driven_by_voice,
    joined,
    motion,
)
from omokage.speaking.live import LiveConfig, LiveMoment, LiveVoice, look_ahead_frames
from omokage.speaking.liveliness import Life
from omokage.speaking.voices import speak_text
from omokage.tracking.face_track import BLENDSHAPES, FRAME_ARRAYS

Float32 = NDArray[np.float32]
SENTENCE = "My mother brings a big blue umbrella. Happy people move to bigger towns."
SAME = 1e-5  # bound of live against offline: weights, radians
SHUT = 0.03
SMILE = BLENDSHAPES.index("mouthSmileLeft")


@pytest.fixture(scope="module")
def voice() -> Float32:
    """3 s."""
    return resampled(speak_text(SENTENCE, "en-us").sound, 16000)[: 3 * 16000 + 77, 0]


@pytest.fixture(scope="module")
def performer() -> Performer:
    torch.set_num_threads(1)
    avatar = stand_in(128, frame_count=30, clip_side=128).avatar
    return performer_of(avatar, SpeakConfig(runtime="torch").drawing(), is_live=True)


def steps(voice: LiveVoice, count: int) -> list[LiveMoment]:
    return [moment for _ in range(count) for moment in voice.step()]


def rest_of(voice: LiveVoice) -> list[LiveMoment]:
    told = []
    while not voice.is_over:
        told += voice.step()
    return told


def track_of(moments: list[LiveMoment], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(moment.motion, name) for moment in moments])


def jaw(moments: list[LiveMoment]) -> NDArray[Any]:
    return track_of(moments, "expression")[:, JAW]


# A stream is driven as the file is


def test_however_a_voice_is_cut_the_mouth_does_the_same(voice: Float32) -> None:
    whole, rng = driven_by_voice(voice), np.random.default_rng(0)
    driver, pieces, start = VoiceDriver(), [], 0
    while start < len(voice):
        count = int(rng.integers(1, 3000))
        pieces.append(driver.step(voice[start : start + count]))
        start += count
    pieces.append(driver.step(voice[:0], is_end=True))
    cut = joined(pieces)
    np.testing.assert_allclose(cut.visemes, whole.visemes, atol=1e-4)
    np.testing.assert_allclose(cut.level, whole.level, atol=1e-4)
    np.testing.assert_allclose(whole.visemes.sum(axis=1), 1, atol=1e-5)
    assert len(cut.level) == -(-len(voice) // 160)


def test_a_hop_waits_no_longer_than_is_promised(voice: Float32) -> None:
    driver, told = VoiceDriver(), 0
    for start in range(0, 9600, 96):
        told += len(driver.step(voice[start : start + 96]).level)
        heard = start + 96
        assert told >= (heard - VoiceDriver.LATENCY_SAMPLES) // 160 + 1 or heard < VoiceDriver.LATENCY_SAMPLES


@pytest.mark.parametrize("frame_rate", [25, 30])
def test_however_hops_are_cut_the_face_does_the_same(voice: Float32, frame_rate: int) -> None:
    whole = driven_by_voice(voice)
    cues = (Cue(0.5, mood="friendly"), Cue(0.7, energy=0.5, look=(5.0, 0.0)), Cue(1.6, mood="serious"))
    offline = motion(whole, len(voice) / 16000, frame_rate, Style(), cues)
    stream, tracks, start = MotionStream(frame_rate, Style(), cues), [], 0
    rng = np.random.default_rng(0)
    while start < len(whole.level):
        stop = start + int(rng.integers(0, 9))
        tracks.append(stream.step(whole.cut(start, stop)))
        start = stop
    tracks.append(stream.step(joined([]), end=len(offline)))
    for name in FRAME_ARRAYS:
        live = np.concatenate([getattr(track, name) for track in tracks])
        if name not in ("frame_index",):
            np.testing.assert_allclose(live, getattr(offline, name), atol=SAME, err_msg=name)


@pytest.mark.parametrize("piece", [160, 641, 16000])
def test_live_is_what_the_file_gets(voice: Float32, piece: int) -> None:
    """The same motion and the same sound, whatever comes at a time."""
    live, told, start = LiveVoice(LiveConfig(room_s=2.0)), [], 0
    while start < len(voice):
        start += live.put(voice[start : start + piece], wait=False)
        if live.waiting_s > 0.9:
            told += live.step()
    live.end()
    told += rest_of(live)
    offline = motion(driven_by_voice(voice), len(voice) / 16000, 25.0)
    assert [moment.index for moment in told] == list(range(len(offline)))
    for name in ("expression", "rotation", "gaze", "sway"):
        # A file ends; a stream goes on with silence, which the last 50 ms of smoothing hear.
        np.testing.assert_allclose(track_of(told, name)[:-2], getattr(offline, name)[:-2], atol=SAME)
        np.testing.assert_allclose(track_of(told, name), getattr(offline, name), atol=0.05)
    samples = np.concatenate([moment.samples for moment in told])[:, 0]
    np.testing.assert_array_equal(samples[: len(voice)], voice)
    assert not samples[len(voice) :].any()


@pytest.mark.parametrize(("rate", "frame_rate"), [(16000, 25), (16000, 30), (44100, 25), (8000, 60)])
def test_a_frame_is_told_as_late_as_promised_and_no_later(rate: int, frame_rate: int, voice: Float32) -> None:
    live = LiveVoice(LiveConfig(sample_rate=rate), frame_rate=frame_rate)
    behind = []
    for count in range(1, 41):
        told = live.step()
        behind += [count - 1 - moment.index for moment in told]
    assert behind == [look_ahead_frames(frame_rate)] * (40 - look_ahead_frames(frame_rate))
    assert look_ahead_frames(25) == 6


def test_a_telephone_is_read_while_it_speaks(voice: Float32) -> None:
    """8 kHz: the sound leaves as it came, and the mouth is that of the resampled file."""
    narrow = resampled(SimpleNamespace(samples=voice[:, None], sample_rate=16000), 8000)[:, 0]  # type: ignore[arg-type]
    narrow = np.clip(narrow, -1, 1)
    live = LiveVoice(LiveConfig(sample_rate=8000, room_s=10))
    live.put(narrow)
    live.end()
    told = rest_of(live)
    np.testing.assert_array_equal(np.concatenate([m.samples for m in told])[: len(narrow), 0], narrow)
    wide = resampled(SimpleNamespace(samples=narrow[:, None], sample_rate=8000), 16000)[:, 0]  # type: ignore[arg-type]
    known = motion(driven_by_voice(wide), len(wide) / 16000, 25.0)
    assert pearson(jaw(told), known.expression[: len(told), JAW]) > 0.98
    assert jaw(told).max() > 0.15


# Silence, noise, idle


@pytest.mark.parametrize("name", ["silence", "noise"])
def test_nothing_but_speech_opens_a_live_mouth(name: str) -> None:
    noise = (0.1 * np.random.default_rng(0).normal(size=48000)).astype(np.float32)
    live = LiveVoice(LiveConfig(room_s=4))
    live.put(noise if name == "noise" else 0 * noise)
    told = steps(live, 80)
    assert jaw(told).max() < SHUT


def test_a_mouth_shuts_after_the_voice_and_the_face_lives_on(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(room_s=10))
    live.put(voice[:24000])
    told = steps(live, 25 * 6)
    assert jaw(told[:40]).max() > 0.1
    idle = told[25 * 3 :]
    assert jaw(idle).max() < SHUT
    assert np.ptp(np.degrees(track_of(idle, "rotation")[:, 1])) > 0.3
    assert np.ptp(track_of(idle, "translation")[:, 1]) > 0.1  # breath


def test_an_idle_face_blinks_and_does_not_repeat_itself() -> None:
    stream = MotionStream(25.0)
    silence = driven_by_voice(np.zeros(1600, np.float32)).cut(0, 4)
    rows = [stream.step(silence) for _ in range(25 * 90)]
    expression, rotation = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("expression", "rotation")
    )
    assert expression[:, JAW].max() < SHUT
    blinks = expression[:, BLENDSHAPES.index("eyeBlinkLeft")] > 0.5
    assert 12 <= np.count_nonzero(blinks[1:] & ~blinks[:-1]) <= 32  # 14 a minute were asked
    yaw = np.degrees(rotation[:, 1])
    assert 0.4 < yaw.std() < 3
    power = np.fft.irfft(np.abs(np.fft.rfft(yaw - yaw.mean(), 2 * len(yaw))) ** 2)[: len(yaw)]
    assert (power[25 * 10 : 25 * 75] / power[0]).max() < 0.6


def test_a_long_stream_keeps_nothing(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(room_s=1))
    sizes = []
    for _ in range(6):
        live.put(voice[:16000])
        live.change(Cue(0, energy=0.5))
        steps(live, 50)
        stream = live._motion
        sizes.append(
            (
                len(stream._hops.level),
                len(live._unsaid),
                len(live._known),
                len(live._voice._loudness),
                len(live._voice._reader._hearing._judged),
                live._waiting.count,
                len(stream._cues),
            )
        )
    assert max(max(size) for size in sizes) < 40
    assert sizes[2:] == sizes[2:3] * 4


# Interruption


def test_an_interruption_shuts_the_mouth_and_drops_what_is_unsaid(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(room_s=10))
    live.put(voice[: 3 * 16000])
    told = steps(live, 48)
    while jaw(told)[-1] < 0.1:  # in the middle of an open mouth
        told += live.step()
    left = live.interrupt()
    said = len(told) / 25
    assert left == pytest.approx(3 - said, abs=1e-6)
    after = steps(live, 30)
    assert [m.index for m in after] == list(range(len(told), len(told) + 30))
    # 200 ms of picture time: one frame may be on its way, the next closes, the one after is shut.
    assert 0.3 < jaw(after)[0] / jaw(told)[-1] < 0.7
    assert jaw(after)[1:].max() < SHUT
    assert np.abs(after[0].samples).max() > 0 and after[0].samples[-1] == 0  # fades
    assert not any(m.samples.any() for m in after[1:])
    assert live.waiting_s == 0 and live.interrupt() == 0


def test_after_an_interruption_the_next_sentence_is_said_in_full(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(room_s=10))
    live.put(voice)
    steps(live, 37)
    live.interrupt()
    live.put(voice)
    live.end()
    told = rest_of(live)
    samples = np.concatenate([m.samples for m in told])[:, 0]
    start = len(samples) // 640 * 640 - -(-len(voice) // 640) * 640
    np.testing.assert_array_equal(samples[start : start + len(voice)], voice)
    known = motion(driven_by_voice(voice), len(voice) / 16000, 25.0).expression[:, JAW]
    np.testing.assert_allclose(jaw(told)[start // 640 :][5:], known[5:], atol=0.02)


def test_an_interruption_before_anything_was_said() -> None:
    live = LiveVoice()
    assert live.interrupt() == 0
    assert len(steps(live, 20)) == 14
    live.end()
    assert rest_of(live)


# Wishes while it runs


def test_a_change_is_made_at_once_and_eased_in(voice: Float32) -> None:
    live = LiveVoice(style=Style(life=Life(head=0, glances=0, blinks_per_minute=0)))
    steps(live, 20)
    live.change(Cue(99.0, mood="friendly", look=(10.0, 0.0)))
    after = steps(live, 20)
    smile = track_of(after, "expression")[:, SMILE]
    assert 0 <= smile[0] < 0.02 and smile[-1] > 0.2
    assert np.diff(smile).min() > -1e-6
    np.testing.assert_allclose(np.degrees(after[-1].motion.gaze[0, 0]), [10, 0], atol=1e-3)


# Bounds


def test_a_voice_that_comes_too_fast_waits_or_is_told(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(room_s=0.5))
    assert live.put(voice, wait=False) == 8000
    assert live.put(voice, wait=False) == 0
    assert live.waiting_s == 0.5
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.append(live.put(voice[:16000])))
    thread.start()
    for _ in range(60):
        live.step()
        assert live.waiting_s <= 0.5
        thread.join(0.01)
    thread.join(5)
    assert taken == [16000]


@pytest.mark.parametrize("stop", ["end", "close"])
def test_who_waits_to_be_heard_is_let_go(stop: str, voice: Float32) -> None:
    live, taken = LiveVoice(LiveConfig(room_s=0.5)), list[int]()
    thread = threading.Thread(target=lambda: taken.append(live.put(voice[:16000])))
    thread.start()
    while live.waiting_s < 0.5:
        time.sleep(0.001)
    getattr(live, stop)()
    thread.join(5)
    assert taken == [8000]
    assert live.put(voice) == 0


def test_an_uneven_voice_is_not_torn_apart(voice: Float32) -> None:
    """Pieces of 20 ms that come up to 15 ms late: between the first and the last sample nothing is put."""
    live, rng = LiveVoice(), np.random.default_rng(1)
    due = [0.02 * (k + 1) + rng.uniform(0, 0.015) for k in range(100)]
    told: list[LiveMoment] = []
    for frame in range(1, 90):
        while due and due[0] <= 0.04 * frame + 0.013:
            due.pop(0)
            live.put(np.full(320, 0.1, np.float32), wait=False)
        told += live.step()
    samples = np.concatenate([m.samples for m in told])[:, 0]
    spoken = np.flatnonzero(samples)
    assert len(spoken) == 100 * 320 == spoken[-1] - spoken[0] + 1


@pytest.mark.parametrize(
    ("samples", "part"),
    [
        (np.zeros((10, 2), np.float32), "(samples, 1)"),
        (np.zeros((2, 2, 2), np.float32), "(samples, 1)"),
        (np.array(["a"]), "float32 or int16"),
        (np.zeros(4, np.int32), "int16"),
        (np.array([0.0, np.nan]), "no numbers"),
    ],
)
def test_what_is_no_sound_is_refused(samples: NDArray[Any], part: str) -> None:
    with pytest.raises(InputError) as refused:
        LiveVoice().put(samples)
    assert part in str(refused.value)


def words(seconds: float, quiet: float) -> Float32:
    """Noise, 0.3 s loud and 0.2 s as loud as `quiet`, again and again."""
    loud = np.arange(round(seconds * 16000)) % 8000 < 4800
    noise = np.random.default_rng(0).uniform(0.5, 1.0, len(loud)) * np.where(np.arange(len(loud)) % 2, 1, -1)
    return np.asarray(noise * np.where(loud, 0.3, quiet), np.float32)


@pytest.mark.parametrize(
    ("catches_up", "quiet", "behind"), [(True, 0.001, 1), (False, 0.001, 4), (True, 0.1, 4), (True, 0.0, 1)]
)
def test_a_voice_that_fell_behind_catches_up_between_words(
    catches_up: bool, quiet: float, behind: int
) -> None:
    """It comes frame by frame; once nothing comes for four frames, and then all of it at once."""
    voice, live = words(12.0, quiet), LiveVoice(LiveConfig(catches_up=catches_up))
    frames, told = voice.reshape(-1, 640), []
    late: list[Float32] = []
    for number, frame in enumerate(frames):
        late.append(frame)
        if not 50 <= number < 54:
            for each in late:
                assert live.put(each, wait=False) == 640
            late = []
        told += live.step()
    left = round(live.waiting_s * 25)
    assert left == behind
    live.end()
    told += rest_of(live)
    said = np.concatenate([moment.samples for moment in told])[:, 0]
    # What is loud was said to the last sample, in order; what is left out is told.
    np.testing.assert_array_equal(said[np.abs(said) > 0.12], voice[np.abs(voice) > 0.12])
    assert live.skipped_s == pytest.approx(0.04 * (4 - behind))
    assert [moment.index for moment in told] == list(range(len(told)))


def test_a_voice_that_comes_evenly_loses_nothing() -> None:
    voice = words(12.0, 0.0001)
    live, told = LiveVoice(LiveConfig(catches_up=True)), []
    for start in range(0, len(voice), 320):
        live.put(voice[start : start + 320])
        if start % 640:
            told += live.step()
    live.end()
    told += rest_of(live)
    assert live.skipped_s == 0
    said = np.concatenate([moment.samples for moment in told])[:, 0]
    np.testing.assert_array_equal(said[said != 0], voice)


@pytest.mark.parametrize(
    "wish", [{"sample_rate": 100}, {"channels": 0}, {"cushion_s": -1.0}, {"room_s": 0.1}, {"room_s": 100.0}]
)
def test_faulty_wishes_for_a_stream_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LiveConfig(**wish)


def test_whole_numbers_and_stereo_are_heard(voice: Float32) -> None:
    live = LiveVoice(LiveConfig(channels=2, room_s=2))
    whole = np.round(voice[:16000] * 32767).astype(np.int16)
    live.put(np.stack([whole, 0 * whole], axis=1))
    live.end()
    told = rest_of(live)
    samples = np.concatenate([m.samples for m in told])
    assert samples.shape == (16000, 2) and not samples[:, 1].any()
    np.testing.assert_allclose(samples[:, 0], voice[:16000], atol=1e-4)
    assert jaw(told).max() > 0.1


# Sound and picture


class NoVoice:
    """Hears nothing, as late as the real one."""

    LATENCY_SAMPLES = VoiceDriver.LATENCY_SAMPLES

    def step(self, samples: Float32) -> int:
        return len(samples)


class NoResampling:
    """As many samples as there would be."""

    DELAY_S = Resampler.DELAY_S

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._ratio, self._heard, self._told = target_rate / source_rate, 0, 0

    def step(self, samples: Float32) -> Float32:
        self._heard += len(samples)
        count = int(self._heard * self._ratio) - self._told
        self._told += count
        return np.zeros(count, np.float32)


class Rows(list[None]):
    """A track of so many rows that nobody looks at."""

    def __init__(self, count: int) -> None:
        super().__init__([None] * count)

    def select(self, _: object) -> None:
        return None


class NoMotion:
    """A row for every frame whose sound and look-ahead came."""

    def __init__(self, frame_rate: float, *_: object) -> None:
        self._rate, self._heard, self._told = frame_rate, 0, 0

    def step(self, samples: int) -> Any:
        self._heard += samples
        count = max(0, int((self._heard / 16000 - 0.28) * self._rate + 1e-6) + 1) - self._told
        self._told += count
        return Rows(count)

    def hush(self) -> None:
        self._heard = round(self._told / self._rate * 16000)


@pytest.mark.parametrize(("rate", "frame_rate"), [(16000, 25), (44100, 30), (22050, 24)])
def test_after_ten_minutes_sound_and_picture_are_where_they_were(
    monkeypatch: pytest.MonkeyPatch, rate: int, frame_rate: int
) -> None:
    """By counting: frames and samples that left, through gaps, jams and interruptions."""
    monkeypatch.setattr(live_module, "VoiceDriver", NoVoice)
    monkeypatch.setattr(live_module, "MotionStream", NoMotion)
    monkeypatch.setattr(live_module, "Resampler", NoResampling)
    live, rng = LiveVoice(LiveConfig(sample_rate=rate), frame_rate=frame_rate), np.random.default_rng(0)
    frames = samples = 0
    worst = 0.0
    for _ in range(600 * frame_rate):
        if rng.random() < 0.7:
            live.put(np.ones(int(rng.integers(1, rate // 10)), np.float32), wait=False)
        if rng.random() < 0.002:
            live.interrupt()
        for moment in live.step():
            assert moment.index == frames
            frames, samples = frames + 1, samples + len(moment.samples)
            worst = max(worst, abs(samples / rate - frames / frame_rate))
    assert frames >= 600 * frame_rate - 2 * frame_rate
    assert worst <= 1 / rate  # 40 ms were allowed


class FakeClock:
    """Time passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s, self.naps = 0.0, list[float]()

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.naps.append(seconds)


def test_the_clock_does_not_drift_and_catches_up() -> None:
    fake, rng = FakeClock(), np.random.default_rng(0)
    pacer = Pacer(25, fake.clock())
    for _ in range(15000):
        fake.now_s += rng.uniform(0, 0.07) if rng.random() < 0.5 else 0.0
        pacer.wait()
    assert fake.now_s == pytest.approx(600, abs=0.1) and pacer.stalls == 0
    fake.now_s += STALL_S / 2
    napped = len(fake.naps)
    for _ in range(10):
        pacer.wait()
    assert len(fake.naps) == napped  # it hurries
    fake.now_s += 3600
    pacer.wait()
    assert pacer.stalls == 1
    pacer.wait()
    assert len(fake.naps) == napped + 1  # an hour is not caught up with


def test_a_dropped_picture_is_replaced_and_no_frame_is_missing() -> None:
    outlet: Outlet[str, str] = Outlet("rest", room=9)
    for index, sound in enumerate("abcdef"):
        outlet.expect(index, sound, float(index))
    for index in (0, 3, 5):
        outlet.put((index, f"picture {index}"))
    outlet.close()
    left = list(outlet)
    assert [(x.index, x.moment) for x in left] == list(enumerate("abcdef"))
    assert [x.picture_index for x in left] == [0, 0, 0, 3, 3, 5]
    assert [x.picture for x in left][2:4] == ["picture 0", "picture 3"]


def test_a_picture_that_takes_too_long_is_not_waited_for() -> None:
    outlet: Outlet[str, str] = Outlet("rest", room=9)
    for index in range(4):
        outlet.expect(index, "", float(index))
    leaving = iter(outlet)
    outlet.give_up(before_s=1.5)
    assert [next(leaving).picture_index for _ in range(2)] == [-1, -1]
    outlet.put((1, "late"))
    outlet.put((2, "in time"))
    assert next(leaving).picture == "in time"
    outlet.put((3, "last"))
    assert next(leaving).picture == "last"


def test_a_frame_that_is_not_drawn_leaves_at_once() -> None:
    outlet: Outlet[str, str] = Outlet("rest", room=9)
    for index in range(3):
        outlet.expect(index, "", 0.0, is_drawn=index == 2)
    leaving = iter(outlet)
    assert [next(leaving).picture_index for _ in range(2)] == [-1, -1]
    outlet.put((2, "drawn"))
    assert next(leaving).picture == "drawn"


def test_frames_that_nobody_takes_stop_the_clock() -> None:
    outlet: Outlet[int, int] = Outlet(0, room=3)
    for index in range(3):
        outlet.expect(index, index, 0.0)
    waited: list[bool] = []
    assert not outlet.wait_for_room(0.001) and not outlet.is_closed
    thread = threading.Thread(target=lambda: waited.append(outlet.wait_for_room(20)))
    thread.start()
    thread.join(0.05)
    assert waited == []
    outlet.put((0, 1))
    next(iter(outlet))
    thread.join(5)
    assert waited == [True]
    outlet.close()
    assert not outlet.wait_for_room(20) and outlet.is_closed and not outlet.put((1, 1))


# The speaker


def speaker_with(performer: Performer, *stages: Callable[[Any], Any], **how: Any) -> LiveSpeaker:
    changed = dataclasses.replace(performer, stages=stages or performer.stages)
    return LiveSpeaker(changed, clock=FakeClock().clock(), **({"keep_all": True} | how))


def test_live_pictures_are_those_of_the_file(performer: Performer, voice: Float32) -> None:
    """Frame for frame the same, drawn in stages; and the wishes of `speak` work."""
    config, short = SpeakConfig(mood="friendly", seed=3), voice[: 16000 // 2]
    with speaker_with(performer, config=config, live=LiveConfig(room_s=2)) as speaker:
        speaker.hear(short)
        speaker.end()
        frames = list(speaker)
    track = motion(driven_by_voice(short), 0.5, 25.0, config.style())
    carry = live_speaker._carrier(performer, config)
    assert [frame.index for frame in frames] == list(range(len(track)))
    for frame in frames[::4]:
        np.testing.assert_allclose(frame.motion.expression[0], track.expression[frame.index], atol=0.05)
        expected = performer.render(carry(frame.motion))
        np.testing.assert_array_equal(frame.portrait.image, expected.image)
    assert not any(frame.is_repeated for frame in frames)
    assert [frame.time_s for frame in frames[:3]] == [0, 0.04, 0.08]
    statistics = speaker.statistics()
    assert (statistics.frames, statistics.repeated, statistics.stalls) == (len(track), 0, 0)


def test_the_way_of_a_row_is_that_of_the_film(performer: Performer, voice: Float32) -> None:
    """`speak` carries the whole motion over at once, live each row: the same states."""
    from omokage.pipelines.speak import speaker_rest, speaking_rest, within_reach
    from omokage.render.retarget import Coverage, retarget

    track = motion(driven_by_voice(voice[:16000]), 1.0, 25.0)
    rest = speaking_rest(performer.rest, performer.track)
    moved = retarget(
        within_reach(track, rest),
        source_rest=rest,
        coverage=Coverage.of(performer.track),
        controls=SpeakConfig().drawing().controls(),
        driving_rest=speaker_rest(),
    ).motion
    carry = live_speaker._carrier(performer, SpeakConfig())
    for row in range(0, len(track), 6):
        state = carry(track.select(np.array([row])))
        np.testing.assert_allclose(state.expression, moved.expression[row], atol=SAME)
        np.testing.assert_allclose(state.pose.rotation, moved.rotation[row], atol=SAME)
        np.testing.assert_allclose(state.gaze, moved.gaze[row], atol=SAME)


def test_a_slow_machine_drops_pictures_and_no_sound(performer: Performer, voice: Float32) -> None:
    """Drawing hangs: frames leave all the same, after their patience, with the picture before and their own sound."""
    hangs = threading.Event()
    drawn = []

    def draw(state: Any) -> Any:
        if drawn:
            hangs.wait(10)
        drawn.append(state)
        return len(drawn)

    speaker = speaker_with(performer, draw, keep_all=False, live=LiveConfig(room_s=4))
    speaker.hear(voice[: 2 * 16000])
    speaker.end()
    frames: list[SpokenFrame] = []
    for frame in speaker:
        frames.append(frame)
        if len(frames) == 20:
            hangs.set()
    assert [frame.index for frame in frames] == list(range(50))
    np.testing.assert_array_equal(np.concatenate([f.samples for f in frames])[:, 0], voice[: 2 * 16000])
    assert all(frame.is_repeated for frame in frames[:20])
    assert len(drawn) < 50
    shown = [frame.picture_index for frame in frames]
    assert shown == sorted(shown) and all(at <= frame.index for at, frame in zip(shown, frames, strict=True))
    assert speaker.statistics().repeated == sum(frame.is_repeated for frame in frames) >= 20
    assert PATIENCE_S < 1


def test_a_machine_that_is_always_late_still_says_everything(performer: Performer, voice: Float32) -> None:
    """Every look at the clock finds it 30 ms later: few pictures are begun, and nothing hangs or is lost."""
    now = iter(np.arange(0, 1e4, 0.03))
    drawn: list[Any] = []
    changed = dataclasses.replace(performer, stages=(lambda state: drawn.append(state) or 1,))
    speaker = LiveSpeaker(
        changed, live=LiveConfig(room_s=4), clock=Clock(lambda: float(next(now)), lambda _: None)
    )
    speaker.hear(voice[:24000])
    speaker.end()
    frames = list(speaker)
    assert [frame.index for frame in frames] == list(range(38))
    np.testing.assert_array_equal(np.concatenate([f.samples for f in frames])[:24000, 0], voice[:24000])
    assert 2 <= len(drawn) < 30 and speaker.statistics().stalls >= 2
    assert sum(frame.is_repeated for frame in frames) > 10


def test_a_stage_that_fails_is_told_and_threads_end(performer: Performer, voice: Float32) -> None:
    def draw(state: Any) -> Any:
        if calls.append(state) or len(calls) > 3:
            raise MediaError("the pencil broke")
        return state

    calls: list[Any] = []
    before = threading.active_count()
    with pytest.raises(MediaError, match="pencil"):
        list(speaker_with(performer, draw))
    speaker = speaker_with(performer, lambda state: state)
    for number, _ in enumerate(speaker):
        if number == 5:
            break  # a caller that leaves early
    speaker.close()
    broken = speaker_with(performer, lambda state: state)
    broken.fail(MediaError("the line is dead"))
    with pytest.raises(MediaError, match="line is dead"):
        list(broken)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_caller_who_takes_no_frames_holds_a_second_of_them(performer: Performer) -> None:
    speaker = speaker_with(performer, lambda state: state, keep_all=False)
    frames: Iterator[SpokenFrame] = iter(speaker)
    next(frames)
    deadline = time.monotonic() + 60
    while len(speaker._outlet._expected) < 25 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(speaker._outlet._expected) == 25
    frames.close()  # type: ignore[attr-defined]


def test_a_speaker_is_interrupted_and_changed_while_it_speaks(performer: Performer, voice: Float32) -> None:
    speaker = speaker_with(performer, lambda state: state, live=LiveConfig(room_s=6))
    speaker.hear(voice[: 4 * 16000])
    frames: list[SpokenFrame] = []
    for frame in speaker:
        frames.append(frame)
        if frame.index == 30:
            assert speaker.interrupt() > 0
            speaker.change(mood="friendly", energy=0.5, look=(3, 0))
        if frame.index == 120:
            speaker.end()
    # What was on its way when it was interrupted, at most the second that is held, was said.
    assert not np.concatenate([f.samples for f in frames[31 + 26 :]]).any()
    assert frames[-1].motion.expression[0, SMILE] > 0.2
    assert speaker.sound == SoundFormat(16000, 1) and speaker.label is None
    with pytest.raises(InputError, match="mood"):
        speaker.change(mood="angry")
    with pytest.raises(InputError, match="energy"):
        speaker.change(energy=9.0)
