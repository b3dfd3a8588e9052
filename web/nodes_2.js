// What Nodes 2.0 of the page leaves to those who have widgets of their own.

import { followedBy } from "./dom.js";

const FRAMES = 20;

/** @type {WeakSet<Element>} Elements of nodes that are no more. */
const gone = new WeakSet();

/**
 * Puts the element of a widget into the page where the page forgets to: an undo makes all nodes anew, and
 * where one has the number of one before, the element of the old node would stay and do nothing.
 *
 * @param {import("comfyui").Node} node
 * @param {HTMLElement} element
 * @param {string} kind The same for the elements of all nodes that can take each other's place.
 */
export function keepMounted(node, element, kind) {
  element.dataset.anyadapterWidget = kind;
  node.onRemoved = followedBy(node.onRemoved, () => gone.add(element));
  node.onConfigure = followedBy(node.onConfigure, () => mount(node, element, kind, FRAMES));
}

/**
 * @param {import("comfyui").Node} node
 * @param {HTMLElement} element
 * @param {string} kind
 * @param {number} frames How many more times to look.
 */
function mount(node, element, kind, frames) {
  if (gone.has(element)) return;
  const place = `[data-node-id="${CSS.escape(String(node.id))}"] [data-anyadapter-widget="${kind}"]`;
  const old = [...document.querySelectorAll(place)].find((one) => gone.has(one));
  if (old && !element.isConnected) old.replaceWith(element);
  if (frames) requestAnimationFrame(() => mount(node, element, kind, frames - 1));
}
