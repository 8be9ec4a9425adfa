"""Files that mean harm (T16): none makes omokage read another file, crash, hang or take the machine's memory.

Every file is made here and is tiny. No test measures time: what a decoder may take is a limit that the system holds.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from clips import beep, make_clip, plain
from omokage.avatar.bundle import Avatar
from omokage.cli import app as cli
from omokage.errors import InputError, MediaError, OmokageError
from omokage.files import file_digest, open_given, parse_json, read_given_text
from omokage.media import sandbox
from omokage.media.decode import probe, read_audio, read_frames, read_image
from omokage.media.image import read_images
from omokage.media.limits import InputLimits, use_input_limits
from omokage.pipelines.animate import AnimateConfig
from omokage.pipelines.queue_jobs import read_jobs
from omokage.pipelines.training_data import find_videos
from omokage.speaking.cues import read_cues
from omokage.talking.lora import load_lora
from omokage.tracking.arkit import read_arkit_csv
from omokage.tracking.face_track import FaceTrack
from omokage.trust.consent import read_consent
from omokage.trust.consents import import_file
from omokage.trust.identity import trust_root

MODES = (InputLimits(), InputLimits(is_sandboxed=False))
READERS: dict[str, Callable[[Path], object]] = {
    "video": lambda path: list(read_frames(path)),
    "sound": read_audio,
    "picture": read_image,
}
OTHER_READERS: dict[str, Callable[[Path], object]] = {
    "avatar": Avatar.load,
    "track": FaceTrack.load,
    "lora": load_lora,
    "curves": lambda path: read_arkit_csv(path),
    "cues": lambda path: read_cues(path, ("neutral",)),
    "consent": read_consent,
    "withdrawals": import_file,
    "certificate": trust_root,
    "table": lambda path: read_jobs(path, path.parent, AnimateConfig()),
}


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read(path)
    said = str(caught.value)
    assert said and "\n" not in said and len(said) < 600 and said.isprintable(), said
    return said


# Playlists and other files that name files


PLAYLISTS = {
    "ffconcat": b"ffconcat version 1.0\nfile secret.mp4\n",
    "concat with a mark": b"\xef\xbb\xbfffconcat version 1.0\nfile secret.mp4\n",
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "DASH": b'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    b'<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>secret.mp4</BaseURL></Representation>'
    b"</AdaptationSet></Period></MPD>\n",
    "SDP": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    "SMIL": b'<smil><body><video src="secret.mp4"/></body></smil>\n',
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="secret.png"/></svg>\n',
    "image2 pattern": b"secret%d.png\n",
    "a playlist behind the first bytes of an MP4": b"\0\0\0\x14ftypisom\0\0\0\0isom#EXTM3U\n#EXTINF:1,\nsecret.mp4\n",
    "a playlist behind the first bytes of a WebM": b"\x1a\x45\xdf\xa3ffconcat version 1.0\nfile secret.mp4\n",
}


@pytest.mark.parametrize("limits", MODES, ids=("sandboxed", "here"))
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_refused_and_read_nothing(name: str, limits: InputLimits, tmp_path: Path) -> None:
    secret = make_clip(tmp_path / "secret.mp4", seconds=0.2)
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    os.utime(secret, (1, 1))  # the time of the last reading, long ago
    path = tmp_path / "clip.mp4"
    path.write_bytes(PLAYLISTS[name])
    with use_input_limits(limits):
        for read in READERS.values():
            assert "clip.mp4" in refusal(read, path)
    assert secret.stat().st_atime == 1


def boxes_around(data: bytes, at: int) -> list[int]:
    """Where the boxes of an MP4 begin that hold the byte at `at`, from the outermost."""
    found, start, end = list[int](), 0, len(data)
    while start < end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if start <= at < start + size:
            found.append(start)
            if kind not in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"dref"):
                break
            start, end = start + (16 if kind == b"dref" else 8), start + size
        else:
            start += size
    return found


@pytest.mark.parametrize("limits", MODES, ids=("sandboxed", "here"))
def test_a_movie_whose_pictures_lie_in_another_file_does_not_bring_them(
    limits: InputLimits, tmp_path: Path
) -> None:
    """QuickTime knows data references: here the clip says that its pictures are those of secret.mp4."""
    make_clip(tmp_path / "secret.mp4", draw=plain(255, 255, 255), seconds=0.4)
    path = make_clip(tmp_path / "clip.mp4", draw=plain(0, 0, 0), seconds=0.4)
    data = bytearray(path.read_bytes())
    at = data.index(b"url ", data.index(b"moov")) - 4
    location = b"secret.mp4\0"
    for start in boxes_around(bytes(data), at):
        data[start : start + 4] = struct.pack(
            ">I", struct.unpack(">I", data[start : start + 4])[0] + len(location)
        )
    data[at + 8 : at + 12] = bytes(4)  # no longer 'in this file'
    data[at + 12 : at + 12] = location
    path.write_bytes(data)
    with use_input_limits(limits):
        try:
            shown = [frame.image.mean() for frame in read_frames(path)]
        except MediaError:
            shown = []
    assert all(level < 10 for level in shown)


# Bombs


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


def test_pictures_that_claim_to_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (8193, 8193)):
        path.write_bytes(png(width, height))
        said = refusal(read_image, path)
        assert "8192 a side" in said or "damaged picture" in said
    path.write_bytes(png(8192, 8192))  # allowed, and nothing in it
    assert "damaged picture" in refusal(read_image, path)
    jpeg = tmp_path / "bomb.jpg"
    PIL.Image.new("RGB", (16, 16)).save(jpeg)
    data = bytearray(jpeg.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65500, 65500)
    jpeg.write_bytes(data)
    assert "claims far more pixels than the 8192 a side" in refusal(read_image, jpeg)
    gif = tmp_path / "bomb.gif"
    PIL.Image.new("P", (16, 16)).save(gif)
    data = bytearray(gif.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    gif.write_bytes(data)
    assert "claims far more pixels" in refusal(read_image, gif)


def test_videos_that_claim_to_be_huge(tmp_path: Path) -> None:
    """In the picture itself, which only the decoder sees, and in the header of the file."""
    path = make_clip(tmp_path / "inner.avi", codec="mjpeg", pixel_format="yuvj420p", frame_rate=5)
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"\xff\xc0", at + 1)) >= 0:
        data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    path.write_bytes(data)
    refusal(probe, path)
    path = make_clip(tmp_path / "outer.avi", codec="mpeg4", frame_rate=5)
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    data[at : at + 8] = struct.pack("<ii", 100_000, 100_000)
    path.write_bytes(data)
    assert probe(path).width == 96  # what the pictures themselves say


def test_a_clip_that_claims_more_pictures_than_it_can_hold(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    whole = path.read_bytes()
    for box, places in {
        b"stsz": (8, 12),
        b"stts": (12, 16),
        b"stco": (8,),
        b"stsc": (8, 16),
        b"ctts": (8,),
    }.items():
        data = bytearray(whole)
        if (at := data.find(box)) < 0:
            continue
        for place in places:
            data[at + place : at + place + 4] = b"\x7f\xff\xff\xff"
        path.write_bytes(data)
        if box == b"stco":  # too many places of data, which nothing asks for
            assert probe(path).frame_count == 25
        else:
            refusal(READERS["video"], path)


def test_clips_of_days_and_of_a_thousand_pictures_a_second(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "days.mkv", times_s=[0, 15_000, 30_000, 45_000])
    assert "lasts 12.5 hours; at most 12 are read" in refusal(probe, path)
    path = make_clip(tmp_path / "fast.mkv", times_s=[i / 1000 for i in range(20)])
    assert "1000 pictures a second; at most 240" in refusal(probe, path)


def test_sound_with_a_gap_of_hours_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for start_s in (0, 4000):
            frame = av.AudioFrame.from_ndarray(np.ones((1, 800), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 8000, start_s * 8000
            container.mux(stream.encode(frame))
    assert "is damaged after 0.10 s" in refusal(READERS["sound"], path)


def test_memory_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    PIL.Image.new("1", (8192, 8192)).save(path)
    assert path.stat().st_size < 20_000
    with use_input_limits(InputLimits(memory_gb=0.3)):
        assert "more memory to decode than the 0.3 GB" in refusal(read_image, path)


# Codecs, limits and damage


def test_only_known_codecs_are_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "old.avi", codec="flv1", frame_rate=5)
    assert "in the codec 'flv', which is not read; export it again, as H.264" in refusal(probe, path)
    path = make_clip(tmp_path / "a.mp4", audio=beep(0.1, 0.5))
    with use_input_limits(InputLimits(codecs=("h264",))):
        assert len(list(read_frames(path))) == 25
        assert "in the codec 'aac', which is not read" in refusal(READERS["sound"], path)


def test_limits_can_be_set(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", seconds=1)
    tighter = {
        InputLimits(max_side=95): "96x64 pixels; at most 95 a side",
        InputLimits(max_hours=0.0001): "lasts 0.0 hours; at most 0.0001",
        InputLimits(max_rate=20): "25 pictures a second; at most 20",
        InputLimits(max_gb=1e-6): "at most 1e-06 GB",
    }
    for limits, words in tighter.items():
        with use_input_limits(limits):
            assert words in refusal(probe, path)
    assert probe(path).frame_count == 25
    assert InputLimits.from_json(json.loads(json.dumps(InputLimits().to_json()))) == InputLimits()


def test_the_limits_of_today() -> None:
    """Of a small file that does not open, 5 s of computing are the most that it gets."""
    limits = InputLimits()
    assert (limits.max_side, limits.max_hours, limits.max_rate, limits.is_sandboxed) == (8192, 12, 240, True)
    assert (limits.opening_cpu_s, limits.memory_gb, limits.silence_s) == (5, 4, 30)
    assert not {"concat", "wrapped_avframe", "bintext", "xbin", "ansi", "txd"} & {*limits.codecs}


WRONG = {
    "nothing": b"",
    "a text": b"Dear diary\n" * 30,
    "a web page": b"<!DOCTYPE html><title>x</title>",
    "a zip": b"PK\x03\x04" + bytes(200),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "zeros": bytes(4096),
    "a header and nothing": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "a box of 16 EB": b"\0\0\0\x01mdat\xff\xff\xff\xff\xff\xff\xff\xff",
    "boxes without end": b"\0\0\0\x08moov" * 200,
    "half a Matroska": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(50),
    "a RIFF of nothing": b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl",
    "sync bytes alone": (b"G" + bytes(187)) * 5,
    "an ID3 of 256 MB": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(64),
    "half an AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(40),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_are_no_media(name: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(WRONG[name])
    for kind, read in READERS.items():
        if (kind, name) == ("sound", "boxes without end"):  # a movie of nothing has no sound
            assert read_audio(path) is None
        else:
            assert "clip.mp4" in refusal(read, path)


def test_a_picture_called_mp4_is_no_video_and_a_video_called_png_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    PIL.Image.new("RGB", (64, 64)).save(path, "PNG")
    assert "is a still picture" in refusal(READERS["video"], path)
    make_clip(tmp_path / "a.mp4").rename(tmp_path / "a.png")
    assert "is a video or sound file" in refusal(read_image, tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".png", ".jpg", ".webp"])
def test_damaged_files_are_read_or_refused_and_nothing_breaks(suffix: str, tmp_path: Path) -> None:
    """Cut off anywhere and with bytes turned over, as a fuzzer does it; the same ones every time."""
    path = tmp_path / f"a{suffix}"
    is_video = suffix in (".mp4", ".mkv", ".avi")
    if is_video:
        make_clip(path, seconds=0.4, audio=beep(0.1, 0.4), codec="mpeg4" if suffix == ".avi" else "libx264")
    else:
        noise = np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)
        PIL.Image.fromarray(noise).save(path)
    whole, random = path.read_bytes(), np.random.default_rng(2)
    for turn in range(6):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 1 + 4 * turn):
            data[place] ^= int(random.integers(1, 255))
        path.write_bytes(data[: int(random.integers(1, len(data)))] if turn % 3 == 0 else data)
        for read in (READERS["video"], READERS["sound"]) if is_video else (read_image,):
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error)


# What is no ordinary file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", [*READERS, *OTHER_READERS])
def test_devices_pipes_and_sockets_are_refused_at_once(name: str, tmp_path: Path) -> None:
    """A pipe into which nobody writes would be waited for without end, and /dev/zero would never be over."""
    read = (READERS | OTHER_READERS)[name]
    pipe = tmp_path / "clip.mp4"
    os.mkfifo(pipe)
    link = tmp_path / "link.mp4"
    link.symlink_to(pipe)
    place = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the address of a socket has few letters
        server.bind("s")
        for path in (pipe, link, place, Path(os.devnull), Path("/dev/zero")):
            assert "is a device or a pipe; give an ordinary file" in refusal(read, path)


@pytest.mark.parametrize("name", [*READERS, *OTHER_READERS])
def test_names_that_lead_nowhere(name: str, tmp_path: Path) -> None:
    read = (READERS | OTHER_READERS)[name]
    loop, dangling = tmp_path / "loop.mp4", tmp_path / "dangling.mp4"
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "none.mp4")
    for path in (loop, dangling, tmp_path / "none.mp4", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(InputError):
            read(path)
    if name in READERS:
        with pytest.raises(MediaError):
            read(tmp_path / "a\0b.mp4")


def test_a_link_to_an_ordinary_file_is_that_file(tmp_path: Path) -> None:
    """Whoever names a file may name it by a link."""
    link = tmp_path / "link.mp4"
    link.symlink_to(make_clip(tmp_path / "a.mp4"))
    assert probe(link).frame_count == 25


def test_a_folder_of_videos_does_not_lead_out_of_itself(tmp_path: Path) -> None:
    """A folder may come from somebody else, and its links with it."""
    (tmp_path / "data").mkdir()
    secret = make_clip(tmp_path / "secret.mp4")
    make_clip(tmp_path / "data" / "a.mp4").rename(tmp_path / "data" / "b.mp4")
    (tmp_path / "data" / "c.mp4").symlink_to(tmp_path / "data" / "b.mp4")
    assert len(find_videos(tmp_path / "data")[0]) == 2
    (tmp_path / "data" / "d.mp4").symlink_to(secret)
    with pytest.raises(InputError, match=r"d\.mp4 is a link to a file outside"):
        find_videos(tmp_path / "data")
    (tmp_path / "data" / "d.mp4").unlink()
    (tmp_path / "data" / "captions.txt").symlink_to(secret)
    with pytest.raises(InputError, match=r"captions\.txt is a link to a file outside"):
        find_videos(tmp_path / "data")


@pytest.mark.parametrize(
    "output",
    [
        "../out.mp4",
        "/tmp/out.mp4",
        "a/b.mp4",
        "..\\out.mp4",
        "C:out.mp4",
        "a\x1b[2J.mp4",
        "a\0.mp4",
        "..",
        "",
    ],
)
def test_a_table_cannot_name_an_output_elsewhere(output: str, tmp_path: Path) -> None:
    table = tmp_path / "jobs.csv"
    (tmp_path / "p.png").touch()
    table.write_text(f"portrait,speech,output\np.png,p.png,{output}\n")
    with pytest.raises(InputError, match="must be a file name"):
        read_jobs(table, tmp_path / "videos", AnimateConfig())


# Tensors, tables and lists


def tensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with a header of our own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


SAID = {"__metadata__": {"format": "omokage.avatar", "version": "6", "header": "{}"}}
LYING_TENSORS = {
    "a header longer than the file": tensors(SAID, length=10**6),
    "a header of 2^63 bytes": tensors(SAID, length=2**63),
    "an empty header": tensors(b""),
    "no JSON": tensors(b"[" * 50),
    "nested without end": tensors(b'{"a":' * 50_000),
    "beyond the end": tensors({"a": entry([4], 0, 16)}, bytes(8)),
    "another size than its shape": tensors({"a": entry([1000], 0, 8)}, bytes(8)),
    "a shape that overflows": tensors({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "two on one place": tensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "an end before its start": tensors({"a": entry([2], 8, 0)}, bytes(8)),
    "a negative shape": tensors({"a": entry([-2], 0, 8)}, bytes(8)),
    "an unknown kind": tensors({"a": entry([2], 0, 8, "Q99")}, bytes(8)),
    "a hole": tensors({"a": entry([2], 8, 16)}, bytes(16)),
    "more than it says": tensors({"a": entry([2], 0, 8)}, bytes(800)),
    "a header that is a number": tensors(b"7"),
    "a header in the header nested without end": tensors(
        {
            "__metadata__": SAID["__metadata__"]
            | {"header": "[" * 100_000, "camera": "[" * 100_000, "lora": "[" * 100_000}
        }
    ),
    "a version that is no number": tensors({"__metadata__": SAID["__metadata__"] | {"version": "9" * 5000}}),
    "nothing but claims": tensors(SAID),
    "a pickle": b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
}


@pytest.mark.parametrize("name", LYING_TENSORS)
def test_tensor_files_that_lie(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.avatar"
    path.write_bytes(LYING_TENSORS[name])
    for kind in ("avatar", "track", "lora"):
        with pytest.raises(InputError) as caught:
            OTHER_READERS[kind](path)
        assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_an_avatar_of_a_terabyte_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.avatar"
    path.write_bytes(tensors(SAID | {"a": entry([10**12 // 4], 0, 10**12)}))
    os.truncate(path, path.stat().st_size + 10**12)  # no room is taken
    assert "1000.0 GB; at most 8 GB are read" in refusal(Avatar.load, path)


BAD_LISTS = {
    "nested without end": b"[" * 100_000,
    "a number of 400 digits": b'[{"at": ' + b"9" * 400 + b"}]",
    "a number of 5000 digits": b'[{"at": ' + b"9" * 5000 + b"}]",
    "no number": b'[{"at": NaN}]',
    "infinity": b'[{"at": 1e999}]',
    "a look that is infinite": b'[{"at": 0, "look": [1e999, 0]}]',
    "UTF-16": '[{"at": 0}]'.encode("utf-16"),
    "zeros": bytes(50),
    "an object": b'{"at": 0}',
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_lists_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    path = tmp_path / "cues.json"
    path.write_bytes(BAD_LISTS[name])
    with pytest.raises(InputError) as caught:
        read_cues(path, ("neutral",))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [bytes(100), b"a" * 200_000, b"Timecode\n" + b'"' * 200_000, b"\xff\xfe\0", b"Timecode,x\n\0,\0\n"],
)
def test_tables_that_cannot_be_used(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "take.csv"
    path.write_bytes(content)
    for kind in ("curves", "table"):
        with pytest.raises(InputError) as caught:
            OTHER_READERS[kind](path)
        assert str(path) in str(caught.value)


def test_texts_have_an_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_given_text(path, most_bytes=6) == "abc"
    assert "more than 5e-06 MB" in refusal(lambda p: read_given_text(p, most_bytes=5), path)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)


# Through the front door


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_every_command_refuses_with_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("secret.mp4"), seconds=0.2)
    os.mkfifo("pipe.mp4")
    Path("list.mp4").write_bytes(PLAYLISTS["ffconcat"])
    Path("lies.avatar").write_bytes(LYING_TENSORS["beyond the end"])
    there = sorted(Path().iterdir())
    for given in ("pipe.mp4", "list.mp4", os.devnull):
        for words in (
            ("check", given),
            ("create", given, "-o", "me.avatar"),
            ("rehearse", given, "-o", "out.mp4"),
            ("reenact", given, "secret.mp4", "-o", "out.mp4"),
            ("reenact", "lies.avatar", given, "-o", "out.mp4"),
            ("speak", "lies.avatar", given, "-o", "out.mp4"),
            ("animate", given, "secret.mp4", "-o", "out.mp4"),
        ):
            code = cli.run([*words, "--quiet"])
            out, err = capfd.readouterr()
            assert code in (2, 4) and out == "" and err.count("\n") == 1 and err.startswith("omokage: "), (
                words,
                err,
            )
            assert sorted(Path().iterdir()) == there


# The sandbox


def test_a_sandboxed_decoder_gives_the_same(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.mp4", rotation_deg=90, audio=beep(0.5, 1.0, channels=2), width=100, height=50
    )
    PIL.Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(tmp_path / "a.png")
    got = []
    for limits in MODES:
        with use_input_limits(limits):
            frames = list(read_frames(path, start_s=0.2, max_side=40))
            sound = read_audio(path, sample_rate=16000)
            stills = [read_image(tmp_path / "a.png"), *read_images([tmp_path / "a.png"] * 2)]
        got.append(
            (probe(path), [(f.index, f.time_s) for f in frames], [f.image for f in frames], sound, stills)
        )
    sandboxed, here = got
    assert sandboxed[:2] == here[:2] and len(here[2]) == 20
    assert np.array_equal(sandboxed[2], here[2]) and np.array_equal(sandboxed[4], here[4])
    assert sandboxed[3] is not None and here[3] is not None and sandboxed[3].sample_rate == 16000
    assert np.array_equal(sandboxed[3].samples, here[3].samples)


def in_a_decoder(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let another program take the place of the decoder."""
    monkeypatch.setattr(sandbox, "_command", lambda request: [sys.executable, "-c", code, request])


TRIES = """
import ctypes, os, resource, socket
from omokage.media.confinement import confine
from omokage.media.limits import InputLimits
from omokage.media.records import Failed, to_line
parent = os.getppid()
taken = confine(InputLimits(), 5.0)
done = []
def attempt(name, act):
    try:
        act()
        done.append(name)
    except (OSError, MemoryError, ValueError):
        pass
attempt("read", lambda: open(os.__file__))
attempt("list", lambda: os.listdir("/"))
attempt("write", lambda: open("made", "w"))
attempt("make a folder", lambda: os.mkdir("made"))
attempt("remove", lambda: os.unlink("secret.mp4"))
attempt("rename", lambda: os.rename("secret.mp4", "gone.mp4"))
attempt("connect", lambda: socket.socket())
attempt("a pair of sockets", socket.socketpair)
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("run", lambda: os.execv("/bin/true", ["true"]))
attempt("signal", lambda: os.kill(parent, 0))
attempt("limit another", lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (9, 9)))
attempt("memory", lambda: bytearray(5_000_000_000))
attempt("raise a limit", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
import sys
sys.stdout.buffer.write(to_line(Failed(f"{','.join(taken)}; done: {','.join(done)}", False)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the other systems have less to take away")
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="no filter of calls for this processor"
)
def test_a_decoder_can_do_nothing_but_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_clip(tmp_path / "secret.mp4")
    in_a_decoder(TRIES, monkeypatch)
    taken, done = refusal(probe, path).split("; done: ")
    has_landlock = ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1
    assert ("files" in taken.split(",")) == has_landlock and "network, programs" in taken
    of_files = {"read", "list", "write", "make a folder", "remove", "rename"}
    assert {*done.split(",")} - {""} <= (set() if has_landlock else of_files)
    assert not has_landlock or sorted(p.name for p in tmp_path.iterdir()) == ["secret.mp4"]


TAKEOVERS = {
    "nothing": ("import time; time.sleep(60)", "it gave nothing for 0.5 s"),
    "a breakdown": ("import os; os.abort()", "it broke down (status -6)"),
    "a quiet end": ("pass", "it broke down (status 0)"),
    "no memory": ("import os; os._exit(71)", "needs more memory to decode than the 4 GB"),
    "an endless line": ("import os\nwhile True: os.write(1, b'x' * 65536)", "an endless line"),
    "no JSON": ("print('hello')", "gave no sensible answer"),
    "a pickle": (r"import os; os.write(1, b'\x80\x04K\x01.\n')", "gave no sensible answer"),
    "deep JSON": ("print('[' * 100000)", "gave no sensible answer"),
    "another kind of answer": (
        """print('{"kind": "RawStill", "bytes": 0, "fields": {"width": 1, "height": 1, "mode": "RGB"}}')""",
        "gave no sensible answer",
    ),
    "fields of another kind": (
        """print('{"kind": "Failed", "bytes": 0, "fields": {"sentence": 7, "is_ours": false}}')""",
        "gave no sensible answer",
    ),
    "a terabyte": (
        """print('{"kind": "RawSound", "bytes": 1000000000000, "fields": {"start": null, "rate": 1, "channels": 1, '
        '"has_video": true, "announced_s": 1}}')""",
        "1000000000000 bytes at once",
    ),
    "a word to the terminal": (
        r"""print('{"kind": "Failed", "bytes": 0, "fields": {"sentence": "a\\u001b[2Jb", "is_ours": false}}')""",
        "a [2Jb",
    ),
    "a scan without pictures": (
        """print('{"kind": "RawScan", "bytes": 0, "fields": {"width": 0, "height": 0, "pixel_format": "x", '
        '"aspect": null, "matrix": [], "time_base": "1/25", "zero": 0, "last_duration": 0, "has_audio": false}}')""",
        "no sensible time stamps",
    ),
}


@pytest.mark.parametrize("name", TAKEOVERS)
def test_a_decoder_that_was_taken_over_is_not_believed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = TAKEOVERS[name]
    in_a_decoder(code, monkeypatch)
    path = make_clip(tmp_path / "a.mp4")
    with use_input_limits(InputLimits(silence_s=0.5 if name == "nothing" else 30)):
        assert words in refusal(probe, path)


def test_pictures_of_a_wrong_size_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4")
    probe(path)
    fields = '"layout": "rgb24", "transfer": 1, "is_narrow_grey": false, "is_repeated": false'
    for width, row_bytes, size in ((95, 285, 285 * 64), (96, 288, 100), (96, 10, 640)):
        line = f'{{"kind": "RawPicture", "bytes": {size}, "fields": {{"width": {width}, "height": 64, "row_bytes": '
        line += f"{row_bytes}, {fields}}}}}\\n"
        in_a_decoder(f"import os; os.write(1, b'{line}' + bytes({size}))", monkeypatch)
        assert "picture that makes no sense" in refusal(READERS["video"], path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_computing_time_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_decoder(
        "from omokage.media.confinement import allow_cpu; allow_cpu(1)\nwhile True: pass", monkeypatch
    )
    assert "far more computing time than its length allows" in refusal(probe, make_clip(tmp_path / "a.mp4"))


def test_a_decoder_ends_with_its_reader(tmp_path: Path) -> None:
    before = _children()
    frames = read_frames(make_clip(tmp_path / "a.mp4", seconds=2, width=640, height=480))
    next(frames)
    decoders = _children() - before
    assert len(decoders) == (sys.platform == "linux")
    frames.close()  # type: ignore[attr-defined]
    assert not decoders & _children()


def _children() -> set[str]:
    """Processes of this one, by number."""
    if sys.platform != "linux":
        return set()
    running = [p.name for p in Path("/proc").iterdir() if p.name.isdecimal()]
    return {pid for pid in running if _parent(pid) == os.getpid()}


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def test_an_open_file_is_an_ordinary_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a device or a pipe"):
        file_digest(Path(os.devnull))
    (tmp_path / "a").write_bytes(b"abc")
    with open_given(tmp_path / "a") as file:
        assert file.read() == b"abc"
    with pytest.raises(OmokageError, match="is a folder"):
        open_given(tmp_path)
