"""Under whose name this installation signs what it makes: a certificate authority of its own, made on first use.

MAIN: `identity`. Under `data_home()/identity` lie `root.pem`, which others are given to trust, `signer.pem`, which
signs, and the two keys, readable by their owner alone. The signing certificate lasts a year and is renewed a month
before its end. Where an organization has an authority of its own, its certificate and key take the place of
`signer.pem` and `signer.key`, and its root that of `root.pem`; without `root.key` nothing is renewed here. X.509
profile of C2PA 2.2, section 14.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from omokage.errors import InputError
from omokage.files import MOST_TEXT_BYTES, output_error, refuse_device
from omokage.home import data_home
from omokage.vault.secret_file import replace_secret

ROOT_DAYS, SIGNER_DAYS, RENEWED_DAYS = 3650, 365, 30
# Both, so that readers with and without the younger one take it (measured: specifications of trust, 1.2).
_USAGES = (ExtendedKeyUsageOID.EMAIL_PROTECTION, ObjectIdentifier("1.3.6.1.4.1.62558.2.1"))
ORGANIZATION = "omokage, private installation"


@dataclass(frozen=True, slots=True)
class Identity:
    """chain: the signing certificate and what is between it and the root, PEM.  key: PKCS 8, PEM.  root: PEM."""

    chain: bytes
    key: bytes
    root: bytes

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain)

    @property
    def organization(self) -> str:
        return _organization(self.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root, for people who compare it on the telephone."""
        return x509.load_pem_x509_certificate(self.root).fingerprint(SHA256()).hex(":")


def identity(*, now: datetime | None = None, organization: str | None = None) -> Identity:
    """What this installation signs with; made, or renewed, where that is needed and can be done here.

    organization: the name on certificates that are made anew. Raises InputError when a certificate is past its date and
    its authority is elsewhere, or files are damaged; OutputError when they cannot be kept.
    """
    now, folder = now or datetime.now(UTC), data_home() / "identity"
    if not (folder / "signer.pem").exists():
        _make_root(folder, organization or ORGANIZATION, now)
        _make_signer(folder, now)
    found = _read(folder)
    if found.certificate.not_valid_after_utc - now < timedelta(days=RENEWED_DAYS):
        if (folder / "root.key").exists():
            _make_signer(folder, now)
            found = _read(folder)
        elif found.certificate.not_valid_after_utc < now:
            raise InputError(
                f"the certificate {folder / 'signer.pem'} ended on {found.certificate.not_valid_after_utc.date()}, so "
                "nothing can be signed; put a new one of your authority there"
            )
    return found


def check_identity() -> None:
    """Tell before long work, and without making anything, what `identity` would raise about what is there."""
    if (data_home() / "identity" / "signer.pem").exists():
        identity()


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
    _keep(data_home() / "identity" / "trusted", {f"{mark[:16]}.pem": _pem(root)})
    return root.fingerprint(SHA256()).hex(":")


def _read(folder: Path) -> Identity:
    try:
        parts = [(folder / name).read_bytes() for name in ("signer.pem", "signer.key", "root.pem")]
        found = Identity(*parts)
        if found.certificate.public_key() != load_pem_private_key(found.key, None).public_key():
            raise ValueError("the key is of another certificate")
        x509.load_pem_x509_certificate(found.root)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the signing certificate in {folder} cannot be used ({error}); put it back"
        ) from error
    return found


def _make_root(folder: Path, organization: str, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(organization, "omokage root")
    root = _certificate(name, name, key.public_key(), key, key.public_key(), now, ROOT_DAYS, usages=())
    _keep(folder, {"root.key": _key_pem(key), "root.pem": _pem(root)})


def _make_signer(folder: Path, now: datetime) -> None:
    try:
        root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
        authority = load_pem_private_key((folder / "root.key").read_bytes(), None)
        if not isinstance(authority, ec.EllipticCurvePrivateKey):
            raise ValueError("a key of another kind")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the root certificate in {folder} cannot be used ({error}); put it back") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(_organization(root), "omokage")
    signer = _certificate(
        name,
        root.subject,
        key.public_key(),
        authority,
        authority.public_key(),
        now,
        SIGNER_DAYS,
        usages=_USAGES,
    )
    _keep(folder, {"signer.key": _key_pem(key), "signer.pem": _pem(signer)})


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signing: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    *,
    usages: Iterable[ObjectIdentifier],
) -> x509.Certificate:
    usages = tuple(usages)
    is_root = not usages
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(_key_usage(is_root=is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(signing, SHA256())


def _key_usage(*, is_root: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_root,
        crl_sign=is_root,
        encipher_only=False,
        decipher_only=False,
    )


def _name(organization: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _organization(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _keep(folder: Path, contents: dict[str, bytes]) -> None:
    """Files readable by their owner alone, the last of `contents` last: where it is, all are."""
    try:
        for name, content in contents.items():
            replace_secret(folder / name, content)
    except OSError as error:
        raise output_error(folder, error) from error
