"""`corral run "PROMPT"`: one prompt, streamed to the terminal.

A server for just this prompt, in this process, driven through the official SDK over HTTP: the same path that any client
takes. The session's files stay in the data directory, and are listed at the end.
"""

from __future__ import annotations

import anyio
from anthropic import AsyncAnthropic
from anthropic.types.beta.sessions import BetaManagedAgentsStreamSessionEvents
from rich.console import Console
from rich.text import Text

from corral.app.server import Corral, open_corral
from corral.config import Settings
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.interfaces.sandbox import SandboxCall
from corral.serving import bind, serving

SYSTEM = "You are a helpful assistant with a Linux sandbox. Do the task with your tools, then say briefly what you did."
SHOWN_CHARACTERS_MAX = 2_000


async def run_prompt(settings: Settings, prompt: str, model: str, out: Console) -> int:
    """Run one prompt; 0 when the agent ended its turn by itself."""
    with bind("127.0.0.1", 0) as listener:
        async with open_corral(settings) as corral, serving(corral, listener) as base_url:
            async with AsyncAnthropic(base_url=base_url, api_key=corral.api_key) as client:
                session_id = await _start(client, model)
                stop = await _follow(client, session_id, prompt, out)
            await _list_files(corral, session_id, out)
            return 0 if stop == "end_turn" else 1


async def _start(client: AsyncAnthropic, model: str) -> str:
    agent = await client.beta.agents.create(
        name="corral run", model=model, system=SYSTEM, tools=[{"type": "agent_toolset_20260401"}]
    )
    environment = await client.beta.environments.create(name=f"corral run {new_id('env')}")
    session = await client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="corral run")
    return session.id


async def _follow(client: AsyncAnthropic, session_id: str, prompt: str, out: Console) -> str:
    events = client.beta.sessions.events
    async with await events.stream(session_id, event_deltas=["agent.message"]) as stream:
        await events.send(session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": prompt}]}])
        async for event in stream:
            _show(event, out)
            if event.type == "session.status_idle":
                return event.stop_reason.type
    return "disconnected"


def _show(event: BetaManagedAgentsStreamSessionEvents, out: Console) -> None:
    """Text as it is written; tool calls and results as they come."""
    match event.type:
        case "event_delta":
            out.print(Text(event.delta.content.text), end="")
        case "agent.message":
            out.print()
        case "agent.tool_use":
            out.print(Text(f"▸ {event.name} {event.input}"[:SHOWN_CHARACTERS_MAX], style="cyan"))
        case "agent.tool_result":
            for block in event.content or []:
                if block.type == "text":
                    style = "red" if event.is_error else "dim"
                    out.print(Text(block.text[:SHOWN_CHARACTERS_MAX], style=style))
        case "session.error":
            out.print(Text(event.error.message, style="red"))
        case _:
            pass


async def _list_files(corral: Corral, session_id: str, out: Console) -> None:
    with anyio.fail_after(60):
        sandbox = await corral.sandboxes.open(session_id)
        call = SandboxCall(call_id=new_id("sevt"), operation="glob", arguments={"pattern": "**/*"})
        reply = await sandbox.call(call)
    names = "\n".join(block.text for block in reply.content if isinstance(block, TextBlock))
    out.print(Text(f"\nFiles in the session's workspace ({session_id}):\n{names}"))
