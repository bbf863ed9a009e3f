"""``transfers/``: what runs and what is suspended; filters, pages, cancelling."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from contentapp.api.transfer import Transfers, remote_of
from contentapp.coordination.base import FlightProgress, FlightState, Following, Lease
from contentapp.core.records import ContentType, Remote
from contentapp.pipeline.flight import CANCEL_TOPIC
from contentapp.pipeline.note import Facts, dump_facts
from contentapp.pipeline.progress import Head
from contentapp.storage.base import ArtifactWriter, Note
from tests.unit.api.conftest import Admin

KEY = "sha256:00"
BODY = b"x" * 40


def note(key: str = KEY, url: str = "https://quay.io/v2/app/blobs/sha256:00") -> Note:
    facts = Facts(attempt="a1", path="/v2/quay.io/app", url=url, sources=(url,), if_range="", moved_at=1.0, head=Head())
    mark = hashlib.sha256(BODY).hexdigest()
    return Note(key=key, size=100, offset=len(BODY), step=1000, marks=(), mark=mark, facts=dump_facts(facts))


async def begin(admin: Admin, key: str = KEY) -> ArtifactWriter:
    writer = await admin.services.shared.storage.begin(key, size=100, keep=True)
    await asyncio.to_thread(writer.write, [BODY])
    return writer


async def suspend(admin: Admin, key: str = KEY, **facts: str) -> None:
    await (await begin(admin, key)).suspend(note(key, **facts))


async def run(admin: Admin, key: str = KEY, *, age: float = 10.0, remote: str = "quay") -> Lease:
    lease = await admin.services.shared.coordination.lease(key)
    assert not isinstance(lease, Following)
    lease.publish(
        FlightProgress(
            key=key,
            attempt="a1",
            state=FlightState.RUNNING,
            size=100,
            arrived=40,
            remote=remote,
            started_at=time.time() - age,
        )
    )
    return lease


def on_cancel(admin: Admin, callback: Callable[[str], None]) -> None:
    admin.services.shared.coordination.subscribe(CANCEL_TOPIC, callback)


def releases(*leases: Lease) -> Callable[[str], None]:
    """A worker that ends its transfer when it is told to."""
    tasks: list[asyncio.Task[None]] = []

    def callback(key: str) -> None:
        tasks.extend(asyncio.create_task(lease.release()) for lease in leases if lease.key == key)

    return callback


async def declare(admin: Admin, **urls: str) -> None:
    remotes = [{"name": name, "type": "container", "url": url} for name, url in urls.items()]
    assert (await admin.call("POST", "apply/", {"resources": {"remotes": remotes}}))[0] == 200


async def listed(admin: Admin, query: str = "") -> list[Any]:
    status, answer = await admin.call("GET", f"transfers/{query}")
    assert (status, answer["count"]) == (200, len(answer["results"]))
    return list(answer["results"])


def partials(admin: Admin) -> list[str]:
    return [path.name for path in (admin.services.shared.config.data_dir / "partials").iterdir()]


# -- listing


async def test_what_runs(admin: Admin) -> None:
    lease = await run(admin)
    (found,) = await listed(admin)
    assert 10 <= found.pop("age") < 60
    assert found.pop("started_at").endswith("Z")
    assert found.pop("pulp_href").startswith("/pulp/api/v3/transfers/")
    assert found == {
        "key": KEY,
        "attempt": "a1",
        "state": "running",
        "size": 100,
        "arrived": 40,
        "remote": "quay",
        "followers": 0,
        "keep": True,
        "windowed": False,
    }
    await lease.release()
    assert await listed(admin) == []


async def test_what_is_suspended(admin: Admin) -> None:
    await declare(admin, quay="https://quay.io")
    await suspend(admin)
    (found,) = await listed(admin)
    assert 0 <= found.pop("age") < 60
    assert found.pop("pulp_href").startswith("/pulp/api/v3/transfers/")
    assert found == {
        "key": KEY,
        "attempt": "",
        "state": "suspended",
        "size": 100,
        "arrived": 40,
        "remote": "quay",
        "started_at": None,
        "followers": 0,
        "keep": True,
        "windowed": False,
    }


@pytest.mark.parametrize(("ahead", "least", "most"), [(1000.0, 1000, 1060), (-1000.0, 0, 0)])
async def test_its_age_is_that_of_its_note(admin: Admin, ahead: float, least: int, most: int) -> None:
    await suspend(admin)
    shared = admin.services.shared
    transfers = Transfers(shared.coordination, shared.storage, shared.catalog, clock=lambda: time.time() + ahead)
    async with serving(transfers) as client, client.get("/pulp/api/v3/transfers/") as answer:
        assert least <= (await answer.json())["results"][0]["age"] <= most


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", ["old", "suspended", "strange", "new"]),
        ("?remote=quay", ["old", "suspended", "new"]),
        ("?remote=ghcr", []),
        ("?remote=", []),
        ("?state=running", ["old", "new"]),
        ("?state=suspended", ["suspended", "strange"]),
        ("?state=suspended&remote=quay", ["suspended"]),
        ("?state=failed", []),
    ],
)
async def test_filters_and_order(admin: Admin, query: str, keys: list[str]) -> None:
    await declare(admin, quay="https://quay.io")
    leases = [await run(admin, "new", age=-60), await run(admin, "old")]
    await suspend(admin, "suspended")
    await suspend(admin, "strange", url="https://elsewhere/")
    assert [found["key"] for found in await listed(admin, query)] == keys
    for lease in leases:
        await lease.release()


async def test_pages(admin: Admin) -> None:
    for number in range(3):
        await suspend(admin, str(number))
    _, answer = await admin.call("GET", "transfers/?limit=2&state=suspended")
    assert [found["key"] for found in answer["results"]] == ["0", "1"]
    _, answer = await admin.call("GET", answer["next"])
    assert [found["key"] for found in answer["results"]] == ["2"]
    assert (answer["count"], answer["next"]) == (3, None)
    assert (await admin.call("GET", "transfers/?stat=x"))[0] == 400


async def test_what_was_taken_up_is_shown_as_running_alone(admin: Admin) -> None:
    await suspend(admin)
    lease = await run(admin)
    assert [found["state"] for found in await listed(admin)] == ["running"]
    await lease.release()


async def test_what_is_taken_up_between_the_looks_is_seen(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    await suspend(admin)
    shared, leases, look = admin.services.shared, [], admin.services.shared.storage.suspended

    async def taken_up() -> Any:
        found = await look()
        await shared.storage.discard(KEY)
        leases.append(await run(admin))
        return found

    monkeypatch.setattr(type(shared.storage), "suspended", lambda _: taken_up())
    assert [found["state"] for found in await listed(admin)] == ["running"]
    await leases[0].release()


async def test_without_a_storage_it_shows_what_runs(admin: Admin) -> None:
    folder = admin.services.shared.config.data_dir / "partials"
    folder.rmdir()
    folder.write_bytes(b"no folder")
    lease = await run(admin)
    assert [found["key"] for found in await listed(admin)] == [KEY]
    await lease.release()


async def test_without_a_catalog_no_remote_is_named(admin: Admin) -> None:
    await declare(admin, quay="https://quay.io")
    await suspend(admin)
    await admin.services.shared.engine.close()
    assert [found["remote"] for found in await listed(admin)] == [None]


async def test_facts_of_another_version_name_no_remote(admin: Admin) -> None:
    writer = await begin(admin)
    mark = hashlib.sha256(BODY).hexdigest()
    await writer.suspend(Note(key=KEY, size=None, offset=40, step=1000, marks=(), mark=mark, facts='{"new": 1}'))
    (found,) = await listed(admin)
    assert (found["remote"], found["size"], found["arrived"]) == (None, None, 40)


@pytest.mark.parametrize(
    ("url", "urls", "name"),
    [
        ("https://quay.io/v2/a/blobs/x", {"a": "https://quay.io", "b": "https://ghcr.io"}, "a"),
        ("https://quay.io/v2/a/blobs/x", {"a": "https://quay.io/"}, "a"),
        ("https://quay.io.evil/v2/a", {"a": "https://quay.io"}, None),
        ("https://quay.io:444/v2/a", {"a": "https://quay.io"}, None),
        ("http://quay.io/v2/a", {"a": "https://quay.io"}, None),
        ("https://h/one/f", {"a": "https://h/one/", "b": "https://h/two/"}, "a"),
        ("https://h/one/f", {"a": "https://h/one/PULP_MANIFEST"}, "a"),
        ("https://h/one/f", {"a": "https://h/", "b": "https://h/one/"}, "b"),
        ("https://h/one/two/f", {"b": "https://h/one/", "a": "https://h/"}, "b"),
        ("https://h/f", {"a": "https://h/", "b": "https://h/PULP_MANIFEST"}, None),
        ("", {"a": "https://h/"}, None),
        ("https://h/f", {}, None),
    ],
)
def test_whose_a_url_is(url: str, urls: dict[str, str], name: str | None) -> None:
    remotes = [
        Remote(id=number, name=name, type=ContentType.FILE, url=its) for number, (name, its) in enumerate(urls.items())
    ]
    assert remote_of(url, remotes) == name


async def test_each_has_an_address(admin: Admin) -> None:
    await suspend(admin, "one")
    lease = await run(admin, "two")
    for found in await listed(admin):
        status, same = await admin.call("GET", found["pulp_href"])
        assert (status, same["key"], same["state"]) == (200, found["key"], found["state"])
    await lease.release()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id", ["nothing", "0" * 36, "%2e%2e"])
async def test_an_unknown_one_is_404(admin: Admin, method: str, id: str) -> None:  # noqa: A002 - Pulp's word
    await suspend(admin)
    assert await admin.call(method, f"transfers/{id}/") == (404, {"detail": "Not found."})
    assert len(partials(admin)) == 2


# -- cancelling


async def test_a_suspended_one_is_cancelled(admin: Admin) -> None:
    await suspend(admin)
    await suspend(admin, "another")
    assert await admin.call("POST", "transfers/cancel/", {"key": KEY}) == (200, {"cancelled": 1})
    assert [found["key"] for found in await listed(admin)] == ["another"]
    assert await admin.call("POST", "transfers/cancel/", {"key": KEY}) == (404, {"detail": "no transfer has this key"})


async def test_all_of_a_key_are_cancelled(admin: Admin) -> None:
    first, second = await begin(admin), await begin(admin)
    await first.suspend(note())
    await second.suspend(note())
    assert await admin.call("POST", "transfers/cancel/", {"key": KEY}) == (200, {"cancelled": 2})
    assert partials(admin) == []


async def test_a_running_one_is_cancelled(admin: Admin) -> None:
    lease, other = await run(admin), await run(admin, "other")
    told: list[str] = []
    on_cancel(admin, told.append)
    on_cancel(admin, releases(lease, other))
    assert await admin.call("POST", "transfers/cancel/", {"key": KEY}) == (200, {"cancelled": 1})
    assert told == [KEY]
    assert [found["key"] for found in await listed(admin)] == ["other"]
    await other.release()


@pytest.mark.parametrize("kind", [suspend, run])
async def test_either_is_cancelled_by_its_address(admin: Admin, kind: Any) -> None:
    made = await kind(admin)
    if made is not None:
        on_cancel(admin, releases(made))
    (found,) = await listed(admin)
    assert (await admin.call("DELETE", found["pulp_href"]))[0] == 204
    assert await listed(admin) == []
    assert (await admin.call("DELETE", found["pulp_href"]))[0] == 404


async def test_a_suspended_one_goes_before_anybody_is_told(admin: Admin) -> None:
    """Else a worker could take it up after it was told."""
    await suspend(admin)
    left: list[list[str]] = []
    on_cancel(admin, lambda _: left.append(partials(admin)))
    assert (await admin.call("POST", "transfers/cancel/", {"key": KEY}))[0] == 200
    assert left == [[]]


async def test_what_its_worker_suspends_goes_too(admin: Admin) -> None:
    lease, writer = await run(admin), await begin(admin)
    tasks = []

    async def end() -> None:
        await writer.suspend(note())
        await lease.release()

    on_cancel(admin, lambda _: tasks.append(asyncio.create_task(end())))
    assert (await admin.call("POST", "transfers/cancel/", {"key": KEY}))[0] == 200
    assert partials(admin) == []


async def test_one_that_begins_anew_is_not_waited_for(admin: Admin) -> None:
    lease, fresh, tasks = await run(admin), [], []

    async def begin_anew() -> None:
        await lease.release()
        fresh.append(await run(admin, age=0))

    on_cancel(admin, lambda _: tasks.append(asyncio.create_task(begin_anew())))
    assert await admin.call("POST", "transfers/cancel/", {"key": KEY}) == (200, {"cancelled": 1})
    await asyncio.gather(*tasks)
    assert len(await listed(admin)) == 1
    await fresh[0].release()


async def test_one_that_does_not_end_is_504(admin: Admin) -> None:
    lease, writer = await run(admin), await begin(admin)
    shared = admin.services.shared
    transfers = Transfers(shared.coordination, shared.storage, shared.catalog, cancel_seconds=0.1)
    detail = "the transfer was told to end, but has not ended within 0.1 s"
    path, body = "/pulp/api/v3/transfers/cancel/", {"key": KEY}
    async with serving(transfers) as client, client.post(path, json=body) as answer:
        assert (answer.status, await answer.json()) == (504, {"detail": detail})
    assert len(partials(admin)) == 1
    await writer.abort()
    await lease.release()


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({}, {"key": ["is required"]}),
        ({"key": 1}, {"key": ["must be text"]}),
        ({"key": KEY, "all": True}, {"all": ["no such field"]}),
    ],
)
async def test_what_is_no_key_is_refused(admin: Admin, body: dict[str, Any], messages: dict[str, list[str]]) -> None:
    assert await admin.call("POST", "transfers/cancel/", body) == (400, messages)


@asynccontextmanager
async def serving(transfers: Transfers) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    app.add_routes(transfers.routes())
    async with TestClient(TestServer(app)) as client:
        yield client
