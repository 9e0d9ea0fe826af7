"""Files to import: which lines are understood, and how the first bad one is named."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from corral.domain.session import view
from corral.engines.bus import LocalBus
from corral.errors import CorralError, NotFound
from corral.moving.incoming import Destination, Import
from corral.moving.lines import differences
from corral.storage.ephemeral import EphemeralStore
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


def event_line(**fields: Any) -> Json:
    return {"session_id": "sesn_1", "event": {**EVENT, **fields}}


async def imported(path: Path, *lines: Json | bytes) -> EphemeralStore:
    """The store after an import into a new one."""
    clock = Clock()
    store = EphemeralStore(LocalBus(frames_max=1, bytes_max=1), clock)
    text = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in lines]
    (path / "file").write_bytes(b"\n".join(text))
    moving = Import(path / "file", Destination(store.archive, clock, {"bash"}, "wrkspc_1"))
    try:
        await moving.run()
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
    "unknown type": ([{"type": "vault", "id": "x"}], "line 1: type: `vault` is none of"),
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
    "vaults": ([{**SESSION, "vault_ids": ["vlt_1"]}], "line 1: vault_ids: "),
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
    "name taken": ([ENVIRONMENT, {**ENVIRONMENT, "id": "env_2"}], "line 2: another environment is named 'place'"),
}


@pytest.mark.parametrize(("lines", "message"), list(SPOILT.values()), ids=list(SPOILT))
async def test_the_first_bad_line_is_named_and_nothing_is_stored(
    tmp_path: Path, lines: list[Json | bytes], message: str
) -> None:
    with pytest.raises(CorralError, match=message) as refused:
        await imported(tmp_path, *lines)
    assert refused.value.message.endswith("; nothing was imported")


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
