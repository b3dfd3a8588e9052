// Nodes that grow with a widget of ours that unfolds.

const MIN_WIDTH = 340;
/** How high such a widget is while it is folded. */
export const HEAD_HEIGHT = 26;

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
