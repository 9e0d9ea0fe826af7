// Every shell command waits until it is allowed or denied; this program allows the first and denies the rest.
import Anthropic, { BadRequestError } from "@anthropic-ai/sdk";

const client = new Anthropic();

const agent = await client.beta.agents.create({
  name: "Careful Assistant",
  model: "claude-opus-4-8",
  tools: [
    {
      type: "agent_toolset_20260401",
      configs: [{ name: "bash", permission_policy: { type: "always_ask" } }],
    },
  ],
});
const environment = await client.beta.environments.create({ name: `typescript-${process.hrtime.bigint()}` });
const session = await client.beta.sessions.create({ agent: agent.id, environment_id: environment.id });

const stream = await client.beta.sessions.events.stream(session.id);
const say = (text) => ({ type: "user.message", content: [{ type: "text", text }] });
await client.beta.sessions.events.send(session.id, { events: [say(process.argv[2])] });

for await (const event of stream) {
  if (event.type === "agent.tool_use") {
    console.log(`asks: ${event.input.command} (${event.evaluated_permission})`);
  } else if (event.type === "agent.tool_result") {
    console.log(`${event.is_error ? "refused" : "ran"}: ${event.content[0].text}`);
  } else if (event.type === "session.status_idle") {
    if (event.stop_reason.type !== "requires_action") {
      console.log(`[idle: ${event.stop_reason.type}]`);
      break;
    }
    const refusal = await client.beta.sessions.events
      .send(session.id, { events: [say("Are you still there?")] })
      .catch((error) => error);
    console.log(`a message meanwhile: ${refusal instanceof BadRequestError ? refusal.status : "accepted"}`);
    const [first, ...rest] = event.stop_reason.event_ids;
    await client.beta.sessions.events.send(session.id, {
      events: [
        { type: "user.tool_confirmation", tool_use_id: first, result: "allow" },
        ...rest.map((id) => ({
          type: "user.tool_confirmation",
          tool_use_id: id,
          result: "deny",
          deny_message: "One command is enough.",
        })),
      ],
    });
  }
}
