// Widgets of ours that fold to one line, and nodes that grow with them.

import { element, loadStyle } from "./dom.js";
import { icon } from "./icons.js";
import { keepMounted } from "./nodes_2.js";

const MIN_WIDTH = 340;
const MARGIN = 4;
/** How high such a widget is while it is folded. */
export const HEAD_HEIGHT = 26;

/**
 * Makes the frame of such a widget: its head, and below it what there is to see unfolded.
 *
 * @param {object} frame
 * @param {string} frame.kind In the names of classes.
 * @param {string} frame.title Stands in the head.
 * @param {string} frame.label
 * @param {() => void} frame.onFold
 * @param {(event: WheelEvent) => void} frame.onWheel
 * @param {HTMLElement} body
 */
export function foldingFrame({ kind, title, label, onFold, onWheel }, body) {
  loadStyle("widget.css"); // first, as the style of the kind goes beyond it
  const named = (/** @type {string} */ part) => `anyadapter-${part} anyadapter-${kind}-${part}`;
  const fold = element(
    "button",
    { type: "button", class: named("fold"), "aria-expanded": "false", onclick: onFold },
    icon("chevron"),
    title,
  );
  const summary = element("span", { class: named("summary") });
  const frame = element(
    "div",
    {
      class: `anyadapter-widget anyadapter-${kind}`,
      role: "group",
      "aria-label": label,
      onwheel: onWheel,
      onpointerdown: (/** @type {PointerEvent} */ event) => {
        // Else the node would be dragged, or with Alt be copied.
        if (event.button === 0) event.stopPropagation();
      },
    },
    element("div", { class: named("head") }, fold, summary),
    body,
  );
  return { element: frame, fold, summary };
}

/**
 * Adds such a widget, folded, below the others of a node.
 *
 * @param {import("comfyui").Node} node
 * @param {{ element: HTMLElement, readonly height: number }} panel What is in it.
 * @param {object} widget
 * @param {string} widget.name
 * @param {string} widget.kind As of its frame.
 * @param {boolean} widget.fills Whether it takes, unfolded, all the room that the user gives the node.
 */
export function addFoldingWidget(node, panel, { name, kind, fills }) {
  const height = () => panel.height + 2 * MARGIN;
  panel.element.style.setProperty("--height", `${HEAD_HEIGHT}px`);
  const widget = node.addDOMWidget(name, `anyadapter_${kind}`, panel.element, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: height,
    getMaxHeight: () => (fills && panel.height > HEAD_HEIGHT ? Infinity : height()),
  });
  widget.serialize = false; // not stored in the workflow
  keepMounted(node, panel.element, kind);
}

/**
 * Gives a node the size that it needs with its widget.
 *
 * What it has grown for the widget is kept with it, so that folding takes away as much and no more: the
 * rest is how large the user wants it.
 *
 * @param {import("comfyui").Node} node
 * @param {HTMLElement} element Of the widget; its height is the variable `--height`.
 * @param {number} height How high the widget is to be; only its head if it is folded.
 * @param {string} property Of the node, which keeps what it has grown.
 */
export function growNode(node, element, height, property) {
  const [wider, higher] = grown(node, property);
  const below = height - HEAD_HEIGHT;
  const drawn = element.closest("[data-node-id]");
  if (drawn instanceof HTMLElement) {
    // Nodes 2.0: the node is as high as its content, or as these variables say.
    const [width, full] = [drawn.offsetWidth - wider, drawn.offsetHeight - higher];
    const wanted = below ? Math.max(width, MIN_WIDTH) : width;
    element.style.setProperty("--height", `${height}px`);
    drawn.style.setProperty("--node-height", `${full + below}px`);
    drawn.style.setProperty("--node-width", `${wanted}px`);
    node.properties[property] = [wanted - width, drawn.offsetHeight - full];
    return;
  }
  element.style.setProperty("--height", `${height}px`);
  const [width, full] = [node.size[0] - wider, node.size[1] - higher];
  const wanted = below ? Math.max(width, MIN_WIDTH) : width;
  const needed = Math.max(full + below, node.computeSize()[1]);
  node.properties[property] = [wanted - width, needed - full];
  node.setSize([wanted, needed]);
  node.setDirtyCanvas(true, true);
}

/**
 * Returns by how much a node is wider and higher for its widget.
 *
 * @param {import("comfyui").Node} node
 * @param {string} property
 * @returns {[number, number]}
 */
function grown(node, property) {
  const stored = node.properties[property];
  const [wider, higher] = Array.isArray(stored) ? stored.map(Number) : [];
  return [wider || 0, higher || 0];
}
