// Small pictures for buttons, drawn with lines in the colour of the text.

import { loadStyle } from "./dom.js";
import { svg } from "./svg.js";

/** @typedef {keyof typeof PATHS} PictureName */

/** Paths in a square of 16. */
const PATHS = {
  chevron: "M6 4l4 4-4 4",
  more: "M3 8a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0M7.5 8a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0M12 8a.5.5 0 1 0 1 0 .5.5 0 1 0-1 0",
  link: "M6.5 9.5l3-3M7 4.5l1.2-1.2a3 3 0 0 1 4.3 4.3L11.2 8.8M9 11.5l-1.2 1.2a3 3 0 0 1-4.3-4.3L4.8 7.2",
  invert: "M5 13V3.5M2.5 6L5 3.5 7.5 6M11 3v9.5M8.5 10l2.5 2.5 2.5-2.5",
  solo: "M8 2.5v2M8 11.5v2M2.5 8h2M11.5 8h2M8 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5",
  copy: "M6 6h7.5v7.5H6zM3.5 10H2.5V2.5H10v1",
  paste: "M5.5 3.5h-2v10h9v-10h-2M5.5 2.5h5v2.5h-5zM6 8.5h4M6 11h4",
  grip: "M6 4h.01M6 8h.01M6 12h.01M10 4h.01M10 8h.01M10 12h.01",
  plus: "M8 3v10M3 8h10",
  text: "M3 4h10M3 8h10M3 12h6",
  columns: "M3 3h4v10H3zM9 3h4v10H9z",
  warning: "M8 2.5l6 11H2zM8 6.5v3.5M8 11.8v.01",
  reset: "M3 8a5 5 0 1 0 1.6-3.7L3 5.8M3 2.5v3.3h3.3",
};

/**
 * Returns a picture for a button, which needs a label of its own.
 *
 * @param {PictureName} name
 */
export function icon(name) {
  loadStyle("icons.css");
  const kind = { viewBox: "0 0 16 16", "aria-hidden": "true", class: "anyadapter-icon" };
  return svg("svg", kind, svg("path", { d: PATHS[name] }));
}
