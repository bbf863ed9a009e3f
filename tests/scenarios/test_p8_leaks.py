"""P8: credentials stay with their host, nothing inside is dialled for a remote, and a cache opens no private blob."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.authority import Authority
from tests.remotes.content import Synthetic, content_of, digest_of
from tests.remotes.faults import Headers, Redirect, Status, challenge
from tests.remotes.files import FileRemote
from tests.remotes.images import Image, make_artifact, make_image
from tests.remotes.raw import RawRemote
from tests.remotes.registry import RegistryRemote
from tests.remotes.tokens import TokenServer
from tests.scenarios.device import ask, until_stored
from tests.scenarios.forward_proxy import ForwardProxy
from tests.scenarios.leak import assert_unsaid
from tests.scenarios.stage import PATIENT, staged

MIB = 1024 * 1024
USER, PASSWORD, KEY = "robot", "hunter2-pass:word", "k3y-of-the-remote"
BASIC = aiohttp.encode_basic_auth(USER, PASSWORD)
LOGIN = {"username": USER, "password": PASSWORD}
SMALL = b"small and private"
SMALL_DIGEST = digest_of(content_of(SMALL))

INTERNAL = [
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/x",
    "http://192.168.1.1/x",
    "http://[fe80::1]/x",
    "http://[fd00:ec2::254]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://[64:ff9b::a9fe:a9fe]/x",
    "http://100.100.100.200/x",
    "http://0.0.0.0:{port}/x",
    "http://[::]:{port}/x",
    "http://[::ffff:0.0.0.0]:{port}/x",
    "http://0:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://0177.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://127.0.0.1.:{port}x/x",
]
LOOPBACK = [
    "http://127.0.0.1:{port}/x",
    "http://127.8.9.10:{port}/x",
    "http://localhost:{port}/x",
    "http://LOCALHOST.:{port}/x",
    "http://sub.localhost:{port}/x",
    "http://[::1]:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
]
UNUSABLE = [
    "ftp://127.0.0.1:{port}/x",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/x",
    "http://user:secret@127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}\\@good.example/x",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:0/x",
    "http://[::1/x",
    "",
]


def given(heads: str) -> bool:
    """Whether anything that only the remote may know is in these heads."""
    return any(text in heads for text in (BASIC.removeprefix("Basic "), PASSWORD, KEY))


def heads_of(remote: Any) -> str:
    return "\n".join(f"{exchange.raw_path} {dict(exchange.headers)}" for exchange in remote.requests)


def addressed(templates: list[str], canary: RawRemote) -> list[str]:
    port = canary.address.rpartition(":")[2]
    return [template.replace("{port}", port) for template in templates]


async def test_nothing_crosses_a_redirect(tmp_path: Path) -> None:
    """Password, configured header and token stay at the registry; what a device sends goes nowhere."""
    tokens = TokenServer(credentials=(USER, PASSWORD))
    basic, bearer = RegistryRemote(credentials=(USER, PASSWORD)), RegistryRemote(tokens=tokens)
    remotes = {"basic": basic, "bearer": bearer}
    async with tokens, basic, bearer, FileRemote(manifest=False) as cdn:
        for seed, (name, remote) in enumerate(remotes.items()):
            content = Synthetic(3 * MIB, seed=80 + seed)
            digest = remote.push_blob("app", content)
            cdn.put(name, content)
            remote.script(f"/v2/app/blobs/{digest}", Redirect(f"{cdn.url}/{name}?sig=s1gn4ture"), method="GET")
            # A redirect to the same host carries nothing across either: it is refused there.
            remote.push_blob("same", SMALL)
            remote.script("/v2/same/*", Redirect(f"{remote.url}/v2/app/blobs/{SMALL_DIGEST}"), method="GET")
        settings = {**PATIENT, **LOGIN, "headers": [{"X-Key": KEY}]}
        configs = [pull_through("container", name, {name: remotes[name].url}, remote=settings) for name in remotes]
        async with staged(tmp_path, *configs) as proxy:
            own = {"Authorization": "Bearer of-the-device", "Cookie": "of=the-device", "X-Own": "of-the-device"}
            answers = []
            for name, remote in remotes.items():
                (digest,) = remote.repositories["app"].blobs
                answers.append(await ask(f"{proxy.url}/v2/{name}/app/blobs/{digest}", headers=own))
                assert answers[-1].sha256 == digest
                assert answers[-1].headers["Cache-Control"].startswith("private")
                assert {"Authorization", "X-Key", "Cookie", "Referer"}.isdisjoint(cdn.requests[-1].headers)
                assert (await ask(f"{proxy.url}/v2/{name}/same/blobs/{SMALL_DIGEST}")).status == 403
                assert "Authorization" not in remote.requests[-1].headers
            assert cdn.count() == 2
            assert not given(heads_of(cdn))
            assert given(heads_of(basic))
            assert given(heads_of(tokens))
            assert BASIC not in heads_of(bearer)
            for asked_of in (basic, bearer, tokens, cdn):
                assert "of-the-device" not in heads_of(asked_of)
            issued = {
                asked.headers["Authorization"][7:] for asked in bearer.requests if "Authorization" in asked.headers
            }
            assert issued
            await assert_unsaid(proxy, [PASSWORD, KEY, "s1gn4ture", BASIC[6:], *issued], answers)


async def test_realm_gets_the_password_only_if_it_may_hold_it(tmp_path: Path, authority: Authority) -> None:
    """Over TLS: another host's realm none, one of auth_hosts yes, one without TLS is not even asked."""
    context = authority.issue("realms").server_context()
    foreign = TokenServer(tls=context)
    named = TokenServer(tls=context)
    plain = TokenServer()
    foreign.realm = foreign.realm.replace("127.0.0.1", "localhost")
    named.realm = named.realm.replace("127.0.0.1", "localhost")
    async with foreign, named, plain:
        registries = [RegistryRemote(tokens=server, tls=context) for server in (foreign, named, plain)]
        down = RegistryRemote(tls=context)
        async with (
            registries[0],
            registries[1],
            registries[2],
            down,
            FileRemote({"blob": SMALL}, manifest=False) as cdn,
        ):
            for remote in registries:
                remote.push_blob("app", SMALL)
            names = ("foreign", "named", "plain", "down")
            digests = [SMALL_DIGEST] * 3 + [down.push_blob("app", b"behind a redirect")]
            down.script("/v2/app/blobs/*", Redirect(f"{cdn.url}/blob"), method="GET")
            urls = dict(zip(names, [remote.url for remote in (*registries, down)], strict=True))
            settings = {**PATIENT, **LOGIN, "ca_cert": authority.certificate.read_text()}
            more: Mapping[str, Mapping[str, Any]] = {"named": {"auth_hosts": ["localhost"]}}
            configs = [
                pull_through("container", name, {name: urls[name]}, remote={**settings, **more.get(name, {})})
                for name in names
            ]
            async with staged(tmp_path, *configs) as proxy:
                answers = [
                    await ask(f"{proxy.url}/v2/{name}/app/blobs/{digest}")
                    for name, digest in zip(names, digests, strict=True)
                ]
                assert [answer.status for answer in answers] == [200, 200, 503, 503]
                assert foreign.count() == 1
                assert not given(heads_of(foreign))
                assert BASIC in heads_of(named)
                assert plain.count() == 0
                assert cdn.count() == 0, "https leads to http"
                for remote in (*registries, down):
                    assert not given(heads_of(remote))
                await assert_unsaid(proxy, [PASSWORD, BASIC[6:]], answers)


async def test_redirects_to_inside_are_never_dialled(tmp_path: Path) -> None:
    """The remote itself is on loopback here, so loopback is allowed; no other class of address, in any notation."""
    async with (
        RawRemote(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as canary,
        FileRemote(manifest=False) as remote,
    ):
        targets = addressed([*INTERNAL, *UNUSABLE], canary)
        for number, target in enumerate(targets):
            remote.script(f"/f{number}", Redirect(target))
        remote.script("/loop", Redirect("{path}"))
        remote.put("end", SMALL)
        for hop in range(6):
            remote.script(f"/hop{hop}", Redirect(f"{remote.url}/hop{hop - 1}" if hop else f"{remote.url}/end"))
        async with running_proxy(tmp_path, files(remote.url)) as proxy:
            for number, target in enumerate(targets):
                answer = await ask(f"{proxy.url}/pulp/content/files/f{number}")
                assert (answer.status, answer.is_complete) == (404, True), target
                assert b"remote r:" in answer.body, target
                assert b"not found" not in answer.body.lower().split(b":", 1)[1], target
            assert (await ask(f"{proxy.url}/pulp/content/files/loop")).status == 404
            assert remote.count("/loop") == 6, "five redirects"
            assert (await ask(f"{proxy.url}/pulp/content/files/hop4")).body == SMALL
            assert (await ask(f"{proxy.url}/pulp/content/files/hop5")).status == 404
            assert canary.connections == 0
            assert "user:secret" not in proxy.output()


async def test_public_remotes_lead_to_no_local_address(tmp_path: Path) -> None:
    """Behind a proxy a remote is of the internet: no redirect or realm may lead to our host or network."""
    async with (
        RawRemote(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"token":"t"}') as canary,
        FileRemote(manifest=False) as remote,
        FileRemote({"blob": SMALL}, manifest=False) as cdn,
        RegistryRemote() as registry,
        ForwardProxy({}) as forward,
    ):
        targets = addressed([*LOOPBACK, *INTERNAL], canary)
        port = canary.address.rpartition(":")[2]
        for target in targets:
            forward.hosts[target.split("/")[2]] = f"127.0.0.1:{port}"
        forward.hosts |= {
            "files.example": remote.address,
            "cdn.example": cdn.address,
            "registry.example": registry.address,
        }
        for number, target in enumerate(targets):
            remote.script(f"/f{number}", Redirect(target))
            registry.script(f"/v2/app{number}/*", challenge(f'Bearer realm="{target}",service="s"'))
        remote.script("/ok", Redirect("http://cdn.example/blob"))
        settings = {
            **PATIENT,
            **LOGIN,
            "proxy_url": forward.url,
            "proxy_username": "me",
            "proxy_password": "pr0xy-word",
        }
        async with staged(
            tmp_path,
            pull_through("file", "files", {"f": "http://files.example/"}, remote=settings),
            pull_through("container", "reg", {"r": "http://registry.example"}, remote=settings),
        ) as proxy:
            answers = [await ask(f"{proxy.url}/pulp/content/files/ok")]
            assert answers[0].body == SMALL
            for number, target in enumerate(targets):
                answers.append(await ask(f"{proxy.url}/pulp/content/files/f{number}"))
                assert answers[-1].status == 404, target
                answers.append(await ask(f"{proxy.url}/v2/reg/app{number}/manifests/v1"))
                assert answers[-1].status in (403, 503), target
            assert canary.connections == 0
            asked = {target.split("/")[2] for target in forward.targets()}
            assert asked == {"files.example", "cdn.example", "registry.example"}
            assert not given(heads_of(cdn))
            login = aiohttp.encode_basic_auth("me", "pr0xy-word")
            assert forward.heads().count(login.encode()) == len(forward.asked)
            await assert_unsaid(proxy, [PASSWORD, "pr0xy-word", login[6:], BASIC[6:]], answers)


def files(url: str, **settings: Any) -> dict[str, Any]:
    return pull_through("file", "files", {"r": f"{url}/"}, remote=PATIENT, **settings)


async def test_stored_blob_is_private_to_its_name(tmp_path: Path) -> None:
    """A blob is no secret to who may read it already: under another name or distribution a source must say so."""
    async with RegistryRemote() as one, RegistryRemote() as two:
        image = make_image()
        one.push("secret", "v1", image)
        one.push_blob("open", SMALL)
        two.push_blob("other", SMALL)
        layer = image.layers[0].digest
        settings = {**PATIENT, "negative_ttl_seconds": 0}
        async with staged(
            tmp_path,
            pull_through("container", "one", {"one": one.url}, remote=settings),
            pull_through("container", "two", {"two": two.url}, remote=settings),
            pull_through("container", "again", {"one": one.url}, remote=settings),
        ) as proxy:
            await pull_all(proxy, "one/secret", image)
            one.forget()
            for name in ("one/open", "two/other", "two/secret", "one/no-such", "again/open"):
                for what in (f"blobs/{layer}", f"manifests/{image.digest}", f"blobs/{image.digest}"):
                    for method in ("HEAD", "GET"):
                        answer = await ask(f"{proxy.url}/v2/{name}/{what}", method=method)
                        assert answer.status == 404, (name, what)
                        assert layer not in answer.headers.get("Docker-Content-Digest", "")
                ranged = await ask(f"{proxy.url}/v2/{name}/blobs/{layer}", headers={"Range": "bytes=0-0"})
                assert ranged.status == 404
            assert one.sent("/v2/secret/*") == 0

            # Confirmed by a HEAD of the name's own source: from then on it is readable there, without a transfer.
            one.push_blob("open", image.layers[0].body)
            assert (await ask(f"{proxy.url}/v2/one/open/blobs/{layer}")).sha256 == layer
            assert [asked.method for asked in one.asked(f"/v2/open/blobs/{layer}")][-1] == "HEAD"
            assert (await ask(f"{proxy.url}/v2/again/secret/blobs/{layer}")).sha256 == layer

            # Outages and refusals do not revoke it; they do not grant it either.
            two.script("*", Status(503))
            one.script("*", Status(401))
            assert (await ask(f"{proxy.url}/v2/one/open/blobs/{layer}")).sha256 == layer
            await pull_all(proxy, "one/secret", image)
            assert (await ask(f"{proxy.url}/v2/two/other/blobs/{layer}")).status == 503
            assert (await ask(f"{proxy.url}/v2/one/third/blobs/{layer}")).status == 403
            await one.refuse()
            await proxy.restart()
            await pull_all(proxy, "one/secret", image)
            assert (await ask(f"{proxy.url}/v2/one/open/blobs/{layer}")).sha256 == layer
            assert (await ask(f"{proxy.url}/v2/one/third/blobs/{layer}")).status in (403, 503)


async def pull_all(proxy: Proxy, name: str, image: Image) -> None:
    """Pull a whole image by tag, and wait until it is stored."""
    assert (await ask(f"{proxy.url}/v2/{name}/manifests/v1")).sha256 == image.digest
    for blob in image.blobs:
        url = f"{proxy.url}/v2/{name}/blobs/{blob.digest}"
        assert (await ask(url)).sha256 == blob.digest
        await until_stored(proxy)


async def test_subject_and_foreign_manifest_grant_nothing(tmp_path: Path) -> None:
    """A manifest that merely names a digest as its subject opens nothing."""
    async with RegistryRemote() as remote:
        image = make_image(seed=5)
        remote.push("secret", "v1", image)
        pointer = make_artifact(subject=image.manifest)
        remote.push("attacker", "v1", pointer)
        async with staged(tmp_path, pull_through("container", "reg", {"r": remote.url}, remote=PATIENT)) as proxy:
            await pull_all(proxy, "reg/secret", image)
            assert (await ask(f"{proxy.url}/v2/reg/attacker/manifests/v1")).status == 200
            assert (await ask(f"{proxy.url}/v2/reg/attacker/manifests/{image.digest}")).status == 404
            assert (await ask(f"{proxy.url}/v2/reg/attacker/blobs/{image.digest}")).status == 404


@pytest.mark.parametrize("is_default", [False, True])
async def test_names_are_looked_up_and_never_dialled(tmp_path: Path, is_default: bool) -> None:
    """``ns=`` and the first part of a name mean configured distributions, nothing else."""
    async with RawRemote(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as canary, RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "v1", image)
        distribution = {"registry_hosts": ["quay.io"], "default_registry": is_default}
        config = pull_through("container", "reg", {"r": remote.url}, remote=PATIENT, distribution=distribution)
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/app/manifests/v1?ns=quay.io")).sha256 == image.digest
            port = canary.address.rpartition(":")[2]
            for host in (canary.address, f"localhost:{port}", "169.254.169.254", "quay.io.evil.example", "quay.io:443"):
                answer = await ask(f"{proxy.url}/v2/app/manifests/v1?ns={host}")
                assert answer.status == 404, host
            for host in (
                "http://quay.io",
                f"user@{canary.address}",
                "quay.io%0d%0aX-A:b",
                "quay.io/x",
                "%00",
                "a" * 300,
            ):
                assert (await ask(f"{proxy.url}/v2/app/manifests/v1?ns={host}")).status == 400, host
            for name in (canary.address, f"localhost:{port}/app", "169.254.169.254/latest", f"http:/{canary.address}"):
                assert (await ask(f"{proxy.url}/v2/{name}/manifests/v1")).status in (400, 404), name
            assert canary.connections == 0


async def test_what_remotes_send_along_is_ignored(tmp_path: Path) -> None:
    """Set-Cookie, Cache-Control and the like of a remote reach no device, and no cookie comes back to it."""
    odd = {
        "Set-Cookie": "session=c00kie",
        "Cache-Control": "private, no-store",
        "Expires": "0",
        "Vary": "*",
        "Age": "9",
        "Content-Disposition": "attachment; filename=x.exe",
        "Content-Security-Policy": "none",
        "Location": "http://evil.example/",
        "WWW-Authenticate": "Basic",
        "Refresh": "0;url=http://evil.example",
        "X-Evil": "1",
    }
    async with RegistryRemote() as registry, FileRemote({"f.txt": SMALL}, manifest=False) as remote:
        image = make_image()
        registry.push("app", "v1", image)
        registry.script("*", Headers(dict(odd)))
        remote.script("*", Headers({**odd, "Content-Type": "text/x-evil"}))
        async with staged(
            tmp_path, pull_through("container", "reg", {"reg": registry.url}, remote=PATIENT), files(remote.url)
        ) as proxy:
            urls = [
                f"{proxy.url}/v2/reg/app/manifests/v1",
                f"{proxy.url}/v2/reg/app/blobs/{image.config.digest}",
                f"{proxy.url}/v2/reg/app/tags/list",
                f"{proxy.url}/v2/reg/app/referrers/{image.digest}",
                f"{proxy.url}/pulp/content/files/f.txt",
            ]
            for url in urls * 2:
                answer = await ask(url)
                assert answer.status == 200, url
                assert answer.headers["Cache-Control"] in ("no-cache", "max-age=31536000, immutable")
                assert set(odd).isdisjoint(set(answer.headers) - {"Cache-Control"}), url
                assert answer.headers["Server"] == "contentapp"
            assert answer.headers["Content-Type"] == "text/plain"
            assert "c00kie" not in heads_of(registry) + heads_of(remote)
