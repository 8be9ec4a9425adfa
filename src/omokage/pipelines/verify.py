"""`omokage verify`: what pictures, videos and sounds say of where they come from. MAIN: `verify`.

No file is changed and no socket is opened. What is not found is told as 'no mark found', never as 'real'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.errors import InputError, MediaError
from omokage.media.clip import Image
from omokage.media.decode import probe, read_frames, read_image
from omokage.media.metadata import read_comment
from omokage.media.source import PICTURE, SOUND_DEMUXERS, VIDEO_DEMUXERS, sniff
from omokage.pipelines.verify_sound import listen
from omokage.threads import one_blas_thread
from omokage.trust.consents import all_records, revoked
from omokage.trust.fingerprint_search import Copy
from omokage.trust.mark_key import installation_key, key_path, read_key
from omokage.trust.mark_pattern import PRIVATE_BITS, PRODUCT, PUBLIC_BITS, PUBLIC_KEY, chips_of
from omokage.trust.mark_search import (
    LEAST_PRIVATE_SCORE,
    LEAST_PUBLIC_SCORE,
    LEAST_SEARCHED_PX,
    Evidence,
    Found,
    Key,
    find,
)
from omokage.trust.marking import id_text, pattern_key
from omokage.trust.origin import NO_ORIGIN, Origin, read_origin
from omokage.trust.recognition import NOTHING_ALIKE, Recognition, recognised
from omokage.trust.registry import Render, renders_of
from omokage.trust.sound_search import SoundFound
from omokage.trust.video_mark import PUBLIC_SHARE

SECONDS: Final = 30.0  # of a video
FRAMES: Final = 60  # spread over them
NOT_CHECKED: Final = ()
NOTHING: Final = "no mark found; that does not tell how the {} came about"
UNLIKE: Final = (
    "BUT the picture does not look like that render: the mark was copied onto it, or most was cut away"
)

_ORIGIN: Final = {
    "trusted": "whole, signed by {}",
    "unknown signer": "whole, signed by {}, whose root is not trusted here",
    "expired": "whole, signed by {}, whose certificate has ended; no time stamp says that it was signed before",
    "altered": "not whole: something was changed after it was signed",
}

Verdict = Literal["made with omokage", "mark present, id unreadable", "no mark found", "cannot be read"]
_VERDICTS: Final = ("no mark found", "mark present, id unreadable", "made with omokage")  # the strongest last


@dataclass(frozen=True, slots=True)
class PublicMark:
    """What everybody can find: the product's code (111 is omokage's) and the mark's version; None where unreadable."""

    product: int | None
    version: int | None
    score: float


@dataclass(frozen=True, slots=True)
class PrivateMark:
    """What this installation can find: the id of its render, and the rows of its register."""

    render_id: str | None
    renders: tuple[Render, ...]
    score: float


@dataclass(frozen=True, slots=True)
class SoundMarks:
    """The same of a file's sound, which may be of another render than its pictures.

    synchronisation: as in `Verification`.  seconds: that were listened to.  problem: why no further.
    """

    public: PublicMark
    private: PrivateMark | None
    synchronisation: float
    seconds: float
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found in one file.

    synchronisation: z of the marks' common pattern; from 8 on a mark is there.  disclosure: the comment in the file's
    metadata, which anybody can write or remove.  origin: the signed one.  consent: a sentence on the record that a
    trusted origin names, as it stands now.  frame_count: how many were looked at.  problem: why it was not read.
    private: None where no key is at hand.  sound: None where there is none.  fingerprint: what the register of this
    machine knows that looks alike.
    """

    path: Path
    verdict: Verdict
    public: PublicMark | None = None
    private: PrivateMark | None = None
    synchronisation: float = 0.0
    sound: SoundMarks | None = None
    disclosure: str = ""
    origin: Origin = NO_ORIGIN
    consent: str = ""
    fingerprint: Recognition = NOTHING_ALIKE
    frame_count: int = 0
    width: int = 0
    height: int = 0
    problem: str = ""

    @property
    def looks_like_its_render(self) -> bool | None:
        """Whether the pictures look like the render that the private mark names; None where that cannot be told."""
        if self.private is None or not any(render.fingerprint for render in self.private.renders):
            return None
        return self.fingerprint.looks_like(self.private.render_id or "")

    def to_json(self) -> dict[str, Any]:
        """For scripts; `not_checked` names what this version does not look at."""
        sound = self.sound
        return {
            "file": str(self.path),
            "verdict": self.verdict,
            **_marks_json(self.public, self.private, looks_like_it=self.looks_like_its_render),
            "sound": sound
            and {
                **_marks_json(sound.public, sound.private),
                "synchronisation": round(sound.synchronisation, 2),
                "seconds": round(sound.seconds, 2),
                "problem": sound.problem or None,
            },
            "synchronisation": round(self.synchronisation, 2),
            "disclosure": self.disclosure or None,
            "origin": {
                "state": self.origin.state,
                "signer": self.origin.signer or None,
                "software": self.origin.software or None,
                "source_type": self.origin.source_type or None,
                "provenance": self.origin.own,
                "problems": list(self.origin.problems),
                "stamped": self.origin.stamped or None,
            },
            "consent": self.consent or None,
            "fingerprint": self.fingerprint.to_json(),
            "frames": self.frame_count,
            "width": self.width,
            "height": self.height,
            "problem": self.problem or None,
            "not_checked": list(NOT_CHECKED),
        }

    def to_text(self) -> str:
        if self.problem:
            return f"{self.path}: {self.problem}"
        nothing = NOTHING.format("picture" if self.frame_count else "sound")
        lines = [f"{self.path}: {nothing if self.verdict == 'no mark found' else self.verdict}"]
        lines += _mark_lines(self.public, self.private)
        lines += [f"    {UNLIKE}"] if self.looks_like_its_render is False else []
        if self.sound is not None:
            lines += _mark_lines(self.sound.public, self.sound.private, " in the sound")
            lines += [f"  {self.sound.problem}"] if self.sound.problem else []
        lines += [f"  {line}" for line in self.fingerprint.lines()]
        lines += [f"  {line}" for line in _origin_lines(self.origin)]
        if self.consent:
            lines.append(f"  consent: {self.consent}")
        if self.disclosure:
            lines.append(f"  metadata (anybody can write it): {self.disclosure}")
        if self.frame_count and min(self.width, self.height) < LEAST_SEARCHED_PX:
            lines.append(
                f"  {self.width}x{self.height} pixels are too few; below {LEAST_SEARCHED_PX} a side none is looked for"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class VerifyReport:
    """The files that were looked at, and how many of a folder are no pictures, videos or sounds."""

    files: tuple[Verification, ...]
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0: a mark of omokage in every file; 1: not in every file, or one was altered; 2: a file cannot be read."""
        verdicts = {file.verdict for file in self.files}
        is_altered = any(file.origin.state in ("altered", "expired") for file in self.files)
        return 2 if "cannot be read" in verdicts else 1 if "no mark found" in verdicts or is_altered else 0

    def to_json(self) -> dict[str, Any]:
        return {"files": [file.to_json() for file in self.files], "skipped": self.skipped}

    def to_text(self) -> str:
        lines = [file.to_text() for file in self.files]
        if self.skipped:
            lines.append(f"(not looked at, as no pictures or videos: {self.skipped})")
        return "\n".join(lines)


@one_blas_thread()
def verify(
    path: Path, *, keys: Sequence[Path] = (), on_progress: ProgressCallback = ignore_progress
) -> VerifyReport:
    """Look for the marks of omokage in a picture, video or sound, or in all of a folder and of the folders in it.

    keys: files of other installations' keys, or of earlier ones, to look for besides this installation's own. Of a
    video 60 frames from its first 30 seconds are looked at, of sound the first two minutes listened to. Raises
    MediaError for a single file that cannot be read, InputError for a folder without pictures or sounds and for a file
    that is no key.
    """
    path = Path(path)
    secrets = [read_key(Path(key)) for key in keys]
    if key_path().exists():
        secrets.append(installation_key())
    if not path.is_dir():
        return VerifyReport((_verified(path, secrets),))
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink()]
    shown = [file for file in files if _is_media(file)]
    if not shown:
        raise InputError(
            f"{path} holds no picture or video, and no sound; give a folder that does, or a file"
        )
    found = []
    for done, file in enumerate(shown):
        on_progress(Progress("verifying", done, len(shown), file.name))
        try:
            found.append(_verified(file, secrets))
        except MediaError as error:
            found.append(Verification(path=file, verdict="cannot be read", problem=str(error)))
    on_progress(Progress("verifying", len(shown), len(shown)))
    return VerifyReport(tuple(found), len(files) - len(shown))


def _is_media(path: Path) -> bool:
    try:
        return sniff(path) in (PICTURE, *VIDEO_DEMUXERS, *SOUND_DEMUXERS)
    except MediaError:
        return False


def _verified(path: Path, secrets: Sequence[bytes]) -> Verification:
    kind, evidence, copy, size = sniff(path), Evidence(), Copy(), (0, 0)
    heard = None if kind == PICTURE else listen(path, secrets)
    if heard is not None and heard.problem and kind in SOUND_DEMUXERS and not heard.seconds:
        raise MediaError(heard.problem)
    if kind not in SOUND_DEMUXERS and (heard is None or heard.has_video):
        for image, time_s, is_looked_at in _pictures(path):
            copy.add(image, time_s)
            if is_looked_at:
                evidence.add(image)
            size = image.shape[1], image.shape[0]
    if min(size) < LEAST_SEARCHED_PX:
        found = [Found(None, False, 0.0, 0.0, None)] * (1 + len(secrets))
    else:
        found = find(evidence.plane(), _keys(secrets))
    public, private, synchronisation = _marks(found)
    origin = read_origin(path)
    return Verification(
        path=path,
        verdict=max(_verdict(found), _verdict(heard.found if heard else ()), key=_VERDICTS.index),
        public=public,
        private=private,
        synchronisation=synchronisation,
        sound=SoundMarks(*_marks(heard.found), heard.seconds, heard.problem) if heard else None,
        disclosure=read_comment(path),
        origin=origin,
        consent=_consent(origin),
        fingerprint=recognised(copy),
        frame_count=evidence.frame_count,
        width=size[0],
        height=size[1],
    )


def _pictures(path: Path) -> Iterator[tuple[Image, float, bool]]:
    """Frames, when they are shown (s), and which to look at for marks. Raises MediaError."""
    if sniff(path) == PICTURE:
        yield read_image(path), 0.0, True
        return
    info = probe(path)
    count = min(info.frame_count, max(1, round(SECONDS * info.frame_rate)))
    every = math.ceil(count / FRAMES)
    for frame in read_frames(path, end_s=None if count == info.frame_count else SECONDS):
        yield frame.image, frame.time_s, frame.index % every == 0


def _keys(secrets: Sequence[bytes]) -> list[Key]:
    own = (
        Key(chips_of(pattern_key(key), PRIVATE_BITS), 1 - PUBLIC_SHARE, LEAST_PRIVATE_SCORE)
        for key in secrets
    )
    return [Key(chips_of(PUBLIC_KEY, PUBLIC_BITS), PUBLIC_SHARE, LEAST_PUBLIC_SCORE), *own]


def _verdict(found: Sequence[Found | SoundFound]) -> Verdict:
    payloads = [one.payload for one in found]
    if any(payload is not None for payload in payloads[1:]):
        return "made with omokage"
    if payloads and payloads[0] is not None and payloads[0] >> 8 == PRODUCT:
        return "made with omokage"
    return "mark present, id unreadable" if any(one.is_present for one in found) else "no mark found"


def _marks(found: Sequence[Found | SoundFound]) -> tuple[PublicMark, PrivateMark | None, float]:
    """What the public key and the best of the others found, and the best z."""
    public, *own = found
    best = max(own, key=lambda one: (one.payload is not None, one.z)) if own else None
    return _public_mark(public), _private_mark(best) if best else None, max(one.z for one in found)


def _public_mark(found: Found | SoundFound) -> PublicMark:
    if found.payload is None:
        return PublicMark(None, None, found.score)
    return PublicMark(found.payload >> 8, found.payload & 0xFF, found.score)


def _private_mark(found: Found | SoundFound) -> PrivateMark:
    if found.payload is None:
        return PrivateMark(None, (), found.score)
    render_id = id_text(found.payload)
    return PrivateMark(render_id, renders_of(render_id), found.score)


def _marks_json(public: PublicMark | None, private: PrivateMark | None, **more: Any) -> dict[str, Any]:
    return {
        "public_mark": public
        and {"product": public.product, "version": public.version, "score": round(public.score, 2)},
        "private_mark": private
        and {
            "render_id": private.render_id,
            "score": round(private.score, 2),
            **more,
            "renders": [
                {"time": r.time, "file": r.file, "sha256": r.sha256, "purpose": r.purpose, "avatar": r.avatar}
                for r in private.renders
            ],
        },
    }


def _mark_lines(public: PublicMark | None, private: PrivateMark | None, where: str = "") -> Iterator[str]:
    if public is not None and public.product is not None:
        yield f"  public mark{where}: {_product(public)}"
    if private is not None and private.render_id is not None:
        yield f"  private mark{where}: render {private.render_id} of this installation"
        yield from (f"    {_row(render)}" for render in private.renders)
        if not private.renders:
            yield "    its row is not in the register of this machine"


def _product(mark: PublicMark) -> str:
    if mark.product == PRODUCT:
        return f"made with omokage (mark version {mark.version})"
    return f"of another product (code {mark.product})"


def _origin_lines(origin: Origin) -> Iterator[str]:
    if origin.state == "none":
        yield "no signed origin"
    else:
        yield f"signed origin: {_ORIGIN[origin.state].format(origin.signer)}"
        if origin.state == "trusted":
            made = origin.source_type.rpartition("/")[2]
            yield f"  says: by {origin.software}, {made}" + (
                f", for {p}" if (p := _said(origin, "purpose")) else ""
            )
    if origin.stamped:
        yield f"  time stamp: signed on {origin.stamped}"
    yield from (f"  found: {problem}" for problem in origin.problems)


def _said(origin: Origin, name: str) -> str:
    return str((origin.own or {}).get(name) or "")


def _consent(origin: Origin) -> str:
    """How the consent stands now that a trusted origin names. Raises ConsentError for a damaged list of withdrawals."""
    number = _said(origin, "consent") if origin.state == "trusted" else ""
    if not number:
        return ""
    known = [record for record in all_records() if record.id == number]
    if not known:
        return f"{number[:12]}, which is not recorded on this machine"
    today = datetime.now(UTC)
    withdrawn = revoked(today).get(number)
    if withdrawn:
        return f"{number[:12]}, WITHDRAWN on {withdrawn}"
    end = known[0].terms.end
    return f"{number[:12]}, {'ended' if today.date().isoformat() > end else 'holds until'} {end}"


def _row(render: Render) -> str:
    purpose = f", for {render.purpose}" if render.purpose else ""
    return f"released {render.time} as {render.file}{purpose}; SHA-256 {render.sha256[:16]}..."
