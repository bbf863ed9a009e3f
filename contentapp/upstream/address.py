"""Which addresses a remote may send us to (P8), checked on the address that is really dialled."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from enum import StrEnum

from aiohttp.abc import AbstractResolver, ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddrInfo = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
Lookup = Callable[[str, int, int], Sequence[str]]
"""Blocking: host, port and address family to addresses, the best first; OSError (gaierror) when there are none."""

# The metadata services of clouds hand out credentials to whoever asks from inside.
METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # ECS
        "169.254.170.23",  # EKS
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
    )
)
THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
COMPATIBLE = ipaddress.ip_network("::/96")
TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))


class Reach(StrEnum):
    """Classes of addresses, by who can be reached there."""

    PUBLIC = "public"
    PRIVATE = "private"  # RFC 1918, ULA, 100.64/10 and all else that is not globally reachable
    LINK_LOCAL = "link-local"
    LOOPBACK = "loopback"
    NOWHERE = "unusable"  # unspecified, multicast, reserved
    METADATA = "metadata"


ALLOWABLE = frozenset({Reach.PRIVATE, Reach.LINK_LOCAL, Reach.LOOPBACK})


def classify(text: str) -> Reach:
    """The class of an address; of the IPv4 address inside for IPv6 forms that carry one. ValueError if it is none."""
    outer = ipaddress.ip_address(text.partition("%")[0])
    address = _embedded(outer) or outer
    if outer in METADATA or address in METADATA:
        return Reach.METADATA
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_link_local:
        return Reach.LINK_LOCAL
    if address.is_unspecified or address.is_multicast or (address.version == 4 and address in THIS_NETWORK):
        return Reach.NOWHERE
    if address.is_reserved:
        return Reach.NOWHERE
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def _embedded(address: Address) -> Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if any(address in network for network in TRANSLATED) or (address in COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def classify_host(host: str) -> Reach | None:
    """The class of a host that is an address, or a name that always means this host; None for other names."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return Reach.LOOPBACK
    try:
        return classify(name)
    except ValueError:
        return None


class AddressNotAllowed(OSError):
    """Raised instead of dialling. An OSError, so that the host's other addresses are still tried; its text is always
    the same, so that several of them stay one error of this type."""

    def __init__(self) -> None:
        super().__init__("address not allowed")


class DialGuard:
    """What the connections of one remote may reach. `own`: the classes of its own host, as it last resolved."""

    def __init__(self, *, allow_private: bool, is_proxied: bool) -> None:
        self.own: frozenset[Reach] = frozenset()
        self._allow_private = allow_private
        self._is_proxied = is_proxied

    def learn(self, addresses: Sequence[str]) -> None:
        """The remote's own host resolved to these."""
        self.own = frozenset(classify(address) for address in addresses)

    def permits(self, reach: Reach) -> bool:
        """Whether a redirect or realm may lead to an address of this class."""
        if reach is Reach.PUBLIC:
            return True
        return reach in ALLOWABLE and (self._allow_private or reach in self.own)

    def own_socket(self, info: AddrInfo) -> socket.socket:
        """A socket to the remote's own host: anywhere but to a metadata service."""
        if classify(str(info[4][0])) is Reach.METADATA:
            raise AddressNotAllowed
        return socket.socket(info[0], info[1], info[2])

    def foreign_socket(self, info: AddrInfo) -> socket.socket:
        """A socket to a host that the remote named; with a proxy it is the proxy's, and the proxy resolves names."""
        if not self._is_proxied and not self.permits(classify(str(info[4][0]))):
            raise AddressNotAllowed
        return self.own_socket(info)


def system_lookup(host: str, port: int, family: int) -> Sequence[str]:
    """The system's resolver."""
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


class NameResolver(AbstractResolver):
    """Resolves in threads of its own: a dead name server must not hold up the threads that write files.

    `seen` is told what each host resolved to.
    """

    def __init__(self, lookup: Lookup, executor: Executor, seen: Callable[[str, Sequence[str]], None]) -> None:
        self._lookup = lookup
        self._executor = executor
        self._seen = seen

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name; OSError when there are none."""
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.run_in_executor(self._executor, self._lookup, host, port, int(family))
        except UnicodeError:  # a label that IDNA does not allow
            raise socket.gaierror(socket.EAI_NONAME, "no such host") from None
        self._seen(host, addresses)
        return [_result(host, address, port) for address in addresses]

    async def close(self) -> None:
        """Nothing of its own to close."""


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}
