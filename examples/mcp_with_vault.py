"""An agent that uses an MCP server with a token from a vault, which neither the agent nor its sandbox ever sees.

Needs the official SDK and two environment variables: ANTHROPIC_BASE_URL (where `corral serve` listens) and
ANTHROPIC_API_KEY (the key that it printed). MCP_SERVER_URL and MCP_TOKEN name the server and the token for it.
"""

import os
import sys
import time

from anthropic import Anthropic

URL, TOKEN = os.environ["MCP_SERVER_URL"], os.environ["MCP_TOKEN"]
TASK = sys.argv[1] if len(sys.argv) > 1 else "What can you do with your tools? Try one of them."

client = Anthropic()
vault = client.beta.vaults.create(display_name="Example")
try:
    client.beta.vaults.credentials.create(
        vault.id, auth={"type": "static_bearer", "mcp_server_url": URL, "token": TOKEN}
    )
    agent = client.beta.agents.create(
        name="Tool user",
        model="claude-opus-4-8",
        mcp_servers=[{"type": "url", "name": "example", "url": URL}],
        tools=[
            {
                "type": "mcp_toolset",
                "mcp_server_name": "example",
                # Tools of MCP servers ask first, unless the agent says otherwise.
                "default_config": {"permission_policy": {"type": "always_allow"}},
            }
        ],
    )
    environment = client.beta.environments.create(name=f"mcp-{time.time_ns()}")
    session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, vault_ids=[vault.id])

    with client.beta.sessions.events.stream(session.id) as stream:
        client.beta.sessions.events.send(
            session.id, events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}]
        )
        for event in stream:
            match event.type:
                case "agent.mcp_tool_use":
                    print(f"{event.mcp_server_name}: {event.name}({event.input})")
                case "agent.mcp_tool_result" | "agent.message":
                    print("".join(block.text for block in event.content or [] if block.type == "text"))
                case "session.error":
                    # A server that cannot be used is told of, and the session goes on without it.
                    print(f"[error] {event.error.message}")
                case "session.status_idle":
                    print(f"[idle: {event.stop_reason.type}]")
                    break
                case _:
                    pass
finally:
    client.beta.vaults.delete(vault.id)
