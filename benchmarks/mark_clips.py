"""Clips to mark, and what may happen to them: shared by the studies of the mark and of the fingerprint."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from omokage.media.decode import probe, read_frames
from omokage.tracking.synthetic import SyntheticSubject

Picture = NDArray[np.uint8]
Clip = list[Picture]
RATE = 25
PICTURES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina")


# Codecs


def packed(pictures: Sequence[Picture], crf: int, codec: str = "libx264") -> bytes:
    """As a file in memory, without sound."""
    buffer = io.BytesIO()
    height, width = (side - side % 2 for side in pictures[0].shape[:2])
    options = {"crf": str(crf)} | (
        {"preset": "veryfast"} if codec == "libx264" else {"b": "0", "cpu-used": "5", "deadline": "good"}
    )
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            whole = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def unpacked(data: bytes) -> Clip:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def encoded(pictures: Sequence[Picture], crf: int, codec: str = "libx264") -> tuple[Clip, int]:
    """Through a codec and back, and the bytes it took."""
    data = packed(pictures, crf, codec)
    return unpacked(data), len(data)


def jpeg(picture: Picture, quality: int) -> Picture:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


# Changes


def resized(clip: Clip, factor: float) -> Clip:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return [
        np.asarray(cv2.resize(p, None, fx=factor, fy=factor, interpolation=method), np.uint8) for p in clip
    ]


def cropped(clip: Clip, share: float = 0.1) -> Clip:
    rows, columns = (round(share / 2 * side) for side in clip[0].shape[:2])
    return [np.ascontiguousarray(p[rows:-rows, columns:-columns]) for p in clip]


def each(change: Callable[[Picture], Any]) -> Callable[[Clip], Clip]:
    return lambda clip: [np.ascontiguousarray(change(p), dtype=np.uint8) for p in clip]


def noisy(clip: Clip) -> Clip:
    random = np.random.default_rng(0)
    return [np.clip(p + random.normal(0, 10, p.shape), 0, 255).astype(np.uint8) for p in clip]


def turned(clip: Clip, degrees: float) -> Clip:
    height, width = clip[0].shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return each(lambda p: cv2.warpAffine(p, turn, (width, height), borderMode=cv2.BORDER_REFLECT))(clip)


# Where they come from


def sources(paths: Sequence[Path], seconds: float) -> dict[str, Clip]:
    """Name -> frames: the clips, drawn people of 512 x 512."""
    count = round(RATE * seconds)
    found: dict[str, Clip] = {
        path.name: [frame.image for frame in islice(read_frames(path), count)] for path in paths
    }
    return found | {f"drawn person {seed}": drawn(seed, seconds) for seed in (0, 1)}


def drawn(seed: int, seconds: float) -> Clip:
    person = SyntheticSubject(seed)
    track = person.performance(seconds, frame_rate=float(RATE), size=512)
    return [frame.image for frame in person.render_clip(track)]


def stills(short_side: int = 512) -> dict[str, Picture]:
    """Public pictures of scikit-image, at most so many px on the short side."""
    found = {}
    for name in PICTURES:
        try:
            picture = np.asarray(getattr(skimage.data, name)(), np.uint8)[..., :3]
        except (OSError, ModuleNotFoundError, ImportError):
            continue  # not in the package, and nothing is fetched
        factor = short_side / min(picture.shape[:2])
        if factor < 1:
            picture = np.asarray(
                cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            )
        found[name] = np.ascontiguousarray(picture)
    return found


def panned(picture: Picture, seconds: float, size: int = 448) -> Clip:
    """A camera that goes slowly over a picture and nearer: 0.6 px a frame, 8 % in 2 s."""
    height, width = picture.shape[:2]
    frames = []
    for step in range(round(RATE * seconds)):
        scale = min(height, width) / (size * (1.12 + 0.0016 * step))
        left, top = (width - size * scale) * 0.3 + 0.6 * step, (height - size * scale) * 0.4
        to_picture = np.array([[scale, 0, left], [0, scale, top]])
        frame = cv2.warpAffine(
            picture, to_picture, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        frames.append(np.asarray(frame, np.uint8))
    return frames


@dataclass(frozen=True)
class Scene:
    """Where a stretch of pictures comes from; they are made when they are asked for."""

    name: str
    frames: Callable[[], Clip]


def scenes(paths: Sequence[Path], seconds: float, drawn_people: int = 6) -> list[Scene]:
    """Every stretch of so many seconds of the clips at 25 a second, drawn people, and moving pictures."""
    found = [
        Scene(f"{path.name} {start:g} s", lambda p=path, s=start: stretch(p, s, seconds))  # type: ignore[misc]
        for path in paths
        for start in _starts(path, seconds)
    ]
    found += [
        Scene(f"drawn person {seed}", lambda s=seed: drawn(s, seconds))  # type: ignore[misc]
        for seed in range(2, 2 + drawn_people)
    ]
    return found + [
        Scene(f"{name}, panned", lambda p=picture: panned(p, seconds))  # type: ignore[misc]
        for name, picture in stills(640).items()
    ]


def _starts(path: Path, seconds: float) -> Iterator[float]:
    info = probe(path)
    whole = int((info.duration_s + 0.05) // seconds)
    # A picture of 1280 x 720 takes as long as three others, so of such a clip one stretch has to do.
    yield from (seconds * i for i in range(1 if info.width * info.height > 600_000 else whole))


def stretch(path: Path, start_s: float, seconds: float) -> Clip:
    read = read_frames(path, frame_rate=Fraction(RATE), start_s=start_s)
    return [frame.image for frame in islice(read, round(RATE * seconds))]
