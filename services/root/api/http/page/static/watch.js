// The cluster as it changes: one event stream while the page is visible.

import { ApiError, events, request, sentence } from "./api.js";
import { changed, signals, state } from "./state.js";

const AGAIN_MILLISECONDS = 3000;
// Seconds over which rates are averaged.
const WINDOW = 5;
// Silence after which nothing is computed.
const REST_MILLISECONDS = 3000;

let watching = null;
let resting = 0;

/** Follow the cluster until the page is hidden; again when it is shown. */
export function watch() {
  watching?.abort();
  const controller = (watching = new AbortController());
  follow(controller.signal);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) watching?.abort();
  else watch();
});

signals.addEventListener("key", watch);

async function follow(signal) {
  while (!signal.aborted) {
    try {
      const response = await request("cluster/events", { signal });
      state.offline = state.locked = false;
      listModels(signal);
      for await (const [name, value] of events(response)) take(name, value);
    } catch (error) {
      if (signal.aborted) return;
      state.locked = error instanceof ApiError && error.status === 401;
      state.offline = !state.locked;
      changed();
      if (state.locked) return;
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MILLISECONDS));
  }
}

/** The models that a conversation can choose from. */
async function listModels(signal) {
  try {
    const { data } = await (await request("v1/models", { signal })).json();
    state.models = data.map((model) => model.id);
    changed();
  } catch (error) {
    if (!signal.aborted) console.warn("the models cannot be listed:", error);
  }
}

function take(name, value) {
  if (name === "load") load(value);
  else if (name === "cluster") cluster(value);
  changed();
}

function cluster(value) {
  const was = state.cluster?.state;
  const { load: now, ...rest } = value;
  state.cluster = { ...rest, words: words(rest) };
  load(now);
  if (was !== "serving" && value.state === "serving") signals.dispatchEvent(new Event("serving"));
}

/** The state of a cluster as a sentence. */
function words({ state: now, reason, nodes }) {
  if (now === "serving" && !nodes.length) return "No model is in memory; the next request loads one.";
  if (now === "serving") return nodes.length === 1 ? "The root runs the model alone." : `${nodes.length} machines run the model together.`;
  return sentence(reason || "the cluster is not ready").replace(/([^.!?])$/, "$1.");
}

function load(value) {
  if (state.cluster === null) return;
  // A root that was restarted counts from 0 again.
  const goesOn = (each) => each.seconds <= value.seconds && value.seconds - each.seconds <= 2 * WINDOW;
  state.history = [...state.history.filter(goesOn), value];
  state.cluster.load = { ...value, ...rates(state.history) };
  // Loads come while they differ; after that nothing happens.
  clearTimeout(resting);
  resting = setTimeout(rest, REST_MILLISECONDS);
}

function rest() {
  Object.assign(state.cluster.load, { tokensPerSecond: 0, promptPerSecond: 0 });
  changed();
}

/** Rates over the last seconds, from counters that only grow. */
function rates(history) {
  const last = history.at(-1);
  const first = history.find((each) => last.seconds - each.seconds <= WINDOW) ?? last;
  const seconds = last.seconds - first.seconds;
  const per = (name) => (seconds > 0 ? Math.max(0, last[name] - first[name]) / seconds : 0);
  const nodes = last.nodes.map((node, index) => {
    const before = first.nodes[index];
    if (!before || before.name !== node.name) return { sync: null };
    const compute = node.compute_seconds - before.compute_seconds;
    const sync = node.sync_seconds - before.sync_seconds;
    return { sync: compute + sync > 0 ? sync / (compute + sync) : null };
  });
  return { tokensPerSecond: per("completion_tokens"), promptPerSecond: per("prompt_tokens"), shares: nodes };
}
