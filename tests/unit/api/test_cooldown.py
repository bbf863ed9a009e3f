"""``cooldowns/``: list, filters, pages, clearing."""

from __future__ import annotations

import pytest

from contentapp.api.cooldown import Cooldowns, scope_of
from contentapp.core.cooldown import CooldownRule, CooldownState, Scope, ScopeKind
from tests.unit.api.conftest import ROOT, Admin

NOW = 1_700_000_000.0


async def test_nothing_cools_down(admin: Admin) -> None:
    answer: dict[str, object] = {"count": 0, "next": None, "previous": None, "results": []}
    assert await admin.call("GET", "cooldowns/") == (200, answer)


async def test_what_cools_down_is_told(admin: Admin) -> None:
    scope = await admin.cool(ScopeKind.ARTIFACT, "sha256:00")
    _, answer = await admin.call("GET", "cooldowns/")
    (found,) = answer["results"]
    href = found.pop("pulp_href")
    assert found.pop("prn") == f"prn:contentapp.cooldown:{href.rstrip('/').rpartition('/')[2]}"
    assert found.pop("since") < found.pop("until")
    assert found == {
        "remote": "quay",
        "scope": "artifact",
        "key": scope.key,
        "subject": "sha256:00",
        "reason": "artifact failed",
        "retry_after": 300,
        "level": 1,
        "trial": False,
    }
    status, same = await admin.call("GET", href)
    assert (status, same["key"]) == (200, scope.key)


@pytest.mark.parametrize(
    ("state", "retry_after", "trial"),
    [
        (CooldownState(level=1, until=NOW + 12.2, seconds=300), 13, False),
        (CooldownState(level=1, until=NOW - 1, seconds=300), 0, False),
        (CooldownState(level=2, until=NOW - 1, seconds=300, trial_until=NOW + 7.5), 8, True),
        (CooldownState(level=2, until=NOW - 1, seconds=300, trial_until=NOW - 1), 0, False),
    ],
)
def test_how_long_and_whether_on_trial(state: CooldownState, retry_after: int, trial: bool) -> None:
    cooldowns = Cooldowns(None, clock=lambda: NOW)  # type: ignore[arg-type]
    shown = cooldowns.show((Scope(ScopeKind.HOST, 1, "quay", "quay.io:443"), state))
    assert (shown["retry_after"], shown["trial"]) == (retry_after, trial)


async def test_absent_is_not_shown(admin: Admin) -> None:
    await admin.cool(ScopeKind.ABSENT, "some/path")
    assert (await admin.call("GET", "cooldowns/"))[1]["count"] == 0


@pytest.mark.parametrize(
    ("query", "subjects"),
    [
        ("", {"a", "b", ""}),
        ("?remote=quay", {"a", "b"}),
        ("?remote=ghcr", {""}),
        ("?scope=host", {"a"}),
        ("?scope=host&remote=ghcr", set()),
        ("?remote=", set()),
    ],
)
async def test_filters(admin: Admin, query: str, subjects: set[str]) -> None:
    await admin.cool(ScopeKind.HOST, "a")
    await admin.cool(ScopeKind.PATH, "b")
    await admin.cool(ScopeKind.REMOTE, remote="ghcr", remote_id=2)
    _, answer = await admin.call("GET", f"cooldowns/{query}")
    assert {found["subject"] for found in answer["results"]} == subjects
    assert answer["count"] == len(subjects)


async def test_pages(admin: Admin) -> None:
    for number in range(5):
        await admin.cool(ScopeKind.PATH, str(number))
    seen, path = [], "cooldowns/?limit=2&scope=path"
    while path:
        _, answer = await admin.call("GET", path)
        assert answer["count"] == 5
        assert len(answer["results"]) <= 2
        seen += [found["subject"] for found in answer["results"]]
        path = answer["next"]
    assert sorted(seen) == list("01234")
    assert answer["previous"] == f"{ROOT}cooldowns/?limit=2&scope=path&offset=2"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=9999999999", "limit"),
        ("offset=-1", "offset"),
        ("offset=1.5", "offset"),
        ("remot=quay", "remot"),
    ],
)
async def test_what_is_no_filter_is_refused(admin: Admin, query: str, field: str) -> None:
    status, answer = await admin.call("GET", f"{ROOT}cooldowns/?{query}")
    assert (status, list(answer)) == (400, [field])


async def test_beyond_the_end_is_an_empty_page(admin: Admin) -> None:
    await admin.cool(ScopeKind.REMOTE)
    _, answer = await admin.call("GET", "cooldowns/?offset=7&limit=5")
    assert (answer["count"], answer["results"], answer["next"]) == (1, [], None)
    assert answer["previous"] == f"{ROOT}cooldowns/?offset=2&limit=5"


# -- clearing


async def kept(admin: Admin) -> set[str]:
    return {scope.key for scope, _ in await admin.services.shared.coordination.cooldowns()}


async def test_one_can_be_deleted(admin: Admin) -> None:
    await admin.cool(ScopeKind.HOST, "a")
    other = await admin.cool(ScopeKind.HOST, "b")
    _, answer = await admin.call("GET", "cooldowns/?limit=10")
    (href,) = (found["pulp_href"] for found in answer["results"] if found["subject"] == "a")
    assert (await admin.call("DELETE", href))[0] == 204
    assert await kept(admin) == {other.key}
    assert await admin.call("DELETE", href) == (404, {"detail": "Not found."})
    assert await admin.call("GET", href) == (404, {"detail": "Not found."})


async def test_all_can_be_cleared_what_is_absent_too(admin: Admin) -> None:
    await admin.cool(ScopeKind.HOST, "a")
    await admin.cool(ScopeKind.REMOTE, remote="ghcr", remote_id=2)
    absent = await admin.cool(ScopeKind.ABSENT, "some/path")
    assert await admin.call("POST", "cooldowns/clear/", {}) == (200, {"cleared": 2})
    assert await kept(admin) == set()
    assert await admin.services.shared.coordination.cooldown(absent) is None


async def test_those_of_one_remote(admin: Admin) -> None:
    await admin.cool(ScopeKind.HOST, "a")
    other = await admin.cool(ScopeKind.REMOTE, remote="ghcr", remote_id=2)
    assert await admin.call("POST", "cooldowns/clear/", {"remote": "quay"}) == (200, {"cleared": 1})
    assert await kept(admin) == {other.key}
    assert await admin.call("POST", "cooldowns/clear/", {"remote": "nobody"}) == (200, {"cleared": 0})
    assert await kept(admin) == {other.key}


async def test_one_by_its_key(admin: Admin) -> None:
    scope = await admin.cool(ScopeKind.PATH, "library/a:b?c")
    other = await admin.cool(ScopeKind.PATH, "library/other")
    assert await admin.call("POST", "cooldowns/clear/", {"scope": scope.key}) == (200, {"cleared": 1})
    assert await kept(admin) == {other.key}


@pytest.mark.parametrize("body", [{"scope": "host"}, {"scope": "host:x:y"}, {"scope": "planet:1:y"}, {"scope": ""}])
async def test_what_is_no_key_is_refused(admin: Admin, body: dict[str, str]) -> None:
    await admin.cool(ScopeKind.HOST, "a")
    status, answer = await admin.call("POST", "cooldowns/clear/", body)
    assert (status, list(answer)) == (400, ["scope"])
    assert len(await kept(admin)) == 1


async def test_both_at_once_are_refused(admin: Admin) -> None:
    body = {"scope": "host:1:a", "remote": "quay"}
    assert (await admin.call("POST", "cooldowns/clear/", body))[0] == 400


@pytest.mark.parametrize("kind", list(ScopeKind))
@pytest.mark.parametrize("subject", ["", "a", "a:b:c", "sha256:00", "über/weg"])
def test_a_key_names_its_scope(kind: ScopeKind, subject: str) -> None:
    scope = Scope(kind, 7, "", subject)
    assert scope_of(scope.key) == scope


async def test_a_cleared_trial_rule_starts_anew(admin: Admin) -> None:
    scope = await admin.cool(ScopeKind.HOST, "a")
    coordination = admin.services.shared.coordination
    await admin.call("POST", "cooldowns/clear/", {})
    state = await coordination.record_failure(scope, CooldownRule(initial_seconds=5), "again")
    assert (state.level, state.seconds) == (1, 5)
