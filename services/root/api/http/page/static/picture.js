// A picture of the cluster: the root, its workers, and the links between them.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { bytes, percent, span } from "./words.js";

const BOX = { width: 190, height: 104 };
const GAP = 26;

/** Where nodes stand: wide pictures have the root above its workers, narrow ones a column. */
function layout(nodes, narrow) {
  const workers = nodes.length - 1;
  if (narrow) {
    const step = BOX.height + 46;
    const places = nodes.map((_, index) => ({ x: index ? 46 : 10, y: 10 + index * step }));
    return { width: 256, height: 20 + nodes.length * step - 46, places };
  }
  const columns = Math.min(workers, 5) || 1;
  const rows = Math.ceil(workers / columns);
  const width = Math.max(560, columns * (BOX.width + GAP) + GAP);
  const places = [{ x: (width - BOX.width) / 2, y: 12 }];
  for (let index = 0; index < workers; index += 1) {
    const row = Math.floor(index / columns);
    const inRow = row === rows - 1 ? workers - row * columns : columns;
    const left = (width - inRow * (BOX.width + GAP) + GAP) / 2;
    places.push({
      x: left + (index % columns) * (BOX.width + GAP),
      y: 12 + BOX.height + 92 + row * (BOX.height + 60),
    });
  }
  const height = 24 + BOX.height + (rows ? 92 + rows * (BOX.height + 60) - 60 : 0);
  return { width, height, places };
}

/** The picture as markup. nodes: of the plan, then workers without a part (`outside: true`). */
export function pictureView(cluster, nodes, narrow) {
  if (!nodes.length) return nothing;
  const { width, height, places } = layout(nodes, narrow);
  const links = places.slice(1).map((place, index) => linkView(places[0], place, nodes[index + 1], narrow));
  const busy = (cluster.load?.tokensPerSecond ?? 0) > 0 ? "picture busy" : "picture";
  return html`<figure class=${busy}>
    <svg viewBox=${`0 0 ${width} ${height}`} width=${width} role="img" aria-labelledby="picture-title">
      <title id="picture-title">${description(nodes)}</title>
      ${links}
      ${nodes.map((node, index) => nodeView(cluster, node, places[index], index))}
    </svg>
  </figure>`;
}

function description(nodes) {
  const words = nodes.map((node) => `${nameOf(node)}: ${stateOf(node)}`);
  return `The root and ${nodes.length - 1} workers. ${words.join("; ")}`;
}

/** A node's name for people. */
export function nameOf(node) {
  return node.name || (node.address === "local" ? "root" : node.address);
}

/** A node's state in a word. */
export function stateOf(node) {
  if (node.state === "lost" && !node.name) return "absent";
  return node.state === "dialing" ? "connecting" : node.state;
}

function linkView(root, place, node, narrow) {
  const from = narrow
    ? { x: root.x + 18, y: root.y + BOX.height }
    : { x: root.x + BOX.width / 2, y: root.y + BOX.height };
  const to = narrow
    ? { x: place.x, y: place.y + BOX.height / 2 }
    : { x: place.x + BOX.width / 2, y: place.y };
  // The last part is straight: the latency stands on it.
  const bend = to.y - 36;
  const path = narrow
    ? `M${from.x} ${from.y}V${to.y}H${to.x}`
    : `M${from.x} ${from.y}C${from.x} ${bend} ${to.x} ${from.y} ${to.x} ${bend}V${to.y}`;
  const latency = node.round_trip_seconds > 0 ? span(node.round_trip_seconds) : "";
  const at = narrow ? { x: place.x + 8, y: place.y - 8, anchor: "start" } : { x: to.x, y: to.y - 13, anchor: "middle" };
  return svg`<g class=${`link ${node.outside ? "outside-plan" : node.state}`}>
    <path d=${path} />
    ${latency ? svg`<text x=${at.x} y=${at.y} text-anchor=${at.anchor}>${latency}</text>` : nothing}
  </g>`;
}

function nodeView(cluster, node, { x, y }, index) {
  const load = cluster.load ?? {};
  const sync = node.outside ? null : load.shares?.[index]?.sync;
  const pages = node.page_bytes * (load.pages_used ?? 0);
  const lines = [
    node.weight_bytes ? `${bytes(node.weight_bytes)} of weights` : "",
    pages ? `${bytes(pages)} of pages` : "",
    sync === null || sync === undefined ? "" : `${percent(sync)} of its time in syncs`,
  ].filter(Boolean);
  const state = stateOf(node);
  return svg`<g class=${`node ${node.outside ? "outside-plan" : ""} ${node.state}`}
      transform=${`translate(${x} ${y})`}>
    <rect width=${BOX.width} height=${BOX.height} rx="14" />
    <circle cx="18" cy="20" r="5.5" />
    <text class="name" x="32" y="25">${short(nameOf(node), 17)}</text>
    ${index === 0 ? svg`<text class="tag" x=${BOX.width - 12} y="25" text-anchor="end">root</text>` : nothing}
    ${lines.map((line, number) => svg`<text class="line" x="14" y=${46 + number * 17}>${line}</text>`)}
    ${lines.length ? nothing : svg`<text class="line" x="14" y="46">${short(wordOf(node, state), 25)}</text>`}
    ${node.state === "serving" || node.outside ? memoryView(node, pages) : svg`<text class="state" x="14" y="94">${loading(node, state)}</text>`}
  </g>`;
}

function wordOf(node, state) {
  return node.outside ? `${state}, without a part` : state;
}

function loading(node, state) {
  if (node.state !== "loading" || !node.weight_bytes) return state;
  return `loading ${percent(node.weight_bytes_loaded / node.weight_bytes)}`;
}

/** The memory of a machine: weights, then pages, of all that it has. */
function memoryView(node, pages) {
  if (!node.memory_total_bytes) return nothing;
  const width = BOX.width - 28;
  const part = (count) => Math.min(width, (width * count) / node.memory_total_bytes);
  const weights = Math.max(2, part(node.weight_bytes));
  return svg`<g class="memory" transform="translate(14 88)">
    <title>${`${bytes(node.weight_bytes + pages)} of ${bytes(node.memory_total_bytes)} of memory`}</title>
    <rect class="all" width=${width} height="6" rx="3" />
    <rect class="weights" width=${weights} height="6" rx="3" />
    <rect class="pages" x=${weights} width=${Math.min(width - weights, part(pages))} height="6" rx="3" />
  </g>`;
}

function short(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}
