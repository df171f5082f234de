// Copying text, with a word that it is done.

import { notify } from "./state.js";

/** Copy to the clipboard, also on pages without TLS, which have no clipboard of their own. */
export async function copy(text) {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copySelected(text);
    notify("Copied");
  } catch {
    notify("The browser does not allow copying");
  }
}

function copySelected(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "outside";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not copied");
}

/** A button that copies what `text` returns. */
export function copyButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet small";
  button.textContent = "Copy";
  button.addEventListener("click", () => copy(text()));
  return button;
}
