// The weights that the block editor shows and changes, without anything to see.

import { blockText, rounded } from "./block_text.js";
import { movedBy } from "./block_sliders.js";

/** @import { Block, BlockWeights, Group, Part } from "./api.js" */

/** The blocks of a file, with their weights. What sets a block, or a group, sets all that is in it. */
export class BlockModel {
  /** @type {Map<string, Group>} */
  #groupOf = new Map();
  /** @type {Map<string, Block>} */
  #blocks = new Map();
  /** @type {Map<string, number>} */
  #values = new Map();
  /** @type {Map<string, number>} By `IN04.attn2.q` and so on; those that differ from their block. */
  #parts = new Map();

  /** @param {Group[]} groups */
  constructor(groups) {
    this.groups = groups;
    for (const group of groups) {
      for (const block of group.blocks) {
        this.#groupOf.set(block.name, group);
        this.#blocks.set(block.name, block);
      }
    }
  }

  /**
   * Takes over what the server says that a text means.
   *
   * @param {BlockWeights} weights
   */
  take(weights) {
    this.#values = new Map(Object.entries(weights.values));
    this.#parts = new Map(Object.entries(weights.parts));
  }

  /**
   * Returns the text of all weights.
   *
   * @param {string[]} rules To keep, behind the weights.
   */
  text(rules) {
    return blockText(this.groups, { values: this.#values, parts: this.#parts }, rules);
  }

  /** @param {string} name */
  block(name) {
    return this.#blocks.get(name);
  }

  /** @param {string} block */
  groupOf(block) {
    return this.#groupOf.get(block);
  }

  /** @param {string} block */
  ofBlock(block) {
    return this.#values.get(block) ?? 1;
  }

  /**
   * @param {string} block
   * @param {string} part
   */
  ofPart(block, part) {
    return this.#parts.get(`${block}.${part}`) ?? this.ofBlock(block);
  }

  /**
   * Returns the weight of a group: that of its blocks, or their mean.
   *
   * @param {Group} group
   */
  ofGroup(group) {
    const values = group.blocks.map((block) => this.ofBlock(block.name));
    const mixed = values.some((value) => value !== values[0]);
    const sum = values.reduce((total, value) => total + value, 0);
    return { value: rounded(sum / values.length), mixed };
  }

  /**
   * Whether some parts of a block have other weights than it has.
   *
   * @param {string} block
   */
  isParted(block) {
    const parts = this.#blocks.get(block)?.parts ?? [];
    return parts.some((part) => this.ofPart(block, part.name) !== this.ofBlock(block));
  }

  /**
   * @param {string} block
   * @param {number} value
   */
  setBlock(block, value) {
    this.#values.set(block, rounded(value));
    for (const part of this.#blocks.get(block)?.parts ?? []) {
      this.#parts.delete(`${block}.${part.name}`);
    }
  }

  /**
   * @param {Group} group
   * @param {number} value
   */
  setGroup(group, value) {
    for (const block of group.blocks) this.setBlock(block.name, value);
  }

  /**
   * @param {string} block
   * @param {string} part
   * @param {number} value
   */
  setPart(block, part, value) {
    this.#parts.set(`${block}.${part}`, rounded(value));
  }

  /**
   * Moves a block and its parts by as much.
   *
   * @param {string} block
   * @param {number} by
   */
  shiftBlock(block, by) {
    this.#map(block, (value) => movedBy(value, by));
  }

  /**
   * Moves all blocks of a group by as much.
   *
   * @param {Group} group
   * @param {number} by
   */
  shiftGroup(group, by) {
    for (const block of group.blocks) this.shiftBlock(block.name, by);
  }

  /** Takes each weight from 1. */
  invert() {
    for (const block of this.#blocks.keys()) this.#map(block, (value) => rounded(1 - value));
  }

  /**
   * Leaves a block as it is, or at 1 if it is at 0, and sets all others to 0.
   *
   * @param {string} block
   */
  solo(block) {
    const others = [...this.#blocks.keys()].filter((name) => name !== block);
    for (const name of others) this.setBlock(name, 0);
    if (this.ofBlock(block) === 0 && !this.isParted(block)) this.setBlock(block, 1);
  }

  /**
   * Whether all other blocks are at 0.
   *
   * @param {string} block
   */
  isSolo(block) {
    const others = [...this.#blocks.keys()].filter((name) => name !== block);
    return others.every((name) => this.ofBlock(name) === 0 && !this.isParted(name));
  }

  /** Returns all weights, to be taken again. */
  snapshot() {
    const [values, parts] = [this.#values, this.#parts].map((one) => Object.fromEntries(one));
    return { values: values ?? {}, parts: parts ?? {}, layers: [], notes: [] };
  }

  /**
   * Returns the energy of a block as a share of the largest, or null where it is not known.
   *
   * @param {Block} block
   */
  shareOf(block) {
    return share(block.energy, [...this.#blocks.values()]);
  }

  /**
   * Returns the energy of a group and its share of the largest.
   *
   * @param {Group} group
   */
  energyOf(group) {
    const all = this.groups.map((one) => ({ energy: total(one.blocks) }));
    const energy = total(group.blocks);
    return { energy, share: share(energy, all) };
  }

  /**
   * Returns the energy of a part as a share of the largest in its block.
   *
   * @param {Block} block
   * @param {Part} part
   */
  shareOfPart(block, part) {
    return share(part.energy, block.parts);
  }

  /**
   * @param {string} block
   * @param {(value: number) => number} change
   */
  #map(block, change) {
    const own = (this.#blocks.get(block)?.parts ?? [])
      .filter((part) => this.#parts.has(`${block}.${part.name}`))
      .map((part) => ({ part: part.name, value: this.ofPart(block, part.name) }));
    this.setBlock(block, change(this.ofBlock(block)));
    for (const { part, value } of own) this.setPart(block, part, change(value));
  }
}

/**
 * Returns the norm of what has norms.
 *
 * @param {{ energy: number | null }[]} all
 */
function total(all) {
  let squares = 0;
  for (const { energy } of all) {
    if (energy === null) return null;
    squares += energy ** 2;
  }
  return Math.sqrt(squares);
}

/**
 * @param {number | null} energy
 * @param {{ energy: number | null }[]} all
 */
function share(energy, all) {
  const largest = Math.max(0, ...all.map((one) => one.energy ?? 0));
  return energy === null || largest === 0 ? null : energy / largest;
}
