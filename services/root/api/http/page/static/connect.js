// Settings for other programs, with this root's address in them.

import { html } from "./vendor/lit-html.js";
import { address } from "./api.js";
import { codeBlock } from "./code.js";
import { state } from "./state.js";

const KEY = "YOUR_KEY";

/** [program, words, language, text] of each client. base: the root's address without a last slash. */
function clients(base, model) {
  return [
    [
      "Open WebUI",
      "Admin settings, Connections, OpenAI: a connection with this URL and key. As variables:",
      "sh",
      `OPENAI_API_BASE_URL=${base}/v1\nOPENAI_API_KEY=${KEY}`,
    ],
    [
      "OpenAI's libraries",
      "Python; those for JavaScript and others take the same two values.",
      "python",
      `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key="${KEY}")\nanswer = client.chat.completions.create(\n    model="${model}",\n    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.choices[0].message.content)`,
    ],
    [
      "Anthropic's libraries",
      "Python; the address has no /v1.",
      "python",
      `from anthropic import Anthropic\n\nclient = Anthropic(base_url="${base}", api_key="${KEY}")\nanswer = client.messages.create(\n    model="${model}",\n    max_tokens=200,\n    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.content[0].text)`,
    ],
    [
      "Claude Code",
      "Needs a model with a large context: its own instructions take tens of thousands of tokens.",
      "sh",
      `export ANTHROPIC_BASE_URL=${base}\nexport ANTHROPIC_AUTH_TOKEN=${KEY}\nexport ANTHROPIC_MODEL=${model}\nclaude`,
    ],
    [
      "Codex CLI",
      "In ~/.codex/config.toml.",
      "toml",
      `model = "${model}"\nmodel_provider = "hearth"\n\n[model_providers.hearth]\nname = "Hearth"\nbase_url = "${base}/v1"\nwire_api = "responses"\nenv_key = "HEARTH_API_KEY"`,
    ],
    [
      "Ollama's libraries and programs",
      "Home Assistant, too: where a program has no field for a key, the address carries it.",
      "python",
      `from ollama import Client\n\nclient = Client(host="${base}/k/${KEY}")\nanswer = client.chat(\n    model="${model}",\n    messages=[{"role": "user", "content": "Hello"}],\n)\nprint(answer.message.content)`,
    ],
    [
      "Continue",
      "In ~/.continue/config.yaml.",
      "yaml",
      `models:\n  - name: Hearth\n    provider: openai\n    model: ${model}\n    apiBase: ${base}/v1\n    apiKey: ${KEY}`,
    ],
    [
      "Cline and Roo Code",
      "API provider “OpenAI Compatible”, with these values.",
      "text",
      `Base URL: ${base}/v1\nAPI key:  ${KEY}\nModel ID: ${model}`,
    ],
    [
      "opencode",
      "In opencode.json.",
      "json",
      JSON.stringify(
        {
          provider: {
            hearth: {
              npm: "@ai-sdk/openai-compatible",
              options: { baseURL: `${base}/v1`, apiKey: KEY },
              models: { [model]: {} },
            },
          },
          model: `hearth/${model}`,
        },
        null,
        2,
      ),
    ],
    [
      "aider",
      "Before the model's name stands openai/.",
      "sh",
      `export OPENAI_API_BASE=${base}/v1\nexport OPENAI_API_KEY=${KEY}\naider --model openai/${model}`,
    ],
    [
      "LangChain",
      "Python.",
      "python",
      `from langchain_openai import ChatOpenAI\n\nmodel = ChatOpenAI(\n    model="${model}",\n    base_url="${base}/v1",\n    api_key="${KEY}",\n)\nprint(model.invoke("Hello").content)`,
    ],
    [
      "curl",
      "",
      "sh",
      `curl ${base}/v1/chat/completions \\\n  -H "Authorization: Bearer ${KEY}" \\\n  -d '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'`,
    ],
  ];
}

// Made once for each address and model: the blocks are elements.
let made = { for: "", blocks: [] };

/** The view as markup. */
export function connectView() {
  // The address of a page at /k/KEY/ has the key; settings show a placeholder for it.
  const base = address("").replace(/\/k\/[^/]+\/$/, "/").replace(/\/$/, "");
  const model = state.cluster?.model?.name ?? "MODEL";
  if (made.for !== `${base} ${model}`) {
    const blocks = clients(base, model).map((client) => [...client, codeBlock(client[3], client[2])]);
    made = { for: `${base} ${model}`, blocks };
  }
  return html`<section class="view">
    <h1>Connect a client</h1>
    <p class="lead">Programs made for OpenAI, Anthropic or Ollama need this root's address, <code>${base}</code>, and nothing
      else. Where the root has keys, write yours for <code>${KEY}</code>; otherwise any word does.</p>
    ${/^https?:\/\/(localhost|127\.|\[::1\])/.test(base)
      ? html`<p class="lead">This address works on the root's machine only. For others, start the root with
          <code>--http 0.0.0.0:7780</code> and <code>--tls</code> or <code>--insecure</code>, and open the page by the machine's name.</p>`
      : ""}
    <div class="clients">${made.blocks.map(
      ([name, words, , , block]) => html`<article><h2>${name}</h2>${words ? html`<p>${words}</p>` : ""}${block}</article>`,
    )}</div>
  </section>`;
}
