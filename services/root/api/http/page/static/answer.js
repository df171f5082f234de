// Answers: a request, its stream, and the message that grows by it.

import { ApiError, events, request, sentence } from "./api.js";
import { add, merge, prompt, until } from "./conversation.js";
import { fields } from "./settings.js";
import { changed, signals, state } from "./state.js";
import * as store from "./store.js";

const SAVE_MILLISECONDS = 1000;
const STORY_TOKENS = 256;
const LOST = "The connection to the root was lost before the answer was complete.";

/** Make an answer after the message `parent`. Resolves when it has ended, however it did. */
export async function answer(conversation, parent) {
  const message = add(conversation, parent, { role: "assistant", reasoning: "", state: "running" });
  const run = {
    message,
    controller: new AbortController(),
    // "sent", "waiting" (the cluster is not ready), "reading" (the prompt), "writing".
    phase: "sent",
    why: "",
    progress: null,
    began: performance.now(),
    first: 0,
    saved: performance.now(),
  };
  state.running.set(message.id, run);
  changed();
  try {
    await write(conversation, run);
    message.state = "done";
  } catch (error) {
    if (error.name === "AbortError") message.state = "stopped";
    else fail(message, error);
  } finally {
    state.running.delete(message.id);
    conversation.changed = Date.now();
    if (state.conversations.has(conversation.id)) await save(conversation);
    changed();
  }
}

/** Stop an answer; its text so far stays. */
export function stop(id) {
  state.running.get(id)?.controller.abort();
}

/** Stop everything that runs in a conversation; true if something did. */
export function stopAll(conversation) {
  const runs = Object.keys(conversation?.messages ?? {}).filter((id) => state.running.has(id));
  runs.forEach(stop);
  return runs.length > 0;
}

/** Write a conversation to the browser's store. */
export async function save(conversation) {
  state.conversations.set(conversation.id, conversation);
  try {
    const whole = await store.put(conversation);
    if (whole) merge(conversation, whole, (id) => state.running.has(id));
  } catch (error) {
    console.warn("the conversation is not kept:", error);
  }
}

async function write(conversation, run) {
  const { message } = run;
  const [path, body] = requestOf(conversation, message);
  const response = await opened(path, body, run);
  let finish = null;
  for await (const [name, chunk] of events(response)) {
    if (name === "done") continue;
    if (chunk?.error) throw new ApiError(sentence(chunk.error.message ?? chunk.error), 200, null);
    if (chunk?.prompt_progress) read(run, chunk.prompt_progress);
    const choice = chunk?.choices?.[0];
    if (choice) grow(run, choice);
    finish = choice?.finish_reason ?? finish;
    if (chunk?.usage) message.usage = chunk.usage;
    if (chunk?.timings) message.timings = chunk.timings;
    if (performance.now() - run.saved > SAVE_MILLISECONDS) {
      run.saved = performance.now();
      save(conversation);
    }
    changed();
  }
  if (!finish) throw new ApiError(LOST, 0, null);
  message.finish = finish;
  message.seconds = (performance.now() - run.began) / 1000;
  message.firstSeconds = run.first;
}

function requestOf(conversation, message) {
  const before = until(conversation, message.parent);
  const stream = { stream: true, stream_options: { include_usage: true }, return_progress: true };
  if (conversation.story) {
    const text = before.map((each) => each.text).join("");
    // Without max_tokens a completion has 16.
    return ["v1/completions", { max_tokens: STORY_TOKENS, ...stream, ...fields(), prompt: text }];
  }
  // A failed or empty answer is not a part of what was said.
  const said = before.filter((each) => each.role === "user" || each.text);
  const messages = said.map((each) => ({ role: each.role, content: prompt(each) }));
  if (state.settings.system) messages.unshift({ role: "system", content: state.settings.system });
  return ["v1/chat/completions", { ...stream, ...fields(), messages }];
}

/** The response, once the cluster is ready and has a place. */
async function opened(path, body, run) {
  const { signal } = run.controller;
  for (;;) {
    try {
      const response = await request(path, { body, signal });
      run.phase = "reading";
      run.request = response.headers.get("x-request-id");
      run.why = "";
      changed();
      return response;
    } catch (error) {
      if (!(error instanceof ApiError) || error.again === null) throw error;
      run.phase = "waiting";
      run.why = error.message;
      changed();
      await pause(error.again, signal);
    }
  }
}

/** Wait for some seconds, or until the cluster becomes ready. Throws AbortError. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      signals.removeEventListener("serving", end);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(end, signal.aborted ? 0 : seconds * 1000);
    signal.addEventListener("abort", end);
    signals.addEventListener("serving", end);
  });
}

function read(run, { processed, total, cache }) {
  if (run.phase === "writing" || !(total > 0)) return;
  run.progress = { position: Math.min(processed, total), total, cached: cache ?? 0 };
}

function grow(run, choice) {
  const { message } = run;
  const delta = choice.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  const text = delta.content ?? choice.text ?? "";
  if (!thought && !text) return;
  if (run.phase !== "writing") {
    run.phase = "writing";
    run.first = (performance.now() - run.began) / 1000;
  }
  if (thought) message.reasoning += thought;
  if (text) {
    if (message.reasoning && !message.text) message.thoughtSeconds = (performance.now() - run.began) / 1000;
    message.text += text;
  }
}

function fail(message, error) {
  message.state = "failed";
  message.error = error instanceof ApiError ? error.message : LOST;
  message.unauthorized = error instanceof ApiError && error.status === 401;
  if (!(error instanceof ApiError)) console.warn("an answer failed:", error);
}
