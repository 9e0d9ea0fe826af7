"""The engine's API: what `docker.py` asks of it, with errors that say what to do.

Over the official SDK, which blocks: called from worker threads, and no more requests at a time than a setting says. A
connection lives as long as one piece of work, so an idle server holds none.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from corral.config_sections import DockerSettings
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.sandboxes.docker_container import Container

KNOCK_SECONDS_MAX = 10.0
RUNNING = ("running", "paused")
START = "Start it, or name another with DOCKER_HOST or `[sandbox.docker] host`."


class Engine(msgspec.Struct, frozen=True, rename="pascal"):
    """What an engine says about itself."""

    server_version: str
    runtimes: Mapping[str, object] = {}
    security_options: Sequence[str] = ()
    memory_limit: bool = False
    swap_limit: bool = False
    pids_limit: bool = False
    cpu_cfs_quota: bool = False
    os_type: str = msgspec.field(default="linux", name="OSType")


class _ImageConfig(msgspec.Struct, frozen=True, rename="pascal"):
    env: Sequence[str] | None = None


class _Image(msgspec.Struct, frozen=True, rename="pascal"):
    id: str
    config: _ImageConfig | None = None


class _Made(msgspec.Struct, frozen=True, rename="pascal"):
    id: str


class _State(msgspec.Struct, frozen=True, rename="pascal"):
    pid: int


class _Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    state: _State


class _Listed(msgspec.Struct, frozen=True, rename="pascal"):
    id: str
    state: str
    created: int
    labels: Mapping[str, str] = {}


class Client(Protocol):
    """What is used of the SDK's `APIClient`, whose own types are mostly unknown."""

    def info(self) -> object: ...  # noqa: D102  # named as in the engine's API
    def inspect_image(self, image: str) -> object: ...  # noqa: D102  # the same
    def create_host_config(self, **fields: Any) -> dict[str, Any]: ...  # noqa: D102  # the same
    def create_container(self, **fields: Any) -> object: ...  # noqa: D102  # the same
    def start(self, container: str) -> None: ...  # noqa: D102  # the same
    def inspect_container(self, container: str) -> object: ...  # noqa: D102  # the same
    def containers(self, *, all: bool, filters: Mapping[str, Any]) -> object: ...  # noqa: D102  # the same
    def remove_container(self, container: str, *, force: bool) -> None: ...  # noqa: D102  # the same
    def wait(self, container: str, *, condition: str) -> object: ...  # noqa: D102  # the same


class Image(NamedTuple):
    """An image that the engine has."""

    id: str
    """A digest of all that is in it."""
    variables: Mapping[str, str]
    """The environment that it brings."""


class Started(NamedTuple):
    """A container that was just started."""

    id: str
    pid: int
    """Of its first process, as the engine's machine knows it."""


class EngineApi:
    """See the module."""

    def __init__(self, settings: DockerSettings) -> None:
        self._settings = settings
        self._version: str | None = None
        self._free = threading.BoundedSemaphore(settings.requests_max)

    def look(self) -> Engine:
        """What the engine is. Raises `MachineUnfit`."""
        try:
            with self._client() as client:
                return msgspec.convert(client.info(), Engine)
        except SandboxUnavailable as error:
            raise MachineUnfit(error.message) from error
        except msgspec.ValidationError as error:
            raise MachineUnfit(f"What answers at {self._settings.host} is no Docker engine: {error}.") from error

    def image(self, named: str) -> Image:
        """An image by its name or id. Raises `SandboxUnavailable` when the engine does not have it."""
        with self._client() as client:
            found = msgspec.convert(client.inspect_image(named), _Image)
        pairs = (found.config and found.config.env) or ()
        return Image(found.id, dict(pair.split("=", 1) for pair in pairs if "=" in pair))

    def start(self, container: Container) -> Started:
        """Make a container and start it; one that does not start is removed."""
        with self._client() as client:
            host = client.create_host_config(**container.host)
            host["MaskedPaths"], host["ReadonlyPaths"] = list(container.masked), list(container.read_only)
            made = msgspec.convert(client.create_container(**container.config, host_config=host), _Made).id
            try:
                client.start(made)
                pid = msgspec.convert(client.inspect_container(made), _Inspected).state.pid
            except BaseException:
                client.remove_container(made, force=True)
                raise
        return Started(made, pid)

    def remove(self, labels: Mapping[str, str]) -> None:
        """Remove the containers with these labels. Ends when they are gone."""
        with self._client() as client:
            for each in _found(client, labels):
                self._remove(client, each.id)

    def remove_failed(self, labels: Mapping[str, str]) -> None:
        """Remove those that do not run, unless they were made just now and are about to."""
        with self._client() as client:
            for each in _found(client, labels):
                if each.state not in RUNNING and time.time() - each.created > self._settings.request_seconds_max:
                    self._remove(client, each.id)

    def values_of(self, name: str, labels: Mapping[str, str]) -> set[str]:
        """What the containers with these labels have as their label `name`, where they have one."""
        with self._client() as client:
            return {each.labels[name] for each in _found(client, labels) if name in each.labels}

    def _remove(self, client: Client, container: str) -> None:
        from docker.errors import APIError, NotFound

        try:
            client.remove_container(container, force=True)
        except NotFound:
            return
        except APIError as error:
            # It ended by itself, and the engine is at it already.
            if error.status_code != 409:
                raise
            try:
                client.wait(container, condition="removed")
            except NotFound:
                return

    @contextmanager
    def _client(self) -> Generator[Client]:
        """A client for one piece of work. What goes wrong inside is a `SandboxUnavailable`."""
        try:
            from docker import APIClient
            from docker.errors import APIError, DockerException, ImageNotFound
            from requests.exceptions import RequestException
        except ModuleNotFoundError as error:
            raise SandboxUnavailable("The SDK for Docker is missing: `pip install 'corral[docker]'`.") from error
        with self._free:
            self._knock()
            try:
                seconds = int(self._settings.request_seconds_max)
                # Left open, the client asks the engine which version it speaks; once is enough.
                with APIClient(self._settings.host, version=self._version or "auto", timeout=seconds) as client:
                    self._version = client.api_version
                    yield cast("Client", client)
            except ImageNotFound as error:
                raise SandboxUnavailable(_missing_image(str(error.explanation))) from error
            except APIError as error:
                raise SandboxUnavailable(f"The engine refuses: {_remedy(str(error.explanation))}") from error
            except (DockerException, RequestException) as error:
                raise SandboxUnavailable(f"The engine does not answer as it should: {error}") from error

    def _knock(self) -> None:
        """Connect once without the SDK, whose errors hide why it cannot."""
        host = self._settings.host
        if not host.startswith("unix://"):
            raise SandboxUnavailable(
                f"Sandboxes need a local engine, whose containers see this machine's files, and {host} is not a unix "
                "socket. Give `[sandbox.docker] host` as unix:///path."
            )
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(KNOCK_SECONDS_MAX)
            try:
                knocking.connect(host.removeprefix("unix://"))
            except PermissionError as error:
                raise SandboxUnavailable(
                    f"This user may not use the engine at {host}: add it to the group of that socket "
                    "(`usermod -aG docker <user>`, then log in anew), or run the server as root."
                ) from error
            except OSError as error:
                raise SandboxUnavailable(f"No engine runs at {host} ({error.strerror or error}). {START}") from error


def _found(client: Client, labels: Mapping[str, str]) -> list[_Listed]:
    wanted = [f"{name}={value}" for name, value in labels.items()]
    return msgspec.convert(client.containers(all=True, filters={"label": wanted}), list[_Listed])


def _missing_image(explanation: str) -> str:
    name = explanation.rpartition("image: ")[2].strip() or "it"
    return (
        f"The engine has no image `{name}`: run `docker pull {name}`, or choose another with `[sandbox.docker] image`."
    )


def _remedy(explanation: str) -> str:
    if "python3" in explanation and "executable file not found" in explanation:
        return "the image has no python3, which a sandbox needs. Choose another with `[sandbox.docker] image`."
    if "unknown or invalid runtime" in explanation.lower() or "unknown runtime" in explanation.lower():
        return f"{explanation}. Install the runtime, or choose another with `[sandbox.docker] runtime`."
    if "bind source path does not exist" in explanation:
        return f"{explanation}. Sandboxes need a local engine, whose containers see this machine's files."
    return explanation
