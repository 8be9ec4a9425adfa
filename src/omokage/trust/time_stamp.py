"""Time stamps (RFC 3161): an authority's signed word that some bytes existed at a time.

The token is a CMS SignedData (RFC 5652) over a TSTInfo, with the stamping certificate inside and its hash among what is
signed (RFC 5816). Written with the ASN.1 records of `cryptography`; nothing is asked of anybody.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from omokage.trust.certificates import Certified

_SHA256: Final = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
_ECDSA_SHA256: Final = ObjectIdentifier("1.2.840.10045.4.3.2")
_SIGNED_DATA: Final = ObjectIdentifier("1.2.840.113549.1.7.2")
_TST_INFO: Final = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")
_CONTENT_TYPE: Final = ObjectIdentifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = ObjectIdentifier("1.2.840.113549.1.9.4")
_SIGNING_CERTIFICATE: Final = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")
# A policy must be named: this one, under a random UUID (X.667), says "the clock of the installation that signed".
_POLICY: Final = ObjectIdentifier("2.25.231207253460026989324092201265612326528")


@asn1.sequence
class _Algorithm:
    algorithm: ObjectIdentifier


@asn1.sequence
class _MessageImprint:
    algorithm: _Algorithm
    digest: bytes


@asn1.sequence
class _TstInfo:
    version: int
    policy: ObjectIdentifier
    imprint: _MessageImprint
    serial_number: int
    time: asn1.GeneralizedTime


@asn1.sequence
class _CertificateHash:
    digest: bytes


@asn1.sequence
class _SigningCertificate:
    certificates: list[_CertificateHash]


@asn1.sequence
class _Attribute:
    kind: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _Content:
    kind: ObjectIdentifier
    content: Annotated[bytes, asn1.Explicit(0)]


@asn1.sequence
class _SignerIdentifier:
    issuer: asn1.TLV
    serial_number: int


@asn1.sequence
class _SignerInfo:
    version: int
    signer: _SignerIdentifier
    digest_algorithm: _Algorithm
    attributes: Annotated[asn1.SetOf[_Attribute], asn1.Implicit(0)]
    signature_algorithm: _Algorithm
    signature: bytes


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.SetOf[_Algorithm]
    content: _Content
    certificates: Annotated[asn1.SetOf[x509.Certificate], asn1.Implicit(0)]
    signers: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _Token:
    kind: ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


@dataclass(frozen=True, slots=True)
class StampAuthority:
    """Who says what time it is: a certificate for time stamping alone, with its key."""

    held: Certified

    def stamp(self, digest: bytes, now: datetime | None = None) -> bytes:
        """A TimeStampToken (DER) over a SHA-256, to the second."""
        now = (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        certificate, sha256 = self.held.certificate, _Algorithm(algorithm=_SHA256)
        info = asn1.encode_der(
            _TstInfo(
                version=1,
                policy=_POLICY,
                imprint=_MessageImprint(algorithm=sha256, digest=digest),
                serial_number=x509.random_serial_number(),
                time=asn1.GeneralizedTime(now),
            )
        )
        own = _CertificateHash(digest=hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest())
        attributes = asn1.SetOf(
            [
                _attribute(_CONTENT_TYPE, _TST_INFO),
                _attribute(_MESSAGE_DIGEST, hashlib.sha256(info).digest()),
                _attribute(_SIGNING_CERTIFICATE, _SigningCertificate(certificates=[own])),
            ]
        )
        signer = _SignerInfo(
            version=1,
            signer=_SignerIdentifier(
                issuer=_any(certificate.issuer.public_bytes()), serial_number=certificate.serial_number
            ),
            digest_algorithm=sha256,
            attributes=attributes,
            signature_algorithm=_Algorithm(algorithm=_ECDSA_SHA256),
            signature=self.held.key.sign(asn1.encode_der(attributes), ec.ECDSA(SHA256())),
        )
        data = _SignedData(
            version=3,
            digest_algorithms=asn1.SetOf([sha256]),
            content=_Content(kind=_TST_INFO, content=info),
            certificates=asn1.SetOf([certificate]),
            signers=asn1.SetOf([signer]),
        )
        return asn1.encode_der(_Token(kind=_SIGNED_DATA, content=data))


def _attribute(kind: ObjectIdentifier, value: Any) -> _Attribute:
    return _Attribute(kind=kind, values=asn1.SetOf([_any(asn1.encode_der(value))]))


def _any(der: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, der)
