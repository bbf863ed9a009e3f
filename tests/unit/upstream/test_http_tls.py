"""TLS: custom CA, client certificate, validation off; and HTTP proxies."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import pytest

from contentapp.core.errors import AddressRefused, ConnectError, RedirectRefused, UpstreamError
from contentapp.core.secret import Secret, SecretUnavailable
from contentapp.upstream.http import HttpUpstream
from tests.unit.upstream.asking import get, http_upstream, make_remote, make_request
from tests.unit.upstream.certificates import Authority
from tests.unit.upstream.scripted import Answer, Asked, Handler, reply, scripted


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def content(asked: Asked) -> bytes:
    return reply(200, b"content")


async def test_a_custom_ca(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    async with scripted(content, authority.server_context(tmp_path)) as server:
        remote = make_remote(server.url, ca_cert=authority.certificate)
        for _ in range(2):
            assert (await get(upstream, make_request(remote))).body == b"content"
        assert server.connections == 1


async def test_an_unknown_ca_is_refused(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    async with scripted(content, authority.server_context(tmp_path)) as server:
        for number, ca_cert in enumerate((None, Authority("Other").certificate)):
            with pytest.raises(ConnectError, match="certificate refused") as caught:
                await get(upstream, make_request(make_remote(server.url, ca_cert=ca_cert, id=number)))
            assert caught.value.host == server.host
        assert server.asked == []


async def test_another_name_is_refused(authority: Authority, tmp_path: Path) -> None:
    async with (
        http_upstream(lookup=lambda host, port, family: ["127.0.0.1"]) as upstream,
        scripted(content, authority.server_context(tmp_path, "right.test")) as server,
    ):
        for name, is_right in (("right.test", True), ("wrong.test", False)):
            remote = make_remote(f"https://{name}:{server.port}", ca_cert=authority.certificate, id=int(is_right))
            if is_right:
                await get(upstream, make_request(remote))
            else:
                with pytest.raises(ConnectError):
                    await get(upstream, make_request(remote))


@pytest.mark.parametrize("with_client", [False, True])
async def test_validation_can_be_off(
    upstream: HttpUpstream, authority: Authority, tmp_path: Path, *, with_client: bool
) -> None:
    pair = authority.issue("client")
    values: dict[str, Any] = {"client_cert": pair.certificate, "client_key": Secret(pair.key)} if with_client else {}
    async with scripted(content, authority.server_context(tmp_path)) as server:
        remote = make_remote(server.url, tls_validation=False, **values)
        assert (await get(upstream, make_request(remote))).body == b"content"


async def test_a_client_certificate_leaves_no_file(
    upstream: HttpUpstream, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "tmp"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    pair = authority.issue("client")
    async with scripted(content, authority.server_context(tmp_path, wants_client=True)) as server:
        values: dict[str, Any] = {"ca_cert": authority.certificate, "client_cert": pair.certificate}
        remote = make_remote(server.url, client_key=Secret(pair.key), **values)
        assert (await get(upstream, make_request(remote))).body == b"content"
        assert list(private.iterdir()) == []
        with pytest.raises(UpstreamError):
            await get(upstream, make_request(make_remote(server.url, ca_cert=authority.certificate, id=2)))


async def test_the_custom_ca_holds_for_redirects_too(
    upstream: HttpUpstream, authority: Authority, tmp_path: Path
) -> None:
    async with scripted(content, authority.server_context(tmp_path)) as cdn:
        handler: Handler = lambda asked: reply(302, b"", ("Location", f"{cdn.url}/x"))  # noqa: E731
        async with scripted(handler, authority.server_context(tmp_path)) as server:
            remote = make_remote(server.url, ca_cert=authority.certificate)
            assert (await get(upstream, make_request(remote))).response.host == cdn.host


async def test_a_client_certificate_is_not_shown_across_a_redirect(
    upstream: HttpUpstream, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("client")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    async with scripted(content, authority.server_context(tmp_path / "a", wants_client=True)) as cdn:
        handler: Handler = lambda asked: reply(302, b"", ("Location", f"{cdn.url}/x"))  # noqa: E731
        async with scripted(handler, authority.server_context(tmp_path / "b", wants_client=True)) as server:
            values: dict[str, Any] = {"ca_cert": authority.certificate, "client_cert": pair.certificate}
            remote = make_remote(server.url, client_key=Secret(pair.key), **values)
            with pytest.raises(UpstreamError) as caught:
                await get(upstream, make_request(remote))
            assert caught.value.host == cdn.host
            assert len(server.asked) == 1
        assert cdn.asked == []


@pytest.mark.parametrize("ca_cert", ["no pem", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
async def test_a_ca_that_is_none(upstream: HttpUpstream, ca_cert: str) -> None:
    with pytest.raises(ConnectError, match="ca_cert"):
        await get(upstream, make_request(make_remote("https://127.0.0.1:1", ca_cert=ca_cert)))


async def test_keys_that_can_not_be_used(upstream: HttpUpstream, authority: Authority) -> None:
    pair, locked = authority.issue("client"), authority.issue("client", password=b"SECRET")
    keys = [Secret("no pem"), None, Secret(authority.issue("other").key), Secret(locked.key)]
    for number, key in enumerate(keys):
        certificate = locked.certificate if number == 3 else pair.certificate
        remote = make_remote("https://127.0.0.1:1", id=number, client_cert=certificate, client_key=key)
        with pytest.raises(ConnectError, match="client_key"):
            await get(upstream, make_request(remote))
    remote = make_remote("https://127.0.0.1:1", id=9, client_cert=pair.certificate, client_key=Secret(env="NOT_SET"))
    with pytest.raises(SecretUnavailable):
        await get(upstream, make_request(remote))


async def test_no_tls_there(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: Answer(b"", "close")) as server:
        remote = make_remote(f"https://127.0.0.1:{server.port}", sock_connect_timeout=0.5)
        with pytest.raises(UpstreamError) as caught:
            await get(upstream, make_request(remote))
        assert caught.value.host == server.host


async def test_never_from_https_to_http(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    async with scripted(content) as plain:
        handler: Handler = lambda asked: reply(302, b"", ("Location", f"{plain.url}/x"))  # noqa: E731
        async with scripted(handler, authority.server_context(tmp_path)) as server:
            with pytest.raises(RedirectRefused, match="https to http"):
                await get(upstream, make_request(make_remote(server.url, ca_cert=authority.certificate)))
        assert plain.connections == 0


async def test_a_realm_without_tls_is_not_asked(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    async with scripted(content) as plain:
        challenge = ("WWW-Authenticate", f'Bearer realm="{plain.url}/token"')
        async with scripted(lambda asked: reply(401, b"", challenge), authority.server_context(tmp_path)) as server:
            with pytest.raises(UpstreamError):
                await get(upstream, make_request(make_remote(server.url, ca_cert=authority.certificate)))
        assert plain.connections == 0


async def test_a_tls_body_that_is_cut(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    answer = Answer(reply(200, b"begin", length=100), "abort")
    async with scripted(lambda asked: answer, authority.server_context(tmp_path)) as server:
        with pytest.raises(UpstreamError, match="unexpected EOF"):
            await get(upstream, make_request(make_remote(server.url, ca_cert=authority.certificate)))


PROXY_BASIC = "Basic " + base64.b64encode(b"pu:SECRET").decode()


async def test_an_http_proxy_is_asked_with_its_credentials(upstream: HttpUpstream) -> None:
    async with scripted(content) as proxy:
        values: dict[str, Any] = {"proxy_username": "pu", "proxy_password": Secret("SECRET"), "proxy_url": proxy.url}
        remote = make_remote("http://registry.test:5000", **values)
        got = await get(upstream, make_request(remote, "/v2/"))
        assert got.body == b"content"
        assert got.response.host == "registry.test:5000"
        assert proxy.asked[0].target == "http://registry.test:5000/v2/"
        assert proxy.asked[0].headers["proxy-authorization"] == PROXY_BASIC


async def test_credentials_within_the_proxys_url(upstream: HttpUpstream) -> None:
    async with scripted(content) as proxy:
        remote = make_remote("http://registry.test", proxy_url=proxy.url.replace("//", "//pu:SECRET@"))
        await get(upstream, make_request(remote))
        assert proxy.asked[0].headers["proxy-authorization"] == PROXY_BASIC


async def test_https_through_a_proxy(upstream: HttpUpstream, authority: Authority, tmp_path: Path) -> None:
    def connect(asked: Asked) -> Answer:
        return Answer(b"HTTP/1.1 200 Connection established\r\n\r\n", "close", tunnel=server.port)

    async with (
        scripted(content, authority.server_context(tmp_path, "registry.test")) as server,
        scripted(connect) as proxy,
    ):
        values: dict[str, Any] = {"proxy_username": "pu", "proxy_password": Secret("SECRET"), "proxy_url": proxy.url}
        remote = make_remote(f"https://registry.test:{server.port}", ca_cert=authority.certificate, **values)
        assert (await get(upstream, make_request(remote))).body == b"content"
        assert (proxy.asked[0].method, proxy.asked[0].target) == ("CONNECT", f"registry.test:{server.port}")
        assert proxy.asked[0].headers["proxy-authorization"] == PROXY_BASIC
        assert "SECRET" not in repr(server.asked) and PROXY_BASIC not in repr(server.asked)


async def test_a_proxy_that_refuses(upstream: HttpUpstream) -> None:
    async with scripted(lambda asked: reply(407)) as proxy:
        with pytest.raises(ConnectError, match="proxy answered 407") as caught:
            await get(upstream, make_request(make_remote("https://registry.test", proxy_url=proxy.url)))
        assert caught.value.host == "registry.test:443"
    with pytest.raises(ConnectError, match=r"proxy for registry\.test") as caught:
        await get(upstream, make_request(make_remote("https://registry.test", proxy_url=proxy.url, id=2)))
    assert caught.value.phrase == "connection refused"


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:1/", "http://localhost:1/", "http://10.0.0.1/", "http://169.254.169.254/", "http://[::1]/"],
)
async def test_addresses_are_checked_where_a_proxy_resolves_the_names(upstream: HttpUpstream, location: str) -> None:
    async with scripted(lambda asked: reply(302, b"", ("Location", location))) as proxy:
        with pytest.raises(AddressRefused):
            await get(upstream, make_request(make_remote("http://registry.test", proxy_url=proxy.url)))
        assert len(proxy.asked) == 1


async def test_a_metadata_service_is_not_asked_for_through_a_proxy(upstream: HttpUpstream) -> None:
    async with scripted(content) as proxy:
        with pytest.raises(AddressRefused):
            await get(upstream, make_request(make_remote("http://169.254.169.254", proxy_url=proxy.url)))
        assert proxy.asked == []


async def test_names_redirect_through_the_proxy(upstream: HttpUpstream) -> None:
    def handler(asked: Asked) -> bytes:
        if asked.target.startswith("http://registry.test"):
            return reply(302, b"", ("Location", "http://cdn.test/x"))
        return content(asked)

    async with scripted(handler) as proxy:
        got = await get(upstream, make_request(make_remote("http://registry.test", proxy_url=proxy.url)))
        assert got.response.host == "cdn.test:80"
