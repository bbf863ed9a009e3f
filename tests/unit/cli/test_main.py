"""The command line itself: help, exit codes, where the configuration comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from contentapp import __version__
from contentapp.cli.main import COMMANDS, LATER, cli
from tests.unit.cli.conftest import AdminServer, Run

SLOW = ("rich", "aiohttp", "sqlalchemy", "alembic", "yaml", "structlog", "asyncio", "contentapp.config", "http.client")


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from contentapp.cli.main import cli; cli(['--help'], standalone_mode=False);"
        f"print([name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def commands() -> list[tuple[str, ...]]:
    """All commands and the commands in them."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found.append((name,))
        if isinstance(command, click.Group):
            found += [(name, inner) for inner in command.commands]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help_and_does_nothing_then(run: Run, path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        ran = run(*path, flag)
        assert (ran.status, ran.messages) == (0, "")
        assert ran.output.startswith(f"Usage: contentapp {' '.join(path)}")


OWN = {"serve", "apply", "chunks", "cooldown", "transfer", "status", "verify", "gc"}


@pytest.mark.parametrize("path", [path for path in commands() if path[0] in OWN], ids=" ".join)
def test_help_has_examples(run: Run, path: tuple[str, ...]) -> None:
    assert f"\n    contentapp {' '.join(path)}" in run(*path, "--help").output


@pytest.mark.parametrize(
    "path", [path for path in commands() if path not in {("cooldown",), ("transfer",), ("config",), ("demo",)}]
)
def test_every_command_takes_a_configuration(run: Run, path: tuple[str, ...]) -> None:
    assert "--config FILE" in run(*path, "--help").output


def test_version(run: Run) -> None:
    assert run("--version").output == f"contentapp {__version__}\n"


@pytest.mark.parametrize("name", sorted(LATER))
def test_later_commands_say_so(run: Run, name: str) -> None:
    ran = run(name, "whatever")
    message = f"error: contentapp {name} is not available in this version\n"
    assert (ran.status, ran.output, ran.messages) == (2, "", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "error: no such command 'nothing' (see contentapp --help)\n"),
        (["status", "--nothing"], "(see contentapp status --help)\n"),
        (["status", "more"], "(see contentapp status --help)\n"),
        (["status", "--format", "xml"], "(see contentapp status --help)\n"),
        (["apply"], "error: missing option '-f' / '--file' (see contentapp apply --help)\n"),
        (["cooldown", "clear", "a", "b"], "(see contentapp cooldown clear --help)\n"),
        (["transfer", "cancel"], "(see contentapp transfer cancel --help)\n"),
        (["transfer", "cancel", "x", ""], "error: a KEY is empty (see contentapp transfer cancel --help)\n"),
    ],
)
def test_wrong_usage_is_2_and_one_line(run: Run, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.output) == (2, "")
    assert ran.messages.endswith(message)
    assert ran.messages.count("\n") == 1


def test_without_a_command_it_shows_help(run: Run) -> None:
    ran = run()
    assert ran.status == 2
    assert "Commands:" in ran.messages


# -- the configuration: before or behind the command's name, or in the variable


@pytest.mark.parametrize("how", ["before", "behind", "variable", "behind wins", "before wins"])
def test_where_the_configuration_may_stand(run: Run, server: AdminServer, tmp_path: Path, how: str) -> None:
    server.script("GET /pulp/api/v3/transfers/?limit=1000", (200, {"next": None, "results": []}))
    file, other = server.config(tmp_path), tmp_path / "other.yaml"
    other.write_text("nonsense: 1\n")
    match how:
        case "before":
            ran = run("--config", file, "transfer", "list")
        case "behind":
            ran = run("transfer", "list", "--config", file)
        case "variable":
            ran = run("transfer", "list", CONTENTAPP_CONFIG=str(file))
        case "behind wins":
            ran = run("--config", other, "transfer", "list", "--config", file, CONTENTAPP_CONFIG=str(other))
        case _:
            ran = run("--config", file, "transfer", "list", CONTENTAPP_CONFIG=str(other))
    assert (ran.status, ran.output, ran.messages) == (0, "nothing is being fetched\n", "")


def test_config_check_takes_it_before_its_name_too(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("content: {workers: 0}\n")
    ran = run("--config", file, "config", "check")
    assert ran.status == 1
    assert "bad.yaml:1" in ran.messages


@pytest.mark.parametrize("command", [["status"], ["serve"], ["verify"], ["cooldown", "list"], ["apply", "-f", "x"]])
def test_every_problem_of_a_configuration_is_a_line(run: Run, tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("content: {workers: 0}\nconent: 1\n")
    ran = run(*command, "--config", file)
    first, second = ran.messages.splitlines()
    assert ran.status == 1
    assert first.startswith(f"error: {file}:1: content.workers: 0: must be ")
    assert second.startswith(f"error: {file}:2: conent: is not a setting; did you mean content?")


def test_a_missing_configuration_is_one_line(run: Run, tmp_path: Path) -> None:
    ran = run("status", "--config", tmp_path / "nowhere.yaml")
    assert (ran.status, ran.messages) == (
        1,
        f"error: {tmp_path}/nowhere.yaml: can't be read: No such file or directory\n",
    )
