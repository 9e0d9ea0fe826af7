"""A person decides: every shell command waits until it is allowed or denied.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed). Answers are read from the terminal.
"""

import sys
import time

from anthropic import Anthropic

TASK = sys.argv[1] if len(sys.argv) > 1 else "Count the files below /usr/share and tell me which kind is most common."

client = Anthropic()
agent = client.beta.agents.create(
    name="Careful Assistant",
    model="claude-opus-4-8",
    tools=[
        {
            "type": "agent_toolset_20260401",
            # Everything else may run; `bash` must ask.
            "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}],
        }
    ],
)
environment = client.beta.environments.create(name=f"approval-{time.time_ns()}")
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)


def decide(call):
    """Ask the person in front of the terminal."""
    print(f"The agent wants to run: {call.input}", flush=True)
    decision = {"type": "user.tool_confirmation", "tool_use_id": call.id}
    if input("Allow? [y/N] ").strip().lower().startswith("y"):
        return {**decision, "result": "allow"}
    return {**decision, "result": "deny", "deny_message": "The user does not want this command. Find another way."}


with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    calls = {}
    for event in stream:
        if event.type == "agent.tool_use":
            calls[event.id] = event
        elif event.type in ("agent.message", "agent.tool_result"):
            print("\n".join(block.text for block in event.content or [] if block.type == "text"), flush=True)
        elif event.type == "session.status_idle":
            if event.stop_reason.type != "requires_action":
                print(f"[idle: {event.stop_reason.type}]", flush=True)
                break
            # The session waits, for days if need be, until every call that it names has its answer.
            decisions = [decide(calls[event_id]) for event_id in event.stop_reason.event_ids]
            client.beta.sessions.events.send(session.id, events=decisions)
