// The text of a stack, read and written as `algorithms/stack.py` does.

import { sentence } from "./dom.js";
import { t } from "./i18n.js";

/**
 * @typedef {object} Row
 * @property {string} adapter Its name in the host's list, or so much of it that it can be found there.
 * @property {number} strengthModel
 * @property {number} strengthClip
 * @property {string} blocks Weights of blocks; empty for all at 1.
 * @property {number} seed Of random weights of blocks.
 * @property {number} start Progress of sampling from which on it acts.
 * @property {number} end Progress of sampling at which it ceases.
 * @property {boolean} isOn
 */

/**
 * @typedef {object} Line
 * @property {string} text As written.
 * @property {Row} [row] What it says; none where it is empty, a remark, or wrong.
 * @property {string} [error] What is wrong with it.
 */

export const LARGEST_STRENGTH = 20;
export const LARGEST_SEED = Number.MAX_SAFE_INTEGER;

const BLANK = "[ \\t\\u00a0\\u3000]";
const OUTER_BLANKS = new RegExp(`^${BLANK}+|${BLANK}+$`, "g");
const NUMBER = /^[+-]?(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?$/i;
const PROGRESS = "(?:\\d+(?:\\.\\d*)?|\\.\\d+)(?:e[+-]?\\d+)?%?";
const SPAN = new RegExp(`^(${PROGRESS})${BLANK}*-${BLANK}*(${PROGRESS})$`, "i");
const FIELD = new RegExp(`^(clip|blocks|steps|seed|off)(?:${BLANK}+(.*))?$`, "s");
const TAG = /^<(?:lora|lyco):/i;
const EXTENSION = /\.(safetensors|sft|ckpt|pt2?|bin|pth|pkl)$/i;

/** @type {Omit<Row, "adapter">} */
const DEFAULTS = {
  strengthModel: 1,
  strengthClip: 1,
  blocks: "",
  seed: 0,
  start: 0,
  end: 1,
  isOn: true,
};

/**
 * Returns the row of an adapter as it is added.
 *
 * @param {string} adapter
 * @returns {Row}
 */
export function newRow(adapter) {
  return { adapter, ...DEFAULTS };
}

/**
 * Returns all lines of a text, also those that are no rows.
 *
 * @param {string} text
 * @returns {Line[]}
 */
export function readLines(text) {
  return text.split(/\r\n|\n|\r/).map((line, index) => {
    const written = trimmed(line);
    if (!written || written.startsWith("#")) return { text: line };
    try {
      const read = TAG.test(written) ? readTag : readRow;
      return {
        text: line,
        row: read(t("stack.line", "Line {number}", { number: index + 1 }), written),
      };
    } catch (error) {
      return { text: line, error: sentence(error) };
    }
  });
}

/**
 * Returns the rows of a text; throws what is wrong in its first bad line.
 *
 * @param {string} text
 * @returns {Row[]}
 */
export function parseStack(text) {
  const lines = readLines(text);
  const bad = lines.find((line) => line.error);
  if (bad) throw new Error(bad.error);
  return lines.flatMap((line) => line.row ?? []);
}

/**
 * Returns the line of a row.
 *
 * @param {Row} row
 */
export function formatRow(row) {
  const needsBar = row.adapter.startsWith("#") || TAG.test(row.adapter);
  const fields = [needsBar ? `| ${row.adapter}` : row.adapter, String(row.strengthModel)];
  if (row.strengthClip !== row.strengthModel) fields.push(`clip ${row.strengthClip}`);
  if (row.blocks) fields.push(`blocks ${row.blocks}`);
  if (row.start > 0 || row.end < 1) fields.push(`steps ${row.start}-${row.end}`);
  if (row.seed) fields.push(`seed ${row.seed}`);
  if (!row.isOn) fields.push("off");
  return fields.join(" | ");
}

/**
 * Returns weights of blocks as they can stand in a line.
 *
 * @param {string} text
 */
export function inOneLine(text) {
  return text
    .split(/[\r\n]+/)
    .map((line) => trimmed(line).replace(/,+$/, ""))
    .filter(Boolean)
    .join(", ");
}

/**
 * Returns the files that a name of a row can mean: one, none, or too many.
 *
 * @param {string} name With or without folder and extension.
 * @param {string[]} names The host's list.
 */
export function meant(name, names) {
  if (names.includes(name)) return [name];
  const wanted = name.replaceAll("\\", "/");
  const hasExtension = EXTENSION.test(wanted);
  const key = (/** @type {string} */ one) => {
    const path = one.replaceAll("\\", "/");
    return hasExtension ? path : path.replace(EXTENSION, "");
  };
  const found = names.filter((one) => key(one) === wanted);
  return found.length ? found : names.filter((one) => key(one).endsWith(`/${wanted}`));
}

/**
 * Returns names as they are shown: without the folders that all have in common, and the extension.
 *
 * @param {string[]} names
 */
export function shortNames(names) {
  const paths = names.map((name) => name.replaceAll("\\", "/").split("/"));
  let common = Math.max(0, Math.min(...paths.map((path) => path.length - 1)));
  while (common && paths.some((path) => !sameStart(path, paths[0], common))) common--;
  return paths.map((path) => path.slice(common).join("/").replace(EXTENSION, ""));
}

/**
 * @param {string[]} path
 * @param {string[] | undefined} other
 * @param {number} count
 */
function sameStart(path, other, count) {
  return path.slice(0, count).every((folder, index) => folder === other?.[index]);
}

/**
 * @param {string} place
 * @param {string} line
 */
function readRow(place, line) {
  const [name = "", ...rest] = line.replace(/^\|/, "").split("|").map(trimmed);
  if (!name)
    throw new Error(t("stack.noName", "{place} names no file. {how}", { place, how: how() }));
  const fields = rest.filter(Boolean);
  const row = newRow(name);
  if (NUMBER.test(fields[0] ?? "")) {
    row.strengthModel = row.strengthClip = readStrength(place, "strength", fields.shift() ?? "");
  }
  const words = new Set();
  for (const field of fields) {
    const [, word = "", value = ""] = FIELD.exec(field) ?? [];
    if (!word || (word === "off" && value)) throw unknown(place, field);
    if (words.has(word)) {
      throw new Error(
        t("stack.twice", "{place}: {word} stands there twice. Keep one of them.", { place, word }),
      );
    }
    words.add(word);
    readField(place, row, word, value);
  }
  return row;
}

/**
 * @param {string} place
 * @param {Row} row
 * @param {string} word
 * @param {string} value
 */
function readField(place, row, word, value) {
  if (word === "off") row.isOn = false;
  else if (word === "clip") row.strengthClip = readStrength(place, word, value);
  else if (word === "seed") row.seed = readSeed(place, value);
  else if (word === "steps") [row.start, row.end] = readSpan(place, value);
  else if (value) row.blocks = value;
  else {
    const english = "{place}: there are no weights behind blocks. {how}";
    throw new Error(t("stack.noBlocks", english, { place, how: how() }));
  }
}

/**
 * Reads a tag of A1111: its first number is for the text encoders, the second for the diffusion model.
 *
 * @param {string} place
 * @param {string} line
 */
function readTag(place, line) {
  const inner = line.replace(TAG, "").slice(0, -1);
  if (!line.endsWith(">") || line.slice(0, -1).includes(">") || line.includes("|")) {
    const english =
      '{place}: a tag has a line of its own, such as "<lora:NAME:0.8>", and nothing else on it.';
    throw new Error(t("stack.tagAlone", english, { place }));
  }
  const [name = "", ...options] = inner.split(":").map(trimmed);
  if (!name)
    throw new Error(t("stack.noName", "{place} names no file. {how}", { place, how: how() }));
  /** @type {Record<string, string>} */
  const named = {};
  for (const [position, option] of options.entries()) {
    const [key, value] = readOption(place, position, option);
    named[key] = value; // a name counts before a position, which stands ahead of it
  }
  const te = named.te && readStrength(place, "te", named.te);
  const unet = named.unet && readStrength(place, "unet", named.unet);
  const row = newRow(name);
  row.strengthClip = Number(te ?? unet ?? 1);
  row.strengthModel = Number(unet ?? row.strengthClip);
  row.blocks = named.lbw ?? "";
  return row;
}

/**
 * @param {string} place
 * @param {number} position
 * @param {string} option
 * @returns {[key: string, value: string]}
 */
function readOption(place, position, option) {
  const equals = option.indexOf("=");
  let key = equals < 0 ? (["te", "unet"][position] ?? "lbw") : trimmed(option.slice(0, equals));
  const value = trimmed(option.slice(equals + 1));
  if (key === "w") key = "lbw";
  if (["start", "stop", "step"].includes(key)) {
    const english =
      "{place}: {key}= counts steps, and a stack does not know how many there will be. Write " +
      '"NAME | 0.8 | steps 0-0.6", from 0 (the first step) to 1 (the end).';
    throw new Error(t("stack.tagSteps", english, { place, key }));
  }
  if (!["te", "unet", "lbw"].includes(key)) {
    const english = '{place}: "{option}" means nothing here. A tag has te=, unet=, lbw=.';
    throw new Error(t("stack.tagOption", english, { place, option }));
  }
  if (!value) {
    throw new Error(
      t("stack.tagEmpty", "{place}: there is nothing behind {key}=.", { place, key }),
    );
  }
  return [key, value];
}

/**
 * @param {string} place
 * @param {string} what
 * @param {string} text
 */
function readStrength(place, what, text) {
  if (!NUMBER.test(text) || !(Math.abs(Number(text)) <= LARGEST_STRENGTH)) {
    const english =
      '{place}: {what} is "{text}", and must be a number from -{largest} to {largest}, such as 0.8.';
    throw new Error(
      t("stack.badStrength", english, { place, what, text, largest: LARGEST_STRENGTH }),
    );
  }
  return Number(text);
}

/**
 * @param {string} place
 * @param {string} text
 */
function readSeed(place, text) {
  if (!/^\d{1,16}$/.test(text) || Number(text) > LARGEST_SEED) {
    const english = '{place}: seed is "{text}", and must be a whole number from 0 to {largest}.';
    throw new Error(t("stack.badSeed", english, { place, text, largest: LARGEST_SEED }));
  }
  return Number(text);
}

/**
 * @param {string} place
 * @param {string} text
 * @returns {[start: number, end: number]}
 */
function readSpan(place, text) {
  const [, first = "", last = ""] = SPAN.exec(text) ?? [];
  const start = first ? readProgress(first) : NaN;
  const end = readProgress(last);
  if (!(0 <= start && start < end && end <= 1)) {
    const english =
      '{place}: steps is "{text}", and must be two numbers from 0 (the first step) to 1 (the end), ' +
      "the smaller first, such as 0-0.6.";
    throw new Error(t("stack.badSteps", english, { place, text }));
  }
  return [start, end];
}

/** @param {string} text */
function readProgress(text) {
  return text.endsWith("%") ? Number(text.slice(0, -1)) / 100 : Number(text);
}

/**
 * @param {string} place
 * @param {string} field
 */
function unknown(place, field) {
  const english = '{place}: "{field}" means nothing here. {how}';
  return new Error(t("stack.unknown", english, { place, field, how: how() }));
}

function how() {
  return t(
    "stack.how",
    'Write "NAME | 0.8", and behind it, each after a "|", what else is wanted: "clip 0.5", ' +
      '"blocks IN:0.5, OUT:0", "steps 0-0.6", "seed 7" or "off"; decimals with a point.',
  );
}

/** @param {string} text */
function trimmed(text) {
  return text.replace(OUTER_BLANKS, "");
}
