"""What ``serve`` prints once it listens: how to point podman, containerd, Docker and downloads at it."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

from contentapp.config import Config, Listen

ANY = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
PUBLIC = ("docker.io", "quay.io", "ghcr.io", "registry.k8s.io", "mcr.microsoft.com")


def announcement(config: Config) -> str:
    """A short block of text, from the distributions of the configuration."""
    is_tls = config.content.tls is not None
    url = f"{'https' if is_tls else 'http'}://{reachable(config.content.listen)}"
    admin = f"http://{reachable(config.admin.listen, is_local=True)}"
    lines = [f"contentapp serves content at {url}, the admin API at {admin}", *_hints(config, url)]
    return "\n".join([*lines, ""])


def reachable(listen: Listen, *, is_local: bool = False) -> Listen:
    """An address that one can connect to: "any address" becomes this host's name, or loopback."""
    if listen.host not in ANY:
        return listen
    loopback = "::1" if listen.host == "::" else "127.0.0.1"
    return Listen(loopback if is_local else socket.gethostname() or loopback, listen.port)


def _hints(config: Config, url: str) -> Iterator[str]:
    containers = [item for item in config.distributions if item["type"] == "container"]
    files = [item for item in config.distributions if item["type"] == "file"]
    address = url.partition("//")[2]
    is_tls = url.startswith("https")
    if containers:
        yield from _containers(containers, url, address, is_tls=is_tls)
    for item in files[:5]:
        yield f"  files      curl -O {url}/pulp/content/{item['base_path']}/FILE"


def _containers(containers: list[Mapping[str, Any]], url: str, address: str, *, is_tls: bool) -> Iterator[str]:
    example = containers[0]
    flags = "" if is_tls else " --tls-verify=false"
    yield f"  try it     podman pull{flags} {address}/{example['base_path']}/{_image(example)}"
    mirrored = [(host, item["base_path"]) for item in containers for host in item.get("registry_hosts", ())[:1]]
    if mirrored:
        yield "  podman     /etc/containers/registries.conf.d/contentapp.conf:"
        for host, base_path in mirrored:
            yield f"               [[registry]]  # {host}"
            yield f'               prefix = "{host}"'
            yield f'               location = "{host}"'
            yield f'               mirror = [{{location = "{address}/{base_path}"{_insecure(is_tls=is_tls)}}}]'
        yield "  containerd /etc/containerd/certs.d/_default/hosts.toml (config_path = /etc/containerd/certs.d):"
        yield f'               [host."{url}"]'
        yield '               capabilities = ["pull", "resolve"]'
    default = next((item for item in containers if item.get("default_registry")), None)
    if default is not None:
        yield "  Docker     /etc/docker/daemon.json (for docker.io; other registries by name, as above):"
        insecure = "" if is_tls else f', "insecure-registries": ["{address}"]'
        yield f'               {{"registry-mirrors": ["{url}"]{insecure}}}'


def _image(distribution: Mapping[str, Any]) -> str:
    return "library/alpine" if distribution["base_path"] == "docker.io" else "NAME:TAG"


def _insecure(*, is_tls: bool) -> str:
    return "" if is_tls else ", insecure = true"
