"""Every call by its id: run once, its result kept until the server has it.

A call sent again attaches to the running one or gets the kept result; it never runs twice. Results are let go on
request, or oldest first; the id stays known much longer, and a call whose result is gone is answered with an error.
What the tools do is in `shell.py` and `files.py`.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Content = str | list[dict[str, Any]]
    Tool = Callable[["Call"], Content]

    class Peer(Protocol):
        """Whoever asked."""

        def send(self, number: int, body: bytes) -> None:
            """Answer request `number`."""
            ...


KEPT_BYTES_MAX = 1 << 20
IDS_PER_KEPT = 64


class Failure(Exception):
    """A tool could not do what was asked; the text is for the model."""


class Call:
    """One call, its result once there is one, and who waits for it."""

    def __init__(self, operation: str, arguments: dict[str, Any]) -> None:
        self.operation, self.arguments = operation, arguments
        self.reply: bytes | None = None
        self.waiters: list[tuple[Peer, int]] = []
        self.cancelled = False
        self._stop: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def on_cancel(self, stop: Callable[[], None] | None) -> None:
        """What stops the call from now on; done at once if it was cancelled before."""
        with self._lock:
            self._stop = stop
            cancelled = self.cancelled
        if cancelled and stop:
            stop()

    def cancel(self) -> None:
        """Stop the call; it still finishes, with a result that says so."""
        with self._lock:
            self.cancelled, stop = True, self._stop
        if stop:
            stop()


class Calls:
    """The table of calls."""

    def __init__(self, tools: dict[str, Tool], kept_max: int, purge: Callable[[], None]) -> None:
        self._tools, self._kept_max, self._purge = tools, kept_max, purge
        self._calls: OrderedDict[str, Call] = OrderedDict()
        self._lock = threading.Lock()

    def submit(self, peer: Peer, message: dict[str, Any]) -> None:
        """Run the call unless its id is known, and answer `peer` when it is done."""
        number, fresh = message["n"], False
        with self._lock:
            call = self._calls.get(message["call_id"])
            if call is None and not message.get("known_only"):
                fresh, call = True, Call(message["operation"], message["arguments"])
                self._calls[message["call_id"]] = call
            reply = b'"unknown":true' if call is None else call.reply
            if call is not None and reply is None:
                call.waiters.append((peer, number))
        if reply is not None:
            peer.send(number, reply)
        elif fresh and call is not None:
            self._start(call)

    def _start(self, call: Call) -> None:
        try:
            threading.Thread(target=self._run, args=(call,), daemon=True).start()
        except RuntimeError:
            advice = "restart bash to end them all"
            if call.arguments.get("restart"):
                self._purge()
                advice = "all were killed"
            self._finish(call, failed(f"{call.operation}: the sandbox has too many processes; {advice}"))

    def _run(self, call: Call) -> None:
        reply = failed(f"{call.operation}: the program that runs tools in the sandbox failed")
        try:
            reply = encode(self._tools[call.operation](call), is_error=False)
        except Failure as failure:
            reply = failed(str(failure))
        except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
            subject = call.arguments.get("file_path") or call.arguments.get("path")
            reply = failed(": ".join(part for part in (call.operation, subject, reason(error)) if part))
        finally:
            self._finish(call, reply)

    def _finish(self, call: Call, reply: bytes) -> None:
        with self._lock:
            call.reply, waiters, call.waiters = reply, call.waiters, []
            call.arguments = {}
            if len(reply) > KEPT_BYTES_MAX:
                # Only reading a picture or PDF answers this much, and reading it again does no harm.
                self._calls = OrderedDict(item for item in self._calls.items() if item[1] is not call)
            self._trim()
        for peer, number in waiters:
            peer.send(number, reply)

    def _trim(self) -> None:
        kept = [call for call in self._calls.values() if call.reply not in (None, GONE)]
        for call in kept[: max(0, len(kept) - self._kept_max)]:
            call.reply = GONE
        oldest = list(self._calls)[: max(0, len(self._calls) - IDS_PER_KEPT * self._kept_max)]
        for call_id in oldest:
            if self._calls[call_id].reply is not None:
                del self._calls[call_id]

    def forget(self, call_ids: list[str]) -> None:
        """Let these results go; the ids stay known."""
        with self._lock:
            for call_id in call_ids:
                call = self._calls.get(call_id)
                if call is not None and call.reply is not None:
                    call.reply = GONE

    def running(self) -> bool:
        """Whether any call has no result yet."""
        with self._lock:
            return any(call.reply is None for call in self._calls.values())

    def cancel(self, call_id: str) -> None:
        """Stop the call if it runs."""
        with self._lock:
            call = self._calls.get(call_id)
        if call is not None and call.reply is None:
            call.cancel()


def encode(content: Content, *, is_error: bool) -> bytes:
    """The part of a frame that carries a result."""
    if isinstance(content, str):
        # Names on disk need not be UTF-8, but what we send must be.
        text = content.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        content = [{"type": "text", "text": text}]
    return b'"reply":' + json.dumps({"content": content, "is_error": is_error}).encode("ascii")


def failed(text: str) -> bytes:
    """The part of a frame that carries an error result."""
    return encode(text, is_error=True)


GONE = failed("The result of this call was collected before and is no longer kept; the call was not run again.")


def reason(error: Exception) -> str:
    """The error in words that do not depend on where files really are."""
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or "failed"
