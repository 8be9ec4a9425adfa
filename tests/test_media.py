"""Reading: right pictures at right times from any usable file, one clear sentence for every other."""

from __future__ import annotations

import itertools
import os
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from clips import beep, corner_mark, flash, make_clip, moving_disc, onset_s, plain
from omokage.errors import MediaError
from omokage.media import pictures
from omokage.media.audio import stream_audio
from omokage.media.color import HLG, PQ, tone_map
from omokage.media.decode import is_still_image, probe, read_audio, read_frames, read_image
from omokage.media.limits import InputLimits, use_input_limits


@pytest.fixture
def in_this_process():
    """The decoder without its sandbox, for tests that look into it."""
    with use_input_limits(InputLimits(is_sandboxed=False)):
        yield


def _mean_color(path: Path) -> np.ndarray:
    return next(read_frames(path)).image.reshape(-1, 3).mean(axis=0)


def _reject(path: Path, *words: str) -> None:
    """The file is refused, by one sentence that holds its name and the given words."""
    with pytest.raises(MediaError) as caught:
        list(read_frames(path))
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    for word in words:
        assert word in message


def test_a_plain_clip_is_read_as_it_was_drawn(tmp_path):
    path = make_clip(tmp_path / "a.mp4", seconds=1, frame_rate=25, options={"crf": "1"})
    info = probe(path)
    assert (info.width, info.height, info.frame_rate, info.frame_count) == (96, 64, 25, 25)
    assert not info.is_variable_rate and not info.has_audio and info.duration_s == pytest.approx(1.0)
    frames = list(read_frames(path))
    assert [f.index for f in frames] == list(range(25))
    assert [f.time_s for f in frames] == pytest.approx([i / 25 for i in range(25)], abs=1e-12)
    for frame in frames:
        error = np.abs(frame.image.astype(int) - moving_disc(frame.time_s, 96, 64))
        assert frame.image.dtype == np.uint8 and frame.image.flags.c_contiguous and error.mean() < 4


@pytest.mark.parametrize("rate", [Fraction(5), Fraction(23), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_constant_rates_are_recognised(tmp_path, rate, suffix):
    info = probe(make_clip(tmp_path / f"a{suffix}", frame_rate=rate, seconds=2))
    assert float(info.frame_rate) == pytest.approx(float(rate), rel=1e-3)
    assert info.frame_count == round(2 * rate) and not info.is_variable_rate


@pytest.mark.parametrize(
    "suffix, codec", [(".mov", "prores_ks"), (".webm", "libvpx-vp9"), (".avi", "mpeg4"), (".ts", "libx264")]
)
def test_containers_and_codecs(tmp_path, suffix, codec):
    pixel_format = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    options = {"b": "2000000"} if codec == "mpeg4" else {}
    path = make_clip(
        tmp_path / f"a{suffix}", codec=codec, pixel_format=pixel_format, audio=beep(0.5, 1.0), options=options
    )
    frames = list(read_frames(path))
    assert len(frames) == 25
    assert np.abs(frames[12].image.astype(int) - moving_disc(0.48, 96, 64)).mean() < 12
    assert onset_s(read_audio(path)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "rotation, corner", [(0, "top left"), (90, "top right"), (180, "bottom right"), (270, "bottom left")]
)
def test_phone_rotation_is_applied(tmp_path, rotation, corner):
    path = make_clip(tmp_path / "a.mp4", draw=corner_mark, rotation_deg=rotation)
    image = next(read_frames(path)).image
    info = probe(path)
    assert info.rotation_deg == rotation
    assert image.shape == (info.height, info.width, 3) == ((96, 64, 3) if rotation % 180 else (64, 96, 3))
    lit = {
        "top left": image[4, 4],
        "top right": image[4, -5],
        "bottom right": image[-5, -5],
        "bottom left": image[-5, 4],
    }
    assert [name for name, color in lit.items() if color.min() > 200] == [corner]


def test_max_side_keeps_the_shape_of_a_turned_picture(tmp_path):
    path = make_clip(tmp_path / "a.mp4", draw=corner_mark, rotation_deg=90)
    assert next(read_frames(path, max_side=48)).image.shape == (48, 32, 3)
    assert next(read_frames(path, max_side=500)).image.shape == (96, 64, 3)


def test_pixels_become_square(tmp_path):
    path = make_clip(tmp_path / "a.mp4", sample_aspect_ratio=Fraction(4, 3))
    assert (probe(path).width, probe(path).height) == (128, 64)
    assert next(read_frames(path)).image.shape == (64, 128, 3)


def test_colors_survive_the_matrix(tmp_path):
    color = (200, 60, 30)
    assert _mean_color(make_clip(tmp_path / "a.mp4", draw=plain(*color))) == pytest.approx(color, abs=3)


def test_untagged_small_pictures_are_taken_as_bt601(tmp_path):
    path = make_clip(tmp_path / "a.avi", codec="mpeg4", draw=plain(200, 60, 30), options={"b": "2000000"})
    assert _mean_color(path) == pytest.approx((200, 60, 30), abs=4)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_grey_keeps_its_level(tmp_path, codec):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = make_clip(
        tmp_path / "a.mp4", codec=codec, draw=plain(60, 60, 60), pixel_format="gray", options=options
    )
    assert _mean_color(path) == pytest.approx((60, 60, 60), abs=2)


@pytest.mark.parametrize(
    "suffix, codec, pixel_format", [(".webm", "libvpx-vp9", "yuva420p"), (".mkv", "ffv1", "bgra")]
)
def test_alpha_is_laid_over_black(tmp_path, suffix, codec, pixel_format):
    path = make_clip(
        tmp_path / f"a{suffix}", codec=codec, pixel_format=pixel_format, draw=plain(200, 60, 30, 128),
        options={"auto-alt-ref": "0"} if codec == "libvpx-vp9" else {},
    )  # fmt: skip
    assert _mean_color(path) == pytest.approx((100, 30, 15), abs=3)


def _pq(nits: float) -> int:
    power = (nits / 10000) ** 0.1593017578125
    return round(65535 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_hdr_becomes_ordinary_grey(tmp_path, transfer):
    """Light of 18 % of reference white is the grey 118 of sRGB, in either system."""
    signal = _pq(0.18 * 203) if transfer == "pq" else round(65535 * (3 * (0.18 * 0.203) ** (1 / 1.2)) ** 0.5)
    path = make_clip(
        tmp_path / "a.mp4", codec="libx265", pixel_format="yuv420p10le", transfer=transfer,
        draw=plain(signal, signal, signal), options={"x265-params": "log-level=none:crf=4"},
    )  # fmt: skip
    assert probe(path).pixel_format == "yuv420p10le"
    assert _mean_color(path) == pytest.approx((118, 118, 118), abs=3)


def test_tone_curve_rises_to_white_without_clipping_and_keeps_hue():
    signals = [_pq(nits) for nits in (0, 5, 50, 150, 203, 400, 700, 1000, 4000)]
    levels = tone_map(np.repeat(np.array(signals, np.uint16)[None, :, None], 3, axis=2), PQ)[0, :, 0].astype(
        int
    )
    assert levels[0] == 0 and levels[-2] == levels[-1] == 255
    assert np.all(np.diff(levels[:-1]) > 0) and levels[4] < 245
    red = tone_map(np.array([[[_pq(900), _pq(90), _pq(90)]]], np.uint16), HLG)[0, 0].astype(int)
    assert red[0] > red[1] + 20 and abs(red[1] - red[2]) < 25


def _jittered_times(seconds: float) -> list[float]:
    """A phone's variable rate: mostly 30 per second, with slow stretches and gaps."""
    steps = itertools.cycle([1 / 30] * 9 + [1 / 20] * 3 + [0.09])
    return list(itertools.takewhile(lambda t: t < seconds, itertools.accumulate(steps, initial=0.0)))


def test_variable_rate_stays_in_sync_with_sound(tmp_path):
    """The flash and the beep happen together, late in the clip, where a wrong clock would have drifted."""
    times = _jittered_times(4.0)
    at = next(t for t in times if t > 3.0)
    path = make_clip(tmp_path / "a.mp4", times_s=times, draw=flash(at), audio=beep(at, 4.0))
    info = probe(path)
    assert info.is_variable_rate and info.frame_rate == 30
    frames = list(read_frames(path))
    assert len(frames) == info.frame_count == round(info.duration_s * 30)
    seen = next(f.time_s for f in frames if f.image.mean() > 128)
    assert abs(seen - at) <= 0.5 / 30 + 1e-3
    assert abs(onset_s(read_audio(path)) - seen) <= 1 / 30


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_starts_apart_from_the_pictures_is_aligned(tmp_path, suffix):
    late_pictures = make_clip(
        tmp_path / f"p{suffix}", start_s=0.5, draw=flash(0.6), audio=beep(1.1, 2.0), seconds=1
    )
    late_sound = make_clip(tmp_path / f"s{suffix}", draw=flash(0.6), audio=beep(0.2, 0.6), audio_start_s=0.4)
    for path in (late_pictures, late_sound):
        assert next(read_frames(path)).time_s == 0
        seen = next(f.time_s for f in read_frames(path) if f.image.mean() > 128)
        assert seen == pytest.approx(0.6, abs=0.001)
        assert onset_s(read_audio(path)) == pytest.approx(0.6, abs=0.02)


def test_a_stream_cut_at_its_head_begins_with_its_first_whole_picture(tmp_path):
    """A transport stream may begin anywhere; pictures before the first key frame are lost, sync is not."""
    path = make_clip(
        tmp_path / "a.ts", seconds=4, draw=flash(3.0), audio=beep(3.0, 4.0), options={"g": "25", "bf": "0"}
    )
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    frames = list(read_frames(path))
    assert len(frames) == probe(path).frame_count in (25, 50, 75)
    seen = next(f.time_s for f in frames if f.image.mean() > 128)
    assert onset_s(read_audio(path)) == pytest.approx(seen, abs=0.02)


def test_another_rate_takes_the_nearest_picture(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frame_rate=30, seconds=2)
    own = list(read_frames(path))
    frames = list(read_frames(path, frame_rate=Fraction(25)))
    assert len(frames) == 50
    for frame in frames:
        nearest = min(own, key=lambda f, time_s=frame.time_s: (round(abs(f.time_s - time_s), 9), f.time_s))
        assert np.array_equal(frame.image, nearest.image)


def test_a_part_equals_the_same_frames_of_the_whole(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frame_rate=25, seconds=6, options={"g": "20"})
    whole = list(read_frames(path))
    part = list(read_frames(path, start_s=3.5, end_s=4.0))
    assert [f.index for f in part] == list(range(12)) and part[0].time_s == pytest.approx(3.52)
    for frame in part:
        assert np.array_equal(frame.image, whole[round(frame.time_s * 25)].image)
    with pytest.raises(MediaError, match=r"lasts 6\.00 s"):
        read_frames(path, start_s=7)


def test_a_late_part_does_not_decode_the_whole(tmp_path, monkeypatch, in_this_process):
    path = make_clip(tmp_path / "a.mp4", seconds=6, options={"g": "20"})
    probe(path)
    decoded = []
    whole = pictures.decode_packets
    monkeypatch.setattr(
        pictures, "decode_packets", lambda *args: (decoded.append(p) or p for p in whole(*args))
    )
    assert len(list(read_frames(path, start_s=5))) == 25
    assert len(decoded) < 60


def test_repeated_pictures_are_not_shared(tmp_path):
    path = make_clip(tmp_path / "a.mp4", frame_rate=5)
    first, second = itertools.islice(read_frames(path, frame_rate=Fraction(10)), 2)
    first.image[:] = 0
    assert second.image.max() > 0


def test_frames_are_streamed_not_kept(tmp_path):
    alive: list[weakref.ref] = []
    for frame in read_frames(make_clip(tmp_path / "a.mp4", seconds=3)):
        alive.append(weakref.ref(frame.image))
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(alive) == 75


def test_sound_rates_and_channels(tmp_path):
    path = make_clip(tmp_path / "a.mp4", audio=beep(0.5, 1.0, sample_rate=44100, channels=2))
    audio = read_audio(path)
    assert audio.sample_rate == 44100 and audio.samples.shape[1] == 2 and audio.samples.dtype == np.float32
    assert len(audio.samples) / 44100 == pytest.approx(1.0, abs=0.03)
    low = read_audio(path, sample_rate=16000)
    assert low.sample_rate == 16000 and onset_s(low) == pytest.approx(onset_s(audio), abs=0.002)
    assert len(low.samples) / 16000 == pytest.approx(len(audio.samples) / 44100, abs=2e-4)
    assert np.sqrt(np.mean(low.samples[9000:10000] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.05)
    assert read_audio(make_clip(tmp_path / "b.mp4")) is None


# Files that must be refused.


def test_sound_in_pieces_is_the_same_sound(tmp_path):
    path = make_clip(tmp_path / "a.mp4", seconds=2, audio=beep(0.5, 2.0, channels=2))
    pieces = [piece.audio for piece in stream_audio(path)]
    assert len(pieces) > 50 and max(len(piece.samples) for piece in pieces) < 5000
    joined, whole = np.concatenate([piece.samples for piece in pieces]), read_audio(path).samples
    assert (
        joined.shape[1] == 2 and abs(len(joined) - len(whole)) < 3000
    )  # the codec's start before the first picture
    assert np.array_equal(joined[-len(whole) :][-40000:], whole[-40000:])
    assert list(stream_audio(make_clip(tmp_path / "b.mp4"))) == []


def test_text_named_mp4(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("Dear diary, this is no video.\n" * 20)
    _reject(path, "text")


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
    ],
)
def test_a_playlist_never_reads_its_neighbor(tmp_path, playlist):
    make_clip(tmp_path / "secret.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(playlist)
    _reject(path, "text")
    with pytest.raises(MediaError):
        read_audio(path)


def test_the_demuxer_is_forced_and_only_files_are_opened(tmp_path, monkeypatch, in_this_process):
    """Defense in depth: FFmpeg is never left to guess, and has no network."""
    path = make_clip(tmp_path / "a.mp4")
    asked = []
    whole = av.open
    monkeypatch.setattr(av, "open", lambda *args, **kwargs: asked.append(kwargs) or whole(*args, **kwargs))
    list(read_frames(path))
    read_audio(path)
    assert len(asked) == 3
    assert all(a["format"] == "mov" and a["options"]["protocol_whitelist"] == "file" for a in asked)


def test_a_path_is_never_a_protocol(tmp_path, monkeypatch):
    make_clip(tmp_path / "secret.mp4")
    monkeypatch.chdir(tmp_path)
    _reject(Path("concat:secret.mp4|secret.mp4"), "does not exist")


def test_empty_missing_folder_and_device(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    _reject(empty, "0 bytes")
    _reject(tmp_path / "none.mp4", "does not exist")
    _reject(tmp_path, "folder")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    _reject(pipe, "pipe")


def test_no_permission(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    _reject(path, "permissions")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("is_index_first", [False, True])
def test_cut_off_files(tmp_path, suffix, is_index_first):
    """Half a file: without its index, or with an index that promises more than there is."""
    options = {"movflags": "+faststart"} if is_index_first and suffix == ".mp4" else {}
    path = make_clip(tmp_path / f"a{suffix}", seconds=6, width=160, height=120, container_options=options)
    os.truncate(path, path.stat().st_size // 2)
    _reject(path, "cut off")


def test_decoding_error_in_the_middle_names_the_time(tmp_path, in_this_process):
    path = make_clip(tmp_path / "a.mkv", codec="ffv1", pixel_format="bgr0", seconds=2)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    times = []
    with pytest.raises(MediaError, match=r"damaged after [01]\.\d\d s") as caught:
        times.extend(frame.time_s for frame in read_frames(path))
    assert isinstance(caught.value.__cause__, av.FFmpegError)


def test_a_broken_first_picture_is_skipped(tmp_path):
    path = make_clip(
        tmp_path / "a.mkv", codec="ffv1", pixel_format="bgr0", draw=plain(90, 90, 90), options={"g": "1"}
    )
    with av.open(str(path)) as container:
        at = next(container.demux(video=0)).pos
    data = bytearray(path.read_bytes())
    data[at + 40 : at + 120] = bytes(80)
    path.write_bytes(data)
    assert len(list(read_frames(path))) == 24


def test_pictures_that_silently_fail_to_come_are_missed(tmp_path, monkeypatch, in_this_process):
    path = make_clip(tmp_path / "a.mp4", seconds=2)
    probe(path)
    whole = pictures.decode_packets
    monkeypatch.setattr(pictures, "decode_packets", lambda *args: itertools.islice(whole(*args), 30))
    _reject(path, "damaged after 1.16 s")


def test_too_many_pixels(tmp_path):
    path = make_clip(tmp_path / "a.mp4", width=8208, height=16, frame_rate=1, draw=plain(9, 9, 9))
    _reject(path, "8208x16", "8192")


def test_sound_only_and_pictures_are_no_clips(tmp_path):
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 1600), np.int16), "s16", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    _reject(path, "no video")
    assert len(read_audio(path).samples) == 1600
    picture = tmp_path / "a.mp4"
    PIL.Image.new("RGB", (8, 8)).save(picture, "PNG")
    assert is_still_image(picture)
    _reject(picture, "still picture")


def test_too_few_frames_for_the_caller(tmp_path):
    path = make_clip(tmp_path / "a.mp4", seconds=0.2)
    assert probe(path, min_frames=5).frame_count == 5
    with pytest.raises(MediaError, match="5 frames"):
        probe(path, min_frames=25)


# Still pictures.


def test_images_of_any_kind_become_upright_rgb(tmp_path):
    color = np.zeros((20, 30, 3), np.uint8)
    color[:5, :5] = (200, 100, 50)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    PIL.Image.fromarray(color).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.shape == (30, 20, 3) and tuple(turned[2, -3]) == (200, 100, 50) and turned[2, 2].max() == 0

    PIL.Image.fromarray(color[..., 0]).save(tmp_path / "grey.png")
    assert tuple(read_image(tmp_path / "grey.png")[0, 0]) == (200, 200, 200)
    PIL.Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert tuple(read_image(tmp_path / "deep.png")[0, 0]) == (128, 128, 128)
    PIL.Image.new("RGBA", (4, 4), (200, 100, 50, 128)).save(tmp_path / "alpha.png")
    assert tuple(read_image(tmp_path / "alpha.png")[0, 0]) == (100, 50, 25)
    PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg")
    red = read_image(tmp_path / "ink.jpg")[4, 4].astype(int)
    assert red[0] > 180 and red[1] < 60


def test_images_that_are_refused(tmp_path):
    clip = make_clip(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="is a video"):
        read_image(clip)
    cut = tmp_path / "cut.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(cut)
    os.truncate(cut, 2000)
    with pytest.raises(MediaError, match="damaged"):
        read_image(cut)
    PIL.Image.new("1", (8200, 2)).save(tmp_path / "wide.png")
    with pytest.raises(MediaError, match="8200x2"):
        read_image(tmp_path / "wide.png")
