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
  const answer = await api.fetchApi(`/anyadapter/schedule?${new URLSearchParams(widgets)}`);
  if (answer.headers.get("Content-Type")?.startsWith("application/json") !== true) {
    throw new Error(`The server cannot draw this: ${answer.status} ${answer.statusText}`);
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}
