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

const clients = {
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
