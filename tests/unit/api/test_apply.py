"""``apply/``: the same rules as the file's, idempotent, told to the workers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contentapp.api.declared import read_resources
from contentapp.config import ConfigError, load_resources
from contentapp.config.document import MAX_DEPTH, MAX_NODES
from contentapp.pipeline.route import DISTRIBUTIONS_TOPIC
from tests.unit.api.conftest import Admin

REMOTE = {"name": "quay", "type": "container", "url": "https://quay.io", "policy": "on_demand"}
DISTRIBUTION = {"base_path": "quay.io", "type": "container", "remotes": ["quay"]}


def body(*remotes: Any, distributions: Any = (), **options: bool) -> dict[str, Any]:
    return {"resources": {"remotes": list(remotes), "distributions": list(distributions)}, **options}


async def apply(admin: Admin, body: dict[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    status, answer = await admin.call("POST", "apply/", body)
    assert status == 200, answer
    return [(change["action"], change["kind"], change["name"], change["fields"]) for change in answer["changes"]]


async def names(admin: Admin) -> tuple[list[str], list[str]]:
    catalog = admin.services.shared.catalog
    return [item.name for item in await catalog.remotes()], [item.name for item in await catalog.distributions()]


async def test_created_unchanged_updated_removed(admin: Admin) -> None:
    wanted = body(REMOTE, distributions=[DISTRIBUTION])
    assert await apply(admin, wanted) == [
        ("created", "remote", "quay", []),
        ("created", "distribution", "quay.io", []),
    ]
    assert {change[0] for change in await apply(admin, wanted)} == {"unchanged"}
    changed = body({**REMOTE, "sock_read_timeout": "45s"}, distributions=[DISTRIBUTION])
    assert (await apply(admin, changed))[0] == ("updated", "remote", "quay", ["sock_read_timeout"])
    other = body({**REMOTE, "name": "other"})
    assert await apply(admin, other) == [("created", "remote", "other", [])]
    assert await names(admin) == (["quay", "other"], ["quay.io"])
    assert [change[0] for change in await apply(admin, {**other, "prune": True})] == ["unchanged", "removed", "removed"]
    assert await names(admin) == (["other"], [])


async def test_a_dry_run_changes_nothing(admin: Admin) -> None:
    assert [change[0] for change in await apply(admin, body(REMOTE, dry_run=True))] == ["created"]
    assert await names(admin) == ([], [])


async def test_an_empty_body_is_an_empty_declaration(admin: Admin) -> None:
    assert await apply(admin, {}) == []


async def test_the_workers_hear_of_changes_and_of_nothing_else(admin: Admin) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    admin.services.shared.coordination.subscribe(DISTRIBUTIONS_TOPIC, heard.put_nowait)
    await apply(admin, body(REMOTE, dry_run=True))
    await apply(admin, body(REMOTE))
    async with asyncio.timeout(5):
        await heard.get()
    await apply(admin, body(REMOTE))
    await asyncio.sleep(0.05)
    assert heard.empty()


@pytest.mark.parametrize(
    ("resources", "field", "message"),
    [
        ({"remotes": [{**REMOTE, "url": "ftp://quay.io"}]}, "remotes.quay.url", "http"),
        ({"remotes": [{**REMOTE, "polciy": "x"}]}, "remotes.quay.polciy", "policy"),
        ({"remotes": [{"name": "quay"}]}, "remotes.quay.url", "must be given"),
        ({"remotes": [REMOTE, REMOTE]}, "remotes.quay.name", "another"),
        ({"remotes": REMOTE}, "remotes", "list"),
        ({"remotes": [1]}, "remotes[0]", "mapping"),
        ({"distributions": [{**DISTRIBUTION, "base_path": ".."}]}, "distributions[0].base_path", "lower-case"),
        ({"distributions": [{**DISTRIBUTION, "repository": "x"}]}, "distributions[0].repository", "not available"),
        ({"repositories": [{"name": "x"}]}, "repositories", "not available"),
        ({"remotse": []}, "remotse", "remotes"),
        ({"content": {"workers": 2}}, "content", "not a setting"),
        ({"remotes": [{**REMOTE, "username": "u", "password": {"literal": "x"}}]}, "remotes.quay.password", "env"),
    ],
)
async def test_what_a_file_may_not_hold_is_refused(
    admin: Admin, resources: dict[str, Any], field: str, message: str
) -> None:
    status, answer = await admin.call("POST", "apply/", {"resources": resources})
    assert status == 400
    assert message in answer[field][0]
    assert await names(admin) == ([], [])


async def test_what_does_not_fit_together_is_refused(admin: Admin) -> None:
    status, answer = await admin.call("POST", "apply/", body(distributions=[DISTRIBUTION]))
    assert status == 400
    assert "no such remote" in answer["non_field_errors"][0]


async def test_no_secret_comes_back(admin: Admin) -> None:
    secret = {"username": "robot", "password": "geheim", "headers": [{"X-Key": "geheim"}]}
    wanted = body({**REMOTE, **secret, "url": "https://geheim@quay.io"})
    status, answer = await admin.call("POST", "apply/", wanted)
    assert status == 400
    assert "geheim" not in str(answer)
    status, answer = await admin.call("POST", "apply/", body({**REMOTE, **secret}))
    assert status == 200
    status, answer = await admin.call("POST", "apply/", body({**REMOTE, **secret, "password": "geheimer"}))
    assert answer["changes"][0]["fields"] == ["password"]
    assert "geheim" not in str(answer)


async def test_warnings_are_told(admin: Admin) -> None:
    remote = {**REMOTE, "username": "u", "password": {"env": "NO_SUCH_VARIABLE_OF_OURS"}}
    _, answer = await admin.call("POST", "apply/", body(remote))
    assert answer["warnings"] == ["remotes.quay.password: environment variable NO_SUCH_VARIABLE_OF_OURS is not set"]


@pytest.mark.parametrize("value", [[[]] * MAX_NODES, {"remotes": [{"name": ["x"] * MAX_NODES}]}])
def test_too_many_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        read_resources({"remotes": value}, {})


def test_too_deep_is_refused() -> None:
    deep: Any = "x"
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ConfigError):
        read_resources({"remotes": deep}, {})


FULL = """
remotes:
  - name: quay
    type: container
    url: https://quay.io
    policy: on_demand
    username: robot
    password: {env: QUAY}
    headers: [{X-A: b}, {X-A: c}]
    auth_hosts: [auth.quay.io]
    proxy_url: http://proxy:3128
    sock_read_timeout: 45s
    total_timeout: null
    bandwidth_limit: 2MiB
    tls_validation: false
    max_retries: 0
    metadata_max_size: 1GiB
distributions:
  - base_path: quay.io
    type: container
    remotes: [quay]
    registry_hosts: [Quay.io]
    default_registry: yes
    tag_ttl_seconds: 10m
    tag_ttl_patterns: {"v*": 1h, "latest": 0}
    verify_first_bytes: unlimited
    cold_range: strict
    unavailable_status: 503
"""


def test_what_was_read_from_a_file_may_be_declared_again(tmp_path: Path) -> None:
    """The CLI reads the files, so that paths in them mean its own folders, and sends what came out."""
    file = tmp_path / "resources.yaml"
    file.write_text(FULL)
    once = load_resources(file, {})
    resources = {"remotes": list(map(dict, once.remotes)), "distributions": list(map(dict, once.distributions))}
    again = read_resources(resources, {})
    assert (again.remotes, again.distributions) == (once.remotes, once.distributions)
