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
 * @typedef {object} Part
 * @property {string} name `attn1.q`, say.
 * @property {boolean} touched Whether the file changes it.
 * @property {number | null} energy The norm of its change; null where it is not known.
 */

/**
 * @typedef {object} Block
 * @property {string} name
 * @property {boolean} touched
 * @property {number | null} energy
 * @property {Part[]} parts
 */

/**
 * @typedef {object} Group
 * @property {string} name
 * @property {string} title
 * @property {"model" | "clip"} part
 * @property {Block[]} blocks
 */

/**
 * @typedef {object} Layout
 * @property {string | null} family Of the model that the file was made for.
 * @property {Group[]} groups In the model's order.
 */

/**
 * Returns the blocks of the model that a file was made for, with what the file changes in each.
 *
 * @param {string} adapter Name of the file.
 * @returns {Promise<Layout>}
 */
export async function blocks(adapter) {
  return await get("blocks", { adapter });
}

/**
 * @typedef {object} BlockWeights
 * @property {Record<string, number>} values By the name of every block.
 * @property {Record<string, number>} parts `IN04.attn2.q` and so on, where they differ from their block.
 * @property {string[]} layers Items of the text that speak of single layers.
 * @property {string[]} notes What of the text has no meaning for the file.
 */

/**
 * Returns what a text of block weights means for a file; throws what is wrong in it.
 *
 * @param {string} adapter Name of the file.
 * @param {string} text
 * @param {number} seed Of random weights.
 * @returns {Promise<BlockWeights>}
 */
export async function blockWeights(adapter, text, seed) {
  return await get("block_weights", { adapter, text, seed: String(seed) });
}

/**
 * @typedef {object} Preset
 * @property {string} name
 * @property {string} text Block weights.
 * @property {boolean} own Whether it is the user's, who may delete it.
 */

/**
 * Returns the presets of block weights: those of the pack that mean something for a file, or all of
 * them, and the user's. An error says why the user's cannot be read.
 *
 * @param {string} [adapter] Name of the file.
 * @returns {Promise<{presets: Preset[], error?: string}>}
 */
export async function presets(adapter = "") {
  return await get("presets", { adapter });
}

/**
 * Saves a preset of the user's and returns its name as it is stored; throws an error with the status
 * 409 if there is one of that name and it is not to be replaced.
 *
 * @param {string} name
 * @param {string} text Block weights.
 * @param {boolean} [replace]
 * @returns {Promise<{name: string}>}
 */
export async function savePreset(name, text, replace = false) {
  return await send("POST", "presets", { name, text, replace });
}

/**
 * Deletes a preset of the user's.
 *
 * @param {string} name
 */
export async function deletePreset(name) {
  await send("DELETE", `presets?${new URLSearchParams({ name })}`);
}

/**
 * Returns all presets of the user's as the text of a file.
 *
 * @returns {Promise<string>}
 */
export async function exportPresets() {
  return JSON.stringify(await get("presets/export"), null, 2);
}

/**
 * Saves the presets of a file, of ours or of those that other tools have, and returns the names of
 * those that were saved, of those that were there before with other weights, and why others were not.
 *
 * @param {string} text
 * @param {boolean} [replace] Whether to take the place of those that are there.
 * @returns {Promise<{taken: string[], already: string[], refused: string[]}>}
 */
export async function importPresets(text, replace = false) {
  return await send("POST", "presets/import", { text, replace });
}

/** What the server refused, with the status it gave. */
export class RefusedError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * @typedef {object} Adapter A file in the list.
 * @property {string} name As the host lists it.
 * @property {number} size In bytes.
 * @property {number} modified Seconds since 1970.
 * @property {string | null} method
 * @property {string} rank
 * @property {string | null} family
 * @property {string} base_model
 * @property {boolean} preview Whether there is a picture.
 * @property {string} error Why it is no adapter.
 * @property {boolean} read Whether the server knows more than that it is there.
 */

/**
 * @typedef {object} About What there is to know about one file.
 * @property {Description} description
 * @property {number} layers_model
 * @property {number} layers_text_encoders
 * @property {number} unclaimed Tensors that no method understands.
 * @property {string[]} notes
 * @property {Record<string, string>} metadata
 */

/**
 * @typedef {object} Description What was written about a file; empty where nothing was.
 * @property {string} base_model
 * @property {string} architecture
 * @property {string} title
 * @property {string} author
 * @property {string} license
 * @property {string} text
 * @property {string} usage_hint
 * @property {string} date
 * @property {string} resolution
 * @property {Record<string, string>} training
 * @property {{ text: string, source: "metadata" | "beside" | "folder" }[]} trigger_words
 * @property {[tag: string, count: number][]} tags
 */

/**
 * Returns all adapter files, and how many of them the server still has to read.
 *
 * @returns {Promise<{ adapters: Adapter[], pending: number }>}
 */
export async function adapters() {
  return await get("adapters");
}

/**
 * Returns the names of all adapter files, as the host lists them.
 *
 * @returns {Promise<string[]>}
 */
export async function adapterList() {
  return await content(await api.fetchApi("/models/loras"));
}

/**
 * Returns all about one adapter file; throws why there is none.
 *
 * @param {string} name
 * @returns {Promise<Adapter & About>}
 */
export async function adapter(name) {
  return await get("adapter", { name });
}

/**
 * Returns the address of the picture of an adapter file.
 *
 * @param {string} name
 */
export function preview(name) {
  return api.apiURL(`/anyadapter/preview?${new URLSearchParams({ name })}`);
}

/**
 * One step of a training, or several in a row: how many, and their lowest and highest loss, stand only
 * there. A loss that is no number is null.
 *
 * @typedef {[step: number, loss: number | null, rate: number, low?: number, high?: number,
 *   count?: number]} Stretch
 */

/**
 * @typedef {object} Sample A picture made on the way.
 * @property {number} step
 * @property {string} label Its prompt.
 * @property {string} image Its address.
 */

/**
 * @typedef {object} TrainingNow
 * @property {string} node As the server numbers it: `5:3` inside of a subgraph.
 * @property {string} run Another one for each training of the node.
 * @property {number} message How many messages about it the server has sent.
 * @property {number} total Steps.
 * @property {number} step The last one done.
 * @property {number | null} rate The learning rate.
 * @property {number | null} seconds_per_step
 * @property {string} phase What is done besides steps.
 * @property {boolean} running
 * @property {boolean} stopping Whether it is asked to end.
 * @property {string} finished How it ended.
 * @property {string} saved Name of the file.
 * @property {Stretch[]} points
 * @property {[step: number, loss: number | null][]} validation
 */

/** @typedef {TrainingNow & { samples: Sample[] }} Training All of it so far. */
/** @typedef {TrainingNow & { sample?: Sample }} TrainingNews What is new: points, validation, sample. */

/**
 * Returns the newest training of a node, or null where the server knows none.
 *
 * @param {string} node
 * @returns {Promise<Training | null>}
 */
export async function training(node) {
  return await get("training", { node });
}

/**
 * Makes a training end after the step it is at and keep what it has; throws why it cannot.
 *
 * @param {string} node
 * @param {string} run
 */
export async function stopTraining(node, run) {
  await send("POST", "training/stop", { node, run });
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

/**
 * Sends something to a route and returns its JSON; throws the sentence that says what is wrong.
 *
 * @param {"POST" | "DELETE"} method
 * @param {string} route Below `/anyadapter/`.
 * @param {object} [body]
 */
async function send(method, route, body) {
  const sent = body && {
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return await content(await api.fetchApi(`/anyadapter/${route}`, { method, ...sent }));
}

/** @param {Response} answer */
async function content(answer) {
  if (answer.headers.get("Content-Type")?.startsWith("application/json") !== true) {
    throw new Error(`The server cannot do this: ${answer.status} ${answer.statusText}`);
  }
  const found = await answer.json();
  if (!answer.ok) throw new RefusedError(found.error, answer.status);
  return found;
}
