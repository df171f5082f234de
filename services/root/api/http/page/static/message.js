// One message, a person's or a model's; and a story, whose pieces are one text.

import { html, nothing } from "./vendor/lit-html.js";
import { answer, save } from "./answer.js";
import { askKey } from "./dialogs.js";
import { branches, parts, turn } from "./conversation.js";
import { copy } from "./copy.js";
import { icons } from "./icons.js";
import { Rendered } from "./markdown.js";
import { changed, state } from "./state.js";
import { digits, span, whole } from "./words.js";

const ENDS = { length: "it reached its length", tool_calls: "it calls a tool" };
// message -> what shows its text and its reasoning, so that finished blocks are drawn once.
const shown = new WeakMap();

/** A story as markup: its pieces as one text, and what can be done with the last ones. */
export function storyView(conversation, messages, send) {
  const last = messages.at(-1);
  const mine = messages.findLast((message) => message.role === "user");
  const run = state.running.get(last.id);
  const whole = () => messages.map((message) => message.text).join("");
  return html`<article class="message story" aria-label="Story" aria-busy=${run ? "true" : "false"}>
    <div class="pieces">${messages.map((message) =>
      state.editing === message.id
        ? editor(message, send)
        : html`<span class=${message.role === "user" ? "mine" : ""}>${message.text}</span>`,
    )}</div>
    ${run ? progress(run) : ending(conversation, last)}
    <div class="actions">
      ${branchView(conversation, last)}
      ${run ? nothing : action("Regenerate", icons.again, () => answer(conversation, last.parent))}
      ${mine ? action("Edit", icons.edit, () => edit(mine)) : nothing}
      ${action("Copy", icons.copy, () => copy(whole()))}
      ${run ? nothing : figures(last)}
    </div>
  </article>`;
}

/** A message as markup. send(message, text): a person's message was edited. */
export function messageView(conversation, message, send) {
  if (message.role === "user") return personView(conversation, message, send);
  return modelView(conversation, message);
}

function personView(conversation, message, send) {
  const editing = state.editing === message.id;
  return html`<article class="message person" aria-label="You">
    ${(message.files ?? []).map((file) => fileView(file))}
    ${editing ? editor(message, send) : html`<div class="bubble">${message.text}</div>`}
    ${editing
      ? nothing
      : html`<div class="actions">
          ${branchView(conversation, message)}
          ${action("Edit", icons.edit, () => edit(message))}
          ${action("Copy", icons.copy, () => copy(message.text))}
        </div>`}
  </article>`;
}

/** A file that was attached, folded. */
function fileView(file) {
  return html`<details class="file">
    <summary>${file.name} <small>${whole(file.text.length)} characters</small></summary>
    <pre tabindex="0">${file.text}</pre>
  </details>`;
}

function edit(message) {
  state.editing = message.id;
  changed();
  requestAnimationFrame(() => document.querySelector(".editor textarea")?.focus());
}

function editor(message, send) {
  const end = () => {
    state.editing = null;
    changed();
  };
  const submit = (event) => {
    event.preventDefault();
    const text = event.target.elements.text.value;
    end();
    send(message, text);
  };
  const typed = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      end();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      event.target.form.requestSubmit();
    }
  };
  return html`<form class="editor" @submit=${submit}>
    <textarea name="text" rows="3" aria-label="Edit the message" .value=${message.text} @keydown=${typed}></textarea>
    <div class="buttons">
      <button type="button" class="quiet" @click=${end}>Cancel</button>
      <button type="submit" class="main">Send</button>
    </div>
  </form>`;
}

function modelView(conversation, message) {
  const run = state.running.get(message.id);
  const views = viewsOf(message);
  const [reasoning, text] = parts(message);
  return html`<article class="message model" aria-label="Model" aria-busy=${run ? "true" : "false"}>
    ${reasoning
      ? html`<details class="reasoning">
          <summary>${thought(message, run && !text)}</summary>
          ${views.reasoning.show(reasoning)}
        </details>`
      : nothing}
    ${views.text.show(text)}
    ${run ? progress(run) : ending(conversation, message)}
    <div class="actions">
      ${branchView(conversation, message)}
      ${run ? nothing : action("Regenerate", icons.again, () => answer(conversation, message.parent))}
      ${text ? action("Copy", icons.copy, () => copy(text)) : nothing}
      ${run ? nothing : figures(message)}
    </div>
  </article>`;
}

function viewsOf(message) {
  let views = shown.get(message);
  if (!views) {
    views = { text: new Rendered(), reasoning: new Rendered() };
    shown.set(message, views);
  }
  return views;
}

function thought(message, thinking) {
  if (thinking) return "Thinking…";
  return message.thoughtSeconds ? `Thought for ${span(message.thoughtSeconds)}` : "Thought";
}

/** What happens until text comes. */
function progress(run) {
  if (state.cluster && state.cluster.state !== "serving") return paused(state.cluster);
  if (run.phase === "waiting") return html`<div class="notice wait" role="status"><span>${run.why}</span> Asking again soon.</div>`;
  if (run.phase === "writing") return html`<span class="cursor" aria-hidden="true"></span>`;
  const known = run.progress ?? prefillOf(run);
  const label = known
    ? `Reading the prompt: ${whole(known.position)} of ${whole(known.total)} tokens`
    : run.phase === "reading"
      ? "Reading the prompt"
      : "Sending";
  return html`<div class="reading">
    <span>${label}</span>
    ${known
      ? html`<progress max=${known.total} .value=${known.position} aria-label=${label}></progress>`
      : html`<progress aria-label=${label}></progress>`}
  </div>`;
}

/** How far the prompt of an answer was read, by the root's own account. */
function prefillOf({ request, phase }) {
  const found = state.cluster?.load?.prefills?.find((each) => each.request_id === request);
  return phase === "reading" && found?.total > 0 ? found : null;
}

function paused(cluster) {
  return html`<div class="notice wait" role="status">
    <strong>Paused.</strong> ${cluster.words} The answer goes on by itself.
    <a href="#/cluster">Cluster</a>
  </div>`;
}

function ending(conversation, message) {
  if (message.state === "stopped") return html`<p class="note">Stopped.</p>`;
  if (message.state !== "failed") return nothing;
  return html`<div class="notice error" role="alert">
    <span>${message.error}</span>
    <span class="buttons">
      ${message.unauthorized
        ? html`<button type="button" @click=${() => enterKey(conversation, message)}>Enter a key</button>`
        : nothing}
      <button type="button" @click=${() => answer(conversation, message.parent)}>Try again</button>
    </span>
  </div>`;
}

async function enterKey(conversation, message) {
  if (await askKey()) await answer(conversation, message.parent);
}

function figures({ usage, timings, finish, firstSeconds }) {
  if (!usage) return nothing;
  const parts = [`${whole(usage.completion_tokens)} tokens`];
  if (timings?.predicted_ms > 0 && usage.completion_tokens > 1) {
    parts.push(`${digits(((usage.completion_tokens - 1) * 1000) / timings.predicted_ms)} tokens/s`);
  }
  if (firstSeconds) parts.push(`first after ${span(firstSeconds)}`);
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  if (cached) parts.push(`${whole(cached)} of ${whole(usage.prompt_tokens)} prompt tokens from the cache`);
  if (ENDS[finish]) parts.push(ENDS[finish]);
  return html`<span class="figures">${parts.join(" · ")}</span>`;
}

function branchView(conversation, message) {
  const all = branches(conversation, message.parent);
  if (all.length < 2) return nothing;
  const index = all.findIndex((each) => each.id === message.id);
  const go = (step) => {
    turn(conversation, message, step);
    save(conversation);
    changed();
  };
  return html`<span class="branches" role="group" aria-label="Versions">
    <button type="button" class="quiet small" ?disabled=${index === 0} aria-label="Version before" @click=${() => go(-1)}>‹</button>
    <span>${index + 1} / ${all.length}</span>
    <button type="button" class="quiet small" ?disabled=${index === all.length - 1} aria-label="Next version"
      @click=${() => go(1)}>›</button>
  </span>`;
}

function action(name, icon, act) {
  return html`<button type="button" class="quiet small" title=${name} aria-label=${name} @click=${act}>${icon}</button>`;
}

