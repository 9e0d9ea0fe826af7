"""What is in deploy/: that it is well-formed, that its tools accept it where they are installed, and that it is true.

Commands, settings, variables and metrics that the files name must be those of this program.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import typer.main
import yaml

from corral import cli
from tests.e2e.conftest import serving
from tests.e2e.test_observing import metrics_text

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
SECONDS_MAX = 120
PLAIN_YAML = ("alerts.yaml", "prometheus.yaml")
LINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: {max-spaces-inside: 1}}}"
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
Yaml: TypeAlias = Any
"""YAML as it is."""


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def run(*command: str | Path, **variables: str) -> None:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=SECONDS_MAX, env=variables or None
    )
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    """A program, from this environment or from the machine; without it the test is skipped."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


# ---------------------------------------------------------------------------------------------------- linters


@pytest.mark.parametrize("name", PLAIN_YAML)
def test_yaml_is_tidy(name: str) -> None:
    run(tool("yamllint"), "--strict", "--config-data", LINT, DEPLOY / name)


def test_the_dockerfile_passes_its_linter() -> None:
    run(tool("hadolint"), DEPLOY / "Dockerfile")


def test_promtool_accepts_the_alerts() -> None:
    run(tool("promtool"), "check", "rules", DEPLOY / "alerts.yaml")


# ---------------------------------------------------------------------------------------------------- the image


def test_the_image_runs_as_an_ordinary_user_and_says_whether_it_is_healthy() -> None:
    lines = read("Dockerfile").replace("\\\n", "").splitlines()
    assert [line.split()[1].split(":")[0] for line in lines if line.startswith("FROM ")] == ["python", "python"]
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert int(user.split(":")[0]) > 0
    (health,) = [line for line in lines if "/healthz" in line and line.startswith("HEALTHCHECK")]
    assert "http://127.0.0.1:8700/healthz" in health
    assert re.findall(r"[a-z]+://[^/ '\"]+", "\n".join(lines)) == ["http://127.0.0.1:8700"]
    assert parses(*json.loads(next(line for line in lines if line.startswith("CMD ")).removeprefix("CMD ")))


def test_the_image_installs_what_is_pinned() -> None:
    text = read("Dockerfile")
    assert "--require-hashes" in text and "--only-binary :all:" in text
    (name,) = set(re.findall(r"requirements/\w+\.txt", text))
    pinned = (ROOT / name).read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    needed = [each for extra in ("postgres", "s3", "otel") for each in extras[extra]]
    names = [re.split(r"[^a-z0-9-]", each)[0] for each in needed]
    assert names and not [each for each in names if f"\n{each}==" not in pinned]


def test_the_builder_is_sent_nothing_but_what_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        source.split("/")[0]
        for line in read("Dockerfile").splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert sent == copied and all((ROOT / each).exists() for each in sent)


# --------------------------------------------------------------------------------------------------- commands


def parses(name: str, *arguments: str) -> bool:
    """Whether the command line knows this command and its options."""
    command: Yaml = typer.main.get_command(cli.app)
    options = {option for each in command.commands[name].params for option in [*each.opts, *each.secondary_opts]}
    return {each for each in arguments if each.startswith("--")} <= options


# ------------------------------------------------------------------------------------------------------ metrics


@pytest.fixture(scope="module")
def families() -> set[str]:
    """Names of the series that a real server has, or will have once something happens."""
    with serving() as server:
        text = metrics_text(server)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))
    names = {name for name, kind in kinds.items() if kind != "histogram"}
    names |= {f"{name}{suffix}" for name, kind in kinds.items() if kind == "histogram" for suffix in SUFFIXES[1:]}
    return {name for name in names if name.startswith("corral_") and not name.endswith("_created")}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcorral_[a-z_]+\b", text))


def test_the_dashboard_shows_series_that_exist_and_leaves_none_out(families: set[str]) -> None:
    panels: list[Yaml] = json.loads(read("grafana.json"))["panels"]
    shown = named(" ".join(target["expr"] for panel in panels for target in panel["targets"]))
    assert shown and not shown - families
    assert len({panel["id"] for panel in panels}) == len(panels)
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families}
    assert plain - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} <= {"corral_egress_proxy_starts_total"}


def test_alerts_watch_series_that_exist(families: set[str]) -> None:
    rules: list[Yaml] = [rule for group in yaml.safe_load(read("alerts.yaml"))["groups"] for rule in group["rules"]]
    watched = named(" ".join(rule["expr"] for rule in rules))
    assert watched and not watched - families
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert not [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in page]


def test_the_page_for_operators_names_every_series(families: set[str]) -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families}
    assert not [name for name in sorted(plain) if f"`{name}`" not in page]
