// A block of code with its language and a button that copies it.

import { copyButton } from "./copy.js";

/** The block as an element. */
export function codeBlock(text, language) {
  const figure = document.createElement("div");
  figure.className = "code";
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language.split(/\s/)[0].slice(0, 30) || "text";
  head.append(name, copyButton(() => text));
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  const code = document.createElement("code");
  code.textContent = text;
  pre.append(code);
  figure.append(head, pre);
  return figure;
}
