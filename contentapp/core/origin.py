"""Which host a URL leads to, and how a URL may be shown."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
SHOWN = 300  # characters of a URL that a message repeats


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454); the host in lower case, IPv6 without brackets, no trailing dot."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, IPv6 in brackets: what cooldowns of hosts are kept by."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_origin(url: str) -> Origin:
    """The origin of an absolute http or https URL; ValueError if it is none."""
    return origin_of(urlsplit(url))


def origin_of(parts: SplitResult) -> Origin:
    """The same of a URL that is split already."""
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise ValueError("not an absolute http or https URL")
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    return Origin(parts.scheme, host, port)


def describe_origin(url: str) -> str:
    """``host:port`` of a URL, with the scheme's default port; "" for what is no http or https URL."""
    try:
        return str(parse_origin(url))
    except ValueError:
        return ""


def describe_url(url: str) -> str:
    """The URL for messages: no userinfo, query or fragment, cut to a bearable length."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return ""
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"
