"""A client by the official SDK that drives one session to its end, however often its server dies on the way.

It does what a careful program does: after a request that failed it waits until the server is back, looks whether the
request was taken after all, and only then sends it again.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import anthropic
import httpx2
from anthropic import Anthropic

from tests.crash.counting import Counting
from tests.crash.legality import Event, assert_legal
from tests.e2e.sessions import Json, bash, custom_tool, script

T = TypeVar("T")
ATTEMPTS_MAX = 30
BACK_SECONDS_MAX = 90
BROKEN = (anthropic.APIConnectionError, anthropic.InternalServerError, httpx2.HTTPError)
"""What a client sees of a server that died, or that has lost its database."""
MOVED = "The session's sandbox was on another machine, which does not answer."
ALLOWED: Json = {"permission_policy": {"type": "always_allow"}}


class Findings(NamedTuple):
    """What became of a session: accepted events that are not in its log, and effects that happened again."""

    lost: list[str]
    repeated: list[str]


class StubbornClient:
    """One session, its script and its client."""

    def __init__(self, client: Anthropic, up: threading.Event, counting: Counting, token: str) -> None:
        self._client, self._up, self._counting, self._token = client, up, counting, token
        self.session_id: str | None = None
        self.accepted: list[str] = []
        self.seen: list[Event] = []
        """Facts of all streams, in order."""
        self._grown = threading.Condition()
        self._over = False

    def script(self, *, with_mcp: bool) -> str:
        """Tools of every kind; each effect has a token of its own."""
        token = self._token
        second: list[dict[str, object]] = [bash(f"sleep 0.05; echo {token}-2 >> ran"), bash(f"echo {token}-3 >> ran")]
        if with_mcp:
            second.append({"tool": "mcp__counting__note", "input": {"token": f"{token}-4"}})
        fetch = bash(self._counting.fetch(f"{token}-5"))
        asked = {"tool": "weather", "input": {"city": token}}
        return script(bash(f"echo {token}-1 >> ran"), second, fetch, asked, {"say": "Done."})

    # ---------------------------------------------------------------------------------------------- driving

    def drive(self, agent: Json, environment_id: str, *, with_mcp: bool) -> None:
        """From the beginning to the end."""
        try:
            self._drive(agent, environment_id, with_mcp=with_mcp)
        finally:
            with self._grown:
                self._over = True
                self._grown.notify_all()

    def wait_for(self, events: int, seconds_max: float) -> None:
        """Until the client has seen so many events, or is done."""
        with self._grown:
            self._grown.wait_for(lambda: self._over or len(self.seen) >= events, seconds_max)

    def _drive(self, agent: Json, environment_id: str, *, with_mcp: bool) -> None:
        sessions = self._client.beta.sessions
        session_id = self._again(lambda: sessions.create(agent=agent, environment_id=environment_id).id)
        self.session_id = session_id
        message = [{"type": "text", "text": self.script(with_mcp=with_mcp)}]
        self._send({"type": "user.message", "content": message}, lambda event: event["type"] == "user.message")
        while (reason := self._rest(session_id)).get("type") == "requires_action":
            for call_id in reason["event_ids"]:
                answer: Json = {"type": "user.custom_tool_result", "custom_tool_use_id": call_id}
                self._send(answer, lambda event, call=call_id: event.get("custom_tool_use_id") == call)

    def _send(self, event: Json, is_it: Callable[[Event], bool]) -> None:
        """Send once; a request without an answer is looked for before it is repeated."""
        session_id = self._session_id()
        may_be_there = False

        def attempt() -> None:
            nonlocal may_be_there
            if may_be_there and (found := [each["id"] for each in self._history() if is_it(each)]):
                self.accepted += found
                return
            may_be_there = True
            echoed = self._client.beta.sessions.events.send(session_id, events=[event]).data or []
            self.accepted += [each.id for each in echoed]

        self._again(attempt)

    def _rest(self, session_id: str) -> Event:
        """Follow the session until it rests; why it does."""

        def attempt() -> Event | None:
            with self._client.beta.sessions.events.stream(session_id) as stream:
                if self._client.beta.sessions.retrieve(session_id).status == "idle":
                    return self._last_reason()
                for event in stream:
                    fact = event.to_dict()
                    self._note(fact)
                    if fact["type"] == "session.status_idle":
                        return self._last_reason()
            return None

        while True:
            reason = self._again(attempt)
            if reason is not None:
                return reason

    def _last_reason(self) -> Event:
        idle = [event for event in self._history() if event["type"] == "session.status_idle"]
        return idle[-1]["stop_reason"]

    def _note(self, fact: dict[str, object]) -> None:
        with self._grown:
            if fact.get("processed_at") is not None:
                self.seen.append(fact)
            self._grown.notify_all()

    def _history(self, order: Json = "asc") -> list[Event]:
        return [event.to_dict() for event in self._client.beta.sessions.events.list(self._session_id(), order=order)]

    def _session_id(self) -> str:
        assert self.session_id is not None, "the session was created first"
        return self.session_id

    def _again(self, action: Callable[[], T]) -> T:
        """Do it, and again when the server is back."""
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return action()
            except BROKEN:
                assert self._up.wait(BACK_SECONDS_MAX), "the server did not come back"
        return action()

    def described(self) -> str:
        """Where the session is, for whoever has to find out why it came no further."""
        if self.session_id is None:
            return "no session"
        session = self._client.beta.sessions.retrieve(self.session_id)
        events = [f"{each['processed_at']} {each['type']} {each['id']}" for each in self._history()]
        seen = [str(each["id"]) for each in self.seen]
        return "\n".join([f"{session.id} is {session.status}", *events, "seen by streams:", *seen])

    # --------------------------------------------------------------------------------------------- judging

    def judge(self, workspaces: Callable[[str], Sequence[Path]], *, with_mcp: bool) -> Findings:
        """Hold the log, the streams and the effects against each other. Raises for an illegal log.

        `workspaces` are where the session's files may be: one on each machine."""
        events = self._again(self._history)
        assert_legal(events)
        assert self._again(lambda: self._history("desc")) == events[::-1]
        self._judge_streams(events)
        ids = {event["id"] for event in events}
        lost = [each for each in self.accepted if each not in ids]
        sent = [event["id"] for event in events if event["type"] in ("user.message", "user.custom_tool_result")]
        effects = self._counting.noted + self._counting.fetched
        for ran in (workspace / "ran" for workspace in workspaces(self._session_id())):
            effects.update(ran.read_text(encoding="utf-8").split() if ran.exists() else ())
        tokens = [f"{self._token}-{number}" for number in (1, 2, 3, 4, 5) if number != 4 or with_mcp]
        repeated = [token for token in tokens if effects[token] > 1]
        repeated += [each for each, times in Counter(sent).items() if times > 1]
        assert sorted(sent) == sorted(self.accepted), "each accepted event is processed once, and no other is"
        for token in tokens:
            self._judge_result(events, token, effects[token])
        return Findings(lost, repeated)

    def _judge_streams(self, events: Sequence[Event]) -> None:
        """What streams have shown is what history says, in its order."""
        places = {event["id"]: place for place, event in enumerate(events)}
        unknown = [fact for fact in self.seen if fact["id"] not in places]
        assert not unknown, f"streams have shown what is not in the history: {unknown}"
        shown = [places[fact["id"]] for fact in self.seen]
        assert shown == sorted(set(shown)), "streams have shown events twice, or in another order"
        assert [events[place] for place in shown] == self.seen

    def _judge_result(self, events: Sequence[Event], token: str, effects: int) -> None:
        """A result that is no error says that the call took effect; otherwise it has said that it may not have. What it
        did to files is gone with them where a later result has said so."""
        (use,) = [e for e in events if e["type"] in ("agent.tool_use", "agent.mcp_tool_use") and token in str(e)]
        answers = ("tool_use_id", "mcp_tool_use_id")
        (result,) = [e for e in events if any(e.get(name) == use["id"] for name in answers)]
        gone = ">> ran" in str(use["input"]) and any(MOVED in str(event) for event in events[events.index(result) :])
        assert effects == 1 or result["is_error"] or gone, f"{token} took effect {effects} times: {json.dumps(result)}"


def tools(counting: Counting, *, with_mcp: bool) -> dict[str, Any]:
    """What an agent needs for the script."""
    toolset = {"type": "agent_toolset_20260401"}
    if not with_mcp:
        return {"tools": [toolset, custom_tool()]}
    mcp = {"type": "mcp_toolset", "mcp_server_name": "counting", "default_config": ALLOWED}
    servers = [{"type": "url", "name": "counting", "url": counting.mcp_url}]
    return {"tools": [toolset, custom_tool(), mcp], "mcp_servers": servers}
