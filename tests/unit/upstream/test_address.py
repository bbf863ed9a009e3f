from __future__ import annotations

import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.upstream.address import (
    AddressNotAllowed,
    AddrInfo,
    DialGuard,
    NameResolver,
    Reach,
    classify,
    classify_host,
    system_lookup,
)

CASES = [
    ("8.8.8.8", Reach.PUBLIC),
    ("2606:4700::1111", Reach.PUBLIC),
    ("127.0.0.1", Reach.LOOPBACK),
    ("127.255.255.254", Reach.LOOPBACK),
    ("::1", Reach.LOOPBACK),
    ("10.0.0.1", Reach.PRIVATE),
    ("172.16.0.1", Reach.PRIVATE),
    ("172.31.255.255", Reach.PRIVATE),
    ("172.32.0.1", Reach.PUBLIC),
    ("192.168.1.1", Reach.PRIVATE),
    ("100.64.0.1", Reach.PRIVATE),
    ("100.127.255.254", Reach.PRIVATE),
    ("198.18.0.1", Reach.PRIVATE),
    ("fc00::1", Reach.PRIVATE),
    ("fd12:3456::1", Reach.PRIVATE),
    ("169.254.1.1", Reach.LINK_LOCAL),
    ("fe80::1", Reach.LINK_LOCAL),
    ("fe80::1%eth0", Reach.LINK_LOCAL),
    ("0.0.0.0", Reach.NOWHERE),
    ("0.1.2.3", Reach.NOWHERE),
    ("::", Reach.NOWHERE),
    ("224.0.0.1", Reach.NOWHERE),
    ("ff02::1", Reach.NOWHERE),
    ("240.0.0.1", Reach.NOWHERE),
    ("255.255.255.255", Reach.NOWHERE),
    ("169.254.169.254", Reach.METADATA),
    ("169.254.170.2", Reach.METADATA),
    ("fd00:ec2::254", Reach.METADATA),
    ("100.100.100.200", Reach.METADATA),
    ("::ffff:8.8.8.8", Reach.PUBLIC),
    ("::ffff:127.0.0.1", Reach.LOOPBACK),
    ("::ffff:10.0.0.1", Reach.PRIVATE),
    ("::ffff:169.254.169.254", Reach.METADATA),
    ("::ffff:0.0.0.0", Reach.NOWHERE),
    ("::10.0.0.1", Reach.PRIVATE),
    ("64:ff9b::10.0.0.1", Reach.PRIVATE),
    ("64:ff9b::8.8.8.8", Reach.PUBLIC),
    ("64:ff9b:1::169.254.169.254", Reach.METADATA),
    ("2002:7f00:1::", Reach.LOOPBACK),
    ("2002:a00:1::", Reach.PRIVATE),
]


@pytest.mark.parametrize(("address", "reach"), CASES)
def test_classes(address: str, reach: Reach) -> None:
    assert classify(address) is reach


@given(st.ip_addresses(v=4))
def test_an_embedded_address_has_the_class_of_what_is_inside(address: ipaddress.IPv4Address) -> None:
    inside = classify(str(address))
    assert classify(f"::ffff:{address}") is inside
    assert classify(f"64:ff9b::{address}") is inside


@given(st.ip_addresses())
def test_only_global_addresses_are_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if classify(str(address)) is Reach.PUBLIC:
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        assert (
            inner.is_global
            or str(address).startswith("64:ff9b")
            or address in ipaddress.ip_network("::/96")
            or (getattr(address, "teredo", None) is not None)
        )


@pytest.mark.parametrize(
    ("host", "reach"),
    [
        ("169.254.169.254", Reach.METADATA),
        ("LOCALHOST.", Reach.LOOPBACK),
        ("localhost", Reach.LOOPBACK),
        ("x.localhost", Reach.LOOPBACK),
        ("10.0.0.1", Reach.PRIVATE),
        ("::1", Reach.LOOPBACK),
        ("quay.io", None),
        ("1.2.3.4.example", None),
    ],
)
def test_hosts_whose_class_is_known_without_resolving(host: str, reach: Reach | None) -> None:
    assert classify_host(host) is reach


def guard(*own: str, allow_private: bool = False, is_proxied: bool = False) -> DialGuard:
    made = DialGuard(allow_private=allow_private, is_proxied=is_proxied)
    made.learn(own)
    return made


@pytest.mark.parametrize(
    ("own", "reach", "permitted"),
    [
        ("8.8.8.8", Reach.PUBLIC, True),
        ("8.8.8.8", Reach.PRIVATE, False),
        ("8.8.8.8", Reach.LOOPBACK, False),
        ("8.8.8.8", Reach.LINK_LOCAL, False),
        ("10.0.0.1", Reach.PRIVATE, True),
        ("10.0.0.1", Reach.LOOPBACK, False),
        ("127.0.0.1", Reach.LOOPBACK, True),
        ("127.0.0.1", Reach.PRIVATE, False),
        ("169.254.3.3", Reach.LINK_LOCAL, True),
        ("169.254.3.3", Reach.METADATA, False),
        ("0.0.0.0", Reach.NOWHERE, False),
    ],
)
def test_only_the_own_hosts_class_is_permitted(own: str, reach: Reach, *, permitted: bool) -> None:
    assert guard(own).permits(reach) is permitted


def test_allow_private_redirects_opens_private_classes_and_never_metadata() -> None:
    permitted = {reach for reach in Reach if guard("8.8.8.8", allow_private=True).permits(reach)}
    assert permitted == {Reach.PUBLIC, Reach.PRIVATE, Reach.LINK_LOCAL, Reach.LOOPBACK}


def info(address: str) -> AddrInfo:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 443))


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "0.0.0.0"])
def test_a_foreign_socket_is_not_even_made(address: str) -> None:
    with pytest.raises(AddressNotAllowed):
        guard("8.8.8.8").foreign_socket(info(address))


def test_a_metadata_service_is_never_dialled() -> None:
    for made in (guard("169.254.169.254", allow_private=True), guard("10.0.0.1", is_proxied=True)):
        for dial in (made.own_socket, made.foreign_socket):
            with pytest.raises(AddressNotAllowed):
                dial(info("169.254.169.254"))


def test_the_own_host_may_be_anywhere_else() -> None:
    for address in ("10.0.0.1", "127.0.0.1", "0.0.0.0", "fe80::1"):
        guard().own_socket(info(address)).close()


async def test_names_resolve_in_threads_of_their_own_and_are_reported() -> None:
    seen: list[tuple[str, list[str]]] = []
    with ThreadPoolExecutor(1) as executor:
        resolver = NameResolver(
            lambda host, port, family: ["10.0.0.1", "::1"],
            executor,
            lambda host, addresses: seen.append((host, list(addresses))),
        )
        found = await resolver.resolve("h", 5000)
    assert [(result["host"], result["port"], result["family"]) for result in found] == [
        ("10.0.0.1", 5000, socket.AF_INET),
        ("::1", 5000, socket.AF_INET6),
    ]
    assert seen == [("h", ["10.0.0.1", "::1"])]


async def test_a_name_that_idna_forbids_is_an_unknown_one() -> None:
    with ThreadPoolExecutor(1) as executor:
        resolver = NameResolver(system_lookup, executor, lambda host, addresses: None)
        with pytest.raises(socket.gaierror):
            await resolver.resolve("a" * 70 + ".example", 1)


def test_the_system_knows_localhost() -> None:
    assert "127.0.0.1" in system_lookup("localhost", 80, socket.AF_UNSPEC)
