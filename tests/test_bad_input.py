"""Bad input as a user meets it at the command line: one sentence, an exit code, and nothing is touched or left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from clips import make_clip, moving_disc, small_disk
from omokage.avatar.bundle import Avatar
from omokage.cli import app as cli
from omokage.config import Progress
from omokage.media.decode import probe, read_frames
from omokage.pipelines.predict import Prediction
from omokage.pipelines.stand_in import stand_in
from omokage.tracking.synthetic import SyntheticSubject
from plain_avatars import made_plain

RATE, SIZE = 10, 160
CREATE = ("create", "{clip}", "-o", "me.avatar", "--size", "128", "--minutes", "0.1")
REENACT = ("reenact", "a.avatar", "{clip}", "-o", "out.mp4", "--runtime", "torch")
CHECK = ("check", "{clip}", "-o", "sheets")
CLIP_COMMANDS = (CREATE, REENACT, CHECK)


@pytest.fixture(scope="module")
def person() -> list[np.ndarray]:
    """26 frames of somebody who does not exist."""
    return acted(seed=3, count=26)


@pytest.fixture(scope="module")
def other() -> list[np.ndarray]:
    return acted(seed=5, count=12)


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    torch.set_num_threads(1)
    return stand_in(128).avatar


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, avatar: Avatar) -> Path:
    """A folder with an avatar, and a machine whose speed is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "omokage.pipelines.create.predict_create",
        lambda *_: Prediction(minutes=1.0, training_minutes=1.0, memory_gb=1.0, allowed_minutes=1.0),
    )
    avatar.save(tmp_path / "a.avatar")
    return tmp_path


def acted(seed: int, count: int) -> list[np.ndarray]:
    subject = SyntheticSubject(seed)
    truth = subject.performance(count / RATE, frame_rate=float(RATE), size=SIZE, motion=0.7)
    return [frame.image for frame in subject.render_clip(truth)]


def film(name: str, frames: list[np.ndarray], *, rate: int = RATE, **settings: Any) -> Path:
    def draw(time_s: float, width: int, height: int) -> np.ndarray:
        return frames[min(len(frames) - 1, round(float(time_s) * rate))]

    height, width = frames[0].shape[:2]
    settings = {"width": width, "height": height, "options": {"crf": "12"}} | settings
    return make_clip(Path(name), seconds=len(frames) / rate, frame_rate=rate, draw=draw, **settings)


def beside(one: list[np.ndarray], two: list[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(pair, axis=1) for pair in zip(one, two, strict=False)]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {
        str(place.relative_to(folder)): place.read_bytes() if place.is_file() else None
        for place in folder.rglob("*")
        if not place.is_symlink()
    }


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run([*words, "--quiet"])
    out, err = capfd.readouterr()
    # What MediaPipe's C++ says when its networks start; `cli.main` sends it into the void.
    return code, out, "".join(line for line in err.splitlines(keepends=True) if "W0000" not in line)


def refusal(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail without leaving a trace; its one sentence."""
    before = contents(Path())
    capfd.readouterr()
    code, out, err = run(capfd, *words)
    assert code in (2, 3), err
    assert contents(Path()) == before
    assert out == "" and err.count("\n") == 1 and err.startswith("omokage: ") and len(err) < 500, err
    return err


def no_face(_: Any) -> Path:
    return make_clip(Path("empty.mp4"), seconds=3, draw=moving_disc)


def text_called_mp4(_: Any) -> Path:
    Path("text.mp4").write_text("Dear diary,\n" * 50)
    return Path("text.mp4")


def cut_off(person: list[np.ndarray]) -> Path:
    path = film("whole.mp4", person)
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def corrupt(person: list[np.ndarray]) -> Path:
    path = film("whole.mp4", person)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + len(data) // 3
    noise = np.random.default_rng(0).integers(0, 256, len(data) // 4, dtype=np.uint8)
    data[middle : middle + len(noise)] = noise.tobytes()
    path.write_bytes(data)
    return path


def nothing_in_it(_: Any) -> Path:
    Path("nothing.mp4").touch()
    return Path("nothing.mp4")


def too_wide(_: Any) -> Path:
    return make_clip(Path("wide.mp4"), width=8208, height=16, frame_rate=5)


@pytest.mark.parametrize("command", CLIP_COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (text_called_mp4, "holds text, whatever its name says; give a video"),
        (cut_off, "damaged or cut off"),
        (corrupt, "is damaged after"),
        (nothing_in_it, "is empty (0 bytes)"),
        (too_wide, "8208x16 pixels; at most 8192 a side"),
        (lambda _: Path("none.mp4"), "none.mp4 does not exist"),
    ],
    ids=("text", "truncated", "corrupt", "empty", "beyond 8K", "missing"),
)
def test_files_that_cannot_be_read(
    command: tuple[str, ...],
    make: Callable[[Any], Path],
    words: str,
    person: list[np.ndarray],
    capfd: pytest.CaptureFixture[str],
) -> None:
    clip = make(person)
    said = refusal(capfd, *(word.format(clip=clip) for word in command))
    assert words in said and str(clip) in said


def test_recordings_of_nobody_of_two_and_of_a_second(
    person: list[np.ndarray], other: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    clips = {
        no_face(None): "face found 0 %",
        film("two.mp4", beside(person[:12] * 2, other[:12] * 2)): "second face 100 %",
        film(
            "cut.mp4", person[:12] + [picture[:, ::-1] // 2 for picture in other]
        ): "cuts 1 (refused above 0)",
        film("second.mp4", person[:10]): "usable face 1 s",
    }
    for clip, words in clips.items():
        said = refusal(capfd, *(word.format(clip=clip) for word in CREATE))
        assert f"{clip} cannot become an avatar" in said and words in said
        code, out, _ = run(capfd, "check", str(clip))
        assert code == 2 and "Verdict: REFUSE" in out
    # What the check would have said comes up all the same when it is left out.
    for clip, words in ((Path("empty.mp4"), "No face was found"), (Path("second.mp4"), "only 10 frames")):
        said = refusal(capfd, *(word.format(clip=clip) for word in CREATE), "--force")
        assert words in said and str(clip) in said


def test_a_still_picture_is_no_recording_and_no_driver(
    person: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.fromarray(person[0]).save("still.png")
    for command, words in zip(CLIP_COMMANDS, ("rehearse", "has no movement", "rehearse"), strict=True):
        assert words in refusal(capfd, *(word.format(clip="still.png") for word in command))


def test_drivers_of_nobody_are_refused_and_faults_are_named(
    person: list[np.ndarray], other: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    clip = no_face(None)
    assert "empty.mp4: No face" in refusal(capfd, *(word.format(clip=clip) for word in REENACT))
    film("two.mp4", beside(person[:12], other))
    film("cut.mp4", person[:8] + [picture[:, ::-1] // 2 for picture in other[:8]])
    for name, words in (("two.mp4", "shows more than one face in 100 %"), ("cut.mp4", "is cut at 0.8 s")):
        code, _, err = run(capfd, *(word.format(clip=name) for word in REENACT))
        assert code == 0 and words in err and err.startswith("note: ")


def test_unusual_drivers_give_the_same_pictures(
    person: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    """Turned, grey, HDR, with alpha, 8K, five frames a second, without sound, one second long: all can be used."""
    frames = person[:6]
    large = [cv2.resize(picture, (4320, 4320)) for picture in frames]
    clear = [np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]) for picture in frames]
    bright = [picture.astype(np.uint16) * 130 for picture in frames]
    clips = [
        film("plain.mp4", frames),
        film("turned.mp4", [np.ascontiguousarray(np.rot90(picture)) for picture in frames], rotation_deg=90),
        film("grey.mp4", frames, pixel_format="gray"),
        film("alpha.webm", clear, codec="libvpx-vp9", pixel_format="yuva420p"),
        film("8k.mp4", large, width=4320, height=4320, codec="mpeg4", options={"qscale": "2"}),
        film("hdr.mp4", bright, codec="libx265", pixel_format="yuv420p10le", transfer="pq",
             options={"x265-params": "log-level=none"}),
        film("slow.mp4", frames, rate=5),
    ]  # fmt: skip
    shown = []
    for clip in clips:
        code, out, _ = run(capfd, *(word.format(clip=clip) for word in REENACT))
        assert (code, out) == (0, "video: out.mp4\n")
        info = probe(Path("out.mp4"))
        assert (info.width, info.has_audio) == (128, False)
        assert info.frame_rate == (5 if clip.name == "slow.mp4" else RATE)
        shown.append(np.stack([frame.image for frame in read_frames(Path("out.mp4"))]).astype(float))
    for clip, pictures in zip(clips, shown, strict=True):
        assert np.abs(pictures - shown[0]).mean() < 4, clip


def test_avatars_that_are_newer_or_damaged(
    person: list[np.ndarray], capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    film("driver.mp4", person[:6])
    whole = Path("a.avatar").read_bytes()
    shutil.copy("a.avatar", "plain.avatar")
    with safe_open(made_plain(Path("plain.avatar")), framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, "newer.avatar", metadata | {"version": "9"})
    reenact = ("reenact", "bad.avatar", "driver.mp4", "-o", "out.mp4")
    said = refusal(capfd, "reenact", "newer.avatar", "driver.mp4", "-o", "out.mp4")
    assert "of format 9" in said and "update omokage" in said
    assert "of format 9" in refusal(capfd, "evaluate", "newer.avatar", "-o", "report")
    # In its length field, its header, its first and its last tensor.
    for place in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 0x20
        Path("bad.avatar").write_bytes(flipped)
        assert "bad.avatar is damaged" in refusal(capfd, *reenact)
    for size in (0, 4, len(whole) // 2):
        Path("bad.avatar").write_bytes(whole[:size])
        assert "bad.avatar is damaged" in refusal(capfd, *reenact)
    assert "bad.avatar is damaged" in refusal(capfd, "evaluate", "bad.avatar", "-o", "report")


@pytest.mark.parametrize("command", [CREATE, REENACT], ids=lambda command: command[0])
def test_a_label_that_cannot_be_drawn_is_told_before_the_work(
    command: tuple[str, ...],
    person: list[np.ndarray],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film("me.mp4", person[:3])
    monkeypatch.setattr("omokage.pipelines.recording.track_clip", None)
    said = refusal(capfd, *(word.format(clip="me.mp4") for word in command), "--label", "\ue000\ue001")
    assert "cannot be drawn ('\ue000\ue001')" in said


# Full disks and locked folders


def output_commands(person: list[np.ndarray]) -> dict[str, tuple[str, ...]]:
    """A command for every kind of output, by the name of the output."""
    film("me.mp4", person)
    PIL.Image.fromarray(cv2.resize(person[0], (480, 480))).save("photo.png")
    create = tuple(word.format(clip="me.mp4") for word in CREATE)
    return {
        "me.avatar": (*create, "--force"),
        "out.mp4": tuple(word.format(clip="me.mp4") for word in REENACT),
        "clip.mp4": ("rehearse", "photo.png", "-o", "clip.mp4", "--seconds", "5"),
        "sheets": ("check", "me.mp4", "-o", "sheets"),
    }


def test_no_room_for_the_result(person: list[np.ndarray], capfd: pytest.CaptureFixture[str]) -> None:
    commands = output_commands(person[:25])
    del commands["clip.mp4"]  # written as out.mp4 is
    for command in commands.values():
        with small_disk(4_000):
            said = refusal(capfd, *command)
        assert "cannot be written: the file grew beyond the limit" in said


def test_a_full_disk_by_its_own_name(person: list[np.ndarray], capfd: pytest.CaptureFixture[str]) -> None:
    film("me.mp4", person[:6])
    Path("out.mp4").write_bytes(b"precious")
    Path("out.mp4.part").symlink_to("/dev/full")  # where every write finds the disk full
    said = refusal(capfd, *(word.format(clip="me.mp4") for word in REENACT))
    assert "out.mp4 cannot be written: the disk is full" in said
    assert not Path("out.mp4.part").is_symlink()


def test_no_permission_is_told_before_the_work(
    person: list[np.ndarray], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = output_commands(person)

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere, so a mode would not do
    monkeypatch.setattr("omokage.pipelines.recording.track_clip", None)
    monkeypatch.setattr("omokage.pipelines.check.check_recording", None)
    for output, command in commands.items():
        assert f"{output} cannot be written: there is no permission" in refusal(capfd, *command)


# Ctrl-C


class CtrlC:
    """Presses it when a stage has reported for the second time (or the first, of stages with one report)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage: str | None = None
        self.seen: list[str] = []
        for module in ("app", "create"):
            monkeypatch.setattr(f"omokage.cli.{module}.ProgressBar", self.bar)

    def bar(self, **_: Any) -> CtrlC:
        return self

    def __enter__(self) -> CtrlC:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        if progress.stage not in self.seen:
            self.seen.append(progress.stage)
        if progress.stage == self.stage and progress.done >= min(2, progress.total):
            raise KeyboardInterrupt


CREATE_STAGES = (
    "plan", "checking", "landmarks", "identity", "fitting", "cutting out", "first picture", "training", "evaluating",
)  # fmt: skip


def test_ctrl_c_at_every_stage_of_create(
    person: list[np.ndarray], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, each time one stage later: nothing half-written is left, and in the end there is an avatar."""
    keys = CtrlC(monkeypatch)
    monkeypatch.setattr("omokage.avatar.registration.ROUNDS", 1)
    film("me.mp4", person)
    before = contents(Path())
    command = tuple(word.format(clip="me.mp4") for word in CREATE)
    for keys.stage in CREATE_STAGES:
        code, out, err = run(capfd, *command)
        assert (code, out, err.strip().count("\n")) == (130, "", 0) and "goes on from what was done" in err
        left = {name: data for name, data in contents(Path()).items() if before.get(name) != data}
        trained, tracked = keys.stage == "evaluating", CREATE_STAGES.index(keys.stage) > 4
        assert "me-report" not in left and not any(name.endswith(".part") for name in left)
        assert ("me.avatar" in left) == trained and ("me.avatar.work/recording.track" in left) == tracked
        assert bool(left) == tracked
    keys.stage = None
    assert run(capfd, *command)[:2] == (0, "avatar: me.avatar\nreport: me-report/report.html\n")
    made = {name.split("/")[0] for name in contents(Path()).keys() - before.keys()}
    assert made == {"me.avatar", "me-report"}
    others = {
        "preview while training",
        "warping training frames",
        "speech",
    }  # facts, and part of the evaluation
    assert {*keys.seen} - {*CREATE_STAGES} <= others
    assert Avatar.load(Path("me.avatar")).evaluation


@pytest.mark.parametrize("name", ["out.mp4", "clip.mp4", "sheets"])
def test_ctrl_c_at_every_stage_of_the_other_commands(
    name: str, person: list[np.ndarray], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = CtrlC(monkeypatch)
    command = output_commands(person[:8])[name]
    before = contents(Path())
    stages = {
        "out.mp4": ("landmarks", "identity", "fitting", "writing"),
        "clip.mp4": ("reading the face", "writing"),
        "sheets": ("checking",),
    }[name]
    for keys.stage in stages:
        code, out, err = run(capfd, *command)
        assert (code, out, err.strip().count("\n")) == (130, "", 0) and "nothing half-written" in err
        assert contents(Path()) == before
    assert tuple(keys.seen) == stages
