// The page's state, and when to draw it again.

export const state = {
  // "chat", "cluster" or "connect".
  view: "chat",
  // GET /cluster; null before the first answer.
  cluster: null,
  // Names of the models that the root serves.
  models: [],
  // True while the root does not answer.
  offline: false,
  // True while the root wants a key.
  locked: false,
  // Loads of the last seconds, for rates.
  history: [],
  // Conversations by id, and the one that is shown; null for a new one.
  conversations: new Map(),
  conversation: null,
  // Message id -> a running answer (answer.js).
  running: new Map(),
  search: "",
  sidebar: false,
  // Message id that is being edited.
  editing: null,
  files: [],
  notice: "",
  settings: {},
};

/** "serving": the cluster has become ready; "key": the person entered another key. */
export const signals = new EventTarget();

let draw = () => {};
let asked = false;

/** Set the function that draws the page. */
export function onDraw(callback) {
  draw = callback;
}

/** Draw the page again, once, before the next frame. */
export function changed() {
  if (asked) return;
  asked = true;
  // A hidden tab has no frames; it is drawn when it is shown.
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
}

/** Show a short text for a few seconds, also to screen readers. */
export function notify(text) {
  state.notice = text;
  changed();
  setTimeout(() => {
    if (state.notice !== text) return;
    state.notice = "";
    changed();
  }, 4000);
}
