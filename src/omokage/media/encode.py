"""Frames, pictures and texts -> files. Only `omokage.trust.release` may import this module.

Every write goes through `files.saving`, so that a failed or interrupted one leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Final, TypeAlias

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
from omokage.media.clip import Audio

Seal: TypeAlias = Callable[[Path], None]
CLIP_SUFFIXES: Final = (".mp4", ".mov", ".webm")
ALPHA_SUFFIXES: Final = (".webm",)
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg")

_H264 = {"crf": "18", "preset": "veryfast"}
# libvpx needs `auto-alt-ref` off for alpha; `cpu-used` 5 is 4 times as fast as the default for 3 % more bytes.
_VP9 = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
_ENCODER_THREADS = 2  # fixed, because x264's output depends on it and equal input must give equal files
_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_SWS_BT709 = Colorspace.ITU709


@contextmanager
def clip_writer(
    path: Path,
    *,
    width: int,
    height: int,
    frame_rate: Fraction,
    audio: Audio | None = None,
    alpha: bool = False,
    metadata: Mapping[str, str] | None = None,
    seal: Seal | None = None,
) -> Iterator[ClipWriter]:
    """Encode frames into a clip inside a `with` block; the file appears when the block ends without an error.

    `.mp4` and `.mov` hold H.264 and AAC with the index first, `.webm` holds VP9 and Opus and may carry `alpha`.
    Pictures are tagged BT.709; H.264 needs even sides, so odd ones get one more row or column, a copy of the last.
    `audio` starts with the first picture and is cut, or padded with silence, to the length of the pictures. Equal
    input gives equal bytes. `seal` sees the complete file before it appears. Raises OutputError when it cannot be
    written.
    """
    suffix = path.suffix.lower()
    if suffix not in (ALPHA_SUFFIXES if alpha else CLIP_SUFFIXES):
        wanted = "a transparent clip needs the suffix .webm" if alpha else "use .mp4, .mov or .webm"
        raise OutputError(f"{path} has the suffix '{path.suffix}'; {wanted}")
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if suffix != ".webm" else {})
    with saving(path, av.FFmpegError, seal=seal) as part:
        container = av.open(f"file:{part.absolute()}", mode="w", format=suffix[1:], options=options)
        try:
            container.metadata.update(metadata or {})
            shape = (height, width, 4 if alpha else 3)
            writer = ClipWriter(container, shape, frame_rate, audio, is_webm=suffix == ".webm")
            yield writer
            writer.finish()
        except BaseException:
            # The first error is the one to tell.
            with contextlib.suppress(OSError, av.FFmpegError, ValueError):
                container.close()
            raise
        container.close()


class ClipWriter:
    """Appends pictures to an open container; see `clip_writer`."""

    def __init__(
        self,
        container: OutputContainer,
        shape: tuple[int, int, int],
        frame_rate: Fraction,
        audio: Audio | None,
        *,
        is_webm: bool,
    ) -> None:
        self.frame_count = 0
        self._container = container
        self._shape = shape
        self._frame_rate = frame_rate
        self._audio = audio
        self._samples_sent = 0
        self._reformatter = VideoReformatter()
        self._video = self._add_video(is_vp9=is_webm)
        self._sound = self._add_sound("libopus" if is_webm else "aac")

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append one picture, uint8 (height, width, 3) RGB or (height, width, 4) with straight alpha, and its sound."""
        if image.shape != self._shape or image.dtype != np.uint8:
            raise InternalError(
                f"a frame of {image.dtype} {image.shape} came to a clip of uint8 {self._shape}"
            )
        self._container.mux(self._video.encode(self._to_yuv(image)))
        self.frame_count += 1
        self._send_sound()

    def finish(self) -> None:
        """Write what the encoders still hold."""
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))

    def _add_video(self, *, is_vp9: bool) -> VideoStream:
        height, width, channels = self._shape
        stream = self._container.add_stream("libvpx-vp9" if is_vp9 else "libx264", rate=self._frame_rate)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height = (
            (width, height) if is_vp9 else (width + width % 2, height + height % 2)
        )
        context.pix_fmt = "yuva420p" if channels == 4 else "yuv420p"
        context.time_base = 1 / self._frame_rate
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.colorspace = _SWS_BT709
        context.color_range = ColorRange.MPEG
        context.gop_size = max(1, round(2 * self._frame_rate))
        context.thread_count = _ENCODER_THREADS
        context.options = dict(_VP9 if is_vp9 else _H264)
        return stream

    def _add_sound(self, codec: str) -> AudioStream | None:
        if self._audio is None or self._audio.samples.size == 0:
            return None
        rate = self._audio.sample_rate if codec == "aac" and self._audio.sample_rate in _AAC_RATES else 48000
        layout = "mono" if self._audio.samples.shape[1] == 1 else "stereo"
        stream = self._container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = 96_000 * min(2, self._audio.samples.shape[1])
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

    def _send_sound(self) -> None:
        """Encode the sound up to the end of the pictures so far; beyond its end there is silence."""
        if self._sound is None or self._audio is None:
            return
        stop = round(self.frame_count / self._frame_rate * self._audio.sample_rate)
        piece = self._audio.samples[self._samples_sent : stop, :2]
        missing = stop - self._samples_sent - len(piece)
        piece = np.pad(piece, ((0, missing), (0, 0)))
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(piece, dtype=np.float32).reshape(1, -1),
            format="flt",
            layout=self._sound.layout.name,
        )
        frame.sample_rate = self._audio.sample_rate
        frame.time_base = Fraction(1, self._audio.sample_rate)
        frame.pts = self._samples_sent
        self._samples_sent = stop
        self._container.mux(self._sound.encode(frame))


def write_image(
    path: Path, image: NDArray[np.uint8], metadata: Mapping[str, str], seal: Seal | None = None
) -> None:
    """Write uint8 (H, W, 3) or, for PNG, (H, W, 4) with its metadata.

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
    write_bytes(path, buffer.getvalue(), seal)


def write_bytes(path: Path, data: bytes, seal: Seal | None = None) -> None:
    """Write a whole file atomically; `seal` sees it before it appears. Raises OutputError."""
    with saving(path, seal=seal) as part:
        part.write_bytes(data)
