// The routes of the pack, one function each.

import { api } from "../../scripts/api.js";

/**
 * @typedef {object} Curve
 * @property {[progress: number, value: number][]} points To be joined by straight lines.
 * @property {number} low The smallest value.
 * @property {number} high The largest value.
 */

/**
 * Returns the curve that the widgets of an Adapter Schedule describe; throws what is wrong in them.
 *
 * @param {Record<string, string>} widgets Their values by name.
 * @returns {Promise<Curve>}
 */
export async function scheduleCurve(widgets) {
  return await get("schedule", widgets);
}

/**
 * Asks a route and returns its JSON; throws the sentence that says what is wrong.
 *
 * @param {string} route Below `/anyadapter/`.
 * @param {Record<string, string>} [query]
 */
async function get(route, query = {}) {
  return await content(await api.fetchApi(`/anyadapter/${route}?${new URLSearchParams(query)}`));
}

/** @param {Response} answer */
async function content(answer) {
  if (answer.headers.get("Content-Type")?.startsWith("application/json") !== true) {
    throw new Error(`The server cannot do this: ${answer.status} ${answer.statusText}`);
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}
