"""Declared resources and what becomes of them."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Row, Table, select

from contentapp.catalog.admin import SqlAdminCatalog
from contentapp.catalog.base import Change, Resources
from contentapp.catalog.tables import (
    artifact_sources,
    distributions,
    files,
    listed,
    listing_states,
    listings,
    members,
    remotes,
    tags,
)
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import ContentType, Distribution, Kind, Member, Policy, Remote
from contentapp.core.secret import Secret
from contentapp.core.settings import DistributionSettings, RemoteSettings
from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import (
    at,
    digest,
    distribution,
    entry,
    remote,
    resources,
    state,
    tag,
)
from tests.conformance.catalog.samples import listed as listed_file

FULL_REMOTE: dict[str, Any] = {
    "name": "quay",
    "type": "container",
    "url": "https://quay.io",
    "policy": "on_demand",
    "username": "robot",
    "password": {"env": "QUAY_PASSWORD"},
    "credential_helper": "docker-credential-x",
    "auth_hosts": ["auth.example"],
    "headers": [{"X-One": "1"}, {"X-Two": "2"}, {"X-One": "3"}],
    "ca_cert": "CA",
    "client_cert": "CERT",
    "client_key": {"file": "/run/key"},
    "proxy_url": "http://proxy.example:3128",
    "proxy_username": "me",
    "proxy_password": "hunter2",
    "sock_read_timeout": 30,
    "total_timeout": None,
}


async def apply(catalog: Catalog, *args: Any, **options: Any) -> list[tuple[str, str, str, tuple[str, ...]]]:
    changes = await catalog.admin.apply(resources(*args), **options)
    return [(change.action, change.kind, change.name, change.fields) for change in changes]


async def only_remote(catalog: Catalog) -> Remote:
    (found,) = await catalog.content.remotes()
    return found


async def only_distribution(catalog: Catalog) -> Distribution:
    (found,) = await catalog.content.distributions()
    return found


async def test_an_empty_catalog(catalog: Catalog) -> None:
    assert await catalog.content.remotes() == []
    assert await catalog.content.distributions() == []
    assert await catalog.admin.apply(Resources(), prune=True) == []


async def test_every_field_of_a_remote(catalog: Catalog) -> None:
    assert await apply(catalog, [FULL_REMOTE]) == [("created", "remote", "quay", ())]
    found = await only_remote(catalog)
    assert found == Remote(
        id=found.id,
        revision=1,
        name="quay",
        type=ContentType.CONTAINER,
        url="https://quay.io",
        policy=Policy.ON_DEMAND,
        username="robot",
        password=Secret(env="QUAY_PASSWORD"),
        credential_helper="docker-credential-x",
        auth_hosts=("auth.example",),
        headers=(("X-One", "1"), ("X-Two", "2"), ("X-One", "3")),
        ca_cert="CA",
        client_cert="CERT",
        client_key=Secret(file="/run/key"),
        proxy_url="http://proxy.example:3128",
        proxy_username="me",
        proxy_password=Secret(literal="hunter2"),
        settings=RemoteSettings(sock_read_timeout=30, total_timeout=None),
    )


async def test_what_a_remote_leaves_open(catalog: Catalog) -> None:
    await apply(catalog, [remote()])
    found = await only_remote(catalog)
    expected = Remote(id=found.id, revision=1, name="quay", type=ContentType.CONTAINER, url="https://quay.example")
    assert found == replace(expected, settings=RemoteSettings(sock_read_timeout=77.0))


async def test_every_field_of_a_distribution(catalog: Catalog) -> None:
    declared = distribution(
        "team/mirror",
        "b",
        "a",
        name="mirror",
        registry_hosts=["quay.io", "localhost:5000"],
        default_registry=True,
        tag_ttl_patterns={"v*": 3600, "*": 5},
        verify_first_bytes=7,
    )
    changes = await apply(catalog, [remote("a"), remote("b")], [declared])
    assert changes[-1] == ("created", "distribution", "mirror", ())
    found = await only_distribution(catalog)
    a, b = await catalog.content.remotes()
    assert found == Distribution(
        id=found.id,
        revision=1,
        name="mirror",
        base_path="team/mirror",
        type=ContentType.CONTAINER,
        remotes=(b, a),
        registry_hosts=("quay.io", "localhost:5000"),
        default_registry=True,
        settings=DistributionSettings(
            tag_ttl_seconds=88.0, tag_ttl_patterns={"v*": 3600, "*": 5}, verify_first_bytes=7
        ),
    )
    assert list(found.settings.tag_ttl_patterns) == ["v*", "*"]


async def test_the_name_of_a_distribution_is_its_base_path(catalog: Catalog) -> None:
    await apply(catalog, [remote()], [distribution("q", "quay")])
    assert (await only_distribution(catalog)).name == "q"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"password": "x"}, Secret(literal="x")),
        ({"password": {"literal": "x"}}, Secret(literal="x")),
        ({"password": {"env": "X"}}, Secret(env="X")),
        ({"password": {"file": "/x"}}, Secret(file="/x")),
        ({"password": Secret(file="/x")}, Secret(file="/x")),
        ({"password": None}, None),
    ],
)
async def test_secrets(catalog: Catalog, given: dict[str, Any], kept: Secret | None) -> None:
    await apply(catalog, [remote(**given)])
    assert (await only_remote(catalog)).password == kept
    assert await apply(catalog, [remote(**given)]) == [("unchanged", "remote", "quay", ())]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"A": "1", "B": "2"}, (("A", "1"), ("B", "2"))),
        ([], ()),
        (None, ()),
        ([{"A": "1", "B": "2"}, {"A": "3"}], None),
    ],
)
async def test_headers(catalog: Catalog, given: Any, kept: tuple[tuple[str, str], ...] | None) -> None:
    await apply(catalog, [remote(headers=given)])
    expected = kept if kept is not None else (("A", "1"), ("B", "2"), ("A", "3"))
    assert (await only_remote(catalog)).headers == expected


async def test_a_second_time_changes_nothing(catalog: Catalog) -> None:
    declared = [FULL_REMOTE], [distribution("q", "quay", registry_hosts=["quay.io"], tag_ttl_seconds=5)]
    await apply(catalog, *declared)
    before = await catalog.content.distributions()
    assert await apply(catalog, *declared) == [
        ("unchanged", "remote", "quay", ()),
        ("unchanged", "distribution", "q", ()),
    ]
    assert await catalog.content.distributions() == before


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"url": "https://other"}, ("url",)),
        ({"policy": "streamed"}, ("policy",)),
        ({"username": None, "password": None}, ("password", "username")),
        ({"password": {"env": "OTHER"}}, ("password",)),
        ({"headers": {"X-One": "9"}}, ("headers",)),
        ({"auth_hosts": []}, ("auth_hosts",)),
        ({"sock_read_timeout": 31, "max_retries": 0}, ("max_retries", "sock_read_timeout")),
        ({"sock_read_timeout": 30.0}, ()),
    ],
)
async def test_a_changed_remote(catalog: Catalog, change: dict[str, Any], fields: tuple[str, ...]) -> None:
    await apply(catalog, [FULL_REMOTE])
    before = await only_remote(catalog)
    action = "updated" if fields else "unchanged"
    assert await apply(catalog, [FULL_REMOTE | change]) == [(action, "remote", "quay", fields)]
    after = await only_remote(catalog)
    assert after.id == before.id
    assert after.revision == before.revision + bool(fields)
    assert (after == before) is not bool(fields)


async def test_what_is_no_longer_set_goes_back_to_the_default(catalog: Catalog) -> None:
    await apply(catalog, [FULL_REMOTE])
    changed = await apply(catalog, [remote("quay", url="https://quay.io")])
    assert set(changed[0][3]) == set(FULL_REMOTE) - {"name", "type", "url"}
    assert (await only_remote(catalog)).settings == RemoteSettings(sock_read_timeout=77.0)


async def test_a_changed_distribution(catalog: Catalog) -> None:
    both = [remote("a"), remote("b")]
    await apply(catalog, both, [distribution("q", "a", "b", tag_ttl_patterns={"a": 1, "b": 2})])
    changes = await apply(catalog, both, [distribution("q", "b", "a", tag_ttl_patterns={"b": 2, "a": 1})])
    assert changes[-1] == ("updated", "distribution", "q", ("remotes", "tag_ttl_patterns"))
    found = await only_distribution(catalog)
    assert [found.remotes[0].name, found.remotes[1].name, found.revision] == ["b", "a", 2]
    assert list(found.settings.tag_ttl_patterns) == ["b", "a"]


async def test_base_paths_may_be_exchanged(catalog: Catalog) -> None:
    for first, second in (("x", "y"), ("y", "x"), ("x", "z"), ("z", "x")):
        declared = [distribution(first, "quay", name="one"), distribution(second, "quay", name="two")]
        await apply(catalog, [remote()], declared)
        found = await catalog.content.distributions()
        assert {d.name: d.base_path for d in found} == {"one": first, "two": second}


async def test_base_paths_may_nest(catalog: Catalog) -> None:
    await apply(catalog, [remote()], [distribution("a", "quay"), distribution("a/b", "quay")])
    assert [d.base_path for d in await catalog.content.distributions()] == ["a", "a/b"]


async def test_what_is_not_declared_stays_without_prune(catalog: Catalog) -> None:
    await apply(catalog, [remote("a")], [distribution("x", "a")])
    await apply(catalog, [remote("b")], [distribution("y", "a", "b")])
    assert [r.name for r in await catalog.content.remotes()] == ["a", "b"]
    assert [d.name for d in await catalog.content.distributions()] == ["x", "y"]


async def test_prune_removes_what_is_not_declared(catalog: Catalog) -> None:
    await apply(catalog, [remote("a"), remote("b"), remote("c")], [distribution("x", "a"), distribution("y", "b")])
    changes = await apply(catalog, [remote("b")], [distribution("y", "b")], prune=True)
    assert changes == [
        ("unchanged", "remote", "b", ()),
        ("removed", "remote", "a", ()),
        ("removed", "remote", "c", ()),
        ("unchanged", "distribution", "y", ()),
        ("removed", "distribution", "x", ()),
    ]
    assert [r.name for r in await catalog.content.remotes()] == ["b"]
    assert [d.name for d in await catalog.content.distributions()] == ["y"]


async def test_a_distribution_may_let_go_of_a_remote_that_is_removed(catalog: Catalog) -> None:
    await apply(catalog, [remote("a"), remote("b")], [distribution("x", "a", "b")])
    await apply(catalog, [remote("b")], [distribution("x", "b")], prune=True)
    assert [r.name for r in (await only_distribution(catalog)).remotes] == ["b"]


async def test_a_renamed_distribution_takes_over_the_base_path(catalog: Catalog) -> None:
    await apply(catalog, [remote()], [distribution("x", "quay", default_registry=True, registry_hosts=["h"])])
    renamed = distribution("x", "quay", name="new", default_registry=True, registry_hosts=["h"])
    await apply(catalog, [remote()], [renamed], prune=True)
    assert (await only_distribution(catalog)).name == "new"


@pytest.mark.parametrize("prune", [True, False])
async def test_a_dry_run_tells_and_changes_nothing(catalog: Catalog, prune: bool) -> None:
    await apply(catalog, [remote("a"), remote("b")], [distribution("x", "a")])
    before = await catalog.content.distributions(), await catalog.content.remotes()
    declared = [remote("b", policy="streamed"), remote("c")], [distribution("y", "b", "c")]
    told = await apply(catalog, *declared, prune=prune, dry_run=True)
    assert (await catalog.content.distributions(), await catalog.content.remotes()) == before
    assert await apply(catalog, *declared, prune=prune) == told


FILE = {"type": "file"}
BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "unknown remote": (([remote()], [distribution("x", "nope")]), "distribution 'x': remotes 'nope': no such remote"),
    "type mismatch": (
        ([remote(**FILE)], [distribution("x", "quay")]),
        "distribution 'x': remotes 'quay': is of type file, the distribution of type container",
    ),
    "remote named twice": (([remote()], [distribution("x", "quay", "quay")]), "remotes 'quay': is named twice"),
    "remotes of one name": (([remote(), remote()],), "remote 'quay': name 'quay': is declared twice"),
    "distributions of one name": (
        ([remote()], [distribution("x", "quay"), distribution("y", "quay", name="x")]),
        "distribution 'x': name 'x': is declared twice",
    ),
    "base_path twice": (
        ([remote()], [distribution("x", "quay"), distribution("x", "quay", name="y")]),
        "distribution 'y': base_path 'x': is taken by distribution 'x'",
    ),
    "registry host twice": (
        (
            [remote()],
            [distribution("x", "quay", registry_hosts=["h"]), distribution("y", "quay", registry_hosts=["i", "H"])],
        ),
        "distribution 'y': registry_hosts 'h': is taken by distribution 'x'",
    ),
    "two default registries": (
        ([remote()], [distribution(path, "quay", default_registry=True) for path in "xy"]),
        "distribution 'y': default_registry True: is taken by distribution 'x'",
    ),
    "unknown field": (([remote(colour="red")],), "remote 'quay': colour: no such field"),
    "setting of the other kind": (([remote(tag_ttl_seconds=1)],), "remote 'quay': tag_ttl_seconds: no such field"),
    "no name": (([{"type": "file", "url": "u"}],), "remote 'None': name None: must be text"),
    "no type": (([{"name": "a", "url": "u"}],), "remote 'a': type None: must be one of container, file"),
    "unknown type": (([remote(type="deb")],), "type 'deb': must be one of container, file"),
    "unknown policy": (([remote(policy="lazy")],), "policy 'lazy': must be one of immediate, on_demand, streamed"),
    "remotes as text": (
        ([remote()], [{"base_path": "x", "type": "container", "remotes": "quay"}]),
        "remotes 'quay': must be a list of texts",
    ),
    "bad base_path": (([remote()], [distribution("/x", "quay")]), "base_path '/x': must be segments"),
    "flag": (([remote()], [distribution("x", "quay", default_registry="yes")]), "'yes': must be true or false"),
    "two places": (([remote(password={"env": "A", "file": "B"})],), "remote 'quay': password: must be a text"),
    "no place": (([remote(password={"vault": "hunter2"})],), "remote 'quay': password: must be a text"),
    "headers as text": (([remote(headers="A: hunter2")],), "remote 'quay': headers: must map names to texts"),
    "headers of numbers": (([remote(headers=[{"A": 1}])],), "remote 'quay': headers: must map names to texts"),
    "headers as texts": (([remote(headers=["hunter2"])],), "remote 'quay': headers: must map names to texts"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("dry_run", [True, False])
async def test_what_does_not_hold_together(catalog: Catalog, case: str, dry_run: bool) -> None:
    declared, message = BAD[case]
    await apply(catalog, [remote("old")])
    with pytest.raises(MetadataInvalid) as caught:
        await apply(catalog, *declared, prune=True, dry_run=dry_run)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert [r.name for r in await catalog.content.remotes()] == ["old"], "all or nothing"


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (([], [distribution("y", "a", name="z", registry_hosts=["h"])]), "registry_hosts 'h': is taken"),
        (([], [distribution("x", "a", name="z")]), "base_path 'x': is taken by distribution 'x'"),
        (([remote("a", type="file")], []), "distribution 'x': remotes 'a': is of type file"),
        (([], [distribution("z", "a", default_registry=True)]), "default_registry True: is taken by distribution 'x'"),
    ],
)
async def test_what_clashes_with_what_is_there(catalog: Catalog, declared: Any, message: str) -> None:
    await apply(catalog, [remote("a")], [distribution("x", "a", registry_hosts=["h"], default_registry=True)])
    with pytest.raises(MetadataInvalid) as caught:
        await apply(catalog, *declared)
    assert message in str(caught.value)


async def test_removing_a_remote_in_use(catalog: Catalog) -> None:
    await apply(catalog, [remote("a")], [distribution("x", "a")])
    with pytest.raises(
        MetadataInvalid, match="distribution 'x': remotes 'a': would be removed, but is still used here"
    ):
        await apply(catalog, [], [distribution("x", "a")], prune=True)
    assert (await only_remote(catalog)).name == "a"


async def identity(catalog: Catalog, table: Table) -> Row[Any]:
    columns = [table.c[name] for name in ("pulp_id", "created_at", "updated_at", "revision")]
    return await catalog.engine.read(lambda connection: connection.execute(select(*columns)).one())


async def test_rows_carry_pulp_id_and_times(catalog: Catalog) -> None:
    await apply(catalog, [remote()], [distribution("x", "quay")])
    later = SqlAdminCatalog(catalog.engine, now=lambda: at(60))
    await later.apply(resources([remote(policy="streamed")], [distribution("x", "quay")]))
    rows = [await identity(catalog, table) for table in (remotes, distributions)]
    assert [tuple(row)[1:] for row in rows] == [(at(0), at(60), 2), (at(0), at(0), 1)]
    assert len({uuid.UUID(row.pulp_id) for row in rows}) == 2
    assert {uuid.UUID(row.pulp_id).version for row in rows} == {4}


async def learn(catalog: Catalog, served: int, source: int) -> None:
    await catalog.content.record_tag(served, "n", tag())
    await catalog.content.record_members(served, "n", [Member(digest=digest(1), kind=Kind.BLOB)])
    await catalog.content.record_file(served, entry(), replaces=0)
    await catalog.content.record_source(digest(1), source, "p")
    listing = await catalog.content.begin_listing(source)
    await catalog.content.add_listed(source, listing, [listed_file("a")])
    await catalog.content.finish_listing(listing, state(source, entries=1))


LEARNT = (tags, members, files, artifact_sources, listing_states, listings, listed)


async def learnt(catalog: Catalog) -> list[int]:
    return await catalog.engine.read(lambda connection: [len(connection.execute(select(t)).all()) for t in LEARNT])


async def test_what_was_learnt_of_removed_resources_goes(catalog: Catalog) -> None:
    await apply(catalog, [remote("a"), remote("b")], [distribution("x", "a"), distribution("y", "b")])
    ids = {found.name: (found.id, found.remotes[0].id) for found in await catalog.content.distributions()}
    for served, source in ids.values():
        await learn(catalog, served, source)
    await apply(catalog, [remote("b")], [distribution("y", "b")], prune=True)
    assert await learnt(catalog) == [1] * len(LEARNT)
    served, source = ids["y"]
    assert await catalog.content.find_tag(served, "n", "latest") == tag()
    assert await catalog.content.find_listed(source, "a") == listed_file("a")


async def test_what_is_learnt_too_late_is_swept(catalog: Catalog) -> None:
    await apply(catalog, [remote("a")], [distribution("x", "a")])
    found = await only_distribution(catalog)
    await apply(catalog, [], [], prune=True)
    await learn(catalog, found.id, found.remotes[0].id)
    assert await catalog.upkeep.sweep() == len(LEARNT)
    assert await learnt(catalog) == [0] * len(LEARNT)
    assert await catalog.upkeep.sweep() == 0


async def test_another_url_has_another_listing(catalog: Catalog) -> None:
    await apply(catalog, [remote("a", **FILE), remote("b", **FILE)])
    a, b = await catalog.content.remotes()
    for found in (a, b):
        await learn(catalog, 1, found.id)
    await apply(catalog, [remote("a", **FILE, url="https://moved/"), remote("b", **FILE, policy="streamed")])
    assert await catalog.content.find_listing(a.id) is None
    assert await catalog.content.find_listed(a.id, "a") is None
    assert await catalog.content.find_listed(b.id, "a") == listed_file("a")


async def test_ids_are_never_used_again(catalog: Catalog) -> None:
    seen = set()
    for _ in range(3):
        await apply(catalog, [remote()], [distribution("x", "quay")])
        seen.add((await only_remote(catalog)).id)
        await apply(catalog, [], [], prune=True)
    assert len(seen) == 3


async def test_settings_of_another_version_are_passed_over(catalog: Catalog) -> None:
    await apply(catalog, [remote(max_retries=1)])
    newer = {"max_retries": 1, "teleport_seconds": 5}
    await catalog.engine.write(lambda connection: connection.execute(remotes.update().values(settings=newer)))
    assert (await only_remote(catalog)).settings == RemoteSettings(sock_read_timeout=77.0, max_retries=1)
    assert await apply(catalog, [remote(max_retries=1)]) == [("updated", "remote", "quay", ("teleport_seconds",))]


async def test_processes_that_apply_at_once(place: Place) -> None:
    catalogs = [await place.open() for _ in range(3)]
    declared = resources([remote("a"), remote("b")], [distribution("x", "a", "b")])
    told = await asyncio.gather(*(catalog.admin.apply(declared) for catalog in catalogs))
    actions = sorted({change.action for change in changes}.pop() for changes in told)
    assert actions == ["created", "unchanged", "unchanged"]
    assert all(len(changes) == 3 and isinstance(changes[0], Change) for changes in told)
