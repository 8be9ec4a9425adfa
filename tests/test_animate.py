"""`omokage animate` end to end with a tiny model: what comes out, what is kept, what is refused, what is planned."""

from __future__ import annotations

import gc
import json
import signal
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="animation needs 'pip install omokage[portrait]'")
pytest.importorskip("transformers", reason="animation needs 'pip install omokage[portrait]'")

import omokage.pipelines.animate as pipeline
from clips import beep, onset_s
from omokage.cli import app as cli
from omokage.config import Progress
from omokage.errors import (
    ConsentError,
    InputError,
    MediaError,
    MemoryShortageError,
    MissingDependencyError,
    OutputError,
    WeightsError,
)
from omokage.media.audio import read_audio
from omokage.media.clip import Audio
from omokage.media.decode import probe, read_frames
from omokage.pipelines.animate import AnimateConfig, animate
from omokage.pipelines.animate_guard import asked_by_networks
from omokage.pipelines.animate_plan import speech_bytes
from omokage.pipelines.speech_track import read_speech
from omokage.talking.blocks import Block
from omokage.talking.caches import Conditions
from omokage.talking.conditions.identity import ZeroIdentity
from omokage.talking.conditions.portrait import first_motion, to_image
from omokage.talking.conditions.speech import SpeechFeatures
from omokage.talking.config import official_sampler
from omokage.talking.folder import load_architecture, official_architecture, save_architecture
from omokage.talking.model import DENOISER, Machine, TalkingModel, skeletons
from omokage.talking.placement import Profile, grouped, layerwise, resident
from omokage.talking.prepare import Draw, prepare_likeness, prepare_prompt, prepare_speech
from omokage.talking.rollout import Scene, denoise_window, rollout, window_conditions
from omokage.talking.sampler import draw_noise
from omokage.trust import consents, guard
from omokage.trust.video_mark import Mark
from omokage.weights.store import FileRecord, Manifest, folder_of
from processes import Started, places
from talking_folder import CPU, astronaut, make_tiny_folder, save_picture, save_sound
from test_talking_sampler import sample
from withdrawing import Withdrawing

STEPS = 2
# 2.4 s: 60 frames, two windows of 49 with 47 new ones each.
SECONDS, FRAMES, WINDOWS = 2.4, 60, 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_folder(tmp_path_factory.mktemp("weights") / "hallo3")


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """A portrait that was read is not read again: what it takes is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "read_portrait", cache(pipeline.read_portrait))
        yield


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_picture(tmp_path_factory.mktemp("pictures") / "portrait.png", astronaut())


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sound(tmp_path_factory.mktemp("sounds") / "speech.wav", beep(1.3, SECONDS))


@pytest.fixture
def said_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what processes say, apart from that of results."""
    return tmp_path_factory.mktemp("said")


@pytest.fixture(scope="module")
def made(weights: Path, portrait: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video that was made in one go."""
    output = tmp_path_factory.mktemp("made") / "out.mp4"
    animate(portrait, speech, output=output, config=settings(weights))
    return output


def settings(weights: Path, **choices: Any) -> AnimateConfig:
    return AnimateConfig(**{"steps": STEPS, "seed": 7, "device": "cpu", "weights": weights} | choices)


# what comes out


def test_a_portrait_says_what_is_heard(made: Path, speech: Path) -> None:
    info = probe(made)
    assert (info.frame_count, info.frame_rate, info.width, info.height) == (FRAMES, 25, 64, 64)
    sound = read_audio(made)
    assert sound is not None and sound.sample_rate == 48000
    assert onset_s(sound) == pytest.approx(1.3, abs=0.03)
    assert [file.name for file in made.parent.iterdir()] == ["out.mp4"]


def test_progress_tells_the_plan_then_every_step(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path
) -> None:
    seen: list[Progress] = []
    result = animate(
        portrait, speech, output=tmp_path / "o.mp4", config=settings(weights), on_progress=seen.append
    )
    assert (tmp_path / "o.mp4").read_bytes() == made.read_bytes()  # the same again from the same seed
    assert seen[0].stage == "plan" and seen[0].done == 0  # told before anything is counted
    assert seen[1].stage == "plan" and f"{FRAMES} frames (2.40 s) in {WINDOWS} windows" in seen[1].note
    steps = [report for report in seen if report.stage == "animating"]
    assert [report.done for report in steps] == [0, 1, 2, 2, 3, 4]
    assert {report.total for report in steps} == {WINDOWS * STEPS}
    assert steps[-1].note == "window 2 of 2"
    assert result.released.frame_count == FRAMES
    assert any("no face embedding is installed" in note for note in result.notes)


def test_another_seed_and_another_voice_give_another_video(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path
) -> None:
    frames = [frame.image for frame in read_frames(made)]
    animate(portrait, speech, output=tmp_path / "seed.mp4", config=settings(weights, seed=8))
    assert not np.array_equal(frames, [frame.image for frame in read_frames(tmp_path / "seed.mp4")])
    other = save_sound(tmp_path / "other.wav", beep(0.2, SECONDS, length_s=2))
    animate(portrait, other, output=tmp_path / "voice.mp4", config=settings(weights))
    assert not np.array_equal(frames, [frame.image for frame in read_frames(tmp_path / "voice.mp4")])


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "frames"), [(0.1, 48000, 1, 3), (1.88, 8000, 2, 47), (0.05, 44100, 1, 2)]
)
def test_the_video_is_as_long_as_its_sound(
    seconds: float, rate: int, channels: int, frames: int, weights: Path, portrait: Path, tmp_path: Path
) -> None:
    speech = save_sound(tmp_path / "s.wav", beep(0, seconds, sample_rate=rate, channels=channels))
    output = tmp_path / "o.mp4"
    result = animate(portrait, speech, output=output, config=settings(weights, label="made up"))
    assert result.released.frame_count == frames == probe(output).frame_count
    assert result.plan.windows == 1
    assert result.released.label == "made up"


def test_silence_is_animated_and_told(weights: Path, portrait: Path, tmp_path: Path) -> None:
    speech = save_sound(tmp_path / "s.wav", Audio(np.zeros((8000, 1), np.float32), 16000))
    result = animate(portrait, speech, output=tmp_path / "o.mp4", config=settings(weights))
    assert result.released.frame_count == 13
    assert any("s.wav is silent" in note for note in result.notes)


def test_a_separator_changes_what_the_lips_follow_and_not_the_sound(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two renders have two ids, and so two marks in their sound; with one for both, the rest of it is the same.
    monkeypatch.setattr("omokage.trust.release.mark_for", lambda *_: Mark(1, b"one for both".ljust(32)))

    class Mute:
        def separate(self, sound: Audio) -> Audio:
            return Audio(0 * sound.samples, sound.sample_rate)

    made, output = tmp_path / "made.mp4", tmp_path / "o.mp4"
    animate(portrait, speech, output=made, config=settings(weights))
    animate(portrait, speech, output=output, config=settings(weights), separator=Mute())
    before, after = read_audio(made), read_audio(output)
    assert before is not None and after is not None
    assert np.array_equal(before.samples, after.samples)
    assert output.read_bytes() != made.read_bytes()


def test_a_landscape_fills_the_frame(weights: Path, speech: Path, tmp_path: Path) -> None:
    wide = save_picture(tmp_path / "wide.png", np.pad(astronaut(), ((0, 0), (0, 256), (0, 0))))
    animate(wide, speech, output=tmp_path / "o.mp4", config=settings(weights))
    info = probe(tmp_path / "o.mp4")
    assert (info.width, info.height) == (96, 64)


def lively(seconds: float, rate: int = 48000) -> Audio:
    """Two voices of vowels, one in each ear."""
    time = np.arange(round(seconds * rate)) / rate
    ears = [
        sum(
            np.sin(2 * np.pi * pitch * k * time) * (1 + np.sin(2 * np.pi * (pace + k) * time)) / k
            for k in (1, 3, 5)
        )
        for pitch, pace in ((180, 3.1), (260, 4.7))
    ]
    return Audio((0.1 * np.stack(ears, axis=1)).astype(np.float32), rate)


def test_the_sound_of_the_video_is_that_of_the_speech(weights: Path, portrait: Path, tmp_path: Path) -> None:
    """Both channels, from the first sample to the last, but for the codec and the mark that nobody hears."""
    speech = save_sound(tmp_path / "s.wav", lively(0.5))
    animate(portrait, speech, output=tmp_path / "o.mp4", config=settings(weights))
    given, made = read_audio(speech), read_audio(tmp_path / "o.mp4")
    assert given is not None and made is not None
    assert made.sample_rate == given.sample_rate and made.samples.shape[1] == 2
    # Pictures last 13 * 40 ms, and the sound is filled up with silence to their end.
    count = len(given.samples)
    assert count <= len(made.samples) <= round(0.52 * 48000) + 1024
    mine, theirs = made.samples[:count].T, given.samples.T
    alike = np.corrcoef(np.concatenate([mine, theirs]))[:2, 2:]
    assert min(alike[0, 0], alike[1, 1]) > 0.99, alike
    assert max(abs(alike[0, 1]), abs(alike[1, 0])) < 0.2, alike
    assert np.sqrt((mine**2).mean() / (theirs**2).mean()) == pytest.approx(1, abs=0.05)


# what is kept, and for how long


def gone(references: list[Any]) -> list[str]:
    """Shapes of what is still there."""
    return [str(tuple(tensor.shape)) for reference in references if (tensor := reference()) is not None]


def test_every_network_is_gone_before_the_denoiser_comes(
    weights: Path, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the denoiser what works once, before the first step."""
    seen = dict[str, list[Any]]()
    left = list[tuple[str, list[str]]]()

    def watched(name: str, network: torch.nn.Module) -> None:
        parameters = [weakref.ref(value) for value in network.parameters()]
        assert parameters
        seen.setdefault(name, []).extend(parameters)

    def watching(name: str) -> None:
        load = getattr(TalkingModel, name)

        def loaded(model: TalkingModel, given: Any) -> Any:
            if name == "denoiser":
                left.extend((part, gone(references)) for part, references in seen.items())
            part = load(model, given)
            if name == "denoiser":
                watched(
                    "what works once",
                    torch.nn.ModuleList([part.modulation, part.face_tokens, part.audio_tokens]),
                )
                for block in part.blocks:
                    watched("what works once", block.face.key_value)
            elif name not in seen:  # a second autoencoder decodes
                watched(name, getattr(part, "_network", part))
            return part

        monkeypatch.setattr(TalkingModel, name, loaded)

    for name in ("text_encoder", "speech_encoder", "vae", "reference", "denoiser"):
        watching(name)

    def stop(report: Progress) -> None:
        if report.stage == "animating":
            left.append(("what works once", gone(seen["what works once"])))
            raise KeyboardInterrupt

    short = save_sound(tmp_path / "s.wav", beep(0, 0.1))
    with pytest.raises(KeyboardInterrupt):
        animate(portrait, short, output=tmp_path / "o.mp4", config=settings(weights), on_progress=stop)
    assert left == [
        (name, []) for name in ("text_encoder", "speech_encoder", "vae", "reference", "what works once")
    ]


def tensor_bytes() -> int:
    """Of all tensors of this process."""
    gc.collect()
    # By their own types: fake ones, which a compiler of another test may have left, have no memory.
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu")
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Forgets:
    """Keeps no window: each is computed, and none is there afterwards."""

    def load(self, index: int) -> None:
        return None

    def save(self, index: int, latents: Tensor) -> None:
        pass


def test_memory_does_not_grow_with_the_windows(scene: Scene) -> None:
    """After the first step of each of four windows as much is there as in the second one, pictures included."""
    long = replace(scene, speech_tokens=scene.speech_tokens * 2, frame_count=4 * 47)
    tensors, others = list[int](), list[int]()

    def measure(index: int, done: int) -> None:
        if done == 1:
            tensors.append(tensor_bytes())
            others.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        count = sum(1 for _ in rollout(long, Forgets(), measure))
    finally:
        tracemalloc.stop()
    assert count == 4 * 47 and len(tensors) == 4
    latents, picture = 13 * 16 * 8 * 12 * 4, 64 * 64 * 3
    assert max(tensors[2:]) - tensors[1] < latents // 4
    assert max(others[2:]) - others[1] < 47 * picture // 2


def test_no_picture_waits_for_the_end_of_the_video(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, kept = list[int](), list[Any]()

    def watched(*given: Any) -> Iterator[Any]:
        for image in rollout(*given):
            kept.append(weakref.ref(image))
            alive.append(sum(reference() is not None for reference in kept))
            yield image

    monkeypatch.setattr(pipeline, "rollout", watched)
    animate(portrait, speech, output=tmp_path / "o.mp4", config=settings(weights))
    assert len(alive) == FRAMES and max(alive) <= 4


def test_what_is_kept_of_a_speech_is_what_the_plan_counts(scene: Scene, weights: Path, speech: Path) -> None:
    model = TalkingModel.open(weights, CPU)
    voice = prepare_speech(model, read_speech(speech).voice, lambda _: None)
    kept = voice.hidden.nbytes + sum(tokens.nbytes for tokens in scene.speech_tokens)
    assert kept == speech_bytes(model.sizes.transformer, FRAMES, 4)


# the savings change no number


@pytest.fixture(scope="module")
def scene(weights: Path, portrait: Path, speech: Path) -> Scene:
    model = TalkingModel.open(weights, CPU)
    return Scene.set_up(model, *prepared(model, portrait, speech), sampler(), 7, resident())


def sampler() -> Any:
    return replace(official_sampler(), steps=STEPS)


def prepared(model: TalkingModel, portrait: Path, speech: Path) -> tuple[Any, Any, Any]:
    face = pipeline.read_portrait(portrait, model.height, model.width).portrait
    likeness = prepare_likeness(model, face, ZeroIdentity(20), 7, resident())

    def said(sentence: str) -> None:
        raise AssertionError(sentence)

    return (
        likeness,
        prepare_prompt(model, "a person talks", said),
        prepare_speech(model, read_speech(speech).voice, said),
    )


def test_windows_are_those_of_a_pipeline_that_caches_nothing(
    scene: Scene, weights: Path, portrait: Path, speech: Path
) -> None:
    """Everything as tokens that each layer projects anew at each step, the modulation from its own network."""
    model = TalkingModel.open(weights, CPU)
    likeness, text, voice = prepared(model, portrait, speech)
    network = model.denoiser(resident())
    motion = first_motion(likeness.picture)
    for index, rows in enumerate(voice.windows(49)):
        latents = window_conditions(scene, index, motion).latents
        conditions, null = (
            Conditions(
                text=words,
                latents=latents,
                reference=likeness.reference,
                face=network.in_all_layers(network.face_tokens(likeness.embedding)),
                audio=network.in_all_layers(network.audio_tokens(heard)),
            )
            for words, heard in (
                (text, voice.window(rows)),
                (torch.zeros_like(text), torch.zeros_like(voice.window(rows))),
            )
        )
        shape = tuple(latents.shape)
        noise = [draw_noise(shape, 7, Draw.STEP, index, step) for step in range(STEPS)]
        start = draw_noise(shape, 7, Draw.START, index)
        plain = sample(network, conditions, null, sampler(), start, noise.__getitem__)
        mine = denoise_window(scene, index, motion, lambda *_: None)
        torch.testing.assert_close(mine, plain, rtol=0, atol=2e-5 * float(plain.std()))
        motion = torch.rand(1, 2, 3, 64, 96, generator=torch.Generator().manual_seed(index)) * 2 - 1


def test_the_loop_holds_no_weights_that_work_once(scene: Scene) -> None:
    names = {name.split(".")[0] for name, _ in scene.denoiser.named_parameters()}
    assert names == {"embedding", "blocks", "head"}
    assert not [name for name, _ in scene.denoiser.named_parameters() if "face.key_value" in name]
    network = skeletons(official_architecture())[DENOISER]
    network.free_prepared()  # type: ignore[operator]
    assert sum(value.numel() for value in network.parameters()) == 6_610_745_920


def test_only_what_is_seen_is_decoded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 frames: of the second window 13 new ones, which lie in its first two chunks of nine and eight."""

    class Kept:
        def load(self, index: int) -> Tensor:
            return draw_noise((1, 13, 16, 8, 12), index)

        def save(self, index: int, latents: Tensor) -> None:
            raise AssertionError("nothing was computed")

    chunks: list[int] = []
    decode = type(scene.vae).decode_chunk

    def counted(vae: Any, latents: Tensor, cache: Any) -> Any:
        chunks.append(latents.shape[1])
        return decode(vae, latents, cache)

    monkeypatch.setattr(type(scene.vae), "decode_chunk", counted)
    frames = list(rollout(scene, Kept(), lambda *_: None))
    assert chunks == [3, 2, 2, 2, 2, 2, 3, 2]
    # Of each window all but its two motion frames, and nothing after the end of the sound.
    first, second = (torch.cat(list(scene.vae.decode(Kept().load(i))), dim=1)[0, 2:] for i in range(2))
    expected = [to_image(frame, square=True) for frame in torch.cat([first, second[: FRAMES - 47]])]
    assert np.array_equal(frames, expected)


# stopped runs


def interrupted(at: int, error: BaseException) -> Callable[[Progress], None]:
    def callback(progress: Progress) -> None:
        if progress.stage == "animating" and progress.done >= at:
            raise error

    return callback


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path, said_in: Path
) -> None:
    script = """
import os, signal, sys
from pathlib import Path
import torch
from omokage.pipelines.animate import AnimateConfig, animate
from omokage.pipelines.animate_guard import asked_by_networks
torch.set_num_threads(1)
portrait, speech, output, weights = map(Path, sys.argv[1:])
def die(progress):
    if progress.stage == "animating" and progress.done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
config = AnimateConfig(steps=2, seed=7, device="cpu", weights=weights)
animate(portrait, speech, output=output, config=config, on_progress=die)
"""
    output = tmp_path / "out.mp4"
    status, _, said = Started(script, [portrait, speech, output, weights], said_in).wait()
    assert status == -signal.SIGKILL, said
    work = tmp_path / "out.mp4.work"
    assert sorted(file.name for file in work.iterdir()) == ["animation.json", "window-00000.safetensors"]
    seen: list[Progress] = []
    animate(portrait, speech, output=output, config=settings(weights), on_progress=seen.append)
    steps = [report for report in seen if report.stage == "animating"]
    assert {report.total for report in steps} == {STEPS} and steps[0].note == "window 2 of 2"
    assert output.read_bytes() == made.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_a_withdrawal_while_it_works_leaves_nothing(
    weights: Path,
    portrait: Path,
    speech: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    asked_at_every_step: None,
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path_factory.mktemp("home")))
    kept: list[str] = []
    withdrawing = Withdrawing("animating", 3)

    def withdraw(report: Progress) -> None:
        if report.stage == "animating" and report.done == 3:
            kept.extend(path.name for path in (tmp_path / "out.mp4.work").iterdir())
        withdrawing(report)

    with pytest.raises(ConsentError, match=r"stopped: .* the consent was withdrawn on"):
        animate(
            portrait,
            speech,
            output=tmp_path / "out.mp4",
            config=settings(weights),
            on_progress=withdraw,
        )
    assert "window-00000.safetensors" in kept and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_withdrawal_within_a_long_step_does_not_wait_for_its_end(
    weights: Path,
    portrait: Path,
    speech: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    is_compiled: bool,
) -> None:
    """A layer takes 30 s by the guard's clock, and it is withdrawn in the first layer of the second step."""
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path_factory.mktemp("home")))
    now_s, forward = [0.0], Block.forward
    monkeypatch.setattr(guard.Guard, "__init__", with_clock(lambda: now_s[0]))
    monkeypatch.setattr(pipeline, "compile_layers", lambda *_: None)  # where hooks are put is what differs
    withdrawn_s: list[float] = []
    done: list[float] = []

    def slow(block: Block, *args: Any, **kwargs: Any) -> Any:
        if done and done[-1] == 1 and not withdrawn_s:
            withdrawn_s.append(now_s[0])
            for record in consents.all_records():
                consents.revoke(record, "asked to stop")
        now_s[0] += 30
        return forward(block, *args, **kwargs)

    monkeypatch.setattr(Block, "forward", slow)

    def note(report: Progress) -> None:
        if report.stage == "animating":
            done.append(report.done)

    with pytest.raises(ConsentError, match=r"stopped: .* the consent was withdrawn on"):
        animate(
            portrait,
            speech,
            output=tmp_path / "out.mp4",
            config=settings(weights, compile=is_compiled),
            on_progress=note,
        )
    assert withdrawn_s and now_s[0] - withdrawn_s[0] <= 30 and done[-1] == 1
    assert list(tmp_path.iterdir()) == []
    assert not module_hooks()


def with_clock(clock: Callable[[], float]) -> Callable[..., None]:
    made = guard.Guard.__init__

    def init(self: guard.Guard, *permits: Any) -> None:
        made(self, *permits, clock=clock)

    return init


def module_hooks() -> dict[int, Any]:
    """That are asked by every network of this process."""
    return dict(torch.nn.modules.module._global_forward_pre_hooks)


def test_networks_of_other_threads_are_not_stopped() -> None:
    def refuse() -> None:
        raise ConsentError("withdrawn")

    layer, seen = torch.nn.Linear(2, 2), list[torch.Tensor]()
    with asked_by_networks(refuse):
        other = threading.Thread(target=lambda: seen.append(layer(torch.ones(1, 2))))
        other.start()
        other.join()
        with pytest.raises(ConsentError):
            layer(torch.ones(1, 2))
    assert len(seen) == 1 and not module_hooks()


def test_a_stop_leaves_finished_windows_or_nothing(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path
) -> None:
    output = tmp_path / "out.mp4"

    def stop(at: int) -> list[str]:
        with pytest.raises(KeyboardInterrupt):
            animate(
                portrait,
                speech,
                output=output,
                config=settings(weights),
                on_progress=interrupted(at, KeyboardInterrupt()),
            )
        return sorted(str(place.relative_to(tmp_path)) for place in tmp_path.rglob("*"))

    assert stop(1) == []
    files = ["out.mp4.work", "out.mp4.work/animation.json", "out.mp4.work/window-00000.safetensors"]
    assert stop(3) == files
    window = tmp_path / files[-1]
    # A window that was damaged since is computed again; the result is what it would have been.
    window.write_bytes(window.read_bytes()[:-7])
    animate(portrait, speech, output=output, config=settings(weights))
    assert output.read_bytes() == made.read_bytes()


def test_another_question_does_not_go_on_from_old_windows(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path
) -> None:
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        animate(
            portrait,
            speech,
            output=output,
            config=settings(weights, seed=8),
            on_progress=interrupted(3, KeyboardInterrupt()),
        )
    assert (tmp_path / "out.mp4.work").is_dir()
    result = animate(portrait, speech, output=output, config=settings(weights))
    assert output.read_bytes() == made.read_bytes()
    said = [note for note in result.notes if "discarded" in note]
    assert len(said) == 1 and said[0].startswith("1 finished windows of a stopped run in")
    assert said[0].endswith("out.mp4.work were discarded: not the same: seed")
    (tmp_path / "out.mp4.work").mkdir()
    (tmp_path / "out.mp4.work" / "mine.txt").touch()
    with pytest.raises(OutputError, match="is in the way and not of omokage"):
        animate(portrait, speech, output=output, config=settings(weights))


# the face embedding


def test_only_a_finished_face_embedding_is_used(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path))
    face = folder_of("face") / "face.onnx"
    face.parent.mkdir(parents=True)
    face.write_bytes(b"half of it")
    installed = AnimateConfig()
    assert pipeline.face_file_of(installed) is None  # no manifest: its installation was stopped
    manifest = Manifest("face", "", {"face.onnx": FileRecord(99, "0")})
    (face.parent / "face.weights.json").write_text(json.dumps(manifest.to_json()))
    with pytest.raises(WeightsError, match="weights of face are damaged"):
        pipeline.face_file_of(installed)
    face.write_bytes(b"x" * 99)
    assert pipeline.face_file_of(installed) == face
    # In a folder of the user's own what lies there counts.
    assert pipeline.face_file_of(settings(weights)) is None
    assert pipeline.face_file_of(settings(face.parent)) == face


# what is refused


def refused(
    kind: type[Exception], said: str, weights: Path, portrait: Path, speech: Path, **choices: Any
) -> None:
    output = speech.with_name("refused.mp4")
    with pytest.raises(kind, match=said) as error:
        animate(portrait, speech, output=output, config=settings(weights, **choices))
    assert "\n" not in str(error.value)
    assert not list(speech.parent.glob("refused*"))


@pytest.mark.usefixtures("denied_by_default")
def test_nobody_is_animated_without_a_consent(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    with pytest.raises(ConsentError, match="nobody's consent is recorded for"):
        animate(portrait, speech, output=tmp_path / "out.mp4", config=settings(weights))
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", MediaError, "is empty"),
        (b"hello, this is text", MediaError, "holds text"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt garbage", MediaError, "damaged"),
    ],
)
def test_a_corrupt_sound_is_refused(
    content: bytes, kind: type[Exception], said: str, weights: Path, portrait: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(content)
    refused(kind, said, weights, portrait, broken)


def test_a_missing_or_soundless_speech_is_refused(weights: Path, portrait: Path, tmp_path: Path) -> None:
    from clips import make_clip

    refused(MediaError, "does not exist", weights, portrait, tmp_path / "none.wav")
    refused(MediaError, "has no sound", weights, portrait, make_clip(tmp_path / "mute.mp4"))
    refused(
        MediaError,
        "is a picture, and a voice is needed",
        weights,
        portrait,
        save_picture(tmp_path / "a.png", astronaut()),
    )


def test_a_corrupt_picture_is_refused(weights: Path, speech: Path, tmp_path: Path, portrait: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(portrait.read_bytes()[:5000])
    refused(MediaError, "damaged picture", weights, broken, speech)
    refused(MediaError, "a picture .* is needed here", weights, speech, speech)


def test_missing_weights_say_what_to_do(
    portrait: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path))
    arguments = ["animate", str(portrait), str(speech), "--device", "cpu"]
    assert cli.run([*arguments, "-o", str(tmp_path / "o.mp4"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "not installed (39.9 GB; licence: CogVideoX" in said and "omokage weights pull hallo3" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def files_of(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every file, its length, and when it was last written."""
    found = (path for folder in folders for path in folder.rglob("*"))
    return {path: ((status := path.stat()).st_size, status.st_mtime_ns) for path in found}


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_plan_does_no_work(
    is_installed: bool,
    weights: Path,
    portrait: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command itself: no network is loaded and no file written, with a model and without."""
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("denoiser", "reference", "vae", "text_encoder", "speech_encoder", "_filled"):
        monkeypatch.setattr(TalkingModel, name, lambda *_, name=name: pytest.fail(f"{name} was loaded"))
    monkeypatch.setattr(
        "omokage.talking.model.load_weights", lambda *_, **__: pytest.fail("weights were read")
    )
    folders = (tmp_path, weights, portrait.parent, speech.parent)
    before = files_of(*folders)
    arguments = ["animate", str(portrait), str(speech), "--plan", "--device", "cpu", "--steps", "4"]
    assert cli.run([*arguments, *(["--weights", str(weights)] if is_installed else [])]) == 0
    said = capsys.readouterr().out
    assert "60 frames, 2.40 s of" in said and "windows   2 of 49 frames" in said and "passes over" in said
    assert ("of 64x64 pixels" in said) == is_installed
    assert ("weights of hallo3 are not installed" in said) == (not is_installed)
    assert files_of(*folders) == before


def test_a_folder_with_another_model_is_refused(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path
) -> None:
    import shutil

    refused(InputError, "holds no weights of Hallo3", tmp_path, portrait, speech)
    folder = tmp_path / "hallo3"
    shutil.copytree(weights, folder)
    sizes = load_architecture(folder)
    save_architecture(folder, replace(sizes, transformer=replace(sizes.transformer, layers=3)))
    refused(WeightsError, "holds another model than it says", folder, portrait, speech)
    save_architecture(folder, sizes)
    (folder / "text" / "config.json").unlink()
    refused(WeightsError, "lacks the text encoder", folder, portrait, speech)
    # Right names, wrong sizes: found when the shards are read.
    shutil.copytree(weights / "text", folder / "text", dirs_exist_ok=True)
    wider = replace(sizes.transformer, timestep_width=64)
    save_architecture(folder, replace(sizes, transformer=wider))
    refused(InputError, "are of another network or size", folder, portrait, speech)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
)
def test_too_little_memory_is_one_sentence(
    error: Exception,
    weights: Path,
    portrait: Path,
    speech: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, window = tmp_path / "o.mp4", denoise_window

    def fail_at_the_second(scene: Scene, index: int, *rest: Any) -> Tensor:
        if index:
            raise error
        return window(scene, index, *rest)

    monkeypatch.setattr("omokage.talking.rollout.denoise_window", fail_at_the_second)
    with pytest.raises(MemoryShortageError, match="memory ran out with the profile 'resident-lean'") as told:
        animate(portrait, speech, output=output, config=settings(weights))
    assert told.value.exit_code == 71
    assert [place.name for place in tmp_path.iterdir()] == ["o.mp4.work"]


def test_a_defect_is_not_called_a_shortage(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(pipeline, "prepare_prompt", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        animate(portrait, speech, output=tmp_path / "o.mp4", config=settings(weights))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choices", [{"seed": -1}, {"steps": 1}, {"guidance": 0.5}])
def test_impossible_choices_are_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the seed must be at least 0, steps 2 to 1000 and guidance 1 to 20"):
        AnimateConfig(**choices)


def test_a_graphics_card_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match="finds no graphics card"):
        Machine.choose("cuda")
    assert Machine.choose("auto") == CPU


# less memory


def test_a_smaller_profile_takes_over_and_says_so(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    """The second window has no room at first; the one before it is kept. The lean decoder gives the same pictures."""
    output, window, tried = tmp_path / "o.mp4", denoise_window, list[int]()

    def fail_once(scene: Scene, index: int, *rest: Any) -> Tensor:
        tried.append(index)
        if tried == [0, 1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return window(scene, index, *rest)

    monkeypatch.setattr("omokage.talking.rollout.denoise_window", fail_once)
    result = animate(portrait, speech, output=output, config=settings(weights))
    assert tried == [0, 1, 1]
    said = "memory ran out with the profile 'resident'; going on with 'resident-lean'"
    assert said in result.notes
    pairs = zip(read_frames(output), read_frames(made), strict=True)
    assert max(np.abs(a.image.astype(int) - b.image.astype(int)).max() for a, b in pairs) <= 3


@pytest.mark.parametrize("profile", [grouped(), layerwise()])
def test_layers_that_wait_elsewhere_give_the_same_windows(
    profile: Profile, scene: Scene, weights: Path, portrait: Path, speech: Path
) -> None:
    model = TalkingModel.open(weights, CPU)
    waiting = Scene.set_up(model, *prepared(model, portrait, speech), sampler(), 7, profile)
    assert waiting.sampler.together == profile.together
    motion = first_motion(scene.picture)
    mine, plain = (denoise_window(each, 0, motion, lambda *_: None) for each in (waiting, scene))
    torch.testing.assert_close(mine, plain, rtol=0, atol=2e-5 * float(plain.std()))


def test_windows_in_eight_bits_are_kept_apart_and_told(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    """Where the second window only has room in 8 bits, the first one is made anew: no video is of both kinds."""
    output, window, tried = tmp_path / "o.mp4", denoise_window, list[tuple[int, list[str]]]()
    small = replace(resident(), name="small", weights="int8")

    def fail_once(scene: Scene, index: int, *rest: Any) -> Tensor:
        tried.append((index, sorted(place.name for place in (tmp_path / "o.mp4.work").glob("window*"))))
        if len(tried) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return window(scene, index, *rest)

    monkeypatch.setattr("omokage.talking.rollout.denoise_window", fail_once)
    planned = pipeline.plan_animation

    def with_small(*given: Any, **named: Any) -> Any:
        plan = planned(*given, **named)
        return replace(plan, options=(plan.options[0], replace(plan.options[0], profile=small)))

    monkeypatch.setattr(pipeline, "plan_animation", with_small)
    result = animate(portrait, speech, output=output, config=settings(weights))
    exact = "window-00000.safetensors"
    assert tried == [(0, []), (1, [exact]), (0, [exact]), (1, ["window-00000.int8.safetensors", exact])]
    assert any("'small' keeps weights in 8 bits" in note for note in result.notes)
    assert output.read_bytes() != made.read_bytes()
    assert [place.name for place in tmp_path.iterdir()] == ["o.mp4"]


SHORT = """
import torch
import omokage.talking.rollout as rollout
def short(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")
rollout.denoise_window = short
"""


def both(arguments: list[Any], said_in: Path, second: str = "") -> list[tuple[int, str, str]]:
    """Status, output and messages of the command in two processes, as `torchrun` starts them.

    second: what the second one does first.
    """
    command = "import torch; torch.set_num_threads(1); from omokage.cli.app import main; main()"
    processes = [
        Started(start + command, arguments, said_in, **place)
        for start, place in zip(("", second), places(2), strict=True)
    ]
    return [process.wait() for process in processes]


def test_two_processes_make_one_video(weights: Path, portrait: Path, tmp_path: Path, said_in: Path) -> None:
    """The command as `torchrun` starts it: one half of guidance each; only the first one writes and speaks.

    Where memory ran out in one of them, the next start takes the next memory profile.
    """
    speech = save_sound(tmp_path / "s.wav", beep(0, 0.1))
    animate(portrait, speech, output=tmp_path / "alone.mp4", config=settings(weights))
    output = tmp_path / "shared.mp4"
    arguments = [
        "animate",
        portrait,
        speech,
        "-o",
        output,
        "--seed",
        7,
        "--steps",
        STEPS,
        "--weights",
        weights,
    ]
    arguments += ["--device", "cpu"]
    (first, _, lost), (second, _, said) = both(arguments, said_in, SHORT)
    assert (first, second) == (1, 71) and not output.exists(), lost
    assert lost.splitlines()[-1].startswith("omokage: process 1 of 2 stopped, since it lost another one")
    assert "memory ran out on cpu in process 2 of 2; memory profile 'resident' (exact)" in said
    assert "the same command goes on with the next smaller profile" in said
    (first, out, err), other = both(arguments, said_in)
    assert (first, other) == (0, (0, "", "")), err
    assert "note: memory ran out with the profile 'resident' before; going on with 'resident-lean'" in err
    assert out == f"video: {output}\n" and "animating: 100 %" in err
    pairs = list(zip(read_frames(output), read_frames(tmp_path / "alone.mp4"), strict=True))
    assert len(pairs) == 3
    assert max(np.abs(a.image.astype(int) - b.image.astype(int)).max() for a, b in pairs) <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.mp4", "s.wav", "shared.mp4"]


def test_a_memory_profile_can_be_chosen(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, made: Path
) -> None:
    """Layers that wait are of no use on a processor, so only who asks for them gets them; the pictures are the same."""
    output = tmp_path / "o.mp4"
    result = animate(portrait, speech, output=output, config=settings(weights, memory="layerwise"))
    assert result.plan.options[0].profile == layerwise()
    pairs = zip(read_frames(output), read_frames(made), strict=True)
    assert max(np.abs(a.image.astype(int) - b.image.astype(int)).max() for a, b in pairs) <= 3
    with pytest.raises(InputError, match="no memory profile 'huge'; choose one of resident, resident-lean, "):
        settings(weights, memory="huge")


def test_savings_reach_the_sampler(
    weights: Path, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up, seen = Scene.set_up, list[Any]()

    def noticed(*given: Any, **named: Any) -> Scene:
        seen.append(given[4])
        return set_up(*given, **named)

    monkeypatch.setattr(Scene, "set_up", noticed)
    short = save_sound(tmp_path / "s.wav", beep(0, 0.1))
    config = settings(weights, guidance_interval=(0.5, 1.0), reuse=0.25, compile=True)
    compiled: list[Any] = []
    monkeypatch.setattr(pipeline, "compile_layers", lambda network, say: compiled.append(network))
    result = animate(portrait, short, output=tmp_path / "o.mp4", config=config)
    assert len(compiled) == 1
    assert seen == [replace(sampler(), guidance_interval=(0.5, 1.0), reuse_threshold=0.25)]
    assert result.plan.passes == 3 and len(result.plan.savings) == 3
    with pytest.raises(InputError, match="reuse below a threshold, all from 0 to 1"):
        settings(weights, reuse=1.5)


def test_a_shortage_while_the_portrait_is_prepared_falls_back(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, tried = pipeline.prepare_likeness, list[str]()

    def fail_once(*given: Any) -> Any:
        tried.append(given[-1].name)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(*given)

    monkeypatch.setattr(pipeline, "prepare_likeness", fail_once)
    short = save_sound(tmp_path / "s.wav", beep(0, 0.1))
    result = animate(portrait, short, output=tmp_path / "o.mp4", config=settings(weights))
    assert tried == ["resident", "resident-lean"]
    assert "memory ran out with the profile 'resident'; going on with 'resident-lean'" in result.notes


def test_an_encoder_without_room_goes_to_the_processor(
    weights: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TalkingModel.open(weights, CPU)
    right = prepare_prompt(model, "a person talks", lambda _: None)
    heard = prepare_speech(model, read_speech(speech).voice, lambda _: None)
    text, voice, asked, said = (
        TalkingModel.text_encoder,
        TalkingModel.speech_encoder,
        list[str](),
        list[str](),
    )

    def full(load: Any) -> Any:
        def loaded(model: TalkingModel, device: torch.device) -> Any:
            asked.append(device.type)
            if device.type != "cpu":
                raise RuntimeError("CUDA error: out of memory")
            return load(model, device)

        return loaded

    monkeypatch.setattr(TalkingModel, "text_encoder", full(text))
    monkeypatch.setattr(TalkingModel, "speech_encoder", full(voice))
    card = replace(model, machine=Machine(torch.device("cuda"), torch.float32))
    assert torch.equal(prepare_prompt(card, "a person talks", said.append), right)
    assert torch.equal(prepare_speech(card, read_speech(speech).voice, said.append).hidden, heard.hidden)
    assert asked == ["cuda", "cpu", "cuda", "cpu"]
    assert [sentence.split(" was")[0] for sentence in said] == ["the prompt", "the speech"]


def test_the_speech_is_projected_window_by_window(
    scene: Scene, weights: Path, portrait: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of a window are gone when those of the next but one are made, however long the speech is."""
    model = TalkingModel.open(weights, CPU)
    likeness, text, voice = prepared(model, portrait, speech)
    kept: list[Any] = []
    alive: list[int] = []
    cut = SpeechFeatures.window

    def counted(self: SpeechFeatures, rows: Any) -> Tensor:
        alive.append(sum(reference() is not None for reference in kept))
        features = cut(self, rows)
        kept.append(weakref.ref(features))
        return features

    monkeypatch.setattr(SpeechFeatures, "window", counted)
    monkeypatch.setattr(SpeechFeatures, "windows", lambda self, frames: [whole[0], *whole] * 3)
    whole = cut_rows(voice)
    made = Scene.set_up(model, likeness, text, voice, sampler(), 7, resident())
    assert len(made.speech_tokens) == 9 and max(alive) <= 1
    assert all(
        torch.equal(mine, plain)
        for mine, plain in zip(made.speech_tokens[1:3], scene.speech_tokens, strict=True)
    )


def cut_rows(voice: SpeechFeatures) -> Any:
    from omokage.talking.conditions.speech import window_rows

    return list(window_rows(voice.length.padded_frames, 49)[:WINDOWS])


def test_no_room_at_all_is_said_before_any_work(
    weights: Path, portrait: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omokage.pipelines.animate_plan.free_bytes", lambda _: 1e6)
    with pytest.raises(MemoryShortageError, match="no memory profile fits") as told:
        animate(portrait, speech, output=tmp_path / "o.mp4", config=settings(weights))
    assert told.value.exit_code == 71 and list(tmp_path.iterdir()) == []
    assert "no memory profile fits" in pipeline.plan(portrait, speech, config=settings(weights)).to_text()
