"""The README and the pages it leads to: their example is valid, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from contentapp.cli.main import cli
from contentapp.config import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:\.venv/bin/)?contentapp +([a-z][a-z ]*[a-z])", re.MULTILINE)
TARGET = re.compile(r"^make ([a-z]+)", re.MULTILINE)


def blocks(page: str) -> str:
    """What stands in code blocks without a language: commands."""
    found: list[str] = []
    language: str | None = None  # of the block we are in
    for line in page.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "":
            found.append(line)
    return "\n".join(found)


def find_command(words: list[str]) -> click.Command | None:
    """The command that the first words name, None if there is none."""
    command: click.Command | None = cli
    for word in words:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), word)
    return command


def test_the_example_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "contentapp.yaml"
    file.write_text(example)
    config = load_config(file, {})
    assert config.warnings == ()
    assert [item["remotes"] for item in config.distributions] == [["quay", "quay-mirror"], ["builds", "builds-copy"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    commands = COMMAND.findall(blocks(page.read_text(encoding="utf-8")))
    assert [command for command in commands if find_command(command.split()) is None] == []


def test_the_readme_shows_the_commands_to_look() -> None:
    shown = {" ".join(command.split()) for command in COMMAND.findall(blocks(README))}
    assert {"status", "cooldown list", "transfer list", "verify", "gc", "config check", "serve"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = TARGET.findall(blocks(page.read_text(encoding="utf-8")))
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_every_decision_is_named_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert decisions
    assert [file.name for file in decisions if f"decisions/{file.name}" not in page] == []
    numbers = [int(file.name[:4]) for file in decisions]
    assert numbers == list(range(1, len(numbers) + 1))
