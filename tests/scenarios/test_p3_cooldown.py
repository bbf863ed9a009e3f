"""P3: failed sources are left alone, in four scopes, over restarts; one trial afterwards; 404 only if all say so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy, pull_through, running_proxy
from tests.remotes.content import Synthetic
from tests.remotes.faults import Delay, Drop, Fault, Flip, Status, too_many
from tests.remotes.images import make_image
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import Answer, ask

MIB = 1024 * 1024
BLOBS = [Synthetic(100_000, seed=seed) for seed in range(5)]


async def cooldowns(proxy: Proxy) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = (await proxy.admin("/pulp/api/v3/cooldowns/"))["results"]
    return results


async def blob(proxy: Proxy, digest: str, name: str = "app") -> Answer:
    return await ask(f"{proxy.url}/v2/reg/{name}/blobs/{digest}")


async def test_wrong_bytes_cool_the_pair_alone(tmp_path: Path) -> None:
    async with RegistryRemote() as bad, RegistryRemote() as good:
        digests = [bad.push_blob("app", content) for content in BLOBS[:2]]
        for content in BLOBS[:2]:
            good.push_blob("app", content)
        bad.script(f"/v2/app/blobs/{digests[0]}", Flip(3), method="GET")
        config = pull_through("container", "reg", {"bad": bad.url, "good": good.url})
        async with running_proxy(tmp_path, config) as proxy:
            assert (await blob(proxy, digests[0])).sha256 == digests[0]
            (state,) = await cooldowns(proxy)
            assert (state["remote"], state["scope"], state["subject"]) == ("bad", "artifact", digests[0])
            assert "digest mismatch" in state["reason"]
            assert (await blob(proxy, digests[1])).sha256 == digests[1]
            assert bad.count(f"/v2/app/blobs/{digests[1]}", method="GET") == 1


async def test_cooling_pair_is_not_asked_over_a_restart(tmp_path: Path) -> None:
    async with RegistryRemote() as bad:
        digest = bad.push_blob("app", BLOBS[0])
        path = f"/v2/app/blobs/{digest}"
        bad.script(path, Flip(3), method="GET")
        async with running_proxy(tmp_path, pull_through("container", "reg", {"bad": bad.url})) as proxy:
            assert (await blob(proxy, digest)).status == 503
            for restart in (proxy.restart, None):
                asked = bad.count(path, method="GET")
                answer = await blob(proxy, digest)
                assert answer.status == 503
                assert 1 <= int(answer.headers["Retry-After"]) <= 60
                assert b"cooling down" in answer.body
                assert b"digest mismatch" in answer.body
                assert bad.count(path, method="GET") == asked == 1
                if restart is not None:
                    await restart()


async def test_three_wrong_pairs_cool_the_remote(tmp_path: Path) -> None:
    async with RegistryRemote() as bad:
        digests = [bad.push_blob("app", content) for content in BLOBS[:4]]
        bad.script("/v2/app/blobs/*", Flip(3), method="GET")
        async with running_proxy(tmp_path, pull_through("container", "reg", {"bad": bad.url})) as proxy:
            for digest in digests[:3]:
                assert (await blob(proxy, digest)).status == 503
            assert {"remote", "artifact"} == {state["scope"] for state in await cooldowns(proxy)}
            bad.forget()
            assert (await blob(proxy, digests[3])).status == 503
            assert bad.count(method="GET") == 0


async def test_same_pair_three_times_is_one_bad_file(tmp_path: Path) -> None:
    async with RegistryRemote() as bad:
        digest = bad.push_blob("app", BLOBS[0])
        bad.script(f"/v2/app/blobs/{digest}", Flip(3), method="GET")
        config = pull_through("container", "reg", {"bad": bad.url}, remote={"cooldown_seconds": 0.1})
        async with running_proxy(tmp_path, config) as proxy:
            while bad.count(f"/v2/app/blobs/{digest}", method="GET") < 4:
                assert (await blob(proxy, digest)).status == 503
            assert {state["scope"] for state in await cooldowns(proxy)} == {"artifact"}


@pytest.mark.parametrize("fault", [Drop(), Status(502), Status(503), Status(504), Delay(60)])
async def test_host_cools_after_failures_in_a_row(tmp_path: Path, fault: Fault) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "v1", make_image())
        remote.script("/v2/*", fault)
        config = pull_through(
            "container",
            "reg",
            {"r": remote.url},
            remote={"max_retries": 0, "failure_threshold": 3, "sock_read_timeout": 0.5},
        )
        async with running_proxy(tmp_path, config) as proxy:
            for tag in "abc":
                assert (await ask(f"{proxy.url}/v2/reg/app/manifests/{tag}")).status == 503
            (state,) = await cooldowns(proxy)
            assert (state["scope"], state["subject"]) == ("host", remote.address)
            asked = remote.count()
            answer = await ask(f"{proxy.url}/v2/reg/app/manifests/d")
            assert answer.status == 503
            assert remote.count() == asked


async def test_success_in_between_starts_the_count_again(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        for tag in "abcdef":
            remote.push("app", tag, make_image(seed=ord(tag)))
        remote.script("/v2/app/manifests/[abde]", Status(502))
        config = pull_through("container", "reg", {"r": remote.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            statuses = [(await ask(f"{proxy.url}/v2/reg/app/manifests/{tag}")).status for tag in "abcdef"]
            assert statuses == [503, 503, 200, 503, 503, 200]


async def test_too_many_requests_are_left_alone_as_long_as_asked(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        remote.push("app", "v1", make_image())
        remote.script("/v2/app/manifests/v1", too_many("7"), times=1)
        config = pull_through("container", "reg", {"r": remote.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            for _ in range(2):
                answer = await ask(f"{proxy.url}/v2/reg/app/manifests/v1")
                assert answer.status == 503
                assert 5 <= int(answer.headers["Retry-After"]) <= 8
            assert remote.count("/v2/app/manifests/v1") == 1
            (state,) = await cooldowns(proxy)
            assert state["scope"] == "host"


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_denied_repository_does_not_cool_another(tmp_path: Path, status: int) -> None:
    async with RegistryRemote() as remote:
        remote.push("open", "v1", make_image())
        remote.script("/v2/closed/*", Status(status))
        config = pull_through("container", "reg", {"r": remote.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            expected = 503 if status == 500 else 403
            for _ in range(2):
                assert (await ask(f"{proxy.url}/v2/reg/closed/manifests/v1")).status == expected
            assert remote.count("/v2/closed/*") == 1
            assert (await ask(f"{proxy.url}/v2/reg/open/manifests/v1")).status == 200


async def test_one_trial_after_the_cooldown(tmp_path: Path) -> None:
    """While one device's request tries the host again, the others are answered at once."""
    async with RegistryRemote() as remote:
        for tag in "abc":
            remote.push("app", tag, make_image(seed=ord(tag)))
        rule = remote.script("/v2/app/manifests/*", Status(502))
        config = pull_through(
            "container",
            "reg",
            {"r": remote.url},
            remote={"max_retries": 0, "failure_threshold": 1, "cooldown_initial_seconds": 0.3},
        )
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/a")).status == 503
            remote.clear()
            assert rule is not None
            gate = remote.hold("/v2/app/manifests/*")
            while not remote.count("/v2/app/manifests/b"):
                trial = asyncio.create_task(ask(f"{proxy.url}/v2/reg/app/manifests/b"))
                await asyncio.wait([trial, asyncio.create_task(gate.reached())], return_when=asyncio.FIRST_COMPLETED)
            others = await asyncio.gather(*(ask(f"{proxy.url}/v2/reg/app/manifests/c") for _ in range(5)))
            assert {answer.status for answer in others} == {503}
            assert remote.count("/v2/app/manifests/c") == 0
            gate.release()
            assert (await trial).status == 200
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/c")).status == 200
            assert await cooldowns(proxy) == []


async def test_failed_trial_doubles(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        remote.script("/v2/*", Status(502))
        config = pull_through(
            "container",
            "reg",
            {"r": remote.url},
            remote={"max_retries": 0, "failure_threshold": 1, "cooldown_initial_seconds": 1, "cooldown_seconds": 300},
        )
        async with running_proxy(tmp_path, config) as proxy:
            url = f"{proxy.url}/v2/reg/app/manifests/v1"
            waits = []
            for trial in range(1, 3):
                while remote.count() < trial:
                    answer = await ask(url)
                waits.append(int((await ask(url)).headers["Retry-After"]))
                assert answer.status == 503
            assert waits == [1, 2]


async def test_not_found_only_if_every_source_says_so(tmp_path: Path) -> None:
    async with RegistryRemote() as one, RegistryRemote() as two:
        config = pull_through("container", "reg", {"one": one.url, "two": two.url}, remote={"max_retries": 0})
        async with running_proxy(tmp_path, config) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/none")).status == 404
            assert (one.count(), two.count()) == (1, 1)
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/none")).status == 404
            assert (one.count(), two.count()) == (1, 1), "believed for negative_ttl_seconds"
            two.script("/v2/*", Status(503))
            answer = await ask(f"{proxy.url}/v2/reg/app/manifests/other")
            assert answer.status == 503
            assert "Retry-After" in answer.headers


async def test_missing_blob_of_a_served_manifest_is_not_reported_as_missing(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        image = make_image()
        remote.push("app", "v1", image)
        remote.script("/v2/app/blobs/*", Status(404))
        async with running_proxy(tmp_path, pull_through("container", "reg", {"r": remote.url})) as proxy:
            assert (await ask(f"{proxy.url}/v2/reg/app/manifests/v1")).status == 200
            assert (await blob(proxy, image.layers[0].digest)).status == 503
            assert (await blob(proxy, f"sha256:{'0' * 64}")).status == 404


async def test_clearing_a_cooldown(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        digest = remote.push_blob("app", BLOBS[0])
        remote.script(f"/v2/app/blobs/{digest}", Flip(3), method="GET", times=1)
        async with running_proxy(tmp_path, pull_through("container", "reg", {"r": remote.url})) as proxy:
            assert (await blob(proxy, digest)).status == 503
            await proxy.admin("/pulp/api/v3/cooldowns/clear/", method="POST", json={})
            assert await cooldowns(proxy) == []
            assert (await blob(proxy, digest)).sha256 == digest
