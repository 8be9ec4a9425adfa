"""The fingerprint: copies are known again without any mark, and the clips of one person are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import omokage
from clips import make_clip
from omokage.media.clip import SoundFormat, SoundingFrame
from omokage.trust import fingerprint_search
from omokage.trust.fingerprint import LONGEST_S, STEPS_PER_S, Fingerprint, Sketch, changes, thumbnail
from omokage.trust.fingerprint_search import ALIKE_BITS, Copy, Likeness, best_of
from omokage.trust.mark_key import installation_key
from omokage.trust.marking import pattern_key
from omokage.trust.registry import registry_path, renders_of
from omokage.trust.release import ReleaseConfig, release_clip, release_image, release_live
from omokage.trust.video_mark import Mark, Marker
from test_marks import cropped, encoded, few_scales, mirrored, smaller, texture

__all__ = ["few_scales"]  # a fixture
Picture = NDArray[np.uint8]
RATE = Fraction(25)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))


def talk(take: int, place: int = 0, count: int = 60, side: int = 288) -> list[Picture]:
    """One person in one place: what moves is drawn from `take`, what is behind from `place`."""
    random = np.random.default_rng(take)
    rates, phases = random.uniform(2, 9, (2, 3)), random.uniform(0, 6, (2, 3))
    ground, head = texture(side, side, seed=40 + place), texture(side // 3, side // 2, seed=60)
    frames = []
    for index in range(count):
        sway = (10 * np.sin(rates * index / 25 + phases).sum(axis=1)).astype(int)
        frame, top, left = ground.copy(), side // 4 + sway[0], side // 3 + sway[1]
        frame[top : top + side // 2, left : left + side // 3] = head
        opening = int(8 + 8 * np.sin(rates[0, 0] * 2 * index / 25))
        frame[top + side // 3 : top + side // 3 + opening, left + side // 9 : left + side // 5] = 20
        frames.append(frame)
    return frames


def kept(frames: list[Picture], rate: float = 25.0) -> Fingerprint:
    sketch = Sketch()
    for index, frame in enumerate(frames):
        sketch.add(thumbnail(frame), index / rate)
    found = sketch.fingerprint()
    assert found is not None
    return found


def likeness(frames: list[Picture], one: Fingerprint, rate: float = 25.0) -> Likeness:
    copy = Copy()
    for index, frame in enumerate(frames):
        copy.add(frame, index / rate)
    return copy.likeness(one)


# The bits


def test_what_is_kept_is_read_again_and_nothing_else() -> None:
    one = kept(talk(1, count=30))
    assert len(one.picture) == 32 and len(one.motion) == 8 * 10
    assert Fingerprint.read(one.text()) == one and one.text().isascii()
    for text in (
        "",
        "2" + one.text()[1:],
        one.text()[:-3],
        one.text().replace(":", ""),
        "1:zz:",
        "1:00:AA==",
    ):
        assert Fingerprint.read(text) is None


def test_fingerprints_of_today_are_known_for_ever() -> None:
    """Of integers, whose components are far from zero on every machine."""
    noise = np.random.default_rng(1).integers(0, 255, (8, 64, 64, 1), np.uint8)
    one = kept([np.repeat(grey, 3, axis=2) for grey in noise], rate=8.0)
    assert hashlib.sha256(one.text().encode()).hexdigest() == GOLDEN


GOLDEN = "2d1390292c8c2e389538a2b5cd1091ec0b7a86c3f5d9b2d05ece300f50c60163"


def test_a_thumbnail_is_the_grey_of_each_part_whatever_the_size() -> None:
    grey = np.add.outer(np.arange(64), 2 * np.arange(64)).astype(np.uint8)
    small = thumbnail(np.dstack([grey] * 3))
    assert small.shape == (32, 32) and small.dtype == np.float32
    assert np.abs(small - grey.reshape(32, 2, 32, 2).mean(axis=(1, 3))).max() <= 1
    picture = texture(320, 320)
    for factor in (2, 4):
        large = np.repeat(np.repeat(picture, factor, axis=0), factor, axis=1)
        assert np.abs(thumbnail(large) - thumbnail(picture)).max() <= 2
    see_through = np.dstack([picture, np.zeros((320, 320), np.uint8)])
    see_through[:, 160:, 3] = 255
    small = thumbnail(see_through)
    assert small[:, :16].max() == 0 and np.abs(small[:, 16:] - thumbnail(picture)[:, 16:]).max() <= 1


def test_the_steps_depend_on_time_and_not_on_the_frame_rate() -> None:
    small = [np.full((32, 32), value, np.float32) for value in range(100)]
    fast, slow, late = Sketch(), Sketch(), Sketch(0.125)
    for index in range(100):
        fast.add(small[index], index / 100)
        late.add(small[index], index / 100)
    for index in range(0, 100, 50):
        slow.add(small[index], index / 100)
    assert fast.steps()[:, 0, 0].tolist() == pytest.approx([6, 18.5, 31, 43.5, 56, 68.5, 81, 93.5], abs=0.6)
    assert np.array_equal(late.steps(), fast.steps()[1:])
    assert slow.steps()[:, 0, 0].tolist() == [0, 0, 0, 0, 50]  # what was not shown anew is what was shown
    assert Sketch().fingerprint() is None and len(Sketch().steps()) == 0


def test_a_stream_without_an_end_does_not_fill_the_register() -> None:
    sketch, small = Sketch(), np.zeros((32, 32), np.float32)
    for step in range(2 * LONGEST_S * STEPS_PER_S):
        sketch.add(small, step / STEPS_PER_S)
    assert len(sketch.steps()) == LONGEST_S * STEPS_PER_S


def test_changes_are_what_the_second_around_does_not_share() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(30, 5)).astype(np.float32)
    around = [values[max(0, t - 4) : t + 5].mean(axis=0) for t in range(30)]
    assert np.allclose(changes(values), values - np.stack(around), atol=1e-5)
    assert np.allclose(changes(values + 100), changes(values), atol=1e-3)


# Copies


@pytest.mark.parametrize(
    "change",
    [np.copy, smaller, cropped, mirrored, lambda p: mirrored(cropped(smaller(p)))],
    ids=["as it is", "three quarters", "cropped by a tenth", "mirrored", "all of it"],
)
def test_a_copy_is_known_again(change: Callable[[Picture], Picture]) -> None:
    one, frames = kept(talk(1)), [change(frame) for frame in talk(1)]
    found = likeness(encoded(frames, 33), one)
    assert found.is_same and found.bits <= ALIKE_BITS and found.motion is not None and found.motion > 0.8


def test_clips_of_one_person_in_one_place_are_told_apart() -> None:
    takes = [kept(talk(take)) for take in range(1, 7)]
    copy = Copy()
    for index, frame in enumerate(encoded(talk(3), 28)):
        copy.add(frame, index / 25)
    ranked = best_of(copy, takes)
    assert [index for index, one in ranked if one.is_same] == [2]
    assert len(ranked) > 3  # the others look alike, and are said to
    assert best_of(copy, [kept(talk(3, place=1))]) == [] or not copy.likeness(kept(talk(3, place=1))).is_same


def test_another_picture_is_not_alike() -> None:
    frames = [texture(256, 256, seed=seed) for seed in range(8)]
    for index, frame in enumerate(frames):
        found = [likeness([frame], kept([other])) for other in frames]
        assert [one.is_alike for one in found] == [other == index for other in range(len(frames))]
        assert all(one.motion is None and not one.is_same for one in found)


def test_a_part_at_another_frame_rate_is_known() -> None:
    frames = talk(2, count=150)
    part = frames[37:112]
    assert likeness(part, kept(frames)).is_same
    faster = [part[min(round(index * 25 / 30), len(part) - 1)] for index in range(90)]
    assert likeness(faster, kept(frames), rate=30.0).is_same
    assert likeness(frames, kept(part)).is_same  # and what has grown


def test_where_nothing_moves_only_the_picture_is_compared() -> None:
    still = [texture(256, 256, seed=3)] * 50
    found = likeness(encoded(still, 28), kept(still))
    assert found.is_alike and found.motion is None and not found.is_same
    assert likeness(talk(1, count=6), kept(talk(1))).motion is None  # too short
    with pytest.raises(ValueError, match="no pictures"):
        Copy().likeness(kept(still))


# From the door to verify


def test_what_leaves_leaves_its_fingerprint(tmp_path: Path) -> None:
    frames = talk(1, count=30)
    released = release_clip(frames, tmp_path / "a.mp4", frame_rate=RATE)
    (render,) = renders_of(released.render_id or "")
    assert Fingerprint.read(render.fingerprint) == kept(frames)
    picture = release_image(frames[0], tmp_path / "a.png")
    (render,) = renders_of(picture.render_id or "")
    assert Fingerprint.read(render.fingerprint) == kept(frames[:1]) and not kept(frames[:1]).motion
    quiet = np.zeros((1920, 1), np.float32)
    live = release_live(
        (SoundingFrame(frame, quiet) for frame in frames),
        lambda data: len(data),
        frame_rate=RATE,
        sound=SoundFormat(48000, 1),
    )
    (render,) = renders_of(live.render_id or "")
    assert Fingerprint.read(render.fingerprint) == kept(frames)


def written(path: Path, frames: list[Picture]) -> Path:
    """As a player would save it: encoded again, without metadata or signature."""
    height, width = frames[0].shape[:2]
    make_clip(
        path, seconds=len(frames) / 25, width=width, height=height, draw=lambda t, *_: frames[round(t * 25)]
    )
    return path


@pytest.mark.usefixtures("few_scales")
def test_a_copy_without_any_mark_finds_its_row(tmp_path: Path) -> None:
    """The mark was never in it: nothing but the fingerprint is left."""
    for take in (1, 2):
        release_clip(
            talk(take), tmp_path / f"{take}.mp4", frame_rate=RATE, config=ReleaseConfig(purpose="a test")
        )
    report = omokage.verify(written(tmp_path / "copy.mp4", [smaller(frame) for frame in talk(2)]))
    (file,) = report.files
    assert file.verdict == "no mark found" and report.exit_code == 1
    (match,) = file.fingerprint.same
    assert match.render.file == "2.mp4" and match.render.purpose == "a test"
    assert "the same clip as 2.mp4" in file.to_text()
    shown = file.to_json()["fingerprint"]
    assert shown["compared_with"] == 2 and shown["matches"][0]["is_same_clip"] is True
    assert shown["matches"][0]["render_id"] == match.render.render_id and json.dumps(shown)
    (other,) = omokage.verify(written(tmp_path / "take 3.mp4", talk(3))).files
    assert (
        not other.fingerprint.same and "looks like" in other.to_text() and "look alike too" in other.to_text()
    )


@pytest.mark.usefixtures("few_scales")
def test_rows_of_before_there_were_fingerprints_are_still_read(tmp_path: Path) -> None:
    released = release_image(texture(320, 320), tmp_path / "a.png")
    row = json.loads(registry_path().read_text())
    del row["fingerprint"]
    registry_path().write_text(json.dumps(row) + "\n")
    (file,) = omokage.verify(tmp_path / "a.png").files
    assert file.private is not None and file.private.renders[0].sha256 == released.sha256
    assert file.private.renders[0].fingerprint == "" and file.fingerprint.kept_count == 0
    assert file.looks_like_its_render is None and "fingerprint" not in file.to_text()


@pytest.mark.usefixtures("few_scales")
def test_a_mark_on_a_picture_that_it_does_not_belong_to_is_told(tmp_path: Path) -> None:
    released = release_image(texture(320, 320, seed=1), tmp_path / "a.png")
    (own,) = omokage.verify(tmp_path / "a.png").files
    assert own.looks_like_its_render is True and "BUT" not in own.to_text()
    other = texture(320, 320, seed=2)
    mark = Mark(int(released.render_id or "", 16), pattern_key(installation_key()))
    cv2.imwrite(str(tmp_path / "b.png"), Marker(mark, other).apply(other)[..., ::-1])
    (pasted,) = omokage.verify(tmp_path / "b.png").files
    assert pasted.private is not None and pasted.private.render_id == released.render_id
    assert pasted.looks_like_its_render is False and "BUT the picture does not look like" in pasted.to_text()
    assert pasted.to_json()["private_mark"]["looks_like_it"] is False


def test_a_crop_is_undone_to_where_it_was() -> None:
    crop = next(c for c in fingerprint_search._crops() if c.width == 0.8 and c.left > 0.05 and c.left < 0.15)
    ramp = np.add.outer(np.arange(320), np.arange(320)).astype(np.float32) / 3
    top, left = round(320 * crop.top), round(320 * crop.left)
    part = ramp[top : top + 256, left : left + 256].astype(np.uint8)
    placed = crop.undone(thumbnail(np.dstack([part] * 3)))
    whole = thumbnail(np.dstack([ramp.astype(np.uint8)] * 3))
    inside = slice(round(32 * crop.left) + 2, round(32 * (crop.left + 0.8)) - 2)
    rows = slice(round(32 * crop.top) + 2, round(32 * (crop.top + 0.8)) - 2)
    assert np.abs(placed[rows, inside] - whole[rows, inside]).max() < 1.5
