"""Who may import whom: the layers of the package, and which file may touch which library.

The rules are checked on the sources, so an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "contentapp"

EVERYWHERE_BUT_CORE = (PACKAGE, "config", "metrics", "logs")
IMPLEMENTATIONS = ("upstream", "storage", "catalog", "coordination", "plugins")
SERVING = ("server", "api", "tasks", "web")


@dataclass(frozen=True)
class Rule:
    """What the modules of `who` may import of the package. Names are without `contentapp.`; a room means all in it."""

    who: str
    whom: tuple[str, ...]


# The first rule whose `who` matches decides. A module that matches none has no place in the layout.
LAYERS = (
    Rule("core", ("core",)),
    Rule("config", ("core", "config")),
    Rule("metrics", ("core", "config", "metrics_folder")),
    Rule("metrics_folder", ()),
    Rule("logs", ("core", "config")),
    Rule("*.base", ("core",)),
    Rule("pipeline", ("core", "*.base", "plugins", "pipeline", *EVERYWHERE_BUT_CORE)),
    *(Rule(room, ("core", room, *EVERYWHERE_BUT_CORE)) for room in IMPLEMENTATIONS),
    *(Rule(room, ("core", "*.base", "pipeline", room, *EVERYWHERE_BUT_CORE)) for room in SERVING),
    Rule("cli.serve", ("core", "cli", "processes", *EVERYWHERE_BUT_CORE)),
    Rule("cli", ("core", "cli", *EVERYWHERE_BUT_CORE)),
    Rule("__main__", ("cli",)),
    Rule("services", ("*",)),
    Rule("processes", ("*",)),
    Rule(PACKAGE, ()),
)

AIOHTTP_SERVER = ("server", "api", "web", "processes.admin", "pipeline.respond")
AIOHTTP_CLIENT = ("upstream", "cli.client", "storage.s3", "coordination.peer")
AIOHTTP_NEUTRAL = frozenset({"hdrs", "typedefs", "abc"})

LIBRARIES = {
    "boto3": ("storage.s3", "upstream.s3"),
    "botocore": ("storage.s3", "upstream.s3"),
    "redis": ("coordination.redis",),
    "sqlalchemy": ("catalog",),
    "alembic": ("catalog",),
    "aiosqlite": ("catalog",),
    "prometheus_client": ("metrics", "metrics_folder"),
    "tests": (),
    "benchmarks": (),
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports, or takes from an imported aiohttp: `target` is dotted and absolute."""

    target: str
    line: int


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    """A pattern means the modules it names and all that is in them; `core` is not `corelike`."""
    return any(fnmatchcase(module, pattern) or fnmatchcase(module, f"{pattern}.*") for pattern in patterns)


def short(module: str) -> str:
    """The name without the package, but the package itself by its own name."""
    return module.removeprefix(f"{PACKAGE}.")


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Sources:
    """The modules that exist, so that `from package import x` is told from `from module import name`."""

    def __init__(self, texts: dict[str, str], packages: frozenset[str]) -> None:
        self.texts = texts
        self.packages = packages

    @classmethod
    def read(cls, root: Path) -> Sources:
        paths = sorted((root / PACKAGE).rglob("*.py"))
        packages = frozenset(module_of(path, root) for path in paths if path.name == "__init__.py")
        return cls({module_of(path, root): path.read_text(encoding="utf-8") for path in paths}, packages)

    def imports(self, module: str) -> Iterator[Import]:
        tree = ast.parse(self.texts[module])
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from self._from_imports(module, node)
        yield from _aiohttp_attributes(tree)

    def _from_imports(self, module: str, node: ast.ImportFrom) -> Iterator[Import]:
        source = self._absolute(module, node)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            within = source.partition(".")[0] == PACKAGE
            yield Import(inner if not within or inner in self.texts else source, node.lineno)

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".") if module in self.packages else module.split(".")[:-1]
        base = parts[: len(parts) - (node.level - 1)]
        return ".".join([*base, node.module] if node.module else base)


def _aiohttp_attributes(tree: ast.AST) -> Iterator[Import]:
    """`import aiohttp` says nothing about which side is used; its attributes do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aiohttp":
            yield Import(f"aiohttp.{node.attr}", node.lineno)


def violations(sources: Sources, module: str) -> list[str]:
    """What the module imports and must not, one line each; empty if it keeps the rules."""
    rule = next((rule for rule in LAYERS if matches(short(module), (rule.who,))), None)
    if rule is None:
        return [f"{module}: has no place in the layout"]
    found = []
    for item in sources.imports(module):
        room, _, rest = item.target.partition(".")
        if room == PACKAGE:
            allowed = matches(short(item.target), rule.whom)
        elif room == "aiohttp":
            allowed = _aiohttp_allowed(short(module), rest)
        else:
            allowed = matches(short(module), LIBRARIES.get(room, ("*",)))
        if not allowed:
            found.append(f"{module}:{item.line} imports {item.target}")
    return found


def _aiohttp_allowed(module: str, rest: str) -> bool:
    part = rest.partition(".")[0]
    if not part or part in AIOHTTP_NEUTRAL:
        return matches(module, (*AIOHTTP_SERVER, *AIOHTTP_CLIENT))
    return matches(module, AIOHTTP_SERVER if part == "web" or part.startswith("web_") else AIOHTTP_CLIENT)


REAL = Sources.read(ROOT)


def test_the_sources_are_found() -> None:
    assert f"{PACKAGE}.core.digest" in REAL.texts


@pytest.mark.parametrize("module", sorted(REAL.texts))
def test_imports_keep_the_layers(module: str) -> None:
    assert violations(REAL, module) == []


EXISTING = (
    f"{PACKAGE}.core.digest",
    f"{PACKAGE}.storage.filesystem",
    f"{PACKAGE}.storage.base",
    f"{PACKAGE}.upstream.http",
    f"{PACKAGE}.plugins.file",
    f"{PACKAGE}.pipeline.fetch",
    f"{PACKAGE}.services",
    f"{PACKAGE}.metrics",
    f"{PACKAGE}.server.app",
    f"{PACKAGE}.processes.supervisor",
)
PACKAGES = frozenset({PACKAGE, *(name.rpartition(".")[0] for name in EXISTING)})


def check_one(module: str, text: str) -> list[str]:
    texts = {**dict.fromkeys((*EXISTING, *PACKAGES), ""), f"{PACKAGE}.{module}": text}
    return violations(Sources(texts, PACKAGES), f"{PACKAGE}.{module}")


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("core.records", "from contentapp.core.digest import Digest\nimport hashlib"),
        ("core.records", "from .digest import Digest"),
        ("storage.base", "from contentapp.core.digest import Digest"),
        ("storage.filesystem", "from contentapp import metrics\nfrom contentapp.storage.base import Storage"),
        ("pipeline.fetch", "from contentapp.storage.base import Storage\nfrom contentapp.plugins.file import parse"),
        ("pipeline.respond", "from aiohttp import web"),
        ("server.app", "import aiohttp.web\nfrom contentapp.pipeline import fetch"),
        ("upstream.http", "import aiohttp\naiohttp.ClientSession()"),
        ("catalog.engine", "import sqlalchemy.ext.asyncio"),
        ("services", "from contentapp.storage.filesystem import FilesystemStorage"),
        ("cli.serve", "from contentapp.processes.supervisor import Supervisor"),
        ("processes.worker", "from contentapp.services import build\nfrom contentapp.server.app import make"),
        ("metrics", "from prometheus_client import Counter\nfrom contentapp.metrics_folder import locked"),
        ("metrics_folder", "from prometheus_client import values"),
    ],
)
def test_permitted(module: str, text: str) -> None:
    assert check_one(module, text) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("core.records", "from contentapp import metrics"),
        ("core.records", "from contentapp.storage.base import Storage"),
        ("core.records", "from ..storage import base"),
        ("storage.base", "from contentapp import metrics"),
        ("storage.filesystem", "from contentapp.upstream.http import HttpUpstream"),
        ("storage.filesystem", "from contentapp.upstream.base import Upstream"),
        ("storage.filesystem", "def late() -> None:\n    from contentapp.pipeline import fetch"),
        ("pipeline.fetch", "from contentapp.storage.filesystem import FilesystemStorage"),
        ("pipeline.fetch", "from contentapp import services"),
        ("pipeline.fetch", "from contentapp.server.app import app"),
        ("pipeline.fetch", "from aiohttp import web"),
        ("server.app", "from contentapp.storage.filesystem import FilesystemStorage"),
        ("server.app", "from contentapp.services import build"),
        ("server.app", "from aiohttp import ClientSession"),
        ("server.app", "import aiohttp\naiohttp.ClientSession()"),
        ("upstream.http", "from aiohttp import web"),
        ("upstream.http", "import aiohttp\naiohttp.web.Application()"),
        ("tasks.sync", "import sqlalchemy"),
        ("server.app", "from prometheus_client import Counter"),
        ("coordination.local", "import redis.asyncio"),
        ("cli.status", "from contentapp.services import build"),
        ("cli.status", "from contentapp.pipeline import fetch"),
        ("server.app", "from contentapp.metrics_folder import locked"),
        ("metrics", "from contentapp.services import build"),
        ("metrics_folder", "from contentapp.metrics import metrics"),
        ("services", "from tests.remotes import scripted"),
        ("corelike", "import os"),
        ("elsewhere.thing", "import os"),
    ],
)
def test_refused(module: str, text: str) -> None:
    assert len(check_one(module, text)) == 1
