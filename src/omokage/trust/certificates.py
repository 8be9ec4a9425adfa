"""X.509 certificates and keys of this installation: made by its own authority, kept readable by their owner alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from cryptography.x509.oid import NameOID, ObjectIdentifier

from omokage.errors import InputError
from omokage.files import output_error
from omokage.vault.secret_file import replace_secret

_EARLIER = timedelta(minutes=5)  # a certificate begins: clocks of readers differ a little


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate and its key, P-256."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_root(organization: str, now: datetime, end: datetime) -> Certified:
    """A new authority, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(organization, "omokage root")
    return Certified(_certificate(name, name, key, key, (now, end)), key)


def issue(
    root: Certified,
    common: str,
    now: datetime,
    end: datetime,
    usages: Sequence[ObjectIdentifier],
    *,
    is_critical: bool = False,
) -> Certified:
    """A certificate for `usages` under a root, in its organization's name, with a new key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(organization_of(root.certificate), common)
    certificate = _certificate(
        name, root.certificate.subject, key, root.key, (now, end), usages, is_critical=is_critical
    )
    return Certified(certificate, key)


def read_certified(certificate: Path, key: Path) -> Certified:
    """Raises InputError when one is damaged, or they do not belong together."""
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError("a key of another kind")
        if read.public_key() != private.public_key():
            raise ValueError("the key is of another certificate")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"the certificate {certificate} cannot be used ({error}); put it back") from error
    return Certified(read, private)


def refuse_outside_its_days(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    """Raise InputError for a certificate past its date, and for a clock that was set back before its beginning."""
    if now < certificate.not_valid_before_utc:
        raise InputError(
            f"the clock of this machine says {now:%Y-%m-%d %H:%M} UTC, but the certificate {path} began on "
            f"{certificate.not_valid_before_utc:%Y-%m-%d}, so nothing can be signed; set the clock right"
        )
    if now > certificate.not_valid_after_utc:
        raise InputError(
            f"the certificate {path} ended on {certificate.not_valid_after_utc.date()}, so nothing can be signed; put "
            "a new one of your authority there"
        )


def organization_of(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def keep_private(folder: Path, contents: dict[str, bytes]) -> None:
    """Files readable by their owner alone, the last of `contents` last: where it is, all are. Raises OutputError."""
    try:
        for name, content in contents.items():
            replace_secret(folder / name, content)
    except OSError as error:
        raise output_error(folder, error) from error


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority: ec.EllipticCurvePrivateKey,
    days: tuple[datetime, datetime],
    usages: Sequence[ObjectIdentifier] = (),
    *,
    is_critical: bool = False,
) -> x509.Certificate:
    """Without `usages` a root."""
    is_root, (now, end) = not usages, days
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(_key_usage(is_root=is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
        )
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=is_critical)
    return builder.sign(authority, SHA256())


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
