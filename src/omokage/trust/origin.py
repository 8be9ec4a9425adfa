"""The signed origin of a file: a C2PA manifest that says what made it, of what, under whose consent.

MAIN: `sign_origin`, `read_origin`. C2PA 2.2 for .mp4, .mov, .png and .jpg; the .webm container has no place for it, so
such a clip carries its notice instead. Nothing is fetched while reading, whatever a file says, nor while signing,
unless the address of a time-stamp authority was given. No thumbnail of anybody is stored.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from omokage.errors import OmokageError, OutputError
from omokage.trust.countersignature import add_stamp
from omokage.trust.identity import Identity, trusted_roots
from omokage.trust.time_stamp import StampAuthority

MEDIA_TYPES: Final = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
OWN_LABEL: Final = "org.omokage.provenance"
OWN_VERSION: Final = 1
# Kinds of files that a manifest may lie in, of whoever wrote it: where in the file its first bytes are.
_SIGNATURES: Final = (
    (4, b"ftyp", "video/mp4"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (8, b"WAVE", "audio/wav"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (8, b"AVI ", "video/avi"),
    (8, b"WEBP", "image/webp"),
    (0, b"GIF8", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)
# The boxes that the encoder and the signature write; others, which no hash covers, could carry anything.
_KNOWN_BOXES: Final = ("ftyp", "uuid", "moov", "mdat", "free", "wide")
_LARGEST_FREE_BOX: Final = 16  # bytes: what an encoder leaves between index and data

# What a whole file is told of whose certificate has ended, when no stamp says that it was signed before.
_EXPIRED: Final = {"signingCredential.untrusted", "signingCredential.expired"}

State = Literal["trusted", "unknown signer", "expired", "altered", "none"]


@dataclass(frozen=True, slots=True)
class OriginClaim:
    """What is said of a file.

    source_type: of the IPTC vocabulary.  sources: SHA-256 of what it was made of.  consent: number of the record it
    rests on.  render_id: by which the registry knows it.
    """

    title: str
    source_type: str
    purpose: str = ""
    consent: str = ""
    sources: tuple[str, ...] = ()
    render_id: str = ""

    def manifest(self) -> dict[str, Any]:
        agent = {"name": "omokage", "version": version("omokage")}
        created = {"action": "c2pa.created", "digitalSourceType": self.source_type, "softwareAgent": agent}
        own = {
            "version": OWN_VERSION,
            "render_id": self.render_id,
            "purpose": self.purpose,
            "consent": self.consent,
            "sources": list(self.sources),
        }
        denied = {"use": "notAllowed"}
        mining = ("cawg.ai_generative_training", "cawg.ai_training", "cawg.ai_inference", "cawg.data_mining")
        return {
            "claim_generator_info": [agent],
            "title": self.title,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created], "allActionsIncluded": True}},
                {"label": "cawg.training-mining", "data": {"entries": dict.fromkeys(mining, denied)}},
                {"label": OWN_LABEL, "data": own},
            ],
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file's manifest is worth here.

    state: 'trusted' when it is whole and signed under a root that is trusted here; 'unknown signer' when whole, but
    signed by somebody else; 'expired' when whole, but the certificate has ended and no trusted time stamp says that it
    was signed before; 'altered' when not whole; 'none' when there is none.  own: our own statement, empty when there is
    none.  problems: what the check found, and boxes of the container that no signature covers.  stamped: when it was
    signed by a trusted time stamp (ISO 8601), or empty.  has_place: whether that kind of file can hold one.
    """

    state: State
    signer: str = ""
    software: str = ""
    source_type: str = ""
    own: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()
    stamped: str = ""
    has_place: bool = True

    def said(self, name: str) -> str:
        """A value of our own statement, or ''."""
        return str((self.own or {}).get(name) or "")


NO_ORIGIN: Final = Origin("none")
NO_PLACE: Final = Origin("none", has_place=False)


def sign_origin(
    path: Path,
    claim: OriginClaim,
    identity: Identity,
    *,
    suffix: str | None = None,
    stamps: StampAuthority | str | None = None,
) -> bool:
    """Put a signed manifest into a finished file, in place; False for a kind of file that has no room for one.

    suffix: of the file's kind, where `path` has another.  stamps: who stamps the signature: an authority, or the
    address of one, the only case in which a connection is opened. Raises OutputError when it cannot be signed, stamped
    or written; the caller drops the file then.
    """
    media_type = MEDIA_TYPES.get((suffix or path.suffix).lower())
    if media_type is None:
        return False
    import c2pa

    # The same bytes with a manifest, beside the file, then in its place: both are on one disk.
    signed = path.with_name(path.name + ".signed")
    signing = _Signing(identity)
    try:
        with (
            c2pa.Context.from_dict(_settings(identity.root)) as context,
            c2pa.Builder(claim.manifest(), context=context) as builder,
            signing.signer(stamps) as signer,
            path.open("rb") as source,
            signed.open("w+b") as target,
        ):
            manifest = builder.sign(signer, media_type, source, target)
        if isinstance(stamps, StampAuthority):
            add_stamp(signed, media_type, manifest, stamps)
            _check_stamp(signed, identity)
        signed.replace(path)
    except (c2pa.C2paError, OmokageError, OSError) as error:
        why = signing.problem or error
        asked = f" by {stamps}" if isinstance(stamps, str) and not signing.problem else ""
        raise OutputError(
            f"{path.name.removesuffix('.part')} could not be signed{asked} ({why}), so it was not released"
        ) from error
    finally:
        signed.unlink(missing_ok=True)
    return True


class _Signing:
    """A signer for the library, which swallows what is raised in it. problem: what was."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.problem: OmokageError | None = None

    def signer(self, stamps: StampAuthority | str | None) -> Any:
        import c2pa

        identity = self._identity
        if stamps is None and identity.signs is None:  # keeps no room for a stamp: 9 kB less
            return c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(
                    alg=identity.algorithm.lower().encode(),
                    sign_cert=identity.chain,
                    private_key=identity.key,
                    ta_url=None,
                )
            )
        algorithm = c2pa.C2paSigningAlg[identity.algorithm]
        address = stamps if isinstance(stamps, str) else None
        return c2pa.Signer.from_callback(self._sign, algorithm, identity.chain.decode(), address)

    def _sign(self, data: bytes) -> bytes:
        try:
            return self._identity.sign(data)
        except OmokageError as error:
            self.problem = error
            return b""  # which the library takes for a failure


def _check_stamp(path: Path, identity: Identity) -> None:
    """The library checked the signature before it was stamped; does its reader believe both? Raises OutputError."""
    origin = _read_origin(path, b"\n".join((identity.root, trusted_roots())))
    if origin.state != "trusted" or not origin.stamped:
        found = ", ".join(origin.problems) or origin.state
        raise OutputError(f"its time stamp does not hold under the root of this installation: {found}")


def read_origin(path: Path) -> Origin:
    """What a file says of its origin, and whether to believe it. Opens no socket. Raises OSError."""
    return _read_origin(path, trusted_roots())


def _read_origin(path: Path, roots: bytes) -> Origin:
    import c2pa

    with path.open("rb") as file:
        media_type = _kind(file)
        if media_type is None:
            return NO_PLACE
        hidden = tuple(_unknown_boxes(file)) if media_type == "video/mp4" else ()
        file.seek(0)
        try:
            with (
                c2pa.Context.from_dict(_settings(roots)) as context,
                c2pa.Reader(media_type, file, context=context) as reader,
            ):
                said = json.loads(reader.json())
                state = str(reader.get_validation_state())
        except c2pa.C2paError.ManifestNotFound:
            return Origin("none", problems=hidden)
        except c2pa.C2paError as error:
            return Origin("altered", problems=(str(error), *hidden))
    return _origin(said, state, hidden)


def _origin(said: dict[str, Any], state: str, hidden: tuple[str, ...]) -> Origin:
    manifest = said["manifests"][said["active_manifest"]]
    assertions = {one["label"]: one["data"] for one in manifest.get("assertions", ())}
    actions: dict[str, Any] = next(
        (data for label, data in assertions.items() if label.startswith("c2pa.actions")), {}
    )
    first = (actions.get("actions") or [{}])[0]
    results = said.get("validation_results", {}).get("activeManifest", {})
    failures = [failure["code"] for failure in results.get("failure", ())]
    is_stamped = any(success["code"] == "timeStamp.trusted" for success in results.get("success", ()))
    signature = manifest.get("signature_info") or {}
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    own = assertions.get(OWN_LABEL)
    known: dict[str, State] = {"Trusted": "trusted", "Valid": "unknown signer"}
    broken: State = "expired" if set(failures) == _EXPIRED else "altered"
    problems = tuple(dict.fromkeys(failures))
    return Origin(
        state=known.get(state, broken),
        signer=str(signature.get("issuer", "")),
        software=f"{generator.get('name', '')} {generator.get('version', '')}".strip(),
        source_type=str(first.get("digitalSourceType", "")),
        own=own if isinstance(own, dict) and own.get("version") == OWN_VERSION else None,
        problems=(*problems, *hidden),
        stamped=str(signature.get("time", "")) if is_stamped else "",
    )


def _settings(roots: bytes) -> dict[str, Any]:
    return {
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        "builder": {
            "thumbnail": {"enabled": False},
            "created_assertion_labels": ["c2pa.actions", "cawg.training-mining", OWN_LABEL],
        },
        **({"trust": {"trust_anchors": roots.decode()}} if roots else {}),
    }


def _kind(file: BinaryIO) -> str | None:
    """By its first bytes, never by its name; None for a kind that has no place for a manifest."""
    head = file.read(12)
    return next((kind for at, start, kind in _SIGNATURES if head[at:].startswith(start)), None)


def _unknown_boxes(file: BinaryIO) -> Iterator[str]:
    """Top-level boxes (ISO 14496-12, 4.2) that no encoder of ours writes: no signature covers all of them."""
    end = file.seek(0, io.SEEK_END)
    place = 0
    while place + 8 <= end:
        file.seek(place)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        size = size or end - place
        name = kind.decode("latin-1")
        if size < header or place + size > end:
            yield f"the container ends in the middle of its box '{name}'"
            return
        if name not in _KNOWN_BOXES or (name in ("free", "wide") and size > _LARGEST_FREE_BOX):
            yield f"a box '{name}' of {size} bytes that no signature covers"
        place += size
    if place != end:
        yield f"{end - place} bytes after the last box"
