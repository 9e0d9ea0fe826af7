"""`corral vault` as processes beside a running server; the test is the person at the terminal and the browser."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from pydantic import AnyUrl

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.mcp_host import mcp_host
from tests.e2e.oauth_host import Answer, OAuthHost, oauth_host
from tests.e2e.sessions import reading, script, send, texts
from tests.e2e.test_mcp import call, session_on

SECONDS_MAX = 90


@pytest.fixture
def host() -> Iterator[OAuthHost]:
    with oauth_host() as running:
        yield running


class Terminal:
    """Runs `corral vault` against one server."""

    def __init__(self, directory: Path, server: ServerProcess) -> None:
        self.directory = directory
        self.url = server.base_url
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "COLUMNS": "200"}
        self.environment["CORRAL_API_KEY"] = API_KEY

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "corral", "vault", *arguments, "--url", self.url]

    def run(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )

    def done(self, *arguments: str, typed: str = "") -> str:
        """The last line of what it prints when it works."""
        done = self.run(*arguments, typed=typed)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    @contextmanager
    def login(self, *arguments: str, typed: str = "") -> Generator[tuple[str, subprocess.Popen[str]]]:
        """A login up to where the browser is needed: its URL, and the process."""
        pipe = subprocess.PIPE
        command = self.command("login", *arguments)
        with subprocess.Popen(
            command, cwd=self.directory, env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(typed)
                process.stdin.close()
                process.stdin = None
                url = next((line.strip() for line in process.stdout if line.startswith("http")), "")
                yield url, process
            finally:
                process.kill()


def browse(url: str) -> httpx2.Response:
    with httpx2.Client(follow_redirects=True, timeout=30, trust_env=False) as browser:
        return browser.get(url)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, out, err


@pytest.fixture
def terminal(tmp_path: Path, live: ServerProcess) -> Terminal:
    return Terminal(tmp_path, live)


@pytest.mark.requirement("F124", "F125")
def test_secrets_are_piped_in_and_never_shown(terminal: Terminal, live: ServerProcess) -> None:
    with mcp_host() as host:
        host.token = "token-from-a-pipe"
        vault_id = terminal.done("create", "Team [red]")
        bearer = terminal.done("add", vault_id, "--server", host.url, typed=f"{host.token}\n")
        variable = terminal.done("add", vault_id, "--variable", "API_KEY", "--host", "*.example.com", typed="hidden")
        listed = terminal.run("list", vault_id).stdout
        assert bearer in listed and variable in listed and host.url in listed and "API_KEY" in listed
        assert "token-from-a-pipe" not in listed and "hidden" not in listed
        assert "Team [red]" in terminal.run("list").stdout
        with live.client() as client:
            session_id = session_on(client, host.url, vault_ids=[vault_id])
            with reading(client, session_id) as reader:
                send(client, session_id, script(call("add", a=1, b=1)))
                reader.idle()
            assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["2"]
            auth = client.beta.vaults.credentials.retrieve(variable, vault_id=vault_id).auth
            assert auth.type == "environment_variable" and auth.networking.type == "limited"
    assert terminal.done("delete", vault_id, bearer) == f"{bearer} is deleted."
    assert bearer not in terminal.run("list", vault_id).stdout
    assert terminal.done("delete", vault_id) == f"{vault_id} is deleted."
    gone = terminal.run("list", vault_id)
    assert gone.returncode == 1 and "was not found" in gone.stderr and "Traceback" not in gone.stderr


def test_what_cannot_be_done_is_one_sentence(terminal: Terminal) -> None:
    vault_id = terminal.done("create", "strict")
    empty = terminal.run("add", vault_id, "--server", "http://127.0.0.1/mcp")
    assert (empty.returncode, "nothing was given" in empty.stderr) == (1, True)
    assert terminal.run("add", vault_id, typed="x").returncode == 2
    both = terminal.run("add", vault_id, "--server", "http://x/mcp", "--variable", "X", typed="x")
    assert both.returncode == 2
    refused = terminal.run("add", vault_id, "--server", "ftp://x", typed="x")
    assert (refused.returncode, "mcp_server_url" in refused.stderr) == (1, True)
    terminal.url = "http://127.0.0.1:9"
    nobody = terminal.run("list")
    assert (nobody.returncode, "corral serve" in nobody.stderr) == (1, True)
    assert "Traceback" not in nobody.stderr + refused.stderr + empty.stderr


@pytest.mark.requirement("F127")
def test_a_login_registers_a_client_and_its_tokens_are_refreshed(
    terminal: Terminal, live: ServerProcess, host: OAuthHost
) -> None:
    vault_id = terminal.done("create", "login")
    with terminal.login(vault_id, host.url) as (url, process):
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["code_challenge_method"], asked["resource"]) == ("S256", host.url)
        page = browse(url)
        assert page.status_code == 200 and "You can close this page" in page.text
        code, out, err = end(process)
    assert code == 0, err
    (registered,) = host.grants.clients.values()
    assert registered.client_name == "Corral"
    with live.client() as client:
        credential = client.beta.vaults.credentials.retrieve(out.strip().splitlines()[-1], vault_id=vault_id)
        auth = credential.auth
        assert auth.type == "mcp_oauth" and auth.expires_at is not None and auth.refresh is not None
        assert (auth.refresh.token_endpoint, auth.refresh.resource) == (host.token_endpoint, host.url)
        host.grants.access.clear()
        session_id = session_on(client, host.url, vault_ids=[vault_id])
        with reading(client, session_id) as reader:
            send(client, session_id, script(call("whoami")))
            reader.idle()
        assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["a friend"]
    assert [form["grant_type"] for form in host.exchanges] == ["authorization_code", "refresh_token"]
    assert not [token for token in (*host.grants.access, *host.grants.refreshes) if token in out + err]
    assert terminal.done("validate", vault_id, credential.id) == "valid"
    host.grants.access.clear()
    host.grants.refreshes.clear()
    refused = terminal.run("validate", vault_id, credential.id)
    assert refused.returncode == 1
    assert refused.stdout.splitlines() == [
        "invalid",
        "The MCP server failed at initialize: HTTP 401.",
        "Refreshing the token: failed.",
    ]


@pytest.mark.requirement("F127")
def test_a_client_of_ones_own_is_used_and_a_second_login_replaces_the_first(
    terminal: Terminal, host: OAuthHost
) -> None:
    own = host.client("client_secret_basic")
    vault_id = terminal.done("create", "own client")
    options = ("--client-id", own.client_id, "--client-secret", "--port", "0")
    kept: list[str] = []
    for more in ((), ("--replace",)):
        with terminal.login(vault_id, host.url, *options, *more, typed=own.client_secret or "") as (url, process):
            own.redirect_uris = [*(own.redirect_uris or []), redirect_of(url)]
            assert browse(url).status_code == 200
            code, out, err = end(process)
        assert code == 0, err
        kept.append(out.strip().splitlines()[-1])
    refused = terminal.run("login", vault_id, host.url)
    assert refused.returncode == 1 and "--replace" in refused.stderr
    listed = terminal.run("list", vault_id).stdout
    assert kept[1] in listed and kept[0] not in listed
    assert len(host.grants.clients) == 1


def redirect_of(url: str) -> AnyUrl:
    return AnyUrl(parse_qs(urlsplit(url).query)["redirect_uri"][0])


def test_a_login_that_is_refused_or_forged(terminal: Terminal, host: OAuthHost) -> None:
    vault_id = terminal.done("create", "refused")
    with terminal.login(vault_id, host.url) as (url, process):
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        back = asked["redirect_uri"]
        for forged in (f"{back}?code=mine&state=guessed", f"{back}?code=mine", back.replace("/callback", "/x")):
            assert browse(forged).status_code == 404
        browse(f"{back}?error=access_denied&error_description=Not+today&state={asked['state']}")
        code, _, err = end(process)
    assert (code, "Not today" in err, "Traceback" in err) == (1, True, False)
    host.answers["/token"] = Answer(500)
    with terminal.login(vault_id, host.url) as (url, process):
        browse(url)
        code, _, err = end(process)
    assert (code, "login failed" in err, "Traceback" in err) == (1, True, False)
    assert "vcrd_" not in terminal.run("list", vault_id).stdout


def test_a_server_that_wants_no_login_or_registers_nobody(terminal: Terminal, host: OAuthHost) -> None:
    vault_id = terminal.done("create", "none")
    with mcp_host() as free:
        done = terminal.run("login", vault_id, free.url)
    assert done.returncode == 1 and "does not ask for a login" in done.stderr
    host.answers["/register"] = Answer(403)
    done = terminal.run("login", vault_id, host.url)
    assert done.returncode == 1 and "--client-id" in done.stderr and "Traceback" not in done.stderr
