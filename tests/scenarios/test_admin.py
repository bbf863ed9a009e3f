"""What an admin sees and does, over HTTP and with the program's own commands, while devices are served."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.programs import Completed, run
from tests.proxy import PROGRAM, Proxy, clean_environment, pull_through, running_proxy, start_proxy
from tests.remotes.content import Synthetic, digest_of
from tests.remotes.faults import Flip, Status
from tests.remotes.files import FileRemote
from tests.remotes.registry import RegistryRemote
from tests.scenarios.device import ask

API = "/pulp/api/v3/"
SIZE = 100_000
OPEN = ["/livez", "/readyz", "/metrics", f"{API}status/", f"{API}docs/api.json"]
CLOSED = [
    ("GET", "cooldowns/"),
    ("POST", "cooldowns/clear/"),
    ("GET", "transfers/"),
    ("GET", "tasks/"),
    ("POST", "repair/"),
    ("POST", "orphans/cleanup/"),
    ("POST", "apply/"),
    ("GET", "nothing/"),
]


def files(*names: str, size: int = SIZE) -> dict[str, Synthetic]:
    return {name: Synthetic(size, seed=seed) for seed, name in enumerate(names)}


def config(*remotes: FileRemote, **settings: Any) -> dict[str, Any]:
    urls = {f"r{number}": f"{remote.url}/" for number, remote in enumerate(remotes)}
    return {**pull_through("file", "f", urls), **settings}


async def get(proxy: Proxy, name: str) -> str:
    """Status, or the digest of the body and whether it was a hit."""
    answer = await ask(f"{proxy.url}/pulp/content/f/{name}")
    is_hit = "; hit" in answer.headers.get("Cache-Status", "")
    return f"{answer.sha256} {'hit' if is_hit else 'miss'}" if answer.status == 200 else str(answer.status)


async def command(proxy: Proxy, *words: str | Path, **environ: str) -> Completed:
    """One of the program's commands, with the proxy's configuration."""
    return await run(
        PROGRAM, *words, "--config", proxy.config_file, env={**clean_environment(), **environ}, cwd=proxy.folder
    )


async def result(proxy: Proxy, *words: str | Path) -> Any:
    """What a command that succeeds prints as JSON."""
    return json.loads((await command(proxy, *words, "--format", "json")).check().output)


async def stored(proxy: Proxy, count: int) -> None:
    """Return when so many artifacts are recorded: a device has its last byte before they are durable."""
    async with asyncio.timeout(10):
        while (await proxy.admin(f"{API}status/"))["artifacts"] != count:
            await asyncio.sleep(0.02)


def artifact(proxy: Proxy, content: Synthetic) -> Path:
    encoded = digest_of(content)[7:]
    return proxy.data_dir / "artifacts" / "sha256" / encoded[:2] / encoded[2:]


# -- login


async def test_a_login_is_wanted_for_all_but_the_listed(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        async with aiohttp.ClientSession() as session:
            for path in OPEN:
                async with session.get(proxy.admin_url + path) as answer:
                    assert answer.status == (404 if path.endswith("api.json") else 200)
            for method, path in CLOSED:
                async with session.request(method, proxy.admin_url + API + path) as answer:
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="contentapp"')
                    assert answer.headers["Cache-Control"] == "no-store"
            wrong = {"Authorization": aiohttp.encode_basic_auth("admin", "wrong")}
            async with session.get(f"{proxy.admin_url}{API}cooldowns/", headers=wrong) as answer:
                assert answer.status == 401
        assert (await proxy.admin(f"{API}cooldowns/"))["count"] == 0


async def test_the_password_is_the_owners_alone_and_shown_nowhere(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote, log={"level": "debug"})) as proxy:
        file = proxy.data_dir / "admin-password"
        password = file.read_text().strip()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert len(password) >= 40
        said = [proxy.output()]
        for words in (["status"], ["cooldown", "list"], ["verify"], ["config", "check"]):
            done = (await command(proxy, *words)).check()
            said += [done.output.decode(), done.messages]
        wrong = await command(proxy, "cooldown", "list", CONTENTAPP_ADMIN_PASSWORD="geheim")
        assert wrong.status == 1
        said += [wrong.messages, str(await proxy.admin(f"{API}status/")), str((await proxy.metrics()).samples)]
        await proxy.restart()
        assert file.read_text().strip() == password
        said.append(proxy.output())
    for text in said:
        assert password not in text
        assert "geheim" not in text
        assert proxy.admin_headers["Authorization"].removeprefix("Basic ") not in text


async def test_a_slowed_down_guesser_blocks_nobody(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        wrong = {"Authorization": aiohttp.encode_basic_auth("admin", "wrong")}
        async with aiohttp.ClientSession() as session:

            async def guess() -> int:
                async with session.get(f"{proxy.admin_url}{API}tasks/", headers=wrong) as answer:
                    return answer.status

            guesses = {asyncio.create_task(guess()) for _ in range(20)}
            async with asyncio.timeout(5):
                assert (await proxy.metrics()).total("contentapp_transfers") == 0
                await proxy.admin(f"{API}status/")
                done, slow = await asyncio.wait(guesses, timeout=1)
            assert {task.result() for task in done} == {401, 429}
            assert slow
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


# -- start and end


async def test_start_and_readiness_never_wait_for_remotes(tmp_path: Path) -> None:
    async with FileRemote(files("a")) as remote:
        remote.hold("*")
        proxy = await start_proxy(tmp_path, config(remote))
        try:
            async with asyncio.timeout(5):
                assert (await command(proxy, "status")).check().output.startswith(b"contentapp ")
            assert remote.count() == 0
        finally:
            await proxy.stop()


async def test_it_tells_how_to_use_it_before_any_log(tmp_path: Path) -> None:
    async with RegistryRemote() as remote:
        declared = pull_through("container", "reg", {"r": remote.url}, distribution={"registry_hosts": ["r.example"]})
        async with running_proxy(tmp_path, declared) as proxy:
            output = proxy.output()
    assert f"contentapp serves content at {proxy.url}, the admin API at {proxy.admin_url}" in output
    assert f'mirror = [{{location = "{proxy.address}/reg", insecure = true}}]' in output


async def test_it_serves_although_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    async with FileRemote(files("a")) as remote:
        proxy = Proxy(tmp_path, config(remote))
        proxy.service.argv = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *proxy.service.argv]
        await proxy.start()
        try:
            assert (await get(proxy, "a")).endswith(" miss")
        finally:
            assert await proxy.stop() == 0


async def test_a_second_one_on_the_same_folder_or_port_is_refused(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        again = await command(proxy, "serve")
        assert (again.status, again.output) == (1, b"")
        assert again.messages == f"error: another contentapp is running on data_dir {proxy.data_dir}\n"
        other = tmp_path / "other.yaml"
        other.write_text(yaml.safe_dump({**proxy.config, "data_dir": str(tmp_path / "other")}))
        taken = await run(PROGRAM, "serve", "--config", other, env=clean_environment())
        assert (taken.status, taken.output) == (1, b"")
        assert re.search(rf"error: can't listen on 127\.0\.0\.1:{proxy.port}: .*in use\n", taken.messages)


async def test_sigterm_ends_all_of_it_in_order(tmp_path: Path) -> None:
    async with FileRemote() as remote:
        proxy = await start_proxy(tmp_path, config(remote))
        assert await proxy.stop() == 0
        assert "Traceback" not in proxy.output()
        done = await command(proxy, "status")
    assert (done.status, done.output) == (1, b"")
    assert done.messages == (
        f"error: can't reach the admin API at {proxy.admin_url}: connection refused; is contentapp serve running?\n"
    )


async def test_while_it_stops_nobody_waits_for_the_admin_api(tmp_path: Path) -> None:
    names = files("a", size=4_000_000)
    async with FileRemote(names) as remote:
        gate = remote.hold("/a", at=2_000_000, method="GET")
        proxy = await start_proxy(tmp_path, config(remote))
        device = asyncio.create_task(get(proxy, "a"))
        await gate.reached()
        proxy.service.process.terminate()
        async with asyncio.timeout(10):
            while "connection refused" not in (await command(proxy, "status")).messages:
                await asyncio.sleep(0.05)
        assert proxy.service.is_running, "a device is being served"
        gate.release()
        assert await device == f"{digest_of(names['a'])} miss"
        async with asyncio.timeout(20):
            assert await proxy.service.process.wait() == 0


# -- cooldowns and transfers


async def test_a_corrupt_remote_is_listed_and_cleared(tmp_path: Path) -> None:
    names = files("a")
    async with FileRemote(names) as bad, FileRemote(names) as good:
        bad.script("/a", Flip(3))
        async with running_proxy(tmp_path, config(bad, good)) as proxy:
            digest = digest_of(names["a"])
            assert await get(proxy, "a") == f"{digest} miss"
            (cooldown,) = await result(proxy, "cooldown", "list")
            assert (cooldown["remote"], cooldown["scope"], cooldown["subject"]) == ("r0", "artifact", digest)
            assert 290 <= cooldown["retry_after"] <= 300
            assert "digest mismatch" in cooldown["reason"]
            status = (await command(proxy, "status")).check().output.decode()
            assert re.search(rf"remote r0 \(artifact {digest}\): (2\d\d|300) s: .*digest mismatch", status)
            assert (await proxy.metrics()).total("contentapp_cooldowns", remote="r0") == 1
            assert (await command(proxy, "cooldown", "clear", "r1")).check().output == b"cleared 0 cooldowns\n"
            assert (await command(proxy, "cooldown", "clear", "r0")).check().output == b"cleared 1 cooldown\n"
            assert await result(proxy, "cooldown", "list") == []
            assert (await proxy.metrics()).total("contentapp_cooldowns") == 0


async def test_a_cleared_source_is_asked_again_at_once(tmp_path: Path) -> None:
    async with FileRemote(files("a"), manifest=False) as remote:
        remote.script("/a", Status(404))
        async with running_proxy(tmp_path, config(remote)) as proxy:
            assert [await get(proxy, "a"), await get(proxy, "a")] == ["404", "404"]
            asked = remote.count("/a")
            remote.clear()
            assert await get(proxy, "a") == "404", "it is believed for a while"
            assert remote.count("/a") == asked
            (await command(proxy, "cooldown", "clear")).check()
            assert (await get(proxy, "a")).endswith(" miss")


async def test_one_cooldown_can_be_deleted(tmp_path: Path) -> None:
    names = files("a", "b")
    async with FileRemote(names) as bad, FileRemote(names) as good:
        bad.script("/[ab]", Flip(3))
        async with running_proxy(tmp_path, config(bad, good)) as proxy:
            for name in names:
                await get(proxy, name)
            first, second = (await proxy.admin(f"{API}cooldowns/"))["results"]
            await proxy.admin(first["pulp_href"], method="DELETE")
            (left,) = (await proxy.admin(f"{API}cooldowns/"))["results"]
            assert left["pulp_href"] == second["pulp_href"]


async def test_transfers_are_listed_while_they_last(tmp_path: Path) -> None:
    names = files("a", size=4_000_000)
    async with FileRemote(names) as remote:
        gate = remote.hold("/a", at=2_000_000, method="GET")
        async with running_proxy(tmp_path, config(remote)) as proxy:
            device = asyncio.create_task(get(proxy, "a"))
            await gate.reached()
            async with asyncio.timeout(10):
                while not (found := await result(proxy, "transfer", "list")) or found[0]["arrived"] < 1_900_000:
                    await asyncio.sleep(0.05)
            (transfer,) = found
            assert (transfer["state"], transfer["size"], transfer["remote"]) == ("running", 4_000_000, "r0")
            assert transfer["keep"] is True
            assert transfer["age"] > 0
            assert (await proxy.metrics()).total("contentapp_transfers") == 1
            gate.release()
            assert await device == f"{digest_of(names['a'])} miss"
            async with asyncio.timeout(10):
                while await result(proxy, "transfer", "list"):
                    await asyncio.sleep(0.05)


# -- what is stored


async def test_verify_finds_what_is_flipped_truncated_and_missing(tmp_path: Path) -> None:
    names = files("a", "b", "c", "d")
    async with FileRemote(names) as remote, running_proxy(tmp_path, config(remote)) as proxy:
        for name in names:
            await get(proxy, name)
        await stored(proxy, 4)
        flipped, truncated, missing = (artifact(proxy, names[name]) for name in "abc")
        content = bytearray(flipped.read_bytes())
        content[SIZE // 2] ^= 1
        flipped.write_bytes(content)
        os.truncate(truncated, SIZE // 2)
        missing.unlink()
        done = (await command(proxy, "verify")).check()
        assert done.output == b"1 artifact verified (97.7 KiB), 2 damaged, 1 missing\n"
        assert [path for path in (flipped, truncated, missing) if path.exists()] == []
        assert (await proxy.metrics()).total("contentapp_damaged_artifacts_total") == 3
        remote.forget()
        for name, content_ in names.items():
            assert await get(proxy, name) == f"{digest_of(content_)} {'hit' if name == 'd' else 'miss'}"
        await stored(proxy, 4)
        assert (await result(proxy, "verify"))["result"]["verified"] == 4


async def test_what_a_crash_left_unrecorded_is_adopted(tmp_path: Path) -> None:
    names = files("a", "b")
    async with FileRemote(names) as remote:
        proxy = await start_proxy(tmp_path, config(remote))
        try:
            await get(proxy, "a")
            await stored(proxy, 1)
        finally:
            await proxy.kill()
        known, unrecorded = artifact(proxy, names["a"]), artifact(proxy, names["b"])
        unrecorded.parent.mkdir(exist_ok=True)
        unrecorded.write_bytes(b"".join(names["b"].pieces(0, SIZE)))
        damaged = known.parent / ("0" * 62)
        damaged.write_bytes(b"half a body, under a name that is not its own")
        await proxy.start()
        try:
            await stored(proxy, 2)
            async with asyncio.timeout(10):
                while damaged.exists():
                    await asyncio.sleep(0.05)
            assert (known.exists(), unrecorded.exists()) == (True, True)
            remote.script("/[ab]", Status(500), method="GET")
            assert (await get(proxy, "a")).endswith(" hit")
            assert (await result(proxy, "verify"))["result"]["verified"] == 2
        finally:
            await proxy.stop()


async def test_the_least_recently_used_go_when_it_gets_full(tmp_path: Path) -> None:
    """16 files of 100 kB fit below the high watermark of 2 MiB, 10 below the low one."""
    names = files(*(f"f{number:02}" for number in range(30)))
    cache = {"max_size": "2MiB", "high_watermark": 0.8, "low_watermark": 0.5}
    async with FileRemote(names) as remote, running_proxy(tmp_path, config(remote, cache=cache)) as proxy:
        for name in list(names)[:10]:
            await get(proxy, name)
        await stored(proxy, 10)
        (await command(proxy, "gc", "--force")).check()
        assert [name for name in names if artifact(proxy, names[name]).exists()] == list(names)[:10]
        for name in list(names)[10:]:
            assert await get(proxy, name) == f"{digest_of(names[name])} miss"
        done = await result(proxy, "gc", "--force")
        assert done["state"] == "completed"
        await stored(proxy, 10)
        left = [name for name in names if artifact(proxy, names[name]).exists()]
        assert len(left) == 10
        assert left == sorted(left)[-10:] == list(names)[-10:]
        metrics = await proxy.metrics()
        assert metrics.total("contentapp_evictions_total") == 20
        assert metrics.total("contentapp_evicted_bytes_total") == 20 * SIZE
        assert metrics.total("contentapp_storage_used_bytes") == 10 * SIZE


async def test_what_has_no_source_left_is_not_evicted(tmp_path: Path) -> None:
    names = files("a", "b", "c")
    cache = {"max_size": "1MiB", "high_watermark": 0.9, "low_watermark": 0.1}
    async with FileRemote(names) as remote, FileRemote() as other:
        declared = config(remote, cache=cache)
        async with running_proxy(tmp_path, declared) as proxy:
            for name in names:
                await get(proxy, name)
            await stored(proxy, 3)
            new = tmp_path / "new.yaml"
            new.write_text(yaml.safe_dump(pull_through("file", "f", {"r9": f"{other.url}/"})))
            (await command(proxy, "apply", "-f", new, "--prune")).check()
            assert (await result(proxy, "gc", "--force"))["result"]["evicted_size"] == 0
            assert all(artifact(proxy, content).exists() for content in names.values())


async def test_gc_removes_what_dead_processes_left(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        left = proxy.data_dir / "partials" / f"{'0' * 64}-1-{'0' * 16}.part"
        left.write_bytes(b"half a body")
        done = (await command(proxy, "gc")).check()
        assert done.output.startswith(b"0 B evicted, 1 partial removed, ")
        assert not left.exists()


async def test_a_task_can_be_followed_over_rest(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        href = (await result(proxy, "verify", "--no-wait"))["task"]
        async with asyncio.timeout(10):
            while (task := await proxy.admin(href))["state"] != "completed":
                await asyncio.sleep(0.02)
        assert task["error"] is None
        assert [found["pulp_href"] for found in (await proxy.admin(f"{API}tasks/"))["results"]] == [href]


# -- apply


async def test_apply_is_idempotent_prunes_and_can_be_tried(tmp_path: Path) -> None:
    async with FileRemote(files("a")) as remote, running_proxy(tmp_path, config(remote)) as proxy:
        new = tmp_path / "new.yaml"
        new.write_text(yaml.safe_dump(pull_through("file", "new", {"more": f"{remote.url}/"})))

        async def changes(*options: str) -> list[str]:
            found = (await result(proxy, "apply", "-f", new, *options))["changes"]
            return [f"{change['action']} {change['kind']} {change['name']}" for change in found]

        async def status(base_path: str) -> int:
            return (await ask(f"{proxy.url}/pulp/content/{base_path}/a")).status

        assert await changes("--dry-run") == ["created remote more", "created distribution new"]
        assert [await status("f"), await status("new")] == [200, 404]
        assert await changes() == ["created remote more", "created distribution new"]
        await served(proxy, "new/a", 200)
        assert await changes() == ["unchanged remote more", "unchanged distribution new"]
        assert "removed distribution f" in await changes("--prune", "--dry-run")
        assert await status("f") == 200
        assert await changes("--prune") == [
            "unchanged remote more",
            "removed remote r0",
            "unchanged distribution new",
            "removed distribution f",
        ]
        await served(proxy, "f/a", 404)
        assert await status("new") == 200


async def served(proxy: Proxy, path: str, status: int) -> None:
    """Return once a worker answers so: it hears of changes at once, far sooner than it would look by itself."""
    async with asyncio.timeout(5):
        while (await ask(f"{proxy.url}/pulp/content/{path}")).status != status:
            await asyncio.sleep(0.02)


async def test_apply_tells_what_is_wrong_and_changes_nothing(tmp_path: Path) -> None:
    async with FileRemote() as remote, running_proxy(tmp_path, config(remote)) as proxy:
        bad = tmp_path / "bad.yaml"
        bad.write_text("distributions: [{base_path: x, type: file, remotes: [nobody]}]\n")
        done = await command(proxy, "apply", "-f", bad)
        assert (done.status, done.output) == (1, b"")
        assert done.messages == "error: distribution 'x': remotes 'nobody': no such remote\n"


@pytest.mark.parametrize("workers", [1, 2])
async def test_metrics_are_those_of_all_processes(tmp_path: Path, workers: int) -> None:
    names = files("a")
    async with FileRemote(names) as remote:
        declared = config(remote, content={"workers": workers})
        async with running_proxy(tmp_path, declared) as proxy:
            for _ in range(12):
                await get(proxy, "a")
            async with asyncio.timeout(5):
                while (await proxy.metrics()).total("contentapp_requests_total", type="file") < 12:
                    await asyncio.sleep(0.05)
            await stored(proxy, 1)
            metrics = await proxy.metrics()
            assert metrics.total("contentapp_requests_total", type="file") == 12
            assert metrics.total("contentapp_device_bytes_total") == 12 * SIZE
            assert metrics.total("contentapp_storage_used_bytes") == SIZE
