"""What holds for every request: keys, headers, errors, limits, models."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anthropic
import httpx2
import pytest
from anthropic import Anthropic

from tests.e2e.conftest import API_KEY, CLIENT_SECONDS_MAX, ServerProcess, serving
from tests.e2e.sessions import Json, message, new_agent, new_session

BETA = {"anthropic-beta": "managed-agents-2026-04-01"}


def get(server: ServerProcess, path: str = "/v1/agents", **headers: str) -> httpx2.Response:
    with httpx2.Client(base_url=server.base_url, timeout=CLIENT_SECONDS_MAX, verify=False) as http:
        return http.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.requirement("F154")
def test_a_key_is_taken_as_a_bearer_or_in_a_header_of_its_own(live: ServerProcess) -> None:
    assert get(live, authorization=f"Bearer {API_KEY}", **BETA).status_code == 200
    assert get(live, x_api_key=API_KEY, **BETA).status_code == 200
    for headers in ({}, {"x_api_key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": API_KEY}):
        refused = get(live, **headers, **BETA)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"


@pytest.mark.requirement("F154")
def test_a_wrong_key_is_an_authentication_error_of_the_sdk(live: ServerProcess) -> None:
    with live.client("wrong-key-entirely") as stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.beta.agents.list()


@pytest.mark.requirement("F155")
def test_the_beta_must_be_asked_for_and_any_known_version_will_do(live: ServerProcess) -> None:
    assert get(live, x_api_key=API_KEY).status_code == 404
    unknown = get(live, x_api_key=API_KEY, anthropic_beta="managed-agents-2026-04-01,time-travel-2030-01-01")
    assert unknown.status_code == 400 and "time-travel-2030-01-01" in unknown.json()["error"]["message"]
    for version in ("2023-06-01", "2026-10-21"):
        assert get(live, x_api_key=API_KEY, anthropic_version=version, **BETA).status_code == 200
    assert get(live, "/v1/agents?beta=true", x_api_key=API_KEY, **BETA).status_code == 200
    assert get(live, "/v1/agents?alpha=true", x_api_key=API_KEY, **BETA).status_code == 400


@pytest.mark.requirement("F156")
def test_errors_carry_a_type_a_message_and_the_id_of_the_request(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.beta.sessions.retrieve("sesn_nobody")
    error = caught.value
    shown: Json = error.body
    assert (error.type, shown["type"], shown["error"]["type"]) == ("not_found_error", "error", "not_found_error")
    assert "sesn_nobody" in shown["error"]["message"]
    assert error.request_id is not None and error.request_id.startswith("req_")
    assert shown["request_id"] == error.request_id
    assert client.beta.agents.with_raw_response.list().headers["request-id"] != error.request_id


@pytest.mark.requirement("F157")
def test_over_the_rate_the_sdk_is_told_when_to_come_back() -> None:
    settings = "[server]\nrate_limits = true\ncreate_requests_per_minute = 60\nread_requests_per_minute = 1000\n"
    with serving(settings) as server, server.client() as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            for _ in range(200):
                new_agent(client)
        response = caught.value.response
        assert (caught.value.type, int(response.headers["retry-after"])) == ("rate_limit_error", 1)
        assert len(list(client.beta.agents.list(limit=100))) < 100
        patient = client.with_options(max_retries=3)
        assert patient.beta.agents.create(name="n", model="m").version == 1


@pytest.mark.requirement("F158")
def test_a_key_belongs_to_a_workspace_and_sees_nothing_of_another(live: ServerProcess, client: Anthropic) -> None:
    command = [sys.executable, "-m", "corral", "keys", "create", "--workspace", "wrkspc_other"]
    command += ["--data-dir", str(live.directory / "data")]
    created = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    key = next(word for word in created.stdout.split() if word.startswith("sk-corral-"))
    session = new_session(client)
    with live.client(key) as other:
        for ask in (
            lambda: other.beta.sessions.retrieve(session.id),
            lambda: other.beta.agents.retrieve(session.agent.id),
            lambda: other.beta.environments.retrieve(session.environment_id),
            lambda: other.beta.sessions.events.send(session.id, events=[message("Hello.")]),
            lambda: other.beta.sessions.events.stream(session.id),
            lambda: other.beta.sessions.delete(session.id),
        ):
            with pytest.raises(anthropic.NotFoundError):
                ask()
        assert list(other.beta.sessions.list(include_archived=True)) == []
        other.beta.agents.list(workspace_id="wrkspc_other")
        with pytest.raises(anthropic.PermissionDeniedError):
            other.beta.agents.list(workspace_id="wrkspc_default")


@pytest.mark.requirement("F159")
def test_a_body_over_the_limit_is_too_large(client: Anthropic) -> None:
    session = new_session(client)
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        client.beta.sessions.events.send(session.id, events=[message("x" * (33 * 1024 * 1024))])
    assert caught.value.type == "request_too_large"
    assert list(client.beta.sessions.events.list(session.id)) == []


@pytest.mark.requirement("F160")
def test_models_are_listed_with_what_they_can_do(client: Anthropic) -> None:
    models = list(client.models.list(limit=2))
    assert len(models) > 2
    found = client.models.retrieve(models[-1].id)
    assert found.to_dict() == models[-1].to_dict()
    assert "priced" in [model.id for model in models]
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("no-such-model")


def raw(server: ServerProcess) -> socket.socket:
    """A connection, for what no client would send."""
    port = httpx2.URL(server.base_url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=CLIENT_SECONDS_MAX)


@pytest.mark.requirement("F159")
@pytest.mark.parametrize("begun", [b"GET /v1/agents HTTP/1.1\r\nhost: x\r\nx-endless: ", b"GET /v1/agents?"])
def test_a_head_without_end_is_not_gathered(live: ServerProcess, begun: bytes) -> None:
    """No key is needed to send one."""
    with raw(live) as connection:
        connection.sendall(begun)
        refused = b""
        with suppress(ConnectionError):
            for _ in range(64):
                connection.sendall(b"x" * 65_536)
            pytest.fail("four megabytes of head were taken")
        with suppress(ConnectionError):
            refused = connection.recv(4_096)
        assert not refused or refused.startswith(b"HTTP/1.1 400 ")
    assert get(live, x_api_key=API_KEY, x_long="x" * 30_000, **BETA).status_code == 200


@pytest.mark.requirement("F156")
def test_a_url_cannot_write_into_the_log(live: ServerProcess) -> None:
    hostile = "forged%0d%0alevel=error%1b%5b2Jevent=%e2%80%a8boom%c2%85%20%22"
    with raw(live) as connection:
        connection.sendall(f"GET /v1/{hostile} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert connection.recv(4_096).startswith(b"HTTP/1.1 404 ")
        while connection.recv(4_096):
            pass
    get(live, "/healthz")  # written after the answer, and before the next one
    with (live.directory / "server.log").open(encoding="utf-8", newline="") as log:
        (line,) = (each for each in log.read().split("\n") if "forged" in each)
    assert line.isprintable() and "event=request" in line


AT_ONCE = 20


@pytest.mark.requirement("F007", "F126")
def test_changes_that_many_clients_make_at_once_all_happen(client: Anthropic) -> None:
    agent = client.beta.agents.create(name="n", model="m")
    vault = client.beta.vaults.create(display_name="busy")

    def change(number: int) -> None:
        client.beta.agents.update(agent.id, system=f"{number}")
        auth: Json = {"type": "static_bearer", "token": "t", "mcp_server_url": f"https://{number}.example.com/mcp"}
        client.beta.vaults.credentials.create(vault.id, auth=auth)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(change, range(AT_ONCE)))
    assert client.beta.agents.retrieve(agent.id).version == AT_ONCE + 1
    assert len(list(client.beta.vaults.credentials.list(vault.id))) == AT_ONCE
