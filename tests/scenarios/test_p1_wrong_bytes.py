"""P1: no device receives a complete response whose bytes do not match the expected digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proxy import pull_through, running_proxy
from tests.remotes.content import Flipped, Synthetic, digest_of, read_all
from tests.remotes.faults import Cut, Flip, Gzip, LoginPage, Replace, Shorten, Stall, Unsized
from tests.remotes.files import FileRemote
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask, ask_raw, asking, until_stored

KIB = 1024
MIB = 1024 * KIB
LARGE = Synthetic(3 * MIB + 77)
SMALL = Synthetic(300 * KIB, seed=1)
LAST = LARGE.size - 1


def registry(url: str, **settings: object) -> dict[str, object]:
    return pull_through("container", "reg", {"r": url}, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["on_demand", "streamed"])
@pytest.mark.parametrize("at", [0, LARGE.size // 2, LAST - 64 * KIB, LAST])
async def test_corrupt_large_blob_is_never_completed(tmp_path: Path, at: int, policy: str) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        remote.script(f"/v2/app/blobs/{digest}", Flip(at), method="GET")
        async with running_proxy(tmp_path, registry(remote.url, remote={"policy": policy})) as proxy:
            answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            assert answer.status == 200
            assert answer.headers["Content-Length"] == str(LARGE.size)
            assert not answer.is_complete
            assert len(answer.body) <= LARGE.size - 64 * KIB
            assert proxy.artifacts() == []
            assert (await proxy.metrics()).total("contentapp_digest_failures_total", remote="r") == 1


@pytest.mark.parametrize("fault", [Flip(5), Shorten(1000), Replace(bytes(200_000))], ids=["flip", "short", "long"])
async def test_small_blob_is_verified_before_its_first_byte(tmp_path: Path, fault: Flip | Shorten | Replace) -> None:
    """The device gets a plain 503, not a cut connection."""
    async with RegistryRemote() as remote:
        image = make_image(layers=1, layer_size=100_000)
        remote.push("app", "v1", image)
        layer = image.layers[0]
        remote.script(f"/v2/app/blobs/{layer.digest}", fault, Unsized(), method="GET")
        async with running_proxy(tmp_path, registry(remote.url)) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{layer.digest}")
            assert (answer.status, answer.is_complete) == (503, True)
            assert b"UNAVAILABLE" in answer.body
            assert "ETag" not in answer.headers


async def test_corrupt_manifest_is_refused(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "v1", image)
        remote.script("/v2/app/manifests/*", Flip(30), method="GET")
        async with running_proxy(tmp_path, registry(remote.url)) as proxy:
            for reference in ("v1", image.digest):
                answer = await ask(f"{proxy.url}/v2/reg/app/manifests/{reference}")
                assert answer.status == 503
                assert answer.headers["Cache-Control"] == "no-store"
            assert proxy.artifacts() == []


@pytest.mark.parametrize("at", [0, LAST])
async def test_corrupt_body_of_unknown_size(tmp_path: Path, at: int) -> None:
    """Upstream chunked; to the device too, unless its size is known from elsewhere. HTTP/1.0 gets nothing at all."""
    async with RegistryRemote(head="refused") as remote:
        digest = remote.push_blob("app", LARGE)
        path = f"/v2/app/blobs/{digest}"
        remote.script(path, Flip(at), Unsized(), method="GET")
        async with running_proxy(tmp_path, registry(remote.url, remote={"cooldown_seconds": 0.2})) as proxy:
            answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            assert answer.status == 200
            assert not answer.is_complete
    assert proxy.artifacts() == []


@pytest.mark.parametrize("is_corrupt", [False, True])
async def test_old_http_of_unknown_size_is_verified_whole_first(tmp_path: Path, is_corrupt: bool) -> None:
    content = Synthetic(2 * MIB, seed=3)
    async with FileRemote({"f": content}, manifest=False) as remote:
        remote.script("/f", Unsized(), *([Cut(1_900_000)] if is_corrupt else []), method="GET")
        async with running_proxy(tmp_path, pull_through("file", "files", {"f": f"{remote.url}/"})) as proxy:
            raw = await ask_raw(proxy.url, b"GET /pulp/content/files/f HTTP/1.0\r\nHost: x\r\n\r\n")
            head, _, body = raw.partition(b"\r\n\r\n")
            if is_corrupt:
                assert b" 404 " in head.splitlines()[0]
                assert read_all(content)[:1000] not in raw
            else:
                assert head.startswith(b"HTTP/1.1 200") or head.startswith(b"HTTP/1.0 200")
                assert body == read_all(content)


async def test_tail_waits_for_the_last_byte(tmp_path: Path) -> None:
    """While the last byte has not come, the last 64 KiB that have are not sent; the rest is, at once."""
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        stall = Stall(LAST)
        remote.script(f"/v2/app/blobs/{digest}", stall, method="GET")
        async with (
            running_proxy(tmp_path, registry(remote.url)) as proxy,
            asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") as response,
        ):
            await stall.gate.reached()
            head = await response.content.readexactly(LARGE.size - 64 * KIB)
            assert head == read_all(LARGE)[: len(head)]
            assert response.content.total_bytes == len(head)
            stall.gate.release()
            assert await response.content.read() == read_all(LARGE)[len(head) :]


@pytest.mark.parametrize("verify_first_bytes", ["unlimited", "4MiB"])
async def test_verify_first_spools_larger_bodies(tmp_path: Path, verify_first_bytes: str) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        remote.script(f"/v2/app/blobs/{digest}", Flip(LAST), method="GET")
        config = registry(remote.url, distribution={"verify_first_bytes": verify_first_bytes})
        async with running_proxy(tmp_path, config) as proxy:
            answer = await ask(f"{proxy.url}/v2/reg/app/blobs/{digest}")
            assert (answer.status, answer.is_complete) == (503, True)


async def test_verify_first_waits_only_so_long(tmp_path: Path) -> None:
    """A small body that trickles is streamed after verify_first_seconds, its tail held back all the same."""
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", SMALL)
        stall = Stall(200 * KIB)
        remote.script(f"/v2/app/blobs/{digest}", stall, method="GET")
        config = registry(remote.url, distribution={"verify_first_seconds": 0.3})
        async with (
            running_proxy(tmp_path, config) as proxy,
            asking(f"{proxy.url}/v2/reg/app/blobs/{digest}") as response,
        ):
            assert response.headers["ETag"].startswith(f'"{digest}-')
            assert len(await response.content.readexactly(200 * KIB)) == 200 * KIB
            stall.gate.release()
            assert len(await response.content.read()) == SMALL.size - 200 * KIB


async def test_manifest_digest_of_the_file_remote_is_expected(tmp_path: Path) -> None:
    """PULP_MANIFEST says what the bytes must be; a login page or other bytes of the same size are not."""
    listed = {"f": LARGE, "g": SMALL, "h": SMALL}
    async with FileRemote(listed, manifest=True) as remote:
        remote.script("/f", Flip(7), method="GET")
        remote.script("/g", LoginPage(), method="GET")
        remote.script("/h", Gzip(), method="GET")
        async with running_proxy(tmp_path, pull_through("file", "files", {"f": f"{remote.url}/"})) as proxy:
            large = await ask(f"{proxy.url}/pulp/content/files/f")
            assert (large.status, large.is_complete) == (200, False)
            for path in ("g", "h"):
                assert (await ask(f"{proxy.url}/pulp/content/files/{path}")).status == 404
            assert proxy.artifacts() == []


async def test_damage_on_disk_is_found_by_verify(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", LARGE)
        async with running_proxy(tmp_path, registry(remote.url)) as proxy:
            url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
            assert (await ask(url)).sha256 == digest
            await until_stored(proxy)
            artifact = next(path for path in proxy.artifacts() if path.stat().st_size == LARGE.size)
            artifact.write_bytes(read_all(Flipped(LARGE, 99)))
            task = (await proxy.admin("/pulp/api/v3/repair/", method="POST", json={}))["task"]
            while (shown := await proxy.admin(task))["state"] in {"waiting", "running"}:
                pass
            assert shown["state"] == "completed"
            answer = await ask(url)
            assert answer.sha256 == digest == digest_of(LARGE)
            assert answer.cache.startswith("fwd=miss")


async def test_etag_of_an_unverified_body_is_of_no_use_after_it_failed(tmp_path: Path) -> None:
    """A device that resumes with If-Range behind a bad prefix gets the whole again, not good bytes behind bad ones."""
    async with RegistryRemote() as bad, RegistryRemote() as good:
        digest = bad.push_blob("app", LARGE)
        good.push_blob("app", LARGE)
        bad.script(f"/v2/app/blobs/{digest}", Flip(10), method="GET")
        config = pull_through("container", "reg", {"bad": bad.url, "good": good.url})
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/reg/app/blobs/{digest}"
            broken = await ask(url)
            assert not broken.is_complete
            resume = {"Range": f"bytes={len(broken.body)}-"}
            whole = await ask(url, headers={**resume, "If-Range": broken.headers["ETag"]})
            assert (whole.status, whole.sha256) == (200, digest)
            verified = await ask(url, headers={**resume, "If-Range": f'"{digest}"'})
            assert verified.status == 206
            assert verified.body == read_all(LARGE)[len(broken.body) :]
