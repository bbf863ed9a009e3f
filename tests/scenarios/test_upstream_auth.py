"""How remotes are talked to: who we are to them, on which way, how fast, and how often again."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import Proxy, clean_environment, pull_through
from tests.remotes.authority import Authority
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import Delay, Redirect, Stall, Status, challenge, too_many
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.remotes.tokens import TokenServer
from tests.scenarios.device import Answer, ask
from tests.scenarios.forward_proxy import ForwardProxy
from tests.scenarios.leak import assert_unsaid
from tests.scenarios.stage import PATIENT, merged, staged, until

KIB = 1024
MIB = 1024 * KIB
USER, PASSWORD = "robot", "corr3ct-horse"
BASIC = aiohttp.encode_basic_auth(USER, PASSWORD)
LOGIN = {"username": USER, "password": PASSWORD}


def registry(name: str, url: str, **remote: Any) -> dict[str, Any]:
    """A distribution and its remote of the same name, which is never left alone."""
    return pull_through(
        "container", name, {name: url}, remote={**PATIENT, **remote}, distribution={"tag_ttl_seconds": 0}
    )


def sent(remote: Any) -> list[str]:
    """The Authorization of each request it got, "" for none."""
    return [exchange.headers.get("Authorization", "") for exchange in remote.requests]


async def test_every_kind_of_login(tmp_path: Path) -> None:
    """Anonymous, Basic, bearer with and without a password, both field names, a challenge with several schemes."""
    locked = TokenServer(credentials=(USER, PASSWORD))
    opened = TokenServer(field="access_token", lifetime_seconds=None)
    remotes = {
        "open": RegistryRemote(),
        "basic": RegistryRemote(credentials=(USER, PASSWORD)),
        "bearer": RegistryRemote(tokens=locked),
        "public": RegistryRemote(tokens=opened),
        "stranger": RegistryRemote(credentials=(USER, PASSWORD)),
        "wrong": RegistryRemote(tokens=locked),
        "offers": RegistryRemote(tokens=locked),
    }
    async with locked, opened, contexts(remotes):
        image = make_image()
        for remote in remotes.values():
            remote.push("app", "v1", image)
            remote.push("other", "v1", image)
        offer = (
            f'Negotiate, Basic realm="x", {locked.challenge("repository:app:pull")}, Digest qop="auth", nonce="a,b\\"c"'
        )
        remotes["offers"].script("*", challenge(offer), times=1)
        logins: dict[str, dict[str, Any]] = dict.fromkeys(("open", "basic", "bearer", "offers"), LOGIN) | {
            "wrong": {"username": USER, "password": "not-" + PASSWORD}
        }
        configs = [registry(name, remote.url, **logins.get(name, {})) for name, remote in remotes.items()]
        async with staged(tmp_path, *configs) as proxy:
            answers = {name: await ask(f"{proxy.url}/v2/{name}/app/manifests/v1") for name in remotes}
            statuses = {name: answer.status for name, answer in answers.items()}
            assert statuses == dict.fromkeys(remotes, 200) | {"stranger": 403, "wrong": 403}
            assert set(sent(remotes["open"])) == {""}, "nobody asked for it"
            assert sent(remotes["basic"]) == ["", BASIC]
            assert [value[:7] for value in sent(remotes["bearer"])] == ["", "Bearer "]
            assert set(sent(opened)) == {""}
            assert answers["public"].headers["Cache-Control"] == "no-cache"
            for name in ("basic", "bearer"):
                assert answers[name].headers["Cache-Control"] == "private, no-cache"

            # What the first 401 has taught is sent at once from then on; a token is one name's alone.
            for _ in range(2):
                assert (await ask(f"{proxy.url}/v2/basic/app/manifests/v1")).status == 200
                assert (await ask(f"{proxy.url}/v2/bearer/app/manifests/v1")).status == 200
            assert sent(remotes["basic"])[2:] == [BASIC] * 2
            assert len(set(sent(remotes["bearer"])[1:])) == 1
            assert (await ask(f"{proxy.url}/v2/bearer/other/manifests/v1")).status == 200
            scopes = [exchange.query for exchange in locked.requests if BASIC in exchange.headers.values()]
            assert sum("other" in query for query in scopes) == 1
            assert all(f"service={locked.service}" in query for query in scopes)
            assert all(":pull" in query and "push" not in query for query in scopes)

            # A token that is refused is dropped, and a new one asked for within the same request.
            locked.expire()
            assert (await ask(f"{proxy.url}/v2/bearer/app/manifests/v1")).status == 200
            assert len(set(sent(remotes["bearer"]))) == 4
            assert await proxy.admin("/pulp/api/v3/cooldowns/?remote=bearer") | {"results": 0} == {
                "count": 0,
                "next": None,
                "previous": None,
                "results": 0,
            }
            tokens = {value[7:] for remote in remotes.values() for value in sent(remote) if value[:7] == "Bearer "}
            await assert_unsaid(proxy, [PASSWORD, BASIC[6:], *tokens], answers.values())


@asynccontextmanager
async def contexts(remotes: dict[str, RegistryRemote]) -> AsyncIterator[None]:
    """All of them running."""
    for remote in remotes.values():
        await remote.__aenter__()
    try:
        yield
    finally:
        for remote in remotes.values():
            await remote.__aexit__()


async def test_one_token_for_many_and_renewed_before_its_end(tmp_path: Path) -> None:
    """Twenty devices cost one token; one that lives 2 s is replaced before a registry could refuse it."""
    tokens = TokenServer(lifetime_seconds=2)
    async with tokens, RegistryRemote(tokens=tokens) as remote:
        image = make_image(layers=8, layer_size=2 * KIB)
        remote.push("app", "v1", image)
        gate = tokens.hold("/token", times=1)
        async with staged(tmp_path, registry("reg", remote.url)) as proxy:
            urls = [f"{proxy.url}/v2/reg/app/blobs/{blob.digest}" for blob in image.blobs]
            pulls = [asyncio.create_task(ask(url)) for url in urls * 3]
            await gate.reached()
            await remote.seen(count=len(image.blobs))
            gate.release()
            assert {answer.status for answer in await asyncio.gather(*pulls)} == {200}
            assert tokens.count() == 1
            remote.forget()
            started = time.monotonic()
            while time.monotonic() - started < 3:
                assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
                await asyncio.sleep(0.05)
            assert 401 not in {exchange.status for exchange in remote.requests}
            assert 2 <= tokens.count() <= 4


async def test_token_server_that_fails_or_lies(tmp_path: Path) -> None:
    """Each is a source failure with a definite answer; a 404 of it is none of the content."""
    bodies = {
        "html": b"<html>",
        "list": b"[]",
        "empty": b"{}",
        "number": b'{"token": 5}',
        "null": b'{"token": null}',
        "injection": b'{"token": "a\\r\\nX-Evil: 1"}',
        "unicode": '{"token": "tökén"}'.encode(),
        "long": b'{"token": "' + b"a" * 20_000 + b'"}',
        "endless": b'{"token": "' + b"a" * 2_000_000,
        "deep": b"[" * 200_000,
        "nan": b'{"token": "good", "expires_in": NaN}',
        "lifetime": b'{"token": "good", "expires_in": 1e999}',
        "negative": b'{"token": "good", "expires_in": -5}',
    }
    server = FileRemote(bodies, manifest=False)
    async with server, RegistryRemote() as remote, RegistryRemote() as refused:
        server.script("/redirect", Redirect(f"{server.url}/elsewhere"))
        server.put("elsewhere", b'{"token": "good"}')
        server.script("/busy", too_many("7"))
        server.script("/down", Status(503))
        server.script("/refused", Status(401))
        names = [*bodies, "redirect", "busy", "down", "missing"]
        for name in names:
            remote.push(name, "v1", make_image())
            wanted = f'Bearer realm="{server.url}/{name}",service="s",scope="repository:{name}:pull"'
            remote.script(f"/v2/{name}/*", challenge(wanted), times=1)
        refused.script("*", challenge(f'Bearer realm="{server.url}/refused",service="s"'))
        quick = {"cooldown_initial_seconds": 0.05}
        configs = [registry("reg", remote.url, **quick), registry("ref", refused.url, cooldown_seconds=300, **LOGIN)]
        async with staged(tmp_path, *configs) as proxy:
            answers = {}
            for name in names:
                answers[name] = await ask(f"{proxy.url}/v2/reg/{name}/manifests/v1")
                await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
            good = {"nan", "lifetime", "negative"}
            assert {name for name in names if answers[name].status == 200} == good
            assert {answers[name].status for name in names if name not in good} == {503}
            for name in bodies:
                assert server.count(f"/{name}") >= 1, name
            assert server.count("/elsewhere") == 0, "redirects of a token server are not followed"
            assert "X-Evil" not in str([dict(exchange.headers) for exchange in remote.requests])
            assert "a" * 1000 not in proxy.output()
            for number in range(2):
                refusal = await ask(f"{proxy.url}/v2/ref/app{number}/manifests/v1")
                assert refusal.status in (403, 503)
            (cooling,) = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert (cooling["remote"], cooling["scope"]) == ("ref", "remote")
            assert refused.count() == 1
            await assert_unsaid(proxy, [PASSWORD, BASIC[6:]], [*answers.values(), refusal])


async def test_realm_that_moves(tmp_path: Path) -> None:
    """A token server that is gone costs one request, not every one until a restart."""
    old, new = TokenServer(lifetime_seconds=1), TokenServer()
    async with old, new, RegistryRemote(tokens=old) as remote:
        remote.push("app", "v1", make_image())
        config = registry("reg", remote.url)
        config["distributions"][0]["stale_if_error_seconds"] = 0
        async with staged(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/reg/app/manifests/v1"
            assert (await ask(url)).status == 200
            remote.tokens = new
            await old.refuse()
            await asyncio.sleep(1)  # the token has ended: the next request begins at the token server that it knows
            statuses = []
            while new.count() == 0:
                statuses.append((await ask(url)).status)
                assert len(statuses) < 4
            assert statuses[-1] == 200


async def test_malformed_challenges(tmp_path: Path) -> None:
    """Nothing is sent anywhere, and the device is told at once."""
    challenges = [
        "",
        "Bearer",
        "Bearer realm=",
        'Bearer realm="',
        'Bearer realm="not a url"',
        'Bearer service="s"',
        'Bearer realm="ftp://127.0.0.1/x"',
        'Bearer realm="http://127.0.0.1:1/x",realm="http://127.0.0.1:2/x"',
        'Bearer realm="http://user:pw@127.0.0.1/x"',
        'Bearer realm="' + "a" * 7000 + '"',
        "Bearer " + ",".join(f'a{number}="b"' for number in range(900)),
        ",".join(["Basic"] * 1500),
        "Negotiate",
        "\xff\xfe",
        '=,=,="',
        "Bearer " + "=" * 5000,
    ]
    async with RegistryRemote() as remote:
        for number, value in enumerate(challenges):
            remote.script(f"/v2/app{number}/*", challenge(value))
        async with staged(tmp_path, registry("reg", remote.url)) as proxy:
            for number, value in enumerate(challenges):
                answer = await ask(f"{proxy.url}/v2/reg/app{number}/manifests/v1")
                assert answer.status in (403, 503), value[:60]
                assert remote.count(f"/v2/app{number}/*") == 1, value[:60]
            assert "Traceback" not in proxy.output()


HELPER = """#!/bin/sh
read server
echo "$1 $server ${CONTENTAPP_TEST_SECRET:-clean}" >> "%(log)s"
echo "noise s3cret-noise" >&2
case "$(cat "%(mode)s")" in
  good) cat "%(answer)s" ;;
  none) echo "credentials not found in native keychain"; exit 1 ;;
  bad) echo "s3cret-noise"; exit 3 ;;
  junk) echo "s3cret-noise" ;;
  slow) sleep 600 ;;
esac
"""


class Helper:
    """``docker-credential-test`` in a folder of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log, self.mode, self.answer = folder / "asked", folder / "mode", folder / "answer"
        program = folder / "docker-credential-test"
        program.write_text(HELPER % {"log": self.log, "mode": self.mode, "answer": self.answer})
        program.chmod(stat.S_IRWXU)
        self.log.touch()

    def gives(self, username: str, secret: str) -> None:
        self.mode.write_text("good")
        self.answer.write_text(json.dumps({"ServerURL": "x", "Username": username, "Secret": secret}))

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@asynccontextmanager
async def proxy_with_path(folder: Path, config: dict[str, Any], path: Path) -> AsyncIterator[Proxy]:
    """A proxy that finds programs in one more folder, and has a secret of its own in its environment."""
    proxy = Proxy(folder, config)
    changes = clean_environment() | {"PATH": f"{path}:{os.environ['PATH']}", "CONTENTAPP_TEST_SECRET": "env-s3cret"}
    proxy.service.env = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def test_credential_helper(tmp_path: Path) -> None:
    """Asked once for what it is kept, again when it is refused; never with our environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    helper = Helper(folder)
    tokens = TokenServer(credentials=(USER, PASSWORD))
    identity = FileRemote({"token": b'{"token":"t0ken-of-identity"}'}, manifest=False)
    async with (
        tokens,
        identity,
        RegistryRemote(credentials=(USER, PASSWORD)) as basic,
        RegistryRemote(tokens=tokens) as bearer,
    ):
        for remote in (basic, bearer):
            remote.push("app", "v1", make_image())
        helper.gives(USER, PASSWORD)
        name = "docker-credential-test"
        configs = [registry(n, r.url, credential_helper=name) for n, r in (("basic", basic), ("bearer", bearer))]
        async with proxy_with_path(tmp_path, merged(*configs), folder) as proxy:
            answers = []
            for _ in range(3):
                for kind in ("basic", "bearer"):
                    answers.append(await ask(f"{proxy.url}/v2/{kind}/app/manifests/v1"))
                    assert answers[-1].status == 200
            asked = helper.asked()
            assert asked == [f"get {basic.address} clean", f"get {bearer.address} clean"]
            # Rotated: the old password is refused once, then the helper is asked anew.
            basic.credentials = (USER, "rotated-w0rd")
            helper.gives(USER, "rotated-w0rd")
            await until(lambda: is_status(f"{proxy.url}/v2/basic/app/manifests/v1", 200, fresh=True))
            assert len(helper.asked()) == 3
            secrets = [PASSWORD, "rotated-w0rd", BASIC[6:], "s3cret-noise", "env-s3cret"]
            await assert_unsaid(proxy, secrets, answers)
            assert PASSWORD not in Path(f"/proc/{proxy.service.process.pid}/cmdline").read_text()


async def is_status(url: str, status: int, *, fresh: bool = False) -> bool:
    answer = await ask(url)
    return answer.status == status and (not fresh or "stale-if-error" not in answer.cache)


async def test_credential_helper_that_fails(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    helper = Helper(folder)
    names = ("none", "bad", "junk")
    remotes = {name: RegistryRemote(credentials=(USER, PASSWORD)) for name in (*names, "missing")}
    async with contexts(remotes):
        configs = [registry(name, remotes[name].url, credential_helper="docker-credential-test") for name in names]
        configs += [registry("missing", remotes["missing"].url, credential_helper="docker-credential-not-there")]
        async with proxy_with_path(tmp_path, merged(*configs), folder) as proxy:
            answers: dict[str, Answer] = {}
            for name in (*names, "missing"):
                helper.mode.write_text(name)
                answers[name] = await ask(f"{proxy.url}/v2/{name}/app/manifests/v1")
            assert {name: answer.status for name, answer in answers.items()} == {
                "none": 403,
                "bad": 503,
                "junk": 503,
                "missing": 503,
            }
            assert b"docker-credential-test failed with status 3" in answers["bad"].body
            await assert_unsaid(proxy, ["s3cret-noise", "env-s3cret"], answers.values())


async def test_tls_of_remotes(tmp_path: Path, authority: Authority) -> None:
    """A CA of one's own, a client certificate (not shown to a CDN), an expired certificate."""
    other = Authority(tmp_path)
    server, client = authority.issue("remote"), authority.issue("client", client=True)
    expired = authority.issue("expired", days=-1)
    wants_client = RegistryRemote(tls=server.server_context(client_ca=authority.certificate))
    remotes = {
        "plain": RegistryRemote(tls=server.server_context()),
        "client": wants_client,
        "anonymous": RegistryRemote(tls=server.server_context(client_ca=authority.certificate)),
        "unknown": RegistryRemote(tls=other.issue("unknown").server_context()),
        "trusting": RegistryRemote(tls=other.issue("trusting").server_context()),
        "expired": RegistryRemote(tls=expired.server_context()),
    }
    cdn = FileRemote(tls=server.server_context(client_ca=authority.certificate), manifest=False)
    ca = {"ca_cert": authority.certificate.read_text()}
    settings: dict[str, dict[str, Any]] = {
        "client": {"client_cert": client.certificate.read_text(), "client_key": client.key.read_text()},
        "trusting": {"tls_validation": False},
    }
    async with cdn, contexts(remotes):
        content = Synthetic(10_000, seed=5)
        digest = digest_of(content)
        cdn.put("blob", content)
        for remote in remotes.values():
            remote.push("app", "v1", make_image())
        wants_client.push_blob("app", content)
        wants_client.script(f"/v2/app/blobs/{digest}", Redirect(f"{cdn.url}/blob"), method="GET")
        configs = [registry(name, remote.url, **ca, **settings.get(name, {})) for name, remote in remotes.items()]
        async with staged(tmp_path, *configs) as proxy:
            answers = {name: await ask(f"{proxy.url}/v2/{name}/app/manifests/v1") for name in remotes}
            assert {name: answer.status for name, answer in answers.items()} == {
                "plain": 200,
                "client": 200,
                "anonymous": 503,
                "unknown": 503,
                "trusting": 200,
                "expired": 503,
            }
            assert b"certificate refused" in answers["unknown"].body
            assert b"expired" in answers["expired"].body
            assert (await ask(f"{proxy.url}/v2/client/app/blobs/{digest}")).status == 503, "the CDN wants one too"
            assert cdn.count() == 0
            key = client.key.read_text().splitlines()[1]
            await assert_unsaid(proxy, [key], answers.values())


async def test_through_an_http_proxy(tmp_path: Path, authority: Authority) -> None:
    """Plain requests are forwarded, TLS is tunnelled; the proxy's login is for the proxy, ours never is."""
    secure = RegistryRemote(tls=authority.issue("tunnelled").server_context(), credentials=(USER, PASSWORD))
    plain = RegistryRemote()
    async with secure, plain, ForwardProxy({}) as forward:
        forward.hosts |= {secure.address: secure.address, "registry.example": plain.address}
        for remote in (secure, plain):
            remote.push("app", "v1", make_image())
        through = {"proxy_url": forward.url, "proxy_username": "me", "proxy_password": "pr0xy-word"}
        configs = [
            registry("secure", secure.url, **through, **LOGIN, ca_cert=authority.certificate.read_text()),
            registry("plain", "http://registry.example", **through),
            registry("gone", "http://gone.example", **through),
        ]
        async with staged(tmp_path, *configs) as proxy:
            answers = [await ask(f"{proxy.url}/v2/{name}/app/manifests/v1") for name in ("secure", "plain", "gone")]
            assert [answer.status for answer in answers] == [200, 200, 503]
            assert {asked.method for asked in forward.asked} == {"CONNECT", "GET"}
            login = aiohttp.encode_basic_auth("me", "pr0xy-word")
            assert all(login.encode() in asked.head for asked in forward.asked)
            assert BASIC.encode() not in forward.heads()
            for remote in (secure, plain):
                assert all("Proxy-Authorization" not in exchange.headers for exchange in remote.requests)
            await assert_unsaid(proxy, [PASSWORD, "pr0xy-word", login[6:], BASIC[6:]], answers)


async def test_timeouts_and_retries(tmp_path: Path) -> None:
    """Pulp's timeouts end what hangs; what may pass is tried again, with backoff, and not before Retry-After."""
    remotes = {name: RegistryRemote() for name in ("silent", "stalls", "flaky", "wait", "patient", "final", "total")}
    async with contexts(remotes):
        for remote in remotes.values():
            remote.push("app", "v1", make_image())
        remotes["silent"].script("*", Delay(30))
        remotes["stalls"].script("/v2/app/manifests/v1", Stall(10))
        remotes["flaky"].script("*", Status(503), times=3)
        remotes["wait"].script("*", Status(503, {"Retry-After": "1"}), times=1)
        remotes["patient"].script("*", Status(503, {"Retry-After": "3600"}), times=1)
        remotes["final"].script("*", Status(500))
        remotes["total"].script("*", Delay(30))
        settings: dict[str, dict[str, Any]] = {
            "silent": {"sock_read_timeout": 0.4},
            "stalls": {"sock_read_timeout": 0.4},
            "total": {"total_timeout": 0.4},
            "flaky": {"max_retries": 3, "retry_backoff_seconds": 0.02},
            "wait": {"max_retries": 1},
            "patient": {"max_retries": 3},
            "final": {"max_retries": 3},
        }
        configs = [registry(name, remote.url, **settings[name]) for name, remote in remotes.items()]
        async with staged(tmp_path, *configs) as proxy:
            loop = asyncio.get_running_loop()

            async def timed(name: str) -> tuple[Answer, float]:
                started = loop.time()
                return await ask(f"{proxy.url}/v2/{name}/app/manifests/v1"), loop.time() - started

            results = dict(zip(remotes, await asyncio.gather(*map(timed, remotes)), strict=True))
            statuses = {name: answer.status for name, (answer, _) in results.items()}
            assert statuses == dict.fromkeys(remotes, 503) | {"flaky": 200, "wait": 200}
            for name in ("silent", "stalls", "total"):
                answer, seconds = results[name]
                assert 0.3 < seconds < 3, name
                assert answer.reason == "i/o timeout", name
            assert 1.0 <= results["wait"][1] < 4
            assert results["patient"][1] < 3
            counts = {name: remote.count() for name, remote in remotes.items()}
            assert counts == {"silent": 1, "stalls": 1, "total": 1, "flaky": 4, "wait": 2, "patient": 1, "final": 1}


async def test_limits_are_shared_by_workers(tmp_path: Path) -> None:
    """rate_limit and bandwidth_limit hold for the remote, not for each of two workers."""
    slots, rate = 12, 4.0
    async with RegistryRemote() as counted, RegistryRemote() as narrow:
        for number in range(slots):
            counted.push(f"app{number}", "v1", make_image())
        bodies = [Synthetic(768 * KIB, seed=300 + number) for number in range(8)]
        digests = [narrow.push_blob("app", body) for body in bodies]
        configs = [
            registry("counted", counted.url, rate_limit=rate),
            registry("narrow", narrow.url, bandwidth_limit="2MiB/s"),
        ]
        async with staged(tmp_path, *configs, content={"workers": 2}) as proxy:
            started = time.monotonic()
            tags = [f"{proxy.url}/v2/counted/app{number}/manifests/v1" for number in range(slots)]
            blobs = [f"{proxy.url}/v2/narrow/app/blobs/{digest}" for digest in digests]

            async def finished(urls: list[str]) -> float:
                answers = await asyncio.gather(*map(ask, urls))
                assert {answer.status for answer in answers} == {200}
                return time.monotonic() - started

            requests_seconds, bytes_seconds = await asyncio.gather(finished(tags), finished(blobs))
            assert requests_seconds >= (slots - rate) / rate * 0.9
            assert bytes_seconds >= (8 * 768 * KIB - 2 * MIB) / (2 * MIB) * 0.9
            assert max(requests_seconds, bytes_seconds) < 8
            assert counted.count() == slots


@pytest.mark.parametrize("depth", [2])
async def test_redirects_of_registries(tmp_path: Path, depth: int) -> None:
    """Blobs come from CDNs, over several hops; the CDN's failure is not the registry's."""
    content = Synthetic(3 * MIB, seed=70)
    async with RegistryRemote() as remote, FileRemote({"b": content}, manifest=False) as cdn, FileRemote() as dead:
        remote.push("app", "v1", make_image())
        digest = remote.push_blob("app", content)
        lost = remote.push_blob("app", Synthetic(3 * MIB, seed=71))
        for status in (301, 302, 303, 307, 308):
            cdn.script(f"/hop{status}", Redirect(f"{cdn.url}/b", status=status))
        remote.script(f"/v2/app/blobs/{digest}", Redirect(f"{cdn.url}/hop302?X-Sig=a%2Fb%3D%3D&x"), method="GET")
        remote.script(f"/v2/app/blobs/{lost}", Redirect(f"{dead.url}/b"), method="GET")
        address = dead.address
        await dead.refuse()
        async with staged(tmp_path, registry("reg", remote.url, failure_threshold=1, cooldown_seconds=300)) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")).sha256 == digest
            assert cdn.asked("/hop302")[0].query == "X-Sig=a/b==&x" or "X-Sig=a%2Fb" in cdn.asked("/hop302")[0].raw_path
            assert (await ask(f"{proxy.url}/v2/reg/app/blobs/{lost}")).status == 503
            (cooling,) = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
            assert (cooling["scope"], cooling["subject"]) == ("host", address)
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            assert depth == len(cdn.requests)
