"""`contentapp config check`: exit codes, both formats, and no secret in either."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contentapp.cli.config_check import config_group

GOOD = """\
content: {workers: 2}
total_timeout: 5m
remotes:
  - name: quay
    type: container
    url: https://quay.io
    username: robot
    password: hunter2
    headers: [{X-Key: hunter3}]
  - {name: files, type: file, url: "https://h/", policy: streamed, username: u, password: {env: NOT_SET_ANYWHERE}}
distributions:
  - {base_path: quay.io, type: container, remotes: [quay]}
  - {base_path: f, type: file, remotes: [files], tag_ttl_patterns: {"[bold]x": 5}}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    path.chmod(0o600)
    return path


def check(*args: str, **environ: str) -> Result:
    result = CliRunner().invoke(config_group, ["check", *args], env={"CONTENTAPP_CONFIG": None, **environ})
    assert "hunter" not in result.output
    return result


def test_the_embedded_defaults() -> None:
    result = check()
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("embedded defaults: ok, 0 warnings")


def test_a_good_file(good: Path) -> None:
    result = check("--config", str(good))
    assert result.exit_code == 0
    rows = {tuple(cell.strip() for cell in line.split("│")[1:4]) for line in result.stdout.splitlines() if "│" in line}
    assert ("content.workers", "2", f"{good}:1") in rows
    assert ("total_timeout", "5m", f"{good}:2") in rows
    assert ("content.listen", "0.0.0.0:8080", "default") in rows
    assert "[bold]x" in result.stdout
    assert result.stdout.rstrip().endswith("good.yaml: ok, 2 warnings")
    assert "remotes.quay.policy: immediate acts as on_demand for pull-through" in result.stderr
    assert "remotes.files.password: environment variable NOT_SET_ANYWHERE is not set" in result.stderr


def test_json(good: Path) -> None:
    result = check("--config", str(good), "--format", "json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["file"], found["valid"], found["problems"], len(found["warnings"])) == (str(good), True, [], 2)
    assert found["settings"]["content.workers"] == 2
    assert found["settings"]["tag_ttl_patterns"] == {}
    assert found["settings"]["total_timeout"] == 300
    assert found["settings"]["admin.listen"] == "127.0.0.1:8081"
    assert found["origins"]["content.workers"] == f"{good}:1"
    assert found["remotes"][0]["password"] == {"literal": "***"}
    assert found["remotes"][0]["headers"] == [{"X-Key": "***"}]
    assert found["remotes"][1]["password"] == {"env": "NOT_SET_ANYWHERE"}
    assert found["distributions"][0]["name"] == "quay.io"


def test_the_variable_names_the_file(good: Path) -> None:
    assert "good.yaml: ok" in check(CONTENTAPP_CONFIG=str(good)).output


def test_the_environment_counts(good: Path) -> None:
    result = check("--config", str(good), "--format", "json", CONTENTAPP_CONTENT__WORKERS="5")
    assert json.loads(result.stdout)["settings"]["content.workers"] == 5


def test_problems(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("content: {workers: 0}\nremotes: [{name: x, url: 'https://u:hunter2@h', type: container}]\n")
    result = check("--config", str(path))
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second, last = result.stderr.splitlines()
    assert first == f"error: {path}:1: content.workers: 0: must be a whole number 1 – 64"
    assert "remotes.x.url" in second
    assert last == "2 problems; this configuration can't be used"


def test_problems_as_json(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: 1\n")
    result = check("--config", str(path), "--format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["valid"]
    [problem] = found["problems"]
    assert problem["file"] == str(path)
    assert (problem["line"], problem["key"]) == (1, "a")


@pytest.mark.parametrize("args", [("--config", "/no/such/file"), ("--format", "xml"), ("extra",)])
def test_usage(args: tuple[str, ...]) -> None:
    assert check(*args).exit_code == 2
