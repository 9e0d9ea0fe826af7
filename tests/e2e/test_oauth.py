"""Tokens of MCP servers that expire, are refused, refreshed and revoked, with a real OAuth server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import API_KEY, ServerProcess, serving
from tests.e2e.mcp_host import WAIT_SECONDS
from tests.e2e.oauth_host import Answer, OAuthHost, failing, oauth_host
from tests.e2e.sessions import Json, history, reading, script, send, texts
from tests.e2e.test_mcp import call, session_on

IMPATIENT = "[vaults]\nrequest_seconds_max = 2.0\n"


@pytest.fixture
def host() -> Iterator[OAuthHost]:
    with oauth_host() as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    """A server that does not wait long for token endpoints."""
    with serving(IMPATIENT) as running:
        yield running


class Login:
    """A vault with what somebody's login came to."""

    def __init__(
        self,
        client: Anthropic,
        host: OAuthHost,
        *,
        auth: str = "none",
        seconds: float | None = None,
        refresh: bool = True,
    ) -> None:
        self.host = host
        registered = host.client(auth)
        tokens = host.grants.issue(registered.client_id, ["tools", "offline"], host.url)
        self.client_id, self.client_secret = registered.client_id, registered.client_secret
        self.access, self.refresh_token = tokens.access_token, tokens.refresh_token or ""
        endpoint_auth: Json = {"type": auth}
        if self.client_secret is not None:
            endpoint_auth["client_secret"] = self.client_secret
        settings: Json = {
            "type": "mcp_oauth",
            "mcp_server_url": host.url,
            "access_token": self.access,
            "expires_at": None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds),
        }
        if refresh:
            settings["refresh"] = {
                "client_id": self.client_id,
                "refresh_token": self.refresh_token,
                "token_endpoint": host.token_endpoint,
                "token_endpoint_auth": endpoint_auth,
                "scope": "tools",
                "resource": host.url,
            }
        self.vault_id = client.beta.vaults.create(display_name="login").id
        self.credential_id = client.beta.vaults.credentials.create(self.vault_id, auth=settings).id

    def revoke_access(self) -> None:
        self.host.grants.access.clear()

    def secrets(self) -> set[str]:
        """Everything that nobody may see."""
        grants = self.host.grants
        found = {self.access, self.refresh_token, *grants.access, *grants.refreshes}
        return found | ({self.client_secret} if self.client_secret else set())


def ask(client: Anthropic, host: OAuthHost, login: Login) -> list[str]:
    """What a tool of the server says in a session of its own; or the errors' types."""
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    return ask_in(client, session_id, login)


def ask_in(client: Anthropic, session_id: str, login: Login) -> list[str]:
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("whoami"), {"say": "Done."}))
        assert reader.idle().type == "end_turn"
    seen = str(history(client, session_id))
    assert not [secret for secret in login.secrets() if secret in seen]
    errors = [event.error.type for event in reader.of("session.error")]
    return errors or [texts(each) for each in reader.of("agent.mcp_tool_result")]


@pytest.mark.requirement("F127")
@pytest.mark.parametrize("auth", ["none", "client_secret_basic", "client_secret_post"])
def test_a_token_about_to_expire_is_refreshed_before_it_is_used(client: Anthropic, host: OAuthHost, auth: str) -> None:
    login = Login(client, host, auth=auth, seconds=30)
    assert ask(client, host, login) == ["a friend"]
    (form,) = host.exchanges
    assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", login.refresh_token)
    assert (form["scope"], form["resource"], form["client_id"]) == ("tools", host.url, login.client_id)
    assert ("client_secret" in form) == (auth == "client_secret_post")
    assert set(host.calls).isdisjoint({f"Bearer {login.access}"})
    after = client.beta.vaults.credentials.retrieve(login.credential_id, vault_id=login.vault_id)
    assert after.auth.type == "mcp_oauth" and after.auth.expires_at is not None
    assert after.auth.expires_at > datetime.now(UTC) + timedelta(seconds=600)


@pytest.mark.requirement("F127")
def test_a_token_that_was_refused_is_refreshed_and_the_call_made_again(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host)
    login.revoke_access()
    assert ask(client, host, login) == ["a friend"]
    assert len(host.exchanges) == 1


@pytest.mark.requirement("F127")
def test_a_token_refused_in_the_middle_of_a_turn_is_refreshed(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host)
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    host.on_call = login.revoke_access
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("whoami"), call("whoami"), call("whoami")))
        assert reader.idle().type == "end_turn"
    assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["a friend"] * 3
    assert len(set(host.calls)) == 3


@pytest.mark.requirement("F127")
def test_two_sessions_refresh_one_token_once(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host, seconds=30)
    sessions = [session_on(client, host.url, vault_ids=[login.vault_id]) for _ in range(2)]
    answers: list[list[str]] = []

    def work(session_id: str) -> None:
        answers.append(ask_in(client, session_id, login))

    threads = [threading.Thread(target=work, args=(each,)) for each in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_SECONDS)
    assert answers == [["a friend"], ["a friend"]]
    assert len(host.exchanges) == 1


@pytest.mark.requirement("F127")
@pytest.mark.parametrize("rotates", [True, False])
def test_the_refresh_token_that_counts_is_kept(client: Anthropic, host: OAuthHost, rotates: bool) -> None:
    login = Login(client, host)
    host.grants.rotates = rotates
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    for _ in range(3):
        login.revoke_access()
        assert ask_in(client, session_id, login) == ["a friend"]
    used = [form["refresh_token"] for form in host.exchanges]
    assert len(used) == 3
    assert len(set(used)) == (3 if rotates else 1)


@pytest.mark.requirement("F127", "F131")
def test_a_refreshed_token_outlives_the_server_that_refreshed_it(server: ServerProcess, host: OAuthHost) -> None:
    with server.client() as client:
        login = Login(client, host, seconds=30)
        assert ask(client, host, login) == ["a friend"]
    server.kill()
    server.start()
    with server.client() as client:
        assert ask(client, host, login) == ["a friend"]
    assert len(host.exchanges) == 1


@pytest.mark.requirement("F032", "F127")
def test_a_revoked_login_is_an_event_and_the_session_goes_on(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host)
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    assert ask_in(client, session_id, login) == ["a friend"]
    login.revoke_access()
    host.grants.refreshes.clear()
    assert ask_in(client, session_id, login) == ["mcp_authentication_failed_error"]
    (error,) = [event.error for event in history(client, session_id) if event.type == "session.error"]
    assert error.type == "mcp_authentication_failed_error" and error.mcp_server_name == "tests"
    assert "could not be refreshed (failed)" in error.message
    with reading(client, session_id) as reader:
        send(client, session_id, script({"say": "Still here."}))
        assert reader.idle().type == "end_turn"
    assert texts(reader.of("agent.message")[-1]) == "Still here."


@pytest.mark.requirement("F032", "F127")
def test_a_login_revoked_in_the_middle_of_a_turn_is_an_event_of_that_turn(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host, refresh=False)
    session_id = session_on(client, host.url, vault_ids=[login.vault_id])
    host.on_call = login.revoke_access
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("whoami"), call("whoami"), {"say": "Done."}))
        assert reader.idle().type == "end_turn"
    assert [each.is_error for each in reader.of("agent.mcp_tool_result")] == [False, True]
    assert [event.error.type for event in reader.of("session.error")] == ["mcp_authentication_failed_error"]
    assert texts(reader.of("agent.message")[-1]) == "Done."


ODD_ENDPOINTS = {
    "500": Answer(500),
    "invalid_grant": failing("invalid_grant"),
    "hangs": Answer(200, hangs=True),
    "web page": Answer(200, b"<html>Welcome!</html>", "text/html"),
    "other token": Answer(200, b'{"access_token": "x\\r\\ny", "token_type": "Bearer"}', "application/json"),
    "elsewhere": Answer(302, b""),
}


@pytest.mark.requirement("F032", "F127")
@pytest.mark.parametrize("odd", ODD_ENDPOINTS)
def test_a_token_endpoint_that_fails_is_an_honest_error(impatient: ServerProcess, host: OAuthHost, odd: str) -> None:
    with impatient.client() as client:
        login = Login(client, host)
        login.revoke_access()
        host.answers["/token"] = ODD_ENDPOINTS[odd]
        assert ask(client, host, login) == ["mcp_authentication_failed_error"]
        log = (impatient.directory / "server.log").read_text(encoding="utf-8")
        assert "credential_refresh_failed" in log
        assert not [secret for secret in login.secrets() if secret in log]
        host.answers.clear()
        assert ask(client, host, login) == ["a friend"]


@pytest.mark.requirement("F127")
def test_a_token_that_is_still_good_is_used_while_its_endpoint_is_down(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host, seconds=45)
    host.answers["/token"] = Answer(503)
    assert ask(client, host, login) == ["a friend"]


def validate(client: Anthropic, login: Login) -> Json:
    credentials = client.beta.vaults.credentials
    verdict = credentials.mcp_oauth_validate(login.credential_id, vault_id=login.vault_id)
    seen = verdict.to_json()
    assert not [secret for secret in login.secrets() if secret in seen]
    return verdict


@pytest.mark.requirement("F128")
def test_a_credential_that_works_is_valid(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host)
    verdict = validate(client, login)
    assert (verdict.status, verdict.has_refresh_token) == ("valid", True)
    assert (verdict.mcp_probe, verdict.refresh) == (None, None)
    assert (verdict.vault_id, verdict.credential_id) == (login.vault_id, login.credential_id)


@pytest.mark.requirement("F128")
def test_a_credential_that_can_be_refreshed_is_valid_and_the_fresh_token_kept(
    client: Anthropic, host: OAuthHost
) -> None:
    login = Login(client, host, auth="client_secret_basic")
    login.revoke_access()
    verdict = validate(client, login)
    assert (verdict.status, verdict.refresh.status, verdict.refresh.http_response) == ("valid", "succeeded", None)
    assert ask(client, host, login) == ["a friend"]
    assert len(host.exchanges) == 1


@pytest.mark.requirement("F128")
def test_a_refused_credential_without_a_refresh_token_is_invalid(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host, refresh=False)
    login.revoke_access()
    verdict = validate(client, login)
    assert (verdict.status, verdict.has_refresh_token) == ("invalid", False)
    assert verdict.refresh.status == "no_refresh_token"
    assert (verdict.mcp_probe.method, verdict.mcp_probe.http_response.status_code) == ("initialize", 401)


@pytest.mark.requirement("F128")
@pytest.mark.parametrize(
    ("odd", "status", "refresh"),
    [
        (failing("invalid_grant"), "invalid", "failed"),
        (failing("invalid_client", 401), "invalid", "failed"),
        (Answer(500), "unknown", "failed"),
        (Answer(429), "unknown", "failed"),
        (Answer(200, b"<html>", "text/html"), "unknown", "failed"),
        (Answer(200, hangs=True), "unknown", "connect_error"),
    ],
    ids=["invalid_grant", "invalid_client", "500", "429", "web page", "hangs"],
)
def test_a_refused_credential_is_invalid_only_if_its_token_endpoint_says_so(
    impatient: ServerProcess, host: OAuthHost, odd: Answer, status: str, refresh: str
) -> None:
    with impatient.client() as client:
        login = Login(client, host)
        login.revoke_access()
        host.answers["/token"] = odd
        verdict = validate(client, login)
    assert (verdict.status, verdict.refresh.status) == (status, refresh)
    assert (verdict.refresh.http_response is None) == (refresh == "connect_error")


@pytest.mark.requirement("F128")
@pytest.mark.parametrize(
    ("odd", "status"),
    [
        (Answer(404), "invalid"),
        (Answer(410), "invalid"),
        (Answer(403), "invalid"),
        (Answer(500), "unknown"),
        (Answer(503), "unknown"),
        (Answer(429), "unknown"),
        (Answer(302), "unknown"),
        (Answer(200, b"Hello!"), "unknown"),
        (Answer(200, hangs=True), "unknown"),
    ],
    ids=["404", "410", "403", "500", "503", "429", "302", "no JSON", "hangs"],
)
def test_a_server_that_is_gone_is_invalid_and_one_in_trouble_unknown(
    impatient: ServerProcess, host: OAuthHost, odd: Answer, status: str
) -> None:
    with impatient.client() as client:
        login = Login(client, host)
        host.answers["/mcp"] = odd
        verdict = validate(client, login)
    assert (verdict.status, verdict.refresh, verdict.mcp_probe.method) == (status, None, "initialize")
    assert (verdict.mcp_probe.http_response is None) == odd.hangs


@pytest.mark.requirement("F128")
def test_a_server_that_nobody_answers_for_is_unknown(client: Anthropic) -> None:
    with oauth_host() as host:
        login = Login(client, host)
    verdict = validate(client, login)
    assert (verdict.status, verdict.mcp_probe.http_response) == ("unknown", None)


@pytest.mark.requirement("F128")
def test_what_servers_say_is_cut_and_their_echoes_of_secrets_are_taken_out(client: Anthropic, host: OAuthHost) -> None:
    login = Login(client, host, auth="client_secret_post")
    secrets = " ".join(sorted(login.secrets()))
    body = f'{{"you": "{secrets}", "access_token": "one-more"}}'.encode() + b"x" * 10_000
    host.answers["/mcp"] = Answer(401, body)
    host.answers["/token"] = Answer(400, body)
    verdict = validate(client, login)
    for response in (verdict.mcp_probe.http_response, verdict.refresh.http_response):
        assert (response.body_truncated, response.content_type) == (True, "text/plain")
        assert len(response.body) <= 2_000
        assert "one-more" not in response.body


def test_only_oauth_credentials_are_validated(client: Anthropic, host: OAuthHost) -> None:
    vault_id = client.beta.vaults.create(display_name="plain").id
    auth: Json = {"type": "static_bearer", "mcp_server_url": host.url, "token": "fixed"}
    credential = client.beta.vaults.credentials.create(vault_id, auth=auth)
    response = client.beta.vaults.credentials.with_raw_response
    with pytest.raises(Exception, match="mcp_oauth") as caught:
        response.mcp_oauth_validate(credential.id, vault_id=vault_id)
    assert API_KEY not in str(caught.value)
