"""Cooldowns that processes share and that survive a restart; P3."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind
from tests.conformance.coordination.conftest import Clock, Open, Spawn

HOST = Scope(ScopeKind.HOST, 1, "quay", "cdn.quay.io:443")
PAIR = Scope(ScopeKind.ARTIFACT, 1, "quay", "sha256:" + "a" * 64)
OTHER = Scope(ScopeKind.HOST, 2, "mirror", "cdn.quay.io:443")
PATH = Scope(ScopeKind.PATH, 1, "quay", "ünïcode/\udcff\x00")
RULE = CooldownRule(initial_seconds=10, max_seconds=80, trial_seconds=30)


async def test_without_failures_all_are_admitted(open_one: Open) -> None:
    one = await open_one()
    admission = await one.admit([HOST, PAIR])
    assert admission.is_admitted
    assert admission.trials == ()
    assert (await one.admit([])).is_admitted
    assert await one.cooldown(HOST) is None
    assert await one.cooldowns() == []


async def test_a_failure_is_known_to_all_at_once(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    assert (await two.admit([HOST])).is_admitted
    state = await one.record_failure(HOST, RULE, "connection refused")
    assert state.until == clock.now + 10
    for coordination in (one, two):
        admission = await coordination.admit([PAIR, HOST])
        assert not admission.is_admitted
        assert admission.scope == HOST
        assert admission.reason == "connection refused"
        assert admission.retry_after_seconds == pytest.approx(10)
        assert await coordination.cooldown(HOST) == state
        assert await coordination.cooldowns() == [(HOST, state)]
        assert (await coordination.admit([OTHER])).is_admitted


async def test_the_longest_wait_is_told(open_one: Open) -> None:
    one = await open_one()
    await one.record_failure(HOST, RULE, "short")
    await one.record_failure(PAIR, dataclasses.replace(RULE, initial_seconds=70), "long")
    admission = await one.admit([HOST, PAIR])
    assert admission.reason == "long"
    assert admission.retry_after_seconds == pytest.approx(70)


async def test_failures_of_several_processes_add_up(open_one: Open, spawn: Spawn, clock: Clock) -> None:
    one, child = await open_one(), await spawn()
    rule = dataclasses.replace(RULE, threshold=3)
    await one.record_failure(HOST, rule, "x")
    await child.do("fail", scope=list(dataclasses.astuple(HOST)), rule=dataclasses.asdict(rule), now=clock.now)
    assert (await one.admit([HOST])).is_admitted
    await one.record_failure(HOST, rule, "x")
    assert await child.do("admit", scopes=[list(dataclasses.astuple(HOST))], now=clock.now) == 0


async def test_one_trial_and_its_verdicts(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(HOST, RULE, "x")
    clock.now += 10
    trial = await two.admit([PAIR, HOST])
    assert trial.trials == (HOST,)
    refused = await one.admit([HOST])
    assert not refused.is_admitted
    assert refused.retry_after_seconds == pytest.approx(30)
    assert (await two.record_failure(HOST, RULE, "again")).until == clock.now + 20
    clock.now += 20
    assert (await one.admit([HOST])).trials == (HOST,)
    await one.record_success([HOST, PAIR])
    for coordination in (one, two):
        assert (await coordination.admit([HOST])).trials == ()
        assert await coordination.cooldown(HOST) is None


async def test_a_trial_whose_process_says_nothing_ends_with_its_time(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(HOST, RULE, "x")
    clock.now += 10
    assert (await one.admit([HOST])).is_admitted
    clock.now += 29
    assert not (await two.admit([HOST])).is_admitted
    clock.now += 1
    assert (await two.admit([HOST])).is_admitted


async def test_no_trial_is_taken_when_another_scope_refuses(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(HOST, RULE, "x")
    await one.record_failure(PAIR, dataclasses.replace(RULE, initial_seconds=60), "y")
    clock.now += 10
    assert not (await one.admit([HOST, PAIR])).is_admitted
    assert (await two.admit([HOST])).trials == (HOST,)


async def test_two_trials_are_taken_together(open_one: Open, clock: Clock) -> None:
    one = await open_one()
    for scope in (HOST, PAIR):
        await one.record_failure(scope, RULE, "x")
    clock.now += 10
    assert (await one.admit([HOST, PAIR, HOST])).trials == (HOST, PAIR)
    assert not (await one.admit([PAIR])).is_admitted


async def test_a_trial_without_verdict_can_be_given_back(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(HOST, RULE, "x")
    clock.now += 10
    trial = await one.admit([HOST])
    await one.end_trials(trial.trials)
    assert (await two.admit([HOST])).is_admitted


async def test_nobody_can_give_back_anothers_trial(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(HOST, RULE, "x")
    clock.now += 10
    await one.admit([HOST])
    await two.end_trials([HOST])
    assert not (await two.admit([HOST])).is_admitted
    clock.now += 30
    assert (await two.admit([HOST])).is_admitted
    await one.end_trials([HOST])
    assert not (await one.admit([HOST])).is_admitted


async def test_a_cancelled_request_keeps_no_trial(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    for turns in range(8):
        await one.record_failure(HOST, RULE, "x")
        clock.now += 100
        asking = asyncio.ensure_future(one.admit([HOST]))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not asking.cancel():
            await one.end_trials((await asking).trials)
        await asyncio.wait([asking])
        await one.cooldowns()  # behind whatever the cancelled one left to do
        assert (await two.admit([HOST])).is_admitted
        await two.record_success([HOST])


async def test_one_trial_among_many_tasks_and_processes(open_one: Open, spawn: Spawn, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    children = await asyncio.gather(spawn(), spawn())
    for round_ in range(5):
        await one.record_failure(HOST, RULE, f"round {round_}")
        clock.now += 100
        for child in children:
            await child.ask("admit", scopes=[list(dataclasses.astuple(HOST))], now=clock.now, times=20)
        here = await asyncio.gather(*((one, two)[number % 2].admit([HOST]) for number in range(20)))
        admitted = sum(admission.is_admitted for admission in here)
        admitted += sum([await child.answer() for child in children])
        assert admitted == 1


async def test_it_survives_a_restart_and_a_kill(open_one: Open, spawn: Spawn, clock: Clock) -> None:
    child = await spawn()
    await child.do("fail", scope=list(dataclasses.astuple(HOST)), rule=dataclasses.asdict(RULE), now=clock.now)
    await child.kill()
    for _ in range(2):
        one = await open_one()
        [(scope, state)] = await one.cooldowns()
        assert scope == HOST
        assert (state.level, state.reason) == (1, "from a child")
        assert not (await one.admit([HOST])).is_admitted
        await one.close()


async def test_clearing_some_and_all(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    for scope in (HOST, PAIR, OTHER, PATH):
        await one.record_failure(scope, RULE, "x")
    assert await two.clear_cooldowns([HOST, Scope(ScopeKind.REMOTE, 99, "?")]) == 1
    assert (await one.admit([HOST])).is_admitted
    assert not (await one.admit([PAIR])).is_admitted
    assert await one.clear_cooldowns() == 3
    assert await two.cooldowns() == []
    assert (await two.admit([PAIR, OTHER, PATH])).is_admitted


async def test_what_is_absent_is_known_but_no_cooldown(open_one: Open, clock: Clock) -> None:
    one, two = await open_one(), await open_one()
    absent = Scope(ScopeKind.ABSENT, 1, "quay", "library/nothing")
    await one.record_failure(absent, CooldownRule(initial_seconds=60, trial_seconds=0), "404")
    assert await two.cooldown(absent) is not None
    assert await two.cooldowns() == []
    clock.now += 60
    assert await two.cooldown(absent) is None


async def test_any_text_can_be_a_subject(open_one: Open) -> None:
    one, two = await open_one(), await open_one()
    await one.record_failure(PATH, RULE, "ünïcode \udcff")
    assert [scope for scope, _ in await two.cooldowns()] == [PATH]


async def test_only_counting_is_not_listed(open_one: Open) -> None:
    one = await open_one()
    await one.record_failure(HOST, dataclasses.replace(RULE, threshold=2), "x")
    assert await one.cooldowns() == []
    state = await one.cooldown(HOST)
    assert state is not None
    assert state.failures == 1
