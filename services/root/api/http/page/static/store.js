// Conversations and settings in this browser: IndexedDB and localStorage. The root keeps nothing.

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

/** All conversations. */
export const all = () => transact("readonly", (table) => table.getAll());

/** Write a conversation. */
export const put = (conversation) => transact("readwrite", (table) => table.put(conversation));

/** Delete a conversation. */
export const remove = (id) => transact("readwrite", (table) => table.delete(id));

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
