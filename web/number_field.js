// A number that is dragged, stepped with arrows and keys, or typed.

import { element } from "./dom.js";
import { icon } from "./icons.js";

const PIXELS_PER_STEP = 4;
const STEP = 0.05;
const FINE_STEP = 0.01;
const CLICK_REACH = 3;
const READABLE = /^[+-]?(\d+\.?\d*|\.\d+)$/;

/**
 * @typedef {object} NumberOptions
 * @property {string} label For screen readers.
 * @property {number} largest Its greatest size, on either side of 0.
 * @property {number} usual The size from which on it is shown as unusual.
 * @property {(value: number) => void} onChange Called whenever it changes, many times during a drag.
 * @property {(goesOn: boolean) => void} onGesture Called before changes begin, and after they end.
 */

/** The element of a number. */
export class NumberField {
  #value = 1;
  #options;
  #shown = element("span", { class: "anyadapter-number-value" });
  element;

  /** @param {NumberOptions} options */
  constructor(options) {
    this.#options = options;
    const arrow = (/** @type {number} */ way) => {
      const made = element("span", {
        class: `anyadapter-number-arrow${way > 0 ? " anyadapter-more" : ""}`,
        "aria-hidden": "true",
        onclick: (/** @type {MouseEvent} */ event) => {
          this.#gesture(() => this.#step(way, event.shiftKey));
          this.element.focus();
        },
        onpointerdown: (/** @type {PointerEvent} */ event) => event.stopPropagation(),
      });
      made.append(icon("chevron"));
      return made;
    };
    this.element = element(
      "div",
      {
        class: "anyadapter-number",
        role: "spinbutton",
        tabindex: 0,
        "aria-label": options.label,
        "aria-valuemin": -options.largest,
        "aria-valuemax": options.largest,
        onkeydown: this.#onKey,
        onpointerdown: this.#onPointer,
      },
      arrow(-1),
      this.#shown,
      arrow(1),
    );
    this.show(1);
  }

  /** @param {number} value */
  show(value) {
    this.#value = value;
    this.#shown.textContent = written(value);
    this.element.setAttribute("aria-valuenow", String(value));
    this.element.classList.toggle("anyadapter-unusual", Math.abs(value) > this.#options.usual);
  }

  /** @param {number} value */
  #set(value) {
    const { largest, onChange } = this.#options;
    const kept = Math.min(Math.max(value, -largest), largest);
    if (kept === this.#value) return;
    this.show(kept);
    onChange(kept);
  }

  /**
   * @param {number} count How many steps up.
   * @param {boolean} isFine
   */
  #step(count, isFine) {
    this.#set(stepped(this.#value, count, isFine));
  }

  /** @param {() => void} change */
  #gesture(change) {
    this.#options.onGesture(true);
    change();
    this.#options.onGesture(false);
  }

  /** @param {PointerEvent} event */
  #onPointer = (event) => {
    if (event.button !== 0 || event.target instanceof HTMLInputElement) return;
    event.stopPropagation();
    const from = this.#value;
    let isDrag = false;
    const move = (/** @type {PointerEvent} */ moved) => {
      const distance = moved.clientX - event.clientX;
      if (!isDrag && Math.abs(distance) <= CLICK_REACH) return;
      if (!isDrag) this.#options.onGesture(true);
      isDrag = true;
      const steps = Math.trunc(distance / PIXELS_PER_STEP);
      if (steps) this.#set(stepped(from, steps, moved.shiftKey));
      else this.#set(from);
    };
    const stop = (/** @type {PointerEvent} */ last) => {
      this.element.removeEventListener("pointermove", move);
      this.element.removeEventListener("pointerup", stop);
      this.element.removeEventListener("pointercancel", stop);
      this.element.classList.remove("anyadapter-dragged");
      if (isDrag) this.#options.onGesture(false);
      else if (last.type === "pointerup") this.#type(written(this.#value));
    };
    this.element.setPointerCapture(event.pointerId);
    this.element.classList.add("anyadapter-dragged");
    this.element.addEventListener("pointermove", move);
    this.element.addEventListener("pointerup", stop);
    this.element.addEventListener("pointercancel", stop);
  };

  /** @param {KeyboardEvent} event */
  #onKey = (event) => {
    if (event.target instanceof HTMLInputElement || event.altKey) return;
    if (event.ctrlKey || event.metaKey) return;
    const ways = {
      ArrowUp: 1,
      ArrowRight: 1,
      ArrowDown: -1,
      ArrowLeft: -1,
      PageUp: 10,
      PageDown: -10,
    };
    const way = ways[/** @type {keyof typeof ways} */ (event.key)];
    if (way) this.#gesture(() => this.#step(way, event.shiftKey));
    else if (event.key === "Enter") this.#type(written(this.#value));
    else if (/^[-+.\d]$/.test(event.key)) this.#type(event.key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  /**
   * Lets the user type.
   *
   * @param {string} text What stands there first; a single sign is what was typed already.
   */
  #type(text) {
    const input = element("input", {
      class: "anyadapter-number-input",
      type: "text",
      inputmode: "decimal",
      "aria-label": this.#options.label,
    });
    let isOpen = true;
    const close = (/** @type {boolean} */ take) => {
      if (!isOpen) return;
      isOpen = false;
      const typed = input.value.trim().replace(",", ".");
      input.remove();
      if (take && READABLE.test(typed)) this.#gesture(() => this.#set(Number(typed)));
    };
    input.addEventListener("blur", () => close(true));
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" && event.key !== "Escape") return;
      close(event.key === "Enter");
      this.element.focus();
    });
    input.value = text;
    this.element.append(input);
    input.focus();
    if (text.length > 1) input.select();
  }
}

/**
 * @param {number} value
 * @param {number} count
 * @param {boolean} isFine
 */
function stepped(value, count, isFine) {
  return Number((value + count * (isFine ? FINE_STEP : STEP)).toFixed(4));
}

/** @param {number} value */
function written(value) {
  const digits = String(Number(value.toFixed(4))).split(".")[1]?.length ?? 0;
  return value.toFixed(Math.min(Math.max(digits, 2), 4));
}
