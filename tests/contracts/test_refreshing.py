"""One token, and two processes that refresh it at the same moment over one store."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import anyio
import msgspec
import pytest

from corral.app.clock import SystemClock
from corral.domain import credential as rules
from corral.domain import vault
from corral.domain.credential import CREDENTIAL_KIND, StoredCredential
from corral.domain.credential_params import CredentialCreate, McpOAuthParams, NoClientAuth, RefreshParams
from corral.domain.query import Record
from corral.domain.vault import VAULT_KIND, StoredVault, VaultCreate
from corral.engines.bus import LocalBus
from corral.interfaces.records import Records
from corral.interfaces.vault import Bearer
from corral.storage.ephemeral import EphemeralStore
from corral.vaults.credentials import VaultCredentials
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing

WAIT_SECONDS = 30
WORKSPACE, VAULT, CREDENTIAL = "wrkspc_1", "vlt_1", "vcrd_1"
URL = "http://mcp.test/mcp"
SOON = timedelta(seconds=1)


class OneUse:
    """A token endpoint that takes a refresh token once; who came first is answered when the second has its token."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/token"
        self.first_came = threading.Event()
        self.second_stored = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        first, _ = self._listener.accept()
        with first:
            first.recv(65_536)
            self.first_came.set()
            second, _ = self._listener.accept()
            with second:
                second.recv(65_536)
                tokens = {"access_token": "fresh", "token_type": "bearer", "expires_in": 3_600, "refresh_token": "two"}
                second.sendall(_response(200, tokens))
            assert self.second_stored.wait(WAIT_SECONDS)
            first.sendall(_response(400, {"error": "invalid_grant"}))

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def _response(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


@pytest.fixture
def endpoint() -> Iterator[OneUse]:
    running = OneUse()
    yield running
    running.close()


async def put_credential(records: Records, sealing: VaultSealing, endpoint: str) -> None:
    now = datetime.now(UTC)
    made = vault.create(VaultCreate(display_name="shared"), vault_id=VAULT, now=now)
    stored = StoredVault(vault=made, key=sealing.new_key(VAULT))
    auth = McpOAuthParams(
        access_token="stale",
        mcp_server_url=URL,
        refresh=RefreshParams(
            client_id="client", refresh_token="one", token_endpoint=endpoint, token_endpoint_auth=NoClientAuth()
        ),
    )
    credential, secret = rules.create(CredentialCreate(auth=auth), credential_id=CREDENTIAL, vault_id=VAULT, now=now)
    sealed = sealing.seal(VAULT, stored.key, msgspec.json.encode(secret), CREDENTIAL)
    held = msgspec.json.encode(StoredCredential(credential=credential, sealed=sealed))
    await records.put(
        Record(kind=VAULT_KIND, id=VAULT, workspace_id=WORKSPACE, created_at=now, body=msgspec.json.encode(stored)),
        Record(kind=CREDENTIAL_KIND, id=CREDENTIAL, workspace_id=WORKSPACE, created_at=now, body=held, parent_id=VAULT),
        expect={VAULT: 0, CREDENTIAL: 0},
    )


@pytest.mark.anyio
@pytest.mark.requirement("F127")
async def test_the_one_that_comes_too_late_uses_what_the_other_stored(endpoint: OneUse) -> None:
    clock, keys = SystemClock(), (new_master_key(),)
    sealing = VaultSealing(LocalKeyWrapper(lambda: keys))
    records = EphemeralStore(LocalBus(frames_max=1, bytes_max=1), clock).records
    await put_credential(records, sealing, endpoint.url)
    processes = [VaultCredentials(records, sealing, clock) for _ in range(2)]
    stale = Bearer("stale", VAULT, CREDENTIAL)
    found: list[Bearer | None] = []

    async def refresh(process: VaultCredentials) -> None:
        found.append(await process.bearer(WORKSPACE, [VAULT], URL, rejected=stale))

    with anyio.fail_after(WAIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh, processes[0])
            assert await anyio.to_thread.run_sync(endpoint.first_came.wait, WAIT_SECONDS)
            await refresh(processes[1])
            endpoint.second_stored.set()
    assert [bearer.token for bearer in found if bearer is not None] == ["fresh", "fresh"]
    for process in processes:
        await process.close()
