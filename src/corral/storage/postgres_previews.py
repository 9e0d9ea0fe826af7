"""Previews between the processes of one PostgreSQL database: from whoever runs a turn to whoever shows its stream.

They are not facts: some may be lost, and then the rest of that preview is not shown. Nothing is sent until somebody
elsewhere says that a stream wants it (`READERS`), which is said anew as long as it is true. Fragments are gathered for
a moment, so a model's answer is some notices a second; none is larger than the server takes. A fact is never delayed
for them: what has not been sent when its session commits is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import anyio
import msgspec
import structlog

from corral.errors import Unavailable
from corral.interfaces.bus import Bus, Frame
from corral.storage.postgres_connection import Readers

log = structlog.get_logger(__name__)

PREVIEWS, READERS = "corral_previews", "corral_readers"
NOTICE_BYTES_MAX = 7_900
GATHER_SECONDS = 0.03
SAY_SECONDS = 10.0
BELIEVED_SECONDS = 25.0
"""How long a process that wanted previews is taken to want them."""
WAITING_FRAMES_MAX = 2_000
BROKEN_MAX = 1_000
"""Previews with a hole that are remembered, so that their rest is not shown."""


class _Preview(msgspec.Struct, array_like=True, frozen=True):
    session_id: str
    type: str
    preview_of: str
    preview_id: str
    data: str


class _Notice(msgspec.Struct, array_like=True, frozen=True):
    origin: str
    previews: list[_Preview]


class _Reading(msgspec.Struct, array_like=True, frozen=True):
    origin: str
    session_ids: list[str]


class Previews:
    """One process's part: it sends what others want, and shows what they send."""

    def __init__(self, readers: Readers, streams: Bus, origin: str, is_behind: Callable[[str], bool]) -> None:
        """`is_behind` says that facts of a session wait to be shown, which come before any preview."""
        self._readers, self._streams, self._origin = readers, streams, origin
        self._is_behind = is_behind
        self._wanted: dict[str, float] = {}
        """By others, until when."""
        self._ours: set[str] = set()
        """Sessions with streams here that want previews."""
        self._unsaid: set[str] = set()
        self._frames: list[_Preview] = []
        self._broken: dict[str, None] = {}
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        # Owned here and cancelled by `close`.
        self._task = asyncio.create_task(self._work(), name="corral-postgres-previews")

    async def close(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def want(self, session_id: str) -> None:
        """A stream here wants previews of the session."""
        self._ours.add(session_id)
        self._unsaid.add(session_id)
        self._ready.set()

    def are_wanted(self, session_id: str) -> bool:
        """Whether somebody elsewhere wants them."""
        return self._wanted.get(session_id, 0.0) > asyncio.get_running_loop().time()

    def publish(self, frames: Sequence[Frame]) -> None:
        """Send what is a preview and wanted. Never blocks."""
        for frame in frames:
            if frame.preview_of is None or frame.preview_id is None or not self.are_wanted(frame.session_id):
                continue
            if len(self._frames) >= WAITING_FRAMES_MAX:
                self._break(frame.preview_id)
            elif frame.preview_id not in self._broken:
                data = frame.data.decode()
                self._frames.append(_Preview(frame.session_id, frame.type, frame.preview_of, frame.preview_id, data))
        if self._frames:
            self._ready.set()

    def drop(self, session_id: str) -> None:
        """Facts of the session go out now; what was to come before them comes too late."""
        for each in self._frames:
            if each.session_id == session_id:
                self._break(each.preview_id)
        self._frames = [each for each in self._frames if each.session_id != session_id]

    def on_readers(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """Another process says what it wants."""
        said = msgspec.json.decode(str(payload), type=_Reading)
        if said.origin != self._origin:
            until = asyncio.get_running_loop().time() + BELIEVED_SECONDS
            self._wanted.update(dict.fromkeys(said.session_ids, until))

    def on_previews(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """Another process sends some."""
        notice = msgspec.json.decode(str(payload), type=_Notice)
        if notice.origin == self._origin:
            return
        for each in notice.previews:
            if self._is_behind(each.session_id):
                self._break(each.preview_id)
            if each.preview_id not in self._broken:
                frame = Frame(each.session_id, each.type, each.data.encode(), each.preview_of, each.preview_id)
                self._streams.publish([frame])

    def _break(self, preview_id: str) -> None:
        self._broken[preview_id] = None
        while len(self._broken) > BROKEN_MAX:
            del self._broken[next(iter(self._broken))]

    # --------------------------------------------------------------------------------------------- the task

    async def _work(self) -> None:
        while True:
            with anyio.move_on_after(SAY_SECONDS) as waiting:
                await self._ready.wait()
            self._ready.clear()
            try:
                if waiting.cancelled_caught:
                    self._look()
                await self._say()
                await asyncio.sleep(GATHER_SECONDS if self._frames else 0)
                await self._send()
            except Unavailable as error:
                log.warning("previews_wait_for_database", reason=error.message)

    def _look(self) -> None:
        """Forget what nobody wants, and say the rest again."""
        now = asyncio.get_running_loop().time()
        self._ours = {name for name in self._ours if self._streams.wants_previews(name)}
        self._wanted = {name: until for name, until in self._wanted.items() if until > now}
        self._unsaid = set(self._ours)

    async def _say(self) -> None:
        unsaid, self._unsaid = sorted(self._unsaid), set[str]()
        each_max = NOTICE_BYTES_MAX // 64
        for start in range(0, len(unsaid), each_max):
            reading = _Reading(self._origin, unsaid[start : start + each_max])
            await self._readers.fetch("notify_lightly", READERS, msgspec.json.encode(reading).decode())

    async def _send(self) -> None:
        frames, self._frames = self._frames, []
        for text in self._texts(frames):
            await self._readers.fetch("notify_lightly", PREVIEWS, text)

    def _texts(self, frames: Iterable[_Preview]) -> Iterable[str]:
        """Cut to what the server takes; a fragment that is larger ends its preview."""
        taken: list[_Preview] = []
        size = 64
        for each in frames:
            more = len(msgspec.json.encode(each)) + 1
            if more > NOTICE_BYTES_MAX - 64:
                self._break(each.preview_id)
            if each.preview_id in self._broken:
                continue
            if size + more > NOTICE_BYTES_MAX:
                yield msgspec.json.encode(_Notice(self._origin, taken)).decode()
                taken, size = [], 64
            taken.append(each)
            size += more
        if taken:
            yield msgspec.json.encode(_Notice(self._origin, taken)).decode()
