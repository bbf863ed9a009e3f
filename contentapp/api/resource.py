"""What all REST resources share: Pulp's page, Pulp's errors, and JSON bodies within bounds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiohttp import web

API_ROOT = "/pulp/api/v3/"
MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_BODY = 1 << 20
GENERAL = "non_field_errors"
PAGING = ("offset", "limit")
NAMESPACE = uuid.UUID("5b1f6c2e-3f0e-4d0a-9d5b-6c1d0f5a7e21")

Item = TypeVar("Item")


class InvalidField(web.HTTPBadRequest):
    """Pulp's validation error: ``{"field": ["message"]}``."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(text=json.dumps({name: [message]}), content_type="application/json")


class InvalidFields(web.HTTPBadRequest):
    """Several of them at once."""

    def __init__(self, messages: Mapping[str, Sequence[str]]) -> None:
        super().__init__(text=json.dumps(messages), content_type="application/json")


def detail(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Pulp's other error: ``{"detail": "…"}``."""
    return web.json_response({"detail": text}, status=status, headers=headers)


def page(
    request: web.Request, items: Sequence[Item], show: Callable[[Item], dict[str, Any]], filters: Collection[str] = ()
) -> web.Response:
    """One page of a list, as Pulp pages: ``count``, ``next``, ``previous``, ``results``; ``offset`` and ``limit``.

    items: all that match. filters: the names of further query parameters that have been heeded; others are refused.
    """
    for name in request.query:
        if name not in filters and name not in PAGING:
            raise InvalidField(name[:50], "no such filter")
    offset, limit = _number(request, "offset", 0), min(_number(request, "limit", DEFAULT_PAGE), MAX_PAGE)
    if limit == 0:
        raise InvalidField("limit", "must be at least 1")

    def link(start: int) -> str:
        return str(request.rel_url.update_query(offset=str(start), limit=str(limit)))

    return web.json_response(
        {
            "count": len(items),
            "next": link(offset + limit) if offset + limit < len(items) else None,
            "previous": link(max(0, offset - limit)) if offset else None,
            "results": [show(item) for item in items[offset : offset + limit]],
        }
    )


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise InvalidField(name, f"{text[:50]!r} is not a whole number")
    return int(text)


async def body_of(request: web.Request, fields: Mapping[str, type], *, max_size: int = MAX_BODY) -> dict[str, Any]:
    """The request's JSON object, {} for an empty body. An unknown field, or one of another type, is refused."""
    body = parse_object(await _read(request, max_size))
    for name, value in body.items():
        if name not in fields:
            raise InvalidField(name[:50], "no such field")
        if not isinstance(value, fields[name]):
            raise InvalidField(name, f"must be {TYPES[fields[name]]}")
    return body


TYPES: Mapping[type, str] = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a body, {} for an empty one."""
    try:
        body = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError):
        raise InvalidField(GENERAL, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidField(GENERAL, "the body is not a JSON object")
    return body


async def _read(request: web.Request, max_size: int) -> bytes:
    """The body, of which no more than `max_size` and one read are ever held."""
    content = bytearray()
    if (request.content_length or 0) <= max_size:
        async for chunk in request.content.iter_any():
            content += chunk
            if len(content) > max_size:
                break
        else:
            return bytes(content)
    raise web.HTTPRequestEntityTooLarge(
        max_size, request.content_length or len(content), text=json.dumps({"detail": f"The limit is {max_size} bytes."})
    )


def identity(noun: str, key: str) -> str:
    """The id of a thing that has none but a key that no URL should hold: the same on each host and after a restart."""
    return str(uuid.uuid5(NAMESPACE, f"{noun}:{key}"))


def href(noun: str, id: str) -> str:  # noqa: A002 - Pulp's word
    """The address of one resource."""
    return f"{API_ROOT}{noun}/{id}/"


def timestamp(at: datetime | float | None) -> str | None:
    """A time as Pulp writes it; a number is seconds of time.time()."""
    if at is None:
        return None
    moment = datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else at
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def not_found() -> web.Response:
    """In Pulp's words."""
    return detail(404, "Not found.")
