// Dialogs: one at a time, closed by Esc, with the focus kept inside by the browser.

import { html, render } from "./vendor/lit-html.js";
import { key, setKey } from "./api.js";
import { change, NUMBERS } from "./settings.js";
import { changed, signals, state } from "./state.js";

/** Show a dialog; resolves to the form's fields, or null where it was closed. */
function show(title, contents, accept, cancel = "Cancel") {
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  const { promise, resolve } = Promise.withResolvers?.() ?? resolvers();
  const submit = (event) => {
    event.preventDefault();
    dialog.returnValue = "accept";
    resolve(new FormData(event.target));
    dialog.close();
  };
  render(
    html`<form @submit=${submit}>
      <h2 id="dialog-title">${title}</h2>
      ${contents}
      <div class="buttons">
        ${cancel && html`<button type="button" class="quiet" @click=${() => dialog.close()}>${cancel}</button>`}
        <button type="submit" class="main">${accept}</button>
      </div>
    </form>`,
    dialog,
  );
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.addEventListener("close", () => {
    resolve(null);
    dialog.remove();
  });
  dialog.showModal();
  return promise;
}

function resolvers() {
  const made = {};
  made.promise = new Promise((resolve) => (made.resolve = resolve));
  return made;
}

/** True if the person agrees. */
export async function agreed(title, text, accept) {
  return (await show(title, html`<p>${text}</p>`, accept)) !== null;
}

/** A line of text; null where the dialog was closed. */
export async function line(title, label, value, accept) {
  const field = html`<label>${label}<input name="value" .value=${value} maxlength="200" required></label>`;
  const found = await show(title, field, accept);
  return found === null ? null : String(found.get("value")).trim();
}

/** The key for this root; true if it has changed. */
export async function askKey() {
  const field = html`<p>This root answers those only that have a key. It stays in this tab, and goes when the tab is closed.</p>
    <label>Key<input name="value" type="password" autocomplete="off"
      pattern=" *[!-~]* *" title="A key has letters, digits and signs of ASCII only" .value=${key()}></label>`;
  const found = await show("Key", field, "Use this key");
  if (found === null) return false;
  setKey(String(found.get("value")).trim());
  signals.dispatchEvent(new Event("key"));
  return true;
}

const LABELS = {
  temperature: ["Temperature", "0 is the most likely text; 1 is the model's own spread"],
  top_p: ["Top p", "Keep the most likely tokens whose probabilities add up to this"],
  max_tokens: ["Max tokens", "Length of an answer at most"],
  seed: ["Seed", "The same seed gives the same text"],
};

/** Settings of answers. */
export async function askSettings() {
  const number = ([name, least, most, whole]) => html`<label>
    ${LABELS[name][0]}
    <input name=${name} type="number" min=${least} max=${most} step=${whole ? 1 : "any"}
      placeholder="as the model says" .value=${String(state.settings[name] ?? "")}>
    <small>${LABELS[name][1]}</small>
  </label>`;
  const contents = html`<label>System prompt
      <textarea name="system" rows="4" .value=${state.settings.system}></textarea>
      <small>Goes before every conversation</small></label>
    <div class="grid">${NUMBERS.map(number)}</div>`;
  const found = await show("Settings", contents, "Save");
  if (found === null) return;
  const settings = { model: state.settings.model, system: String(found.get("system")).trim() };
  for (const [name] of NUMBERS) {
    const text = String(found.get(name)).trim();
    if (text) settings[name] = Number(text);
  }
  change(settings);
}

const KEYS = [
  ["Enter", "Send"],
  ["Shift + Enter", "New line"],
  ["Esc", "Stop the answer, or close a dialog"],
  ["↑ in an empty field", "Edit the last message"],
  ["/", "Go to the text field"],
  ["Alt + N", "New conversation"],
  ["?", "This list"],
];

/** The keys of the page. */
export async function showHelp() {
  const rows = KEYS.map(([name, text]) => html`<tr><th scope="row"><kbd>${name}</kbd></th><td>${text}</td></tr>`);
  await show("Keys", html`<table class="keys"><tbody>${rows}</tbody></table>
    <p>Conversations stay in this browser. The root keeps none of them.</p>`, "Close", "");
  changed();
}
