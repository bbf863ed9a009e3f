"""The configuration: defaults, the file, the environment over it, and every problem with line, key, value and rule."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from contentapp.config import Config, ConfigError, Listen, load_config, load_resources
from contentapp.config.address import is_host, parse_host, parse_listen
from contentapp.config.document import parse_document
from contentapp.config.environment import variables
from contentapp.config.problem import Invalid, Report, shown
from contentapp.config.resource import ResourceReader
from contentapp.config.schema import GLOBAL
from contentapp.config.section import read_section
from contentapp.core.settings import (
    MIB,
    UNLIMITED,
    DistributionSettings,
    EngineSettings,
    RemoteSettings,
)

Load = Callable[..., Config]

CONTAINER = "{name: quay, type: container, url: 'https://quay.io', policy: on_demand}"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as ``c.yaml``, with an environment."""

    def load(text: str = "", environ: Mapping[str, str] = {}) -> Config:
        path = tmp_path / "c.yaml"
        path.write_text(dedent(text))
        return load_config(path, environ)

    return load


@pytest.fixture
def problems(load: Load, tmp_path: Path) -> Callable[..., str]:
    """The text of the ConfigError that loading ends in, without the folder."""

    def problems(text: str, environ: Mapping[str, str] = {}) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, environ)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return problems


def remote(fields: str, type_: str = "container", url: str = "https://quay.io") -> str:
    """A document of one remote with further fields, and a distribution that uses it."""
    return (
        f"remotes: [{{name: quay, type: {type_}, url: '{url}', policy: on_demand, {fields}}}]\n"
        f"distributions: [{{base_path: quay.io, type: {type_}, remotes: [quay]}}]\n"
    )


def distribution(fields: str) -> str:
    """A document of one remote of each type and a distribution with these fields."""
    return dedent(f"""\
        remotes:
          - {CONTAINER}
          - {{name: files, type: file, url: "https://example.com/f/", policy: on_demand}}
        distributions:
          - {{{fields}}}
        """)


class TestDefaults:
    def test_without_a_file(self) -> None:
        config = load_config(None, {})
        assert config.file is None
        assert config.data_dir == Path.cwd() / "data"
        assert config.content.listen == Listen("0.0.0.0", 8080)
        assert (config.content.workers, config.content.tls) == (1, None)
        assert str(config.admin.listen) == "127.0.0.1:8081"
        assert (config.cache.max_size, config.cache.high_watermark, config.cache.low_watermark) == (None, 0.9, 0.8)
        assert (config.log.format, config.log.level) == ("auto", "info")
        assert (config.storage.type, config.database.url, config.redis.url) == ("filesystem", "", "")
        assert config.remote_defaults == RemoteSettings()
        assert config.distribution_defaults == DistributionSettings()
        assert config.engine == EngineSettings()
        assert (config.warnings, config.origins) == ((), {})

    def test_embedded_registries(self) -> None:
        config = load_config(None, {})
        names = {"docker.io", "quay.io", "ghcr.io", "registry.k8s.io", "mcr.microsoft.com"}
        assert {d["base_path"] for d in config.distributions} == names
        assert {r["policy"] for r in config.remotes} == {"on_demand"}
        docker = next(d for d in config.distributions if d["name"] == "docker.io")
        assert docker["registry_hosts"] == ["docker.io", "registry-1.docker.io", "index.docker.io"]
        assert [d["name"] for d in config.distributions if d.get("default_registry")] == ["docker.io"]
        urls = {r["name"]: r["url"] for r in config.remotes}
        assert urls["docker.io"] == "https://registry-1.docker.io"

    def test_a_file_replaces_the_embedded_resources(self, load: Load) -> None:
        config = load("content: {workers: 2}\n")
        assert (config.remotes, config.distributions) == ((), ())

    def test_an_empty_file(self, load: Load, tmp_path: Path) -> None:
        config = load("")
        assert config.file == tmp_path / "c.yaml"
        assert config.data_dir == tmp_path / "data"

    def test_empty_sections_and_lists(self, load: Load) -> None:
        config = load("content:\ncache:\nremotes:\ndistributions: []\nrepositories: []\nprefetch:\n")
        assert config.content.workers == 1

    def test_the_import_is_short(self) -> None:
        heavy = "('pydantic', 'structlog', 'aiohttp', 'prometheus_client')"
        code = f"import sys, contentapp.config; sys.exit(any(name in sys.modules for name in {heavy}))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestValues:
    def test_everything_given(self, load: Load, tmp_path: Path) -> None:
        config = load(
            """\
            data_dir: ./d
            content: {listen: "[::1]:0", workers: 64, tls: {certificate: tls/a.pem, key: /b.pem}}
            admin: {listen: "localhost:9"}
            storage: {type: filesystem}
            database: {url: ""}
            redis: {url: ""}
            cache: {max_size: 10GB, high_watermark: 1, low_watermark: 0.5}
            log: {format: json, level: debug}
            sock_read_timeout: 1m
            total_timeout: null
            bandwidth_limit: 1 MiB/s
            tag_ttl_seconds: 2h
            tag_ttl_patterns: {latest: 60, "v*": 1d, 1.20: 5}
            verify_first_bytes: unlimited
            unavailable_status: 504
            window_size: 1 MiB
            verify_on_read: always
            """
        )
        assert config.data_dir == tmp_path / "d"
        assert config.content.listen == Listen("::1", 0)
        assert str(config.content.listen) == "[::1]:0"
        assert config.content.tls is not None
        assert (config.content.tls.certificate, config.content.tls.key) == (tmp_path / "tls/a.pem", Path("/b.pem"))
        assert config.cache.max_size == 10**10
        assert (config.log.format, config.log.level) == ("json", "debug")
        assert (config.remote_defaults.sock_read_timeout, config.remote_defaults.total_timeout) == (60, None)
        assert config.remote_defaults.bandwidth_limit == MIB
        assert config.distribution_defaults.tag_ttl_seconds == 7200
        assert list(config.distribution_defaults.tag_ttl_patterns.items()) == [
            ("latest", 60),
            ("v*", 86400),
            ("1.20", 5),
        ]
        assert config.distribution_defaults.verify_first_bytes == UNLIMITED
        assert config.distribution_defaults.unavailable_status == 504
        assert (config.engine.window_size, config.distribution_defaults.verify_on_read) == (MIB, "always")
        assert config.origins["content.listen"] == f"{tmp_path}/c.yaml:2"
        assert "admin.password" not in config.origins

    def test_the_config_is_frozen(self, load: Load) -> None:
        with pytest.raises(AttributeError):
            load("").log.level = "x"  # type: ignore[misc]

    def test_resources_hold_what_was_given(self, load: Load) -> None:
        config = load(
            """\
            remotes:
              - name: quay
                type: container
                url: https://quay.io
                username: robot
                password: {env: QUAY}
                auth_hosts: [Auth.Example.com]
                headers: [{X-A: "1"}, {X-A: "2"}]
                sock_read_timeout: 20s
                cooldown_seconds: 5m
                client_cert: ~
            distributions:
              - base_path: quay.io
                type: container
                remotes: [quay]
                registry_hosts: [QUAY.io, "h:5000"]
                tag_ttl_seconds: 5m
            """,
            {"QUAY": "x"},
        )
        assert config.remotes == (
            {
                "name": "quay",
                "type": "container",
                "url": "https://quay.io",
                "policy": "immediate",
                "username": "robot",
                "password": {"env": "QUAY"},
                "auth_hosts": ["auth.example.com"],
                "headers": [{"X-A": "1"}, {"X-A": "2"}],
                "sock_read_timeout": 20.0,
                "cooldown_seconds": 300.0,
            },
        )
        assert config.distributions == (
            {
                "name": "quay.io",
                "base_path": "quay.io",
                "type": "container",
                "remotes": ["quay"],
                "registry_hosts": ["quay.io", "h:5000"],
                "tag_ttl_seconds": 300.0,
            },
        )


class TestEnvironment:
    def test_it_wins_over_the_file(self, load: Load) -> None:
        environ = {
            "CONTENTAPP_CONTENT__LISTEN": "127.0.0.1:0",
            "CONTENTAPP_CONTENT__WORKERS": "3",
            "CONTENTAPP_CACHE__MAX_SIZE": "2 GiB",
            "CONTENTAPP_LOG__LEVEL": "warning",
            "CONTENTAPP_TLS_VALIDATION": "false",
            "CONTENTAPP_TAG_TTL_PATTERNS": "{latest: 1m}",
            "CONTENTAPP_TOTAL_TIMEOUT": "null",
            "HOME": "/",
        }
        config = load("content: {workers: 2}\nlog: {format: json}\ntotal_timeout: 5\n", environ)
        assert (str(config.content.listen), config.content.workers) == ("127.0.0.1:0", 3)
        assert config.cache.max_size == 2 << 30
        assert (config.log.format, config.log.level) == ("json", "warning")
        assert (config.remote_defaults.tls_validation, config.remote_defaults.total_timeout) == (False, None)
        assert config.distribution_defaults.tag_ttl_patterns == {"latest": 60}
        assert config.origins["content.workers"] == "environment CONTENTAPP_CONTENT__WORKERS"
        assert config.warnings == ()

    def test_paths_are_relative_to_the_working_folder(self, load: Load) -> None:
        assert load("data_dir: x\n", {"CONTENTAPP_DATA_DIR": "y"}).data_dir == Path.cwd() / "y"

    def test_an_empty_variable_is_none(self, load: Load) -> None:
        assert load("content: {workers: 2}", {"CONTENTAPP_CONTENT__WORKERS": ""}).content.workers == 2

    @pytest.mark.parametrize("name", sorted(variables()))
    def test_every_setting_has_a_variable(self, name: str, problems: Callable[..., str]) -> None:
        path, setting = variables()[name]
        if setting.kind.range == "path":
            return
        message = problems("", {name: "=?\x01"})
        assert f"environment {name}" in message
        assert ".".join(path) in message or "is not YAML" in message

    @pytest.mark.parametrize(
        ("environ", "parts"),
        [
            ({"CONTENTAPP_CONTENT__WORKERS": "many"}, ("content.workers", '"many"', "whole number 1 – 64")),
            ({"CONTENTAPP_CONTENT__WORKERS": "65"}, ("content.workers", "65")),
            ({"CONTENTAPP_DATABASE__URL": "postgresql://u:hunter2@h/d"}, ("database.url", "not available")),
            ({"CONTENTAPP_TAG_TTL_PATTERNS": "{a: 1, a: 2}"}, ("CONTENTAPP_TAG_TTL_PATTERNS", "twice")),
            ({"CONTENTAPP_LOG__LEVEL": "x" * 100_000}, ("CONTENTAPP_LOG__LEVEL", "longer than")),
        ],
    )
    def test_problems(self, environ: dict[str, str], parts: tuple[str, ...], problems: Callable[..., str]) -> None:
        message = problems("", environ)
        assert message.startswith("environment CONTENTAPP_")
        assert "hunter2" not in message
        for part in parts:
            assert part in message

    def test_unknown_variables_are_warnings(self, load: Load) -> None:
        config = load("", {"CONTENTAPP_CONTENT__WORKER": "1", "CONTENTAPP_REMOTES__QUAY__PASSWORD": "hunter2"})
        first, second = map(str, config.warnings)
        assert "did you mean CONTENTAPP_CONTENT__WORKERS?" in first
        assert "declared in the file" in second
        assert "hunter2" not in second

    def test_what_kubernetes_sets_is_nothing(self, load: Load) -> None:
        names = (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_8080_TCP",
            "PORT_8080_TCP_ADDR",
            "ADMIN_PORT_1_TCP",
        )
        assert load("", {f"CONTENTAPP_{name}": "tcp://10.0.0.1:80" for name in names}).warnings == ()

    def test_a_section_that_is_no_mapping_is_still_told(self, problems: Callable[..., str]) -> None:
        assert "c.yaml:1: content: 5: must be a mapping" in problems("content: 5", {"CONTENTAPP_CONTENT__WORKERS": "2"})

    def test_an_alias_is_not_changed_in_two_places(self, load: Load) -> None:
        text = 'content: &a {listen: "h:1"}\nadmin: *a\n'
        config = load(text, {"CONTENTAPP_CONTENT__LISTEN": "h:3"})
        assert (config.content.listen.port, config.admin.listen.port) == (3, 1)


BAD_GLOBAL = [
    ("data_dir: [x]", "c.yaml:1: data_dir: a list: must be a path"),
    ('content: {listen: "8080"}', 'c.yaml:1: content.listen: "8080": must be host:port, such as 0.0.0.0:8080'),
    ("content: {listen: 8080}", "content.listen: 8080: must be host:port"),
    ('content: {listen: "0.0.0.0:65536"}', "content.listen"),
    ('content: {listen: ":8080"}', "content.listen"),
    ('content: {listen: "1.2.3:80"}', "content.listen"),
    ('content: {listen: "[::g]:80"}', "content.listen"),
    ("content:\n  workers: 0", "c.yaml:2: content.workers: 0: must be a whole number 1 – 64"),
    ("content: {workers: 65}", "content.workers: 65"),
    ("content: {workers: true}", "content.workers: true: must be a whole number"),
    ('content: {workers: "2"}', 'content.workers: "2"'),
    ("content: {tls: {certificate: a}}", "content.tls.key: must be given"),
    ("content: {tls: {key: a}}", "content.tls.certificate: must be given"),
    ("content: {tsl: {}}", "content.tsl: is not a setting; did you mean tls?"),
    ("content: [1]", "content: a list: must be a mapping"),
    ("cahce: {max_size: 1}", "c.yaml:1: cahce: is not a setting; did you mean cache?"),
    ("admin: {password: hunter2}", "admin.password: is not a setting; known are listen"),
    ('admin: {listen: "0.0.0.0:8080"}', "admin.listen"),
    ("storage: {type: s3}", 'storage.type: "s3": not available in this version; must be filesystem'),
    ("storage: {type: [s3]}", "storage.type: a list: must be filesystem"),
    ("storage: {bucket: x}", "storage.bucket: not available in this version"),
    ('database: {url: "postgresql://u:hunter2@h/d"}', "database.url: not available in this version"),
    ('redis: {url: "redis://:hunter2@h"}', "redis.url: not available in this version"),
    ("repositories: [{name: x}]", "c.yaml:1: repositories: not available in this version"),
    ("prefetch: [{name: x}]", "prefetch: not available in this version"),
    ("domain_enabled: true", "domain_enabled: not available in this version"),
    ("cache: {max_size: 5 bananas}", 'cache.max_size: "5 bananas": must be a size ≥ 1 MiB'),
    ("cache: {max_size: 1000}", "cache.max_size: 1000"),
    ("cache: {max_size: unlimited}", "cache.max_size"),
    ("cache: {high_watermark: 1.1}", "cache.high_watermark: 1.1: must be a number 0.01 – 1"),
    ("cache:\n  low_watermark: 0.9", "c.yaml:2: cache.low_watermark: 0.9: must be below high_watermark, which is 0.9"),
    ("log: {format: xml}", 'log.format: "xml": must be one of auto, json, console'),
    ("log: {level: trace}", "log.level"),
    (
        "sock_read_timeout: 5 parsecs",
        'sock_read_timeout: "5 parsecs": must be a duration 0.1s – 1h (a number of seconds, or',
    ),
    ("sock_read_timeout: null", "sock_read_timeout: null"),
    ("connect_timeout: 0", "connect_timeout: 0"),
    ("max_retries: 1.5", "max_retries: 1.5: must be a whole number 0 – 20"),
    ("tls_validation: maybe", 'tls_validation: "maybe": must be true or false'),
    ("tag_ttl_patterns: [a]", "tag_ttl_patterns: a list: must be a mapping"),
    ("tag_ttl_patterns: {latest: 1y}", 'tag_ttl_patterns[latest]: "1y": must be a duration 0s – 30d'),
    ("verify_first_bytes: -1", "verify_first_bytes: -1: must be a size ≥ 0, or unlimited"),
    ("unavailable_status: 200", "unavailable_status: 200: must be a whole number 400 – 599, or null"),
    ("cold_range: x", 'cold_range: "x": must be one of stream, strict'),
    ("window_size: 1", "window_size: 1: must be a size 256 KiB – 1 GiB"),
    ("- a", "must be a mapping"),
    ("remotes: {a: 1}", "remotes: must be a list"),
    ("remotes: [5]", "remotes[0]: must be a mapping"),
]

BAD_REMOTE = [
    ("polcy: x", "remotes.quay.polcy: is not a setting; did you mean policy?"),
    ("upstream_name: x", "remotes.quay.upstream_name: not available in this version"),
    ("tag_ttl_seconds: 5", "remotes.quay.tag_ttl_seconds: is not a setting"),
    ("sock_read_timeout: 2h", 'remotes.quay.sock_read_timeout: "2h": must be a duration 0.1s – 1h'),
    ("bandwidth_limit: 1", "remotes.quay.bandwidth_limit: 1: must be bytes a second ≥ 16 KiB/s, or null"),
    ("username: x", "remotes.quay.username: needs password beside it"),
    ("password: hunter2", "remotes.quay.password: needs username beside it"),
    ("username: x, password: [hunter2]", "remotes.quay.password: must be text, {env: NAME} or {file: PATH}"),
    ("username: x, password: {env: 'hunter2 '}", "remotes.quay.password: must be text, {env: NAME}"),
    ("username: x, password: {env: A, file: hunter2}", "remotes.quay.password: must be text, {env: NAME}"),
    ("username: x, password: {literal: hunter2}", "remotes.quay.password: must be text, {env: NAME}"),
    ("username: x, password: ''", "remotes.quay.password: must be text"),
    ('username: "a\\nb", password: hunter2', "remotes.quay.username"),
    (
        "credential_helper: rm -rf, username: x, password: hunter2",
        "remotes.quay.credential_helper: can't stand beside username",
    ),
    ("credential_helper: pass", 'remotes.quay.credential_helper: "pass": must be docker-credential-NAME'),
    (
        "auth_hosts: ['https://u:hunter2@auth.io']",
        'remotes.quay.auth_hosts[0]: "https://***@auth.io": must be host or host:port',
    ),
    ("auth_hosts: [a.io, a.io]", "remotes.quay.auth_hosts[1]"),
    ("auth_hosts: a.io", 'remotes.quay.auth_hosts: "a.io": must be a list of hosts'),
    ("headers: [{Host: hunter2}]", "remotes.quay.headers.Host: belongs to the connection"),
    ("headers: {Range: bytes=0-}", "remotes.quay.headers.Range: is set by each request itself"),
    ("headers: {Accept: hunter2}", "remotes.quay.headers.Accept: is fixed for container remotes"),
    ('headers: [{X-A: "hunter2\\r\\nHost: x"}]', "remotes.quay.headers.X-A: must be text of one line"),
    ("headers: [{'X A': hunter2}]", "remotes.quay.headers: has a header name"),
    ("headers: [hunter2]", "remotes.quay.headers: must be a list of mappings"),
    ("headers: {X-A: [hunter2]}", "remotes.quay.headers.X-A: must be text"),
    ("ca_cert: hunter2", "remotes.quay.ca_cert: must hold -----BEGIN CERTIFICATE-----"),
    ("ca_cert: {env: X}", "remotes.quay.ca_cert: must be certificates in PEM, or {file: PATH}"),
    ("ca_cert: {file: none.pem}", "none.pem can't be read: No such file"),
    ("ca_cert: '-----BEGIN CERTIFICATE----- hunter2 -----END CERTIFICATE-----'", "holds a damaged CERTIFICATE block"),
    ("client_key: hunter2", "remotes.quay.client_key: must hold -----BEGIN PRIVATE KEY-----"),
    ("client_key: {env: X}", "remotes.quay.client_key: needs client_cert beside it"),
    ("proxy_url: 'ftp://p'", 'remotes.quay.proxy_url: "ftp://p": must be a URL that begins with http:// or https://'),
    ("proxy_url: 'http://p/path'", 'remotes.quay.proxy_url: "http://p/path": must not have a path'),
    ("proxy_url: 'http://u:hunter2@p'", 'remotes.quay.proxy_url: "http://***@p": must not hold a user or password'),
    ("proxy_username: x, proxy_password: hunter2", "remotes.quay.proxy_username: needs proxy_url beside it"),
]

BAD_URL = [
    ("container", "ftp://h", "must be a URL that begins with http:// or https://"),
    ("container", "quay.io", "must be a URL that begins with http:// or https://"),
    ("container", "https://", "whose host is"),
    ("container", "https://joe:hunter2@quay.io", '"https://***@quay.io": must not hold a user or password'),
    ("container", "https://joe:hun/ter2@quay.io", '"https://***@quay.io": must'),
    ("container", "https://quay.io/v2/", "must not have a path"),
    ("container", "https://quay.io/?token=hunter2", "must not have a query or fragment"),
    ("container", "https://quay.io:99999", "whose host is"),
    ("container", "https://qu ay.io", "printable ASCII"),
    ("container", "https://[::1", "must be a URL"),
    ("file", "https://h/files", "must end in / for pull-through"),
    ("file", "https://h/PULP_MANIFEST", "sync a PULP_MANIFEST into a repository is not available in this version"),
    ("file", "https://h/a/../b/", "dot segments"),
]

BAD_DISTRIBUTION = [
    ("type: container, remotes: [quay]", "distributions[0].base_path: must be given"),
    ("base_path: a, remotes: [quay]", "distributions[0].type: must be given"),
    ("base_path: a, type: container", "distributions[0].remotes: must be given"),
    ("base_path: a, type: container, remotes: []", "distributions[0].remotes: a list: must name at least one remote"),
    (
        "base_path: a, type: container, remotes: [nope]",
        'distributions[0].remotes[0]: "nope": is not the name of a remote; known are: files, quay',
    ),
    ("base_path: a, type: container, remotes: [quay, files]", 'distributions[0].remotes[1]: "files": is of type file'),
    ("base_path: a, type: container, remotes: [quay, quay]", 'distributions[0].remotes[1]: "quay": stands twice'),
    ("base_path: Quay, type: container, remotes: [quay]", 'distributions[0].base_path: "Quay": must be lower-case'),
    ("base_path: a/, type: container, remotes: [quay]", "distributions[0].base_path"),
    ("base_path: a___b, type: container, remotes: [quay]", "distributions[0].base_path"),
    ("base_path: a/../b, type: file, remotes: [files]", 'distributions[0].base_path: "a/../b": must be segments'),
    ("base_path: /a, type: file, remotes: [files]", "distributions[0].base_path"),
    ("base_path: 'a b', type: file, remotes: [files]", "distributions[0].base_path"),
    ("base_path: a, type: file, remotes: [files], registry_hosts: [a.io]", "distributions[0].registry_hosts"),
    ("base_path: a, type: file, remotes: [files], default_registry: true", "distributions[0].default_registry"),
    (
        "base_path: a, type: container, remotes: [quay], registry_hosts: ['https://q']",
        "distributions[0].registry_hosts[0]",
    ),
    ("base_path: a, type: container, remotes: [quay], registry_hosts: ['q:0']", "distributions[0].registry_hosts[0]"),
    (
        "base_path: a, type: file, repository: r, remotes: [files]",
        "distributions[0].repository: not available in this version",
    ),
    ("base_path: a, type: file, content_guard: r, remotes: [files]", "distributions[0].content_guard: not available"),
    (
        "name: x, base_path: a, type: file, remote: files",
        "distributions.x.remote: is not a setting; did you mean remotes?",
    ),
    ("base_path: a, type: rpm, remotes: [files]", 'distributions[0].type: "rpm": must be one of container, file'),
]


NAMES = ("name", "type", "url", "remotes", "password", "headers", "content", "tls", "file", "base_path", "container")
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5)
STRUCTURES = st.recursive(
    st.none() | st.booleans() | st.integers() | PRINTABLE | st.sampled_from(NAMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


class TestProblems:
    @pytest.mark.parametrize(("text", "part"), BAD_GLOBAL)
    def test_global(self, text: str, part: str, problems: Callable[..., str]) -> None:
        self.check(problems(text), part)

    @pytest.mark.parametrize(("fields", "part"), BAD_REMOTE)
    def test_remotes(self, fields: str, part: str, problems: Callable[..., str]) -> None:
        self.check(problems(remote(fields)), part)

    @pytest.mark.parametrize(("type_", "url", "part"), BAD_URL)
    def test_urls(self, type_: str, url: str, part: str, problems: Callable[..., str]) -> None:
        message = problems(remote("", type_, url))
        self.check(message, part)
        assert "c.yaml:1: remotes.quay.url: " in message

    @pytest.mark.parametrize(("fields", "part"), BAD_DISTRIBUTION)
    def test_distributions(self, fields: str, part: str, problems: Callable[..., str]) -> None:
        message = problems(distribution(fields))
        self.check(message, part)
        assert "c.yaml:5" in message

    @staticmethod
    def check(message: str, part: str) -> None:
        assert part in message
        assert "hunter2" not in message
        assert "ter2" not in message

    def test_all_are_told_in_the_order_of_their_lines(self, problems: Callable[..., str]) -> None:
        text = """\
            log: {level: x}
            cache: {max_size: x}
            remotes:
              - {name: a, type: file, url: "https://h/"}
              - {name: a, type: container, url: "https://h/x"}
              - {type: ostree}
            zz: 1
            """
        found = [line.split("c.yaml:")[1].split(":")[0:2] for line in problems(text).splitlines()]
        assert [(int(line), key.strip()) for line, key in found] == [
            (1, "log.level"),
            (2, "cache.max_size"),
            (5, "remotes.a.url"),
            (5, "remotes.a.name"),
            (6, "remotes[2].name"),
            (6, "remotes[2].url"),
            (6, "remotes[2].type"),
            (7, "zz"),
        ]

    def test_distributions_against_each_other(self, problems: Callable[..., str]) -> None:
        rest = "type: container, remotes: [quay]"
        message = problems(
            f"remotes: [{CONTAINER}]\ndistributions:\n"
            f"  - {{name: a, base_path: a, {rest}, registry_hosts: [q.io], default_registry: true}}\n"
            f"  - {{name: b, base_path: a, {rest}, registry_hosts: [Q.io], default_registry: true}}\n"
            f"  - {{name: b, base_path: c, {rest}}}\n"
        )
        assert 'c.yaml:4: distributions.b.base_path: "a": is the base_path of another distribution too' in message
        assert "distributions.b.registry_hosts: a list: q.io belongs to distributions.a already" in message
        assert "distributions.b.default_registry: true: is set for distributions.a already" in message
        assert 'c.yaml:5: distributions.b.name: "b": is the name of another distribution too' in message
        assert len(message.splitlines()) == 4

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.yaml: can't be read: No such file"):
            load_config(tmp_path / "none.yaml", {})

    @given(st.text(max_size=300))
    def test_shown_values_are_one_bounded_line(self, text: str) -> None:
        assert len(shown(text)) <= 80
        assert "\n" not in shown(text)

    @given(STRUCTURES)
    def test_any_structure_is_read_or_refused(self, value: object) -> None:
        report = Report()
        reader = ResourceReader(report, {})
        node = parse_document(json.dumps({"v": value}), "f")
        assert isinstance(node.value, dict)
        reader.read_remotes(node.value["v"])
        reader.read_distributions(node.value["v"])
        reader.warn_unused(node.value["v"])
        read_section(node.value["v"], GLOBAL, "", report)
        assert all("\n" not in str(problem) for problem in report.problems)


class TestWarnings:
    @pytest.mark.parametrize(
        ("fields", "part"),
        [
            ("username: u, password: {env: NOPE}", "remotes.quay.password: environment variable NOPE is not set"),
            ("username: u, password: {file: nope}", "/nope is not there"),
            ("headers: {Authorization: Bearer hunter2}", "remotes.quay.headers.Authorization: is a literal credential"),
            ("tls_validation: false", "remotes.quay.tls_validation: the remote's certificate is not checked"),
            ("username: u, password: hunter2", "holds literal secrets and can be read by every user"),
        ],
    )
    def test_remotes(self, fields: str, part: str, load: Load, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").touch(0o644)
        [warning] = load(remote(fields)).warnings
        assert part in str(warning)
        assert "hunter2" not in str(warning)

    def test_immediate(self, load: Load) -> None:
        config = load(
            "remotes: [{name: q, type: container, url: 'https://q'}]\n"
            "distributions: [{base_path: q, type: container, remotes: [q]}]\n"
        )
        assert [str(w).partition(": ")[2] for w in config.warnings] == [
            "remotes.q.policy: immediate acts as on_demand for pull-through"
        ]

    def test_credentials_over_http(self, load: Load) -> None:
        fields = "username: u, password: {env: P}"
        assert "over http" in str(load(remote(fields, url="http://q.io"), {"P": "x"}).warnings)
        assert load(remote(fields, url="http://127.0.0.1:5000"), {"P": "x"}).warnings == ()

    def test_unused(self, load: Load) -> None:
        [warning] = load(f"remotes: [{CONTAINER}]").warnings
        assert "remotes.quay: is not used by any distribution" in str(warning)

    def test_tls_files(self, load: Load) -> None:
        warnings = load("content: {tls: {certificate: /no/a, key: /no/b}}").warnings
        assert [(w.key, w.line) for w in warnings] == [("content.tls.certificate", 1), ("content.tls.key", 1)]


def certificate_and_key(*, password: bytes | None = None) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def indented(pem: str) -> str:
    return "|\n" + "".join(f"      {line}\n" for line in pem.splitlines())


HEAD = "remotes:\n  - name: q\n    type: container\n    url: https://q\n    policy: on_demand\n"
TAIL = "distributions: [{base_path: q, type: container, remotes: [q]}]\n"


class TestCertificates:
    def test_literal_and_from_files(self, load: Load, tmp_path: Path) -> None:
        certificate, key = certificate_and_key()
        (tmp_path / "ca.pem").write_text(certificate)
        (tmp_path / "c.yaml").touch(0o600)
        (tmp_path / "c.yaml").chmod(0o600)
        client = f"    client_cert: {indented(certificate)}    client_key: {indented(key)}"
        text = f"{HEAD}    ca_cert: {{file: ca.pem}}\n{client}{TAIL}"
        config = load(text)
        [found] = config.remotes
        assert found["ca_cert"] == certificate
        assert found["client_cert"] == certificate
        assert found["client_key"] == {"literal": key}
        assert config.warnings == ()
        assert key.splitlines()[1] not in repr(found["client_key"])

    def test_both_in_one(self, load: Load) -> None:
        certificate, key = certificate_and_key()
        config = load(f"{HEAD}    client_cert: {indented(certificate + key)}{TAIL}")
        assert "PRIVATE KEY" in config.remotes[0]["client_cert"]
        assert "PRIVATE KEY" not in repr(config)

    def test_a_certificate_needs_its_key(self, problems: Callable[..., str]) -> None:
        certificate, _ = certificate_and_key()
        assert "remotes.q.client_cert: needs client_key" in problems(
            f"{HEAD}    client_cert: {indented(certificate)}{TAIL}"
        )

    def test_a_key_with_a_passphrase(self, problems: Callable[..., str]) -> None:
        certificate, key = certificate_and_key(password=b"hunter2")
        text = f"{HEAD}    client_cert: {indented(certificate)}    client_key: {indented(key)}{TAIL}"
        message = problems(text)
        assert "remotes.q.client_key: must be a private key without a passphrase" in message
        assert key.splitlines()[1] not in message


class TestSecrets:
    def test_nothing_that_is_printed_holds_one(self, load: Load) -> None:
        config = load(remote("username: u, password: hunter2, headers: {X-Key: hunter3}"))
        for text in (repr(config), str(config), repr(config.remotes), str(config.remotes[0]), str(config.warnings)):
            assert "hunter" not in text
        assert config.remotes[0]["password"] == {"literal": "hunter2"}

    def test_files_are_named_by_absolute_paths(self, load: Load, tmp_path: Path) -> None:
        config = load(remote("username: u, password: {file: secrets/p}"))
        assert config.remotes[0]["password"] == {"file": f"{tmp_path}/secrets/p"}


class TestResources:
    def test_remotes_may_be_elsewhere(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_text("distributions: [{base_path: q, type: container, remotes: [elsewhere]}]\nlog: {level: info}\n")
        resources = load_resources(path, {})
        assert [d["name"] for d in resources.distributions] == ["q"]
        assert "log: is a global setting" in str(resources.warnings[0])

    @pytest.mark.parametrize("text", ["remote: []", "repositories: [{}]", "[1]", "remotes: [{name: a}]"])
    def test_problems(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_resources(path, {})


class TestAddresses:
    @pytest.mark.parametrize(
        "text", ["quay.io", "h", "a_b.c", "10.0.0.5:5000", "[::1]:5000", "[fe80::1]", "xn--bcher-kva.example:1"]
    )
    def test_hosts(self, text: str) -> None:
        assert parse_host(text) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "-a",
            "a-.b",
            "a..b",
            "a:",
            "a:b",
            "a:0",
            "a:70000",
            "::1",
            "[::1",
            "1.2.3.4.5",
            "256.1.1.1",
            "a/b",
            "a b",
            "u@h",
            "é.fr",
            "a" * 64,
            "a\n",
        ],
    )
    def test_no_hosts(self, text: str) -> None:
        with pytest.raises(Invalid):
            parse_host(text)

    @given(st.text(max_size=60))
    def test_any_text_is_a_host_or_not(self, text: str) -> None:
        is_host(text)
        try:
            assert parse_listen(text).port <= 65535
        except Invalid as invalid:
            assert "must be" in str(invalid)
