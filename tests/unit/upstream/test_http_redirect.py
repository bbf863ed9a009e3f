"""Redirects, the address check (P8) and the gate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from contentapp.core.errors import AddressRefused, ConnectError, HostCooling, RedirectRefused, UpstreamStatusError
from contentapp.core.secret import Secret
from contentapp.upstream.http import HttpUpstream
from tests.unit.upstream.asking import get, http_upstream, make_remote, make_request
from tests.unit.upstream.scripted import MANY, Answer, Asked, Handler, reply, scripted


def redirect(location: str, status: int = 302) -> bytes:
    return reply(status, b"see there", ("Location", location))


def content(asked: Asked) -> bytes:
    return reply(200, b"content")


def always(location: str) -> Handler:
    return lambda asked: redirect(location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_another_host_takes_range_along_and_nothing_secret(
    upstream: HttpUpstream, status: int
) -> None:
    part = reply(206, b"56789", ("Content-Range", "bytes 5-9/10"))
    async with scripted(lambda asked: part) as cdn:
        target = f"{cdn.url}/blob%2F1?X-Sig=a%2Bb"
        async with scripted(lambda asked: redirect(target, status)) as registry:
            remote = make_remote(registry.url, headers=(("X-Api-Key", "SECRET"), ("Authorization", "Basic SECRET")))
            request = make_request(remote, offset=5, if_range='"v"', headers={"Accept": "a/b", "X-Own": "SECRET"})
            got = await get(upstream, request)
        assert got.body == b"56789"
        assert got.response.host == cdn.host
        assert got.response.url == f"{cdn.url}/blob%2F1"
        asked = cdn.asked[0]
        assert asked.target == "/blob%2F1?X-Sig=a%2Bb"
        assert (asked.headers["range"], asked.headers["if-range"], asked.headers["accept"]) == (
            "bytes=5-",
            '"v"',
            "a/b",
        )
        assert "SECRET" not in repr(asked)
        assert registry.asked[0].headers["x-api-key"] == "SECRET"


async def test_nothing_secret_crosses_a_redirect_to_the_same_origin_either(upstream: HttpUpstream) -> None:
    def handler(asked: Asked) -> bytes:
        if asked.path == "/f":
            return redirect("/g")
        return content(asked)

    async with scripted(handler) as server:
        remote = make_remote(server.url, headers=(("X-Api-Key", "SECRET"), ("Authorization", "Basic SECRET")))
        assert (await get(upstream, make_request(remote))).body == b"content"
        assert server.paths() == ["/f", "/g"]
        assert "SECRET" not in repr(server.asked[1])


async def test_basic_credentials_that_were_learned_do_not_cross_either(upstream: HttpUpstream) -> None:
    async with scripted(content) as cdn:

        def handler(asked: Asked) -> bytes:
            if "authorization" not in asked.headers:
                return reply(401, b"", ("WWW-Authenticate", "Basic realm=x"))
            return redirect(f"{cdn.url}/x")

        async with scripted(handler) as registry:
            remote = make_remote(registry.url, username="u", password=Secret("SECRET"))
            for _ in range(2):
                await get(upstream, make_request(remote))
            assert len(registry.asked) == 3
        assert all("authorization" not in asked.headers for asked in cdn.asked)


async def test_a_source_outside_its_remote_gets_no_credentials(upstream: HttpUpstream) -> None:
    def handler(asked: Asked) -> bytes:
        return reply(401, b"", ("WWW-Authenticate", "Basic realm=x"))

    async with scripted(content) as own, scripted(handler) as other:
        remote = make_remote(own.url, username="u", password=Secret("SECRET"), headers=(("X-Api-Key", "SECRET"),))
        with pytest.raises(UpstreamStatusError):
            await get(upstream, make_request(remote, f"{other.url}/f"))
        assert len(other.asked) == 1
        assert "SECRET" not in repr(other.asked)
        assert other.asked[0].headers.get("authorization") is None


@pytest.mark.parametrize(("hops", "limit", "is_followed"), [(5, 5, True), (6, 5, False), (1, 0, False), (1, 1, True)])
async def test_the_number_of_redirects_is_bounded(
    upstream: HttpUpstream, hops: int, limit: int, *, is_followed: bool
) -> None:
    def handler(asked: Asked) -> bytes:
        number = int(asked.path[1:])
        return redirect(f"/{number + 1}") if number < hops else content(asked)

    async with scripted(handler) as server:
        request = make_request(make_remote(server.url, max_redirects=limit), "/0")
        if is_followed:
            assert (await get(upstream, request)).body == b"content"
        else:
            with pytest.raises(RedirectRefused):
                await get(upstream, request)
        assert len(server.asked) == min(hops, limit) + 1


async def test_a_loop_ends(upstream: HttpUpstream) -> None:
    async with scripted(always("/f")) as server:
        with pytest.raises(RedirectRefused) as caught:
            await get(upstream, make_request(make_remote(server.url)))
        assert caught.value.host == server.host
        assert len(server.asked) == 6


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://h/",
        "http://user:pw@127.0.0.1/",
        "http://h:0/",
        "javascript:x",
        "http://",
        "//",
        "http://[::1/",
        "http://10.1/",
    ],
)
async def test_locations_that_are_not_followed(upstream: HttpUpstream, location: str) -> None:
    async with scripted(always(location)) as server:
        with pytest.raises(RedirectRefused) as caught:
            await get(upstream, make_request(make_remote(server.url, max_redirects=1)))
        assert "pw" not in str(caught.value)


async def test_the_body_of_a_redirect_is_not_drained(upstream: HttpUpstream) -> None:
    head = reply(302, b"", ("Location", "/end"), length=1 << 40)

    def handler(asked: Asked) -> Answer:
        return Answer(content(asked)) if asked.path == "/end" else Answer(head + b"x" * 65536, repeat=MANY)

    async with scripted(handler) as server, upstream.open(make_request(make_remote(server.url))) as response:
        assert await asyncio.wait_for(server.ended.get(), 5) == 1
        assert await response.read(100) == b"content"


async def test_a_redirect_without_location(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(302)) as server:
        with pytest.raises(RedirectRefused):
            await get(upstream, make_request(make_remote(server.url)))


async def test_head_stays_head_over_303(upstream: HttpUpstream) -> None:
    def handler(asked: Asked) -> bytes:
        if asked.path == "/g":
            return reply(200, length=7)
        return b"HTTP/1.1 303 See Other\r\nLocation: /g\r\nContent-Length: 0\r\n\r\n"

    async with scripted(handler) as server:
        got = await get(upstream, make_request(make_remote(server.url), method="HEAD"))
        assert got.response.size == 7
        assert [asked.method for asked in server.asked] == ["HEAD", "HEAD"]


INTERNAL = [
    "http://10.0.0.1:1/",
    "http://192.168.0.1:1/",
    "http://172.16.0.1:1/",
    "http://100.64.0.1:1/",
    "http://169.254.1.1:1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:10.0.0.1]:1/",
    "http://[fd00::1]:1/",
    "http://[fe80::1]:1/",
    "http://0.0.0.0:1/",
    "http://[::]:1/",
    "http://224.0.0.1:1/",
]


@pytest.mark.parametrize("location", INTERNAL)
async def test_redirects_to_internal_addresses_are_not_dialled(upstream: HttpUpstream, location: str) -> None:
    async with scripted(always(location)) as server:
        with pytest.raises(AddressRefused) as caught:
            await get(upstream, make_request(make_remote(server.url)))
        assert caught.value.is_permanent
        assert caught.value.host != server.host


def lookup(names: Mapping[str, Sequence[str]]) -> Callable[[str, int, int], Sequence[str]]:
    return lambda host, port, family: names[host]


async def test_names_are_checked_by_what_they_resolve_to() -> None:
    names = {"registry.test": ["127.0.0.1"], "cdn.test": ["10.0.0.1", "fd00::1"], "metadata.test": ["169.254.169.254"]}
    async with http_upstream(lookup=lookup(names)) as upstream:
        for name in ("cdn.test", "metadata.test"):
            async with scripted(always(f"http://{name}:1/x")) as server:
                remote = make_remote(f"http://registry.test:{server.port}")
                with pytest.raises(AddressRefused) as caught:
                    await get(upstream, make_request(remote))
                assert caught.value.host == f"{name}:1"


async def test_a_name_with_a_refused_and_a_permitted_address_is_reached_at_the_permitted_one() -> None:
    names = {"registry.test": ["127.0.0.1"], "cdn.test": ["10.0.0.1", "127.0.0.1"]}
    async with http_upstream(lookup=lookup(names)) as upstream, scripted(content) as cdn:
        remote = make_remote("http://registry.test:1")
        request = make_request(remote, f"http://cdn.test:{cdn.port}/x")
        assert (await asyncio.wait_for(get(upstream, request), 3)).body == b"content"


async def test_a_public_remote_may_not_send_us_to_loopback() -> None:
    """The own host's class is what it resolved to, so a source elsewhere makes it known without dialling it."""
    names = {"registry.test": ["203.0.114.1"], "cdn.test": ["127.0.0.1"]}
    async with http_upstream(lookup=lookup(names)) as upstream, scripted(content) as cdn:
        remote = make_remote("http://registry.test:1")
        for host in ("cdn.test", "127.0.0.1"):
            with pytest.raises(AddressRefused):
                await get(upstream, make_request(remote, f"http://{host}:{cdn.port}/x"))
        assert cdn.connections == 0


async def test_the_class_of_the_own_host_follows_its_name() -> None:
    names = {"registry.test": ["127.0.0.1"]}
    async with http_upstream(lookup=lookup(names)) as upstream, scripted(content) as cdn:
        remote = make_remote("http://registry.test:1")
        url = f"http://127.0.0.1:{cdn.port}/x"
        assert (await get(upstream, make_request(remote, url))).body == b"content"
    names = {"registry.test": ["8.8.8.8"]}
    async with http_upstream(lookup=lookup(names)) as upstream, scripted(content) as cdn:
        with pytest.raises(AddressRefused):
            await get(upstream, make_request(remote, f"http://127.0.0.1:{cdn.port}/x"))


async def test_allow_private_redirects() -> None:
    names = {"registry.test": ["8.8.8.8"]}
    async with http_upstream(lookup=lookup(names)) as upstream, scripted(content) as cdn:
        remote = make_remote("http://registry.test:1", allow_private_redirects=True)
        assert (await get(upstream, make_request(remote, f"http://127.0.0.1:{cdn.port}/x"))).body == b"content"
        with pytest.raises(AddressRefused):
            await get(upstream, make_request(remote, "http://169.254.169.254/latest/meta-data"))


async def test_a_metadata_service_is_no_remote(upstream: HttpUpstream) -> None:
    with pytest.raises(AddressRefused):
        await get(upstream, make_request(make_remote("http://169.254.169.254/")))


async def test_the_gate_is_asked_once_for_each_host_before_it_is_talked_to(upstream: HttpUpstream) -> None:
    seen: list[tuple[str, int, int]] = []

    def end(asked: Asked) -> bytes:
        return content(asked) if asked.path == "/end" else redirect("/end")

    async with scripted(end) as cdn, scripted(always(f"{cdn.url}/x")) as registry:

        async def gate(host: str) -> None:
            seen.append((host, registry.connections, cdn.connections))

        await get(upstream, make_request(make_remote(registry.url), gate=gate))
        assert seen == [(registry.host, 0, 0), (cdn.host, 1, 0)]


async def test_a_host_that_cools_down_is_not_talked_to(upstream: HttpUpstream) -> None:
    async with scripted(content) as cdn, scripted(always(f"{cdn.url}/x")) as registry:

        async def gate(host: str) -> None:
            if host == cdn.host:
                raise HostCooling("cooling", host=host, retry_after_seconds=7)

        with pytest.raises(HostCooling) as caught:
            await get(upstream, make_request(make_remote(registry.url), gate=gate))
        assert caught.value.retry_after_seconds == 7
        assert cdn.connections == 0


async def test_errors_name_the_host_that_failed(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(503)) as cdn, scripted(always(f"{cdn.url}/x")) as registry:
        with pytest.raises(UpstreamStatusError) as caught:
            await get(upstream, make_request(make_remote(registry.url)))
        assert caught.value.host == cdn.host
    async with scripted(always(f"{cdn.url}/x")) as registry:
        with pytest.raises(ConnectError) as refused:
            await get(upstream, make_request(make_remote(registry.url)))
        assert refused.value.host == cdn.host
        assert refused.value.phrase == "connection refused"
