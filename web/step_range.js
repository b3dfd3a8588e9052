// A range of the steps of sampling: two handles on a line, and what they say beside it.

import { element } from "./dom.js";
import { t } from "./i18n.js";

const SMALLEST = 0.01;

/**
 * @typedef {object} RangeOptions
 * @property {(start: number, end: number) => void} onChange Called whenever it changes.
 * @property {(goesOn: boolean) => void} onGesture Called before changes begin, and after they end.
 */

/** The element of a range. */
export class StepRange {
  #start = 0;
  #end = 1;
  #options;
  #part = element("div", { class: "anyadapter-range-part" });
  #said = element("span", { class: "anyadapter-range-text" });
  #track = element("div", { class: "anyadapter-range-track" }, this.#part);
  #first;
  #last;
  element;

  /** @param {RangeOptions} options */
  constructor(options) {
    this.#options = options;
    this.#first = this.#handle(t("stack.start", "Start of the steps it acts in"), (value) =>
      this.#set(Math.min(value, this.#end - SMALLEST), this.#end),
    );
    this.#last = this.#handle(t("stack.end", "End of the steps it acts in"), (value) =>
      this.#set(this.#start, Math.max(value, this.#start + SMALLEST)),
    );
    this.#track.append(this.#first, this.#last);
    this.#track.addEventListener("dblclick", () => this.#gesture(() => this.#set(0, 1)));
    this.element = element(
      "div",
      {
        class: "anyadapter-range",
        role: "group",
        "aria-label": t("stack.steps", "Steps"),
        title: t(
          "stack.stepsHelp",
          "The part of sampling in which it acts. Double-click: all of it.",
        ),
      },
      this.#track,
      this.#said,
    );
    this.show(0, 1);
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  show(start, end) {
    this.#start = start;
    this.#end = end;
    this.#part.style.left = `${100 * start}%`;
    this.#part.style.right = `${100 * (1 - end)}%`;
    for (const [handle, value] of /** @type {const} */ ([
      [this.#first, start],
      [this.#last, end],
    ])) {
      handle.style.left = `${100 * value}%`;
      handle.setAttribute("aria-valuenow", String(value));
      handle.setAttribute("aria-valuetext", percent(value));
    }
    this.#said.textContent = rangeText(start, end);
  }

  /**
   * @param {number} start
   * @param {number} end
   */
  #set(start, end) {
    const [first, last] = [rounded(Math.max(0, start)), rounded(Math.min(1, end))];
    if (first === this.#start && last === this.#end) return;
    this.show(first, last);
    this.#options.onChange(first, last);
  }

  /** @param {() => void} change */
  #gesture(change) {
    this.#options.onGesture(true);
    change();
    this.#options.onGesture(false);
  }

  /**
   * @param {string} label
   * @param {(value: number) => void} move
   */
  #handle(label, move) {
    const made = element("div", {
      class: "anyadapter-range-handle",
      role: "slider",
      tabindex: 0,
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": 1,
    });
    made.addEventListener("keydown", (event) => {
      const ways = {
        ArrowLeft: -1,
        ArrowDown: -1,
        ArrowRight: 1,
        ArrowUp: 1,
        PageUp: 10,
        PageDown: -10,
      };
      const way = ways[/** @type {keyof typeof ways} */ (event.key)];
      if (!way || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.#gesture(() => move(Number(made.getAttribute("aria-valuenow")) + way * SMALLEST));
    });
    made.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.stopPropagation();
      this.#options.onGesture(true);
      const follow = (/** @type {PointerEvent} */ moved) => {
        const { left, width } = this.#track.getBoundingClientRect();
        move(Math.min(Math.max((moved.clientX - left) / width, 0), 1));
      };
      const stop = () => {
        made.removeEventListener("pointermove", follow);
        made.removeEventListener("lostpointercapture", stop);
        this.#options.onGesture(false);
      };
      made.setPointerCapture(event.pointerId);
      made.addEventListener("pointermove", follow);
      made.addEventListener("lostpointercapture", stop);
    });
    return made;
  }
}

/**
 * Returns a range in words.
 *
 * @param {number} start
 * @param {number} end
 */
export function rangeText(start, end) {
  return start === 0 && end === 1
    ? t("stack.allSteps", "all steps")
    : `${percent(start).replace("%", "")}\u2013${percent(end)}`;
}

/** @param {number} value */
function percent(value) {
  return `${Number((100 * value).toFixed(1))}%`;
}

/** @param {number} value */
function rounded(value) {
  return Number(value.toFixed(2));
}
