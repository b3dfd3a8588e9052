// The host's list of adapter files, asked for once by all nodes together.

import { adapterList } from "./api.js";

/** @type {Promise<string[]> | null} */
let names = null;
/** @type {Set<() => void>} */
const listeners = new Set();

/**
 * Returns the names of all files.
 *
 * @returns {Promise<string[]>}
 */
export function adapterNames() {
  names ??= adapterList().catch((error) => {
    names = null; // the next one asks again
    throw error;
  });
  return names;
}

/** Makes the list be asked for again, since files may have come or gone. */
export function forgetAdapterNames() {
  names = null;
  for (const listener of listeners) listener();
}

/**
 * Calls `listener` whenever the list may have changed; returns what ends this.
 *
 * @param {() => void} listener
 */
export function onAdapterNames(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
