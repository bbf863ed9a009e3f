"""The shared store stays small and whole; what the loop knows is asked nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from contentapp.coordination import cooldowns as cooldowns_module
from contentapp.coordination.cooldown_store import WRITES_BETWEEN_PRUNINGS, CooldownStore
from contentapp.coordination.cooldowns import Cooldowns
from contentapp.coordination.generation import Generation
from contentapp.coordination.worker import Worker
from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind

T = TypeVar("T")
RULE = CooldownRule(initial_seconds=10, max_seconds=100)
NOW = [1000.0]


def scope(number: int, kind: ScopeKind = ScopeKind.HOST) -> Scope:
    return Scope(kind, number, f"remote {number}", "x")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CooldownStore]:
    NOW[0] = 1000.0
    found = CooldownStore(tmp_path, lambda: NOW[0], max_rows=100)
    found.start()
    yield found
    found.close()


@pytest.fixture
async def cooldowns(store: CooldownStore) -> AsyncIterator[Cooldowns]:
    worker = Worker("test")
    yield Cooldowns(store, worker, lambda: NOW[0])
    await worker.close()


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits: no thread, no loop."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        work.close()
    raise AssertionError("it waited")


def test_expired_states_are_pruned_at_start(store: CooldownStore, tmp_path: Path) -> None:
    store.fail(scope(1), RULE, "x")
    NOW[0] += 1e6
    store.fail(scope(2), RULE, "x")
    store.start()
    assert store.forget(None) == 1


def test_the_number_of_states_is_bounded_and_remotes_outlive_what_devices_fill(store: CooldownStore) -> None:
    store.fail(scope(0), RULE, "x")
    for number in range(1, 2 * WRITES_BETWEEN_PRUNINGS):
        NOW[0] += 0.001
        store.fail(scope(number, ScopeKind.ABSENT if number % 2 else ScopeKind.PATH), RULE, "x")
    (_, _, states) = store.read([scope(0), scope(2 * WRITES_BETWEEN_PRUNINGS - 2, ScopeKind.PATH)])
    assert [state.level for state in states] == [1, 1]
    assert len(store.listed()) <= 100


def test_a_damaged_file_is_begun_anew_and_said(
    store: CooldownStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.fail(scope(1), RULE, "x")
    store.close()
    (tmp_path / "coordination.sqlite3").write_bytes(b"damage" * 5000)
    again = CooldownStore(tmp_path, lambda: NOW[0])
    again.start()
    assert again.listed() == []
    again.fail(scope(2), RULE, "x")
    assert len(again.listed()) == 1
    again.close()
    assert "damaged" in caplog.text


def test_without_a_folder_it_works_for_this_process(tmp_path: Path) -> None:
    lonely = CooldownStore(tmp_path / "nowhere", lambda: NOW[0])
    lonely.start()
    lonely.fail(scope(1), RULE, "x")
    assert len(lonely.listed()) == 1
    before = lonely.generation.current()
    lonely.generation.change()
    assert lonely.generation.current() != before
    lonely.close()


async def test_with_no_known_failures_nothing_is_asked(cooldowns: Cooldowns) -> None:
    await cooldowns.admit([scope(1)])
    assert at_once(cooldowns.admit([scope(2), scope(3)])).is_admitted
    at_once(cooldowns.record_success([scope(4)]))
    assert at_once(cooldowns.cooldown(scope(5))) is None


async def test_a_refusal_that_is_known_is_told_at_once_until_it_ends(cooldowns: Cooldowns) -> None:
    await cooldowns.record_failure(scope(1), RULE, "x")
    assert not (await cooldowns.admit([scope(1)])).is_admitted
    assert not at_once(cooldowns.admit([scope(1)])).is_admitted
    with pytest.raises(AssertionError, match="it waited"):
        at_once(cooldowns.admit([scope(2)]))  # never asked for
    NOW[0] += 10
    assert (await cooldowns.admit([scope(1)])).trials == (scope(1),)


async def test_a_change_that_was_not_announced_is_seen_within_a_second(
    cooldowns: Cooldowns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies between its commit and the announcement."""
    await cooldowns.admit([scope(1)])
    dying = CooldownStore(tmp_path, lambda: NOW[0])
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "change", lambda _self: None)
        dying.fail(scope(1), RULE, "x")
    dying.close()
    assert (await cooldowns.admit([scope(1)])).is_admitted
    monkeypatch.setattr(cooldowns_module, "FRESH_SECONDS", 0.0)
    assert not (await cooldowns.admit([scope(1)])).is_admitted


async def test_what_the_loop_remembers_is_bounded(cooldowns: Cooldowns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooldowns_module, "MAX_KNOWN", 10)
    await cooldowns.record_failure(scope(0), RULE, "x")
    for number in range(50):
        await cooldowns.admit([scope(number)])
    assert len(cooldowns._states) <= 11


async def test_a_hundred_microseconds_when_all_is_well(cooldowns: Cooldowns) -> None:
    await cooldowns.admit([scope(1)])
    loop, times = asyncio.get_running_loop(), []
    for _ in range(501):
        started = loop.time()
        await cooldowns.admit([scope(1), scope(2), scope(3)])
        times.append(loop.time() - started)
    assert sorted(times)[250] < 100e-6
