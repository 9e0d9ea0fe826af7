"""What is in deploy/: that it is well-formed, that its tools accept it where they are installed, and that it is true.

Commands, settings, variables and metrics that the files name must be those of this program.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
import typer.main
import yaml

from corral import cli, config
from tests.e2e.conftest import serving
from tests.e2e.test_observing import metrics_text

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "corral"
SECONDS_MAX = 120
PLAIN_YAML = ("compose.yaml", "alerts.yaml", "prometheus.yaml", "helm/corral/values.yaml", "helm/corral/Chart.yaml")
LINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: {max-spaces-inside: 1}}}"
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
Yaml: TypeAlias = Any
"""YAML as it is."""


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def run(*command: str | Path, **variables: str) -> str:
    """What the command prints; it must succeed."""
    arguments, environment = [str(each) for each in command], os.environ | variables
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS_MAX, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


def test_compose_keeps_to_its_schema() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_compose_accepts_the_file() -> None:
    docker = tool("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True, timeout=SECONDS_MAX).returncode:
        pytest.skip("this docker has no compose")
    filled = dict.fromkeys(re.findall(r"^([A-Z_0-9]+)=", read("env.example"), flags=re.MULTILINE), "x")
    run(docker, "compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet", **filled)


def test_helm_accepts_the_chart_and_its_settings_can_be_read(tmp_path: Path) -> None:
    helm = tool("helm")
    run(helm, "lint", "--strict", CHART)
    more = {"settings": "engine = 'temporal'\n[server]\nping_seconds = 7", "ingress": {"enabled": True}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(more), encoding="utf-8")
    rendered = run(helm, "template", "test", CHART, "--values", tmp_path / "values.yaml")
    (written,) = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "ConfigMap"]
    (tmp_path / "corral.toml").write_text(written["data"]["corral.toml"], encoding="utf-8")
    settings = config.load(environ={"HOME": "/"}, file=tmp_path / "corral.toml")
    assert settings.engine == "temporal" and settings.server.ping_seconds == 7 and settings.blobs.bucket == "corral"


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
    needed = [each for extra in ("postgres", "s3", "otel", "temporal") for each in extras[extra]]
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


# ----------------------------------------------------------------------------------------- commands and settings


def parses(name: str, *arguments: str) -> bool:
    """Whether the command line knows this command and its options."""
    command: Yaml = typer.main.get_command(cli.app)
    options = {option for each in command.commands[name].params for option in [*each.opts, *each.secondary_opts]}
    return {each for each in arguments if each.startswith("--")} <= options


@cache
def compose() -> Mapping[str, Yaml]:
    return yaml.safe_load(read("compose.yaml"))


def own_services() -> Mapping[str, Yaml]:
    return {name: each for name, each in compose()["services"].items() if "build" in each}


def test_compose_starts_two_apis_and_two_workers_by_commands_that_exist() -> None:
    services = own_services()
    assert services.keys() == {"api", "worker", "migrate"}
    assert services["api"]["deploy"]["replicas"] == services["worker"]["deploy"]["replicas"] == 2
    assert "--no-worker" in services["api"]["command"]
    assert all(parses(*each["command"]) for each in services.values())
    assert all(each["cap_drop"] == ["ALL"] for each in services.values())


def test_variables_that_deploy_files_set_are_known() -> None:
    known = {*config.ENVIRONMENT, "CORRAL_CONFIG"}
    template = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    named = set(re.findall(r"\b(CORRAL_[A-Z_]+)\b", template + read("Dockerfile") + read("helm/corral/values.yaml")))
    for service in own_services().values():
        named |= {each for each in service["environment"] if each.startswith("CORRAL_")}
    assert named and not named - known


def test_secrets_of_compose_are_asked_for_and_explained() -> None:
    asked = set(re.findall(r"\$\{([A-Z_0-9]+)(?::\?|:-\})", read("compose.yaml")))
    assert asked == set(re.findall(r"^([A-Z_0-9]+)=$", read("env.example"), flags=re.MULTILINE))


def test_settings_of_compose_can_be_read() -> None:
    settings = config.load(environ={"HOME": "/"}, file=DEPLOY / "corral.toml")
    assert settings.blobs.backend == "s3" and settings.blobs.bucket
    assert f"/data/{settings.blobs.bucket}" in " ".join(compose()["services"]["objects"]["entrypoint"])


# ---------------------------------------------------------------------------------------------------- the chart


def templates() -> Iterator[tuple[str, str]]:
    for path in sorted((CHART / "templates").iterdir()):
        yield path.name, path.read_text(encoding="utf-8")


def leaves_of(values: Yaml, path: str = "") -> Iterator[str]:
    """Dotted names of all values, of groups too."""
    if path:
        yield path
    if isinstance(values, dict):
        for name, inner in cast("dict[str, Yaml]", values).items():
            yield from leaves_of(inner, f"{path}.{name}" if path else name)


def test_values_that_templates_use_exist_and_those_that_exist_are_used() -> None:
    names = set(leaves_of(yaml.safe_load(read("helm/corral/values.yaml"))))
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", "".join(text for _, text in templates())))
    assert not used - names
    assert not [
        name for name in names if not any(f"{name}.".startswith(f"{use}.") or use.startswith(name) for use in used)
    ]


def test_templates_are_balanced_and_include_what_is_defined() -> None:
    defined = set(re.findall(r'define "([^"]+)"', "".join(text for _, text in templates())))
    for name, text in templates():
        actions = re.findall(r"\{\{-?\s*(\w+)", text)
        opened = sum(actions.count(each) for each in ("if", "with", "range", "define"))
        assert opened == actions.count("end"), name
        assert set(re.findall(r'include "([^"]+)"', text)) <= defined, name
        assert text.count("{{") == text.count("}}"), name


def test_the_skeletons_of_templates_are_yaml_with_commands_that_exist() -> None:
    kinds: list[str] = []
    for name, text in templates():
        if not name.endswith(".yaml"):
            continue
        kept = [line for line in text.splitlines() if not re.fullmatch(r"\s*\{\{.*\}\}\s*", line)]
        plain = re.sub(r"\{\{.*?\}\}", "x", "\n".join(kept))
        documents: list[Yaml] = list(yaml.safe_load_all(plain))
        kinds += [each["kind"] for each in documents]
        for arguments in re.findall(r"args: (\[.*\])", plain):
            assert parses(*yaml.safe_load(arguments)), name
    wanted = ["ConfigMap", "Deployment", "Ingress", "Job", "PodDisruptionBudget", "Service", "ServiceAccount"]
    assert sorted(set(kinds)) == [*wanted, "StatefulSet"]


def test_pods_have_limits_of_what_they_may_do() -> None:
    values: Yaml = yaml.safe_load(read("helm/corral/values.yaml"))
    assert values["podSecurityContext"]["runAsNonRoot"] and values["podSecurityContext"]["runAsUser"] == 10001
    assert values["containerSecurityContext"]["capabilities"]["drop"] == ["ALL"]
    assert not values["containerSecurityContext"]["allowPrivilegeEscalation"]
    for name in ("api.yaml", "worker.yaml", "migrate.yaml"):
        text = (CHART / "templates" / name).read_text(encoding="utf-8")
        assert ".Values.podSecurityContext" in text and ".Values.containerSecurityContext" in text


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
