"""Raw videos of talking people become training data. MAIN: `prepare_training_data`.

What the published preparation does for every clip (spec 4.2, 4.3), on our own readers: 25 frames a second, one cut for
the whole clip, speech features, face embedding, the box around all places of the face, latents of every window.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.files import file_digest, read_given_text, refuse_links_out, result_folder
from omokage.media.clip import Image
from omokage.media.decode import probe, read_frames
from omokage.pipelines.portrait_gate import MAX_FACES, SECOND_FACE_SHARE, shown_part, within
from omokage.pipelines.speech_track import SILENT_PEAK, read_speech
from omokage.talking.conditions.identity import IdentityEncoder
from omokage.talking.conditions.portrait import (
    MOTION_FRAMES,
    FaceRectangle,
    condition_clip,
    face_rectangle,
    mask_face,
    prepare_portrait,
)
from omokage.talking.conditions.speech import FRAME_RATE
from omokage.talking.convert import read_index
from omokage.talking.folder import SPEECH_FOLDER, TEXT_FOLDER, VAE
from omokage.talking.model import TalkingModel
from omokage.talking.placement import resident
from omokage.talking.training.shards import (
    WINDOWS_PER_SHARD,
    ClipRecord,
    PreparedSamples,
    Shard,
    ShardFolder,
)
from omokage.talking.vae import CausalVae
from omokage.tracking.landmarks import LandmarkBackend, MediaPipeLandmarks
from omokage.workers import Workers

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
CAPTIONS_FILE = "captions.txt"
DEFAULT_CAPTION = "a person talks to the camera"
# Faces are looked for in every so many frames, and may be lost (a blink of the detector) in a few of those.
LOOK_EVERY = 5
LOST_SHARE = 0.1
# Of the longer side, over what the video shows: finer detail is lost in it anyway.
OVERSAMPLING, MIN_SIDE_PX = 2, 640


@dataclass(frozen=True)
class DataConfig(Config):
    """What is drawn from a clip.

    stride: frames from the start of one window to that of the next, 0 for windows that share their motion frames.
    draws: reference and motion frames that are drawn for each window.  pool: frames of a clip that may be a reference.
    noise_mean, noise_deviation: of the logarithm of the noise of the motion frames, in units of [-1, 1] (spec 4.2).
    seed: of all draws.
    """

    stride: int = 0
    draws: int = 4
    pool: int = 16
    noise_mean: float = -3.0
    noise_deviation: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class TrainingData:
    """samples: windows of all clips.  records: what became of every clip, the unusable ones with their reason."""

    samples: PreparedSamples
    records: tuple[ClipRecord, ...]

    def sentence(self) -> str:
        """For people."""
        used = [record for record in self.records if not record.skipped]
        said = f"{len(self.samples)} windows of {len(used)} clips"
        skipped = len(self.records) - len(used)
        return f"{said}; {skipped} clips cannot be used" if skipped else said


@dataclass(frozen=True)
class _View:
    """What a first look at a clip found.

    max_side: of the frames as they are read.  frames: that pictures and sound both have, at 25 a second.
    part: of every frame that is cut out.  face: the box around all places of the face, within the part.
    landmarks: of the first face that was seen, and its `picture`.  pool: possible reference frames, cut out.
    voice: (S,) mono at 16 kHz.
    """

    max_side: int
    frames: int
    part: FaceRectangle
    face: FaceRectangle
    picture: Image
    landmarks: NDArray[np.float32]
    pool: tuple[Image, ...]
    voice: NDArray[np.float32]


def prepare_training_data(
    videos: Sequence[Path],
    captions: Mapping[str, str],
    folder: Path,
    model: TalkingModel,
    identity: IdentityEncoder,
    config: DataConfig | None = None,
    *,
    workers: Workers | None = None,
    backend: LandmarkBackend | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> TrainingData:
    """Look at every clip, encode its windows into shards in `folder`, and record what became of it.

    captions: by file name, else `DEFAULT_CAPTION`. Clips that are finished stay as they are; of several processes each
    takes its share of the others. A clip that cannot be used is recorded with the reason, and the rest goes on. Raises
    InputError when none can be used; OutputError.
    """
    config, workers = config or DataConfig(), workers or Workers.alone(model.machine.device)
    store, base = ShardFolder(folder), _base_key(model, identity, config)
    with result_folder(folder):
        digests = {file_digest(video): video for video in videos}  # a copy of a clip is the same clip
        keys = {d: _key(base, captions.get(v.name, DEFAULT_CAPTION)) for d, v in digests.items()}
        missing = [digest for digest in digests if store.record(digest, keys[digest]) is None]
        mine = missing[workers.rank :: workers.world]
        if mine:
            encoder = _Encoder(
                model, identity, config, backend or MediaPipeLandmarks(max_faces=MAX_FACES, is_stream=False)
            )
            for done, digest in enumerate(mine):
                video = digests[digest]
                on_progress(Progress("preparing clips", done, len(mine), video.name))
                caption = captions.get(video.name, DEFAULT_CAPTION)
                record = ClipRecord(video.name, keys[digest], caption, 0, ())
                encoder.encode(video, digest, record, store)
            on_progress(Progress("preparing clips", len(mine), len(mine)))
            del encoder
    workers.wait()
    found = (store.record(digest, keys[digest]) for digest in digests)
    records = tuple(sorted((r for r in found if r is not None), key=lambda record: record.name))
    audio = model.sizes.transformer.audio
    samples = PreparedSamples(
        folder, records, scale=model.sizes.vae.scale, context=audio.window if audio else 1
    )
    if not len(samples):
        reasons = "; ".join(f"{record.name}: {record.skipped}" for record in records[:3])
        raise InputError(
            f"none of {len(videos)} clips can be trained on ({reasons or 'there are none'}); give videos of one person "
            "who talks to the camera, with sound"
        )
    return TrainingData(samples, records)


def find_videos(data: Path) -> tuple[list[Path], dict[str, str]]:
    """The videos in a folder and below, or one file, in the order of their paths, and their captions.

    Captions are the lines of `captions.txt` in the folder: the file's name, a tab, the text. Raises InputError.
    """
    if not data.exists():
        raise InputError(f"there is no {data}; give a folder of videos, or one video")
    if data.is_file():
        return [data], {}
    videos = sorted(path for path in data.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise InputError(
            f"{data} holds no videos ({', '.join(VIDEO_SUFFIXES)}); put the clips to train on there"
        )
    path, captions = data / CAPTIONS_FILE, dict[str, str]()
    refuse_links_out(data, [*videos, path])
    if path.is_file():
        for number, line in enumerate(_text_of(path).splitlines(), 1):
            name, tab, caption = line.partition("\t")
            if line.strip() and not (tab and caption.strip()):
                raise InputError(
                    f"line {number} of {path} is no caption; write the clip's file name, a tab and the text"
                )
            if line.strip():
                captions[name.strip()] = caption.strip()
    return videos, captions


def _text_of(captions: Path) -> str:
    try:
        return read_given_text(captions)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{captions} cannot be read as text ({error}); write plain UTF-8") from error


class _Encoder:
    """The networks that prepare clips, loaded once for all of them."""

    def __init__(
        self, model: TalkingModel, identity: IdentityEncoder, config: DataConfig, backend: LandmarkBackend
    ) -> None:
        self._model, self._identity, self._config, self._backend = model, identity, config, backend
        self._machine, sizes = model.machine, model.sizes.transformer
        self._frames = sizes.frames
        self._stride = config.stride or self._frames - MOTION_FRAMES
        self._reach = (sizes.audio.window if sizes.audio else 1) // 2
        self._vae: CausalVae = model.vae(resident())
        self._text = model.text_encoder(self._machine.device)
        self._speech = model.speech_encoder(self._machine.device)

    def encode(self, video: Path, digest: str, record: ClipRecord, store: ShardFolder) -> ClipRecord:
        """Write the shards and the record of one clip, or the reason why there are none."""
        random = np.random.default_rng((self._config.seed, int(digest[:12], 16)))
        try:
            view = self._look(video, random)
            return store.save(digest, record, self._shards(video, view, record.caption, random))
        except InputError as error:  # of this clip alone: too short, no face, damaged
            reason = str(error).replace(str(video), video.name)
            return store.save(digest, ClipRecord(record.name, record.key, record.caption, 0, (), reason), ())

    def _look(self, video: Path, random: np.random.Generator) -> _View:
        """Read sound and faces. Raises InputError when the clip cannot be used."""
        track = read_speech(video)
        if np.abs(track.voice).max() < SILENT_PEAK:
            raise InputError("its sound is silent")
        frames = min(round(probe(video).duration_s * FRAME_RATE), track.frame_count)
        if frames < self._frames:
            raise InputError(
                f"it lasts {frames / FRAME_RATE:.2f} s and a window is {self._frames / FRAME_RATE:.2f} s"
            )
        max_side = max(OVERSAMPLING * max(self._model.height, self._model.width), MIN_SIDE_PX)
        kept = set(random.choice(frames, min(self._config.pool, frames), replace=False).tolist())
        pool, points, lost, looked = list[Image](), list[tuple[Image, NDArray[np.float32]]](), 0, 0
        boxes = list[FaceRectangle]()
        self._backend.reset()
        for frame in islice(read_frames(video, frame_rate=Fraction(FRAME_RATE), max_side=max_side), frames):
            if frame.index in kept:
                pool.append(frame.image)
            if frame.index % LOOK_EVERY == 0:
                looked += 1
                rows, columns = frame.image.shape[:2]
                face = self._face(frame.image, frame.time_s)
                if face is None:
                    lost += 1
                else:
                    boxes.append(face_rectangle(face, rows, columns, enlargement=1.0))
                    points = points or [(frame.image, face)]
        if lost > LOST_SHARE * looked:
            raise InputError(f"no face is seen in {100 * lost / looked:.0f} % of it")
        around = FaceRectangle(
            min(box.top for box in boxes), max(box.bottom for box in boxes),
            min(box.left for box in boxes), max(box.right for box in boxes),
        )  # fmt: skip
        part = shown_part(rows, columns, around, self._model.height, self._model.width)
        cut = tuple(_cut(image, part) for image in pool)
        (picture, landmarks), *_ = points
        return _View(max_side, frames, part, within(around, part), picture, landmarks, cut, track.voice)

    def _face(self, image: Image, time_s: float) -> NDArray[np.float32] | None:
        """Landmarks of the only face; None without one. Raises InputError when there are two."""
        faces = [face.points for face in self._backend.detect(image)]
        widths = sorted((float(np.ptp(points[:468, 0])) for points in faces), reverse=True)
        if len(widths) > 1 and widths[1] > SECOND_FACE_SHARE * widths[0]:
            raise InputError(f"it shows {len(widths)} faces at {time_s:.1f} s")
        return max(faces, key=lambda points: float(np.ptp(points[:468, 0])), default=None)

    def _shards(self, video: Path, view: _View, caption: str, random: np.random.Generator) -> Iterator[Shard]:
        text = self._text.encode(caption)[0].cpu()
        face = self._identity.embed(view.picture, view.landmarks)[0]
        hidden = self._speech.features(view.voice, self._frames, exact=True, dtype=self._machine.dtype).hidden
        references = [self._reference(image, view.face) for image in view.pool]
        windows = self._windows(video, view)
        while group := list(islice(windows, WINDOWS_PER_SHARD)):
            parts = [self._window(clip, references, random) for _, clip in group]
            rows = [np.arange(start - self._reach, start + self._frames + self._reach) for start, _ in group]
            heard = [hidden[torch.from_numpy(np.clip(row, 0, len(hidden) - 1))] for row in rows]
            latents, reference, condition = (torch.stack(column) for column in zip(*parts, strict=True))
            yield Shard(latents, reference, condition, torch.stack(heard), text, face)

    def _windows(self, video: Path, view: _View) -> Iterator[tuple[int, Tensor]]:
        """First frame and pictures (1, F, 3, H, W) in [-1, 1] of every window; one in memory at a time."""
        recent: deque[Tensor] = deque(maxlen=self._frames)
        rate = Fraction(FRAME_RATE)
        for frame in islice(read_frames(video, frame_rate=rate, max_side=view.max_side), view.frames):
            recent.append(self._prepared(_pixels(_cut(frame.image, view.part))))
            start = frame.index + 1 - self._frames
            if start >= 0 and start % self._stride == 0:
                yield start, torch.stack(tuple(recent))[None]

    def _window(
        self, clip: Tensor, references: Sequence[tuple[Tensor, Tensor]], random: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments of a window, of its masked references and of its condition clips, see `Shard`."""
        masked, conditions = [], []
        for _ in range(self._config.draws):
            whole, face = references[int(random.integers(len(references)))]
            sigma = np.exp(random.normal(self._config.noise_mean, self._config.noise_deviation))
            motion = clip[:, :MOTION_FRAMES]
            noise = torch.from_numpy(random.standard_normal(tuple(motion.shape), dtype=np.float32))
            keep = torch.from_numpy(random.random(tuple(motion.shape[-2:]), dtype=np.float32))
            masked.append(self._moments(face[:, None]))
            conditions.append(self._moments(condition_clip(whole, motion + sigma * noise, keep)))
        return self._moments(clip), torch.stack(masked), torch.stack(conditions)

    def _reference(self, image: Image, face: FaceRectangle) -> tuple[Tensor, Tensor]:
        """A reference frame whole and masked, both (1, 3, H, W)."""
        pixels = _pixels(image)
        return self._prepared(pixels)[None], self._prepared(mask_face(pixels, face))[None]

    def _prepared(self, pixels: Tensor) -> Tensor:
        return prepare_portrait(pixels, self._model.height, self._model.width)

    def _moments(self, video: Tensor) -> Tensor:
        """Mean and log-variance (2, t, C, h, w) of one video (1, T, 3, H, W), on the CPU."""
        with torch.no_grad():
            posterior = self._vae.posterior(video.to(self._machine.device, self._machine.dtype))
        return torch.cat([posterior.mean, posterior.logvar]).cpu()


def _pixels(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def _cut(image: Image, part: FaceRectangle) -> Image:
    return np.ascontiguousarray(image[part.top : part.bottom, part.left : part.right])


def _base_key(model: TalkingModel, identity: IdentityEncoder, config: DataConfig) -> str:
    """Of everything but the clip that its shards depend on."""
    sizes = model.sizes.transformer
    encoders = [
        [str(path.relative_to(model.folder)), file_digest(path)]
        for name in (TEXT_FOLDER, SPEECH_FOLDER)
        for path in sorted((model.folder / name).glob("*.safetensors"))
    ]
    vae = sorted(read_index(model.folder, VAE).digests.items())
    probing = identity.embed(
        np.zeros((112, 112, 3), np.uint8), np.arange(478 * 3, dtype=np.float32).reshape(478, 3)
    )
    grid = [sizes.frames, sizes.text_tokens, model.height, model.width, str(model.machine.dtype)]
    key = [config.to_json(), encoders, vae, grid, probing.tolist()]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _key(base: str, caption: str) -> str:
    return hashlib.sha256(f"{base} {caption}".encode()).hexdigest()
