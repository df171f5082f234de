// The cluster: its state in words, the picture, its load, its machines, and what has happened.

import { html, nothing } from "./vendor/lit-html.js";
import { repeat } from "./vendor/directives/repeat.js";
import { ApiError, request } from "./api.js";
import { agreed, askKey } from "./dialogs.js";
import { nameOf, pictureView, stateOf } from "./picture.js";
import { changed, notify, state } from "./state.js";
import { bytes, clock, counted, digits, percent, span, whole } from "./words.js";

const NARROW = matchMedia("(max-width: 700px)");
NARROW.addEventListener("change", changed);

const TITLES = { serving: "Ready", forming: "Forming", degraded: "Paused" };
// Addresses that are being drained or let in.
const moving = new Set();

/** The view as markup. */
export function clusterView() {
  const { cluster } = state;
  if (!cluster) return html`<section class="view"><h1>Cluster</h1><p>Waiting for the root.</p></section>`;
  const nodes = withOutsiders(cluster);
  return html`<section class="view">
    <h1><span class=${`lamp ${cluster.state}`}></span> ${TITLES[cluster.state] ?? cluster.state}</h1>
    <p class="lead" role="status">${cluster.words}</p>
    ${pictureView(cluster, nodes, NARROW.matches)}
    ${loadView(cluster)}
    <h2>Machines</h2>
    <div class="table" tabindex="0" role="region" aria-label="Machines">${machinesView(cluster, nodes)}</div>
    <h2>What has happened</h2>
    ${eventsView(cluster)}
    ${cluster.notes.length
      ? html`<h2>Notes</h2><ul>${cluster.notes.map((note) => html`<li>${note}</li>`)}</ul>`
      : nothing}
  </section>`;
}

/** The plan's nodes, then workers that have no part of the model. */
function withOutsiders({ nodes, peers }) {
  const known = new Set(nodes.map((node) => node.address));
  const outside = peers
    .filter((peer) => !known.has(peer.address))
    .map((peer) => ({ ...peer, outside: true, weight_bytes: 0, page_bytes: 0 }));
  return [...nodes, ...outside];
}

function loadView({ load, model, nodes, lane, sync_type, epoch, mesh }) {
  if (!load) return nothing;
  const all = load.pages_used + load.pages_free;
  const figure = (label, value, more = nothing, wide = false) => html`<div class=${wide ? "double" : ""}><dt>${label}</dt><dd>${value}${more}</dd></div>`;
  const weights = nodes.reduce((sum, node) => sum + node.weight_bytes, 0);
  return html`<dl class="figures-grid">
    ${figure("Speed", `${digits(load.tokensPerSecond ?? 0)} tokens/s`)}
    ${figure("Prompts", `${digits(load.promptPerSecond ?? 0)} tokens/s`)}
    ${figure("Answers", `${whole(load.running)} running`, load.waiting ? `, ${whole(load.waiting)} waiting` : nothing)}
    ${figure(
      "KV cache",
      all ? `${percent(load.pages_used / all)} of ${counted(all, "page")}` : "no pages yet",
      all ? html`<meter min="0" max=${all} .value=${load.pages_used} aria-label="Pages used"></meter>` : nothing,
    )}
    ${figure("Model", model.name, html`<small>${bytes(weights)}, ${model.weight_type}, ${counted(model.layers, "layer")}</small>`, true)}
    ${figure("Context", `${whole(model.context_size)} tokens`)}
    ${nodes.length > 1
      ? figure(
          "Network",
          mesh ? `${span(mesh.latency_seconds)}, ${bytes(mesh.bytes_per_second)}/s` : `${lane} lane`,
          html`<small>slowest link of the ${lane}; syncs in ${sync_type}; plan ${epoch}</small>`,
          true,
        )
      : nothing}
  </dl>`;
}

function machinesView(cluster, nodes) {
  const total = Math.max(1, cluster.nodes.reduce((sum, node) => sum + node.weight_bytes, 0));
  const head = ["Machine", "State", "Weights", "Memory", "Time in syncs", "Threads", "Kernels", ""];
  return html`<table class="machines">
    <thead><tr>${head.map((name) => (name ? html`<th scope="col">${name}</th>` : html`<td></td>`))}</tr></thead>
    <tbody>${repeat(nodes, (node) => node.address, (node, index) => machineView(cluster, node, index, total))}</tbody>
  </table>`;
}

function machineView(cluster, node, index, total) {
  const sync = node.outside ? null : cluster.load?.shares?.[index]?.sync;
  const peer = cluster.peers.find((each) => each.address === node.address);
  return html`<tr>
    <th scope="row">${nameOf(node)} <small>${node.address === "local" ? "the root" : node.address}</small></th>
    <td><span class=${`lamp ${node.state}`}></span> ${stateOf(node)}
      ${node.reason || peer?.reason ? html`<small>${node.reason || peer.reason}</small>` : nothing}</td>
    <td>${node.weight_bytes ? html`${bytes(node.weight_bytes)} <small>${percent(node.weight_bytes / total)}</small>` : "–"}
      ${origin(node)}</td>
    <td>${node.memory_total_bytes
      ? html`${bytes(node.memory_available_bytes)} free <small>of ${bytes(node.memory_total_bytes)}</small>`
      : "–"}</td>
    <td>${sync === null || sync === undefined ? "–" : percent(sync)}</td>
    <td>${node.threads ? `${node.threads} of ${node.cores}` : "–"}</td>
    <td>${node.instruction_set || "–"}</td>
    <td>${node.address === "local" ? nothing : drainView(peer ?? node)}</td>
  </tr>`;
}

function origin({ weight_bytes_from_cache: cached, weight_bytes_from_network: sent }) {
  if (!cached && !sent) return nothing;
  const parts = [cached && `${bytes(cached)} from its cache`, sent && `${bytes(sent)} over the network`];
  return html`<small>${parts.filter(Boolean).join(", ")}</small>`;
}

function drainView(peer) {
  const undo = peer.state === "drained";
  if (!undo && !["in", "ready"].includes(peer.state)) return nothing;
  const busy = moving.has(peer.address);
  const label = undo ? "Let in" : "Drain";
  return html`<button type="button" ?disabled=${busy} aria-label=${`${label} ${nameOf(peer)}`}
    @click=${() => drain(peer, undo)}>${busy ? "Working…" : label}</button>`;
}

/** Take a worker out, or let it in again; answered when the cluster is ready so. */
async function drain(peer, undo) {
  const name = nameOf(peer);
  const text = `The model is divided over the others. Answers pause for that, and go on; none fails.`;
  if (!undo && !(await agreed(`Take ${name} out?`, text, "Drain"))) return;
  moving.add(peer.address);
  changed();
  try {
    await request("cluster/drain", { body: { worker: peer.address, undo } });
    notify(undo ? `${name} is in again` : `${name} is out`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 || error.status === 403) {
      notify(error.message);
      if (await askKey()) drain(peer, undo);
    } else {
      notify(error.message);
    }
  } finally {
    moving.delete(peer.address);
    changed();
  }
}

function eventsView({ events }) {
  if (!events.length) return html`<p>Nothing yet.</p>`;
  const latest = events.toReversed();
  return html`<ol class="events">${repeat(
    latest,
    (event) => `${event.seconds} ${event.text}`,
    ({ seconds, kind, text }) => html`<li class=${kind}><time datetime=${new Date(seconds * 1000).toISOString()}>
      ${clock(seconds * 1000)}</time><span>${text}</span></li>`,
  )}</ol>`;
}
