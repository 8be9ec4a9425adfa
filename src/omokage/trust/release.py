"""The one door out: every clip, picture, report, avatar and exported network leaves through here.

A release draws the visible label, adds the invisible mark, to the sound too, encodes, says in the file's metadata
whether it is generated, signs its origin, writes a row of the audit log, enters what was generated and its fingerprint
into the register of renders, and only then lets the file take its name.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import ConsentError, InputError, InternalError, OutputError
from omokage.files import file_digest, output_error, saving
from omokage.media.clip import Audio, SoundFormat, SoundingFrame
from omokage.media.encode import (
    ALPHA_SUFFIXES,
    CLIP_SUFFIXES,
    IMAGE_SUFFIXES,
    clip_writer,
    sound_by_frame,
    stream_writer,
    write_bytes,
    write_image,
)
from omokage.trust import label as labels
from omokage.trust.aigc import FIELD as AIGC
from omokage.trust.aigc import aigc_of
from omokage.trust.audit import check_audit, record_live, record_refusal, record_release
from omokage.trust.audit_row import Value
from omokage.trust.consent import Use
from omokage.trust.consents import permit
from omokage.trust.disclosure import (
    DIGITAL_SOURCE_TYPE,
    DISCLOSURE,
    ReleaseConfig,
    Released,
    metadata_of,
    xmp_of,
)
from omokage.trust.fingerprint import Sketch, thumbnail
from omokage.trust.guard import Guard
from omokage.trust.identity import check_identity, identity
from omokage.trust.label import draw_label
from omokage.trust.mark_key import check_key
from omokage.trust.marking import chosen_profile, id_text, mark_for
from omokage.trust.origin import OriginClaim, sign_origin
from omokage.trust.registry import Render, now, register
from omokage.trust.sound_mark import SoundMarker
from omokage.trust.stamp_authority import check_stamps, stamp_authority
from omokage.trust.video_mark import Marker, can_be_marked
from omokage.vault.avatar_keys import check_keys

__all__ = [
    "ALPHA_SUFFIXES",
    "CLIP_SUFFIXES",
    "DIGITAL_SOURCE_TYPE",
    "DISCLOSURE",
    "IMAGE_SUFFIXES",
    "ReleaseConfig",
    "Released",
    "check_label",
    "check_writable",
    "release_clip",
    "release_image",
    "release_live",
    "release_model",
    "release_text",
]

ModelKind = Literal["avatar", "onnx", "tensorrt"]


def release_clip(
    frames: Iterable[NDArray[np.uint8]],
    path: Path,
    *,
    frame_rate: Fraction,
    audio: Audio | None = None,
    config: ReleaseConfig | None = None,
    frame_count: int | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Released:
    """Label, mark, encode, sign and write a clip.

    `frames`: uint8 (H, W, 3) RGB, or (H, W, 4) with straight alpha for a `.webm`, all of one size; they are consumed
    one by one. `audio` starts with the first frame and is cut or padded to the clip's length. `frame_count`, when
    known, gives progress a total. Raises OutputError, ConsentError when the consent is withdrawn or ends meanwhile, and
    passes on what `frames` raises; then no file is left.
    """
    config = config or ReleaseConfig()
    if config.origin != "generated":
        raise InternalError(f"{path} was to leave as a recording; clips leave as generated ones only")
    source = iter(_guard(config, path).frames(frames))
    first = next(source, None)
    if first is None:
        raise InternalError(f"no frames came for {path}")
    height, width, channels = first.shape
    check_writable(path, ALPHA_SUFFIXES if channels == 4 else CLIP_SUFFIXES)
    has_sound = audio is not None and audio.samples.size > 0
    facts = {"frame rate": str(frame_rate), "sound": str(audio.sample_rate if audio else 0)}
    seal = _Seal.of(_labeled(first, config), path, config, facts, audio, frame_rate=frame_rate)
    with clip_writer(
        path,
        width=width,
        height=height,
        frame_rate=frame_rate,
        sound=SoundFormat(audio.sample_rate, audio.samples.shape[1]) if audio and has_sound else None,
        alpha=channels == 4,
        metadata=seal.metadata(),
        on_written=seal.put,
    ) as writer:
        sound = sound_by_frame(audio, frame_rate) if audio and has_sound else itertools.repeat(None)
        for image, samples in zip(itertools.chain([first], source), sound, strict=False):
            writer.write(seal.marked(_labeled(image, config)), seal.marked_sound(samples))
            on_progress(Progress("writing", writer.frame_count, frame_count or 0))
        writer.write_sound(seal.rest_of_sound())
    return seal.released(writer.frame_count, float(writer.frame_count / frame_rate))


def release_live(
    frames: Iterable[SoundingFrame],
    target: Path | Callable[[bytes], int],
    *,
    frame_rate: Fraction,
    sound: SoundFormat | None,
    config: ReleaseConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> Released:
    """Label, mark, encode and write frames with their sound, if any, as they come, without knowing how many there will
    be.

    `target`: a clip, as `release_clip` writes it, which appears when `frames` end; or what takes the bytes of a stream
    (Matroska: H.264 and samples) that is played meanwhile, and then knows no alpha. Raises as `release_clip` does, and
    what the taker of the stream raises.
    """
    config, path = config or ReleaseConfig(), target if isinstance(target, Path) else Path("-")
    source = iter(_guard(config, path).frames(frames))
    first = next(source, None)
    if first is None:
        raise InternalError("no frames came to be written live")
    height, width, channels = first.image.shape
    # Two streams that begin alike are two renders.
    seal = _Seal.of(
        _labeled(first.image, config), path, config, {"live": now()}, sound, frame_rate=frame_rate
    )
    shape = {"width": width, "height": height}
    digest = hashlib.sha256()

    def take(data: bytes) -> int:
        digest.update(data)
        assert not isinstance(target, Path)
        return target(data)

    if isinstance(target, Path):
        check_writable(path, ALPHA_SUFFIXES if channels == 4 else CLIP_SUFFIXES)
        writing = clip_writer(
            path,
            **shape,
            frame_rate=frame_rate,
            sound=sound,
            alpha=channels == 4,
            metadata=seal.metadata(),
            on_written=seal.put,
        )
    else:
        seal.begin_stream()
        writing = stream_writer(take, **shape, frame_rate=frame_rate, sound=sound, metadata=seal.metadata())
    withdrawn: ConsentError | None = None
    try:
        with writing as writer:
            try:
                for frame in itertools.chain([first], source):
                    writer.write(seal.marked(_labeled(frame.image, config)), seal.marked_sound(frame.samples))
                    on_progress(Progress("live", float(writer.frame_count / frame_rate), 0))
            except ConsentError as error:
                if isinstance(target, Path):
                    raise
                withdrawn = error  # what was streamed was permitted: a player gets a whole end
            writer.write_sound(seal.rest_of_sound())
    finally:
        if not isinstance(target, Path):
            seal.end_stream(digest.hexdigest())
    if withdrawn is not None:
        raise withdrawn
    return seal.released(writer.frame_count, float(writer.frame_count / frame_rate))


def release_image(image: NDArray[np.uint8], path: Path, *, config: ReleaseConfig | None = None) -> Released:
    """Label, mark, sign and write a picture, uint8 (H, W, 3), or (H, W, 4) for a `.png`. Raises OutputError."""
    config = config or ReleaseConfig()
    check_writable(path, (".png",) if image.shape[2] == 4 else IMAGE_SUFFIXES)
    labeled = _labeled(image, config)
    seal = _Seal.of(labeled, path, config, {})
    write_image(
        path, seal.marked(labeled), metadata_of(config) | {"xmp": xmp_of(config, seal.aigc)}, seal.put
    )
    return seal.released(1, 0.0)


def release_text(text: str, path: Path) -> Released:
    """Write a report (HTML, JSON, CSV, plain text) in UTF-8. Raises OutputError."""
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    write_bytes(
        path,
        data,
        lambda _: record_release(path, kind="report", sha256=digest, facts={"bytes": len(data)}, personal={}),
    )
    return Released(path=path, frame_count=0, duration_s=0.0, sha256=digest, label=None)


def release_model(
    write: Callable[[Path], object],
    path: Path,
    *,
    kind: ModelKind,
    avatar: str = "",
    consent: str = "",
    facts: Mapping[str, Any] | None = None,
    personal: Mapping[str, Value] | None = None,
) -> Released:
    """Let an avatar or an exported network leave: `write` makes the file, under a name of its own.

    avatar, consent: as in `ReleaseConfig`.  facts, personal: more for its row in the audit log. A model has no picture
    for a label or a mark. Raises OutputError, and what `write` raises; then `path` is what it was.
    """
    with saving(path) as part:
        try:
            write(part)
        except OutputError as error:
            raise OutputError(str(error).replace(str(part), str(path))) from error
        digest = file_digest(part)
        known = {"bytes": part.stat().st_size, "avatar": avatar, "consent": consent} | dict(facts or {})
        record_release(path, kind=kind, sha256=digest, facts=known, personal=personal or {})
    return Released(path=path, frame_count=0, duration_s=0.0, sha256=digest, label=None)


def check_label(label: str | None, width: int, height: int) -> None:
    """`label.check_label`, and a row in the audit log for a label that cannot be drawn. Raises InputError."""
    with _told("label"):
        labels.check_label(label, width, height)


def check_writable(path: Path, suffixes: Sequence[str], *, inputs: Iterable[Path] = ()) -> None:
    """Tell before long work, not after it, that `path` cannot be written.

    Refuses a suffix outside `suffixes`, a missing folder, a folder without permission, a path that is a folder, and
    one that is among the `inputs` (which would overwrite what the user gave). Where pictures will be marked, it also
    makes sure of the keys; and of the audit log. Raises OutputError, or InputError about a key.
    """
    if path.suffix.lower() not in suffixes:
        given = f"the suffix '{path.suffix}'" if path.suffix else "no suffix"
        raise OutputError(f"{path} has {given}; use {' or '.join(suffixes)}")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name inside it")
    if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
        raise OutputError(
            f"{path} is also an input, which is never overwritten; choose another name for the output"
        )
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:
        raise output_error(path, error) from error
    if path.suffix.lower() in CLIP_SUFFIXES + IMAGE_SUFFIXES:
        check_key()
        chosen_profile()
        with _told("identity"):
            check_identity()
            check_stamps()
    if path.suffix.lower() == ".avatar":
        check_keys()
    check_audit()


def _guard(config: ReleaseConfig, path: Path) -> Guard:
    """Of the consent that is told, which is asked for once more now. Raises ConsentError."""
    if not config.consent:
        return Guard()
    use = Use(config.avatar, config.purpose or None)
    return Guard(permit(use, name=f"the recording that {path.name} is made of"))


class _Seal:
    """What makes one release ours: its invisible mark, its signed origin, its row in the register."""

    def __init__(
        self,
        path: Path,
        config: ReleaseConfig,
        render_id: str | None = None,
        marker: Marker | None = None,
        voice: SoundMarker | None = None,
        frame_rate: Fraction = Fraction(1),
    ) -> None:
        self._path, self._config, self._render_id = path, config, render_id
        self._marker, self._voice = marker, voice
        self._sha256 = ""
        self._sketch, self._frame_count, self._frame_rate = Sketch(), 0, frame_rate

    @classmethod
    def of(
        cls,
        first: NDArray[np.uint8],
        path: Path,
        config: ReleaseConfig,
        facts: Mapping[str, str],
        sound: Audio | SoundFormat | None = None,
        frame_rate: Fraction = Fraction(1),
    ) -> Self:
        """For a release that begins with the labeled picture `first`, and has this sound or one of this format."""
        samples = sound.samples if isinstance(sound, Audio) else None
        is_visible = can_be_marked(first.shape[1], first.shape[0])
        is_audible = sound is not None if samples is None else bool(samples.any())
        if config.origin != "generated" or not (is_visible or is_audible):
            return cls(path, config)
        said = {name: str(value) for name, value in config.to_json().items()}
        mark = mark_for(first, {**said, **facts}, samples)
        marker = Marker(mark, first) if is_visible else None
        voice = SoundMarker(mark, sound.sample_rate) if sound is not None and is_audible else None
        return cls(path, config, id_text(mark.render_id), marker, voice, frame_rate)

    def marked(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._marker is None:
            return image
        self._sketch.add(thumbnail(image), float(self._frame_count / self._frame_rate))
        self._frame_count += 1
        return self._marker.apply(image)

    def marked_sound(self, samples: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """The sound that has its mark when this came too; the last 20 ms are held back."""
        return samples if samples is None or self._voice is None else self._voice.step(samples)

    def rest_of_sound(self) -> NDArray[np.float32]:
        """What was held back."""
        return self._voice.rest() if self._voice else np.zeros((0, 1), np.float32)

    @property
    def aigc(self) -> str:
        """The notice that the label profile `cn` asks for in what is generated."""
        return aigc_of(self._config.label, self._render_id) if self._config.origin == "generated" else ""

    def metadata(self) -> dict[str, str]:
        """Of a clip or a stream."""
        return metadata_of(self._config) | ({AIGC: aigc} if (aigc := self.aigc) else {})

    def put(self, written: Path) -> None:
        """Sign the finished file, which has no name yet, and enter it into the register.

        Raises OutputError, and InputError about a certificate.
        """
        config = self._config
        claim = OriginClaim(
            title=config.title or self._path.name,
            source_type=DIGITAL_SOURCE_TYPE[config.origin],
            purpose=config.purpose,
            consent=config.consent,
            sources=(config.avatar,) if config.avatar else (),
            render_id=self._render_id or "",
        )
        with _told("identity"):
            signer = identity()  # first, because it makes the root that the stamp authority needs
            sign_origin(written, claim, signer, suffix=self._path.suffix, stamps=stamp_authority())
        digest = file_digest(written)
        kind = "picture" if self._path.suffix.lower() in IMAGE_SUFFIXES else "clip"
        facts = {"bytes": written.stat().st_size, **self._facts()}
        record_release(self._path, kind=kind, sha256=digest, facts=facts, personal=self._personal())
        self.enter(digest)

    def begin_stream(self) -> None:
        """The row in the audit log before the first byte of a stream leaves. Raises AuditError."""
        record_live({"state": "begun", **self._facts()}, self._personal())

    def end_stream(self, sha256: str) -> None:
        """What was streamed has left, however it ended. Raises OutputError."""
        record_live({"state": "ended", "sha256": sha256, **self._facts()})
        self.enter(sha256)

    def _facts(self) -> dict[str, str | bool | None]:
        """What the audit log keeps for good: nothing that names anybody."""
        config = self._config
        return {
            "origin": config.origin,
            "is_labeled": config.label is not None,
            "render_id": self._render_id,
            "avatar": config.avatar,
            "consent": config.consent,
        }

    def _personal(self) -> dict[str, Value]:
        config = self._config
        return {"label": config.label, "title": config.title, "purpose": config.purpose}

    def enter(self, sha256: str) -> None:
        """Enter what left into the register if it is marked. Raises OutputError."""
        self._sha256 = sha256
        if self._render_id is not None:
            purpose, avatar = self._config.purpose, self._config.avatar
            kept = self._sketch.fingerprint()
            fingerprint = kept.text() if kept else ""
            register(
                Render(self._render_id, now(), self._sha256, self._path.name, purpose, avatar, fingerprint)
            )

    def released(self, frame_count: int, duration_s: float) -> Released:
        return Released(
            path=self._path,
            frame_count=frame_count,
            duration_s=duration_s,
            sha256=self._sha256,
            label=self._config.label,
            render_id=self._render_id,
        )


@contextmanager
def _told(reason: str) -> Iterator[None]:
    """A row in the audit log for what is refused within."""
    try:
        yield
    except (InputError, OutputError) as error:
        record_refusal(reason, str(error), {})
        raise


def _labeled(image: NDArray[np.uint8], config: ReleaseConfig) -> NDArray[np.uint8]:
    if config.label is None:
        return image
    with _told("label"):
        return draw_label(image, config.label, corner=config.label_corner)
