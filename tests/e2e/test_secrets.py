"""Environment variables of vaults, through the whole server with the SDK: a scripted agent runs curl."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthropic import Anthropic

from tests.contracts.egress_hosts import ALLOWED, OTHER, Hosts, hosts
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import Json, bash, new_agent, results, script, turn
from tests.e2e.test_networking import TOML

SECRET = "sk-the-planted-secret-of-this-test"


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[ServerProcess, Hosts]]:
    with tempfile.TemporaryDirectory() as directory, hosts(Path(directory)) as world:
        toml = TOML.format(authority=world.authority, allowed=ALLOWED, other=OTHER)
        with serving(toml + "[harness]\nvaults_read_seconds = 0.2\n") as server:
            yield server, world


def variable(value: str, *listed: str, name: str = "API_KEY") -> Json:
    networking = {"type": "limited", "allowed_hosts": list(listed or (ALLOWED,))}
    return {"type": "environment_variable", "secret_name": name, "secret_value": value, "networking": networking}


def session_with(client: Anthropic, *vault_ids: str) -> str:
    config: Json = {"type": "cloud", "networking": {"type": "limited", "allowed_hosts": [ALLOWED]}}
    environment = client.beta.environments.create(name=f"for {vault_ids[0]}", config=config)
    return client.beta.sessions.create(
        agent=new_agent(client), environment_id=environment.id, vault_ids=list(vault_ids)
    ).id


def ask(world: Hosts) -> dict[str, object]:
    return bash(f'curl -sS -H "x-key: $API_KEY" https://{ALLOWED}:{world.allowed.port}/echo/plain; echo; echo $API_KEY')


@pytest.mark.requirement("F129")
def test_the_first_vault_wins_and_rotation_and_archive_reach_a_session_that_runs(
    world: tuple[ServerProcess, Hosts],
) -> None:
    server, found = world
    with server.client() as client:
        vaults = client.beta.vaults
        first, second = (vaults.create(display_name=name).id for name in ("first", "second"))
        credential = vaults.credentials.create(first, auth=variable(SECRET))
        vaults.credentials.create(second, auth=variable("sk-of-the-second-vault"))
        session_id = session_with(client, first, second)
        seen = results(turn(client, session_id, script(ask(found), {"say": "Done."})))
        got = found.allowed.requests.pop().headers
        assert got["x-key"] == SECRET and SECRET not in seen[0]
        held = seen[0].splitlines()[-1]
        assert held.startswith("corral-secret-") and f"x-key: {held}" in seen[0]
        vaults.credentials.update(
            credential.id, vault_id=first, auth={"type": "environment_variable", "secret_value": "sk-rotated-secret"}
        )
        rotated = results(turn(client, session_id, script(ask(found), {"say": "Done."})))
        assert found.allowed.requests.pop().headers["x-key"] == "sk-rotated-secret"
        assert rotated[0].splitlines()[-1] == held
        server.kill()
        server.start()
    with server.client() as client:
        vaults = client.beta.vaults
        again = results(turn(client, session_id, script(ask(found), {"say": "Done."})))
        assert found.allowed.requests.pop().headers["x-key"] == "sk-rotated-secret"
        assert again[0].splitlines()[-1] == held
        vaults.credentials.archive(credential.id, vault_id=first)
        turn(client, session_id, script(ask(found), {"say": "Done."}))
        assert found.allowed.requests.pop().headers["x-key"] == held


@pytest.mark.requirement("F129", "F131")
def test_a_command_that_goes_on_gets_the_rotated_secret(world: tuple[ServerProcess, Hosts]) -> None:
    server, found = world
    loop = (
        "import os, time, urllib.request\n"
        "deadline = time.monotonic() + 60\n"
        "while time.monotonic() < deadline:\n"
        f"    request = urllib.request.Request('https://{ALLOWED}:{found.allowed.port}/echo/plain',\n"
        "                                     headers={'x-key': os.environ['API_KEY']})\n"
        "    urllib.request.urlopen(request).read()\n"
        "    if os.path.exists('stop'): break\n"
    )
    with server.client() as client:
        vaults = client.beta.vaults
        vault_id = vaults.create(display_name="mine").id
        credential = vaults.credentials.create(vault_id, auth=variable(SECRET))
        session_id = session_with(client, vault_id)
        with client.beta.sessions.events.stream(session_id) as stream:
            steps = script(bash(f"cat > loop.py <<'END'\n{loop}\nEND\npython3 loop.py"), {"say": "Done."})
            message: Json = {"type": "user.message", "content": [{"type": "text", "text": steps}]}
            client.beta.sessions.events.send(session_id, events=[message])
            found.allowed.wait_for(SECRET)
            rotation: Json = {"type": "environment_variable", "secret_value": "sk-rotated-secret"}
            vaults.credentials.update(credential.id, vault_id=vault_id, auth=rotation)
            found.allowed.wait_for("sk-rotated-secret")
            (server.workspace(session_id) / "stop").touch()
            next(event for event in stream if event.type == "session.status_idle")


@pytest.mark.requirement("F129")
def test_a_credential_for_a_host_that_the_environment_blocks_is_told_and_the_session_goes_on(
    world: tuple[ServerProcess, Hosts],
) -> None:
    server, found = world
    with server.client() as client:
        vault_id = client.beta.vaults.create(display_name="mine").id
        credential = client.beta.vaults.credentials.create(
            vault_id, auth=variable(SECRET, ALLOWED, OTHER, "*.nowhere.test")
        )
        session_id = session_with(client, vault_id)
        seen = turn(client, session_id, script(ask(found), {"say": "Done."}))
        (error,) = [event.error for event in seen if event.type == "session.error"]
        assert error.type == "credential_host_unreachable_error"
        assert (error.credential_id, error.vault_id) == (credential.id, vault_id)
        assert f"{OTHER}, *.nowhere.test." in error.message and ALLOWED not in error.message
        assert error.retry_status.type == "retrying"
        assert found.allowed.requests.pop().headers["x-key"] == SECRET
        assert seen[-1].type == "session.status_idle"
