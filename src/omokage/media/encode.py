"""Frames, pictures and texts -> files. Only `omokage.trust.release` may import this module.

Every write goes to a `.part` neighbor first and replaces the target at the end, so that a failed or interrupted
write leaves nothing behind.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import numpy as np
import PIL.Image
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from omokage.errors import InternalError, OutputError
from omokage.media.clip import Audio

CLIP_SUFFIXES: Final = (".mp4", ".mov", ".webm")
ALPHA_SUFFIXES: Final = (".webm",)
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg")

_H264 = {"crf": "18", "preset": "veryfast"}
# libvpx needs `auto-alt-ref` off for alpha; `cpu-used` 5 is 4 times as fast as the default for 3 % more bytes.
_VP9 = {"crf": "20", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
_ENCODER_THREADS = 2  # fixed, because x264's output depends on it and equal input must give equal files
_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_SWS_BT709 = Colorspace.ITU709
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file grew beyond the limit set for this disk or process; choose another folder or a shorter clip",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "there is no permission to write there; choose another folder",
    errno.EPERM: "there is no permission to write there; choose another folder",
    errno.ENOENT: "its folder does not exist; create the folder first",
    errno.ENOTDIR: "its folder is a file; choose another folder",
    errno.EISDIR: "it is a folder; give a file name",
}


def output_error(path: Path, error: OSError | av.FFmpegError) -> OutputError:
    """The one sentence for a write that failed."""
    reason = _REASONS.get(
        error.errno or 0, f"the system says '{error.strerror or error}'; choose another folder"
    )
    return OutputError(f"{path} cannot be written: {reason}")


def part_of(path: Path) -> Path:
    """The neighbor into which `path` is written until it is complete."""
    return path.with_name(path.name + ".part")


class ClipWriter:
    """Encode frames into a clip inside a `with` block; the file appears when the block ends without an error.

    `.mp4` and `.mov` hold H.264 and AAC with the index first, `.webm` holds VP9 and Opus and may carry `alpha`.
    Pictures are uint8 (height, width, 3) RGB, or (height, width, 4) with straight alpha, tagged BT.709; H.264 needs
    even sides, so odd ones get one more row or column, a copy of the last. `audio` starts with the first picture
    and is cut, or padded with silence, to the length of the pictures. Equal input gives equal bytes.
    Raises OutputError when the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        frame_rate: Fraction,
        audio: Audio | None = None,
        alpha: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if path.suffix.lower() not in (ALPHA_SUFFIXES if alpha else CLIP_SUFFIXES):
            wanted = "a transparent clip needs the suffix .webm" if alpha else "use .mp4, .mov or .webm"
            raise OutputError(f"{path} has the suffix '{path.suffix}'; {wanted}")
        self.frame_count = 0
        self._path = path
        self._shape = (height, width, 4 if alpha else 3)
        self._frame_rate = frame_rate
        self._audio = audio
        self._samples_sent = 0
        self._metadata = dict(metadata or {})
        self._reformatter = VideoReformatter()

    def __enter__(self) -> Self:
        container_format = self._path.suffix.lower()[1:]
        options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container_format != "webm" else {})
        try:
            self._container = av.open(
                f"file:{part_of(self._path).absolute()}", mode="w", format=container_format, options=options
            )
            self._container.metadata.update(self._metadata)
            self._video = self._add_video(is_vp9=container_format == "webm")
            self._sound = self._add_sound("libopus" if container_format == "webm" else "aac")
        except (OSError, av.FFmpegError) as error:
            self._discard()
            raise output_error(self._path, error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, image: NDArray[np.uint8]) -> None:
        """Append one picture, and the sound that belongs to it."""
        if image.shape != self._shape or image.dtype != np.uint8:
            raise InternalError(
                f"a frame of {image.dtype} {image.shape} came to a clip of uint8 {self._shape}"
            )
        try:
            self._container.mux(self._video.encode(self._to_yuv(image)))
            self.frame_count += 1
            self._send_sound()
        except (OSError, av.FFmpegError) as error:
            raise output_error(self._path, error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            self._container.mux(self._video.encode(None))
            if self._sound is not None:
                self._container.mux(self._sound.encode(None))
            self._container.close()
            part_of(self._path).replace(self._path)
        except (OSError, av.FFmpegError) as failure:
            self._discard()
            raise output_error(self._path, failure) from failure
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        container = getattr(self, "_container", None)
        try:
            if container is not None:
                container.close()
        except (OSError, av.FFmpegError, ValueError):
            pass  # the first error is the one to tell
        finally:
            part_of(self._path).unlink(missing_ok=True)

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


def write_image(path: Path, image: NDArray[np.uint8], metadata: Mapping[str, str]) -> None:
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
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically. Raises OutputError."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        part.unlink(missing_ok=True)
