"""A tool of your own: the agent calls it, your program runs it.

The SDK's runner watches the session, calls the function and sends its result.
Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed).
"""

import asyncio
import sys
import time

from anthropic import AsyncAnthropic, beta_async_tool

TASK = sys.argv[1] if len(sys.argv) > 1 else "How warm is it in Bergen and in Oslo, and where is it warmer?"
TEMPERATURES = {"Bergen": 11, "Oslo": 14}


@beta_async_tool
async def temperature(city: str) -> str:
    """The temperature in a city, in degrees Celsius.

    Args:
        city: Name of the city.
    """
    # An exception becomes an error result, and the agent reads what it says.
    if city not in TEMPERATURES:
        raise ValueError(f"no thermometer in {city}")
    return f"{TEMPERATURES[city]} degrees"


async def main():
    """Give an agent the tool, and serve its calls."""
    client = AsyncAnthropic()
    agent = await client.beta.agents.create(
        name="Weather Assistant",
        model="claude-opus-4-8",
        # The agent is told what the tool is called, what it does and what it takes; the code stays here.
        tools=[
            {
                "type": "custom",
                "name": temperature.name,
                "description": temperature.description,
                "input_schema": temperature.input_schema,
            }
        ],
    )
    environment = await client.beta.environments.create(name=f"custom-tool-{time.time_ns()}")
    session = await client.beta.sessions.create(
        agent=agent.id,
        environment_id=environment.id,
        initial_events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    # Ends when the session has rested for a second. A program that serves sessions for long leaves `max_idle` higher.
    async for call in client.beta.sessions.events.tool_runner(session.id, tools=[temperature], max_idle=1.0):
        print(f"{call.name}({call.event.input}) -> {'error' if call.is_error else 'ok'}", flush=True)
    async for event in client.beta.sessions.events.list(session.id, types=["agent.message"]):
        print("\n".join(block.text for block in event.content if block.type == "text"), flush=True)


asyncio.run(main())
