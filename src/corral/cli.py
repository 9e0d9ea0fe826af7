"""The command line: parses, then calls the rest. No decisions here.

`corral serve` runs the server, `corral worker` only advances sessions, `corral demo` shows it at work, `corral run`
does one prompt, `corral doctor` explains the machine, `corral migrate` prepares the database, `corral import` and
`corral export` move in and out, `corral keys` manages API keys, `corral vault` credentials. An error of ours is one
sentence on stderr and exit code 1; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import typer
from rich.markup import escape

from corral import config
from corral.commands.terminal import Terminal
from corral.config_sections import LogSettings
from corral.errors import CorralError
from corral.logs import log_as

T = TypeVar("T")

app = typer.Typer(
    name="corral",
    help="Run managed agents on machines you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
vault_app = typer.Typer(help="Keep credentials for agents, on a running server.", no_args_is_help=True)
app.add_typer(vault_app, name="vault")
base_app = typer.Typer(help="Make, import and list what sandboxes see as their system.", no_args_is_help=True)
app.add_typer(base_app, name="base")
out = Terminal(highlight=False, soft_wrap=True)
err = Terminal(stderr=True, highlight=False, soft_wrap=True)

DataDir = Annotated[Path | None, typer.Option(help="Where sessions, keys and the database live.", show_default=False)]
Database = Annotated[
    str | None, typer.Option(help="sqlite:///path or postgresql://user:password@host/name", show_default=False)
]
Config = Annotated[Path | None, typer.Option(help="Settings file; default ./corral.toml.", show_default=False)]
ServerUrl = Annotated[
    str | None, typer.Option("--url", help="A server elsewhere; its key comes from CORRAL_API_KEY.", show_default=False)
]
VaultId = Annotated[str, typer.Argument(help="vlt_…")]
SandboxName = Annotated[
    str | None,
    typer.Option("--sandbox", help="bubblewrap (default), docker, or process (no isolation).", show_default=False),
]


EngineName = Annotated[str | None, typer.Option("--engine", help="local (default) or temporal.", show_default=False)]
TemporalAddress = Annotated[
    str | None, typer.Option(help="host:port of Temporal; default 127.0.0.1:7233.", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings file.", show_default=False)]


class Part(Enum):
    """What `corral doctor` can put to the test."""

    SANDBOX = "sandbox"


@app.command()
def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; default 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8700, 0 for any.", show_default=False)] = None,
    data_dir: DataDir = None,
    database: Database = None,
    engine: EngineName = None,
    temporal_address: TemporalAddress = None,
    worker: Annotated[bool, typer.Option(help="Advance sessions in this process too.")] = True,
    sandbox: SandboxName = None,
    config_file: ConfigFile = None,
) -> None:
    """Start the server."""
    settings = config.load(
        file=config_file,
        overrides={
            "server.host": host,
            "server.port": port,
            "data_dir": _text(data_dir),
            "database": database,
            "engine": engine,
            "temporal.address": temporal_address,
            "sandbox.backend": sandbox,
        },
    )
    log_as(settings.log)
    _run(lambda: _serve(settings, works=worker))


@app.command()
def worker(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address for health and metrics; default 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port for /healthz and /metrics; default none.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    database: Database = None,
    temporal_address: TemporalAddress = None,
    sandbox: SandboxName = None,
    config_file: ConfigFile = None,
) -> None:
    """Advance sessions that servers accept: any number, on any machine that reaches PostgreSQL and Temporal."""
    settings = config.load(
        file=config_file,
        overrides={
            "data_dir": _text(data_dir),
            "database": database,
            "engine": "temporal",
            "server.host": host,
            "server.worker_port": port,
            "temporal.address": temporal_address,
            "sandbox.backend": sandbox,
        },
    )
    log_as(settings.log)
    _run(lambda: _work(settings))


@app.command()
def demo() -> None:
    """Start a server on a free port, let an agent write a file, and check the file."""
    from corral.commands.demo import demo as show

    log_as(LogSettings(level="warning"))
    raise typer.Exit(_run(lambda: show(config.load(), out)))


@app.command()
def run(
    prompt: Annotated[str, typer.Argument(help="What the agent should do.")],
    model: Annotated[str, typer.Option(help="Model id.")] = "claude-opus-4-8",
    data_dir: DataDir = None,
    sandbox: SandboxName = None,
) -> None:
    """Run one prompt, stream the answer, and list the files it left."""
    from corral.commands.run import run_prompt

    log_as(LogSettings(level="warning"))
    settings = config.load(overrides={"data_dir": _text(data_dir), "sandbox.backend": sandbox})
    raise typer.Exit(_run(lambda: run_prompt(settings, prompt, model, out)))


@app.command()
def doctor(
    part: Annotated[Part | None, typer.Argument(help="Put this part to the test.", show_default=False)] = None,
    data_dir: DataDir = None,
    sandbox: SandboxName = None,
) -> None:
    """Explain this machine: what works, what does not and why. `corral doctor sandbox` tries what sandboxes promise."""
    from corral.commands.doctor import examine, examine_sandbox

    settings = config.load(overrides={"data_dir": _text(data_dir), "sandbox.backend": sandbox})
    if part is Part.SANDBOX:
        log_as(LogSettings(level="warning"))
    raise typer.Exit(_run(lambda: (examine_sandbox if part is Part.SANDBOX else examine)(settings, out)))


@app.command()
def migrate(data_dir: DataDir = None, database: Database = None) -> None:
    """Bring the database's schema up to date, as a server does when it starts."""
    from corral.commands.migrate import migrate as bring_up_to_date

    settings = config.load(overrides={"data_dir": _text(data_dir), "database": database})
    _run(lambda: bring_up_to_date(settings, out))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="JSON lines of objects as the API returns them; see docs/moving.md.")],
    workspace: Annotated[str, typer.Option(help="Workspace for lines that are under none.")] = "wrkspc_default",
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    """Move in: store agents, environments and sessions with their events under the ids they have."""
    from corral.commands.moving import import_file

    settings = config.load(overrides={"data_dir": _text(data_dir), "database": database})
    _run(lambda: import_file(settings, file, workspace, out))


@app.command("export")
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to; default standard output.", show_default=False)] = None,
    workspace: Annotated[str | None, typer.Option(help="Only this workspace.", show_default=False)] = None,
    with_secrets: Annotated[bool, typer.Option("--with-secrets", help="Vaults too, their secrets in clear.")] = False,
    data_dir: DataDir = None,
    database: Database = None,
) -> None:
    """Move out, or back up: write everything as lines that `corral import` reads."""
    from corral.commands.moving import export_to

    settings = config.load(overrides={"data_dir": _text(data_dir), "database": database})
    _run(lambda: export_to(settings, file, workspace, err, with_secrets=with_secrets))


@keys_app.command("create")
def keys_create(
    workspace: Annotated[str, typer.Option(help="Workspace that the key belongs to.")] = "wrkspc_default",
    name: Annotated[str | None, typer.Option(help="A name for you to remember it by.", show_default=False)] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key; it is shown once."""
    from corral.commands.keys import create

    _run(lambda: create(config.load(overrides={"data_dir": _text(data_dir)}), workspace, name, out))


@keys_app.command("list")
def keys_list(data_dir: DataDir = None) -> None:
    """List keys."""
    from corral.commands.keys import show

    _run(lambda: show(config.load(overrides={"data_dir": _text(data_dir)}), out))


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(help="apikey_…")], data_dir: DataDir = None) -> None:
    """Refuse a key from now on. A running server notices within seconds."""
    from corral.commands.keys import revoke

    _run(lambda: revoke(config.load(overrides={"data_dir": _text(data_dir)}), key_id, out))


@keys_app.command("rotate-master")
def keys_rotate_master(
    keep: Annotated[bool, typer.Option("--keep", help="Make no new key; seal with the first one there is.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Seal all vaults with a new master key. Running servers go on."""
    from corral.commands.keys import reseal, rotate_master

    settings = config.load(overrides={"data_dir": _text(data_dir)})
    _run(lambda: reseal(settings, out) if keep else rotate_master(settings, out))


@base_app.command("build")
def base_build(
    name: Annotated[str, typer.Argument(help="What to call it in corral.toml.")] = "debian",
    suite: Annotated[str, typer.Option(help="Release of the distribution.")] = "stable",
    mirror: Annotated[str | None, typer.Option(help="Where from; default the tool's own.", show_default=False)] = None,
    packages: Annotated[str, typer.Option(help="More packages, separated by commas.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Make a base with the distribution's own bootstrap tool, mmdebstrap."""
    from corral.commands.bases import build

    settings = config.load(overrides={"data_dir": _text(data_dir)})
    more = [each.strip() for each in packages.split(",") if each.strip()]
    _run(lambda: build(settings, name, suite=suite, mirror=mirror, packages=more, out=out))


@base_app.command("import")
def base_import(
    file: Annotated[Path, typer.Argument(help="A tar of a root file system, as `docker export` writes it.")],
    name: Annotated[str | None, typer.Option(help="Default the file's name.", show_default=False)] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a base of a tar."""
    from corral.commands.bases import unpack

    settings = config.load(overrides={"data_dir": _text(data_dir)})
    _run(lambda: unpack(settings, name or file.name.split(".")[0], file, out))


@base_app.command("list")
def base_list(data_dir: DataDir = None) -> None:
    """List bases."""
    from corral.commands.bases import show

    _run(lambda: show(config.load(overrides={"data_dir": _text(data_dir)}), out))


@vault_app.command("create")
def vault_create(
    name: Annotated[str, typer.Argument(help="A name for you to remember it by.")],
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Make a vault, and print its id."""
    from corral.commands import vault

    at = vault.place(_settings(data_dir), url)
    _run(lambda: vault.create(at, name, out))


@vault_app.command("list")
def vault_list(
    vault_id: Annotated[str | None, typer.Argument(help="vlt_…; without it, all vaults.", show_default=False)] = None,
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """List vaults, or the credentials of one. Secrets are never shown."""
    from corral.commands import vault

    at = vault.place(_settings(data_dir), url)
    _run(lambda: vault.show(at, vault_id, out))


@vault_app.command("add")
def vault_add(
    vault_id: VaultId,
    *,
    server: Annotated[
        str | None, typer.Option(help="The MCP server that the token is for.", show_default=False)
    ] = None,
    variable: Annotated[
        str | None, typer.Option(help="The environment variable that the secret is for.", show_default=False)
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="A host that the variable may be sent to; default all.", show_default=False)
    ] = None,
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Keep a secret, read from a prompt or from standard input: a token for --server, or the value of --variable."""
    from corral.commands import vault

    at = vault.place(_settings(data_dir), url)
    if server is not None and variable is None:
        secret = vault.read_secret("Token")
        _run(lambda: vault.add_bearer(at, vault_id, server, secret, out))
    elif variable is not None and server is None:
        secret = vault.read_secret("Secret")
        _run(lambda: vault.add_variable(at, vault_id, variable, secret, hosts=host or [], out=out))
    else:
        raise typer.BadParameter("give one of --server and --variable")


@vault_app.command("login")
def vault_login(
    vault_id: VaultId,
    server: Annotated[str, typer.Argument(help="URL of the MCP server.")],
    *,
    client_id: Annotated[
        str | None, typer.Option(help="Of a client that you registered; default: register one.", show_default=False)
    ] = None,
    client_secret: Annotated[
        bool, typer.Option("--client-secret", help="The client has a secret: read it like one.")
    ] = False,
    port: Annotated[int, typer.Option(help="Where the browser is sent at the end; 0 for any.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Archive the credential that is there.")] = False,
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Log in to an MCP server by OAuth, in a browser on this machine, and keep the tokens."""
    from corral.commands import vault
    from corral.commands.login import Login

    at = vault.place(_settings(data_dir), url)
    secret = vault.read_secret("Client secret") if client_secret else None
    login = Login(server, port=port, client_id=client_id, secret=secret)
    _run(lambda: vault.add_login(at, vault_id, login, out, replace=replace))


@vault_app.command("validate")
def vault_validate(
    vault_id: VaultId,
    credential_id: Annotated[str, typer.Argument(help="vcrd_…")],
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Try an OAuth credential on its MCP server; exit code 0 says that it is valid."""
    from corral.commands import vault

    at = vault.place(_settings(data_dir), url)
    raise typer.Exit(_run(lambda: vault.validate(at, vault_id, credential_id, out)))


@vault_app.command("delete")
def vault_delete(
    vault_id: VaultId,
    credential_id: Annotated[
        str | None, typer.Argument(help="vcrd_…; without it, the whole vault.", show_default=False)
    ] = None,
    url: ServerUrl = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a credential, or a vault with all that it holds."""
    from corral.commands import vault

    at = vault.place(_settings(data_dir), url)
    _run(lambda: vault.delete(at, vault_id, credential_id, out))


async def _serve(settings: config.Settings, *, works: bool) -> None:
    _leave_no_core()
    from corral.app.server import open_corral
    from corral.serving import base_url, bind, listening_on, serve_until_signalled

    with bind(settings.server.host, settings.server.port) as listener:
        async with open_corral(listening_on(settings, listener), works=works) as corral:
            out.print(f"Corral is listening on {base_url(listener)}")
            if corral.first_start:
                out.print(f"API key (kept in {settings.data_dir}/api_key): {corral.api_key}")
            _warn(settings)
            await serve_until_signalled(corral, listener)


async def _work(settings: config.Settings) -> None:
    _leave_no_core()
    from corral.app.server import open_corral
    from corral.serving import base_url, bind, listening_on, serve_until_signalled, until_signalled

    port = settings.server.worker_port
    if port is None:
        async with open_corral(settings, serves=False):
            out.print("Corral is advancing sessions")
            _warn(settings)
            await until_signalled()
        return
    with bind(settings.server.host, port) as listener:
        async with open_corral(listening_on(settings, listener), serves=False) as corral:
            out.print(f"Corral is advancing sessions; health and metrics are at {base_url(listener)}")
            _warn(settings)
            await serve_until_signalled(corral, listener)


def _leave_no_core() -> None:
    """This process holds keys: nothing of its memory may end up in a file when it crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A machine whose crashes go to a program gets them in spite of that limit, but then without any memory.
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")


def _warn(settings: config.Settings) -> None:
    if settings.sandbox.backend == "process":
        err.print("[yellow]The process sandbox has no isolation: agents can do whatever this user can.[/]")
    sys.stdout.flush()


def _settings(data_dir: Path | None) -> config.Settings:
    return config.load(overrides={"data_dir": _text(data_dir)})


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _run(main: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(main, backend_options={"use_uvloop": True})


def main() -> None:
    """Entry point."""
    log_as(LogSettings())
    code: object = 0
    try:
        app()
    except CorralError as error:
        err.print(f"[red]corral:[/] {escape(error.message)}")
        code = 1
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code
    if "temporalio" in sys.modules and (code is None or isinstance(code, int)):
        # Everything is closed. The SDK's own threads can crash a Python that takes itself apart around them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
