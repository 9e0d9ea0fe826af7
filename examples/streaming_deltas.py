"""Text as it is written: previews of a message, and the message itself.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed).
"""

import sys
import time

from anthropic import Anthropic
from anthropic.lib.sessions import accumulate_managed_agents_event

TASK = sys.argv[1] if len(sys.argv) > 1 else "Tell me in five sentences how a bill becomes a law."

client = Anthropic()
agent = client.beta.agents.create(name="Storyteller", model="claude-opus-4-8")
environment = client.beta.environments.create(name=f"streaming-{time.time_ns()}")
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)

# `event_deltas` asks this one stream for previews. They are never stored: who comes later reads the whole message.
with client.beta.sessions.events.stream(session.id, event_deltas=["agent.message", "agent.thinking"]) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    preview = None
    for event in stream:
        # The SDK folds start, deltas and the final message into one growing message.
        preview = accumulate_managed_agents_event(preview, event)
        match event.type:
            case "event_start" if event.event.type == "agent.thinking":
                print("(thinking ...)", flush=True)
            case "event_delta":
                print(event.delta.content.text, end="", flush=True)
            case "agent.message":
                # The message is what counts. A slow reader may have missed the end of its preview.
                words = sum(len(block.text.split()) for block in event.content if block.type == "text")
                print(f"\n({words} words)", flush=True)
            case "session.error":
                print(f"\n[error] {event.error.message}", flush=True)
            case "session.status_idle":
                print(f"[idle: {event.stop_reason.type}]", flush=True)
                break
            case _:
                pass
