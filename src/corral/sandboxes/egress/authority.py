"""The authority that signs the certificates which sandboxes see, and the certificates.

Made once for each sandbox directory; nothing outside trusts it. One key serves for all names, because making keys is
what would cost; certificates are made as names are asked for and kept, a bounded number of them.
"""

from __future__ import annotations

import os
import secrets
import ssl
import tempfile
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from corral.domain.host import as_address, normal

AUTHORITY_DAYS = 3_650
CERTIFICATE_DAYS = 90
RENEWED_AFTER = timedelta(days=30)
CONTEXTS_MAX = 256
NAME = "Corral egress"


class Pair(NamedTuple):
    """A certificate and its key, as PEM."""

    certificate: str
    private_key: str


def make_authority() -> Pair:
    """A new authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    usage = _usage(certificates=True)
    certificate = (
        _builder(key.public_key(), AUTHORITY_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(_pem(certificate), _key_pem(key))


class Authority:
    """Contexts of TLS that answer as any host. Not safe to share between threads."""

    def __init__(self, pair: Pair, scratch: Path) -> None:
        self._certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.private_key.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey), "make_authority makes no other"
        self._key, self._scratch = key, scratch
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, _Context] = OrderedDict()

    def context(self, host: str) -> ssl.SSLContext:
        """A context for a normalised host; it changes to another when the client names another."""
        kept = self._contexts.pop(host, None)
        if kept is None or datetime.now(UTC) - kept.made > RENEWED_AFTER:
            kept = self._make(host)
        self._contexts[host] = kept
        if len(self._contexts) > CONTEXTS_MAX:
            self._contexts.popitem(last=False)
        return kept

    def _make(self, host: str) -> _Context:
        address = as_address(host)
        subject = x509.DNSName(host) if address is None else x509.IPAddress(ip_address(host))
        certificate = (
            _builder(self._leaf_key.public_key(), CERTIFICATE_DAYS)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_issuer(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.host, context.made = host, datetime.now(UTC)
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = self._choose
        self._load(context, _pem(certificate) + _key_pem(self._leaf_key))
        return context

    def _load(self, context: ssl.SSLContext, pem: str) -> None:
        # OpenSSL's interface in Python takes a chain only from a file.
        with tempfile.NamedTemporaryFile("w", dir=self._scratch) as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        host = normal(name) if name else None
        if name and host is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        if host is not None:
            connection.context = self.context(host)
        return None


class _Context(ssl.SSLContext):
    host: str
    made: datetime


def answered_as(connection: ssl.SSLObject) -> str:
    """The host that the client asked for in its handshake; the context's own when it asked for none."""
    context = connection.context
    assert isinstance(context, _Context), "no other is ever set"
    return context.host


def write_private(path: Path, text: str) -> None:
    """Make a file that only its owner reads, whole or not at all, unless it is there."""
    draft = path.with_name(f"{path.name}.draft-{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _builder(key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer(key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode("ascii")
