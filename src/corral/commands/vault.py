"""`corral vault`: credentials for people without a console, through the API of a running server.

Through the API rather than the database, because its rules (limits, unique keys, what a secret may be) are there once,
and because it works for a server on another machine and for one whose database is locked. Secrets come from a prompt
or standard input, never from an argument: arguments are seen by every process of the machine.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from getpass import getpass
from typing import NamedTuple

import anthropic
from anthropic import AsyncAnthropic
from anthropic.types.beta.vaults import BetaManagedAgentsCredential, credential_create_params
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from corral.commands.login import Login
from corral.config import Settings
from corral.domain.credential import normal_url
from corral.errors import Conflict, CorralError, Invalid, MachineUnfit

LISTED_AT_ONCE = 100


class Place(NamedTuple):
    """A server, and the key to it."""

    url: str
    api_key: str


def place(settings: Settings, url: str | None) -> Place:
    """The server at `url`, else the one of this machine. Raises `MachineUnfit` when there is no key."""
    host = settings.server.host
    if host in ("0.0.0.0", "::"):  # where a server that listens everywhere is reached
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    file = settings.data_dir / "api_key"
    try:
        key = settings.secrets.api_key or file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MachineUnfit(f"There is no API key in {file}; give one in CORRAL_API_KEY.") from error
    return Place(url or f"http://{shown}:{settings.server.port}", key)


def read_secret(what: str) -> str:
    """A secret, typed unseen at a terminal or else piped in. Raises `Invalid` for an empty one."""
    secret = getpass(f"{what}: ") if sys.stdin.isatty() else sys.stdin.read().rstrip("\r\n")
    if not secret:
        raise Invalid(f"{what}: nothing was given on standard input.")
    return secret


async def create(at: Place, name: str, out: Console) -> None:
    """Make a vault."""
    async with _connected(at) as client:
        vault = await client.beta.vaults.create(display_name=name)
    out.print(vault.id)


async def show(at: Place, vault_id: str | None, out: Console) -> None:
    """List vaults, or what one of them holds."""
    async with _connected(at) as client:
        if vault_id is not None:
            return out.print(await _credentials_table(client, vault_id))
        table = Table("name", "created", box=None)
        table.add_column("id", no_wrap=True)
        async for vault in client.beta.vaults.list(limit=LISTED_AT_ONCE):
            table.add_row(escape(vault.display_name), f"{vault.created_at:%Y-%m-%d %H:%M}", vault.id)
        out.print(table)


async def add_bearer(at: Place, vault_id: str, server_url: str, secret: str, out: Console) -> None:
    """Keep a token for an MCP server."""
    auth: credential_create_params.Auth = {"type": "static_bearer", "mcp_server_url": server_url, "token": secret}
    await _add(at, vault_id, auth, out)


async def add_variable(at: Place, vault_id: str, name: str, secret: str, *, hosts: list[str], out: Console) -> None:
    """Keep a secret that stands in an environment variable, for these hosts; for every host when there are none."""
    auth: credential_create_params.Auth = {
        "type": "environment_variable",
        "secret_name": name,
        "secret_value": secret,
        "networking": {"type": "limited", "allowed_hosts": hosts} if hosts else {"type": "unrestricted"},
    }
    await _add(at, vault_id, auth, out)


async def add_login(at: Place, vault_id: str, login: Login, out: Console, *, replace: bool) -> None:
    """Log in to an MCP server in the browser, and keep what comes of it."""
    async with _connected(at) as client:
        held = await _held_for(client, vault_id, login.server_url)
        if held is not None and not replace:
            raise Conflict(f"{held.id} is for this server already; use --replace to log in again.")
        auth = await login.run(out)
        if held is not None:
            await client.beta.vaults.credentials.archive(held.id, vault_id=vault_id)
        made = await client.beta.vaults.credentials.create(vault_id, auth=auth)
    out.print(made.id)


async def validate(at: Place, vault_id: str, credential_id: str, out: Console) -> int:
    """Try a credential; 0 when it is valid."""
    async with _connected(at) as client:
        verdict = await client.beta.vaults.credentials.mcp_oauth_validate(credential_id, vault_id=vault_id)
    out.print(verdict.status)
    probe, refresh = verdict.mcp_probe, verdict.refresh
    if probe is not None:
        answered = "no answer" if probe.http_response is None else f"HTTP {probe.http_response.status_code}"
        out.print(f"The MCP server failed at {escape(probe.method)}: {answered}.")
    if refresh is not None:
        out.print(f"Refreshing the token: {refresh.status.replace('_', ' ')}.")
    return 0 if verdict.status == "valid" else 1


async def delete(at: Place, vault_id: str, credential_id: str | None, out: Console) -> None:
    """Delete a vault with all it holds, or one of its credentials."""
    async with _connected(at) as client:
        if credential_id is None:
            await client.beta.vaults.delete(vault_id)
        else:
            await client.beta.vaults.credentials.delete(credential_id, vault_id=vault_id)
    out.print(f"{credential_id or vault_id} is deleted.")


@asynccontextmanager
async def _connected(at: Place) -> AsyncGenerator[AsyncAnthropic]:
    try:
        async with AsyncAnthropic(base_url=at.url, api_key=at.api_key, auth_token=None, max_retries=0) as client:
            yield client
    except anthropic.APIConnectionError as error:
        raise MachineUnfit(
            f"No server answers at {at.url}. Start `corral serve`, or name another with --url."
        ) from error
    except anthropic.APIStatusError as error:
        raise CorralError(f"The server at {at.url} refused: {_message(error)}") from error


def _message(error: anthropic.APIStatusError) -> str:
    match error.body:
        case {"error": {"message": str(message)}}:
            return message
        case _:
            return f"HTTP {error.status_code}"


async def _add(at: Place, vault_id: str, auth: credential_create_params.Auth, out: Console) -> None:
    async with _connected(at) as client:
        made = await client.beta.vaults.credentials.create(vault_id, auth=auth)
    out.print(made.id)


async def _held_for(client: AsyncAnthropic, vault_id: str, server_url: str) -> BetaManagedAgentsCredential | None:
    async for each in client.beta.vaults.credentials.list(vault_id, limit=LISTED_AT_ONCE):
        if each.auth.type != "environment_variable" and normal_url(each.auth.mcp_server_url) == normal_url(server_url):
            return each
    return None


async def _credentials_table(client: AsyncAnthropic, vault_id: str) -> Table:
    table = Table("kind", "for", "expires", box=None)
    table.add_column("id", no_wrap=True)
    async for each in client.beta.vaults.credentials.list(vault_id, limit=LISTED_AT_ONCE):
        auth = each.auth
        held_for = auth.secret_name if auth.type == "environment_variable" else auth.mcp_server_url
        expires_at = auth.expires_at if auth.type == "mcp_oauth" else None
        table.add_row(auth.type, escape(held_for), f"{expires_at:%Y-%m-%d %H:%M}" if expires_at else "", each.id)
    return table
