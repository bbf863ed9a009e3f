"""Expect: what is held against a body: the answer's head, the size while it comes, the whole (P1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from contentapp.core.errors import UpstreamProtocolError
from contentapp.pipeline.fetch import Fetched
from contentapp.pipeline.load import Load
from contentapp.pipeline.note import MarkedHasher
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.wrong import WrongBytes, WrongSize

if TYPE_CHECKING:
    from contentapp.pipeline.flight import Plan


def check_answer(plan: Plan, fetched: Fetched) -> None:
    """What is wrong with an answer before its first byte."""
    response = fetched.response
    if response.status != 200 or response.offset != 0:
        raise UpstreamProtocolError(f"answered {response.status} where the whole was asked for", host=response.host)
    is_html_allowed = plan.is_html_allowed or fetched.source.remote.settings.allow_html
    if not is_html_allowed and response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise UpstreamProtocolError("answered an HTML page", host=response.host)
    if plan.size is not None and response.size is not None and response.size != plan.size:
        raise WrongSize(f"size mismatch: {response.size} bytes instead of {plan.size}")


def check_whole(plan: Plan, attempt: Attempt, hasher: MarkedHasher) -> None:
    if attempt.size is not None and attempt.arrived != attempt.size:
        raise WrongSize(f"size mismatch: {attempt.arrived} bytes instead of {attempt.size}")
    if plan.digest is not None and not plan.digest.matches(hasher.running):
        raise WrongBytes(f"digest mismatch on {plan.digest}")


async def bounded(load: Load) -> AsyncIterator[bytes]:
    """The body's chunks, cut off as wrong when they exceed the expected size."""
    attempt, transfer = load.attempt, load.transfer
    async for chunk in load.chunks():
        remote = transfer.source.remote
        attempt.remote, attempt.keep = remote.name, attempt.keep and remote.keeps
        if attempt.size is not None and transfer.offset > attempt.size:
            raise WrongSize(f"size mismatch: more than {attempt.size} bytes")
        yield chunk
