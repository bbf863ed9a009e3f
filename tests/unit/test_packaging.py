"""The pins of constraints.txt: complete, exact, fitting pyproject.toml, and without any package index address."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def read_pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def asked() -> list[str]:
    project = read_project()
    return [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]


def applies(requirement: Requirement, extra: str, python: str) -> bool:
    if requirement.marker is None:
        return True
    return requirement.marker.evaluate({"extra": extra, "python_version": python, "python_full_version": f"{python}.1"})


def required(python: str) -> dict[str, list[Requirement]]:
    """Every package that the environment needs under that Python on Linux, with all that is demanded of it."""
    found: dict[str, list[Requirement]] = {}
    waiting = [Requirement(line) for line in asked()]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, []).append(requirement)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                inner = map(Requirement, metadata.requires(name) or []) if installed(name) else ()
                waiting.extend(child for child in inner if applies(child, extra, python))
    return found


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_to_a_version_that_fits(python: str) -> None:
    pins = read_pins()
    unfit = [
        str(requirement)
        for name, requirements in required(python).items()
        for requirement in requirements
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True)
    ]
    assert unfit == []


def test_nothing_is_pinned_that_nobody_needs() -> None:
    needed = {name for python in PYTHONS for name in required(python)}
    assert read_pins().keys() - needed == set()


def test_each_line_is_an_exact_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"#[^:/]*|[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []


@pytest.mark.parametrize(
    "path", ["constraints.txt", "pyproject.toml", "Makefile", ".ci/run", ".ci/install-packages", ".ci/packages.txt"]
)
def test_no_package_index_address(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not re.search(r"://|index-url|find-links|trusted-host", text)
