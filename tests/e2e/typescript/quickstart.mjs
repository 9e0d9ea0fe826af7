// The five steps of a managed agent in TypeScript's SDK: agent, environment, session, events, stream.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();

const agent = await client.beta.agents.create({
  name: "Coding Assistant",
  model: "claude-opus-4-8",
  system: "You are a helpful coding assistant.",
  tools: [{ type: "agent_toolset_20260401" }],
});
const environment = await client.beta.environments.create({
  name: `typescript-${process.hrtime.bigint()}`,
  config: { type: "cloud", networking: { type: "unrestricted" } },
});
const session = await client.beta.sessions.create({
  agent: agent.id,
  environment_id: environment.id,
  title: "Quickstart session",
});

const stream = await client.beta.sessions.events.stream(session.id);
await client.beta.sessions.events.send(session.id, {
  events: [{ type: "user.message", content: [{ type: "text", text: process.argv[2] }] }],
});
for await (const event of stream) {
  if (event.type === "agent.message") {
    for (const block of event.content) console.log(block.text);
  } else if (event.type === "agent.tool_use") {
    console.log(`[Using tool: ${event.name}]`);
  } else if (event.type === "agent.tool_result") {
    for (const block of event.content ?? []) console.log(`  -> ${block.text}`);
  } else if (event.type === "session.status_idle") {
    console.log(`[idle: ${event.stop_reason.type}]`);
    break;
  }
}

// Lists page by themselves, here too.
const types = [];
for await (const event of client.beta.sessions.events.list(session.id, { limit: 2 })) types.push(event.type);
console.log(types.join(" "));
