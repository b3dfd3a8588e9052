// The editor of block weights: sliders for groups, blocks and their parts, over one line of text.
//
// The text is the truth: whatever is moved writes it, and the server says what it means. While it is
// folded, the editor is one line and asks nothing.

import { blocks, blockWeights } from "./api.js";
import { BlockModel } from "./block_model.js";
import { BlockPresets } from "./block_presets.js";
import { Sliders, STEP } from "./block_sliders.js";
import { rounded, written } from "./block_text.js";
import { copyText, element, loadStyle, sentence, zoomCanvas } from "./dom.js";
import { foldingFrame, HEAD_HEIGHT } from "./folding.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { UndoStep } from "./undo.js";

/** @import { Block, BlockWeights, Group, Layout } from "./api.js" */
/** @import { PictureName } from "./icons.js" */

const MAX_HEIGHT = 330;
const LARGEST = 100;
/** Below the body. */
const PADDING = 2;
/** Of the upright sliders: the first at which all fits. */
const STRIP_HEIGHTS = [84, 64, 46];
const MANY_ANSWERS = 200;

/**
 * @typedef {object} Source What the editor edits.
 * @property {() => string} adapter Name of the file.
 * @property {string} text Read and written.
 * @property {() => number} seed Of random weights.
 * @property {() => string} [locked] Why it cannot be edited now; empty if it can.
 */

/** @typedef {"groups" | "blocks" | "parts"} Level */

/**
 * @typedef {object} View How the editor is looked at; kept by whoever has it.
 * @property {boolean} open
 * @property {Level} level
 */

/**
 * @typedef {object} Current What the number field is for.
 * @property {Group} [group]
 * @property {Block} [block]
 * @property {string} [part] Of the block.
 */

/** @type {Map<string, Promise<Layout>>} By the name of the file. */
const layouts = new Map();
/** @type {Map<string, Promise<BlockWeights>>} By file, text and seed. */
const answers = new Map();
/** What was copied, for pages that may not read the clipboard. */
let copied = "";

/** Forgets what is known of files: they may have changed. */
export function forgetBlocks() {
  layouts.clear();
  answers.clear();
}

/** An editor of its own; it belongs to no node. */
export class BlockEditor {
  #source;
  #view;
  #onHeight;
  #undo;
  #refreshes = 0;
  #height = HEAD_HEIGHT;
  /** @type {BlockModel | null} */
  #model = null;
  /** @type {string} What the model was made of. */
  #made = "";
  /** @type {string | null} What was written here last, and not yet read by the server. */
  #own = null;
  /** What was read when something was told of it: read again, it does not take the place of other notes. */
  #told = "";
  #linked = false;
  /** Whether the model is that of the text and the file as they are now. */
  #ready = false;
  #file = "";
  /** @type {string[]} Weights of single layers, which no slider shows: kept as they are. */
  #layers = [];
  /** @type {{ block: string, before: BlockWeights } | null} What there was before solo. */
  #soloed = null;
  /** @type {Current} */
  #current = {};
  /** @type {Map<string, boolean>} Groups that were folded or unfolded by hand. */
  #folded = new Map();
  /** @type {(() => void)[]} Brings what is shown up to date. */
  #painters = [];
  /** @type {Map<string, HTMLButtonElement>} */
  #tools = new Map();
  /** @type {BlockPresets | null} */
  #presets = null;

  #levels = element("span", {
    class: "anyadapter-blocks-levels",
    role: "group",
    "aria-label": t("blocks_levels", "Level of detail"),
  });
  #content = element("div", { class: "anyadapter-blocks-content" });
  #scroller = element("div", { class: "anyadapter-blocks-scroller" }, this.#content);
  #name = element("span", { class: "anyadapter-blocks-current-name" });
  #info = element("span", { class: "anyadapter-blocks-current-info" });
  #number = element("input", {
    type: "number",
    step: STEP,
    min: -LARGEST,
    max: LARGEST,
    class: "anyadapter-blocks-number",
    onkeydown: (/** @type {KeyboardEvent} */ event) => this.#onNumberKey(event),
    onchange: () => this.#typed(),
  });
  #note = element("div", { class: "anyadapter-blocks-note", role: "status", hidden: true });
  #body = element("div", { class: "anyadapter-blocks-body", hidden: true });
  #frame = foldingFrame(
    {
      kind: "blocks",
      title: t("blocks_title", "Blocks"),
      label: t("blocks_label", "Block weights"),
      onFold: () => this.#toggle(),
      onWheel: (event) => this.#onWheel(event),
    },
    this.#body,
  );
  element = this.#frame.element;
  #observer = new ResizeObserver(() => this.#fit());

  /**
   * @param {Source} source
   * @param {View} [view]
   * @param {(height: number) => void} [onHeight] Called when the editor needs another height.
   */
  constructor(source, view = { open: false, level: "blocks" }, onHeight = () => {}) {
    loadStyle("block_editor.css");
    this.#source = source;
    this.#view = view;
    this.#onHeight = onHeight;
    this.#undo = new UndoStep(this.element, () => this.refresh());
    this.refresh();
  }

  /** How high the editor is to be, in pixels of the canvas. */
  get height() {
    return this.#height;
  }

  /** Shows what there is now: text, file, view. */
  async refresh() {
    const { text } = this.#source;
    this.#frame.summary.textContent = text.trim() || t("blocks_all_one", "all at 1");
    this.#frame.summary.title = text;
    this.#open(this.#view.open);
    if (!this.#view.open || (text === this.#own && this.#undo.active)) return;
    const refresh = ++this.#refreshes;
    const isLatest = () => refresh === this.#refreshes;
    try {
      await this.#read(text, isLatest);
    } catch (error) {
      if (isLatest()) {
        this.#scroller.inert = true;
        this.#tellRead(sentence(error), true);
      }
    }
    if (isLatest()) this.#presets?.mark();
  }

  /** Ends what goes on; to be called when the editor is removed. */
  close() {
    this.#refreshes++;
    this.#undo.close();
    this.#observer.disconnect();
  }

  #toggle() {
    this.#undo.begin();
    this.#view.open = !this.#view.open;
    this.refresh().finally(() => this.#undo.end());
  }

  /** @param {boolean} open */
  #open(open) {
    if (open === !this.#body.hidden) return;
    this.#frame.fold.ariaExpanded = String(open);
    this.#body.hidden = !open;
    if (open) {
      this.#build();
      for (const part of [this.#body, ...this.#body.children, this.#content]) {
        this.#observer.observe(part);
      }
    } else {
      this.#observer.disconnect();
      this.#resize(HEAD_HEIGHT);
    }
  }

  /**
   * Reads file and text, and shows them.
   *
   * @param {string} text
   * @param {() => boolean} isLatest
   */
  async #read(text, isLatest) {
    const adapter = this.#source.adapter();
    const locked =
      this.#source.locked?.() || (adapter ? "" : t("blocks_no_file", "No file is chosen."));
    this.#body.classList.toggle("anyadapter-blocks-locked", locked !== "");
    if (locked) {
      this.#tellRead(locked);
      return;
    }
    if (text !== this.#own || adapter !== this.#file) this.#ready = false;
    this.#file = adapter;
    if (!this.#model) this.#tell(t("blocks_reading", "Reading the file …"));
    const [layout] = await Promise.all([remembered(layouts, adapter, () => blocks(adapter))]);
    if (!isLatest()) return;
    const made = JSON.stringify(layout.groups);
    if (made !== this.#made || !this.#model) {
      this.#made = made;
      this.#model = new BlockModel(layout.groups);
      this.#current = {};
      this.#soloed = null;
      this.#draw();
      this.#presets?.refresh();
    }
    const seed = this.#source.seed();
    const key = JSON.stringify([adapter, text, seed]);
    const weights = await remembered(answers, key, () => blockWeights(adapter, text, seed));
    if (!isLatest()) return;
    this.#own = null;
    this.#ready = true;
    this.#scroller.inert = false;
    this.#layers = weights.layers;
    this.#model.take(weights);
    if (key !== this.#told) this.#tellRead(weights.notes.join(" "));
    this.#told = key;
    this.#paint();
  }

  // What stands in the body

  /** Makes the body, once. */
  #build() {
    if (this.#presets) {
      this.#presets.refresh();
      return;
    }
    this.#presets = new BlockPresets({
      adapter: this.#source.adapter,
      text: () => this.#source.text,
      choose: (text) => this.#take(text),
      tell: (sentence) => this.#tell(sentence),
      changed: () => answers.clear(), // a text may name a preset
    });
    for (const [level, label] of /** @type {[Level, string][]} */ ([
      ["groups", t("blocks_groups", "Groups")],
      ["blocks", t("blocks_blocks", "Blocks")],
      ["parts", t("blocks_parts", "Parts")],
    ])) {
      const onclick = () => this.#look(level);
      this.#levels.append(element("button", { type: "button", value: level, onclick }, label));
    }
    const { list, more, row } = this.#presets;
    const ofText = this.#buttons([
      ["copy", t("blocks_copy", "Copy the weights as text"), () => this.#copy()],
      ["paste", t("blocks_paste", "Paste weights from the clipboard"), () => this.#paste()],
    ]);
    const ofSliders = this.#buttons([
      ["link", t("blocks_link", "Link: a block moves all of its group"), () => this.#link()],
      [
        "solo",
        t("blocks_solo", "Solo: the chosen block alone, all others at 0 (or Alt-click)"),
        () => this.#solo(),
      ],
      [
        "invert",
        t("blocks_invert", "Invert: 1 minus each weight"),
        () => this.#change((model) => model.invert()),
      ],
      ["reset", t("blocks_reset", "Reset: all at 1"), () => this.#take("")],
    ]);
    this.#tools.get("link")?.setAttribute("aria-pressed", "false");
    const space = element("span", { class: "anyadapter-blocks-space" });
    this.#body.replaceChildren(
      element("div", { class: "anyadapter-blocks-row" }, list, more, ...ofText),
      row,
      element("div", { class: "anyadapter-blocks-row" }, this.#levels, space, ...ofSliders),
      this.#scroller,
      element("div", { class: "anyadapter-blocks-current" }, this.#name, this.#info, this.#number),
      this.#note,
    );
    this.#presets.refresh();
  }

  /** @param {[name: PictureName, label: string, onclick: () => void][]} tools */
  #buttons(tools) {
    return tools.map(([name, label, onclick]) => {
      const said = { title: label, "aria-label": label };
      const kind = { type: "button", class: "anyadapter-blocks-tool" };
      const made = element("button", { ...kind, ...said, onclick }, icon(name));
      this.#tools.set(name, made);
      return made;
    });
  }

  /** @param {Level} level */
  #look(level) {
    this.#view.level = level;
    this.#draw();
  }

  /** Draws groups, blocks and parts anew. */
  #draw() {
    const model = this.#model;
    if (!model) return;
    this.#painters = [];
    const { level } = this.#view;
    for (const button of this.#levels.querySelectorAll("button")) {
      button.ariaPressed = String(button.value === level);
    }
    this.#choose(
      level === "groups" ? { group: model.groups[0] } : first(model, this.#current.block),
    );
    if (level === "groups") {
      this.#content.replaceChildren(...model.groups.map((group) => this.#groupRow(group)));
    } else {
      const cells = model.groups.map((group) => this.#cell(group, level === "parts"));
      const content = [element("div", { class: "anyadapter-blocks-cells" }, ...cells)];
      if (level === "parts") content.push(this.#partPanel());
      this.#content.replaceChildren(...content);
    }
    this.#content.dataset.level = level;
    this.#paint();
  }

  /** @param {Group} group */
  #groupRow(group) {
    return element(
      "div",
      {
        class: "anyadapter-blocks-line",
        "data-idle": String(isIdle(group)),
        title: this.#groupInfo(group),
      },
      element("span", { class: "anyadapter-blocks-title" }, group.title),
      ...this.#master(group),
    );
  }

  /**
   * Returns the slider of a group, and its value.
   *
   * @param {Group} group
   */
  #master(group) {
    const value = element("span", { class: "anyadapter-blocks-value" });
    const label = t("blocks_group_label", "Group {name}, all its blocks", { name: group.title });
    const share = this.#model?.energyOf(group).share ?? null;
    const master = new Sliders(label, [{ label, share }], {
      ...this.#gestures,
      set: (values) => this.#change((model) => model.setGroup(group, values.get(0) ?? 1)),
      shift: (_, by) => this.#change((model) => model.shiftGroup(group, by)),
      select: () => this.#choose({ group }),
      solo: () => {},
      paints: () => false,
    });
    this.#painters.push(() => {
      const found = this.#model?.ofGroup(group);
      if (!found) return;
      master.show(0, found.value, { mixed: found.mixed });
      master.mark(this.#current.group === group ? 0 : -1);
      value.textContent = `${found.mixed ? "≈" : ""}${Number(found.value.toFixed(2))}`;
    });
    return [master.element, value];
  }

  /**
   * Returns a group with its blocks side by side.
   *
   * @param {Group} group
   * @param {boolean} picking Whether blocks are only chosen.
   */
  #cell(group, picking) {
    const isFolded = () => this.#folded.get(group.name) ?? isIdle(group);
    const strip = this.#strip(group, picking);
    const title = element("span", { class: "anyadapter-blocks-title" }, group.title);
    const cell = element("div", {
      class: "anyadapter-blocks-cell",
      "data-idle": String(isIdle(group)),
    });
    const fold = element(
      "button",
      {
        type: "button",
        class: "anyadapter-fold anyadapter-blocks-fold",
        title: this.#groupInfo(group),
        onclick: () => {
          this.#folded.set(group.name, !isFolded());
          show();
        },
      },
      icon("chevron"),
      title,
    );
    const show = () => {
      strip.element.hidden = isFolded();
      fold.ariaExpanded = String(!isFolded());
      cell.classList.toggle("anyadapter-blocks-folded", isFolded());
    };
    cell.style.setProperty("--blocks", String(group.blocks.length));
    cell.append(
      element(
        "div",
        { class: "anyadapter-blocks-line" },
        fold,
        ...(picking ? [] : this.#master(group)),
      ),
      strip.element,
    );
    show();
    return cell;
  }

  /**
   * @param {Group} group
   * @param {boolean} picking
   */
  #strip(group, picking) {
    const bars = group.blocks.map((block) => ({
      label: `${block.name}${block.touched ? "" : `, ${t("blocks_untouched", "not in this file")}`}`,
      idle: !block.touched,
      share: this.#model?.shareOf(block) ?? null,
      title: this.#blockInfo(block),
    }));
    const nameOf = (/** @type {number} */ index) => group.blocks[index]?.name ?? "";
    const strip = new Sliders(
      group.title,
      bars,
      {
        ...this.#gestures,
        set: (values) => this.#setBlocks(group, values),
        shift: (index, by) =>
          this.#change((model) =>
            this.#linked ? model.shiftGroup(group, by) : model.shiftBlock(nameOf(index), by),
          ),
        select: (index) => this.#choose({ block: group.blocks[index] }),
        solo: (index) => this.#solo(nameOf(index)),
        paints: () => !this.#linked,
      },
      { upright: true, picking },
    );
    this.#painters.push(() => {
      for (const [index, { name }] of group.blocks.entries()) {
        if (!this.#model) return;
        strip.show(index, this.#model.ofBlock(name), { parted: this.#model.isParted(name) });
      }
      strip.mark(group.blocks.findIndex((block) => block === this.#current.block));
    });
    return strip;
  }

  /** Returns the sliders of the parts of the current block. */
  #partPanel() {
    const panel = element("div", { class: "anyadapter-blocks-parts", role: "group" });
    /** @type {Block | undefined} */
    let drawn;
    /** @type {(() => void)[]} */
    let painters = [];
    this.#painters.push(() => {
      const { block } = this.#current;
      if (block !== drawn) {
        drawn = block;
        const rows = block?.parts.map((part) => this.#partRow(block, part)) ?? [];
        painters = rows.map((row) => row.paint);
        const nothing = t("blocks_no_parts", "This file has nothing in {name}.", {
          name: block?.name ?? "",
        });
        panel.ariaLabel = t("blocks_parts_of", "Parts of {name}", { name: block?.name ?? "" });
        panel.replaceChildren(...(rows.length > 0 ? rows.map((row) => row.element) : [nothing]));
      }
      for (const paint of painters) paint();
    });
    return panel;
  }

  /**
   * @param {Block} block
   * @param {Block["parts"][number]} part
   */
  #partRow(block, part) {
    const value = element("span", { class: "anyadapter-blocks-value" });
    const label = `${block.name}.${part.name}`;
    const slider = new Sliders(
      label,
      [{ label, share: this.#model?.shareOfPart(block, part) ?? null }],
      {
        ...this.#gestures,
        set: (values) =>
          this.#change((model) => model.setPart(block.name, part.name, values.get(0) ?? 1)),
        shift: (_, by) =>
          this.#change((model) =>
            model.setPart(block.name, part.name, model.ofPart(block.name, part.name) + by),
          ),
        select: () => this.#choose({ block, part: part.name }),
        solo: () => this.#solo(block.name),
        paints: () => false,
      },
    );
    const paint = () => {
      const found = this.#model?.ofPart(block.name, part.name) ?? 1;
      slider.show(0, found);
      slider.mark(this.#current.part === part.name ? 0 : -1);
      value.textContent = written(found);
    };
    const title = `${label}: ${energyText(part.energy)}`;
    const row = { class: "anyadapter-blocks-line", title };
    const name = element("span", { class: "anyadapter-blocks-title" }, part.name);
    return { element: element("div", row, name, slider.element, value), paint };
  }

  // The line of the current slider

  /** @param {Current} current */
  #choose(current) {
    this.#current = current;
    this.#paint();
  }

  #paint() {
    for (const paint of this.#painters) paint();
    const { group, block, part } = this.#current;
    const value = this.#currentValue();
    const name = block ? (part ? `${block.name}.${part}` : block.name) : group?.title;
    this.#name.textContent = name ?? t("blocks_nothing_chosen", "No block is chosen");
    const found = block?.parts.find((one) => one.name === part);
    if (found) this.#info.textContent = energyText(found.energy);
    else
      this.#info.textContent = block
        ? this.#energyOfBlock(block)
        : group
          ? this.#groupInfo(group)
          : "";
    this.#number.disabled = value === undefined;
    this.#number.ariaLabel = t("blocks_weight_of", "Weight of {name}", { name: name ?? "" });
    if (document.activeElement !== this.#number || value === undefined) {
      this.#number.value = value === undefined ? "" : written(value);
    }
    const solo = this.#tools.get("solo");
    if (solo) solo.disabled = !block;
    const isSolo = block !== undefined && this.#model?.isSolo(block.name);
    solo?.setAttribute("aria-pressed", String(isSolo === true));
  }

  #currentValue() {
    const { group, block, part } = this.#current;
    if (block && part) return this.#model?.ofPart(block.name, part);
    if (block) return this.#model?.ofBlock(block.name);
    return group && this.#model?.ofGroup(group).value;
  }

  /** @param {KeyboardEvent} event */
  #onNumberKey(event) {
    event.stopPropagation();
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    if (event.key === "Escape") this.#number.value = written(this.#currentValue() ?? 1);
    this.#number.blur();
    /** @type {HTMLElement | null} */
    const slider = this.#content.querySelector("[data-current=true][role=slider]");
    slider?.focus();
  }

  #typed() {
    const value = this.#number.valueAsNumber;
    if (!Number.isFinite(value)) {
      this.#paint();
      return;
    }
    const { group, block, part } = this.#current;
    const weight = rounded(Math.min(Math.max(value, -LARGEST), LARGEST));
    this.#change((model) => {
      if (block && part) model.setPart(block.name, part, weight);
      else if (block) model.setBlock(block.name, weight);
      else if (group) model.setGroup(group, weight);
    });
    this.#number.value = written(weight);
  }

  // What changes weights

  /** The gestures that are alike for all sliders. */
  #gestures = {
    type: () => {
      this.#number.focus();
      this.#number.select();
    },
    begin: () => this.#undo.begin(),
    end: () => this.#undo.end(),
  };

  /**
   * @param {Group} group
   * @param {Map<number, number>} values
   */
  #setBlocks(group, values) {
    this.#change((model) => {
      for (const [index, value] of values) {
        const name = group.blocks[index]?.name ?? "";
        if (this.#linked) model.shiftGroup(group, value - model.ofBlock(name));
        else model.setBlock(name, value);
      }
    });
  }

  /**
   * Changes weights and writes the text of them.
   *
   * @param {(model: BlockModel) => void} change
   */
  #change(change) {
    const model = this.#model;
    if (!model || !this.#ready) return;
    this.#refreshes++; // an answer to what there was before is of no use any more
    this.#undo.begin();
    change(model);
    this.#write(model.text(this.#layers));
    this.#undo.end();
    this.#paint();
  }

  /** @param {string} text */
  #write(text) {
    this.#own = text;
    this.#source.text = text;
    this.#frame.summary.textContent = text || t("blocks_all_one", "all at 1");
  }

  /**
   * Takes a text as it is, and has the server read it.
   *
   * @param {string} text
   */
  #take(text) {
    this.#undo.begin();
    this.#source.text = text;
    this.#own = null;
    this.refresh().finally(() => this.#undo.end());
  }

  #link() {
    this.#linked = !this.#linked;
    this.#tools.get("link")?.setAttribute("aria-pressed", String(this.#linked));
  }

  /** @param {string} [block] */
  #solo(block = this.#current.block?.name) {
    const model = this.#model;
    if (!model || !block || !this.#ready) return;
    const before = model.snapshot();
    const back = this.#soloed?.block === block && model.isSolo(block) ? this.#soloed.before : null;
    this.#soloed = { block, before };
    this.#current = { block: model.block(block) };
    this.#change(() => (back ? model.take(back) : model.solo(block)));
  }

  async #copy() {
    copied = this.#source.text.trim() || "ALL:1";
    await copyText(copied);
    this.#tell(t("blocks_copied", "Copied: {text}", { text: copied }));
  }

  async #paste() {
    let text = copied;
    try {
      text = (await navigator.clipboard.readText()).trim() || copied;
    } catch {
      // Then what was copied in this page is pasted.
    }
    if (!text) {
      this.#tell(
        t(
          "blocks_nothing_copied",
          "There is no text to paste, or the browser does not give it: paste it into the field blocks.",
        ),
      );
      return;
    }
    try {
      await blockWeights(this.#source.adapter(), text, this.#source.seed());
      this.#take(text);
    } catch (error) {
      this.#tell(sentence(error), true);
    }
  }

  // What is said

  /**
   * Tells what came of reading file and text.
   *
   * @param {string} sentence
   * @param {boolean} [wrong]
   */
  #tellRead(sentence, wrong = false) {
    this.#told = "";
    this.#tell(sentence, wrong);
  }

  /**
   * @param {string} sentence
   * @param {boolean} [wrong]
   */
  #tell(sentence, wrong = false) {
    this.#note.textContent = sentence;
    this.#note.hidden = sentence === "";
    this.#note.classList.toggle("anyadapter-blocks-wrong", wrong);
  }

  /** @param {Group} group */
  #groupInfo(group) {
    const energy = energyText(this.#model?.energyOf(group).energy ?? null);
    return t("blocks_group_info", "{count} blocks, {energy}", {
      count: group.blocks.length,
      energy,
    });
  }

  /** @param {Block} block */
  #blockInfo(block) {
    return `${block.name}: ${this.#energyOfBlock(block)}`;
  }

  /** @param {Block} block */
  #energyOfBlock(block) {
    if (!block.touched) return t("blocks_untouched", "not in this file");
    const share = this.#model?.shareOf(block) ?? null;
    if (share === null) return energyText(block.energy);
    const percent = Math.round(100 * share);
    return t("blocks_energy_share", "{energy}, {percent} % of the largest", {
      energy: energyText(block.energy),
      percent,
    });
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    const inside = event.target instanceof Node && this.#scroller.contains(event.target);
    if (!inside || !this.#isScrolled() || event.ctrlKey || event.metaKey) {
      zoomCanvas(event);
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.#scroller.scrollTop += event.deltaY;
  }

  // How high it is

  /** Takes the height that the content needs, with the highest sliders that fit. */
  #fit() {
    if (this.#body.hidden || this.#body.offsetWidth === 0) return;
    let needed = 0;
    for (const height of STRIP_HEIGHTS) {
      this.element.style.setProperty("--strip", `${height}px`);
      needed = HEAD_HEIGHT + this.#bodyHeight();
      if (needed <= MAX_HEIGHT) break;
    }
    this.#resize(Math.min(needed, MAX_HEIGHT));
    // Or else Nodes 2.0 would take the wheel for the canvas.
    this.#scroller.dataset.captureWheel = String(this.#isScrolled());
  }

  #isScrolled() {
    return this.#scroller.scrollHeight > this.#scroller.clientHeight;
  }

  /** Returns how high the body is with nothing to be scrolled. */
  #bodyHeight() {
    const rows = [...this.#body.children].filter((row) => row instanceof HTMLElement);
    const last = rows.findLast((row) => row.offsetHeight > 0);
    const end = last ? last.offsetTop + last.offsetHeight - this.#body.offsetTop : 0;
    return end - this.#scroller.offsetHeight + this.#content.offsetHeight + PADDING;
  }

  /** @param {number} height */
  #resize(height) {
    if (height === this.#height) return;
    this.#height = height;
    this.#onHeight(height);
  }
}

/**
 * Returns the answer to a question that was asked before, or asks it; a failure is not remembered.
 *
 * @template Answer
 * @param {Map<string, Promise<Answer>>} memory
 * @param {string} key
 * @param {() => Promise<Answer>} ask
 */
function remembered(memory, key, ask) {
  const known = memory.get(key);
  if (known) return known;
  const oldest = memory.keys().next().value;
  if (memory.size >= MANY_ANSWERS && oldest !== undefined) memory.delete(oldest);
  const asked = ask();
  memory.set(key, asked);
  asked.catch(() => memory.delete(key));
  return asked;
}

/**
 * Returns a block, or the first that the file has something in.
 *
 * @param {BlockModel} model
 * @param {Block} [block]
 * @returns {Current}
 */
function first(model, block) {
  const all = model.groups.flatMap((group) => group.blocks);
  return { block: block ?? all.find((one) => one.touched) ?? all[0] };
}

/** @param {Group} group */
function isIdle(group) {
  return group.blocks.every((block) => !block.touched);
}

/** @param {number | null} energy */
function energyText(energy) {
  if (energy === null) return t("blocks_energy_unknown", "energy unknown");
  return t("blocks_energy", "energy {value}", { value: Number(energy.toPrecision(3)) });
}
