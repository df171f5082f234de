// Requests to this root: its address, the key, errors in words, and event streams.

// Relative, so that the page also works at /k/KEY/ and behind a proxy that adds a path.
const BASE = new URL(".", document.baseURI);
const KEY = "hearth.key";

/** An answer of the root that is an error. `again`: seconds after which to repeat; null for never. */
export class ApiError extends Error {
  constructor(message, status, again) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

/** Address of a path at this root. */
export function address(path) {
  // A key that was entered counts, not one in the address.
  const base = key() ? BASE.href.replace(/\/k\/[^/]+\/$/, "/") : BASE.href;
  return new URL(path.replace(/^\//, ""), base).href;
}

// The key where the browser stores nothing.
let unstored = "";

/** The key that the person entered in this tab; "" for none. */
export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return unstored;
  }
}


/** Keep the key until the tab is closed. */
export function setKey(value) {
  unstored = value;
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // It is kept until the page is left.
  }
}

/** Response of a request. Throws ApiError, or AbortError when `signal` ends it. */
export async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key()) headers.authorization = `Bearer ${key()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The root does not answer. Is it running, and is this machine on its network?", 0, null);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let message = `The root answered with status ${response.status}.`;
  try {
    const { error } = await response.json();
    message = (typeof error === "string" ? error : error?.message) ?? message;
  } catch {
    // Not JSON: the status has to do.
  }
  const seconds = Number(response.headers.get("retry-after"));
  return new ApiError(sentence(message), response.status, seconds > 0 ? seconds : null);
}

/** A message of the root as a sentence. */
export function sentence(text) {
  const trimmed = String(text).trim();
  return trimmed ? trimmed[0].toUpperCase() + trimmed.slice(1) : "";
}

/** Yields [name, value] of a stream of server-sent events; value: its JSON, or the text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let name = "";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line.startsWith("event:")) name = line.slice(6).trim();
  }
  if (!data.length) return null;
  const text = data.join("\n");
  if (text === "[DONE]") return ["done", null];
  try {
    return [name, JSON.parse(text)];
  } catch {
    return [name, text];
  }
}
