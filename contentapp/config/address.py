"""Hosts, listening addresses, URLs and base paths (RFC 3986, RFC 1123; OCI distribution spec for repository names)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from contentapp.config.problem import Invalid
from contentapp.core.errors import MetadataInvalid
from contentapp.core.remote_url import split_url

LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*")
HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
URL_TEXT = re.compile(r"[!-~]+")
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY_NAME = re.compile(rf"{COMPONENT}(?:/{COMPONENT})*")

HOST_MEANING = "host or host:port, such as registry.example.com or 10.0.0.5:5000"
LISTEN_MEANING = "host:port, such as 0.0.0.0:8080 or [::]:8080"


class Listen(NamedTuple):
    """Where to listen; port 0 is any free one. `host` is without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """``host:port`` with port 0 – 65535; Invalid."""
    host, port = _split_host(text, LISTEN_MEANING)
    if port is None:
        raise Invalid(f"must be {LISTEN_MEANING}")
    return Listen(host.strip("[]"), port)


def parse_host(text: str) -> str:
    """``host[:port]`` in lower case; Invalid."""
    host, port = _split_host(text, HOST_MEANING)
    if port == 0:
        raise Invalid(f"must be {HOST_MEANING}")
    return host if port is None else f"{host}:{port}"


def _split_host(text: str, meaning: str) -> tuple[str, int | None]:
    match = HOST_PORT.fullmatch(text)
    if not match or not is_host(match["host"]) or int(match["port"] or 0) > 65535:
        raise Invalid(f"must be {meaning}")
    return match["host"].lower(), int(match["port"]) if match["port"] else None


def is_host(host: str) -> bool:
    """Whether this is a name, an IPv4 address, or an IPv6 one in brackets."""
    try:
        if host.startswith("["):
            return bool(IPv6Address(host[1:-1]))
        if re.fullmatch(r"[0-9.]+", host):
            return bool(IPv4Address(host))
    except ValueError:
        return False
    return HOST_NAME.fullmatch(host) is not None


@dataclass(frozen=True, slots=True)
class RemoteURL:
    """The checked parts of a remote's URL."""

    text: str
    scheme: str
    path: str
    is_local: bool


def parse_url(text: str) -> RemoteURL:
    """An http or https URL without userinfo, query and fragment; Invalid names the rule that is broken."""
    parts = _split_url(text)
    if parts.scheme not in {"http", "https"}:
        raise Invalid("must be a URL that begins with http:// or https://")
    if "@" in parts.netloc:
        raise Invalid("must not hold a user or password; use username and password beside it")
    if "?" in text or "#" in text:
        raise Invalid("must not have a query or fragment")
    host, _ = _split_host(parts.netloc, "a URL whose host is " + HOST_MEANING)
    try:
        split_url(text)
    except MetadataInvalid as error:
        raise Invalid(str(error)) from None
    return RemoteURL(text, parts.scheme, parts.path, _is_local(host))


def parse_proxy_url(text: str) -> str:
    """A URL of an HTTP proxy, without path; Invalid."""
    url = parse_url(text)
    if url.path not in {"", "/"}:
        raise Invalid("must not have a path")
    return url.text


def _split_url(text: str) -> SplitResult:
    if not URL_TEXT.fullmatch(text):
        raise Invalid("must be a URL of printable ASCII characters")
    try:
        return urlsplit(text)
    except ValueError:
        raise Invalid("must be a URL that begins with http:// or https://") from None


def _is_local(host: str) -> bool:
    return host in {"localhost", "[::1]"} or host.startswith("127.")
