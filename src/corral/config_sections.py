"""The sections of `corral.toml`, setting by setting: unit, default, limit. How they are read is in `config.py`."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections; an unknown key in `corral.toml` is an error, not a shrug."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8700
    worker_port: int | None = None
    """Where `corral worker` answers `/healthz` and `/metrics`, and nothing else; None for nowhere."""
    body_bytes_max: int = 32 * 1024 * 1024
    file_bytes_max: int = 500 * 1024 * 1024
    """For an uploaded file, and for a file in a session's outputs that is to be listed."""
    outputs_max: int = 1_000
    """Files in one session's outputs that are listed, the first by path."""
    outputs_bytes_max: int = 4 * 1024 * 1024 * 1024
    """For all listed outputs of one session together: they are copied when they are listed."""
    ping_seconds: float = 15.0
    stream_buffer_frames_max: int = 2_000
    """Frames that wait for one slow reader before it is cut off."""
    stream_buffer_bytes_max: int = 4 * 1024 * 1024
    create_requests_per_minute: int = 300
    read_requests_per_minute: int = 1_200
    environment_requests_per_minute: int = 60
    doubt_seconds_max: float = 30.0
    """How long a client waits to hear what became of its write while the database is away; then it is told that nobody
    knows. PostgreSQL only."""
    rate_limits: bool = False
    """Off by default: the machine is yours. The numbers above are the hosted service's."""


class HarnessSettings(Section, frozen=True, kw_only=True):
    """The loop."""

    output_tokens_max: int = 16_384
    answer_bytes_max: int = 64 * 1024 * 1024
    """One answer of a model, as its server sends it; a single event of it may have a sixteenth. Over it, it failed."""
    model_attempts_max: int = 4
    backoff_seconds: float = 1.0
    backoff_seconds_max: float = 60.0
    retry_after_seconds_max: float = 600.0
    """How long a model server may have us wait before the next attempt."""
    model_idle_seconds_max: float = 600.0
    """A model stream that says nothing for this long is cut."""
    tool_rounds_max: int = 500
    """Model requests in one turn before `tool_use_limit_reached_error`."""
    sessions_running_max: int = 1_000
    contexts_cached_max: int = 256
    messages_cached_bytes_max: int = 64 * 1024 * 1024
    """Messages of conversations, kept in memory in the form in which the Messages API is sent them."""
    attachments_cached_bytes_max: int = 64 * 1024 * 1024
    """Files that messages refer to, kept in memory in the form that models take."""
    tool_calls_parallel_max: int = 16
    vaults_read_seconds: float = 15.0
    """How long a running command goes on with secrets of vaults as they were; each call reads them anew."""
    tool_result_characters_max: int = 100_000
    """Text of one tool result; a longer one goes to a file in the sandbox, with a preview in its place."""
    tool_result_preview_characters: Annotated[int, msgspec.Meta(ge=0)] = 4_000
    tool_result_file_characters_max: int = 4 * 1024 * 1024
    """What such a file holds at most. It travels to the sandbox as one message of `sandbox.reply_bytes_max` bytes."""
    compact_above: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.8
    """Share of the model's window that a conversation may fill before it is condensed."""
    compact_keeps: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.2
    """Share of the window that stays word for word, from the end."""
    compactions_max: int = 3
    """Times in a row before the turn is given up."""
    context_tokens: int = 200_000
    """Window of a model that the catalogue does not know."""
    session_seconds_max: float | None = None
    """Time that one session may spend running, all its turns together; None for no limit."""


class DockerSettings(Section, frozen=True, kw_only=True):
    """Sandboxes in containers (`--sandbox docker`), over the API of Docker or Podman on this machine."""

    host: str = "unix:///var/run/docker.sock"
    """The engine's socket. Engines on other machines cannot share files with the server."""
    image: str = "python:3.13-slim"
    """What sandboxes are made from. It needs bash, and python3 of version 3.9 or later; Corral pulls nothing."""
    images: Mapping[str, str] = {}
    """Images for single environments, by the environment's name."""
    runtime: str | None = None
    """One of the engine's runtimes, such as `runsc`; None for its default."""
    requests_max: Annotated[int, msgspec.Meta(gt=0)] = 8
    """Requests to the engine at a time; more of them wait."""
    request_seconds_max: float = 60.0


class SandboxSettings(Section, frozen=True, kw_only=True):
    """Where tools run. Limits hold for one sandbox."""

    backend: Literal["bubblewrap", "docker", "kubernetes", "process"] = "bubblewrap"
    directory: str | None = None
    """Where sandboxes keep their files; None lets the backend choose a place its users can reach."""
    base: str | None = None
    """The root file system that sandboxes see, for bubblewrap: the name of one that `corral base` made, or a directory.
    None for the machine's own /usr."""
    uid_first: int = 210_000
    """Host uids from here on are used when the server is root, one for each sandbox."""
    uid_count: int = 10_000
    start_seconds_max: float = 20.0
    answer_seconds_max: float = 30.0
    """Added to a command's own time before a silent sandbox counts as lost."""
    cancel_seconds_max: float = 5.0
    """How long cancelling, forgetting or ending waits for the sandbox to confirm."""
    command_seconds: float = 120.0
    command_seconds_max: float = 3_600.0
    output_bytes_max: int = 100 * 1024
    text_file_bytes_max: int = 256 * 1024
    image_base64_bytes_max: int = 5 * 1024 * 1024
    pdf_bytes_max: int = 20 * 1024 * 1024
    glob_results_max: int = 200
    reply_bytes_max: int = 32 * 1024 * 1024
    remembered_calls_max: int = 64
    memory_bytes_max: int = 2 * 1024 * 1024 * 1024
    """For all processes together where cgroups can be used, else for each; `corral doctor` says which."""
    cpus_max: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Processor time per second; needs cgroups."""
    processes_max: int = 256
    """Threads count too."""
    open_files_max: int = 1_024
    disk_bytes_max: Annotated[int, msgspec.Meta(gt=0)] = 10 * 1024 * 1024 * 1024
    """For all files of the session. Whoever writes beyond it is stopped, within about a second."""
    disk_files_max: Annotated[int, msgspec.Meta(gt=0)] = 1_000_000
    disk_free_bytes_min: int = 512 * 1024 * 1024
    """With less space than this left on the host's disk, no sandbox is made and none may write."""
    shared_memory_bytes_max: int = 64 * 1024 * 1024
    """Size of `/dev/shm`."""
    pause_seconds: float = 120.0
    """What a sandbox runs in the background is stopped when the sandbox is not used for this long, and goes on at the
    next call."""
    checkpoint_seconds: float = 600.0
    """A sandbox that is not used for this long ends, and its files go to the blob store until they are needed."""
    checkpoint_bytes_max: int = 10 * 1024 * 1024 * 1024
    """A sandbox with more bytes in its files than this is not put away: its files stay where they are."""
    checkpoint_files_max: int = 1_000_000
    checkpoint_seconds_max: float = 600.0
    """For putting away one sandbox's files, and for bringing them back."""
    checkpoints_parallel_max: int = 2
    lifetime_seconds: float = 30 * 24 * 3600.0
    """A sandbox older than this is removed when it rests, with its files; a session that goes on gets a fresh one."""
    reap_seconds: float = 3_600.0
    """How often to look for what belongs to no session, has expired, or could not be put away before."""
    orphan_seconds_max: float = 300.0
    """A sandbox that no server talks to for this long ends by itself."""
    warm: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Blank sandboxes that are kept running for each environment that was used lately, so that its next session need
    not wait for one; 0 for none. For bubblewrap."""
    warm_total_max: Annotated[int, msgspec.Meta(ge=0)] = 8
    """For all environments together; those that were used last have them."""
    warm_seconds: float = 300.0
    """An environment that gets no new session for this long has none any more."""
    docker: DockerSettings = DockerSettings()


def _check_proxy(url: str | None) -> None:
    """Raise `ValueError` for a proxy that cannot be one."""
    if url is None:
        return
    place = urlsplit(url if "//" in url else f"http://{url}")
    if place.scheme != "http" or not place.hostname or not 0 < (place.port or 1) < 65_536:
        raise ValueError("`upstream_proxy` must be `http://host:port`, with `user:password@` if it wants them")


class EgressSettings(Section, frozen=True, kw_only=True):
    """The way out of sandboxes: one proxy for all of them, which holds what environments allow."""

    allowed_private: tuple[str, ...] = ()
    """Networks as `10.0.0.0/8` that sandboxes may reach though they are private, where their environment allows the
    host. Without it every address that is not of the public internet is refused, this machine's own included."""
    hosts: Mapping[str, str] = {}
    """Addresses by host name, as in /etc/hosts, for sandboxes alone. Addresses are checked like any other."""
    ca_file: str | None = None
    """Authorities to trust beside this machine's, as PEM."""
    upstream_proxy: str | None = None
    """`http://user:password@host:port`: how this machine itself gets out, by default what HTTPS_PROXY says."""
    upstream_proxy_not_for: tuple[str, ...] = ()
    """What is reached without it, by default what NO_PROXY says: `*`, hosts, `.domains`, networks, each with a port or
    without."""
    uid: int = 209_999
    """Host uid that the proxy runs as when the server is root."""
    connections_max: int = 256
    """From one sandbox at a time."""
    connections_total_max: int = 4_096
    resolutions_max: int = 4
    """Names that are looked up for one sandbox at a time."""
    header_bytes_max: int = 64 * 1024
    """Of a request or an answer; bodies have no limit and are never held."""
    idle_seconds_max: float = 300.0
    """A connection that carries nothing for this long is closed."""
    connect_seconds_max: float = 15.0
    machine: Mapping[str, str] = {}
    """How this machine reaches package managers: PIP_INDEX_URL, GOPROXY and the like, taken from the environment.
    Indexes that it is set up for count as package managers' hosts, on private addresses too."""

    def __post_init__(self) -> None:
        for network in self.allowed_private:
            ip_network(network, strict=False)


class PackagesSettings(Section, frozen=True, kw_only=True):
    """Packages of environments: installed once for each distinct set, and shared by all sandboxes with it."""

    build_seconds_max: float = 900.0
    """For all packages of an environment together."""
    layer_bytes_max: int = 4 * 1024 * 1024 * 1024
    """Disk that one set may take, what it needs only while it is installed included."""
    builds_parallel_max: Annotated[int, msgspec.Meta(ge=1)] = 2
    failure_seconds: float = 60.0
    """A set that failed is not tried again sooner than this."""
    unused_days_max: float = 30.0
    """Sets that no sandbox was opened with for this long are removed when the server starts."""


class LocalModelSettings(Section, frozen=True, kw_only=True):
    """The model that runs on this machine (`corral[local]`)."""

    file: str | None = None
    """A GGUF file of yours; None fetches the default one into the cache directory."""
    threads: int | None = None
    context_tokens: int = 8_192
    output_tokens_max: int = 1_024
    start_seconds_max: float = 180.0


AnthropicPlatform: TypeAlias = Literal["anthropic", "bedrock", "vertex"]


class AnthropicSettings(Section, frozen=True, kw_only=True):
    """Where Claude is asked: at Anthropic (or at `ANTHROPIC_BASE_URL`), or through one of two clouds.

    The clouds' own clients find credentials and what is left out here where they always do: see `docs/models.md`.
    """

    platform: AnthropicPlatform = "anthropic"
    """`bedrock` needs `corral[bedrock]`, `vertex` needs `corral[vertex]`."""
    region: str | None = None
    """Of the cloud; None for `AWS_REGION` or `CLOUD_ML_REGION`."""
    project: str | None = None
    """Of Vertex; None for `ANTHROPIC_VERTEX_PROJECT_ID`, or for the one that the credentials belong to."""
    platform_url: str | None = None
    """The cloud's address; None for `ANTHROPIC_BEDROCK_BASE_URL` or `ANTHROPIC_VERTEX_BASE_URL`, or the region's."""


OpenAIWire: TypeAlias = Literal["responses", "chat"]


SystemRole: TypeAlias = Literal["system", "developer", "user"]


class OpenAISettings(Section, frozen=True, kw_only=True):
    """OpenAI, or another server that speaks its API, at `OPENAI_BASE_URL` and with `OPENAI_API_KEY`."""

    model: str | None = None
    """Sent in place of any `claude-*` id, when OpenAI is where models go by default and no route says otherwise."""
    wire: OpenAIWire | None = None
    """`responses` (`/v1/responses`) or `chat` (`/v1/chat/completions`). Left out, it is `responses` for OpenAI itself
    and `chat` for every other address."""
    system_messages: SystemRole | None = None
    """As what a `system.message` in mid-conversation is sent. Left out, it is `system` for OpenAI itself and `user` for
    every other address: most chat templates take a system message at the beginning only."""


FallbackOn: TypeAlias = Literal["refusal", "outage"]


class ModelRoute(Section, frozen=True, kw_only=True):
    """Which provider serves the model ids that match a pattern."""

    pattern: str
    """As in a shell: `claude-*`."""
    provider: Literal["anthropic", "openai", "litellm", "local", "scripted"]
    model: str | None = None
    """Sent instead of the id that matched."""
    fallback: str | None = None
    """A second model id, routed like any other, that is asked once for a request that failed. None: no second one."""
    fallback_on: tuple[FallbackOn, ...] = ("refusal", "outage")
    """`refusal`: the model declined to answer. `outage`: it is overloaded, over its rate, or out of reach."""


class ModelPrice(Section, frozen=True, kw_only=True):
    """List price in USD per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write_5m: float
    cache_write_1h: float
    context_tokens: int = 200_000


class BlobSettings(Section, frozen=True, kw_only=True):
    """Where the bytes of files and of resting sandboxes are."""

    backend: Literal["disk", "s3"] = "disk"
    """`disk` keeps them in the data directory; `s3` in a bucket of S3 or of a server that speaks its API
    (`corral[s3]`), with credentials from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and the other places that AWS's
    own tools look in."""
    bucket: str | None = None
    prefix: str = "corral"
    """Of all names in the bucket. Two servers must not have the same."""
    endpoint_url: str | None = None
    """Of a server other than AWS's."""
    region: str | None = None
    part_bytes: int = 8 * 1024 * 1024
    """What is larger goes up in parts of this size."""
    parts_parallel_max: int = 4
    request_seconds_max: float = 300.0
    retry_seconds_max: float = 60.0


class TemporalSettings(Section, frozen=True, kw_only=True):
    """The engine of many processes (`--engine temporal`, `corral[temporal]`)."""

    address: str = "127.0.0.1:7233"
    namespace: str = "default"
    task_queue: str = "corral"
    """Of all processes of one installation, and of no other."""
    tls: bool = False
    retry_seconds: float = 1.0
    """Between attempts to reach a server that does not answer."""
    sweep_seconds: float = 30.0
    """How often to look for sessions that nobody was told of."""
    interrupt_check_seconds: float = 5.0
    """How often to look for interrupts of running sessions whose notice was lost; one that is found twice is heard."""
    drain_seconds: float = 5.0
    """What a stopping worker lets its sessions finish before it hands them over."""


class BudgetSettings(Section, frozen=True, kw_only=True):
    """Spending."""

    organization_usd_max: float | None = None
    """List cost of all sessions together; None for no limit."""


class McpSettings(Section, frozen=True, kw_only=True):
    """MCP servers that agents name. They are reached from this server, so those of your own network work too."""

    connect_seconds_max: float = 20.0
    """For the first answer of a server, and for its list of tools."""
    call_seconds_max: float = 300.0
    close_seconds_max: float = 5.0
    idle_seconds_max: float = 300.0
    """A session's connections are dropped when they are not used for this long, and made again when they are."""
    tools_max: int = 500
    """Tools of one server that are taken up, in its order."""
    description_characters_max: int = 4_096
    schema_bytes_max: int = 64 * 1024
    """A tool whose input schema is larger is left out."""
    result_bytes_max: int = 16 * 1024 * 1024
    values_max: int = 200_000
    """Strings, objects and lists in one answer, where they are JSON's own: each becomes far more than its bytes."""
    denied: tuple[str, ...] = ("169.254.0.0/16", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
    """Networks as `10.0.0.0/8`, or addresses, that neither MCP servers nor token endpoints of their credentials may be
    at, whatever their names. By default those where clouds answer questions about a machine."""
    upstream_proxy: str | None = None
    """`http://user:password@host:port`, or `environment` for what HTTPS_PROXY and NO_PROXY say: a proxy for MCP servers
    and token endpoints. It is told addresses, which were looked up and judged here."""
    upstream_proxy_not_for: tuple[str, ...] = ()
    """What is reached without it: `*`, hosts, `.domains`, networks, each with a port or without."""

    def __post_init__(self) -> None:
        _check_proxy(self.upstream_proxy)
        for network in self.denied:
            ip_network(network, strict=False)


LogFormat: TypeAlias = Literal["console", "logfmt", "json"]


LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


class LogSettings(Section, frozen=True, kw_only=True):
    """What the server writes to standard error: one line for each thing that happened, never what was said."""

    format: LogFormat | None = None
    """`json` is an object on each line. None: `console` on a terminal, `logfmt` elsewhere."""
    level: LogLevel = "info"
    """From which level on. Libraries are heard from `warning` on, whatever this says."""


class OtelSettings(Section, frozen=True, kw_only=True):
    """Traces by OpenTelemetry (`corral[otel]`): where they go, and all else, is in the standard OTEL_* variables."""

    traces: bool = False
    """True by itself when `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, unless
    `OTEL_SDK_DISABLED` or `OTEL_TRACES_EXPORTER` say otherwise."""
    content: bool = False
    """Whether spans hold prompts, answers, and what tools took and gave, up to 32,768 characters each."""


SearchBackend: TypeAlias = Literal["searxng", "brave", "tavily", "anthropic", "openai"]


class WebSettings(Section, frozen=True, kw_only=True):
    """`web_fetch` and `web_search`, which run on this server and not in sandboxes."""

    search: SearchBackend | None = None
    """Who answers searches; `anthropic` and `openai` are those providers' own. None: agents are not told of
    `web_search`."""
    search_url: str | None = None
    """Where; `searxng` needs it, and the JSON format enabled there. None: the engine's own address, or for a provider's
    search where its models are asked."""
    search_model: str | None = None
    """The model that searches, for `anthropic` and `openai`, which need one; a small one will do."""
    search_results_max: int = 10
    search_seconds_max: float = 20.0
    allowed_private: tuple[str, ...] = ()
    """Networks as `10.0.0.0/8` that pages may come from though they are private; without it, only public addresses."""
    hosts: Mapping[str, str] = {}
    """Addresses by host name, as in /etc/hosts, for `web_fetch` alone. Addresses are checked like any other."""
    ca_file: str | None = None
    """Authorities to trust beside this machine's, as PEM."""
    redirects_max: int = 5
    fetch_seconds_max: float = 30.0
    """For one page, with its redirects."""
    connect_seconds_max: float = 10.0
    fetches_parallel_max: int = 32
    page_bytes_max: int = 5 * 1024 * 1024
    """Of text or HTML, unpacked; what is longer is cut, and says so."""
    image_base64_bytes_max: int = 5 * 1024 * 1024
    pdf_bytes_max: int = 20 * 1024 * 1024
    convert_seconds_max: float = 20.0
    """For turning HTML into Markdown, in a process of its own."""
    convert_memory_bytes_max: int = 1024 * 1024 * 1024
    converts_parallel_max: int = 2
    upstream_proxy: str | None = None
    """`http://user:password@host:port`, or `environment` for what HTTPS_PROXY and NO_PROXY say: a proxy for pages. It
    is told addresses, which were looked up and judged here."""
    upstream_proxy_not_for: tuple[str, ...] = ()
    """What is reached without it: `*`, hosts, `.domains`, networks, each with a port or without."""

    def __post_init__(self) -> None:
        _check_proxy(self.upstream_proxy)
        for network in self.allowed_private:
            ip_network(network, strict=False)


class VaultSettings(Section, frozen=True, kw_only=True):
    """Credentials that sessions use."""

    master_key_file: str | None = None
    """Where the key is kept that seals the vaults; None for `master.key` in the data directory, made on first start."""
    request_seconds_max: float = 30.0
    """For one request to a token endpoint, or to an MCP server when a credential is validated."""
