"""Prepared training data on disk: everything that a window needs, encoded once, and samples drawn from it.

A folder holds for every clip `clip-<digest>.json`, written last, and its shards `clip-<digest>-<number>.safetensors`:

    latents        (W, 2, T, C, h, w)       mean and log-variance of each window's posterior, before scaling
    reference      (W, V, 2, 1, C, h, w)    the same of the masked reference frame, and
    condition      (W, V, 2, 1, C, h, w)    of the clip of reference frame and motion frames, in V draws
    audio          (W, F + X - 1, L, D)     speech features of the window's frames and of their neighbours
    text, face     (N, D), (E,)             of the whole clip

Posteriors are sampled anew whenever a window is used, as in the published training; of the draws before the
autoencoder (reference frame, noise and hidden pixels of the motion frames) there are V of each window.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError
from omokage.files import file_digest, parse_json, saving
from omokage.talking.training.batch import TrainingBatch
from omokage.talking.vae import Posterior

VERSION = 1
WINDOWS_PER_SHARD = 16


@dataclass(frozen=True)
class Shard:
    """Some windows of one clip, shapes as above; kept in the precision in which they were made."""

    latents: Tensor
    reference: Tensor
    condition: Tensor
    audio: Tensor
    text: Tensor
    face: Tensor


@dataclass(frozen=True)
class ClipRecord(Config):
    """What became of one clip.

    name: of the file, for people.  key: of the settings and networks that it was prepared with.  caption: its text.
    windows: in all shards together.  shards: files and their SHA-256.  skipped: why it cannot be used, or empty.
    """

    name: str
    key: str
    caption: str
    windows: int
    shards: tuple[tuple[str, str], ...]
    skipped: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        shards = tuple((str(file), str(digest)) for file, digest in values["shards"])
        return cls(**{**values, "shards": shards})


@dataclass(frozen=True)
class ShardFolder:
    """A folder of prepared clips."""

    folder: Path

    def record(self, digest: str, key: str) -> ClipRecord | None:
        """What became of the clip with this digest; None when it was never prepared whole in this way (`key`)."""
        record = _read(self._path(digest))
        if record is None or record.key != key:
            return None
        return record if all((self.folder / file).is_file() for file, _ in record.shards) else None

    def save(self, digest: str, record: ClipRecord, shards: Iterable[Shard]) -> ClipRecord:
        """Write the shards of a clip, one in memory at a time, and at last its record, which then counts them.

        Raises OutputError.
        """
        written, windows = list[tuple[str, str]](), 0
        for old in (self._path(digest), *self.folder.glob(f"clip-{digest[:16]}-*.safetensors")):
            old.unlink(missing_ok=True)
        for number, shard in enumerate(shards, 1):
            path = self.folder / f"clip-{digest[:16]}-{number:04d}.safetensors"
            tensors = {field.name: getattr(shard, field.name).contiguous() for field in fields(shard)}
            with saving(path, SafetensorError) as part:
                save_file(tensors, part)
            written.append((path.name, file_digest(path)))
            windows += len(shard.latents)
        record = ClipRecord(record.name, record.key, record.caption, windows, tuple(written), record.skipped)
        with saving(self._path(digest)) as part:
            part.write_text(json.dumps({"version": VERSION, **record.to_json()}), encoding="utf-8")
        return record

    def records(self) -> list[ClipRecord]:
        """All clips, in the order of their names."""
        found = [record for path in self.folder.glob("clip-*.json") if (record := _read(path)) is not None]
        return sorted(found, key=lambda record: (record.name, record.shards))

    def _path(self, digest: str) -> Path:
        return self.folder / f"clip-{digest[:16]}.json"


class PreparedSamples:
    """The windows of prepared clips as `Samples`; they stay on disk until they are used.

    scale: of the autoencoder's latents.  context: frames of speech that one frame hears.
    """

    def __init__(self, folder: Path, records: Iterable[ClipRecord], *, scale: float, context: int) -> None:
        self._folder, self._scale, self._context = folder, scale, context
        self._windows: list[tuple[str, int]] = []
        self._digests: dict[str, str] = {}
        for record in records:
            self._digests |= dict(record.shards)
            for number, (file, _) in enumerate(record.shards):
                count = min(record.windows - number * WINDOWS_PER_SHARD, WINDOWS_PER_SHARD)
                self._windows += [(file, row) for row in range(count)]

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def key(self) -> str:
        """Equal when all shards are."""
        return hashlib.sha256(json.dumps(sorted(self._digests.items())).encode()).hexdigest()

    def verify(self, on_progress: ProgressCallback = ignore_progress) -> None:
        """Compare every shard with its checksum. Raises InputError naming the first that differs."""
        total = len(self._digests)
        for done, (file, digest) in enumerate(self._digests.items()):
            on_progress(Progress("checking data", done, total))
            path = self._folder / file
            if not path.is_file() or file_digest(path) != digest:
                raise InputError(
                    f"{path} is missing or its checksum is wrong; delete it and its clip's .json file, and prepare the "
                    "data again"
                )
        on_progress(Progress("checking data", total, total))

    def sample(self, index: int, random: np.random.Generator) -> TrainingBatch:
        """See `Samples`. Raises InputError when a shard is damaged."""
        file, row = self._windows[index]
        try:
            with safe_open(self._folder / file, framework="pt") as shard:

                def read(name: str, *place: int) -> Tensor:
                    value: Tensor = shard.get_slice(name)[place[0] : place[0] + 1]
                    return value[0].float() if len(place) == 1 else value[0, place[1]].float()

                draws = shard.get_slice("condition").get_shape()[1]
                draw = int(random.integers(draws))
                moments = read("latents", row), read("reference", row, draw), read("condition", row, draw)
                audio = read("audio", row)
                text, face = (shard.get_tensor(name).float() for name in ("text", "face"))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{self._folder / file} is missing or damaged; delete its clip's .json file and prepare the data again"
            ) from error
        latents, reference, condition = (self._sampled(posterior, random) for posterior in moments)
        heard = audio.unfold(0, self._context, 1).movedim(-1, 1)  # (F, X, L, D)
        return TrainingBatch(latents, reference, condition, text[None], face[None], heard[None])

    def _sampled(self, moments: Tensor, random: np.random.Generator) -> Tensor:
        """Mean and log-variance (2, t, C, h, w) -> scaled latents (1, t, C, h, w)."""
        noise = torch.from_numpy(random.standard_normal(tuple(moments.shape[1:]), dtype=np.float32))
        return self._scale * Posterior(moments[0], moments[1]).sample(noise)[None]


def _read(path: Path) -> ClipRecord | None:
    """None when it is missing, damaged or of another version: the clip is then prepared again."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values.pop("version") != VERSION:
            return None
        return ClipRecord.from_json(values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
