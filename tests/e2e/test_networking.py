"""An environment's networking, through the whole server with the SDK: a scripted agent runs curl."""

from __future__ import annotations

import tempfile
import urllib.request
from pathlib import Path

import pytest

from tests.contracts.egress_hosts import ALLOWED, OTHER, hosts
from tests.e2e.conftest import API_KEY, ServerProcess, serving
from tests.e2e.sessions import Json, bash, new_agent, results, script, turn

REQUESTS_MAX = 2_000
TOML = """
[egress]
allowed_private = ["127.0.0.1/32"]
ca_file = "{authority}"
hosts = {{ "{allowed}" = "127.0.0.1", "{other}" = "127.0.0.1" }}
"""


@pytest.mark.requirement("F035")
def test_an_agent_reaches_the_allowed_host_and_nothing_else_and_refusals_are_counted() -> None:
    with tempfile.TemporaryDirectory() as directory, hosts(Path(directory)) as world:
        toml = TOML.format(authority=world.authority, allowed=ALLOWED, other=OTHER)
        with serving(toml) as server, server.client() as client:
            limited: Json = {"type": "limited", "allowed_hosts": [ALLOWED]}
            config: Json = {"type": "cloud", "networking": limited}
            environment = client.beta.environments.create(name="one host", config=config)
            agent = new_agent(client)
            session = client.beta.sessions.create(agent=agent, environment_id=environment.id)
            calls = [
                bash(f"curl -sS https://{ALLOWED}:{world.allowed.port}/"),
                bash(f"curl -sS https://{OTHER}:{world.other.port}/"),
                bash(f"curl -sS http://{ALLOWED}:{server.port}/healthz"),
            ]
            seen = turn(client, session.id, script(*calls, {"say": "Done."}))
            answers = results(seen)
            assert answers[0] == f"hello from {ALLOWED}"
            assert "403" in answers[1] and world.other.seen == []
            assert "this server itself" in answers[2]
            # The proxy reports now and then.
            counted = 'corral_egress_refused_total{reason="host_not_allowed"} 1.0'
            assert any(counted in metrics(server) for _ in range(REQUESTS_MAX))


def metrics(server: ServerProcess) -> str:
    request = urllib.request.Request(f"{server.base_url}/metrics", headers={"x-api-key": API_KEY})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()
