// The chat: messages, the text field, attached files.

import { html, nothing } from "./vendor/lit-html.js";
import { repeat } from "./vendor/directives/repeat.js";
import { answer, save, stopAll } from "./answer.js";
import { askSettings } from "./dialogs.js";
import { add, create, path } from "./conversation.js";
import { icons } from "./icons.js";
import { messageView, storyView } from "./message.js";
import { changed, notify, state } from "./state.js";
import { percent, whole } from "./words.js";

const MAX_FILE_BYTES = 512 * 1024;
const MAX_FILES = 10;

const story = () => (state.conversation ? state.conversation.story : state.cluster?.model?.has_chat_template === false);

/** The chat as markup. */
export function chatView() {
  const messages = state.conversation ? path(state.conversation) : [];
  return html`<section class="chat" aria-label="Chat" @dragover=${dragged} @drop=${dropped}>
    <div class="messages" tabindex="-1">
      <div class="column">
        ${messages.length ? nothing : welcome()}
        ${state.conversation?.story && messages.length
          ? storyView(state.conversation, messages, edited)
          : repeat(
              messages,
              (message) => message.id,
              (message) => messageView(state.conversation, message, edited),
            )}
      </div>
    </div>
    ${composer(messages)}
  </section>`;
}

function welcome() {
  const name = state.cluster?.model?.name;
  return html`<div class="welcome">
    <img src="page/icon.svg" alt="" width="56" height="56">
    <h1>${story() ? "Begin a story" : "Ask something"}</h1>
    <p>${name ? html`<strong>${name}</strong> answers, on ${machines()}.` : "Looking for the model."}</p>
    ${story()
      ? html`<p>This model continues text; it was not made for conversations. Write a beginning, and it goes on.</p>`
      : nothing}
  </div>`;
}

function machines() {
  const count = state.cluster.nodes.length;
  if (!count) return "the next request's machines";
  return count === 1 ? "this root alone" : `${count} machines together`;
}

function composer(messages) {
  const running = messages.some((message) => state.running.has(message.id));
  const label = story() ? "Text to continue" : "Message";
  const hint = story() ? (messages.length ? "Write on, or send nothing to go on" : "Once upon a time") : "Message";
  return html`<form class="composer" @submit=${submitted}>
    <div class="column">
      ${state.files.length ? html`<ul class="chips" aria-label="Attached files">${state.files.map(chip)}</ul>` : nothing}
      <div class="field">
        <textarea id="text" name="text" rows="1" aria-label=${label} placeholder=${hint} enterkeyhint="send"
          @keydown=${typed} @input=${(event) => fit(event.target)} @paste=${pasted}></textarea>
        <div class="tools">
          ${story() ? nothing : attach()}
          <button type="button" class="quiet" title="Settings of answers" aria-label="Settings of answers"
            @click=${askSettings}>${icons.gear}</button>
          <span class="room">${room(messages)}</span>
          ${running
            ? html`<button type="button" class="main round" title="Stop (Esc)" aria-label="Stop"
                @click=${() => stopAll(state.conversation)}>${icons.stop}</button>`
            : html`<button type="submit" class="main round" title="Send (Enter)" aria-label="Send">${icons.send}</button>`}
        </div>
      </div>
    </div>
  </form>`;
}

function attach() {
  return html`<label class="button quiet" title="Attach text files">
    <span class="outside">Attach text files</span>${icons.clip}
    <input class="outside" type="file" multiple @change=${(event) => {
      attachFiles(event.target.files);
      event.target.value = "";
    }}>
  </label>`;
}

function chip(file, index) {
  const take = () => {
    state.files.splice(index, 1);
    changed();
  };
  return html`<li>${file.name}
    <button type="button" class="quiet small" aria-label=${`Remove ${file.name}`} @click=${take}>${icons.close}</button></li>`;
}

/** How much of the context the last answer's conversation took. */
function room(messages) {
  const size = state.cluster?.model?.context_size;
  const used = messages.findLast((message) => message.usage)?.usage.total_tokens;
  if (!size || !used) return nothing;
  return html`<meter min="0" max=${size} high=${size * 0.9} .value=${used} aria-label="Context used"></meter>
    <span title=${`${whole(used)} of ${whole(size)} tokens`}>${percent(used / size)}<span class="only-wide"> of the context</span></span>`;
}

/** Give the text field the height of its text. */
function fit(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
}

function typed(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    event.target.form.requestSubmit();
  } else if (event.key === "ArrowUp" && !event.target.value && state.conversation) {
    const last = path(state.conversation).findLast((message) => message.role === "user");
    if (!last) return;
    event.preventDefault();
    state.editing = last.id;
    changed();
    requestAnimationFrame(() => document.querySelector(".editor textarea")?.focus());
  }
}

function submitted(event) {
  event.preventDefault();
  const area = event.target.elements.text;
  const messages = state.conversation ? path(state.conversation) : [];
  if (messages.some((message) => state.running.has(message.id))) return;
  const text = story() ? area.value : area.value.trim();
  const more = story() && messages.length > 0;
  if (!text && !state.files.length && !more) return;
  area.value = "";
  fit(area);
  send(messages.at(-1)?.id ?? "", text, state.files.splice(0));
}

/** Add a person's message after `parent`, and answer it. */
async function send(parent, text, files) {
  let conversation = state.conversation;
  if (!conversation) {
    conversation = create(story());
    state.conversations.set(conversation.id, conversation);
    state.conversation = conversation;
    history.replaceState(null, "", `#/chat/${conversation.id}`);
  }
  const asked = text || files.length ? add(conversation, parent, { text, files }).id : parent;
  scrollDown();
  const answered = answer(conversation, asked);
  await save(conversation);
  await answered;
}

function edited(message, text) {
  if (!text.trim() && !message.files?.length) return;
  stopAll(state.conversation);
  send(message.parent, text, message.files ?? []);
}

function scrollDown() {
  requestAnimationFrame(() => {
    const list = document.querySelector(".messages");
    if (list) list.scrollTop = list.scrollHeight;
  });
}

// -- attached files --------------------------------------------------------------------------------

async function attachFiles(files) {
  for (const file of files) {
    if (state.files.length >= MAX_FILES) {
      notify(`At most ${MAX_FILES} files go with a message`);
      break;
    }
    if (file.size > MAX_FILE_BYTES) {
      notify(`${file.name} has ${whole(file.size)} bytes; at most ${whole(MAX_FILE_BYTES)} are read`);
      continue;
    }
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError("binary");
      state.files.push({ name: file.name, text });
    } catch {
      notify(`${file.name} is not a text file in UTF-8`);
    }
  }
  changed();
}

function dragged(event) {
  if (!story() && event.dataTransfer.types.includes("Files")) event.preventDefault();
}

function dropped(event) {
  if (story() || !event.dataTransfer.files.length) return;
  event.preventDefault();
  attachFiles(event.dataTransfer.files);
}

function pasted(event) {
  if (story() || !event.clipboardData.files.length) return;
  event.preventDefault();
  attachFiles(event.clipboardData.files);
}
