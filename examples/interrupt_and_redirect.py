"""Change of mind: stop an agent in the middle of its work and give it something else to do.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed).
"""

import sys
import time

from anthropic import Anthropic

TASK = sys.argv[1] if len(sys.argv) > 1 else "Run `sleep 600` and then tell me that you have slept."
INSTEAD = sys.argv[2] if len(sys.argv) > 2 else "Never mind. Just tell me what day it is, with `date`."

client = Anthropic()
agent = client.beta.agents.create(
    name="Patient Assistant",
    model="claude-opus-4-8",
    tools=[{"type": "agent_toolset_20260401"}],
)
environment = client.beta.environments.create(name=f"interrupt-{time.time_ns()}")
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)


def user_message(text):
    """A message as the API takes it."""
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(session.id, events=[user_message(TASK)])
    stopped, idles_left = False, 1
    for event in stream:
        match event.type:
            case "agent.tool_use":
                print(f"[tool {event.name}] {event.input}", flush=True)
                if not stopped:
                    # An interrupt overtakes everything that waits; the message behind it starts the next turn.
                    print("Stop! Something else.", flush=True)
                    client.beta.sessions.events.send(
                        session.id, events=[{"type": "user.interrupt"}, user_message(INSTEAD)]
                    )
                    stopped, idles_left = True, 2
            case "agent.message" | "agent.tool_result":
                print("\n".join(block.text for block in event.content or [] if block.type == "text"), flush=True)
            case "session.status_idle":
                # The interrupted turn ends like any other; the new message's turn follows by itself.
                print(f"[idle: {event.stop_reason.type}]", flush=True)
                idles_left -= 1
                if idles_left == 0:
                    break
            case _:
                pass
