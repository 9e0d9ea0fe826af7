"""An agent that reads the web, and only the pages it may: those that you name, and what they link to on the same site.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed). Usage: web_research.py [domain] [task]. With a search engine under `[web]`
in corral.toml the agent can search, too.
"""

import sys
import time

from anthropic import Anthropic

DOMAIN = sys.argv[1] if len(sys.argv) > 1 else "docs.python.org"
TASK = sys.argv[2] if len(sys.argv) > 2 else f"Read https://{DOMAIN}/3/whatsnew/ and tell me what is new, with links."

client = Anthropic()

agent = client.beta.agents.create(
    name="Web Researcher",
    model="claude-opus-4-8",
    system="Answer from what you have read, and name the pages.",
    tools=[
        {
            "type": "agent_toolset_20260401",
            # Nothing but the web: no files, no commands, and so no sandbox either.
            "default_config": {"enabled": False},
            "configs": [
                {"name": "web_search", "enabled": True, "allowed_domains": [DOMAIN]},
                {
                    "name": "web_fetch",
                    "enabled": True,
                    "allowed_domains": [DOMAIN],
                    "max_content_tokens": 20_000,
                    # Links that it has seen, in your message or on a page; none that it made up.
                    "url_sources": {"user_input": "all", "server_tool_results": "all"},
                },
            ],
        }
    ],
)
environment = client.beta.environments.create(name=f"research-{time.time_ns()}")
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id)

with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    for event in stream:
        match event.type:
            case "agent.tool_use":
                print(f"{event.name}: {event.input}", flush=True)
            case "agent.tool_result":
                text = "".join(block.text for block in event.content if block.type == "text")
                print(f"  -> {'error: ' if event.is_error else ''}{text[:300]}", flush=True)
            case "agent.message":
                print("\n".join(block.text for block in event.content if block.type == "text"), flush=True)
            case "session.status_idle":
                print(f"[idle: {event.stop_reason.type}]", flush=True)
                break
