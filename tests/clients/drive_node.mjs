// One call of a client for Node.js: drive_node.mjs CLIENT MODE URL.
// Prints the answer; for an error its type and message, in one line.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [, , name, mode, url] = process.argv;
const require = createRequire(process.env.HEARTH_CLIENTS + "/");
const load = async (module) => import(pathToFileURL(require.resolve(module)));

const model = mode === "error" ? "missing" : "tiny";
const question = "Who are you?";
const messages = [{ role: "user", content: question }];

const openai = async () => {
  const { default: OpenAI } = await load("openai");
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
};

// Two calls of this tool, then the answer behind their results.
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { name: "weather", description: "The weather.", parameters };
const weather = ({ city }) => `warm in ${city}`;

const clients = {
  openai_node_tools: async () => {
    const client = await openai();
    const said = [];
    const call = (given) => {
      said.push(`weather ${given.city}`);
      return weather(given);
    };
    const runner = client.chat.completions.runTools({
      model,
      messages,
      stream: mode === "stream",
      tools: [{ type: "function", function: { ...tool, function: call, parse: JSON.parse } }],
    });
    const answer = await runner.finalContent();
    return [...said, answer].join(", ");
  },
  ollama_js_tools: async () => {
    const { Ollama } = await load("ollama");
    const client = new Ollama({ host: url });
    const asked = { model, tools: [{ type: "function", function: tool }] };
    const history = [...messages];
    const said = [];
    const read = (message) => {
      if (!message.tool_calls) return;
      history.push(message);
      for (const call of message.tool_calls) said.push(call.function);
    };
    if (mode === "stream") {
      for await (const part of await client.chat({ ...asked, messages, stream: true })) read(part.message);
    } else {
      read((await client.chat({ ...asked, messages })).message);
    }
    for (const call of said) {
      history.push({ role: "tool", tool_name: call.name, content: weather(call.arguments) });
    }
    const done = await client.chat({ ...asked, messages: history });
    const calls = said.map((call) => `${call.name} ${call.arguments.city}`);
    return [...calls, done.message.content].join(", ");
  },
  openai_node: async () => {
    const client = await openai();
    if (mode === "text") {
      const made = await client.chat.completions.create({ model, messages });
      return made.choices[0].message.content;
    }
    const stream = client.chat.completions.stream({ model, messages });
    return (await stream.finalChatCompletion()).choices[0].message.content;
  },
  openai_node_responses: async () => {
    const client = await openai();
    if (mode === "text") return (await client.responses.create({ model, input: question })).output_text;
    return (await client.responses.stream({ model, input: question }).finalResponse()).output_text;
  },
  ollama_js: async () => {
    const { Ollama } = await load("ollama");
    const client = new Ollama({ host: url });
    if (mode === "text") return (await client.chat({ model, messages })).message.content;
    let text = "";
    for await (const part of await client.chat({ model, messages, stream: true })) {
      text += part.message.content;
    }
    return text;
  },
};

try {
  console.log(await clients[name]());
} catch (error) {
  console.log(`${error.constructor.name}: ${error.message}`.replaceAll("\n", " "));
}
