"""A remote's TLS settings as SSL contexts."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from contentapp.core.errors import ConnectError
from contentapp.core.records import Remote


@dataclass(frozen=True, slots=True)
class Contexts:
    """For the remote's own host, and for hosts that it names; True and False as aiohttp takes them."""

    own: ssl.SSLContext | bool
    foreign: ssl.SSLContext | bool


def needs_contexts(remote: Remote) -> bool:
    """Whether the shared default will not do."""
    return bool(remote.ca_cert or remote.client_cert)


def build_contexts(remote: Remote) -> Contexts:
    """Blocking for some 50 ms. ConnectError when a PEM text can't be used; SecretUnavailable for the key.

    The own host is checked against `ca_cert` alone, as Pulp does; hosts it names against the system's CAs as well,
    since CDNs have public certificates. Only the own host is shown the client certificate.
    """
    try:
        return Contexts(_own(remote), _foreign(remote))
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConnectError(f"ca_cert, client_cert or client_key can't be used: {type(error).__name__}") from None


def _own(remote: Remote) -> ssl.SSLContext:
    context = _context(remote)
    if remote.ca_cert:
        context.load_verify_locations(cadata=remote.ca_cert)
    else:
        context.load_default_certs()
    if remote.client_cert:
        _load_client(context, remote)
    return context


def _foreign(remote: Remote) -> ssl.SSLContext:
    context = _context(remote)
    context.load_default_certs()
    if remote.ca_cert:
        context.load_verify_locations(cadata=remote.ca_cert)
    return context


def _context(remote: Remote) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if not remote.settings.tls_validation:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_client(context: ssl.SSLContext, remote: Remote) -> None:
    """OpenSSL reads the pair from a file only: one of mode 0600 in a folder of mode 0700, gone at once."""
    key = remote.client_key.reveal() if remote.client_key else ""
    with tempfile.TemporaryDirectory(prefix="contentapp-") as folder:
        path = Path(folder, "client.pem")
        path.touch(mode=0o600)
        path.write_text(f"{remote.client_cert}\n{key}\n", encoding="utf-8")
        # Without a password here OpenSSL would ask for one on the terminal.
        context.load_cert_chain(path, password="")
