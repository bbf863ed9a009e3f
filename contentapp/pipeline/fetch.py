"""Fetch: ask the sources of one artifact in their order until one answers (P2 before the first byte, P3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

from contentapp.coordination.base import Admission, Coordination
from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind
from contentapp.core.digest import Digest
from contentapp.core.errors import (
    ConnectError,
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    HostCooling,
    TransferInterrupted,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeout,
)
from contentapp.core.origin import describe_origin
from contentapp.core.records import Remote, Source
from contentapp.core.settings import RemoteSettings
from contentapp.metrics import metrics, upstream_result
from contentapp.upstream.base import HostGate, Upstream, UpstreamRequest, UpstreamResponse

RATE_LIMIT_SECONDS = 60.0
SLACK_SECONDS = 0.25
HEAD_REFUSED = frozenset({400, 403, 405, 501})
"""Stores whose URLs are signed for GET answer a HEAD with 403: the GET that follows tells."""
DEFAULT_RETRY_AFTER_SECONDS = 5.0


class HeadRefused(ContentAppError):
    """The source does not do HEAD: ask by GET."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one source did not deliver. kind: absent | denied | failed. is_cooling: it was not asked, for so long."""

    remote: str
    kind: str
    reason: str
    phrase: str = "connection refused"
    retry_after_seconds: float = DEFAULT_RETRY_AFTER_SECONDS
    status: int = 0
    is_cooling: bool = False


@dataclass(slots=True)
class Refusals:
    """What all the sources said, and what that means for the device (P3, last paragraph)."""

    items: list[Refusal] = field(default_factory=list)

    def add(self, refusal: Refusal) -> None:
        """Note one source's refusal."""
        self.items.append(refusal)

    def error(self, *, must_exist: bool) -> ContentAppError:
        """The error for the device; `must_exist`: a served manifest names it, so it is never "not found"."""
        kinds = {item.kind for item in self.items}
        if kinds == {"absent"} and not must_exist:
            return ContentNotFound("every source answered 404")
        if kinds == {"denied"}:
            return ContentDenied("every source denied access")
        return self.unavailable()

    def unavailable(self) -> ContentUnavailable:
        """One sentence with each source's reason, and the phrase of the one that failed last."""
        if not self.items:
            return ContentUnavailable("no remote is configured")
        failed = [item for item in self.items if item.kind == "failed"] or self.items
        return ContentUnavailable(
            "; ".join(f"remote {item.remote}: {item.reason}" for item in self.items),
            failed[-1].phrase,
            min(item.retry_after_seconds for item in failed),
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """An open answer and the source it came from; `hosts` have all had a part in it."""

    source: Source
    response: UpstreamResponse
    hosts: frozenset[str] = frozenset()


def digest_rule(settings: RemoteSettings) -> CooldownRule:
    """A pair (remote, artifact) whose bytes were wrong."""
    return CooldownRule(
        initial_seconds=settings.cooldown_seconds,
        max_seconds=settings.cooldown_max_seconds,
        trial_seconds=settings.trial_seconds,
    )


def remote_rule(settings: RemoteSettings, *, threshold: int) -> CooldownRule:
    """The whole remote: three wrong pairs, or refused credentials."""
    return replace(digest_rule(settings), threshold=threshold, window_seconds=settings.cooldown_seconds)


def host_rule(settings: RemoteSettings) -> CooldownRule:
    """A host that can't be reached or answers 502–504."""
    return CooldownRule(
        threshold=settings.failure_threshold,
        initial_seconds=settings.cooldown_initial_seconds,
        max_seconds=settings.cooldown_seconds,
        trial_seconds=settings.trial_seconds,
    )


def fixed_rule(settings: RemoteSettings, seconds: float) -> CooldownRule:
    """A time that was named: Retry-After, or the negative TTL."""
    seconds = min(seconds, settings.cooldown_max_seconds)
    return CooldownRule(
        initial_seconds=seconds, max_seconds=settings.cooldown_max_seconds, trial_seconds=settings.trial_seconds
    )


def path_rule(settings: RemoteSettings) -> CooldownRule:
    """A denied path, or one that makes the remote fail: not doubled, since registries say so for what does not
    exist.
    """
    seconds = settings.negative_ttl_seconds
    return CooldownRule(initial_seconds=seconds, max_seconds=seconds, trial_seconds=settings.trial_seconds)


def scope_of(kind: ScopeKind, remote: Remote, subject: str = "") -> Scope:
    """A scope of one remote."""
    return Scope(kind, remote.id, remote.name, subject)


def refusal_of(source: Source, error: ContentAppError) -> Refusal:
    """What an error of one source means for the whole."""
    phrase = error.phrase if isinstance(error, UpstreamError) else "connection refused"
    if isinstance(error, UpstreamStatusError) and error.status in {404, 410}:
        return Refusal(source.remote.name, "absent", "answered 404", status=error.status)
    if isinstance(error, UpstreamStatusError) and error.status in {401, 403}:
        return Refusal(source.remote.name, "denied", str(error))
    after = getattr(error, "retry_after_seconds", None) or DEFAULT_RETRY_AFTER_SECONDS
    return Refusal(source.remote.name, "failed", str(error), phrase, after, getattr(error, "status", 0))


class Fetcher:
    """Opens one of several sources; keeps the book of cooldowns."""

    def __init__(
        self,
        upstream: Upstream,
        coordination: Coordination,
        *,
        on_absent: Callable[[Digest, Remote], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`on_absent` is told of a remote that answered 404 for an artifact: it is no live source of it any more."""
        self._upstream = upstream
        self._coordination = coordination
        self._on_absent = on_absent
        self._clock = clock

    @asynccontextmanager
    async def open(
        self,
        sources: Sequence[Source],
        request: Callable[[Source], UpstreamRequest],
        *,
        digest: Digest | None = None,
        deadline: float | None = None,
        must_exist: bool = False,
        refusals: Refusals | None = None,
        is_aside: bool = False,
    ) -> AsyncIterator[Fetched]:
        """The first source's answer.

        request: makes the exchange for a source. deadline: loop.time() for the answer's head, all sources together.
        refusals: collects why others were passed over. is_aside: it is not what devices want, so that its failures are
        held against its URL alone. Raises ContentNotFound, ContentDenied or ContentUnavailable when
        none is left, HeadRefused when a HEAD is refused as such. An UpstreamError raised inside the context is not
        caught: report it with `failed`.
        """
        noted = Refusals() if refusals is None else refusals
        for index, source in enumerate(sources):
            scopes = self._scopes(source, digest)
            admission = await self._admit(source, scopes)
            if isinstance(admission, Refusal):
                noted.add(admission)
                continue
            trials, hosts = list(admission.trials), {describe_origin(source.url)}
            try:
                left = await self._left(sources[index + 1 :], digest)
                share = _share(deadline, left + 1)
                gate = self._gate(source, hosts, trials)
                prepared = replace(request(source), gate=gate, is_last=left == 0, deadline=share)
                opened = self._upstream.open(prepared)
                try:
                    response = await self._enter(opened, share)
                except ContentAppError as error:
                    noted.add(await self._refused(source, prepared, digest, error, is_aside=is_aside))
                    if left:
                        metrics.failover(source.remote.name)
                    continue
                try:
                    fetched = Fetched(source, response, frozenset({*hosts, response.host}))
                    await self._begun(fetched, prepared)
                    yield fetched
                finally:
                    await opened.__aexit__(None, None, None)
            finally:
                # A trial that came to a verdict is over already; one that did not is given back.
                await asyncio.shield(self._coordination.end_trials(trials))
            return
        raise noted.error(must_exist=must_exist)

    async def _refused(
        self,
        source: Source,
        request: UpstreamRequest,
        digest: Digest | None,
        error: ContentAppError,
        *,
        is_aside: bool,
    ) -> Refusal:
        """Note one source's failure in the books; HeadRefused if it only does not do HEAD."""
        status = getattr(error, "status", 0)
        if request.method == "HEAD" and status in HEAD_REFUSED:
            raise HeadRefused(str(error)) from error
        await (self.failed_aside(source, error) if is_aside else self.failed(source, error))
        if digest is not None and status in {404, 410} and self._on_absent is not None:
            await self._on_absent(digest, source.remote)
        return refusal_of(source, error)

    async def _enter(
        self, opened: AbstractAsyncContextManager[UpstreamResponse], deadline: float | None
    ) -> UpstreamResponse:
        """The head of the answer. The exchange keeps the deadline itself; this is for what can't."""
        try:
            async with asyncio.timeout_at(None if deadline is None else deadline + SLACK_SECONDS):
                return await opened.__aenter__()
        except TimeoutError:
            raise UpstreamTimeout("no answer before the deadline") from None

    async def _admit(self, source: Source, scopes: Sequence[Scope]) -> Admission | Refusal:
        """Why this source is not asked now, or the admission, with the trials that it has taken."""
        absent = await self._coordination.cooldown(_absent(source))
        now = self._clock()
        if absent is not None and absent.until > now:
            return Refusal(source.remote.name, "absent", "answered 404 a short time ago", status=404)
        admission = await self._coordination.admit(scopes)
        if admission.is_admitted:
            return admission
        kind = "failed"
        if admission.scope is not None and admission.scope.kind is ScopeKind.PATH and "denied" in admission.reason:
            kind = "denied"
        seconds = max(admission.retry_after_seconds, 1.0)
        reason = f"cooling down for {seconds:.0f} s: {admission.reason}"
        return Refusal(source.remote.name, kind, reason, retry_after_seconds=seconds, is_cooling=True)

    async def _left(self, sources: Sequence[Source], digest: Digest | None) -> int:
        """How many of the later sources could be asked now."""
        count = 0
        for source in sources:
            states = [await self._coordination.cooldown(scope) for scope in self._scopes(source, digest)]
            count += all(state is None or state.until <= self._clock() for state in states)
        return count

    def _scopes(self, source: Source, digest: Digest | None) -> list[Scope]:
        remote = source.remote
        scopes = [
            scope_of(ScopeKind.REMOTE, remote),
            scope_of(ScopeKind.HOST, remote, describe_origin(source.url)),
            scope_of(ScopeKind.PATH, remote, source.path),
            scope_of(ScopeKind.PATH, remote, source.url),
        ]
        if digest is not None:
            scopes.append(scope_of(ScopeKind.ARTIFACT, remote, str(digest)))
        return scopes

    def _gate(self, source: Source, admitted: set[str], trials: list[Scope]) -> HostGate:
        """Stops an exchange before a host (token server, CDN) that cools down for this remote.

        Adds those that it lets through, and the trials that this takes.
        """

        async def gate(host: str) -> None:
            if host in admitted:
                return  # by this exchange, or by the try of it before
            admission = await self._coordination.admit([scope_of(ScopeKind.HOST, source.remote, host)])
            if not admission.is_admitted:
                seconds = admission.retry_after_seconds
                raise HostCooling(
                    f"{host} is cooling down for {seconds:.0f} s: {admission.reason}",
                    host=host,
                    retry_after_seconds=seconds,
                )
            admitted.add(host)
            trials.extend(admission.trials)

        return gate

    async def _begun(self, fetched: Fetched, request: UpstreamRequest) -> None:
        """An answer's head clears what was held against its path; against its hosts only where no body follows."""
        source, status = fetched.source, fetched.response.status
        subjects = (source.path, source.url)
        cleared = [scope_of(ScopeKind.PATH, source.remote, subject) for subject in subjects]
        await self._coordination.record_success([*cleared, _absent(source)])
        if request.method == "HEAD" or status == 304:
            await self._revive(fetched)
        metrics.upstream_request(source.remote.name, "not_modified" if status == 304 else "ok")

    async def _revive(self, fetched: Fetched) -> None:
        """An answer without a body ends a host's cooldown, but not the count of bodies that broke."""
        for host in fetched.hosts:
            scope = scope_of(ScopeKind.HOST, fetched.source.remote, host)
            state = await self._coordination.cooldown(scope)
            if state is not None and state.level > 0:
                await self._coordination.record_success([scope])

    async def ended(self, fetched: Fetched) -> None:
        """The exchange has come to its proper end: all its hosts do what they should."""
        remote = fetched.source.remote
        await self._coordination.record_success([scope_of(ScopeKind.HOST, remote, host) for host in fetched.hosts])

    async def failed(self, source: Source, error: ContentAppError) -> None:
        """Count one failed exchange in the scope that is to blame (P3)."""
        remote, settings = source.remote, source.remote.settings
        metrics.upstream_request(remote.name, _result(error))
        if isinstance(error, HostCooling):
            return
        scope, rule = self._blame(source, error, settings)
        state = await self._coordination.record_failure(scope, rule, _reason(error))
        if state.until > self._clock() and scope.kind is not ScopeKind.ABSENT:
            metrics.cooldown_start(remote.name, str(scope.kind))

    async def failed_aside(self, source: Source, error: ContentAppError) -> None:
        """Count a failed exchange for something that devices don't want, against its URL alone."""
        metrics.upstream_request(source.remote.name, _result(error))
        scope = scope_of(ScopeKind.PATH, source.remote, source.url)
        await self._coordination.record_failure(scope, path_rule(source.remote.settings), _reason(error))

    def _blame(self, source: Source, error: ContentAppError, settings: RemoteSettings) -> tuple[Scope, CooldownRule]:
        remote = source.remote
        host = getattr(error, "host", "") or describe_origin(source.url)
        host_scope = scope_of(ScopeKind.HOST, remote, host)
        if isinstance(error, UpstreamStatusError):
            if error.credentials_refused:
                return scope_of(ScopeKind.REMOTE, remote), remote_rule(settings, threshold=1)
            if error.status == 429:
                after = error.retry_after_seconds
                return host_scope, fixed_rule(settings, RATE_LIMIT_SECONDS if after is None else after)
            if error.status in {404, 410}:
                return _absent(source), replace(path_rule(settings), trial_seconds=0.0)
            if error.status in {408, 502, 503, 504}:
                return host_scope, host_rule(settings)
            # A registry says 401, 403 or 5xx for a whole name; other answers are about this one thing.
            is_for_all = error.status in {401, 403} or error.status >= 500
            subject = source.path if is_for_all else source.url
            return scope_of(ScopeKind.PATH, remote, subject), path_rule(settings)
        if isinstance(error, ConnectError | UpstreamTimeout | TransferInterrupted):
            return host_scope, host_rule(settings)
        return scope_of(ScopeKind.PATH, remote, source.url), path_rule(settings)

    async def wrong_bytes(self, source: Source, digest: Digest, reason: str) -> None:
        """The pair's bytes did not match; three such pairs within the cooldown cool the remote."""
        remote, settings = source.remote, source.remote.settings
        metrics.digest_failure(remote.name)
        pair = scope_of(ScopeKind.ARTIFACT, remote, str(digest))
        found = await self._coordination.record_failure(pair, digest_rule(settings), reason)
        metrics.cooldown_start(remote.name, str(ScopeKind.ARTIFACT))
        if found.failures == 1:
            # Only a new pair counts against the remote: the same artifact three times is one bad file.
            whole = scope_of(ScopeKind.REMOTE, remote)
            state = await self._coordination.record_failure(
                whole, remote_rule(settings, threshold=3), "digest mismatch of three artifacts"
            )
            if state.until > self._clock():
                metrics.cooldown_start(remote.name, str(ScopeKind.REMOTE))

    async def right_bytes(self, fetched: Fetched, digest: Digest | None) -> None:
        """The pair's bytes matched (undigested: came whole).

        It ends a remote's cooldown, but does not clear the count before one: three wrong pairs need not be in a row.
        """
        remote = fetched.source.remote
        await self.ended(fetched)
        whole = scope_of(ScopeKind.REMOTE, remote)
        cleared = [] if digest is None else [scope_of(ScopeKind.ARTIFACT, remote, str(digest))]
        state = await self._coordination.cooldown(whole)
        if state is not None and state.level > 0:
            cleared.append(whole)
        await self._coordination.record_success(cleared)


def _absent(source: Source) -> Scope:
    """What a 404 is remembered by: the exact thing asked for, not the repository."""
    return scope_of(ScopeKind.ABSENT, source.remote, source.url)


def _share(deadline: float | None, parts: int) -> float | None:
    """When this source's turn ends: the time that is left, shared evenly with those that come after it."""
    if deadline is None:
        return None
    now = asyncio.get_running_loop().time()
    return now + max(0.0, deadline - now) / parts


def _reason(error: ContentAppError) -> str:
    if isinstance(error, UpstreamStatusError) and error.status in {401, 403}:
        return f"denied ({error.status})"
    return str(error)


def _result(error: ContentAppError) -> str:
    """What the metric calls it; a secret that can't be read is a refusal of our own."""
    return upstream_result(error) if isinstance(error, UpstreamError) else "refused"
