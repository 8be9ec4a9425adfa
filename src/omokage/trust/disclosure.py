"""What a release says about itself, and the record of one: texts for every container. See `release`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from xml.sax.saxutils import escape

from omokage.config import Config
from omokage.trust.aigc import NAMESPACE
from omokage.trust.label import Corner

# What a picture shows: something a model made, or a real recording (as it is, labeled or laid out).
Origin = Literal["generated", "recorded"]
DISCLOSURE: Final[Mapping[Origin, str]] = {
    "generated": "AI-generated",
    "recorded": "Recorded, not generated; arranged",
}
# https://cv.iptc.org/newscodes/digitalsourcetype/ : made by a model trained on recordings; composed of recordings.
DIGITAL_SOURCE_TYPE: Final[Mapping[Origin, str]] = {
    "generated": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "recorded": "http://cv.iptc.org/newscodes/digitalsourcetype/compositeCapture",
}


@dataclass(frozen=True)
class ReleaseConfig(Config):
    """What a released file says about itself.

    `label`: visible text on every picture, such as 'AI-generated', or None for none. `title` and `purpose` go into
    the metadata when given. `origin`: whether the hidden notice says that the picture is AI-generated or recorded;
    clips are always generated. `avatar`: SHA-256 of what an avatar was made from, `consent`: number of the record that
    it rests on, both for the register of renders and the signed origin.
    `made_from`: a digest of everything that decides the pictures, where it is known; the render's id then comes from it
    instead of the first picture, whose last bits differ from machine to machine.
    """

    label: str | None = None
    label_corner: Corner = "lower left"
    title: str = ""
    purpose: str = ""
    origin: Origin = "generated"
    avatar: str = ""
    consent: str = ""
    made_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A file that has left.

    `duration_s` is 0 for pictures and texts; `sha256` is hexadecimal, of the whole file. `render_id`: 12 hexadecimal
    digits, what the invisible marks say; None for texts, for what is not generated, and for pictures that are too small
    for a mark and have no sound.
    """

    path: Path
    frame_count: int
    duration_s: float
    sha256: str
    label: str | None
    render_id: str | None = None


def metadata_of(config: ReleaseConfig) -> dict[str, str]:
    """Tags that MP4, MOV, WebM, PNG and JPEG all know."""
    purpose = f" Purpose: {config.purpose}." if config.purpose else ""
    source = DIGITAL_SOURCE_TYPE[config.origin]
    comment = f"{DISCLOSURE[config.origin]} with omokage.{purpose} Digital source type: {source}"
    return {"comment": comment} | ({"title": config.title} if config.title else {})


def xmp_of(config: ReleaseConfig, aigc: str) -> str:
    """The notice as an XMP packet (IPTC Photo Metadata 2025.1, 'Digital Source Type'; TC260:AIGC where wanted)."""
    field = f'<TC260:AIGC xmlns:TC260="{NAMESPACE}">{escape(aigc)}</TC260:AIGC>' if aigc else ""
    description = escape(metadata_of(config)["comment"])
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE[config.origin]}</Iptc4xmpExt:DigitalSourceType>{field}"
        f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
