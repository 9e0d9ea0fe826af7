"""A cap on what a session may cost, and what to do when it is reached.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed). The model must have a list price (see [prices] in corral.toml).
"""

import sys
import time

from anthropic import Anthropic

TASK = sys.argv[1] if len(sys.argv) > 1 else "Write a short story into story.txt, then read it again and improve it."

client = Anthropic()


def cents(amount):
    """Money as the API takes it: whole cents, as text."""
    return {"type": "limit", "max_list_cost": {"amount": str(amount), "currency": "USD"}}


agent = client.beta.agents.create(
    name="Thrifty Assistant",
    model="claude-opus-4-8",
    tools=[{"type": "agent_toolset_20260401"}],
)
environment = client.beta.environments.create(name=f"budget-{time.time_ns()}")
# A budget can be given only here; afterwards it can be raised, lowered above what was spent, or removed for good.
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, budget=cents(2))

with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    for event in stream:
        match event.type:
            case "agent.message":
                print("\n".join(block.text for block in event.content if block.type == "text"), flush=True)
            case "session.usage":
                # Stands right before every idle.
                print(f"[{event.usage.list_cost.amount} cents, {event.usage.output_tokens} tokens written]", flush=True)
            case "session.status_idle" if event.stop_reason.type == "budget_reached":
                print("[the budget is reached: raising it to 10 dollars]", flush=True)
                # The session goes on by itself.
                client.beta.sessions.update(session.id, budget=cents(1000))
            case "session.status_idle":
                print(f"[idle: {event.stop_reason.type}]", flush=True)
                break
            case _:
                pass
