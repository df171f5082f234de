// Conversations as trees of messages: editing or repeating makes a branch beside the old one. No I/O.
//
// conversation: { id, title, named, made, changed, messages: {id: message}, chosen: {parent: id} }
// renamed: when the person named it.
// message: { id, parent, role, text, reasoning, files, state, error, ... }; the parent of the first is "".
// chosen: of each parent, the branch that is shown.

const TITLE_LENGTH = 48;

export function newId() {
  // randomUUID needs a secure page, which http://192.168... is not.
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

/** An empty conversation. story: texts that follow each other, for a model without a chat template. */
export function create(story = false) {
  const now = Date.now();
  return { id: newId(), title: "", named: false, story, made: now, changed: now, messages: {}, chosen: {} };
}

/** Branches after a message, oldest first; parent "" for first messages. */
export function branches(conversation, parent) {
  return Object.values(conversation.messages)
    .filter((message) => message.parent === parent)
    .sort((a, b) => a.made - b.made || (a.id < b.id ? -1 : 1));
}

/** The messages that are shown, in order. */
export function path(conversation) {
  const children = Map.groupBy?.(Object.values(conversation.messages), (each) => each.parent);
  const found = [];
  let parent = "";
  for (;;) {
    const siblings = children ? (children.get(parent) ?? []) : branches(conversation, parent);
    if (!siblings.length) return found;
    const chosen = conversation.messages[conversation.chosen[parent]];
    const next = chosen?.parent === parent ? chosen : siblings.at(-1);
    found.push(next);
    parent = next.id;
  }
}

/** Add a message after `parent` and show it. */
export function add(conversation, parent, fields) {
  const made = Math.max(Date.now(), ...branches(conversation, parent).map((each) => each.made + 1));
  const message = { id: newId(), parent, made, role: "user", text: "", state: "done", ...fields };
  conversation.messages[message.id] = message;
  conversation.chosen[parent] = message.id;
  conversation.changed = Date.now();
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message);
  return message;
}

/** Show the branch beside that of `message`, `step` further on. */
export function turn(conversation, message, step) {
  const all = branches(conversation, message.parent);
  const index = all.findIndex((each) => each.id === message.id) + step;
  if (all[index]) conversation.chosen[message.parent] = all[index].id;
}

/** Messages from the first to `id`, which "" is none of. */
export function until(conversation, id) {
  const found = [];
  for (let at = conversation.messages[id]; at; at = conversation.messages[at.parent]) found.unshift(at);
  return found;
}

const STATES = ["running", "stopped", "failed", "done"];

/** Take in what another tab made of the same conversation. mine: true for the id of an answer that runs here. */
export function merge(conversation, other, mine = () => false) {
  for (const message of Object.values(other.messages)) {
    const own = conversation.messages[message.id];
    if (!own) conversation.messages[message.id] = message;
    else if (!mine(message.id) && further(message, own) > 0) Object.assign(own, message);
  }
  conversation.chosen = { ...other.chosen, ...conversation.chosen };
  if ((other.renamed ?? 0) > (conversation.renamed ?? 0)) {
    const { title, named, renamed } = other;
    Object.assign(conversation, { title, named, renamed });
  }
  conversation.title ||= other.title;
  conversation.changed = Math.max(conversation.changed, other.changed);
}

/** How much further a message is than another state of it: answers grow until they end. */
function further(message, other) {
  const size = (each) => each.text.length + (each.reasoning ?? "").length;
  return size(message) - size(other) || STATES.indexOf(message.state) - STATES.indexOf(other.state);
}

function titleOf(message) {
  const text = message.text.replace(/\s+/g, " ").trim() || message.files?.[0]?.name || "";
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH).trimEnd()}…` : text;
}

/** [reasoning, answer] of a message, also of a model that writes its reasoning into the text. */
export function parts(message) {
  if (message.role !== "assistant" || message.reasoning) return [message.reasoning ?? "", message.text];
  const found = /^\s*<think>([\s\S]*?)(?:<\/think>\s*|$)/.exec(message.text);
  return found ? [found[1].trim(), message.text.slice(found[0].length)] : ["", message.text];
}

/** The text of a message as the model gets it: attached files first. */
export function prompt(message) {
  const files = (message.files ?? []).map((file) => `File ${file.name}:\n${fenced(file.text)}\n`);
  return [...files, parts(message)[1]].join("\n");
}

function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

/** The shown messages as Markdown, for a file. */
export function markdown(conversation) {
  if (conversation.story) return path(conversation).map((each) => each.text).join("");
  const names = { user: "You", assistant: "Model" };
  const parts = path(conversation).map((each) => `## ${names[each.role]}\n\n${prompt(each)}`);
  return `# ${conversation.title}\n\n${parts.join("\n\n")}\n`;
}

/** A conversation out of a file. Throws an Error in words for anything else. */
export function read(value) {
  const object = (each) => typeof each === "object" && each !== null && !Array.isArray(each);
  if (!object(value) || !object(value.messages)) throw new Error("it holds no conversation of this page");
  const made = create(Boolean(value.story));
  made.title = String(value.title ?? "").slice(0, 200);
  made.named = true;
  for (const [id, message] of Object.entries(value.messages)) {
    if (!/^[0-9a-z]{1,64}$/.test(id)) throw new Error("a message has no id of this page");
    if (!object(message) || typeof message.text !== "string") throw new Error("a message has no text");
    made.messages[id] = {
      id,
      parent: String(message.parent ?? ""),
      made: Number(message.made) || made.made,
      role: message.role === "assistant" ? "assistant" : "user",
      text: message.text,
      reasoning: typeof message.reasoning === "string" ? message.reasoning : "",
      files: (Array.isArray(message.files) ? message.files : [])
        .filter((file) => object(file))
        .map((file) => ({ name: String(file.name), text: String(file.text) })),
      state: "done",
    };
  }
  checkEnds(made.messages);
  if (object(value.chosen)) {
    for (const [parent, id] of Object.entries(value.chosen)) {
      if (made.messages[id]?.parent === parent) made.chosen[parent] = id;
    }
  }
  return made;
}

/** Every message leads to a first one. */
function checkEnds(messages) {
  const good = new Set([""]);
  for (const message of Object.values(messages)) {
    const seen = new Set();
    for (let at = message; !good.has(at.id); at = messages[at.parent]) {
      if (seen.has(at.id) || (at.parent && !messages[at.parent])) throw new Error("its messages lead nowhere");
      seen.add(at.id);
      if (!at.parent) break;
    }
    for (const id of seen) good.add(id);
  }
}
