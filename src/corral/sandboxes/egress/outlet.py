"""The server's end of the way out: makes each sandbox's socket, and keeps one proxy process serving them all.

The proxy is started when the first sandbox needs it and again whenever it dies. The listening sockets are kept here,
so nothing is lost with it: connections wait in them. A socket that a new server makes in the same place takes over for
a sandbox that outlived the last one, because what is mounted inside is the directory.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import subprocess
import sys
from collections import Counter as CountedKeys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter

from corral.config_sections import EgressSettings
from corral.domain.address import for_sandboxes
from corral.domain.egress import EgressPolicy, policy_of
from corral.domain.environment import Recipe
from corral.domain.placeholder import Substitution
from corral.errors import SandboxUnavailable
from corral.sandboxes.connection import short_socket_path
from corral.sandboxes.egress import orders, registries
from corral.sandboxes.egress.authority import make_authority, write_private
from corral.sandboxes.egress.inside import SOCKET_NAME

log = structlog.get_logger(__name__)

RUN_PROXY = "from corral.sandboxes.egress.proxy import main; main()"
BACKLOG = 128
RESTART_SECONDS = 0.2
RESTART_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
LINES_PER_MINUTE_MAX = 60
"""In the log, of what one sandbox was refused and did not reach; all of it is counted in metrics."""
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


class _Served(NamedTuple):
    listener: socket.socket
    policy: EgressPolicy
    secrets: dict[str, Substitution]
    """By placeholder."""


class Egress:
    """See the module. One for each server and directory."""

    def __init__(
        self,
        settings: EgressSettings,
        directory: Path,
        *,
        own_ports: Sequence[int] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._settings, self.directory = settings, directory
        self._own_ports = tuple(port for port in own_ports if port)
        self.package_managers = registries.look(settings.machine)
        """How this machine reaches package managers."""
        self.ca_file = directory / "trusted.pem"
        """What programs inside trust: what this machine trusts, and the proxy's own authority."""
        self.manager_files = {
            place: directory / "managers" / str(number) for number, place in enumerate(self.package_managers.files)
        }
        """Files of package managers, by where they belong inside."""
        self._served: dict[str, _Served] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = False
        self._waiting: deque[tuple[orders.Order, socket.socket | None]] = deque()
        self._keeping: asyncio.Task[None] | None = None
        self._lock = anyio.Lock()
        self._started = False
        self._logged_in, self._logged = 0, CountedKeys[str]()
        """Lines about each sandbox in this minute."""
        self.registry = registry = registry or CollectorRegistry()
        """Where the series of sandboxes and their way out are."""
        self._refused = Counter(
            "corral_egress_refused", "Connections and requests of sandboxes refused.", ("reason",), registry=registry
        )
        self._failed = Counter(
            "corral_egress_failed", "Allowed connections that did not come about.", ("reason",), registry=registry
        )
        self._connected = Counter("corral_egress_connections", "Connections made to hosts.", registry=registry)
        self._starts = Counter("corral_egress_proxy_starts", "Times the proxy was started.", registry=registry)

    @property
    def proxy_pid(self) -> int | None:
        """The proxy process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def serves(self, key: str) -> bool:
        """Whether this sandbox has a way out now."""
        return key in self._served

    def in_words(self) -> str:
        """What the operator and this machine have set, for `corral doctor`; no secrets."""
        settings = self._settings
        way = "directly" if settings.upstream_proxy is None else "through the machine's own proxy"
        own = dict.fromkeys(each.host for each in self.package_managers.endpoints if each.private)
        private = ", ".join(settings.allowed_private) or "none"
        indexes = ", ".join(own) or "none"
        return f"hosts are reached {way}; private networks: {private}; package indexes of this machine: {indexes}"

    def policy(self, recipe: Recipe) -> EgressPolicy:
        """What a sandbox by this recipe may reach, on this machine."""
        return policy_of(recipe, self.package_managers.endpoints)

    async def start(self) -> None:
        """Put the authority in place; the proxy itself waits until it is needed. Idempotent. Raises `OSError`."""
        async with self._lock:
            if not self._started:
                await anyio.to_thread.run_sync(self._prepare)
                self._started = True

    def _prepare(self) -> None:
        root = os.geteuid() == 0
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711 if root else 0o700)
        scratch = self.directory / "scratch"
        scratch.mkdir(mode=0o700, exist_ok=True)
        if root:
            os.chown(scratch, self._settings.uid, self._settings.uid)
        pair = self.directory / "authority.pem"
        if not pair.exists():
            made = make_authority()
            write_private(pair, made.private_key + made.certificate)
        hosts = "\n".join(_bundle(each) for each in self._trusted())
        _publish(self.directory / "hosts.pem", hosts)
        _publish(self.ca_file, f"{hosts}\n{self._authority()[1]}")
        for place, path in self.manager_files.items():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o755)
            _publish(path, self.package_managers.files[place])

    def _trusted(self) -> list[Path]:
        """Files of certificates: this machine's own, and what the operator adds."""
        found = ssl.get_default_verify_paths().cafile
        usual = next((place for place in (found, *BUNDLES) if place and Path(place).is_file()), None)
        return [Path(place) for place in (usual, self._settings.ca_file) if place]

    def _authority(self) -> tuple[str, str]:
        """Private key and certificate."""
        text = (self.directory / "authority.pem").read_text(encoding="ascii")
        key, mark, certificate = text.partition("-----BEGIN CERTIFICATE-----")
        return key, mark + certificate

    async def attach(
        self, key: str, place: Path, uid: int, policy: EgressPolicy, *, secrets: Sequence[Substitution] = ()
    ) -> None:
        """Serve `place/egress.sock` under `policy` from now on; only `uid` can connect. Replaces what `key` had.

        Raises `SandboxUnavailable`."""
        try:
            await self.start()
            listener = await anyio.to_thread.run_sync(_listen, place, uid)
        except OSError as error:
            raise SandboxUnavailable(f"The sandbox's way out could not be made: {error}") from error
        self.detach_now(key)
        self._served[key] = _Served(listener, policy, {})
        if self._keeping is None:
            # With a context of its own: what log lines say of the session that came first is not true of the others.
            # It outlives the request that came first, so no request's task group can own it; `close` awaits it.
            self._keeping = asyncio.create_task(self._keep(), name="egress proxy", context=Context())
        self.entrust(key, secrets)
        self._tell(orders.Serve(key, policy), listener)

    def entrust(self, key: str, secrets: Sequence[Substitution]) -> None:
        """Let these and no others be the secrets of a sandbox that is served. Cheap when nothing changed."""
        served = self._served.get(key)
        if served is None:
            return
        wanted = {each.placeholder: each for each in secrets}
        for placeholder in served.secrets.keys() - wanted.keys():
            self._tell(orders.Forget(key, placeholder), None)
        for placeholder, each in wanted.items():
            if served.secrets.get(placeholder) != each:
                self._tell(orders.Entrust(key, each), None)
        served.secrets.clear()
        served.secrets.update(wanted)

    async def detach(self, key: str) -> None:
        """Serve it no longer. Idempotent."""
        self.detach_now(key)

    def detach_now(self, key: str) -> None:
        """As `detach`, for callers that cannot wait."""
        served = self._served.pop(key, None)
        if served is not None:
            self._tell(orders.Drop(key), None)
            served.listener.close()

    async def close(self) -> None:
        """End the proxy. Sandboxes that go on have no way out until the next server attaches them. Idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None
        for served in self._served.values():
            served.listener.close()
        self._served.clear()

    # ---------------------------------------------------------------------------------------- the process

    async def _keep(self) -> None:
        """Start the proxy, hear it out, and start it again."""
        pause = RESTART_SECONDS
        while True:
            began = anyio.current_time()
            try:
                await self._run_once()
            except OSError as error:
                log.warning("egress_proxy_cannot_start", reason=str(error))
            pause = RESTART_SECONDS if anyio.current_time() - began > pause * 4 else min(pause * 2, RESTART_SECONDS_MAX)
            log.warning("egress_proxy_ended", again_in_seconds=pause)
            await anyio.sleep(pause)

    async def _run_once(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = await anyio.to_thread.run_sync(_start, theirs)
            self._process, self._control = process, ours
            self._starts.inc()
            ours.setblocking(False)
            ours.send(orders.encode(self._configuration()))
            await self._listen_to(ours)
        finally:
            self._control, self._ready = None, False
            self._forget_waiting()
            ours.close()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._end)

    def _forget_waiting(self) -> None:
        for _, listener in self._waiting:
            if listener is not None:
                listener.close()
        self._waiting.clear()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # It has seen the end of its socket by now; one that has not is of no use.
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS_MAX / 10)
            process.kill()
            process.wait(STOP_SECONDS_MAX)

    def _configuration(self) -> orders.Configure:
        key, certificate = self._authority()
        settings = self._settings
        return orders.Configure(
            ground=for_sandboxes(settings.allowed_private, self._own_ports),
            names=settings.hosts,
            upstream_proxy=settings.upstream_proxy,
            upstream_proxy_not_for=settings.upstream_proxy_not_for,
            trusted=str(self.directory / "hosts.pem"),
            certificate=certificate,
            private_key=key,
            scratch=str(self.directory / "scratch"),
            uid=settings.uid if os.geteuid() == 0 else None,
            credentials=self.package_managers.credentials,
            connections_max=settings.connections_max,
            connections_total_max=settings.connections_total_max,
            resolutions_max=settings.resolutions_max,
            header_bytes_max=settings.header_bytes_max,
            idle_seconds_max=settings.idle_seconds_max,
            connect_seconds_max=settings.connect_seconds_max,
        )

    async def _listen_to(self, control: socket.socket) -> None:
        while True:
            await anyio.wait_readable(control)
            try:
                news = orders.decode_news(control.recv(orders.MESSAGE_BYTES_MAX))
            except BlockingIOError:
                continue
            except (OSError, msgspec.DecodeError):
                # The end, which is no JSON, or something that the proxy never says.
                return
            if isinstance(news, orders.Ready):
                self._ready = True
                for key, served in self._served.items():
                    self._introduce(key, served)
            else:
                self._count(news)

    def _introduce(self, key: str, served: _Served) -> None:
        for each in served.secrets.values():
            # Before it is served, so that no request finds its placeholder unknown.
            self._tell(orders.Entrust(key, each), None)
        self._tell(orders.Serve(key, served.policy), served.listener)

    def _count(self, news: orders.Counts) -> None:
        for outcome, times in ((each.outcome, each.times) for each in news.counted):
            if outcome.kind == "connected":
                self._connected.inc(times)
                continue
            (self._refused if outcome.kind == "refused" else self._failed).labels(outcome.reason).inc(times)
            self._log(outcome, times)

    def _log(self, outcome: orders.Outcome, times: int) -> None:
        """A line, unless the sandbox has had its share: it can ask for a thousand hosts a second that it may not."""
        minute = int(anyio.current_time() // 60)
        if minute != self._logged_in:
            self._logged_in, self._logged = minute, CountedKeys[str]()
        self._logged[outcome.key] += 1
        if self._logged[outcome.key] <= LINES_PER_MINUTE_MAX:
            log.info(
                f"egress_{outcome.kind}", sandbox=outcome.key, host=outcome.host, reason=outcome.reason, times=times
            )
        elif self._logged[outcome.key] == LINES_PER_MINUTE_MAX + 1:
            log.warning("egress_not_logged", sandbox=outcome.key, until="the next minute")

    def _tell(self, order: orders.Order, listener: socket.socket | None) -> None:
        """Tell the proxy, in order, if it is there; one that starts later is told everything."""
        if not self._ready or self._control is None:
            return
        if listener is not None:
            # It may be closed here before it is sent.
            listener = listener.dup()
        self._waiting.append((order, listener))
        if len(self._waiting) == 1:
            self._flush()

    def _flush(self) -> None:
        loop, control = asyncio.get_running_loop(), self._control
        while self._waiting and control is not None:
            order, listener = self._waiting[0]
            descriptors = [] if listener is None else [listener.fileno()]
            try:
                socket.send_fds(control, [orders.encode(order)], descriptors, socket.MSG_DONTWAIT)
            except BlockingIOError:
                loop.call_later(RESTART_SECONDS, self._flush)
                return
            except OSError:
                return
            self._waiting.popleft()
            if listener is not None:
                listener.close()


def _start(control: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", RUN_PROXY, str(control.fileno())]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Nothing of the server's environment, which holds its keys.
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        cwd="/",
        pass_fds=(control.fileno(),),
        start_new_session=True,
    )


def _listen(place: Path, uid: int) -> socket.socket:
    """A listening socket that only `uid` can connect to, in a directory that the inside sees and cannot change."""
    place.mkdir(mode=0o711, parents=True, exist_ok=True)
    place.chmod(0o711)
    path, draft = place / SOCKET_NAME, place / f"{SOCKET_NAME}.draft"
    draft.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_socket_path(draft) as short:
            listener.bind(short)
        draft.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(draft, uid, uid)
        listener.listen(BACKLOG)
        draft.replace(path)
    except BaseException:
        listener.close()
        raise
    return listener


def _publish(path: Path, text: str) -> None:
    """A file for everybody to read."""
    draft = path.with_name(f"{path.name}.draft-{secrets.token_hex(8)}")
    draft.write_text(text, encoding="ascii", errors="ignore")
    draft.chmod(0o644)
    draft.replace(path)


def _bundle(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
