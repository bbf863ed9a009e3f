"""What a device is told when it can't have something: status, Retry-After, the spec's JSON, a phrase it knows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.ports import Port
from tests.proxy import Proxy, pull_through
from tests.remotes.faults import Cut, Delay, Drop, Fault, Flip, LoginPage, Redirect, Status, too_many
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask, ask_raw
from tests.scenarios.stage import PATIENT, fresh, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = make_image(layers=1, layer_size=3000, seed=80)
PHRASES = {"i/o timeout", "connection refused", "no such host", "network is unreachable", "unexpected EOF"}
OTHER_METHODS = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@dataclass
class World:
    """``reg``, ``reg404``, ``reg599`` over one registry, ``both`` over two; ``files``, ``files503`` over a file server;
    ``down`` and ``fdown`` over nothing, cooling for long.
    """

    proxy: Proxy
    one: RegistryRemote
    two: RegistryRemote
    files: FileRemote

    async def get(self, path: str, *, method: str = "GET") -> Answer:
        return await ask(f"{self.proxy.url}{path}", method=method)

    async def clear_cooldowns(self) -> None:
        await self.proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})


@pytest.fixture(scope="module")
def closed_port() -> Iterator[Port]:
    """A port that refuses connections."""
    port = Port()
    yield port
    port.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, closed_port: Port) -> AsyncIterator[World]:
    def over(kind: str, base_path: str, *urls: str, remote: Any = PATIENT, **settings: object) -> dict[str, Any]:
        names = {f"{base_path}-{number}": url for number, url in enumerate(urls)}
        distribution = {"first_byte_deadline_seconds": 0.7, **settings}
        return pull_through(kind, base_path, names, remote=remote, distribution=distribution)

    nothing = f"http://127.0.0.1:{closed_port.number}"
    cold = {"max_retries": 0, "failure_threshold": 1, "cooldown_initial_seconds": 200, "cooldown_seconds": 300}
    async with (
        RegistryRemote() as one,
        RegistryRemote() as two,
        FileRemote(manifest=False) as files,
        staged(
            tmp_path_factory.mktemp("unavailable"),
            over("container", "reg", one.url),
            over("container", "reg404", one.url, unavailable_status=404),
            over("container", "reg599", one.url, unavailable_status=599),
            over("container", "both", one.url, two.url),
            over("container", "down", nothing, remote=cold),
            over("file", "files", f"{files.url}/"),
            over("file", "files503", f"{files.url}/", unavailable_status=503),
            over("file", "fdown", f"{nothing}/", remote=cold),
        ) as proxy,
    ):
        yield World(proxy, one, two, files)


def check_registry_error(answer: Answer, status: int, code: str) -> str:
    """The spec's error JSON; its message."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    (error,) = json.loads(answer.body)["errors"]
    assert error["code"] == code
    return str(error["message"])


# Which failure gives which phrase; the reason names the remote and what it did
FAULTS: dict[str, tuple[Fault, str, str]] = {
    "500": (Status(500), "connection refused", "answered 500"),
    "502": (Status(502), "connection refused", "answered 502"),
    "503": (Status(503), "connection refused", "answered 503"),
    "429": (too_many("0"), "connection refused", "answered 429"),
    "drop": (Drop(), "unexpected EOF", ""),
    "slow": (Delay(60), "i/o timeout", ""),
    "login page": (LoginPage(), "unexpected EOF", ""),
    "cut": (Cut(100), "unexpected EOF", ""),
    "wrong bytes": (Flip(20), "unexpected EOF", "digest mismatch"),
    "redirect loop": (Redirect("{path}"), "connection refused", "redirect"),
}


@pytest.mark.parametrize(("fault", "phrase", "reason"), FAULTS.values(), ids=FAULTS)
async def test_registry_is_unavailable(world: World, fault: Fault, phrase: str, reason: str) -> None:
    """Never "does not exist": pullers give up on that, and retry this."""
    name = f"app-{abs(hash(repr(fault)))}"
    world.one.push(name, "v1", IMAGE)
    world.one.script(f"/v2/{name}/*", fault)
    for what in ("manifests/v1", f"manifests/{IMAGE.digest}", f"blobs/{IMAGE.layers[0].digest}"):
        if what.startswith("blobs") and isinstance(fault, Flip | Cut):
            continue  # its HEAD is answered, and a larger body begins
        await world.clear_cooldowns()
        answer = await world.get(f"/v2/reg/{name}/{what}")
        message = check_registry_error(answer, 503, "UNAVAILABLE")
        assert message.endswith(f": {phrase}")
        assert answer.reason == phrase
        assert phrase in PHRASES
        assert reason in message
        assert "remote reg-0" in message
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    await world.clear_cooldowns()


async def test_status_is_the_distributions(world: World) -> None:
    world.one.push("status", "v1", IMAGE)
    world.one.script("/v2/status/*", Status(503))
    world.files.put("status", fresh(100))
    world.files.script("/status", Status(503))
    for base_path, status in (("reg", 503), ("reg404", 404), ("reg599", 599)):
        answer = await world.get(f"/v2/{base_path}/status/manifests/v1")
        check_registry_error(answer, status, "UNAVAILABLE")
        assert answer.reason == "connection refused"
        assert "Retry-After" in answer.headers
    for base_path, status in (("files", 404), ("files503", 503)):
        answer = await world.get(f"/pulp/content/{base_path}/status")
        assert answer.status == status
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert int(answer.headers["Retry-After"]) >= 1
        assert b"remote files" in answer.body


async def test_retry_after_is_the_time_to_the_first_trial(world: World) -> None:
    """At most a minute for the registry, since pullers wait no longer."""
    for path, expected in (("/v2/down/app/manifests/v1", (60, 60)), ("/pulp/content/fdown/f", (190, 200))):
        for state in ("failing", "cooling"):
            answer = await world.get(path)
            if state == "cooling":
                assert b"cooling down for" in answer.body
                assert expected[0] <= int(answer.headers["Retry-After"]) <= expected[1]


async def test_retry_after_of_nothing_is_nothing(world: World) -> None:
    """A remote that asks for no pause gets none, not the minute of one that names none."""
    world.two.push("brief", "v1", IMAGE)
    world.two.script("/v2/brief/*", too_many("0"), times=1)
    assert (await world.get("/v2/both/brief/manifests/v1")).status == 503
    assert (await world.get("/v2/both/brief/manifests/v1")).status == 200


async def test_retry_after_of_the_remote_is_passed_on(world: World) -> None:
    world.two.push("limited", "v1", IMAGE)
    world.two.script("/v2/limited/*", too_many("17"))
    world.one.script("/v2/limited/*", Status(503))
    answer = await world.get("/v2/both/limited/manifests/v1")
    check_registry_error(answer, 503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) <= 17
    await world.clear_cooldowns()


# Denied, and not found


@pytest.mark.parametrize("status", [401, 403])
async def test_denied_everywhere(world: World, status: int) -> None:
    name = f"denied{status}"
    for remote in (world.one, world.two):
        remote.push(name, "v1", IMAGE)
        remote.script(f"/v2/{name}/*", Status(status))
    world.files.script(f"/{name}", Status(status))
    for what in ("manifests/v1", f"manifests/{IMAGE.digest}", f"blobs/{IMAGE.config.digest}", "tags/list"):
        answer = await world.get(f"/v2/both/{name}/{what}")
        check_registry_error(answer, 403, "DENIED")
        assert "WWW-Authenticate" not in answer.headers
    answer = await world.get(f"/pulp/content/files/{name}")
    assert (answer.status, answer.headers["Cache-Control"]) == (403, "no-store")


async def test_denied_by_one_alone_is_unavailable(world: World) -> None:
    """The other one might have it: of a 404 and a 403 nobody can make a "does not exist"."""
    world.one.push("partly", "v1", IMAGE)
    world.one.script("/v2/partly/*", Status(403))
    check_registry_error(await world.get("/v2/both/partly/manifests/v1"), 503, "UNAVAILABLE")
    world.two.script("/v2/partly/*", Status(500))
    check_registry_error(await world.get("/v2/both/partly/manifests/v1"), 503, "UNAVAILABLE")


async def test_not_found_has_the_code_of_what_was_asked_for(world: World) -> None:
    world.one.push("found", "v1", IMAGE)
    missing = f"sha256:{'5' * 64}"
    for what, code in (
        ("found/manifests/none", "MANIFEST_UNKNOWN"),
        (f"found/manifests/{missing}", "MANIFEST_UNKNOWN"),
        (f"found/blobs/{missing}", "BLOB_UNKNOWN"),
        ("unknown/tags/list", "NAME_UNKNOWN"),
    ):
        answer = await world.get(f"/v2/reg/{what}")
        check_registry_error(answer, 404, code)
        assert "Retry-After" not in answer.headers
        assert answer.reason == "Not Found"
    check_registry_error(await world.get("/v2/nobody/app/manifests/v1"), 404, "NAME_UNKNOWN")
    for path in ("/pulp/content/files/none", "/pulp/content/nobody/f", "/", "/elsewhere", "/pulp/content/files"):
        answer = await world.get(path)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8"), path
        assert answer.headers["Cache-Control"] == "no-store"


async def test_malformed_requests(world: World) -> None:
    for path, code in (
        ("reg/app/blobs/sha256:abc", "DIGEST_INVALID"),
        ("reg/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", "DIGEST_INVALID"),
        (f"reg/app/manifests/sha256:{'A' * 64}", "DIGEST_INVALID"),
        ("reg/app/manifests/-tag", "MANIFEST_INVALID"),
        ("reg/APP/manifests/v1", "NAME_INVALID"),
        ("reg/../app/manifests/v1", "NAME_INVALID"),
        ("reg/app/tags/list?n=many", "NAME_INVALID"),
        ("_catalog", "NAME_INVALID"),
    ):
        check_registry_error(await world.get(f"/v2/{path}"), 400, code)
    for path in ("../x", "files/../x", "files/a//b", "files/%2e%2e/x", "files/a%00b", "files/a%2Fb", "files/%zz"):
        answer = await world.get(f"/pulp/content/{path}")
        assert (answer.status, answer.headers["Cache-Control"]) == (400, "no-store"), path


# Methods


@pytest.mark.parametrize("method", OTHER_METHODS)
async def test_other_methods(world: World, method: str) -> None:
    before = (world.one.count(), world.files.count())
    for path in ("/v2/", "/v2/reg/app/manifests/v1", "/v2/reg/app/blobs/uploads/", "/pulp/content/files/f", "/"):
        answer = await world.get(path, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD"), path
        if path.startswith("/v2"):
            check_registry_error(answer, 405, "UNSUPPORTED")
    assert (world.one.count(), world.files.count()) == before


async def test_body_of_a_request_is_not_taken_for_another_request(world: World) -> None:
    """The body that nobody read does not become the next request on the connection."""
    smuggled = b"GET /pulp/content/files/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    request = b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(smuggled)
    raw = await ask_raw(world.proxy.url, request + smuggled)
    assert raw.startswith(b"HTTP/1.1 405 ")
    assert raw.count(b"HTTP/1.1 ") == 1
    assert world.files.count("/smuggled") == 0
