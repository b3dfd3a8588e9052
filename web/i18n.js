// The words of the pack's own widgets, in the language of the page.
//
// They stand in `locales/<language>/main.json` under `anyadapter`, where the host serves them with all
// its other translations; English is in the code, as the last resort and for whoever reads it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/** @import { Node, NodeDefinition } from "comfyui" */

/** @typedef {{ name?: string, tooltip?: string }} SocketWords */
/**
 * @typedef {object} NodeWords
 * @property {string} display_name
 * @property {string} description
 * @property {Record<string, SocketWords>} [inputs] By name.
 * @property {Record<string, SocketWords>} [outputs] By index.
 */

/** @type {Record<string, string>} */
let words = {};
/** @type {Record<string, NodeWords>} */
let wordsOfNodes = {};

/** Fetches the words; called once, before any node is known to the page. */
export async function loadWords() {
  try {
    const language = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
    const answer = await api.fetchApi("/i18n");
    const languages = await answer.json();
    // Those of `zh` for `zh-TW`, which has none of its own.
    const found = languages[language]?.anyadapter ? language : (language.split("-")[0] ?? "en");
    words = languages[found]?.anyadapter ?? {};
    const nodes = JSON.stringify(languages[found]?.nodeDefs ?? {});
    // The page reads `{'|'}` as a plain `|`.
    wordsOfNodes = JSON.parse(nodes.replace(/\{'(.)'\}/g, "$1"));
  } catch {
    words = {}; // English then
  }
}

/**
 * Translates what the page knows of a node of ours.
 *
 * The page does that too, but up to front end 1.32 it forgets the words of packs when it loads its own.
 *
 * @param {NodeDefinition} definition
 */
export function translateDefinition(definition) {
  const own = wordsOfNodes[definition.name];
  if (!own) return;
  definition.display_name = own.display_name;
  definition.description = own.description;
  for (const [name, input] of Object.entries({
    ...definition.input?.required,
    ...definition.input?.optional,
  })) {
    const tooltip = own.inputs?.[name]?.tooltip;
    if (tooltip && input[1]) input[1].tooltip = tooltip;
  }
  definition.output_tooltips = definition.output_tooltips?.map(
    (tooltip, index) => own.outputs?.[index]?.tooltip ?? tooltip,
  );
}

/**
 * Translates the names of the widgets, inputs and outputs of a new node of ours; see above.
 *
 * @param {Node} node
 */
export function translateNode(node) {
  const own = wordsOfNodes[node.comfyClass ?? ""];
  if (!own) return;
  for (const widget of node.widgets ?? []) {
    widget.label = own.inputs?.[widget.name]?.name ?? widget.label;
  }
  for (const input of node.inputs ?? []) {
    input.localized_name = own.inputs?.[input.name]?.name ?? input.localized_name;
  }
  (node.outputs ?? []).forEach((output, index) => {
    output.localized_name = own.outputs?.[index]?.name ?? output.localized_name;
  });
}

/**
 * Returns a text in the language of the page.
 *
 * @param {string} key Its name in `main.json`.
 * @param {string} english The text in English, with places such as `{name}`.
 * @param {Record<string, string | number>} [values] What goes into the places.
 */
export function t(key, english, values = {}) {
  const text = words[key] ?? english;
  return text.replace(/\{(\w+)\}/g, (place, name) => String(values[name] ?? place));
}
