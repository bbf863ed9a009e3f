"""The three that are compared, each configured as its own manual advises for this work."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from benchmarks.contender import Contender
from benchmarks.nginx import make_nginx
from benchmarks.process import BenchmarkError, Process, find_program, free_port


class Proxy(Contender):
    """contentapp, from the environment that runs the benchmark."""

    name = "contentapp"
    ready_path = "/readyz"
    prefix = "/v2/origin"

    def prepare(self) -> Process:
        program = Path(sys.executable).with_name("contentapp")
        if not program.exists():
            raise BenchmarkError(f"{program} does not exist; run make env")
        configuration = self.folder / "contentapp.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration()))
        command = [str(program), "serve", "--config", str(configuration)]
        return Process(self.name, command, self.folder / "output.log")

    def _configuration(self) -> dict[str, object]:
        content: dict[str, object] = {"listen": f"127.0.0.1:{self.port}", "workers": self.setting.workers}
        if self.setting.tls:
            content["tls"] = {"certificate": str(self.setting.tls.certificate), "key": str(self.setting.tls.key)}
        remote = {"name": "origin", "type": "container", "url": self.setting.upstream, "policy": "on_demand"}
        return {
            "data_dir": str(self.folder / "data"),
            "content": content,
            "admin": {"listen": f"127.0.0.1:{free_port()}"},
            "remotes": [remote],
            "distributions": [{"base_path": "origin", "type": "container", "remotes": ["origin"]}],
        }


class NginxCache(Contender):
    """nginx's proxy_cache; waiters for a cold file wait for its end, however long it takes."""

    name = "nginx"
    ready_path = "/readyz"

    def prepare(self) -> Process:
        return make_nginx(self.name, self.folder, self._http(), self.setting.workers)

    def _http(self) -> str:
        tls = self.setting.tls
        certificate = f"ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};" if tls else ""
        return f"""
    access_log {self.folder}/access.log;
    proxy_cache_path {self.folder}/cache levels=1:2 keys_zone=bench:16m max_size=64g inactive=1d use_temp_path=off;
    upstream origin {{ server {self.setting.upstream.removeprefix("http://")}; keepalive 32; }}
    server {{
        listen 127.0.0.1:{self.port} {"ssl" if tls else ""} reuseport;
        {certificate}
        location = /readyz {{ return 200; }}
        location /v2/ {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffer_size 64k;
            proxy_buffers 16 64k;
            proxy_cache bench;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_age 1h;
            proxy_cache_lock_timeout 1h;
        }}
    }}"""


class DockerRegistry(Contender):
    """Debian's docker-registry as a pull-through cache."""

    name = "docker-registry"
    ready_path = "/v2/"

    def prepare(self) -> Process:
        configuration = self.folder / "config.yml"
        configuration.write_text(yaml.safe_dump(self._configuration()))
        command = [find_program("docker-registry"), "serve", str(configuration)]
        return Process(self.name, command, self.folder / "output.log")

    def _configuration(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": f"127.0.0.1:{self.port}", "secret": "benchmark"}
        if self.setting.tls:
            http["tls"] = {"certificate": str(self.setting.tls.certificate), "key": str(self.setting.tls.key)}
        return {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "cache": {"blobdescriptor": "inmemory"},
            },
            "http": http,
            "proxy": {"remoteurl": self.setting.upstream},
        }


CONTENDERS: tuple[type[Contender], ...] = (Proxy, NginxCache, DockerRegistry)
