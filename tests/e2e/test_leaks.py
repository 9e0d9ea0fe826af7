"""Secrets of vaults are looked for where they must not be, after sessions that used them in every way there is.

What a sandbox can get hold of is looked for in the tests of the egress proxy.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import anthropic
import httpx2
import pytest
from anthropic import Anthropic

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.oauth_host import Answer, OAuthHost, oauth_host
from tests.e2e.odd_mcp import odd_server, resulting, saying
from tests.e2e.sessions import Json, history, reading, script, send
from tests.e2e.test_mcp import call, session_on
from tests.e2e.test_oauth import Login

BEARER = "planted-bearer-7Qz+/secret"
VARIABLE = "planted-variable-9Xk\nof two lines"
ROTATED = "planted-rotated-3Wp"


@pytest.fixture
def host() -> Iterator[OAuthHost]:
    with oauth_host() as running:
        yield running


def turn(client: Anthropic, session_id: str, *steps: dict[str, object]) -> None:
    with reading(client, session_id) as reader:
        send(client, session_id, script(*steps, {"echo": "messages"}))
        reader.idle()


def use_an_oauth_login(client: Anthropic, host: OAuthHost) -> set[str]:
    """Expiry, refusal, refreshing, failures and validation; the secrets of all that."""
    login = Login(client, host, auth="client_secret_post", seconds=30)
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    secrets = set[str]()
    for answer in (None, Answer(500, b"no"), Answer(200, b'{"access_token": 7}', "application/json")):
        secrets |= login.secrets()
        if answer is not None:
            host.answers["/token"] = Answer(answer.status, answer.body + " ".join(secrets).encode())
            login.revoke_access()
        turn(client, session_id, call("whoami"))
        client.beta.vaults.credentials.mcp_oauth_validate(login.credential_id, vault_id=login.vault_id)
    return secrets | login.secrets()


def use_a_bearer(client: Anthropic) -> str:
    """A server that repeats what it gets wherever it can; the vault."""
    vault_id = client.beta.vaults.create(display_name="planted").id
    with odd_server() as odd:
        auth: Json = {"type": "static_bearer", "mcp_server_url": odd.url, "token": BEARER}
        credential = client.beta.vaults.credentials.create(vault_id, auth=auth)
        variable: Json = {
            "type": "environment_variable",
            "secret_name": "PLANTED",
            "secret_value": VARIABLE,
            "networking": {"type": "unrestricted"},
        }
        client.beta.vaults.credentials.create(vault_id, auth=variable)
        session_id = session_on(client, odd.url, vault_ids=[vault_id])
        echo = f"{BEARER} {base64.b64encode(BEARER.encode()).decode()} {quote(BEARER, safe='')}"
        for oddity in (resulting({"content": [{"type": "text", "text": echo}]}), saying(echo.encode(), status=401)):
            odd.odd["tools/call"] = oddity
            turn(client, session_id, call("good"))
        change: Json = {"type": "static_bearer", "token": ROTATED}
        client.beta.vaults.credentials.update(credential.id, vault_id=vault_id, auth=change)
        odd.odd.clear()
        turn(client, session_id, call("good"), {"tool": "bash", "input": {"command": "env; cat /proc/*/environ"}})
    return vault_id


def provoke_errors(client: Anthropic, vault_id: str) -> str:
    """What the API says about requests that hold secrets and are wrong."""
    said: list[str] = []
    wrong: list[Json] = [
        {"type": "static_bearer", "mcp_server_url": "ftp://x", "token": BEARER},
        {"type": "static_bearer", "mcp_server_url": "http://x/mcp", "token": [BEARER]},
        {"type": "static_bearer", "mcp_server_url": "http://x/mcp", "token": BEARER * 5_000},
        {"type": "environment_variable", "secret_name": "PATH", "secret_value": VARIABLE},
    ]
    for auth in wrong:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.beta.vaults.credentials.create(vault_id, auth=auth)
        said.append(json.dumps(caught.value.body))
    return "\n".join(said)


def export(server: ServerProcess) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "corral", "export", "--data-dir", str(server.directory / "data")],
        env={"PATH": os.environ["PATH"], "HOME": str(server.directory)},
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout + done.stderr


def spelled(secrets: set[str]) -> set[bytes]:
    raw = {secret.encode() for secret in secrets}
    encoded = {base64.b64encode(secret) for secret in raw} | {base64.b64encode(secret).rstrip(b"=") for secret in raw}
    return (
        raw | encoded | {json.dumps(s)[1:-1].encode() for s in secrets} | {quote(s, safe="").encode() for s in secrets}
    )


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file() and not path.is_symlink()}


def cores_are_empty(server: ServerProcess) -> bool:
    """Whether a crash would leave nothing of the server's memory, neither in a file nor with a program."""
    assert server.process is not None
    about = Path(f"/proc/{server.process.pid}")
    lines = (about / "limits").read_text(encoding="ascii").splitlines()
    limits = next(line.split()[4:6] for line in lines if line.startswith("Max core file size"))
    mapped = int((about / "coredump_filter").read_text(encoding="ascii") or "0", 16)
    return (limits, mapped) == (["0", "0"], 0)


@pytest.mark.requirement("F125", "F127")
def test_secrets_of_vaults_are_nowhere(server: ServerProcess, host: OAuthHost) -> None:
    places: dict[str, bytes] = {}
    with server.client() as client:
        secrets = {BEARER, VARIABLE, ROTATED} | use_an_oauth_login(client, host)
        vault_id = use_a_bearer(client)
        places["errors"] = provoke_errors(client, vault_id).encode()
        events = [history(client, session.id) for session in client.beta.sessions.list()]
        places["events"] = str(events).encode()
        lists = [client.beta.vaults.credentials.list(vault.id) for vault in client.beta.vaults.list()]
        places["vaults"] = str([list(each) for each in lists]).encode()
        places["metrics"] = httpx2.get(
            f"{server.base_url}/metrics", headers={"x-api-key": API_KEY}, verify=False
        ).content
        assert len(events) == 2 and b"vcrd_" in places["vaults"] and b"corral_" in places["metrics"]
    places |= files_below(server.directory)
    assert any(name.endswith("corral.db-wal") for name in places)
    assert cores_are_empty(server)
    server.kill()
    places |= {f"after the kill: {name}": data for name, data in files_below(server.directory).items()}
    places["export"] = export(server).encode()
    assert b"session" in places["export"]
    server.start()
    wanted = spelled(secrets)
    found = {(name, secret) for name, data in places.items() for secret in wanted if secret in data}
    assert not found
    master_key = (server.directory / "data" / "master.key").read_bytes().strip()
    held = {name for name, data in places.items() if master_key in data and not name.endswith("/master.key")}
    assert not held
