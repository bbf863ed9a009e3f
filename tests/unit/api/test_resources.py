"""``status/``, ``tasks/``, ``repair/``, ``orphans/cleanup/``, ``/metrics``."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from contentapp import __version__
from contentapp.core.cooldown import ScopeKind
from contentapp.core.digest import Digest
from contentapp.core.records import ArtifactRecord
from contentapp.tasks.base import TooManyTasks
from tests.unit.api.conftest import ROOT, Admin


async def store(admin: Admin, body: bytes) -> Digest:
    shared, digest = admin.services.shared, Digest.of(body)
    writer = await shared.storage.begin("x", size=len(body), keep=True)
    await asyncio.to_thread(writer.write, [body])
    await writer.commit(digest)
    now = datetime.fromisoformat("2024-01-01T00:00:00+00:00")
    await shared.catalog.record_artifact(
        ArtifactRecord(digest=digest, size=len(body), stored_at=now, modified_at=now, last_used_at=now)
    )
    return digest


async def test_status_in_pulps_shape(admin: Admin) -> None:
    await store(admin, b"x" * 1000)
    await admin.cool(ScopeKind.HOST, "quay.io:443")
    status, _, answer = await admin.ask("GET", f"{ROOT}status/")
    assert status == 200
    assert answer["versions"][0]["version"] == __version__
    assert answer["database_connection"] == {"connected": True}
    assert answer["redis_connection"] is None
    assert answer["domain_enabled"] is False
    assert answer["content_settings"]["content_path_prefix"] == "/pulp/content/"
    for name in ("online_workers", "online_api_apps", "online_content_apps"):
        assert answer[name] == []
    use = answer["storage"]
    assert (use["total"], use["used"], use["free"]) == (1 << 20, 1000, (1 << 20) - 1000)
    assert (answer["cooldowns"], answer["transfers"], answer["artifacts"]) == (1, 0, 1)


async def test_status_names_nobody(admin: Admin) -> None:
    await admin.cool(ScopeKind.HOST, "internal.example:443", remote="internal")
    _, _, answer = await admin.ask("GET", f"{ROOT}status/")
    assert "internal" not in str(answer)


async def test_repair_becomes_a_task(admin: Admin) -> None:
    await store(admin, b"good")
    status, answer = await admin.call("POST", "repair/", {})
    assert (status, list(answer)) == (202, ["task"])
    task = await admin.ended(answer["task"])
    assert task["pulp_href"] == answer["task"]
    assert (task["name"], task["state"], task["error"]) == ("repair", "completed", None)
    assert task["pulp_created"] <= task["started_at"] <= task["finished_at"]
    assert task["result"] == {"verified": 1, "damaged": 0, "missing": 0, "adopted": 0, "size": 4}
    (report,) = task["progress_reports"]
    assert (report["done"], report["total"], report["state"]) == (1, 1, "completed")
    assert report["message"]
    assert report["code"] == "repair.artifacts"


async def test_clean_up_becomes_a_task(admin: Admin) -> None:
    _, answer = await admin.call("POST", "orphans/cleanup/", {"force": True})
    task = await admin.ended(answer["task"])
    assert (task["name"], task["state"]) == ("orphan_cleanup", "completed")
    assert set(task["result"]) == {"adopted", "damaged", "partials", "swept", "evicted_size"}


async def test_a_failed_task_tells_why(admin: Admin) -> None:
    await admin.services.shared.engine.close()
    _, answer = await admin.call("POST", "repair/", {})
    task = await admin.ended(answer["task"])
    assert task["state"] == "failed"
    assert "catalog" in task["error"]["description"]


async def test_tasks_are_listed_the_newest_first(admin: Admin) -> None:
    for path in ("repair/", "orphans/cleanup/"):
        _, answer = await admin.call("POST", path, {})
        await admin.ended(answer["task"])
    _, answer = await admin.call("GET", "tasks/")
    assert [task["name"] for task in answer["results"]] == ["orphan_cleanup", "repair"]
    for query, count in (("name=repair", 1), ("state=completed", 2), ("state=failed", 0)):
        assert (await admin.call("GET", f"tasks/?{query}"))[1]["count"] == count


@pytest.mark.parametrize("task", ["nothing", "0" * 36, "%2e%2e", "../status"])
async def test_an_unknown_task_is_404(admin: Admin, task: str) -> None:
    assert (await admin.call("GET", f"{ROOT}tasks/{task}x/"))[0] == 404


async def test_metrics_have_the_gauges_of_now(admin: Admin) -> None:
    await store(admin, b"x" * 1000)
    await admin.cool(ScopeKind.HOST, "a")
    await admin.cool(ScopeKind.PATH, "b")
    await admin.cool(ScopeKind.REMOTE, remote="ghcr", remote_id=2)
    await admin.cool(ScopeKind.ABSENT, "c")
    status, headers, text = await admin.ask("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, sample.labels.get("remote")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["contentapp_cooldowns", "quay"] == 2
    assert samples["contentapp_cooldowns", "ghcr"] == 1
    assert samples["contentapp_transfers", None] == 0
    assert samples["contentapp_storage_used_bytes", None] == 1000
    assert samples["contentapp_storage_limit_bytes", None] == 1 << 20


async def test_a_full_cache_is_still_ready(admin: Admin) -> None:
    await admin.services.shared.storage.set_stored(1 << 20)
    assert (await admin.ask("GET", "/readyz"))[0] == 200


async def test_a_storage_that_cannot_be_written_is_not(admin: Admin) -> None:
    partials = admin.services.shared.config.data_dir / "partials"
    partials.rmdir()
    partials.write_bytes(b"no folder")
    status, _, answer = await admin.ask("GET", "/readyz")
    assert status == 503
    assert answer.startswith("storage: ")


async def test_only_so_many_tasks_wait(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise TooManyTasks("50 tasks are waiting already")

    monkeypatch.setattr(type(admin.services.tasks), "repair", lambda self: full())
    assert await admin.call("POST", "repair/", {}) == (503, {"detail": "50 tasks are waiting already"})
