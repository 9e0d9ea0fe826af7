"""What a call of an MCP tool costs through Corral, over the official SDK's client alone.

Both call one server of the SDK's, in a process of its own, by turns in the same run. Corral's side is the whole way of
a session's call: finding the connection, reading the token out of the sealed vault in the database for each
request, the bounded transport, the result as models take it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import httpx2
import msgspec
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from corral import config
from corral.api.vaults import record_of
from corral.app.clock import SystemClock
from corral.app.storage import open_storage
from corral.domain import credential as credentials
from corral.domain import vault
from corral.domain.agent import McpServer, ModelConfig, SessionAgent
from corral.domain.credential import CREDENTIAL_KIND, StoredCredential
from corral.domain.credential_params import CredentialCreate, StaticBearerParams
from corral.domain.ids import new_id
from corral.domain.query import Record
from corral.domain.session import Session
from corral.domain.vault import StoredVault, VaultCreate
from corral.interfaces.records import Records
from corral.mcp.servers import SessionServers
from corral.vaults.credentials import VaultCredentials
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing
from tests.benchmarks.temporary import overrides
from tests.e2e.mcp_host import mcp_host

NAME = "A call of an MCP tool, over the SDK's client alone"
CALLS = 300
WARM_UP = 20
TOKEN = "token-of-the-benchmark"
WORKSPACE = "wrkspc_default"
ARGUMENTS = {"a": 2, "b": 3}


def run() -> list[tuple[str, float, str, str]]:
    with _server() as url:
        return anyio.run(_measure, url, backend_options={"use_uvloop": True})


async def _measure(url: str) -> list[tuple[str, float, str, str]]:
    bare: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        settings = config.load(environ={}, overrides=overrides(directory))
        async with open_storage(settings) as store:
            servers, session = await _corral(store.records, settings, url)
            http = httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
            async with http, Client(streamable_http_client(url, http_client=http)) as client:
                for number in range(WARM_UP + CALLS):
                    started = time.perf_counter()
                    await client.call_tool("add", ARGUMENTS)
                    between = time.perf_counter()
                    reply = await servers.call(session, "tests", "add", ARGUMENTS)
                    ended = time.perf_counter()
                    assert not reply.is_error
                    if number >= WARM_UP:
                        bare.append((between - started) * 1e3)
                        ours.append((ended - between) * 1e3)
            await servers.close()
    extra = statistics.median(mine - theirs for mine, theirs in zip(ours, bare, strict=True))
    return [
        ("the SDK's client, p50", statistics.median(bare), "ms", ""),
        ("through Corral, p50", statistics.median(ours), "ms", "token from a sealed vault in SQLite"),
        ("overhead, p50", extra, "ms", "aim: <= 3"),
    ]


async def _corral(records: Records, settings: config.Settings, url: str) -> tuple[SessionServers, Session]:
    """A session whose vault has the token."""
    keys, now = (new_master_key(),), datetime.now(UTC)
    sealing = VaultSealing(LocalKeyWrapper(lambda: keys))
    made = vault.create(VaultCreate(display_name="benchmark"), vault_id=new_id("vlt"), now=now)
    stored = StoredVault(vault=made, key=sealing.new_key(made.id))
    auth = StaticBearerParams(token=TOKEN, mcp_server_url=url)
    credential, secret = credentials.create(
        CredentialCreate(auth=auth), credential_id=new_id("vcrd"), vault_id=made.id, now=now
    )
    sealed = sealing.seal(made.id, stored.key, msgspec.json.encode(secret), credential.id)
    record = Record(
        kind=CREDENTIAL_KIND,
        id=credential.id,
        workspace_id=WORKSPACE,
        created_at=now,
        body=msgspec.json.encode(StoredCredential(credential=credential, sealed=sealed)),
        parent_id=made.id,
    )
    await records.put(record_of(WORKSPACE, stored, revision=1), record, expect={made.id: 0, record.id: 0})
    agent = SessionAgent(
        id="agent_1",
        version=1,
        name="Agent",
        model=ModelConfig(id="scripted"),
        mcp_servers=(McpServer(name="tests", url=url),),
    )
    session = Session(
        id=new_id("sesn"),
        workspace_id=WORKSPACE,
        agent=agent,
        environment_id=new_id("env"),
        created_at=now,
        updated_at=now,
        vault_ids=(made.id,),
    )
    return SessionServers(VaultCredentials(records, sealing, SystemClock()), settings.mcp), session


@contextmanager
def _server() -> Generator[str]:
    """The tests' MCP server in another process; its URL."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.benchmarks.mcp_cost"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, stderr=null, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


if __name__ == "__main__":
    with mcp_host() as host:
        host.token = TOKEN
        print(host.url, flush=True)
        sys.stdin.read()
