"""Every setting: its name, unit, default and limit; and the only reader of `os.environ` and `corral.toml`.

Parts receive the section that concerns them (`SandboxSettings`, `LocalModelSettings`, ...) from `app/`; nothing
else in Corral looks at the environment. A setting `x_y` of section `s` is `[s] x_y` in `corral.toml`; the few
that scripts rely on have environment variables too, listed in `ENVIRONMENT`. Precedence: command line, environment,
file, default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from corral.config_sections import (
    AnthropicSettings,
    BlobSettings,
    BudgetSettings,
    EgressSettings,
    HarnessSettings,
    LocalModelSettings,
    LogSettings,
    McpSettings,
    ModelPrice,
    ModelRoute,
    OpenAISettings,
    OtelSettings,
    PackagesSettings,
    SandboxSettings,
    Section,
    ServerSettings,
    TemporalSettings,
    VaultSettings,
    WebSettings,
)
from corral.errors import MachineUnfit


class Secrets(Section, frozen=True, kw_only=True):
    """What must never be printed."""

    api_key: str | None = None
    anthropic_api_key: str | None = None
    anthropic_auth_token: str | None = None
    openai_api_key: str | None = None
    master_key: str | None = None
    """Seals the vaults: 32 bytes in base64; several, divided by commas, while it is being changed, the new one first.
    None keeps one in `master_key_file`."""
    bedrock_token: str | None = None
    brave_api_key: str | None = None
    tavily_api_key: str | None = None

    def __repr__(self) -> str:
        return "Secrets(***)"


class Settings(Section, frozen=True, kw_only=True):
    """Everything, resolved."""

    data_dir: Path
    database: str
    """`sqlite:///path`, or `postgresql://user:password@host:port/name` (`corral[postgres]`)."""
    engine: Literal["local", "temporal"] = "local"
    cache_dir: Path
    temporal: TemporalSettings = TemporalSettings()
    server: ServerSettings = ServerSettings()
    harness: HarnessSettings = HarnessSettings()
    sandbox: SandboxSettings = SandboxSettings()
    egress: EgressSettings = EgressSettings()
    packages: PackagesSettings = PackagesSettings()
    local_model: LocalModelSettings = LocalModelSettings()
    anthropic: AnthropicSettings = AnthropicSettings()
    openai: OpenAISettings = OpenAISettings()
    budget: BudgetSettings = BudgetSettings()
    blobs: BlobSettings = BlobSettings()
    log: LogSettings = LogSettings()
    otel: OtelSettings = OtelSettings()
    models: tuple[ModelRoute, ...] = ()
    prices: Mapping[str, ModelPrice] = {}
    """Added to, and winning over, the table that ships with Corral."""
    secrets: Secrets = Secrets()
    mcp: McpSettings = McpSettings()
    web: WebSettings = WebSettings()
    vaults: VaultSettings = VaultSettings()
    anthropic_base_url: str | None = None
    openai_base_url: str | None = None
    """As OpenAI's own SDKs take it, with its `/v1`."""

    @property
    def master_key_file(self) -> Path:
        """Where the master key is kept, unless the environment gives one."""
        return Path(self.vaults.master_key_file or self.data_dir / "master.key").expanduser()

    def __repr__(self) -> str:
        return f"Settings({self.data_dir}, {without_password(self.database)}, ...)"


def without_password(url: str) -> str:
    """A database URL as it may be shown."""
    head, at, tail = url.rpartition("@")
    scheme, separator, user = head.partition("://")
    if not at or not separator:
        return url.partition("?")[0]
    return f"{scheme}://{user.partition(':')[0]}@{tail.partition('?')[0]}"


ENVIRONMENT: Mapping[str, str] = {
    "CORRAL_API_KEY": "secrets.api_key",
    "CORRAL_DATA_DIR": "data_dir",
    "CORRAL_DATABASE_URL": "database",
    "CORRAL_ENGINE": "engine",
    "CORRAL_TEMPORAL_ADDRESS": "temporal.address",
    "CORRAL_TEMPORAL_NAMESPACE": "temporal.namespace",
    "CORRAL_SANDBOX": "sandbox.backend",
    "CORRAL_SANDBOX_DIR": "sandbox.directory",
    "CORRAL_SANDBOX_IMAGE": "sandbox.docker.image",
    "DOCKER_HOST": "sandbox.docker.host",
    "CORRAL_MODEL_FILE": "local_model.file",
    "CORRAL_CACHE_DIR": "cache_dir",
    "CORRAL_MASTER_KEY": "secrets.master_key",
    "CORRAL_LOG_FORMAT": "log.format",
    "CORRAL_LOG_LEVEL": "log.level",
    "ANTHROPIC_API_KEY": "secrets.anthropic_api_key",
    "ANTHROPIC_AUTH_TOKEN": "secrets.anthropic_auth_token",
    "ANTHROPIC_BASE_URL": "anthropic_base_url",
    "AWS_BEARER_TOKEN_BEDROCK": "secrets.bedrock_token",
    "OPENAI_API_KEY": "secrets.openai_api_key",
    "OPENAI_BASE_URL": "openai_base_url",
    "OPENAI_MODEL": "openai.model",
    "BRAVE_API_KEY": "secrets.brave_api_key",
    "TAVILY_API_KEY": "secrets.tavily_api_key",
}
ENVIRONMENT_PROXY = "environment"
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
MACHINE_VARIABLES = re.compile(
    r"HOME|XDG_CONFIG_HOME|CARGO_HOME|PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|TRUSTED_HOST|TIMEOUT|PRE|"
    r"ONLY_BINARY|CONFIG_FILE)|npm_config_registry|NPM_CONFIG_REGISTRY|GOPROXY|GOSUMDB|GONOSUMDB|GOFLAGS"
)


def load(
    *,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Resolve all settings. `overrides` uses dotted names (`server.port`) and wins.

    Raises `MachineUnfit` naming the file, variable or option that cannot be used.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, object] = _read_file(file, environ)
    for variable, name in ENVIRONMENT.items():
        if environ.get(variable):
            _set(tree, name, environ[variable])
    for name, value in (overrides or {}).items():
        if value is not None:
            _set(tree, name, value)
    _add_machine(tree, environ)
    _add_traces(tree, environ)
    tree.setdefault("data_dir", str(_user_dir(environ, "XDG_DATA_HOME", ".local/share")))
    tree.setdefault("cache_dir", str(_user_dir(environ, "XDG_CACHE_HOME", ".cache")))
    tree["data_dir"] = str(Path(str(tree["data_dir"])).expanduser().absolute())
    tree.setdefault("database", f"sqlite:///{tree['data_dir']}/corral.db")
    try:
        return msgspec.convert(tree, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise MachineUnfit(
            f"Corral's settings cannot be used: {error}. See `corral serve --help` and corral.toml."
        ) from error


def require_roles(settings: Settings, *, serves: bool, works: bool) -> None:
    """Refuse a process that the others of its installation could not work with. Raises `MachineUnfit`."""
    if settings.engine == "local":
        if not (serves and works):
            raise MachineUnfit("Serving and advancing are one process with the local engine; use --engine temporal.")
        return
    if not settings.database.startswith("postgres"):
        raise MachineUnfit("The temporal engine needs a database that processes share: --database postgresql://….")
    if settings.blobs.backend == "disk":
        raise MachineUnfit('The temporal engine needs files that all machines reach: set `[blobs] backend = "s3"`.')


def set_default(variable: str, value: str) -> None:
    """Tell a library something that it reads from the environment only, unless the operator has said otherwise."""
    os.environ.setdefault(variable, value)


def _add_machine(tree: dict[str, object], environ: Mapping[str, str]) -> None:
    """What the machine says about getting out, for all that runs on it; `corral.toml` wins."""
    given = tree.get("egress", {})
    egress: dict[str, object] = {
        "machine": {name: value for name, value in environ.items() if MACHINE_VARIABLES.fullmatch(name)}
    }
    proxy = next((environ[name] for name in PROXY_VARIABLES if environ.get(name)), None)
    direct = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    machine: dict[str, object] = {"upstream_proxy": proxy, "upstream_proxy_not_for": direct.replace(",", " ").split()}
    tree["egress"] = egress | machine | given if isinstance(given, dict) else given
    for name in ("web", "mcp"):
        section = tree.get(name)
        table = msgspec.convert(section, dict[str, object]) if isinstance(section, dict) else {}
        if table.get("upstream_proxy") == ENVIRONMENT_PROXY:
            del table["upstream_proxy"]
            tree[name] = machine | table


def _add_traces(tree: dict[str, object], environ: Mapping[str, str]) -> None:
    """Whether the standard variables ask for traces. Raises `MachineUnfit` when they ask for another protocol."""
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter != "otlp"
    given = tree.get("otel", {})
    asked = any(environ.get(name) for name in endpoints) and not disabled
    if asked:
        names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((environ[name] for name in names if environ.get(name)), "http/protobuf")
        if protocol != "http/protobuf":
            raise MachineUnfit(f"Traces are sent by http/protobuf only; the environment asks for {protocol}.")
    tree["otel"] = {"traces": asked} | given if isinstance(given, dict) else given


def _decode(kind: type, value: object) -> object:
    """What TOML and the environment have no type for."""
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"no setting is a {kind}")


def _read_file(file: Path | None, environ: Mapping[str, str]) -> dict[str, object]:
    """`--config`, else `$CORRAL_CONFIG`, else `./corral.toml` if there is one."""
    named = file or (Path(environ["CORRAL_CONFIG"]) if environ.get("CORRAL_CONFIG") else None)
    path = named or Path("corral.toml")
    if named is None and not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MachineUnfit(f"{path} cannot be read: {error}") from error


def _set(tree: dict[str, object], name: str, value: object) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise MachineUnfit(f"`{parent}` in corral.toml must be a table.")
        tree = child  # pyright: ignore[reportUnknownVariableType]  # TOML tables have str keys
    tree[leaf] = value


def _user_dir(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    home = Path(environ.get("HOME") or "/")
    return Path(environ.get(variable) or home / fallback) / "corral"
