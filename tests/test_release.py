"""The one door out: what leaves is labeled, in sync, complete or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from xml.etree import ElementTree

import av
import numpy as np
import PIL.Image
import pytest

from clips import beep, flash, moving_disc, onset_s, small_disk
from conftest import agree
from omokage.errors import InputError, InternalError, MediaError, OutputError
from omokage.media.decode import probe, read_audio, read_frames, read_image
from omokage.trust import label as label_module
from omokage.trust.label import TEXT_SHARE, Label, check_label, draw_label, label_profiles, read_label
from omokage.trust.origin import read_origin
from omokage.trust.release import (
    CLIP_SUFFIXES,
    DIGITAL_SOURCE_TYPE,
    ReleaseConfig,
    check_writable,
    release_clip,
    release_image,
    release_text,
)

RATE = Fraction(25)


def _frames(count: int, width: int = 96, height: int = 64) -> Iterator[np.ndarray]:
    return (moving_disc(i / 25, width, height) for i in range(count))


def _nothing_left(folder) -> bool:
    return list(folder.iterdir()) == []


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
def test_a_clip_comes_back_in_sync(tmp_path, suffix):
    draw = flash(1.0)
    path = tmp_path / f"a{suffix}"
    reports = []
    released = release_clip(
        (draw(i / 25, 96, 64) for i in range(50)), path, frame_rate=RATE, audio=beep(1.0, 2.0),
        frame_count=50, on_progress=reports.append,
    )  # fmt: skip
    assert (released.frame_count, released.duration_s, released.label) == (50, 2.0, None)
    assert released.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(r.done, r.total) for r in reports] == [(i + 1, 50) for i in range(50)]
    frames = list(read_frames(path))
    assert len(frames) == 50 and probe(path).frame_rate == 25
    assert next(f.time_s for f in frames if f.image.mean() > 128) == pytest.approx(1.0)
    assert onset_s(read_audio(path)) == pytest.approx(1.0, abs=0.01)
    with av.open(str(path)) as container:
        starts = [float((s.start_time or 0) * s.time_base) for s in container.streams]
    assert abs(starts[0] - starts[1]) < 0.02
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("sound_s", [0.3, 3.0])
def test_sound_is_cut_or_padded_to_the_pictures(tmp_path, suffix, sound_s):
    path = tmp_path / f"a{suffix}"
    release_clip(_frames(25), path, frame_rate=RATE, audio=beep(0.1, sound_s, sample_rate=32000, channels=2))
    audio = read_audio(path)
    assert len(audio.samples) / audio.sample_rate == pytest.approx(1.0, abs=0.04)
    assert onset_s(audio) == pytest.approx(0.1, abs=0.01)


def test_colors_come_back(tmp_path):
    color = (200, 60, 30)
    release_clip([np.full((64, 96, 3), color, np.uint8)] * 5, tmp_path / "a.mp4", frame_rate=RATE)
    assert next(read_frames(tmp_path / "a.mp4")).image.mean(axis=(0, 1)) == pytest.approx(color, abs=2)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_primaries, context.color_trc) == (
            "yuv420p",
            1,
            1,
            1,
        )


def test_odd_sizes(tmp_path):
    release_clip(_frames(5, 97, 65), tmp_path / "a.mp4", frame_rate=RATE)
    assert (probe(tmp_path / "a.mp4").width, probe(tmp_path / "a.mp4").height) == (98, 66)
    release_clip(_frames(5, 97, 65), tmp_path / "a.webm", frame_rate=RATE)
    assert (probe(tmp_path / "a.webm").width, probe(tmp_path / "a.webm").height) == (97, 65)


def test_alpha_comes_back_from_webm_only(tmp_path):
    picture = np.zeros((64, 96, 4), np.uint8)
    picture[:, :48] = (200, 60, 30, 255)
    picture[:, 48:] = (200, 60, 30, 64)
    path = tmp_path / "a.webm"
    release_clip([picture] * 5, path, frame_rate=RATE)
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(path)) as container:
        packet = next(container.demux(video=0))
        back = (decoder.decode(packet) + decoder.decode(None))[0].to_ndarray(format="rgba")
    assert back[32, 20] == pytest.approx([200, 60, 30, 255], abs=4)
    assert back[32, 76, 3] == pytest.approx(64, abs=4)
    assert next(read_frames(path)).image[32, 76] == pytest.approx([50, 15, 8], abs=4)
    with pytest.raises(OutputError, match="webm"):
        release_clip([picture] * 5, tmp_path / "a.mp4", frame_rate=RATE)
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("suffix", [*CLIP_SUFFIXES, ".png", ".jpg"])
def test_what_leaves_is_signed_before_it_has_a_name(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    agree("ab" * 32, "reception")
    config = ReleaseConfig(title="greeting", purpose="reception", avatar="ab" * 32, consent="c0" * 32)

    def leave():
        if suffix in CLIP_SUFFIXES:
            return release_clip(_frames(5, 256, 256), path, frame_rate=RATE, config=config)
        return release_image(moving_disc(0, 256, 256), path, config=config)

    released, origin = leave(), read_origin(path)
    assert released.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    if suffix == ".webm":
        assert origin.state == "none"  # its container has no room
        return
    assert origin.state == "trusted" and origin.source_type == DIGITAL_SOURCE_TYPE["generated"]
    assert origin.own == {
        "version": 1,
        "render_id": released.render_id,
        "purpose": "reception",
        "consent": "c0" * 32,
        "sources": ["ab" * 32],
    }
    # What cannot be signed does not leave.
    before = path.read_bytes()
    monkeypatch.setattr("omokage.trust.release.identity", lambda: _raise(InputError("the certificate ended")))
    with pytest.raises(InputError, match="the certificate ended"):
        leave()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def _raise(error: Exception) -> None:
    raise error


def test_equal_input_gives_equal_files(tmp_path):
    for suffix in CLIP_SUFFIXES:
        made = [
            release_clip(_frames(20), tmp_path / f"{name}{suffix}", frame_rate=RATE, audio=beep(0.2, 1.0))
            for name in "ab"
        ]
        assert made[0].sha256 == made[1].sha256


def test_every_clip_says_that_it_is_generated(tmp_path):
    config = ReleaseConfig(title="A title", purpose="training")
    for suffix in CLIP_SUFFIXES:
        path = tmp_path / f"a{suffix}"
        release_clip(_frames(3), path, frame_rate=RATE, config=config)
        with av.open(str(path)) as container:
            tags = {name.lower(): value for name, value in container.metadata.items()}
        assert tags["comment"].startswith("AI-generated") and tags["title"] == "A title"
        assert DIGITAL_SOURCE_TYPE["generated"] in tags["comment"] and "training" in tags["comment"]
    with pytest.raises(InternalError, match="generated ones only"):
        release_clip(_frames(3), path, frame_rate=RATE, config=replace(config, origin="recorded"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("origin, words", [("generated", "AI-generated with"), ("recorded", "not generated")])
def test_every_picture_says_whether_it_is_generated(tmp_path, suffix, origin, words):
    image, path = moving_disc(0.3, 96, 64), tmp_path / f"a{suffix}"
    release_image(image, path, config=ReleaseConfig(origin=origin))
    assert np.abs(read_image(path).astype(int) - image).mean() < 3
    with PIL.Image.open(path) as picture:
        picture.load()
        packet = ElementTree.fromstring(picture.info["xmp"].strip(b"\0"))
        values = {element.tag.split("}")[1]: element.text for element in packet.iter()}
        comment = str(picture.info.get("Comment", picture.info.get("comment")))
    assert values["DigitalSourceType"] == DIGITAL_SOURCE_TYPE[origin] and words in comment
    assert ("trainedAlgorithmic" in comment) == ("AI-generated" in comment) == (origin == "generated")


def test_frames_are_not_collected(tmp_path):
    alive: list[weakref.ref] = []

    def frames() -> Iterator[np.ndarray]:
        for i in range(60):
            image = moving_disc(i / 25, 96, 64)
            alive.append(weakref.ref(image))
            assert sum(ref() is not None for ref in alive) <= 4
            yield image

    assert release_clip(frames(), tmp_path / "a.mp4", frame_rate=RATE).frame_count == 60


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MediaError("the driver is damaged after 0.40 s")])
def test_an_interruption_leaves_the_old_file_and_no_new_one(tmp_path, suffix, error):
    def frames() -> Iterator[np.ndarray]:
        yield from _frames(30)
        raise error

    path = tmp_path / f"a{suffix}"
    with pytest.raises(type(error)):
        release_clip(frames(), path, frame_rate=RATE, audio=beep(0.1, 3.0))
    assert _nothing_left(tmp_path)
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        release_clip(frames(), path, frame_rate=RATE)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", CLIP_SUFFIXES)
def test_no_room_while_writing_a_clip(tmp_path, suffix):
    noise = np.random.default_rng(0)
    frames = (noise.integers(0, 255, (128, 128, 3), np.uint8) for _ in range(25))
    with small_disk(40_000), pytest.raises(OutputError, match="cannot be written: the file grew"):
        release_clip(frames, tmp_path / f"a{suffix}", frame_rate=RATE)
    assert _nothing_left(tmp_path)


def test_no_room_while_writing_a_picture_or_report(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    with small_disk(40_000), pytest.raises(OutputError, match="cannot be written"):
        release_image(noise, tmp_path / "a.png")
    with small_disk(40_000), pytest.raises(OutputError, match="cannot be written"):
        release_text("x" * 50_000, tmp_path / "a.html")
    assert _nothing_left(tmp_path)


def test_a_bad_target_is_told_before_long_work(tmp_path):
    clip = tmp_path / "in.mp4"
    clip.write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    for path, words in (
        (tmp_path / "a.gif", "'.gif'; use .mp4 or .mov or .webm"),
        (tmp_path / "a", "no suffix"),
        (tmp_path / "none" / "a.mp4", "does not exist"),
        (clip / "a.mp4", "is a file"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "folder.mp4" / ".." / "in.mp4", "never overwritten"),
    ):
        with pytest.raises(OutputError, match=words):
            check_writable(path, CLIP_SUFFIXES, inputs=[clip])
    before = sorted(tmp_path.iterdir())
    check_writable(tmp_path / "A.MP4", CLIP_SUFFIXES)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "reason, words",
    [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")],
)
def test_a_folder_that_takes_no_file_is_told_before_long_work(tmp_path, monkeypatch, reason, words):
    def refuse(**kwargs: object) -> None:
        raise OSError(reason, "refused")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=words):
        check_writable(tmp_path / "a.mp4", CLIP_SUFFIXES)


def test_broken_promises_between_stages_are_ours(tmp_path):
    with pytest.raises(InternalError, match="no frames"):
        release_clip([], tmp_path / "a.mp4", frame_rate=RATE)
    with pytest.raises(InternalError, match="came to a clip"):
        release_clip([moving_disc(0, 96, 64), moving_disc(0, 64, 96)], tmp_path / "a.mp4", frame_rate=RATE)
    assert _nothing_left(tmp_path)


def test_text_reports(tmp_path):
    path = tmp_path / "report.json"
    release_text(json.dumps({"name": "面影"}, ensure_ascii=False), path)
    assert json.loads(path.read_text("utf-8")) == {"name": "面影"}


# The visible label.


@pytest.mark.parametrize("width, height", [(128, 128), (256, 256), (720, 1280), (1920, 1080)])
@pytest.mark.parametrize("shade", [0, 128, 255])
def test_the_label_is_large_readable_and_in_its_corner(width, height, shade):
    image = np.full((height, width, 3), shade, np.uint8)
    labeled = draw_label(image, "H I")
    assert image.min() == image.max() == shade  # the input is untouched
    rows, columns = np.nonzero((labeled != image).any(axis=2))
    assert rows.min() > height * 0.75 and columns.max() < width * 0.4
    box = labeled[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0].astype(int)
    bright = box > 200
    letters = np.nonzero(bright.any(axis=1))[0]
    if shade < 255:
        assert letters.max() - letters.min() + 1 >= TEXT_SHARE * min(width, height)
    assert box.max() > 240 and box.min() < 100  # white letters on a dark ground before any picture


def test_label_corners_wrapping_and_alpha():
    image = np.zeros((180, 101, 3), np.uint8)
    top = draw_label(image, "generated", corner="upper right")
    rows, columns = np.nonzero(top.any(axis=2))
    assert rows.max() < 60 and columns.min() > 20
    one, two = (
        np.ptp(np.nonzero(draw_label(image, t).any(axis=2))[0]) for t in ("sample", "sample and AI-generated")
    )
    assert two > 1.5 * one
    clear = draw_label(np.zeros((128, 128, 4), np.uint8), "sample")
    assert clear[..., 3].max() == 255 and clear[0, 0].max() == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("\ue000\ue001 ok", "cannot be drawn .'\ue000\ue001'.; write"),
        ("נוצר", "cannot be drawn"),
        (" ", "empty"),
        ("x" * 300, "does not fit"),
    ],
)
def test_labels_that_cannot_be_drawn(text, words):
    with pytest.raises(InputError, match=words):
        draw_label(np.zeros((128, 128, 3), np.uint8), text)
    with pytest.raises(InputError, match=words):
        check_label(text, 128, 128)
    check_label(None, 128, 128)


@pytest.mark.parametrize(
    "text",
    [
        "künstlich erzeugt",
        "créé par IA",
        "создано ИИ",
        "τεχνητό",
        "5 % – ok",
        "この映像はAIで作成しました",
        "数字人・AI生成",
    ],
)
def test_labels_of_other_languages(text):
    labeled = draw_label(np.zeros((256, 256, 3), np.uint8), text)
    assert labeled[-60:].max() > 230


def test_the_larger_font_is_not_there_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("omokage.trust.label._SYSTEM_FONTS", ())
    with pytest.raises(InputError, match=r"cannot be drawn \('ü'\)"):
        check_label("künstlich", 256, 256)
    check_label("AI", 256, 256)


@pytest.mark.parametrize("width, height", [(256, 256), (288, 512), (512, 288), (720, 1280), (1920, 1080)])
@pytest.mark.parametrize("name", sorted(label_profiles()))
def test_a_profiles_labels_survive_square_and_upright_crops(name, width, height):
    profile = label_profiles()[name]
    assert profile.sources and profile.why
    image = np.zeros((height, width, 3), np.uint8)
    for language in profile.texts:
        labeled = draw_label(image, f"{name}:{language}")
        for ratio in (1.0, 9 / 16):
            crop_width, crop_height = (
                (round(height * ratio), height) if width > height * ratio else (width, round(width / ratio))
            )
            top, left = (height - crop_height) // 2, (width - crop_width) // 2
            crop = labeled[top : top + crop_height, left : left + crop_width]
            assert crop.sum(dtype=np.int64) == labeled.sum(dtype=np.int64)
        rows, _ = np.nonzero((labeled > 200).any(axis=2))
        assert (rows.mean() > height / 2) == profile.corner.startswith("lower")
        letters = np.ptp(rows) + 1
        assert letters >= 0.95 * TEXT_SHARE * min(width, height)


def test_a_label_is_a_profile_or_the_very_text():
    assert read_label("jp").text == "AI生成" and read_label("jp:en").text == "AI-generated"
    assert read_label("eu:de").text == "KI-generiert" and read_label("eu").profile == "eu"
    for text in ("Europe", "us: made by AI", "eu:", "EU", "jp:EN"):
        assert read_label(text, corner="upper left") == Label(text, "upper left")
    with pytest.raises(InputError, match="'jp' has no text in 'de'; use jp:ja, jp:en"):
        check_label("jp:de", 256, 256)


def test_chinese_labels_have_the_shapes_that_chinese_readers_know():
    """样 and 成 differ between the two cuts; a text without a language takes the Japanese ones."""
    font = {
        code: label_module._font_for(Label("成", "lower left", "cn", code), 40.0).getname()[0]
        for code in ("zh", "ja")
    }
    assert font == {"zh": "Noto Sans CJK SC", "ja": "Noto Sans CJK JP"}


def test_every_letter_of_every_profile_is_in_a_font_that_comes_along(monkeypatch):
    monkeypatch.setattr(label_module, "_SYSTEM_FONTS", ())
    for name, profile in label_profiles().items():
        for language in profile.texts:
            check_label(f"{name}:{language}", 256, 256)


def test_the_label_is_on_every_released_frame(tmp_path):
    config = ReleaseConfig(label="sample, generated")
    black = [np.zeros((128, 128, 3), np.uint8)] * 10
    released = release_clip(black, tmp_path / "a.mp4", frame_rate=RATE, config=config)
    assert released.label == "sample, generated"
    for frame in read_frames(tmp_path / "a.mp4"):
        assert frame.image[-25:, :80].max() > 200 and frame.image[:64].max() < 10
