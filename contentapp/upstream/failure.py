"""aiohttp's errors in our words, once."""

from __future__ import annotations

import errno
import socket
import ssl

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from contentapp.core.errors import (
    AddressRefused,
    ConnectError,
    TransferInterrupted,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from contentapp.upstream.address import AddressNotAllowed
from contentapp.upstream.base import RemoteBusy

HEAD_FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
# RuntimeError is aiohttp's word for a read from a connection that was closed under it.
BODY_FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)
PHRASES = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTUNREACH: "network is unreachable",
    errno.ENETDOWN: "network is unreachable",
    errno.EADDRNOTAVAIL: "network is unreachable",
    errno.ETIMEDOUT: "i/o timeout",
    errno.ECONNRESET: "unexpected EOF",
    errno.ECONNABORTED: "unexpected EOF",
    errno.EPIPE: "unexpected EOF",
}
OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def head_failure(error: Exception, host: str) -> UpstreamError:
    """Why there is no answer's head. The texts of aiohttp's errors hold URLs, so they are not repeated."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, AddressNotAllowed):
        return AddressRefused(f"{host} is at an address that this remote may not send us to", host=host)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return _name_failure(cause, host)
    if (tls := _tls_cause(error)) is not None:
        return ConnectError(f"TLS to {host}: {_tls_reason(tls)}", host=host)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return ConnectError(f"the proxy answered {error.status} for {host}", host=host)
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError | ValueError):
        return UpstreamProtocolError(f"{host} sent a malformed or endless head", host=host)
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"{host}: i/o timeout", host=host)
    return _network_failure(error, cause, host)


def _network_failure(error: Exception, cause: Exception, host: str) -> UpstreamError:
    number = getattr(cause, "errno", None) or 0
    if number in OURS:
        return RemoteBusy(f"no connection to {host}: {errno.errorcode[number]}", retry_after_seconds=1.0)
    is_cut = not number and not isinstance(error, aiohttp.ClientConnectorError)
    phrase = PHRASES.get(number, "unexpected EOF" if is_cut else "connection refused")
    via = "proxy for " if isinstance(error, aiohttp.ClientProxyConnectionError) else ""
    return ConnectError(f"{via}{host}: {phrase}", host=host, phrase=phrase)


def _name_failure(cause: Exception, host: str) -> UpstreamError:
    """EAI_AGAIN says that no name server answered, which is not the same as an unknown name."""
    is_silent = getattr(cause, "errno", None) == socket.EAI_AGAIN
    phrase = "i/o timeout" if is_silent else "no such host"
    return ConnectError(f"look-up of {host}: {phrase}", host=host, phrase=phrase)


def _tls_cause(error: BaseException | None) -> ssl.SSLError | None:
    for _ in range(5):
        inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        if isinstance(inner, ssl.SSLError):
            return inner
        error = error.__cause__ if error is not None else None
    return None


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    return error.reason or type(error).__name__


def body_failure(error: Exception, host: str) -> UpstreamError:
    """Why a body stopped."""
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"{host}: i/o timeout within the body", host=host)
    return TransferInterrupted(f"{host}: unexpected EOF within the body", host=host)
