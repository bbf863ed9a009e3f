"""What the refusals of several sources mean together (P3, last paragraph), and the rules that they are punished by."""

from __future__ import annotations

import itertools

import pytest

from contentapp.core.errors import (
    ConnectError,
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    HostCooling,
    UpstreamProtocolError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from contentapp.core.records import ContentType, Remote, Source
from contentapp.core.settings import RemoteSettings
from contentapp.pipeline.fetch import (
    Refusal,
    Refusals,
    digest_rule,
    fixed_rule,
    host_rule,
    path_rule,
    refusal_of,
    remote_rule,
)

SOURCE = Source(
    remote=Remote(id=1, name="quay", type=ContentType.CONTAINER, url="https://quay.io"),
    url="https://quay.io/x",
    path="x",
)


def outcome(*kinds: str, must_exist: bool = False) -> type[ContentAppError]:
    refusals = Refusals([Refusal(f"r{number}", kind, "reason") for number, kind in enumerate(kinds)])
    return type(refusals.error(must_exist=must_exist))


def test_not_found_only_when_all_say_so() -> None:
    assert outcome("absent") is outcome("absent", "absent") is ContentNotFound
    assert outcome("denied") is outcome("denied", "denied") is ContentDenied
    for count in (2, 3):
        for kinds in itertools.product(("absent", "denied", "failed"), repeat=count):
            if len(set(kinds)) > 1 or "failed" in kinds:
                assert outcome(*kinds) is ContentUnavailable, kinds


def test_what_a_manifest_names_is_never_not_found() -> None:
    assert outcome("absent", must_exist=True) is ContentUnavailable
    assert outcome("denied", must_exist=True) is ContentDenied


def test_no_remote_at_all() -> None:
    assert str(Refusals().error(must_exist=False)) == "no remote is configured: connection refused"


def test_message_names_all_and_the_phrase_is_of_the_last_that_failed() -> None:
    refusals = Refusals()
    refusals.add(Refusal("a", "failed", "broke", "i/o timeout", 30.0))
    refusals.add(Refusal("b", "failed", "hung up", "unexpected EOF", 7.0))
    refusals.add(Refusal("c", "absent", "answered 404", retry_after_seconds=1.0))
    error = refusals.unavailable()
    assert str(error) == "remote a: broke; remote b: hung up; remote c: answered 404: unexpected EOF"
    assert error.retry_after_seconds == 7.0, "the first trial of one that failed"


@pytest.mark.parametrize(
    ("error", "kind", "phrase", "seconds"),
    [
        (UpstreamStatusError(404, "x"), "absent", "connection refused", 5.0),
        (UpstreamStatusError(410, "x"), "absent", "connection refused", 5.0),
        (UpstreamStatusError(401, "x"), "denied", "connection refused", 5.0),
        (UpstreamStatusError(403, "x"), "denied", "connection refused", 5.0),
        (UpstreamStatusError(500, "x"), "failed", "connection refused", 5.0),
        (UpstreamStatusError(429, "x", retry_after_seconds=17.0), "failed", "connection refused", 17.0),
        (UpstreamTimeout("x"), "failed", "i/o timeout", 5.0),
        (ConnectError("x", phrase="no such host"), "failed", "no such host", 5.0),
        (UpstreamProtocolError("x"), "failed", "unexpected EOF", 5.0),
        (HostCooling("x", host="h", retry_after_seconds=9.0), "failed", "connection refused", 9.0),
    ],
)
def test_refusal_of_an_error(error: ContentAppError, kind: str, phrase: str, seconds: float) -> None:
    refusal = refusal_of(SOURCE, error)
    assert (refusal.remote, refusal.kind, refusal.phrase, refusal.retry_after_seconds) == (
        "quay",
        kind,
        phrase,
        seconds,
    )


def test_rules_are_made_of_the_settings() -> None:
    settings = RemoteSettings(
        cooldown_seconds=100.0,
        cooldown_initial_seconds=3.0,
        cooldown_max_seconds=1000.0,
        failure_threshold=4,
        trial_seconds=8.0,
        negative_ttl_seconds=20.0,
    )
    digest, remote = digest_rule(settings), remote_rule(settings, threshold=3)
    assert (digest.threshold, digest.initial_seconds, digest.max_seconds) == (1, 100.0, 1000.0)
    assert (remote.threshold, remote.initial_seconds, remote.window_seconds) == (3, 100.0, 100.0)
    host, path = host_rule(settings), path_rule(settings)
    assert (host.threshold, host.initial_seconds, host.max_seconds) == (4, 3.0, 100.0)
    assert (path.threshold, path.initial_seconds, path.max_seconds) == (1, 20.0, 20.0), "not doubled"
    assert fixed_rule(settings, 17.0).initial_seconds == 17.0
    assert fixed_rule(settings, 5000.0).initial_seconds == 1000.0, "a remote may not be left alone for ever"
    assert {rule.trial_seconds for rule in (digest, remote, host, path)} == {8.0}
