"""Real servers: docker-registry as an origin, nginx in front of the proxy or of a remote."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.ports import free_port
from tests.programs import Service, accepts_connections, require_program
from tests.remotes.images import Image, Index
from tests.remotes.push import push_http

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_set_header Host $http_host;
            {settings}
        }}
    }}
}}
"""


class DockerRegistry:
    """Debian's docker-registry with its storage in `folder`; it keeps its port and content over restarts."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        config = folder / "registry.yml"
        config.write_text(yaml.safe_dump(registry_config(folder / "storage", self.address)))
        program = require_program("docker-registry")
        self.service = Service([program, "serve", config], log=folder / "registry.log")

    async def start(self) -> None:
        """Start it (again), and wait until it listens."""
        await self.service.start()
        await self.service.ready(lambda: accepts_connections(self.port))

    async def stop(self) -> None:
        """Stop it; its port refuses connections."""
        await self.service.stop()

    async def push(self, name: str, tag: str, image: Image | Index) -> None:
        """Push over HTTP."""
        await push_http(self.url, name, tag, image)

    def log(self) -> str:
        """Its output, with an access log line a request."""
        return self.service.output()


def registry_config(storage: Path, address: str) -> dict[str, object]:
    """The configuration of a registry on a folder, without authentication."""
    return {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": address, "secret": "not one"},
    }


class Nginx:
    """nginx with ``proxy_pass`` to one upstream; `settings` are more directives for its location."""

    def __init__(self, folder: Path, upstream: str, *, settings: str = "") -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=self.port, upstream=upstream, settings=settings))
        program = require_program("nginx")
        self.service = Service([program, "-p", folder, "-c", config, "-e", "stderr"], log=folder / "nginx.log")

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        await self.service.start()
        await self.service.ready(lambda: accepts_connections(self.port))

    async def stop(self) -> None:
        """Stop it."""
        await self.service.stop()
