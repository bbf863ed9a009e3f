"""What happens to every request of the admin listener: login, Pulp's errors, safe headers, one line in the log."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from contentapp.api.login import Login, Verdict
from contentapp.api.resource import API_ROOT, detail
from contentapp.core.errors import CatalogUnavailable, ContentAppError, MetadataInvalid, StorageError
from contentapp.logs import log_request
from contentapp.metrics import Outcome
from contentapp.tasks.base import TooManyTasks

log = structlog.get_logger("contentapp.admin")

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
PUBLIC = PROBES | {f"{API_ROOT}status/", f"{API_ROOT}docs/api.json"}
"""What is answered without a login, as in Pulp."""

WRITES = frozenset({"POST", "PUT", "PATCH"})
CHALLENGE = 'Basic realm="contentapp", charset="UTF-8"'
JSON = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, errors too: nothing here is for caches, nor to be guessed at."""
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "contentapp"


def access_log() -> Middleware:
    """One line a request, but for probes, which come every few seconds."""
    count = itertools.count(1)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        started = loop.time()
        request_id = f"{os.getpid():x}-admin-{next(count)}"
        response = await handler(request)
        response.headers["X-Request-ID"] = request_id
        if request.path not in PROBES:
            log_request(
                request_id=request_id,
                device=request.remote or "",
                method=request.method,
                path=request.rel_url.raw_path,
                status=response.status,
                size=max(0, getattr(response, "content_length", None) or 0),
                seconds=loop.time() - started,
                outcome=Outcome.NONE,
                distribution="",
            )
        return response

    return middleware


@web.middleware
async def show_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as JSON in Pulp's shape."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _http_error(request, error)
    except ContentAppError as error:
        return _error(error)
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("request failed", path=request.path)
        return detail(500, "Internal error; the log tells more.")


def require_login(login: Login) -> Middleware:
    """Nobody but the admin, whatever the path, known or not; and no write that another site's page could cause."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in PUBLIC:
            verdict = await login.check(request.remote or "", request.headers.get("Authorization"))
            if verdict is Verdict.BUSY:
                return detail(429, "Too many wrong logins at a time.", {"Retry-After": "5"})
            if verdict is Verdict.REFUSED:
                return _refused(request)
        # A browser that knows the password sends it with every request that any page makes; but a page of another site
        # can't send JSON without asking first (CORS preflight), which nothing here allows.
        if request.method in WRITES and request.content_type != JSON:
            return detail(415, f"The content type of a write must be {JSON}.")
        return await handler(request)

    return middleware


NO_LOGIN = "Authentication credentials were not provided."


def _refused(request: web.Request) -> web.Response:
    text = NO_LOGIN
    if "Authorization" in request.headers:
        text = "Invalid username/password."
        log.warning("login refused", device=request.remote or "")
    return detail(401, text, {"WWW-Authenticate": CHALLENGE})


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == 404:
        return detail(404, "Not found.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ",".join(sorted(error.allowed_methods))
        return detail(405, f'Method "{request.method[:20]}" not allowed.', {"Allow": allowed})
    if error.text is not None and error.text.startswith("{"):
        return web.Response(status=error.status, text=error.text, content_type=JSON)
    return detail(error.status, error.reason)


def _error(error: ContentAppError) -> web.Response:
    if isinstance(error, MetadataInvalid):
        return web.json_response({"non_field_errors": [str(error)]}, status=400)
    if isinstance(error, CatalogUnavailable | StorageError | TooManyTasks):
        return detail(503, str(error), {"Retry-After": "5"})
    return detail(500, str(error))
