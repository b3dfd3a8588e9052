// The plot in the node Adapter Schedule.
//
// It is an SVG and not a canvas: so it is sharp at every zoom, and its colours follow the theme by
// themselves, as they are the variables of ComfyUI's own style.

import { scheduleCurve } from "./api.js";
import { debounced, followedBy, sentence, zoomCanvas } from "./dom.js";
import { t } from "./i18n.js";
import { label, svg, tenths, ticks } from "./svg.js";

/** @import { Curve } from "./api.js" */

const MIN_HEIGHT = 130;
const WAIT_MS = 150;
const MARGIN = { left: 34, right: 17, top: 10, bottom: 20 };
const GAP_BETWEEN_LABELS = 36;
const STYLE = {
  frame:
    "position: relative; box-sizing: border-box; width: 100%; overflow: hidden; border-radius: 4px;" +
    `min-height: ${MIN_HEIGHT}px; background: var(--comfy-input-bg); color: var(--input-text);` +
    "font: 10px sans-serif;",
  picture: "position: absolute; inset: 0; width: 100%; height: 100%;",
  note:
    "position: absolute; inset: 0; padding: 8px 10px; overflow: auto; font-size: 12px;" +
    "line-height: 1.35; white-space: pre-wrap; overflow-wrap: anywhere;",
  grid: "stroke: var(--input-text); stroke-opacity: 0.18;",
  zero: "stroke: var(--input-text); stroke-opacity: 0.5;",
  label: "fill: var(--input-text); fill-opacity: 0.75;",
  curve: "fill: none; stroke: var(--p-primary-color); stroke-width: 2; stroke-linejoin: round;",
};

/**
 * Adds the plot below the widgets of a node and keeps it up to date.
 *
 * @param {import("comfyui").Node} node
 */
export function addSchedulePlot(node) {
  const widgets = [...node.widgets];
  const plot = new Plot();
  const widget = node.addDOMWidget("plot", "anyadapter_plot", plot.element, {
    serialize: false, // not sent with the prompt
    getMinHeight: () => MIN_HEIGHT,
  });
  widget.serialize = false; // not stored in the workflow

  const update = debounced(async (isLatest) => {
    const linked = node.inputs.find((input) => input.widget && input.link != null);
    if (linked) {
      plot.show(
        t(
          "schedule_linked",
          "{input} comes from another node, so the curve is known when it runs.",
          {
            input: linked.localized_name ?? linked.name,
          },
        ),
      );
      return;
    }
    try {
      const values = widgets.map((one) => [one.name, String(one.value)]);
      const curve = await scheduleCurve(Object.fromEntries(values));
      if (isLatest()) plot.show(curve);
    } catch (error) {
      if (isLatest()) plot.show(sentence(error));
    }
  }, WAIT_MS);
  for (const one of widgets) one.callback = followedBy(one.callback, update);
  node.onConfigure = followedBy(node.onConfigure, update); // loaded, pasted, undone
  node.onConnectionsChange = followedBy(node.onConnectionsChange, update);
  node.onRemoved = followedBy(node.onRemoved, () => plot.close());
  update();
}

/** The element, with what it shows: a curve, or a sentence in its place. */
class Plot {
  /** @type {Curve | string} */
  #shown = "";
  #picture = svg("svg");
  #note = document.createElement("div");
  #observer = new ResizeObserver(() => this.#draw());
  element = document.createElement("div");

  constructor() {
    this.element.style.cssText = STYLE.frame;
    this.#picture.style.cssText = STYLE.picture;
    this.#note.style.cssText = STYLE.note;
    this.#picture.dataset.plot = "schedule";
    this.#note.setAttribute("role", "status");
    this.element.append(this.#picture, this.#note);
    this.element.addEventListener("wheel", zoomCanvas);
    this.#observer.observe(this.element);
  }

  /** @param {Curve | string} shown */
  show(shown) {
    this.#shown = shown;
    this.#draw();
  }

  close() {
    this.#observer.disconnect();
  }

  #draw() {
    const text = typeof this.#shown === "string" ? this.#shown : "";
    this.#note.textContent = text;
    this.#note.style.display = text ? "" : "none";
    const { clientWidth, clientHeight } = this.element;
    const drawn =
      typeof this.#shown === "string" ? [] : elements(this.#shown, clientWidth, clientHeight);
    this.#picture.replaceChildren(...drawn);
  }
}

/**
 * Returns the drawing of a curve: grid, labels, and the line.
 *
 * @param {Curve} curve
 * @param {number} width
 * @param {number} height
 */
function elements(curve, width, height) {
  const values = ticks(Math.min(curve.low, 0), Math.max(curve.high, 0), height < 180 ? 3 : 5);
  const low = values[0] ?? 0;
  const high = values.at(-1) ?? 1;
  const across = width - MARGIN.left - MARGIN.right;
  const upwards = height - MARGIN.top - MARGIN.bottom;
  const x = (/** @type {number} */ progress) => tenths(MARGIN.left + progress * across);
  const y = (/** @type {number} */ value) =>
    tenths(MARGIN.top + ((high - value) / (high - low)) * upwards);
  const style = STYLE.label;
  const drawn = [];
  const steps = across / 4 < GAP_BETWEEN_LABELS ? 2 : 4;
  for (let step = 0; step <= steps; step++) {
    const place = { x: x(step / steps), y: height - 6, "text-anchor": "middle", style };
    drawn.push(line(x(step / steps), y(low), x(step / steps), y(high), STYLE.grid));
    drawn.push(label(place, `${(100 * step) / steps}%`));
  }
  for (const value of values) {
    const place = { x: MARGIN.left - 5, y: y(value) + 3.5, "text-anchor": "end", style };
    drawn.push(line(x(0), y(value), x(1), y(value), value === 0 ? STYLE.zero : STYLE.grid));
    drawn.push(label(place, value));
  }
  const points = curve.points.map(([progress, value]) => `${x(progress)},${y(value)}`).join(" ");
  drawn.push(svg("polyline", { points, style: STYLE.curve }));
  return drawn;
}

/**
 * @param {number} x1
 * @param {number} y1
 * @param {number} x2
 * @param {number} y2
 * @param {string} style
 */
function line(x1, y1, x2, y2, style) {
  return svg("line", { x1, y1, x2, y2, style });
}
