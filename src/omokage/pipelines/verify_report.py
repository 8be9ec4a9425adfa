"""What `omokage verify` says of a file, for people and for scripts. MAIN: `VerifyReport`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from omokage.pipelines.verify_avatar import AvatarFile
from omokage.trust.mark_pattern import PRODUCT
from omokage.trust.mark_search import LEAST_SEARCHED_PX
from omokage.trust.origin import NO_ORIGIN, Origin
from omokage.trust.recognition import NOTHING_ALIKE, Recognition
from omokage.trust.registry import Render

NOT_CHECKED: Final = ()
NOTHING: Final = "no mark found; that does not tell how the {} came about"
NO_KEY: Final = "private marks were not looked for: no key of an installation is here; --key gives one"
UNLIKE: Final = (
    "BUT the picture does not look like that render: the mark was copied onto it, or most was cut away"
)

# https://cv.iptc.org/newscodes/digitalsourcetype/ in words, of the terms that are most often met.
_MADE: Final = {
    "trainedAlgorithmicMedia": "AI-generated: trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia": "partly AI-generated: compositeWithTrainedAlgorithmicMedia",
    "compositeCapture": "put together from recordings: compositeCapture",
    "digitalCapture": "recorded with a camera: digitalCapture",
}
_AVATAR: Final = "an avatar file; it carries no mark, the pictures and clips that are made with it do"

_ORIGIN: Final = {
    "trusted": "whole, signed by {}",
    "unknown signer": "whole, signed by {}, whose root is not trusted here",
    "expired": "whole, signed by {}, whose certificate has ended; no time stamp says that it was signed before",
    "altered": "not whole: something was changed after it was signed",
    "cannot be read": "it is not known whether there is one, because its reader broke down over this file",
}

Verdict = Literal[
    "made with omokage", "mark present, id unreadable", "no mark found", "avatar file", "cannot be read"
]
Kind = Literal["picture", "video", "sound", "avatar", ""]
VERDICTS: Final = ("no mark found", "mark present, id unreadable", "made with omokage")  # the strongest last


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

    kind: '' where it was not read.  avatar: what an avatar file is worth here, of which nothing else is known.
    synchronisation: z of the marks' common pattern; from 8 on a mark is there.  disclosure: the comment in the file's
    metadata, which anybody can write or remove.  origin: the signed one.  consent: a sentence on the record that a
    trusted origin names, or that an avatar rests on, as it stands now.  consent_of_render: without such an origin, on
    that which the marked render rests on by the audit log.
    frame_count: how many were looked at.  problem: why it was not read.  private: None where no key is at hand.
    sound: None where there is none.  fingerprint: what the register of this machine knows that looks alike.
    """

    path: Path
    verdict: Verdict
    kind: Kind = ""
    public: PublicMark | None = None
    private: PrivateMark | None = None
    synchronisation: float = 0.0
    sound: SoundMarks | None = None
    disclosure: str = ""
    origin: Origin = NO_ORIGIN
    consent: str = ""
    consent_of_render: str = ""
    fingerprint: Recognition = NOTHING_ALIKE
    frame_count: int = 0
    width: int = 0
    height: int = 0
    problem: str = ""
    avatar: AvatarFile | None = None

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
            "kind": self.kind or None,
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
                "has_place": self.origin.has_place,
                "signer": self.origin.signer or None,
                "software": self.origin.software or None,
                "source_type": self.origin.source_type or None,
                "provenance": self.origin.own,
                "problems": list(self.origin.problems),
                "stamped": self.origin.stamped or None,
            },
            "consent": self.consent or None,
            "consent_of_render": self.consent_of_render or None,
            "fingerprint": self.fingerprint.to_json(),
            "frames": self.frame_count,
            "width": self.width,
            "height": self.height,
            "avatar_file": self.avatar and self.avatar.to_json(),
            "problem": self.problem or None,
            "not_checked": list(NOT_CHECKED),
        }

    def to_text(self) -> str:
        if self.problem:
            return self.problem if str(self.path) in self.problem else f"{self.path}: {self.problem}"
        if self.avatar is not None:
            lines = [f"{self.path}: {_AVATAR}", *(f"  {line}" for line in self.avatar.lines())]
            return "\n".join(lines + ([f"  consent: {self.consent}"] if self.consent else []))
        nothing = NOTHING.format("picture" if self.frame_count else "sound")
        lines = [f"{self.path}: {nothing if self.verdict == 'no mark found' else self.verdict}"]
        lines += _mark_lines(self.public, self.private)
        lines += [f"    {UNLIKE}"] if self.looks_like_its_render is False else []
        if self.sound is not None:
            lines += _mark_lines(self.sound.public, self.sound.private, " in the sound")
            lines += [f"  {self.sound.problem}"] if self.sound.problem else []
        lines += [f"  {line}" for line in self._unmarked_parts()]
        if self.private is None:
            lines.append(f"  {NO_KEY}")
        lines += [f"  {line}" for line in self.fingerprint.lines()]
        lines += [f"  {line}" for line in _origin_lines(self.origin)]
        if self.consent:
            lines.append(f"  consent: {self.consent}")
        if self.consent_of_render:
            lines.append(f"  consent of the marked render: {self.consent_of_render}")
        if self.disclosure:
            lines.append(f"  metadata (anybody can write it): {self.disclosure}")
        if self.frame_count and min(self.width, self.height) < LEAST_SEARCHED_PX:
            lines.append(
                f"  {self.width}x{self.height} pixels are too few; below {LEAST_SEARCHED_PX} a side none is looked for"
            )
        return "\n".join(lines)

    def _unmarked_parts(self) -> Iterator[str]:
        """Of a video with sound of which one has a mark: the other may have been put to it."""
        if self.sound is None or not self.frame_count:
            return
        marked = [_is_read(self.public, self.private), _is_read(self.sound.public, self.sound.private)]
        if marked == [False, True]:
            yield "no mark is read in the pictures: they may be from elsewhere"
        if marked == [True, False]:
            yield (
                f"no mark is read in the sound ({self.sound.seconds:.0f} s were listened to): it may be from "
                "elsewhere, or be silent or short"
            )


@dataclass(frozen=True)
class VerifyReport:
    """The files that were looked at, and how many of a folder are no pictures, videos, sounds or avatar files."""

    files: tuple[Verification, ...]
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0: a mark of omokage in every file; 1: not in every file, or one was altered; 2: a file cannot be read."""
        verdicts = {file.verdict for file in self.files}
        is_unmarked = bool(verdicts & {"no mark found", "avatar file"})
        is_altered = any(file.origin.state in ("altered", "expired", "cannot be read") for file in self.files)
        return 2 if "cannot be read" in verdicts else 1 if is_unmarked or is_altered else 0

    def to_json(self) -> dict[str, Any]:
        return {"files": [file.to_json() for file in self.files], "skipped": self.skipped}

    def to_text(self) -> str:
        lines = [file.to_text() for file in self.files]
        if self.skipped:
            lines.append(
                f"(not looked at, as no avatar files, no sounds and no pictures or videos: {self.skipped})"
            )
        return "\n".join(lines)


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


def _is_read(public: PublicMark | None, private: PrivateMark | None) -> bool:
    return (public is not None and public.product is not None) or (
        private is not None and private.render_id is not None
    )


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
        yield "no signed origin" + ("" if origin.has_place else ": this kind of file has no place for one")
    else:
        yield f"signed origin: {_ORIGIN[origin.state].format(origin.signer)}"
        if origin.state == "trusted":
            made = origin.source_type.rpartition("/")[2]
            yield f"  says: by {origin.software}, {_MADE.get(made, made)}" + (
                f", for {p}" if (p := origin.said("purpose")) else ""
            )
    if origin.stamped:
        yield f"  time stamp: signed on {origin.stamped}"
    yield from (f"  found: {problem}" for problem in origin.problems)


def _row(render: Render) -> str:
    purpose = f", for {render.purpose}" if render.purpose else ""
    return f"released {render.time} as {render.file}{purpose}; SHA-256 {render.sha256[:16]}..."
