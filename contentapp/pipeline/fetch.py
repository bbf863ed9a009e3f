"""Fetch: ask the sources of one artifact in their order until one answers (P2 before the first byte, P3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
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
HEAD_REFUSED = frozenset({400, 405, 501})
DEFAULT_RETRY_AFTER_SECONDS = 5.0


class HeadRefused(ContentAppError):
    """The source does not do HEAD: ask by GET."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one source did not deliver. kind: absent | denied | failed."""

    remote: str
    kind: str
    reason: str
    phrase: str = "connection refused"
    retry_after_seconds: float = DEFAULT_RETRY_AFTER_SECONDS


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
    """An open answer and the source it came from."""

    source: Source
    response: UpstreamResponse


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
        return Refusal(source.remote.name, "absent", "answered 404")
    if isinstance(error, UpstreamStatusError) and error.status in {401, 403}:
        return Refusal(source.remote.name, "denied", str(error))
    after = getattr(error, "retry_after_seconds", None) or DEFAULT_RETRY_AFTER_SECONDS
    return Refusal(source.remote.name, "failed", str(error), phrase, after)


class Fetcher:
    """Opens one of several sources; keeps the book of cooldowns."""

    def __init__(self, upstream: Upstream, coordination: Coordination, clock: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._coordination = coordination
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
    ) -> AsyncIterator[Fetched]:
        """The first source's answer.

        request: makes the exchange for a source. deadline: loop.time() for the answer's head, all sources together.
        refusals: collects why others were passed over. Raises ContentNotFound, ContentDenied or ContentUnavailable when
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
            left = await self._left(sources[index + 1 :], digest)
            prepared = replace(request(source), gate=self._gate(source.remote), is_last=left == 0)
            opened = self._upstream.open(replace(prepared, deadline=_share(deadline, left + 1)))
            try:
                response = await self._enter(opened, deadline, left)
            except ContentAppError as error:
                if prepared.method == "HEAD" and getattr(error, "status", 0) in HEAD_REFUSED:
                    await self._coordination.end_trials(admission.trials)
                    raise HeadRefused(str(error)) from error
                noted.add(refusal_of(source, error))
                await self.failed(source, error)
                await self._coordination.end_trials(admission.trials)
                metrics.failover(source.remote.name)
                continue
            except BaseException:
                await asyncio.shield(self._coordination.end_trials(admission.trials))
                raise
            try:
                await self._succeeded(source, response)
                yield Fetched(source, response)
            finally:
                await opened.__aexit__(None, None, None)
                # A trial that came to a verdict is over already; one that did not is given back.
                await asyncio.shield(self._coordination.end_trials(admission.trials))
            return
        raise noted.error(must_exist=must_exist)

    async def _enter(self, opened: object, deadline: float | None, left: int) -> UpstreamResponse:
        """The head of the answer, within this source's share of the time that is left."""
        try:
            async with asyncio.timeout_at(_share(deadline, left + 1)):
                response: UpstreamResponse = await opened.__aenter__()  # type: ignore[attr-defined]
                return response
        except TimeoutError:
            raise UpstreamTimeout("no answer before the deadline") from None

    async def _admit(self, source: Source, scopes: Sequence[Scope]) -> Admission | Refusal:
        """Why this source is not asked now, or the admission, with the trials that it has taken."""
        absent = await self._coordination.cooldown(_absent(source))
        now = self._clock()
        if absent is not None and absent.until > now:
            return Refusal(source.remote.name, "absent", "answered 404 a short time ago")
        admission = await self._coordination.admit(scopes)
        if admission.is_admitted:
            return admission
        kind = "failed"
        if admission.scope is not None and admission.scope.kind is ScopeKind.PATH and "denied" in admission.reason:
            kind = "denied"
        seconds = max(admission.retry_after_seconds, 1.0)
        reason = f"cooling down for {seconds:.0f} s: {admission.reason}"
        return Refusal(source.remote.name, kind, reason, retry_after_seconds=seconds)

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
        ]
        if digest is not None:
            scopes.append(scope_of(ScopeKind.ARTIFACT, remote, str(digest)))
        return scopes

    def _gate(self, remote: Remote) -> HostGate:
        """Stops an exchange before a host (token server, CDN) that cools down for this remote."""
        own = describe_origin(remote.url)

        async def gate(host: str) -> None:
            if host == own:
                return  # admitted before
            admission = await self._coordination.admit([scope_of(ScopeKind.HOST, remote, host)])
            if not admission.is_admitted:
                seconds = admission.retry_after_seconds
                raise HostCooling(
                    f"{host} is cooling down for {seconds:.0f} s: {admission.reason}",
                    host=host,
                    retry_after_seconds=seconds,
                )

        return gate

    async def _succeeded(self, source: Source, response: UpstreamResponse) -> None:
        """An answer's head clears host and path; artifact and remote wait until its bytes are known to be right."""
        hosts = {describe_origin(source.url), response.host}
        scopes = [scope_of(ScopeKind.HOST, source.remote, host) for host in hosts]
        scopes += [scope_of(ScopeKind.PATH, source.remote, source.path), _absent(source)]
        await self._coordination.record_success(scopes)
        metrics.upstream_request(source.remote.name, "not_modified" if response.status == 304 else "ok")

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

    def _blame(self, source: Source, error: ContentAppError, settings: RemoteSettings) -> tuple[Scope, CooldownRule]:
        remote = source.remote
        host = getattr(error, "host", "") or describe_origin(source.url)
        host_scope = scope_of(ScopeKind.HOST, remote, host)
        if isinstance(error, UpstreamStatusError):
            if error.credentials_refused:
                return scope_of(ScopeKind.REMOTE, remote), remote_rule(settings, threshold=1)
            if error.status == 429:
                return host_scope, fixed_rule(settings, error.retry_after_seconds or RATE_LIMIT_SECONDS)
            if error.status in {404, 410}:
                return _absent(source), replace(path_rule(settings), trial_seconds=0.0)
            if error.status in {408, 502, 503, 504}:
                return host_scope, host_rule(settings)
            return scope_of(ScopeKind.PATH, remote, source.path), path_rule(settings)
        if isinstance(error, ConnectError | UpstreamTimeout | TransferInterrupted):
            return host_scope, host_rule(settings)
        return scope_of(ScopeKind.PATH, remote, source.path), path_rule(settings)

    async def wrong_bytes(self, source: Source, digest: Digest, reason: str) -> None:
        """The pair's bytes did not match; three such pairs within the cooldown cool the remote."""
        remote, settings = source.remote, source.remote.settings
        metrics.digest_failure(remote.name)
        pair = scope_of(ScopeKind.ARTIFACT, remote, str(digest))
        before = await self._coordination.cooldown(pair)
        await self._coordination.record_failure(pair, digest_rule(settings), reason)
        metrics.cooldown_start(remote.name, str(ScopeKind.ARTIFACT))
        if before is None or before.level == 0:
            # Only a new pair counts against the remote: the same artifact three times is one bad file.
            whole = scope_of(ScopeKind.REMOTE, remote)
            state = await self._coordination.record_failure(
                whole, remote_rule(settings, threshold=3), "digest mismatch of three artifacts"
            )
            if state.until > self._clock():
                metrics.cooldown_start(remote.name, str(ScopeKind.REMOTE))

    async def right_bytes(self, source: Source, digest: Digest | None) -> None:
        """The pair's bytes matched (undigested: came whole). It ends a remote's cooldown, but not the count before
        one.
        """
        whole = scope_of(ScopeKind.REMOTE, source.remote)
        cleared = [] if digest is None else [scope_of(ScopeKind.ARTIFACT, source.remote, str(digest))]
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
