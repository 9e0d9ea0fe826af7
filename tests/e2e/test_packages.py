"""Packages of environments on a real server: there at session time without a network, and honest when they fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from anthropic import Anthropic

from corral.sandboxes.directory import remove_tree
from tests import docker_engine
from tests.contracts.local_index import Index
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import Json, bash, new_agent, results, script, turn

DOWNLOAD_SECONDS_MAX = 60
MACHINE = ("PIP_", "npm_config_", "NPM_CONFIG_")


@pytest.fixture
def index() -> Iterator[Index]:
    # Not below /tmp, which is a sandbox's own.
    place = Path(tempfile.mkdtemp(prefix="corral-test-", dir="/var/tmp"))
    yield Index(place)
    remove_tree(place)


@pytest.fixture(params=["bubblewrap", "docker"])
def sandboxes(request: pytest.FixtureRequest) -> str:
    """What corral.toml says of each backend that isolates."""
    if request.param == "bubblewrap":
        return ""
    if reason := docker_engine.why_not():
        pytest.skip(reason)
    docker = f"host = {json.dumps(docker_engine.host())}\nimage = {json.dumps(docker_engine.image())}\n"
    return f'\n[sandbox]\nbackend = "docker"\n\n[sandbox.docker]\n{docker}'


def settings(machine: Mapping[str, str], *, private: Sequence[str] = ()) -> str:
    """A server that is set up to take packages from there, and tries failed ones again at once."""
    table = ", ".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in machine.items())
    egress = f"[egress]\nmachine = {{ {table} }}\nallowed_private = {json.dumps(list(private))}\n"
    return f"{egress}\n[packages]\nfailure_seconds = 0.0\n"


def session_with(client: Anthropic, networking: Json = None, **packages: Json) -> str:
    """A session in a new environment, by default without any network but for installing."""
    limited: Json = {"type": "limited", "allow_package_managers": True}
    config: Json = {"type": "cloud", "networking": networking or limited, "packages": packages}
    environment = client.beta.environments.create(name=os.urandom(8).hex(), config=config)
    return client.beta.sessions.create(agent=new_agent(client), environment_id=environment.id).id


def mirrors() -> list[str]:
    """Addresses of public registries by this machine's own names for them, where those are no public addresses."""
    found: set[str] = set()
    for host in ("pypi.org", "files.pythonhosted.org"):
        with suppress(OSError):
            found |= {str(entry[4][0]) for entry in socket.getaddrinfo(host, 443)}
    return [address for address in sorted(found) if not ip_address(address).is_global]


def builds(server: ServerProcess) -> int:
    return (server.directory / "server.log").read_text(encoding="utf-8").count("event=packages_build_started")


@pytest.mark.requirement("F036")
def test_pip_and_npm_packages_are_imported_offline_and_the_second_session_installs_nothing(index: Index) -> None:
    index.wheel("probe_a")
    if Path("/usr/bin/npm").exists():
        packages: Json = {"pip": ["probe_a==1.0"], "npm": [index.npm("probe-n")]}
        look, seen = "python3 -c 'import probe_a' && node -p \"require('probe-n')\" && probe_a", "1.0.0\nprobe_a 1.0"
    else:
        packages, look, seen = {"pip": ["probe_a==1.0"]}, "python3 -c 'import probe_a' && probe_a", "probe_a 1.0"
    with serving(settings(index.machine)) as server, server.client() as client:
        for _ in range(2):
            session_id = session_with(client, **packages)
            assert results(turn(client, session_id, script(bash(look), {"say": "Done."}))) == [seen]
        assert builds(server) == 1


@pytest.mark.requirement("F036")
def test_a_failed_install_is_an_error_that_names_the_package_and_the_session_goes_on(index: Index) -> None:
    with serving(settings(index.machine)) as server, server.client() as client:
        session_id = session_with(client, pip=["probe_a"])
        calls = [bash("probe_a"), bash("probe_a"), {"say": "Done."}]
        seen = turn(client, session_id, script(*calls))
        (error,) = [event.error for event in seen if event.type == "session.error"]
        assert (error.type, error.retry_status.type) == ("unknown_error", "retrying")
        assert "probe_a" in error.message and "No matching distribution" in error.message
        assert results(seen) == [error.message] * 2
        assert seen[-1].type == "session.status_idle"
        assert builds(server) == 1
        index.wheel("probe_a")
        again = turn(client, session_id, script(bash("probe_a"), {"say": "Done."}))
        assert results(again) == ["probe_a 1.0"]
        assert not [event for event in again if event.type == "session.error"]


@pytest.mark.requirement("F036")
def test_packages_come_from_the_registries_that_this_machine_uses(tmp_path: Path, sandboxes: str) -> None:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(tmp_path), "iniconfig"]
    if subprocess.run(download, timeout=DOWNLOAD_SECONDS_MAX, check=False, capture_output=True).returncode:
        pytest.skip("this machine reaches no Python package index")
    machine = {name: value for name, value in os.environ.items() if name.startswith(MACHINE) and name != "PIP_CERT"}
    machine["HOME"] = os.environ.get("HOME", "/")
    with serving(settings(machine, private=mirrors()) + sandboxes) as server, server.client() as client:
        session_id = session_with(client, pip=["iniconfig"])
        calls = [bash("python3 -c 'import iniconfig; print(iniconfig.__name__)'"), {"say": "Done."}]
        assert results(turn(client, session_id, script(*calls))) == ["iniconfig"]
        own = [
            bash("pip install --quiet six 2>/dev/null && python3 -c 'import six; print(six.__name__)'"),
            {"say": "Done."},
        ]
        assert results(turn(client, session_id, script(*own))) == ["six"]
