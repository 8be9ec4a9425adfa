"""From raw videos to a model: clips into shards, the plan, both stages, a LoRA, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from clips import beep, make_clip
from omokage.config import Progress
from omokage.errors import InputError, MemoryShortageError, OutputError, WeightsError
from omokage.media.decode import read_frames
from omokage.pipelines.animate import AnimateConfig, animate
from omokage.pipelines.network_load import CardAutocast
from omokage.pipelines.speech_track import read_speech
from omokage.pipelines.talker import write_talker
from omokage.pipelines.train_portrait import TrainConfig, first_folder, train_portrait
from omokage.pipelines.training_data import (
    DataConfig,
    TrainingData,
    find_videos,
    prepare_training_data,
)
from omokage.pipelines.training_plan import activation_bytes, kept_bytes, plan_training
from omokage.pipelines.untrained import make_untrained, tiny_architecture
from omokage.talking.conditions.identity import ThumbnailIdentity
from omokage.talking.conditions.portrait import face_rectangle, prepare_portrait
from omokage.talking.conditions.speech import context_rows, take
from omokage.talking.config import tiny
from omokage.talking.folder import SPEECHLESS, load_architecture, official_architecture
from omokage.talking.model import Machine, TalkingModel
from omokage.talking.placement import resident
from omokage.talking.training.config import stage_one, stage_two
from omokage.talking.transformer import Transformer
from omokage.talking.vae import Posterior
from omokage.tracking.landmarks import Landmarks
from processes import Started, places
from talking_folder import (
    CPU,
    astronaut,
    make_cogvideox_folder,
    save_face_network,
    save_picture,
    save_sound,
    tiny_cogvideox,
)

Draw = Callable[[float, int, int], NDArray[np.uint8]]


class Faces:
    """Finds as many faces as a picture's uppermost left pixel says in its red, in tens: 0, 1 or 2."""

    def detect(self, image: NDArray[np.uint8]) -> list[Landmarks]:
        rows, columns = image.shape[:2]
        around = np.linspace(0, 2 * np.pi, 478)
        points = np.stack([np.cos(around), np.sin(around), 0 * around], axis=1) * 0.2 * rows
        found = points + np.array([columns / 2, rows / 2, 0])
        count = round(float(image[:4, :4, 0].mean()) / 80)
        return [Landmarks(found.astype(np.float32))] * count

    def reset(self) -> None:
        pass


def picture(faces: int) -> Draw:
    """A moving slope whose corner says how many faces there are."""

    def draw(time_s: float, width: int, height: int) -> NDArray[np.uint8]:
        y, x = np.mgrid[:height, :width]
        image = np.stack([0 * x, 200 * y / height, (200 * x / width + 40 * time_s) % 255], axis=-1)
        image[: height // 4, : width // 4] = (80 * faces, 0, 0)
        return image.astype(np.uint8)

    return draw


def clip(path: Path, faces: int = 1, seconds: float = 1.4, **changes: object) -> Path:
    sound = beep(0.3, seconds, length_s=0.5)
    return make_clip(
        path, draw=picture(faces), seconds=seconds, **{"audio": sound, "width": 128, "height": 96, **changes}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TalkingModel:
    return TalkingModel.open(make_untrained(tmp_path_factory.mktemp("model"), 0), CPU)


def prepare(
    videos: list[Path], folder: Path, model: TalkingModel, captions: dict[str, str] | None = None
) -> tuple[TrainingData, list[str]]:
    """The data, and the clips that were worked on."""
    said: list[str] = []

    def hear(progress: Progress) -> None:
        said.extend([progress.note] if progress.note else [])

    data = prepare_training_data(
        videos, captions or {}, folder, model, ThumbnailIdentity(), DataConfig(draws=2, pool=3), backend=Faces(),
        on_progress=hear,
    )  # fmt: skip
    return data, said


def test_unusable_clips_are_left_out_with_their_reason(tmp_path: Path, model: TalkingModel) -> None:
    videos = [
        clip(tmp_path / "good.mp4"),
        clip(tmp_path / "empty.mp4", faces=0),
        clip(tmp_path / "two.mp4", faces=2),
        clip(tmp_path / "mute.mp4", audio=None),
        clip(tmp_path / "silent.mp4", audio=beep(0, 1.4, length_s=0)),
        clip(tmp_path / "short.mp4", seconds=0.4),
        tmp_path / "damaged.mp4",
    ]
    videos[-1].write_bytes(b"no video")
    data, _ = prepare(videos, tmp_path / "shards", model)
    reasons = {record.name: record.skipped for record in data.records}
    assert {name for name, reason in reasons.items() if not reason} == {"good.mp4"}
    assert "no face is seen in 100 %" in reasons["empty.mp4"]
    assert "it shows 2 faces at 0.0 s" in reasons["two.mp4"]
    assert "has no sound" in reasons["mute.mp4"] and "its sound is silent" in reasons["silent.mp4"]
    assert "it lasts 0.40 s and a window is 0.68 s" in reasons["short.mp4"]
    assert "damaged.mp4" in reasons["damaged.mp4"] and str(tmp_path) not in reasons["damaged.mp4"]
    assert len(data.samples) == 2 and data.sentence() == "2 windows of 1 clips; 6 clips cannot be used"
    with pytest.raises(InputError, match="none of 1 clips can be trained on"):
        prepare(videos[1:2], tmp_path / "other", model)


def test_finished_clips_stay(tmp_path: Path, model: TalkingModel) -> None:
    videos, shards = (
        [clip(tmp_path / "one.mp4"), clip(tmp_path / "two.mp4", seconds=1.0)],
        tmp_path / "shards",
    )
    first, said = prepare(videos[:1], shards, model)
    assert said == ["one.mp4"]
    both, said = prepare(videos, shards, model, {"two.mp4": "somebody"})
    assert said == ["two.mp4"] and both.records[0] == first.records[0]
    assert [record.caption for record in both.records] == ["a person talks to the camera", "somebody"]
    _, said = prepare(videos, shards, model, {"two.mp4": "somebody else"})
    assert said == ["two.mp4"]
    (shard,) = shards.glob(f"{first.records[0].shards[0][0]}")
    shard.unlink()
    again, said = prepare(videos, shards, model, {"two.mp4": "somebody else"})
    assert said == ["one.mp4"] and again.records[0] == first.records[0]  # to the bit
    again.samples.verify()
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(InputError, match="its checksum is wrong"):
        again.samples.verify()


def test_windows_hold_what_animation_would_see(tmp_path: Path, model: TalkingModel) -> None:
    """Latents and speech of a window, against the same made by the parts that animation uses."""
    video = clip(tmp_path / "one.mp4")
    data, _ = prepare([video], tmp_path / "shards", model)
    values = load_file(tmp_path / "shards" / data.records[0].shards[0][0])
    sizes = model.sizes.transformer
    assert values["latents"].shape == (2, 2, 5, 8, 4, 4)
    assert values["reference"].shape == values["condition"].shape == (2, 2, 2, 1, 8, 4, 4)

    frames = [frame.image for frame in read_frames(video, frame_rate=Fraction(25))][15:32]
    pictures = [
        prepare_portrait(torch.from_numpy(image).permute(2, 0, 1) / 255, model.height, model.width)
        for image in frames
    ]
    posterior = model.vae(resident()).posterior(torch.stack(pictures)[None])
    torch.testing.assert_close(values["latents"][1, 0], posterior.mean[0], rtol=1e-4, atol=1e-4)

    encoder = model.speech_encoder(torch.device("cpu"))
    hidden = encoder.features(read_speech(video).voice, sizes.frames, exact=True).hidden
    heard = take(hidden, context_rows(len(hidden)))[15:32]
    sample = data.samples.sample(1, np.random.default_rng(0))
    torch.testing.assert_close(sample.audio[0], heard)
    assert sample.latents.shape == (1, 5, 8, 4, 4) and sample.face.shape == (1, 108)

    # Drawn anew at every use: the posterior's noise, and one of the two draws of reference and motion frames.
    other = data.samples.sample(1, np.random.default_rng(5))
    deviation = model.sizes.vae.scale * torch.exp(0.5 * posterior.logvar)
    assert not torch.equal(sample.latents, other.latents)
    assert float(
        ((sample.latents - model.sizes.vae.scale * posterior.mean) / deviation).std()
    ) == pytest.approx(1, abs=0.2)
    assert not torch.equal(values["condition"][1, 0], values["condition"][1, 1])


class Seen:
    """In the place of an autoencoder: remembers the videos (1, T, 3, H, W) that it was to encode."""

    def __init__(self) -> None:
        self.videos: list[Tensor] = []

    def posterior(self, video: Tensor) -> Posterior:
        self.videos.append(video[0].clone())
        return Posterior(torch.zeros(1, 1, 8, 4, 4), torch.zeros(1, 1, 8, 4, 4))

    def of_length(self, frames: int) -> Tensor:
        return torch.stack([video for video in self.videos if len(video) == frames])


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    watching = Seen()
    monkeypatch.setattr(TalkingModel, "vae", lambda *_: watching)
    return watching


def test_pictures_of_a_window_are_those_of_the_published_training(
    tmp_path: Path, model: TalkingModel, seen: Seen
) -> None:
    """Specification 4.2, of 600 draws: what the autoencoder is given."""
    video, draws = clip(tmp_path / "one.mp4"), 300
    prepare_training_data(
        [video], {}, tmp_path / "shards", model, ThumbnailIdentity(), DataConfig(draws=draws, pool=3), backend=Faces(),
    )  # fmt: skip
    masked, conditions, windows = seen.of_length(1)[:, 0], seen.of_length(3), seen.of_length(17)
    assert len(masked) == len(conditions) == 2 * draws and len(windows) == 2

    # The reference: one of three frames of the clip, whole, and with everything but the face black.
    frames = [frame.image for frame in read_frames(video, frame_rate=Fraction(25))]
    box = face_rectangle(Faces().detect(frames[0])[0].points, *frames[0].shape[:2], enlargement=1.0)
    whole, faces = [], []
    for image in frames:
        kept = np.zeros_like(image)
        kept[box.top : box.bottom, box.left : box.right] = image[box.top : box.bottom, box.left : box.right]
        for pictures, given in ((whole, image), (faces, kept)):
            pixels = torch.from_numpy(given).permute(2, 0, 1) / 255
            pictures.append(prepare_portrait(pixels, model.height, model.width))
    chosen = [
        next(number for number, given in enumerate(whole) if torch.equal(given, clip_of[0]))
        for clip_of in conditions
    ]
    assert len(set(chosen)) == 3
    assert all(torch.equal(masked[draw], faces[number]) for draw, number in enumerate(chosen))
    assert 0.2 < float((masked == -1).all(dim=1).float().mean()) < 0.95

    # The motion frames: the window's own first ones, with noise, a tenth of whose pixels are hidden in both.
    motion = windows.repeat_interleave(draws, dim=0)[:, :2]
    hidden = (conditions[:, 1:] == 0).all(dim=2)
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    shares = hidden[:, 0].float().mean(dim=(1, 2))
    assert float(shares.mean()) == pytest.approx(0.1, abs=0.01) and not torch.equal(hidden[0], hidden[1])
    # The reference frame in front of them is whole: it has no such pixel where they do.
    assert not (conditions[:, 0] == 0).all(dim=1)[hidden[:, 0]].any()
    noise = (conditions[:, 1:] - motion).transpose(1, 2)
    sigmas = torch.stack(
        [noise[draw][:, :, ~hidden[draw, 0]].square().mean().sqrt().log() for draw in range(2 * draws)]
    )
    assert float(sigmas.mean()) == pytest.approx(-3, abs=0.1)
    assert float(sigmas.std()) == pytest.approx(0.5, abs=0.07)
    assert float(sigmas.min()) < -3.9 and float(sigmas.max()) > -2.1
    # Gaussian, of its own in each frame.
    first, second = (noise[:, :, frame].permute(1, 0, 2, 3)[:, ~hidden[:, 0]] for frame in range(2))
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.05


def test_a_clip_of_another_rate_is_read_at_25(tmp_path: Path, model: TalkingModel, seen: Seen) -> None:
    """At 30 frames a second the picture would be late by a sixth of the time that has passed."""

    def brightening(time_s: float, width: int, height: int) -> NDArray[np.uint8]:
        image = np.full((height, width, 3), round(20 + 140 * time_s), np.uint8)
        image[: height // 4, : width // 4] = (80, 0, 0)
        return image

    sound = beep(0.3, 1.4, length_s=0.5)
    video = make_clip(
        tmp_path / "one.mp4", draw=brightening, seconds=1.4, frame_rate=30, audio=sound, width=128, height=96
    )
    data, _ = prepare([video], tmp_path / "shards", model)
    windows = seen.of_length(17)
    assert len(windows) == data.records[0].windows == 2
    levels = 127.5 * (windows[:, :, :, model.height // 2 :, model.width // 2 :].mean(dim=(2, 3, 4)) + 1)
    times = (levels - 20) / 140
    expected = (torch.arange(2)[:, None] * 15 + torch.arange(17)) / 25
    assert float((times - expected).abs().max()) < 0.04, times


def test_captions(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.mp4", "below/a.MOV", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "captions.txt").write_text(
        "b.mp4\ta man talks\n\n a.MOV \t a woman sings \n", encoding="utf-8"
    )
    videos, captions = find_videos(tmp_path)
    assert [video.name for video in videos] == ["b.mp4", "a.MOV"]
    assert captions == {"b.mp4": "a man talks", "a.MOV": "a woman sings"}
    assert find_videos(tmp_path / "b.mp4") == ([tmp_path / "b.mp4"], {})
    (tmp_path / "captions.txt").write_text("b.mp4 a man talks\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1 of .* is no caption"):
        find_videos(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no videos"):
        find_videos(tmp_path / "none")
    with pytest.raises(InputError, match="there is no"):
        find_videos(tmp_path / "nothing")


# What it costs

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "portrait-training-plan.json"


def counted(stage: int, lora: int, cards: int) -> dict[str, float]:
    """A row of the committed table."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    (row,) = (r for r in rows if (r["stage"], r["lora"], r["cards"]) == (stage, lora, cards))
    return row


def test_the_plan_counts_what_the_specification_says() -> None:
    machine, known = Machine(torch.device("cuda"), torch.bfloat16), {"rate": 4e14, "free": 141e9}
    one = plan_training(official_architecture(), stage_one(), machine, **known)
    two = plan_training(official_architecture(), stage_two(), machine, world=8, **known)
    # 4.2 billion learn at 16 bytes each, 8.1 billion stay at 2 each; with 14 billion, 2.2 learn, cut over 8 cards.
    assert one.learning == 4_232_284_160 and two.learning == 2_236_127_744
    assert one.gradients == 4 * one.learning and one.optimizer == 8 * one.learning
    assert one.parameters == 6_684_929_600 + 5_625_087_552 and one.frozen == 2 * (
        one.parameters - one.learning
    )
    assert two.weights == two.learning / 2 and two.frozen == (two.parameters - two.learning) / 4
    assert 95e9 < one.needed < 110e9
    # 332 TFLOP for a sample's forward pass, a fifth more with its face branch; with gradients and recomputing 4 times.
    assert one.flops / (8 * 4) == pytest.approx(0.37e15, rel=0.05)
    sizes = tiny_architecture()
    lora = plan_training(sizes, replace(stage_two(), lora_rank=2), machine, **known)
    linears = [
        m
        for n, m in Transformer(sizes.transformer).named_modules()
        if "audio" in n and hasattr(m, "in_features")
    ]
    assert lora.learning == sum(2 * (m.in_features + m.out_features) for m in linears)
    assert lora.frozen == 2 * lora.parameters
    assert "share it between more cards with torchrun" in replace(one, free=24e9).shortage
    assert one.shortage == ""
    assert counted(1, 0, 1)["needed"] == round(one.needed) and counted(2, 0, 8)["needed"] == round(two.needed)


def test_recomputing_keeps_less() -> None:
    """All layers keep the same; recomputed, all but one of them keep only what enters."""
    dtype, config = torch.float32, tiny()
    counts = [kept_bytes(config, dtype, layers) for layers in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    sizes = replace(config, layers=20)
    less, more = (
        activation_bytes(sizes, replace(stage_one(), recompute=flag), dtype) for flag in (True, False)
    )
    assert less < 0.2 * more


def test_types_of_a_card_are_those_of_autocast() -> None:
    """Against PyTorch's own rules, which a tensor without memory follows anywhere."""
    functions: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "linear": F.linear,
        "matmul": torch.matmul,
        "layer_norm": lambda one, _: F.layer_norm(one, (8,)),
        "group_norm": lambda one, _: F.group_norm(one, 2),
        "softmax": lambda one, _: one.softmax(-1),
        "sum": lambda one, _: one.sum(),
        "mse_loss": F.mse_loss,
        "mean": lambda one, _: one.mean(),
        "gelu": lambda one, _: F.gelu(one, approximate="tanh"),
        "silu": lambda one, _: F.silu(one),
        "cat": lambda one, other: torch.cat([one, other]),
        "product": lambda one, other: one * other,
    }
    pairs = [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ]
    mixing = ("mse_loss", "product", "cat")
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    for name, function in functions.items():
        for types in pairs:
            if types[0] == types[1] or name in mixing:
                with torch.device("meta"), CardAutocast(torch.bfloat16):
                    counted = function(*(torch.empty(8, 8, dtype=dtype) for dtype in types)).dtype
                torch.set_autocast_enabled("cuda", True)
                torch.set_autocast_dtype("cuda", torch.bfloat16)
                try:
                    with FakeTensorMode():
                        given = (torch.empty(8, 8, dtype=dtype, device="cuda") for dtype in types)
                        assert counted == function(*given).dtype, (name, types)
                finally:
                    torch.set_autocast_enabled("cuda", before[0])
                    torch.set_autocast_dtype("cuda", before[1])


def test_what_is_kept_in_sixteen_bits_is_partly_float32() -> None:
    """Normalised tokens are: more than half of what the same layer keeps in float32, and less than all."""
    config = tiny()
    short, long = (kept_bytes(config, dtype, 2) for dtype in (torch.bfloat16, torch.float32))
    assert 0.55 * long < short < 0.9 * long


def test_what_cannot_fit_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(tmp_path / "one.mp4")
    monkeypatch.setattr("omokage.pipelines.training_plan.free_bytes", lambda device: 24e9)
    monkeypatch.setenv("OMOKAGE_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(MemoryShortageError, match=r"this training needs .* GB of each device's memory"):
        train_portrait(tmp_path / "one.mp4", output=tmp_path / "out", config=TrainConfig(stage=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.mp4"]


# The whole way


@pytest.fixture(scope="module")
def said_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("said")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one usable clip."""
    monkeypatch.setattr("omokage.pipelines.training_data.MediaPipeLandmarks", lambda **_: Faces())
    (tmp_path / "data").mkdir()
    clip(tmp_path / "data" / "one.mp4")
    return tmp_path / "data"


def few(**changes: object) -> TrainConfig:
    return TrainConfig(**{"preset": "tiny", "steps": 2, **changes})  # type: ignore[arg-type]


def test_both_stages_a_lora_and_a_video(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = train_portrait(data, output=one, config=few())
    assert first.path == one and len(first.result.losses) == 2 and not one.with_name("one.work").exists()
    report = json.loads((one / "training.json").read_text())
    assert report["stage"] == 1 and report["windows"] == 2 and report["losses"] == list(first.result.losses)
    untrained = load_file(make_untrained(tmp_path / "untrained", 0) / "denoiser-00001-of-00001.safetensors")
    after_one = load_file(one / "denoiser-00001-of-00001.safetensors")
    changed = {name for name, value in after_one.items() if not torch.equal(value, untrained[name])}
    assert changed and all(".attention." in n or ".mlp_norm." in n or "face" in n for n in changed)

    train_portrait(data, output=two, config=few(stage=2, weights=one))
    after_two = load_file(two / "denoiser-00001-of-00001.safetensors")
    changed = {name for name, value in after_two.items() if not torch.equal(value, after_one[name])}
    assert changed and all("audio" in name for name in changed)
    assert (two / "reference-00001-of-00001.safetensors").samefile(
        one / "reference-00001-of-00001.safetensors"
    )

    lora = train_portrait(data, output=tmp_path / "lora", config=few(stage=2, weights=two, lora=4)).path
    assert lora.name == "lora.safetensors" and lora.stat().st_size < 200_000
    plain, with_lora = TalkingModel.open(two, CPU), TalkingModel.open(two, CPU, lora)
    assert plain.digest != with_lora.digest
    name, updates = "blocks.1.audio.query", load_file(lora)
    before, after = (m.denoiser(resident()).get_parameter(f"{name}.weight") for m in (plain, with_lora))
    update = updates[f"denoiser.{name}.lora_up"] @ updates[f"denoiser.{name}.lora_down"]
    torch.testing.assert_close(after, before + update)
    assert not torch.equal(after, before)
    with pytest.raises(WeightsError, match="trained beside other weights"):
        TalkingModel.open(one, CPU, lora)
    portrait = save_picture(tmp_path / "face.png", astronaut()[:256, 96:352])
    voice = save_sound(tmp_path / "voice.wav", beep(0.1, 0.3))
    made = animate(
        portrait, voice, output=tmp_path / "out.mp4", config=AnimateConfig(steps=2, weights=two, lora=lora)
    )
    assert (tmp_path / "out.mp4").is_file() and made.plan.frames == 8


def test_the_published_first_stage_begins_with_cogvideox(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers", reason="CogVideoX needs 'pip install omokage[portrait]'")
    from omokage.pipelines.model_files import AddConfig
    from omokage.pipelines.weights import add_weights

    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    start, one, two = Path("cogvideox"), tmp_path / "one", tmp_path / "two"
    with pytest.raises(
        WeightsError, match=r"weights of cogvideox are not installed.*'omokage weights add cogvideox'"
    ):
        train_portrait(data, output=one, config=few(weights=start))
    with pytest.raises(WeightsError, match=r"no folder cogvide to begin with; .* one of hallo3, cogvideox"):
        train_portrait(data, output=one, config=few(weights=Path("cogvide")))
    published = make_cogvideox_folder(tmp_path / "published")
    folder = add_weights("cogvideox", published, config=AddConfig(tiny_cogvideox(), torch.float32))
    # Speech features of the tiny encoder are of two layers; windows are 49 frames.
    clip(data / "one.mp4", seconds=2.4)
    assert first_folder(TrainConfig(stage=1)) == first_folder(TrainConfig(weights=start)) == folder
    made = train_portrait(data, output=one, config=few(weights=start))
    assert made.notes and "the branch of the face learned from zeros" in made.notes[0]
    before, after = (load_file(place / "denoiser-00001-of-00001.safetensors") for place in (folder, one))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and all(".attention." in n or ".mlp_norm." in n or "face" in n for n in changed)
    assert load_architecture(folder).caution == load_architecture(one).caution == SPEECHLESS
    train_portrait(data, output=two, config=few(stage=2, weights=one))
    assert load_architecture(two) == tiny_cogvideox()  # it has learned to speak
    save_face_network(tmp_path / "glintr100.onnx", 20)
    add_weights("face", tmp_path / "glintr100.onnx")
    with_face = train_portrait(data, output=tmp_path / "with-face", config=few(weights=start)).path
    assert (with_face / "face.onnx").read_bytes() == (tmp_path / "glintr100.onnx").read_bytes()
    key = "face_tokens.linear.weight"
    seen = load_file(with_face / "denoiser-00001-of-00001.safetensors")[key]
    # Without an embedding nothing but weight decay moves them.
    assert (seen - before[key]).abs().mean() > 100 * (after[key] - before[key]).abs().mean()


def test_a_stopped_training_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omokage.talking.training.train.CHECKPOINT_SECONDS", 0.0)
    whole = train_portrait(data, output=tmp_path / "whole", config=few(steps=3)).result

    def stop(progress: Progress) -> None:
        if progress.note.startswith("step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_portrait(data, output=tmp_path / "out", config=few(steps=3), on_progress=stop)
    assert (tmp_path / "out.work").is_dir() and not (tmp_path / "out").exists()
    seen = list[str]()
    done = train_portrait(
        data, output=tmp_path / "out", config=few(steps=3), on_progress=lambda p: seen.append(p.note)
    )
    assert done.result.losses == whole.losses
    assert [note[:6] for note in seen if note.startswith("step")] == ["step 2", "step 3"]


COMMAND = "import torch; torch.set_num_threads(1); from omokage.cli.app import main; main()"
# The machine fails when the first step was kept.
FAILING = """
import os, signal
import omokage.talking.training.train as train
train.CHECKPOINT_SECONDS = 0.0
save = train.Run.save
def save_and_fail(self, *given, **named):
    save(self, *given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
train.Run.save = save_and_fail
"""


def test_two_processes_train_what_one_trains(tmp_path: Path, said_in: Path) -> None:
    """The command as `torchrun` starts it, both stages, with their frozen parts and a LoRA; killed and begun again."""
    write_talker(tmp_path / "one.mp4", 40, side=128)
    for stage, output, more in ((1, "one", []), (2, "lora", ["--lora", "4", "--weights", tmp_path / "one"])):
        given = ["--preset", "tiny", "--stage", stage, "--steps", 2, "--batch", 2, "--device", "cpu", *more]
        arguments = ["train-portrait", tmp_path / "one.mp4", "-o", tmp_path / output, *given]
        if stage == 1:
            assert [status for status, *_ in pair(FAILING, arguments, said_in)] == [-9, -9]
            assert (tmp_path / "one.work" / "checkpoint" / "latest.json").is_file() and not (
                tmp_path / output
            ).exists()
        for status, _, said in pair("", arguments, said_in):
            assert status == 0, said
    first = few(batch=2)
    alone = train_portrait(tmp_path / "one.mp4", output=tmp_path / "alone", config=first)
    report = json.loads((tmp_path / "one" / "training.json").read_text())
    assert report["losses"] == pytest.approx(alone.result.losses, rel=1e-5)
    for file in ("denoiser-00001-of-00001.safetensors", "reference-00001-of-00001.safetensors"):
        shared, single = load_file(tmp_path / "one" / file), load_file(tmp_path / "alone" / file)
        for name, value in single.items():
            torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)
    second = few(stage=2, batch=2, lora=4, weights=tmp_path / "one")
    train_portrait(tmp_path / "one.mp4", output=tmp_path / "lora-alone", config=second)
    shared, single = (load_file(tmp_path / place / "lora.safetensors") for place in ("lora", "lora-alone"))
    assert shared.keys() == single.keys()
    for name, value in single.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)


def pair(first: str, arguments: list[object], said_in: Path) -> list[tuple[int, str, str]]:
    """The command in two processes that do `first` before."""
    processes = [Started(first + COMMAND, arguments, said_in, **place) for place in places(2)]
    return [process.wait() for process in processes]


def test_nothing_of_somebody_else_is_replaced(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="in the way and no result of training"):
        train_portrait(data, output=tmp_path / "mine", config=few())
    with pytest.raises(OutputError, match="holds the videos"):
        train_portrait(data, output=data, config=few())
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="in the way and not of omokage"):
        train_portrait(data, output=tmp_path / "out", config=few())
    with pytest.raises(InputError, match="the stages 1 and 2"):
        few(stage=3)
