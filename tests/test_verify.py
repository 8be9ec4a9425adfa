"""From the one door to `omokage verify`: keys, the register of renders, and what is told about a file."""

from __future__ import annotations

import json
import multiprocessing
import socket
import stat
import wave
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

import omokage
from clips import make_clip, small_disk
from omokage.avatar.container import Content, read_content, write_content
from omokage.cli.app import run
from omokage.errors import InputError, MediaError, OutputError
from omokage.media.clip import Audio
from omokage.media.decode import read_frames
from omokage.trust import consents, marking, registry
from omokage.trust.consent import Medium, Terms, new_consent
from omokage.trust.keys import signing_key
from omokage.trust.mark_key import KEY_VARIABLE, derived, installation_key, key_path, read_key
from omokage.trust.registry import Render, register, registry_path, renders_of
from omokage.trust.release import ReleaseConfig, Released, check_writable, release_clip, release_image
from test_marks import few_scales, texture

__all__ = ["few_scales"]  # a fixture
RATE, NOW = Fraction(25), datetime.now(UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def frames(seed: int = 0, count: int = 6, side: int = 320) -> Iterator[np.ndarray]:
    ground = texture(side, side, seed=seed)
    for step in range(count):
        frame = ground.copy()
        frame[100:180, 20 + 10 * step : 90 + 10 * step] = (180, 140, 120)
        yield frame


def clip(path: Path, seed: int = 0, **settings: str) -> Released:
    return release_clip(frames(seed), path, frame_rate=RATE, config=ReleaseConfig(**settings))  # type: ignore[arg-type]


# The key


def test_the_key_is_made_once_and_is_its_owners_alone(home: Path) -> None:
    key = installation_key()
    assert len(key) == 32 and installation_key() == key and read_key(key_path()) == key
    assert key_path() == home / "marks" / "private.key"
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert [file.name for file in (home / "marks").iterdir()] == ["private.key"]


def test_the_key_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "vault" / "own.key"))
    assert installation_key() == read_key(tmp_path / "vault" / "own.key")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", b"00" * 31, b"zz" * 32])
def test_what_is_no_key_is_refused_and_not_replaced(home: Path, content: bytes) -> None:
    key_path().parent.mkdir(parents=True)
    key_path().write_bytes(content)
    with pytest.raises(InputError, match="is no key of omokage's marks"):
        installation_key()
    assert key_path().read_bytes() == content


def test_a_key_that_cannot_be_made_is_told_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"key of the marks has no place.*OMOKAGE_HOME"):
        check_writable(tmp_path / "a.mp4", (".mp4",))
    with pytest.raises(OutputError):
        clip(tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_a_check_before_the_work_makes_nothing(home: Path, tmp_path: Path) -> None:
    check_writable(tmp_path / "a.mp4", (".mp4",))
    assert (
        not key_path().exists() and not (home / "identity").exists()
    )  # the audit log may make itself a place
    installation_key()
    key_path().write_text("damaged")
    with pytest.raises(InputError, match="is no key"):
        check_writable(tmp_path / "a.mp4", (".mp4",))


def _same_key(_: int) -> bytes:
    return installation_key()


def test_processes_that_start_together_share_one_key(home: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_same_key, range(16)))) == 1
    assert [file.name for file in (home / "marks").iterdir()] == ["private.key"]


def test_keys_for_different_purposes_differ() -> None:
    key = b"k" * 32
    assert (
        len({derived(key, b"a"), derived(key, b"b"), derived(b"l" * 32, b"a"), derived(key, b"a", b"m")}) == 4
    )
    assert derived(key, b"a").hex().startswith(DERIVED)  # marks of today are found by later versions


DERIVED = "60be07cdd24fab3f"


def test_a_profile_that_does_not_exist_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(marking.PROFILE_VARIABLE, "strongest")
    with pytest.raises(InputError, match="is 'strongest'; use standard or high assurance"):
        check_writable(tmp_path / "a.mp4", (".mp4",))


# The register


def row(number: int, text: str = "") -> Render:
    return Render(f"{number:012x}", registry.now(), "ab" * 32, f"{number}.mp4", text)


def test_rows_are_appended_and_found() -> None:
    assert renders_of("000000000001") == ()
    for number in (1, 2, 1):
        register(row(number, "本番\n"))
    assert [render.file for render in renders_of("000000000001")] == ["1.mp4", "1.mp4"]
    assert renders_of("000000000002")[0].purpose == "本番\n"
    assert len(registry_path().read_bytes().splitlines()) == 3
    assert stat.S_IMODE(registry_path().stat().st_mode) == 0o600


def test_a_row_that_a_crash_has_cut_costs_only_itself() -> None:
    register(row(1))
    register(row(2))
    whole = registry_path().read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20):
        registry_path().write_bytes(whole[:cut])
        register(row(3))
        assert len(renders_of("000000000001")) == len(renders_of("000000000003")) == 1
        assert len(renders_of("000000000002")) == (1 if cut == len(whole) - 1 else 0)
    registry_path().write_bytes(b'[]\n{"format": 2}\nnonsense \xff\n' + whole)
    assert len(renders_of("000000000001")) == 1


def _register(number: int) -> None:
    register(row(number))


def test_rows_of_many_processes_do_not_mix() -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_register, range(100))
    assert sum(len(renders_of(f"{number:012x}")) for number in range(100)) == 100


def test_without_a_row_nothing_is_released(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"old")
    installation_key()
    registry_path().mkdir()
    with pytest.raises(OutputError, match="register of renders takes no row, so nothing was released"):
        clip(tmp_path / "a.mp4")
    with pytest.raises(OutputError, match="nothing was released"):
        release_image(texture(256, 256), tmp_path / "a.png")
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "home"]
    registry_path().rmdir()
    registry_path().write_bytes(b"x" * 4000)
    with small_disk(4010), pytest.raises(OutputError):
        register(row(1))


# What leaves is marked


def test_equal_runs_give_equal_ids_and_files_and_others_do_not(tmp_path: Path) -> None:
    one, same = (clip(tmp_path / name) for name in ("one.mp4", "same.mp4"))
    assert one.render_id == same.render_id and one.sha256 == same.sha256
    others = [
        clip(tmp_path / "a.mp4", seed=1),
        clip(tmp_path / "b.mp4", title="x"),
        clip(tmp_path / "c.mp4", avatar="y"),
    ]
    assert len({one.render_id, *(other.render_id for other in others)}) == 4
    assert [render.file for render in renders_of(one.render_id or "")] == ["one.mp4", "same.mp4"]
    assert renders_of(one.render_id or "")[0].sha256 == one.sha256


def test_what_is_known_to_be_the_same_render_has_one_id(tmp_path: Path) -> None:
    """Whatever the last bits of its pictures are: they differ with memory and machine."""
    picture, known = texture(256, 256), ReleaseConfig(made_from="digest")
    ids = [
        release_image(image, tmp_path / "a.png", config=config).render_id
        for image, config in (
            (picture, known),
            (picture + 1, known),
            (picture, ReleaseConfig(made_from="other")),
        )
    ]
    assert ids[0] == ids[1] != ids[2]


def test_what_is_recorded_or_tiny_is_not_marked_and_enters_no_row(tmp_path: Path) -> None:
    picture = texture(256, 256)
    recorded = release_image(picture, tmp_path / "a.png", config=ReleaseConfig(origin="recorded"))
    tiny = release_image(picture[:100, :100], tmp_path / "b.png")
    assert recorded.render_id is None and tiny.render_id is None and not registry_path().exists()
    with PIL.Image.open(tmp_path / "a.png") as written:
        assert np.array_equal(np.asarray(written), picture)


def test_the_key_is_in_no_output(tmp_path: Path) -> None:
    released = clip(tmp_path / "a.mp4")
    data = released.path.read_bytes() + registry_path().read_bytes()
    assert installation_key() not in data and installation_key().hex().encode() not in data
    assert (released.render_id or "").encode() not in released.path.read_bytes()


# verify


def test_a_released_clip_is_known_after_it_went_around(tmp_path: Path) -> None:
    settings = ReleaseConfig(label="AI-generated", purpose="a test")
    released = release_clip(frames(count=6, side=480), tmp_path / "a.mp4", frame_rate=RATE, config=settings)
    copy = [
        cv2.resize(f.image, (360, 360), interpolation=cv2.INTER_AREA) for f in read_frames(tmp_path / "a.mp4")
    ]
    make_clip(tmp_path / "copy.mp4", seconds=len(copy) / 25, width=360, height=360,
              draw=lambda t, *_: copy[round(t * 25)])  # fmt: skip
    (report,) = omokage.verify(tmp_path / "copy.mp4").files
    assert report.verdict == "made with omokage" and report.disclosure == ""
    assert report.public is not None and (report.public.product, report.public.version) == (0x6F, 1)
    assert report.private is not None and report.private.render_id == released.render_id
    (render,) = report.private.renders
    assert (render.sha256, render.file, render.purpose) == (released.sha256, "a.mp4", "a test")
    assert f"render {released.render_id}" in report.to_text()


@pytest.mark.parametrize("suffix", [".webm", ".png", ".jpg"])
def test_every_kind_of_file_is_marked(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    released = clip(path) if suffix == ".webm" else release_image(texture(320, 320), path)
    (report,) = omokage.verify(path).files
    assert report.private is not None and report.private.render_id == released.render_id
    assert report.disclosure.startswith("AI-generated with omokage")


def test_a_transparent_clip_is_marked_where_it_is_opaque(tmp_path: Path) -> None:
    alpha = np.zeros((512, 512, 1), np.uint8)
    alpha[80:, 90:430] = 255
    pictures = [np.dstack([texture(512, 512, seed=5), alpha]) for _ in range(4)]
    released = release_clip(pictures, tmp_path / "a.webm", frame_rate=RATE)
    (report,) = omokage.verify(tmp_path / "a.webm").files
    assert report.private is not None and report.private.render_id == released.render_id
    assert next(read_frames(tmp_path / "a.webm")).image[:60].max() < 4


@pytest.mark.usefixtures("few_scales")
def test_another_installation_reads_the_public_layer_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = release_image(texture(320, 320), tmp_path / "a.png")
    first_key = key_path()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "other"))
    (report,) = omokage.verify(tmp_path / "a.png").files
    assert report.verdict == "made with omokage" and report.private is None
    assert not (tmp_path / "other").exists()  # looking makes nothing
    (report,) = omokage.verify(tmp_path / "a.png", keys=[first_key]).files
    assert report.private is not None and report.private.render_id == released.render_id
    assert "not in the register of this machine" in report.to_text()


@pytest.mark.usefixtures("few_scales")
def test_an_unmarked_picture_is_never_called_real(tmp_path: Path) -> None:
    release_image(texture(256, 256), tmp_path / "a.png", config=ReleaseConfig(origin="recorded"))
    report = omokage.verify(tmp_path / "a.png")
    text = report.to_text()
    assert "no mark found; that does not tell" in text and "real" not in text and "authentic" not in text
    assert report.exit_code == 1 and report.files[0].verdict == "no mark found"


def test_verify_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release_image(texture(256, 256), tmp_path / "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert omokage.verify(tmp_path / "a.png").exit_code == 0


@pytest.mark.usefixtures("few_scales")
def test_a_folder_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    (folder / "deeper").mkdir(parents=True)
    release_image(texture(256, 256), folder / "a.png")
    (folder / "report.txt").write_text("words")
    assert run(["verify", str(folder), "--quiet"]) == 0
    assert "no pictures or videos: 1)" in capsys.readouterr().out
    release_image(texture(64, 64), folder / "deeper" / "tiny.png")
    assert run(["verify", str(folder), "--quiet", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [file["verdict"] for file in shown["files"]] == ["made with omokage", "no mark found"]
    assert shown["files"][0]["not_checked"] == [] and shown["skipped"] == 1
    assert "64x64 pixels are too few" in omokage.verify(folder / "deeper" / "tiny.png").to_text()
    damaged = (folder / "a.png").read_bytes()[:2000]
    (folder / "damaged.png").write_bytes(damaged)
    assert run(["verify", str(folder), "--quiet"]) == 2
    assert "damaged.png" in capsys.readouterr().out


def write_sound(path: Path) -> Path:
    samples = np.random.default_rng(0).integers(-9000, 9000, 32000, np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return path


@pytest.mark.usefixtures("few_scales")
def test_a_sound_is_looked_at_though_the_register_knows_pictures(tmp_path: Path) -> None:
    release_image(texture(256, 256), tmp_path / "a.png")
    write_sound(tmp_path / "a.wav")
    picture, sound = omokage.verify(tmp_path).files
    assert picture.kind == "picture" and sound.kind == "sound" and sound.verdict == "no mark found"
    assert "how the sound came about" in sound.to_text() and "no signed origin" in sound.to_text()
    assert sound.origin.has_place and sound.fingerprint.matches == ()


@pytest.mark.usefixtures("few_scales")
def test_sound_that_was_put_to_a_marked_clip_is_told_and_so_is_what_has_no_place(tmp_path: Path) -> None:
    rng, samples = np.random.default_rng(1), np.zeros((16000, 1), np.float32)
    samples[:, 0] = 0.2 * np.convolve(rng.standard_normal(16000), np.ones(8) / 8, "same")
    for name, sound in (("own", samples), ("other", np.zeros_like(samples))):
        path = tmp_path / f"{name}.webm"
        release_clip(frames(count=25), path, frame_rate=RATE, audio=Audio(sound, 16000))
        (report,) = omokage.verify(path).files
        assert report.kind == "video" and not report.origin.has_place
        assert "this kind of file has no place for one" in report.to_text()
        assert report.to_json()["origin"]["has_place"] is False
    assert "no mark is read in the sound (1 s were listened to)" in report.to_text()


@pytest.mark.usefixtures("few_scales")
def test_that_private_marks_were_not_looked_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_image(texture(256, 256), tmp_path / "a.png")
    said = "private marks were not looked for"
    assert said not in omokage.verify(tmp_path / "a.png").to_text()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "other"))
    assert said in omokage.verify(tmp_path / "a.png").to_text()


def written_avatar(path: Path) -> Path:
    header = {"provenance": {"recording_sha256": "ab" * 32}}
    write_content(path, Content(4, "compact", header, {"x": torch.zeros(2)}))
    return path


@pytest.mark.usefixtures("denied_by_default")
def test_an_avatar_file_is_told_with_its_key_and_the_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written_avatar(tmp_path / "me.avatar")
    assert run(["verify", str(path)]) == 1
    said = capsys.readouterr().out
    assert "an avatar file; it carries no mark" in said and "its key is on this machine" in said
    assert "consent: nobody's is recorded on this machine for the recording abababababab" in said
    terms = Terms(kind="self", purposes=("private",), start="2020-01-01", end="2029-12-31")
    record = new_consent([Medium("ab" * 32, "a.mp4")], terms, now=NOW, key=signing_key())
    consents.keep(record)
    assert f"consent: {record.id[:12]}, holds until 2029-12-31" in omokage.verify(path).to_text()
    plain, carried = tmp_path / "plain.avatar", tmp_path / "carried.avatar"
    content = read_content(path)
    plain.write_bytes(content.serialized())
    carried.write_bytes(b"".join(content.under_passphrase("four words of no sense")))
    assert "not encrypted" in omokage.verify(plain).to_text()
    assert f"{record.id[:12]}, holds until" in omokage.verify(plain).to_text()
    assert "under a passphrase" in omokage.verify(carried).to_text()
    consents.revoke(record, "")
    (gone,) = omokage.verify(path).files
    assert gone.avatar is not None and gone.to_json()["avatar_file"]["protection"] == "key destroyed"
    assert "nobody can open it any more" in gone.to_text() and "WITHDRAWN on" in gone.to_text()
    monkeypatch.setenv("OMOKAGE_HOME", str(tmp_path / "other"))
    assert "its key is not on this machine" in omokage.verify(path).to_text()


def test_a_folder_tells_of_avatars_and_of_damaged_ones(tmp_path: Path) -> None:
    written_avatar(tmp_path / "me.avatar")
    damaged = bytearray((tmp_path / "me.avatar").read_bytes())
    damaged[40] ^= 1
    (tmp_path / "old.avatar").write_bytes(damaged)
    (tmp_path / "notes.txt").write_text("words")
    report = omokage.verify(tmp_path)
    assert [file.verdict for file in report.files] == ["avatar file", "cannot be read"]
    text = report.to_text()
    assert text.count("old.avatar") == 1 and "is a damaged avatar file" in text and report.exit_code == 2
    assert "(not looked at, as no avatar files, no sounds and no pictures or videos:" in text


def test_what_cannot_be_verified_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(InputError, match="holds no picture or video"):
        omokage.verify(tmp_path / "empty")
    with pytest.raises(MediaError, match=r"holds text.* a sound \(WAV, M4A"):
        omokage.verify(tmp_path / "text.mp4")
    assert run(["verify", str(tmp_path / "none.mp4")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["verify", str(tmp_path), "--key", str(tmp_path / "text.mp4")]) == 2
    assert "is no key" in capsys.readouterr().err
