"""What the end-to-end tests do over and over, through the official SDK."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import anthropic
import pytest
from anthropic import Anthropic, Stream
from anthropic.types.beta import BetaManagedAgentsSession
from anthropic.types.beta.sessions import BetaManagedAgentsSessionEvent, BetaManagedAgentsStreamSessionEvents

from tests.e2e.conftest import ServerProcess

Step: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]]
Json: TypeAlias = Any
"""JSON as the SDK takes it; its request types are too narrow for what tests want to send."""

GATE_SECONDS_MAX = 30
TOOLSET: Json = {"type": "agent_toolset_20260401"}
GATE: tuple[Step, ...] = (
    {"tool": "bash", "input": {"command": "mkfifo gate"}},
    {"tool": "bash", "input": {"command": "cat gate"}},
)
"""Steps of a script after which the agent works until `open_gate`."""


def script(*steps: Step) -> str:
    """A user message that tells the scripted model what to do."""
    return f"```script\n{json.dumps(steps)}\n```"


def bash(command: str) -> dict[str, object]:
    """A part of a script: run a command."""
    return {"tool": "bash", "input": {"command": command}}


def policies(**tools: str) -> Json:
    """A toolset in which these tools have these policies."""
    configs = [{"name": name, "permission_policy": {"type": policy}} for name, policy in tools.items()]
    return {**TOOLSET, "configs": configs}


def custom_tool(name: str = "weather") -> Json:
    """A tool that the client runs."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "custom", "name": name, "description": f"The {name} in a city.", "input_schema": schema}


def message(*content: str | Json) -> Json:
    """A `user.message`; strings become text blocks."""
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    return {"type": "user.message", "content": blocks}


def new_agent(client: Anthropic, **fields: Json) -> str:
    """An agent with the built-in tools, unless `fields` say otherwise."""
    definition: Json = {"name": "e2e", "model": "scripted", "tools": [TOOLSET], **fields}
    return client.beta.agents.create(**definition).id


def new_environment(client: Anthropic) -> str:
    """An environment with a name that no other test uses."""
    return client.beta.environments.create(name=f"e2e {next(_numbers)}").id


_numbers = count(1)


def new_session(
    client: Anthropic, *tools: Json, model: str = "scripted", agent: Json = None, **fields: Json
) -> BetaManagedAgentsSession:
    """A session of a new agent with these tools, by default the built-in ones; `fields` are the session's."""
    agent = agent or new_agent(client, model=model, tools=list(tools) or [TOOLSET])
    return client.beta.sessions.create(agent=agent, environment_id=new_environment(client), **fields)


class Reader:
    """An open stream, read step by step."""

    def __init__(self, stream: Stream[BetaManagedAgentsStreamSessionEvents]) -> None:
        self._stream = stream
        self.seen: list[Json] = []
        """Everything so far."""

    def until(self, event_type: str) -> Json:
        """Read up to and including the next event of this type, and return it."""
        for event in self._stream:
            self.seen.append(event)
            if event.type == event_type:
                return event
        raise AssertionError(f"the stream ended before a {event_type}")

    def idle(self) -> Json:
        """Read until the session rests; the stop reason."""
        return self.until("session.status_idle").stop_reason

    def of(self, *event_types: str) -> list[Json]:
        """What has been seen of these types, in order."""
        return [event for event in self.seen if event.type in event_types]


@contextmanager
def reading(client: Anthropic, session_id: str, *event_deltas: Json) -> Generator[Reader]:
    """A stream of the session, open before anything else happens."""
    options: Json = {"event_deltas": list(event_deltas)} if event_deltas else {}
    with client.beta.sessions.events.stream(session_id, **options) as stream:
        yield Reader(stream)


def open_gate(server: ServerProcess, session_id: str) -> None:
    """Let an agent go on that waits in `GATE`; returns when it has been heard."""
    gate: Path = server.workspace(session_id) / "gate"
    subprocess.run(["sh", "-c", 'echo opened > "$0"', str(gate)], check=True, timeout=GATE_SECONDS_MAX)


def answer(client: Anthropic, session_id: str, *events: Json) -> list[Json]:
    """Send events; their echo."""
    return list(client.beta.sessions.events.send(session_id, events=events).data or ())


def refused(client: Anthropic, session_id: str, *events: Json) -> str:
    """Send events that are refused; the message. Nothing is stored."""
    before = [event.to_dict() for event in history(client, session_id)]
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.events.send(session_id, events=events)
    assert [event.to_dict() for event in history(client, session_id)] == before
    return caught.value.message


def texts(event: Json) -> str:
    """The text of a message or result."""
    content: list[Json] = event.content or []
    return "".join(block.text for block in content if block.type == "text")


def error_code(error: anthropic.APIStatusError) -> str:
    """The stable machine code of a refusal."""
    body: Json = error.body
    return body["error"]["details"]["error_code"]


def types(events: Sequence[Json]) -> list[str]:
    """The types of events, in order."""
    return [event.type for event in events]


def send(client: Anthropic, session_id: str, text: str) -> None:
    client.beta.sessions.events.send(
        session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
    )


def turn(client: Anthropic, session_id: str, text: str) -> list[BetaManagedAgentsStreamSessionEvents]:
    """Send a message and collect what the stream shows until the session rests."""
    seen: list[BetaManagedAgentsStreamSessionEvents] = []
    with client.beta.sessions.events.stream(session_id) as stream:
        send(client, session_id, text)
        for event in stream:
            seen.append(event)
            if event.type == "session.status_idle":
                return seen
    raise AssertionError("the stream ended before the session was idle")


def history(client: Anthropic, session_id: str) -> list[BetaManagedAgentsSessionEvent]:
    return list(client.beta.sessions.events.list(session_id))


def wait_until_idle(client: Anthropic, session_id: str) -> list[BetaManagedAgentsSessionEvent]:
    """The history once the session rests; open the stream first, then look, so that nothing is missed."""
    with client.beta.sessions.events.stream(session_id) as stream:
        if client.beta.sessions.retrieve(session_id).status != "idle":
            next(event for event in stream if event.type == "session.status_idle")
    return history(client, session_id)


def results(events: Sequence[BetaManagedAgentsSessionEvent | BetaManagedAgentsStreamSessionEvents]) -> list[str]:
    """The texts of all built-in tool results."""
    return [
        "".join(block.text for block in event.content or [] if block.type == "text")
        for event in events
        if event.type == "agent.tool_result"
    ]
