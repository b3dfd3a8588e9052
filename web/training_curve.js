// The curve of losses: every step pale, their smoothed course, and the losses of the validation.
//
// It is an SVG, as the plot of Adapter Schedule is and for the same reasons.

import { element } from "./dom.js";
import { t } from "./i18n.js";
import { label, svg, tenths, ticks } from "./svg.js";

/** @import { Stretch } from "./api.js" */

/** @typedef {[x: number, y: number]} Place */
/** @typedef {[step: number, loss: number | null][]} Losses */

/**
 * @typedef {object} Shown
 * @property {Stretch[]} points By step, ascending.
 * @property {Losses} validation
 * @property {(number | null)[]} means Of the losses up to each point.
 * @property {boolean} smooth Whether they are others than the losses.
 * @property {boolean} logarithmic
 */

const MARGIN = { right: 12, top: 10, bottom: 20 };
const LABEL_HEIGHT = 28;
const LABEL_WIDTH = 46;
const DIGIT = 6;
/** How near, in pixels, a dot is to the mouse that points at it. */
const NEAR = 5;

export class TrainingCurve {
  /** @type {Shown} */
  #shown = { points: [], validation: [], means: [], smooth: false, logarithmic: false };
  /** @type {Axes | null} */
  #axes = null;
  /** Which point is looked at; -1 for none. */
  #at = -1;
  #picture = svg("svg", { "aria-hidden": "true" });
  #cursor = svg("g", { class: "anyadapter-curve-cursor" });
  #told = element("div", { class: "anyadapter-curve-told", role: "status", hidden: true });
  #observer = new ResizeObserver(() => this.#draw());
  element = element(
    "div",
    {
      class: "anyadapter-curve",
      role: "group",
      tabindex: 0,
      "aria-label": t("training_curve", "Loss by step; left and right go along it"),
      onpointermove: (/** @type {PointerEvent} */ event) => this.#pointAt(event),
      onpointerleave: () => this.#look(-1),
      onblur: () => this.#look(-1),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#onKey(event),
    },
    this.#picture,
    this.#told,
  );

  constructor() {
    this.#observer.observe(this.element);
  }

  /** @param {Shown} shown */
  show(shown) {
    this.#shown = shown;
    this.#draw();
  }

  close() {
    this.#observer.disconnect();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return; // folded
    const { points, validation, means, smooth } = this.#shown;
    const axes = new Axes(this.#shown, width, height);
    this.#axes = axes;
    const steps = points.flatMap(([step, loss, , low, high]) =>
      low === undefined || high === undefined
        ? [axes.place(step, loss)]
        : [axes.place(step, high), axes.place(step, low)],
    );
    const course = points.map(([step], index) => axes.place(step, means[index] ?? null));
    const checks = validation.map(([step, loss]) => axes.place(step, loss));
    // One inside of the other cuts off what is beyond the losses that are shown.
    const inside = svg(
      "svg",
      { ...axes.box, viewBox: Object.values(axes.box).join(" ") },
      ...lines(steps, smooth ? "anyadapter-curve-steps" : "anyadapter-curve-course"),
      ...(smooth ? lines(course, "anyadapter-curve-course") : []),
      ...lines(checks, "anyadapter-curve-validation", true),
    );
    this.#picture.replaceChildren(...axes.elements(), inside, this.#cursor);
    if (validation.length) this.#picture.append(...legend(width));
    this.#look(Math.min(this.#at, points.length - 1));
  }

  /** @param {PointerEvent} event */
  #pointAt(event) {
    const { left, width } = this.element.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * this.element.clientWidth; // the canvas may be zoomed
    const { points } = this.#shown;
    let nearest = -1;
    let distance = Infinity;
    points.forEach(([step], index) => {
      const away = Math.abs((this.#axes?.x(step) ?? 0) - x);
      if (away < distance) [nearest, distance] = [index, away];
    });
    this.#look(nearest);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const last = this.#shown.points.length - 1;
    const at = this.#at < 0 ? last + 1 : this.#at;
    /** @type {Record<string, number>} */
    const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
    const place = places[event.key];
    if (place === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.#look(Math.min(Math.max(place, 0), last));
  }

  /**
   * Tells about a point.
   *
   * @param {number} index Of the point; -1 for none.
   */
  #look(index) {
    this.#at = index;
    const point = this.#shown.points[index];
    const axes = this.#axes;
    this.#told.hidden = !point || !axes;
    this.#cursor.replaceChildren();
    if (!point || !axes) return;
    const [step, loss, rate] = point;
    const x = axes.x(step);
    const place = axes.place(step, loss);
    this.#cursor.append(axes.upright(x), ...(place ? [dot(place, "")] : []));
    const words = [
      t("training_step", "step {step}", { step }),
      t("training_loss", "loss {loss}", { loss: inFigures(loss) }),
      t("training_rate", "rate {rate}", { rate: inFigures(rate) }),
    ];
    const check = this.#shown.validation.find(([at]) => Math.abs(axes.x(at) - x) <= NEAR);
    if (check) {
      const values = { loss: inFigures(check[1]) };
      words.push(t("training_validation_loss", "validation {loss}", values));
    }
    this.#told.textContent = words.join(" · ");
    this.#told.classList.toggle("anyadapter-curve-left", x > this.element.clientWidth / 2);
  }
}

/** Where steps and losses lie in the picture. */
class Axes {
  #scaled;
  #left;
  #right;
  #bottom;
  /** First and last. */
  #steps;
  /** Lowest and highest, scaled. */
  #losses;
  /** Of the losses. */
  #marks;

  /**
   * @param {Shown} shown
   * @param {number} width
   * @param {number} height
   */
  constructor(shown, width, height) {
    const { points, validation, logarithmic } = shown;
    this.#bottom = height - MARGIN.bottom;
    this.#scaled = logarithmic ? Math.log : Number;
    const losses = [...points, ...validation].map(([, loss]) => this.#scaled(loss ?? NaN));
    const known = losses.filter(Number.isFinite);
    const [low, high] = widened(...usualRange(known));
    const count = Math.max(Math.round((this.#bottom - MARGIN.top) / LABEL_HEIGHT), 2);
    this.#marks = logarithmic
      ? logarithmicTicks(Math.exp(low), Math.exp(high), count)
      : ticks(low, high, count);
    this.#losses = logarithmic ? [low, high] : [this.#marks[0] ?? 0, this.#marks.at(-1) ?? 1];
    this.#left = 10 + DIGIT * Math.max(...this.#marks.map((mark) => String(mark).length));
    this.#right = width - MARGIN.right;
    const across = [...points, ...validation].map(([step]) => step);
    this.#steps = [Math.min(...across), Math.max(...across)];
  }

  /** Of the curve. */
  get box() {
    const [x, y] = [this.#left, MARGIN.top - 2];
    return { x, y, width: this.#right - x + 4, height: this.#bottom - y + 2 };
  }

  /** @param {number} step */
  x(step) {
    const [first = 0, last = 1] = this.#steps;
    const share = last > first ? (step - first) / (last - first) : 0.5;
    return tenths(this.#left + share * (this.#right - this.#left));
  }

  /** @param {number} loss */
  y(loss) {
    const [low = 0, high = 1] = this.#losses;
    const share = (this.#scaled(loss) - low) / (high - low);
    return tenths(this.#bottom - share * (this.#bottom - MARGIN.top));
  }

  /**
   * Returns where a loss lies, or null where it is none.
   *
   * @param {number} step
   * @param {number | null} loss
   * @returns {Place | null}
   */
  place(step, loss) {
    return loss === null || !Number.isFinite(this.#scaled(loss))
      ? null
      : [this.x(step), this.y(loss)];
  }

  /** @param {number} x */
  upright(x) {
    return svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.#bottom });
  }

  /** Lines and labels. */
  elements() {
    const made = this.#marks.flatMap((mark) => {
      const y = this.y(mark);
      const line = {
        x1: this.#left,
        x2: this.#right,
        y1: y,
        y2: y,
        class: "anyadapter-curve-grid",
      };
      return [
        svg("line", line),
        label({ x: this.#left - 5, y: y + 3.5, "text-anchor": "end" }, mark),
      ];
    });
    const [first = 0, last = 0] = this.#steps;
    if (!Number.isFinite(first)) return made;
    const count = Math.max((this.#right - this.#left) / LABEL_WIDTH, 1) + 1;
    for (const step of ticks(first, Math.max(last, first + 1), count)) {
      if (step < first || step > last || !Number.isInteger(step)) continue;
      made.push(label({ x: this.x(step), y: this.#bottom + 14, "text-anchor": "middle" }, step));
    }
    return made;
  }
}

/**
 * Returns exponential means of the losses up to each point; null where a loss is none.
 *
 * The server has the same: see `smoothed` in `algorithms/analysis/series.py`.
 *
 * @param {Stretch[]} points
 * @param {number} span After so many steps a loss counts for 1/e of what it did; 0 smooths nothing.
 */
export function smoothed(points, span) {
  if (!span) return points.map(([, loss]) => loss);
  let [total, weight] = [0, 0];
  let before = (points[0]?.[0] ?? 0) - (points[0]?.[5] ?? 1);
  return points.map(([step, loss]) => {
    if (loss === null) return null;
    const keep = Math.exp(-Math.max(step - before, 1) / span);
    total = keep * total + (1 - keep) * loss;
    weight = keep * weight + (1 - keep);
    before = step;
    return total / weight;
  });
}

/**
 * Returns lowest and highest of the values that lie with the others, as `usual_range` of
 * `algorithms/analysis/series.py` does.
 *
 * @param {number[]} values
 * @returns {[number, number]}
 */
export function usualRange(values) {
  const known = values.toSorted((a, b) => a - b);
  const cut = Math.floor(0.05 * (known.length - 1) + 0.5);
  const lower = known[cut] ?? 0;
  const upper = known[known.length - 1 - cut] ?? 1;
  const reach = (upper - lower) / 2;
  const inside = known.filter((value) => value >= lower - reach && value <= upper + reach);
  return [inside[0] ?? 0, inside.at(-1) ?? 1];
}

/**
 * Returns round numbers in a range of logarithms.
 *
 * @param {number} low
 * @param {number} high
 * @param {number} count About how many.
 */
export function logarithmicTicks(low, high, count) {
  if (high / low < 4) return ticks(low, high, count).filter((one) => one >= low && one <= high);
  const all = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    for (const factor of [1, 2, 5]) all.push(Number((factor * 10 ** power).toPrecision(6)));
  }
  const inside = all.filter((one) => one >= low && one <= high);
  const tens = inside.filter((one) => String(one.toExponential()).startsWith("1e"));
  return inside.length > 2 * count && tens.length > 1 ? tens : inside;
}

/**
 * Returns a number in four figures; a gap where it is none.
 *
 * @param {number | null} value
 */
export function inFigures(value) {
  if (value === null) return "–";
  const short = Number(value.toPrecision(4));
  return short !== 0 && Math.abs(short) < 0.001 ? short.toExponential() : String(short);
}

/**
 * Returns a range that is one: values that are all the same lie in its middle.
 *
 * @param {number} low
 * @param {number} high
 * @returns {[number, number]}
 */
function widened(low, high) {
  if (high - low > 1e-6 * Math.abs(high)) return [low, high];
  const by = Math.abs(high) / 10 || 1;
  return [low - by, high + by];
}

/**
 * Returns lines through places, and a dot where one stands alone between gaps.
 *
 * @param {(Place | null)[]} places
 * @param {string} kind
 * @param {boolean} [everyDot] Whether every place has one.
 */
function lines(places, kind, everyDot = false) {
  /** @type {Place[][]} */
  const runs = [[]];
  for (const place of places) {
    if (place) runs.at(-1)?.push(place);
    else runs.push([]);
  }
  return runs.flatMap((run) => {
    const dots = everyDot || run.length === 1 ? run.map((place) => dot(place, kind)) : [];
    if (run.length < 2) return dots;
    return [svg("polyline", { points: run.join(" "), class: kind }), ...dots];
  });
}

/**
 * Says what the dots are.
 *
 * @param {number} width
 */
function legend(width) {
  const place = { x: width - MARGIN.right, y: MARGIN.top + 7, "text-anchor": "end" };
  return [
    label(
      { ...place, class: "anyadapter-curve-legend" },
      `● ${t("training_validation", "validation")}`,
    ),
  ];
}

/**
 * @param {Place} place
 * @param {string} kind
 */
function dot([cx, cy], kind) {
  return svg("circle", { cx, cy, r: 2.5, class: kind });
}
