"""Frames, pictures and texts -> files. Only `omokage.trust.release` may import this module.

Every write goes through `files.saving`, so that a failed or interrupted one leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
import PIL.Image
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from omokage.errors import InternalError, OutputError
from omokage.files import saving
from omokage.media.clip import Audio, SoundFormat

CLIP_SUFFIXES: Final = (".mp4", ".mov", ".webm")
ALPHA_SUFFIXES: Final = (".webm",)
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg")

WrittenCallback = Callable[[Path], None]

_H264 = {"crf": "18", "preset": "veryfast"}
# libvpx needs `auto-alt-ref` off for alpha; `cpu-used` 5 is 4 times as fast as the default for 3 % more bytes.
_VP9 = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
_ENCODER_THREADS = 2  # fixed, because x264's output depends on it and equal input must give equal files


@dataclass(frozen=True, slots=True)
class _Codecs:
    video: str
    options: Mapping[str, str]
    sound: str


_MP4 = _Codecs("libx264", _H264, "aac")
_WEBM = _Codecs("libvpx-vp9", _VP9, "libopus")
# No picture waits for later ones, and samples need no frames of their own.
_LIVE = _Codecs("libx264", _H264 | {"tune": "zerolatency"}, "pcm_s16le")
_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_SWS_BT709 = Colorspace.ITU709


@contextmanager
def clip_writer(
    path: Path,
    *,
    width: int,
    height: int,
    frame_rate: Fraction,
    sound: SoundFormat | None = None,
    alpha: bool = False,
    metadata: Mapping[str, str] | None = None,
    on_written: WrittenCallback | None = None,
) -> Iterator[ClipWriter]:
    """Encode frames into a clip inside a `with` block; the file appears when the block ends without an error.

    `.mp4` and `.mov` hold H.264 and AAC with the index first, `.webm` holds VP9 and Opus and may carry `alpha`.
    Pictures are tagged BT.709; H.264 needs even sides, so odd ones get one more row or column, a copy of the last.
    Equal input gives equal bytes. `on_written` sees the whole file just before it takes its name; when it raises, there
    is no file. Raises OutputError when the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (ALPHA_SUFFIXES if alpha else CLIP_SUFFIXES):
        wanted = "a transparent clip needs the suffix .webm" if alpha else "use .mp4, .mov or .webm"
        raise OutputError(f"{path} has the suffix '{path.suffix}'; {wanted}")
    known = {"comment", "title"}  # other names have no place in MP4's own list of tags
    flags = "+faststart" if set(metadata or ()) <= known else "+faststart+use_metadata_tags"
    options = {"fflags": "+bitexact"} | ({"movflags": flags} if suffix != ".webm" else {})
    shape = (height, width, 4 if alpha else 3)
    with saving(path, av.FFmpegError) as part:
        container = av.open(f"file:{part.absolute()}", mode="w", format=suffix[1:], options=options)
        with _filled(container, metadata):
            writer = ClipWriter(container, shape, frame_rate, sound, _WEBM if suffix == ".webm" else _MP4)
            yield writer
            writer.finish()
        if on_written is not None:
            on_written(part)


@contextmanager
def stream_writer(
    write: Callable[[bytes], int],
    *,
    width: int,
    height: int,
    frame_rate: Fraction,
    sound: SoundFormat | None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[ClipWriter]:
    """Encode frames into a stream that a player reads while it is made: Matroska with H.264 and samples as they are,
    if there is sound.

    Every picture leaves, through `write`, with the next one. What `write` raises is passed on.
    """
    options = {"fflags": "+bitexact", "live": "1", "cluster_time_limit": "1", "flush_packets": "1"}
    container = av.open(_Sink(write), mode="w", format="matroska", options=options)
    with _filled(container, metadata):
        writer = ClipWriter(container, (height, width, 3), frame_rate, sound, _LIVE)
        yield writer
        writer.finish()


@contextmanager
def _filled(container: OutputContainer, metadata: Mapping[str, str] | None) -> Iterator[None]:
    try:
        container.metadata.update(metadata or {})
        yield
    except BaseException:
        # The first error is the one to tell.
        with contextlib.suppress(OSError, av.FFmpegError, ValueError):
            container.close()
        raise
    container.close()


class _Sink:
    """What PyAV writes to."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self.write = write


class ClipWriter:
    """Appends pictures, and their sound, to an open container; see `clip_writer`."""

    def __init__(
        self,
        container: OutputContainer,
        shape: tuple[int, int, int],
        frame_rate: Fraction,
        sound: SoundFormat | None,
        codecs: _Codecs,
    ) -> None:
        self.frame_count = 0
        self._container = container
        self._shape = shape
        self._frame_rate = frame_rate
        self._format = sound
        self._samples_sent = 0
        self._reformatter = VideoReformatter()
        self._video = self._add_video(codecs)
        self._sound = None if sound is None else self._add_sound(codecs.sound, sound)

    def write(self, image: NDArray[np.uint8], samples: NDArray[np.float32] | None = None) -> None:
        """Append one picture, uint8 (height, width, 3) RGB or (height, width, 4) with straight alpha.

        samples: float32 (S, channels), the sound that goes on with it, when the clip has sound.
        """
        if image.shape != self._shape or image.dtype != np.uint8:
            raise InternalError(
                f"a frame of {image.dtype} {image.shape} came to a clip of uint8 {self._shape}"
            )
        self._container.mux(self._video.encode(self._to_yuv(image)))
        self.frame_count += 1
        if samples is not None:
            self.write_sound(samples)

    def write_sound(self, samples: NDArray[np.float32]) -> None:
        """Append sound that belongs to pictures which were written: float32 (S, channels)."""
        if len(samples):
            self._send_sound(samples)

    def finish(self) -> None:
        """Write what the encoders still hold."""
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))

    def _add_video(self, codecs: _Codecs) -> VideoStream:
        height, width, channels = self._shape
        stream = self._container.add_stream(codecs.video, rate=self._frame_rate)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        is_any_size = codecs.video != "libx264"
        context.width, context.height = (
            (width, height) if is_any_size else (width + width % 2, height + height % 2)
        )
        context.pix_fmt = "yuva420p" if channels == 4 else "yuv420p"
        context.time_base = 1 / self._frame_rate
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.colorspace = _SWS_BT709
        context.color_range = ColorRange.MPEG
        context.gop_size = max(1, round(2 * self._frame_rate))
        context.thread_count = _ENCODER_THREADS
        context.options = dict(codecs.options)
        return stream

    def _add_sound(self, codec: str, sound: SoundFormat) -> AudioStream:
        is_any_rate = codec.startswith("pcm")
        is_known = is_any_rate or (codec == "aac" and sound.sample_rate in _AAC_RATES)
        rate = sound.sample_rate if is_known else 48000
        layout = "mono" if sound.channels == 1 else "stereo"
        stream = self._container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = 96_000 * min(2, sound.channels)
        return stream

    def _to_yuv(self, image: NDArray[np.uint8]) -> VideoFrame:
        context = self._video.codec_context
        below, right = context.height - image.shape[0], context.width - image.shape[1]
        if below or right:
            image = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
        frame = VideoFrame.from_ndarray(
            np.ascontiguousarray(image), format="rgba" if image.shape[2] == 4 else "rgb24"
        )
        yuv = self._reformatter.reformat(
            frame,
            format=context.pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=_SWS_BT709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        yuv.pts = self.frame_count
        yuv.time_base = 1 / self._frame_rate
        return yuv

    def _send_sound(self, samples: NDArray[np.float32]) -> None:
        assert self._sound is not None and self._format is not None
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples[:, :2], dtype=np.float32).reshape(1, -1),
            format="flt",
            layout=self._sound.layout.name,
        )
        frame.sample_rate = self._format.sample_rate
        frame.time_base = Fraction(1, self._format.sample_rate)
        frame.pts = self._samples_sent
        self._samples_sent += len(samples)
        self._container.mux(self._sound.encode(frame))


def sound_by_frame(audio: Audio, frame_rate: Fraction) -> Iterator[NDArray[np.float32]]:
    """The sound that belongs to each frame, from the first on and without end: beyond its end there is silence."""
    sound, start = SoundFormat(audio.sample_rate, audio.samples.shape[1]), 0
    for frames in itertools.count(1):
        stop = sound.samples_until(frames, frame_rate)
        piece = audio.samples[start:stop]
        yield np.pad(piece, ((0, stop - start - len(piece)), (0, 0)))
        start = stop


def write_image(
    path: Path,
    image: NDArray[np.uint8],
    metadata: Mapping[str, str],
    on_written: WrittenCallback | None = None,
) -> None:
    """Write uint8 (H, W, 3) or, for PNG, (H, W, 4) with its metadata; `on_written` as in `clip_writer`.

    PNG carries `metadata` as text chunks, JPEG its `comment` as a comment; a value under `xmp` is embedded as an XMP
    packet in both. Raises OutputError.
    """
    texts = dict(metadata)
    xmp = texts.pop("xmp", "")
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(image)
    if path.suffix.lower() == ".png":
        chunks = PngInfo()
        for name, value in texts.items():
            chunks.add_text(name.capitalize(), value)
        if xmp:
            chunks.add_itxt("XML:com.adobe.xmp", xmp)
        picture.save(buffer, "PNG", pnginfo=chunks)
    elif path.suffix.lower() in IMAGE_SUFFIXES and image.shape[2] == 3:
        comment = texts.get("comment", "")
        picture.save(buffer, "JPEG", quality=95, subsampling=0, comment=comment, xmp=xmp.encode())
    else:
        wanted = "a transparent picture needs .png" if image.shape[2] == 4 else "use .png or .jpg"
        raise OutputError(f"{path} has the suffix '{path.suffix}'; {wanted}")
    write_bytes(path, buffer.getvalue(), on_written)


def write_bytes(path: Path, data: bytes, on_written: WrittenCallback | None = None) -> None:
    """Write a whole file atomically; `on_written` as in `clip_writer`. Raises OutputError."""
    with saving(path) as part:
        part.write_bytes(data)
        if on_written is not None:
            on_written(part)
