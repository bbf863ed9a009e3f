"""What ``serve`` prints: usable as it is."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from pathlib import Path

import pytest

from contentapp.cli.announce import announcement
from contentapp.config import load_config
from tests.remotes.authority import Authority


def announced(tmp_path: Path, text: str) -> str:
    file = tmp_path / "contentapp.yaml"
    file.write_text(text)
    return announcement(load_config(file, {}))


def snippet(text: str, begin: str, end: str) -> str:
    """The lines between two that begin so."""
    lines = [line.strip() for line in text.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith(begin)) + 1
    rest = lines[first:]
    return "\n".join(rest[: next((number for number, line in enumerate(rest) if line.startswith(end)), len(rest))])


EMBEDDED = announcement(load_config(None, {}))


def test_it_says_where_it_listens() -> None:
    name = socket.gethostname()
    assert EMBEDDED.startswith(
        f"contentapp serves content at http://{name}:8080, the admin API at http://127.0.0.1:8081"
    )


def test_the_snippet_for_podman_is_valid() -> None:
    parsed = tomllib.loads(snippet(EMBEDDED, "podman     /etc", "containerd"))
    name = socket.gethostname()
    assert [registry["prefix"] for registry in parsed["registry"]] == [
        "docker.io",
        "quay.io",
        "ghcr.io",
        "registry.k8s.io",
        "mcr.microsoft.com",
    ]
    for registry in parsed["registry"]:
        mirror = {"location": f"{name}:8080/{registry['prefix']}", "insecure": True}
        assert registry["mirror"] == [mirror]


def test_the_snippet_for_containerd_is_valid() -> None:
    parsed = tomllib.loads(snippet(EMBEDDED, "containerd", "Docker"))
    assert parsed == {"host": {f"http://{socket.gethostname()}:8080": {"capabilities": ["pull", "resolve"]}}}


def test_the_snippet_for_docker_is_valid() -> None:
    name = socket.gethostname()
    parsed = json.loads(snippet(EMBEDDED, "Docker", "\0"))
    assert parsed == {"registry-mirrors": [f"http://{name}:8080"], "insecure-registries": [f"{name}:8080"]}


def test_it_is_short() -> None:
    assert EMBEDDED.count("\n") <= 30


def test_files_and_real_addresses(tmp_path: Path) -> None:
    text = announced(
        tmp_path,
        """
        content: {listen: "192.0.2.1:9000"}
        admin: {listen: "[::]:9001"}
        remotes: [{name: a, type: file, url: "https://h/"}]
        distributions: [{base_path: team/firmware, type: file, remotes: [a]}]
        """,
    )
    assert text.splitlines() == [
        "contentapp serves content at http://192.0.2.1:9000, the admin API at http://[::1]:9001",
        "  files      curl -O http://192.0.2.1:9000/pulp/content/team/firmware/FILE",
    ]


def test_with_tls_nothing_is_insecure(tmp_path: Path, authority: Authority) -> None:
    file = authority.certificate
    text = announced(
        tmp_path,
        f"""
        content: {{listen: "192.0.2.1:9000", tls: {{certificate: {file}, key: {file}}}}}
        remotes: [{{name: a, type: container, url: "https://h"}}]
        distributions:
          - {{base_path: h, type: container, remotes: [a], registry_hosts: [h], default_registry: true}}
        """,
    )
    assert "insecure" not in text
    assert "tls-verify" not in text
    assert 'location = "192.0.2.1:9000/h"' in text
    assert "https://192.0.2.1:9000" in text
    assert not re.search("http://192", text)


@pytest.mark.parametrize("resources", ["", "remotes: []"])
def test_without_distributions_there_is_nothing_to_point_at(tmp_path: Path, resources: str) -> None:
    assert announced(tmp_path, f'content: {{listen: "127.0.0.1:1"}}\n{resources}\n').count("\n") == 1
