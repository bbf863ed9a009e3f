"""The registry remote, its token server, its TLS and its images, as a plain HTTP client sees them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import aiohttp
import pytest
from yarl import URL

from contentapp.core.digest import Digest
from tests.remotes.authority import Authority
from tests.remotes.images import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, make_artifact, make_image, make_index
from tests.remotes.registry import RegistryRemote
from tests.remotes.tokens import TokenServer


@pytest.mark.parametrize("schema2", [False, True])
def test_images_are_consistent(schema2: bool) -> None:
    image = make_image(layers=2, layer_size=5000, schema2=schema2)
    assert image == make_image(layers=2, layer_size=5000, schema2=schema2)
    assert image.digest != make_image(layers=2, layer_size=5000, schema2=schema2, seed=1).digest
    manifest, config = json.loads(image.manifest.body), json.loads(image.config.body)
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in image.layers]
    tars = [gzip.decompress(layer.body) for layer in image.layers]
    assert config["rootfs"]["diff_ids"] == [str(Digest.of(tar)) for tar in tars]
    with tarfile.open(fileobj=io.BytesIO(tars[0])) as tar:
        assert "etc/os-release" in tar.getnames()


def test_index_names_its_images() -> None:
    index = make_index(arches=("amd64", "arm64"))
    named = json.loads(index.manifest.body)["manifests"]
    assert [entry["platform"]["architecture"] for entry in named] == ["amd64", "arm64"]
    assert [entry["digest"] for entry in named] == [image.digest for image in index.images]
    assert index.manifest.media_type == OCI_INDEX
    assert make_index(schema2=True).manifest.media_type == DOCKER_LIST


async def test_pull() -> None:
    image = make_image()
    async with RegistryRemote() as remote, aiohttp.ClientSession(remote.url) as client:
        remote.push("library/app", "1.0", image)
        async with client.get("/v2/") as answer:
            assert answer.status == 200
        for reference in ("1.0", image.digest):
            async with client.get(f"/v2/library/app/manifests/{reference}") as answer:
                assert await answer.read() == image.manifest.body
                assert answer.content_type == OCI_MANIFEST
                assert answer.headers["Docker-Content-Digest"] == image.digest
        for blob in image.blobs:
            async with client.get(f"/v2/library/app/blobs/{blob.digest}", headers={"Range": "bytes=1-"}) as answer:
                assert (answer.status, await answer.read()) == (206, blob.body[1:])
        for path in ("/v2/other/manifests/1.0", "/v2/library/app/manifests/2", "/v2/library/app/blobs/sha256:0", "/v3"):
            async with client.get(path) as answer:
                assert (answer.status, "errors" in await answer.json()) == (404, True)


@pytest.mark.parametrize(
    ("head", "status", "has_digest"), [("digest", 200, True), ("bare", 200, False), ("refused", 405, False)]
)
async def test_head_variants(head: str, status: int, has_digest: bool) -> None:
    async with RegistryRemote(head=head) as remote, aiohttp.ClientSession(remote.url) as client:
        remote.push("app", "1.0", make_image())
        async with client.head("/v2/app/manifests/1.0") as answer:
            assert (answer.status, "Docker-Content-Digest" in answer.headers) == (status, has_digest)


async def test_tags_in_pages() -> None:
    async with RegistryRemote(page_size=2) as remote, aiohttp.ClientSession(remote.url) as client:
        for number in range(5):
            remote.push("app", f"v{number}", make_image(layers=1, layer_size=10))
        tags, path = [], "/v2/app/tags/list"
        while path:
            async with client.get(path) as answer:
                tags.append((await answer.json())["tags"])
                path = URL(answer.links["next"]["url"]).path_qs if "next" in answer.links else ""
        assert tags == [["v0", "v1"], ["v2", "v3"], ["v4"]]


async def test_referrers() -> None:
    image = make_image(layers=1, layer_size=10)
    async with RegistryRemote(page_size=1) as remote, aiohttp.ClientSession(remote.url) as client:
        remote.push("app", "1.0", image)
        kinds = ("application/x.a", "application/x.b")
        pushed = [remote.push("app", None, make_artifact(artifact_type=kind, subject=image.manifest)) for kind in kinds]
        async with client.get(f"/v2/app/referrers/{image.digest}") as answer:
            assert answer.content_type == OCI_INDEX
            assert [entry["digest"] for entry in json.loads(await answer.read())["manifests"]] == pushed[:1]
            assert "next" in answer.links
        async with client.get(f"/v2/app/referrers/{image.digest}", params={"artifactType": kinds[1]}) as answer:
            assert [entry["digest"] for entry in json.loads(await answer.read())["manifests"]] == pushed[1:]
            assert answer.headers["OCI-Filters-Applied"] == "artifactType"


async def test_referrers_by_tag_scheme() -> None:
    image = make_image(layers=1, layer_size=10)
    async with RegistryRemote(referrers=False) as remote, aiohttp.ClientSession(remote.url) as client:
        remote.push("app", "1.0", image)
        referrer = remote.push("app", None, make_artifact(subject=image.manifest))
        async with client.get(f"/v2/app/referrers/{image.digest}") as answer:
            assert answer.status == 404
        async with client.get(f"/v2/app/manifests/{image.digest.replace(':', '-')}") as answer:
            assert json.loads(await answer.read())["manifests"][0]["digest"] == referrer


async def test_basic_credentials() -> None:
    async with RegistryRemote(credentials=("robot", "geheim")) as remote, aiohttp.ClientSession(remote.url) as client:
        for headers, status in (({}, 401), ({"Authorization": aiohttp.encode_basic_auth("robot", "geheim")}, 200)):
            async with client.get("/v2/", headers=headers) as answer:
                assert answer.status == status


async def test_tokens() -> None:
    now = 0.0
    async with (
        TokenServer(credentials=("robot", "geheim"), lifetime_seconds=60, clock=lambda: now) as tokens,
        RegistryRemote(tokens=tokens) as remote,
        aiohttp.ClientSession() as client,
    ):
        remote.push("app", "1.0", make_image(layers=1, layer_size=10))
        url = f"{remote.url}/v2/app/manifests/1.0"
        async with client.get(url) as answer:
            assert answer.status == 401
            challenge = answer.headers["WWW-Authenticate"]
        assert challenge == f'Bearer realm="{tokens.url}/token",service="registry.test",scope="repository:app:pull"'
        async with client.get(f"{tokens.url}/token") as answer:
            assert answer.status == 401
        query = {"scope": "repository:app:pull", "service": "registry.test"}
        async with client.get(
            tokens.realm, params=query, headers={"Authorization": aiohttp.encode_basic_auth("robot", "geheim")}
        ) as answer:
            issued = await answer.json()
        assert issued["expires_in"] == 60
        bearer = {"Authorization": f"Bearer {issued['token']}"}
        for at, path, status in ((59.0, "app", 200), (59.0, "other", 401), (60.0, "app", 401)):
            now = at
            async with client.get(f"{remote.url}/v2/{path}/manifests/1.0", headers=bearer) as answer:
                assert answer.status == status
        now = 0.0
        tokens.expire()
        async with client.get(url, headers=bearer) as answer:
            assert answer.status == 401


async def test_tls_with_client_certificate(authority: Authority) -> None:
    server = authority.issue("mutual").server_context(client_ca=authority.certificate)
    own = authority.issue("device", client=True)
    async with RegistryRemote(tls=server) as remote:
        trusting = authority.client_context()
        trusting.load_cert_chain(own.certificate, own.key)
        async with aiohttp.ClientSession() as client, client.get(f"{remote.url}/v2/", ssl=trusting) as answer:
            assert answer.status == 200
        async with aiohttp.ClientSession() as client:
            with pytest.raises(aiohttp.ClientError):
                await client.get(f"{remote.url}/v2/", ssl=authority.client_context())
