"""The registry's endpoints as a device sees them: manifests, blobs, lists, referrers, and which remote answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.proxy import Proxy, pull_through
from tests.remotes.content import digest_of
from tests.remotes.faults import Headers, LoginPage, Shorten, Status, wrong_type
from tests.remotes.images import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    Index,
    Part,
    make_artifact,
    make_image,
    make_index,
    manifest_body,
)
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask
from tests.scenarios.stage import PATIENT, fresh, staged

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
ACCEPTS = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST]
SBOM, SIGNATURE = "application/vnd.example.sbom.v1", "application/vnd.example.signature.v1"
IMAGE = make_image(layers=2, layer_size=500, seed=20)
TAGS = ["a", "b", "c", "d", "latest"]


@dataclass
class World:
    """``reg`` → one; ``reg/deep`` → two; ``both`` → one, then two; ``old`` without referrers; ``paged`` by two;
    ``hosts`` → two, for ns=; and a default.
    """

    proxy: Proxy
    one: RegistryRemote
    two: RegistryRemote
    old: RegistryRemote = field(repr=False)
    paged: RegistryRemote
    default: RegistryRemote

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """Ask for ``/v2/<path>``."""
        return await ask(f"{self.proxy.url}/v2/{path}", method=method, headers=headers)

    async def pages(self, path: str) -> list[Any]:
        """The documents of a list, page after page, through our own links alone."""
        found, target = [], f"/v2/{path}"
        while target:
            answer = await ask(self.proxy.url + target)
            assert answer.status == 200, answer.body
            found.append(json.loads(answer.body))
            link = answer.headers.get("Link", "")
            target = link.removeprefix("<").removesuffix('>; rel="next"')
            assert target == "" or target.startswith("/v2/"), link
            assert len(found) < 20
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    hosts = {"registry_hosts": ["registry.example", "mirror.example:5000"]}
    async with (
        RegistryRemote() as one,
        RegistryRemote() as two,
        RegistryRemote(referrers=False) as old,
        RegistryRemote(page_size=2) as paged,
        RegistryRemote() as default,
        staged(
            tmp_path_factory.mktemp("registry"),
            pull_through("container", "reg", {"one": one.url}, remote=PATIENT),
            pull_through("container", "reg/deep", {"two": two.url}, remote=PATIENT, distribution=hosts),
            pull_through("container", "both", {"one": one.url, "two": two.url}, remote=PATIENT),
            pull_through("container", "old", {"old": old.url}, remote=PATIENT),
            pull_through("container", "paged", {"paged": paged.url}, remote=PATIENT),
            pull_through(
                "container", "dflt", {"d": default.url}, remote=PATIENT, distribution={"default_registry": True}
            ),
        ) as proxy,
    ):
        yield World(proxy, one, two, old, paged, default)


# Ping


async def test_ping(world: World) -> None:
    for path in ("/v2/", "/v2", "/v2/?ns=registry.example"):
        answer = await ask(world.proxy.url + path)
        assert (answer.status, json.loads(answer.body)) == (200, {})
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


# Manifests


@pytest.mark.parametrize(
    "image",
    [
        make_image(layers=1, layer_size=10, seed=21),
        make_image(layers=1, layer_size=10, seed=22, schema2=True),
        make_index(layers=1, layer_size=10, seed=23),
        make_index(layers=1, layer_size=10, seed=24, schema2=True),
    ],
    ids=["oci", "schema2", "oci index", "docker list"],
)
async def test_manifest_is_kept_byte_for_byte_with_its_media_type(world: World, image: Image | Index) -> None:
    name = f"verbatim-{image.digest[7:17]}"
    world.one.push(name, "v1", image)
    for accept in ("*/*", OCI_MANIFEST, DOCKER_MANIFEST, "text/html", ""):
        for reference in ("v1", image.digest):
            answer = await world.get(f"reg/{name}/manifests/{reference}", Accept=accept)
            assert (answer.status, answer.body) == (200, image.manifest.body)
            assert answer.headers["Content-Type"] == image.manifest.media_type
            assert answer.headers["Docker-Content-Digest"] == image.digest
            assert "Vary" not in answer.headers


async def test_upstream_is_always_asked_with_the_same_accept(world: World) -> None:
    for number, accept in enumerate(("", "text/html", OCI_MANIFEST)):
        world.one.push("accept", f"v{number}", make_image(layers=0, seed=number))
        await world.get(f"reg/accept/manifests/v{number}", Accept=accept)
        (exchange,) = world.one.asked(f"/v2/accept/manifests/v{number}")
        assert [item.strip() for item in exchange.headers["Accept"].split(",")] == ACCEPTS


async def test_children_of_an_index_are_fetched_only_when_asked_for(world: World) -> None:
    index = make_index(arches=("amd64", "arm64", "s390x"), layers=1, layer_size=300, seed=25)
    world.one.push("multi", "v1", index)
    assert (await world.get("reg/multi/manifests/v1")).body == index.manifest.body
    assert [exchange.path for exchange in world.one.asked("/v2/multi/*")] == ["/v2/multi/manifests/v1"]
    wanted = index.images[1]
    assert (await world.get(f"reg/multi/manifests/{wanted.digest}")).body == wanted.manifest.body
    for blob in wanted.blobs:
        assert (await world.get(f"reg/multi/blobs/{blob.digest}")).body == blob.body
    asked = {exchange.path.rpartition("/")[2] for exchange in world.one.asked("/v2/multi/*")}
    assert asked == {"v1", wanted.digest, *(blob.digest for blob in wanted.blobs)}


@pytest.mark.parametrize("announced", [SCHEMA1, "application/json"])
async def test_schema1_is_refused(world: World, announced: str) -> None:
    part = Part(announced, b'{"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [], "history": []}')
    world.one.push_manifest("ancient", part, tag="v1")
    answer = await world.get("reg/ancient/manifests/v1")
    assert answer.status == 503
    assert b"schema1 is not supported" in answer.body
    assert SCHEMA1.encode() not in answer.body


async def test_manifest_that_is_none_makes_its_source_fail(world: World) -> None:
    """The next source is asked; with no other it is unavailable, never "does not exist"."""
    world.one.push("mixed", "v1", IMAGE)
    world.two.push("mixed", "v1", IMAGE)
    for fault in (LoginPage(), wrong_type("text/html"), wrong_type(SCHEMA1)):
        world.one.clear()
        world.one.script("/v2/mixed/manifests/*", fault)
        assert (await world.get("reg/mixed/manifests/v1")).status == 503
        answer = await world.get(f"both/mixed/manifests/{IMAGE.digest}")
        assert (answer.status, answer.body) == (200, IMAGE.manifest.body)


async def test_sha512(world: World) -> None:
    layer = Part("application/vnd.oci.image.layer.v1.tar", b"l" * 3000, algorithm="sha512")
    config = Part("application/vnd.oci.image.config.v1+json", b"{}", algorithm="sha512")
    body = manifest_body(OCI_MANIFEST, config=config.descriptor(), layers=[layer.descriptor()])
    manifest = Part(OCI_MANIFEST, body, algorithm="sha512")
    world.one.push("long", "v1", Image(manifest, config, (layer,)))
    for _ in range(2):
        answer = await world.get(f"reg/long/manifests/{manifest.digest}")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["Docker-Content-Digest"] == manifest.digest
        assert answer.headers["Repr-Digest"].startswith("sha-512=:")
        blob = await world.get(f"reg/long/blobs/{layer.digest}")
        assert (blob.status, blob.body) == (200, layer.body)
    assert (await world.get("reg/long/manifests/v1")).headers["Docker-Content-Digest"] == manifest.digest


# Blobs


async def test_blob_never_has_the_media_type_of_a_manifest(world: World) -> None:
    """Whether a served manifest names it or not; nor has it the one that a descriptor says."""
    index = make_index(arches=("amd64",), layers=1, layer_size=100, seed=26)
    image = index.images[0]
    for name in ("types", "unnamed"):
        world.one.push(name, "v1", index)
        world.one.push_blob(name, image.manifest.body)
    for reference in ("v1", image.digest):
        assert (await world.get(f"reg/types/manifests/{reference}")).status == 200
    digests = (image.config.digest, image.layers[0].digest, image.digest)
    for name, digest in itertools.product(("types", "unnamed"), digests):
        for media_type in (OCI_MANIFEST, "text/html"):
            world.one.clear()
            world.one.script(f"*/blobs/{digest}", wrong_type(media_type), method="GET")
            for method in ("HEAD", "GET", "GET"):
                answer = await world.get(f"reg/{name}/blobs/{digest}", method=method)
                assert (answer.status, answer.headers["Content-Type"]) == (200, "application/octet-stream")


async def test_size_that_a_head_tells_is_not_believed(world: World) -> None:
    """Some registries answer HEAD with a length of their own; the bytes are right all the same."""
    content = fresh(4000)
    digest = world.one.push_blob("sizes", content)
    world.one.script(f"*/{digest}", Shorten(5), method="HEAD")
    assert (await world.get(f"reg/sizes/blobs/{digest}", method="HEAD")).status == 200
    answer = await world.get(f"reg/sizes/blobs/{digest}")
    assert (answer.status, answer.sha256) == (200, digest)


async def test_login_page_does_not_confirm_that_a_blob_is_there(world: World) -> None:
    content = fresh(4000)
    digest = world.one.push_blob("confirmed", content)
    assert (await world.get(f"reg/confirmed/blobs/{digest}")).status == 200
    world.one.repositories["strange"] = world.one.repositories["confirmed"]
    world.one.script("/v2/strange/*", LoginPage())
    for method in ("HEAD", "GET"):
        assert (await world.get(f"reg/strange/blobs/{digest}", method=method)).status == 503


async def test_blob_of_a_repository_without_it(world: World) -> None:
    digest = world.one.push_blob("has-it", content := fresh(4000))
    world.one.push("has-not", "v1", IMAGE)
    assert (await world.get(f"reg/has-it/blobs/{digest}")).sha256 == digest == digest_of(content)
    answer = await world.get(f"reg/has-not/blobs/{digest}")
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "BLOB_UNKNOWN")


# Lists


async def test_tags_in_one_page(world: World) -> None:
    for tag in TAGS:
        world.one.push("tags", tag, IMAGE)
    answer = await world.get("reg/tags/tags/list")
    assert json.loads(answer.body) == {"name": "reg/tags", "tags": TAGS}
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Link" not in answer.headers


async def test_tags_page_by_page(world: World) -> None:
    for tag in TAGS:
        world.one.push("pages", tag, IMAGE)
        world.paged.push("pages", tag, IMAGE)
    first = await world.get("reg/pages/tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["a", "b"]
    assert first.headers["Link"] == '</v2/reg/pages/tags/list?n=2&last=b>; rel="next"'
    for path in ("reg/pages/tags/list?n=2", "paged/pages/tags/list", "paged/pages/tags/list?n=100"):
        pages = await world.pages(path)
        assert [tag for page in pages for tag in page["tags"]] == TAGS
        assert len(pages) == 3
        assert {page["name"] for page in pages} == {path.partition("/tags/list")[0]}
    rest = await world.get("reg/pages/tags/list?last=c")
    assert json.loads(rest.body)["tags"] == ["d", "latest"]
    none = await world.get("reg/pages/tags/list?n=0")
    assert json.loads(none.body)["tags"] == []


async def test_link_of_a_remote_is_never_passed_on_as_it_is(world: World) -> None:
    world.one.push("links", "v1", IMAGE)
    links = {
        f'<{world.one.url}/v2/links/tags/list?n=1&last=v1>; rel="next"': "/v2/reg/links/tags/list?n=1&last=v1",
        '<https://cdn.example/x/v2/links/tags/list?last=v1&token=t>; rel="next"': (
            "/v2/reg/links/tags/list?last=v1&token=t"
        ),
        '</v2/other/manifests/latest?x=1>; rel="next"': "",
        '</v2/links/tags/list?last=v1>; rel="prev"': "",
        "nonsense": "",
    }
    for link, expected in links.items():
        world.one.clear()
        world.one.script("/v2/links/tags/list", Headers({"Link": link}))
        answer = await world.get("reg/links/tags/list")
        shown = answer.headers.get("Link", "").removeprefix("<").removesuffix('>; rel="next"')
        assert shown == expected, link


async def test_parameters_of_a_next_page_reach_the_remote_as_it_named_them(world: World) -> None:
    world.one.push("named", "v1", IMAGE)
    await world.get("reg/named/tags/list?last=v0&token=a%2Bb")
    (exchange,) = world.one.asked("/v2/named/tags/list")
    assert exchange.query == "last=v0&token=a%2Bb"


async def test_list_that_is_none(world: World) -> None:
    world.one.push("broken", "v1", IMAGE)
    world.two.push("broken", "v2", IMAGE)
    world.one.script("/v2/broken/tags/list", LoginPage())
    assert (await world.get("reg/broken/tags/list")).status == 503
    world.one.script("/v2/broken/tags/list", LoginPage())
    assert json.loads((await world.get("both/broken/tags/list")).body)["tags"] == ["v2"]
    missing = await world.get("reg/nothing/tags/list")
    assert (missing.status, json.loads(missing.body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


# Referrers


@dataclass
class Referred:
    """An image with two kinds of referrers."""

    image: Image = field(default_factory=lambda: make_image(layers=1, layer_size=10, seed=27))

    def push(self, remote: RegistryRemote, name: str) -> None:
        remote.push(name, "v1", self.image)
        for content in (b"1", b"2", b"3"):
            remote.push(name, None, make_artifact(artifact_type=SBOM, content=content, subject=self.image.manifest))
        remote.push(name, None, make_artifact(artifact_type=SIGNATURE, subject=self.image.manifest))


async def found(world: World, path: str) -> list[str]:
    """The artifact types in all pages of referrers."""
    pages = await world.pages(path)
    for page in pages:
        assert (page["schemaVersion"], page["mediaType"]) == (2, OCI_INDEX)
    return sorted(item["artifactType"] for page in pages for item in page["manifests"])


@pytest.mark.parametrize("kind", ["reg", "old", "paged"])
async def test_referrers(world: World, kind: str) -> None:
    """Through the API, by pages, and by the tag scheme where the remote has no API."""
    referred = Referred()
    referred.push({"reg": world.one, "old": world.old, "paged": world.paged}[kind], "referred")
    path = f"{kind}/referred/referrers/{referred.image.digest}"
    answer = await world.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_INDEX)
    assert "OCI-Filters-Applied" not in answer.headers
    assert await found(world, path) == [SBOM, SBOM, SBOM, SIGNATURE]
    filtered = await world.get(f"{path}?artifactType={SIGNATURE}")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert await found(world, f"{path}?artifactType={SIGNATURE}") == [SIGNATURE]
    assert await found(world, f"{path}?artifactType={SBOM}") == [SBOM] * 3


@pytest.mark.parametrize("kind", ["reg", "old"])
async def test_nobody_refers_to_it(world: World, kind: str) -> None:
    digest = f"sha256:{'1' * 64}"
    (world.one if kind == "reg" else world.old).push("lonely", "v1", IMAGE)
    for query in ("", f"?artifactType={SBOM}"):
        answer = await world.get(f"{kind}/lonely/referrers/{digest}{query}")
        assert (answer.status, json.loads(answer.body)["manifests"]) == (200, [])
        assert answer.headers.get("OCI-Filters-Applied") == ("artifactType" if query else None)


async def test_referrers_that_no_source_can_tell(world: World) -> None:
    """Unavailable, not "none": a signature that is not found would be taken for one that does not exist."""
    world.one.push("silent", "v1", IMAGE)
    world.one.script("/v2/silent/referrers/*", Status(503))
    assert (await world.get(f"reg/silent/referrers/{IMAGE.digest}")).status == 503
    world.one.clear()
    world.one.script("/v2/silent/referrers/*", Status(404))
    world.one.script("/v2/silent/manifests/*", Status(503))
    assert (await world.get(f"reg/silent/referrers/{IMAGE.digest}")).status == 503


# Which distribution, which remote


async def test_longest_base_path_wins(world: World) -> None:
    inner, outer = make_image(layers=0, seed=28), make_image(layers=0, seed=29)
    world.two.push("app", "v1", inner)
    world.one.push("deep/app", "v1", outer)
    world.one.push("deeper/app", "v1", outer)
    assert (await world.get("reg/deep/app/manifests/v1")).body == inner.manifest.body
    assert (await world.get("reg/deeper/app/manifests/v1")).body == outer.manifest.body
    assert world.one.count("/v2/deep/app/*") == 0


async def test_ns_selects_the_distribution(world: World) -> None:
    world.two.push("team/app", "v1", IMAGE)
    for host in ("registry.example", "REGISTRY.example", "mirror.example:5000"):
        answer = await world.get(f"team/app/manifests/v1?ns={host}")
        assert (answer.status, answer.body) == (200, IMAGE.manifest.body), host
        blob = await world.get(f"team/app/blobs/{IMAGE.config.digest}?ns={host}")
        assert (blob.status, blob.body) == (200, IMAGE.config.body)
    assert all(exchange.query == "" for exchange in world.two.asked("/v2/team/app/*"))
    pages = await world.get("team/app/tags/list?n=1&ns=registry.example")
    assert json.loads(pages.body) == {"name": "team/app", "tags": ["v1"]}


async def test_ns_is_kept_in_links(world: World) -> None:
    for tag in TAGS:
        world.two.push("team/tags", tag, IMAGE)
    pages = await world.pages("team/tags/tags/list?n=2&ns=registry.example")
    assert [tag for page in pages for tag in page["tags"]] == TAGS


async def test_ns_that_nobody_has_is_never_dialled(world: World) -> None:
    """Nor does anybody else answer for it."""
    world.one.push("plain", "v1", IMAGE)
    world.two.forget()
    for name in ("plain", "reg/plain"):
        answer = await world.get(f"{name}/manifests/v1?ns={world.two.address}")
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")
    assert world.two.count() == 0
    assert (await world.get("reg/plain/manifests/v1?ns=..%2F")).status == 400


async def test_default_registry_answers_for_names_that_match_nothing(world: World) -> None:
    """As Docker asks its registry-mirrors: docker.io's names without a prefix."""
    world.default.push("library/debian", "12", IMAGE)
    world.default.push("reg", "v1", IMAGE)
    answer = await world.get("library/debian/manifests/12")
    assert (answer.status, answer.body) == (200, IMAGE.manifest.body)
    assert (await world.get("reg/manifests/v1")).status == 200, "a base_path alone is no name below it"
    assert (await world.get("dflt/library/debian/manifests/12")).status == 200


async def test_several_remotes(world: World) -> None:
    """What the first has not comes from the second; lists come from the first that answers, unmerged."""
    only_two = make_image(layers=1, layer_size=100, seed=30)
    world.one.push("shared", "one", IMAGE)
    world.two.push("shared", "two", only_two)
    assert (await world.get("both/shared/manifests/one")).body == IMAGE.manifest.body
    assert (await world.get("both/shared/manifests/two")).body == only_two.manifest.body
    for blob in only_two.blobs:
        assert (await world.get(f"both/shared/blobs/{blob.digest}")).body == blob.body
    assert json.loads((await world.get("both/shared/tags/list")).body)["tags"] == ["one"]
    assert (await world.get("both/shared/manifests/none")).status == 404
    world.one.script("/v2/shared/*", Status(500))
    assert json.loads((await world.get("both/shared/tags/list")).body)["tags"] == ["two"]
    assert (await world.get("both/shared/manifests/none")).status == 503
