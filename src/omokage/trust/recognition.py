"""What the register of renders knows of a copy by its fingerprint alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from omokage.trust.fingerprint import Fingerprint
from omokage.trust.fingerprint_search import Copy, Likeness, best_of
from omokage.trust.registry import Render, all_renders

SHOWN: Final = 5  # of the renders that look alike


@dataclass(frozen=True, slots=True)
class Match:
    """A row of the register, and how alike the copy is to it."""

    render: Render
    likeness: Likeness

    def to_json(self) -> dict[str, Any]:
        render, motion = self.render, self.likeness.motion
        return {
            "render_id": render.render_id,
            "time": render.time,
            "file": render.file,
            "sha256": render.sha256,
            "purpose": render.purpose,
            "avatar": render.avatar,
            "differing_bits": self.likeness.bits,
            "motion": None if motion is None else round(motion, 3),
            "is_same_clip": self.likeness.is_same,
        }


@dataclass(frozen=True, slots=True)
class Recognition:
    """What looks like a copy among the fingerprints that are kept.

    matches: the most alike ones, those that also move alike first.  alike_count: how many look alike.  kept_count: how
    many were compared.
    """

    matches: tuple[Match, ...] = ()
    alike_count: int = 0
    kept_count: int = 0

    @property
    def same(self) -> tuple[Match, ...]:
        """The clips of which the copy is one, or a part."""
        return tuple(match for match in self.matches if match.likeness.is_same)

    def looks_like(self, render_id: str) -> bool | None:
        """Whether the copy looks like the render that its mark names; None when too many look alike to tell."""
        if any(match.render.render_id == render_id for match in self.matches):
            return True
        return False if self.alike_count <= SHOWN else None

    def to_json(self) -> dict[str, Any]:
        return {
            "compared_with": self.kept_count,
            "alike": self.alike_count,
            "matches": [match.to_json() for match in self.matches],
        }

    def lines(self) -> Iterator[str]:
        """For people; nothing where nothing is alike."""
        for match in self.same:
            yield f"fingerprint: the same clip as {_named(match)}, or a part of it"
        others = self.alike_count - len(self.same)
        if others and not self.same:
            first = self.matches[0]
            yield f"fingerprint: looks like {_named(first)}" + (
                f", and {others - 1} more" if others > 1 else ""
            )
            yield "  other pictures of the same person in the same place look alike too"


NOTHING_ALIKE: Final = Recognition()


def recognised(copy: Copy) -> Recognition:
    """Compare a copy with every fingerprint in the register of this installation; one without pictures with none."""
    if copy.is_empty:
        return NOTHING_ALIKE
    kept = [(render, one) for render in all_renders() if (one := Fingerprint.read(render.fingerprint))]
    found = best_of(copy, [one for _, one in kept])
    matches = tuple(Match(kept[index][0], likeness) for index, likeness in found[:SHOWN])
    return Recognition(matches, len(found), len(kept))


def _named(match: Match) -> str:
    render, likeness = match.render, match.likeness
    moves = "" if likeness.motion is None else f", movement agrees to {likeness.motion:.2f} of 1"
    name = f"{render.file}, released {render.time}, render {render.render_id}"
    return f"{name} ({likeness.bits} of 256 bits differ{moves})"
