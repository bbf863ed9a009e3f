"""What the origin and the contender have in common: an nginx in a folder of its own, without the system's files."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.process import Process, find_program

KEEPALIVE_REQUESTS = 100_000_000


def make_nginx(name: str, folder: Path, http: str, workers: int) -> Process:
    """An nginx that is not started yet. http: the directives inside `http { }`, its `server` blocks included."""
    for part in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / f"temp-{part}").mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(_configuration(folder, http, workers))
    command = [find_program("nginx"), "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
    return Process(name, command, folder / "output.log")


def _configuration(folder: Path, http: str, workers: int) -> str:
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
{user}
daemon off;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {folder}/temp-body;
    proxy_temp_path {folder}/temp-proxy;
    fastcgi_temp_path {folder}/temp-fastcgi;
    uwsgi_temp_path {folder}/temp-uwsgi;
    scgi_temp_path {folder}/temp-scgi;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    server_tokens off;
    keepalive_requests {KEEPALIVE_REQUESTS};
{http}
}}
"""
