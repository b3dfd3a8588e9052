// Sliders of weights, upright in a row or level, with all gestures: click, drag, paint, wheel, keys.

import { element } from "./dom.js";
import { rounded, written } from "./block_text.js";

export const LOW = -2;
export const HIGH = 2;
export const STEP = 0.05;
export const FINE_STEP = 0.01;
const PAGE_STEP = 0.25;
const WHEEL_NOTCH = 40;

/**
 * @typedef {object} Bar
 * @property {string} label What a screen reader says.
 * @property {string} [title] What is shown when the mouse rests on it.
 * @property {boolean} [idle] Whether the file has nothing there: it is shown, but not moved by itself.
 * @property {number | null} [share] Of the energy in the largest of its kind, 0 to 1.
 */

/**
 * @typedef {object} Actions What the gestures do; `index` is the place of a slider in its row.
 * @property {(values: Map<number, number>) => void} set Gives sliders new values.
 * @property {(index: number, by: number) => void} shift Moves a slider.
 * @property {(index: number) => void} select Makes a slider the current one.
 * @property {(index: number) => void} solo
 * @property {(index: number) => void} type Lets its value be typed.
 * @property {() => boolean} paints Whether a drag across others changes these too.
 * @property {() => void} begin Before the changes of a gesture.
 * @property {() => void} end After them.
 */

/**
 * @typedef {object} Drag
 * @property {number} index Where it is.
 * @property {number} value What was set there.
 * @property {number} along Where fine movements count from,
 * @property {number} from and the value there.
 * @property {boolean} fine
 */

/** A row of sliders. */
export class Sliders {
  /** @type {HTMLElement[]} */
  #bars;
  /** @type {number[]} */
  #values;
  /** @type {Drag | null} */
  #drag = null;
  #wheel = 0;
  #upright;
  #idle;
  #actions;
  element;

  /**
   * @param {string} label Of the row.
   * @param {Bar[]} bars
   * @param {Actions} actions
   * @param {{ upright?: boolean, picking?: boolean }} [options] Upright, or level as usual; picking: only
   *   to choose one, not to change it.
   */
  constructor(label, bars, actions, { upright = false, picking = false } = {}) {
    this.#upright = upright;
    this.#actions = actions;
    this.#idle = bars.map((bar) => bar.idle === true);
    this.#values = bars.map(() => 1);
    this.#bars = bars.map((bar, index) => this.#bar(bar, index, picking));
    const kind = upright ? "anyadapter-blocks-strip" : "anyadapter-blocks-level";
    const role = picking ? "radiogroup" : bars.length > 1 ? "group" : undefined;
    const options = { class: kind, role, "aria-label": role && label };
    this.element = element("div", options, ...this.#bars);
    this.element.classList.toggle("anyadapter-blocks-picking", picking);
    this.element.addEventListener("keydown", (event) => this.#onKey(event, picking));
    if (picking) {
      this.element.addEventListener("click", (event) => this.#pick(event));
      return;
    }
    this.element.addEventListener("pointerdown", (event) => this.#onDown(event));
    this.element.addEventListener("pointermove", (event) => this.#onMove(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.element.addEventListener(end, () => this.#onUp());
    }
    this.element.addEventListener("dblclick", (event) => {
      if (!event.altKey) this.#setTo(this.#at(event), 1);
    });
    this.element.addEventListener("pointerenter", () => this.#listenToWheel(true));
    this.element.addEventListener("pointerleave", () => this.#listenToWheel(false));
  }

  /**
   * Shows the value of a slider.
   *
   * @param {number} index
   * @param {number} value
   * @param {{ mixed?: boolean, parted?: boolean }} [how] Mixed: the mean of several values; parted: some
   *   parts have others.
   */
  show(index, value, { mixed = false, parted = false } = {}) {
    const bar = this.#bars[index];
    if (!bar) return;
    this.#values[index] = value;
    const place = (/** @type {number} */ at) => (100 * (clamp(at) - LOW)) / (HIGH - LOW);
    bar.style.setProperty("--low", `${place(Math.min(value, 0))}%`);
    bar.style.setProperty("--high", `${100 - place(Math.max(value, 0))}%`);
    bar.style.setProperty("--at", `${place(value)}%`);
    bar.dataset.mixed = String(mixed);
    bar.dataset.parted = String(parted);
    bar.dataset.beyond = String(value < LOW || value > HIGH);
    if (bar.getAttribute("role") !== "slider") return;
    bar.setAttribute("aria-valuenow", written(value));
    bar.setAttribute("aria-valuemin", written(Math.min(LOW, value)));
    bar.setAttribute("aria-valuemax", written(Math.max(HIGH, value)));
    if (mixed) bar.setAttribute("aria-valuetext", `≈ ${written(value)}`);
    else bar.removeAttribute("aria-valuetext");
  }

  /**
   * Marks a slider as the current one, or none.
   *
   * @param {number} index
   */
  mark(index) {
    for (const [at, bar] of this.#bars.entries()) {
      bar.dataset.current = String(at === index);
      bar.tabIndex = at === Math.max(index, 0) ? 0 : -1;
      if (bar.getAttribute("role") === "radio") bar.ariaChecked = String(at === index);
    }
  }

  /**
   * Puts the keyboard's focus on a slider.
   *
   * @param {number} index
   */
  focus(index) {
    this.#bars[index]?.focus();
  }

  /**
   * @param {Bar} bar
   * @param {number} index
   * @param {boolean} picking
   */
  #bar(bar, index, picking) {
    const made = element("div", {
      class: "anyadapter-blocks-bar",
      role: picking ? "radio" : "slider",
      tabindex: index === 0 ? 0 : -1,
      title: bar.title,
      "aria-label": bar.label,
      "aria-orientation": picking ? undefined : this.#upright ? "vertical" : "horizontal",
      "aria-disabled": bar.idle && !picking ? "true" : undefined,
      "data-idle": bar.idle === true ? "true" : "false",
      onfocus: () => this.#actions.select(index),
    });
    if (bar.share) made.style.setProperty("--share", `${100 * bar.share}%`);
    return made;
  }

  /** @param {PointerEvent} event */
  #onDown(event) {
    if (event.button !== 0) return;
    const index = this.#at(event);
    if (event.altKey) {
      this.#actions.solo(index);
      return;
    }
    this.#actions.select(index);
    if (this.#idle[index]) return;
    this.element.setPointerCapture(event.pointerId);
    const value = this.#values[index] ?? 1;
    this.#drag = { index, value, along: this.#along(event), from: value, fine: event.shiftKey };
    this.#actions.begin();
    this.#onMove(event);
  }

  /** @param {PointerEvent} event */
  #onMove(event) {
    const drag = this.#drag;
    if (!drag) return;
    if (event.shiftKey !== drag.fine) {
      drag.fine = event.shiftKey;
      drag.along = this.#along(event);
      drag.from = drag.value;
    }
    if (drag.fine) {
      const pixels = Math.round(this.#along(event) - drag.along);
      drag.value = rounded(movedBy(drag.from, pixels * FINE_STEP));
      if (drag.value !== this.#values[drag.index])
        this.#actions.set(new Map([[drag.index, drag.value]]));
      return;
    }
    const index = this.#actions.paints() ? this.#at(event) : drag.index;
    const value = this.#valueAt(event);
    const changed = this.#path(drag, index, value);
    drag.index = index;
    drag.value = value;
    if (changed.size > 0) this.#actions.set(changed);
  }

  /**
   * Returns what a movement paints: all on the way from where the drag was, evenly.
   *
   * @param {Drag} drag
   * @param {number} index Where it is now.
   * @param {number} value What is wanted there.
   */
  #path(drag, index, value) {
    /** @type {Map<number, number>} */
    const changed = new Map();
    const steps = Math.abs(index - drag.index);
    for (let step = steps > 0 ? 1 : 0; step <= steps; step++) {
      const share = steps > 0 ? step / steps : 1;
      const at = drag.index + Math.sign(index - drag.index) * step;
      const wanted = snapped(drag.value + (value - drag.value) * share);
      if (wanted !== this.#values[at]) changed.set(at, wanted);
    }
    return changed;
  }

  #onUp() {
    if (!this.#drag) return;
    this.#drag = null;
    this.#actions.end();
  }

  /**
   * Listens to the wheel before all others: Nodes 2.0 would take it for the canvas.
   *
   * @param {boolean} on
   */
  #listenToWheel(on) {
    if (on) window.addEventListener("wheel", this.#onWheel, { capture: true, passive: false });
    else window.removeEventListener("wheel", this.#onWheel, { capture: true });
  }

  /** @param {WheelEvent} event */
  #onWheel = (event) => {
    if (!(event.target instanceof Node && this.element.contains(event.target))) {
      this.#listenToWheel(false); // it went away from under the mouse
      return;
    }
    const index = this.#at(event);
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) && !event.shiftKey;
    if (this.#idle[index] || event.ctrlKey || event.metaKey || sideways) return;
    event.preventDefault();
    event.stopPropagation();
    // With Shift the wheel turns sideways on some systems.
    const turned = event.deltaY || event.deltaX;
    this.#wheel = Math.sign(this.#wheel) === Math.sign(turned) ? this.#wheel + turned : turned;
    if (Math.abs(this.#wheel) < WHEEL_NOTCH) return;
    const step = event.shiftKey ? FINE_STEP : STEP;
    this.#shiftBy(index, -Math.sign(this.#wheel) * step);
    this.#wheel = 0;
  };

  /**
   * @param {KeyboardEvent} event
   * @param {boolean} picking
   */
  #onKey(event, picking) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const index = this.#bars.findIndex((bar) => bar === event.target);
    if (index < 0) return;
    const act = this.#keyAction(event, index, picking);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  /**
   * Returns what a key does, or nothing.
   *
   * @param {KeyboardEvent} event
   * @param {number} index Of the slider that has the focus.
   * @param {boolean} picking
   * @returns {(() => void) | undefined}
   */
  #keyAction({ key, shiftKey }, index, picking) {
    const across = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (across && (this.#upright || picking)) return () => this.focus(index + across);
    const ignored = () => {}; // Delete, say, would delete the node
    if (picking || this.#idle[index])
      return ["Delete", "Backspace"].includes(key) ? ignored : undefined;
    const step = shiftKey ? FINE_STEP : STEP;
    const by = { ArrowUp: step, ArrowRight: step, ArrowDown: -step, ArrowLeft: -step }[key];
    const page = { PageUp: PAGE_STEP, PageDown: -PAGE_STEP }[key];
    if (by ?? page) return () => this.#shiftBy(index, by ?? page ?? 0);
    const to = { Home: LOW, End: HIGH, 0: 0, 1: 1, Delete: 1, Backspace: 1 }[key];
    if (to !== undefined) return () => this.#setTo(index, to);
    return key === "Enter" ? () => this.#actions.type(index) : undefined;
  }

  /**
   * @param {number} index
   * @param {number} by
   */
  #shiftBy(index, by) {
    this.#actions.begin();
    this.#actions.shift(index, by);
    this.#actions.end();
  }

  /**
   * @param {number} index
   * @param {number} value
   */
  #setTo(index, value) {
    if (this.#idle[index]) return;
    this.#actions.begin();
    this.#actions.set(new Map([[index, value]]));
    this.#actions.end();
  }

  /** @param {MouseEvent} event */
  #pick(event) {
    const index = this.#at(event);
    if (event.altKey) this.#actions.solo(index);
    else this.focus(index);
  }

  /**
   * Returns which slider is under the pointer, or nearest to it.
   *
   * @param {MouseEvent} event
   */
  #at(event) {
    if (!this.#upright || this.#bars.length === 1) return 0;
    const { left, width } = this.element.getBoundingClientRect();
    const index = Math.floor(((event.clientX - left) / width) * this.#bars.length);
    return Math.min(Math.max(index, 0), this.#bars.length - 1);
  }

  /**
   * Returns the value where the pointer is.
   *
   * @param {MouseEvent} event
   */
  #valueAt(event) {
    const { left, width, bottom, height } = this.element.getBoundingClientRect();
    const share = this.#upright
      ? (bottom - event.clientY) / height
      : (event.clientX - left) / width;
    return snapped(clamp(LOW + share * (HIGH - LOW)));
  }

  /**
   * Returns how far the pointer is in the direction in which values grow, in pixels.
   *
   * @param {MouseEvent} event
   */
  #along(event) {
    return this.#upright ? -event.clientY : event.clientX;
  }
}

/**
 * Returns a value moved, within the range of the sliders or where it was beyond it.
 *
 * @param {number} value
 * @param {number} by
 */
export function movedBy(value, by) {
  const low = Math.min(LOW, value);
  const high = Math.max(HIGH, value);
  return rounded(Math.min(Math.max(value + by, low), high));
}

/** @param {number} value */
function clamp(value) {
  return Math.min(Math.max(value, LOW), HIGH);
}

/** @param {number} value */
function snapped(value) {
  return rounded(Math.round(value / STEP) * STEP);
}
