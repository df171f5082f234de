// The page: what is shown for an address, the head, and the keys.

import { html, nothing, render } from "./vendor/lit-html.js";
import { stopAll } from "./answer.js";
import { merge } from "./conversation.js";
import { chatView } from "./chat.js";
import { clusterView } from "./cluster.js";
import { connectView } from "./connect.js";
import { askKey, showHelp } from "./dialogs.js";
import { icons } from "./icons.js";
import { change, restore, switchTheme, theme } from "./settings.js";
import { sidebarView } from "./sidebar.js";
import { changed, onDraw, state } from "./state.js";
import * as store from "./store.js";
import { watch } from "./watch.js";

const VIEWS = { chat: chatView, cluster: clusterView, connect: connectView };
const TABS = { chat: "Chat", cluster: "Cluster", connect: "Connect" };

function page() {
  return html`
    <a class="skip" href="#main" @click=${skip}>Go to the contents</a>
    <header>
      ${state.view === "chat"
        ? html`<button type="button" class="quiet only-narrow" aria-label="Conversations" aria-controls="sidebar"
            aria-expanded=${state.sidebar ? "true" : "false"} @click=${toggleSidebar}>${icons.menu}</button>`
        : nothing}
      <a class="brand" href="#/chat" aria-label="Hearth"><img src="page/icon.svg" alt="" width="26" height="26"><span>Hearth</span></a>
      <nav class="tabs" aria-label="Views">
        ${Object.entries(TABS).map(
          ([view, title]) => html`<a href=${`#/${view}`} aria-current=${view === state.view ? "page" : "false"}>${title}</a>`,
        )}
      </nav>
      ${model()}
      <button type="button" class="quiet" title="Light or dark" aria-label=${theme() === "dark" ? "Light theme" : "Dark theme"}
        @click=${switchTheme}>${theme() === "dark" ? icons.sun : icons.moon}</button>
      <button type="button" class="quiet only-wide" title="Keys (?)" aria-label="Keys" @click=${showHelp}>${icons.help}</button>
    </header>
    ${banner()}
    <div class=${state.sidebar ? "body with-sidebar" : "body"}>
      ${state.view === "chat" ? sidebarView() : nothing}
      ${state.sidebar ? html`<div class="veil" @click=${toggleSidebar}></div>` : nothing}
      <main id="main" tabindex="-1">${VIEWS[state.view]()}</main>
    </div>
    <div class="toast" role="status" aria-live="polite">${state.notice}</div>
    <div class="outside" role="status" aria-live="polite">${state.running.size ? "Answering" : "Ready"}</div>`;
}

function model() {
  const found = state.cluster?.model;
  if (!found) return html`<span class="model-name"></span>`;
  if (state.models.length > 1) return choice();
  return html`<a class="model-name" href="#/cluster" title=${state.cluster.words}>
    <span class=${`lamp ${state.cluster.state}`}></span><span class="only-wide">${found.name}</span>
    <span class="outside">Cluster: ${state.cluster.words}</span></a>`;
}

/** Of several models the one that answers; the root loads it when it is asked. */
function choice() {
  const chosen = state.models.includes(state.settings.model) ? state.settings.model : state.cluster.model.name;
  return html`<span class="model-name"><span class=${`lamp ${state.cluster.state}`}></span>
    <select aria-label="Model" @change=${(event) => change({ ...state.settings, model: event.target.value })}>
      ${state.models.map((name) => html`<option ?selected=${name === chosen}>${name}</option>`)}
    </select></span>`;
}

function banner() {
  if (state.locked) {
    return html`<div class="banner" role="alert">This root wants a key.
      <button type="button" @click=${enterKey}>Enter a key</button></div>`;
  }
  if (state.offline) return html`<div class="banner" role="alert">The root does not answer. Trying again.</div>`;
  if (state.cluster && state.cluster.state !== "serving" && state.view !== "cluster") {
    return html`<div class="banner wait" role="status">${state.cluster.words}
      <a href="#/cluster">Show the cluster</a></div>`;
  }
  return nothing;
}

async function enterKey() {
  await askKey();
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

function toggleSidebar() {
  state.sidebar = !state.sidebar;
  changed();
}

/** Show what the address names: #/chat, #/chat/ID, #/cluster, #/connect. */
function route() {
  const [view, id] = location.hash.replace(/^#\/?/, "").split("/");
  state.view = VIEWS[view] ? view : "chat";
  if (state.view === "chat") state.conversation = state.conversations.get(id) ?? null;
  state.editing = null;
  state.sidebar = false;
  document.title = state.view === "chat" ? "Hearth" : `${TABS[state.view]} – Hearth`;
  draw();
  if (state.view === "chat") {
    if (matchMedia("(min-width: 700px)").matches) document.getElementById("text")?.focus();
    const list = document.querySelector(".messages");
    list.scrollTop = list.scrollHeight;
  }
}

function draw() {
  const list = document.querySelector(".messages");
  // A person who has scrolled up stays there.
  const follow = list && list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  render(page(), document.getElementById("app"));
  if (follow) list.scrollTop = list.scrollHeight;
}

function typed(event) {
  const writing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "Escape") {
    if (document.querySelector("dialog[open]")) return;
    if (state.sidebar) toggleSidebar();
    else stopAll(state.conversation);
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    location.hash = "#/chat";
  } else if (event.key === "?" && !writing) {
    event.preventDefault();
    showHelp();
  } else if (event.key === "/" && !writing && state.view === "chat") {
    event.preventDefault();
    document.getElementById("text").focus();
  }
}

/** Show what another tab did with a conversation. */
async function followed(id) {
  const own = state.conversations.get(id);
  const kept = await store.get(id);
  if (kept && own) {
    merge(own, kept, (message) => state.running.has(message));
  } else if (kept) {
    state.conversations.set(id, kept);
  } else if (own) {
    stopAll(own);
    state.conversations.delete(id);
    if (state.conversation === own) location.hash = "#/chat";
  }
  changed();
}

function settled(event) {
  if (event.key !== "hearth.settings") return;
  restore();
  changed();
}

async function start() {
  restore();
  try {
    for (const conversation of await store.all()) {
      for (const message of Object.values(conversation.messages)) {
        // The page was left while it came.
        if (message.state === "running") message.state = "stopped";
      }
      state.conversations.set(conversation.id, conversation);
    }
  } catch (error) {
    console.warn("this browser keeps no conversations:", error);
  }
  onDraw(draw);
  store.onOthers((id) => followed(id).catch((error) => console.warn("another tab's words are not shown:", error)));
  addEventListener("storage", settled);
  addEventListener("hashchange", route);
  addEventListener("keydown", typed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  route();
  watch();
}

start();
