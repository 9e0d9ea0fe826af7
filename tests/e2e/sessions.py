"""What the end-to-end tests do over and over, through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from anthropic import Anthropic
from anthropic.types.beta import BetaManagedAgentsSession
from anthropic.types.beta.sessions import BetaManagedAgentsSessionEvent, BetaManagedAgentsStreamSessionEvents

Step = Mapping[str, object] | Sequence[Mapping[str, object]]


def script(*steps: Step) -> str:
    """A user message that tells the scripted model what to do."""
    return f"```script\n{json.dumps(steps)}\n```"


def new_session(client: Anthropic, name: str = "e2e") -> BetaManagedAgentsSession:
    agent = client.beta.agents.create(name=name, model="scripted", tools=[{"type": "agent_toolset_20260401"}])
    environment = client.beta.environments.create(name=f"{name} {agent.id}")
    return client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title=name)


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
