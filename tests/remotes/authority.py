"""A certificate authority for tests: server and client certificates for loopback."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path
    serial: int

    def server_context(self, *, client_ca: Path | None = None) -> ssl.SSLContext:
        """For a server; with `client_ca` it wants a client certificate of that authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """Makes certificates under `folder`; `certificate` is the PEM file that clients must trust."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        signed = self._builder(self._name, self._key.public_key(), days=2)
        signed = signed.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = signed.add_extension(key_usage(is_authority=True), critical=True)
        self.certificate.write_bytes(self._sign(signed).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str = "server", *, client: bool = False, days: int = 1) -> Certificate:
        """A certificate for 127.0.0.1, ::1 and localhost, in ``<folder>/<name>.crt`` and ``.key``, atomically replaced.

        client: for a client. A negative number of days: already expired.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = self._builder(subject, key.public_key(), days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(loopback_names(), critical=False)
        signed = self._sign(builder)
        written = Certificate(self.folder / f"{name}.crt", self.folder / f"{name}.key", signed.serial_number)
        replace_file(written.key, key_pem(key))
        replace_file(written.certificate, signed.public_bytes(serialization.Encoding.PEM))
        return written

    def client_context(self) -> ssl.SSLContext:
        """For a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        until = now + timedelta(days=days)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(min(now, until) - timedelta(days=1)).not_valid_after(until)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return builder.add_extension(identifier, critical=False)

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())


def loopback_names() -> x509.SubjectAlternativeName:
    """The names a test server is reached by."""
    addresses = [x509.IPAddress(ip_address(text)) for text in ("127.0.0.1", "::1")]
    return x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])


def key_usage(*, is_authority: bool) -> x509.KeyUsage:
    """What the key may sign."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def replace_file(path: Path, body: bytes) -> None:
    """Write it whole or not at all, as a certificate renewal does."""
    temporary = path.with_suffix(path.suffix + ".new")
    temporary.write_bytes(body)
    temporary.chmod(0o600)
    temporary.replace(path)
