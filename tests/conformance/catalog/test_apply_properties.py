"""What holds for apply whatever is declared."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contentapp.catalog.base import Resources
from contentapp.catalog.engine import open_catalog
from tests.conformance.catalog.conftest import Catalog

NAMES = ("a", "b", "c")
TYPES = ("container", "file")


def optional(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), values.map(lambda value: {name: value}))


SECRETS = st.one_of(st.text(min_size=1), st.sampled_from(["A", "B"]).map(lambda name: {"env": name}))
REMOTE_OPTIONS = st.tuples(
    optional("policy", st.sampled_from(["immediate", "on_demand", "streamed"])),
    optional("username", st.text(min_size=1)),
    optional("password", SECRETS),
    optional("headers", st.lists(st.dictionaries(st.text(), st.text(), max_size=2), max_size=2)),
    optional("auth_hosts", st.lists(st.text(min_size=1), max_size=2)),
    optional("max_retries", st.integers(0, 3)),
    optional("total_timeout", st.one_of(st.none(), st.floats(1, 9))),
)
DISTRIBUTION_OPTIONS = st.tuples(
    optional("tag_ttl_seconds", st.floats(0, 9)),
    optional("tag_ttl_patterns", st.dictionaries(st.sampled_from("vw*"), st.integers(0, 9))),
    optional("cold_range", st.sampled_from(["stream", "strict"])),
)


def merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


@st.composite
def declared(draw: st.DrawFn) -> Resources:
    """Resources that hold together."""
    remotes = [
        {"name": name, "type": draw(st.sampled_from(TYPES)), "url": f"https://{name}", **merged(draw(REMOTE_OPTIONS))}
        for name in draw(st.lists(st.sampled_from(NAMES), unique=True))
    ]
    distributions = []
    paths = draw(st.permutations(["x", "y", "x/y"]))
    hosts = draw(st.permutations(["h", "i", "j"]))
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    for number, (name, path, host) in enumerate(zip(names, paths, hosts, strict=False)):
        of_type = draw(st.sampled_from(TYPES))
        sources = [remote["name"] for remote in remotes if remote["type"] == of_type]
        distributions.append(
            {
                "name": name,
                "base_path": path,
                "type": of_type,
                "remotes": draw(st.lists(st.sampled_from(sources), unique=True)) if sources else [],
                "registry_hosts": [host] if draw(st.booleans()) else [],
                "default_registry": number == 0 and draw(st.booleans()),
                **merged(draw(DISTRIBUTION_OPTIONS)),
            }
        )
    return Resources(remotes=remotes, distributions=distributions)


IDENTITY = {"id", "revision"}


def without_identity(record: Any) -> Any:
    """A record as plain values, without what the catalog adds."""
    if isinstance(record, dict):
        return [(name, without_identity(value)) for name, value in record.items() if name not in IDENTITY]
    return [without_identity(item) for item in record] if isinstance(record, list | tuple) else record


async def contents(catalog: Catalog) -> Any:
    remotes = sorted(await catalog.content.remotes(), key=lambda found: found.name)
    distributions = sorted(await catalog.content.distributions(), key=lambda found: found.name)
    return without_identity([*map(asdict, remotes), *map(asdict, distributions)])


async def check(first: Resources, second: Resources) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engines = [await open_catalog(Path(folder, name)) for name in ("used", "fresh")]
        used, fresh = map(Catalog, engines)
        try:
            await used.admin.apply(first)
            foretold = await used.admin.apply(second, prune=True, dry_run=True)
            assert await used.admin.apply(second, prune=True) == foretold
            again = await used.admin.apply(second, prune=True)
            assert {change.action for change in again} <= {"unchanged"}
            await fresh.admin.apply(second)
            assert await contents(used) == await contents(fresh)
        finally:
            for engine in engines:
                await engine.close()


@settings(max_examples=40, deadline=None)
@given(first=declared(), second=declared())
def test_the_outcome_depends_on_the_last_declaration_alone(first: Resources, second: Resources) -> None:
    asyncio.run(check(first, second))
