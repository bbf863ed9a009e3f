"""URLs that are about to be dialled: the configured ones, and those that remotes name."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from yarl import URL

from contentapp.core.origin import Origin, origin_of

MAX_LENGTH = 8192
KEPT = "%/:=&?~#+!$,;'@()*[]-._"  # what has a meaning in a URL; all else is percent-encoded
HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?|\[[0-9a-f:.]+\]", re.IGNORECASE)
NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)  # how 127.1 and 0x7f000001 end as well
HUB_HOSTS = frozenset({"docker.io", "index.docker.io", "www.docker.io"})
HUB_REGISTRY = "registry-1.docker.io"


def parse_target(text: str) -> URL:
    """An absolute http or https URL, kept byte for byte where it is well-formed (signed URLs break otherwise).

    ValueError for userinfo, other schemes, odd hosts and ports, or more than 8192 characters. Fragments are dropped.
    """
    quoted = quote(text.strip(), safe=KEPT)
    if len(quoted) > MAX_LENGTH:
        raise ValueError("URL too long")
    parts = urlsplit(quoted)
    _check_authority(parts)
    return URL(urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, "")), encoded=True)


def _check_authority(parts: SplitResult) -> None:
    origin_of(parts)
    host, separator, port = parts.netloc, "", ""
    if match := re.fullmatch(r"(.*[^:\]]|\[.*\])(:)([0-9]*)", parts.netloc):
        host, separator, port = match.groups()
    if "@" in parts.netloc or not HOST.fullmatch(host) or (separator and not 0 < int(port or 0) < 65536):
        raise ValueError("URL with userinfo, or without a valid host and port")
    if NUMBER.fullmatch(host):
        ipaddress.IPv4Address(host)  # resolvers take other notations for addresses too


def join_target(base: URL, location: str) -> URL:
    """What a Location header of `base`'s answer means (RFC 9110 §10.2.2); ValueError as parse_target."""
    return parse_target(urljoin(str(base), quote(location.strip(), safe=KEPT)))


def target_origin(url: URL) -> Origin:
    """The origin of a parsed target."""
    return origin_of(urlsplit(str(url)))


def own_origin(remote_url: str) -> Origin:
    """The origin that a remote's credentials belong to; Docker Hub's registry has another host than its name."""
    origin = target_origin(parse_target(remote_url))
    return origin._replace(host=HUB_REGISTRY) if origin.host in HUB_HOSTS else origin
