// The words of the pack's own widgets, in the language of the page.
//
// They stand in `locales/<language>/main.json` under `anyadapter`, where the host serves them with all
// its other translations; English is in the code, as the last resort and for whoever reads it.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

/** @type {Record<string, string>} */
let words = {};

/** Fetches the words; called once, before any widget is made. */
export async function loadWords() {
  try {
    const language = String(app.extensionManager.setting.get("Comfy.Locale") ?? "en");
    const answer = await api.fetchApi("/i18n");
    const languages = await answer.json();
    // For `zh-TW` those of `zh`, if it has none of its own.
    const known = [language, language.split("-")[0] ?? ""].find((one) => languages[one]?.anyadapter);
    words = known ? languages[known].anyadapter : {};
  } catch {
    words = {}; // English then
  }
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
