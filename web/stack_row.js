// One row of a stack: an adapter with its switch and strengths, and below it what is set more rarely.

import { adapter, preview } from "./api.js";
import { BlockEditor } from "./block_editor.js";
import { copiesOnClick, element } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";
import { NumberField } from "./number_field.js";
import { StepRange, rangeText } from "./step_range.js";
import { LARGEST_SEED, LARGEST_STRENGTH, inOneLine } from "./stack_text.js";

/** @import { Row } from "./stack_text.js" */

const USUAL_STRENGTH = 2;
const RANDOM = /(^|[:,\s])[RU]\b/;

/**
 * @typedef {object} RowHost What a row asks of its stack.
 * @property {(view: RowView, row: Row) => void} change
 * @property {(goesOn: boolean) => void} gesture Called before changes begin, and after they end.
 * @property {(view: RowView) => void} pick
 * @property {(view: RowView, place: {x: number, y: number}) => void} menu
 * @property {(view: RowView, by: number) => void} move
 * @property {(view: RowView, event: PointerEvent) => void} drag
 * @property {(view: RowView, isOpen: boolean) => void} unfold
 * @property {(view: RowView) => void} remove
 */

/**
 * @typedef {object} Shown
 * @property {string} name As short as it is clear.
 * @property {string} file The file that is meant; empty where there is none.
 * @property {string} problem Why there is none; empty where there is one, or it is not known yet.
 * @property {boolean} columns Whether CLIP has a column of its own.
 */

/** The element of a row. */
export class RowView {
  /** @type {Row} */
  row;
  #host;
  /** @type {Shown} */
  #shown = { name: "", file: "", problem: "", columns: false };
  /** @type {RowDetail | null} */
  #detail = null;
  #handle = element("button", {
    type: "button",
    class: "anyadapter-stack-handle",
    "aria-label": t("stack.handle", "Move: Alt with up and down, or drag"),
    title: t("stack.handle", "Move: Alt with up and down, or drag"),
  });
  #switch = element("button", {
    type: "button",
    class: "anyadapter-switch",
    role: "switch",
    onclick: () => this.#edit({ isOn: !this.row.isOn }),
  });
  #folder = element("span", { class: "anyadapter-stack-folder" });
  #text = element("span", { class: "anyadapter-stack-text" });
  #marks = element("span", { class: "anyadapter-stack-marks" });
  #name = element("button", {
    type: "button",
    class: "anyadapter-stack-name",
    onclick: () => this.#host.pick(this),
  });
  #model;
  #clip;
  #fold = element("button", {
    type: "button",
    class: "anyadapter-stack-fold",
    "aria-expanded": "false",
    "aria-label": t("stack.more", "Blocks, steps and more"),
    title: t("stack.more", "Blocks, steps and more"),
    onclick: () => this.#host.unfold(this, !this.isOpen),
  });
  #menu = element("button", {
    type: "button",
    class: "anyadapter-stack-menu",
    "aria-label": t("stack.menu", "Menu"),
    "aria-haspopup": "menu",
    onclick: () => this.#openMenu(),
  });
  element;

  /**
   * @param {Row} row
   * @param {RowHost} host
   */
  constructor(row, host) {
    this.row = row;
    this.#host = host;
    const number = (/** @type {string} */ label, /** @type {(value: number) => void} */ onChange) =>
      new NumberField({
        label,
        largest: LARGEST_STRENGTH,
        usual: USUAL_STRENGTH,
        onChange,
        onGesture: host.gesture,
      });
    this.#model = number(t("stack.strengthModel", "Strength"), (value) => {
      const both = this.#shown.columns ? {} : { strengthClip: value };
      this.#change({ strengthModel: value, ...both });
    });
    this.#clip = number(t("stack.strengthClip", "Strength of CLIP"), (value) =>
      this.#change({ strengthClip: value }),
    );
    this.#handle.append(icon("grip"));
    this.#fold.append(icon("chevron"));
    this.#menu.append(icon("more"));
    const head = element(
      "div",
      { class: "anyadapter-stack-head" },
      this.#handle,
      this.#switch,
      this.#name,
      this.#marks,
      this.#model.element,
      this.#clip.element,
      this.#fold,
      this.#menu,
    );
    this.element = element(
      "div",
      {
        class: "anyadapter-stack-row",
        role: "listitem",
        onkeydown: this.#onKey,
        oncontextmenu: (/** @type {MouseEvent} */ event) => {
          if (event.target instanceof HTMLInputElement) return;
          event.preventDefault();
          event.stopPropagation();
          host.menu(this, { x: event.clientX, y: event.clientY });
        },
      },
      head,
    );
    this.#handle.addEventListener("pointerdown", (event) => host.drag(this, event));
  }

  get isOpen() {
    return this.#detail !== null;
  }

  /** The name of the file that is meant; empty where there is none, or it is not known yet. */
  get file() {
    return this.#shown.file;
  }

  /**
   * Brings everything up to date.
   *
   * @param {Row} row
   * @param {Shown} shown
   */
  show(row, shown) {
    this.row = row;
    this.#shown = shown;
    this.element.classList.toggle("anyadapter-off", !row.isOn);
    this.element.classList.toggle("anyadapter-missing", shown.problem !== "");
    this.element.setAttribute("aria-label", row.adapter);
    this.#switch.setAttribute("aria-checked", String(row.isOn));
    this.#switch.setAttribute(
      "aria-label",
      t("stack.switch", "{name} on", { name: shown.name || row.adapter }),
    );
    const slash = shown.name.lastIndexOf("/") + 1;
    this.#folder.textContent = shown.name.slice(0, slash);
    this.#text.textContent = shown.name.slice(slash);
    this.#name.title = shown.problem || shown.file || row.adapter;
    this.#name.replaceChildren(
      ...(shown.problem ? [icon("warning")] : []),
      element("span", { class: "anyadapter-stack-path" }, this.#folder, this.#text),
    );
    this.#model.show(row.strengthModel);
    this.#clip.show(row.strengthClip);
    this.#clip.element.hidden = !shown.columns;
    this.#showMarks();
    this.#detail?.show();
  }

  /** @param {boolean} isOpen */
  open(isOpen) {
    if (isOpen === this.isOpen) return;
    this.#fold.setAttribute("aria-expanded", String(isOpen));
    this.element.classList.toggle("anyadapter-open", isOpen);
    this.#detail?.close();
    this.#detail = isOpen
      ? new RowDetail(this, (change) => this.#change(change), this.#host.gesture)
      : null;
    if (this.#detail) this.element.append(this.#detail.element);
    this.#showMarks();
  }

  focusHandle() {
    this.#handle.focus();
  }

  close() {
    this.#detail?.close();
  }

  #showMarks() {
    const { blocks, start, end } = this.row;
    const marks = [];
    if (blocks && !this.isOpen) marks.push([t("stack.blocks", "Blocks"), blocks]);
    if ((start > 0 || end < 1) && !this.isOpen) {
      marks.push([rangeText(start, end), t("stack.steps", "Steps")]);
    }
    this.#marks.replaceChildren(
      ...marks.map(([text = "", title = ""]) =>
        element(
          "button",
          { type: "button", tabindex: -1, title, onclick: () => this.#fold.click() },
          text,
        ),
      ),
    );
    this.#marks.hidden = marks.length === 0;
    this.#fold.classList.toggle("anyadapter-set", blocks !== "" || start > 0 || end < 1);
  }

  /** @param {Partial<Row>} change */
  #change(change) {
    this.row = { ...this.row, ...change };
    this.#host.change(this, this.row);
  }

  /** @param {Partial<Row>} change */
  #edit(change) {
    this.#host.gesture(true);
    this.#change(change);
    this.#host.gesture(false);
  }

  #openMenu() {
    const { left, bottom } = this.#menu.getBoundingClientRect();
    this.#host.menu(this, { x: left, y: bottom });
  }

  /** @param {KeyboardEvent} event */
  #onKey = (event) => {
    if (event.target instanceof HTMLInputElement) return;
    if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      this.#host.move(this, event.key === "ArrowUp" ? -1 : 1);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.#host.remove(this);
    } else if (event.key === "ContextMenu" || (event.shiftKey && event.key === "F10")) {
      this.#openMenu();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
}

/** What is below a row that is unfolded. */
class RowDetail {
  #view;
  #change;
  #gesture;
  #file = "";
  /** @type {BlockEditor | null} None before the file is known; until then there is a field. */
  #editor = null;
  #picture = element("img", {
    class: "anyadapter-stack-picture",
    alt: "",
    hidden: true,
    draggable: "false",
  });
  #words = element("div", {
    class: "anyadapter-stack-words",
    role: "group",
    "aria-label": t("stack.words", "Trigger words"),
  });
  #blocks = element("input", {
    type: "text",
    class: "anyadapter-stack-field",
    spellcheck: "false",
    placeholder: t("stack.blocksHint", "all at 1, or IN04:0.5, OUT:0"),
    "aria-label": t("stack.blockWeights", "Weights of blocks"),
    onchange: () => this.#take({ blocks: inOneLine(this.#blocks.value.replaceAll("|", " ")) }),
  });
  #blocksPlace = element("div", { class: "anyadapter-stack-blocks" }, this.#blocks);
  #seed = element("input", {
    type: "number",
    class: "anyadapter-stack-field",
    min: 0,
    max: LARGEST_SEED,
    step: 1,
    "aria-label": t("stack.seed", "Seed of random weights"),
    onchange: () => {
      const seed = Math.trunc(Number(this.#seed.value));
      if (seed >= 0 && seed <= LARGEST_SEED) this.#take({ seed });
      this.show();
    },
  });
  #seedLine = line(t("stack.seedShort", "Seed"), this.#seed);
  #range;
  element;

  /**
   * @param {RowView} view
   * @param {(change: Partial<Row>) => void} change
   * @param {(goesOn: boolean) => void} gesture
   */
  constructor(view, change, gesture) {
    this.#view = view;
    this.#change = change;
    this.#gesture = gesture;
    this.#range = new StepRange({
      onChange: (start, end) => change({ start, end }),
      onGesture: gesture,
    });
    this.#picture.addEventListener("load", () => (this.#picture.hidden = false));
    this.#picture.addEventListener("error", () => (this.#picture.hidden = true));
    this.element = element(
      "div",
      { class: "anyadapter-stack-detail" },
      this.#picture,
      element(
        "div",
        { class: "anyadapter-stack-lines" },
        line(t("stack.steps", "Steps"), this.#range.element),
        this.#words,
      ),
      element("div", { class: "anyadapter-stack-wide" }, this.#blocksPlace, this.#seedLine),
    );
    this.show();
  }

  show() {
    const { blocks, seed, start, end } = this.#view.row;
    if (document.activeElement !== this.#blocks) this.#blocks.value = blocks;
    this.#seed.value = String(seed);
    this.#seedLine.hidden = !seed && !RANDOM.test(blocks);
    this.#range.show(start, end);
    const isOther = this.#file !== this.#view.file;
    this.#file = this.#view.file;
    this.#editor?.refresh();
    if (isOther) {
      void this.#showFacts();
      this.#mountEditor();
    }
  }

  close() {
    this.#editor?.close();
    this.element.remove();
  }

  /** @param {Partial<Row>} change */
  #take(change) {
    this.#gesture(true);
    this.#change(change);
    this.#gesture(false);
    this.show();
  }

  #mountEditor() {
    if (!this.#file || this.#editor) return;
    const detail = this;
    this.#editor = new BlockEditor(
      {
        adapter: () => this.#file,
        seed: () => this.#view.row.seed,
        get text() {
          return detail.#view.row.blocks;
        },
        set text(text) {
          detail.#change({ blocks: inOneLine(text) });
        },
      },
      { open: true, level: "blocks" },
      (/** @type {number} */ height) =>
        this.#editor?.element.style.setProperty("--height", `${height}px`),
    );
    this.#blocksPlace.replaceChildren(this.#editor.element);
    this.#editor.refresh();
  }

  async #showFacts() {
    const file = this.#file;
    this.#picture.hidden = true;
    this.#words.replaceChildren();
    if (!file) return;
    const facts = await adapter(file).catch(() => null); // it has none, then
    if (file !== this.#file || !facts) return;
    if (facts.preview) this.#picture.src = preview(file);
    this.#words.replaceChildren(
      ...facts.description.trigger_words.map(({ text }) => wordButton(text)),
    );
  }
}

/**
 * @param {string} label
 * @param {HTMLElement} content
 */
function line(label, content) {
  return element(
    "div",
    { class: "anyadapter-stack-line" },
    element("span", { class: "anyadapter-stack-label", "aria-hidden": "true" }, label),
    content,
  );
}

/** @param {string} word */
function wordButton(word) {
  const title = t("stack.copyWord", "Copy");
  const made = element("button", { type: "button", class: "anyadapter-chip", title }, word);
  return copiesOnClick(made, word);
}
