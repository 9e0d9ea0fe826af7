"""The five steps of a managed agent: agent, environment, session, events, stream.

Needs nothing but the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens)
and ANTHROPIC_API_KEY (the key that it printed).
"""

import sys
import time

from anthropic import Anthropic

TASK = "Create a Python script that writes the first 20 Fibonacci numbers to fibonacci.txt, one per line, and run it."
if len(sys.argv) > 1:
    TASK = sys.argv[1]

client = Anthropic()

# 1. An agent: a model, a system prompt, tools.
agent = client.beta.agents.create(
    name="Coding Assistant",
    model="claude-opus-4-8",
    system="You are a helpful coding assistant.",
    tools=[{"type": "agent_toolset_20260401"}],
)

# 2. An environment: the recipe of the sandbox in which its tools run.
environment = client.beta.environments.create(
    name=f"quickstart-{time.time_ns()}",
    config={"type": "cloud", "networking": {"type": "unrestricted"}},
)

# 3. A session: one run of the agent, with files of its own.
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="Quickstart")
print(f"Session {session.id}\nTask: {TASK}\n", flush=True)

# 4. and 5. Open the stream, send the task, and watch.
with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    for event in stream:
        match event.type:
            case "agent.message":
                for block in event.content:
                    if block.type == "text":
                        print(block.text, flush=True)
            case "agent.tool_use":
                print(f"[tool {event.name}] {event.input}", flush=True)
            case "agent.tool_result":
                for block in event.content or []:
                    if block.type == "text" and block.text:
                        print(f"  -> {block.text}", flush=True)
            case "session.error":
                print(f"[error] {event.error.message}", flush=True)
            case "session.status_idle":
                print(f"\n[idle: {event.stop_reason.type}]", flush=True)
                break
            case _:
                pass
