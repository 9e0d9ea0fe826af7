"""Files to import: which lines are understood, and how the first bad one is named."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.domain.session import view
from corral.engines.bus import LocalBus
from corral.errors import Conflict, CorralError, MachineUnfit, NotFound
from corral.moving.incoming import Destination, Import
from corral.moving.lines import differences
from corral.moving.outgoing import Source
from corral.storage.ephemeral import EphemeralStore
from corral.vaults.credentials import VaultCredentials
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing
from tests.contracts.storage_fixtures import Clock
from tests.unit import builders as make

pytestmark = pytest.mark.anyio
Json = dict[str, Any]


SESSION: Json = msgspec.to_builtins(view(make.session(), make.state(), make.START + timedelta(seconds=5)))
EVENT: Json = {"id": "sevt_1", "type": "session.status_running", "processed_at": "2026-01-01T00:00:00Z"}
AGENT: Json = {
    "type": "agent",
    "id": "agent_1",
    "version": 1,
    "name": "Ada",
    "model": {"id": "some-model", "speed": "standard", "effort": {"type": "high"}},
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00.000000+00:00",
}
ENVIRONMENT: Json = {
    "type": "environment",
    "id": "env_1",
    "name": "place",
    "config": {"type": "cloud", "networking": {"type": "unrestricted"}, "packages": {"type": "packages"}},
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}


AT = "2026-01-02T00:00:00Z"
VAULT: Json = {
    "type": "vault",
    "id": "vlt_1",
    "display_name": "Mine",
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
    "archived_at": None,
    "metadata": {"team": "moving"},
}


def credential(credential_id: str, auth: Json, secret: Json | None, **fields: Any) -> Json:
    shown = {"type": "vault_credential", "id": credential_id, "vault_id": "vlt_1", "auth": auth}
    moments = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    return {"vault_id": "vlt_1", "credential": {**shown, **moments, **fields}, "secret": secret}


def held(line: Json, **fields: Any) -> Json:
    """The line with a credential that has other fields."""
    return {**line, "credential": {**line["credential"], **fields}}


BEARER = credential("vcrd_1", {"type": "static_bearer", "mcp_server_url": "http://x/mcp"}, {"value": "hush-bearer"})
OAUTH = credential(
    "vcrd_2",
    {
        "type": "mcp_oauth",
        "mcp_server_url": "http://y/mcp",
        "expires_at": "2025-01-01T00:00:00Z",
        "refresh": {
            "client_id": "me",
            "token_endpoint": "http://y/token",
            "token_endpoint_auth": {"type": "client_secret_post"},
        },
    },
    {"value": "hush-access", "refresh_token": "hush-refresh", "client_secret": "hush-client"},
)
VARIABLE = credential(
    "vcrd_3",
    {
        "type": "environment_variable",
        "secret_name": "TOKEN",
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
        "injection_location": {"body": False, "header": True},
    },
    {"value": "hush-\nvariable"},
    display_name="Token",
)
ARCHIVED = credential("vcrd_4", BEARER["credential"]["auth"], None, archived_at=AT)
VAULTS = [VAULT, BEARER, OAUTH, VARIABLE, ARCHIVED, {**VAULT, "id": "vlt_0", "archived_at": AT}]


def event_line(**fields: Any) -> Json:
    return {"session_id": "sesn_1", "event": {**EVENT, **fields}}


def new_store() -> EphemeralStore:
    return EphemeralStore(LocalBus(frames_max=1, bytes_max=1), Clock())


def new_sealing() -> VaultSealing:
    master = new_master_key()
    return VaultSealing(LocalKeyWrapper(lambda: (master,)))


async def run_import(
    path: Path, store: EphemeralStore, sealing: VaultSealing, *lines: Json | bytes
) -> tuple[Import, Counter[str]]:
    """The import, and what it found there already."""
    text = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in lines]
    (path / "file").write_bytes(b"\n".join(text))
    moving = Import(path / "file", Destination(store.archive, Clock(), {"bash"}, "wrkspc_1", sealing))
    return moving, await moving.run()


async def imported(path: Path, *lines: Json | bytes) -> EphemeralStore:
    """The store after an import into a new one."""
    store = new_store()
    try:
        await run_import(path, store, new_sealing(), *lines)
    except CorralError:
        assert await store.archive.workspaces() == []
        raise
    return store


async def test_lines_go_to_the_workspace_above_them(tmp_path: Path) -> None:
    store = await imported(
        tmp_path, ENVIRONMENT, b"", {"type": "workspace", "id": "wrkspc_2"}, AGENT, SESSION, event_line()
    )
    assert (await store.records.get("environment", "env_1", "wrkspc_1")).unique_key == "place"
    assert (await store.log.snapshot("sesn_1", "wrkspc_2")).state.seq == 1
    with pytest.raises(NotFound):
        await store.records.get("agent", "agent_1", "wrkspc_1")


async def test_the_highest_version_is_the_agent_whatever_the_order(tmp_path: Path) -> None:
    versions = [{**AGENT, "version": version, "name": f"Ada {version}"} for version in (2, 3, 1)]
    store = await imported(tmp_path, *versions)
    assert b'"Ada 3"' in (await store.records.get("agent", "agent_1", "wrkspc_1")).body


SPOILT: dict[str, tuple[list[Json | bytes], str]] = {
    "not JSON": ([AGENT, b"{"], "line 2: "),
    "not text": ([AGENT, b'{"type": "\xff"}'], "line 2: not UTF-8"),
    "not an object": ([b"[]"], "line 1: Expected `object`"),
    "unknown type": ([{"type": "skill", "id": "x"}], "line 1: type: `skill` is none of"),
    "field missing": ([AGENT, {"type": "agent", "id": "agent_2"}], "line 2: .*missing required field `version`"),
    "wrong type": ([{**AGENT, "model": {"id": 7}}], "line 1: model.id: Expected `str`"),
    "second version": ([AGENT, {**AGENT, "version": "2"}], "line 2: version: Expected `int`"),
    "over a limit": ([{**AGENT, "name": "x" * 300}], "line 1: name: must be 1 to 256"),
    "unknown field": ([{**AGENT, "future": {"a": 1}}], "line 1: future: this server cannot keep this"),
    "not built": ([{**AGENT, "multiagent": {"type": "coordinator"}}], "line 1: multiagent: Expected `null`"),
    "self-hosted": ([{**ENVIRONMENT, "config": {"type": "self_hosted"}}], "line 1: config.type: Invalid value"),
    "option as package": (
        [{**ENVIRONMENT, "config": {"type": "cloud", "packages": {"type": "packages", "pip": ["-x"]}}}],
        "line 1: config.packages.pip.0: `-x` is not a package",
    ),
    "bad id": ([{**AGENT, "id": "a/b"}], "line 1: id: `a/b` is no id"),
    "bad workspace": ([{"type": "workspace", "id": ""}], "line 1: id: `` is no id"),
    "vault without name": ([{**VAULT, "display_name": ""}], "line 1: display_name: must be 1 to 255"),
    "vault with a future": ([{**VAULT, "future": 1}], "line 1: future: this server cannot keep this"),
    "credential first": ([BEARER], "line 1: vault_id: a credential must stand below"),
    "credential of another": ([VAULT, {**BEARER, "vault_id": "vlt_2"}], "line 2: vault_id: credentials of vlt_1"),
    "credential elsewhere": ([VAULT, held(BEARER, vault_id="vlt_2")], "line 2: vault_id: credentials of vlt_1"),
    "credential without secret": (
        [VAULT, {**BEARER, "secret": None}],
        "line 2: secret: an archived credential has none",
    ),
    "archived with secret": ([VAULT, held(BEARER, archived_at=AT)], "line 2: secret: an archived credential has none"),
    "empty secret": ([VAULT, {**BEARER, "secret": {"value": ""}}], "line 2: secret: must not be empty"),
    "secret of another kind": (
        [VAULT, {**BEARER, "secret": {"value": "hush", "refresh_token": "r"}}],
        "line 2: secret.refresh_token: must be there if",
    ),
    "client without secret": (
        [VAULT, {**OAUTH, "secret": {"value": "hush", "refresh_token": "r"}}],
        "line 2: secret.client_secret: must be there if",
    ),
    "secret with a future": (
        [VAULT, {**BEARER, "secret": {"value": "hush", "future": "x"}}],
        "line 2: secret.future: this server cannot keep this",
    ),
    "taken variable": (
        [VAULT, held(VARIABLE, auth={**VARIABLE["credential"]["auth"], "secret_name": "PATH"})],
        "line 2: auth.secret_name: `PATH` is set",
    ),
    "odd URL": (
        [VAULT, held(BEARER, auth={"type": "static_bearer", "mcp_server_url": "ftp://x"})],
        "line 2: auth.mcp_server_url: must be an http",
    ),
    "same server twice": ([VAULT, BEARER, held(BEARER, id="vcrd_9")], "line 3: another vault_credential is named"),
    "archived vault": ([{**VAULT, "archived_at": AT}, BEARER], "line 2: credential.archived_at: the vault is"),
    "too many": (
        [
            VAULT,
            *(
                held(VARIABLE, id=f"vcrd_{n}", auth={**VARIABLE["credential"]["auth"], "secret_name": f"V{n}"})
                for n in range(21)
            ),
        ],
        "line 22: vault_id: vlt_1 may hold 20",
    ),
    "files": (
        [
            {
                **SESSION,
                "resources": [
                    {
                        "type": "file",
                        "id": "sesrsc_1",
                        "file_id": "file_1",
                        "mount_path": "/mnt/session/uploads/a",
                        "created_at": "2026-01-01T00:00:00Z",
                        "updated_at": "2026-01-01T00:00:00Z",
                    }
                ],
            }
        ],
        "line 1: resources: this server cannot keep this",
    ),
    "usage": (
        [{**SESSION, "usage": {**SESSION["usage"], "list_cost": {"amount": "1.5", "currency": "USD"}}}],
        "line 1: usage.list_cost.amount: must be a whole number",
    ),
    "stats": (
        [{**SESSION, "stats": {"active_seconds": 9.0, "duration_seconds": 5.0}}],
        "line 1: stats.active_seconds: this server cannot keep this",
    ),
    "event first": ([event_line()], "line 1: session_id: an event must stand below"),
    "event of another": ([SESSION, {**event_line(), "session_id": "sesn_2"}], "line 2: session_id: events of sesn_1"),
    "event without id": ([SESSION, {"session_id": "sesn_1", "event": {"type": "x"}}], "line 2: event.*`id`"),
    "event field": (
        [SESSION, event_line(), event_line(type="user.message", content=7)],
        "line 3: event.content: Expected `array`",
    ),
    "order": (
        [SESSION, event_line(), event_line(processed_at="2025-01-01T00:00:00Z")],
        "line 3: event.processed_at: earlier",
    ),
    "twice": ([AGENT, SESSION, AGENT, SESSION, event_line()], "line 4: session sesn_1 exists already"),
    "nested too deeply": (
        [b'{"type": "agent", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
        "line 1: nested too deeply",
    ),
    "name taken": ([ENVIRONMENT, {**ENVIRONMENT, "id": "env_2"}], "line 2: another environment is named 'place'"),
}


@pytest.mark.parametrize(("lines", "message"), list(SPOILT.values()), ids=list(SPOILT))
async def test_the_first_bad_line_is_named_and_nothing_is_stored(
    tmp_path: Path, lines: list[Json | bytes], message: str
) -> None:
    with pytest.raises(CorralError, match=message) as refused:
        await imported(tmp_path, *lines)
    assert refused.value.message.endswith("; nothing was imported")


async def lines_of(store: EphemeralStore, sealing: VaultSealing | None) -> list[Json]:
    source = Source(store, Clock(), sealing)
    return [msgspec.json.decode(line) async for line in source.lines("wrkspc_1")][1:]


def by_id(lines: list[Json]) -> list[Json]:
    return sorted(lines, key=lambda line: line.get("credential", line)["id"])


@pytest.mark.requirement("F125")
async def test_secrets_are_sealed_anew_and_come_out_only_when_asked(tmp_path: Path) -> None:
    store, sealing = new_store(), new_sealing()
    _, known = await run_import(tmp_path, store, sealing, *VAULTS)
    assert not known
    assert await lines_of(store, None) == []
    out = await lines_of(store, sealing)
    assert [list(differences(*each)) for each in zip(by_id(VAULTS), by_id(out), strict=True)] == [[]] * len(VAULTS)
    kinds = [("vault", "vlt_1"), *(("vault_credential", f"vcrd_{number}") for number in (1, 2, 3))]
    stored = [await store.records.get(kind, each, "wrkspc_1") for kind, each in kinds]
    assert not any(b"hush" in record.body for record in stored)
    with pytest.raises(MachineUnfit, match="another master key"):
        await lines_of(store, new_sealing())
    other, other_sealing = new_store(), new_sealing()
    await run_import(tmp_path, other, other_sealing, *out)
    assert await lines_of(other, other_sealing) == out
    credentials = VaultCredentials(other.records, other_sealing, Clock())
    bearer = await credentials.bearer("wrkspc_1", ["vlt_1"], "http://x/mcp")
    assert bearer is not None and bearer.token == "hush-bearer"


async def test_a_repeated_import_knows_the_secrets_and_another_secret_stops_it(tmp_path: Path) -> None:
    store, sealing = new_store(), new_sealing()
    await run_import(tmp_path, store, sealing, *VAULTS)
    _, known = await run_import(tmp_path, store, sealing, *VAULTS)
    assert known == {"vault": 2, "vault_credential": 4}
    changed = {**BEARER, "secret": {"value": "hush-another"}}
    with pytest.raises(Conflict, match="line 2: vault_credential vcrd_1 exists already and is not the same") as refused:
        await run_import(tmp_path, store, sealing, VAULT, changed)
    assert "hush" not in refused.value.message
    _, known = await run_import(tmp_path, store, sealing, *VAULTS)
    assert known == {"vault": 2, "vault_credential": 4}


async def test_a_vault_that_is_in_a_file_twice_is_the_same(tmp_path: Path) -> None:
    _, known = await run_import(tmp_path, new_store(), new_sealing(), *VAULTS, *VAULTS)
    assert known == {"vault": 2, "vault_credential": 4}


async def test_sessions_keep_their_vaults(tmp_path: Path) -> None:
    store = new_store()
    session = {**SESSION, "vault_ids": ["vlt_1", "vlt_deleted"]}
    moving, _ = await run_import(tmp_path, store, new_sealing(), VAULT, session, event_line())
    assert (await store.log.snapshot("sesn_1", "wrkspc_1")).session.vault_ids == ("vlt_1", "vlt_deleted")
    assert moving.vaults_missed == {("wrkspc_1", "vlt_deleted")}


@pytest.mark.parametrize(
    ("given", "kept", "paths"),
    [
        ({"a": None}, {}, []),
        ({"a": 1}, {}, ["a"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ["a.0.b"]),
        ({"a": [1]}, {"a": []}, ["a"]),
        ({}, {"default": True}, []),
        ({"at": "2026-01-01T01:00:00+01:00"}, {"at": "2026-01-01T00:00:00.000000Z"}, []),
        ({"at": "2026-01-01T01:00:00"}, {"at": "2026-01-01T00:00:00Z"}, ["at"]),
        ({"usage": {"active_seconds": 1.2345}}, {"usage": {"active_seconds": 1.235}}, []),
        ({"stats": {"duration_seconds": 1}}, {"stats": {"duration_seconds": 2}}, []),
    ],
)
def test_what_would_be_lost_is_found(given: Json, kept: Json, paths: list[str]) -> None:
    assert list(differences(given, kept)) == paths
