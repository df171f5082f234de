// Conversations and settings in this browser: IndexedDB and localStorage. The root keeps nothing.

import { merge } from "./conversation.js";

const NAME = "hearth";
const TABLE = "conversations";

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open(NAME, 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(TABLE, { keyPath: "id" });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opening;
}

async function transact(mode, use) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(TABLE, mode);
    const asked = use(transaction.objectStore(TABLE));
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

// Conversations that this tab read or wrote. One of them that is no longer there was deleted.
const known = new Set();
const channel = new BroadcastChannel(`${NAME}.${TABLE}`);

/** All conversations. */
export async function all() {
  const found = await transact("readonly", (table) => table.getAll());
  for (const each of found) known.add(each.id);
  return found;
}

/** A conversation; undefined where it is not kept. */
export const get = (id) => transact("readonly", (table) => table.get(id));

/** Write a conversation with what other tabs wrote of it; the whole, or null where one deleted it. */
export async function put(conversation) {
  const database = await open();
  const whole = await new Promise((resolve, reject) => {
    const transaction = database.transaction(TABLE, "readwrite");
    const table = transaction.objectStore(TABLE);
    let made = null;
    const asked = table.get(conversation.id);
    asked.onsuccess = () => {
      if (!asked.result && known.has(conversation.id)) return;
      made = structuredClone(conversation);
      if (asked.result) merge(made, asked.result);
      table.put(made);
    };
    transaction.oncomplete = () => resolve(made);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
  known.add(conversation.id);
  channel.postMessage(conversation.id);
  return whole;
}

/** Delete a conversation. */
export async function remove(id) {
  await transact("readwrite", (table) => table.delete(id));
  channel.postMessage(id);
}

/** Call back with the id of each conversation that another tab writes or deletes. */
export function onOthers(callback) {
  channel.onmessage = (event) => {
    known.add(event.data);
    callback(event.data);
  };
}

/** A small value by name; `otherwise` where the browser has none. */
export function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`hearth.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keep a small value. */
export function keep(name, value) {
  try {
    localStorage.setItem(`hearth.${name}`, JSON.stringify(value));
  } catch {
    // A full or forbidden store: the value lasts until the page is left.
  }
}
