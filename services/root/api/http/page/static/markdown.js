// Markdown of a model as DOM. Untrusted: its HTML is shown as text, and images are not loaded. After
// that only a few elements and attributes pass DOMPurify.

import { marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import { codeBlock } from "./code.js";

const purify = globalThis.DOMPurify;

const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "code", "ul", "ol", "li"],
    ...["strong", "em", "b", "i", "s", "del", "sub", "sup", "kbd", "a"],
    ...["table", "thead", "tbody", "tr", "th", "td", "details", "summary"],
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start", "open"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

// Tags that pass as they are written, without attributes. Any other tag is shown as text.
const PLAIN_TAG = /^<\/?(?:br|sub|sup|kbd|b|i|s|del|strong|em|details|summary)\s*\/?>$/i;

const renderer = {
  html({ text }) {
    return text.replace(/<[^>]*>|[^<]+|</g, (part) => (PLAIN_TAG.test(part) ? part : escaped(part)));
  },
  text(token) {
    // After <pre>, <code>, <kbd> or <script> marked would pass what follows as it is.
    return token.escaped && !token.tokens ? escaped(token.text) : false;
  },
  // An image of another site would report that this text was read. Its address is shown instead.
  image({ href, text }) {
    const shown = escaped(text || href);
    return `<a href="${escaped(href)}" title="Image, not loaded">${shown}</a>`;
  },
};
marked.use({ gfm: true, breaks: true, renderer });

function escaped(text) {
  const entities = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (letter) => entities[letter]);
}

/** An element that shows a growing text: finished blocks stay as they are. */
export class Rendered {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "markdown";
    this.text = null;
    this.blocks = [];
    // Addresses that stand elsewhere in the text: "[name]: https://...".
    this.links = "{}";
  }

  /** Show `text`. */
  show(text) {
    if (text === this.text) return this.element;
    this.text = text;
    const all = marked.lexer(text);
    const links = JSON.stringify(all.links);
    if (links !== this.links) {
      this.links = links;
      for (const block of this.blocks.splice(0)) block.element.remove();
    }
    const tokens = all.filter((token) => !["space", "def"].includes(token.type));
    tokens.forEach((token, index) => {
      const old = this.blocks[index];
      if (old?.raw === token.raw) return;
      const made = block(token);
      if (old) old.element.replaceWith(made);
      else this.element.append(made);
      this.blocks[index] = { raw: token.raw, element: made };
    });
    for (const gone of this.blocks.splice(tokens.length)) gone.element.remove();
    return this.element;
  }
}

function block(token) {
  const made = document.createElement("div");
  made.className = "block";
  if (token.type === "code") {
    made.append(codeBlock(token.text, token.lang ?? ""));
    return made;
  }
  made.append(purify.sanitize(marked.parser([token]), ALLOWED));
  for (const link of made.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const pre of made.querySelectorAll("pre")) {
    pre.replaceWith(codeBlock(pre.textContent.replace(/\n$/, ""), ""));
  }
  for (const table of made.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  return made;
}
