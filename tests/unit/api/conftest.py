"""The admin application over real services, in this process, and a client that has logged in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from yarl import URL

from contentapp.api.application import application
from contentapp.api.login import Login
from contentapp.config import load_config
from contentapp.core.cooldown import CooldownRule, Scope, ScopeKind
from contentapp.services import AdminServices, open_admin

PASSWORD = "correct horse"
ROOT = "/pulp/api/v3/"


@dataclass
class Admin:
    """The application. `login` is sent with `call`."""

    services: AdminServices
    session: aiohttp.ClientSession
    server: TestServer

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, Any]:
        """Status, headers and decoded answer of one request, as it is."""
        url = URL(f"{self.server.make_url('')}{path}", encoded=True)
        async with self.session.request(method, url, **options) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, answer.headers, await (answer.json() if is_json else answer.text())

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer of a request below the API's root, made by the admin."""
        headers = {"Authorization": aiohttp.encode_basic_auth("admin", PASSWORD)}
        path = path if path.startswith("/") else ROOT + path
        status, _, answer = await self.ask(method, path, json=body, headers=headers)
        return status, answer

    async def cool(self, kind: ScopeKind, subject: str = "", *, remote: str = "quay", remote_id: int = 1) -> Scope:
        """Make something cool down."""
        scope = Scope(kind, remote_id, remote, subject)
        await self.services.shared.coordination.record_failure(scope, CooldownRule(), f"{kind} failed")
        return scope

    async def ended(self, href: str) -> Any:
        """The task once it has ended."""
        async with asyncio.timeout(10):
            while True:
                _, task = await self.call("GET", href)
                if task["finished_at"]:
                    return task
                await asyncio.sleep(0.005)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    file = tmp_path / "contentapp.yaml"
    file.write_text("data_dir: data\ncache: {max_size: 1MiB}\n")
    config = load_config(file, {})
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(open_admin(config))
        shared = services.shared
        app = application(
            config=config,
            login=Login(PASSWORD, first_delay_seconds=0.001, last_delay_seconds=0.002),
            storage=shared.storage,
            coordination=shared.coordination,
            catalog=shared.admin,
            content=shared.catalog,
            upkeep=shared.upkeep,
            tasks=services.tasks,
            readiness=services.readiness,
        )
        runner = asyncio.create_task(services.runner.run())
        stack.push_async_callback(lambda: asyncio.gather(runner, return_exceptions=True))
        stack.callback(runner.cancel)
        server = TestServer(app)
        await server.start_server()
        stack.push_async_callback(server.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Admin(services, session, server)
