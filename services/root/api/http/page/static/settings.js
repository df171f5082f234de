// Settings of answers, kept in this browser. An empty field leaves the choice to the root.

import { keep, load } from "./store.js";
import { changed, state } from "./state.js";

// [name in a request, least, most, whole numbers only]
export const NUMBERS = [
  ["temperature", 0, 100, false],
  ["top_p", 0, 1, false],
  ["max_tokens", 1, 1e9, true],
  ["seed", -Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, true],
];

/** Read the settings that this browser keeps. */
export function restore() {
  const kept = load("settings", {});
  state.settings = { system: typeof kept.system === "string" ? kept.system : "" };
  if (typeof kept.model === "string") state.settings.model = kept.model;
  for (const [name, least, most] of NUMBERS) {
    const value = kept[name];
    if (typeof value === "number" && value >= least && value <= most) state.settings[name] = value;
  }
}

/** Use and keep new settings. */
export function change(settings) {
  state.settings = settings;
  keep("settings", settings);
  changed();
}

/** The fields of a request that the settings give. */
export function fields() {
  const found = {};
  if (state.models.length > 1 && state.models.includes(state.settings.model)) found.model = state.settings.model;
  for (const [name] of NUMBERS) {
    if (state.settings[name] !== undefined) found[name] = state.settings[name];
  }
  return found;
}

/** The theme that is shown: "light" or "dark". */
export function theme() {
  const chosen = document.documentElement.dataset.theme;
  if (chosen) return chosen;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Show the other theme, and keep that choice. */
export function switchTheme() {
  const other = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = other;
  try {
    localStorage.setItem("hearth.theme", other); // plain text: theme.js reads it
  } catch {
    // It lasts until the page is left.
  }
  changed();
}
