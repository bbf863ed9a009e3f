"""Which distribution a request belongs to, and that the table follows changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from contentapp.catalog.base import ContentCatalog
from contentapp.coordination.base import Coordination
from contentapp.core.errors import CatalogUnavailable, DistributionNotFound, InvalidPath, InvalidRequestError
from contentapp.core.records import ContentType, Distribution
from contentapp.pipeline.request import DeviceRequest
from contentapp.pipeline.route import DISTRIBUTIONS_TOPIC, Router, is_registry_path
from contentapp.plugins.base import Wanted

DIGEST = f"sha256:{'a' * 64}"


class Listed:
    """As much of a catalog and a coordination as a router asks: what there is, and word of changes."""

    def __init__(self, *distributions: Distribution) -> None:
        self.distributions_now = distributions
        self.is_down = False
        self.reads = 0
        self.callbacks: dict[str, Callable[[str], None]] = {}

    async def distributions(self) -> tuple[Distribution, ...]:
        self.reads += 1
        if self.is_down:
            raise CatalogUnavailable("down")
        return self.distributions_now

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        self.callbacks[topic] = callback

    def router(self) -> Router:
        return Router(cast(ContentCatalog, self), cast(Coordination, self))


def registry(base_path: str, *hosts: str, is_default: bool = False) -> Distribution:
    return Distribution(
        id=hash(base_path),
        name=base_path,
        base_path=base_path,
        type=ContentType.CONTAINER,
        registry_hosts=hosts,
        default_registry=is_default,
    )


def files(base_path: str) -> Distribution:
    return Distribution(id=hash(base_path), name=base_path, base_path=base_path, type=ContentType.FILE)


def asked(raw_path: str, query: str = "") -> DeviceRequest:
    return DeviceRequest(
        id="1", method="GET", raw_path=raw_path, query=query, headers={}, version=(1, 1), peer="", started=0.0
    )


async def routed(path: str, *distributions: Distribution, query: str = "") -> tuple[str, str]:
    """The base_path and the rest of the name that a path is routed to."""
    router = Listed(*distributions).router()
    await router.load()
    route = router.route(asked(path, query))
    return route.distribution.base_path, route.name


BOTH = (registry("quay.io", "quay.io"), registry("quay.io/deep"), files("quay.io"), files("firmware/eu"), files("q"))


@pytest.mark.parametrize(
    ("path", "query", "base_path", "name"),
    [
        ("/v2/quay.io/a/manifests/v1", "", "quay.io", "a"),
        ("/v2/quay.io/a/b/c/manifests/v1", "", "quay.io", "a/b/c"),
        ("/v2/quay.io/deep/a/manifests/v1", "", "quay.io/deep", "a"),
        ("/v2/quay.io/deeper/a/manifests/v1", "", "quay.io", "deeper/a"),
        ("/v2/quay.io/deep/blobs/" + DIGEST, "", "default", "quay.io/deep"),
        ("/v2/quay.io/tags/list", "", "default", "quay.io"),
        ("/v2/library/debian/manifests/12", "", "default", "library/debian"),
        ("/v2/debian/manifests/12", "", "default", "debian"),
        ("/v2/a/b/manifests/v1", "ns=quay.io", "quay.io", "a/b"),
        ("/v2/a/b/manifests/v1", "ns=QUAY.io", "quay.io", "a/b"),
        ("/v2/quay.io/a/manifests/v1", "ns=quay.io", "quay.io", "a"),
        ("/pulp/content/quay.io/a", "", "quay.io", "a"),
        ("/pulp/content/firmware/eu/x/y.bin", "", "firmware/eu", "x/y.bin"),
        ("/pulp/content/q/", "", "q", ""),
        ("/pulp/content/q/sub/", "", "q", "sub"),
    ],
)
async def test_route(path: str, query: str, base_path: str, name: str) -> None:
    assert await routed(path, *BOTH, registry("default", is_default=True), query=query) == (base_path, name)


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        ("/v2/nobody/a/manifests/v1", "", DistributionNotFound),
        ("/v2/firmware/eu/manifests/v1", "", DistributionNotFound),
        ("/v2/quay.io/manifests/v1", "", DistributionNotFound),
        ("/v2/a/manifests/v1", "ns=unknown.example", DistributionNotFound),
        ("/v2/quay.io/a/manifests/v1", "ns=unknown.example", DistributionNotFound),
        ("/pulp/content/nobody/f", "", DistributionNotFound),
        ("/pulp/content/firmware/f", "", DistributionNotFound),
        ("/pulp/content/q", "", DistributionNotFound),
        ("/pulp/content/q/../f", "", InvalidPath),
        ("/elsewhere", "", InvalidPath),
        ("/", "", InvalidPath),
        ("/v2/quay.io/A/manifests/v1", "", InvalidRequestError),
    ],
)
async def test_no_route(path: str, query: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await routed(path, *BOTH, query=query)


async def test_unknown_ns_never_falls_to_the_default() -> None:
    with pytest.raises(DistributionNotFound):
        await routed("/v2/a/manifests/v1", registry("d", is_default=True), query="ns=unknown.example")


async def test_what_is_wanted() -> None:
    router = Listed(*BOTH).router()
    await router.load()
    wanted = {
        "/v2/quay.io/a/manifests/v1": Wanted.MANIFEST,
        f"/v2/quay.io/a/manifests/{DIGEST}": Wanted.MANIFEST,
        f"/v2/quay.io/a/blobs/{DIGEST}": Wanted.BLOB,
        "/v2/quay.io/a/tags/list": Wanted.TAGS,
        f"/v2/quay.io/a/referrers/{DIGEST}": Wanted.REFERRERS,
        "/pulp/content/q/f": Wanted.FILE,
        "/pulp/content/q/f/": Wanted.FOLDER,
    }
    assert {path: router.route(asked(path)).path.wanted for path in wanted} == wanted


async def test_nothing_is_routed_before_the_table_is_read() -> None:
    router = Listed(*BOTH).router()
    assert router.distributions == ()
    with pytest.raises(DistributionNotFound):
        router.route(asked("/pulp/content/q/f"))


@pytest.mark.parametrize("topic", [DISTRIBUTIONS_TOPIC, "resync"])
async def test_table_follows_changes(topic: str) -> None:
    listed = Listed(files("old"))
    router = listed.router()
    await router.load()
    following = asyncio.create_task(router.follow_changes(600))
    listed.distributions_now = (files("new"),)
    listed.callbacks[topic]("")
    async with asyncio.timeout(10):
        while [item.base_path for item in router.distributions] != ["new"]:
            await asyncio.sleep(0)
    assert router.route(asked("/pulp/content/new/f")).name == "f"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_table_survives_a_catalog_that_is_down() -> None:
    """And is read again after a while, in case word of a change was lost."""
    listed = Listed(files("old"))
    router = listed.router()
    await router.load()
    listed.is_down = True
    following = asyncio.create_task(router.follow_changes(0.01))
    async with asyncio.timeout(10):
        while listed.reads < 3:
            await asyncio.sleep(0)
        assert router.route(asked("/pulp/content/old/f")).name == "f"
        listed.is_down, listed.distributions_now = False, (files("new"),)
        while [item.base_path for item in router.distributions] != ["new"]:
            await asyncio.sleep(0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


def test_registry_paths() -> None:
    assert is_registry_path("/v2")
    assert is_registry_path("/v2/a")
    assert not is_registry_path("/v2a")
    assert not is_registry_path("/pulp/content/v2/")
