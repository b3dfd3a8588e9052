// Writes weights of blocks as text, as short as their names allow. Reading is the server's business.

/** @import { Group, Part } from "./api.js" */

/**
 * @typedef {object} Weights
 * @property {Map<string, number>} values By the name of every block.
 * @property {Map<string, number>} parts By `IN04.attn2.q` and so on, where they differ from their block.
 */

/**
 * @typedef {object} Item
 * @property {string} name
 * @property {number} value
 */

const DECIMALS = 3;
const MOST_TRIED = 4;

/**
 * Returns a weight as it is written.
 *
 * @param {number} value
 */
export function written(value) {
  return String(rounded(value));
}

/**
 * Returns a weight with as many decimals as are written.
 *
 * @param {number} value
 */
export function rounded(value) {
  return Number(value.toFixed(DECIMALS)) || 0; // no -0
}

/**
 * Returns the text of weights: what most blocks have, then whole groups, ranges and single blocks that
 * differ, then their parts. All at 1 is the empty text.
 *
 * @param {Group[]} groups
 * @param {Weights} weights
 * @param {string[]} [rules] Items to keep as they are, behind all others.
 */
export function blockText(groups, weights, rules = []) {
  const names = groups.flatMap((group) => group.blocks.map((block) => block.name));
  const values = new Map(names.map((name) => [name, rounded(weights.values.get(name) ?? 1)]));
  const common = byFrequency([...values.values()]).slice(0, MOST_TRIED);
  const tried = [...new Set([1, ...common])].map((all) => blockItems(groups, values, all));
  const parts = partItems(groups, { values, parts: weights.parts });
  const items = [...shortest(tried), ...parts].map(({ name, value }) => `${name}:${value}`);
  return [...items, ...rules].join(", ");
}

/**
 * Returns the items that give all blocks their values, where all that is not named has one of them.
 *
 * @param {Group[]} groups
 * @param {Map<string, number>} values
 * @param {number} all
 * @returns {Item[]}
 */
function blockItems(groups, values, all) {
  /** @type {Item[]} */
  const whole = [];
  /** @type {Item[]} */
  const single = [];
  for (const group of groups) {
    const own = group.blocks.map((block) => values.get(block.name) ?? 1);
    const candidates = byFrequency(own)
      .slice(0, MOST_TRIED)
      .filter((value) => value !== all)
      .map((value) => [{ name: group.name, value }, ...runs(group, own, value)]);
    const [first, ...others] = shortest([runs(group, own, all), ...candidates]);
    if (first?.name === group.name) whole.push(first);
    else if (first) single.push(first);
    single.push(...others);
  }
  return [...(all === 1 ? [] : [{ name: "ALL", value: all }]), ...whole, ...single];
}

/**
 * Returns the items of the blocks of a group that do not have the value of all of it.
 *
 * @param {Group} group
 * @param {number[]} values
 * @param {number} usual
 */
function runs(group, values, usual) {
  /** @type {Item[]} */
  const items = [];
  for (let start = 0, end = 0; start < values.length; start = end) {
    const value = values[start] ?? 1;
    while (end < values.length && values[end] === value) end++;
    if (value !== usual) items.push({ name: range(group, start, end - 1), value });
  }
  return items;
}

/**
 * Returns the name of neighbouring blocks.
 *
 * @param {Group} group
 * @param {number} first
 * @param {number} last
 */
function range(group, first, last) {
  if (first === 0 && last === group.blocks.length - 1 && last > 0) return group.name;
  const [one, other] = [group.blocks[first]?.name, group.blocks[last]?.name];
  return first === last ? `${one}` : `${one}-${other}`;
}

/**
 * Returns the items of parts: several blocks, and several parts of one, are one where they can be.
 *
 * @param {Group[]} groups
 * @param {Weights} weights
 * @returns {Item[]}
 */
function partItems(groups, weights) {
  /** @type {Map<string, Set<string>>} */
  const found = new Map(); // "part:value" -> blocks
  for (const { name, parts } of groups.flatMap((group) => group.blocks)) {
    for (const [part, value] of ownParts(name, parts, weights)) {
      const key = `${part}:${value}`;
      found.set(key, (found.get(key) ?? new Set()).add(name));
    }
  }
  return [...found].flatMap(([key, blocks]) => {
    const [part = "", value = "1"] = key.split(":");
    return scopes(groups, part, blocks, (name, parts) => {
      const all = under(parts, part).map((one) => valueOf(name, one.name, weights));
      return all.every((one) => one === Number(value));
    }).map((name) => ({ name: `${name}.${part}`, value: Number(value) }));
  });
}

/**
 * Returns the parts of a block that differ from it, all of one beginning as one.
 *
 * @param {string} block
 * @param {Part[]} parts
 * @param {Weights} weights
 */
function ownParts(block, parts, weights) {
  /** @type {Map<string, number>} */
  const items = new Map();
  for (const { name } of parts) {
    const value = valueOf(block, name, weights);
    if (value === weights.values.get(block)) continue;
    const steps = name.split(".");
    const shorter = steps
      .map((_, index) => steps.slice(0, index + 1).join("."))
      .find((start) => {
        const alike = under(parts, start);
        const same = alike.every((one) => valueOf(block, one.name, weights) === value);
        return alike.length > 1 && same;
      });
    items.set(shorter ?? name, value);
  }
  return items;
}

/**
 * Returns the fewest names that cover blocks: ALL, groups, ranges, blocks.
 *
 * @param {Group[]} groups
 * @param {string} part Of the blocks, which not all of them have.
 * @param {Set<string>} blocks
 * @param {(block: string, parts: Part[]) => boolean} fits Whether a block may be covered too.
 */
function scopes(groups, part, blocks, fits) {
  const having = groups.map((group) => ({
    group,
    blocks: group.blocks.filter((block) => under(block.parts, part).length > 0),
  }));
  const fit = (/** @type {Group["blocks"][number]} */ { name, parts }) => fits(name, parts);
  const everywhere = having.flatMap((one) => one.blocks);
  if (everywhere.length > 1 && everywhere.every(fit)) return ["ALL"];
  return having.flatMap(({ group, blocks: own }) => {
    if (!own.some((block) => blocks.has(block.name))) return [];
    if (own.length > 1 && own.every(fit)) return [group.name];
    /** @type {string[]} */
    const names = [];
    for (let start = 0; start < own.length; start++) {
      if (!blocks.has(own[start]?.name ?? "")) continue;
      let end = start;
      while (blocks.has(own[end + 1]?.name ?? "")) end++;
      const [one, other] = [own[start]?.name, own[end]?.name];
      names.push(start === end ? `${one}` : `${one}-${other}`);
      start = end;
    }
    return names;
  });
}

/**
 * @param {Part[]} parts
 * @param {string} start Of dotted names.
 */
function under(parts, start) {
  return parts.filter(({ name }) => `${name}.`.startsWith(`${start}.`));
}

/**
 * @param {string} block
 * @param {string} part
 * @param {Weights} weights
 */
function valueOf(block, part, weights) {
  return rounded(weights.parts.get(`${block}.${part}`) ?? weights.values.get(block) ?? 1);
}

/**
 * Returns the different values, those that are there most often first.
 *
 * @param {number[]} values
 */
function byFrequency(values) {
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([, one], [, other]) => other - one).map(([value]) => value);
}

/**
 * Returns the list with the fewest items; of those alike, the first.
 *
 * @param {Item[][]} lists
 */
function shortest(lists) {
  return lists.reduce((best, one) => (one.length < best.length ? one : best));
}
