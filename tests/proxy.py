"""The program under test as its users run it: ``contentapp serve --config FILE`` in processes of its own."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port
from tests.programs import START_SECONDS, Service

PROGRAM = Path(sys.executable).with_name("contentapp")
ADMIN = "admin"


class Metrics:
    """One scrape of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name whose labels include these; 0 if there is none."""
        wanted = labels.items()
        return sum(sample.value for sample in self.samples if sample.name == name and wanted <= sample.labels.items())


class Proxy:
    """A running proxy. `url` is where devices go, `admin_url` the REST API; neither ends in a slash."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = complete_config(folder, config)
        self.config_file = folder / "contentapp.yaml"
        self.data_dir = Path(self.config["data_dir"])
        self.port = int(self.config["content"]["listen"].rpartition(":")[2])
        is_tls = bool(self.config["content"].get("tls"))
        self.url = f"{'https' if is_tls else 'http'}://127.0.0.1:{self.port}"
        self.admin_url = f"http://{self.config['admin']['listen']}"
        self.service = Service(
            [PROGRAM, "serve", "--config", self.config_file], log=folder / "proxy.log", env=clean_environment()
        )

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, as it stands in an image's name."""
        return f"127.0.0.1:{self.port}"

    @property
    def admin_headers(self) -> dict[str, str]:
        """The admin's login, made at the first start, as headers of a request."""
        password = (self.data_dir / "admin-password").read_text().strip()
        return {"Authorization": aiohttp.encode_basic_auth(ADMIN, password)}

    def output(self) -> str:
        """What it has logged so far."""
        return self.service.output()

    async def start(self, *, wait_ready: bool = True) -> None:
        """Start it (again) with the configuration of now."""
        self.config_file.write_text(yaml.safe_dump(self.config, sort_keys=False))
        await self.service.start()
        if wait_ready:
            await self.ready()

    async def ready(self, *, timeout: float = START_SECONDS) -> None:
        """Return when ``/readyz`` of both listeners answers 200."""
        await self.service.ready(self._is_ready, timeout=timeout)

    async def stop(self, *, timeout: float = 45.0) -> int:
        """SIGTERM, and wait for its end; the exit status."""
        return await self.service.stop(timeout=timeout)

    async def kill(self) -> None:
        """SIGKILL to all its processes at once, as a power cut would."""
        await self.service.kill()

    async def restart(self) -> None:
        """Stop and start it with the same data and ports."""
        await self.stop()
        await self.start()

    async def metrics(self) -> Metrics:
        """The metrics of now."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin_url}/metrics") as answer:
            answer.raise_for_status()
            return Metrics(await answer.text())

    async def admin(self, path: str, *, method: str = "GET", json: Any = None) -> Any:
        """A call of the REST API as the admin, e.g. ``admin("/pulp/api/v3/status/")``; the decoded answer."""
        async with (
            aiohttp.ClientSession(headers=self.admin_headers, raise_for_status=True) as session,
            session.request(method, self.admin_url + path, json=json) as answer,
        ):
            return await answer.json() if answer.content_type.endswith("json") else await answer.text()

    def artifacts(self) -> list[Path]:
        """The files under ``artifacts/`` of now."""
        return sorted(path for path in (self.data_dir / "artifacts").rglob("*") if path.is_file())

    async def _is_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{self.url}/readyz", ssl=untrusting_context()) as content,
                session.get(f"{self.admin_url}/readyz") as admin,
            ):
                return content.status == admin.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


async def start_proxy(folder: Path, config: dict[str, Any], *, wait_ready: bool = True) -> Proxy:
    """Start a proxy with its files in `folder`; the caller ends it with `stop` or `kill`.

    Its log is part of a failing test's report.

    config: as in contentapp.yaml. data_dir, content.listen and admin.listen are filled in where they are missing.
    """
    proxy = Proxy(folder, config)
    try:
        await proxy.start(wait_ready=wait_ready)
    except BaseException:
        if proxy.service.is_running:
            await proxy.kill()
        raise
    return proxy


@asynccontextmanager
async def running_proxy(folder: Path, config: dict[str, Any]) -> AsyncIterator[Proxy]:
    """A ready proxy that is stopped at the end."""
    proxy = await start_proxy(folder, config)
    try:
        yield proxy
    finally:
        if proxy.service.is_running:
            await proxy.stop()


def complete_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with data_dir and free loopback ports where it says nothing."""
    return {
        "data_dir": str(folder / "data"),
        **config,
        "content": {"listen": f"127.0.0.1:{free_port()}", **config.get("content", {})},
        "admin": {"listen": f"127.0.0.1:{free_port()}", **config.get("admin", {})},
    }


def clean_environment() -> dict[str, str | None]:
    """None of the tester's own settings reach the proxy, which must not go through an HTTP proxy either."""
    own = {name: None for name in os.environ if name.startswith("CONTENTAPP_")}
    return {**own, "NO_PROXY": "*", "no_proxy": "*"}


def untrusting_context() -> ssl.SSLContext:
    """TLS without a look at the certificate: readiness is not about trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def pull_through(
    kind: str,
    base_path: str,
    urls: Mapping[str, str],
    *,
    remote: Mapping[str, Any] | None = None,
    distribution: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of one pull-through distribution ("container" or "file") over remotes {name: url}, in order.

    remote, distribution: more settings for each of the remotes, and for the distribution. Retries are short.
    """
    quick = {"policy": "on_demand", "max_retries": 1, "retry_backoff_seconds": 0.05, **(remote or {})}
    return {
        "remotes": [{"name": name, "type": kind, "url": url, **quick} for name, url in urls.items()],
        "distributions": [{"base_path": base_path, "type": kind, "remotes": list(urls), **(distribution or {})}],
    }
