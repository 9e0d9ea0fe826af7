"""Vaults and credentials through the API: shapes, rules, limits, and that no secret ever comes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsDeletedVault, BetaManagedAgentsVault
from anthropic.types.beta.vaults import BetaManagedAgentsCredential, BetaManagedAgentsDeletedCredential

from corral.domain.credential import normal_url
from tests.api.live_server import Server, World
from tests.api.sdk_types import assert_is

URL = "https://mcp.example.com/mcp"
SOON = datetime.now(UTC) + timedelta(days=400)
SECRETS = ("tok-access-1", "tok-refresh-1", "client-secret-1", "static-token-1", "variable-value-1")
OAUTH: Any = {
    "type": "mcp_oauth",
    "mcp_server_url": URL,
    "access_token": "tok-access-1",
    "expires_at": SOON.isoformat(),
    "refresh": {
        "client_id": "client",
        "refresh_token": "tok-refresh-1",
        "token_endpoint": "https://auth.example.com/token",
        "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "client-secret-1"},
        "scope": "read",
    },
}
BEARER: Any = {"type": "static_bearer", "mcp_server_url": "https://a.example/", "token": "static-token-1"}
VARIABLE: Any = {
    "type": "environment_variable",
    "secret_name": "API_KEY",
    "secret_value": "variable-value-1",
    "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.org"]},
}


def vault(server: Server, name: str = "Alice") -> str:
    return server.client.beta.vaults.create(display_name=name).id


@pytest.mark.requirement("F124")
def test_a_vault_is_made_read_changed_listed_and_deleted(server: Server) -> None:
    made = server.http.post("/v1/vaults", json={"display_name": "Alice", "metadata": {"user": "1"}}).json()
    assert_is(made, BetaManagedAgentsVault)
    assert made["id"].startswith("vlt_")
    vaults = server.client.beta.vaults
    changed = vaults.update(made["id"], display_name="Bob", metadata={"user": None, "team": "x"})
    assert (changed.display_name, changed.metadata) == ("Bob", {"team": "x"})
    other = vault(server)
    assert [each.id for each in vaults.list(limit=1)] == [other, made["id"]]
    deleted = server.http.delete(f"/v1/vaults/{other}").json()
    assert_is(deleted, BetaManagedAgentsDeletedVault)
    with pytest.raises(anthropic.NotFoundError):
        vaults.retrieve(other)
    with pytest.raises(anthropic.NotFoundError):
        server.sdk("key-two").beta.vaults.retrieve(made["id"])


@pytest.mark.requirement("F124")
def test_archiving_a_vault_archives_its_credentials_and_purges_their_secrets(server: Server) -> None:
    client, vault_id = server.client.beta.vaults, vault(server)
    credential = client.credentials.create(vault_id, auth=OAUTH)
    archived = client.archive(vault_id)
    assert archived.archived_at is not None
    assert client.archive(vault_id).archived_at == archived.archived_at
    assert client.credentials.retrieve(credential.id, vault_id=vault_id).archived_at is not None
    assert list(client.credentials.list(vault_id)) == []
    assert [each.id for each in client.credentials.list(vault_id, include_archived=True)] == [credential.id]
    assert list(client.list()) == []
    record = server.run(lambda: server.store.records.get("vault_credential", credential.id, None))
    assert b'"sealed":null' in record.body
    for refused in (
        lambda: client.update(vault_id, display_name="x"),
        lambda: client.credentials.create(vault_id, auth=BEARER),
        lambda: client.credentials.update(credential.id, vault_id=vault_id, display_name="x"),
    ):
        with pytest.raises(anthropic.BadRequestError, match="archived"):
            refused()


@pytest.mark.requirement("F125")
@pytest.mark.parametrize("auth", [OAUTH, BEARER, VARIABLE], ids=["mcp_oauth", "static_bearer", "environment_variable"])
def test_secrets_go_in_and_never_come_out(server: Server, auth: dict[str, Any]) -> None:
    vault_id = vault(server)
    path = f"/v1/vaults/{vault_id}/credentials"
    made = server.http.post(path, json={"auth": auth, "display_name": "mine"})
    assert_is(made.json(), BetaManagedAgentsCredential)
    one = f"{path}/{made.json()['id']}"
    answers = [
        made,
        server.http.get(one),
        server.http.get(path),
        server.http.post(one, json={"display_name": "yours", "auth": {"type": auth["type"]}}),
        server.http.post(f"{one}/archive"),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert not any(secret in answer.text for secret in SECRETS)
        assert '"sealed"' not in answer.text
    deleted = server.http.delete(one)
    assert_is(deleted.json(), BetaManagedAgentsDeletedCredential)
    kept = server.run(lambda: server.store.records.get("vault", vault_id, None)).body
    assert not any(secret.encode() in kept for secret in SECRETS)


@pytest.mark.requirement("F125")
def test_what_is_stored_is_sealed(server: Server) -> None:
    vault_id = vault(server)
    for auth in (OAUTH, BEARER, VARIABLE):
        made: Any = server.client.beta.vaults.credentials.create(vault_id, auth=auth)
        body = server.run(lambda made=made: server.store.records.get("vault_credential", made.id, None)).body
        assert not any(secret.encode() in body for secret in SECRETS)


@pytest.mark.requirement("F126")
def test_a_key_is_unique_among_active_credentials(server: Server) -> None:
    credentials, vault_id = server.client.beta.vaults.credentials, vault(server)
    first = credentials.create(vault_id, auth=OAUTH)
    again: Any = {**BEARER, "mcp_server_url": "HTTPS://MCP.example.com:443/mcp/"}
    with pytest.raises(anthropic.ConflictError):
        credentials.create(vault_id, auth=again)
    credentials.archive(first.id, vault_id=vault_id)
    assert credentials.create(vault_id, auth=again).id
    assert credentials.create(vault(server, "other"), auth=again).id


@pytest.mark.requirement("F126")
def test_a_vault_holds_twenty_active_credentials(server: Server) -> None:
    credentials, vault_id = server.client.beta.vaults.credentials, vault(server)
    auths: list[Any] = [{**VARIABLE, "secret_name": f"KEY_{number}"} for number in range(20)]
    made = [credentials.create(vault_id, auth=auth) for auth in auths]
    with pytest.raises(anthropic.BadRequestError, match="20"):
        credentials.create(vault_id, auth=VARIABLE)
    credentials.delete(made[0].id, vault_id=vault_id)
    assert credentials.create(vault_id, auth=VARIABLE).id
    assert len(list(credentials.list(vault_id, limit=7))) == 20


@pytest.mark.requirement("F130")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"body": True, "header": True}),
        ({"injection_location": {"header": True}}, {"body": False, "header": True}),
        ({"injection_location": {"header": False, "body": True}}, {"body": True, "header": False}),
        ({"injection_location": {}}, None),
        ({"injection_location": {"header": False, "body": False}}, None),
        ({"injection_location": {"header": None}}, None),
        ({"injection_location": None}, None),
    ],
)
def test_where_a_secret_may_stand_is_said_on_creation(
    server: Server, given: dict[str, Any], kept: dict[str, bool] | None
) -> None:
    answer = server.http.post(f"/v1/vaults/{vault(server)}/credentials", json={"auth": {**VARIABLE, **given}})
    if kept is None:
        assert answer.status_code == 400
        assert "injection_location" in answer.json()["error"]["message"]
    else:
        assert answer.json()["auth"]["injection_location"] == kept


@pytest.mark.requirement("F130")
def test_an_update_of_where_a_secret_may_stand_merges(server: Server) -> None:
    credentials, vault_id = server.client.beta.vaults.credentials, vault(server)
    made = credentials.create(vault_id, auth=VARIABLE)
    auth: Any = {"type": "environment_variable", "injection_location": {"body": False}}
    changed: Any = credentials.update(made.id, vault_id=vault_id, auth=auth)
    assert (changed.auth.injection_location.body, changed.auth.injection_location.header) == (False, True)
    auth["injection_location"] = {"header": False}
    with pytest.raises(anthropic.BadRequestError, match="injection_location"):
        credentials.update(made.id, vault_id=vault_id, auth=auth)


@pytest.mark.requirement("F125")
@pytest.mark.parametrize(
    ("auth", "path"),
    [
        ({**OAUTH, "access_token": "x" * 8_193}, "auth.access_token"),
        ({**OAUTH, "mcp_server_url": "ftp://x"}, "auth.mcp_server_url"),
        ({**OAUTH, "mcp_server_url": "https://u:p@x/"}, "auth.mcp_server_url"),
        ({**OAUTH, "expires_at": "2001-01-01T00:00:00Z"}, "auth.expires_at"),
        ({**OAUTH, "unknown": 1}, "auth"),
        ({**BEARER, "token": ""}, "auth.token"),
        ({**BEARER, "token": "a\nb"}, "auth.token"),
        ({**VARIABLE, "secret_name": "1X"}, "auth.secret_name"),
        ({**VARIABLE, "secret_name": "PATH"}, "auth.secret_name"),
        ({**VARIABLE, "networking": {"type": "limited", "allowed_hosts": ["https://x"]}}, "auth.networking"),
        ({**VARIABLE, "networking": {"type": "limited", "allowed_hosts": ["x.org"] * 17}}, "auth.networking"),
        ({"type": "password"}, "auth"),
    ],
)
def test_bad_credentials_are_refused_by_path_and_without_an_echo(server: Server, auth: Any, path: str) -> None:
    answer = server.http.post(f"/v1/vaults/{vault(server)}/credentials", json={"auth": auth})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert path in message
    assert not any(secret in message for secret in SECRETS)


@pytest.mark.requirement("F125")
def test_an_update_changes_secrets_and_keeps_the_type(server: Server) -> None:
    credentials, vault_id = server.client.beta.vaults.credentials, vault(server)
    made = credentials.create(vault_id, auth=OAUTH)
    with pytest.raises(anthropic.BadRequestError, match=r"auth\.type"):
        credentials.update(made.id, vault_id=vault_id, auth={"type": "static_bearer", "token": "t"})
    changed: Any = credentials.update(
        made.id, vault_id=vault_id, auth={"type": "mcp_oauth", "access_token": "tok-2", "refresh": {"scope": ""}}
    )
    assert changed.auth.refresh.scope is None
    found = server.run(lambda: server.services.credentials.bearer("wrkspc_one", [vault_id], URL + "/"))
    assert found is not None
    assert (found.token, repr(found)) == ("tok-2", f"Bearer({made.id}, ***)")


@pytest.mark.requirement("F124")
def test_a_session_names_vaults_that_exist_and_are_not_archived(world: World) -> None:
    vault_id = vault(world.server)
    session_id = world.session(vault_ids=[vault_id])
    assert world.client.beta.sessions.retrieve(session_id).vault_ids == [vault_id]
    with pytest.raises(anthropic.NotFoundError, match=r"vault_ids\.1"):
        world.session(vault_ids=[vault_id, "vlt_missing"])
    world.client.beta.vaults.archive(vault_id)
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        world.session(vault_ids=[vault_id])
    assert world.client.beta.sessions.retrieve(session_id).vault_ids == [vault_id]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://A.example/mcp/", "HTTPS://a.EXAMPLE:443/mcp"),
        ("http://a.example:80", "http://a.example/"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x/"),
    ],
)
def test_two_spellings_of_a_url_are_one(one: str, other: str) -> None:
    assert normal_url(one) == normal_url(other)


@pytest.mark.parametrize("text", ["https://[s/", "https://s:99999", "nonsense", ""])
def test_what_is_no_url_is_like_itself(text: str) -> None:
    assert normal_url(text) == text


def test_paths_and_ports_tell_servers_apart() -> None:
    urls = ["https://a/mcp", "https://a/MCP", "http://a/mcp", "https://a:444/mcp", "https://a/mcp?x=1"]
    assert len({normal_url(url) for url in urls}) == len(urls)
