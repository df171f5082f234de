// The list of conversations: search, rename, delete, files.

import { html, nothing } from "./vendor/lit-html.js";
import { repeat } from "./vendor/directives/repeat.js";
import { save, stopAll } from "./answer.js";
import { markdown, path, read } from "./conversation.js";
import { agreed, line } from "./dialogs.js";
import { icons } from "./icons.js";
import { changed, notify, state } from "./state.js";
import * as store from "./store.js";

const MAX_IMPORT_BYTES = 64 * 1024 * 1024;

/** The list as markup. */
export function sidebarView() {
  const found = [...state.conversations.values()].filter(matches).sort((a, b) => b.changed - a.changed);
  return html`<nav class="sidebar" id="sidebar" aria-label="Conversations">
    <a class="button wide" href="#/chat" @click=${close}>${icons.add} New conversation</a>
    <input type="search" aria-label="Search conversations" placeholder="Search" .value=${state.search}
      @input=${(event) => {
        state.search = event.target.value;
        changed();
      }}>
    <ul class="list">
      ${repeat(found, (each) => each.id, entry)}
      ${found.length ? nothing : html`<li class="none">${state.search ? "Nothing found" : "No conversations yet"}</li>`}
    </ul>
    <div class="files">
      <label class="button quiet small" title="Read conversations from a file">Import
        <input class="outside" type="file" accept="application/json,.json" @change=${imported}></label>
      <button type="button" class="quiet small" ?disabled=${!state.conversations.size} @click=${exportAll}>Export all</button>
    </div>
  </nav>`;
}

function close() {
  state.sidebar = false;
  changed();
}

function entry(conversation) {
  const open = conversation === state.conversation && state.view === "chat";
  const running = Object.keys(conversation.messages).some((id) => state.running.has(id));
  return html`<li class=${open ? "open" : ""}>
    <a href=${`#/chat/${conversation.id}`} aria-current=${open ? "page" : "false"} @click=${close}>
      ${running ? html`<span class="dot" role="img" aria-label="Answering"></span>` : nothing}${conversation.title || "Untitled"}</a>
    ${open ? tools(conversation) : nothing}
  </li>`;
}

function tools(conversation) {
  const tool = (name, icon, act) => html`<button type="button" class="quiet small" title=${name} aria-label=${name}
    @click=${() => act(conversation)}>${icon}</button>`;
  return html`<span class="tools">
    ${tool("Rename", icons.edit, rename)}
    ${tool("Save as Markdown", icons.save, (each) => download(`${fileName(each)}.md`, markdown(each), "text/markdown"))}
    ${tool("Export", icons.share, (each) => exportSome([each], fileName(each)))}
    ${tool("Delete", icons.remove, remove)}
  </span>`;
}

function matches(conversation) {
  const wanted = state.search.trim().toLowerCase();
  if (!wanted) return true;
  if (conversation.title.toLowerCase().includes(wanted)) return true;
  return Object.values(conversation.messages).some((each) => each.text.toLowerCase().includes(wanted));
}

async function rename(conversation) {
  const title = await line("Rename", "Name", conversation.title, "Rename");
  if (!title) return;
  conversation.title = title;
  conversation.named = true;
  conversation.renamed = Date.now();
  await save(conversation);
  changed();
}

async function remove(conversation) {
  const text = `“${conversation.title}” will be gone from this browser, with all its ${path(conversation).length} messages.`;
  if (!(await agreed("Delete this conversation?", text, "Delete"))) return;
  stopAll(conversation);
  state.conversations.delete(conversation.id);
  await store.remove(conversation.id).catch(() => {});
  if (state.conversation === conversation) location.hash = "#/chat";
  changed();
}

// -- files -----------------------------------------------------------------------------------------

function fileName(conversation) {
  return conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase() || "conversation";
}

function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function exportSome(conversations, name) {
  const value = { format: "hearth-conversations", version: 1, conversations };
  download(`${name}.json`, JSON.stringify(value, null, 1), "application/json");
}

function exportAll() {
  exportSome([...state.conversations.values()], "hearth-conversations");
}

async function imported(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    if (file.size > MAX_IMPORT_BYTES) throw new Error(`it has ${file.size} bytes, and at most ${MAX_IMPORT_BYTES} are read`);
    const { conversations } = JSON.parse(await file.text());
    if (!Array.isArray(conversations)) throw new Error("it holds no conversations of this page");
    const found = conversations.map(read);
    for (const each of found) await save(each);
    notify(`${found.length} imported`);
  } catch (error) {
    notify(`${file.name} was not imported: ${error.message}`);
  }
  changed();
}
