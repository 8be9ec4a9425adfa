"""Signatures over a manifest: which algorithm a certificate asks for, by a key in a file or by whoever holds it.

A key that no file may hold, as in a hardware security module, signs through a program or a Python callable: it gets the
bytes to sign, about two kilobytes and never the film, and gives the signature back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from omokage.errors import InputError, OutputError
from omokage.media.process import run_program

# Data in, signature out: ECDSA as DER or as r and s behind each other, RSA-PSS, Ed25519.
SigningFunction = Callable[[bytes], bytes]
PROGRAM_S: Final = 60.0  # a token whose button somebody has to press
_CURVES: Final[dict[str, tuple[str, HashAlgorithm]]] = {
    "secp256r1": ("ES256", SHA256()),
    "secp384r1": ("ES384", SHA384()),
    "secp521r1": ("ES512", SHA512()),
}
_PSS: Final = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=SHA256.digest_size)


def algorithm_of(public: CertificatePublicKeyTypes) -> str:
    """By its name in C2PA 2.2, section 13.2: ES256, ES384, ES512, ED25519 or PS256. Raises InputError for others."""
    match public:
        case ec.EllipticCurvePublicKey() if public.curve.name in _CURVES:
            return _CURVES[public.curve.name][0]
        case ed25519.Ed25519PublicKey():
            return "ED25519"
        case rsa.RSAPublicKey() if public.key_size >= 2048:
            return "PS256"
    raise InputError(
        "the signing certificate has a key that C2PA does not allow; use one on P-256, P-384 or P-521, Ed25519, or RSA "
        "of at least 2048 bits"
    )


def by_key(pem: bytes) -> SigningFunction:
    """Signs with a key in PKCS 8. Raises ValueError, TypeError."""
    key = load_pem_private_key(pem, None)

    def sign(data: bytes) -> bytes:
        match key:
            case ec.EllipticCurvePrivateKey():
                return key.sign(data, ec.ECDSA(_CURVES[key.curve.name][1]))
            case rsa.RSAPrivateKey():
                return key.sign(data, _PSS, SHA256())
            case ed25519.Ed25519PrivateKey():
                return key.sign(data)
        raise InputError("the signing key is of a kind that C2PA does not allow")

    return sign


def by_program(command: Sequence[str]) -> SigningFunction:
    """Signs with a program: data to its input, the signature from its output. Raises OutputError when it fails."""
    return lambda data: run_program(command, data, timeout_s=PROGRAM_S)


def checked(sign: SigningFunction, public: CertificatePublicKeyTypes) -> SigningFunction:
    """The same, but raises OutputError when what comes back is no signature by the certificate's key."""

    def sign_and_check(data: bytes) -> bytes:
        signature = sign(data)
        if not _is_by(public, data, signature):
            raise OutputError("what came back is no signature by the key of the signing certificate")
        return signature

    return sign_and_check


def _is_by(public: CertificatePublicKeyTypes, data: bytes, signature: bytes) -> bool:
    try:
        match public:
            case ec.EllipticCurvePublicKey():
                half = (public.curve.key_size + 7) // 8
                if len(signature) == 2 * half:
                    r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
                    signature = encode_dss_signature(r, s)
                public.verify(signature, data, ec.ECDSA(_CURVES[public.curve.name][1]))
            case rsa.RSAPublicKey():
                public.verify(signature, data, _PSS, SHA256())
            case ed25519.Ed25519PublicKey():
                public.verify(signature, data)
            case _:
                return False
    except InvalidSignature:
        return False
    return True
