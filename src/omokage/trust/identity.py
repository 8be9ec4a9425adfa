"""Under whose name this installation signs what it makes: a certificate authority of its own, made on first use.

MAIN: `identity`. Under `data_home()/identity` lie `root.pem`, which others are given to trust, `signer.pem`, which
signs, and the two keys, readable by their owner alone. The signing certificate lasts a year and is renewed a month
before its end. Where an organization has an authority of its own, its certificate and key take the place of
`signer.pem` and `signer.key`, and its root that of `root.pem`; without `root.key` nothing is renewed here. Where the
key may lie in no file, `signer.json` names the program that signs in place of `signer.key`, or `sign_with` a Python
callable. X.509 profile of C2PA 2.2, section 14.5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from omokage.errors import InputError, OutputError
from omokage.files import MOST_TEXT_BYTES, parse_json, refuse_device
from omokage.home import data_home
from omokage.trust.certificates import (
    Certified,
    issue,
    keep_private,
    make_root,
    organization_of,
    read_certified,
    refuse_outside_its_days,
)
from omokage.trust.signature import SigningFunction, algorithm_of, by_key, by_program, checked

ROOT_DAYS, SIGNER_DAYS, RENEWED_DAYS = 3650, 365, 30
# Both, so that readers with and without the younger one take it (measured: specifications of trust, 1.2).
_USAGES = (ExtendedKeyUsageOID.EMAIL_PROTECTION, ObjectIdentifier("1.3.6.1.4.1.62558.2.1"))
ORGANIZATION = "omokage, private installation"
FORMAT = 1  # of `signer.json`


@dataclass(frozen=True, slots=True)
class Identity:
    """chain: the signing certificate and what is between it and the root, PEM.  key: PKCS 8, PEM.  root: PEM.

    signs: what signs where the key is not here; `key` is empty then.
    """

    chain: bytes
    key: bytes
    root: bytes
    signs: SigningFunction | None = None

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def organization(self) -> str:
        return organization_of(self.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root, for people who compare it on the telephone."""
        return x509.load_pem_x509_certificate(self.root).fingerprint(SHA256()).hex(":")

    @property
    def algorithm(self) -> str:
        """As C2PA names it, such as ES256. Raises InputError."""
        return algorithm_of(self.certificate.public_key())

    def sign(self, data: bytes) -> bytes:
        """A signature by the certificate's key, checked. Raises OutputError, and what `signs` raises."""
        return checked(self.signs or by_key(self.key), self.certificate.public_key())(data)


# Set by `sign_with`; of the whole process, because releases run in threads of their own too.
_given: Identity | None = None


def identity(*, now: datetime | None = None, organization: str | None = None) -> Identity:
    """What this installation signs with; made, or renewed, where that is needed and can be done here.

    organization: the name on certificates that are made anew. Raises InputError when a certificate is past its date and
    its authority is elsewhere, the clock was set back, or files are damaged; OutputError when they cannot be kept.
    """
    now, folder = now or datetime.now(UTC), data_home() / "identity"
    if _given is not None:
        refuse_outside_its_days(_given.certificate, Path("given to sign_with"), now)
        return _given
    if not (folder / "signer.pem").exists():
        root = make_root(organization or ORGANIZATION, now, now + timedelta(days=ROOT_DAYS))
        keep_private(folder, {"root.key": root.key_pem, "root.pem": root.pem})
        _renew(folder, root, now)
    found = _read(folder)
    if found.certificate.not_valid_after_utc - now < timedelta(days=RENEWED_DAYS):
        root_here = read_root()
        if root_here is not None:
            _renew(folder, root_here, now)
            found = _read(folder)
    refuse_outside_its_days(found.certificate, folder / "signer.pem", now)
    return found


def check_identity() -> None:
    """Tell before long work, and without making anything, what `identity` would raise about what is there."""
    if _given is not None or (data_home() / "identity" / "signer.pem").exists():
        identity()


def sign_with(chain: bytes, root: bytes, signs: SigningFunction) -> None:
    """From now on let a Python callable sign in this process, whose key no file holds.

    chain, root: as in `Identity`. Raises InputError when the certificate's key is none for C2PA, or a trial signature
    does not hold.
    """
    global _given
    wanted = Identity(chain, b"", root, signs)
    _try(wanted)
    _given = wanted


def keep_program(chain: Path, root: Path, command: Sequence[str]) -> Identity:
    """Let a program sign from now on, whose key no file holds; its first trial decides whether it is kept.

    command: the program and its arguments, started without a shell. Raises InputError, OutputError.
    """
    for path in (chain, root):
        refuse_device(path, most_bytes=MOST_TEXT_BYTES)
    try:
        wanted = Identity(chain.read_bytes(), b"", root.read_bytes(), by_program(command))
        _try(wanted)
    except OSError as error:
        raise InputError(
            f"{chain} or {root} cannot be read ({error.strerror or error}); check the names"
        ) from error
    said = json.dumps({"format": FORMAT, "command": list(command)}).encode()
    keep_private(
        data_home() / "identity",
        {"signer.json": said, "root.pem": wanted.root, "signer.pem": wanted.chain},
    )
    return wanted


def trusted_roots() -> bytes:
    """Roots that a reader here believes: its own, and those that were given to `trust_root`; PEM."""
    folder = data_home() / "identity"
    paths = [folder / "root.pem", *sorted((folder / "trusted").glob("*.pem"))]
    return b"\n".join(path.read_bytes() for path in paths if path.exists())


def trust_root(path: Path) -> str:
    """Believe what a root of somebody else has signed; its fingerprint. Raises InputError, OutputError."""
    refuse_device(path, most_bytes=MOST_TEXT_BYTES)
    try:
        root = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no certificate (PEM)") from error
    mark = root.fingerprint(SHA256()).hex()
    pem = root.public_bytes(Encoding.PEM)
    keep_private(data_home() / "identity" / "trusted", {f"{mark[:16]}.pem": pem})
    return root.fingerprint(SHA256()).hex(":")


def read_root() -> Certified | None:
    """The authority with its key where that lies here; None where it is elsewhere. Raises InputError."""
    folder = data_home() / "identity"
    if _given is not None or not (folder / "root.key").exists():
        return None
    return read_certified(folder / "root.pem", folder / "root.key")


def _try(wanted: Identity) -> None:
    try:
        x509.load_pem_x509_certificate(wanted.root)
        _ = wanted.algorithm
        wanted.sign(b"omokage: does this key belong to its certificate?")
    except ValueError as error:
        raise InputError(
            f"the signing certificate or its root cannot be used ({error}); give PEM files"
        ) from error
    except OutputError as error:
        raise InputError(f"the signing key cannot be used: {error}") from error


def _read(folder: Path) -> Identity:
    try:
        chain, root = ((folder / name).read_bytes() for name in ("signer.pem", "root.pem"))
        x509.load_pem_x509_certificate(root)
        if (folder / "signer.json").exists():
            return Identity(chain, b"", root, by_program(_command(folder / "signer.json")))
        found = Identity(chain, (folder / "signer.key").read_bytes(), root)
        if found.certificate.public_key() != load_pem_private_key(found.key, None).public_key():
            raise ValueError("the key is of another certificate")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the signing certificate in {folder} cannot be used ({error}); put it back"
        ) from error
    return found


def _command(path: Path) -> list[str]:
    said = parse_json(path.read_text(encoding="utf-8"))
    command = said["command"] if isinstance(said, dict) and said.get("format") == FORMAT else None
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise ValueError(f"{path.name} names no program")
    return command


def _renew(folder: Path, root: Certified, now: datetime) -> None:
    signer = issue(root, "omokage", now, now + timedelta(days=SIGNER_DAYS), _USAGES)
    keep_private(folder, {"signer.key": signer.key_pem, "signer.pem": signer.pem})
