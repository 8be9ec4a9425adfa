"""The signed origin of a file: a C2PA manifest that says what made it, of what, under whose consent.

MAIN: `sign_origin`, `read_origin`. C2PA 2.2 for .mp4, .mov, .m4a, .wav, .png and .jpg; the .webm container has no place
for it, so such a clip carries its notice instead. Nothing is fetched while reading, whatever a file says, nor while
signing, unless the address of a time-stamp authority was given. No thumbnail of anybody is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from omokage.errors import OmokageError, OutputError
from omokage.media.manifest import Manifest, manifest_in, reading_settings
from omokage.media.metadata import read_manifest
from omokage.media.records import one_line
from omokage.trust.countersignature import add_stamp
from omokage.trust.identity import Identity, trusted_roots
from omokage.trust.time_stamp import StampAuthority

MEDIA_TYPES: Final = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".m4a": "audio/mp4",
    ".wav": "audio/wav",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
OWN_LABEL: Final = "org.omokage.provenance"
OWN_VERSION: Final = 1
SOFT_BINDING: Final = (
    "org.omokage.mark.1"  # the invisible mark; its value is the render's id, 12 hexadecimal digits
)
# What a whole file is told of whose certificate has ended, when no stamp says that it was signed before.
_EXPIRED: Final = {"signingCredential.untrusted", "signingCredential.expired"}

State = Literal["trusted", "unknown signer", "expired", "altered", "cannot be read", "none"]


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
        # Finds the manifest again when only the invisible mark is left of it (C2PA 2.2, soft binding).
        mark = {"alg": SOFT_BINDING, "blocks": [{"scope": {}, "value": self.render_id}]}
        soft = [{"label": "c2pa.soft-binding", "data": mark}] if self.render_id else []
        return {
            "claim_generator_info": [agent],
            "title": self.title,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created], "allActionsIncluded": True}},
                {"label": "cawg.training-mining", "data": {"entries": dict.fromkeys(mining, denied)}},
                {"label": OWN_LABEL, "data": own},
                *soft,
            ],
        }


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file's manifest is worth here.

    state: 'trusted' when it is whole and signed under a root that is trusted here; 'unknown signer' when whole, but
    signed by somebody else; 'expired' when whole, but the certificate has ended and no trusted time stamp says that it
    was signed before; 'altered' when not whole; 'cannot be read' when its reader broke down; 'none' when there is none.
    own: our own statement, empty when there is none.  problems: what the check found, and boxes of the container that
    no signature covers.  stamped: when it was signed by a trusted time stamp (ISO 8601), or empty.  has_place: whether
    that kind of file can hold one.
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
    with path.open("rb") as file:  # our own file: no other process is needed
        manifest = manifest_in(file, b"\n".join((identity.root, trusted_roots())).decode())
    origin = origin_of(manifest) if manifest is not None else NO_PLACE
    if origin.state != "trusted" or not origin.stamped:
        found = ", ".join(origin.problems) or origin.state
        raise OutputError(f"its time stamp does not hold under the root of this installation: {found}")


def read_origin(path: Path) -> Origin:
    """What a file says of its origin, and whether to believe it. Opens no socket.

    It is read in the decoder's process: when the library breaks down over it, or hangs, that is a state with a
    sentence. Raises MediaError for what is no ordinary file.
    """
    manifest = read_manifest(path, trusted_roots().decode())
    return NO_PLACE if manifest is None else origin_of(manifest)


def origin_of(found: Manifest) -> Origin:
    """What a manifest is worth."""
    problems = tuple(one_line(each) for each in (found.unread or found.error, *found.hidden) if each)
    if found.unread:
        return Origin("cannot be read", problems=problems)
    if found.error:
        return Origin("altered", problems=problems)
    if found.said is None:
        return Origin("none", problems=problems)
    try:
        return _judged(found.said, found.state, found.hidden)
    except (KeyError, TypeError, AttributeError) as error:  # of a store that the library does not write
        return Origin("cannot be read", problems=(one_line(f"its manifest makes no sense: {error!r}"),))


def _judged(said: dict[str, Any], state: str, hidden: tuple[str, ...]) -> Origin:
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
        signer=one_line(str(signature.get("issuer", ""))),
        software=one_line(f"{generator.get('name', '')} {generator.get('version', '')}".strip()),
        source_type=one_line(str(first.get("digitalSourceType", ""))),
        own=own if isinstance(own, dict) and own.get("version") == OWN_VERSION else None,
        problems=tuple(map(one_line, (*problems, *hidden))),
        stamped=str(signature.get("time", "")) if is_stamped else "",
    )


def _settings(roots: bytes) -> dict[str, Any]:
    return {
        **reading_settings(roots.decode()),
        "builder": {
            "thumbnail": {"enabled": False},
            "created_assertion_labels": ["c2pa.actions", "cawg.training-mining", OWN_LABEL],
        },
    }
